"""Scale: what the advantage is divided by (nothing, a spread, the group's mean), or mapped to.

For rewards of 0 or 1 every scale is one curve w(p) that multiplies ∇p: it decides which questions
count, and so what is maximised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import require, require_number
from course.parts.base import Part, number
from course.parts.baseline import GroupMean, NoBaseline, extremes, mean_of, need_group
from course.parts.credit import GAE
from course.parts.kl import InReward
from course.rollout import Rollout


@dataclass(frozen=True)
class Scale(Part):
    """Advantage [..., Q, G, T] and returns [..., Q, G] → scaled advantage [..., Q, G, T].

    `wrap` puts the LaTeX of the numerator into a fraction.
    """

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        raise NotImplementedError

    def wrap(self, numerator: str) -> str:
        """LaTeX of the scaled advantage."""
        return rf"\frac{{{numerator}}}{{{self.latex}}}"

    def wrap_text(self, numerator: str) -> str:
        """The scaled advantage for a terminal."""
        return f"({numerator}) / {self.text}"


def unit(low: Tensor, high: Tensor) -> Tensor:
    """The power of two that, as a divisor, brings the largest |value| of [low, high] into [1, 2).

    It is 1 where no |value| exceeds 1. Dividing by a power of two is exact, and the squares of the
    quotients do not overflow.
    """
    largest = torch.maximum(high, -low).clamp(min=1)
    return largest / (2 * torch.frexp(largest).mantissa)


def inverse_std(values: Tensor, ddof: int, eps: float, exists: Tensor | None = None) -> Tensor:
    """1 / (std + eps) over the last axis: [..., N] → [..., 1]; exactly 0 where all are equal.

    `ddof` 0 divides the squares by N, 1 by N − 1. Values whose `exists` is False are left out.
    """
    low, high = extremes(values, exists=exists)
    quiet = high <= low
    if exists is not None:  # a missing value is set to the mean, so that it deviates by 0
        values = torch.where(exists, values, mean_of(values, (-1,), exists))
    size = unit(low, high)  # scaled by it, large rewards do not overflow when squared
    variance = (values / size).var(-1, correction=ddof, keepdim=True)
    if exists is not None:  # nor does it count in the divisor; the factor is 1 where all exist
        counted = (exists.sum(-1, keepdim=True) - ddof).clamp(min=1).to(values.dtype)
        variance = variance * ((values.shape[-1] - ddof) / counted)
    std = variance.sqrt() * size + eps
    if not eps:
        quiet = quiet | (std == 0)  # without eps, a spread that underflows counts as zero variance
    return torch.where(
        quiet, torch.zeros_like(std), 1 / torch.where(quiet, torch.ones_like(std), std)
    )


def whiten(advantage: Tensor, mask: Tensor, eps: float, ddof: int = 0) -> Tensor:
    """(A − mean) / √(var + eps) over all chosen tokens of the batch: [..., Q, G, T] → same shape.

    Each run has its own mean and variance. Source: Hu 2025, eq. 5.
    """
    dims = (-3, -2, -1)
    low, high = extremes(advantage, dims, mask)  # [..., 1, 1, 1] per run
    quiet, size = high <= low, unit(low, high)  # scaled, so that squares do not overflow
    # a critic's values at tokens outside the mask are arbitrary, perhaps NaN
    advantage = advantage.masked_fill(~mask, 0.0) / size
    weight = mask.to(advantage.dtype)
    count = weight.sum(dims, keepdim=True)
    mean = (weight * advantage).sum(dims, keepdim=True) / count
    centred = (advantage - mean) * weight
    variance = (centred**2).sum(dims, keepdim=True) / (count - ddof).clamp(min=1)
    if not eps:
        quiet = quiet | (variance == 0)
    spread = torch.where(quiet, torch.ones_like(variance), variance + eps / size / size).sqrt()
    return torch.where(quiet, torch.zeros_like(centred), centred / spread)


def _check_spread(part: Scale, ddof: int, eps: float) -> None:
    """Raise `CourseError` unless ddof is 0 or 1 and eps is a number ≥ 0."""
    name = type(part).__name__
    allowed = "0 (population) or 1 (sample)"
    require_number(f"{name}.ddof", ddof, allowed, at_least=0, at_most=1, whole=True)
    require_number(f"{name}.eps", eps, "a number ≥ 0", at_least=0)


@dataclass(frozen=True)
class NoScale(Scale):
    """Divide by nothing."""

    scope = "token"
    symbol = "1"
    plain = "1"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return advantage

    def wrap(self, numerator: str) -> str:
        return numerator

    def wrap_text(self, numerator: str) -> str:
        return numerator


@dataclass(frozen=True)
class _Std(Scale):
    ddof: int = 0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_spread(self, self.ddof, self.eps)

    def check(self, parts: Mapping[str, Part]) -> None:
        if isinstance(parts["credit"], GAE):
            raise self.clash(
                parts["credit"],
                "a spread of whole returns says nothing of one token's advantage; use"
                " TokenWhitening()",
            )

    def _std(self, over: str, of: str) -> str:
        kind = r"^{(n-1)}" if self.ddof else ""
        return rf"\operatorname{{std}}{kind}_{{{over}}}({of})" + (
            rf"+{number(self.eps)}" if self.eps else ""
        )

    def _std_text(self, over: str) -> str:
        name = f"std{'₁' if self.ddof else ''}_{over}(R)"
        return f"({name} + {self.eps:g})" if self.eps else name


@dataclass(frozen=True)
class GroupStd(_Std):
    """Divide by the standard deviation of the group's returns (Shao et al. 2024, §4.1.1).

    `ddof` 0 divides the squares by G (population), 1 by G − 1 (TRL, verl). `eps` is added to the
    std. Advantages of a zero-variance group are exactly 0. Raises `CourseError` if G = 1.
    eq:group-std-advantage
    """

    scope, reads = "group", ("returns", "empty")

    @property
    def latex(self) -> str:
        return self._std(r"j\le G", "R_j")

    @property
    def text(self) -> str:
        return self._std_text("group")

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        spread = inverse_std(returns, self.ddof, self.eps, rollout.present)
        return advantage * spread.unsqueeze(-1)


@dataclass(frozen=True)
class BatchStd(_Std):
    """Divide by the standard deviation of all returns of the batch, one number for all prompts.

    TRL calls it scale_rewards="batch". `ddof` and `eps` as in `GroupStd`. Raises `CourseError` for
    a batch of one sample.
    """

    scope, reads = "batch", ("returns", "empty")

    @property
    def latex(self) -> str:
        return self._std(r"\text{batch}", "R")

    @property
    def text(self) -> str:
        return self._std_text("batch")

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        require(returns.shape[-2:].numel() > 1, "BatchStd", 1, "a batch of at least two samples")
        exists = rollout.present
        exists = None if exists is None else exists.flatten(-2)
        spread = inverse_std(returns.flatten(-2), self.ddof, self.eps, exists)
        return advantage * spread[..., None, None]


@dataclass(frozen=True)
class _Function(Scale):
    """No divisor: a function of the advantages, written before its argument in brackets."""

    def wrap(self, numerator: str) -> str:
        return rf"{self.latex}\!\left({numerator}\right)"

    def wrap_text(self, numerator: str) -> str:
        return f"{self.text}({numerator})"


@dataclass(frozen=True)
class TokenWhitening(_Function):
    """Centre and scale over all chosen tokens of the batch (REINFORCE++: Hu 2025, eq. 5).

    `eps` is added to the variance, under the root. `ddof` 0 divides the squares by the number n of
    tokens, 1 by n − 1 (verl).
    """

    scope, reads = "batch", ("advantage", "mask")
    eps: float = 1e-8
    ddof: int = 0

    def __post_init__(self) -> None:
        _check_spread(self, self.ddof, self.eps)

    symbol = r"\operatorname{whiten}_{\text{tokens}}"
    plain = "whiten_tokens"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return whiten(advantage, rollout.mask, self.eps, self.ddof)


@dataclass(frozen=True)
class MaxRL(Scale):
    """Divide by the group's mean return: with the group mean as baseline, A = (R − R̄)/R̄.

    For rewards of 0 or 1 and the baseline `GroupMean`, E[ĝ] = w(p)∇p with
    w(p) = Σ_{k=1}^{G−1} (1−p)^{k−1}: the likelihood gradient ∇log p cut off after G − 1 terms,
    where ∇log p = Σ_k ∇pass@k / k. The advantage is 0 where R̄ ≤ 0: no sample was right, or the
    sign would flip. Raises `CourseError` if G = 1. Source: Tajwar et al. 2026 (MaxRL, 2602.02710).
    """

    scope, reads = "group", ("returns", "empty")
    symbol = r"\operatorname{mean}_{j\le G}(R_j)"
    plain = "mean_group(R)"

    def check(self, parts: Mapping[str, Part]) -> None:
        if isinstance(parts["credit"], GAE):
            raise self.clash(
                parts["credit"], "a mean of whole returns says nothing of one token's advantage"
            )

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        mean = mean_of(returns, (-1,), rollout.present).unsqueeze(-1)  # [..., Q, 1, 1]
        usable = mean > 0
        scaled = advantage / torch.where(usable, mean, torch.ones_like(mean))
        return torch.where(usable, scaled, torch.zeros_like(scaled))


def lead(returns: Tensor, exists: Tensor | None = None) -> Tensor:
    """The best of each group gets R₁ − R₂, its lead over the second; the others 0.

    [..., Q, G] → [..., Q, G], over the samples that exist. 0 everywhere where the best two are
    equal, or fewer than two exist.
    """
    counted = returns if exists is None else returns.masked_fill(~exists, -torch.inf)
    best, second = counted.topk(2, -1).values.split(1, -1)  # each [..., Q, 1]
    leads = (counted == best) & (best > second) & (second > -torch.inf)
    return torch.where(leads, best - second, torch.zeros_like(returns))


@dataclass(frozen=True)
class _OfRanks(_Function):
    """Compares whole returns of a group by their order; it replaces baseline and scale at once."""

    def check(self, parts: Mapping[str, Part]) -> None:
        if not isinstance(parts["baseline"], NoBaseline):
            raise self.clash(
                parts["baseline"], "the second best is its baseline already; use NoBaseline()"
            )
        if not parts["credit"].implied:
            raise self.clash(
                parts["credit"], "it compares whole returns, one per sample; use TotalReturn()"
            )


@dataclass(frozen=True)
class Leader(_OfRanks):
    """The best sample of the group gets R₁ − R₂, the others 0: what is maximised is E[max of G].

    Summed over the group, E[Σ_i A_i ∇log π(o_i)] = ∇E[max_i R_i] for any rewards, ties included,
    since R₁ − R₂ is what the maximum would lose without the leader (`eq:leader-gradient`). It
    replaces baseline and scale at once. Raises `Clash` beside another baseline or a credit per
    token, and `CourseError` if G = 1. Source: Tang et al. 2025 (2503.19595).
    """

    scope, reads = "group", ("returns", "empty")
    symbol = r"\operatorname{lead}_{j\le G}"
    plain = "lead_group"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return lead(returns, rollout.present).unsqueeze(-1).expand(advantage.shape)


def all_within(rank: Tensor, count: Tensor | float, k: int) -> Tensor:
    """The chance that k samples, drawn from `count` without replacement, are all among the `rank`
    lowest: C(rank, k)/C(count, k), 0 where count < k. Shapes broadcast; both are whole numbers.
    """
    chance = torch.ones_like(rank)
    for drawn in range(k):
        left = torch.as_tensor(count - drawn, dtype=rank.dtype, device=rank.device)
        chance = chance * ((rank - drawn).clamp(min=0) / left.clamp(min=1))
    return chance


@dataclass(frozen=True)
class Ranked:
    """Returns [..., Q, G] in ascending order: what the best of k depends on.

    `order` [..., Q, G] are the places of the samples, lowest return first; samples that do not
    exist come last. `gap` [..., Q, G − 1] is the step from each return to the next, 0 where the
    next does not exist, so that a maximum is the lowest return plus the steps below it.
    """

    order: Tensor
    gap: Tensor

    @classmethod
    def of(cls, returns: Tensor, exists: Tensor | None = None) -> Ranked:
        """Sort the samples that exist (`exists` [..., Q, G] bool; None means that all do)."""
        if exists is not None:
            returns = returns.masked_fill(~exists, torch.inf)
        ascending, order = returns.sort(dim=-1, stable=True)
        gap = ascending.diff(dim=-1)
        if exists is not None:
            gap = gap.masked_fill(~exists.gather(-1, order)[..., 1:], 0.0)
        return cls(order, gap)

    def back(self, ranked: Tensor) -> Tensor:
        """Numbers in ascending order of the returns [..., Q, G] → each at its sample's place."""
        return torch.empty_like(ranked).scatter(-1, self.order, ranked)


