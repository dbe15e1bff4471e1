"""Where a policy's entropy goes: the covariance identity, its price in reward, and training.

ΔH = −Cov_π(log π, Δθ) to first order, for any step Δθ of a tabular softmax (Cui et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.flow import expected_gradient
from bandits.policies import Softmax, log_softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab.settings import Checked
from course.learner import Learner
from course.parts import PKPO, Clip, ClipCov, HighEntropy
from course.rollout import entropy
from course.train.noise import Noise
from course.train.optim import SGD

POLICY = (0.5, 0.2, 0.12, 0.1, 0.05, 0.03)  # of six answers
REWARDS = (1.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def example() -> tuple[Environment, Tensor]:
    """One prompt with six answers, two of them right, and its log-probabilities [6]."""
    reward = torch.tensor([REWARDS], dtype=torch.float64)
    return Environment(reward), torch.tensor(POLICY, dtype=torch.float64).log()


def policy_gradient(log_prob: Tensor, reward: Tensor) -> Tensor:
    """∇J = π(r − J) by the logits: [K], [K] → [K]."""
    policy = log_prob.exp()
    return policy * (reward - policy @ reward)


def predicted(log_prob: Tensor, step: Tensor) -> Tensor:
    """−Cov_π(log π, Δθ) of logits that move by `step` [K]: ΔH to first order, in nats.

    It follows from ∂H/∂θ_a = −π_a(log π_a + H). eq:entropy-covariance
    """
    policy = log_prob.exp()
    return -(policy * log_prob * step).sum() + (policy @ log_prob) * (policy @ step)


def moved(log_prob: Tensor, step: Tensor) -> Tensor:
    """ΔH, in nats, of logits that move by `step` [K]."""
    return entropy(log_softmax(log_prob + step)) - entropy(log_prob)


def slope(log_prob: Tensor, direction: Tensor) -> float:
    """dH/dη at η = 0 of logits + η · direction [K], by automatic differentiation."""
    rate = torch.zeros((), dtype=log_prob.dtype, requires_grad=True)
    changed = entropy(torch.log_softmax(log_prob + rate * direction, -1))
    return float(torch.autograd.grad(changed, rate)[0])


def off(log_prob: Tensor, direction: Tensor, rate: float) -> float:
    """ΔH over its first order, minus 1, after a step of this rate along `direction` [K]."""
    step = rate * direction
    return float(moved(log_prob, step) / predicted(log_prob, step)) - 1


def price(estimator: Estimator, group: int) -> float:
    """Nats of entropy lost per unit of reward gained, to first order, by a step along E[ĝ].

    One prompt, that of `example`.
    """
    environment, log_prob = example()
    step = expected_gradient(estimator, environment, log_prob, group)
    gained = policy_gradient(log_prob, environment.mean[0]) @ step
    return float(-predicted(log_prob, step) / gained)


def steps_of(names: Sequence[str], group: int) -> dict[str, Tensor]:
    """E[ĝ] [6] of each rung on `example`."""
    environment, log_prob = example()
    return {
        name: expected_gradient(ladder.get(name).estimator, environment, log_prob, group)
        for name in names
    }


def bonus_pull(coefficient: float, group: int, odds: float) -> float:
    """E[ĝ] on the logit of the better of two arms, under the group mean and an entropy bonus.

    The arms pay 1 and 0, and the better one is `odds` times as likely as the other.
    """
    estimator = replace(ladder.group_mean, entropy_coef=coefficient)
    environment = Environment(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    log_prob = torch.tensor([odds, 1.0], dtype=torch.float64).log().log_softmax(-1)
    return float(expected_gradient(estimator, environment, log_prob, group)[0])


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Task(Checked):
    """Prompts with several right answers each, and the trainings on them."""

    runs: int = 40  # independent runs
    rollouts: int = 150  # of a training
    epochs: int = 4  # updates per rollout where the parts are compared; the scales have one
    group: int = 8  # samples per prompt and rollout
    prompts: int = 16  # each with right answers and a start of its own
    answers: int = 10  # per prompt
    right: int = 3  # of them
    spread: float = 1.5  # standard deviation of the first logits
    learning_rates: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # all are reported
    rate: float = 32.0  # the one of the paths and the facts
    k: int = 4  # tries, of PKPO
    bonus: float = 0.02  # coefficient of the entropy bonus, in units of reward per nat
    share: float = 0.2  # of the tokens, that the high-entropy mask keeps
    level: float = 0.8  # the reward at which entropies are compared
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs", "answers")
        allowed = "from 1 to the other answers"
        require(1 <= self.right < self.answers, "right", self.right, allowed)
        require(2 <= self.k <= self.group, "k", self.k, f"from 2 to group = {self.group}")
        require(self.spread > 0, "spread", self.spread, "a number > 0")
        require(self.bonus > 0, "bonus", self.bonus, "a number > 0")
        require(0 < self.share < 1, "share", self.share, "between 0 and 1")
        require(0 < self.level < 1, "level", self.level, "between 0 and 1")
        self.rising("learning_rates")
        allowed = f"one of learning_rates = {self.learning_rates}"
        require(self.rate in self.learning_rates, "rate", self.rate, allowed)


def scales(task: Task) -> dict[str, Estimator]:
    """What is compared with one update per rollout: scales, and the weight of right answers."""
    return {
        "group_mean": ladder.group_mean,
        "group_std": ladder.group_std,
        "maxrl": ladder.maxrl,
        "pkpo": replace(ladder.leader, scale=PKPO(task.k)),
        "plus_minus": ladder.plus_minus,
        "w_reinforce": ladder.w_reinforce,
    }


def parts(task: Task) -> dict[str, Estimator]:
    """What is compared with several updates: the clip with the group's std, one part replaced."""
    base = ladder.group_std
    return {
        "clip": base,
        "clip-higher": replace(base, surrogate=Clip(0.2, 0.28)),
        "Clip-Cov": replace(base, sample_filter=ClipCov()),
        "high-entropy mask": replace(base, sample_filter=HighEntropy(task.share)),
        "entropy bonus": replace(base, entropy_coef=task.bonus),
    }


