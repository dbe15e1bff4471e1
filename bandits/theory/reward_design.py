"""The reward of Lelarge's notebook Gauss_GRPO, its true gradient, and an estimator's gradient.

A Gaussian policy N(θ, 1) looks for the target 0. The reward is a window |x| ≤ ½ that pays almost
1, plus a bonus around δ that pays a thousandth. With the group's std the bonus more than doubles
the starting points from which the target is reached, and a bonus too far from the target keeps what
it attracted: dividing by the std makes a bonus of any height α push as hard as the target does,
down to where the rewards' spread meets eps. Without the std the policy neither profits nor is
caught: it sees the bonus at its true size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.environments import Continuous
from bandits.gaussian import group_gradients
from bandits.policies import GaussianPolicy
from bandits.problem import GaussianBandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

SPACING = 0.5  # between starting points
WINDOW = 0.5  # half the width of the window around the target 0 that pays 1 − α


def reward(x: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """(1−α)·1[|x| ≤ ½] + α·exp(−(x−δ)²/2)."""
    return (1 - alpha) * (x.abs() <= WINDOW) + alpha * torch.exp(-((x - delta) ** 2) / 2)


def true_gradient(theta: Tensor, alpha: float, delta: float) -> Tensor:
    """J'(θ) for x ~ N(θ, 1) in closed form, [...] → [...].

    J = (1−α)(Φ(½−θ) − Φ(−½−θ)) + (α/√2) exp(−(θ−δ)²/4).
    """

    def density(z: Tensor) -> Tensor:
        return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    window = (1 - alpha) * (density(theta + WINDOW) - density(theta - WINDOW))
    return window - alpha / math.sqrt(2) * (theta - delta) / 2 * torch.exp(
        -((theta - delta) ** 2) / 4
    )


def chance_of_a_hit(theta: Tensor, samples: int) -> Tensor:
    """The probability that at least one of `samples` draws from N(θ, 1) is in the window.

    [...] → [...].
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    hit = normal.cdf(WINDOW - theta.abs()) - normal.cdf(-WINDOW - theta.abs())
    return -torch.expm1(samples * torch.log1p(-hit))


def drift(
    estimator: Estimator,
    design: tuple[float, float],
    theta: Sequence[float],
    group: int,
    groups: int,
    seed: int,
) -> Tensor:
    """The gradients [groups, N] of `groups` independent groups at each of N means θ.

    Their mean over groups estimates E[ĝ]. `group` is the number of samples in a group.
    """
    places = torch.tensor(theta, dtype=torch.float64)
    alpha, delta = torch.tensor(design, dtype=torch.float64)
    action = places[:, None] + Noise((), seed, dtype=torch.float64).normal(
        groups, len(places), group
    )
    return group_gradients(estimator, places, 1.0, action, lambda x: reward(x, alpha, delta))


def push(
    estimator: Estimator,
    design: tuple[float, float],
    theta: Sequence[float],
    group: int,
    groups: int,
    seed: int,
) -> list[tuple[float, float]]:
    """The mean of `drift` over groups, with its standard error, at each of the means θ."""
    samples = drift(estimator, design, theta, group, groups, seed)
    return list(zip(*mean_error(samples), strict=True))


@dataclass(frozen=True)
class Search(Checked):
    """The settings of a training: policies N(θ, 1) from a row of starting points.

    The first design is the plain window.
    """

    alphas: tuple[float, ...] = (0.0, 0.001, 0.01)  # height of the bonus, with the first δ
    deltas: tuple[float, ...] = (2.0, 3.0, 4.0)  # place of the bonus, with the second α
    group: int = 10  # samples per rollout
    steps: int = 300  # rollouts, one update each
    # starting points run from −far to far, 0.5 apart, in standard deviations of the policy
    far: float = 10.0
    runs: int = 50  # independent runs from each starting point
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "steps", "runs", "group")
        require(self.far >= 1, "far", self.far, "a number ≥ 1")
        further = len(self.alphas) > 1 and self.alphas[0] == 0
        require(further, "alphas", self.alphas, "0 and at least one more")
        within = all(0 <= alpha < 1 for alpha in self.alphas)
        require(within, "alphas", self.alphas, "numbers from 0 to below 1")

    @property
    def designs(self) -> list[tuple[float, float]]:
        """The rewards (α, δ): the sweep of α at the first δ, then the further δ at the second α."""
        first, further = self.deltas[0], self.deltas[1:]
        return [*((a, first) for a in self.alphas), *((self.alphas[1], d) for d in further)]

    @property
    def starts(self) -> Tensor:
        """[S] the starting points."""
        half = math.floor(self.far / SPACING)
        return torch.arange(-half, half + 1, dtype=torch.float64) * SPACING


