"""The equations of lesson 06 in numbers: groups listed here one by one, and binomial sums written
out.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bandits.agents import Metered
from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import difficulty, heavy_tail
from course import ladder
from course.exact import (
    group_mean_factor,
    group_std_weight,
    microscope,
    pair_gradient,
    sample_covariance,
    silent_probability,
)
from course.parts import GroupMean, GroupStd, SequenceMean
from course.rollout import Rollout
from course.train.noise import Noise

PI, MU = torch.tensor(B3_POLICY, dtype=torch.float64), torch.tensor(B3_MEANS, dtype=torch.float64)
SCORE = torch.eye(3, dtype=torch.float64) - PI


def of_rewards(rewards: Tensor) -> Rollout:
    """One-token samples [Q, G] with these rewards."""
    zero = torch.zeros(*rewards.shape, 1, dtype=rewards.dtype)
    return Rollout(rewards.unsqueeze(-1), zero, torch.ones(zero.shape, dtype=torch.bool))


def random_groups() -> tuple[Tensor, Tensor]:
    """Rewards [50, 4] and scores [50, 4, 3] that are nobody's in particular."""
    noise = Noise((), 0, dtype=torch.float64)
    return noise.normal(50, 4), noise.normal(50, 4, 3)


def standardised(rewards: tuple[float, ...]) -> list[float]:
    """(R − mean)/std of one group, population std, 0 where all are equal."""
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [0.0] * len(rewards) if std == 0 else [(r - mean) / std for r in rewards]


def by_sequences(p: float, group: int, lengths: tuple[int, int] = (1, 1)) -> float:
    """w in E[ĝ] = w ∇p for two answers, right with probability p: every sequence of right and
    wrong, score of the right one's logit.
    """
    total = 0.0
    for rewards in itertools.product((1.0, 0.0), repeat=group):
        chance = math.prod(p if r else 1 - p for r in rewards)
        each = [
            a * ((1 - p) / lengths[0] if r else -p / lengths[1])
            for a, r in zip(standardised(rewards), rewards, strict=True)
        ]
        total += chance * sum(each) / group
    return total / (p * (1 - p))


