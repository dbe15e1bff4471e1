"""Scale: what the advantage is divided by: nothing, a spread, or the group's mean.

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
from course.parts.baseline import NoBaseline, extremes, mean_of, need_group
from course.parts.credit import GAE
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
class Leader(_Function):
    """The best sample of the group gets R₁ − R₂, the others 0: what is maximised is E[max of G].

    Summed over the group, E[Σ_i A_i ∇log π(o_i)] = ∇E[max_i R_i] for any rewards, ties included,
    since R₁ − R₂ is what the maximum would lose without the leader. It replaces baseline and scale
    at once. Raises `Clash` beside another baseline or a credit per token, and `CourseError` if
    G = 1. Source: Tang et al. 2025 (2503.19595).
    """

    scope, reads = "group", ("returns", "empty")
    symbol = r"\operatorname{lead}_{j\le G}"
    plain = "lead_group"

    def check(self, parts: Mapping[str, Part]) -> None:
        if not isinstance(parts["baseline"], NoBaseline):
            raise self.clash(
                parts["baseline"], "the second best is its baseline already; use NoBaseline()"
            )
        if not parts["credit"].implied:
            raise self.clash(
                parts["credit"], "it compares whole returns, one per sample; use TotalReturn()"
            )

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        need_group(self, returns)
        return lead(returns, rollout.present).unsqueeze(-1).expand(advantage.shape)
