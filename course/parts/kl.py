"""KL: the penalty that holds the policy near an anchor.

Which estimator, where it stands, which anchor.

For a divergence KL(q‖p) let r = p/q on a sample of q; then k1 = −log r, k2 = ½ (log r)², k3 = r − 1
− log r (Schulman 2020, "Approximating KL divergence"). Towards the reference, q = π_θ and p =
π_ref: KL(π_θ‖π_ref). Towards the policy that sampled, q = π_old and p = π_θ: KL(π_old‖π_θ), PPO's
penalty (Schulman et al. 2017, eq. 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from course.errors import Clash, CourseError, require, require_flag, require_number
from course.parts.base import Declares, Part, ask, ask_tensor, number
from course.parts.ratio import times_ratio
from course.rollout import Policy, Rollout, read_places, where_read


def k1(log_r: Tensor) -> Tensor:
    """−log r: unbiased, may be negative; its gradient in a loss has mean 0. `eq:kl-k1-estimate`"""
    return -log_r


def k2(log_r: Tensor) -> Tensor:
    """½ (log r)²: biased in value; on policy its gradient is that of KL(π‖ref)."""
    return 0.5 * log_r**2


def k3(log_r: Tensor) -> Tensor:
    """r − 1 − log r: unbiased in value and never negative; on policy its gradient is that of
    KL(ref‖π). `eq:kl-k3-estimate`
    """
    return torch.expm1(log_r) - log_r


def exact_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Σ_v q_v (log q_v − log p_v) of log-probabilities [..., V] → [...], in nats; 0·log 0 = 0.

    `eq:kl-divergence`
    """
    # selected inside the product: else 0·∞ makes the gradient NaN
    difference = torch.where(log_q > -torch.inf, log_q - log_p, torch.zeros_like(log_q))
    return (log_q.exp() * difference).sum(-1)


def exact_kl_where(log_q: Tensor, log_p: Tensor, mask: Tensor) -> Tensor:
    """KL(q‖p) of [..., Q, G or 1, T or 1, V] where a chosen token of `mask` [..., Q, G, T] reads
    it, else 0, whatever is stored there: [..., Q, G or 1, T or 1] in nats.
    """
    divergence = exact_kl(where_read(log_q, mask), where_read(log_p, mask))
    read = read_places(divergence.unsqueeze(-1), mask)
    return torch.where(read, divergence, torch.zeros_like(divergence))


@dataclass(frozen=True)
class Place(Declares):
    """Where the penalty stands in the objective; `uses_ratio` says whether ρ multiplies it."""

    symbol: ClassVar[str] = ""
    uses_ratio: ClassVar[bool] = False


@dataclass(frozen=True)
class InLoss(Place):
    """Subtracted from the objective as it is (GRPO)."""

    scope = "token"


@dataclass(frozen=True)
class InLossTimesRatio(Place):
    """Subtracted times ρ: corrects for samples of π_old, and turns the gradient of k1 and of k3
    into that of KL(π‖ref).

    `eq:kl-times-ratio`
    """

    scope = "token"
    symbol: ClassVar[str] = r"\rho_{i,t}\,"
    uses_ratio: ClassVar[bool] = True


@dataclass(frozen=True)
class InReward(Place):
    """Subtracted from the reward of each token when it was sampled (InstructGPT: Ouyang et al.
    2022, eq. 2). `eq:kl-in-reward`
    """

    scope = "token"


