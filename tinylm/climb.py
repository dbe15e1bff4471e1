"""The climb on the tiny language model: every rung from one warm start on two-digit sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from course.ablation import run_ablation
from course.climb import Climbed
from course.terminal import Progress, duration
from tinylm.ablations import ladder as climbing

CLIMB = replace(climbing.SETTINGS, rates=(1e-3,), rollouts=60)  # no sweep: the ablation of the same name has one
QUICK = replace(CLIMB, digits=1, width=32, rollouts=40, prompts=16, judged=20)
CLIMB_SECONDS, QUICK_SECONDS = 180.0, 30.0


def climb(rungs: Sequence[str] | None, seed: int, device: str | None, out: Path, quick: bool = False) -> Climbed:
    """Run the ladder on the tiny language model and write its figure to `out`; `quick` takes one-digit sums and less of all."""
    settings: dict[str, Any] = {"seed": seed, "device": device or "cpu"} | ({"rungs": tuple(rungs)} if rungs else {})
    chosen = replace(QUICK if quick else CLIMB, **settings)
    expected = QUICK_SECONDS if quick else CLIMB_SECONDS
    print(f"the ladder on a tiny language model, {chosen.digits}-digit sums, about {duration(expected)}", flush=True)
    trained = run_ablation(climbing, chosen, out, Progress())
    columns = {"seconds": {name: f"{trained.series['rungs'][name]['seconds'] * chosen.seeds:.1f}" for name in chosen.rungs}}
    return Climbed("tiny language model", trained, "accuracy", "held-out accuracy", columns)
