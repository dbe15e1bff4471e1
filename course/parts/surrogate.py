"""Surrogate: the objective of one token as a function of ρ, log π and A.

PPO's clip is here: see `clipped_surrogate`.
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
    """log ρ, log π and A → the term that gradient ascent maximises, all [..., Q, G, T].

    `uses_ratio` False means that ρ does not appear in the term; the equation then leaves ρ out.
    """

    uses_ratio: ClassVar[bool] = True

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        raise NotImplementedError

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """[..., Q, G, T] bool: where A ≠ 0 but the term is flat in ρ, so its gradient is 0."""
        return torch.zeros_like(advantage, dtype=torch.bool)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A), elementwise (`eq:clipped-surrogate`).

    It is flat in ρ where A > 0 and ρ > 1 + ε_high, and where A < 0 and ρ < 1 − ε_low. It never
    exceeds ρA (`eq:clip-lower-bound`). Source: Schulman et al. 2017 (PPO), eq. 7.
    """
    return torch.minimum(
        ratio * advantage, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantage
    )


def bounded(log_ratio: Tensor, advantage: Tensor, praised: float, blamed: float) -> Tensor:
    """log ρ, capped one nat above the ρ beyond which the term is flat.

    The term is flat above ρ = `praised` where A ≥ 0, and above ρ = `blamed` where A < 0; ∞ means
    nowhere. The cap changes neither the term nor its gradient. Without it exp may overflow, and ∞
    times the slope 0 is NaN in the gradient.
    """
    for here, flat in ((advantage >= 0, praised), (advantage < 0, blamed)):
        if flat < math.inf:
            ceiling = math.log(flat) + 1
            log_ratio = log_ratio.masked_fill(here & (log_ratio > ceiling), ceiling)
    return log_ratio


def weighed(log_prob: Tensor, weight: Tensor) -> Tensor:
    """weight · log π, elementwise; exactly 0 where the weight is 0, even if log π = −∞."""
    return weight * torch.where(weight == 0, weight, log_prob)


def soft_gate(ratio: Tensor, advantage: Tensor, tau_positive: float, tau_negative: float) -> Tensor:
    """(4/τ) σ(τ(ρ − 1)) A, elementwise.

    τ is `tau_positive` where A > 0 and `tau_negative` elsewhere. Source: Gao et al. 2025 (SAPO),
    eqs. 5–6.
    """
    tau = torch.where(advantage > 0, tau_positive, tau_negative).to(ratio.dtype)
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


@dataclass(frozen=True)
class ScoreFunction(Surrogate):
    """A·log π, whose gradient A∇log π is the policy gradient on policy (Williams 1992).

    A is a constant: no gradient flows through it. eq:score-function-surrogate
    """

    scope = "token"
    uses_ratio = False
    symbol = r"A_{i,t}\,\log\pi_\theta(o_{i,t})"
    plain = "A·log π"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return weighed(log_prob, advantage)


@dataclass(frozen=True)
class ImportanceSampling(Surrogate):
    """ρA, the importance-sampling surrogate; its gradient is ρA∇log π (`eq:surrogate-gradient`).

    It is the surrogate of conservative policy iteration (Kakade & Langford 2002) and of TRPO
    without its constraint (Schulman et al. 2015, eq. 14).
    """

    scope = "token"
    symbol = r"\rho_{i,t}A_{i,t}"
    plain = "ρ·A"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return times_ratio(log_ratio, advantage)


