"""Estimating another policy's objective from samples of this one, exactly by enumeration.

It covers the surrogate's identity, the effective sample size, and answers of several tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from dataclasses import replace as change

import torch
from torch import Tensor

from bandits.exact import B3_MEANS
from course.errors import require
from course.estimator import Estimator
from course.exact import Outcomes, every_group, sampling_probability
from course.parts import Constant, NoKL, NoScale
from course.rollout import Policy, Rollout


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
    """log π' of π' ∝ π·exp(λr), over answers: [K], [K] → [K]."""
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
