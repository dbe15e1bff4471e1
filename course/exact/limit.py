"""The limit of large groups: G = ∞, where a group holds every outcome in exact proportion.

A rollout then holds each outcome once, and the parts that compare samples weight it by its
probability. Each part whose limit is known has a closed form here; for all others `in_the_limit`
raises `CourseError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import CourseError, require
from course.estimator import Estimator
from course.exact.outcomes import Outcomes, sampling_probability
from course.exact.view import Moments, View
from course.parts import (
    PKPO,
    Aggregation,
    Baseline,
    BatchMean,
    BatchStd,
    BelowMean,
    ConstantLength,
    DropSilentGroups,
    EachReward,
    GroupMean,
    GroupStd,
    GroupTokenMean,
    LeaveOneOut,
    LengthWeighted,
    MaxRL,
    OptimalToken,
    PassKTraining,
    SampleFilter,
    Scale,
    SequenceMean,
    SequenceSum,
    TokenMean,
    TokenWhitening,
)
from course.parts.base import Part
from course.parts.baseline import energy, silent, weighed_by
from course.parts.scale import Ranked, lead_of_k, whitened_max
from course.rollout import Rollout

GROUP, BATCH = (-1,), (-2, -1)


@typed
def in_the_limit(estimator: Estimator, outcomes: Outcomes) -> tuple[View, Moments]:
    """Coefficients and value for G → ∞; the covariance is 0 by the law of large numbers.

    Raises `CourseError` if the limit of a part is not known.
    """
    name = type(estimator).__name__
    allowed = (
        f"a whole number ≥ 1 for a {name}: a class derived from Estimator may compute anything"
    )
    require(type(estimator) is Estimator, "group_size", "inf", allowed)
    share = sampling_probability(outcomes).unsqueeze(0)  # [1, Q, K]
    parts: dict[str, Any] = {
        place: _limit(place, part, share) for place, part in estimator.parts.items()
    }
    view = View(dataclasses.replace(estimator, **parts), outcomes)
    kinds = torch.arange(view.kinds, device=share.device)
    seen = view.ask(kinds.expand(1, view.prompts, -1))
    size = outcomes.score.shape[-1]
    moments = Moments(seen.coefficient[0], share.new_zeros((size, size)), float(seen.value[0]))
    return view, moments


def _limit(place: str, part: Part, share: Tensor) -> Part:
    """The limit of a part; a part whose scope is a token or a sample stays the same."""
    make = LIMITS.get(type(part))  # not its subclasses, which may compute something else
    if make is not None:
        return make(part, share)
    near = all(piece.scope in ("token", "sample") for piece in part.pieces)
    if near and place != "aggregation":  # the weight of a sample always depends on all samples
        return part
    raise CourseError(
        f"group_size: got inf; allowed is a whole number ≥ 1, since the limit of {part.short} for"
        " large groups is not known"
    )


def _mean(values: Tensor, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Σ w x / Σ w over `dims` (kept with length 1); 0 where all weights are 0."""
    total = weight.sum(dims, keepdim=True)
    mean = (weight * values).sum(dims, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean, 0.0)


@dataclass(frozen=True, eq=False)
class _Mean(Baseline):
    """The expected return of the prompt or of all prompts, less `below`; with `by_length`, weighted
    by length.
    """

    share: Tensor
    dims: tuple[int, ...]
    by_length: bool = False
    below: float = 0.0

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        weight = self.share * (rollout.length if self.by_length else rollout.exists)
        mean = _mean(returns, weight, self.dims)
        mean = torch.where(silent(returns, self.dims, weight > 0), returns, mean)
        return mean.unsqueeze(-1) - self.below


@dataclass(frozen=True, eq=False)
class _Optimal(Baseline):
    """The expected return of the prompt, weighted by the squared length of the score."""

    share: Tensor

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        share = self.share.unsqueeze(-1)
        return weighed_by(share * energy(rollout), returns, (share > 0) & rollout.mask)


