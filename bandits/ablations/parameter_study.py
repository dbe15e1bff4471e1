"""The parameter study of Sutton & Barto 2018 (§2.10, figure 2.6): four bandit algorithms, each over
its own parameter.

The ten-armed testbed, 1,000 pulls: ε-greedy over ε, the gradient bandit (REINFORCE with a running
mean) over its learning rate, UCB over its bonus c, and the greedy choice with optimistic first
estimates over how optimistic they are. What to look for: each curve is a hill, wide enough that a
factor of two hardly matters; an algorithm is its hill, not its summit; and the policy gradient
stands among the classical algorithms, in the same currency of pulls.

The mean reward of a run is taken from the exact means of the arms that were pulled. Across runs it
is reported as E[max q*] minus the mean regret: the same expectation without the luck of the arms
that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bandits.agents import UCB, EpsilonGreedy, Metered, play
from bandits.environments import testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory.gradient_bandit import GRADIENT_BANDIT, OWN, RULES
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "ε-greedy, gradient bandit, UCB and optimistic greedy over their parameter, in one currency"
EXPECTED_SECONDS = 8.0
BOOK = "Sutton & Barto 2018, fig. 2.6"
PEAKS = {
    "epsilon_greedy": (1 / 16, 1.37),
    "gradient_bandit": (1 / 4, 1.42),
    "ucb": (1.0, 1.50),
    "optimistic": (1.0, 1.47),
}
PUBLISHED_RUNS = 2000  # behind each printed point, all on the same draws of arms
# the printed summits are recalled from the figure, not digitised: taken to be no further off than
# this
READING = 0.03
ORDER = (
    "ucb",
    "optimistic",
    "gradient_bandit",
    "epsilon_greedy",
)  # by the height of the printed summits
STEP_SIZE = 0.1  # of the optimistic estimates, the book's
LABELS = {
    "epsilon_greedy": "ε-greedy (ε)",
    "gradient_bandit": "gradient bandit (α)",
    "ucb": "UCB (c)",
    "optimistic": "greedy, optimistic (Q₁)",
}


@dataclass(frozen=True)
class Settings(Checked):
    """What is run; the defaults are the book's. Parameters are powers of two."""

    epsilons: tuple[float, ...] = tuple(
        2.0**k for k in range(-7, -1)
    )  # ε of ε-greedy with sample averages
    learning_rates: tuple[float, ...] = tuple(
        2.0**k for k in range(-5, 2)
    )  # α of the gradient bandit
    bonuses: tuple[float, ...] = tuple(2.0**k for k in range(-4, 3))  # c of UCB
    optimism: tuple[float, ...] = tuple(
        2.0**k for k in range(-2, 3)
    )  # first estimate of every arm, greedy with step size 0.1
    # independent runs, each with arms of its own; every algorithm sees the same ones
    runs: int = 2000
    steps: int = 1000  # pulls per run
    arms: int = 10  # arms per run, their means drawn from N(0, 1)
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "steps", "arms"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(all(0 <= e <= 1 for e in self.epsilons), "epsilons", self.epsilons, "probabilities")
        require(min(self.bonuses, default=0) >= 0, "bonuses", self.bonuses, "numbers ≥ 0")
        for name in ("epsilons", "learning_rates", "bonuses", "optimism"):
            values = getattr(self, name)
            require(
                len(values) > 0 and min(values) > 0,
                name,
                values,
                "at least one number > 0 (they stand on a logarithmic axis)",
            )
            require(all(a < b for a, b in pairwise(values)), name, values, "increasing numbers")

    @property
    def parameters(self) -> dict[str, tuple[float, ...]]:
        """Algorithm → the values of its parameter."""
        return dict(
            zip(
                LABELS,
                (self.epsilons, self.learning_rates, self.bonuses, self.optimism),
                strict=True,
            )
        )

    @property
    def as_published(self) -> bool:
        """Whether the book's numbers can be expected."""
        return (self.steps, self.arms) == (1000, 10) and all(
            PEAKS[name][0] in values for name, values in self.parameters.items()
        )


