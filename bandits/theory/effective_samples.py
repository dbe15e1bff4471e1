"""Estimating another policy's objective from samples of this one, exactly by enumeration.

It covers the surrogate's identity, the effective sample size, and answers of several tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace as change
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.policies import Softmax
from bandits.population import every_arm
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import Outcomes, every_group, microscope, sampling_probability
from course.learner import Learner
from course.parts import Constant, NoKL, NoScale, SequenceMean, SequenceRatio
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.trust_region import NaturalGradient


@dataclass(frozen=True)
class Sums:
    """A task whose answers have `tokens` tokens, each a number from 0 to `words` − 1.

    An answer is right if its tokens sum to the middle of the possible range. Since all answers are
    listed, `tokens` must be 2 to 5 and `words` 2 to 4; otherwise it raises `CourseError`.
    """

    tokens: int = 3
    words: int = 3

    def __post_init__(self) -> None:
        require(2 <= self.tokens <= 5, "tokens", self.tokens, "from 2 to 5: all answers are listed")
        require(2 <= self.words <= 4, "words", self.words, "from 2 to 4: all answers are listed")


def tilted(log_prob: Tensor, reward: Tensor, strength: float) -> Tensor:
    """log π' of π' ∝ π·exp(λr), over answers: [..., K], [..., K] → [..., K], in nats.

    With π = π_ref and λ = 1/β it is the maximiser of E[r] − β KL(π'‖π_ref). The natural policy
    gradient on r alone is there, too, at time λ: it adds r to the logits.
    """
    return torch.log_softmax(log_prob + strength * reward, -1)


def answers(task: Sums) -> tuple[Tensor, Tensor]:
    """Every answer [K, T] and its reward [K], 0 or 1; K = words^tokens."""
    every = torch.tensor(list(itertools.product(range(task.words), repeat=task.tokens)))
    middle = task.tokens * (task.words - 1) // 2
    return every, (every.sum(-1) == middle).double()


def start(task: Sums) -> Tensor:
    """log π of every answer [K]; each token is w with probability ∝ words − w, independently."""
    word = torch.arange(task.words, 0, -1, dtype=torch.float64)
    return (word / word.sum()).log()[answers(task)[0]].sum(-1)


def prefix_rows(task: Sums) -> Tensor:
    """The number of the prefix before each token of each answer, [K, T].

    A policy has one row of logits for each prefix.
    """
    every, _ = answers(task)
    # the number of shorter prefixes, which come first
    before = [sum(task.words**s for s in range(t)) for t in range(task.tokens)]
    number = [torch.zeros(len(every), dtype=torch.long)]
    for t in range(task.tokens - 1):
        number.append(number[-1] * task.words + every[:, t])
    return torch.stack(number, -1) + torch.tensor(before)


def logits_of(log_prob: Tensor, task: Sums) -> Tensor:
    """A table of logits [prefixes, words] whose answers have log-probabilities `log_prob` [K].

    Each logit is the log of the total probability of the answers that pass through it.
    """
    every, _ = answers(task)
    rows = prefix_rows(task)
    mass = torch.zeros(int(rows.max()) + 1, task.words, dtype=log_prob.dtype)
    return mass.index_put(
        (rows, every), log_prob.exp().unsqueeze(-1).expand(rows.shape), accumulate=True
    ).log()


def token_log_probs(logits: Tensor, task: Sums) -> Tensor:
    """log π of each token given the tokens before it: logits [prefixes, words] → [K, T]."""
    return torch.log_softmax(logits, -1)[prefix_rows(task), answers(task)[0]]


def sequences(task: Sums, now: Tensor, old: Tensor) -> Outcomes:
    """All answers as outcomes: `now` [K] is the current policy, `old` [K] the sampling policy.

    Both are log-probabilities of whole answers.
    """
    every, reward = answers(task)
    logits, last = logits_of(now, task), torch.arange(task.tokens) == task.tokens - 1
    score = torch.autograd.functional.jacobian(lambda table: token_log_probs(table, task), logits)
    return Outcomes.of_sequences(
        token_log_probs(logits, task).unsqueeze(0),
        (reward.unsqueeze(-1) * last).unsqueeze(0),
        score=score.reshape(1, *every.shape, -1),
        old_log_prob=token_log_probs(logits_of(old, task), task).unsqueeze(0),
    )


def bernoulli_arms(now: Tensor, old: Tensor) -> Outcomes:
    """B3's arms as outcomes: `now` [3] is the current policy, `old` [3] the sampling policy."""
    chance = torch.tensor(B3_MEANS, dtype=torch.float64)
    paid = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(3, 2)
    return Outcomes.of_arms(
        now.unsqueeze(0),
        paid.unsqueeze(0),
        chance=torch.stack([chance, 1 - chance], -1).unsqueeze(0),
        old_log_prob=old.unsqueeze(0),
    )


def objective_moments(estimator: Estimator, outcomes: Outcomes, group: int) -> tuple[float, float]:
    """Mean and standard deviation of the estimator's objective over all groups of one prompt.

    For ρA with b = J(π) and sequence ratios the mean is J(π') − J(π): `eq:surrogate-identity`.
    """
    groups = every_group(estimator, outcomes, group)
    index, weight = groups.outcome[:, 0], groups.chance
    rollout = Rollout(
        reward=outcomes.reward[0][index].unsqueeze(1),
        log_prob=outcomes.old[0][index].unsqueeze(1),
        mask=outcomes.mask[0][index].unsqueeze(1),
    )
    value = estimator.objective(
        Policy(outcomes.log_prob[0][index].unsqueeze(1)), estimator.freeze(rollout)
    )
    mean = (weight * value).sum()
    return float(mean), float((weight * (value - mean) ** 2).sum().sqrt())


def second_moment(outcomes: Outcomes) -> float:
    """E_π[ρ²] with sequence ratios ρ; the effective sample size is G/E[ρ²] (Kish 1965).

    It is at least exp KL(π'‖π), by Jensen's inequality. `eq:effective-samples`.
    """
    log_ratio = (outcomes.log_prob - outcomes.old).sum(-1)
    return float((sampling_probability(outcomes) * (2 * log_ratio).exp()).sum())


def distance(outcomes: Outcomes) -> float:
    """KL(π'‖π) of whole answers, in nats."""
    log_ratio = (outcomes.log_prob - outcomes.old).sum(-1)
    return float((sampling_probability(outcomes) * log_ratio.exp() * log_ratio).sum())


def centred(estimator: Estimator, value: float) -> Estimator:
    """The estimator with b = J(π), no scale and no KL, for which E[ρA] = J(π') − J(π) holds."""
    return change(estimator, baseline=Constant(value), scale=NoScale(), kl=NoKL())


def ratio_spread(outcomes: Outcomes, group: int) -> float:
    """√((E[ρ²A²] − (E[ρA])²)/G): the standard deviation of one group's estimate of J(π') − J(π).

    The answers have one token, and A = r − J(π).
    """
    ratio = (outcomes.log_prob - outcomes.old).exp()  # [1, K, 1]
    chance = sampling_probability(outcomes).unsqueeze(-1)
    advantage = outcomes.reward - (chance * outcomes.reward).sum()
    square, mean = ((chance * (ratio * advantage) ** power).sum() for power in (2, 1))
    return float(((square - mean**2) / group).sqrt())


def tilted_moment(log_prob: Tensor, reward: Tensor, strength: float) -> float:
    """E_π[ρ²] of π' ∝ π·exp(λr), which is Z(2λ)/Z(λ)² with Z(λ) = Σ π exp(λr): [K], [K]."""
    one, two = (torch.logsumexp(log_prob + x * strength * reward, -1) for x in (1, 2))
    return float((two - 2 * one).exp())


def one_token(rungs: Iterable[str], group: int, strength: float) -> dict[str, Any]:
    """What each rung's objective says of π' ∝ π·exp(λr) on B3, λ = `strength`, with b = J(π).

    "mean" and "std" [rungs] are the moments over all groups, which should be "gain", J(π') − J(π).
    "kl" is KL(π'‖π) in nats, and "second" is E[ρ²].
    """
    old, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    now, before = tilted(old.log(), means, strength), float(old @ means)
    listed = bernoulli_arms(now, old.log())
    of = [centred(ladder.get(name).estimator, before) for name in rungs]
    moments = [objective_moments(estimator, listed, group) for estimator in of]
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ means) - before,
        "second": second_moment(listed),
        "mean": [mean for mean, _ in moments],
        "std": [std for _, std in moments],
    }


