"""Baselines: what is subtracted from a sample's return to give its advantage.

A baseline that does not depend on the sample itself leaves E[ĝ] unchanged. A baseline that does (a
mean that includes the sample) shrinks E[ĝ]. Each baseline returns b, which broadcasts against the
credit [..., Q, G, T].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import CourseError, require, require_number
from course.parts.base import Part, number
from course.rollout import Rollout, where_read


@dataclass(frozen=True)
class Baseline(Part):
    """Returns R [..., Q, G] → b, a number or a tensor that broadcasts to [..., Q, G, T].

    `symbol` is the LaTeX of b alone.
    """

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor | float:
        raise NotImplementedError


def extremes(
    returns: Tensor, dims: tuple[int, ...] = (-1,), exists: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The smallest and the largest along `dims`, kept with length 1, of the samples that exist
    (None: all); ∞ and −∞ where none does.
    """
    if exists is None:
        return returns.amin(dims, keepdim=True), returns.amax(dims, keepdim=True)
    low = returns.masked_fill(~exists, torch.inf)
    high = returns.masked_fill(~exists, -torch.inf)
    return low.amin(dims, keepdim=True), high.amax(dims, keepdim=True)


def silent(returns: Tensor, dims: tuple[int, ...] = (-1,), exists: Tensor | None = None) -> Tensor:
    """True where all returns along `dims` are equal: zero-variance groups, which teach nothing.

    Also True where fewer than two samples exist (`exists` [..., Q, G] bool; None means that all
    do). `dims` are kept with length 1.

    The test is max = min, not a small spread: the mean of seven float32 0.7s is not 0.7 (claim 23).
    """
    low, high = extremes(returns, dims, exists)
    return high <= low


def mean_of(returns: Tensor, dims: tuple[int, ...], exists: Tensor | None = None) -> Tensor:
    """Mean over `dims` (kept with length 1) of the samples that exist; 0 where none does."""
    if exists is None:
        alone = all(returns.shape[dim] == 1 for dim in dims)
        return returns if alone else returns.mean(dims, keepdim=True)
    total = torch.where(exists, returns, torch.zeros_like(returns)).sum(dims, keepdim=True)
    return total / exists.sum(dims, keepdim=True).clamp(min=1)


def mean_baseline(
    returns: Tensor, dims: tuple[int, ...] = (-1,), exists: Tensor | None = None
) -> Tensor:
    """Mean over `dims` of the samples that exist: [..., Q, G] → [..., Q, G].

    Where all of them are equal, b is that very number, so that A is exactly 0.
    """
    return torch.where(silent(returns, dims, exists), returns, mean_of(returns, dims, exists))


def leave_one_out(returns: Tensor, exists: Tensor | None = None) -> Tensor:
    """b_i = (Σ_j R_j − R_i) / (G − 1): [..., G] → [..., G], over the samples that exist.

    Source: Kool et al. 2019; Ahmadian et al. 2024, eq. 9. eq:leave-one-out-baseline
    """
    group: Tensor | int = returns.shape[-1]
    counted = returns
    if exists is not None:
        group = exists.sum(-1, keepdim=True).clamp(min=2)
        counted = torch.where(exists, returns, torch.zeros_like(returns))
    others = (counted.sum(-1, keepdim=True) - returns) / (group - 1)
    return torch.where(silent(returns, exists=exists), returns, others)


def length_weighted(returns: Tensor, length: Tensor) -> Tensor:
    """b = Σ_j |o_j| R_j / Σ_j |o_j| over the group: [..., G] → [..., 1].

    `length` [..., G] counts chosen tokens. Source: Hao et al. 2025 (OPO), eq. 8.
    """
    weight = length.to(returns.dtype)
    mean = (weight * returns).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(silent(returns, exists=length > 0), returns, mean)