SETTINGS = Settings()


def regret(settings: Settings, name: str, progress: Progress) -> Tensor:
    """Regret per pull [V, runs] of an algorithm at each of its V parameter values, in units of
    reward.
    """
    values = settings.parameters[name]
    noise = Noise(
        (len(values), settings.runs), settings.seed, numbers=[*range(settings.runs)] * len(values)
    )
    environment = Metered(testbed(noise, settings.arms), every=settings.steps)
    value = torch.tensor(values).unsqueeze(-1).expand(noise.runs)

    def steps(range_: object) -> object:
        return progress(range_, name, total=settings.steps)  # type: ignore[arg-type]

    if name == "gradient_bandit":
        bandit = Bandit(environment, Softmax.uniform(noise, 1, settings.arms), group=1)
        critic = RunningMean(**RULES[OWN])  # type: ignore[arg-type]
        learner = Learner(
            bandit, GRADIENT_BANDIT, SGD(value), noise, critic=critic, log_every=settings.steps
        )
        learner.train(settings.steps, steps)  # type: ignore[arg-type]
    else:
        make: dict[str, Callable[[], EpsilonGreedy | UCB]] = {
            "epsilon_greedy": lambda: EpsilonGreedy(noise, 1, settings.arms, value),
            "ucb": lambda: UCB(noise, 1, settings.arms, value),
            "optimistic": lambda: EpsilonGreedy(
                noise, 1, settings.arms, 0.0, initial=value, step_size=STEP_SIZE
            ),
        }
        play(make[name](), environment, settings.steps, noise, steps)  # type: ignore[arg-type]
    return environment.regret / settings.steps


def expected_maximum(arms: int) -> float:
    """E[max] of `arms` N(0, 1) numbers: the reward per pull of who knows the best arm."""
    return _moment(arms, 1)


def _luck(arms: int) -> float:
    """Standard error of the mean of max q* over the book's draws of arms: it lifts or lowers a
    whole printed figure.
    """
    return math.sqrt((_moment(arms, 2) - _moment(arms, 1) ** 2) / PUBLISHED_RUNS)


def printed_error(arms: int) -> float:
    """Standard error of a printed summit: the luck of its arms, and the reading (anywhere within ±
    READING).
    """
    return math.hypot(_luck(arms), READING / math.sqrt(3))


def _moment(arms: int, power: int) -> float:
    """E[max^power] = ∫ x^power dΦ(x)^arms, by the trapezoid rule."""
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    density = (
        arms * torch.special.ndtr(x) ** (arms - 1) * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    )
    return float(torch.trapezoid(x**power * density, x))


def run(settings: Settings, progress: Progress) -> Result:
    """All algorithms over their parameters, on the same arms."""
    ceiling = expected_maximum(settings.arms)
    cost = {
        name: regret(settings, name, progress).double() for name in progress(LABELS, "algorithms")
    }
    series = {}
    for name, per_run in cost.items():
        mean, error = mean_error(per_run.T)
        series[name] = {
            "parameter": settings.parameters[name],
            "mean": ceiling - mean,
            "half": 1.96 * error,
        }
    error = printed_error(settings.arms)
    published = [(*peak, error) for peak in PEAKS.values()] if settings.as_published else []
    return Result(
        series={"ceiling": ceiling, "algorithms": series, "published": published},
        facts=_facts(settings, cost, ceiling),
        caption=CAPTION,
    )