def gain_gap(estimator: Estimator, group: int, strength: float, factor: float = 1.0) -> float:
    """The mean objective less factor·(J(π') − J(π)) on B3, for π' ∝ π·exp(λr)."""
    old, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    now = tilted(old.log(), means, strength)
    mean, _ = objective_moments(estimator, bernoulli_arms(now, old.log()), group)
    return mean - factor * float((now.exp() - old) @ means)


def by_token_and_by_answer(task: Sums, strength: float) -> dict[str, float]:
    """The surrogate with token and with sequence ratios at π' ∝ π·exp(λr), λ = `strength`.

    "token" and "whole" are its values without sampling error, which should be "gain", J(π') − J(π).
    With "_bias" and "_cosine" they are the relative bias and the cosine of the expected gradient to
    ∇J(π'). "kl" is KL(π'‖π) in nats, and "second" is E[ρ²] of whole answers.
    """
    (_, reward), before = answers(task), start(task)
    now, value = tilted(before, reward, strength), float(before.exp() @ reward)
    listed = sequences(task, now, before)
    token = centred(ladder.surrogate, value)
    whole = change(token, ratio=SequenceRatio())
    # a sequence's ratio stands on each of its T tokens, so the mean over them is ρA; the gradient
    # needs the sum
    mean = change(whole, aggregation=SequenceMean())
    by_token = microscope(token, listed, 1, covariance=False)
    by_answer = microscope(whole, listed, 1, covariance=False)
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ reward) - value,
        "second": second_moment(listed),
        "token": objective_moments(token, listed, 1)[0],
        "whole": objective_moments(mean, listed, 1)[0],
        "token_bias": by_token.relative_bias,
        "whole_bias": by_answer.relative_bias,
        "token_cosine": by_token.cosine,
        "whole_cosine": by_answer.cosine,
    }


