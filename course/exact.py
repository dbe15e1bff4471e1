"""The microscope: exact J, ∇J, E[ĝ], bias and covariance of any estimator, by listing everything that can happen.

List the outcomes of a policy (an answer and the reward it met) once, as `Outcomes`; `microscope` then asks the estimator
itself: every possible group becomes one run on the leading axis and goes through the very same `freeze` and `objective`
that training uses. Nothing is sampled. The closed forms further down are the second way to the same numbers.
All of it is in float64; log-probabilities and KL are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.estimator import Estimator
from course.parts import AllSamples, BatchMean, BatchStd, DropTruncated, TokenMean, TokenWhitening, TotalReturn, Value
from course.rollout import Policy, Rollout

_PER_SAMPLE = ("log_prob", "reward", "mask", "old_log_prob", "ref_log_prob", "value", "bootstrap", "truncated")
_PER_ARM = ("old_log_prob", "ref_log_prob", "value", "bootstrap", "truncated")
_DISTS = ("dist", "old_dist", "ref_dist")
SMALL = 2_000_000  # cells (runs × prompts × samples × columns) up to which "auto" lists every multiset: within a second
LARGEST = 40_000_000  # cells above which a request is refused: several seconds
CHUNK = 200_000  # cells per pass: the pass stays in the cache

# ---------------------------------------------------------------- what can happen


@dataclass(frozen=True)
class Outcomes:
    """Everything that can happen for each prompt: K outcomes, an answer and the reward it met.

    `log_prob` [Q, K, T] log π of each token under the CURRENT policy, in nats; `score` [Q, K, T, D] its gradient with
    respect to the D parameters (D = 0: leave the gradients out and use `Microscope.coefficient`); `reward` [Q, K, T];
    `mask` [Q, K, T] bool, True where the policy chose the token; `chance` [Q, K] the environment's part of the
    probability, P(reward | answer): 1 where rewards are deterministic, 0 on a row that only pads the table.
    `old_log_prob` [Q, K, T] belongs to the policy that samples (None: on policy). The other fields are the `Rollout`'s
    with K in the place of G: `ref_log_prob`, `value` [Q, K, T]; `truncated`, `bootstrap` [Q, K]; `greedy_reward` [Q];
    `dist`, `old_dist`, `ref_dist` [Q, K or 1, T or 1, V], with `dist_score` [Q, K or 1, T or 1, V, D] the gradient of
    `dist`. `of_arms` and `of_sequences` fill in what is usual.

    Raises `CourseError` where a shape is wrong or the probabilities of a prompt do not sum to 1.
    """

    log_prob: Tensor
    score: Tensor
    reward: Tensor
    mask: Tensor
    chance: Tensor
    old_log_prob: Tensor | None = None
    ref_log_prob: Tensor | None = None
    value: Tensor | None = None
    bootstrap: Tensor | None = None
    greedy_reward: Tensor | None = None
    truncated: Tensor | None = None
    dist: Tensor | None = None
    old_dist: Tensor | None = None
    ref_dist: Tensor | None = None
    dist_score: Tensor | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            tensor = getattr(self, f.name)
            if isinstance(tensor, Tensor):
                keeps = f.name in ("mask", "truncated")
                object.__setattr__(self, f.name, tensor.detach() if keeps else tensor.detach().double())
        shape = self.reward.shape
        require(len(shape) == 3 and shape.numel() > 0, "outcomes.reward", tuple(shape), "the three axes [Q, K, T], none of length 0")
        for name in ("log_prob", "mask", "old_log_prob", "ref_log_prob", "value"):
            self._shape(name, shape)
        for name in ("chance", "truncated", "bootstrap"):
            self._shape(name, shape[:2])
        self._shape("greedy_reward", shape[:1])
        require(self.score.shape[:-1] == shape, "outcomes.score", tuple(self.score.shape), f"[Q, K, T, D] for [Q, K, T] = {tuple(shape)}")
        require(self.mask.dtype == torch.bool, "outcomes.mask", self.mask.dtype, "torch.bool, True where the policy chose the token")
        if self.dist is not None:
            have = None if self.dist_score is None else tuple(self.dist_score.shape)
            want = (*self.dist.shape, self.score.shape[-1])
            require(have == want, "outcomes.dist_score", have, f"{want}: the gradient of outcomes.dist")
        for name, log_prob in (("log_prob", self.log_prob), ("old_log_prob", self.old_log_prob)):
            if log_prob is not None:
                total = self._probability(log_prob).sum(-1)
                require(
                    bool(((total - 1).abs() < 1e-5).all()), f"outcomes.{name}", total.tolist(), "probabilities that sum to 1, per prompt"
                )

    def _shape(self, name: str, shape: torch.Size) -> None:
        tensor = getattr(self, name)
        if tensor is not None:
            require(
                tensor.shape == shape, f"outcomes.{name}", tuple(tensor.shape), f"the shape {tuple(shape)} that outcomes.reward asks for"
            )

    def _probability(self, log_prob: Tensor) -> Tensor:
        return self.chance * torch.where(self.mask, log_prob, 0.0).sum(-1).exp()

    @classmethod
    def of_sequences(
        cls,
        log_prob: Tensor,
        reward: Tensor,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        chance: Tensor | None = None,
        **optional: Any,
    ) -> Outcomes:
        """Outcomes of several tokens, [Q, K, T]. Default: every token chosen, deterministic rewards, no scores (D = 0)."""
        mask = torch.ones_like(reward, dtype=torch.bool) if mask is None else mask
        chance = reward.new_ones(reward.shape[:2]) if chance is None else chance
        if score is None:
            score = log_prob.new_zeros((*log_prob.shape, 0))
            if optional.get("dist") is not None:
                optional.setdefault("dist_score", log_prob.new_zeros((*optional["dist"].shape, 0)))
        return cls(log_prob, score, reward, mask, chance, **optional)

    @classmethod
    def of_arms(
        cls, log_prob: Tensor, reward: Tensor, score: Tensor | None = None, chance: Tensor | None = None, **optional: Any
    ) -> Outcomes:
        """Answers of one token. `log_prob` [Q, A] or, for one prompt, [A]; `score` [.., A, D] (default: `tabular_score`).

        `reward` has the shape of `log_prob`, and then K = A; or one more axis [.., A, R], with `chance` [.., A, R] the
        probability of each of the R rewards that the answer may meet, and then K = A·R. `old_log_prob`, `ref_log_prob`
        and the other fields that belong to a sample are shaped as `log_prob`; `greedy_reward` [Q] and the distributions as
        in the class.
        """
        per_arm = {name: optional.pop(name) for name in _PER_ARM if optional.get(name) is not None}
        per_arm |= {"log_prob": log_prob, "reward": reward}
        per_arm |= {name: tensor for name, tensor in (("score", score), ("chance", chance)) if tensor is not None}
        if log_prob.dim() == 1:
            per_arm = {name: tensor.unsqueeze(0) for name, tensor in per_arm.items()}
        if score is None:
            per_arm["score"] = tabular_score(per_arm["log_prob"])
        if per_arm["reward"].dim() == 3:
            require(chance is not None, "chance", None, "a tensor of the shape of reward, since an answer may meet several rewards")
            times = per_arm["reward"].shape[-1]
            spread = ("reward", "chance")
            per_arm = {n: t.flatten(1) if n in spread else t.repeat_interleave(times, 1) for n, t in per_arm.items()}
        whole = ("chance", "truncated", "bootstrap")
        return cls.of_sequences(**{n: t if n in whole else t.unsqueeze(2) for n, t in per_arm.items()}, **optional)

    @property
    def old(self) -> Tensor:
        """[Q, K, T] log-probability under the policy that samples."""
        return self.log_prob if self.old_log_prob is None else self.old_log_prob

    @property
    def total_reward(self) -> Tensor:
        """[Q, K] the reward of an outcome, summed over its tokens."""
        return self.reward.sum(-1)

    @property
    def total_score(self) -> Tensor:
        """[Q, K, D] the score of an outcome: ∇ log π of the whole answer. eq:answer-score, eq:token-scores-add"""
        return (self.score * self.mask.unsqueeze(-1)).sum(-2)

    def prompt(self, q: int) -> Outcomes:
        """The outcomes of prompt number `q` alone, Q = 1."""
        changes = {f.name: getattr(self, f.name)[q : q + 1] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **changes)


def softmax_score(log_prob: Tensor) -> Tensor:
    """∂ log π_a / ∂ logit_b = 1[a = b] − π_b: the score of a softmax over its logits. [..., A] → [..., A, A]. eq:softmax-score"""
    return torch.eye(log_prob.shape[-1], dtype=log_prob.dtype, device=log_prob.device) - log_prob.exp().unsqueeze(-2)


def tabular_score(log_prob: Tensor) -> Tensor:
    """The score when every prompt has logits of its own, D = Q·A: [Q, A] → [Q, A, Q·A], 0 for other prompts' logits."""
    prompts, arms = log_prob.shape
    own = torch.eye(prompts, dtype=log_prob.dtype, device=log_prob.device)
    return torch.einsum("qab,qr->qarb", softmax_score(log_prob), own).reshape(prompts, arms, prompts * arms)


