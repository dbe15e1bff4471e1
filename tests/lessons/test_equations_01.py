"""The equations of lesson 01 in numbers: enumeration, finite differences and automatic
differentiation of J.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory import flows
from course import ladder
from course.exact import Outcomes, gradient, microscope, objective, probability, softmax_score
from course.learner import Learner
from course.parts import ScoreFunction, SequenceSum
from course.parts.credit import total_return
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.optim import SGD
from tests.helpers import close, f64

PI, MEAN = f64(B3_POLICY), f64(B3_MEANS)


def derivative_of_j(logits: Tensor, mean: Tensor) -> Tensor:
    """∇J by central differences of Σ π r: no score, no automatic differentiation."""
    step = 1e-5
    moves = step * torch.eye(len(logits), dtype=torch.float64)
    return torch.stack(
        [
            ((logits + d).softmax(0) @ mean - (logits - d).softmax(0) @ mean) / (2 * step)
            for d in moves
        ]
    )


def test_expected_reward_is_the_sum_over_all_answers() -> None:
    """eq:expected-reward: .5·.2 + .3·.5 + .2·.8 = .41; two questions are averaged."""
    close(objective(b3()), 0.41)
    two = Outcomes.of_arms(torch.stack([PI, PI.flip(0)]).log(), torch.stack([MEAN, MEAN]))
    close(objective(two), (0.41 + (0.2 * 0.2 + 0.3 * 0.5 + 0.5 * 0.8)) / 2)


def test_one_step_policy_gradient_is_the_derivative_of_the_objective() -> None:
    """eq:one-step-policy-gradient: E[R ∇log π] on B3 is π(r − J) and what finite differences of J
    say.
    """
    close(gradient(b3()), [-0.105, 0.027, 0.078])
    close(gradient(b3()), derivative_of_j(PI.log(), MEAN), rtol=1e-7)


def test_softmax_score_is_one_minus_probability() -> None:
    """eq:softmax-score: 1[a = b] − π_b, by finite differences of log π."""
    step = 1e-5
    for b in range(3):
        move = step * torch.eye(3, dtype=torch.float64)[b]
        difference = ((PI.log() + move).log_softmax(0) - (PI.log() - move).log_softmax(0)) / (
            2 * step
        )
        close(softmax_score(PI.log())[:, b], difference, rtol=1e-8, atol=1e-9)


def test_mean_score_is_zero() -> None:
    """eq:mean-score: Σ π·score = 0, logit by logit; of sequences, the sum over all answers."""
    for pi in (PI, f64([0.9, 0.1]), f64([1e-6, 1e-3, 1 - 1e-6 - 1e-3])):
        close(pi @ softmax_score(pi.log()), [0.0] * len(pi), atol=1e-15)
    listed, _ = walks()
    close(probability(listed)[0] @ listed.total_score[0], [0.0] * 6, atol=1e-15)


def walks() -> tuple[Outcomes, Tensor]:
    """Two binary tokens, the second depending on the first: outcomes, and ∇J by automatic
    differentiation of the 2 × 2 table.
    """
    theta = f64([0.3, -0.2, 0.5, 0.0, -0.4, 0.1]).requires_grad_()
    pay = f64([[0.0, 0.2], [0.6, 1.0]])

    def tokens(walk: tuple[int, int]) -> Tensor:
        first, second = theta[:2].log_softmax(0), theta[2:].reshape(2, 2).log_softmax(1)
        return torch.stack([first[walk[0]], second[walk]])

    rows, scores = [], []
    for walk in itertools.product(range(2), repeat=2):
        rows.append(tokens(walk).detach())
        scores.append(
            torch.autograd.functional.jacobian(
                lambda t, walk=walk: _tokens(t, walk), theta.detach()
            )
        )
    joint = theta[:2].softmax(0)[:, None] * theta[2:].reshape(2, 2).softmax(1)
    [true] = torch.autograd.grad((joint * pay).sum(), theta)
    reward = torch.stack([torch.zeros(4, dtype=torch.float64), pay.flatten()], -1)
    return (
        Outcomes.of_sequences(
            torch.stack(rows)[None], reward[None], score=torch.stack(scores)[None]
        ),
        true,
    )


def _tokens(theta: Tensor, walk: tuple[int, int]) -> Tensor:
    return torch.stack(
        [theta[:2].log_softmax(0)[walk[0]], theta[2:].reshape(2, 2).log_softmax(1)[walk]]
    )


def test_answer_score_is_the_gradient_of_the_whole_answers_log_probability() -> None:
    """eq:answer-score: Σ_t ∇log π(o_t) is the gradient of log Π_t π(o_t), and E[R · it] is ∇J of
    both choices.
    """
    listed, true = walks()
    for place, walk in enumerate(itertools.product(range(2), repeat=2)):
        theta = f64([0.3, -0.2, 0.5, 0.0, -0.4, 0.1]).requires_grad_()
        [whole] = torch.autograd.grad(_tokens(theta, walk).exp().prod().log(), theta)
        close(listed.total_score[0, place], whole)
    close(gradient(listed), true)


def test_answer_return_adds_up_the_rewards_of_an_answer() -> None:
    """eq:answer-return: every token of an answer gets the sum."""
    close(total_return(f64([[0.5, 0.0, 2.0], [0.0, 0.0, 1.0]])), [[2.5] * 3, [1.0] * 3])


def test_sum_over_the_answer_weighs_every_token_with_one_over_n() -> None:
    """eq:sum-over-the-answer: 1/N for each token that an answer has, 0 behind its end; N = 2."""
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    close(SequenceSum()(mask, 3, torch.float64), [[[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]]])


def test_score_function_surrogate_has_the_gradient_a_times_score_and_none_through_a() -> None:
    """eq:score-function-surrogate: the derivative by log π is A; of a batch, R_i/N for
    each token.
    """
    log_prob = f64([-0.7, -1.2]).requires_grad_()
    [by_token] = torch.autograd.grad(
        ScoreFunction()(log_prob, log_prob, f64([2.0, -3.0])).sum(), log_prob
    )
    close(by_token, [2.0, -3.0])
    leaf = f64([[[[-0.7, -1.2], [-0.3, 0.0]]]]).requires_grad_()
    mask = torch.tensor([[[[True, True], [True, False]]]])
    rollout = Rollout(f64([[[[0.0, 3.0], [5.0, 0.0]]]]), leaf.detach(), mask)
    [by_token] = torch.autograd.grad(-ladder.reinforce.loss(Policy(leaf), rollout).sum(), leaf)
    close(by_token[0, 0], [[1.5, 1.5], [2.5, 0.0]])


@pytest.mark.parametrize("group", [1, 2, 5])
def test_gradient_bias_of_reinforce_is_zero(group: int) -> None:
    """eq:gradient-bias: E[ĝ] of REINFORCE, all batches listed, against differences of J; a mean
    that includes the sample: −∇J/G.
    """
    true = derivative_of_j(PI.log(), MEAN)
    seen = microscope(ladder.reinforce, b3(), group)
    close(seen.expected, true, rtol=1e-7)
    close(seen.bias, [0.0] * 3, atol=1e-12)
    close(microscope(ladder.baseline, b3(), 2).bias, -true / 2, rtol=1e-7)  # G = 2


def test_gradient_ascent_moves_the_logits_by_rate_times_gradient() -> None:
    """eq:gradient-ascent: one update on one sample is θ + α R (e_a − π), by hand."""
    policy = Softmax.of(PI[None])
    bandit = Bandit(Bernoulli(f64([[1.0, 1.0, 1.0]])), policy, group=1)
    before = policy.logits.detach().clone()
    learner = Learner(bandit, ladder.reinforce, SGD(0.4), Noise((), 3, dtype=torch.float64))
    learner.train(1)
    moved = policy.logits.detach()[0] - before[0]
    arm = int(moved.argmax())
    close(moved, 0.4 * (torch.eye(3, dtype=torch.float64)[arm] - PI), rtol=1e-12)


@pytest.mark.parametrize(("arms", "rate"), [(2, 0.4), (10, 0.5)])
def test_softmax_gradient_rate_is_one_over_t(arms: int, rate: float) -> None:
    """eq:softmax-gradient-rate: t(1 − p) → (K−1)/(Kα), by the recursion u ← u + α K/(K−1) p(1−p) on
    the log-odds alone.
    """
    u = -torch.tensor(arms - 1.0, dtype=torch.float64).log()
    slopes = []
    for step in range(1, 20_001):
        p = torch.sigmoid(u)
        u = u + rate * arms / (arms - 1) * p * (1 - p)
        if step in (10_000, 20_000):
            slopes.append(1 + u.exp())
    close(1 / ((slopes[1] - slopes[0]) / 10_000), (arms - 1) / (arms * rate), rtol=2e-3)
    steps, missing = flows.exact_steps(arms, rate, 2000)
    close(
        (1 / missing[-1] - 1 / missing[-2]) / (steps[-1] - steps[-2]),
        arms * rate / (arms - 1),
        rtol=2e-2,
    )
    close(flows.rate_limit(arms, rate), (arms - 1) / (arms * rate))
    want = 20_000 / (slopes[1] - slopes[0]) / 2
    close(flows.rate_limit(arms, rate, 20_000), want, rtol=2e-5)
