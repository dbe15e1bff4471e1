"""Training with TRPO or plain ascent on one bandit, and how far each rollout moves the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bandits.linear import SharedTask, linear_bandit
from bandits.problem import Bandit
from course.estimator import Estimator, uses_critic
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts.kl import exact_kl
from course.rollout import Rollout
from course.train.noise import Noise
from course.train.optim import SGD, Optimizer
from course.train.trust_region import TRPO


@dataclass(frozen=True)
class StepTask(SharedTask):
    """The settings of the trainings: a shared bandit, and the updates per rollout."""

    epochs: int = 8  # updates per rollout of methods without a bound
    rollouts: int = 60  # rollouts of each run
    runs: int = 50  # independent runs that are reported (as many again choose the step size)


class Watched(Bandit):
    """A bandit that logs how far all updates of a rollout have moved the policy."""

    def sample(self, noise: Noise) -> Rollout:
        rollout = super().sample(noise)
        assert rollout.old_log_dist is not None
        self.before = rollout.old_log_dist[..., 0, 0, :]
        return rollout

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The bandit's, and `moved` [...]: KL(π_old‖π) in nats, mean over prompts."""
        return super().metrics() | {
            "moved": exact_kl(self.before, self.arm_policy.log_probs()).mean(-1)
        }


@dataclass(frozen=True)
class Climb:
    """One method after training; tensors are [rollouts, step sizes, 2·runs].

    `reward` is the expected reward, `moved` the KL(π_old‖π) of a rollout in nats. TRPO alone has
    `fraction`, the accepted share of the full step (0: no step), and `claimed`, the KL that its
    line search reports. `halted` [step sizes, 2·runs] says which runs diverged.
    """

    reward: Tensor
    moved: Tensor
    halted: Tensor
    fraction: Tensor | None
    claimed: Tensor | None


def train(
    estimator: Estimator,
    sizes: tuple[float, ...],
    hard: bool,
    settings: StepTask,
    progress: Progress,
    name: str,
) -> Climb:
    """Train with all step sizes at once: TRPO with bounds `sizes` if `hard`, else plain SGD.

    The run axes are (step sizes, 2·runs). A run's number alone decides its random streams.
    """
    none, numbers = torch.zeros(len(sizes), dtype=torch.float64), range(2 * settings.runs)
    wired: dict[str, Any] = {"reference": "start", "greedy": True}
    wired["critic"] = uses_critic(estimator)
    bandit, noise = linear_bandit(
        settings.sizes, none, numbers, settings.group, settings.seed, Watched, **wired
    )
    size = torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1).expand(bandit.runs)
    optimizer: Optimizer = TRPO(size) if hard else SGD(size)
    loop: dict[str, Any] = {"epochs": 1 if hard else settings.epochs, "halt_diverged": True}
    learner = Learner(bandit, estimator, optimizer, noise, **loop)
    history = learner.train(
        settings.rollouts, lambda steps: progress(steps, name, total=settings.rollouts)
    )
    of_search = (history["step_fraction"], history["trust_region_kl"]) if hard else (None, None)
    return Climb(history["expected_reward"], history["moved"], learner.diverged, *of_search)
