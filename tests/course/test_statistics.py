"""Intervals and errors of few runs: a printed t table, closed forms, and how often they hold."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from course.errors import CourseError
from course.lab import statistics
from course.lab.facts import CHANCE, Fact
from course.lab.statistics import (
    interval,
    mean_share_interval,
    named_interval,
    paired_error,
    paired_interval,
    share_interval,
    student,
)

# Two-sided chances .05, .01 and .001, as printed in tables of Student's t since Fisher 1925.
TABLE = {
    1: (12.706, 63.657, 636.619),
    2: (4.303, 9.925, 31.599),
    4: (2.776, 4.604, 8.610),
    9: (2.262, 3.250, 4.781),
    10: (2.228, 3.169, 4.587),
    11: (2.201, 3.106, 4.437),
    20: (2.086, 2.845, 3.850),
    30: (2.042, 2.750, 3.646),
    120: (1.980, 2.617, 3.373),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_students_t_is_the_printed_tables(freedom: int) -> None:
    for chance, printed in zip((0.05, 0.01, 0.001), TABLE[freedom], strict=True):
        assert student(chance, freedom + 1) == pytest.approx(printed, abs=5.1e-4)


def test_students_t_is_its_closed_form_for_two_and_three_runs_and_normal_for_known_errors() -> None:
    """P(|t₁| > x) = 1 − (2/π)·atan x and P(|t₂| > x) = 1 − x/√(2 + x²)."""
    for x in (0.5, 4.0, 30.0):
        assert student(1 - 2 / math.pi * math.atan(x), 2) == pytest.approx(x, rel=1e-9)
        assert student(1 - x / math.sqrt(2 + x * x), 3) == pytest.approx(x, rel=1e-9)
    assert student(0.05, None) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-12)
    assert student(0.05, 1) == math.inf


def test_four_errors_of_three_to_five_runs_are_passed_far_more_often_than_a_fact_may_be() -> None:
    """What a fact leaves to chance with a known error, 1 in 16,000, takes 126 errors of three."""
    assert 1 / 16_000 < CHANCE < 1 / 15_000
    assert student(CHANCE, None) == pytest.approx(4.0, rel=1e-12)
    assert student(0.0572, 3) == pytest.approx(4.0, abs=2e-3)
    assert student(0.0280, 4) == pytest.approx(4.0, abs=1e-2)
    assert student(0.0161, 5) == pytest.approx(4.0, abs=1e-2)
    x = student(CHANCE, 3)
    assert 1 - x / math.sqrt(2 + x * x) == pytest.approx(CHANCE, rel=1e-6)


@pytest.mark.parametrize("runs", [2, 3, 5, 12])
def test_the_interval_of_few_runs_holds_their_mean_19_times_in_20(runs: int) -> None:
    draws = np.random.default_rng(runs).normal(3.0, 2.0, (20_000, runs))
    mean, half = interval(draws)
    assert mean.shape == half.shape == (20_000,)
    outside = (abs(mean - 3.0) > half).mean()
    assert outside == pytest.approx(0.05, abs=4.5 * math.sqrt(0.05 * 0.95 / 20_000))


def test_an_interval_by_hand() -> None:
    mean, half = interval(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(half, [4.30265 / math.sqrt(3), 0.0], rtol=1e-5)
    assert interval([0.0, 2.0]) == (1.0, pytest.approx(12.7062, rel=1e-5))


def test_one_run_has_a_mean_but_no_interval_and_the_caption_says_so() -> None:
    mean, half = interval(torch.tensor([[0.25], [0.5]]))
    np.testing.assert_array_equal(mean, [0.25, 0.5])
    assert np.isnan(half).all()
    assert statistics.described(1) == "one run, so no interval"
    assert "12 runs" in statistics.described(12)


def test_what_pairs_share_cancels() -> None:
    shared = 10 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    better = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.2, 0.3, 0.2])
    mean, half = paired_interval(shared + better, shared)
    assert mean == pytest.approx(0.2, abs=1e-5)
    # s = √(.04/7), and t₇ = 2.3646 for 95 %
    assert half == pytest.approx(2.3646 * math.sqrt(0.04 / 7 / 8), rel=1e-3)
    assert paired_error(shared + better, shared)[1] == pytest.approx(
        math.sqrt(0.04 / 7 / 8), rel=1e-3
    )
    with pytest.raises(CourseError, match="second"):
        paired_interval(shared, shared[:7])


@pytest.mark.parametrize("total", [1, 7, 40, 1000])
def test_wilsons_interval_holds_the_shares_that_the_sample_does_not_reject(total: int) -> None:
    """Its definition: all p with |hits/total − p| ≤ z·√(p(1 − p)/total), found on a grid."""
    grid = np.linspace(0, 1, 200_001)
    for hits in {0, 1, total // 3, total // 2, total - 1, total}:
        inside = grid[
            np.abs(hits / total - grid) <= 1.959964 * np.sqrt(grid * (1 - grid) / total) + 1e-15
        ]
        low, high = share_interval(hits, total)
        assert abs(low - inside.min()) < 1e-5
        assert abs(high - inside.max()) < 1e-5
    assert share_interval(0, total)[0] == 0
    assert share_interval(total, total)[1] == 1


@pytest.mark.parametrize(
    ("hits", "total", "field"), [(0, 0, "total"), (-1, 3, "hits"), (4, 3, "hits")]
)
def test_shares_that_are_none_are_refused(hits: int, total: int, field: str) -> None:
    with pytest.raises(CourseError, match=field):
        share_interval(hits, total)


def test_the_interval_of_yes_and_no_is_wilsons() -> None:
    values = torch.tensor([1.0] * 30 + [0.0] * 70)
    assert mean_share_interval(values) == share_interval(30, 100)
    assert mean_share_interval(torch.zeros(50)) == share_interval(0, 50)
    assert mean_share_interval(torch.ones(50), 16) == share_interval(50, 50)
    with pytest.raises(CourseError, match="shares"):
        mean_share_interval(torch.tensor([0.5, 1.5]))


def test_the_interval_narrows_with_samples_but_only_as_far_as_questions_agree() -> None:
    alike, apart = torch.full((100,), 0.5), torch.tensor([0.0, 1.0]).repeat(50)
    noise = torch.tensor([-0.125, 0.125]).repeat(50)
    widths = [
        high - low
        for low, high in (mean_share_interval(values, 16) for values in (alike + noise, apart))
    ]
    assert abs(widths[0] / widths[1] - 0.25) < 0.01  # s = 1/8 against 1/2
    # never as if there were more draws than there are
    assert mean_share_interval(alike + noise / 100, 16) == share_interval(800, 1600)


def test_the_interval_of_questions_covers_the_mean_as_often_as_it_says() -> None:
    """1,000 evaluations of 60 questions whose chances differ: Beta(.5, 1.5), mean .25; 8 samples
    each.
    """
    generator = np.random.default_rng(0)
    chances = generator.beta(0.5, 1.5, size=(1000, 60))
    shares = generator.binomial(8, chances) / 8
    covered = [low <= 0.25 <= high for low, high in (mean_share_interval(row, 8) for row in shares)]
    error = math.sqrt(0.95 * 0.05 / 1000)
    # four standard errors, and what the normal approximation may cost
    assert abs(np.mean(covered) - 0.95) < 4 * error + 0.005


# ---------------------------------------------------------------- facts


def test_a_fact_of_few_runs_takes_as_many_errors_as_its_chance_needs() -> None:
    for make in (Fact.above, Fact.below):
        fact = make("c", "s", 1.0, 0.0, 0.1, runs=5, chance=0.01)
        assert fact.tolerance == pytest.approx(4.604 * 0.1, rel=1e-3)
        assert (fact.runs, fact.chance) == (5, 0.01)
    compared = Fact.simulated("c", "s", 1.0, 0.03, 1.2, 0.04, runs=10, chance=0.001)
    assert compared.tolerance == pytest.approx(4.781 * 0.05, rel=1e-3)
    printed = Fact.published("c", "s", 1.0, 0.1, 1.2, 0.005, runs=3, chance=0.05)
    assert printed.tolerance == pytest.approx(4.303 * 0.1 + 0.005, rel=1e-3)


def test_facts_from_few_runs_are_passed_by_luck_as_often_as_they_say() -> None:
    """A difference of 0, from 4 runs, at a chance of 1 in 50: half of that is above."""
    draws = np.random.default_rng(3).normal(0.0, 1.0, (4, 20_000))
    mean, error = statistics.mean_error(draws)
    passed = [
        Fact.above("c", "s", m, 0.0, e, runs=4, chance=0.02).holds
        for m, e in zip(mean, error, strict=True)
    ]
    assert np.mean(passed) == pytest.approx(0.01, abs=4.5 * math.sqrt(0.01 * 0.99 / 20_000))


def test_one_run_proves_nothing_and_what_is_exact_leaves_nothing_to_chance() -> None:
    assert not Fact.above("c", "s", 5.0, 0.0, 0.1, runs=1).holds
    exact = Fact.above("c", "s", 5.0, 0.0)
    assert exact.holds
    assert exact.chance is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"runs": 0}, "runs"), ({"chance": 0.0}, "chance"), ({"chance": 1.5}, "chance")],
)
def test_runs_and_chances_that_are_none_are_refused(wrong: dict, field: str) -> None:
    with pytest.raises(CourseError, match=field):
        Fact.above("c", "s", 1.0, 0.0, 0.1, **wrong)


def test_a_fact_is_read_back_with_its_runs_and_without_them_from_an_older_file() -> None:
    fact = Fact.above("c", "s", 1.0, 0.0, 0.01, runs=6)
    assert Fact.from_json(fact.as_json()) == fact
    older = Fact("c", "s", 1.0, 0.1, 0.0, 0.4, "above").as_json()
    del older["runs"], older["chance"]
    assert Fact.from_json(older) == Fact("c", "s", 1.0, 0.1, 0.0, 0.4, "above")


def test_a_named_interval_is_two_series_of_a_result() -> None:
    """Of 1 and 3: mean 2, standard error 1, and t = 12.7062 with one degree of freedom."""
    found = named_interval("reward", [1.0, 3.0])
    assert found == {"reward": 2.0, "reward_half": pytest.approx(12.7062, abs=1e-4)}
