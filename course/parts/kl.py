"""KL: the penalty that holds the policy near an anchor (the reference or the old policy).

A penalty is an estimator (K1, K2, K3, ExactKL) with a place in the objective and an anchor.

For a divergence KL(q‖p) let r = p/q at a token sampled from q. Then k1 = −log r, k2 = ½ (log r)²
and k3 = r − 1 − log r (Schulman 2020, "Approximating KL divergence"). With the reference policy as
anchor, q = π_θ and p = π_ref: KL(π_θ‖π_ref). With the old policy as anchor, q = π_old and p = π_θ:
KL(π_old‖π_θ), PPO's penalty (Schulman et al. 2017, eq. 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from course.errors import Clash, NotFinite, require, require_flag, require_number
from course.parts.base import Declares, Part, ask_factor, ask_tensor, number
from course.parts.ratio import times_ratio
from course.rollout import Policy, Rollout, read_places, runs_with, where_read


def k1(log_r: Tensor) -> Tensor:
    """−log r: unbiased, perhaps negative; its gradient in a loss has mean 0. `eq:kl-k1-estimate`"""
    return -log_r


def k2(log_r: Tensor) -> Tensor:
    """½ (log r)²: biased in value; on policy its gradient is that of KL(π‖ref)."""
    return 0.5 * log_r**2


def k3(log_r: Tensor) -> Tensor:
    """r − 1 − log r: unbiased in value and never negative. `eq:kl-k3-estimate`

    On policy its gradient is that of KL(ref‖π).
    """
    return torch.expm1(log_r) - log_r


def exact_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q‖p) = Σ_v q_v (log q_v − log p_v): log-probabilities [..., V] → [...], in nats.

    0·log 0 counts as 0. `eq:kl-divergence`
    """
    # where q = 0 the difference is replaced by 0 before the product, else 0·∞ gives a NaN gradient
    difference = torch.where(log_q > -torch.inf, log_q - log_p, torch.zeros_like(log_q))
    return (log_q.exp() * difference).sum(-1)


def exact_kl_where(log_q: Tensor, log_p: Tensor, mask: Tensor) -> Tensor:
    """KL(q‖p) at the places that `mask` uses, 0 elsewhere: [..., Q, G or 1, T or 1], in nats.

    `log_q` and `log_p` are [..., Q, G or 1, T or 1, V]; `mask` is [..., Q, G, T] bool. Places that
    no chosen token uses may hold anything, also NaN.
    """
    divergence = exact_kl(where_read(log_q, mask), where_read(log_p, mask))
    read = read_places(divergence.unsqueeze(-1), mask)
    return torch.where(read, divergence, torch.zeros_like(divergence))


@dataclass(frozen=True)
class Place(Declares):
    """Where the penalty appears in the objective; `uses_ratio`: whether ρ multiplies it."""

    symbol: ClassVar[str] = ""
    uses_ratio: ClassVar[bool] = False


@dataclass(frozen=True)
class InLoss(Place):
    """Subtracted from the objective of each token, without a ratio (GRPO)."""

    scope = "token"


@dataclass(frozen=True)
class InLossTimesRatio(Place):
    """Multiplied by ρ, then subtracted from the objective of each token. `eq:kl-times-ratio`

    The factor ρ corrects for tokens sampled from π_old (importance sampling). It also makes the
    gradients of k1 and of k3 equal to that of KL(π‖ref).
    """

    scope = "token"
    symbol: ClassVar[str] = r"\rho_{i,t}\,"
    uses_ratio: ClassVar[bool] = True


@dataclass(frozen=True)
class InReward(Place):
    """Subtracted from the reward of each token, at the time of sampling. `eq:kl-in-reward`

    Source: Ouyang et al. 2022 (InstructGPT), eq. 2.
    """

    scope = "token"


