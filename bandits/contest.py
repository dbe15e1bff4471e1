"""A contest of bandit algorithms with equal numbers of pulls.

All algorithms see the same arms, and one meter measures the regret of all. Each algorithm's setting
is chosen on some runs and judged on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bandits.agents import UCB, Agent, BetaThompson, EpsilonGreedy, Metered, play
from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.arguments import typed
from course.estimator import uses_critic
from course.lab.statistics import interval
from course.lab.sweep import Choice, choose, finished
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

TEXTBOOK = math.sqrt(2)  # c of UCB1, Auer et al. 2002
COMMITTED = 0.05  # a run that still loses more than this per pull committed to a wrong arm
CLASSICAL = ("epsilon_greedy", "ucb", "thompson")
Bar = Callable[[Iterable[int]], Iterable[int]]  # wraps steps, to show progress


def quiet(steps: Iterable[int]) -> Iterable[int]:
    """No progress bar."""
    return steps


@typed
@dataclass(frozen=True)
class Contest:
    """What every algorithm gets: the arms and the number of pulls.

    Each of the `arms` pays 1 with a probability drawn from U(0, 1). The regret is recorded every
    `every` pulls. The first `tuning_runs` runs choose the setting, the next `runs` runs judge it.
    """

    arms: int = 10
    pulls: int = 2048
    every: int = 16
    tuning_runs: int = 200
    runs: int = 600
    seed: int = 0


@typed
def ground(contest: Contest, values: int) -> tuple[Noise, Metered]:
    """The random streams for run axes (values, R), and the metered arms.

    Run n has the same arms and the same stream at every value of the setting.
    """
    runs = contest.tuning_runs + contest.runs
    noise = Noise((values, runs), contest.seed, numbers=[*range(runs)] * values)
    return noise, Metered(Bernoulli(noise.uniform(1, contest.arms)), every=contest.every)


@dataclass(frozen=True)
class Played:
    """The meter of an algorithm after its pulls, and which runs diverged, [values, R] (bool)."""

    arms: Metered
    halted: Tensor


@typed
def played(
    contest: Contest, name: str, values: Sequence[float], group: int, bar: Bar = quiet
) -> Played:
    """Let an algorithm use its pulls at every value of its setting.

    `name` is one of `CLASSICAL`, which pull one arm at a time, or a rung of the ladder. Thompson
    sampling has no setting: its prior is the true one. A rung's values are learning rates, and it
    makes `group` pulls per update (ReMax's greedy answer counts as a pull).
    """
    noise, arms = ground(contest, len(values))
    value = torch.tensor(values).unsqueeze(-1).expand(noise.runs)
    if name in CLASSICAL:
        make: dict[str, Callable[[], Agent]] = {
            "epsilon_greedy": lambda: EpsilonGreedy(noise, 1, contest.arms, value),
            "ucb": lambda: UCB(noise, 1, contest.arms, value),
            "thompson": lambda: BetaThompson(noise, 1, contest.arms),
        }
        play(make[name](), arms, contest.pulls, noise, bar)
        return Played(arms, torch.zeros(noise.runs, dtype=torch.bool))
    estimator = ladder.get(name).estimator
    greedy = "rollout.greedy_reward" in estimator.needs
    bandit = Bandit(
        arms,
        Softmax.uniform(noise, 1, contest.arms),
        group - greedy,
        reference="start",
        critic=uses_critic(estimator),
        greedy=greedy,
    )
    updates = contest.pulls // group
    learner = Learner(bandit, estimator, SGD(value), noise, log_every=updates, halt_diverged=True)
    learner.train(updates, bar)
    return Played(arms, learner.diverged)


@dataclass(frozen=True)
class Judged:
    """An algorithm at its own best value, measured on the runs that did not choose it, each [runs].

    `regret` is the regret at the end, `tail` the regret per pull in the second half, and `last` the
    final regret at the largest value of the sweep. `series` holds the numbers a figure shows.
    `halted` (bool) says which runs diverged.
    """

    choice: Choice
    regret: Tensor
    tail: Tensor
    last: Tensor
    series: Mapping[str, Any]
    halted: Tensor


@typed
def judge(contest: Contest, values: Sequence[float], found: Played) -> Judged:
    """Choose the value with the smallest regret on the tuning runs; report the other runs."""
    arms, final = found.arms, found.arms.regret.double()  # [values, R]
    judging = final[:, contest.tuning_runs :]
    choice = choose(finished(-final, found.halted)[:, : contest.tuning_runs], values)
    course = arms.regrets[:, choice.index, contest.tuning_runs :].double()  # [marks, runs]
    middle = (torch.tensor(arms.marks) - contest.pulls / 2).abs().argmin()
    tail = (course[-1] - course[middle]) / (arms.marks[-1] - arms.marks[middle])
    (mean, half), (sweep, sweep_half) = interval(course), interval(judging)
    series = {
        "value": choice.rate,
        "values": values,
        "pulls": arms.marks,
        "regret": mean,
        "regret_half": half,
        "sweep": sweep,
        "sweep_half": sweep_half,
        "tail": tail.quantile(torch.linspace(0, 1, 101, dtype=tail.dtype)),
    }
    halted = found.halted[choice.index, contest.tuning_runs :]
    return Judged(choice, course[-1], tail, judging[-1], series, halted)


def uniform_cost(arms: int) -> float:
    """E[max U] − E[U] = K/(K+1) − ½ for K = `arms`: the regret per pull of a uniform policy."""
    return arms / (arms + 1) - 0.5