def lead_of_k(ranked: Ranked, others: Tensor, k: int) -> Tensor:
    """k · E[max with the sample − max without it], over k − 1 others: [..., Q, G].

    `others` [..., Q, G − 1] is the chance that k − 1 others are all among the lowest 1, 2, ….
    """
    steps = (ranked.gap * others).cumsum(-1)
    return k * ranked.back(torch.cat([torch.zeros_like(steps[..., :1]), steps], -1))


def whitened_max(ranked: Ranked, within: Tensor, others: Tensor) -> Tensor:
    """(E[max | the sample is one of the k] − E[max]) / std[max], over all k-subsets: [..., Q, G].

    `within` [..., Q, G − 1] is the chance that k samples are all among the lowest 1, 2, …, and
    `others` the same given that one of them is among these. 0 where every k-subset has one maximum.
    """
    largest = ranked.gap.amax(-1, keepdim=True)
    gap = ranked.gap / torch.where(largest > 0, largest, 1.0)  # no square overflows or underflows
    # above[m] = P(max > rank m): their covariance for ranks a ≤ b is within[a] · above[b]
    above = gap * (1 - within)
    later = above.flip(-1).cumsum(-1).flip(-1) - above
    variance = (gap * within * (above + 2 * later)).sum(-1, keepdim=True)
    # a sample of rank m or lower leaves the maximum there with another chance than one above
    lost = (gap * others).flip(-1).cumsum(-1).flip(-1)
    lost = torch.cat([lost, torch.zeros_like(lost[..., :1])], -1)
    centred = (gap * within).sum(-1, keepdim=True) - lost
    quiet = variance <= 0
    spread = torch.where(quiet, 1.0, variance).sqrt()
    return ranked.back(torch.where(quiet, 0.0, centred / spread))