def probability(outcomes: Outcomes) -> Tensor:
    """[Q, K] probability of each outcome under the current policy: P(reward | answer) · π(answer)."""
    return outcomes._probability(outcomes.log_prob)


def sampling_probability(outcomes: Outcomes) -> Tensor:
    """[Q, K] probability of each outcome under the policy that samples."""
    return outcomes._probability(outcomes.old)


def objective(outcomes: Outcomes) -> float:
    """J = mean over prompts of Σ_k p_k R_k, for the current policy. eq:expected-reward"""
    return float((probability(outcomes) * outcomes.total_reward).sum(-1).mean())


def gradient_coefficient(outcomes: Outcomes) -> Tensor:
    """[Q, K, T] the coefficient of each token's score in ∇J: p_k R_k / Q on chosen tokens."""
    weight = probability(outcomes) * outcomes.total_reward / len(outcomes.reward)
    return weight.unsqueeze(-1) * outcomes.mask


def gradient(outcomes: Outcomes) -> Tensor:
    """[D] ∇J = mean over prompts of Σ_k p_k R_k Σ_t ∇log π(token t of k) (Williams 1992, theorem 1). eq:one-step-policy-gradient"""
    return torch.einsum("qkt,qktd->d", gradient_coefficient(outcomes), outcomes.score)


