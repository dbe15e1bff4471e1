"""The microscope: exact J, ∇J, E[ĝ], bias and covariance of any estimator, by listing everything
that can happen.

List the outcomes of a policy (an answer and the reward it met) once, as `Outcomes`; `microscope`
then asks the estimator itself: every possible group becomes one run on the leading axis and goes
through the very same `freeze` and `objective` that training uses. Nothing is sampled.
`closed_forms` is the second way to the same numbers. All of it is in float64; log-probabilities and
KL are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.estimator import Estimator
from course.exact.counting import chunks, compositions, log_multinomial, members, mixed_digits
from course.exact.outcomes import (
    DISTS,
    PER_SAMPLE,
    Outcomes,
    gradient,
    objective,
    sampling_probability,
)
from course.parts import (
    AllSamples,
    BatchMean,
    BatchStd,
    DropTruncated,
    TokenMean,
    TokenWhitening,
    TotalReturn,
    Value,
)
from course.rollout import Policy, Rollout

# cells (runs × prompts × samples × columns) up to which "auto" lists every multiset: within a
# second
SMALL = 2_000_000
LARGEST = 40_000_000  # cells above which a request is refused: several seconds


@dataclass(frozen=True)
class Microscope:
    """What an estimator does on average, exactly, beside what it should do.

    `objective` J and `gradient` ∇J [D] are the current policy's; `expected` E[ĝ] and `covariance`
    [D, D] are of the gradient of one batch (Q prompts, G samples each) drawn from the sampling
    policy. `coefficient` [Q, K, T] is the expected coefficient of each token's score, and
    `dist_coefficient` [Q, K, T, V] that of each entry of `log_dist` (None where the estimator does
    not use it): E[ĝ] = Σ coefficient·score + Σ dist_coefficient·log_dist_score. `covariance` is
    None where it was not asked for or is too large to list; then `trace` is its trace where that is
    known (`total_variance`), else NaN, and so is `std`. `method` says what was listed.
    """

    objective: float
    gradient: Tensor
    expected: Tensor
    covariance: Tensor | None
    coefficient: Tensor
    dist_coefficient: Tensor | None
    method: str
    trace: float = math.nan

    @property
    def bias(self) -> Tensor:
        """[D] E[ĝ] − ∇J. eq:gradient-bias"""
        return self.expected - self.gradient

    @property
    def variance(self) -> float:
        """E‖ĝ − E[ĝ]‖², the trace of the covariance."""
        return self.trace if self.covariance is None else float(self.covariance.trace())

    @property
    def std(self) -> float:
        """Root of the trace of the covariance: how far one batch's gradient is from E[ĝ]."""
        return math.sqrt(max(self.variance, 0.0)) if not math.isnan(self.variance) else math.nan

    @property
    def relative_bias(self) -> float:
        """‖E[ĝ] − ∇J‖ / ‖∇J‖; NaN or inf where ∇J = 0."""
        return float(self.bias.norm() / self.gradient.norm())

    @property
    def cosine(self) -> float:
        """Cosine between E[ĝ] and ∇J; NaN where one of them is 0."""
        return float(self.expected @ self.gradient / (self.expected.norm() * self.gradient.norm()))


