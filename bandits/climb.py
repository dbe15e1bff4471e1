"""The climb on bandits: every rung under the microscope, then on a contextual bandit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bandits.ablations import ladder as climbing
from bandits.ablations import microscope
from course.lab.ablation import run_ablation
from course.lab.climb import Climbed
from course.lab.result import Result
from course.lab.terminal import Progress, duration


def climb(
    rungs: Sequence[str] | None, runs: int | None, seed: int, device: str | None, out: Path
) -> tuple[Climbed, Result]:
    """Run the microscope on B3 and the ladder on a contextual bandit; write the figures to `out`.

    None takes the default: the eight rungs, the ablation's number of runs, the CPU. Returns the
    climb, whose columns include the gradient's bias and spread, and the result of the microscope.
    """
    names = tuple(rungs) if rungs else microscope.SETTINGS.rungs
    progress = Progress()
    settings: dict[str, Any] = {"rungs": names, "seed": seed}
    settings |= {"runs": runs} if runs else {}
    settings |= {"device": device} if device else {}

    exact = run_ablation(microscope, replace(microscope.SETTINGS, rungs=names), out, progress)
    print(
        f"first figure, every gradient against the true one: {out / 'microscope.png'} (after"
        f" {duration(exact.seconds)})",
        flush=True,
    )
    print(
        f"the ladder on a contextual bandit, about {duration(climbing.EXPECTED_SECONDS)} with the"
        " default settings",
        flush=True,
    )
    trained = run_ablation(climbing, replace(climbing.SETTINGS, **settings), out, progress)

    def both(what: str) -> dict[str, str]:
        cases = {
            name: [exact.series[name][case][what] for case in ("on policy", "off policy")]
            for name in names
        }
        return {name: f"{abs(on):.2f} / {abs(off):.2f}" for name, (on, off) in cases.items()}

    columns = {
        "bias on/off": both("bias"),
        "spread on/off": both("spread"),
        "seconds": {name: f"{trained.series['rungs'][name]['seconds']:.1f}" for name in names},
    }
    return Climbed("contextual bandit", trained, "reward", "expected reward", columns), exact
