"""The weight w_G(p), silent groups and length: binomials written out, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from bandits.ablations import difficulty as ablation
from bandits.ablations.difficulty import Settings
from bandits.theory.difficulty import (
    LENGTH_MEAN,
    STD,
    angle,
    arcsine_gradient,
    asked_again,
    four_answers,
    length_angle,
    right_or_wrong,
    shortfall,
    silent_share,
    weight,
)
from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET

SMALL = Settings(groups=(2, 5), group=3, points=3)


def binomial(group: int, p: float, lengths: tuple[float, float] = (1, 1)) -> float:
    """Σ_n P(n) of the coefficient of ∇p: n right answers of G, each ±√((G−n)/n) or −√(n/(G−n)),
    over its length, on scores ±.
    """
    total = 0.0
    for n in range(1, group):
        chance = math.comb(group, n) * p**n * (1 - p) ** (group - n)
        right = n * math.sqrt((group - n) / n) * (1 - p) / lengths[0]
        wrong = (group - n) * math.sqrt(n / (group - n)) * p / lengths[1]
        total += chance * (right + wrong) / group
    return total / (p * (1 - p))


def test_all_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {12, 13}


@pytest.mark.parametrize("group", [2, 3, 7])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
def test_the_weight_is_the_sum_over_binomials(group: int, p: float) -> None:
    assert weight(STD, right_or_wrong(p), group) == pytest.approx(binomial(group, p), rel=1e-12)
    assert weight(LENGTH_MEAN, right_or_wrong(p, (2, 8)), group) == pytest.approx(
        binomial(group, p, (2, 8)), rel=1e-12
    )
    assert weight(ladder.group_mean, right_or_wrong(p), group) == pytest.approx(
        (group - 1) / group, rel=1e-12
    )


def test_length_turns_the_gradient_only_where_right_and_wrong_have_both() -> None:
    assert angle(LENGTH_MEAN, right_or_wrong(0.3, (2, 8)), 4) == pytest.approx(0, abs=1e-5)
    # uniform: pushes ±(1/2, 1/8) against ±(1, 1)
    assert angle(LENGTH_MEAN, four_answers(0.5, 2, 8), 4) == pytest.approx(
        math.degrees(math.acos(0.625 / math.sqrt(2 * (0.25 + 1 / 64))))
    )
    assert angle(STD, four_answers(0.5, 2, 8), 4) == pytest.approx(0, abs=1e-5)


def test_the_angle_under_the_length_mean_by_trigonometry() -> None:
    """The pushes 1/2 and 1/8 have the slope 1/4, and ∇p the slope 1."""
    assert length_angle(2, 8) == pytest.approx(45 - math.degrees(math.atan(1 / 4)))
    assert length_angle(3, 3) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_of_pairs_that_are_not_silent_one_is_right(p: float) -> None:
    """A = ±1 for the scores ±(1 − p) and ∓p, over G = 2: (½, −½) whatever p."""
    want = torch.tensor([0.5, -0.5], dtype=torch.float64)
    torch.testing.assert_close(asked_again(right_or_wrong(p), 2), want)


def test_silent_groups_of_three() -> None:
    assert silent_share(right_or_wrong(0.2), 3) == pytest.approx(0.008 + 0.512)


def test_settings_are_refused_at_the_door() -> None:
    changes = (
        {"groups": (1,)},
        {"groups": (500,)},
        {"group": 1},
        {"points": 2},
        {"eps": 0.0},
        {"long": 2},
    )
    for change in changes:
        with pytest.raises(CourseError, match=next(iter(change))):
            Settings(**change)  # type: ignore[arg-type]


def test_the_arcsine_gradient_is_one_over_the_root_of_the_variance() -> None:
    expected = torch.tensor(
        [0.5 * (0.2 - 0.41), 0.3 * (0.5 - 0.41), 0.2 * (0.8 - 0.41)], dtype=torch.float64
    ) / math.sqrt(0.41 * 0.59)
    torch.testing.assert_close(arcsine_gradient(), expected)


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_with_many_samples_the_weight_is_short_of_its_limit_by_one_over_8g(p: float) -> None:
    for group in (200, 400):
        gap = 1 - binomial(group, p) * math.sqrt(p * (1 - p))
        assert gap == pytest.approx(shortfall(p, group), rel=2 / group)
    assert shortfall(0.5, 100) == pytest.approx(0.005)