def kl(outcomes: Outcomes, direction: str = "reverse") -> float:
    """Mean over prompts of the KL of whole answers, in nats: "reverse" KL(π‖ref), "forward" KL(ref‖π)."""
    log_r, p, ref = _reference(outcomes, direction)
    q, log_q_over_p = (p, -log_r) if direction == "reverse" else (ref, log_r)
    return float(torch.where(q > 0, q * log_q_over_p, 0.0).sum(-1).mean())


def kl_coefficient(outcomes: Outcomes, direction: str = "reverse") -> Tensor:
    """[Q, K, T] the coefficient of each token's score in ∇ of `kl`: p log(π/ref) / Q for "reverse", −ref / Q for "forward"."""
    log_r, p, ref = _reference(outcomes, direction)
    weight = torch.where(p > 0, p * -log_r, 0.0) if direction == "reverse" else -ref
    return (weight / len(weight)).unsqueeze(-1) * outcomes.mask


def kl_gradient(outcomes: Outcomes, direction: str = "reverse") -> Tensor:
    """[D] ∇ of `kl`: E_π[log(π/ref) s] for "reverse", −E_ref[s] for "forward"; s is the whole answer's score. `eq:kl-two-gradients`"""
    return torch.einsum("qkt,qktd->d", kl_coefficient(outcomes, direction), outcomes.score)


def _reference(outcomes: Outcomes, direction: str) -> tuple[Tensor, Tensor, Tensor]:
    require(direction in ("reverse", "forward"), "direction", direction, '"reverse", KL(π‖ref), or "forward", KL(ref‖π)')
    require(outcomes.ref_log_prob is not None, "outcomes.ref_log_prob", None, "the reference's log-probabilities")
    assert outcomes.ref_log_prob is not None
    log_r = torch.where(outcomes.mask, outcomes.ref_log_prob - outcomes.log_prob, 0.0).sum(-1)
    return log_r, probability(outcomes), outcomes._probability(outcomes.ref_log_prob)


# ---------------------------------------------------------------- the microscope


