"""Is GRPO a good bandit algorithm? Against ε-greedy, UCB and Thompson sampling, pull for pull.

Each of ten arms pays 1 with a probability drawn from U(0, 1), else 0. The policy gradients make G
pulls per update, the other algorithms one. All get the same number of pulls, and one meter measures
the regret: the best arm's mean minus the pulled arm's mean, summed over the pulls. Every setting is
swept, chosen on some runs and judged on others.

What to look for: after tuning, the group methods have half the regret of ε-greedy, and a fraction
of that of UCB with its textbook bonus. But Thompson sampling, which has nothing to tune, and UCB
with a tuned bonus have even less, and only their regret is close to a straight line over the
logarithm of the pulls. The last panel shows why. In most runs a group method has found the best arm
and loses almost nothing, less than Thompson sampling, which never quite stops exploring. In some
runs it has committed to a wrong arm and hardly pulls the others again, and those runs make up its
regret. A group makes the gradient less noisy; it does not explore. GRPO's KL term, here to the
uniform policy, does explore: like ε-greedy it costs a little in every run, and few runs commit to a
wrong arm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bandits.contest import COMMITTED, TEXTBOOK, Contest, Judged, judge, played, uniform_cost
from course.errors import require
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import named_interval, paired_error, share_error
from course.lab.sweep import edges
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "GRPO against ε-greedy, UCB and Thompson sampling at equal pulls: tuned it does well, but it"
    " does not explore"
)
EXPECTED_SECONDS = 90.0
SOURCE = "this course: simulated; the question is Giovanidis 2025 (GRPO is just PPO for bandits)"
SYMBOLS = {"epsilon_greedy": "ε", "ucb": "c"}
LABELS = {"epsilon_greedy": "ε-greedy", "ucb": "UCB", "thompson": "Thompson"}


@dataclass(frozen=True)
class Settings(Checked):
    """What is run. Every run has arms of its own, and every algorithm sees the same ones."""

    # which policy gradients
    rungs: tuple[str, ...] = ("reinforce", "group_mean", "group_std", "grpo")
    pulls: int = 2048  # pulls per run, for every algorithm
    group: int = 16  # pulls per update in the first two panels
    # pulls per update in the third panel; divisors of pulls
    groups: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    arms: int = 10  # arms per run
    # the sweep of each policy gradient
    learning_rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    # the sweep of ε-greedy
    epsilons: tuple[float, ...] = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
    # the sweep of UCB; √2 is the textbook's
    bonuses: tuple[float, ...] = tuple(TEXTBOOK * 2.0**k for k in range(-4, 1))
    runs: int = 600  # independent runs that are reported
    tuning_runs: int = 200  # other runs, which choose each algorithm's setting
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs", "tuning_runs", "arms")
        self.rising("learning_rates", "epsilons", "bonuses")
        sizes, enough = (self.group, *self.groups), f"at least 4 rollouts of group = {self.group}"
        require(self.pulls >= 4 * self.group, "pulls", self.pulls, enough)
        divide = all(g > 1 and self.pulls % g == 0 for g in sizes)
        require(divide, "group, groups", sizes, f"divisors of pulls = {self.pulls} above 1")
        require(max(self.epsilons) <= 1, "epsilons", self.epsilons, "probabilities")

    @property
    def is_default(self) -> bool:
        """Whether this is the experiment of the claims; runs, seed and rungs may differ."""
        free = {name: getattr(SETTINGS, name) for name in ("rungs", "runs", "tuning_runs", "seed")}
        return dataclasses.replace(self, **free) == SETTINGS

    @property
    def contest(self) -> Contest:
        """The arms and the pulls that every algorithm gets."""
        return Contest(self.arms, self.pulls, self.group, self.tuning_runs, self.runs, self.seed)

    @property
    def sweeps(self) -> dict[str, tuple[float, ...]]:
        """The values that are swept where they are no learning rates; Thompson sampling has one."""
        return {"epsilon_greedy": self.epsilons, "ucb": self.bonuses, "thompson": (1.0,)}


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Every algorithm over its settings; then the policy gradients over the size of the group."""
    contest, judged, choices = settings.contest, {}, {}
    by_group: dict[str, Any] = {name: [] for name in settings.rungs}
    for name in progress((*LABELS, *settings.rungs), "algorithms"):
        values = settings.sweeps.get(name, settings.learning_rates)
        groups = {settings.group, *(() if name in LABELS else settings.groups)}
        for group in sorted(groups):
            what = name if name in LABELS else f"{name}, G = {group}"
            bar = partial(progress, text=what)
            found = judge(contest, values, played(contest, name, values, group, bar))
            if group == settings.group:
                judged[name] = found
            if name not in LABELS:
                choices[what] = found.choice
            if name in settings.rungs and group in settings.groups:
                by_group[name].append(found.regret)
    series = {
        "uniform": uniform_cost(settings.arms) * settings.pulls,
        "algorithms": {name: one.series for name, one in judged.items()},
        "groups": settings.groups,
        "by_group": {
            name: named_interval("regret", torch.stack(regrets))
            for name, regrets in by_group.items()
        },
    }
    said = [
        edges({LABELS[name]: judged[name].choice}, settings.sweeps[name], SYMBOLS[name])
        for name in SYMBOLS
    ]
    caption = " ".join([CAPTION, edges(choices, settings.learning_rates), *said]).split()
    result = Result(series=series, facts=_facts(settings, judged), caption=" ".join(caption))
    return told(result, {name: one.halted for name, one in judged.items()})


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, judged: Mapping[str, Judged]) -> Facts:
    """Who loses less, run by run on the same arms; who pays in the second half."""
    facts = Facts(SOURCE, runs=settings.runs)
    if not settings.is_default:
        return facts
    test = f"in {settings.pulls:,} pulls of {settings.arms} arms with chances from U(0, 1)"
    for better, worse, claim in (
        ("thompson", "grpo", "Thompson sampling, with nothing to tune, loses less than tuned GRPO"),
        ("thompson", "group_std", "Thompson sampling loses less than the tuned group std"),
        (
            "group_std",
            "grpo",
            "GRPO's KL term only costs: without it (group std) regret is smaller",
        ),
        ("group_std", "epsilon_greedy", "The tuned group std loses less than tuned ε-greedy"),
        ("group_mean", "reinforce", "A group baseline loses less than none"),
    ):
        if better in judged and worse in judged:
            regrets = paired_error(judged[worse].regret, judged[better].regret)
            facts.above(f"{claim}, {test} (difference of regrets)", regrets)
    ucb = paired_error(judged["ucb"].last, judged["ucb"].regret)
    claim = "UCB with the textbook's c = √2 loses more than with a tuned c"
    facts.above(f"{claim}, {test} (difference of regrets)", ucb)
    if "group_std" not in judged:
        return facts
    group, thompson = judged["group_std"].tail, judged["thompson"].tail
    claim = "In most runs a pull of the second half costs the group std less than Thompson sampling"
    cheaper = share_error(int((group < thompson).sum()), len(group))
    facts.above(f"{claim} (share of runs)", cheaper, 0.5)
    claim = "Yet on average it costs the group std more (difference per pull)"
    facts.above(claim, paired_error(group, thompson))
    for name, why in (("thompson", "Thompson sampling"), ("grpo", "GRPO, whose KL term explores")):
        if name in judged:
            claim = f"More runs lose over {COMMITTED:g} per pull in the second half with the group"
            shares = paired_error(group > COMMITTED, judged[name].tail > COMMITTED)
            facts.above(f"{claim} std than with {why} (difference of shares)", shares)
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Regret of policy gradients and classical bandit algorithms at equal pulls, 95 % intervals over"
    " runs: pull by pull at each one's best setting, over the settings, over the pulls per update,"
    " and what a pull of the second half costs, from the cheapest run to the dearest."
)


