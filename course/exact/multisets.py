"""Enumerate all possible batches, regardless of order: multisets of each prompt's outcomes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from course.estimator import Estimator
from course.exact.counting import (
    check_group_size,
    chunks,
    compositions,
    log_multinomial,
    members,
    mixed_digits,
)
from course.exact.outcomes import Outcomes
from course.exact.view import Moments, View, refuse_above_largest


class Groups(NamedTuple):
    """All M possible batches, regardless of the order of their samples."""

    outcome: Tensor  # [M, Q, G] the outcome of each sample, by its number within the prompt
    chance: Tensor  # [M] the probability of each batch; they sum to 1
    gradient: Tensor  # [M, D] the estimator's gradient ĝ for each batch


def every_group(estimator: Estimator, outcomes: Outcomes, group_size: int) -> Groups:
    """The batches that `microscope` averages over, with probabilities and gradients.

    Use it for identities that hold for every batch, and for conditional means. Raises `CourseError`
    if there are too many batches.
    """
    group = int(check_group_size(group_size))
    view = View(estimator, outcomes)
    refuse_above_largest(*cells(view, group))
    scores = view.scores().flatten(0, 2)
    listed = [
        (index, chance, per_run.flatten(1) @ scores)
        for index, chance, per_run, _ in every_multiset(view, group)
    ]
    return Groups(*(torch.cat(column) for column in zip(*listed, strict=True)))


def count(view: View, group: int) -> int:
    """The number of multisets, over all prompts."""
    return math.prod(math.comb(len(alive) + group - 1, group) for alive in view.alive)


def cells(view: View, group: int) -> tuple[int, str]:
    """The number of cells to compute (runs × prompts × samples × columns), and a description."""
    found = count(view, group)
    number = found * view.width * max(group, view.kinds) * view.columns
    return number, f"{found:,} multisets of {group} outcomes"


def every_multiset(view: View, group: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield chunks of M multisets: (outcomes, probability, coefficient, value).

    Outcomes are [M, Q, G], probabilities [M], coefficients summed per outcome [M, Q·K, P], and
    values of the objective [M].
    """
    # per prompt: all multisets as counts of outcomes, and their log-probabilities
    tables = [compositions(group, len(alive), alive.device) for alive in view.alive]
    weights = [
        log_multinomial(counts, p[alive].log())
        for counts, p, alive in zip(tables, view.probability, view.alive, strict=True)
    ]
    sizes, rows = [len(counts) for counts in tables], view.prompts * view.kinds
    each = view.width * max(group, view.kinds) * view.columns
    for run in chunks(math.prod(sizes), each, view.probability.device):
        # a number in `run` encodes one multiset per prompt; as outcomes they are [M, Q, G]
        picks = mixed_digits(run, sizes)
        chosen = zip(view.alive, tables, picks, strict=True)
        index = torch.stack([alive[members(t[pick], group)] for alive, t, pick in chosen], 1)
        weight = torch.stack([w[pick] for w, pick in zip(weights, picks, strict=True)]).sum(0).exp()
        seen = view.ask(index)
        # samples with the same outcome add up: [M, Q·G, P] → [M, Q·K, P]
        where = view.place(index).flatten(1).unsqueeze(-1).expand(-1, -1, view.columns)
        per_run = seen.coefficient.new_zeros((len(run), rows, view.columns))
        per_run.scatter_add_(1, where, seen.coefficient.flatten(1, 2))
        value = seen.value if view.prompt is None else seen.gain.sum((-2, -1))
        yield index, weight, per_run, value


def by_multisets(view: View, group: int, covariance: bool) -> Moments:
    """Moments over all multisets: each is a run, weighted by its multinomial probability."""
    scores = view.scores().flatten(0, 2)
    size = scores.shape[1] if covariance else 0
    mean, spread, total = scores.new_zeros(size), scores.new_zeros((size, size)), 0.0
    expected, value = scores.new_zeros((view.prompts * view.kinds, view.columns)), 0.0
    for _, weight, per_run, objective in every_multiset(view, group):
        expected += torch.einsum("m,mkp->kp", weight, per_run)
        value += float(weight @ objective)
        if covariance:
            mean, spread, total = _merge(mean, spread, total, per_run.flatten(1) @ scores, weight)
    expected = expected.unflatten(0, (view.prompts, view.kinds))  # [Q·K, P] → [Q, K, P]
    return Moments(expected, spread if covariance else None, value)


def _merge(
    mean: Tensor, spread: Tensor, total: float, values: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Update a weighted mean [D] and sum of squares [D, D] with new `values` [M, D].

    Source: Chan et al. 1979, eq. 2.1.
    """
    here = float(weight.sum())
    if here == 0:
        return mean, spread, total
    centre = weight @ values / here
    shifted = values - centre
    apart, both = centre - mean, total + here
    # the old and new squares about their own means, and the distance between the two means
    spread = (
        spread
        + torch.einsum("m,md,me->de", weight, shifted, shifted)
        + torch.outer(apart, apart) * (total * here / both)
    )
    return mean + apart * (here / both), spread, both