def microscope(
    estimator: Estimator,
    outcomes: Outcomes,
    group_size: int,
    method: str = "auto",
    covariance: bool = True,
) -> Microscope:
    """Exact moments of the estimator's gradient for batches of Q prompts with `group_size` samples
    each.

    "multisets" lists every multiset of G outcomes of each prompt, and their product over prompts.
    "lumped" (one prompt) lists the sample's own outcome and what the OTHERS of its group look like
    to it: E[ĝ] = G·E[own coefficient × score], with outcomes that no part can tell apart counted as
    one class; covariance from pairs. "auto" takes the multisets where they are few, else lumps, and
    takes prompts apart where no part looks across them.

    The order of the samples must not matter to the estimator; an adaptive β stands at its initial
    value. Raises `CourseError` where there is too much to list, with numbers.
    """
    require(
        method in ("auto", "multisets", "lumped"),
        "method",
        method,
        '"auto", "multisets" or "lumped"',
    )
    require(
        group_size == int(group_size) and group_size >= 1,
        "group_size",
        group_size,
        "a whole number of samples ≥ 1",
    )
    view, group, prompts = _View(estimator, outcomes), int(group_size), len(outcomes.reward)
    covariance = covariance and outcomes.score.shape[-1] > 0
    multisets = math.prod(math.comb(len(alive) + group - 1, group) for alive in view.alive)
    cells = multisets * prompts * max(group, view.kinds) * view.columns
    if method == "multisets" or (method == "auto" and cells <= SMALL):
        _refuse(cells, f"{multisets:,} multisets of {group} outcomes")
        return _finish(view, _by_multisets(view, group, covariance), f"{multisets:,} multisets")
    if method == "lumped" and prompts > 1:
        raise CourseError(
            f"method: got 'lumped' for {prompts} prompts; allowed is one prompt, since parts may"
            " look across prompts"
        )
    if prompts > 1 and _prompts_apart(view):
        return _join(
            outcomes,
            [
                microscope(estimator, outcomes.prompt(q), group, "auto", covariance)
                for q in range(prompts)
            ],
        )
    lumps = _lumps(view) if prompts == 1 else None
    if lumps is not None and (method == "lumped" or lumps.cells(group) < cells):
        _refuse(
            lumps.cells(group),
            f"{lumps.runs(group):,} compositions of {group} samples in {len(lumps.example)}"
            " classes",
        )
        return _finish(
            view,
            _by_lumps(view, lumps, group, covariance),
            f"lumped: {lumps.runs(group):,} compositions",
        )
    _refuse(
        cells,
        f"{multisets:,} multisets of {group} outcomes"
        + (" per prompt, and a part looks across prompts" if prompts > 1 else ""),
    )
    return _finish(view, _by_multisets(view, group, covariance), f"{multisets:,} multisets")


def _refuse(cells: int, what: str) -> None:
    if cells > LARGEST:
        raise CourseError(
            f"microscope: got {what}, {cells:,} cells to compute; allowed is {LARGEST:,}: fewer"
            " outcomes, samples or prompts"
        )


class _Moments(NamedTuple):
    coefficient: Tensor  # [Q, K, P] expected coefficient of each column
    covariance: Tensor | None  # [D, D]


class _View:
    """Outcomes as tables of rows [Q·K, ...], and an estimator that is asked for its coefficients on
    any groups of them.

    A column is whatever ĝ is linear in, P per sample: T scores and, where the estimator uses
    `log_dist`, T·V scores of it.
    """

    def __init__(self, estimator: Estimator, outcomes: Outcomes) -> None:
        self.estimator, self.outcomes = estimator, outcomes
        self.prompts, self.kinds, self.tokens = outcomes.reward.shape
        self.probability = sampling_probability(outcomes)
        self.alive = [
            row.nonzero().squeeze(-1) for row in self.probability > 0
        ]  # what never happens is never listed
        self.first_row = (
            torch.arange(self.prompts, device=outcomes.reward.device).unsqueeze(-1) * self.kinds
        )
        self.rows = {
            name: tensor.flatten(0, 1)
            for name in PER_SAMPLE
            if (tensor := getattr(outcomes, name)) is not None
        }
        for name in DISTS:
            if (tensor := getattr(outcomes, name)) is not None:
                self.rows[name] = tensor.expand(-1, self.kinds, self.tokens, -1).flatten(0, 1)
        self.uses_dist = False
        longest = (outcomes.mask.sum(-1) * (self.probability > 0)).argmax(-1)
        self.columns = self.coefficients(longest[None, :, None].expand(1, self.prompts, 2)).shape[
            -1
        ]

    def rollout(self, index: Tensor) -> Rollout:
        """The groups `index` [M, Q, G], numbers of outcomes within their prompt, as M runs of one
        rollout.
        """
        take, greedy = index + self.first_row, self.outcomes.greedy_reward
        chosen = {
            name: rows[take]
            for name, rows in self.rows.items()
            if name not in ("log_prob", "old_log_prob", "log_dist")
        }
        return Rollout(
            log_prob=self.rows["old_log_prob" if "old_log_prob" in self.rows else "log_prob"][take],
            greedy_reward=None if greedy is None else greedy.expand(len(index), -1),
            limit=self.outcomes.limit,
            **chosen,
        )

    def coefficients(self, index: Tensor) -> Tensor:
        """[M, Q, G] → [M, Q, G, P]: the derivative of each run's objective by log π of its tokens,
        and by `log_dist`.
        """
        frozen = self.estimator.freeze(self.rollout(index))
        take = index + self.first_row
        leaves = [
            self.rows[name][take].requires_grad_()
            for name in ("log_prob", "log_dist")
            if name in self.rows
        ]
        with torch.enable_grad():
            policy = Policy(leaves[0], leaves[1] if len(leaves) > 1 else None, frozen.rollout.value)
            by_token, *by_dist = torch.autograd.grad(
                self.estimator.objective(policy, frozen).sum(), leaves, allow_unused=True
            )
        columns = torch.zeros_like(leaves[0]) if by_token is None else by_token
        if by_dist and by_dist[0] is not None:
            self.uses_dist = True
            columns = torch.cat([columns, by_dist[0].flatten(3)], -1)
        return columns

    def scores(self) -> Tensor:
        """[Q, K, P, D] the gradient of each column with respect to the parameters."""
        if not self.uses_dist:
            return self.outcomes.score
        assert self.outcomes.log_dist_score is not None
        by_dist = self.outcomes.log_dist_score.expand(-1, self.kinds, self.tokens, -1, -1)
        return torch.cat([self.outcomes.score, by_dist.flatten(2, 3)], 2)