@dataclass(frozen=True)
class Anchor(Declares):
    """What the policy is held near."""

    needs: ClassVar[tuple[str, ...]] = ()
    exact_needs: ClassVar[tuple[str, ...]] = ()
    symbol: ClassVar[str] = ""

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        """log r = log p − log q of the sampled tokens, [..., Q, G, T]."""
        raise NotImplementedError

    def exact(self, log_dist: Tensor, rollout: Rollout, mask: Tensor) -> Tensor:
        """KL(q‖p) over the full distribution where `mask` [..., Q, G, T] reads it, else 0: [..., Q,
        G or 1, T or 1].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Reference(Anchor):
    """The frozen reference policy: KL(π_θ‖π_ref)."""

    scope = "token"
    needs: ClassVar[tuple[str, ...]] = ("ref_log_prob",)
    exact_needs: ClassVar[tuple[str, ...]] = ("ref_log_dist",)
    symbol: ClassVar[str] = r"\pi_\theta\Vert\pi_{\text{ref}}"

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.ref_log_prob is not None
        return rollout.ref_log_prob - log_prob

    def exact(self, log_dist: Tensor, rollout: Rollout, mask: Tensor) -> Tensor:
        assert rollout.ref_log_dist is not None
        return exact_kl_where(log_dist, rollout.ref_log_dist, mask)


@dataclass(frozen=True)
class OldPolicy(Anchor):
    """The policy that sampled: KL(π_old‖π_θ)."""

    scope = "token"
    exact_needs: ClassVar[tuple[str, ...]] = ("old_log_dist",)
    symbol: ClassVar[str] = r"\pi_{\text{old}}\Vert\pi_\theta"

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        return log_prob - rollout.log_prob

    def exact(self, log_dist: Tensor, rollout: Rollout, mask: Tensor) -> Tensor:
        assert rollout.old_log_dist is not None
        return exact_kl_where(rollout.old_log_dist, log_dist, mask)


@dataclass(frozen=True)
class AdaptiveBeta:
    """PPO's rule: after each rollout, halve β where KL < target/1.5, double it where KL >
    1.5·target (Schulman et al. 2017, §4).

    β itself is state: the learner keeps it per run and writes it into the rollout as `kl_coef`.

    It stays between initial/reach and initial·reach, which the paper does not say: without bounds
    a long quiet spell takes β to 0 and a long loud one to ∞, and from neither does doubling or
    halving ever lead back. With them β is at most log₂(reach) = 20 steps from where it started.
    """

    reach: ClassVar[float] = 2.0**20
    initial: float = 1.0
    target: float = 0.01

    def __post_init__(self) -> None:
        require_number("AdaptiveBeta.initial", self.initial, "a number > 0", above=0)
        require_number("AdaptiveBeta.target", self.target, "a number of nats > 0", above=0)

    def update(self, beta: Tensor, kl: Tensor) -> Tensor:
        """β [...] and the measured KL(π_old‖π_θ) [...] in nats → the next β."""
        halved = torch.where(kl < self.target / 1.5, beta / 2, beta)
        moved = torch.where(kl > self.target * 1.5, beta * 2, halved)
        limits = torch.finfo(beta.dtype)
        low = max(self.initial / self.reach, limits.tiny)
        return moved.clamp(low, min(self.initial * self.reach, limits.max))


@dataclass(frozen=True)
class KL(Part):
    """β times an estimate of a KL divergence, subtracted at its place.

    `beta` may adapt (then the anchor is `OldPolicy`).
    """

    beta: float | AdaptiveBeta = 0.04
    place: Place = field(default_factory=InLoss)
    anchor: Anchor = field(default_factory=Reference)
    accept_bias: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.beta, AdaptiveBeta):
            require(
                isinstance(self.anchor, OldPolicy),
                f"{name}.anchor",
                self.anchor,
                "OldPolicy() where beta is AdaptiveBeta",
            )
        else:
            require_number(f"{name}.beta", self.beta, "a number ≥ 0", at_least=0)
        require(
            isinstance(self.anchor, Anchor),
            f"{name}.anchor",
            self.anchor,
            "Reference() or OldPolicy()",
        )
        require(
            isinstance(self.place, Place),
            f"{name}.place",
            self.place,
            "InLoss(), InLossTimesRatio() or InReward()",
        )
        require_flag(f"{name}.accept_bias", self.accept_bias)
        if isinstance(self.place, InReward):
            if isinstance(self.anchor, OldPolicy):
                raise Clash(
                    f"{name}: InReward() clashes with OldPolicy(): when the reward is given, π is"
                    " π_old and their KL is 0"
                )
            if not isinstance(self, K1) and not self.accept_bias:
                raise Clash(
                    f"{name} clashes with InReward(): in the reward only K1 has the gradient of"
                    f" KL(π‖ref); {name} there has neither KL's. Say accept_bias=True to study it"
                    " all the same"
                )

    def estimate(self, log_r: Tensor) -> Tensor:
        """log r [..., Q, G, T] → the penalty per token, in nats."""
        raise NotImplementedError

    def coefficient(self, rollout: Rollout) -> Tensor | float:
        """β, or the rollout's own [..., 1, 1, 1] where it adapts."""
        if not isinstance(self.beta, AdaptiveBeta):
            return self.beta
        if rollout.kl_coef is None:
            return self.beta.initial
        return rollout.kl_coef[..., None, None, None]

    @property
    def needs(self) -> tuple[str, ...]:
        """The rollout's fields that this penalty needs."""
        return self.anchor.needs

    @property
    def pieces(self) -> tuple[Declares, ...]:
        """The estimate, its place and its anchor."""
        return (self, self.place, self.anchor)

    def log_r(self, policy: Policy, rollout: Rollout, felt: Tensor) -> Tensor:
        """log r [..., Q, G, T] of the sampled tokens, 0 where `felt` [..., Q, G, T] is False."""
        shape = rollout.reward.shape
        log_r = ask_tensor("kl.anchor", self, shape, self.anchor.log_r, policy.log_prob, rollout)
        return torch.where(felt, log_r, torch.zeros_like(log_r))

    def value(self, policy: Policy, rollout: Rollout, felt: Tensor) -> Tensor:
        """The penalty per token, [..., Q, G, T], without β; what it is where `felt` is False does
        not matter, but it is finite.
        """
        log_r = self.log_r(policy, rollout, felt)
        return ask_tensor("kl", self, log_r.shape, self.estimate, log_r)

    def times_ratio(self, log_r: Tensor, log_ratio: Tensor, beta: Tensor | float) -> Tensor:
        """ρ · β · estimate, [..., Q, G, T]."""
        estimate = ask_tensor("kl", self, log_r.shape, self.estimate, log_r)
        return times_ratio(log_ratio, beta * estimate)

    def felt(self, mask: Tensor, rollout: Rollout) -> Tensor:
        """The places of `mask` [..., Q, G, T] where β is not 0."""
        beta = self.coefficient(rollout)
        return mask & (beta != 0) if isinstance(beta, Tensor) else mask

    def penalty(
        self, policy: Policy, rollout: Rollout, log_ratio: Tensor, mask: Tensor
    ) -> Tensor | None:
        """What the objective subtracts per token, [..., Q, G, T]: finite where `mask` [..., Q, G,
        T] is False, and None where there is nothing to subtract.
        """
        if self.in_reward or self.beta == 0:
            return None
        beta, felt = self.coefficient(rollout), self.felt(mask, rollout)
        if self.place.uses_ratio:
            return self.times_ratio(self.log_r(policy, rollout, felt), log_ratio, beta)
        return beta * self.value(policy, rollout, felt)

    def shape_reward(self, rollout: Rollout) -> Tensor:
        """The reward, less β·k where the penalty sits in it (k is of π_old then: it was sampled
        so).
        """
        if not self.in_reward or self.beta == 0:
            return rollout.reward
        sampled, felt = (
            Policy(rollout.log_prob, rollout.old_log_dist),
            self.felt(rollout.mask, rollout),
        )
        penalty = self.coefficient(rollout) * self.value(sampled, rollout, felt)
        penalty = torch.where(felt, penalty, torch.zeros_like(penalty))
        if not bool(torch.isfinite(penalty.sum())):
            largest = penalty.detach().abs().amax().item()
            raise CourseError(
                f"{self.short}: got a penalty of {largest} in the reward; allowed is a finite one:"
                " the policy that sampled and the reference are too far apart"
            )
        return rollout.reward - penalty

    @property
    def in_reward(self) -> bool:
        """Whether the penalty sits in the reward."""
        return isinstance(self.place, InReward)

    @property
    def latex(self) -> str:
        beta = (
            r"\beta_{\text{adaptive}}" if isinstance(self.beta, AdaptiveBeta) else number(self.beta)
        )
        return rf"{beta}\,{self.place.symbol}{self.symbol}({self.anchor.symbol})"

    @property
    def text(self) -> str:
        beta = "β" if isinstance(self.beta, AdaptiveBeta) else f"{self.beta:g}"
        times = "ρ·" if isinstance(self.place, InLossTimesRatio) else ""
        towards = "old‖π" if isinstance(self.anchor, OldPolicy) else "π‖ref"
        return f"{beta}·{times}{self.plain}({towards})"


