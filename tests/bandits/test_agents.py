"""The classical bandit algorithms: their first pulls, estimates and posteriors by hand, and what
they must cost.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bandits.agents import (
    UCB,
    Agent,
    BetaThompson,
    EpsilonGreedy,
    GaussianThompson,
    Metered,
    beta,
    play,
)
from bandits.environments import Bernoulli, Deterministic, RandomWalk, testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import CourseError
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

testbed.__test__ = False  # type: ignore[attr-defined]  # a function of the library, not a test
AGENTS = {
    "epsilon_greedy": lambda noise, q, k: EpsilonGreedy(noise, q, k, 0.1),
    "ucb": lambda noise, q, k: UCB(noise, q, k),
    "beta": lambda noise, q, k: BetaThompson(noise, q, k),
    "gaussian": lambda noise, q, k: GaussianThompson(noise, q, k),
}


def f64(*runs: int, seed: int = 0) -> Noise:
    return Noise(runs, seed, dtype=torch.float64)


def pulled(
    agent: Agent, environment: Metered, pulls: int, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions and rewards [pulls, ..., Q] of a game."""
    actions, rewards = [], []
    for _ in range(pulls):
        action = agent.act(noise)
        reward = environment.reward(action, noise)
        agent.learn(action, reward)
        actions.append(action[..., 0])
        rewards.append(reward[..., 0])
    return torch.stack(actions), torch.stack(rewards)


# ---------------------------------------------------------------- UCB


def test_ucb_pulls_every_arm_once_first():
    noise = f64(5)
    environment = Metered(Bernoulli(noise.uniform(3, 7)))
    actions, _ = pulled(UCB(noise, 3, 7), environment, 7, noise)
    assert torch.equal(actions.sort(0).values, torch.arange(7)[:, None, None].expand(7, 5, 3))
    assert (
        len({tuple(order) for order in actions.flatten(1).T.tolist()}) > 1
    )  # and not always in the same order


@pytest.mark.parametrize("c", [0.0, 0.3, math.sqrt(2)])
def test_ucb_index_by_hand(c):
    noise = f64(4)
    environment = Metered(testbed(noise, 5))
    agent = UCB(noise, 1, 5, torch.full((4,), c, dtype=torch.float64))
    actions, rewards = pulled(agent, environment, 40, noise)
    for run in range(4):
        a, r = actions[:, run, 0].numpy(), rewards[:, run, 0].numpy()
        for t in range(6, 41):  # pull number t, after one pull of each arm
            n = np.bincount(a[: t - 1], minlength=5)
            index = np.bincount(a[: t - 1], weights=r[: t - 1], minlength=5) / n + c * np.sqrt(
                np.log(t) / n
            )
            assert a[t - 1] == index.argmax()


# ---------------------------------------------------------------- ε-greedy


@pytest.mark.parametrize("step_size", [None, 0.1])
def test_estimates_are_the_sample_average_or_the_recency_weighted_one(step_size):
    noise = f64(3)
    environment = Metered(testbed(noise, 4))
    agent = EpsilonGreedy(noise, 1, 4, 0.5, initial=2.0, step_size=step_size)
    actions, rewards = pulled(agent, environment, 60, noise)
    for run in range(3):
        for arm in range(4):
            own = rewards[actions[:, run, 0] == arm, run, 0]
            if step_size is None:
                expected = own.mean()
            else:  # Sutton & Barto 2018, eq. 2.6: (1 − α)^n Q₁ + Σ α (1 − α)^(n − i) R_i
                age = torch.arange(len(own), dtype=torch.float64).flip(0)
                expected = (
                    2.0 * (1 - step_size) ** len(own)
                    + (step_size * (1 - step_size) ** age * own).sum()
                )
            assert agent.value[run, 0, arm] == pytest.approx(float(expected), abs=1e-12)


def test_epsilon_greedy_takes_the_best_arm_with_probability_one_minus_epsilon_and_its_share():
    noise = f64(40_000)
    agent = EpsilonGreedy(noise, 1, 5, 0.3)
    agent.value[..., 2] = 1.0
    share = (agent.act(noise) == 2).double().mean()
    expected = 1 - 0.3 + 0.3 / 5
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 40_000)