@dataclass(frozen=True)
class Microscope:
    """What an estimator does on average, exactly, beside what it should do.

    `objective` J and `gradient` ∇J [D] are the current policy's; `expected` E[ĝ] and `covariance` [D, D] are of the
    gradient of one batch (Q prompts, G samples each) drawn from the sampling policy. `coefficient` [Q, K, T] is the
    expected coefficient of each token's score, and `dist_coefficient` [Q, K, T, V] that of each entry of `dist` (None
    where the estimator does not use it): E[ĝ] = Σ coefficient·score + Σ dist_coefficient·dist_score. `covariance` is
    None where it was not asked for or is too large to list; then `trace` is its trace where that is known (`total_variance`),
    else NaN, and so is `std`. `method` says what was listed.
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


def microscope(estimator: Estimator, outcomes: Outcomes, group_size: int, method: str = "auto", covariance: bool = True) -> Microscope:
    """Exact moments of the estimator's gradient for batches of Q prompts with `group_size` samples each.

    "multisets" lists every multiset of G outcomes of each prompt, and their product over prompts. "lumped" (one prompt)
    lists the sample's own outcome and what the OTHERS of its group look like to it: E[ĝ] = G·E[own coefficient × score],
    with outcomes that no part can tell apart counted as one class; covariance from pairs. "auto" takes the multisets
    where they are few, else lumps, and takes prompts apart where no part looks across them.

    The order of the samples must not matter to the estimator; an adaptive β stands at its initial value. Raises
    `CourseError` where there is too much to list, with numbers.
    """
    require(method in ("auto", "multisets", "lumped"), "method", method, '"auto", "multisets" or "lumped"')
    require(group_size == int(group_size) and group_size >= 1, "group_size", group_size, "a whole number of samples ≥ 1")
    view, group, prompts = _View(estimator, outcomes), int(group_size), len(outcomes.reward)
    covariance = covariance and outcomes.score.shape[-1] > 0
    multisets = math.prod(math.comb(len(alive) + group - 1, group) for alive in view.alive)
    cells = multisets * prompts * max(group, view.kinds) * view.columns
    if method == "multisets" or (method == "auto" and cells <= SMALL):
        _refuse(cells, f"{multisets:,} multisets of {group} outcomes")
        return _finish(view, _by_multisets(view, group, covariance), f"{multisets:,} multisets")
    if method == "lumped" and prompts > 1:
        raise CourseError(f"method: got 'lumped' for {prompts} prompts; allowed is one prompt, since parts may look across prompts")
    if prompts > 1 and _prompts_apart(view):
        return _join(outcomes, [microscope(estimator, outcomes.prompt(q), group, "auto", covariance) for q in range(prompts)])
    lumps = _lumps(view) if prompts == 1 else None
    if lumps is not None and (method == "lumped" or lumps.cells(group) < cells):
        _refuse(lumps.cells(group), f"{lumps.runs(group):,} compositions of {group} samples in {len(lumps.example)} classes")
        return _finish(view, _by_lumps(view, lumps, group, covariance), f"lumped: {lumps.runs(group):,} compositions")
    _refuse(cells, f"{multisets:,} multisets of {group} outcomes" + (" per prompt, and a part looks across prompts" if prompts > 1 else ""))
    return _finish(view, _by_multisets(view, group, covariance), f"{multisets:,} multisets")


def _refuse(cells: int, what: str) -> None:
    if cells > LARGEST:
        raise CourseError(f"microscope: got {what}, {cells:,} cells to compute; allowed is {LARGEST:,}: fewer outcomes, samples or prompts")


class _Moments(NamedTuple):
    coefficient: Tensor  # [Q, K, P] expected coefficient of each column
    covariance: Tensor | None  # [D, D]


class _View:
    """Outcomes as tables of rows [Q·K, ...], and an estimator that is asked for its coefficients on any groups of them.

    A column is whatever ĝ is linear in, P per sample: T scores and, where the estimator uses `dist`, T·V scores of it.
    """

    def __init__(self, estimator: Estimator, outcomes: Outcomes) -> None:
        self.estimator, self.outcomes = estimator, outcomes
        self.prompts, self.kinds, self.tokens = outcomes.reward.shape
        self.probability = sampling_probability(outcomes)
        self.alive = [row.nonzero().squeeze(-1) for row in self.probability > 0]  # what never happens is never listed
        self.first_row = torch.arange(self.prompts, device=outcomes.reward.device).unsqueeze(-1) * self.kinds
        self.rows = {name: tensor.flatten(0, 1) for name in _PER_SAMPLE if (tensor := getattr(outcomes, name)) is not None}
        for name in _DISTS:
            if (tensor := getattr(outcomes, name)) is not None:
                self.rows[name] = tensor.expand(-1, self.kinds, self.tokens, -1).flatten(0, 1)
        self.uses_dist = False
        longest = (outcomes.mask.sum(-1) * (self.probability > 0)).argmax(-1)
        self.columns = self.coefficients(longest[None, :, None].expand(1, self.prompts, 2)).shape[-1]

    def rollout(self, index: Tensor) -> Rollout:
        """The groups `index` [M, Q, G], numbers of outcomes within their prompt, as M runs of one rollout."""
        take, greedy = index + self.first_row, self.outcomes.greedy_reward
        chosen = {name: rows[take] for name, rows in self.rows.items() if name not in ("log_prob", "old_log_prob", "dist")}
        return Rollout(
            log_prob=self.rows["old_log_prob" if "old_log_prob" in self.rows else "log_prob"][take],
            greedy_reward=None if greedy is None else greedy.expand(len(index), -1),
            limit=self.outcomes.limit,
            **chosen,
        )

    def coefficients(self, index: Tensor) -> Tensor:
        """[M, Q, G] → [M, Q, G, P]: the derivative of each run's objective by log π of its tokens, and by `dist`."""
        frozen = self.estimator.freeze(self.rollout(index))
        take = index + self.first_row
        leaves = [self.rows[name][take].requires_grad_() for name in ("log_prob", "dist") if name in self.rows]
        with torch.enable_grad():
            policy = Policy(leaves[0], leaves[1] if len(leaves) > 1 else None, frozen.rollout.value)
            by_token, *by_dist = torch.autograd.grad(self.estimator.objective(policy, frozen).sum(), leaves, allow_unused=True)
        columns = torch.zeros_like(leaves[0]) if by_token is None else by_token
        if by_dist and by_dist[0] is not None:
            self.uses_dist = True
            columns = torch.cat([columns, by_dist[0].flatten(3)], -1)
        return columns

    def scores(self) -> Tensor:
        """[Q, K, P, D] the gradient of each column with respect to the parameters."""
        if not self.uses_dist:
            return self.outcomes.score
        assert self.outcomes.dist_score is not None
        by_dist = self.outcomes.dist_score.expand(-1, self.kinds, self.tokens, -1, -1)
        return torch.cat([self.outcomes.score, by_dist.flatten(2, 3)], 2)


class Groups(NamedTuple):
    """Every batch there can be, order aside: M of them, one per run."""

    outcome: Tensor  # [M, Q, G] which outcome each of its samples is, by number within the prompt
    chance: Tensor  # [M] its probability; they sum to 1
    gradient: Tensor  # [M, D] the gradient ĝ that the estimator makes of it


def every_group(estimator: Estimator, outcomes: Outcomes, group_size: int) -> Groups:
    """What `microscope` averages over, one by one: for identities that hold sample by sample, and for conditional means."""
    view, group = _View(estimator, outcomes), int(group_size)
    multisets = math.prod(math.comb(len(alive) + group - 1, group) for alive in view.alive)
    _refuse(multisets * view.prompts * max(group, view.kinds) * view.columns, f"{multisets:,} multisets of {group} outcomes")
    scores = view.scores().flatten(0, 2)
    listed = [(index, chance, per_run.flatten(1) @ scores) for index, chance, per_run in _multisets(view, group)]
    return Groups(*(torch.cat(column) for column in zip(*listed, strict=True)))


