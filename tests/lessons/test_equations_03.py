"""Lesson 03's equations in numbers: the importance ratio, the identity behind the surrogate,
effective samples, stale samples.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.exact import B3_MEANS, B3_POLICY, b3
from bandits.theory import effective_samples as far
from bandits.theory import staleness
from course import ladder
from course.estimator import replace
from course.exact import microscope
from course.parts import LeaveOneOut, SequenceRatio
from course.rollout import Policy, Rollout

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
