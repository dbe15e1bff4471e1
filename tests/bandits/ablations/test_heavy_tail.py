"""The rare large reward: where the std turns round, counted by hand, and refusals."""

from __future__ import annotations

import itertools
import math

import pytest

from bandits.ablations import heavy_tail as ablation
from bandits.ablations.heavy_tail import Settings
from bandits.theory.heavy_tail import (
    STD,
    RarePrize,
    first_group,
    first_listed,
    listed,
    push,
    push_by_counts,
)
from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET

# B pays 3 four times in ten: mean 1.2 against .9, soon seen
SMALL = Settings(sure=0.9, large=3.0, chance=0.4, groups=(2, 3, 5), trained=(2,), runs=4, steps=3)


def by_hand(settings: RarePrize, group: int, b: float) -> float:
    """Every ordered group, written out."""
    kinds = [
        (1 - b, settings.sure, -b),
        (b * settings.chance, settings.large, 1 - b),
        (b * (1 - settings.chance), 0.0, 1 - b),
    ]
    total = 0.0
    for drawn in itertools.product(kinds, repeat=group):
        rewards = [r for _, r, _ in drawn]
        mean = sum(rewards) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / group)
        if max(rewards) > min(rewards):
            total += (
                math.prod(p for p, _, _ in drawn)
                * sum((r - mean) / std * s for _, r, s in drawn)
                / group
            )
    return total


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("b", [0.2, 0.5])
def test_the_push_is_the_sum_over_ordered_groups(group: int, b: float) -> None:
    settings = RarePrize()
    assert push_by_counts(settings, group, b) == pytest.approx(
        by_hand(settings, group, b), rel=1e-11
    )
    assert push(STD, listed(settings, b), group) == pytest.approx(
        by_hand(settings, group, b), rel=1e-11
    )


def test_the_first_right_group_has_44_samples() -> None:
    settings = RarePrize()
    assert first_listed(settings) == first_group(settings, 0.5) == 44
    assert push_by_counts(settings, 43) < 0 < push_by_counts(settings, 44)
    assert push(ladder.group_mean, listed(settings), 2) == pytest.approx(0.5 * 0.125)
    assert first_group(settings, 0.05) > 300


def test_exact_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(SMALL, QUIET)
    exact = [
        fact
        for fact in result.facts
        if "runs with" not in fact.claim and "is larger than" not in fact.claim
    ]
    assert len(exact) == 4
    assert [fact.claim for fact in exact if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {14}


@pytest.mark.parametrize(
    "change",
    [
        {"groups": (2, 500)},
        {"chance": 0.0},
        {"sure": 1.0},
        {"trained": (1,)},
        {"runs": 1},
        {"learning_rate": 0.0},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
