"""Rare, large rewards: dividing by the group std can reverse the gradient.

Arm A always pays .5. Arm B pays 10 one time in ten and otherwise 0, so its mean is 1, twice as
much. A small group usually contains no 10. Then A wins by .5, and the std scales this to the size
of any other win. If a 10 does come, the std grows with it, so this win counts no more than each of
the many losses. Look for the smallest group size at which the expected gradient points to B, which
is exact for each policy. From probability ½ each it lies in the forties. The rarer B becomes, the
more samples it takes, so a policy that has begun to leave B is pushed further away. The group mean
without the std points to B at every group size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory.heavy_tail import (
    STD,
    RarePrize,
    environment,
    first_group,
    first_listed,
    listed,
    push,
    push_by_counts,
)
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import group_mean_factor
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, named_interval
from course.lab.terminal import Progress
from course.learner import Learner
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
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = len(self.groups) > 1 and 2 <= min(self.groups) <= max(self.groups) <= 200
        require(fits, "groups", self.groups, "sizes from 2 to 200")
        assert self.prize  # refuses arms of which B is not the better one
        require(min(self.trained) >= 2, "trained", self.trained, "group sizes ≥ 2")
        self.at_least(2, "runs")

    @property
    def prize(self) -> RarePrize:
        """The two arms."""
        return RarePrize(self.sure, self.large, self.chance)


SETTINGS = Settings()
# probability of arm B
POLICIES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def run(settings: Settings, progress: Progress) -> Result:
    """Exact gradients over G; the first right G over policies; and training runs."""
    prize, half = settings.prize, listed(settings.prize)
    series: dict[str, Any] = {
        "groups": settings.groups,
        "push": {
            name: [
                push(ladder.get(name).estimator, half, group)
                for group in progress(settings.groups, name)
            ]
            for name in settings.rungs
        },
        "by_counts": [push_by_counts(prize, group) for group in settings.groups],
        "by_formula": [group_mean_factor(group) * prize.slope for group in settings.groups],
        "policy": POLICIES,
        "first": [first_group(prize, b) for b in POLICIES],
    }
    trained = {
        group: {
            name: train(settings, ladder.get(name).estimator, group, progress)
            for name in settings.rungs
        }
        for group in settings.trained
    }
    series["trained"] = {
        group: {name: one["series"] for name, one in found.items()}
        for group, found in trained.items()
    }
    facts = [*_exact_facts(settings, series), *_training_facts(settings, trained)]
    return Result(series=series, facts=facts, caption=CAPTION)


def train(s: Settings, estimator: Estimator, group: int, progress: Progress) -> dict[str, Any]:
    """Training runs from one half each: arm B's probability after each update.

    Returns its series, mean and interval over runs, and its `end` with the standard error.
    """
    noise = Noise((s.runs,), s.seed, dtype=torch.float64)
    bandit = Bandit(environment(s.prize), Softmax.uniform(noise, 1, 2), group)
    learner = Learner(bandit, estimator, SGD(s.learning_rate), noise)
    history = learner.train(s.steps, partial(progress, text=f"G = {group}", total=s.steps))
    start = torch.full((1, s.runs), 0.5, dtype=torch.float64)
    better = torch.cat([start, history["optimal_action"]])  # [1 + steps, runs]
    series = {"steps": [0, *history.steps], **named_interval("mean", better)}
    return {"series": series, "end": mean_error(better[-1])}


# ---------------------------------------------------------------- facts


def _exact_facts(settings: Settings, series: dict[str, Any]) -> Facts:
    prize, half, facts = settings.prize, listed(settings.prize), Facts("this course", 14)
    pays = f"A pays {prize.sure:g}, B {prize.large:g} with probability {prize.chance:g}, π ="
    found = first_listed(prize)
    claim = (
        f"{pays} ½: the first G whose expected group-normalised gradient points to B (enumerated"
    )
    facts.exact(f"{claim}; expected: by hand)", found, first_group(prize, 0.5))
    if found > 2:
        claim = f"{pays} ½: it is negative at every G from 2 to {found - 1} (the largest, by hand)"
        facts.below(claim, max(push_by_counts(prize, group) for group in range(2, found)))
    by_counts = zip(settings.groups, series["by_counts"], strict=True)
    off = max(abs(push(STD, half, group) - by_hand) for group, by_hand in by_counts)
    claim = f"{pays} ½: enumeration and the sum over counts agree (largest difference over G)"
    facts.exact(claim, off, 0.0)
    by_formula = zip(settings.groups, series["by_formula"], strict=True)
    worst = max(
        abs(push(ladder.group_mean, half, group) / slope - 1) for group, slope in by_formula
    )
    claim = f"{pays} ½: the mean alone gives (G−1)/G·∇J on B's logit, positive at every G (largest"
    facts.exact(f"{claim} relative difference)", worst, 0.0)
    claim = f"{pays} (.95, .05): the first right G is larger than from one half each"
    facts.above(claim, first_group(prize, 0.05), found)
    return facts


def _training_facts(s: Settings, trained: dict[int, dict[str, dict[str, Any]]]) -> Facts:
    """Where runs end: the mean alone on B, the std where its exact push at one half points."""
    prize, facts = s.prize, Facts("this course", 14, runs=s.runs)
    pays = f"A pays {prize.sure:g}, B {prize.large:g} with probability {prize.chance:g}, π = ½"
    for group, found in trained.items():
        to_b = {"group_mean": True, "group_std": push_by_counts(prize, group) > 0}
        for name in [name for name in to_b if name in found]:
            where, add = ("above", facts.above) if to_b[name] else ("below", facts.below)
            claim = f"{pays}, {name}, {s.runs} runs with G = {group}: after {s.steps} updates B's"
            add(f"{claim} probability is {where} ½", found[name]["end"], 0.5)
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Left and middle are exact; dashed: the sum over counts, and (G−1)/G·∇J. Right: runs from one"
    " half each, mean and 95 % interval over runs; solid with the smaller group, dotted with the"
    " larger."
)
DASHES = (figures.SOLID, figures.DOT, figures.DASHDOT, figures.DASH)


def plot(result: Result) -> Figure:
    """The expected gradient over G; the first right G over policies; training."""
    figure, (pushes, first, trained) = figures.new_figure(1, 3, width=15.0, height=4.6)
    groups, rungs = result.array("groups"), result.settings["rungs"]
    for name in rungs:
        values = result.array("push", name)
        figures.band(pushes, groups, values, name=name, marker="o", markersize=4)
    figures.label_ends(pushes)
    figures.expectation(pushes, x=groups, y=result.array("by_counts"))
    figures.expectation(pushes, x=groups, y=result.array("by_formula"))
    figures.reference(pushes, y=0.0)
    start = int(result.array("first")[POLICIES.index(0.5)])
    figures.note(pushes, f"right from G = {start}", (start, 0.0), (-8, 34), line=True, ha="right")
    figures.log_axis(pushes, "x", [2, 4, 8, 16, 32, 64, 128], base=2)
    samples, y = "samples per prompt, G", "expected gradient on B's logit"
    figures.describe(pushes, "The std prefers the worse arm", samples, y)
    _draw_first(first, result)
    figures.describe(first, "The rarer B, the more samples", "probability of arm B", samples)
    for size, dashes in zip(result.series["trained"], DASHES * len(groups), strict=False):
        for name in rungs:
            of, look = (
                ("trained", size, name),
                {"label": f"{name}, G = {size}", "linestyle": dashes},
            )
            steps = result.array(*of, "steps")
            figures.curve(trained, steps, result, *of, "mean", name=name, **look)
    figures.reference(trained, y=0.5)
    title, y = "… and so it trains", "probability of arm B, the better"
    figures.describe(trained, title, "updates", y, ylim=(-0.02, 1.02), ends=True)
    return figure


def _draw_first(ax: Axes, result: Result) -> None:
    policy, first = result.array("policy"), result.array("first")
    colour = figures.style_of("group_std")["color"]
    ax.plot(policy, first, "o-", color=colour, markersize=4)
    ax.fill_between(policy, 2, first, color=colour, alpha=0.15, linewidth=0)
    figures.log_axis(ax, "y", [2, 8, 32, 128, 512], base=2)
    ax.set_ylim(2, 1100)
    figures.note(ax, "std points to A, the worse", (0.5, 7), ha="center", color=colour)
    figures.note(ax, "std points to B", (0.62, 200), ha="center")
