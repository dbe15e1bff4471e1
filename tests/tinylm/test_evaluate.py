"""Accuracy, its intervals and pass@k against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from course.errors import CourseError
from tests.helpers import close, stream
from tests.tinylm.helpers import schooled, sums
from tinylm.evaluate import accuracy, interval, pass_at_k, wilson
from tinylm.sampling import sample, score


@pytest.mark.parametrize("samples", [1, 3, 6])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one(samples: int) -> None:
    """Every choice of k of n samples, of which the first c are right."""
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(range(samples), k))
        want = [
            sum(min(choice) < right for choice in choices) / len(choices)
            for right in range(samples + 1)
        ]
        close(pass_at_k(torch.arange(samples + 1), samples, k), want)


@pytest.mark.parametrize("k", [0, 5])
def test_more_than_the_samples_there_are_is_refused(k: int) -> None:
    with pytest.raises(CourseError, match=f"k: got {k}; allowed is 1 to 4"):
        pass_at_k(torch.tensor([2]), 4, k)


@pytest.mark.parametrize("total", [1, 7, 40, 1000])
def test_wilsons_interval_holds_the_shares_that_the_sample_does_not_reject(total: int) -> None:
    """Its definition: all p with |right/total − p| ≤ z·√(p(1 − p)/total), found on a grid of
    200,000.
    """
    grid = np.linspace(0, 1, 200_001)
    for right in {0, 1, total // 3, total // 2, total - 1, total}:
        inside = grid[
            np.abs(right / total - grid) <= 1.96 * np.sqrt(grid * (1 - grid) / total) + 1e-15
        ]
        low, high = wilson(right, total)
        assert abs(low - inside.min()) < 1e-5
        assert abs(high - inside.max()) < 1e-5
    assert wilson(0, total)[0] == 0
    assert wilson(total, total)[1] == 1


@pytest.mark.parametrize(("right", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_shares_that_are_none_are_refused(right: int, total: int) -> None:
    with pytest.raises(CourseError, match="wilson"):
        wilson(right, total)


def test_the_interval_of_yes_and_no_is_wilsons() -> None:
    values = torch.tensor([1.0] * 30 + [0.0] * 70)
    close(interval(values), wilson(30, 100), rtol=1e-7)
    assert interval(torch.zeros(50)) == wilson(0, 50)
    assert interval(torch.ones(50), 16) == wilson(50, 50)
    assert interval(torch.tensor([0.5]), 4) == wilson(0.5, 1)


def test_the_interval_narrows_with_samples_but_only_as_far_as_questions_agree() -> None:
    alike, apart = torch.full((100,), 0.5), torch.tensor([0.0, 1.0]).repeat(50)
    noise = torch.tensor([-0.125, 0.125]).repeat(50)
    widths = [
        high - low for low, high in (interval(values, 16) for values in (alike + noise, apart))
    ]
    assert abs(widths[0] / widths[1] - 0.25) < 0.01  # s = 1/8 against 1/2
    close(
        interval(alike + noise / 100, 16), wilson(800, 1600), rtol=1e-6
    )  # never as if there were more draws than there are


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """3,000 evaluations of 60 questions whose chances differ: Beta(.5, 1.5), mean .25; 8 samples
    each.
    """
    generator = np.random.default_rng(0)
    chances = generator.beta(0.5, 1.5, size=(3000, 60))
    shares = torch.from_numpy(generator.binomial(8, chances) / 8)
    covered = [low <= 0.25 <= high for low, high in (interval(row, 8) for row in shares)]
    error = math.sqrt(0.95 * 0.05 / 3000)
    assert (
        abs(np.mean(covered) - 0.95) < 4 * error + 0.005
    )  # four standard errors, and what the normal approximation may cost


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize("runs", [(), (2,)])
def test_greedy_accuracy_counts_the_right_greedy_answers(runs: tuple[int, ...]) -> None:
    model, task = schooled(runs), sums()
    right = accuracy(model, task, questions=task.train, batch=7)  # parts that do not divide evenly
    prompt = task.prompt[task.train].expand(*runs, -1, -1)
    made = sample(model, prompt, 1, 3, None).tokens.squeeze(-2)
    want = (made == task.target[task.train]).all(-1)
    assert torch.equal(right, want.float())
    assert 0 < float(right.mean()) < 1
    assert torch.equal(accuracy(model, task), accuracy(model, task, questions=task.held_out))


def test_sampled_accuracy_is_the_chance_of_the_right_answer() -> None:
    """Of every question exactly: Π π(target); 4,000 samples each, tested together by χ²."""
    model, task = schooled(), sums()
    rows = task.held_out
    measured = accuracy(
        model, task, stream(), questions=rows, samples=4000, batch=4, temperature=0.8
    )
    log_dist, _ = score(model, task.prompt[rows], task.target[rows].unsqueeze(-2), temperature=0.8)
    chance = (
        log_dist.gather(-1, task.target[rows][:, None, :, None]).sum((-3, -2, -1)).exp().detach()
    )
    squared = ((measured - chance).square() / (chance * (1 - chance) / 4000)).sum()
    assert 1e-3 < stats.chi2.sf(float(squared), len(rows)) < 0.999
    assert float(chance.max()) > 0.05