def test_epsilon_greedy_pays_epsilon_times_the_mean_gap_for_ever():
    means = torch.tensor(
        [[0.9, 0.5, 0.3, 0.1]], dtype=torch.float64
    )  # deterministic: after a look at each arm the greedy arm is right
    noise, epsilon, pulls = f64(400), 0.2, 500
    environment = Metered(Deterministic(means.expand(400, 1, 4)))
    agent = EpsilonGreedy(noise, 1, 4, epsilon, initial=2.0)
    play(agent, environment, 4, noise)
    while bool((agent.count == 0).any()):
        play(agent, environment, 1, noise)
    before = environment.regret
    play(agent, environment, pulls, noise)
    gaps = 0.9 - means[0]
    slope, spread = (
        epsilon * gaps.mean(),
        math.sqrt(float(epsilon * (gaps**2).mean() - (epsilon * gaps.mean()) ** 2)),
    )
    assert abs(((environment.regret - before) / pulls).mean() - slope) < 4 * spread / math.sqrt(
        400 * pulls
    )


def test_optimism_tries_every_arm_before_it_repeats_one():
    noise = f64(6)
    environment = Metered(Bernoulli(noise.uniform(1, 8)))
    actions, _ = pulled(
        EpsilonGreedy(noise, 1, 8, 0.0, initial=5.0, step_size=0.1), environment, 8, noise
    )
    assert torch.equal(actions.sort(0).values, torch.arange(8)[:, None, None].expand(8, 6, 1))


# ---------------------------------------------------------------- Thompson


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 4.0), (3.0, 2.0), (40.0, 7.0)])
def test_beta_numbers_have_the_beta_distribution(a, b):
    noise = f64(4000)
    ones = torch.ones(4000, 1, 5, dtype=torch.float64)
    drawn = beta(a * ones, b * ones, noise)
    assert drawn.shape == (4000, 1, 5)
    assert stats.kstest(drawn.flatten().numpy(), stats.beta(a, b).cdf).pvalue > 1e-4


def test_beta_posterior_counts_successes_and_failures():
    noise = f64(3)
    environment = Metered(Bernoulli(noise.uniform(2, 4)))
    agent = BetaThompson(noise, 2, 4)
    actions, rewards = pulled(agent, environment, 50, noise)
    for arm in range(4):
        hit = actions == arm
        assert torch.equal(agent.wins[..., arm], 1 + (hit * rewards).sum(0))
        assert torch.equal(agent.losses[..., arm], 1 + (hit * (1 - rewards)).sum(0))


def test_thompson_pulls_an_arm_with_the_probability_that_it_is_the_best():
    noise = f64(40_000)
    agent = BetaThompson(noise, 1, 2)
    agent.wins[..., 0] = 2.0  # P(Beta(2, 1) > U) = ∫ 2x·x dx = 2/3
    share = (agent.act(noise) == 0).double().mean()
    assert abs(share - 2 / 3) < 4 * math.sqrt(2 / 9 / 40_000)


def test_gaussian_posterior_is_that_of_all_rewards_at_once():
    noise, prior_mean, prior_std, std = f64(3), 0.5, 2.0, 0.7
    environment = Metered(testbed(noise, 4, std=std))
    agent = GaussianThompson(noise, 1, 4, prior_mean=prior_mean, prior_std=prior_std, std=std)
    actions, rewards = pulled(agent, environment, 60, noise)
    for arm in range(4):
        hit = (actions == arm).double()
        precision = prior_std**-2 + hit.sum(0) / std**2
        mean = (prior_mean / prior_std**2 + (hit * rewards).sum(0) / std**2) / precision
        torch.testing.assert_close(agent.precision[..., arm], precision, rtol=1e-12, atol=0)
        torch.testing.assert_close(agent.mean[..., arm], mean, rtol=1e-12, atol=1e-12)


