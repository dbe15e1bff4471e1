"""Ratio: how far the policy has moved from the one that sampled, log ρ, per token or
per sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.errors import require_flag
from course.parts.base import Part


@dataclass(frozen=True)
class RatioLevel(Part):
    """log π − log π_old [..., Q, G, T] (0 where the mask is False) and the mask → log ρ [..., Q, G,
    T].
    """

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


def times_ratio(log_ratio: Tensor, factor: Tensor) -> Tensor:
    """ρ · factor, elementwise, with 0 for a factor of 0 however large ρ is.

    exp would overflow there, and 0·∞ is NaN, in the value or in the gradient.
    """
    largest = math.log(torch.finfo(log_ratio.dtype).max) - 1
    # selected before exp: what is multiplied by 0 need not be known
    used = torch.where(factor == 0, log_ratio.clamp(max=largest), log_ratio)
    return used.exp() * factor


def sequence_level(log_ratio: Tensor, log_sequence: Tensor) -> Tensor:
    """log of sg[s]·π_t/sg[π_t]: the sequence's number s for every token, each token's own gradient.
    [..., T] → [..., T].

    So aggregation alone decides the weighting, and Σ_t of the gradients is s·∇log π(sequence).
    Zheng et al. 2025 (GSPO), eq. 14 ("GSPO-token").
    """
    return log_sequence.detach() + (log_ratio - log_ratio.detach())


@dataclass(frozen=True)
class _SequenceLevel(RatioLevel):
    """`whole` False: token t carries the sequence's number and its own gradient, sg[s]·π_t/sg[π_t]
    (`sequence_level`).

    True: every token carries s itself, with the gradient of all tokens (GSPO: Zheng et al. 2025,
    eq. 5; TRL). For the length-normalised ratio under `SequenceMean` both are one; `whole` with the
    product and `SequenceMean` is s·A per sample in value and in gradient (TRL's RLOO), and what is
    multiplied by ρ per token (a KL) then moves all tokens.
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
        """log s [..., 1] of log π − log π_old [..., T], 0 where the mask is False."""
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
    """ρ_t = π(token)/π_old(token) (PPO on tokens; Shao et al. 2024, eq. 3)."""

    scope = "token"
    symbol = r"\rho_{i,t}=\frac{\pi_\theta(o_{i,t})}{\pi_{\text{old}}(o_{i,t})}"
    plain = "ρ = π/π_old per token"

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio


@dataclass(frozen=True)
class SequenceRatio(_SequenceLevel):
    """ρ = π(o)/π_old(o): the product over the tokens, which is what importance sampling asks for
    (`eq:sequence-ratio`).
    """

    scope = "sample"
    symbol = r"\rho_{i,t}=\frac{\pi_\theta(o_i)}{\pi_{\text{old}}(o_i)}"
    plain = "ρ = π/π_old per sequence"

    def log_sequence(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio.sum(-1, keepdim=True)


@dataclass(frozen=True)
class SequenceMeanRatio(_SequenceLevel):
    """s = (π(o)/π_old(o))^{1/|o|}: the geometric mean over the tokens (GSPO: Zheng et al. 2025, eq.
    7).
    """

    scope = "sample"
    symbol = r"\rho_{i,t}=\left(\frac{\pi_\theta(o_i)}{\pi_{\text{old}}(o_i)}\right)^{1/|o_i|}"
    plain = "ρ = (π/π_old)^(1/|o|) per sequence"

    def log_sequence(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
