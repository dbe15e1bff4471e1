"""The main job on bandits: climb the ladder, put every rung under the microscope, and say in one table what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bandits.ablations import ladder as climbing
from bandits.ablations import microscope
from course import ladder
from course.ablation import report, run_ablation
from course.results import Result
from course.terminal import FACT_FAILED, OK, Progress, duration, text_table


def climb(rungs: Sequence[str] | None, runs: int | None, seed: int, device: str | None, out: Path) -> int:
    """Run the microscope on B3 and the ladder on the contextual bandit; write their figures to `out`, print one table.

    None takes the default: the eight rungs, the ablation's own number of runs, the CPU. Returns the exit status: 0, or 1 if
    a fact does not hold.
    """
    names = tuple(rungs) if rungs else microscope.SETTINGS.rungs
    progress = Progress()
    settings: dict[str, Any] = {"rungs": names, "seed": seed}
    settings |= {"runs": runs} if runs else {}
    settings |= {"device": device} if device else {}

    exact = run_ablation(microscope, replace(microscope.SETTINGS, rungs=names), out, progress)
    print(f"first figure, every gradient against the true one: {out / 'microscope.png'} (after {duration(exact.seconds)})", flush=True)
    print(f"now the ladder on a contextual bandit, about {duration(climbing.EXPECTED_SECONDS)} with the default settings", flush=True)
    trained = run_ablation(climbing, replace(climbing.SETTINGS, **settings), out, progress)

    print()
    print(table(names, trained, exact))
    print(f"\nreward: expected reward at the end, 1 is the best, mean of {trained.settings['runs']} runs ± half its 95 % interval")
    print("bias, spread: of the gradient on B3, as a share of ‖∇J‖, exact; on policy / off policy")
    for found in (trained, exact):
        print(f"\n{found.title}")
        report(found)
    print(f"\nfigures: {out / 'ladder.png'}, {out / 'microscope.png'}, each with its numbers in a .json beside it")
    print(
        "next: `course lab` opens the lessons, `python -m bandits` lists the ablations, `course facts` shows every claim that was checked"
    )
    held = all(found.held == len(found.facts) for found in (exact, trained))
    return OK if held else FACT_FAILED


def table(names: Sequence[str], trained: Result, exact: Result) -> str:
    """One row for each rung: what it replaces, its final reward ± interval, bias and spread of its gradient, seconds."""

    def row(name: str) -> tuple[str, ...]:
        ran: Mapping[str, Any] = trained.series["rungs"][name]
        on, off = exact.series[name]["on policy"], exact.series[name]["off policy"]
        return (
            name,
            ladder.get(name).replaced,
            f"{ran['final']:.3f} ± {ran['final_half']:.3f}",
            f"{ran['learning_rate']:g}",
            f"{abs(on['bias']):.2f} / {abs(off['bias']):.2f}",
            f"{on['spread']:.2f} / {off['spread']:.2f}",
            f"{ran['seconds']:.1f}",
        )

    header = ("rung", "replaced part", "reward", "learning rate", "bias on/off", "spread on/off", "seconds")
    return text_table(header, [row(name) for name in names], right=[3, 6])
