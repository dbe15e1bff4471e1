"""The gradient bandit of Sutton & Barto 2018 (§2.8), with three readings of its baseline.

It is REINFORCE whose baseline is a running mean of the rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bandits.environments import Deterministic, testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.estimator import replace
from course.learner import History, Learner
from course.parts import Value
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD, Schedule

# A = r − V; V is a running mean of the rewards
GRADIENT_BANDIT = replace(ladder.reinforce, baseline=Value())
RULES = {  # what "the mean of the rewards so far" means
    # the book's: R̄₁ = R₁
    "rewards before this one": {"include_current": False, "first": "reward"},
    "this reward included": {"include_current": True},  # a widely used replication
    "before, from 0": {"include_current": False, "first": "zero"},  # R̄₁ = 0
}
OWN, INCLUDED, ZERO = RULES
# (α, with a baseline) → end of the printed curve, figure 2.5
PUBLISHED = {(0.1, True): 0.86, (0.4, True): 0.73, (0.1, False): 0.49, (0.4, False): 0.27}
PUBLISHED_RUNS = 2000  # runs behind each published number
READING = 0.005  # error of reading a number off the figure: half a unit of the last digit


@dataclass(frozen=True)
class Setup:
    """`runs` independent runs of `steps` pulls, with one update per pull.

    Each run has its own `arms` arms, whose means are drawn from N(mean, 1). A curve has a point
    every `log_every` pulls.
    """

    runs: int = 16_000
    steps: int = 1000
    arms: int = 10
    mean: float = 4.0
    log_every: int = 20
    seed: int = 0


def train(
    bed: Setup,
    rule: str,
    rates: Sequence[float],
    shares: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    schedule: Schedule | None = None,
    bar: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> History:
    """Train C curves with learning rates `rates` [C] and baselines multiplied by `shares` [C].

    The run axes are (C, runs). Run n has the same arms and the same random numbers on every curve
    and under every rule, so differences between curves are less noisy than the curves themselves.
    """
    runs = (len(rates), bed.runs)
    noise = Noise(runs, bed.seed, numbers=[*range(bed.runs)] * len(rates), dtype=dtype)
    environment = testbed(noise, bed.arms, mean=bed.mean)
    bandit = Bandit(environment, Softmax.uniform(noise, 1, bed.arms), group=1)
    share, rate = (
        torch.tensor(values, dtype=dtype).unsqueeze(-1).expand(runs) for values in (shares, rates)
    )
    critic = RunningMean(**RULES[rule], share=share)  # type: ignore[arg-type]
    optimizer = SGD(rate, schedule)
    learner = Learner(
        bandit, GRADIENT_BANDIT, optimizer, noise, critic=critic, log_every=bed.log_every
    )
    return learner.train(bed.steps, bar)


def printed_error(end: float) -> float:
    """The standard error of a published final value, from its 2,000 runs and the reading."""
    return math.hypot(math.sqrt(end * (1 - end) / PUBLISHED_RUNS), READING)


def first_pull(rule: str, rate: float, reward: float, arms: int) -> float:
    """The probability of the first arm pulled, after one update, if every arm pays `reward`."""
    noise = Noise((), dtype=torch.float64)
    policy = Softmax.uniform(noise, 1, arms)
    pays = Deterministic(torch.full((1, arms), reward, dtype=torch.float64))
    critic = RunningMean(**RULES[rule])  # type: ignore[arg-type]
    bandit = Bandit(pays, policy, group=1)
    Learner(bandit, GRADIENT_BANDIT, SGD(rate), noise, critic=critic).train(1)
    probability = policy.log_probs().detach().exp().flatten()
    # the other arms changed less, all by the same amount
    return float(probability[(probability - 1 / arms).abs().argmax()])