def _multisets(view: _View, group: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of multisets [M, Q, G], their probability [M], and their coefficients summed by outcome [M, Q·K, P]."""
    tables = [compositions(group, len(alive), alive.device) for alive in view.alive]
    weights = [log_multinomial(counts, p[alive].log()) for counts, p, alive in zip(tables, view.probability, view.alive, strict=True)]
    sizes, rows = [len(counts) for counts in tables], view.prompts * view.kinds
    for run in _chunks(math.prod(sizes), view.prompts * max(group, view.kinds) * view.columns, view.probability.device):
        picks = _digits(run, sizes)
        index = torch.stack([a[members(t[pick], group)] for a, t, pick in zip(view.alive, tables, picks, strict=True)], 1)
        weight = torch.stack([w[pick] for w, pick in zip(weights, picks, strict=True)]).sum(0).exp()
        found = view.coefficients(index)
        where = (index + view.first_row).flatten(1)
        per_run = found.new_zeros((len(run), rows, view.columns))
        per_run.scatter_add_(1, where.unsqueeze(-1).expand(-1, -1, view.columns), found.flatten(1, 2))
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
    return _Moments(expected.unflatten(0, (view.prompts, view.kinds)), spread if covariance else None)


def _merge(mean: Tensor, spread: Tensor, total: float, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weighted mean and covariance of what came before and of `values` [M, D] together (Chan et al. 1979, eq. 2.1)."""
    here = float(weight.sum())
    if here == 0:
        return mean, spread, total
    centre = weight @ values / here
    shifted = values - centre
    apart, both = centre - mean, total + here
    spread = spread + torch.einsum("m,md,me->de", weight, shifted, shifted) + torch.outer(apart, apart) * (total * here / both)
    return mean + apart * (here / both), spread, both


class _Lumps(NamedTuple):
    """The outcomes of one prompt in classes that no part can tell apart among the others of a group."""

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
    return _Lumps(alive, p, alive[example], p.new_zeros(classes).index_add(0, label, p).log(), view.columns)


def _listed(view: _View, lumps: _Lumps, group: int, own: int) -> Iterator[tuple[list[Tensor], Tensor, Tensor, Tensor]]:
    """Chunks of `own` samples' outcomes [M] each, which of the others' compositions [M], the weight [M], and c [M, own, P]."""
    others = compositions(group - own, len(lumps.example), lumps.alive.device)
    weight, beside = log_multinomial(others, lumps.log_class).exp(), lumps.example[members(others, group - own)]
    for run in _chunks(lumps.runs(group, own), group * view.columns, lumps.alive.device):
        *mine, pick = _digits(run, [len(lumps.alive)] * own + [len(others)])
        index = torch.cat([lumps.alive[torch.stack(mine, -1)], beside[pick]], -1)
        chance = weight[pick] * torch.stack([lumps.p[i] for i in mine]).prod(0)
        yield mine, pick, chance, view.coefficients(index.unsqueeze(1))[:, 0, :own]


def _by_lumps(view: _View, lumps: _Lumps, group: int, covariance: bool) -> _Moments:
    """E[ĝ] = G E[c_i s_i] and E[ĝĝᵀ] = G E[c_i² s_i s_iᵀ] + G(G−1) E[c_i c_j s_i s_jᵀ], with the others in classes."""
    alive, kinds, columns = lumps.alive, len(lumps.alive), view.columns
    covariance = covariance and (kinds * columns) ** 2 <= SMALL and (group == 1 or lumps.cells(group, 2) <= LARGEST)
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
    square = second.view(kinds, kinds, columns, columns).transpose(1, 2).reshape(kinds * columns, -1)
    scores = view.scores()[0][alive].flatten(0, 1)
    return _Moments(expected, scores.T @ (square - torch.outer(mean.flatten(), mean.flatten())) @ scores)


class AmongOthers(NamedTuple):
    """The samples of ONE prompt, each among every kind of others that its group can have: n outcomes, C classes, M kinds of others."""

    outcome: Tensor  # [n] the outcomes that can happen, by number
    chance: Tensor  # [n] the probability that a sample is this outcome
    label: Tensor  # [n] its class: no part can tell outcomes of a class apart as others of a group
    others: Tensor  # [M, C] how many of the G − 1 others are of each class
    weight: Tensor  # [M] the probability of that
    coefficient: Tensor  # [n, M, P] its own part of ĝ is Σ_P coefficient · score


def among_others(estimator: Estimator, outcomes: Outcomes, group_size: int) -> AmongOthers:
    """What the lumped microscope averages over, for one prompt: E[ĝ] = G Σ_n chance Σ_M weight · coefficient · score."""
    require(len(outcomes.reward) == 1, "outcomes", len(outcomes.reward), "one prompt, since parts may look across prompts")
    require(group_size == int(group_size) and group_size >= 1, "group_size", group_size, "a whole number of samples ≥ 1")
    view, group = _View(estimator, outcomes), int(group_size)
    lumps = _lumps(view)
    _refuse(lumps.cells(group), f"{lumps.runs(group):,} compositions of {group} samples in {len(lumps.example)} classes")
    others = compositions(group - 1, len(lumps.example), lumps.alive.device)
    found = torch.cat([own[:, 0] for _, _, _, own in _listed(view, lumps, group, 1)])  # outcomes slowest, others fastest
    coefficient = found.unflatten(0, (len(lumps.alive), len(others)))
    return AmongOthers(lumps.alive, lumps.p, _classes(view), others, log_multinomial(others, lumps.log_class).exp(), coefficient)


def total_variance(among: AmongOthers, inner: Callable[[Tensor], Tensor], own: Tensor) -> float:
    """E‖ĝ − E[ĝ]‖² without a list of pairs of outcomes, and without the scores themselves: the law of total variance.

    Once it is known how many samples of each class a group has, its samples are independent, and those of a class alike:

        E‖ĝ − Eĝ‖² = Σ_counts P(counts) ‖Σ_c count_c v_c − Eĝ‖²  +  G Σ_c,others P(c) P(others) (E[‖g‖² | c, others] − ‖v_c‖²)

    with g a sample's own part of ĝ and v_c(others) its mean in class c. `inner` maps rows [r, K, P] to the inner products
    [r, r] of the vectors Σ_{K,P} row · score; `own` [K, P, P] holds those of the scores of one outcome's own columns.
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
    mean = products.new_zeros((classes, len(among.others), len(products)))  # v_c(others), in coordinates of the basis
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
    """rows [M, N] → weights [M, r] and directions [r, N] whose product they are, r small: Gram–Schmidt, largest remainder first."""
    left, weights, directions = rows.clone(), [], []
    largest = norms = left.norm(dim=1)
    while float(norms.max()) > 1e-13 * float(largest.max()):
        pivot = norms.argmax()
        direction = left[pivot] / norms[pivot]
        weights.append(left @ direction)
        directions.append(direction)
        left -= torch.outer(weights[-1], direction)
        norms = left.norm(dim=1)
    return torch.stack(weights, 1) if weights else rows[:, :0], torch.stack(directions) if directions else rows[:0]


def _classes(view: _View) -> Tensor:
    """[kinds] class of each outcome of the one prompt: alike where no part can tell them apart as others of a group.

    The course's own parts read of others only rewards, lengths and, where one asks, truncation and a critic's values. A part from
    elsewhere may read anything: then only outcomes whose rows are all equal are alike.
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
    asked = critic or isinstance(estimator.sample_filter, DropTruncated) or not _own_parts(estimator)
    keys += [rollout.truncated] if asked and rollout.truncated is not None else []
    if critic:
        keys += [tensor for tensor in (rollout.value, rollout.bootstrap) if tensor is not None]
    table = torch.cat([key.reshape(len(alive), -1).double() for key in keys], 1)
    return torch.unique(table, dim=0, return_inverse=True)[1]


def _own_parts(estimator: Estimator) -> bool:
    parts = [*estimator.parts.values(), estimator.kl.place, estimator.kl.anchor]
    return all(type(part).__module__.startswith("course.parts.") for part in parts)


def _prompts_apart(view: _View) -> bool:
    """Whether no part looks across prompts, so that ĝ is the mean of independent gradients, one per prompt."""
    e, outcomes = view.estimator, view.outcomes
    across = isinstance(e.baseline, BatchMean) or isinstance(e.scale, BatchStd | TokenWhitening) or isinstance(e.aggregation, TokenMean)
    never_empty = isinstance(e.sample_filter, AllSamples) and bool((outcomes.mask.any(-1) | (view.probability == 0)).all())
    return _own_parts(e) and not across and (e.aggregation.count_empty or never_empty)


def _finish(view: _View, moments: _Moments, method: str) -> Microscope:
    tokens, by_dist = moments.coefficient[..., : view.tokens], moments.coefficient[..., view.tokens :]
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
        covariance=torch.stack(covariances).sum(0) / count**2 if len(covariances) == count else None,
        coefficient=torch.cat([one.coefficient for one in each]) / count,
        dist_coefficient=torch.cat(by_dist) / count if by_dist else None,
        method="prompt by prompt: " + " + ".join(sorted({one.method for one in each})),
    )


