"""The ladder on a contextual bandit: runs that are paired, rates that runs have no say in, halted
runs that are said.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bandits.ablations import ladder as ablation
from bandits.ablations.ladder import Settings
from bandits.theory.contextual import Climb, pick, train
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.ablation import run_ablation
from course.lab.terminal import QUIET
from course.parts import Baseline
from course.registry import register
from course.rollout import Rollout

SMALL = Settings(
    rungs=("baseline", "surrogate"),
    runs=3,
    steps=3,
    epochs=1,
    group=4,
    arms=3,
    difficulty=(0.0, 0.5),
    learning_rates=(4.0, 8.0),
)


def test_with_one_update_neighbouring_rungs_are_one_run_by_run() -> None:
    """At π_old ratio and score function have one gradient, and a number is one run in both."""
    plain, ratio = (
        train(ladder.get(name).estimator, SMALL, (4.0, 8.0), range(6), 0.0, 1.0, QUIET)
        for name in SMALL.rungs
    )
    torch.testing.assert_close(plain.reward, ratio.reward, rtol=0, atol=1e-6)
    alone = train(ladder.baseline, SMALL, (8.0,), range(4, 6), 0.0, 1.0, QUIET)
    torch.testing.assert_close(alone.reward[:, 0], plain.reward[:, 1, 4:])


def climb(final: list[list[float]], halted: list[list[bool]]) -> Climb:
    reward = torch.tensor([final])
    return Climb([1], reward, torch.zeros_like(reward), torch.tensor(halted))


def test_the_judging_runs_have_no_say_and_a_rate_with_a_halted_run_only_where_all_have_one() -> (
    None
):
    settings = dataclasses.replace(SMALL, runs=2)
    fine = [[False] * 4] * 2
    best = pick(climb([[0.5, 0.5, 0.0, 0.1], [0.4, 0.4, 1.0, 1.0]], fine), settings)
    assert (best.rate, best.judged.tolist()) == (4.0, pytest.approx([0.0, 0.1]))
    one = [[True, False, False, False], [False] * 4]
    assert pick(climb([[0.5] * 4, [0.4] * 4], one), settings).rate == 8.0
    both = [[True, False, False, False], [False, True, False, False]]
    assert pick(climb([[0.5] * 4, [0.4] * 4], both), settings).rate == 4.0


@dataclass(frozen=True)
class Nothing(Baseline):
    """A baseline that is no number."""

    def __call__(self, returns: torch.Tensor, rollout: Rollout) -> float:
        return math.nan


def test_runs_that_all_diverged_are_no_result(tmp_path: Path) -> None:
    """A fact then does not hold, so that the command ends with 1."""
    lost = register("lost", replace(ladder.baseline, baseline=Nothing()))
    try:
        settings = dataclasses.replace(SMALL, rungs=("baseline", "lost"))
        result = run_ablation(ablation, settings, tmp_path)
    finally:
        del ladder.RUNGS[lost.name]
    [halted] = [fact for fact in result.facts if "diverged" in fact.claim]
    assert (halted.measured, halted.holds) == (3, False)


@pytest.mark.parametrize(
    "wrong",
    [{"group": 1}, {"learning_rates": (8.0, 4.0)}, {"stretch": 0.0}, {"runs": 0}, {"seed": -1}],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)
