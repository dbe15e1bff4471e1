"""Accuracy and pass@k against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from course.errors import CourseError
from tests.helpers import close, stream
from tests.tinylm.helpers import schooled, sums
from tinylm.evaluate import accuracy, pass_at_k
from tinylm.sampling import sample
from tinylm.scoring import log_dists


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
    log_dist = log_dists(model, task.prompt[rows], task.target[rows].unsqueeze(-2), temperature=0.8)
    chance = (
        log_dist.gather(-1, task.target[rows][:, None, :, None]).sum((-3, -2, -1)).exp().detach()
    )
    squared = ((measured - chance).square() / (chance * (1 - chance) / 4000)).sum()
    assert 1e-3 < stats.chi2.sf(float(squared), len(rows)) < 0.999
    assert float(chance.max()) > 0.05