@dataclass(frozen=True)
class Anchor(Declares):
    """The policy that the penalty holds the trained policy near."""

    needs: ClassVar[tuple[str, ...]] = ()
    exact_needs: ClassVar[tuple[str, ...]] = ()
    symbol: ClassVar[str] = ""

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        """log r = log p − log q of the sampled tokens, [..., Q, G, T]."""
        raise NotImplementedError

    def exact(self, log_dist: Tensor, rollout: Rollout, mask: Tensor) -> Tensor:
        """KL(q‖p) over the full distribution: [..., Q, G or 1, T or 1], in nats.

        It is 0 at places that no True of `mask` [..., Q, G, T] uses.
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
    """PPO's adaptive β: halve it if KL < target/1.5, double it if KL > 1.5·target.

    β changes after each rollout. The learner keeps one β per run and writes it into the rollout as
    `kl_coef`. `target` is in nats. Source: Schulman et al. 2017, §4.

    β stays between initial/reach and initial·reach, a bound which the paper does not have. Without
    it a long phase of small KL takes β to 0 and a long phase of large KL takes it to ∞, and no
    doubling or halving leads back. With it β is at most log₂(reach) = 20 steps from its start.
    """

    reach: ClassVar[float] = 2.0**20
    initial: float = 1.0
    target: float = 0.01

    def __post_init__(self) -> None:
        require_number("AdaptiveBeta.initial", self.initial, "a number > 0", above=0)
        require_number("AdaptiveBeta.target", self.target, "a number of nats > 0", above=0)

    def update(self, beta: Tensor, kl: Tensor) -> Tensor:
        """β [...] and the measured KL(π_old‖π_θ) [...], in nats → the next β [...]."""
        halved = torch.where(kl < self.target / 1.5, beta / 2, beta)
        moved = torch.where(kl > self.target * 1.5, beta * 2, halved)
        limits = torch.finfo(beta.dtype)
        low = max(self.initial / self.reach, limits.tiny)
        return moved.clamp(low, min(self.initial * self.reach, limits.max))


@dataclass(frozen=True)
class KL(Part):
    """β times an estimate of a KL divergence, subtracted at `place`.

    `beta` may be an `AdaptiveBeta`; then the anchor must be `OldPolicy()`. Raises `CourseError` if
    a setting is out of range, and `Clash` if place, anchor and estimator do not fit together.
    `accept_bias` allows an estimator in the reward that has the gradient of neither KL there.
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
        """log r [..., Q, G, T] → the estimate per token [..., Q, G, T], in nats."""
        raise NotImplementedError

    def coefficient(self, rollout: Rollout) -> Tensor | float:
        """β; if it is adaptive, the rollout's `kl_coef` as [..., 1, 1, 1]."""
        if not isinstance(self.beta, AdaptiveBeta):
            return self.beta
        if rollout.kl_coef is None:
            return self.beta.initial
        return rollout.kl_coef[..., None, None, None]

    def _factor(self, rollout: Rollout) -> Tensor | float:
        """`coefficient`, whose shape is checked where a class of your own computes it."""
        return ask_factor("kl", self, rollout.reward.shape, self.coefficient, rollout)

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of the rollout that this penalty needs."""
        return self.anchor.needs

    @property
    def pieces(self) -> tuple[Declares, ...]:
        """The estimate, its place and its anchor."""
        return (self, self.place, self.anchor)

    def log_r(self, policy: Policy, rollout: Rollout, felt: Tensor) -> Tensor:
        """log r [..., Q, G, T] of the sampled tokens, 0 where `felt` [..., Q, G, T] is False."""
        shape = rollout.reward.shape
        log_r = ask_tensor("kl.anchor", self, shape, self.anchor.log_r, policy.log_prob, rollout)
        return rollout.select(felt, log_r)

    def value(self, policy: Policy, rollout: Rollout, felt: Tensor) -> Tensor:
        """The estimate per token [..., Q, G, T], without β, in nats.

        Where `felt` is False it is finite but has no meaning.
        """
        log_r = self.log_r(policy, rollout, felt)
        return ask_tensor("kl", self, log_r.shape, self.estimate, log_r)

    def times_ratio(self, log_r: Tensor, log_ratio: Tensor, beta: Tensor | float) -> Tensor:
        """ρ · β · estimate, [..., Q, G, T]."""
        estimate = ask_tensor("kl", self, log_r.shape, self.estimate, log_r)
        return times_ratio(log_ratio, beta * estimate)

    def felt(self, mask: Tensor, rollout: Rollout) -> Tensor:
        """`mask` [..., Q, G, T], with False for runs whose β is 0."""
        beta = self._factor(rollout)
        return mask & (beta != 0) if isinstance(beta, Tensor) else mask

    def penalty(
        self, policy: Policy, rollout: Rollout, log_ratio: Tensor, mask: Tensor
    ) -> Tensor | None:
        """What the objective subtracts per token, [..., Q, G, T]; None if it has no penalty.

        Where `mask` [..., Q, G, T] is False the result is finite but has no meaning.
        """
        if self.in_reward or self.beta == 0:
            return None
        beta, felt = self._factor(rollout), self.felt(mask, rollout)
        if self.place.uses_ratio:
            return self.times_ratio(self.log_r(policy, rollout, felt), log_ratio, beta)
        return beta * self.value(policy, rollout, felt)

    def shape_reward(self, rollout: Rollout) -> Tensor:
        """The reward [..., Q, G, T], minus β·k if the penalty is in the reward.

        k then compares π_old, which sampled the tokens, with the reference. Raises `CourseError` if
        the penalty is not finite.
        """
        if not self.in_reward or self.beta == 0:
            return rollout.reward
        sampled, felt = (
            Policy(rollout.log_prob, rollout.old_log_dist),
            self.felt(rollout.mask, rollout),
        )
        penalty = self._factor(rollout) * self.value(sampled, rollout, felt)
        penalty = rollout.select(felt, penalty)
        if not bool(torch.isfinite(penalty.sum())):
            self._refuse_infinite(penalty, rollout)
        return rollout.reward - penalty

    def _refuse_infinite(self, penalty: Tensor, rollout: Rollout) -> None:
        """Raise `NotFinite` if a penalty [..., Q, G, T] in the reward is not finite."""
        lost = ~torch.isfinite(penalty)
        if bool(lost.any()):  # else only their sum overflowed
            raise NotFinite(
                f"{self.short}: got a penalty of {penalty[lost][0].item()} in the reward; allowed"
                " is a finite one: the policy that sampled and the reference are too far apart",
                runs_with(lost, len(rollout.runs)),
            )

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is subtracted from the reward."""
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

    scope, implied = "token", True
    beta: float | AdaptiveBeta = 0.0
    symbol = "0"
    plain = "0"

    def __post_init__(self) -> None:
        allowed = "0 (K1, K2, K3 and ExactKL take a β)"
        require_number("NoKL.beta", self.beta, allowed, at_least=0, at_most=0)
        super().__post_init__()

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
    """−log r. `eq:kl-k1-in-loss`

    In the reward, on policy, its gradient is that of KL(π‖ref), exactly. Off policy it is not, even
    with the ratio: the reward contains log π_old instead of log π, so ∇KL(π‖π_old) is missing. In
    the loss its gradient has mean 0.
    """

    scope = "token"
    symbol = "k_1"
    plain = "k1"

    def estimate(self, log_r: Tensor) -> Tensor:
        return k1(log_r)


