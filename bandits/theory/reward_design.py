"""The reward of Lelarge's notebook Gauss_GRPO, its true gradient, and an estimator's gradient.

The reward is a window that pays almost 1, plus a small bonus elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bandits.gaussian import group_gradients
from course.estimator import Estimator
from course.train.noise import Noise

WINDOW = 0.5  # half the width of the window around the target 0 that pays 1 − α


def reward(x: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """(1−α)·1[|x| ≤ ½] + α·exp(−(x−δ)²/2)."""
    return (1 - alpha) * (x.abs() <= WINDOW) + alpha * torch.exp(-((x - delta) ** 2) / 2)


def true_gradient(theta: Tensor, alpha: float, delta: float) -> Tensor:
    """J'(θ) for x ~ N(θ, 1) in closed form, [...] → [...].

    J = (1−α)(Φ(½−θ) − Φ(−½−θ)) + (α/√2) exp(−(θ−δ)²/4).
    """

    def density(z: Tensor) -> Tensor:
        return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    window = (1 - alpha) * (density(theta + WINDOW) - density(theta - WINDOW))
    return window - alpha / math.sqrt(2) * (theta - delta) / 2 * torch.exp(
        -((theta - delta) ** 2) / 4
    )


def chance_of_a_hit(theta: Tensor, samples: int) -> Tensor:
    """The probability that at least one of `samples` draws from N(θ, 1) is in the window.

    [...] → [...].
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    hit = normal.cdf(WINDOW - theta.abs()) - normal.cdf(-WINDOW - theta.abs())
    return -torch.expm1(samples * torch.log1p(-hit))


def drift(
    estimator: Estimator,
    design: tuple[float, float],
    theta: Sequence[float],
    group: int,
    groups: int,
    seed: int,
) -> Tensor:
    """The gradients [groups, N] of `groups` independent groups at each of N means θ.

    Their mean over groups estimates E[ĝ]. `group` is the number of samples in a group.
    """
    places = torch.tensor(theta, dtype=torch.float64)
    alpha, delta = torch.tensor(design, dtype=torch.float64)
    action = places[:, None] + Noise((), seed, dtype=torch.float64).normal(
        groups, len(places), group
    )
    return group_gradients(estimator, places, 1.0, action, lambda x: reward(x, alpha, delta))
