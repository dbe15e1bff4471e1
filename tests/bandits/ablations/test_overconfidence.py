"""The shared forecast: groups that share their event, written out, and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.ablations import overconfidence as ablation
from bandits.ablations.overconfidence import Settings
from bandits.environments import SharedForecast
from bandits.theory.overconfidence import (
    STD,
    limit_gradient,
    pair,
    pair_by_majority,
    pair_by_score,
    pull,
)
from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET

SMALL = Settings(group=2, groups=(2,), runs=3, steps=10)


def by_hand(grid: list[float], pi: list[float], p: float, group: int) -> list[float]:
    """E[ĝ] with group mean and std: every event, every ordered group of forecasts."""
    total = [0.0] * len(grid)
    for y, chance_y in ((0, 1 - p), (1, p)):
        for drawn in itertools.product(range(len(grid)), repeat=group):
            rewards = [1 - (grid[k] - y) ** 2 for k in drawn]
            mean = sum(rewards) / group
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / group)
            if len(set(drawn)) == 1:
                continue
            chance = chance_y * math.prod(pi[k] for k in drawn)
            for k, r in zip(drawn, rewards, strict=True):
                for d in range(len(grid)):
                    total[d] += chance * (r - mean) / std * ((k == d) - pi[d]) / group
    return total


def test_the_pull_is_the_sum_over_events_and_ordered_groups() -> None:
    grid, pi = [0.0, 0.4, 0.7, 1.0], [0.1, 0.2, 0.3, 0.4]
    environment = SharedForecast(torch.tensor(grid, dtype=torch.float64), 0.7)
    found = pull(STD, environment, torch.tensor(pi, dtype=torch.float64).log(), 3)
    assert found.tolist() == pytest.approx(by_hand(grid, pi, 0.7, 3), rel=1e-11)


def test_the_majority_wins_between_two_forecasts_however_close() -> None:
    for higher in (0.71, 1.0):
        assert pair(STD, 0.7, higher, 0.3, 3) == pytest.approx(
            pair_by_majority(0.7, 0.3, 3), rel=1e-9
        )
        by_hand = -0.75 * 0.21 * (higher - 0.7) ** 2
        assert pair(ladder.group_mean, 0.7, higher, 0.3, 4) == pytest.approx(by_hand, rel=1e-9)
        assert pair_by_score(0.7, higher, 0.3, 4) == pytest.approx(by_hand, rel=1e-12)


def test_the_limit_is_approached_by_large_groups() -> None:
    """Between two forecasts the limit is (2p − 1)√(π(1−π)); groups of finite size fall
    short of it.
    """
    environment = SharedForecast(torch.tensor([0.7, 1.0], dtype=torch.float64), 0.7)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert float(limit_gradient(environment, half)[1]) == pytest.approx(0.4 * 0.5)
    assert float(pull(STD, environment, half, 200)[1]) == pytest.approx(0.4 * 0.5, rel=5e-3)


def test_exact_facts_hold_and_runs_start_at_one_half() -> None:
    result = ablation.run(SMALL, QUIET)
    exact = [
        fact
        for fact in result.facts
        if fact.standard_error == 0
        and "Following" not in fact.claim
        and "infinitely" not in fact.claim
    ]
    assert len(exact) == 5
    assert [fact.claim for fact in exact if not fact.holds] == []
    assert result.array("runs", "group_std", "forecast")[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"p": 0.4},
        {"forecasts": 10},
        {"group": 1},
        {"groups": (1,)},
        {"runs": 1},
        {"steps": 12},
        {"learning_rate": 0.0},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