@dataclass(frozen=True)
class NoKL(KL):
    """No penalty."""

    scope = "token"
    beta: float | AdaptiveBeta = 0.0
    symbol = "0"
    plain = "0"

    def __post_init__(self) -> None:
        allowed = "0 (K1, K2, K3 and ExactKL take a β)"
        require_number("NoKL.beta", self.beta, allowed, at_least=0, at_most=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def penalty(self, policy: Policy, rollout: Rollout, log_ratio: Tensor, mask: Tensor) -> None:
        return None

    @property
    def latex(self) -> str:
        return "0"

    @property
    def text(self) -> str:
        return "0"


@dataclass(frozen=True)
class K1(KL):
    """−log r.

    In the reward: on policy, the gradient of KL(π‖ref), exactly; off policy ρ does not make up for
    it, since the reward holds log π_old and not log π. In the loss alone: no gradient on average.
    `eq:kl-k1-in-loss`
    """

    scope = "token"
    symbol = "k_1"
    plain = "k1"

    def estimate(self, log_r: Tensor) -> Tensor:
        return k1(log_r)


@dataclass(frozen=True)
class K2(KL):
    """½ (log r)². In the loss: on policy, the gradient of KL(π‖ref). `eq:kl-k2-in-loss`"""

    scope = "token"
    symbol = "k_2"
    plain = "k2"

    def estimate(self, log_r: Tensor) -> Tensor:
        return k2(log_r)


@dataclass(frozen=True)
class K3(KL):
    """r − 1 − log r (GRPO: Shao et al. 2024, eq. 4).

    In the loss: on policy, the gradient of KL(ref‖π). `eq:kl-k3-in-loss`

    `max_log_r` bounds |log r| before the exponential (verl uses 20); None leaves it open, and it
    overflows where π_ref ≫ π.
    """

    scope = "token"
    max_log_r: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "None or a number of nats > 0"
        require_number("K3.max_log_r", self.max_log_r, allowed, above=0, optional=True)

    symbol = "k_3"
    plain = "k3"

    def estimate(self, log_r: Tensor) -> Tensor:
        return k3(self._bounded(log_r))

    def times_ratio(self, log_r: Tensor, log_ratio: Tensor, beta: Tensor | float) -> Tensor:
        """ρ · β · k3. Far from r = 1, ρ·r is taken as exp(log ρ + log r): a token that became rare
        has a small ρ and a large r, one that became likely the other way round, and 0·∞ is NaN.
        """
        log_r = self._bounded(log_r)
        # above, r alone is r − 1 − log r to the last bit; below, −1 − log r is what is left of it
        high = log_r > math.log(torch.finfo(log_r.dtype).max) / 2
        low = log_r < -15
        far, nothing = high | low, torch.zeros_like(log_r)
        shared = torch.where(far, log_ratio + log_r, nothing).exp()
        rest = torch.where(low, 1 + log_r, nothing)
        return torch.where(
            far,
            beta * shared - times_ratio(log_ratio, beta * rest),
            times_ratio(log_ratio, beta * k3(torch.where(far, nothing, log_r))),
        )

    def _bounded(self, log_r: Tensor) -> Tensor:
        bound = self.max_log_r
        return log_r if bound is None else log_r.clamp(-bound, bound)


@dataclass(frozen=True)
class ExactKL(KL):
    """KL over the full distribution of each token, no sampling: needs `policy.log_dist` and the
    anchor's distribution.
    """

    scope = "token"
    policy_needs = ("log_dist",)
    symbol = r"\mathrm{KL}"
    plain = "KL"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.place, InLossTimesRatio):
            raise Clash(
                "ExactKL clashes with InLossTimesRatio(): it is no sample, so there is nothing for"
                " ρ to correct at the token itself"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return self.anchor.exact_needs + (("old_log_dist",) if self.in_reward else ())

    def value(self, policy: Policy, rollout: Rollout, felt: Tensor) -> Tensor:
        log_dist = policy.log_dist
        allowed = "the full distribution, which ExactKL needs"
        require(log_dist is not None, "policy.log_dist", None, allowed)
        assert log_dist is not None
        exact = ask("kl.anchor", self, self.anchor.exact, log_dist, rollout, felt)
        return exact.expand(rollout.reward.shape)
