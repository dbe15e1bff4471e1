"""The equations of lesson 02 in numbers: sums over arms, rewards and pairs of samples, written out
here.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY, b3
from bandits.policies import Softmax
from bandits.theory import committal
from course import ladder
from course.estimator import replace
from course.exact import (
    microscope,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    rloo_covariance,
    rloo_crossover,
    variance_at_baseline,
)
from course.parts import BatchMean, Constant, LeaveOneOut
from course.rollout import Rollout
from course.train.noise import Noise

PI, MU = torch.tensor(B3_POLICY, dtype=torch.float64), torch.tensor(B3_MEANS, dtype=torch.float64)
SCORE = torch.eye(3, dtype=torch.float64) - PI
CASES = [
    (a, r, float(PI[a] * (MU[a] if r else 1 - MU[a]))) for a in range(3) for r in (1.0, 0.0)
]  # arm, reward, chance


def slope() -> Tensor:
    """∇J by automatic differentiation."""
    theta = PI.log().requires_grad_()
    return torch.autograd.grad((theta.softmax(0) * MU).sum(), theta)[0]


def noise_of_one(b: float | Tensor) -> Tensor:
    """[3] variance of (R − b)·s of one sample, summed over the six cases."""
    mean = sum(chance * (r - b) * SCORE[a] for a, r, chance in CASES)
    square = sum(chance * ((r - b) * SCORE[a]) ** 2 for a, r, chance in CASES)
    return square - mean**2


def pairs() -> list[tuple[float, Tensor, Tensor]]:
    """Every ordered pair of samples: its chance, rewards [2] and scores [2, 3]."""
    return [
        (p * q, torch.tensor([r, u], dtype=torch.float64), SCORE[[a, c]])
        for (a, r, p), (c, u, q) in itertools.product(CASES, repeat=2)
    ]


def of_rewards(rewards: Tensor) -> Rollout:
    """One-token samples [Q, G] with these rewards."""
    zero = torch.zeros(*rewards.shape, 1, dtype=rewards.dtype)
    return Rollout(rewards.unsqueeze(-1), zero, torch.ones(zero.shape, dtype=torch.bool))


@pytest.mark.parametrize("b", [-100.0, 0.0, 0.41, 7.0])
def test_no_constant_moves_the_mean(b: float) -> None:
    """eq:constant-baseline: E[(R − b) s] = ∇J, here by the six cases and by the estimator."""
    by_hand = sum(chance * (r - b) * SCORE[a] for a, r, chance in CASES)
    torch.testing.assert_close(by_hand, slope(), atol=1e-12, rtol=0)
    expected = microscope(replace(ladder.reinforce, baseline=Constant(b)), b3(), 2).expected
    torch.testing.assert_close(expected, slope(), atol=1e-12, rtol=0)


def test_value_of_a_question() -> None:
    """eq:value-of-a-question: V = Σ π r, as it is stored with the samples, at a policy that differs
    from run to run.
    """
    pi = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]], dtype=torch.float64)
    rewards = torch.tensor([[1.0, 0.7, 0.0]], dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    bandit = committal.KnownBaseline(
        Deterministic(rewards), Softmax.of(pi), best=zero, value=one, shift=zero
    )
    value = bandit.sample(Noise((2,), 0, dtype=torch.float64)).value
    assert value is not None
    assert value.flatten().tolist() == pytest.approx([0.5 + 0.21, 0.1 + 0.07], abs=1e-12)


def test_advantage_is_reward_less_baseline() -> None:
    """eq:advantage-of-a-sample: A = R − b, number by number."""
    frozen = replace(ladder.reinforce, baseline=Constant(0.25)).freeze(
        of_rewards(torch.tensor([[1.0, 0.0, -2.0]]))
    )
    assert frozen.advantage.flatten().tolist() == [0.75, -0.25, -2.25]


@pytest.mark.parametrize("b", [0.0, 0.41, 1.0])
def test_variance_is_a_parabola(b: float) -> None:
    """eq:variance-at-baseline: E[(R − b)²‖s‖²] − ‖∇J‖², by the six cases."""
    square = sum(chance * (r - b) ** 2 * float(SCORE[a].square().sum()) for a, r, chance in CASES)
    assert float(variance_at_baseline(b3(), b)) == pytest.approx(
        square - float(slope().square().sum()), abs=1e-12
    )
    assert float(noise_of_one(b).sum()) == pytest.approx(
        float(variance_at_baseline(b3(), b)), abs=1e-12
    )


def test_best_constant_is_the_lowest_point() -> None:
    """eq:best-constant-baseline: where the parabola through the listed variances at 0, ½ and 1 is
    lowest.
    """
    low, middle, high = (float(noise_of_one(b).sum()) for b in (0.0, 0.5, 1.0))
    lowest = (3 * low - 4 * middle + high) / (4 * (low + high - 2 * middle))
    assert float(optimal_baseline(b3())) == pytest.approx(lowest, abs=1e-12)


def test_best_constant_of_each_logit() -> None:
    """eq:best-baseline-per-logit: the same, logit by logit."""
    low, middle, high = (noise_of_one(b) for b in (0.0, 0.5, 1.0))
    lowest = (3 * low - 4 * middle + high) / (4 * (low + high - 2 * middle))
    torch.testing.assert_close(optimal_baseline_per_coordinate(b3())[0], lowest, atol=1e-12, rtol=0)


def test_batch_mean_includes_the_sample() -> None:
    """eq:batch-mean-baseline: one mean for all prompts; with two samples half of ∇J is left, by
    every pair.
    """
    b = BatchMean()(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 2.0]]), of_rewards(torch.zeros(2, 3)))
    assert float(b.flatten()[0]) == pytest.approx(5 / 6)
    assert bool((b == b.flatten()[0]).all())
    by_hand = sum(
        chance * ((rewards - rewards.mean()) @ scores) / 2 for chance, rewards, scores in pairs()
    )
    torch.testing.assert_close(by_hand, slope() / 2, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        microscope(ladder.baseline, b3(), 2).expected, by_hand, atol=1e-12, rtol=0
    )


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    """eq:leave-one-out-baseline: (1, 0, 5) judges its members by 2.5, 3 and .5, and the mean stays
    ∇J.
    """
    rewards = torch.tensor([[1.0, 0.0, 5.0]], dtype=torch.float64)
    assert LeaveOneOut()(rewards, of_rewards(rewards)).flatten().tolist() == [2.5, 3.0, 0.5]
    by_hand = sum(
        chance * ((rewards - rewards.flip(0)) @ scores) / 2 for chance, rewards, scores in pairs()
    )
    torch.testing.assert_close(by_hand, slope(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        microscope(ladder.rloo, b3(), 2).expected, by_hand, atol=1e-12, rtol=0
    )


def test_variance_of_leave_one_out() -> None:
    """eq:leave-one-out-variance: at G = 2 by every pair, at G = 3 by the microscope."""
    listed = [
        (chance, (rewards - rewards.flip(0)) @ scores / 2) for chance, rewards, scores in pairs()
    ]
    square = sum(chance * float(g.square().sum()) for chance, g in listed)
    assert float(rloo_covariance(b3(), 2)[0].trace()) == pytest.approx(
        square - float(slope().square().sum()), abs=1e-12
    )
    assert float(rloo_covariance(b3(), 3)[0].trace()) == pytest.approx(
        microscope(ladder.rloo, b3(), 3).variance, abs=1e-12
    )


def test_crossover_lies_between_two_and_three() -> None:
    """eq:leave-one-out-crossover: G·variance of RLOO is a + c/(G − 1); through G = 2 and 3 it meets
    REINFORCE's there.
    """
    two, three = (group * microscope(ladder.rloo, b3(), group).variance for group in (2, 3))
    plain = float(noise_of_one(0.0).sum())
    assert two > plain > three
    a, c = 2 * three - two, 2 * (two - three)
    assert float(rloo_crossover(b3())) == pytest.approx(1 + c / (plain - a), abs=1e-9)


def test_least_variance_of_a_natural_step() -> None:
    """eq:natural-least-variance: the lowest point of E‖(r − b)/π_a (e_a − 1/K)‖², written out, at
    three baselines.
    """
    rewards, log_prob = torch.tensor([1.0, 0.7, 0.0], dtype=torch.float64), PI.log()

    def square(b: float) -> float:
        return sum(
            float(PI[a]) * ((float(rewards[a]) - b) / float(PI[a])) ** 2 * (1 - 1 / 3)
            for a in range(3)
        )

    low, middle, high = square(0.0), square(0.5), square(1.0)
    lowest = (3 * low - 4 * middle + high) / (4 * (low + high - 2 * middle))
    assert float(committal.least_variance_baseline(log_prob, rewards)) == pytest.approx(
        lowest, abs=1e-12
    )
