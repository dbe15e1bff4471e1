"""Surrogate: the objective of one token as a function of ρ, log π and A.

PPO's clip is here: see `clipped_surrogate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from course.errors import require_number
from course.parts.base import Part, number
from course.parts.ratio import TokenRatio, times_ratio
from course.parts.sample_filter import TokenFilter


@dataclass(frozen=True)
class Surrogate(Part):
    """log ρ, log π and A → the term that gradient ascent maximises, all [..., Q, G, T].

    `uses_ratio` False means that ρ does not appear in the term; the equation then leaves ρ out.
    `uses_mask` True means that the call takes a fourth argument, the mask [..., Q, G, T] bool of
    the chosen tokens; log ρ, log π and A are 0 where it is False.
    """

    uses_ratio: ClassVar[bool] = True
    uses_mask: ClassVar[bool] = False

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        raise NotImplementedError

    def clipped(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
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


def refuse_correction(part: Surrogate, parts: Mapping[str, Part], why: str) -> None:
    """Raise `Clash` if there is a correction, whose product with the term would be another method.

    Importance sampling from μ needs none: with μ's log-probabilities in `rollout.log_prob`, ρ is
    π/μ.
    """
    if not parts["correction"].implied:
        remedy = "give μ's log-probabilities as rollout.log_prob, so that ρ = π/μ"
        raise part.clash(
            parts["correction"], f"{why}, and here it would multiply the term; {remedy}"
        )


def refuse_other_ratios(part: Surrogate, parts: Mapping[str, Part], why: str) -> None:
    """Raise `Clash` unless ρ is the ratio of each token."""
    if not isinstance(parts["ratio"], TokenRatio):
        raise part.clash(parts["ratio"], f"{why}; allowed is TokenRatio()")


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

    def clipped(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
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
    before; φ is below 1e-15 there. A `correction` is refused: TRL multiplies κ into ρ, inside φ.

    Source: Shen et al. 2026 (VESPO, 2602.10693); TRL's loss_type="vespo".
    """

    scope = "token"
    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        for name in ("k_positive", "lambda_positive", "k_negative", "lambda_negative"):
            require_number(f"GammaWeight.{name}", getattr(self, name), "a number > 0", above=0)

    def check(self, parts: Mapping[str, Part]) -> None:
        refuse_correction(self, parts, "TRL multiplies κ into ρ, inside φ")

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


