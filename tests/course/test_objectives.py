"""What each scale maximises, by enumeration of all groups: w(p) on ∇p, and ∇E[max of G]."""

from __future__ import annotations

import itertools
from math import comb

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import Clash, CourseError
from course.estimator import Estimator, replace
from course.parts import (
    PKPO,
    BatchMean,
    Constant,
    GroupMean,
    GroupStd,
    Leader,
    MaxRL,
    NoBaseline,
    PassKTraining,
    PositivesTimes,
    RewardToGo,
    Scale,
)
from course.rollout import Rollout
from tests.helpers import close

SCALES: tuple[Scale, ...] = (Leader(), PKPO(2), PKPO(3), PassKTraining(2), PassKTraining(3))
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


def by_hand(rewards: list[float], k: int, whitened: bool) -> list[float]:
    """PKPO's or Pass@k training's advantages, subset by subset."""
    group = range(len(rewards))
    subsets = list(itertools.combinations(group, k))
    best = {chosen: max(rewards[i] for i in chosen) for chosen in subsets}
    found = []
    for i in group:
        own = [chosen for chosen in subsets if i in chosen]
        if whitened:
            mean = sum(best.values()) / len(subsets)
            std = (sum((x - mean) ** 2 for x in best.values()) / len(subsets)) ** 0.5
            found.append((sum(best[c] for c in own) / len(own) - mean) / std if std > 1e-9 else 0.0)
        else:
            gains = [best[c] - max(rewards[j] for j in c if j != i) for c in own]
            found.append(k * sum(gains) / len(own))
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(
    "rewards",
    [
        [0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        [3.0, -1.0, 0.5, 2.0, 0.5, 9.0],
        [2.0, 2.0, 2.0, 2.0, 2.0, -7.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ],
)
def test_the_best_of_k_is_that_of_every_subset_of_the_group(rewards: list[float], k: int) -> None:
    """Ties, rewards below 0, k = G, and groups whose every subset is paid the same."""
    given = torch.tensor([rewards], dtype=torch.float64)
    found = advantages(Estimator(scale=PassKTraining(k)), given)[0]
    close(found, by_hand(rewards, k, whitened=True), rtol=1e-12, atol=1e-12)
    assert float(found.sum().abs()) < 1e-12  # they sum to 0 in every group (FACTS 26)
    if k > 1:
        found = advantages(Estimator(scale=PKPO(k)), given)[0]
        close(found, by_hand(rewards, k, whitened=False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("group", "right", "k"), [(8, 3, 4), (8, 1, 2), (16, 5, 4), (5, 2, 3)])
def test_pass_k_training_has_the_papers_two_advantages(group: int, right: int, k: int) -> None:
    """Chen et al. 2025: with R̄ = 1 − C(n−c, k)/C(n, k) and σ = √(R̄(1−R̄))."""
    rewards = (torch.arange(group) < right).double().unsqueeze(0)
    found = advantages(Estimator(scale=PassKTraining(k)), rewards)[0]
    mean = 1 - comb(group - right, k) / comb(group, k)
    std = (mean * (1 - mean)) ** 0.5
    wrong = 1 - mean - comb(group - right - 1, k - 1) / comb(group - 1, k - 1)
    want = [(1 - mean) / std] * right + [wrong / std] * (group - right)
    close(found, want, rtol=1e-12, atol=1e-12)


def test_one_try_of_one_sample_is_the_groups_std_and_one_of_all_the_leader() -> None:
    """k = 1: (R − mean)/std; k = G: G times the leader."""
    rewards = torch.tensor([[1.0, 3.0, 0.0, -2.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    close(
        advantages(Estimator(scale=PassKTraining(1)), rewards),
        advantages(Estimator(baseline=GroupMean(), scale=GroupStd(eps=0.0)), rewards),
    )
    close(advantages(Estimator(scale=PKPO(4)), rewards), 4 * advantages(LEADER, rewards))


@pytest.mark.parametrize(("group", "k"), [(2, 2), (4, 2), (8, 4), (16, 4), (16, 16)])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_pkpo_has_the_gradient_of_pass_at_k(group: int, k: int, p: float) -> None:
    """∇(1 − (1−p)^k) = k (1−p)^{k−1} ∇p, whatever the group."""
    found = weight(Estimator(scale=PKPO(k)), group, p)
    assert found == pytest.approx(k * (1 - p) ** (k - 1), rel=1e-11)


@pytest.mark.parametrize("rewards", [(0.0, 1.0, 3.0), (2.0, 2.0, -1.0)])
@pytest.mark.parametrize(("group", "k"), [(2, 2), (4, 2), (4, 3)])
def test_pkpo_is_unbiased_for_any_rewards(rewards: tuple[float, ...], group: int, k: int) -> None:
    """The mean over the group against ∇E[max of k], by every group and every k-tuple of arms."""
    theta = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64, requires_grad=True)
    paid = torch.tensor(rewards, dtype=torch.float64)

    def tuples(size: int) -> tuple[Tensor, Tensor]:
        arms = torch.tensor(list(itertools.product(range(3), repeat=size)))
        return paid[arms], theta.log_softmax(-1)[arms]

    best, log_prob = tuples(k)
    (want,) = torch.autograd.grad((log_prob.sum(-1).exp() * best.amax(-1)).sum(), theta)
    seen, log_prob = tuples(group)
    pull = (advantages(Estimator(scale=PKPO(k)), seen) * log_prob).mean(-1)
    (found,) = torch.autograd.grad((log_prob.sum(-1).exp().detach() * pull).sum(), theta)
    close(found, want)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_right_and_wrong_answers_are_half_the_gradient_each(factor: float, p: float) -> None:
    """With ±½ as rewards w(p) = (1 + factor)/2, whatever p: W-REINFORCE, NSR and both alike."""
    estimator = Estimator(baseline=Constant(0.5), scale=PositivesTimes(factor))
    assert weight(estimator, 4, p) == pytest.approx((1 + factor) / 2, rel=1e-12)


def test_a_sample_without_a_token_is_in_no_subset() -> None:
    """Four of six exist: as the four alone; and with fewer than k, nothing is learnt."""
    paid = torch.tensor([[2.0, 9.0, 1.0, 0.0, 9.0, 3.0]], dtype=torch.float64)
    exists = torch.tensor([[True, False, True, True, False, True]])
    rollout = Rollout(paid[..., None], torch.zeros(1, 6, 1).double(), exists[..., None])
    for scale in (PKPO(3), PassKTraining(3)):
        estimator = Estimator(scale=scale)
        found = estimator.freeze(rollout).advantage[0, :, 0]
        close(found[exists[0]], advantages(estimator, paid[:, exists[0]])[0])
        assert bool((found[~exists[0]] == 0).all())
    few = Estimator(scale=PKPO(5)).freeze(rollout).advantage
    assert bool((few == 0).all())
    few = Estimator(scale=PassKTraining(5)).freeze(rollout).advantage
    assert bool((few == 0).all())


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.short)
def test_a_constant_added_to_every_reward_changes_nothing(scale: Scale) -> None:
    """They compare, so that they need no baseline."""
    rewards = torch.tensor([[0.25, 3.0, -2.0, 3.0], [0.0, 0.0, 0.5, 0.0]], dtype=torch.float64)
    estimator = Estimator(scale=scale)
    assert torch.equal(advantages(estimator, rewards + 1024), advantages(estimator, rewards))


def test_a_k_that_does_not_fit_is_refused() -> None:
    reward = torch.ones(3, 4, 1)
    rollout = Rollout(reward, reward, reward > 0)
    for scale in (PKPO(5), PassKTraining(5)):
        with pytest.raises(CourseError, match=r"k=5\): got G = 4 samples per prompt.* G ≥ 5"):
            Estimator(scale=scale).freeze(rollout)
    with pytest.raises(CourseError, match=r"PKPO\.k"):
        PKPO(1)
    with pytest.raises(CourseError, match=r"PassKTraining\.k"):
        PassKTraining(0)
    with pytest.raises(CourseError, match=r"PositivesTimes\.factor"):
        PositivesTimes(-0.1)


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
    for scale in (MaxRL(), *SCALES):
        with pytest.raises(ValueError, match=r"G ≥ [23]"):
            Estimator(scale=scale).freeze(rollout)
