"""Lesson 03b's equations in numbers: TRPO's step, by differences, dense solvers and a grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.exact import B3_MEANS, B3_POLICY
from bandits.natural import natural_direction
from course.parts.kl import exact_kl
from course.train.optim import Closures
from course.train.trust_region import TRPO, conjugate_gradient, fisher_product

OLD = torch.tensor(B3_POLICY, dtype=torch.float64)
MEAN = torch.tensor(B3_MEANS, dtype=torch.float64)
J_OLD = 0.41  # .5·.2 + .3·.5 + .2·.8


def closures(theta: torch.Tensor) -> Closures:
    return Closures(
        parameters=[theta],
        loss=lambda: -(torch.softmax(theta, -1) @ (MEAN - J_OLD)),
        log_dist=lambda: torch.log_softmax(theta, -1),
        mean_kl=lambda q, p: exact_kl(q, p).sum(),
        old_log_dist=OLD.log(),
    )


def test_the_fisher_matrix_is_the_kl_to_second_order() -> None:
    """`eq:fisher-kl`: F v = (diag(π) − ππᵀ)v, and KL(π‖π_d) − ½dᵀFd falls with the third power of
    d.
    """
    product = fisher_product(closures(OLD.log().requires_grad_()), 0.0)
    fisher = torch.diag(OLD) - torch.outer(OLD, OLD)
    d = torch.tensor([0.3, -0.1, 0.5], dtype=torch.float64)
    assert torch.allclose(product([d])[0], fisher @ d, atol=1e-12)

    def error(scale: float) -> float:
        after = torch.log_softmax(OLD.log() + scale * d, -1)
        return abs(float(OLD @ (OLD.log() - after)) - 0.5 * scale**2 * float(d @ fisher @ d))

    assert math.log2(error(0.02) / error(0.01)) == pytest.approx(3, abs=0.1)


def test_the_natural_gradient_of_a_softmax_is_the_advantage() -> None:
    """`eq:natural-gradient-softmax`: the pseudo-inverse of F times ∇J is A − mean(A)."""
    for policy in (OLD, torch.tensor([0.97, 0.02, 0.01], dtype=torch.float64)):
        advantage = MEAN - policy @ MEAN
        fisher = torch.diag(policy) - torch.outer(policy, policy)
        want = advantage - advantage.mean()
        assert torch.allclose(torch.linalg.pinv(fisher) @ (policy * advantage), want, atol=1e-9)
        assert torch.allclose(natural_direction(policy * advantage, policy.log()), want, atol=1e-12)


def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_dimensions() -> None:
    """`eq:conjugate-gradient`: against a dense solver; the first iterate is (bᵀb / bᵀAb) b."""
    matrix = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    first, last = (conjugate_gradient(lambda v: [matrix @ v[0]], [b], 0, n)[0] for n in (1, 3))
    assert torch.allclose(first, (b @ b) / (b @ matrix @ b) * b, atol=1e-12)
    assert torch.allclose(last, torch.linalg.solve(matrix, b), atol=1e-12)


def step(delta: float, backtracks: int = 10) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    theta = OLD.log().requires_grad_()
    asked = closures(theta)
    told = TRPO(delta, damping=0.0, backtracks=backtracks).step(
        torch.autograd.grad(asked.loss(), [theta]), asked
    )
    return theta.detach(), told


def test_the_step_has_the_length_at_which_the_parabola_is_delta() -> None:
    """`eq:trust-region-length`: √(2δ/Var(A))·A on B3, times the accepted fraction."""
    advantage = MEAN - J_OLD
    theta, told = step(0.01)
    want = (
        float(told["step_fraction"])
        * (2 * 0.01 / (OLD @ advantage**2)).sqrt()
        * (advantage - advantage.mean())
    )
    found = theta - OLD.log()
    assert torch.allclose(found - found.mean(), want, atol=1e-9)


@pytest.mark.parametrize("delta", [0.001, 0.1, 1.0])
def test_the_step_rises_inside_the_bound(delta: float) -> None:
    """`eq:trust-region-problem`: J rises, KL(π_old‖π) ≤ δ, and half of what a line of policies at
    that KL could gain is had.
    """
    theta, told = step(delta)
    after = torch.log_softmax(theta, -1)
    kl = float(OLD @ (OLD.log() - after))
    assert kl <= delta
    assert kl == pytest.approx(float(told["trust_region_kl"]))
    gain = float(after.exp() @ MEAN) - J_OLD
    best = max(  # of all policies on a grid of the simplex that are inside the bound
        a * 0.2 + b * 0.5 + (1 - a - b) * 0.8 - J_OLD
        for a, b in itertools.product(torch.linspace(0.005, 0.99, 120).tolist(), repeat=2)
        if a + b < 0.995
        and 0.5 * math.log(0.5 / a) + 0.3 * math.log(0.3 / b) + 0.2 * math.log(0.2 / (1 - a - b))
        <= delta
    )
    assert 0.4 * best < gain <= best * 1.1
