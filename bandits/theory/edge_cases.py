"""Textbook formulas that fail in float32, next to the course's own parts.

The formulas are a mean, a std, a leave-one-out std, and k3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.parts import K3, Baseline, GroupStd, NoScale, Scale
from course.rollout import Policy, Rollout


@dataclass(frozen=True)
class PlainMean(Baseline):
    """mean(R) by adding one return after another, without regard to rounding."""

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        return (plain_sum(returns) / returns.shape[-1]).unsqueeze(-1)


@dataclass(frozen=True)
class PlainStd(Scale):
    """Divide by √(Σ(R − mean)² / (G − ddof)) + eps, even if the std is only rounding error."""

    ddof: int = 0
    eps: float = 1e-8

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        group = returns.shape[-1]
        std = (plain_sum((returns - plain_sum(returns) / group) ** 2) / (group - self.ddof)).sqrt()
        return advantage / (std + self.eps).unsqueeze(-1)


@dataclass(frozen=True)
class LeaveOneOutStd(Scale):
    """Divide by the std of the other samples' returns, plus eps.

    It looks like the natural scale for a leave-one-out baseline.
    """

    eps: float = 1e-6

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        group = returns.shape[-1]
        others = returns.unsqueeze(-2).expand(*returns.shape, group)[
            ..., ~torch.eye(group, dtype=torch.bool)
        ]
        std = torch.unflatten(others, -1, (group, group - 1)).std(-1, correction=0)
        return advantage / (std + self.eps).unsqueeze(-1)


def plain_sum(values: Tensor) -> Tensor:
    """Sum [..., G] → [..., 1] in the order of the samples, so that all machines round the same."""
    total = values[..., :1]
    for sample in range(1, values.shape[-1]):
        total = total + values[..., sample : sample + 1]
    return total


def advantages(estimator: Estimator, rewards: Tensor) -> Tensor:
    """The advantages [..., G] of one-token samples with rewards [..., G]."""
    reward = rewards.unsqueeze(-2).unsqueeze(-1)  # [..., Q = 1, G, T = 1]
    rollout = Rollout(reward, torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool))
    return estimator.freeze(rollout).advantage[..., 0, :, 0]


def plain(eps: float | None, ddof: int = 0) -> Estimator:
    """Group mean and std by the textbook formula; `eps` None means no std."""
    return replace(
        ladder.reinforce,
        baseline=PlainMean(),
        scale=NoScale() if eps is None else PlainStd(ddof=ddof, eps=eps),
    )


def ours(eps: float | None, ddof: int = 0) -> Estimator:
    """The same with the course's own parts."""
    return replace(
        ladder.group_mean, scale=NoScale() if eps is None else GroupStd(ddof=ddof, eps=eps)
    )


def penalty(kl: K3, log_r: float, dtype: torch.dtype = torch.float32) -> float:
    """The KL penalty of one sample that is e^{log_r} times as likely under the reference policy."""
    zero = torch.zeros(1, 1, 1, dtype=dtype)
    rollout = Rollout(zero, zero - log_r, torch.ones(1, 1, 1, dtype=torch.bool), ref_log_prob=zero)
    estimator = replace(ladder.reinforce, kl=kl)
    return -float(estimator.objective(Policy(zero - log_r), estimator.freeze(rollout)))


def equal(reward: Tensor, group: int) -> Tensor:
    """Groups [..., G] of equal float32 rewards, from rewards [...]."""
    return reward.float().unsqueeze(-1).expand(*reward.shape, group)


def near(large: float) -> Tensor:
    """2,001 rewards around a large one, from 1 below it to 1 above it."""
    return torch.linspace(large - 1, large + 1, 2001, dtype=torch.float64)


def largest(estimator: Estimator, groups: Tensor) -> float:
    """The largest |advantage| of any sample in groups [..., G]."""
    return float(advantages(estimator, groups).abs().max())


def largest_or_refused(estimator: Estimator, groups: Tensor) -> float | str:
    """`largest`, or "refused" if the estimator raises an error for these groups."""
    try:
        return largest(estimator, groups)
    except CourseError:
        return "refused"


def measure(group: int, reward: float, large: float, log_r: float) -> dict[str, dict[str, Any]]:
    """Each case: |advantage| (or the penalty) by the textbook formula and by the course's parts.

    `group` samples have equal rewards, `reward` or near `large`; `log_r` is log π_ref/π in nats for
    k3. A case has a "label", its values "plain" and "course", and "how" the course's part does it,
    where that is not the same formula.
    """
    cases: dict[str, dict[str, Any]] = {}
    same, big = equal(torch.tensor([reward]), group), equal(near(large), group)
    rare, one = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0]])
    left_out = replace(ladder.rloo, scale=LeaveOneOutStd(eps=1e-6))

    def case(name: str, label: str, formula: float, course: float | str, how: str = "") -> None:
        cases[name] = {"label": label, "plain": formula, "course": course, "how": how}

    label = f"{group} rewards of {reward:g}, eps 1e-8"
    case("equal", label, largest(plain(1e-8), same), largest(ours(1e-8), same))
    label = f"{group} equal rewards near {large:g}, no std"
    case("large", label, largest(plain(None), big), largest(ours(None), big))
    label = "the same, std with eps 1e-4"
    case("large_std", label, largest(plain(1e-4), big), largest(ours(1e-4), big))
    label, course = "one sample, std with ddof 1", largest_or_refused(ours(1e-4, ddof=1), one)
    case("one", label, largest(plain(1e-4, ddof=1), one), course)
    label, how = "(1, 0, 0, 0), leave-one-out std, eps 1e-6", "the group's std"
    case("left_out", label, largest(left_out, rare), largest(ours(1e-6), rare), how)
    label, how = f"k3 where log π_ref/π = {log_r:g}", "log r clamped at 20"
    clamped = penalty(K3(beta=1.0, max_log_r=20.0), log_r)
    case("k3", label, penalty(K3(beta=1.0), log_r), clamped, how)
    return cases


def spacing(value: float) -> float:
    """The distance from a float32 number to the next larger one."""
    here = torch.tensor(value, dtype=torch.float32)
    return float(torch.nextafter(here, torch.tensor(math.inf)) - here)


def overflow_point() -> float:
    """The smallest log ratio at which k3 is infinite in float32, by bisection."""
    low, high = 50.0, 200.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if math.isinf(penalty(K3(beta=1.0), middle)) else (middle, high)
    return high
