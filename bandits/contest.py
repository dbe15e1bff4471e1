"""A contest of bandit algorithms at equal pulls: everybody sees the same arms, one meter writes the
bill, and each setting is chosen on some runs and judged on others.
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
from course.estimator import uses_critic
from course.lab.statistics import interval
from course.lab.sweep import Choice, choose, finished
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

TEXTBOOK = math.sqrt(2)  # c of UCB1, Auer et al. 2002
COMMITTED = 0.05  # a run that still loses more than this per pull has not found the best arm
CLASSICAL = ("epsilon_greedy", "ucb", "thompson")
Bar = Callable[[Iterable[int]], Iterable[int]]  # wraps steps, to show progress


def quiet(steps: Iterable[int]) -> Iterable[int]:
    """No progress bar."""
    return steps


@dataclass(frozen=True)
class Contest:
    """What everybody gets: `arms` that pay 1 with a chance from U(0, 1), and `pulls` of them, noted
    down every `every`; run numbers 0 … tuning_runs − 1 choose, the next `runs` judge.
    """

    arms: int = 10
    pulls: int = 2048
    every: int = 16
    tuning_runs: int = 200
    runs: int = 600
    seed: int = 0


def ground(contest: Contest, values: int) -> tuple[Noise, Metered]:
    """Random streams for the run axes (values, R) and the metered arms: run n has its arms and
    stream under every value.
    """
    runs = contest.tuning_runs + contest.runs
    noise = Noise((values, runs), contest.seed, numbers=[*range(runs)] * values)
    return noise, Metered(Bernoulli(noise.uniform(1, contest.arms)), every=contest.every)


@dataclass(frozen=True)
class Played:
    """The meter [values, R] of an algorithm that has had its pulls, and which of its runs diverged,
    [values, R] bool.
    """

    arms: Metered
    halted: Tensor


def played(
    contest: Contest, name: str, values: Sequence[float], group: int, bar: Bar = quiet
) -> Played:
    """An algorithm has its pulls, at every value of its setting.

    `name` is one of `CLASSICAL`, which pull one at a time (Thompson sampling has nothing to set:
    its prior is the truth), or a rung with learning rates as its values and `group` pulls per
    update (ReMax's greedy answer is a pull too).
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
    """An algorithm at its own best value, on the runs that did not choose it; all [runs].

    `regret` at the end, `tail` per pull of the second half, `last` the regret at the end of the
    sweep, at its largest value; `series` is what a figure shows; `halted` bool says who diverged.
    """

    choice: Choice
    regret: Tensor
    tail: Tensor
    last: Tensor
    series: Mapping[str, Any]
    halted: Tensor


def judge(contest: Contest, values: Sequence[float], found: Played) -> Judged:
    """Choose the value with the smallest regret on the tuning runs, report on the others."""
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
    """E[max U] − E[U] of `arms` U(0, 1) numbers, K/(K+1) − ½: what a pull costs who
    learns nothing.
    """
    return arms / (arms + 1) - 0.5