class Groups(NamedTuple):
    """Every batch there can be, order aside: M of them, one per run."""

    outcome: Tensor  # [M, Q, G] which outcome each of its samples is, by number within the prompt
    chance: Tensor  # [M] its probability; they sum to 1
    gradient: Tensor  # [M, D] the gradient ĝ that the estimator makes of it


def every_group(estimator: Estimator, outcomes: Outcomes, group_size: int) -> Groups:
    """What `microscope` averages over, one by one: for identities that hold sample by sample, and
    for conditional means.
    """
    view, group = _View(estimator, outcomes), int(group_size)
    multisets = math.prod(math.comb(len(alive) + group - 1, group) for alive in view.alive)
    _refuse(
        multisets * view.prompts * max(group, view.kinds) * view.columns,
        f"{multisets:,} multisets of {group} outcomes",
    )
    scores = view.scores().flatten(0, 2)
    listed = [
        (index, chance, per_run.flatten(1) @ scores)
        for index, chance, per_run in _multisets(view, group)
    ]
    return Groups(*(torch.cat(column) for column in zip(*listed, strict=True)))


def _multisets(view: _View, group: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of multisets [M, Q, G], their probability [M], and their coefficients summed by
    outcome [M, Q·K, P].
    """
    tables = [compositions(group, len(alive), alive.device) for alive in view.alive]
    weights = [
        log_multinomial(counts, p[alive].log())
        for counts, p, alive in zip(tables, view.probability, view.alive, strict=True)
    ]
    sizes, rows = [len(counts) for counts in tables], view.prompts * view.kinds
    for run in chunks(
        math.prod(sizes),
        view.prompts * max(group, view.kinds) * view.columns,
        view.probability.device,
    ):
        picks = mixed_digits(run, sizes)
        index = torch.stack(
            [
                a[members(t[pick], group)]
                for a, t, pick in zip(view.alive, tables, picks, strict=True)
            ],
            1,
        )
        weight = torch.stack([w[pick] for w, pick in zip(weights, picks, strict=True)]).sum(0).exp()
        found = view.coefficients(index)
        where = (index + view.first_row).flatten(1)
        per_run = found.new_zeros((len(run), rows, view.columns))
        per_run.scatter_add_(
            1, where.unsqueeze(-1).expand(-1, -1, view.columns), found.flatten(1, 2)
        )
        yield index, weight, per_run


def _by_multisets(view: _View, group: int, covariance: bool) -> _Moments:
    """Every multiset of outcomes is a run, weighed with its multinomial probability."""
    scores = view.scores().flatten(0, 2)
    size = scores.shape[1] if covariance else 0
    mean, spread, total = scores.new_zeros(size), scores.new_zeros((size, size)), 0.0
    expected = scores.new_zeros((view.prompts * view.kinds, view.columns))
    for _, weight, per_run in _multisets(view, group):
        expected += torch.einsum("m,mkp->kp", weight, per_run)
        if covariance:
            mean, spread, total = _merge(mean, spread, total, per_run.flatten(1) @ scores, weight)
    return _Moments(
        expected.unflatten(0, (view.prompts, view.kinds)), spread if covariance else None
    )


def _merge(
    mean: Tensor, spread: Tensor, total: float, values: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Weighted mean and covariance of what came before and of `values` [M, D] together (Chan et al.
    1979, eq. 2.1).
    """
    here = float(weight.sum())
    if here == 0:
        return mean, spread, total
    centre = weight @ values / here
    shifted = values - centre
    apart, both = centre - mean, total + here
    spread = (
        spread
        + torch.einsum("m,md,me->de", weight, shifted, shifted)
        + torch.outer(apart, apart) * (total * here / both)
    )
    return mean + apart * (here / both), spread, both


class _Lumps(NamedTuple):
    """The outcomes of one prompt in classes that no part can tell apart among the others of a
    group.
    """

    alive: Tensor  # [kinds] the outcomes that can happen
    p: Tensor  # [kinds] their probabilities
    example: Tensor  # [classes] an outcome of each class
    log_class: Tensor  # [classes] log-probability of each class
    columns: int

    def runs(self, group: int, own: int = 1) -> int:
        """How many ways there are for `own` samples of their own and classes of the others."""
        return len(self.alive) ** own * math.comb(len(self.example) + group - own - 1, group - own)

    def cells(self, group: int, own: int = 1) -> int:
        return self.runs(group, own) * group * self.columns


def _lumps(view: _View) -> _Lumps:
    alive, p, label = view.alive[0], view.probability[0][view.alive[0]], _classes(view)
    classes, number = int(label.max()) + 1, torch.arange(len(label), device=label.device)
    example = number.new_full((classes,), len(label)).scatter_reduce(0, label, number, "amin")
    return _Lumps(
        alive, p, alive[example], p.new_zeros(classes).index_add(0, label, p).log(), view.columns
    )


def _listed(
    view: _View, lumps: _Lumps, group: int, own: int
) -> Iterator[tuple[list[Tensor], Tensor, Tensor, Tensor]]:
    """Chunks of `own` samples' outcomes [M] each, which of the others' compositions [M], the weight
    [M], and c [M, own, P].
    """
    others = compositions(group - own, len(lumps.example), lumps.alive.device)
    weight, beside = (
        log_multinomial(others, lumps.log_class).exp(),
        lumps.example[members(others, group - own)],
    )
    for run in chunks(lumps.runs(group, own), group * view.columns, lumps.alive.device):
        *mine, pick = mixed_digits(run, [len(lumps.alive)] * own + [len(others)])
        index = torch.cat([lumps.alive[torch.stack(mine, -1)], beside[pick]], -1)
        chance = weight[pick] * torch.stack([lumps.p[i] for i in mine]).prod(0)
        yield mine, pick, chance, view.coefficients(index.unsqueeze(1))[:, 0, :own]


def _by_lumps(view: _View, lumps: _Lumps, group: int, covariance: bool) -> _Moments:
    """E[ĝ] = G E[c_i s_i] and E[ĝĝᵀ] = G E[c_i² s_i s_iᵀ] + G(G−1) E[c_i c_j s_i s_jᵀ], with the
    others in classes.
    """
    alive, kinds, columns = lumps.alive, len(lumps.alive), view.columns
    covariance = (
        covariance
        and (kinds * columns) ** 2 <= SMALL
        and (group == 1 or lumps.cells(group, 2) <= LARGEST)
    )
    mean = lumps.p.new_zeros((kinds, columns))
    second = lumps.p.new_zeros((kinds * kinds, columns, columns) if covariance else (0, 0, 0))
    for (i,), _, chance, found in _listed(view, lumps, group, 1):
        weighed = group * chance.unsqueeze(-1) * found[:, 0]
        mean.index_add_(0, i, weighed)
        if covariance:
            second.index_add_(0, i * kinds + i, weighed.unsqueeze(-1) * found[:, 0].unsqueeze(-2))
    expected = mean.new_zeros((view.kinds, columns)).index_add(0, alive, mean).unsqueeze(0)
    if not covariance:
        return _Moments(expected, None)
    if group > 1:
        for (i, j), _, chance, found in _listed(view, lumps, group, 2):
            weighed = group * (group - 1) * chance.unsqueeze(-1) * found[:, 0]
            second.index_add_(0, i * kinds + j, weighed.unsqueeze(-1) * found[:, 1].unsqueeze(-2))
    square = (
        second.view(kinds, kinds, columns, columns).transpose(1, 2).reshape(kinds * columns, -1)
    )
    scores = view.scores()[0][alive].flatten(0, 1)
    return _Moments(
        expected, scores.T @ (square - torch.outer(mean.flatten(), mean.flatten())) @ scores
    )


class AmongOthers(NamedTuple):
    """The samples of ONE prompt, each among every kind of others that its group can have: n
    outcomes, C classes, M kinds of others.
    """

    outcome: Tensor  # [n] the outcomes that can happen, by number
    chance: Tensor  # [n] the probability that a sample is this outcome
    label: Tensor  # [n] its class: no part can tell outcomes of a class apart as others of a group
    others: Tensor  # [M, C] how many of the G − 1 others are of each class
    weight: Tensor  # [M] the probability of that
    coefficient: Tensor  # [n, M, P] its own part of ĝ is Σ_P coefficient · score


def among_others(estimator: Estimator, outcomes: Outcomes, group_size: int) -> AmongOthers:
    """What the lumped microscope averages over, for one prompt: E[ĝ] = G Σ_n chance Σ_M weight ·
    coefficient · score.
    """
    require(
        len(outcomes.reward) == 1,
        "outcomes",
        len(outcomes.reward),
        "one prompt, since parts may look across prompts",
    )
    require(
        group_size == int(group_size) and group_size >= 1,
        "group_size",
        group_size,
        "a whole number of samples ≥ 1",
    )
    view, group = _View(estimator, outcomes), int(group_size)
    lumps = _lumps(view)
    _refuse(
        lumps.cells(group),
        f"{lumps.runs(group):,} compositions of {group} samples in {len(lumps.example)} classes",
    )
    others = compositions(group - 1, len(lumps.example), lumps.alive.device)
    found = torch.cat(
        [own[:, 0] for _, _, _, own in _listed(view, lumps, group, 1)]
    )  # outcomes slowest, others fastest
    coefficient = found.unflatten(0, (len(lumps.alive), len(others)))
    return AmongOthers(
        lumps.alive,
        lumps.p,
        _classes(view),
        others,
        log_multinomial(others, lumps.log_class).exp(),
        coefficient,
    )


def total_variance(among: AmongOthers, inner: Callable[[Tensor], Tensor], own: Tensor) -> float:
    """E‖ĝ − E[ĝ]‖² without a list of pairs of outcomes, and without the scores themselves: the law
    of total variance.

    Once it is known how many samples of each class a group has, its samples are independent, and
    those of a class alike:

        E‖ĝ − Eĝ‖² = Σ_counts P(counts) ‖Σ_c count_c v_c − Eĝ‖²  +  G Σ_c,others P(c) P(others)
        (E[‖g‖² | c, others] − ‖v_c‖²)

    with g a sample's own part of ĝ and v_c(others) its mean in class c. `inner` maps rows [r, K, P]
    to the inner products [r, r] of the vectors Σ_{K,P} row · score; `own` [K, P, P] holds those of
    the scores of one outcome's own columns.
    """
    group, classes = int(among.others[0].sum()) + 1, among.others.shape[1]
    p_class = torch.stack([among.chance[among.label == c].sum() for c in range(classes)])
    weights, basis = [], []
    for c in range(classes):  # v_c(others), as sums of a few directions
        mine = among.label == c
        rows = (among.chance[mine] / p_class[c])[:, None, None] * among.coefficient[mine]
        weight, direction = _factor(rows.transpose(0, 1).flatten(1))
        placed = direction.new_zeros((len(direction), *own.shape[:2]))
        placed[:, among.outcome[mine]] = direction.unflatten(1, (-1, own.shape[1]))
        weights.append(weight)
        basis.append(placed)
    products = inner(torch.cat(basis))
    ends = torch.tensor([len(direction) for direction in basis]).cumsum(0).tolist()
    mean = products.new_zeros(
        (classes, len(among.others), len(products))
    )  # v_c(others), in coordinates of the basis
    for c, weight in enumerate(weights):
        mean[c, :, ends[c] - weight.shape[1] : ends[c]] = weight

    def square(vectors: Tensor) -> Tensor:
        return ((vectors @ products) * vectors).sum(-1)

    counts = compositions(group, classes, among.others.device)
    place = (group + 1) ** torch.arange(classes, device=counts.device)
    sorted_keys, order = (among.others * place).sum(-1).sort()
    whole = products.new_zeros((len(counts), len(products)))
    for c in range(classes):
        has = counts[:, c] > 0
        index = order[torch.searchsorted(sorted_keys, (counts[has] * place).sum(-1) - place[c])]
        whole[has] += counts[has, c].unsqueeze(-1) * mean[c, index]
    chance = log_multinomial(counts, p_class.log()).exp()
    between = chance @ square(whole - chance @ whole)
    length = ((among.coefficient @ own[among.outcome]) * among.coefficient).sum(-1)  # [n, M] ‖g‖²
    within = among.chance @ length @ among.weight - p_class @ square(mean) @ among.weight
    return float(between + group * within)


def _factor(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [M, N] → weights [M, r] and directions [r, N] whose product they are, r small:
    Gram–Schmidt, largest remainder first.
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


def _classes(view: _View) -> Tensor:
    """[kinds] class of each outcome of the one prompt: alike where no part can tell them apart as
    others of a group.

    The course's own parts read of others only rewards, lengths and, where one asks, truncation and
    a critic's values. A part from elsewhere may read anything: then only outcomes whose rows are
    all equal are alike.
    """
    estimator, alive = view.estimator, view.alive[0]
    rollout = view.rollout(alive[None, None, :])
    reward = [rollout.reward, estimator.kl.shape_reward(rollout)]
    if not _own_parts(estimator):
        keys = [rows[alive] for name, rows in view.rows.items()]
    elif isinstance(estimator.credit, TotalReturn) and not isinstance(estimator.baseline, Value):
        keys = [row.sum(-1) for row in reward] + [rollout.length]
    else:
        keys = [*reward, rollout.mask]
    critic = isinstance(estimator.baseline, Value)
    asked = (
        critic or isinstance(estimator.sample_filter, DropTruncated) or not _own_parts(estimator)
    )
    keys += [rollout.truncated] if asked and rollout.truncated is not None else []
    if critic:
        keys += [tensor for tensor in (rollout.value, rollout.bootstrap) if tensor is not None]
    table = torch.cat([key.reshape(len(alive), -1).double() for key in keys], 1)
    return torch.unique(table, dim=0, return_inverse=True)[1]


def _own_parts(estimator: Estimator) -> bool:
    parts = [*estimator.parts.values(), estimator.kl.place, estimator.kl.anchor]
    return all(type(part).__module__.startswith("course.parts.") for part in parts)


def _prompts_apart(view: _View) -> bool:
    """Whether no part looks across prompts, so that ĝ is the mean of independent gradients, one per
    prompt.
    """
    e, outcomes = view.estimator, view.outcomes
    across = (
        isinstance(e.baseline, BatchMean)
        or isinstance(e.scale, BatchStd | TokenWhitening)
        or isinstance(e.aggregation, TokenMean)
    )
    never_empty = isinstance(e.sample_filter, AllSamples) and bool(
        (outcomes.mask.any(-1) | (view.probability == 0)).all()
    )
    return _own_parts(e) and not across and (e.aggregation.count_empty or never_empty)


def _finish(view: _View, moments: _Moments, method: str) -> Microscope:
    tokens, by_dist = (
        moments.coefficient[..., : view.tokens],
        moments.coefficient[..., view.tokens :],
    )
    return Microscope(
        objective=objective(view.outcomes),
        gradient=gradient(view.outcomes),
        expected=torch.einsum("qkp,qkpd->d", moments.coefficient, view.scores()),
        covariance=moments.covariance,
        coefficient=tokens,
        dist_coefficient=by_dist.unflatten(-1, (view.tokens, -1)) if view.uses_dist else None,
        method=method,
    )


def _join(outcomes: Outcomes, each: list[Microscope]) -> Microscope:
    """The mean of independent gradients, one per prompt."""
    count = len(each)
    covariances = [one.covariance for one in each if one.covariance is not None]
    by_dist = [one.dist_coefficient for one in each if one.dist_coefficient is not None]
    return Microscope(
        objective=objective(outcomes),
        gradient=gradient(outcomes),
        expected=torch.stack([one.expected for one in each]).mean(0),
        covariance=(
            torch.stack(covariances).sum(0) / count**2 if len(covariances) == count else None
        ),
        coefficient=torch.cat([one.coefficient for one in each]) / count,
        dist_coefficient=torch.cat(by_dist) / count if by_dist else None,
        method="prompt by prompt: " + " + ".join(sorted({one.method for one in each})),
    )