@dataclass(frozen=True)
class K2(KL):
    """½ (log r)². In the loss, on policy, its gradient is that of KL(π‖ref). `eq:kl-k2-in-loss`"""

    scope = "token"
    symbol = "k_2"
    plain = "k2"

    def estimate(self, log_r: Tensor) -> Tensor:
        return k2(log_r)


@dataclass(frozen=True)
class K3(KL):
    """r − 1 − log r (GRPO: Shao et al. 2024, eq. 4).

    In the loss, on policy, its gradient is that of KL(ref‖π). `eq:kl-k3-in-loss`

    `max_log_r`, in nats, bounds |log r| before the exponential (verl uses 20). None means no bound;
    k3 then overflows where π_ref ≫ π.
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
        """ρ · β · k3, [..., Q, G, T].

        Far from r = 1, ρ·r is computed as exp(log ρ + log r). A token that became rare has a small
        ρ and a large r, a token that became likely has the opposite, and 0·∞ would be NaN.
        """
        log_r = self._bounded(log_r)
        # above `high`, k3 rounds to r; below −15, r is negligible and k3 is −1 − log r
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
    """KL over the full next-token distribution, instead of an estimate from the sampled token.

    It needs `policy.log_dist` and the distribution of the anchor.
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
        shape = rollout.reward.shape
        exact = ask_factor("kl.anchor", self, shape, self.anchor.exact, log_dist, rollout, felt)
        return torch.as_tensor(exact, device=felt.device).expand(shape)
