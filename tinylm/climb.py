"""The climb on the tiny language model: every rung from one warm start on two-digit sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from course import ladder
from course.lab.ablation import run_ablation
from course.lab.climb import Climbed
from course.lab.terminal import Progress, duration
from course.train.device import keep_memory
from tinylm.ablations import ladder as climbing

# No sweep of learning rates: the ablation `ladder` has one. These settings are chosen so that eight
# rungs with three seeds take a few minutes.
CLIMB = replace(
    climbing.SETTINGS, rungs=tuple(rung.name for rung in ladder.select()), rates=(1.5e-4,), seeds=3
)
QUICK = replace(CLIMB, preset="nano", digits=1, prompts=8, rollouts=30, seeds=2, judged=100)
NAME = "tinylm_climb"  # name of the files, different from that of the ablation's files
CLIMB_SECONDS, QUICK_SECONDS = 180.0, 40.0


def climb(
    rungs: Sequence[str] | None, seed: int, device: str | None, out: Path, quick: bool = False
) -> Climbed:
    """Run the ladder on the tiny language model and write its figure to `out`.

    `quick` uses a smaller model, fewer rollouts and fewer seeds.
    """
    keep_memory()
    settings: dict[str, Any] = {"seed": seed, "device": device or "cpu"} | (
        {"rungs": tuple(rungs)} if rungs else {}
    )
    chosen = replace(QUICK if quick else CLIMB, **settings)
    expected = QUICK_SECONDS if quick else CLIMB_SECONDS
    print(
        f"the ladder on a tiny language model, {chosen.digits}-digit sums, about"
        f" {duration(expected)}",
        flush=True,
    )
    trained = run_ablation(climbing, chosen, out, Progress(), name=NAME)
    names = chosen.rungs
    columns = {
        "seconds": {
            name: f"{float(trained.array('rungs', name, 'seconds')) * chosen.seeds:.1f}"
            for name in names
        },
        "MB a model": {
            name: f"{float(trained.array('rungs', name, 'megabytes')):.1f}" for name in names
        },
    }
    return Climbed("tiny language model", trained, "gain", "held-out accuracy gained", columns)