def test_gaussian_thompson_draws_from_its_posterior():
    noise = f64(40_000)
    agent = GaussianThompson(noise, 1, 2, prior_std=2.0)
    agent.mean[..., 0] = 1.0  # P(N(1, 4) > N(0, 4)) = Φ(1/√8)
    expected = stats.norm.cdf(1 / math.sqrt(8))
    share = float((agent.act(noise) == 0).double().mean())
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 40_000)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", AGENTS)
def test_a_run_alone_plays_as_among_others(name):
    def game(runs: int, numbers: list[int]) -> Metered:
        noise = Noise((runs,), 3, numbers=numbers)
        environment = Metered(Bernoulli(noise.uniform(2, 5)))
        play(AGENTS[name](noise, 2, 5), environment, 120, noise)
        return environment

    together, alone = game(6, [0, 1, 2, 3, 4, 5]), game(1, [4])
    torch.testing.assert_close(alone.regret[0], together.regret[4], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", AGENTS)
def test_learning_beats_chance(name):
    noise = Noise((200,), 1)
    environment = Metered(Bernoulli(noise.uniform(1, 5)))
    play(AGENTS[name](noise, 1, 5), environment, 300, noise)
    assert float(environment.regret.mean()) < 0.5 * 300 * (
        5 / 6 - 1 / 2
    )  # chance: E[max U] − E[U] per pull


def test_settings_may_differ_between_runs():
    noise = Noise((2, 300), 0, numbers=[*range(300)] * 2)
    environment = Metered(Bernoulli(noise.uniform(1, 5)))
    epsilon = torch.tensor([0.1, 1.0]).unsqueeze(-1).expand(2, 300)
    play(EpsilonGreedy(noise, 1, 5, epsilon), environment, 100, noise)
    learned, random = environment.regret.mean(-1)
    assert learned < random


def test_bad_settings_are_refused():
    noise = Noise((2,))
    for make in (
        lambda: EpsilonGreedy(noise, 1, 3, 1.5),
        lambda: EpsilonGreedy(noise, 1, 3, 0.1, step_size=0.0),
        lambda: UCB(noise, 1, 3, torch.tensor([1.0, -1.0])),
        lambda: BetaThompson(noise, 1, 1),
        lambda: GaussianThompson(noise, 1, 3, std=0.0),
        lambda: Metered(Bernoulli(torch.rand(1, 3)), every=0),
        lambda: play(UCB(noise, 1, 3), Metered(Bernoulli(torch.rand(2, 1, 3))), 0, noise),
    ):
        with pytest.raises(CourseError, match="allowed is"):
            make()


# ---------------------------------------------------------------- the meter


def test_the_meter_counts_every_pull_of_a_group_and_the_greedy_one():
    noise = f64(3)
    arms = Metered(Bernoulli(noise.uniform(2, 4)), every=10)
    bandit = Bandit(arms, Softmax.uniform(noise, 2, 4), 4, greedy=True)
    Learner(bandit, ladder.remax, SGD(0.1), noise).train(6)
    assert arms.pulls == 6 * (4 + 1)
    assert arms.marks == [10, 20, 30]
    assert arms.regrets.shape == (3, 3)
    assert torch.equal(arms.regrets[-1], arms.regret)


def test_the_meter_adds_up_the_gaps_of_the_arms_that_were_pulled():
    means = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.6, 0.4]], dtype=torch.float64)
    arms = Metered(Bernoulli(means))
    arms.reward(torch.tensor([[0, 1], [2, 2]]), f64())
    assert float(arms.regret) == pytest.approx(((0.0 + 0.7) + (0.2 + 0.2)) / 2)


def test_the_meter_charges_by_the_means_of_the_moment():
    noise = f64()
    arms = Metered(RandomWalk(noise.normal(1, 3), drift=0.5))
    for _ in range(5):
        gap = arms.mean.max() - arms.mean[0, 1]
        before = arms.regret
        arms.reward(torch.tensor([[1]]), noise)
        assert float(arms.regret - before) == pytest.approx(float(gap))
        old = arms.mean
        arms.advance(noise)
        assert not torch.equal(old, arms.mean)
