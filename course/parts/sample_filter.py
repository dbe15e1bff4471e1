"""Sample filters: which samples, or which of their tokens, count in the objective.

A filter does not change advantages: they are computed from all samples of the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from course.errors import require_number
from course.parts.base import Part, number
from course.parts.baseline import silent
from course.rollout import Rollout


@dataclass(frozen=True)
class SampleFilter(Part):
    """Rollout → [..., Q, G] bool, True where the sample counts; None means that all count.

    A filter reads raw rewards, lengths and truncation, not advantages.
    """

    def __call__(self, rollout: Rollout) -> Tensor | None:
        raise NotImplementedError


@dataclass(frozen=True)
class AllSamples(SampleFilter):
    """Every sample counts."""

    scope, implied = "token", True
    plain = "all"
    symbol = r"\text{all samples}"

    def __call__(self, rollout: Rollout) -> None:
        return None


@dataclass(frozen=True)
class DropSilentGroups(SampleFilter):
    """Drop zero-variance groups, in which all samples have the same raw reward.

    This is DAPO's dynamic sampling (Yu et al. 2025, eq. 11) without the refill by new prompts.
    """

    scope, reads = "group", ("total_reward", "empty")
    plain = "drop silent groups"
    symbol = r"\text{groups with }\max R\ne\min R"

    def __call__(self, rollout: Rollout) -> Tensor:
        score = rollout.total_reward
        return ~silent(score, exists=rollout.present).expand(score.shape)


@dataclass(frozen=True)
class DropTruncated(SampleFilter):
    """Drop samples that were cut off at the generation limit.

    The paper calls it overlong filtering (Yu et al. 2025, §3.4).
    """

    scope = "sample"
    needs = ("truncated",)
    plain = "drop truncated"
    symbol = r"\text{samples that ended}"

    def __call__(self, rollout: Rollout) -> Tensor:
        assert rollout.truncated is not None
        return torch.logical_not(rollout.truncated)


class Tokens(NamedTuple):
    """What a filter on tokens sees at an update: all [..., Q, G, T], 0 where `mask` is False.

    Nothing here carries a gradient.
    """

    mask: Tensor  # bool: the chosen tokens that have a weight
    advantage: Tensor
    log_prob: Tensor  # log π, in nats
    log_ratio: Tensor  # log π − log π_old, of each token alone
    log_drift: Tensor  # log π − log μ, μ the sampler; without one, the same as log_ratio
    flat: Tensor  # bool: where the surrogate is flat already, as beyond the clip
    entropy: (
        Tensor | None
    )  # of the policy at each token, in nats; None unless the filter needs log_dist


@dataclass(frozen=True)
class TokenFilter(SampleFilter):
    """Keeps all samples, and chooses among their tokens anew at each update, by `tokens`.

    A dropped token loses its surrogate. Its KL, entropy bonus and value loss stay, and so do the
    weights: the divisor counts the dropped tokens too, as in TRL and verl. "The batch" of a filter
    of scope "batch" is the minibatch of one update, for each run by itself, since the policy has
    moved by the next. The objectives of its minibatches do not add up to that of the batch.
    """

    def __call__(self, rollout: Rollout) -> None:
        return None

    def tokens(self, seen: Tokens) -> Tensor:
        """[..., Q, G, T] bool: True where the token counts; where the mask is False, anything."""
        raise NotImplementedError


def largest_last(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The values of each run in rising order, and how many they are.

    values [..., Q, G, T] where `among` is True → [..., N] with N = Q·G·T, filled up with ∞, and
    [..., 1].
    """
    ordered = values.masked_fill(~among, torch.inf).flatten(-3).sort(-1).values
    return ordered, among.flatten(-3).sum(-1, keepdim=True)


def quantile(values: Tensor, among: Tensor, share: float) -> Tensor:
    """The quantile of each run's values where `among` is True: [..., Q, G, T] → [..., 1, 1, 1].

    Between two values it is interpolated, as in `torch.quantile`. ∞ where a run has none.
    """
    ordered, count = largest_last(values, among)
    place = share * (count - 1).clamp(min=0).to(values.dtype)
    below = place.floor()
    here, above = (ordered.gather(-1, at.long()) for at in (below, place.ceil()))
    between = torch.where(here == above, here, here + (place - below) * (above - here))
    return between[..., None, None]