@dataclass(frozen=True)
class _BestOfK(_OfRanks):
    """What a sample adds to the best of k ≤ G samples."""

    k: int = 2

    @property
    def least_group(self) -> int:
        return max(self.k, 2)

    def _ranked(self, returns: Tensor, rollout: Rollout) -> tuple[Ranked, Tensor, Tensor | float]:
        """The group in order, the ranks 1 … G − 1, and how many samples exist [..., Q, 1]."""
        group = returns.shape[-1]
        need_group(self, returns, self.least_group)
        exists = rollout.present
        rank = torch.arange(1, group, dtype=returns.dtype, device=returns.device)
        count = group if exists is None else exists.sum(-1, keepdim=True).to(returns.dtype)
        return Ranked.of(returns, exists), rank, count

    @staticmethod
    def _placed(found: Tensor, advantage: Tensor, rollout: Rollout) -> Tensor:
        """[..., Q, G] → [..., Q, G, T], 0 for samples that do not exist."""
        if rollout.present is not None:
            found = found.masked_fill(~rollout.present, 0.0)
        return found.unsqueeze(-1).expand(advantage.shape)


@dataclass(frozen=True)
class PKPO(_BestOfK):
    """A = k · E[max of k with the sample − max of the other k − 1]: E[max of k] is maximised.

    The expectation runs over all k − 1 others of the group. The mean over the group's samples,
    which an aggregation takes, is then an unbiased estimate of ∇E[max of k] for any rewards, ties
    included; for rewards of 0 or 1 w(p) = k(1−p)^{k−1}. It is G times the paper's s^(loo−1) (eq.
    33), which is summed, and with k = G it is G times `Leader`. Advantages are 0 where fewer than k
    samples exist. Raises `Clash` as `Leader`, `CourseError` if k < 2 or G < k.
    Source: Walder & Karkhanis 2025 (2505.15201), eq. 33.
    """

    scope, reads = "group", ("returns", "empty")

    def __post_init__(self) -> None:
        require_number("PKPO.k", self.k, "a whole number ≥ 2", at_least=2, whole=True)

    @property
    def latex(self) -> str:
        return rf"\operatorname{{lead}}_{{{self.k}\text{{ of }}G}}"

    @property
    def text(self) -> str:
        return f"lead_{self.k}_of_G"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        ranked, rank, count = self._ranked(returns, rollout)
        others = all_within(rank, count - 1, self.k - 1)
        return self._placed(lead_of_k(ranked, others, self.k), advantage, rollout)


