"""The equations of lesson 07 in numbers: sums over all arms written out here, and derivatives by
differentiating those sums.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.flow import expected_gradient
from bandits.theory.kl_estimators import later_tokens, two_tokens
from bandits.theory.kl_fixed_points import drift, limits
from course.estimator import Estimator
from course.exact import control_variate, gaussian_kl_moments, kl_gradient, microscope
from course.parts import (
    K1,
    K2,
    K3,
    ExactKL,
    GroupMean,
    GroupStd,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
)
from course.parts.kl import KL, exact_kl, k1, k2, k3

PI, REF, OLD = (0.5, 0.3, 0.2), (0.25, 0.72, 0.03), (0.2, 0.3, 0.5)
REWARD = (0.2, 0.5, 0.8)


def logs(probability: tuple[float, ...]) -> Tensor:
    return torch.tensor(probability, dtype=torch.float64).log()


def by_hand(q: tuple[float, ...], p: tuple[float, ...]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(q, p, strict=True))


def slope(function: str, probability: tuple[float, ...] = PI) -> Tensor:
    """[K] the gradient in the logits of a sum over arms that is written out here."""
    logits = logs(probability).requires_grad_()
    pi, ref = torch.softmax(logits, 0), torch.tensor(REF, dtype=torch.float64)
    sums = {
        "reverse": (pi * (pi / ref).log()).sum(),
        "forward": (ref * (ref / pi).log()).sum(),
        "reward": (pi * torch.tensor(REWARD, dtype=torch.float64)).sum(),
    }
    return torch.autograd.grad(sums[function], logits)[0]


def descended(penalty: KL, old: tuple[float, ...] | None = None) -> Tensor:
    """[K] −E[ĝ] of the penalty alone with β = 1, through the estimator, every sample enumerated."""
    nothing = Deterministic(torch.zeros(1, 3, dtype=torch.float64))
    return -expected_gradient(
        Estimator(kl=penalty),
        nothing,
        logs(PI),
        1,
        old=None if old is None else logs(old),
        reference=logs(REF),
    )


def test_kl_divergence() -> None:
    """eq:kl-divergence: Σ π log(π/π_ref), in both directions; 0 only where they agree."""
    assert float(exact_kl(logs(PI), logs(REF))) == pytest.approx(by_hand(PI, REF), abs=1e-12)
    assert float(exact_kl(logs(REF), logs(PI))) == pytest.approx(by_hand(REF, PI), abs=1e-12)
    assert float(exact_kl(logs(PI), logs(PI))) == 0


def test_k1_is_unbiased() -> None:
    """eq:kl-k1-estimate: the mean of −log r over π is the KL, although single values
    are negative.
    """
    values = k1(logs(REF) - logs(PI)).tolist()
    assert sum(p * value for p, value in zip(PI, values, strict=True)) == pytest.approx(
        by_hand(PI, REF), abs=1e-12
    )
    assert min(values) < 0


def test_k3_is_unbiased_and_never_negative() -> None:
    """eq:kl-k3-estimate: the mean of r − 1 − log r over π is the KL; over samples of another policy
    it is not; never below 0.
    """
    values = k3(logs(REF) - logs(PI)).tolist()
    hand = [ref / p - 1 - math.log(ref / p) for p, ref in zip(PI, REF, strict=True)]
    assert values == pytest.approx(hand, abs=1e-12)
    assert sum(p * value for p, value in zip(PI, values, strict=True)) == pytest.approx(
        by_hand(PI, REF), abs=1e-12
    )
    assert (
        abs(sum(p * value for p, value in zip(OLD, values, strict=True)) - by_hand(PI, REF)) > 0.1
    )
    assert float(k3(torch.linspace(-30, 30, 6001, dtype=torch.float64)).min()) >= 0


@pytest.mark.parametrize("mu", [0.1, 0.6, 1.0])
def test_gaussian_moments(mu: float) -> None:
    """eq:kl-gaussian-moments: bias and standard deviation over the true KL, against integration on
    a grid.
    """
    x = np.linspace(-14, 14, 200_001)
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()
    log_r = torch.from_numpy(mu * x - mu**2 / 2)
    for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3)):
        value = estimate(log_r).numpy()
        mean = float((weight * value).sum())
        std = math.sqrt(float((weight * (value - mean) ** 2).sum()))
        closed = gaussian_kl_moments(mu)[name]
        assert mean / (mu**2 / 2) - 1 == pytest.approx(float(closed.bias), abs=1e-8)
        assert std / (mu**2 / 2) == pytest.approx(float(closed.std), rel=1e-8)


def test_control_variate_is_the_least_noisy() -> None:
    """eq:kl-control-variate: no λ on a fine grid gives −log r + λ(r − 1) a smaller variance than
    λ*, and the mean never moves.
    """
    pi, log_r = torch.tensor(PI, dtype=torch.float64), logs(REF) - logs(PI)
    listed = outcomes(
        Deterministic(torch.zeros(1, 3, dtype=torch.float64)),
        logs(PI).unsqueeze(0),
        reference=logs(REF).unsqueeze(0),
    )
    best = float(control_variate(listed))
    grid = torch.linspace(-1, 3, 4001, dtype=torch.float64).unsqueeze(-1)
    values = -log_r + grid * (log_r.exp() - 1)
    mean = (pi * values).sum(-1)
    assert torch.allclose(mean, torch.full_like(mean, by_hand(PI, REF)), atol=1e-12)
    variance = (pi * (values - mean.unsqueeze(-1)) ** 2).sum(-1)
    assert float(grid[variance.argmin()]) == pytest.approx(best, abs=1e-3)


def test_two_gradients() -> None:
    """eq:kl-two-gradients: E_π[log(π/ref) s] and −E_ref[s] are the derivatives of the two sums."""
    listed = outcomes(
        Deterministic(torch.zeros(1, 3, dtype=torch.float64)),
        logs(PI).unsqueeze(0),
        reference=logs(REF).unsqueeze(0),
    )
    assert torch.allclose(kl_gradient(listed, "reverse"), slope("reverse"), atol=1e-12)
    assert torch.allclose(kl_gradient(listed, "forward"), slope("forward"), atol=1e-12)
    pi, r = torch.tensor(PI, dtype=torch.float64), (logs(REF) - logs(PI)).exp()
    score = torch.eye(3, dtype=torch.float64) - pi
    assert torch.allclose((pi * (1 - r)) @ score, slope("forward"), atol=1e-12)


def test_k1_in_the_loss_trains_nothing() -> None:
    """eq:kl-k1-in-loss: its expected gradient is 0."""
    assert float(descended(K1(1.0)).abs().max()) < 1e-12


def test_k2_in_the_loss_descends_the_reverse_kl() -> None:
    """eq:kl-k2-in-loss: E∇k2 = ∇KL(π‖ref)."""
    assert torch.allclose(descended(K2(1.0)), slope("reverse"), atol=1e-12)


def test_k3_in_the_loss_descends_the_forward_kl() -> None:
    """eq:kl-k3-in-loss: E∇k3 = ∇KL(ref‖π), which is another vector than ∇KL(π‖ref)."""
    assert torch.allclose(descended(K3(1.0)), slope("forward"), atol=1e-12)
    assert not torch.allclose(slope("forward"), slope("reverse"), atol=1e-2)


@pytest.mark.parametrize("old", [None, OLD])
def test_times_ratio(old: tuple[float, ...] | None) -> None:
    """eq:kl-times-ratio: ρ·k1 and ρ·k3 in the loss descend KL(π‖ref), on policy and on samples of
    π_old.
    """
    for kind in (K1, K3):
        assert torch.allclose(
            descended(kind(1.0, InLossTimesRatio()), old), slope("reverse"), atol=1e-12
        )


def test_k1_in_the_reward() -> None:
    """eq:kl-in-reward: with R − β·k1 for R the expected gradient is ∇E[R] − β∇KL(π‖ref)."""
    beta, environment = 0.7, Deterministic(torch.tensor([REWARD], dtype=torch.float64))
    found = expected_gradient(
        Estimator(kl=K1(beta, InReward())), environment, logs(PI), 1, reference=logs(REF)
    )
    assert torch.allclose(found, slope("reward") - beta * slope("reverse"), atol=1e-12)


def test_k1_in_the_reward_off_policy_misses_the_kl_to_the_old_policy() -> None:
    """eq:kl-in-reward holds on policy: weighted with ρ, samples of π_old leave out ∇KL(π‖π_old)."""
    nothing = Deterministic(torch.zeros(1, 3, dtype=torch.float64))
    estimator = Estimator(surrogate=ImportanceSampling(), kl=K1(1.0, InReward()))
    found = -expected_gradient(estimator, nothing, logs(PI), 1, old=logs(OLD), reference=logs(REF))
    logits = logs(PI).requires_grad_()
    pi = torch.softmax(logits, 0)
    missing = torch.autograd.grad((pi * (pi.log() - logs(OLD))).sum(), logits)[0]
    torch.testing.assert_close(found, slope("reverse") - missing, rtol=0, atol=1e-12)
    assert float(missing.norm() / slope("reverse").norm()) > 0.1


def test_later_tokens() -> None:
    """eq:kl-later-tokens: a sum over tokens misses E[KL_2 ∇log π(o_1)], in numbers of the logits by
    differentiating Σ over 9 answers.
    """
    listed = two_tokens()
    assert listed.log_dist is not None
    assert listed.ref_log_dist is not None
    first = listed.log_dist[0, 0, 0].clone().requires_grad_()  # logits of the first word
    second = (
        listed.log_dist[0, ::3, 1].clone().requires_grad_()
    )  # [3, 3] of the second, after each first
    log_first, log_second = torch.log_softmax(first, 0), torch.log_softmax(second, 1)
    ref_first, ref_second = listed.ref_log_dist[0, 0, 0], listed.ref_log_dist[0, ::3, 1]
    joint = log_first.unsqueeze(1) + log_second
    whole = (joint.exp() * (joint - ref_first.unsqueeze(1) - ref_second)).sum()
    exact = torch.cat([each.flatten() for each in torch.autograd.grad(whole, (first, second))])
    summed = -microscope(Estimator(kl=ExactKL(1.0)), listed, 1, covariance=False).expected
    assert torch.allclose(exact, summed + later_tokens(listed), atol=1e-12)
    assert float(later_tokens(listed).norm() / exact.norm()) > 0.5


@pytest.mark.parametrize("kind", ["std, k2", "std, k3", "no std, k2"])
def test_fixed_points(kind: str) -> None:
    """eq:kl-fixed-points: at the root of each equation the enumerated gradient of the estimator is
    0, and near it it is the drift.
    """
    beta, group, reference = 0.8, 6, 0.3
    penalty = K3(beta) if kind.endswith("k3") else K2(beta)
    scale = {"scale": GroupStd(eps=0.0)} if kind.startswith("std") else {}
    estimator = Estimator(baseline=GroupMean(), kl=penalty, **scale)
    answers = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))

    def enumerated(p: float) -> float:
        return float(
            expected_gradient(
                estimator,
                answers,
                logs((p, 1 - p)),
                group,
                reference=logs((reference, 1 - reference)),
            )[0]
        )

    root = 1 / (1 + math.exp(-limits(kind, reference, beta, group)[0][0]))
    assert abs(enumerated(root)) < 1e-9
    for p in (0.1, 0.5, 0.9):
        x = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)
        assert enumerated(p) == pytest.approx(
            p * (1 - p) * float(drift(kind, x, reference, beta, group)), abs=1e-12
        )
    if kind == "no std, k2":  # exponential tilting
        odds = reference / (1 - reference) * math.exp((group - 1) / (group * beta))
        assert root == pytest.approx(odds / (1 + odds), abs=1e-9)