def run_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each run over the tokens of the mask: [..., Q, G, T] → [..., 1, 1, 1]."""
    dims = (-3, -2, -1)
    total = torch.where(mask, values, torch.zeros_like(values)).sum(dims, keepdim=True)
    return total / mask.sum(dims, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class HighEntropy(TokenFilter):
    """Keep the `share` of the batch's tokens at which the policy has the most entropy.

    Kept are all tokens from the quantile 1 − share on, and those that equal it. Source: Wang et al.
    2025 (beyond the 80/20 rule); TRL calls it `top_entropy_quantile`.
    """

    scope, reads = "batch", ("entropy", "mask")
    policy_needs = ("log_dist",)
    share: float = 0.2

    def __post_init__(self) -> None:
        allowed = "a number from 0 to 1"
        require_number("HighEntropy.share", self.share, allowed, at_least=0, at_most=1)

    @property
    def latex(self) -> str:
        return rf"\text{{tokens with }}\mathcal H_{{i,t}}\text{{ in the top }}{number(self.share)}"

    @property
    def text(self) -> str:
        return f"tokens with H in the top {self.share:g}"

    def tokens(self, seen: Tokens) -> Tensor:
        assert seen.entropy is not None
        return seen.entropy >= quantile(seen.entropy, seen.mask, 1 - self.share)


@dataclass(frozen=True)
class ClipCov(TokenFilter):
    """Drop a few of the tokens whose log π and advantage go together most, which cost most entropy.

    A token's covariance is (A − mean A)(log π − mean log π), with the means over the batch's
    tokens. Candidates are the tokens with a covariance between `low` and `high`, where the
    surrogate is not flat already. Of these, n are dropped: `share` of the batch's tokens, rounded
    down, but at least one.

    The paper draws the n at random from the candidates. Here they are the n largest, and any others
    equal to the smallest of these: so a rollout has one loss, whatever the order of its samples.
    The two agree where the candidates are no more than n. Source: Cui et al. 2025; verl's
    `loss_mode=clip_cov`, whose defaults these are.
    """

    scope, reads = "batch", ("advantage", "log_prob", "flat", "mask")
    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        allowed = "a number from 0 to 1"
        require_number("ClipCov.share", self.share, allowed, at_least=0, at_most=1)
        require_number("ClipCov.low", self.low, "a finite number")
        allowed = f"a number above low = {self.low:g}"
        require_number("ClipCov.high", self.high, allowed, above=self.low)

    @property
    def latex(self) -> str:
        return (
            rf"\text{{tokens but the top }}{number(self.share)}\text{{ in }}"
            rf"(A_{{i,t}}-\bar A)(\log\pi_\theta-\overline{{\log\pi_\theta}})"
            rf"\in({number(self.low)},{number(self.high)})"
        )

    @property
    def text(self) -> str:
        return (
            f"tokens but the top {self.share:g} in (A − mean)(log π − mean) from {self.low:g} to"
            f" {self.high:g}"
        )

    def tokens(self, seen: Tokens) -> Tensor:
        mask = seen.mask
        centred = (x - run_mean(x, mask) for x in (seen.advantage, seen.log_prob))
        covariance = torch.stack(list(centred)).prod(0)
        candidate = mask & ~seen.flat & (covariance > self.low) & (covariance < self.high)
        ordered, count = largest_last(covariance, candidate)
        tokens = mask.flatten(-3).sum(-1, keepdim=True)
        dropped = (self.share * tokens.double()).long().clamp(min=1)
        # the smallest that is dropped; if there are fewer candidates, all of them are
        smallest = ordered.gather(-1, (count - dropped).clamp(min=0))[..., None, None]
        # of two tokens both have the same covariance, but for its rounding
        rounding = 16 * torch.finfo(covariance.dtype).eps * covariance.abs()
        return ~(candidate & (covariance >= smallest - rounding))


@dataclass(frozen=True)
class SecondMoment(TokenFilter):
    """Drop the tokens that moved farthest, until the mean (log ρ)² of the others is ≤ `tau` (M2PO).

    Tokens that moved equally far go together. It bounds what the batch's kept tokens have moved in
    the mean, where the clip bounds each alone. AReaL asks for a mean below τ, compares π_old with μ
    and keeps at least one token; here none may be left. Source: Zheng, Zhao & Chen 2025 (M2PO,
    2510.01161), τ = .04.
    """

    scope, reads = "batch", ("log_ratio", "mask")
    tau: float = 0.04

    def __post_init__(self) -> None:
        require_number("SecondMoment.tau", self.tau, "a number > 0, in nats²", above=0)

    @property
    def latex(self) -> str:
        bound = number(self.tau)
        return rf"\text{{tokens with the least }}|\log\rho|,\;\overline{{\log^2\rho}}\le {bound}"

    @property
    def text(self) -> str:
        return f"tokens with the least |log ρ|, mean (log ρ)² ≤ {self.tau:g}"

    def tokens(self, seen: Tokens) -> Tensor:
        squares = seen.log_ratio**2
        ordered, _ = largest_last(squares, seen.mask)
        number_of = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
        # the means of the 1, 2, 3, … smallest never fall: what follows the first above τ is dropped
        fits = ordered.cumsum(-1) / number_of <= self.tau
        following = torch.nn.functional.pad(ordered, (0, 1), value=torch.inf)
        bound = following.gather(-1, fits.cumprod(-1).sum(-1, keepdim=True))
        return squares < bound[..., None, None]


@dataclass(frozen=True)
class OffPolicySequences(TokenFilter):
    """Drop tokens with A < 0 of samples that the policy has left: mean_t log(μ/π) > `threshold`.

    μ is the policy that sampled: π_old, unless the rollout has a `sampler_log_prob`. The mean, in
    nats per token, is over the sample's chosen tokens. It looks at one sample alone, so minibatches
    add up. Source: DeepSeek-V3.2 2025, eq. 9; TRL calls it
    `off_policy_mask_threshold`.
    """

    scope = "sample"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        allowed = "a number ≥ 0, in nats per token"
        require_number("OffPolicySequences.threshold", self.threshold, allowed, at_least=0)

    @property
    def latex(self) -> str:
        return (
            r"A_{i,t}\ge0\text{ or }\operatorname{mean}_t\log\frac{\mu}{\pi_\theta}\le "
            + number(self.threshold)
        )

    @property
    def text(self) -> str:
        return f"A ≥ 0 or mean_t log(μ/π) ≤ {self.threshold:g}"

    def tokens(self, seen: Tokens) -> Tensor:
        count = seen.mask.sum(-1, keepdim=True).clamp(min=1)
        left = -seen.log_drift.sum(-1, keepdim=True) / count
        return (seen.advantage >= 0) | (left <= self.threshold)