@dataclass(frozen=True)
class Clip(Surrogate):
    """PPO's clip: min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A) (Schulman et al. 2017, eq. 7).

    `epsilon_high` None means ε_high = ε_low. A larger ε_high is DAPO's clip-higher (Yu et al. 2025,
    eq. 10; `eq:clip-higher`).

    `ratio_cap` caps ρ inside the min: min(ρ, cap)·A (TRL's `delta`; INTELLECT-2, 2025). `dual_clip`
    c bounds the whole term from below by c·A where A < 0 (Ye et al. 2019; `eq:dual-clip`). The two
    give the same function if the bound is above 1 + ε_high. A smaller cap also cuts terms with
    A > 0, so `dual_clip` must be above 1 + ε_high; `ratio_cap` may be any number > 0.

    Raises `CourseError` if a setting is out of range.
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
        """ε_high; equals ε_low if `epsilon_high` is None."""
        return self.epsilon_low if self.epsilon_high is None else self.epsilon_high

    @property
    def flat_above(self) -> tuple[float, float]:
        """The ρ above which the term is flat, for A > 0 and for A < 0; ∞ means nowhere."""
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
        """[..., Q, G, T] bool: where A ≠ 0 and the token's gradient is 0 (`eq:clip-flat`)."""
        ratio = log_ratio.exp()
        praised, blamed = self.flat_above
        low = ratio < 1 - self.epsilon_low
        # the clip is flat where ρ has already moved as A asks: up if A > 0, down if A < 0
        return torch.where(
            advantage > 0, ratio > praised, (advantage < 0) & (low | (ratio > blamed))
        )


@dataclass(frozen=True)
class CISPO(Surrogate):
    """sg[clip(ρ)]·A·log π: the weight is clipped, but every token keeps a gradient (`eq:cispo`).

    The bounds are offsets from 1, as in the paper; `epsilon_low` None means no lower bound. Source:
    MiniMax 2025, eqs. 4–5.
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
    """(4/τ) σ(τ(ρ − 1)) A: a smooth gate instead of the clip, steeper where A < 0.

    Source: Gao et al. 2025 (SAPO), eqs. 5–6.
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
        # σ(x) rounds to 1 in every float type for x > 40, where the gate is therefore flat
        praised, blamed = (1 + 800 / tau for tau in (self.tau_positive, self.tau_negative))
        ratio = bounded(log_ratio, advantage, praised, blamed).exp()
        return soft_gate(ratio, advantage, self.tau_positive, self.tau_negative)


@dataclass(frozen=True)
class GammaWeight(Surrogate):
    """sg[φ(ρ)]·A·log π with φ(ρ) = e^λ ρ^k e^{−λρ}: far samples fade out on both sides (VESPO).

    φ(1) = 1, and φ has its maximum at ρ = k/λ. (k, λ) is (2, 3) where A ≥ 0 and (3, 2) elsewhere.
    VESPO takes the ratio of the whole answer, `SequenceRatio()`. TRL bounds log ρ to −18.4 and 20
    before; φ is below 1e-15 there. Source: VESPO 2026 (2602.10693); TRL's loss_type="vespo".
    """

    scope = "token"
    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        for name in ("k_positive", "lambda_positive", "k_negative", "lambda_negative"):
            require_number(f"GammaWeight.{name}", getattr(self, name), "a number > 0", above=0)

    @property
    def latex(self) -> str:
        weight = r"e^{\lambda}\rho_{i,t}^{k}e^{-\lambda\rho_{i,t}}"
        praised = f"({number(self.k_positive)},{number(self.lambda_positive)})"
        blamed = f"({number(self.k_negative)},{number(self.lambda_negative)})"
        return (
            rf"\operatorname{{sg}}\!\left[{weight}\right]A_{{i,t}}\log\pi_\theta(o_{{i,t}})"
            rf"\;\left((k,\lambda)={praised}\text{{ if }}A\ge0,\;{blamed}\text{{ else}}\right)"
        )

    @property
    def text(self) -> str:
        praised = f"({self.k_positive:g}, {self.lambda_positive:g})"
        blamed = f"({self.k_negative:g}, {self.lambda_negative:g})"
        return f"sg[e^λ·ρ^k·e^(−λρ)]·A·log π, (k, λ) = {praised} or {blamed}"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        log_ratio, praised = log_ratio.detach(), advantage >= 0
        k = torch.where(praised, self.k_positive, self.k_negative).to(log_ratio.dtype)
        lam = torch.where(praised, self.lambda_positive, self.lambda_negative).to(log_ratio.dtype)
        # an infinite ρ gives e^{−∞} = 0
        weight = (lam + k * log_ratio - lam * log_ratio.exp()).exp()
        return weighed(log_prob, weight * advantage)