@dataclass(frozen=True)
class PassKTraining(_BestOfK):
    """Every k-subset of the group is one try, paid its best: A = (mean with the sample − mean)/std.

    Mean and std run over all k-subsets of the group, so that no subset need be drawn. With n
    samples of which c are right, R̄ = 1 − C(n−c, k)/C(n, k), σ = √(R̄(1−R̄)): a right sample gets
    (1 − R̄)/σ and a wrong one (1 − R̄ − C(n−c−1, k−1)/C(n−1, k−1))/σ. Advantages sum to 0 in every
    group, and are 0 where all subsets are paid the same, or fewer than k samples exist. Rewards
    need not be 0 or 1. k = 1 is the group's mean and std; with k = G there is one subset, and so
    nothing to learn. Raises `Clash` as `Leader`, `CourseError` if k < 1 or G < k.
    Source: Chen et al. 2025 (2508.10751).
    """

    scope, reads = "group", ("returns", "empty")

    def __post_init__(self) -> None:
        require_number("PassKTraining.k", self.k, "a whole number ≥ 1", at_least=1, whole=True)

    @property
    def latex(self) -> str:
        return rf"\operatorname{{whiten}}_{{\text{{best of }}{self.k}}}"

    @property
    def text(self) -> str:
        return f"whiten_best_of_{self.k}"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        ranked, rank, count = self._ranked(returns, rollout)
        within = all_within(rank, count, self.k)
        others = all_within(rank - 1, count - 1, self.k - 1)
        return self._placed(whitened_max(ranked, within, others), advantage, rollout)


