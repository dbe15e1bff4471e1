"""Lesson 03's equations in numbers: the importance ratio, the identity behind the surrogate,
effective samples, TRPO's step.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.exact import B3_MEANS, B3_POLICY, b3
from bandits.natural import natural_direction
from bandits.theory import effective_samples as far
from bandits.theory import staleness
from course import ladder
from course.estimator import replace
from course.exact import microscope
from course.parts import LeaveOneOut, SequenceRatio
from course.parts.kl import exact_kl
from course.rollout import Policy, Rollout
from course.train.optim import Closures
from course.train.trust_region import TRPO, conjugate_gradient, fisher_product

OLD = torch.tensor(B3_POLICY, dtype=torch.float64)
MEAN = torch.tensor(B3_MEANS, dtype=torch.float64)
NEW = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
J_OLD = 0.41  # .5·.2 + .3·.5 + .2·.8


def test_the_ratio_reweighs_an_expectation() -> None:
    """`eq:importance-ratio`: Σ π_old ρ f = Σ π f, with ρ as the estimator computes it."""
    rollout = Rollout(
        MEAN.view(1, 3, 1), OLD.log().view(1, 3, 1), torch.ones(1, 3, 1, dtype=torch.bool)
    )
    rho = ladder.surrogate.log_ratio(Policy(NEW.log().view(1, 3, 1)), rollout).exp().flatten()
    assert rho.tolist() == pytest.approx([0.4, 1.0, 2.5])
    for f in (MEAN, MEAN**2, torch.ones(3, dtype=torch.float64)):
        assert float(OLD @ (rho * f)) == pytest.approx(float(NEW @ f), abs=1e-12)


def test_the_expected_surrogate_is_the_improvement_at_any_distance() -> None:
    """`eq:surrogate-identity`: E_old[ρA] = J(π) − J(π_old) on every group that can occur, near and
    far.
    """
    estimator = far.centred(ladder.surrogate, J_OLD)
    for now in (
        NEW,
        torch.tensor([0.01, 0.01, 0.98], dtype=torch.float64),
        torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64),
    ):
        value, _ = far.objective_moments(estimator, far.bernoulli_arms(now.log(), OLD.log()), 3)
        assert value == pytest.approx(float(now @ MEAN) - J_OLD, abs=1e-12)


def test_the_surrogates_gradient_is_that_of_the_policy_where_it_stands() -> None:
    """`eq:surrogate-gradient`: off policy E[ĝ] = π(μ − J), the exact ∇J of the current policy;
    A·log π has another.
    """
    exact = NEW * (MEAN - NEW @ MEAN)
    listed = far.bernoulli_arms(NEW.log(), OLD.log())
    unbiased = replace(ladder.surrogate, baseline=LeaveOneOut())
    assert torch.allclose(
        microscope(unbiased, listed, 3, covariance=False).expected, exact, atol=1e-12
    )
    assert torch.allclose(
        microscope(ladder.surrogate, listed, 3, covariance=False).expected,
        exact * 2 / 3,
        atol=1e-12,
    )
    assert (microscope(ladder.rloo, listed, 3, covariance=False).expected - exact).norm() > 0.05


def test_at_the_old_policy_ratio_and_score_function_have_one_gradient() -> None:
    """`eq:surrogate-gradient-at-old`: by finite differences of ρA at π_old, A(e_a − π); and by the
    microscope.
    """
    step = 1e-6
    for arm, j in itertools.product(range(3), range(3)):
        shifted = [
            torch.log_softmax(OLD.log() + sign * step * torch.eye(3, dtype=torch.float64)[j], -1)
            for sign in (1, -1)
        ]
        up, down = (
            float(ladder.surrogate.surrogate(s[arm] - OLD[arm].log(), s[arm], torch.tensor(0.7)))
            for s in shifted
        )
        assert (up - down) / (2 * step) == pytest.approx(
            0.7 * ((arm == j) - float(OLD[j])), abs=1e-8
        )
    assert staleness.distance_to_policy_gradient("surrogate", b3(), 3) < 1e-12


def test_effective_samples_by_sampling_theory() -> None:
    """`eq:effective-samples`: 1/E[ρ²] by hand on B3; and never above exp(−KL)."""
    listed = far.bernoulli_arms(NEW.log(), OLD.log())
    by_hand = 0.5 * 0.4**2 + 0.3 * 1 + 0.2 * 2.5**2
    assert far.second_moment(listed) == pytest.approx(by_hand, abs=1e-12)
    kl = 0.2 * math.log(0.4) + 0.5 * math.log(2.5)
    assert far.distance(listed) == pytest.approx(kl, abs=1e-12)
    assert 1 / by_hand <= math.exp(-kl)


def test_an_answers_ratio_is_the_product_of_its_tokens() -> None:
    """`eq:sequence-ratio`: π(o)/π_old(o) from the probabilities of the whole answers."""
    now, old = (
        torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.4, 0.7]]),
        torch.tensor([[0.4, 0.3, 0.9], [0.2, 0.2, 0.5]]),
    )
    mask = torch.tensor([[True, True, True], [True, True, False]])
    log_ratio = torch.where(mask, (now / old).log(), 0.0)
    found = SequenceRatio()(log_ratio, mask).exp()
    assert found[0].tolist() == pytest.approx([0.5 * 0.2 * 0.9 / (0.4 * 0.3 * 0.9)] * 3)
    assert found[1, :2].tolist() == pytest.approx([0.1 * 0.4 / (0.2 * 0.2)] * 2)


def test_uncentred_binary_rewards_stop_at_the_rewarded_share() -> None:
    """`eq:stale-limit`: the force Σ π_old μ (e_a − π) vanishes at π_old·μ/J, where J is
    E[μ²]/E[μ].
    """
    limit, reward, before = staleness.stale_limit()
    force = OLD * MEAN - (OLD @ MEAN) * limit
    assert float(force.abs().max()) < 1e-12
    assert reward == pytest.approx((0.5 * 0.04 + 0.3 * 0.25 + 0.2 * 0.64) / J_OLD)
    assert before == pytest.approx(J_OLD)
    assert reward > before


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