# ---------------------------------------------------------------- counting


def compositions(total: int, kinds: int, device: torch.device | None = None) -> Tensor:
    """Every way to have `total` things of `kinds` kinds: counts [M, kinds], M = C(total + kinds − 1, total)."""
    if total == 0:
        return torch.zeros((1, kinds), dtype=torch.long, device=device)
    counts = torch.full((1, 1), total, device=device)  # the last column holds what is left to hand out
    for _ in range(kinds - 1):
        ways = counts[:, -1] + 1
        parent = torch.arange(len(ways), device=device).repeat_interleave(ways)
        taken = torch.arange(len(parent), device=device) - (ways.cumsum(0) - ways)[parent]
        counts = torch.cat([counts[parent, :-1], taken.unsqueeze(-1), (counts[parent, -1] - taken).unsqueeze(-1)], 1)
    return counts


def members(counts: Tensor, total: int) -> Tensor:
    """Counts [M, kinds], each summing to `total` → the members themselves, [M, total] numbers of kinds in order."""
    kinds = torch.arange(counts.shape[1], device=counts.device).repeat(len(counts))
    return kinds.repeat_interleave(counts.flatten()).view(len(counts), total)


def log_multinomial(counts: Tensor, log_p: Tensor) -> Tensor:
    """log of N!/Π n_k! · Π p_k^{n_k}: counts [M, kinds] and log p [kinds] → [M]."""
    counts = counts.double()  # whole numbers would go through lgamma in float32
    log_ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    return log_ways + (counts * log_p).sum(-1)