def by_hand(task: Sums, strength: float) -> tuple[float, float]:
    """E[Σ_t ρ_t A] of token ratios at λ = `strength`, and the cosine of its gradient with ∇J(π').

    The sum runs over all answers; the gradients come from automatic differentiation.
    """
    (_, reward), before = answers(task), start(task)
    old_tokens = token_log_probs(logits_of(before, task), task)
    logits = logits_of(tilted(before, reward, strength), task).requires_grad_()
    now = token_log_probs(logits, task)
    advantage = reward - before.exp() @ reward
    surrogate = (before.exp() * (now - old_tokens).exp().sum(-1) * advantage).sum()
    value = (now.sum(-1).exp() * reward).sum()
    one, other = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (surrogate, value))
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0)
    return surrogate.item(), cosine.item()


def independent_tokens(strength: float, tokens: int) -> tuple[float, float]:
    """E[ρ²] of answers whose tokens are B3's arms, each tilted alike: listed, and as a power.

    The second number is E[ρ²] of one token to the power `tokens`.
    """
    old, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    task = Sums(tokens, len(B3_POLICY))
    now, every = tilted(old.log(), means, strength), answers(task)[0]
    listed = sequences(task, now[every].sum(-1), old.log()[every].sum(-1))
    return second_moment(listed), float((2 * now - old.log()).exp().sum()) ** tokens


def natural_gap() -> float:
    """How far one natural step of length 1 on B3 is from A − mean(A), up to a constant.

    The step follows the exact gradient, by conjugate gradient on the Fisher matrix.
    """
    old, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    policy = Softmax.of(old.unsqueeze(0))
    bandit = every_arm(Deterministic(means.unsqueeze(0)), policy)
    optimizer, noise = NaturalGradient(1.0, damping=0.0), Noise((), dtype=torch.float64)
    Learner(bandit, ladder.surrogate, optimizer, noise).train(1)
    step, advantage = (policy.logits.detach() - old.log())[0], means - old @ means
    return float((step - step.mean() - (advantage - advantage.mean())).abs().max())
