"""The parameter study of four bandit algorithms in Sutton & Barto 2018 (§2.10, figure 2.6).

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.agents import UCB, EpsilonGreedy, Metered, play
from bandits.environments import testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory.best_arm import expected_maximum, maximum_error
from bandits.theory.gradient_bandit import GRADIENT_BANDIT, OWN, RULES
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import interval, mean_error, paired_error
from course.lab.sweep import Choice, choose, edges
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "ε-greedy, gradient bandit, UCB and optimistic greedy over their parameter, in one currency"
EXPECTED_SECONDS = 16.0
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
    # independent runs that are reported, each with arms of its own; every algorithm sees the same
    # ones (as many again choose its parameter's best value)
    runs: int = 2000
    steps: int = 1000  # pulls per run
    arms: int = 10  # arms per run, their means drawn from N(0, 1)
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "steps", "arms"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(max(self.epsilons) <= 1, "epsilons", self.epsilons, "probabilities")
        for name in ("epsilons", "learning_rates", "bonuses", "optimism"):
            values = getattr(self, name)
            rising = min(values) > 0 and all(a < b for a, b in pairwise(values))
            require(rising, name, values, "increasing numbers > 0, for a logarithmic axis")

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
        """Whether these are the book's settings, so that its numbers apply."""
        return (self.steps, self.arms) == (1000, 10) and all(
            PEAKS[name][0] in values for name, values in self.parameters.items()
        )


SETTINGS = Settings()


def regret(settings: Settings, name: str, progress: Progress) -> Tensor:
    """Regret per pull [V, 2·runs] of an algorithm at each of its V parameter values, in units of
    reward. A run's number alone decides its arms and its random streams.
    """
    values = settings.parameters[name]
    runs = 2 * settings.runs
    numbers = [*range(runs)] * len(values)
    noise = Noise((len(values), runs), settings.seed, numbers=numbers)
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


def printed_error(arms: int) -> float:
    """Standard error of a printed summit: the luck of its arms, and the reading (anywhere within ±
    READING).
    """
    return math.hypot(maximum_error(arms, PUBLISHED_RUNS), READING / math.sqrt(3))


def run(settings: Settings, progress: Progress) -> Result:
    """All algorithms over their parameters, on the same arms; each one's best value is chosen on
    the second half of the runs, and everything is reported of the first.
    """
    s, ceiling = settings, expected_maximum(settings.arms)
    series, cost, best = {}, {}, {}
    for name in progress(LABELS, "algorithms"):
        both, values = regret(s, name, progress).double(), s.parameters[name]
        cost[name] = both[:, : s.runs]
        best[name] = choose(-both[:, s.runs :], values, cost[name])
        mean, half = interval(cost[name])
        series[name] = {"parameter": values, "mean": ceiling - mean, "half": half}
    error = printed_error(s.arms)
    published = [(*peak, error) for peak in PEAKS.values()] if s.as_published else []
    outer = [edges({LABELS[name]: one}, s.parameters[name], "value") for name, one in best.items()]
    return Result(
        series={"ceiling": ceiling, "algorithms": series, "published": published},
        facts=_facts(s, cost, best, ceiling),
        caption=" ".join([CAPTION, *filter(None, outer)]),
    )


def _facts(
    s: Settings, cost: Mapping[str, Tensor], best: Mapping[str, Choice], ceiling: float
) -> list[Fact]:
    """The summits against print; that they are summits; their order.

    Only for the book's experiment. `cost` [V, runs] is the regret per pull.
    """
    if not s.as_published:
        return []
    summit: dict[str, Tensor] = {}  # regret per pull [runs] at the chosen value
    for name, choice in best.items():
        assert choice.judged is not None
        summit[name] = choice.judged
    luck = math.hypot(maximum_error(s.arms, PUBLISHED_RUNS), 0.005)
    claim = "Always pulling the best of ten arms with means from N(0, 1) earns about 1.55 (on the"
    claim, source = f"{claim} book's 2,000 draws of arms)", "Sutton & Barto 2018, §2.3"
    facts = [Fact.simulated(claim, source, ceiling, 0.0, 1.55, luck, number=2)]
    for name, (_, printed) in PEAKS.items():
        mean, error = mean_error(summit[name])
        claim = f"{LABELS[name]} at its best earns about {printed:.2f} per pull over the first"
        claim += " 1,000 pulls (printed for one draw of 2,000 sets of arms, recalled from the"
        claim, off = f"{claim} figure to ± {READING:g})", printed_error(s.arms)
        found = ceiling - mean, error
        # a chance of 1 in 100: with the usual one the reading would let a neighbour's summit pass
        sure: dict[str, Any] = {"number": 2, "runs": s.runs, "chance": 0.01}
        facts.append(Fact.simulated(claim, BOOK, *found, printed, off, **sure))
    for name, values in s.parameters.items():
        mean, error = min(paired_error(cost[name][end], summit[name]) for end in (0, -1))
        ends = f"{Fraction(values[0])} … {Fraction(values[-1])}"
        claim = f"{LABELS[name]} does best at an intermediate value: both ends of {ends} earn less"
        claim, source = f"{claim} (smaller difference per pull)", "Sutton & Barto 2018, §2.10"
        facts.append(Fact.above(claim, source, mean, 0.0, error, number=2, runs=s.runs))
    for better, worse in pairwise(ORDER):
        mean, error = paired_error(summit[worse], summit[better])
        claim = f"Each at its best, {LABELS[better]} earns more than {LABELS[worse]} on the same"
        claim = f"{claim} arms (difference per pull)"
        facts.append(Fact.above(claim, BOOK, mean, 0.0, error, number=2, runs=s.runs))
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
        figures.note(ax, label, end, (9, 0), va="center", color=colour, fontsize=11)
    for place, printed, error in result.array("published"):
        ax.errorbar(place, printed, error, color=figures.INK, capsize=3, linewidth=1.0)
        figures.expectation(ax, printed, place, marker="D")
    ceiling = float(result.array("ceiling"))
    figures.expectation(ax, ceiling)
    words: dict[str, Any] = {"va": "top", "xycoords": ax.get_yaxis_transform()}
    figures.note(ax, "the best arm, always", (0.01, ceiling - 0.006), fontsize=11, **words)
    ax.set_ylim(top=ceiling + 0.02)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(
        lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
    )
    title = "A policy gradient among classical bandit algorithms (◇ the book's summits)"
    figures.describe(ax, title, "parameter: ε, α, c or Q₁", "mean reward of the first 1,000 pulls")
    return figure
