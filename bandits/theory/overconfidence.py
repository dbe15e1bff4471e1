"""Forecasts of an uncertain event: the expected gradient, its limit, and the case of two forecasts.

An event y happens with probability p. A forecast q earns 1 − (q − y)², the Brier score. All samples
of a group are scored on the same event.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Deterministic, SharedForecast
from bandits.flow import expected_gradient
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.lab.settings import Checked
from course.lab.statistics import named_interval
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))


def pull(estimator: Estimator, environment: SharedForecast, log_prob: Tensor, group: int) -> Tensor:
    """E[ĝ] [K] at `log_prob` [K]; the samples of a group share the event.

    It enumerates the groups for each outcome of the event, then averages over the outcomes.
    """
    given = [Deterministic(reward.unsqueeze(0)) for reward in environment.given]
    no, yes = (expected_gradient(estimator, fixed, log_prob, group) for fixed in given)
    return (1 - environment.p) * no + environment.p * yes


def limit_gradient(environment: SharedForecast, log_prob: Tensor) -> Tensor:
    """The same [K] for group mean and std with G → ∞: Σ_y P(y) π (r_y − E r_y)/σ(r_y)."""
    pi, total = log_prob.exp(), torch.zeros(log_prob.shape[-1], dtype=torch.float64)
    for happened, chance in ((0, 1 - environment.p), (1, environment.p)):
        reward = environment.given[happened]
        centred = reward - pi @ reward
        total += chance * pi * centred / (pi @ centred**2).sqrt()
    return total


def pair(estimator: Estimator, p: float, higher: float, share: float, group: int) -> float:
    """The expected gradient on the logit of a `higher` forecast that has probability `share`.

    The only other forecast is the calibrated one, p.
    """
    environment = SharedForecast(torch.tensor([p, higher], dtype=torch.float64), p)
    log_prob = torch.tensor([1 - share, share], dtype=torch.float64).log()
    return float(pull(estimator, environment, log_prob, group)[1])


def pair_by_majority(p: float, share: float, group: int) -> float:
    """`pair` with the std: (2p − 1) w_G(π) π(1 − π), independent of the forecasts.

    Given y, two forecasts have only two rewards, and the std removes their size.
    """
    return (2 * p - 1) * float(group_std_weight(share, group)) * share * (1 - share)


def pair_by_score(p: float, higher: float, share: float, group: int) -> float:
    """`pair` without the std: −(G−1)/G π(1 − π)(q − p)².

    (q − p)² is the difference of the two expected Brier scores.
    """
    return -group_mean_factor(group) * share * (1 - share) * (higher - p) ** 2


@dataclass(frozen=True)
class Forecasting(Checked):
    """The settings of a training: the event, the forecasts and the runs."""

    p: float = 0.7  # probability of the event
    forecasts: int = 11  # possible forecasts, evenly from 0 to 1
    runs: int = 100  # independent training runs
    steps: int = 1000  # updates of each
    learning_rate: float = 1.0  # of plain gradient ascent
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs")
        allowed = "a probability between .5 and 1, so that overconfident means higher"
        require(0.5 < self.p < 1, "p", self.p, allowed)
        spot = self.p * (self.forecasts - 1)
        fits = 3 <= self.forecasts <= 21 and abs(spot - round(spot)) < 1e-9
        allowed = f"from 3 to 21 forecasts of which {self.p:g} is one"
        require(fits, "forecasts", self.forecasts, allowed)

    @property
    def step(self) -> float:
        """The distance between two neighbouring forecasts."""
        return 1 / (self.forecasts - 1)

    @property
    def event(self) -> SharedForecast:
        """The environment: all forecasts, evenly from 0 to 1."""
        return SharedForecast(torch.linspace(0, 1, self.forecasts, dtype=torch.float64), self.p)


class Forecaster(Bandit):
    """A bandit that also logs the mean forecast of each run's policy."""

    def metrics(self) -> dict[str, Tensor]:
        """The bandit's metrics, and `forecast` [...], Σ π(q) q."""
        assert isinstance(self.environment, SharedForecast)
        with torch.no_grad():
            forecast = (self.arm_policy.log_probs().exp() * self.environment.grid).sum(-1).mean(-1)
        return super().metrics() | {"forecast": forecast}


@dataclass(frozen=True)
class Trained:
    """Training runs from the uniform policy: mean forecasts with their interval, and each end."""

    series: dict[str, Any]
    end: Tensor  # [runs] forecasts after the last update


def train(s: Forecasting, estimator: Estimator, group: int, progress: Progress) -> Trained:
    """Train `s.runs` policies with this group size; the recorded forecast is Σ π(q) q."""
    noise = Noise((s.runs,), s.seed, dtype=torch.float64)
    policy = Softmax.uniform(noise, 1, s.forecasts)
    learner = Learner(
        Forecaster(s.event, policy, group), estimator, SGD(s.learning_rate), noise, log_every=5
    )
    history = learner.train(s.steps, partial(progress, text=f"G = {group}", total=s.steps))
    start = torch.full((1, s.runs), float(s.event.grid.mean()), dtype=torch.float64)
    forecast = torch.cat([start, history["forecast"]])  # [logs, runs]
    series = {
        "steps": [0, *history.steps],
        **named_interval("forecast", forecast),
        "policy": policy.log_probs().detach().exp().mean(0)[0],
    }
    return Trained(series, forecast[-1])