def _chunks(total: int, cells_each: int, device: torch.device) -> Iterator[Tensor]:
    """The numbers 0 … total − 1 in pieces of about `CHUNK` cells."""
    step = max(1, CHUNK // cells_each)
    for start in range(0, total, step):
        yield torch.arange(start, min(start + step, total), device=device)


def _digits(number: Tensor, sizes: list[int]) -> list[Tensor]:
    """A number below Π sizes → its digits in that mixed base, first digit slowest."""
    digits = []
    for size in reversed(sizes):
        digits.append(number % size)
        number = number // size
    return digits[::-1]


# ---------------------------------------------------------------- closed forms: the second way


def group_std_weight(p: Tensor | float, group_size: float, ddof: int = 0, eps: float = 0.0) -> Tensor:
    """w_G(p) of E[ĝ] = w_G(p) ∇p: Bernoulli rewards with success probability p, on policy, group mean and std. [...] → [...].

    w = E[v/(√(v·G/(G − ddof)) + eps)] / (p(1−p)) with v = N(G−N)/G², N ~ Bin(G, p); silent groups give 0. At G = ∞
    1/(√(p(1−p)) + eps). `p` from 0 to 1, both included (there the limit); `group_size` ≥ 2 or math.inf.
    Source: Davis & Recht 2025 (2510.13651) for G = ∞; Mroueh 2025 (2503.06639); here for every G. `eq:group-std-weight`
    """
    p = torch.as_tensor(p, dtype=torch.float64)
    require(
        group_size == math.inf or (group_size >= 2 and group_size == int(group_size)), "group_size", group_size, "a whole number ≥ 2 or inf"
    )
    if group_size == math.inf:
        return 1 / ((p * (1 - p)).sqrt() + eps)
    size = int(group_size)
    n = torch.arange(1, size, dtype=torch.float64, device=p.device)
    v = n * (size - n) / size**2
    # P(N = n)/(p(1−p)) with the division carried out, so that p = 0 and p = 1 are no special cases
    log_ways = math.lgamma(size + 1) - torch.lgamma(n + 1) - torch.lgamma(size - n + 1)
    q = p.unsqueeze(-1)
    weight = (log_ways + torch.xlogy(n - 1, q) + torch.xlogy(size - n - 1, 1 - q)).exp()
    return (weight * v / ((v * (size / (size - ddof))).sqrt() + eps)).sum(-1)


def group_mean_factor(group_size: int) -> float:
    """(G − 1)/G: E[ĝ] = (G−1)/G ∇J when the group's mean includes the sample itself. `eq:group-mean-factor`"""
    require(group_size >= 1, "group_size", group_size, "a whole number of samples ≥ 1")
    return (group_size - 1) / group_size


def silent_probability(p: Tensor | float, group_size: int) -> Tensor:
    """p^G + (1−p)^G: the chance that all G Bernoulli(p) rewards of a group are equal. [...] → [...]. `eq:silent-groups`"""
    p = torch.as_tensor(p, dtype=torch.float64)
    return p**group_size + (1 - p) ** group_size


def optimal_baseline(outcomes: Outcomes) -> Tensor:
    """[Q] b* = E[R‖s‖²] / E‖s‖², the least total variance (Weaver & Tao 2001; Greensmith et al. 2004). `eq:best-constant-baseline`"""
    p, square = _on_policy(outcomes), outcomes.total_score.square().sum(-1)
    return (p * outcomes.total_reward * square).sum(-1) / (p * square).sum(-1)


def optimal_baseline_per_coordinate(outcomes: Outcomes) -> Tensor:
    """[Q, D] b*_d = E[R s_d²] / E[s_d²], one per parameter; NaN for one without influence. `eq:best-baseline-per-logit`"""
    p, square = _on_policy(outcomes), outcomes.total_score.square()
    return torch.einsum("qk,qkd->qd", p * outcomes.total_reward, square) / torch.einsum("qk,qkd->qd", p, square)


def covariance_at_baseline(outcomes: Outcomes, baseline: Tensor | float) -> Tensor:
    """[Q, D, D] covariance of (R − b)·s for ONE sample of each prompt; b a number, [Q], or [Q, D] one per parameter.

    A batch of G samples has 1/G of it. With b = J(prompt) its trace is the V_J of `rloo_covariance`. `eq:variance-at-baseline`
    """
    p, score = _on_policy(outcomes), outcomes.total_score
    b = torch.as_tensor(baseline, dtype=torch.float64)
    b = b[:, None, None] if b.dim() == 1 else b.unsqueeze(1) if b.dim() == 2 else b
    sample = (outcomes.total_reward.unsqueeze(-1) - b) * score
    centred = sample - torch.einsum("qk,qkd->qd", p, sample).unsqueeze(1)
    return torch.einsum("qk,qkd,qke->qde", p, centred, centred)


def variance_at_baseline(outcomes: Outcomes, baseline: Tensor | float) -> Tensor:
    """[Q] total variance of one sample's gradient (R − b)·s: the trace of `covariance_at_baseline`."""
    return covariance_at_baseline(outcomes, baseline).diagonal(dim1=-2, dim2=-1).sum(-1)


def rloo_covariance(outcomes: Outcomes, group_size: int) -> Tensor:
    """[Q, D, D] covariance of the leave-one-out gradient of one group: C_J/G + (σ²F + ∇J∇Jᵀ)/(G(G−1)).

    C_J is one sample's with b = J, σ² = Var R, F = E[ssᵀ]. It follows from
    ĝ = (1/G) Σ (R_i − J) s_i − Σ_{i≠j} (R_i − J) s_j / (G(G−1)), whose two sums are uncorrelated. `eq:leave-one-out-variance`
    """
    require(group_size >= 2, "group_size", group_size, "a whole number of samples ≥ 2, since each needs others")
    p, score, reward = _on_policy(outcomes), outcomes.total_score, outcomes.total_reward
    mean = (p * reward).sum(-1)
    return covariance_at_baseline(outcomes, mean) / group_size + _exchange(p, score, reward) / (group_size * (group_size - 1))


def rloo_crossover(outcomes: Outcomes) -> Tensor:
    """[Q] the G at which leave-one-out is as noisy as no baseline at all (total variance); it is quieter above. inf: never.

    V_0/G = V_J/G + c/(G(G−1)) ⇔ G = 1 + c/(V_0 − V_J), with c = σ²E‖s‖² + ‖∇J‖². `eq:leave-one-out-crossover`
    """
    p, score, reward = _on_policy(outcomes), outcomes.total_score, outcomes.total_reward
    gain = variance_at_baseline(outcomes, 0.0) - variance_at_baseline(outcomes, (p * reward).sum(-1))
    cost = _exchange(p, score, reward).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.where(gain > 0, 1 + cost / gain, torch.inf)


def _exchange(p: Tensor, score: Tensor, reward: Tensor) -> Tensor:
    """[Q, D, D] σ²F + ∇J∇Jᵀ: what comparing with a noisy baseline adds."""
    centred = reward - (p * reward).sum(-1, keepdim=True)
    gradient = torch.einsum("qk,qkd->qd", p * centred, score)
    fisher = torch.einsum("qk,qkd,qke->qde", p, score, score)
    return (p * centred**2).sum(-1)[:, None, None] * fisher + gradient.unsqueeze(-1) * gradient.unsqueeze(-2)


def _on_policy(outcomes: Outcomes) -> Tensor:
    require(
        outcomes.old_log_prob is None, "outcomes.old_log_prob", "a tensor", "None: this closed form is for samples of the policy itself"
    )
    return probability(outcomes)


class KLMoments(NamedTuple):
    """Bias and standard deviation of one sample's KL estimate, both over the true KL."""

    bias: Tensor
    std: Tensor


def gaussian_kl_moments(mu: Tensor | float) -> dict[str, KLMoments]:
    """k1, k2, k3 of KL(q‖p) = μ²/2 for q = N(0, 1), p = N(μ, 1), sampled from q; and k1 + λ*(r − 1), the least noisy. [...].

    Settings of Schulman 2020, "Approximating KL divergence", whose table rounds these closed forms. `eq:kl-gaussian-moments`
    """
    mu = torch.as_tensor(mu, dtype=torch.float64)
    square, zero = mu**2, torch.zeros_like(mu)
    rest = torch.expm1(square)
    return {
        "k1": KLMoments(zero, 2 / mu.abs()),
        "k2": KLMoments(square / 4, (2 + square).sqrt()),
        "k3": KLMoments(zero, 2 * (rest - square).sqrt() / square),
        "best": KLMoments(zero, 2 * (square - square**2 / rest).sqrt() / square),
    }


def gaussian_control_variate(mu: Tensor | float) -> Tensor:
    """λ* = μ²/(e^{μ²} − 1): the λ of −log r + λ(r − 1) with the least variance (k3 takes λ = 1, for its sign). [...]."""
    square = torch.as_tensor(mu, dtype=torch.float64) ** 2
    return square / torch.expm1(square)


def control_variate(outcomes: Outcomes) -> Tensor:
    """[Q] λ* = Cov(log r, r)/Var(r), r = ref/π of whole answers: the same for any outcomes, on policy. `eq:kl-control-variate`"""
    log_r, p, _ = _reference(outcomes, "reverse")
    centred = log_r.exp() - (p * log_r.exp()).sum(-1, keepdim=True)
    return (p * log_r * centred).sum(-1) / (p * centred**2).sum(-1)
