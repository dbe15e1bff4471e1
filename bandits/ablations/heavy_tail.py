"""Rewards that are rare and large: where dividing by the group's std turns the gradient round.

Arm A always pays .5. Arm B pays 10 one time in ten and nothing otherwise, so it is worth 1, twice
as much. In a small group there is mostly no 10, and then A wins by .5, which the std blows up to
the size of any other win. When a 10 does come, the std has grown with it, and the win counts no
more than the many losses did. Look for the first group size at which the expected gradient points
to B. It is exact, for each policy: from one half each it lies in the forties, and the rarer B has
become, the more samples it takes, so that a policy which has begun to leave B is pushed on. The
mean alone points to B at every group size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bandits.environments import Discrete
from bandits.exact import outcomes
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import CourseError, require
from course.estimator import Estimator, replace
from course.exact import Outcomes, group_mean_factor, microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "a rare large reward: dividing by the std prefers the worse arm until the group has some forty"
    " samples"
)
EXPECTED_SECONDS = 4.0


@dataclass(frozen=True)
class Settings(Checked):
    """The two arms, the group sizes, and the training runs of the last panel."""

    rungs: tuple[str, ...] = ("group_mean", "group_std")  # which estimators
    # samples per prompt, exact gradients
    groups: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 43, 44, 64, 96, 128)
    sure: float = 0.5  # what arm A always pays
    large: float = 10.0  # what arm B pays now and then
    chance: float = 0.1  # how often it does, a probability
    trained: tuple[int, ...] = (8, 128)  # samples per prompt of the training runs
    runs: int = 200  # independent training runs
    steps: int = 150  # updates of each
    learning_rate: float = 0.5  # of plain gradient ascent
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.groups) > 1 and 2 <= min(self.groups) <= max(self.groups) <= 200,
            "groups",
            self.groups,
            "sizes from 2 to 200",
        )
        require(0 < self.chance < 1, "chance", self.chance, "a probability between 0 and 1")
        require(
            0 < self.sure < self.chance * self.large,
            "sure",
            self.sure,
            f"a number from 0 to B's mean, {self.chance * self.large:g}",
        )
        require(
            len(self.trained) > 0 and min(self.trained) >= 2,
            "trained",
            self.trained,
            "group sizes ≥ 2",
        )
        for name in ("runs", "steps"):
            require(getattr(self, name) >= 2, name, getattr(self, name), "a whole number ≥ 2")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")


SETTINGS = Settings()
STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))
LIMIT = 2000  # samples: no search goes further
POLICIES = (
    0.02,
    0.03,
    0.05,
    0.07,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
)  # probability of arm B


def environment(settings: Settings) -> Discrete:
    """Arms A and B of one prompt: rewards and their chances [1, 2, 2]."""
    values = torch.tensor(
        [[[settings.sure, settings.sure], [settings.large, 0.0]]], dtype=torch.float64
    )
    return Discrete(
        values,
        torch.tensor([[[1.0, 0.0], [settings.chance, 1 - settings.chance]]], dtype=torch.float64),
    )


def listed(settings: Settings, b: float = 0.5) -> Outcomes:
    """All that can happen when arm B has probability `b`."""
    return outcomes(environment(settings), torch.tensor([[1 - b, b]], dtype=torch.float64).log())


def push(estimator: Estimator, can_happen: Outcomes, group: int) -> float:
    """The expected gradient on arm B's logit, by the microscope."""
    return float(microscope(estimator, can_happen, group, covariance=False).expected[1])


def push_by_counts(settings: Settings, group: int, b: float = 0.5) -> float:
    """The same for the group's mean and std, by hand: the sum over how many of the group drew A,
    B's prize, and B's blank.

    Σ multinomial · [(1−b)·(advantages of B's samples) − b·(advantages of A's)] / G; silent groups
    give 0. eq:push-on-the-rare-prize
    """
    a, prize = torch.meshgrid(
        torch.arange(group + 1).double(), torch.arange(group + 1).double(), indexing="ij"
    )
    blank = group - a - prize
    inside = (blank >= 0) & (torch.stack([a, prize, blank]).amax(0) < group)
    a, prize, blank = a[inside], prize[inside], blank[inside]
    ways = (
        math.lgamma(group + 1)
        - torch.lgamma(a + 1)
        - torch.lgamma(prize + 1)
        - torch.lgamma(blank + 1)
    )
    chance = (
        a * math.log(1 - b)
        + prize * math.log(b * settings.chance)
        + blank * math.log(b * (1 - settings.chance))
    )
    mean = (settings.sure * a + settings.large * prize) / group
    square = (
        a * (settings.sure - mean) ** 2 + prize * (settings.large - mean) ** 2 + blank * mean**2
    )
    of_a, of_b = a * (settings.sure - mean), prize * (settings.large - mean) - blank * mean
    return float(
        ((ways + chance).exp() * ((1 - b) * of_b - b * of_a) / (square / group).sqrt()).sum()
        / group
    )


