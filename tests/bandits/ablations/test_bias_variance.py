"""Bias, variance and baselines on B3: sums written out by hand, sampled groups, and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.ablations import bias_variance as ablation
from bandits.ablations.bias_variance import Settings
from bandits.theory.baselines import (
    baselines,
    canonical,
    covariance_change,
    crossing,
    enumerated_variance,
    lowest_point,
    reinforce_variance,
)
from course import ladder
from course.errors import CourseError
from course.exact import every_group, pair_gradient, sample_covariance
from course.lab.terminal import QUIET

SMALL = Settings(groups=(2, 3, 4), listed=3)
PI, MU = (0.5, 0.3, 0.2), (0.2, 0.5, 0.8)
SCORE = [[(a == b) - PI[b] for b in range(3)] for a in range(3)]
OUTCOMES = [
    (PI[a] * (MU[a] if r else 1 - MU[a]), float(r), SCORE[a]) for a in range(3) for r in (1, 0)
]


def by_hand(group: int, leave_one_out: bool) -> float:
    """Total variance of the gradient of one group: every ordered group of B3, written out."""
    mean, square = [0.0] * 3, 0.0
    for drawn in itertools.product(OUTCOMES, repeat=group):
        chance = math.prod(p for p, _, _ in drawn)
        total = sum(r for _, r, _ in drawn)
        b = [(total - r) / (group - 1) if leave_one_out else 0.0 for _, r, _ in drawn]
        g = [sum((r - b[i]) * s[d] for i, (_, r, s) in enumerate(drawn)) / group for d in range(3)]
        mean = [m + chance * x for m, x in zip(mean, g, strict=True)]
        square += chance * sum(x * x for x in g)
    return square - sum(m * m for m in mean)


def test_all_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {3, 4, 5}


def test_variances_are_the_sums_over_ordered_groups() -> None:
    result = ablation.run(Settings(rungs=("rloo", "reinforce"), groups=(2, 3), listed=2), QUIET)
    for place, group in enumerate((2, 3)):
        assert result.array("rungs", "rloo", "variance")[place] == pytest.approx(
            group * by_hand(group, True), rel=1e-6
        )
        assert result.array("rungs", "reinforce", "variance")[place] == pytest.approx(
            group * by_hand(group, False), rel=1e-6
        )
    assert by_hand(2, True) > by_hand(2, False)
    assert by_hand(3, True) < by_hand(3, False)


def test_pairs_and_covariance_are_rloo_on_random_groups() -> None:
    reward = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    score = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    others = (reward.sum(-1, keepdim=True) - reward) / 3
    by_definition = ((reward - others).unsqueeze(-1) * score).mean(-2)
    torch.testing.assert_close(pair_gradient(reward, score), by_definition)
    torch.testing.assert_close(sample_covariance(reward, score), by_definition)


def test_the_best_constant_and_what_an_offset_costs() -> None:
    here, there = canonical(), canonical(4.0)
    # ‖s_a‖² = (.38, .78, .98): E[r‖s‖²] = .3118, E‖s‖² = .62
    assert lowest_point(here) == pytest.approx(0.3118 / 0.62)
    assert enumerated_variance(here, baselines(here)["none"]) == pytest.approx(0.3118 - 0.017838)
    shifted = (
        sum(
            PI[a] * (MU[a] * 25 + (1 - MU[a]) * 16) * sum(x * x for x in SCORE[a]) for a in range(3)
        )
        - 0.017838
    )
    assert enumerated_variance(there, baselines(there)["none"]) == pytest.approx(shifted)


def test_the_crossing_is_where_sums_over_ordered_groups_meet() -> None:
    # G·Var is a + c/(G − 1) for RLOO and a constant for REINFORCE; both from groups by hand
    two, three, plain = 2 * by_hand(2, True), 3 * by_hand(3, True), 2 * by_hand(2, False)
    found = crossing(canonical())
    a, c = 2 * three - two, 2 * (two - three)
    assert a + c / (found - 1) == pytest.approx(plain)
    assert 2 < found < 3


def test_without_a_baseline_the_variance_grows_with_the_offset_as_written_out() -> None:
    for offset in (0.0, 4.0):
        square = sum(p * (r + offset) ** 2 * sum(x * x for x in score) for p, r, score in OUTCOMES)
        assert float(reinforce_variance(canonical(), offset)) == pytest.approx(square - 0.017838)


def test_an_offset_changes_the_covariance_of_plain_reinforce_alone() -> None:
    here, there = canonical(), canonical(4.0)
    assert covariance_change("reinforce", here, there, 2) > 1
    assert covariance_change("rloo", here, there, 2) == pytest.approx(0, abs=1e-12)


def test_every_group_of_two_is_listed_once_with_its_probability() -> None:
    every = every_group(ladder.rloo, canonical(), 2)
    assert len(every.chance) == math.comb(7, 2)
    assert float(every.chance.sum()) == pytest.approx(1)
    same = every.outcome[:, 0, 0] == every.outcome[:, 0, 1]
    p = torch.tensor([p for p, _, _ in OUTCOMES], dtype=torch.float64)
    torch.testing.assert_close(
        every.chance, torch.where(same, 1.0, 2.0) * p[every.outcome[:, 0]].prod(-1)
    )


@pytest.mark.parametrize(
    "change", [{"groups": (1, 2)}, {"groups": (4, 2)}, {"listed": 20}, {"offset": -1.0}]
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
