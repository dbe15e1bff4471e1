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
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bandits.theory.best_arm import expected_maximum, maximum_error
from bandits.theory.parameter_study import Study, regret
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import interval, mean_error, paired_error
from course.lab.sweep import Choice, choose, edges
from course.lab.terminal import Progress

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
# by the height of the printed summits
ORDER = ("ucb", "optimistic", "gradient_bandit", "epsilon_greedy")
LABELS = {
    "epsilon_greedy": "ε-greedy (ε)",
    "gradient_bandit": "gradient bandit (α)",
    "ucb": "UCB (c)",
    "optimistic": "greedy, optimistic (Q₁)",
}


def powers(first: int, last: int) -> tuple[float, ...]:
    """2^first, …, 2^last."""
    return tuple(2.0**k for k in range(first, last + 1))


@dataclass(frozen=True)
class Settings(Checked):
    """What is run; the defaults are the book's. Parameters are powers of two."""

    epsilons: tuple[float, ...] = powers(-7, -2)  # ε of ε-greedy with sample averages
    learning_rates: tuple[float, ...] = powers(-5, 1)  # α of the gradient bandit
    bonuses: tuple[float, ...] = powers(-4, 2)  # c of UCB
    # first estimate of every arm, greedy with step size 0.1
    optimism: tuple[float, ...] = powers(-2, 2)
    # independent runs that are reported, each with arms of its own; every algorithm sees the same
    # ones (as many again choose its parameter's best value)
    runs: int = 2000
    steps: int = 1000  # pulls per run
    arms: int = 10  # arms per run, their means drawn from N(0, 1)
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs", "steps", "arms")
        require(max(self.epsilons) <= 1, "epsilons", self.epsilons, "probabilities")
        self.rising("epsilons", "learning_rates", "bonuses", "optimism")

    @property
    def parameters(self) -> dict[str, tuple[float, ...]]:
        """Algorithm → the values of its parameter."""
        values = self.epsilons, self.learning_rates, self.bonuses, self.optimism
        return dict(zip(LABELS, values, strict=True))

    @property
    def study(self) -> Study:
        """The runs of every algorithm: twice as many as are reported."""
        return Study(2 * self.runs, self.steps, self.arms, self.seed)

    @property
    def as_published(self) -> bool:
        """Whether these are the book's settings, so that its numbers apply."""
        return (self.steps, self.arms) == (1000, 10) and all(
            PEAKS[name][0] in values for name, values in self.parameters.items()
        )


SETTINGS = Settings()


def printed_error(arms: int) -> float:
    """Standard error of a printed summit: the luck of its arms, and the reading (± READING)."""
    return math.hypot(maximum_error(arms, PUBLISHED_RUNS), READING / math.sqrt(3))


def run(settings: Settings, progress: Progress) -> Result:
    """All algorithms on the same arms; their best values are chosen on the second half of the runs.

    Everything is reported of the first half.
    """
    s, ceiling = settings, expected_maximum(settings.arms)
    series, cost, best = {}, {}, {}
    for name in progress(LABELS, "algorithms"):
        values, bar = s.parameters[name], partial(progress, text=name, total=s.steps)
        both = regret(s.study, name, values, bar).double()
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
    facts, section = Facts(BOOK, 2, runs=s.runs), "Sutton & Barto 2018, §2.10"
    # a chance of 1 in 100: with the usual one the reading would let a neighbour's summit pass
    printed_facts, known = Facts(BOOK, 2, runs=s.runs, chance=0.01), Facts(BOOK, 2)
    luck = math.hypot(maximum_error(s.arms, PUBLISHED_RUNS), 0.005)
    claim = "Always pulling the best of ten arms with means from N(0, 1) earns about 1.55 (on the"
    claim = f"{claim} book's 2,000 draws of arms)"
    known.simulated(claim, (ceiling, 0.0), 1.55, luck, source="Sutton & Barto 2018, §2.3")
    for name, (_, printed) in PEAKS.items():
        mean, error = mean_error(summit[name])
        claim = f"{LABELS[name]} at its best earns about {printed:.2f} per pull over the first"
        claim += " 1,000 pulls (printed for one draw of 2,000 sets of arms, recalled from the"
        claim += f" figure to ± {READING:g})"
        printed_facts.simulated(claim, (ceiling - mean, error), printed, printed_error(s.arms))
    for name, values in s.parameters.items():
        lower = min(paired_error(cost[name][end], summit[name]) for end in (0, -1))
        ends = f"{Fraction(values[0])} … {Fraction(values[-1])}"
        claim = f"{LABELS[name]} does best at an intermediate value: both ends of {ends} earn less"
        facts.above(f"{claim} (smaller difference per pull)", lower, source=section)
    for better, worse in pairwise(ORDER):
        claim = f"Each at its best, {LABELS[better]} earns more than {LABELS[worse]} on the same"
        ahead = paired_error(summit[worse], summit[better])
        facts.above(f"{claim} arms (difference per pull)", ahead)
    return [*known, *printed_facts, *facts]


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
        of, look = ("algorithms", name), LOOKS[name]
        parameter, mean, half = (result.array(*of, what) for what in ("parameter", "mean", "half"))
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
    figures.powers_of_two(ax)
    title = "A policy gradient among classical bandit algorithms (◇ the book's summits)"
    figures.describe(ax, title, "parameter: ε, α, c or Q₁", "mean reward of the first 1,000 pulls")
    return figure