def slope(settings: Settings) -> float:
    """∇J on arm B's logit where both arms have probability ½: ½·½·(B's mean − A's)."""
    return (settings.chance * settings.large - settings.sure) / 4


def first_group(settings: Settings, b: float) -> int:
    """The smallest G at which `push_by_counts` is positive, by doubling and halving."""
    low, high = 1, 2
    while push_by_counts(settings, high, b) <= 0:
        low, high = high, 2 * high
        if low > LIMIT:
            raise CourseError(
                f"large: got rewards whose gradient still points to A with {low} samples; allowed"
                " is a less rare reward"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if push_by_counts(settings, middle, b) > 0 else (middle, high)
    return high


def first_listed(settings: Settings) -> int:
    """The smallest G at which the microscope sees a gradient towards B from one half each, asked
    one G after another.
    """
    half, group = listed(settings), 2
    while push(STD, half, group) <= 0:
        group += 1
        require(
            group <= 200, "large", settings.large, "a reward less rare: its first G is beyond 200"
        )
    return group


def run(settings: Settings, progress: Progress) -> Result:
    """Exact gradients over G; the first right G over policies; and training runs."""
    half = listed(settings)
    pushes = {
        name: [
            push(ladder.get(name).estimator, half, group)
            for group in progress(settings.groups, name)
        ]
        for name in settings.rungs
    }
    trained = {
        group: {
            name: train(settings, ladder.get(name).estimator, group, progress)
            for name in settings.rungs
        }
        for group in settings.trained
    }
    series: dict[str, Any] = {
        "groups": settings.groups,
        "push": pushes,
        "by_counts": [push_by_counts(settings, group) for group in settings.groups],
        "by_formula": [group_mean_factor(group) * slope(settings) for group in settings.groups],
        "policy": POLICIES,
        "first": [first_group(settings, b) for b in POLICIES],
        "trained": trained,
    }
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def train(
    settings: Settings, estimator: Estimator, group: int, progress: Progress
) -> dict[str, Any]:
    """Training runs from one half each: probability of arm B after every update, its mean and
    standard error over runs.
    """
    noise = Noise((settings.runs,), settings.seed, dtype=torch.float64)
    bandit = Bandit(environment(settings), Softmax.uniform(noise, 1, 2), group)
    learner = Learner(bandit, estimator, SGD(settings.learning_rate), noise)
    history = learner.train(
        settings.steps, lambda steps: progress(steps, f"G = {group}", total=settings.steps)
    )
    mean, error = mean_error(history["optimal_action"].T)
    return {"steps": [0, *history.steps], "mean": [0.5, *mean], "error": [0.0, *error]}


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    arms = (
        f"A pays {settings.sure:g}, B {settings.large:g} with probability {settings.chance:g},"
        " π = ½"
    )
    source = "this course"
    half, found = listed(settings), first_listed(settings)
    after = f"{arms}: with {found} samples the group-normalised gradient on B's logit is positive"
    first = (
        f"{arms}: the first G whose expected group-normalised gradient points to B (enumerated;"
        " expected: by hand)"
    )
    facts = [
        Fact.exact(first, source, found, first_group(settings, 0.5), number=14),
        Fact.above(after, source, push(STD, half, found), 0.0, number=14),
    ]
    if found > 2:
        before = (
            f"{arms}: with {found - 1} samples the group-normalised gradient on B's logit is still"
            " negative"
        )
        facts.append(Fact.below(before, source, push(STD, half, found - 1), 0.0, number=14))
        most = max(push_by_counts(settings, group) for group in range(2, found))
        facts.append(
            Fact.below(
                f"{arms}: it is negative at every G from 2 to {found - 1} (the largest, by hand)",
                source,
                most,
                0.0,
                number=14,
            )
        )
    off = max(
        abs(push(STD, half, group) - by_hand)
        for group, by_hand in zip(settings.groups, series["by_counts"], strict=True)
    )
    facts.append(
        Fact.exact(
            f"{arms}: enumeration and the sum over counts agree (largest difference over G)",
            source,
            off,
            0.0,
            number=14,
        )
    )
    worst = max(
        abs(push(ladder.group_mean, half, group) / (group_mean_factor(group) * slope(settings)) - 1)
        for group in settings.groups
    )
    claim = (
        f"{arms}: the mean alone gives (G−1)/G·∇J on B's logit, positive at every G (largest"
        " relative difference)"
    )
    facts.append(Fact.exact(claim, source, worst, 0.0, number=14))
    rare = first_group(settings, 0.05)
    claim = (
        f"{arms.replace('½', '(.95, .05)')}: the first right G is larger than from one half each"
    )
    facts.append(Fact.above(claim, source, rare, found, number=14))
    facts += _training_facts(settings, series, arms)
    return facts


def _training_facts(settings: Settings, series: dict[str, Any], arms: str) -> list[Fact]:
    facts = []
    for group in settings.trained:
        for name, ends_on_b in (
            ("group_mean", True),
            ("group_std", push_by_counts(settings, group) > 0),
        ):
            if name in settings.rungs:
                end = series["trained"][group][name]
                where = "above" if ends_on_b else "below"
                claim = (
                    f"{arms}, {name}, {settings.runs} runs with G = {group}: after {settings.steps}"
                    f" updates B's probability is {where} ½"
                )
                make = Fact.above if ends_on_b else Fact.below
                facts.append(
                    make(claim, "this course", end["mean"][-1], 0.5, end["error"][-1], number=14)
                )
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Left and middle are exact; dashed: the sum over counts, and (G−1)/G·∇J. Right: runs from one"
    " half each, mean and 95 % interval over runs; solid with the smaller group, dotted with the"
    " larger."
)