def test_group_mean_compares_answers_to_one_question() -> None:
    """eq:group-mean-baseline: each question's own mean, whatever the others are paid."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [7, 5, 5, 7]], dtype=torch.float64)
    b = GroupMean()(rewards, of_rewards(rewards))[..., 0]
    assert b.expand(2, 4).tolist() == [[0.25] * 4, [6.0] * 4]


def test_group_mean_is_a_share_of_leave_one_out() -> None:
    """eq:group-mean-factor: (1, 0, 0, 0, 4) sample by sample, and E[ĝ] by every pair of samples on
    B3.
    """
    rewards = [1.0, 0.0, 0.0, 0.0, 4.0]
    for r in rewards:
        others = (sum(rewards) - r) / 4
        assert r - sum(rewards) / 5 == pytest.approx(group_mean_factor(5) * (r - others), abs=1e-12)
    cases = [
        (a, r, float(PI[a] * (MU[a] if r else 1 - MU[a]))) for a in range(3) for r in (1.0, 0.0)
    ]
    half = sum(
        p * q * (r - u) / 4 * (SCORE[a] - SCORE[c])
        for (a, r, p), (c, u, q) in itertools.product(cases, repeat=2)
    )
    theta = PI.log().requires_grad_()
    slope = torch.autograd.grad((theta.softmax(0) * MU).sum(), theta)[0]
    torch.testing.assert_close(half, group_mean_factor(2) * slope, atol=1e-12, rtol=0)


def test_every_pair_votes() -> None:
    """eq:pairs-of-samples: a loop over pairs, and a loop over samples with the mean of
    the others.
    """
    rewards, scores = random_groups()
    r, s = rewards[0].tolist(), scores[0]
    pairs = sum((r[i] - r[j]) * (s[i] - s[j]) for i in range(4) for j in range(i + 1, 4)) / 12
    alone = sum((r[i] - (sum(r) - r[i]) / 3) * s[i] for i in range(4)) / 4
    torch.testing.assert_close(pair_gradient(rewards, scores)[0], pairs, atol=1e-12, rtol=0)
    torch.testing.assert_close(pairs, alone, atol=1e-12, rtol=0)


def test_leave_one_out_is_the_sample_covariance() -> None:
    """eq:covariance-of-reward-and-score: torch's own covariance of reward and score, and the mean
    of the others by a loop.
    """
    rewards, scores = random_groups()
    r, s = rewards[1], scores[1]
    covariance = torch.cov(torch.cat([r.unsqueeze(0), s.T]))[0, 1:]
    alone = sum((float(r[i]) - (float(r.sum()) - float(r[i])) / 3) * s[i] for i in range(4)) / 4
    torch.testing.assert_close(
        sample_covariance(rewards, scores)[1], covariance, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(covariance, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_silent_groups_by_listing(p: float) -> None:
    """eq:silent-groups: the chance of all sequences whose rewards are equal."""
    chance = sum(
        math.prod(p if r else 1 - p for r in rewards)
        for rewards in itertools.product((1, 0), repeat=6)
        if len(set(rewards)) == 1
    )
    assert float(silent_probability(p, 6)) == pytest.approx(chance, abs=1e-12)


def test_group_std_advantages() -> None:
    """eq:group-std-advantage: two right of five get √(3/2), the others −√(2/3); equal rewards get
    exactly 0.
    """
    rewards = torch.tensor([[1.0, 1, 0, 0, 0], [0.7] * 5], dtype=torch.float32)
    advantage = ladder.group_std.freeze(of_rewards(rewards)).advantage[..., 0]
    assert advantage[0].tolist() == pytest.approx(
        [1.5**0.5] * 2 + [-((2 / 3) ** 0.5)] * 3, rel=1e-5
    )
    assert advantage[1].tolist() == [0.0] * 5
    assert GroupStd().ddof == 0


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("group", [2, 5, 8])
def test_weight_of_a_question(p: float, group: int) -> None:
    """eq:group-std-weight: every sequence of right and wrong answers; and the microscope's view of
    the estimator.
    """
    assert float(group_std_weight(p, group)) == pytest.approx(by_sequences(p, group), rel=1e-10)
    assert difficulty.weight(difficulty.STD, difficulty.right_or_wrong(p), group) == pytest.approx(
        by_sequences(p, group), rel=1e-9
    )


def test_many_samples_climb_the_arcsine() -> None:
    """eq:arcsine-objective: ∇ 2·arcsin √J = ∇J/√(J(1−J)) with ∇J = π(μ − J); E[ĝ] at G = 512 is
    within 1/(4G J(1−J)).
    """
    j = float(PI @ MU)
    slope = PI * (MU - j)
    torch.testing.assert_close(
        difficulty.arcsine_gradient(), slope / math.sqrt(j * (1 - j)), atol=1e-12, rtol=0
    )
    n = torch.arange(1, 512, dtype=torch.float64)
    binomial = (
        torch.distributions.Binomial(512, torch.tensor(j, dtype=torch.float64)).log_prob(n).exp()
    )
    weight = float((binomial * (n * (512 - n)).sqrt()).sum()) / (512 * j * (1 - j))
    assert 0 < 1 - weight * math.sqrt(j * (1 - j)) < 1 / (4 * 512 * j * (1 - j))
    assert float(group_std_weight(j, 512)) == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize("group", [2, 4])
def test_push_on_the_rare_prize(group: int) -> None:
    """eq:push-on-the-rare-prize: every sequence of A, prize and blank, from one half each: it
    points to A.
    """
    kinds = (
        (0.5, 0.5, -0.5),
        (10.0, 0.05, 0.5),
        (0.0, 0.45, 0.5),
    )  # reward, chance, score of B's logit
    total = 0.0
    for drawn in itertools.product(kinds, repeat=group):
        advantages = standardised(tuple(reward for reward, _, _ in drawn))
        total += (
            math.prod(chance for _, chance, _ in drawn)
            * sum(a * k[2] for a, k in zip(advantages, drawn, strict=True))
            / group
        )
    assert heavy_tail.push_by_counts(heavy_tail.RarePrize(), group) == pytest.approx(
        total, abs=1e-12
    )
    assert total < 0


def test_one_over_length() -> None:
    """eq:one-over-length: answers of 1 and 4 tokens have the same total weight, ½ each of N = 2,
    and a token 1/(N|o|).
    """
    mask = torch.tensor([[[True, False, False, False], [True] * 4]])
    weight = SequenceMean()(mask, 4, torch.float64)
    assert weight[0].tolist() == [[0.5, 0, 0, 0], [0.125] * 4]


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_law_of_the_length_mean(p: float) -> None:
    """eq:length-mean-law: right answers of 2 tokens, wrong ones of 8, by every sequence; and
    through the estimator.
    """
    listed = difficulty.right_or_wrong(p, (2, 8))
    want = by_sequences(p, 5, (2, 8)) * p * (1 - p)
    assert float(difficulty.length_law(listed, 5)[0]) == pytest.approx(want, rel=1e-9)
    assert float(microscope(difficulty.LENGTH_MEAN, listed, 5).expected[0]) == pytest.approx(
        want, rel=1e-9
    )


def test_regret_is_what_pulls_cost() -> None:
    """eq:regret: arms that pay .2, .9 and .5; pulls 0, 2, 1, 0 cost .7 + .4 + 0 + .7."""
    arms = Metered(Deterministic(torch.tensor([[0.2, 0.9, 0.5]], dtype=torch.float64)))
    for arm in (0, 2, 1, 0):
        arms.reward(torch.tensor([[arm]]), Noise((), 0, dtype=torch.float64))
    assert float(arms.regret) == pytest.approx(1.8, abs=1e-12)
