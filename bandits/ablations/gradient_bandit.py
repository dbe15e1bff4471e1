"""The gradient bandit of Sutton & Barto 2018 (§2.8, figure 2.5), with and without a baseline.

Ten arms whose means are near 4, one pull per update: REINFORCE with the running mean of the rewards
as baseline, or with none. Left, the book's four curves: without a baseline every pull, good or bad,
is praised, and the larger learning rate commits to whatever was pulled first. Right, three rules
for "the mean of the rewards so far" that are all in use. Whether the reward being judged is in the
mean, as in drafts of the book, matters little: it is exactly a warm-up of the learning rate, 1 −
1/t. Judging the first reward by 0 costs several points: the arm pulled first is praised for the
whole offset of 4.

The curves are exact probabilities of the best arm under the policy, averaged over runs. The book
counts how often the best arm was pulled: the same expectation, with more noise.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.theory.gradient_bandit import (
    INCLUDED,
    OWN,
    PUBLISHED,
    PUBLISHED_RUNS,
    RULES,
    ZERO,
    Setup,
    first_pull,
    printed_error,
    train,
)
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import interval, mean_error, paired_error
from course.lab.terminal import Progress
from course.train.optim import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "the gradient bandit with and without a baseline, and three rules for the running mean"
EXPECTED_SECONDS = 18.0
BOOK = "Sutton & Barto 2018, fig. 2.5"
CHECK_RUNS, CHECK_STEPS = 50, 200  # of the identities, which hold in every single run


@dataclass(frozen=True)
class Settings(Checked):
    """What is run; the defaults are the book's, with more runs than its 2,000."""

    # α of the logits' updates; the last is used to compare the rules
    learning_rates: tuple[float, ...] = (0.1, 0.4)
    # independent runs, each with arms of its own; every curve sees the same ones
    runs: int = 16_000
    steps: int = 1000  # pulls, one update each
    arms: int = 10  # arms per run
    mean: float = 4.0  # the arms' means are drawn from N(mean, 1)
    log_every: int = 20  # pulls between two points of a curve
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "runs", "steps", "arms")

    @property
    def bed(self) -> Setup:
        """The runs that every curve shares."""
        return Setup(self.runs, self.steps, self.arms, self.mean, self.log_every, self.seed)

    @property
    def as_published(self) -> bool:
        """Whether these are the book's settings, so that its numbers apply."""
        book = (self.steps, self.arms, self.mean) == (1000, 10, 4.0)
        return book and {0.1, 0.4} <= set(self.learning_rates)


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """The four curves with the book's rule, the other two rules, and the identities behind them."""
    rates, count = list(settings.learning_rates), len(settings.learning_rates)
    # (rule or "none", α) → probability of the best arm [logs, runs]
    curves: dict[tuple[str, float], Tensor] = {}
    steps = [0]
    for rule in RULES:
        shares = [1.0] * count + [0.0] * (count if rule == OWN else 0)
        bar = partial(progress, text=rule, total=settings.steps)
        history = train(settings.bed, rule, (rates * 2)[: len(shares)], shares, bar=bar)
        steps = [0, *history.steps]
        for place, share in enumerate(shares):
            best = history["optimal_action"][:, place]
            curves[rule if share else "none", rates[place % count]] = best
    series: dict[str, Any] = {
        name: {str(rate): _curve(curves[name, rate], 1 / settings.arms) for rate in rates}
        for name in (*RULES, "none")
    }
    facts: list[Fact] = list(identities(settings))
    published = []
    if settings.as_published:
        ends = {key: values[-1].double() for key, values in curves.items()}
        facts = [*_published(settings, ends), *_rules(settings, ends), *facts]
        published = [(end, printed_error(end)) for end in PUBLISHED.values()]
    series = {"steps": steps, "curves": series, "published": published}
    return Result(series=series, facts=facts, caption=CAPTION)


def _curve(values: Tensor, start: float) -> dict[str, list[float]]:
    """Mean over runs of [logs, runs] and half the width of its 95 % interval, from the start on."""
    mean, half = interval(values)
    return {"mean": [start, *mean.tolist()], "mean_half": [0.0, *half.tolist()]}


# ---------------------------------------------------------------- facts


def _published(settings: Settings, ends: dict[tuple[str, float], Tensor]) -> Facts:
    """The ends of the printed curves, which have an error of their own."""
    facts = Facts(BOOK, 1)
    for (rate, baseline), end in PUBLISHED.items():
        how = "with the running mean as baseline" if baseline else "without a baseline"
        claim = f"The gradient bandit with α = {rate}, {how}, gives the best of 10 arms a"
        claim += f" probability near {end} after 1,000 pulls"
        found = mean_error(ends[OWN if baseline else "none", rate])
        facts.simulated(claim, found, end, printed_error(end))
    mean, error = mean_error(ends[ZERO, 0.4])
    claim = "α = 0.4 with the first reward judged by 0 ends below the printed .73: another rule"
    facts.below(claim, (mean, math.hypot(error, printed_error(0.73))), 0.73)
    return facts


