"""What each scale maximises, by enumeration of all groups: w(p) on ∇p, and ∇E[max of G]."""

from __future__ import annotations

import itertools
from math import comb

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import Clash
from course.estimator import Estimator, replace
from course.parts import BatchMean, GroupMean, Leader, MaxRL, NoBaseline, RewardToGo
from course.rollout import Rollout
from tests.helpers import close

LEADER = Estimator(scale=Leader())


def advantages(estimator: Estimator, rewards: Tensor) -> Tensor:
    """[Q, G] of rewards [Q, G], at T = 1."""
    reward = rewards.unsqueeze(-1)
    mask = torch.ones_like(reward, dtype=torch.bool)
    return estimator.freeze(Rollout(reward, torch.zeros_like(reward), mask)).advantage[..., 0]


def weight(estimator: Estimator, group: int, p: float) -> float:
    """w(p): E of the mean over the group of A ∇log π, over ∇p; rewards 0 or 1."""
    count = torch.arange(group + 1)  # the number of right answers: one group for each
    rewards = (torch.arange(group) < count.unsqueeze(-1)).double()
    # ∇log π is ∇p/p for a right answer and −∇p/(1−p) for a wrong one
    score = rewards / p - (1 - rewards) / (1 - p)
    pull = (advantages(estimator, rewards) * score).mean(-1)
    chance = torch.tensor(
        [comb(group, n) * p**n * (1 - p) ** (group - n) for n in range(group + 1)],
        dtype=torch.float64,
    )
    return float((chance * pull).sum())


@pytest.mark.parametrize("group", [2, 4, 8, 16])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_maxrl_is_the_likelihood_cut_off_after_g_minus_one_terms(group: int, p: float) -> None:
    found = weight(ladder.maxrl, group, p)
    assert found == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, group)), rel=1e-12)


def test_maxrl_at_three_tenths_and_four_samples() -> None:
    """FACTS 25: 2.19 with the baseline; order G, 2.533, without."""
    assert weight(ladder.maxrl, 4, 0.3) == pytest.approx(2.19, rel=1e-12)
    without = replace(ladder.maxrl, baseline=NoBaseline())
    assert weight(without, 4, 0.3) == pytest.approx(2.533, rel=1e-12)


@pytest.mark.parametrize("group", [2, 4, 8, 16])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_the_leader_of_a_group_has_the_gradient_of_pass_at_g(group: int, p: float) -> None:
    """∇(1 − (1−p)^G) = G (1−p)^{G−1} ∇p, here divided by G, the mean over the group."""
    assert weight(LEADER, group, p) == pytest.approx((1 - p) ** (group - 1), rel=1e-12)


@pytest.mark.parametrize("rewards", [(0.0, 1.0, 3.0), (2.0, 2.0, -1.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_leaders_sum_to_the_gradient_of_the_expected_maximum(
    rewards: tuple[float, ...], group: int
) -> None:
    """Any rewards, ties included: every group of arms, with its probability (FACTS 26)."""
    arms = torch.tensor(list(itertools.product(range(3), repeat=group)))  # [3^G, G]
    paid = torch.tensor(rewards, dtype=torch.float64)[arms]
    theta = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64, requires_grad=True)
    log_prob = theta.log_softmax(-1)[arms]
    chance = log_prob.sum(-1).exp()
    (expected,) = torch.autograd.grad((chance * paid.amax(-1)).sum(), theta, retain_graph=True)
    gain = (chance.detach() * (advantages(LEADER, paid) * log_prob).sum(-1)).sum()
    (found,) = torch.autograd.grad(gain, theta)
    close(found, expected)


def test_advantages_of_single_groups() -> None:
    """By hand: a lead of 2; a tie; nobody right; a mean below 0, which would flip the sign."""
    rewards = torch.tensor([[1.0, 3.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-3.0, 0.0, 0.0]])
    rewards = rewards.double()
    close(
        advantages(LEADER, rewards),
        [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    )
    close(
        advantages(ladder.maxrl, rewards),
        [[-0.25, 1.25, -1.0], [0.5, 0.5, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    )


@pytest.mark.parametrize("estimator", [ladder.maxrl, LEADER])
def test_a_sample_without_a_token_is_in_no_group(estimator: Estimator) -> None:
    """Whatever its reward, the others compare as if it were not there; alone, a sample has none."""
    reward = torch.tensor([[[2.0], [1.0], [9.0]], [[2.0], [9.0], [9.0]]], dtype=torch.float64)
    mask = torch.tensor([[[True], [True], [False]], [[True], [False], [False]]])
    found = estimator.freeze(Rollout(reward, torch.zeros_like(reward), mask)).advantage
    close(found[0, :2, 0], advantages(estimator, reward[:1, :2, 0])[0])
    assert bool((found[1] == 0).all())


@pytest.mark.parametrize("baseline", [BatchMean(), GroupMean()])
def test_a_leader_has_no_second_baseline(baseline: BatchMean | GroupMean) -> None:
    with pytest.raises(Clash, match=r"Leader\(\) clashes with .*Mean\(\): the second best is its"):
        Estimator(baseline=baseline, scale=Leader())
    with pytest.raises(Clash, match=r"Leader\(\) clashes with RewardToGo"):
        Estimator(credit=RewardToGo(), scale=Leader())


def test_both_need_a_group() -> None:
    reward = torch.ones(3, 1, 1)
    rollout = Rollout(reward, reward, reward > 0)
    for scale in (MaxRL(), Leader()):
        with pytest.raises(ValueError, match="G ≥ 2"):
            Estimator(scale=scale).freeze(rollout)
