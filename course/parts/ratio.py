"""Ratio: the importance ratio ρ = π/π_old, as log ρ, per token or per sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.errors import require_flag
from course.parts.base import Part


@dataclass(frozen=True)
class RatioLevel(Part):
    """log π − log π_old and the mask → log ρ, all [..., Q, G, T].

    log π − log π_old is 0 where the mask is False.
    """

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


def times_ratio(log_ratio: Tensor, factor: Tensor) -> Tensor:
    """ρ · factor, elementwise; exactly 0 where the factor is 0, however large ρ is.

    Otherwise exp could overflow there, and 0·∞ is NaN, in the value or in the gradient.
    """
    largest = math.log(torch.finfo(log_ratio.dtype).max) - 1
    # bounded before exp, since a ρ that is multiplied by 0 does not matter
    unused = (factor == 0) & (log_ratio > largest)
    return log_ratio.masked_fill(unused, largest).exp() * factor


def sequence_level(log_ratio: Tensor, log_sequence: Tensor) -> Tensor:
    """log of sg[s]·π_t/sg[π_t], which has the sequence's value s and each token's own gradient.

    `log_ratio` [..., T] and `log_sequence` = log s [..., 1] → [..., T]. The gradients sum over t to
    s·∇log π(sequence), so the aggregation alone decides how tokens are weighted. Source: Zheng et
    al. 2025 (GSPO), eq. 14 ("GSPO-token").
    """
    return log_sequence.detach() + (log_ratio - log_ratio.detach())


@dataclass(frozen=True)
class _SequenceLevel(RatioLevel):
    """A ratio s per sequence; `whole` decides which gradient each token's copy of s carries.

    `whole` False: token t has the value s and its own gradient, sg[s]·π_t/sg[π_t]
    (`sequence_level`). `whole` True: every token has s itself, with the gradient of all tokens
    (GSPO: Zheng et al. 2025, eq. 5; TRL).

    For the length-normalised ratio under `SequenceMean` the two agree. `whole` with the product and
    `SequenceMean` gives s·A per sample, in value and in gradient (TRL's RLOO). A KL that is
    multiplied by ρ per token then moves all tokens of the sequence.
    """

    whole: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require_flag(f"{type(self).__name__}.whole", self.whole)

    @property
    def latex(self) -> str:
        return self.symbol + (r"\;\text{(with the gradient of all tokens)}" if self.whole else "")

    @property
    def text(self) -> str:
        return self.plain + (" (with the gradient of all tokens)" if self.whole else "")

    def log_sequence(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """log s [..., 1] from log π − log π_old [..., T], which is 0 where the mask is False."""
        raise NotImplementedError

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        if log_ratio.shape[-1] == 1:
            return log_ratio
        log_sequence = self.log_sequence(log_ratio, mask)
        return (
            log_sequence.expand(log_ratio.shape)
            if self.whole
            else sequence_level(log_ratio, log_sequence)
        )


@dataclass(frozen=True)
class TokenRatio(RatioLevel):
    """ρ_t = π(o_t)/π_old(o_t), one ratio per token (PPO on tokens; Shao et al. 2024, eq. 3)."""

    scope, implied = "token", True
    symbol = r"\rho_{i,t}=\frac{\pi_\theta(o_{i,t})}{\pi_{\text{old}}(o_{i,t})}"
    plain = "ρ = π/π_old per token"

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio


@dataclass(frozen=True)
class SequenceRatio(_SequenceLevel):
    """ρ = π(o)/π_old(o), the product of the token ratios (`eq:sequence-ratio`).

    This is the ratio for which importance sampling of whole answers is unbiased.
    """

    scope = "sample"
    symbol = r"\rho_{i,t}=\frac{\pi_\theta(o_i)}{\pi_{\text{old}}(o_i)}"
    plain = "ρ = π/π_old per sequence"

    def log_sequence(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio.sum(-1, keepdim=True)


@dataclass(frozen=True)
class SequenceMeanRatio(_SequenceLevel):
    """s = (π(o)/π_old(o))^{1/|o|}, the geometric mean of the token ratios.

    Source: Zheng et al. 2025 (GSPO), eq. 7.
    """

    scope = "sample"
    symbol = r"\rho_{i,t}=\left(\frac{\pi_\theta(o_i)}{\pi_{\text{old}}(o_i)}\right)^{1/|o_i|}"
    plain = "ρ = (π/π_old)^(1/|o|) per sequence"

    def log_sequence(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
