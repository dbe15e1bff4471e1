"""The equations of lesson 05 in numbers: token scores, causality, values, and the three forms of
GAE, each by listing or by hand.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from course import ladder
from course.estimator import replace
from course.exact import Outcomes, microscope
from course.parts import GAE, TD, RewardToGo, Value
from course.parts.credit import lambda_return, total_return
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from tests.tinylm.helpers import schooled, sums
from tinylm.evaluate import group_mean_error, right_to_go
from tinylm.rewards import ExactMatch
from tinylm.sampling import sample

DOUBLE = torch.float64
REWARD, VALUE = [0.5, 0.0, -0.25, 1.0], [0.3, 0.7, -0.2, 0.6]
ALL = torch.ones(4, dtype=torch.bool)


def answers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All answers of two tokens 0 or 1 [4, 2], their states' numbers [4, 2], and the three states'
    chances of a 1.
    """
    tokens = torch.tensor(list(itertools.product((0, 1), repeat=2)))
    return (
        tokens,
        torch.stack([torch.zeros(4, dtype=torch.long), 1 + tokens[:, 0]], -1),
        torch.tensor([0.4, 0.7, 0.2], dtype=DOUBLE),
    )


def listed(reward: torch.Tensor, value: torch.Tensor | None = None) -> Outcomes:
    """They as outcomes, with scores by the states' logits that are differentiated one by one."""
    tokens, node, one = answers()
    theta = one.logit().requires_grad_()
    log_prob = torch.where(tokens == 1, theta[node].sigmoid(), 1 - theta[node].sigmoid()).log()
    score = torch.stack(
        [torch.autograd.grad(each, theta, retain_graph=True)[0] for each in log_prob.flatten()]
    ).view(4, 2, 3)
    return Outcomes.of_sequences(
        log_prob.detach()[None],
        reward[None],
        score=score[None],
        value=None if value is None else value[None],
    )


def true_gradient(reward: torch.Tensor) -> torch.Tensor:
    """∇J [3] by differentiating Σ_k p_k R_k."""
    tokens, node, one = answers()
    theta = one.logit().requires_grad_()
    p = torch.where(tokens == 1, theta[node].sigmoid(), 1 - theta[node].sigmoid()).prod(-1)
    return torch.autograd.grad((p * reward.sum(-1)).sum(), theta)[0]


def rollout(reward: list[float], value: list[float]) -> Rollout:
    """One answer."""
    tensor = torch.tensor(reward, dtype=DOUBLE)[None, None]
    guess = torch.tensor(value, dtype=DOUBLE)[None, None]
    return Rollout(
        tensor, torch.zeros_like(tensor), torch.ones_like(tensor, dtype=torch.bool), value=guess
    )


def test_a_return_is_the_sum_of_token_rewards() -> None:
    """eq:sum-of-token-rewards: every token carries Σ_t r_t."""
    assert total_return(torch.tensor(REWARD)).tolist() == [1.25] * 4


def test_scores_of_tokens_add_up() -> None:
    """eq:token-scores-add: their sum is the gradient of the log of the product."""
    tokens, node, one = answers()
    outcomes = listed(torch.zeros(4, 2, dtype=DOUBLE))
    for k in range(4):
        theta = one.logit().requires_grad_()
        product = torch.where(tokens == 1, theta[node].sigmoid(), 1 - theta[node].sigmoid())[
            k
        ].prod()
        torch.testing.assert_close(
            outcomes.total_score[0, k],
            torch.autograd.grad(product.log(), theta)[0],
            rtol=0,
            atol=1e-14,
        )


def test_reward_to_go_is_unbiased_and_quieter() -> None:
    """eq:reward-to-go: what was paid before a token adds nothing to the mean, only noise."""
    reward = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 2.0]], dtype=DOUBLE)
    to_go = replace(ladder.reinforce, credit=RewardToGo())
    seen = microscope(to_go, listed(reward), 1)
    torch.testing.assert_close(seen.expected, true_gradient(reward), rtol=0, atol=1e-13)
    assert seen.std < microscope(ladder.reinforce, listed(reward), 1).std
    assert to_go.freeze(rollout(REWARD, VALUE)).advantage.flatten().tolist() == pytest.approx(
        [1.25, 0.75, 0.75, 1.0]
    )
    discounted = (
        replace(ladder.reinforce, credit=RewardToGo(0.5))
        .freeze(rollout(REWARD, VALUE))
        .advantage.flatten()
    )
    assert discounted.tolist() == pytest.approx(
        [0.5 + 0.25 * -0.25 + 0.125, 0.5 * -0.25 + 0.25, -0.25 + 0.5, 1.0]
    )


