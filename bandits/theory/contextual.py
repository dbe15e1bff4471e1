"""Training one rung on a bandit with several prompts, at many learning rates and runs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bandits.environments import contextual
from bandits.policies import Softmax
from bandits.problem import Bandit
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab.settings import Checked
from course.lab.sweep import Choice, choose, finished
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD


@dataclass(frozen=True)
class Contextual(Checked):
    """The settings of a training."""

    runs: int = 100  # independent runs that are reported (as many again choose the learning rate)
    steps: int = 40  # rollouts
    epochs: int = 4  # updates per rollout
    group: int = 8  # samples per prompt and rollout
    arms: int = 10  # arms per prompt
    # one per prompt: how well wrong arms pay
    difficulty: tuple[float, ...] = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    # the sweep of each rung
    learning_rates: tuple[float, ...] = tuple(2.0**power for power in range(10))
    seed: int = 0  # seed of the random streams
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group > 1, "group", self.group, "at least 2: group baselines compare samples")
        self.rising("learning_rates")


@dataclass(frozen=True)
class Climb:
    """One rung after training: `reward` (0 to 1) and `kl_ref` (nats) [logs, *runs].

    `halted` [*runs] says which runs diverged; they keep their last good policy.
    """

    steps: list[int]
    reward: Tensor
    kl_ref: Tensor
    halted: Tensor


def train(
    estimator: Estimator,
    settings: Contextual,
    rates: Sequence[float],
    numbers: range,
    offset: float,
    scale: float,
    progress: Progress,
) -> Climb:
    """Train one estimator at L learning rates for all R run `numbers`: run axes (L, R).

    A run's number alone decides its arms and its random streams: runs of one number are paired,
    whatever the estimator and its rate.
    """
    runs, device = (len(rates), len(numbers)), torch.device(settings.device)
    arms = Noise((len(numbers),), settings.seed, numbers=numbers, device=device)
    environment = contextual(arms, settings.difficulty, settings.arms, offset=offset, scale=scale)
    noise = Noise(runs, settings.seed + 1, numbers=[*numbers] * len(rates), device=device)
    policy = Softmax.uniform(noise, environment.prompts, environment.arms)
    wired: dict[str, Any] = {"reference": "start", "greedy": True}
    bandit = Bandit(environment, policy, settings.group, critic=uses_critic(estimator), **wired)
    optimizer = SGD(torch.tensor(rates, device=device).unsqueeze(-1).expand(runs))
    loop: dict[str, Any] = {"epochs": settings.epochs, "log_every": 2, "halt_diverged": True}
    learner = Learner(bandit, estimator, optimizer, noise, **loop)
    bar = partial(progress, text="rollouts", total=settings.steps)
    history = learner.train(settings.steps, bar)
    reward = (history["expected_reward"].cpu() - offset) / scale
    return Climb(history.steps, reward, history["kl_ref"].cpu(), learner.diverged)


def pick(swept: Climb, settings: Contextual) -> Choice:
    """The learning rate that ends best on the first half of the runs, if possible without
    divergence.
    """
    final = swept.reward[-1].double()
    tuning, judging = finished(final, swept.halted)[:, : settings.runs], final[:, settings.runs :]
    return choose(tuning, settings.learning_rates, judging)