@dataclass(frozen=True)
class _Divergence(Surrogate):
    """sg[min(ρ, cap)]·A·log π·m; m is 0 where the token's probability has moved too far as A asks.

    The ratio must be that of each token: log π − log ρ is then log π_old.
    """

    delta_low: float = 0.15
    delta_high: float = 0.15
    ratio_cap: float = 20.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("delta_low", "delta_high"):
            require_number(f"{name}.{field}", getattr(self, field), "a number > 0", above=0)
        require_number(f"{name}.ratio_cap", self.ratio_cap, "a number ≥ 1", at_least=1)

    def check(self, parts: Mapping[str, Part]) -> None:
        refuse_other_ratios(self, parts, "its trust region is in the probability of a token")

    @property
    def latex(self) -> str:
        low, high = number(self.delta_low), number(self.delta_high)
        bound = high if low == high else rf"{high}\text{{ if }}A>0,\,{low}\text{{ else}}"
        return (
            rf"\operatorname{{sg}}\!\left[\min(\rho_{{i,t}},{number(self.ratio_cap)})\right]"
            rf"A_{{i,t}}\log\pi_\theta(o_{{i,t}})\;\left(\text{{0 where }}{self.symbol}>{bound}"
            r"\text{ in the direction of }A\right)"
        )

    @property
    def text(self) -> str:
        low, high = self.delta_low, self.delta_high
        bound = f"{high:g}" if low == high else f"{high:g} if A > 0, {low:g} else"
        return f"sg[min(ρ, {self.ratio_cap:g})]·A·log π, 0 where {self.plain} > {bound}, along A"

    def moved(self, log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
        """How far a token's probability has moved; log π and log π_old → the same shape."""
        raise NotImplementedError

    @torch.no_grad()
    def clipped(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """[..., Q, G, T] bool: where A ≠ 0 and the token has left the trust region, as A asks."""
        far = self.moved(log_prob, log_prob - log_ratio)
        return torch.where(
            advantage > 0,
            (log_ratio > 0) & (far > self.delta_high),
            (advantage < 0) & (log_ratio < 0) & (far > self.delta_low),
        )

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        weight = log_ratio.detach().exp().clamp(max=self.ratio_cap)
        flat = self.clipped(log_ratio, log_prob, advantage)
        return weighed(log_prob, (weight * advantage).masked_fill(flat, 0.0))


@dataclass(frozen=True)
class DivergenceTV(_Divergence):
    """sg[min(ρ, 20)]·A·log π, 0 where |π − π_old| > δ and π has moved as A asks (DPPO-TV).

    |π − π_old| is the total variation of "this token or another". In ratios a rare token may move
    far and a likely one little: with δ = .15 a praised token falls silent at ρ = 16 if π_old = .01,
    a blamed one at ρ = .83 if π_old = .9, and a blamed one with π_old < .15 never.

    Source: Qi et al. 2026 (DPPO, 2602.04879); verl's `loss_mode=dppo_tv`, with its example's δ.
    """

    scope = "token"
    symbol = r"\lvert\pi_\theta-\pi_{\text{old}}\rvert"
    plain = "|π − π_old|"

    def moved(self, log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
        return (log_prob.exp() - old_log_prob.exp()).abs()


@dataclass(frozen=True)
class DivergenceKL(_Divergence):
    """As `DivergenceTV`, with the KL between "this token or another" under π_old and π (DPPO-KL).

    KL = π_old log(π_old/π) + (1 − π_old) log((1 − π_old)/(1 − π)), in nats. verl adds 1e-8 to both
    sides of the last fraction; here it is exact. Source: Qi et al. 2026 (DPPO, 2602.04879); verl's
    `loss_mode=dppo_kl`, with the δ of its example.
    """

    scope = "token"
    delta_low: float = 0.05
    delta_high: float = 0.05
    symbol = r"\mathrm{KL}_2(\pi_{\text{old}}\Vert\pi_\theta)"
    plain = "KL₂(π_old‖π)"

    def moved(self, log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
        this = old_log_prob.exp() * (old_log_prob - log_prob)
        rest, other = (-torch.expm1(each.clamp(max=0.0)) for each in (old_log_prob, log_prob))
        # what has no probability under π_old adds nothing, even if it has none under π
        return this + torch.where(rest > 0, rest * (rest.log() - other.log()), 0.0)


@dataclass(frozen=True)
class GeometricMean(Surrogate):
    """A·(Π_t ρ̂_t)^{1/|o|}, on each token: the geometric mean of the clipped ratios (GMPO).

    ρ̂ is min(ρ, e^{ε_high}) where A > 0 and max(ρ, e^{−ε_low}) elsewhere. `epsilon_high` None means
    ε_high = ε_low; both are in nats. With `SequenceMean` a sample counts once, as in the paper. At
    T = 1 it is the clip with the bounds e^{−ε} and e^ε. Source: Zhao et al. 2025 (GMPO,
    2507.20673); TRL's `GMPOTrainer`, verl's `loss_mode=geo_mean`.
    """

    scope, uses_mask = "sample", True
    epsilon_low: float = 0.4
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        allowed = "a number ≥ 0, in nats"
        require_number("GeometricMean.epsilon_low", self.epsilon_low, allowed, at_least=0)
        high = self.epsilon_high
        require_number("GeometricMean.epsilon_high", high, allowed, at_least=0, optional=True)

    def check(self, parts: Mapping[str, Part]) -> None:
        refuse_other_ratios(self, parts, "it takes the mean of the tokens' ratios itself")
        refuse_correction(self, parts, "verl takes the geometric mean of the tokens' weights")
        if isinstance(parts["sample_filter"], TokenFilter):
            why = "TRL takes what it drops out of the mean, and here its ratio would stay in"
            raise self.clash(parts["sample_filter"], why)

    @property
    def high(self) -> float:
        """ε_high; equals ε_low if `epsilon_high` is None."""
        return self.epsilon_low if self.epsilon_high is None else self.epsilon_high

    @property
    def latex(self) -> str:
        up, down = rf"e^{{{number(self.high)}}}", rf"e^{{-{number(self.epsilon_low)}}}"
        return (
            r"\left(\prod_u\hat\rho_{i,u}\right)^{1/\lvert o_i\rvert}A_{i,t}\;\left(\hat\rho="
            rf"\min(\rho,{up})\text{{ if }}A>0,\;\max(\rho,{down})\text{{ else}}\right)"
        )

    @property
    def text(self) -> str:
        up, down = f"min(ρ, e^{self.high:g})", f"max(ρ, e^−{self.epsilon_low:g})"
        return f"(Π ρ̂)^(1/|o|)·A, ρ̂ = {up} if A > 0, {down} else"

    def clipped(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """[..., Q, G, T] bool: where A ≠ 0 and the token's own ratio is clipped."""
        down = (advantage < 0) & (log_ratio < -self.epsilon_low)
        return torch.where(advantage > 0, log_ratio > self.high, down)

    def __call__(
        self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        praised, blamed = log_ratio.clamp(max=self.high), log_ratio.clamp(min=-self.epsilon_low)
        clipped = torch.where(advantage > 0, praised, blamed)
        chosen = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
        # log ρ is 0 where the mask is False, and so is what the clip leaves of it
        log_mean = clipped.sum(-1, keepdim=True) / chosen.sum(-1, keepdim=True).clamp(min=1)
        return times_ratio(log_mean.expand_as(advantage), advantage)


@dataclass(frozen=True)
class MirrorDescent(Surrogate):
    """A·log π − (β/2)(log ρ)²: a spring that pulls a sample's log ρ back, whatever its A.

    Alone, a sample would rest at log ρ = A/β, the step of mirror descent. With `SequenceRatio` the
    spring is that of whole answers: the update of Kimi k1.5. Source: Kimi Team 2025 (2501.12599),
    §2.3.2; Richemond et al. 2024 (DRO); verl's `loss_mode=dro`.
    """

    scope = "token"
    beta: float = 1e-3

    def __post_init__(self) -> None:
        require_number("MirrorDescent.beta", self.beta, "a number > 0", above=0)

    @property
    def latex(self) -> str:
        return (
            r"A_{i,t}\log\pi_\theta(o_{i,t})-"
            rf"\tfrac{{{number(self.beta)}}}{{2}}\left(\log\rho_{{i,t}}\right)^2"
        )

    @property
    def text(self) -> str:
        return f"A·log π − {self.beta:g}/2·(log ρ)²"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return weighed(log_prob, advantage) - 0.5 * self.beta * log_ratio**2


@dataclass(frozen=True)
class Tapered(Surrogate):
    """sg[w]·A·log π, w = 1 where A ≥ 0 and min(ρ, 1) elsewhere: blame fades with the sample (TOPR).

    Praise is imitated at full weight, however stale it is. TOPR takes the ratio of the whole
    answer, `SequenceRatio()`, and rewards of ±1. Source: Le Roux et al. 2025 (TOPR, 2503.14286).
    """

    scope = "token"
    symbol = (
        r"\operatorname{sg}\!\left[w\right]A_{i,t}\log\pi_\theta(o_{i,t})\;\left(w=1"
        r"\text{ if }A\ge0,\;\min(\rho_{i,t},1)\text{ else}\right)"
    )
    plain = "sg[1 if A ≥ 0, min(ρ, 1) else]·A·log π"

    def __call__(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
        fading = log_ratio.detach().clamp(max=0.0).exp()
        weight = torch.where(advantage >= 0, torch.ones_like(fading), fading)
        return weighed(log_prob, weight * advantage)
