"""Surrogate: the objective per token, made of ρ, log π and A.

The clip of PPO lives here: see `clipped_surrogate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from course.errors import require_number
from course.parts.base import Part, number
from course.parts.ratio import times_ratio


@dataclass(frozen=True)
class Surrogate(Part):
    """log ρ, log π, A, all [..., Q, G, T] → what is maximised, [..., Q, G, T].

    `uses_ratio` False says that ρ does not appear in it, and the equation then leaves ρ out.
    """

    uses_ratio: ClassVar[bool] = True

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        raise NotImplementedError

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """[..., Q, G, T] bool: where this surrogate is flat in ρ, so that the token pushes no more
        (A ≠ 0).
        """
        return torch.zeros_like(advantage, dtype=torch.bool)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A), elementwise (`eq:clipped-surrogate`).

    Schulman et al. 2017 (PPO), eq. 7.

    Flat for A > 0 above 1 + ε_high and for A < 0 below 1 − ε_low; a lower bound of ρA everywhere
    (`eq:clip-lower-bound`).
    """
    return torch.minimum(
        ratio * advantage, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantage
    )


def bounded(log_ratio: Tensor, advantage: Tensor, praised: float, blamed: float) -> Tensor:
    """log ρ, but at most one nat above the ρ beyond which a term is flat: `praised` where A ≥ 0,
    `blamed` where A < 0 (∞: nowhere). The term and its gradient stay what they are.

    Without the bound exp overflows, and ∞ times the slope 0 comes back as NaN in the gradient.
    """
    ceiling = torch.where(advantage < 0, math.log(blamed) + 1, math.log(praised) + 1)
    return torch.minimum(log_ratio, ceiling.to(log_ratio.dtype))


def weighed(log_prob: Tensor, weight: Tensor) -> Tensor:
    """weight · log π, elementwise, with 0 for a weight of 0 also where log π = −∞."""
    return weight * torch.where(weight == 0, weight, log_prob)


def soft_gate(ratio: Tensor, advantage: Tensor, tau_positive: float, tau_negative: float) -> Tensor:
    """(4/τ) σ(τ(ρ − 1)) A with τ by the sign of A, elementwise.

    Gao et al. 2025 (SAPO), eqs. 5–6.
    """
    tau = torch.where(advantage > 0, tau_positive, tau_negative).to(ratio.dtype)
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


@dataclass(frozen=True)
class ScoreFunction(Surrogate):
    """A·log π, whose gradient is the policy gradient (Williams 1992).

    A is a constant, never differentiated. eq:score-function-surrogate
    """

    scope = "token"
    uses_ratio = False
    symbol = r"A_{i,t}\,\log\pi_\theta(o_{i,t})"
    plain = "A·log π"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return weighed(log_prob, advantage)


@dataclass(frozen=True)
class ImportanceSampling(Surrogate):
    """ρA: the surrogate of CPI (Kakade & Langford 2002) and TRPO (Schulman et al. 2015, eq. 14),
    without the constraint.

    Its gradient is ρA∇log π (`eq:surrogate-gradient`).
    """

    scope = "token"
    symbol = r"\rho_{i,t}A_{i,t}"
    plain = "ρ·A"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return times_ratio(log_ratio, advantage)