def _rules(settings: Settings, ends: dict[tuple[str, float], Tensor]) -> Facts:
    """The order of the three rules at α = 0.4, run by run."""
    source = "this course: simulated, same arms and noise for every rule"
    facts, own, included = Facts(source, 1, runs=settings.runs), ends[OWN, 0.4], ends[INCLUDED, 0.4]
    difference, error = paired_error(included, own)
    claim = (
        "With α = 0.4 a running mean that includes the reward it judges ends ahead of the book's"
    )
    facts.above(f"{claim} (difference of the best arm's probability)", (difference, error))
    # error of the difference, were it 2,000 other runs
    apart = math.sqrt(float(own.var() + included.var()) / PUBLISHED_RUNS)
    claim = "Two independent curves of 2,000 runs each show it with fewer than 4 standard errors"
    facts.below(claim, (difference / apart, error / apart), 4.0)
    claim = "With α = 0.4 the book's rule ends ahead of judging the first reward by 0 (difference)"
    facts.above(claim, paired_error(own, ends[ZERO, 0.4]))
    return facts


def identities(settings: Settings) -> Facts:
    """What the rules do to each other and to the offset, exactly, in float64."""
    rate, arms, mean = settings.learning_rates[-1], settings.arms, settings.mean
    few = {"runs": CHECK_RUNS, "steps": CHECK_STEPS, "log_every": CHECK_STEPS}

    def end(rule: str, mean: float = mean, schedule: Schedule | None = None) -> Tensor:
        bed = dataclasses.replace(settings.bed, mean=mean, **few)
        history = train(bed, rule, [rate], [1.0], dtype=torch.float64, schedule=schedule)
        return history["optimal_action"][-1]

    facts, own = Facts("this course: derived", 1), end(OWN)
    warm_up = end(OWN, schedule=lambda step: step / (step + 1))
    claim = "Including the judged reward is the book's rule with the learning rate α(1 − 1/t): in"
    claim += " every run (largest difference of the best arm's probability)"
    facts.exact(claim, (end(INCLUDED) - warm_up).abs().max(), 0.0)
    claim = f"With the book's running mean, adding {mean:g} to every reward changes no run (largest"
    facts.exact(f"{claim} difference)", (own - end(OWN, 0.0)).abs().max(), 0.0)
    praised = math.exp(rate * mean) / (math.exp(rate * mean) + arms - 1)
    claim = f"Judged by 0, a first reward R = {mean:g} at α = {rate:g} lifts the arm pulled first"
    claim += f" from 1/{arms} to e^(αR)/(e^(αR) + {arms - 1}), whichever it is"
    facts.exact(claim, first_pull(ZERO, rate, mean, arms), praised)
    claim = "Judged by itself, the first reward moves nothing: that arm keeps its probability"
    facts.exact(claim, first_pull(OWN, rate, mean, arms), 1 / arms)
    return facts


# ---------------------------------------------------------------- figure

LOOKS: dict[str, tuple[str, str, figures.Dashes]] = {
    OWN: ("earlier rewards (the book)", "#b8860b", figures.DASH),
    INCLUDED: ("this reward too", "#0057a3", figures.SOLID),
    ZERO: ("earlier, first judged by 0", "#b8320f", figures.DASHDOT),
}
CAPTION = (
    "Probability of the best of ten arms, mean over runs with 95 % intervals; hollow diamonds are"
    " the ends of the printed curves. Left: the book's four settings. Right: three rules for the"
    " running mean, with error bars of ± 2 standard errors of the printed end."
)


def plot(result: Result) -> Figure:
    """Left the four curves beside the printed ends; right the rules at the larger learning rate."""
    figure, (four, three) = figures.new_figure(1, 2, width=12.6, height=4.8)
    steps, rates = result.array("steps"), list(result.settings["learning_rates"])
    published = result.array("published")  # [4, (end, its error)], or nothing
    for name, rung, text in ((OWN, "baseline", "with baseline"), ("none", "reinforce", "without")):
        colour = figures.style_of(rung)["color"]
        for rate in rates:
            dashes = figures.SOLID if rate == rates[0] else figures.DASH
            look = {"label": f"α = {rate:g}, {text}", "color": colour, "linestyle": dashes}
            figures.curve(four, steps, result, "curves", name, str(rate), "mean", **look)
    for rule, (label, colour, dashes) in LOOKS.items():
        look, keys = (
            {"label": label, "color": colour, "linestyle": dashes},
            (str(rates[-1]), "mean"),
        )
        figures.curve(three, steps, result, "curves", rule, *keys, **look)
    last = float(steps[-1])
    for end, _ in published:
        figures.expectation(four, end, last, marker="D")
    for end, error in published[1:2]:
        figures.points(three, last, end, 2 * error, color=figures.INK, marker="none")
        figures.expectation(three, end, last, marker="D")
        words = "the book's end\n± 2 standard errors"
        figures.note(three, words, (last, end + 0.02), (-8, 6), ha="right")
    for ax, title, ylim in (
        (four, "What a baseline buys (◇ the book's ends)", (0, 1)),
        (
            three,
            f"Which running mean, at α = {rates[-1]:g}",
            (0.45, 0.8) if len(published) else (0, 1),
        ),
    ):
        x, y = "pulls, one update each", "probability of the best arm"
        figures.describe(ax, title, x, y, ylim=ylim, ends=True)
    return figure