def test_any_value_of_the_state_is_a_baseline() -> None:
    """eq:value-baseline: E[V(s_t) ∇log π(o_t | s_t)] = 0 for a value that is wrong in
    every state.
    """
    reward = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 2.0]], dtype=DOUBLE)
    _, node, _ = answers()
    value = torch.tensor([5.0, -2.0, 1.3], dtype=DOUBLE)[node]
    estimator = replace(replace(ladder.reinforce, credit=RewardToGo()), baseline=Value())
    torch.testing.assert_close(
        microscope(estimator, listed(reward, value), 1).expected,
        true_gradient(reward),
        rtol=0,
        atol=1e-13,
    )


def test_value_of_a_right_prefix() -> None:
    """eq:value-of-right-prefix: Π of the remaining probabilities, against the share of sampled
    answers that are right.
    """
    task, model = sums(), schooled()
    rows = task.train[:3]
    value = right_to_go(model, task, rows)[:, 0]
    made = sample(model, task.prompt[rows], 4000, task.limit, Noise((), 1, dtype=DOUBLE))
    share = (
        ExactMatch()(made.tokens, rows.unsqueeze(-1).expand(made.tokens.shape[:-1]), task)
        .mean(-1)
        .double()
    )
    error = (value * (1 - value) / 4000).sqrt()
    assert bool(((share - value).abs() < 4 * error + 1e-9).all())
    assert float(value.max()) > 0.02


def test_one_step_td() -> None:
    """eq:one-step-td: r_t + γ V_{t+1}, nothing behind the end."""
    estimator = replace(ladder.ppo, credit=TD(0.9))
    frozen = estimator.freeze(rollout(REWARD, VALUE))
    target = [0.5 + 0.9 * 0.7, 0.9 * -0.2, -0.25 + 0.9 * 0.6, 1.0]
    assert frozen.target.flatten().tolist() == pytest.approx(target)
    assert frozen.advantage.flatten().tolist() == pytest.approx(
        [r - v for r, v in zip(target, VALUE, strict=True)]
    )


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_in_its_three_forms(gamma: float, lam: float) -> None:
    """eq:lambda-average, eq:gae-sum and eq:lambda-recursion: n-step returns written out and
    averaged, δs summed, the recursion.
    """
    ahead = [*VALUE, 0.0]
    delta = [REWARD[t] + gamma * ahead[t + 1] - VALUE[t] for t in range(4)]
    found = lambda_return(
        torch.tensor(REWARD, dtype=DOUBLE), torch.tensor(VALUE, dtype=DOUBLE), ALL, gamma, lam
    ).tolist()
    through = replace(ladder.ppo, credit=GAE(gamma, lam)).freeze(rollout(REWARD, VALUE))
    following = 0.0
    for t in range(3, -1, -1):
        steps = [
            sum(gamma**k * REWARD[t + k] for k in range(n))
            + (gamma**n * ahead[t + n] if t + n < 4 else 0.0)
            for n in range(1, 4 - t + 1)
        ]
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, 4 - t)] + [
            lam ** (3 - t)
        ]  # all n beyond the end are one return
        assert sum(weights) == pytest.approx(1.0)
        assert found[t] == pytest.approx(
            sum(w * s for w, s in zip(weights, steps, strict=True)), abs=1e-14
        )
        assert found[t] - VALUE[t] == pytest.approx(
            sum((gamma * lam) ** k * delta[t + k] for k in range(4 - t)), abs=1e-14
        )
        following = REWARD[t] + gamma * ((1 - lam) * ahead[t + 1] + lam * following)
        assert found[t] == pytest.approx(following, abs=1e-14)
        assert float(through.advantage[0, 0, t]) == pytest.approx(found[t] - VALUE[t], abs=1e-14)


def test_the_critic_regresses_on_its_returns() -> None:
    """eq:critic-regression: the gradient by V is −coef · w · (V − R), and V itself is no part of
    the target.
    """
    estimator = replace(ladder.ppo, value_coef=0.5)
    sampled = rollout(REWARD, VALUE)
    value = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)[None, None].requires_grad_()
    frozen = estimator.freeze(sampled)
    [slope] = torch.autograd.grad(
        estimator.objective(Policy(torch.zeros_like(value), value=value), frozen), value
    )
    target, following, ahead = [0.0] * 4, 0.0, [*VALUE, 0.0]
    for t in range(3, -1, -1):
        target[t] = following = REWARD[t] + 0.05 * ahead[t + 1] + 0.95 * following
    wanted = [-0.5 * (v - r) for v, r in zip(value.flatten().tolist(), target, strict=True)]
    assert slope.flatten().tolist() == pytest.approx(wanted)


def test_error_of_a_group_mean() -> None:
    """eq:group-mean-error: √(E[p(1−p)]/G), by listing how many of the G answers are right."""
    chances, group = (0.1, 0.5, 0.8), 4
    square = 0.0
    for p in chances:
        for n in range(group + 1):
            square += (
                math.comb(group, n)
                * p**n
                * (1 - p) ** (group - n)
                * (n / group - p) ** 2
                / len(chances)
            )
    assert float(group_mean_error(torch.tensor(chances, dtype=DOUBLE), group)) == pytest.approx(
        math.sqrt(square)
    )