def plot(result: Result) -> Figure:
    """The expected gradient over G; the first right G over policies; training."""
    figure, (pushes, first, trained) = figures.new_figure(1, 3, width=15.0, height=4.6)
    groups = result.array("groups")
    for name in result.settings["rungs"]:
        figures.band(
            pushes, groups, result.array("push", name), name=name, marker="o", markersize=4
        )
    figures.expectation(pushes, x=groups, y=result.array("by_counts"))
    figures.expectation(pushes, x=groups, y=result.array("by_formula"))
    pushes.axhline(0, color="#777777", linewidth=1.0)
    start = int(result.array("first")[POLICIES.index(0.5)])
    pushes.annotate(
        f"right from G = {start}",
        (start, 0.0),
        xytext=(-8, 34),
        textcoords="offset points",
        color=figures.INK,
        ha="right",
        arrowprops={"arrowstyle": "->", "color": figures.INK},
    )
    pushes.set_xscale("log", base=2)
    pushes.set_xticks([2, 4, 8, 16, 32, 64, 128], ["2", "4", "8", "16", "32", "64", "128"])
    pushes.minorticks_off()
    figures.describe(
        pushes,
        "The std prefers the worse arm",
        "samples per prompt, G",
        "expected gradient on B's logit",
    )
    figures.label_ends(
        pushes,
        [line for line in pushes.get_lines() if line.get_label() in result.settings["rungs"]],
    )
    _draw_first(first, result)
    _draw_training(trained, result)
    return figure


def _draw_first(ax: Axes, result: Result) -> None:
    policy, first = result.array("policy"), result.array("first")
    colour = figures.style_of("group_std")["color"]
    ax.plot(policy, first, "o-", color=colour, markersize=4)
    ax.fill_between(policy, 2, first, color=colour, alpha=0.15, linewidth=0)
    ax.set_yscale("log", base=2)
    ticks = [2, 8, 32, 128, 512]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(2, 1100)
    ax.annotate("std points to A, the worse", (0.5, 7), ha="center", color=figures.readable(colour))
    ax.annotate("std points to B", (0.62, 200), ha="center", color=figures.INK)
    figures.describe(
        ax, "The rarer B, the more samples", "probability of arm B", "samples per prompt, G"
    )


def _draw_training(ax: Axes, result: Result) -> None:
    sizes = list(result.series["trained"])
    for size, dashes in zip(
        sizes,
        (figures.SOLID, figures.DOT, figures.DASHDOT, figures.DASH) * len(sizes),
        strict=False,
    ):
        for name in result.settings["rungs"]:
            steps, mean, error = (
                result.array("trained", size, name, key) for key in ("steps", "mean", "error")
            )
            figures.band(
                ax, steps, mean, 1.96 * error, name, f"{name}, G = {size}", linestyle=dashes
            )
    ax.set_ylim(-0.02, 1.02)
    ax.axhline(0.5, color="#777777", linewidth=1.0)
    figures.describe(ax, "… and so it trains", "updates", "probability of arm B, the better")
    figures.label_ends(
        ax, [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    )
