"""What each scale maximises: for rewards of 0 or 1 it is one curve w(p) that multiplies ∇p.

The names of `SCALES` are those of the figure; each has an estimator and the formula of its curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import outcomes
from bandits.theory.difficulty import STD, four_answers, right_or_wrong
from course import exact, ladder
from course.estimator import Estimator, replace
from course.exact import Outcomes, group_std_weight, microscope
from course.parts import PKPO, NoBaseline, PassKTraining, PositivesTimes
from course.rollout import Rollout


def likelihood_weight(p: Tensor, order: int) -> Tensor:
    """Σ_{k=1}^{order} (1−p)^{k−1} = (1 − (1−p)^order)/p, for p of any shape.

    It is ∇log p = Σ_k ∇pass@k / k cut off after `order` terms (Tajwar et al. 2026). MaxRL's order
    is G − 1, since the group's mean contains the sample itself. eq:maxrl-weight
    """
    return (1 - (1 - p) ** order) / p


def pass_at_k_weight(p: Tensor, k: int) -> Tensor:
    """k(1−p)^{k−1}, the derivative of pass@k = 1 − (1−p)^k, for p of any shape."""
    return k * (1 - p) ** (k - 1)


def pass_k_training_weight(p: Tensor, group: int, k: int) -> Tensor:
    """E[N √(F/(1−F))] / (G p(1−p)) with N ~ Bin(G, p) right and F = C(G−N, k)/C(G, k); p any shape.

    In a group the right samples have (1−R̄)/σ = √(F/(1−F)) and all sum to 0, so that the group's
    mean of A ∇log π is N √(F/(1−F)) / (G p(1−p)) · ∇p. F = 1 (none right) has advantage 0.
    """
    total = torch.zeros_like(p)
    for right in range(1, group + 1):
        silent = math.comb(group - right, k) / math.comb(group, k)
        chance = math.comb(group, right) * p**right * (1 - p) ** (group - right)
        total = total + chance * right * math.sqrt(silent / (1 - silent))
    return total / (group * p * (1 - p))


@dataclass(frozen=True)
class Curve:
    """An estimator for k tries, and the formula of its w(p) for G samples, k tries."""

    estimator: Callable[[int], Estimator]
    formula: Callable[[Tensor, int, int], Tensor]


SCALES: dict[str, Curve] = {
    "mean, leave-one-out": Curve(lambda k: ladder.rloo, lambda p, g, k: torch.ones_like(p)),
    "mean, group": Curve(
        lambda k: ladder.group_mean, lambda p, g, k: torch.full_like(p, (g - 1) / g)
    ),
    "group std": Curve(lambda k: STD, lambda p, g, k: group_std_weight(p, g)),
    "MaxRL": Curve(lambda k: ladder.maxrl, lambda p, g, k: likelihood_weight(p, g - 1)),
    "PKPO": Curve(
        lambda k: replace(ladder.leader, scale=PKPO(k)), lambda p, g, k: pass_at_k_weight(p, k)
    ),
    "Pass@k training": Curve(
        lambda k: replace(ladder.leader, scale=PassKTraining(k)), pass_k_training_weight
    ),
    "leader": Curve(lambda k: ladder.leader, lambda p, g, k: pass_at_k_weight(p, g) / g),
    "W-REINFORCE": Curve(lambda k: ladder.w_reinforce, lambda p, g, k: torch.full_like(p, 0.55)),
}
UNCENTRED_MAXRL = replace(ladder.maxrl, baseline=NoBaseline())  # whose order is G
NSR = replace(ladder.plus_minus, scale=PositivesTimes(0.0))  # wrong answers alone


@dataclass(frozen=True)
class OnlyRight(PositivesTimes):
    """The other half: positive advantages alone (PSR, Zhu et al. 2025)."""

    scope = "token"
    factor: float = 1.0

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return self.factor * advantage.clamp(min=0)


PSR = replace(ladder.plus_minus, scale=OnlyRight())


def objective_of(weight: Tensor, p: Tensor) -> Tensor:
    """∫₀^p w, over its value at the last p, by the trapezoid rule: w [n] at p [n] → [n].

    p rises, in small steps from near 0.
    """
    found = torch.cumulative_trapezoid(weight, p)
    found = torch.cat([torch.zeros_like(found[:1]), found])
    return found / found[-1]


def signal_to_noise(estimator: Estimator, p: float, group: int) -> float:
    """‖E[ĝ]‖ over the root of the trace of ĝ's covariance, for one group.

    The answers are two right and two wrong ones, each pair equally likely, p in all to be right.
    With a single answer of each kind a baseline may leave no noise at all.
    """
    seen = microscope(estimator, four_answers(p, 1, 1), group)
    assert seen.covariance is not None
    return float(seen.expected.norm() / seen.covariance.trace().sqrt())


def second_moment(estimator: Estimator, p: float) -> float:
    """E‖ĝ‖² of a single sample, a right answer of probability p or a wrong one."""
    seen = microscope(estimator, right_or_wrong(p), 1)
    assert seen.covariance is not None
    return float(seen.covariance.trace() + seen.expected.square().sum())


def several_rewards(rewards: tuple[float, ...], policy: tuple[float, ...]) -> Outcomes:
    """One prompt whose answers have these rewards and probabilities."""
    reward = torch.tensor([rewards], dtype=torch.float64)
    return outcomes(Environment(reward), torch.tensor([policy], dtype=torch.float64).log())


def expected_best(rewards: tuple[float, ...], policy: tuple[float, ...], k: int) -> Tensor:
    """∇E[max of k] [D] by the logits, by automatic differentiation of Σ_v v (F(v)^k − F(v−)^k)."""
    theta = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
    chance, paid = theta.softmax(0), torch.tensor(rewards, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for value in sorted(set(rewards)):
        up_to, below = chance[paid <= value].sum(), chance[paid < value].sum()
        total = total + value * (up_to**k - below**k)
    return torch.autograd.grad(total, theta)[0]


def best_of_k_error(
    estimator: Estimator, group: int, k: int, factor: float, listed: Outcomes, true: Tensor
) -> float:
    """The relative distance of factor · E[ĝ] from ∇E[max of k]."""
    found = factor * microscope(estimator, listed, group, covariance=False).expected
    return float(exact.relative_distance(found, true))


def largest_sum(estimator: Estimator, rewards: tuple[float, ...], group: int) -> float:
    """The largest |Σ_i A_i| over every group of `group` samples with these rewards."""
    every = list(itertools.combinations_with_replacement(rewards, group))
    reward = torch.tensor(every, dtype=torch.float64)[..., None, :, None]  # [groups, 1, G, 1]
    mask = torch.ones_like(reward, dtype=torch.bool)
    frozen = estimator.freeze(Rollout(reward, torch.zeros_like(reward), mask))
    return float(frozen.advantage.sum((-2, -1)).abs().max())


def heard(estimator: Estimator, p: float, group: int) -> float:
    """The probability of a group with a gradient, of a right and a wrong answer."""
    every = exact.every_group(estimator, right_or_wrong(p), group)
    return float(every.chance[(every.gradient != 0).any(-1)].sum())
