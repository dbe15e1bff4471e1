"""The equations of lesson 10 in numbers: votes counted here, tuples listed, derivatives taken."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.flow import expected_gradient
from bandits.theory import overoptimisation, preferences, proxy
from bandits.theory.effective_samples import tilted
from course import ladder
from course.estimator import replace
from course.parts import Clip, GroupMean
from course.train.noise import Noise
from tinylm.reward_model import bradley_terry_loss


def tensor(*numbers: float) -> Tensor:
    """A float64 tensor [N]."""
    return torch.tensor(numbers, dtype=torch.float64)


PI = tensor(0.5, 0.3, 0.15, 0.05)  # of four answers
GOLD, PAID = tensor(0.2, 1.0, -0.5, 0.4), tensor(0.1, 0.6, 0.9, 0.3)


def test_a_preference_is_a_share_of_strengths() -> None:
    """eq:bradley-terry: e^r against the sum of both; the same with 5 added to both; odds
    multiply.
    """
    ahead, behind = tensor(1.2, -0.3, 40.0), tensor(0.4, 0.1, -40.0)
    want = [
        math.exp(a) / (math.exp(a) + math.exp(b))
        for a, b in zip(ahead.tolist(), behind.tolist(), strict=True)
    ]
    assert preferences.preference(ahead, behind).tolist() == pytest.approx(want, abs=1e-12)
    moved = preferences.preference(ahead[:2] + 5, behind[:2] + 5).tolist()
    assert moved == pytest.approx(want[:2], abs=1e-12)
    p, q, both = (preferences.preference(tensor(x), tensor(0.0)).item() for x in (0.8, 1.4, 2.2))
    assert both / (1 - both) == pytest.approx(p / (1 - p) * q / (1 - q), rel=1e-12)


def test_the_loss_is_the_mean_negative_log_probability_of_what_was_voted() -> None:
    """eq:preference-loss: pair by pair, and finite for a difference of a thousand."""
    ahead, behind = tensor(1.2, -0.3, 2.0), tensor(0.4, 0.1, -1.0)
    want = -sum(
        math.log(1 / (1 + math.exp(b - a)))
        for a, b in zip(ahead.tolist(), behind.tolist(), strict=True)
    )
    assert bradley_terry_loss(ahead, behind).item() == pytest.approx(want / 3, rel=1e-12)
    far = bradley_terry_loss(tensor(-500.0), tensor(500.0)).item()
    assert far == pytest.approx(1000.0, rel=1e-12)


@pytest.mark.parametrize("coins", [0.0, 0.4])
def test_a_pair_pushes_by_what_it_did_not_expect(coins: float) -> None:
    """eq:pair-vote: −∂E[L]/∂r_a by automatic differentiation, both votes weighed by hand."""
    share = 0.9
    for difference in (-2.0, 0.0, 0.7, 3.0):
        a, b = tensor(difference).requires_grad_(), tensor(0.0)  # [1] each: one pair
        told = (1 - coins) * share + coins * 0.5
        loss = told * bradley_terry_loss(a, b)
        loss = loss + (1 - told) * bradley_terry_loss(b, a)
        [slope] = torch.autograd.grad(loss, a)
        found = preferences.vote(tensor(difference), share, coins)
        assert found.item() == pytest.approx(-slope.item(), abs=1e-12)
    rest = math.log(told / (1 - told))
    assert preferences.vote(tensor(rest), share, coins).item() == pytest.approx(0, abs=1e-12)


def test_what_grows_is_what_covaries_with_the_reward() -> None:
    """eq:tilt-slope: differences of E[f] along π ∝ π_ref e^{λr}, each Z summed here."""

    def expected(at: float) -> float:
        weight = PI * (at * PAID).exp()
        return float((weight * GOLD).sum() / weight.sum())

    for at in (0.0, 1.0, 5.0):
        now = tilted(PI.log(), PAID, at)
        slope = (expected(at + 1e-5) - expected(at - 1e-5)) / 2e-5
        assert proxy.covariance(now, GOLD, PAID).item() == pytest.approx(slope, abs=1e-8)
    pi = tilted(PI.log(), PAID, 1 / 0.2).exp()
    better = [0.9 * pi + 0.1 * torch.softmax(Noise((), s).normal(4).double(), -1) for s in range(9)]

    def penalised(p: Tensor) -> float:
        return float(p @ PAID - 0.2 * (p * (p / PI).log()).sum())

    assert all(penalised(pi) > penalised(p) for p in better)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_best_of_n_by_every_tuple(samples: int) -> None:
    """eq:best-of-n: every n-tuple with its probability; answers of equal reward share by π_ref."""
    for reward in (PAID, tensor(0.3, 0.9, 0.3, 0.1)):
        want = torch.zeros(4, dtype=torch.float64)
        for drawn in itertools.product(range(4), repeat=samples):
            chance = math.prod(float(PI[k]) for k in drawn)
            top = max(float(reward[k]) for k in drawn)
            best = [k for k in drawn if float(reward[k]) == top]
            for k in best:  # a fair choice among the draws that reach the top
                want[k] += chance / len(best)
        found = overoptimisation.best_of(PI.log(), reward, samples).exp()
        torch.testing.assert_close(found, want, atol=1e-12, rtol=0)


def test_the_kl_of_best_of_n_is_reached_by_many_answers_and_bounds_few() -> None:
    """eq:best-of-n-kl: the sum over 20,000 equally likely answers, and over four."""
    for samples in (1, 2, 16):
        for count, close in ((20_000, 2e-3), (4, None)):
            even = torch.full((count,), 1 / count, dtype=torch.float64)
            rank = torch.arange(1, count + 1, dtype=torch.float64)
            best = (rank / count) ** samples - ((rank - 1) / count) ** samples
            listed = float((best * (best / even).log()).sum())
            said = overoptimisation.best_of_kl(samples)
            assert listed <= said + 1e-12
            if close is not None:
                assert listed == pytest.approx(said, abs=close)
    assert overoptimisation.best_of_kl(16) == pytest.approx(1.835, abs=1e-3)


def test_the_gold_moves_as_both_gradients_agree_and_a_reward_by_its_variance_at_most() -> None:
    """eq:flat-landscape: ∇E[g]·∇E[r] by automatic differentiation; the bound on many policies."""
    theta = PI.log().requires_grad_()
    slopes = [torch.autograd.grad(theta.softmax(0) @ each, theta)[0] for each in (GOLD, PAID)]
    want = float(slopes[0] @ slopes[1])
    assert proxy.speed(PI.log(), GOLD, PAID).item() == pytest.approx(want, abs=1e-12)
    for seed in range(50):
        log_prob = torch.log_softmax(2 * Noise((), seed).normal(4).double(), -1)
        variance = proxy.covariance(log_prob, PAID, PAID)
        bound = log_prob.exp().max() * variance
        assert proxy.speed(log_prob, PAID, PAID) <= bound + 1e-15


@pytest.mark.parametrize("now", [(0.6, 0.2, 0.2), (0.85, 0.1, 0.05), (0.7, 0.2, 0.1)])
def test_the_clip_on_random_rewards_pulls_back(now: tuple[float, ...]) -> None:
    """eq:random-reward-clip: every group of four coins through the rung; without the clip 0."""
    old, new = tensor(0.7, 0.2, 0.1).log(), tensor(*now).log()
    coin = Bernoulli(torch.full((1, 3), 0.5, dtype=torch.float64))
    size = sum(math.comb(4, m) / 16 * (m * (4 - m) / 4 * 2) / 4 for m in range(5))  # E|r − mean|
    with_clip = replace(ladder.clip, baseline=GroupMean(), surrogate=Clip(0.2))
    without = replace(ladder.surrogate, baseline=GroupMean())
    found = expected_gradient(with_clip, coin, new, 4, old=old)
    said = proxy.random_reward_push(new, old, size)
    torch.testing.assert_close(found, said, atol=1e-12, rtol=0)
    nothing = expected_gradient(without, coin, new, 4, old=old)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-12, rtol=0)