def train(
    estimator: Estimator,
    settings: Search,
    designs: Sequence[tuple[float, float]],
    rates: Sequence[float],
    seed: int,
    progress: Progress,
) -> Tensor:
    """Where the policies end: [D, L, S, R] for designs, learning rates, starting points and
    independent runs.
    """
    starts = settings.starts
    shape = (len(designs), len(rates), len(starts), settings.runs)
    noise = Noise(shape, seed, dtype=torch.float64)
    # actions are [D, L, S, R, Q, G], with one prompt
    alpha, delta = (
        torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1, 1, 1)
        for values in zip(*designs, strict=True)
    )
    policy = GaussianPolicy(starts[:, None].expand(shape).unsqueeze(-1))
    scored = Continuous(lambda x: reward(x, alpha, delta))
    bandit = GaussianBandit(scored, policy, settings.group)
    optimizer = SGD(torch.tensor(rates, dtype=torch.float64)[:, None, None].expand(shape))
    learner = Learner(bandit, estimator, optimizer, noise, log_every=settings.steps)
    learner.train(settings.steps, lambda steps: progress(steps, "rollouts", total=settings.steps))
    return bandit.action_policy.mean.detach().squeeze(-1)


def reached(final: Tensor) -> Tensor:
    """Whether a policy's mean ended inside the window."""
    return final.abs() <= WINDOW


def width(final: Tensor) -> tuple[float, float]:
    """Width of the basin, [S, R] → number ± standard error: how much of the line of starting points
    reaches the target.
    """
    return mean_error(reached(final).double().sum(0) * SPACING)


def width_ratio(narrow: Tensor, wide: Tensor) -> tuple[float, float]:
    """The second basin's `width` over the first's, [S, R] each, with its standard error."""
    (low, low_error), (high, high_error) = width(narrow), width(wide)
    return high / low, high / low * math.hypot(low_error / low, high_error / high)


def width_gain(narrow: Tensor, wide: Tensor) -> tuple[float, float]:
    """The second basin's `width` minus the first's, with the standard error of unpaired runs."""
    (low, low_error), (high, high_error) = width(narrow), width(wide)
    return high - low, math.hypot(low_error, high_error)


def summits(alpha: float, delta: float) -> int:
    """How many maxima the mean reward has for θ in [−10, 10]: where its gradient turns negative."""
    slope = true_gradient(torch.linspace(-10, 10, 4001, dtype=torch.float64), alpha, delta)
    return int(((slope[:-1] > 0) & (slope[1:] <= 0)).sum())


def variants(rungs: Sequence[str], every_eps: Sequence[float]) -> dict[str, Estimator]:
    """The estimators to compare by name: those with a group std once for each eps."""
    found = {}
    for name in rungs:
        estimator = ladder.get(name).estimator
        if isinstance(estimator.scale, GroupStd):
            for eps in every_eps:
                scale = GroupStd(estimator.scale.ddof, eps)
                found[label(name, eps)] = replace(estimator, scale=scale)
        else:
            found[name] = estimator
    return found


def label(rung: str, eps: float) -> str:
    """The name of a rung with this eps."""
    return f"{rung}, eps = {written(eps)}"


def written(eps: float) -> str:
    """1e-8 and not 1e-08."""
    return f"{eps:g}".replace("e-0", "e-")