def _facts(settings: Settings, cost: dict[str, Tensor], ceiling: float) -> list[Fact]:
    """The summits against print; that they are summits; their order.

    Only for the book's experiment.
    """
    if not settings.as_published:
        return []
    claim = (
        "Always pulling the best of ten arms with means from N(0, 1) earns about 1.55 (on the"
        " book's 2,000 draws of arms)"
    )
    luck = math.hypot(_luck(settings.arms), 0.005)
    facts = [Fact.simulated(claim, "Sutton & Barto 2018, §2.3", ceiling, 0.0, 1.55, luck, number=2)]
    best = {name: int(per_run.mean(-1).argmin()) for name, per_run in cost.items()}
    summit = {name: cost[name][place] for name, place in best.items()}  # regret per pull [runs]
    for name, (_, printed) in PEAKS.items():
        mean, error = mean_error(summit[name])
        claim = (
            f"{LABELS[name]} at its best earns about {printed:.2f} per pull over the first 1,000"
            " pulls (printed for one draw of 2,000 sets of arms, recalled from the figure to ±"
            f" {READING:g})"
        )
        facts.append(
            Fact.simulated(
                claim, BOOK, ceiling - mean, error, printed, printed_error(settings.arms), number=2
            )
        )
    for name, values in settings.parameters.items():
        mean, error = min(mean_error(cost[name][end] - summit[name]) for end in (0, -1))
        ends = f"{Fraction(values[0])} … {Fraction(values[-1])}"
        claim = (
            f"{LABELS[name]} does best at an intermediate value: both ends of {ends} earn less"
            " (smaller difference per pull)"
        )
        facts.append(Fact.above(claim, "Sutton & Barto 2018, §2.10", mean, 0.0, error, number=2))
    for better, worse in pairwise(ORDER):
        mean, error = mean_error(summit[worse] - summit[better])
        claim = (
            f"Each at its best, {LABELS[better]} earns more than {LABELS[worse]} on the same arms"
            " (difference per pull)"
        )
        facts.append(Fact.above(claim, BOOK, mean, 0.0, error, number=2))
    return facts


LOOKS: dict[str, figures.Style] = {  # one policy gradient among the classical three
    "epsilon_greedy": figures.style_of("epsilon_greedy"),
    "gradient_bandit": figures.style_of("baseline"),
    "ucb": figures.style_of("ucb"),
    "optimistic": {**figures.style_of("epsilon_greedy"), "linestyle": figures.SOLID},
}
CAPTION = (
    "Mean reward of the first 1,000 pulls on the ten-armed testbed, each algorithm over its own"
    " parameter, 95 % intervals over runs; hollow diamonds are the summits of the printed figure,"
    " recalled to ± 0.03 (bars: one standard error), the dashed line is what knowing the best arm"
    " would earn."
)


def plot(result: Result) -> Figure:
    """The four hills, their printed summits, and what knowing the best arm would earn."""
    figure, [ax] = figures.new_figure(width=9.6, height=5.4)
    for name, label in LABELS.items():
        parameter, mean, half = (
            result.array("algorithms", name, what) for what in ("parameter", "mean", "half")
        )
        look = LOOKS[name]
        figures.band(ax, parameter, mean, half, label=label, marker="o", markersize=4.5, **look)
        end, colour = (parameter[-1], mean[-1]), figures.readable(look["color"])
        ax.annotate(
            label,
            end,
            (9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    for place, printed, error in result.array("published"):
        ax.errorbar(place, printed, error, color=figures.INK, capsize=3, linewidth=1.0)
        figures.expectation(ax, printed, place, marker="D")
    ceiling = float(result.array("ceiling"))
    figures.expectation(ax, ceiling)
    ax.text(
        0.01,
        ceiling - 0.006,
        "the best arm, always",
        va="top",
        color=figures.INK,
        transform=ax.get_yaxis_transform(),
    )
    ax.set_ylim(top=ceiling + 0.02)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(
        lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
    )
    title = "A policy gradient among classical bandit algorithms (◇ the book's summits)"
    figures.describe(ax, title, "parameter: ε, α, c or Q₁", "mean reward of the first 1,000 pulls")
    return figure
