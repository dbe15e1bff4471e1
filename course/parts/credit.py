"""Credit: rewards per token → return per token, both [..., Q, G, T].

A time step is a token that the policy chose. A token that it did not choose (mask False) is no
step: its reward counts for the chosen token before it, and values are carried across it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import require, require_number
from course.parts.base import Part, number
from course.parts.baseline import NoBaseline, Value
from course.rollout import Rollout


def require_share(field: str, value: float) -> None:
    """Raise `CourseError` unless `value` (γ or λ) is a number from 0 to 1."""
    require_number(field, value, "a number from 0 to 1", at_least=0, at_most=1)


@dataclass(frozen=True)
class Credit(Part):
    """Rewards [..., Q, G, T] → the return that each token is credited with, [..., Q, G, T]."""

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        raise NotImplementedError

    def target(self, reward: Tensor, rollout: Rollout) -> Tensor | None:
        """What a critic regresses on, [..., Q, G, T]; None means the credit itself."""
        return None


def total_return(reward: Tensor) -> Tensor:
    """R_i = Σ_t r_{i,t}, the same for every token: [..., T] → [..., T].

    Source: Williams 1992 (episodic REINFORCE). eq:sum-of-token-rewards
    """
    if reward.shape[-1] == 1:
        return reward
    return reward.sum(-1, keepdim=True).expand(reward.shape)


def lambda_return(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float | Tensor,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """R^λ_t = V_t + Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t: [..., T] → [..., T].

    R^λ − V is the advantage of Schulman et al. 2016 (GAE), eq. 16. λ = 0 gives r_t + γ V_{t+1};
    λ = 1 gives the discounted reward-to-go. λ may be [...], one per sample. `bootstrap` [...] is V
    after the last token; it is 0 for a sample that really ended, and None means 0 for all. The
    result is 0 where the mask is
    False. eq:gae-sum, computed by eq:lambda-recursion.
    """
    next_value = torch.zeros_like(reward[..., 0]) if bootstrap is None else bootstrap
    # R^λ_t = r_t + γ ((1−λ) V_{t+1} + λ R^λ_{t+1}): `next_return` carries R^λ_{t+1}, `pending` the
    # rewards since token t.
    next_return = next_value
    pending = torch.zeros_like(next_value)
    returns = []
    for t in range(reward.shape[-1] - 1, -1, -1):
        pending = pending + reward[..., t]
        here = pending + gamma * ((1 - gae_lambda) * next_value + gae_lambda * next_return)
        chosen = mask[..., t]
        next_return = torch.where(chosen, here, next_return)
        next_value = torch.where(chosen, value[..., t], next_value)
        returns.append(torch.where(chosen, here, torch.zeros_like(here)))
        pending = torch.where(chosen, torch.zeros_like(pending), pending)
    return torch.stack(returns[::-1], -1)


def last_value(rollout: Rollout) -> Tensor | None:
    """The value after the last token [..., Q, G]: `bootstrap` if truncated, 0 if the sample ended.

    Returns None where no sample was truncated. Raises `CourseError` if one was and the rollout has
    no `bootstrap`.
    """
    if rollout.truncated is None:
        return None
    if rollout.bootstrap is None:
        require(
            not bool(rollout.truncated.any()),
            "rollout.bootstrap",
            None,
            "the value after the last token, since samples were truncated",
        )
        return None
    return torch.where(rollout.truncated, rollout.bootstrap, torch.zeros_like(rollout.bootstrap))


@dataclass(frozen=True)
class TotalReturn(Credit):
    """Every token gets the whole return of its sample, eq:answer-return (Williams 1992).

    It equals `RewardToGo()` if the only reward is on the last token.
    """

    scope, implied = "sample", True
    symbol = r"R_i=\sum_{t} r_{i,t}"
    plain = "R = Σ_t r"

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        # a sample without a chosen token does not count: its return is 0
        exists = rollout.present
        if exists is not None:
            reward = torch.where(exists.unsqueeze(-1), reward, torch.zeros_like(reward))
        return total_return(reward)


@dataclass(frozen=True)
class RewardToGo(Credit):
    """A token gets the sum of the rewards from itself on, discounted by γ per token.

    Earlier rewards cannot depend on the token (causality). Source: Sutton et al. 1999.
    eq:reward-to-go
    """

    scope = "sample"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        require_share("RewardToGo.gamma", self.gamma)

    @property
    def latex(self) -> str:
        discount = "" if self.gamma == 1 else rf"{number(self.gamma)}^{{\,l}}\,"
        return rf"R_{{i,t}}=\sum_{{l\ge0}} {discount}r_{{i,t+l}}"

    @property
    def text(self) -> str:
        return "R_t = Σ_l " + ("" if self.gamma == 1 else f"{self.gamma:g}^l ") + "r_{t+l}"

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        return lambda_return(reward, reward, rollout.mask, self.gamma, 1.0)


@dataclass(frozen=True)
class GAE(Credit):
    """The λ-return; minus the critic's value it is the generalised advantage estimate.

    It is the mean of all n-step returns, weighted by (1 − λ)λ^{n−1}: eq:lambda-average. Language
    models use γ = 1, since one answer is one action. Raises `Clash` unless the baseline is
    `Value()`. Source: Schulman et al. 2016, eq. 16.
    """

    scope = "sample"
    needs = ("value",)
    gamma: float = 1.0
    gae_lambda: float = 0.95

    def __post_init__(self) -> None:
        require_share(f"{type(self).__name__}.gamma", self.gamma)
        require_share(f"{type(self).__name__}.gae_lambda", self.gae_lambda)

    @property
    def latex(self) -> str:
        gamma = "" if self.gamma == 1 else number(self.gamma)
        decay = number(self.gamma * self.gae_lambda)
        return (
            rf"R_{{i,t}}=V_{{i,t}}+\sum_{{l\ge0}} {decay}^{{\,l}}\,\delta_{{i,t+l}},\;"
            rf"\delta_{{i,t}}=r_{{i,t}}+{gamma}V_{{i,t+1}}-V_{{i,t}}"
        )

    @property
    def text(self) -> str:
        return f"R_t = V_t + Σ_l {self.gamma * self.gae_lambda:g}^l δ_{{t+l}}"

    def check(self, parts: Mapping[str, Part]) -> None:
        if not isinstance(parts["baseline"], Value):
            raise self.clash(
                parts["baseline"],
                "its return is measured against the critic's values, so the baseline must be"
                " Value()",
            )

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.value is not None
        return lambda_return(
            reward, rollout.value, rollout.mask, self.gamma, self.gae_lambda, last_value(rollout)
        )


@dataclass(frozen=True)
class TD(GAE):
    """One-step temporal difference, r_t + γ V_{t+1}: GAE with λ = 0. eq:one-step-td

    Source: Sutton & Barto 2018, eq. 13.12.
    """

    gae_lambda: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.gae_lambda == 0, "TD.gae_lambda", self.gae_lambda, "0 (use GAE for other values)"
        )

    @property
    def latex(self) -> str:
        gamma = "" if self.gamma == 1 else number(self.gamma)
        return rf"R_{{i,t}}=r_{{i,t}}+{gamma}V_{{i,t+1}}"

    @property
    def text(self) -> str:
        return "R_t = r_t + " + ("" if self.gamma == 1 else f"{self.gamma:g} ") + "V_{t+1}"


@dataclass(frozen=True)
class LengthAdaptiveGAE(GAE):
    """GAE whose λ grows with the answer: λ_i = 1 − 1/(α|o_i|), at least 0; the critic has its own.

    With a fixed λ a reward at the end reaches a token l places before it as λ^l, so that in long
    answers it reaches the first tokens hardly at all; Σ_l λ_i^l = α|o_i| grows as the answer does.
    `gae_lambda` is the λ of what the critic regresses on, 1 in the paper: an unbiased target
    (decoupled GAE). |o_i| counts chosen tokens. Raises `Clash` as `GAE`. Source: Yue et al. 2025
    (VAPO, 2504.05118), α = .05; Yuan et al. 2025 (VC-PPO, 2503.01491).
    """

    scope = "sample"
    gae_lambda: float = 1.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("LengthAdaptiveGAE.alpha", self.alpha, "a number > 0", above=0)

    @property
    def latex(self) -> str:
        gamma = "" if self.gamma == 1 else number(self.gamma)
        return (
            rf"R_{{i,t}}=V_{{i,t}}+\sum_{{l\ge0}} ({gamma}\lambda_i)^{{\,l}}\,\delta_{{i,t+l}},\;"
            rf"\delta_{{i,t}}=r_{{i,t}}+{gamma}V_{{i,t+1}}-V_{{i,t}},\;"
            rf"\lambda_i=1-\tfrac{{1}}{{{number(self.alpha)}|o_i|}}"
        )

    @property
    def text(self) -> str:
        gamma = "" if self.gamma == 1 else f"{self.gamma:g}"
        return f"R_t = V_t + Σ_l ({gamma}λ)^l δ_{{t+l}}, λ = 1 − 1/({self.alpha:g}|o|)"

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.value is not None
        length = rollout.length.to(reward.dtype).clamp(min=1)
        own = (1 - 1 / (self.alpha * length)).clamp(min=0)
        last = last_value(rollout)
        return lambda_return(reward, rollout.value, rollout.mask, self.gamma, own, last)

    def target(self, reward: Tensor, rollout: Rollout) -> Tensor:
        return super().__call__(reward, rollout)


@dataclass(frozen=True)
class TeacherLogRatio(Credit):
    """log π_teacher − log π_old of each token, in nats, instead of any reward: distillation.

    The teacher is the rollout's reference policy. On policy the gradient of answers of one token is
    −∇KL(π‖teacher); in longer ones each token's own term is kept and its effect on later tokens
    left out. Raises `Clash` beside a baseline, or a scale that compares returns. Source: Gu et al.
    2024 (MiniLLM, 2306.08543); Agarwal et al. 2024 (on-policy distillation, 2306.13649).
    """

    scope = "token"
    needs = ("ref_log_prob",)
    symbol = r"R_{i,t}=\log\frac{\pi_{\text{teacher}}(o_{i,t})}{\pi_{\text{old}}(o_{i,t})}"
    plain = "R_t = log π_teacher − log π_old"

    def check(self, parts: Mapping[str, Part]) -> None:
        if not isinstance(parts["baseline"], NoBaseline):
            raise self.clash(parts["baseline"], "it is an advantage already; use NoBaseline()")
        if "returns" in (parts["scale"].reads or ()):
            raise self.clash(parts["scale"], "a token's log-ratio is no return of its sample")

    def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
        assert rollout.ref_log_prob is not None
        return rollout.select(rollout.mask, rollout.ref_log_prob - rollout.log_prob)