@dataclass(frozen=True, eq=False)
class _Std(Scale):
    """Divide by the standard deviation of the returns of the prompt, or of all prompts."""

    share: Tensor
    dims: tuple[int, ...]
    eps: float

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        weight = self.share * rollout.exists
        centred = returns - _mean(returns, weight, self.dims)
        std = _mean(centred**2, weight, self.dims).sqrt() + self.eps
        quiet = silent(returns, self.dims, weight > 0) | (std == 0)
        inverse = torch.where(quiet, 0.0, 1 / torch.where(quiet, 1.0, std))
        return advantage * inverse.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class _ByMean(Scale):
    """Divide by the expected return of the prompt; 0 where it is not above 0."""

    share: Tensor

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        mean = _mean(returns, self.share * rollout.exists, GROUP).unsqueeze(-1)
        return torch.where(mean > 0, advantage / torch.where(mean > 0, mean, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class _BestOfK(Scale):
    """What a sample adds to the best of k, the others drawn from the policy; `whitened` or not."""

    share: Tensor
    k: int
    whitened: bool

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        weight = self.share * rollout.exists
        total = weight.sum(GROUP, keepdim=True)
        ranked = Ranked.of(returns, (weight > 0).expand(returns.shape))
        # the probability of a return up to that of rank 1, 2, …
        share = (weight / torch.where(total > 0, total, 1.0)).expand(returns.shape)
        within = share.gather(-1, ranked.order).cumsum(-1)[..., :-1]
        others = within ** (self.k - 1)
        if self.whitened:
            found = whitened_max(ranked, within * others, others)
        else:
            found = lead_of_k(ranked, others, self.k)
        return found.masked_fill(~(weight > 0), 0.0).unsqueeze(-1).expand(advantage.shape)


@dataclass(frozen=True, eq=False)
class _Whitening(Scale):
    """Centre and scale by the mean and variance over all tokens."""

    share: Tensor
    eps: float

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        # the share of every chosen token, [1, Q, K, T]
        weight, dims = self.share.unsqueeze(-1) * rollout.mask, (-3, -2, -1)
        advantage = torch.where(weight > 0, advantage, 0.0)
        centred = advantage - _mean(advantage, weight, dims)
        variance = _mean(centred**2, weight, dims)
        flat, used = advantage.flatten(-3).unsqueeze(-1), (weight > 0).flatten(-3).unsqueeze(-1)
        quiet = silent(flat, (-2,), used).unsqueeze(-1) | (variance + self.eps == 0)
        return torch.where(
            quiet, 0.0, centred / torch.where(quiet, 1.0, variance + self.eps).sqrt()
        )


@dataclass(frozen=True, eq=False)
class _EachReward(Scale):
    """Each reward by its mean and std over the prompt; their sum by its own over the batch."""

    share: Tensor
    part: EachReward

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        weight = self.share * rollout.exists  # [1, Q, K]
        each = rollout.each_reward  # [C, 1, Q, K]
        weights = self.part.weights or (1.0,) * len(each)
        normal = (self._normalised(reward, weight, GROUP) for reward in each)
        total = torch.stack([w * x for w, x in zip(weights, normal, strict=True)]).sum(0)
        scaled = self._normalised(total, weight, BATCH)
        return scaled.unsqueeze(-1).expand(advantage.shape)

    def _normalised(self, values: Tensor, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
        centred = values - _mean(values, weight, dims)
        std = _mean(centred**2, weight, dims).sqrt() + self.part.eps
        quiet = silent(values, dims, weight > 0) | (std == 0)
        return torch.where(quiet, 0.0, centred / torch.where(quiet, 1.0, std))


@dataclass(frozen=True, eq=False)
class _Weight(Aggregation):
    """The weight within a sample, times the sample's share of all samples."""

    share: Tensor
    part: Aggregation

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        share = self.share.unsqueeze(-1)
        own = self.part(mask, limit, dtype) * self.part.samples(mask)  # without the factor 1/N
        counted = share * (mask.any(-1, keepdim=True) | self.part.count_empty)
        total = counted.sum((-3, -2, -1), keepdim=True)
        return share * own / torch.where(total > 0, total, 1.0)


@dataclass(frozen=True, eq=False)
class _TokenWeight(Aggregation):
    """The token's share of all tokens of a prompt or of the batch; prompts that have some alike."""

    share: Tensor
    axes: tuple[int, ...]

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        counted = self.share.unsqueeze(-1) * mask
        total = counted.sum([axis - 1 for axis in self.axes] + [-1], keepdim=True)
        among = (total > 0).sum(-3, keepdim=True).clamp(min=1)
        return counted / (torch.where(total > 0, total, 1.0) * among)


@dataclass(frozen=True, eq=False)
class _NoSilent(SampleFilter):
    """Drop prompts whose outcomes all have the same reward."""

    share: Tensor

    def __call__(self, rollout: Rollout) -> Tensor:
        possible = (self.share > 0) & rollout.exists
        return ~silent(rollout.total_reward, GROUP, possible).expand(self.share.shape)


LIMITS: dict[type[Part], Callable[[Any, Tensor], Part]] = {
    GroupMean: lambda part, share: _Mean(share, GROUP),
    LeaveOneOut: lambda part, share: _Mean(share, GROUP),
    BelowMean: lambda part, share: _Mean(share, GROUP, below=part.by),
    LengthWeighted: lambda part, share: _Mean(share, GROUP, by_length=True),
    OptimalToken: lambda part, share: _Optimal(share),
    BatchMean: lambda part, share: _Mean(share, BATCH),
    GroupStd: lambda part, share: _Std(share, GROUP, part.eps),
    BatchStd: lambda part, share: _Std(share, BATCH, part.eps),
    EachReward: lambda part, share: _EachReward(share, part),
    MaxRL: lambda part, share: _ByMean(share),
    PKPO: lambda part, share: _BestOfK(share, part.k, whitened=False),
    PassKTraining: lambda part, share: _BestOfK(share, part.k, whitened=True),
    TokenWhitening: lambda part, share: _Whitening(share, part.eps),
    SequenceSum: lambda part, share: _Weight(share, part),
    SequenceMean: lambda part, share: _Weight(share, part),
    ConstantLength: lambda part, share: _Weight(share, part),
    TokenMean: lambda part, share: _TokenWeight(share, BATCH),
    GroupTokenMean: lambda part, share: _TokenWeight(share, GROUP),
    DropSilentGroups: lambda part, share: _NoSilent(share),
}