@dataclass(frozen=True)
class Descent:
    """Trainings: exact `reward` and `entropy` (nats) before and after each rollout, [n + 1, L, R].

    L learning rates, R runs; `halted` [L, R] says which diverged.
    """

    reward: Tensor
    entropy: Tensor
    halted: Tensor


def train(
    estimator: Estimator, task: Task, epochs: int, rates: Sequence[float], numbers: range
) -> Descent:
    """Train at L rates on the R run `numbers`, which alone decide answers, starts and streams."""
    runs = (len(rates), len(numbers))
    setting = Noise((len(numbers),), task.seed, numbers=numbers)
    order = setting.uniform(task.prompts, task.answers).argsort(-1)
    environment = Environment((order < task.right).to(setting.dtype))
    logits = task.spread * setting.normal(task.prompts, task.answers)
    noise = Noise(runs, task.seed + 1, numbers=[*numbers] * len(rates))
    policy = Softmax(logits.expand(*runs, -1, -1))
    bandit = Bandit(environment, policy, task.group)
    optimizer = SGD(torch.tensor(rates).unsqueeze(-1).expand(runs))
    learner = Learner(bandit, estimator, optimizer, noise, epochs=epochs, halt_diverged=True)
    rows = []
    for step in range(task.rollouts + 1):
        if step:
            learner.step()
        log_prob = log_softmax(policy.logits.detach())
        paid = (log_prob.exp() * environment.mean).sum(-1).mean(-1)
        rows.append(torch.stack([paid, entropy(log_prob).mean(-1)]))
    reward, left = torch.stack(rows, 1).double()
    return Descent(reward, left, learner.diverged)


def at_reward(path: Descent, level: float) -> Tensor:
    """The entropy [L, R] at which each run's reward first reaches `level`; NaN where it never does.

    Between two rollouts it is interpolated.
    """
    reached = path.reward >= level
    after = reached.int().argmax(0, keepdim=True)
    before = (after - 1).clamp(min=0)
    (low, high), (start, end) = (
        (each.gather(0, before)[0], each.gather(0, after)[0])
        for each in (path.reward, path.entropy)
    )
    share = torch.where(high > low, (level - low) / (high - low), 1.0)
    return torch.where(reached.any(0), start + share.clamp(0, 1) * (end - start), torch.nan)


def exponential_law(reward: Tensor, left: Tensor) -> tuple[float, float, float]:
    """a, b of the least-squares fit R = −a e^H + b to [n] points, and its root mean square error.

    Source: Cui et al. 2025.
    """
    design = torch.stack([-left.exp(), torch.ones_like(left)], -1)
    found = torch.linalg.lstsq(design, reward.unsqueeze(-1)).solution[:, 0]
    error = (design @ found - reward).square().mean().sqrt()
    return float(found[0]), float(found[1]), float(error)