def plot(result: Result) -> Figure:
    """Regret pull by pull, over the settings, over the group's size; and the cost run by run."""
    figure, (course, sweep, sizes, runs) = figures.new_figure(2, 2, width=13.0, height=9.2)
    rungs, pulls = result.settings["rungs"], result.settings["pulls"]
    top = 0.0
    for name in (*LABELS, *rungs):
        of, label = ("algorithms", name), LABELS.get(name, name)
        symbol, value = SYMBOLS.get(name, "lr"), float(result.array(*of, "value"))
        tuned = label if name == "thompson" else f"{label} ({symbol} = {value:.2g})"
        marks = result.array(*of, "pulls")
        figures.curve(course, marks, result, *of, "regret", name=name, label=tuned)
        top = max(top, 1.15 * float(result.array(*of, "regret")[-1]))
        figures.band(runs, np.linspace(0, 1, 101), result.array(*of, "tail"), None, name, label)
        if name != "thompson":
            # the sweeps of ε and c end in the middle of the panel: labelled at the left end
            aside, values = f"_{label}" if name in SYMBOLS else label, result.array(*of, "values")
            figures.curve(sweep, values, result, *of, "sweep", name=name, label=aside)
            if name in SYMBOLS:
                start = values[0], result.array(*of, "sweep")[0]
                figures.note(sweep, label, start, (5, 8), color=figures.style_of(name)["color"])
    for name in rungs:
        figures.curve(sizes, result.array("groups"), result, "by_group", name, "regret", name=name)
    level = float(result.array("algorithms", "thompson", "regret")[-1])
    for ax in (sweep, sizes):
        ax.axhline(level, linewidth=2, label="Thompson", **figures.style_of("thompson"))
        figures.log_axis(ax, "y", [20, 30, 50, 100, 200, 500])
        ax.set_ylim(0.75 * level, 1.2 * max(np.max(line.get_ydata()) for line in ax.get_lines()))
    marks, uniform = result.array("algorithms", "thompson", "pulls"), float(result.array("uniform"))
    figures.expectation(course, uniform * marks / pulls, marks)
    place = (0.45 * top / uniform * pulls, 0.45 * top)
    figures.note(course, "learns nothing", place, (-8, 0), ha="right")
    for ax in (course, sweep, sizes):
        figures.powers_of_two(ax)
    figures.log_axis(runs, "y")
    x, title = "pulls", "Each at its best setting: straight is logarithmic"
    figures.describe(course, title, x, "regret so far", ylim=(0, top), ends=True)
    title, end = (
        f"How much the setting matters (G = {result.settings['group']})",
        f"regret after {pulls:,} pulls",
    )
    figures.describe(sweep, title, "learning rate, ε or c", end, ends=True)
    figures.describe(sizes, "Larger groups, fewer updates", "G, pulls per update", end, ends=True)
    x, title = (
        "share of runs, the cheapest first",
        "Who pays: the runs that committed to a wrong arm",
    )
    figures.describe(runs, title, x, "cost per pull, second half", ylim=(1e-4, 1), ends=True)
    return figure
