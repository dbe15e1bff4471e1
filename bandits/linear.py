"""A contextual bandit whose prompts share parameters: an update on one changes the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Discrete, contextual
from bandits.policies import LinearSoftmax
from bandits.problem import Bandit
from course.arguments import typed
from course.errors import require
from course.lab.settings import Checked
from course.train.noise import Noise


@dataclass(frozen=True)
class SharedTask(Checked):
    """The settings of a training on `linear_bandit`."""

    prompts: int = 16  # prompts, each with one right answer that pays 1; the others pay 0
    arms: int = 10  # answers of each prompt
    features: int = 48  # parameters, shared by all prompts (each answer has random features)
    group: int = 8  # samples per prompt and rollout
    rollouts: int = 80  # rollouts of each run
    runs: int = 40  # independent runs that are reported (as many again choose the learning rate)
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs", "rollouts", "arms", "group")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes that `linear_bandit` takes."""
        return self.prompts, self.arms, self.features


@typed
def linear_bandit(
    sizes: tuple[int, int, int],
    offset: Tensor,
    numbers: range,
    group: int,
    seed: int,
    kind: type[Bandit] = Bandit,
    **options: Any,
) -> tuple[Bandit, Noise]:
    """A bandit with run axes (S, R) and its noise, in float64: S offsets × the runs in `numbers`.

    `sizes` are (prompts, arms, features). Each prompt has one right arm that pays 1; the others pay
    0; `offset` [S] is added to every reward. The policy is a linear softmax over random features of
    variance 1/features, which are the same in every run. A run has the same right arms and the same
    random numbers at every offset. `options` are passed on to the bandit's class `kind`.
    """
    require(offset.dim() == 1, "offset", tuple(offset.shape), "a shape [S]")
    prompts, arms, features = sizes
    shape = (len(offset), len(numbers))
    answers = contextual(
        Noise(shape[1:], seed, numbers=numbers, dtype=torch.float64), (0.0,) * prompts, arms
    )
    values = answers.values + offset.double()[:, None, None, None, None]
    environment = Discrete(values, answers.chances.expand(values.shape))
    noise = Noise(
        shape, seed + 1, numbers=[number for _ in offset for number in numbers], dtype=torch.float64
    )
    draw = Noise((), seed + 2, dtype=torch.float64).normal(prompts, arms, features) / features**0.5
    policy = LinearSoftmax(draw, torch.zeros(*shape, features, dtype=torch.float64))
    return kind(environment, policy, group, **options), noise
