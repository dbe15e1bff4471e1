"""The variance of a Gaussian policy's gradient: closed form, quadrature and the estimators.

The reward is −(a−c)² with c = 0, and the policy is N(d, σ²). All gradients are with respect to its
mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bandits.gaussian import group_gradients
from course import ladder
from course.estimator import Estimator, replace
from course.parts import Value

# quadrature nodes: exact for polynomials up to degree 11, and a squared gradient has degree 6
NODES = 6


def reward(action: Tensor) -> Tensor:
    """The reward −(a−c)² with c = 0."""
    return -(action**2)


Baseline = Callable[[float, Tensor], Tensor]  # d, σ [S] → b [S]

BASELINES: dict[str, Baseline] = {
    "no baseline": lambda d, sigma: torch.zeros_like(sigma),
    "b = J": lambda d, sigma: -(d**2 + sigma**2),
    "best b": lambda d, sigma: -(d**2 + 3 * sigma**2),
}

REPARAMETERISED = "differentiate the reward"

CLOSED_FORM: dict[str, Baseline] = {
    "no baseline": lambda d, sigma: d**4 / sigma**2 + 14 * d**2 + 15 * sigma**2,
    "b = J": lambda d, sigma: 8 * d**2 + 10 * sigma**2,
    "best b": lambda d, sigma: 8 * d**2 + 6 * sigma**2,
    REPARAMETERISED: lambda d, sigma: 4 * sigma**2,
}


def gradients(name: str, distance: float, sigma: Tensor, z: Tensor) -> Tensor:
    """The gradient with respect to μ from one sample a = d + σz: σ [S], z [N] → [S, N]."""
    sigma, mean = sigma[:, None], torch.tensor(distance, dtype=torch.float64)
    if name == REPARAMETERISED:  # not on the ladder, because it needs the reward's derivative
        leaf = mean.expand(len(sigma), len(z)).clone().requires_grad_()
        return torch.autograd.grad(reward(leaf + sigma * z).sum(), leaf)[0]
    action = (mean + sigma * z).unsqueeze(-1)
    estimator = replace(ladder.reinforce, baseline=Value())
    return group_gradients(
        estimator,
        mean,
        sigma.expand(action.shape[:-1]),
        action,
        reward,
        BASELINES[name](distance, sigma),
    )


def of_group(estimator: Estimator, distance: float, sigma: Tensor, z: Tensor) -> Tensor:
    """The gradient with respect to μ from groups of samples: σ [S], z [..., G] → [S, ...]."""
    sigma, mean = sigma[:, *(None,) * (z.dim() - 1)], torch.tensor(distance, dtype=torch.float64)
    action = mean + sigma.unsqueeze(-1) * z
    return group_gradients(estimator, mean, sigma.expand(action.shape[:-1]), action, reward)


def quadrature(samples: int) -> tuple[Tensor, Tensor]:
    """Gauss–Hermite nodes [N, samples] and weights [N] for independent standard normals.

    N = NODES^samples.
    """
    nodes, weights = (
        torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(NODES)
    )
    z = torch.cartesian_prod(*[nodes] * samples).reshape(-1, samples)
    return z, torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * samples).reshape(
        -1, samples
    ).prod(-1)


def moments(gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the last axis: [S, N], [N] → [S], [S]."""
    mean = gradient @ weight
    return mean, (gradient - mean[:, None]) ** 2 @ weight


def mean_spread(group: int) -> float:
    """E of the population std of G standard normals: √(2/G) Γ(G/2) / Γ((G−1)/2)."""
    return math.sqrt(2 / group) * math.exp(math.lgamma(group / 2) - math.lgamma((group - 1) / 2))


def expected_mean(name: str, group: int, distance: float) -> float | None:
    """E[ĝ] of a rung in closed form; None if there is no closed form."""
    share = {"reinforce": 1.0, "rloo": 1.0, "group_mean": (group - 1) / group}.get(name)
    return None if share is None else -2 * distance * share


def expected_noise(name: str, group: int, distance: float, sigma: Tensor) -> Tensor | None:
    """The std of a rung's gradient divided by |E[ĝ]|, in closed form, [S]; None if there is none.

    RLOO has Var = V_J/G + (σ_r² E s² + ‖∇J‖²)/(G(G−1)). The group mean's gradient is RLOO's times
    (G−1)/G. For the group std as σ → 0 the rewards are linear in z, so ĝ → −sign(d)·std(z)/σ.
    """
    slope = 2 * distance
    if name == "reinforce":
        return (CLOSED_FORM["no baseline"](distance, sigma) / group).sqrt() / slope
    if name in ("rloo", "group_mean"):
        pairs = 8 * distance**2 + 2 * sigma**2
        return (
            CLOSED_FORM["b = J"](distance, sigma) / group + pairs / (group * (group - 1))
        ).sqrt() / slope
    if name == "group_std":
        return torch.full_like(sigma, math.sqrt((group - 1) / group / mean_spread(group) ** 2 - 1))
    return None