def energy(rollout: Rollout) -> Tensor:
    """W_{i,t} = Σ_{j≤t} (1 − 2π_j + Σ_v π_v²) of each chosen token, [..., Q, G, T]; 0 elsewhere.

    1 − 2π + Σ_v π_v² is ‖∇log π‖² by the logits of one token.
    """
    assert rollout.old_log_dist is not None
    mask, zero = rollout.mask, torch.zeros_like(rollout.reward)
    squares = (2 * where_read(rollout.old_log_dist, mask)).exp().sum(-1)
    chosen = torch.where(mask, rollout.log_prob, zero).exp()
    own = torch.where(mask, 1 - 2 * chosen + squares, zero).clamp(min=0)
    return torch.where(mask, own.cumsum(-1), zero)


def weighed_by(weight: Tensor, returns: Tensor, exists: Tensor) -> Tensor:
    """Σ_i w_{i,t} R_i / Σ_i w_{i,t} over the group: w [..., Q, G, T], R [..., Q, G] → as w.

    Where the returns of the samples that exist (`exists` [..., Q, G, T]) are all equal, or no
    weight is above 0, it is R_i itself.
    """
    paid = returns.unsqueeze(-1).expand(weight.shape)
    total = weight.sum(-2, keepdim=True)
    mean = (weight * paid).sum(-2, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(silent(paid, (-2,), exists) | (total <= 0), paid, mean)


def need_group(part: Part, returns: Tensor, least: int = 2) -> None:
    """Raise `CourseError` if G < `least`, since this part compares the samples of a group."""
    group = returns.shape[-1]
    if group < least:
        raise CourseError(
            f"{part.short}: got G = {group} sample{'s' if group > 1 else ''} per prompt; allowed is"
            f" G ≥ {least}, since it compares the samples of a group"
        )


@dataclass(frozen=True)
class NoBaseline(Baseline):
    """b = 0 (Williams 1992)."""

    scope, implied = "token", True
    plain = "0"
    symbol = "0"

    def __call__(self, returns: Tensor, rollout: Rollout) -> float:
        return 0.0


@dataclass(frozen=True)
class Constant(Baseline):
    """One number for every sample: E[(R − b)·∇log π] = ∇J for any b. eq:constant-baseline"""

    scope = "token"
    b: float = 0.0

    def __post_init__(self) -> None:
        require_number("Constant.b", self.b, "a finite number")

    @property
    def latex(self) -> str:
        return number(self.b)

    @property
    def text(self) -> str:
        return f"{self.b:g}"

    def __call__(self, returns: Tensor, rollout: Rollout) -> float:
        return self.b


@dataclass(frozen=True)
class BatchMean(Baseline):
    """The mean return of the whole batch, one number for all prompts. eq:batch-mean-baseline

    The mean includes the sample itself. Raises `CourseError` for a batch of one sample.
    """

    scope, reads = "batch", ("returns", "empty")
    symbol = r"\operatorname{mean}_{\text{batch}}(R)"
    plain = "mean_batch(R)"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        require(
            returns.shape[-2:].numel() > 1,
            "BatchMean",
            1,
            "a batch of at least two samples: one alone is never better than its mean",
        )
        return mean_baseline(returns, (-2, -1), rollout.present).unsqueeze(-1)


@dataclass(frozen=True)
class GroupMean(Baseline):
    """The mean return of the prompt's group, an estimate of V(q). eq:group-mean-baseline

    The mean includes the sample itself, so E[ĝ] shrinks by the factor (G − 1)/G. Raises
    `CourseError` if G = 1. Source: Shao et al. 2024, §4.1.1.
    """

    scope, reads = "group", ("returns", "empty")
    symbol = r"\operatorname{mean}_{j\le G}(R_j)"
    plain = "mean_group(R)"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return mean_baseline(returns, exists=rollout.present).unsqueeze(-1)


@dataclass(frozen=True)
class BelowMean(Baseline):
    """The group mean less a constant: praise weighs more than blame (AsymRE).

    On policy a constant changes E[ĝ] by nothing. On stale samples without a ratio it decides: they
    push with Σ_a π_old(a)(R_a − b) = `by` towards what was sampled, so that the policy rests at
    π_old(R − b)/`by` if b is below every arm's expected R; at `by` ≤ 0 nothing stops it.

    Raises `CourseError` if G = 1. Source: Arnal et al. 2025 (2506.20520).
    """

    scope, reads = "group", ("returns", "empty")
    by: float = 0.1

    def __post_init__(self) -> None:
        require_number("BelowMean.by", self.by, "a finite number, in the unit of the reward")

    @property
    def latex(self) -> str:
        return rf"\left(\operatorname{{mean}}_{{j\le G}}(R_j)-{number(self.by)}\right)"

    @property
    def text(self) -> str:
        return f"(mean_group(R) − {self.by:g})"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return mean_baseline(returns, exists=rollout.present).unsqueeze(-1) - self.by


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """The mean return of the other samples of the group, which keeps E[ĝ] unbiased (RLOO).

    Raises `CourseError` if G = 1. Source: Kool et al. 2019; Ahmadian et al. 2024.
    """

    scope, reads = "group", ("returns", "empty")
    symbol = r"\operatorname{mean}_{j\ne i}(R_j)"
    plain = "mean_others(R)"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return leave_one_out(returns, rollout.present).unsqueeze(-1)


@dataclass(frozen=True)
class Value(Baseline):
    """The critic's value, as stored in the rollout. eq:value-baseline

    The critic may be a running mean (the smallest one) or a value head of the model (the largest).
    """

    scope = "token"
    needs = ("value",)
    symbol = r"V_{i,t}"
    plain = "V_t"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.value is not None
        return rollout.value


@dataclass(frozen=True)
class Greedy(Baseline):
    """The reward of the greedy answer to the same prompt (ReMax: Li et al. 2023, algorithm 2)."""

    scope = "token"
    needs = ("greedy_reward",)
    symbol = r"r(\arg\max\pi)"
    plain = "r(greedy)"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.greedy_reward is not None
        return rollout.greedy_reward[..., None, None]


@dataclass(frozen=True)
class LengthWeighted(Baseline):
    """The group mean weighted by length (OPO: Hao et al. 2025).

    It estimates the baseline of least variance if ‖∇log π(o)‖² is proportional to the length.
    Raises `CourseError` if G = 1.
    """

    scope, reads = "group", ("returns", "length")
    symbol = r"\frac{\sum_j |o_j|R_j}{\sum_j |o_j|}"
    plain = "Σ|o|R/Σ|o|"

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return length_weighted(returns, rollout.length).unsqueeze(-1)


@dataclass(frozen=True)
class OptimalToken(Baseline):
    """B_t = Σ_i R_i W_{i,t} / Σ_i W_{i,t} over the group, W_{i,t} = Σ_{j≤t} (1 − 2π_j + Σ_v π_v²).

    1 − 2π + Σ_v π_v² is ‖∇log π‖² by the logits of a token, so that W is the squared length of the
    score up to it where tokens share no logits, and B the baseline of least variance for it. At
    T = 1 it is the textbook's E[‖s‖²R]/E[‖s‖²]. Only samples that have a token t count in B_t;
    where their returns are equal, or one alone is left, the advantage is 0. It includes the sample
    itself. Raises `Clash` with a credit per token, `CourseError` if G = 1. Source: Li et
    al. 2026 (2602.07078); verl's `optimal_token_baseline`.
    """

    scope, reads = "group", ("returns", "mask", "log_prob", "old_log_dist")
    needs = ("old_log_dist",)
    symbol = r"\frac{\sum_j W_{j,t}R_j}{\sum_j W_{j,t}}"
    plain = "Σ_j W_t R/Σ_j W_t"

    def check(self, parts: Mapping[str, Part]) -> None:
        if not parts["credit"].implied:
            raise self.clash(
                parts["credit"], "it weighs whole returns, one per sample; use TotalReturn()"
            )

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return weighed_by(energy(rollout), returns, rollout.mask)