@dataclass(frozen=True)
class EachReward(_Function):
    """Several rewards, each normalised in its group before they are added (GDPO).

    A = whiten_batch(Σ_k weight_k · (r_k − mean_group(r_k)) / (std_group(r_k) + eps)). Every reward
    then weighs as `weights` say (None: all the same), whatever its unit and however rarely it
    varies; added first, they have one std together. Whitening is over the samples of the batch.
    `ddof` and `eps` are those of `GroupStd`, for all stds; `eps` is above 0, since rewards that
    cancel leave rounding, which would be scaled up to 1. A reward that is equal throughout its
    group adds 0. It replaces the scale after a `GroupMean`, which it takes of each reward. The
    rewards are `Rollout.components`; without them there is one, `Rollout.reward`. Raises `Clash`
    beside another baseline, a credit per token or a KL in the reward, and `CourseError` if G = 1 or
    the number of weights is not that of the rewards. Source: GDPO 2026 (2601.05242).
    """

    scope, reads = "batch", ("components", "total_reward", "empty")
    symbol = r"\operatorname{each}_{k}"
    plain = "each_reward"
    weights: tuple[float, ...] | None = None
    ddof: int = 0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_spread(self, self.ddof, self.eps)
        require_number("EachReward.eps", self.eps, "a number > 0", above=0)
        if self.weights is not None:
            allowed = "None, or finite numbers, one for each reward"
            listed = isinstance(self.weights, tuple) and len(self.weights) > 0
            require(listed, "EachReward.weights", self.weights, allowed)
            for weight in self.weights:
                require_number("EachReward.weights", weight, allowed)

    def check(self, parts: Mapping[str, Part]) -> None:
        if not isinstance(parts["baseline"], GroupMean):
            raise self.clash(
                parts["baseline"], "it takes each reward's mean in its group; use GroupMean()"
            )
        if not parts["credit"].implied:
            raise self.clash(
                parts["credit"], "it compares whole returns, one per sample; use TotalReturn()"
            )
        if isinstance(getattr(parts["kl"], "place", None), InReward):
            raise self.clash(parts["kl"], "a KL in the reward is in none of the rewards")

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        exists, each = rollout.present, rollout.each_reward  # each reward [C, ..., Q, G]
        apart = each - mean_of(each, (-1,), exists)
        # the rewards are one more run axis, so that none sees another
        normal = apart * inverse_std(each, self.ddof, self.eps, exists)
        if self.weights is not None:
            given = len(self.weights)
            allowed = f"as many as the rollout's rewards, {len(each)}"
            require(given == len(each), "EachReward.weights", self.weights, allowed)
            weight = torch.tensor(self.weights, dtype=each.dtype, device=each.device)
            normal = normal * weight.reshape(-1, *(1,) * (each.dim() - 1))
        total = normal.sum(0).flatten(-2)  # all samples of the batch [..., Q·G]
        exists = None if exists is None else exists.flatten(-2)
        centred = total - mean_of(total, (-1,), exists)
        whitened = centred * inverse_std(total, self.ddof, self.eps, exists)
        return whitened.reshape(returns.shape).unsqueeze(-1).expand(advantage.shape)


@dataclass(frozen=True)
class PositivesTimes(_Function):
    """Positive advantages times `factor`, negative ones as they are.

    After `Constant(0.5)`, rewards of 0 or 1 are ±½. A factor of .1 is then W-REINFORCE, one of 0
    NSR, which learns from wrong answers alone. On policy, right and wrong answers each have the
    expected gradient ∇J/2, so that w(p) = (1 + factor)/2 whatever p: only the variance, and what
    a finite step does, tell them apart. The paper has ±1. Source: Zhu et al. 2025 (2506.01347).
    """

    scope = "token"
    factor: float = 0.1

    def __post_init__(self) -> None:
        require_number("PositivesTimes.factor", self.factor, "a number ≥ 0", at_least=0)

    @property
    def latex(self) -> str:
        return rf"\operatorname{{pos}}_{{\times {number(self.factor)}}}"

    @property
    def text(self) -> str:
        return f"pos×{self.factor:g}"

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return torch.where(advantage > 0, self.factor * advantage, advantage)
