"""Exact moments for larger groups, by merging outcomes that no part can tell apart (lumping).

Each sample keeps its own outcome; the other samples of its group count by classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from course.errors import require
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
from course.exact.view import LARGEST, Moments, View, refuse_above_largest

PAIRS = 2_000_000  # numbers up to which the second moments of all pairs of outcomes are kept


class Lumps(NamedTuple):
    """The outcomes of one prompt, in classes.

    No part can tell outcomes of one class apart when they are other samples of a group.
    """

    alive: Tensor  # [n] the possible outcomes
    p: Tensor  # [n] their probabilities
    label: Tensor  # [n] the class of each
    example: Tensor  # [classes] an outcome of each class
    log_class: Tensor  # [classes] log-probability of each class
    each: int  # cells per sample: columns × prompts of the batch

    @classmethod
    def of(cls, view: View) -> Lumps:
        """The classes of the outcomes of the one prompt that `view` looks at."""
        alive, label = view.alive[0], view.classes()
        p, classes = view.probability[0][alive], int(label.max()) + 1
        number = torch.arange(len(label), device=label.device)
        first = number.new_full((classes,), len(label)).scatter_reduce(0, label, number, "amin")
        log_class = p.new_zeros(classes).index_add(0, label, p).log()
        return cls(alive, p, label, alive[first], log_class, view.columns * view.width)

    def runs(self, group: int, own: int = 1) -> int:
        """The number of ways to give `own` samples an outcome and all others a class."""
        ways: int = len(self.alive) ** own
        return ways * math.comb(len(self.example) + group - own - 1, group - own)

    def cells(self, group: int, own: int = 1) -> int:
        """The number of cells to compute: runs × prompts × samples × columns."""
        return self.runs(group, own) * group * self.each

    def refuse_too_many(self, group: int) -> None:
        """Raise `CourseError` if there is too much to list."""
        refuse_above_largest(
            self.cells(group),
            f"{self.runs(group):,} compositions of {group} samples in {len(self.example)} classes",
        )


class _Listed(NamedTuple):
    mine: list[Tensor]  # per own sample: its outcome [M], as a number within `alive`
    weight: Tensor  # [M] the probability of the group
    coefficient: Tensor  # [M, own, P]
    gain: Tensor  # [M, own]


def _listed(view: View, lumps: Lumps, group: int, own: int) -> Iterator[_Listed]:
    """Yield chunks of groups: outcomes for `own` samples, classes for all others.

    Compositions of the others vary fastest.
    """
    others = compositions(group - own, len(lumps.example), lumps.alive.device)
    weight = log_multinomial(others, lumps.log_class).exp()
    beside = lumps.example[members(others, group - own)]
    for run in chunks(lumps.runs(group, own), group * lumps.each, lumps.alive.device):
        *mine, pick = mixed_digits(run, [len(lumps.alive)] * own + [len(others)])
        # the group [M, G]: the own samples first, then one example outcome for each of the others
        index = torch.cat([lumps.alive[torch.stack(mine, -1)], beside[pick]], -1)
        chance = weight[pick] * torch.stack([lumps.p[i] for i in mine]).prod(0)
        seen = view.ask(index.unsqueeze(1))
        yield _Listed(mine, chance, seen.coefficient[:, 0, :own], seen.gain[:, 0, :own])


def by_lumps(view: View, lumps: Lumps, group: int, covariance: bool) -> Moments:
    """The moments of one prompt, with the other samples of a group in classes.

    E[ĝ] = G E[c_i s_i] and E[ĝĝᵀ] = G E[c_i² s_i s_iᵀ] + G(G−1) E[c_i c_j s_i s_jᵀ]. The value of
    the objective is G times what one sample adds to it.
    """
    alive, kinds, columns = lumps.alive, len(lumps.alive), view.columns
    covariance = (
        covariance
        and (kinds * columns) ** 2 <= PAIRS
        and (group == 1 or lumps.cells(group, 2) <= LARGEST)
    )
    mean, value = lumps.p.new_zeros((kinds, columns)), 0.0
    second = lumps.p.new_zeros((kinds * kinds, columns, columns) if covariance else (0, 0, 0))
    for one in _listed(view, lumps, group, 1):
        (i,), own = one.mine, one.coefficient[:, 0]
        weighed = group * one.weight.unsqueeze(-1) * own
        mean.index_add_(0, i, weighed)
        value += group * float(one.weight @ one.gain[:, 0])
        if covariance:  # E[c_i² s_i s_iᵀ], on the diagonal of pairs of outcomes
            second.index_add_(0, i * kinds + i, weighed.unsqueeze(-1) * own.unsqueeze(-2))
    expected = mean.new_zeros((view.kinds, columns)).index_add(0, alive, mean).unsqueeze(0)
    if not covariance:
        return Moments(expected, None, value)
    if group > 1:
        for two in _listed(view, lumps, group, 2):
            (i, j), (mine, other) = two.mine, two.coefficient.unbind(1)
            weighed = group * (group - 1) * two.weight.unsqueeze(-1) * mine
            second.index_add_(0, i * kinds + j, weighed.unsqueeze(-1) * other.unsqueeze(-2))
    # [n·n, P, P] → one matrix over (outcome, column) pairs
    square = second.view(kinds, kinds, columns, columns).transpose(1, 2)
    square = square.reshape(kinds * columns, -1)
    scores = view.scores()[0][alive].flatten(0, 1)
    centred = square - torch.outer(mean.flatten(), mean.flatten())
    return Moments(expected, scores.T @ centred @ scores, value)


class AmongOthers(NamedTuple):
    """The samples of ONE prompt, each with every possible composition of its G − 1 others.

    There are n outcomes, C classes of outcomes, and M compositions.
    """

    outcome: Tensor  # [n] the possible outcomes, by number
    chance: Tensor  # [n] the probability of each outcome
    label: Tensor  # [n] its class: no part can tell outcomes of a class apart as others of a group
    others: Tensor  # [M, C] how many of the G − 1 others are in each class
    weight: Tensor  # [M] the probability of each composition
    coefficient: Tensor  # [n, M, P] the sample's part of ĝ is Σ_P coefficient · score


def among_others(estimator: Estimator, outcomes: Outcomes, group_size: int) -> AmongOthers:
    """What the lumped microscope averages over, for one prompt.

    E[ĝ] = G Σ_n chance Σ_M weight · coefficient · score. Raises `CourseError` for several prompts,
    or if there is too much to list.
    """
    require(
        len(outcomes.reward) == 1,
        "outcomes",
        len(outcomes.reward),
        "one prompt, since parts may look across prompts",
    )
    group = int(check_group_size(group_size))
    view = View(estimator, outcomes)
    lumps = Lumps.of(view)
    lumps.refuse_too_many(group)
    others = compositions(group - 1, len(lumps.example), lumps.alive.device)
    # outcomes slowest, others fastest
    found = torch.cat([one.coefficient[:, 0] for one in _listed(view, lumps, group, 1)])
    return AmongOthers(
        lumps.alive,
        lumps.p,
        lumps.label,
        others,
        log_multinomial(others, lumps.log_class).exp(),
        found.unflatten(0, (len(lumps.alive), len(others))),
    )


def total_variance(among: AmongOthers, inner: Callable[[Tensor], Tensor], own: Tensor) -> float:
    """E‖ĝ − E[ĝ]‖² by the law of total variance, without listing pairs of outcomes.

    Given the number of samples of each class in a group, the samples are independent, and those of
    one class identically distributed:

        E‖ĝ − Eĝ‖² = Σ_counts P(counts) ‖Σ_c count_c v_c − Eĝ‖²  +  G Σ_c,others P(c) P(others)
        (E[‖g‖² | c, others] − ‖v_c‖²)

    Here g is one sample's part of ĝ, and v_c(others) is its mean in class c. `inner` maps rows
    [r, K, P] to the inner products [r, r] of the vectors Σ_{K,P} row · score. `own` [K, P, P] holds
    the inner products between the score columns of each outcome.
    """
    group, classes = int(among.others[0].sum()) + 1, among.others.shape[1]
    p_class = torch.stack([among.chance[among.label == c].sum() for c in range(classes)])
    weights, basis = [], []
    for c in range(classes):  # v_c(others) as linear combinations of a few directions
        mine = among.label == c
        rows = (among.chance[mine] / p_class[c])[:, None, None] * among.coefficient[mine]
        weight, direction = _factor(rows.transpose(0, 1).flatten(1))
        placed = direction.new_zeros((len(direction), *own.shape[:2]))
        placed[:, among.outcome[mine]] = direction.unflatten(1, (-1, own.shape[1]))
        weights.append(weight)
        basis.append(placed)
    products = inner(torch.cat(basis))
    ends = list(itertools.accumulate(len(direction) for direction in basis))
    mean = products.new_zeros(
        (classes, len(among.others), len(products))
    )  # v_c(others), in coordinates of the basis
    for c, weight in enumerate(weights):
        mean[c, :, ends[c] - weight.shape[1] : ends[c]] = weight

    def square(vectors: Tensor) -> Tensor:
        return ((vectors @ products) * vectors).sum(-1)

    counts = compositions(group, classes, among.others.device)  # of the whole group, by class
    # a composition as one number in base G + 1, so that the others can be found by binary search
    place = (group + 1) ** torch.arange(classes, device=counts.device)
    sorted_keys, order = (among.others * place).sum(-1).sort()
    whole = products.new_zeros((len(counts), len(products)))
    for c in range(classes):
        has = counts[:, c] > 0
        # the others of a sample of class c: the group's counts with one less in class c
        index = order[torch.searchsorted(sorted_keys, (counts[has] * place).sum(-1) - place[c])]
        whole[has] += counts[has, c].unsqueeze(-1) * mean[c, index]
    chance = log_multinomial(counts, p_class.log()).exp()
    between = chance @ square(whole - chance @ whole)  # variance of the mean given the counts
    length = ((among.coefficient @ own[among.outcome]) * among.coefficient).sum(-1)  # [n, M] ‖g‖²
    within = among.chance @ length @ among.weight - p_class @ square(mean) @ among.weight
    return float(between + group * within)


def _factor(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Factor rows [M, N] into weights [M, r] times directions [r, N], with small r.

    The method is Gram–Schmidt with pivoting: the row with the largest remainder comes first.
    """
    left, weights, directions = rows.clone(), [], []
    largest = norms = left.norm(dim=1)
    while float(norms.max()) > 1e-13 * float(largest.max()):
        pivot = norms.argmax()
        direction = left[pivot] / norms[pivot]
        weights.append(left @ direction)
        directions.append(direction)
        left -= torch.outer(weights[-1], direction)
        norms = left.norm(dim=1)
    return torch.stack(weights, 1) if weights else rows[:, :0], (
        torch.stack(directions) if directions else rows[:0]
    )
