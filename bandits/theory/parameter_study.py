"""The four algorithms of Sutton & Barto 2018 (§2.10) over their parameter, on one testbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.agents import UCB, EpsilonGreedy, Metered, play
from bandits.environments import testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory.gradient_bandit import GRADIENT_BANDIT, OWN, RULES
from course.learner import Learner
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD

STEP_SIZE = 0.1  # of the optimistic estimates, the book's


@dataclass(frozen=True)
class Study:
    """What every algorithm gets: `runs` runs of `steps` pulls, each with `arms` arms of its own."""

    runs: int
    steps: int
    arms: int
    seed: int


def regret(
    study: Study,
    name: str,
    values: Sequence[float],
    bar: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> Tensor:
    """Regret per pull [V, runs], in units of reward, at each of V values of the parameter.

    `name` is gradient_bandit, epsilon_greedy, ucb or optimistic. A run's number alone decides its
    arms and its random streams.
    """
    numbers = [*range(study.runs)] * len(values)
    noise = Noise((len(values), study.runs), study.seed, numbers=numbers)
    environment = Metered(testbed(noise, study.arms), every=study.steps)
    value = torch.tensor(values).unsqueeze(-1).expand(noise.runs)
    if name == "gradient_bandit":
        bandit = Bandit(environment, Softmax.uniform(noise, 1, study.arms), group=1)
        critic = RunningMean(**RULES[OWN])  # type: ignore[arg-type]
        learner = Learner(
            bandit, GRADIENT_BANDIT, SGD(value), noise, critic=critic, log_every=study.steps
        )
        learner.train(study.steps, bar)
    else:
        make: dict[str, Callable[[], EpsilonGreedy | UCB]] = {
            "epsilon_greedy": lambda: EpsilonGreedy(noise, 1, study.arms, value),
            "ucb": lambda: UCB(noise, 1, study.arms, value),
            "optimistic": lambda: EpsilonGreedy(
                noise, 1, study.arms, 0.0, initial=value, step_size=STEP_SIZE
            ),
        }
        play(make[name](), environment, study.steps, noise, bar)
    return environment.regret / study.steps
