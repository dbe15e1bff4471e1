"""Many questions or many answers to each?

G from 2 to 32 at an equal number of completions per rollout, on two-digit sums.

A small group gives a noisy baseline and often says nothing at all: where all G answers are right,
or all wrong, GRPO has no gradient. A large one says more of fewer questions. The chance of a silent
group is p^G + (1−p)^G, with p the question's success probability; here p is exact (the one right
answer's probability), question by question, for the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.exact import silent_probability
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.terminal import Progress
from course.rollout import Rollout
from course.train.metrics import of_rollout
from course.train.noise import Noise
from tinylm.evaluate import right_to_go
from tinylm.experiment import Budget, Curves, Start, interval, train, warm_start
from tinylm.problem import LanguageModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "many questions or many answers to each: GRPO with groups of 2 to 32, and how many of them are"
    " silent"
)
FIGURE = "tinylm_group_size"
EXPECTED_SECONDS = 160.0
SILENT = "Yu et al. 2025 (DAPO, 2503.14476), §3.2; the formula: this course"


@dataclass(frozen=True)
class Settings(Budget):
    """`prompts` and `group` of the budget are replaced: each size of the group gets completions / G
    prompts.
    """

    rung: str = "grpo"  # which estimator
    groups: tuple[int, ...] = (2, 4, 8, 16, 32)  # completions per question, G
    completions: int = 256  # per rollout, at every G
    rates: tuple[float, ...] = (2e-4, 5e-4)  # Adam's learning rates, each falling to 0 in a line
    rollouts: int = 60  # of reinforcement learning
    epochs: int = 2  # updates per rollout
    log_every: int = 6  # rollouts

    def __post_init__(self) -> None:
        super().__post_init__()
        ladder.get(self.rung)
        require(
            len(self.groups) > 0 and min(self.groups, default=0) > 1,
            "groups",
            self.groups,
            "whole numbers > 1",
        )
        whole = all(self.completions % group == 0 for group in self.groups)
        require(
            self.completions > 0 and whole,
            "completions",
            self.completions,
            f"a multiple of every group size {self.groups}",
        )
        require(
            len(self.rates) > 0 and min(self.rates, default=0) > 0,
            "rates",
            self.rates,
            "numbers > 0",
        )


SETTINGS = Settings()


class Watched(LanguageModel):
    """The same problem, which knows the exact success probability p of each question that it asks,
    and counts silent groups.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[
            tuple[Tensor, Tensor]
        ] = []  # silent share [*runs] and p [*runs, Q] of each rollout since the last log

    def sample(self, noise: Noise) -> Rollout:
        """New completions; and p under the policy that made them."""
        rollout = super().sample(noise)
        p = right_to_go(
            self.model, self.task, rollout.data["question"], temperature=self.temperature
        )[..., 0]
        self.seen.append((of_rollout(rollout)["silent_groups"].double(), p.double()))
        return rollout

    def metrics(self) -> dict[str, Tensor]:
        """Of the rollouts since the last log: silent groups, their expected share, and the variance
        that the share then has.
        """
        measured, p = (torch.stack(each) for each in zip(*self.seen, strict=True))
        self.seen = []
        silent = silent_probability(p, self.group)
        variance = (silent * (1 - silent)).sum((0, -1)) / (silent.shape[0] * silent.shape[-1]) ** 2
        return {
            "silent_measured": measured.mean(0),
            "silent_expected": silent.mean((0, -1)),
            "silent_variance": variance,
        }


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every group size at every learning rate and seed."""
    start = warm_start(settings, progress)
    sizes = {
        str(group): summary(_train(settings, group, start, progress), settings)
        for group in progress(settings.groups, "group sizes")
    }
    series = {"sizes": sizes, "start": start.accuracy, "rates": settings.rates}
    caption = (
        f"{settings.completions} completions per rollout at every G. Gain of each seed over its own"
        f" warm start: mean of {settings.seeds} seeds and its 95 % interval (Student's t). Thin"
        " dashed: p^G + (1−p)^G, averaged over the questions asked, p exact."
    )
    return Result(series=series, facts=_facts(settings, sizes), caption=caption)


def _train(settings: Settings, group: int, start: Start, progress: Progress) -> Curves:
    budget = replace(settings, group=group, prompts=settings.completions // group)
    return train(
        ladder.get(settings.rung).estimator,
        budget,
        start,
        settings.rates,
        progress,
        asks=Watched,
        text=f"G = {group}",
    )


def summary(curves: Curves, settings: Settings) -> dict[str, Any]:
    """What is kept of one G: the sweep's ends, and at its best learning rate the accuracy and
    silent groups along the way.
    """
    final = curves.values["accuracy"][-1]  # [L, S]
    best = int(final.mean(-1).argmax())
    gain = curves.values["accuracy"] - curves.values["accuracy"][0]  # [logs, L, S], seed by seed
    way, way_half = interval(gain[:, best])
    sweep, sweep_half = interval(gain[-1])
    silent, expected, variance = (
        curves.values[name][1:, best].double()
        for name in ("silent_measured", "silent_expected", "silent_variance")
    )
    return {
        "samples": [step * settings.completions for step in curves.steps],
        "rate": settings.rates[best],
        "accuracy": curves.values["accuracy"][:, best].mean(-1),
        "gain": way,
        "gain_half": way_half,
        "final_seeds": final[best],
        "sweep": sweep,
        "sweep_half": sweep_half,
        "silent": silent.mean(-1),
        "silent_error": (variance.sum(-1)).sqrt() / variance.shape[-1],
        "silent_expected": expected.mean(-1),
        "seconds": curves.seconds / final.numel(),
    }


def _facts(settings: Settings, sizes: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    """Silent groups against the formula, for each G over all rollouts; and the largest difference
    in accuracy, if there is one.
    """
    facts = []
    for group, found in sizes.items():
        measured, expected = float(found["silent"].mean()), float(found["silent_expected"].mean())
        error = float(found["silent_error"].square().sum().sqrt()) / len(found["silent_error"])
        claim = (
            "A share p^G + (1−p)^G of a language model's groups is silent, averaged over the"
            f" questions (G = {group}, while it learns)"
        )
        facts.append(Fact.simulated(claim, SILENT, measured, error, expected, number=13))
    small, large = str(min(settings.groups)), str(max(settings.groups))
    if settings.seeds > 1 and small != large:
        difference = torch.as_tensor(sizes[small]["final_seeds"] - sizes[large]["final_seeds"])
        mean, error = float(difference.mean()), float(difference.std()) / settings.seeds**0.5
        if abs(mean) > 4 * error:
            word, relation = ("above", Fact.above) if mean > 0 else ("below", Fact.below)
            claim = (
                f"At {settings.completions} completions per rollout G = {small} ends {word} G ="
                f" {large} in held-out accuracy, each at its best rate (difference,"
                f" {settings.seeds} seeds)"
            )
            facts.append(relation(claim, "this course", mean, 0.0, error))
    return facts


def plot(result: Result) -> Figure:
    """Accuracy along the way, where it ends, and silent groups beside the formula."""
    figure, (way, end, quiet) = figures.new_figure(1, 3, width=15.0, height=4.6)
    sizes = [str(group) for group in result.settings["groups"]]
    colours = figures.shades(len(sizes))
    for size, colour in zip(sizes, colours, strict=True):
        x, y = (result.array("sizes", size, name) for name in ("samples", "gain"))
        figures.band(way, x, y, label=f"G = {size}", color=colour, linestyle="-")
    figures.describe(
        way,
        "The same completions, grouped otherwise",
        "completions",
        "held-out accuracy, above the warm start",
    )
    way.locator_params(axis="x", nbins=5)
    quiet.locator_params(axis="x", nbins=5)
    figures.label_ends(way)
    _draw_ends(end, result, sizes)
    for size, colour in zip(sizes, colours, strict=True):
        x, y, error, expected = (
            result.array("sizes", size, n)
            for n in ("samples", "silent", "silent_error", "silent_expected")
        )
        quiet.errorbar(
            x[1:],
            y,
            2 * error,
            fmt="o",
            color=colour,
            markersize=5,
            elinewidth=1.2,
            label=f"_{size}",
        )
        figures.expectation(quiet, x=x[1:], y=expected, label=f"_{size}")
        quiet.plot(
            x[-1:], expected[-1:], alpha=0, color=colour, label=f"G = {size}"
        )  # where its name is written
    quiet.set_ylim(0, 1)
    figures.describe(
        quiet, "Silent groups follow p^G + (1−p)^G", "completions", "silent groups (share)"
    )
    figures.label_ends(
        quiet, [line for line in quiet.get_lines() if str(line.get_label()).startswith("G")]
    )
    return figure


def _draw_ends(ax: Axes, result: Result, sizes: list[str]) -> None:
    """Final accuracy by G at every learning rate, with intervals."""
    rates = result.array("rates")
    place = torch.arange(len(sizes)).double().numpy()
    for i, (rate, colour) in enumerate(zip(rates, figures.shades(len(rates)), strict=True)):
        y, half = (
            [result.array("sizes", size, name)[i] for size in sizes]
            for name in ("sweep", "sweep_half")
        )
        aside = place + 0.12 * (i - (len(rates) - 1) / 2)
        ax.errorbar(
            aside,
            y,
            half,
            marker="o",
            color=colour,
            capsize=3,
            linewidth=1.4,
            label=f"rate {rate:g}",
        )
    completions = int(result.settings["completions"])
    ax.set_xticks(place, [f"{size}\n{completions // int(size)}" for size in sizes])
    ax.margins(x=0.08)
    figures.describe(
        ax,
        "Where it ends, by learning rate",
        "G, and questions per rollout",
        "final gain over the warm start",
    )
    ax.legend(frameon=False, loc="lower left")