@dataclass(frozen=True)
class Clip(Surrogate):
    """PPO's clip: min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A) (Schulman et al. 2017, eq. 7).

    `epsilon_high` None means the same as `epsilon_low`; larger is clip-higher (DAPO: Yu et al.
    2025, eq. 10; `eq:clip-higher`). `ratio_cap` caps ρ inside the min, min(ρ, cap)·A (TRL's
    `delta`; INTELLECT-2, 2025); `dual_clip` c bounds the whole term from below by c·A where A < 0
    (Ye et al. 2019; `eq:dual-clip`). Two formulas, and one function wherever the bound is above 1 +
    ε_high; below it the cap also cuts positive advantages, so `dual_clip` must be above and
    `ratio_cap` need not.
    """

    scope = "token"
    epsilon_low: float = 0.2
    epsilon_high: float | None = None
    ratio_cap: float | None = None
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        low, high = self.epsilon_low, self.epsilon_high
        require_number("Clip.epsilon_low", low, "a number from 0 to 1", at_least=0, at_most=1)
        require_number("Clip.epsilon_high", high, "a number ≥ 0", at_least=0, optional=True)
        allowed = "None or a number > 0"
        require_number("Clip.ratio_cap", self.ratio_cap, allowed, above=0, optional=True)
        above = 1 + self.high
        allowed = f"None or a number above 1 + ε_high = {above:g}"
        require_number("Clip.dual_clip", self.dual_clip, allowed, above=above, optional=True)

    @property
    def high(self) -> float:
        """ε_high, or ε_low where only one bound was given."""
        return self.epsilon_low if self.epsilon_high is None else self.epsilon_high

    @property
    def flat_above(self) -> tuple[float, float]:
        """The ρ above which the term is flat: where A > 0, and where A < 0 (∞: nowhere)."""
        cap = math.inf if self.ratio_cap is None else self.ratio_cap
        dual = math.inf if self.dual_clip is None else self.dual_clip
        return min(1 + self.high, cap), min(max(1 + self.high, cap), dual)

    @property
    def latex(self) -> str:
        rho = (
            r"\rho_{i,t}"
            if self.ratio_cap is None
            else rf"\min(\rho_{{i,t}},{number(self.ratio_cap)})"
        )
        bounds = f"{number(1 - self.epsilon_low)},{number(1 + self.high)}"
        if max(self.epsilon_low, self.high) < 0.01:
            bounds = f"1-{number(self.epsilon_low)},1+{number(self.high)}"
        clipped = rf"\operatorname{{clip}}(\rho_{{i,t}},{bounds})A_{{i,t}}"
        term = rf"\min\left({rho}A_{{i,t}},\;{clipped}\right)"
        return (
            term
            if self.dual_clip is None
            else rf"\max\!\left({term},\,{number(self.dual_clip)}A_{{i,t}}\text{{ if }}A<0\right)"
        )

    @property
    def text(self) -> str:
        rho = "ρ" if self.ratio_cap is None else f"min(ρ, {self.ratio_cap:g})"
        term = f"min({rho}·A, clip(ρ, {1 - self.epsilon_low:.5g}, {1 + self.high:.5g})·A)"
        return term if self.dual_clip is None else f"max({term}, {self.dual_clip:g}·A if A < 0)"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        ratio = bounded(log_ratio, advantage, *self.flat_above).exp()
        if self.ratio_cap is None:
            term = clipped_surrogate(ratio, advantage, self.epsilon_low, self.high)
        else:
            clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.high) * advantage
            term = torch.minimum(ratio.clamp(max=self.ratio_cap) * advantage, clipped)
        if self.dual_clip is not None:
            term = torch.where(advantage < 0, torch.maximum(term, self.dual_clip * advantage), term)
        return term

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """[..., Q, G, T] bool: where the gradient of the token is 0 (`eq:clip-flat`)."""
        ratio = log_ratio.exp()
        praised, blamed = self.flat_above
        low = ratio < 1 - self.epsilon_low
        # ρ only ever moves away from 1 on the flat side: up where A > 0, down where A < 0
        return torch.where(
            advantage > 0, ratio > praised, (advantage < 0) & (low | (ratio > blamed))
        )


@dataclass(frozen=True)
class CISPO(Surrogate):
    """sg[clip(ρ)]·A·log π: the weight is clipped, the gradient never vanishes (`eq:cispo`; MiniMax
    2025, eqs. 4–5).

    The bounds are offsets from 1, as in the paper: `epsilon_low` None leaves the lower side open.
    """

    scope = "token"
    epsilon_high: float = 0.2
    epsilon_low: float | None = None

    def __post_init__(self) -> None:
        allowed = "a number ≥ 0, an offset from 1"
        require_number("CISPO.epsilon_high", self.epsilon_high, allowed, at_least=0)
        allowed = "None or a number from 0 to 1"
        low = self.epsilon_low
        require_number("CISPO.epsilon_low", low, allowed, at_least=0, at_most=1, optional=True)

    @property
    def latex(self) -> str:
        low = "0" if self.epsilon_low is None else number(1 - self.epsilon_low)
        clipped = rf"\operatorname{{clip}}(\rho_{{i,t}},{low},{number(1 + self.epsilon_high)})"
        return rf"\operatorname{{sg}}\!\left[{clipped}\right]A_{{i,t}}\log\pi_\theta(o_{{i,t}})"

    @property
    def text(self) -> str:
        low = 0.0 if self.epsilon_low is None else 1 - self.epsilon_low
        return f"sg[clip(ρ, {low:g}, {1 + self.epsilon_high:g})]·A·log π"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        low = 0.0 if self.epsilon_low is None else 1 - self.epsilon_low
        weight = log_ratio.detach().exp().clamp(low, 1 + self.epsilon_high)
        return weighed(log_prob, weight * advantage)


@dataclass(frozen=True)
class SoftGate(Surrogate):
    """(4/τ) σ(τ(ρ − 1)) A: a smooth gate in place of the clip, steeper where A < 0 (SAPO: Gao et
    al. 2025, eqs. 5–6).
    """

    scope = "token"
    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        for name in ("tau_positive", "tau_negative"):
            require_number(f"SoftGate.{name}", getattr(self, name), "a number > 0", above=0)

    symbol = r"\tfrac{4}{\tau}\,\sigma\!\left(\tau(\rho_{i,t}-1)\right)A_{i,t}"

    @property
    def latex(self) -> str:
        return (
            rf"{self.symbol}\;\left(\tau={number(self.tau_positive)}\text{{ if"
            rf" }}A>0,\;{number(self.tau_negative)}\text{{ else}}\right)"
        )

    @property
    def text(self) -> str:
        return f"4/τ·σ(τ(ρ − 1))·A, τ = {self.tau_positive:g} or {self.tau_negative:g}"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        # σ is exactly 1 in every float type from about 40 on: there the gate is flat
        praised, blamed = (1 + 800 / tau for tau in (self.tau_positive, self.tau_negative))
        ratio = bounded(log_ratio, advantage, praised, blamed).exp()
        return soft_gate(ratio, advantage, self.tau_positive, self.tau_negative)
