"""Edge cases: the formula as it stands against numbers worked out by hand, and the course's parts
on the same input.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bandits.ablations import edge_cases as ablation
from bandits.ablations.edge_cases import Settings
from bandits.theory.edge_cases import (
    LeaveOneOutStd,
    advantages,
    equal,
    largest,
    near,
    ours,
    overflow_point,
    plain,
)
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.terminal import QUIET


def test_all_facts_hold() -> None:
    result = ablation.run(Settings(points=5), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {23}


def test_seven_equal_rewards_added_up_in_float32() -> None:
    total = np.float32(0)
    for _ in range(7):
        total += np.float32(0.7)
    residue = np.float32(0.7) - total / np.float32(7)
    assert residue == np.float32(2**-24)
    got = advantages(plain(1e-8), equal(torch.tensor([0.7]), 7))
    assert got.tolist()[0] == pytest.approx([2**-24 / (2**-24 + 1e-8)] * 7, rel=1e-5)
    assert advantages(ours(1e-8), equal(torch.tensor([0.7]), 7)).abs().max() == 0


def test_the_formula_is_right_where_rewards_differ() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 2.5]], dtype=torch.float64)
    torch.testing.assert_close(
        advantages(plain(1e-6, ddof=1), rewards), advantages(ours(1e-6, ddof=1), rewards)
    )
    torch.testing.assert_close(advantages(plain(None), rewards), advantages(ours(None), rewards))


def test_leave_one_out_std_by_hand() -> None:
    estimator = replace(ladder.rloo, scale=LeaveOneOutStd(eps=1e-6))
    got = advantages(estimator, torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))[
        0
    ].tolist()
    others = -(1 / 3) / (
        math.sqrt(2) / 3 + 1e-6
    )  # the others of a 0 are (1, 0, 0): mean 1/3, std √2/3
    assert got == pytest.approx([1e6, others, others, others])


def test_large_equal_rewards_leave_something_unless_silence_is_detected() -> None:
    groups = equal(near(1000.0), 7)
    assert largest(plain(None), groups) > 6e-5
    assert largest(ours(None), groups) == 0
    assert largest(ours(1e-4), groups) == 0


def test_k3_overflows_at_the_log_of_the_largest_float() -> None:
    assert overflow_point() == pytest.approx(math.log(3.4028235e38), abs=1e-4)


@pytest.mark.parametrize(
    "change", [{"group": 2}, {"reward": math.nan}, {"large": 0.0}, {"log_r": 5.0}, {"points": 1}]
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
