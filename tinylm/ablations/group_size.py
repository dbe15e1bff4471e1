"""Many questions or many answers to each question?

G varies from 2 to 32 at an equal number of completions per rollout, on two-digit sums. A small
group gives a noisy baseline and often no gradient at all: if all G answers are right, or all wrong,
it is a zero-variance ("silent") group. A large group gives more information about fewer questions.
The probability of a silent group is p^G + (1−p)^G, where p is the question's success probability.
Here p is exact for the sampling policy: it is the probability of the one right answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.exact import silent_probability
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, paired_error
from course.lab.sweep import Swept, edges
from course.lab.terminal import Progress
from course.rollout import Rollout
from course.train.metrics import of_rollout
from course.train.noise import Noise
from tinylm.curves import CHANCE, Curves, SweptBudget, sweep_rates
from tinylm.evaluate import right_to_go
from tinylm.problem import LanguageModel
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "many questions or many answers to each: GRPO with groups of 2 to 32, and how many of them are"
    " silent"
)
FIGURE = "tinylm_group_size"
EXPECTED_SECONDS = 140.0
SILENT = "Yu et al. 2025 (DAPO, 2503.14476), §3.2; the formula: this course"


@dataclass(frozen=True)
class Settings(SweptBudget):
    """`prompts` and `group` of the budget are replaced: each size of the group gets completions / G
    prompts.
    """

    rung: str = "grpo"  # which estimator
    groups: tuple[int, ...] = (2, 4, 8, 16, 32)  # completions per question, G
    completions: int = 128  # per rollout, at every G
    log_every: int = 6  # rollouts

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.groups) > 1, "groups", self.groups, "whole numbers > 1")
        whole = all(self.completions % group == 0 for group in self.groups)
        require(
            whole,
            "completions",
            self.completions,
            f"a multiple of every group size {self.groups}",
        )


SETTINGS = Settings()


class Watched(LanguageModel):
    """The same problem, which also counts silent groups and computes each question's exact p."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # silent share [*runs] and p [*runs, Q] of each rollout since the last log
        self.seen: list[tuple[Tensor, Tensor]] = []

    def sample(self, noise: Noise) -> Rollout:
        """Sample completions, and compute p under the policy that sampled them."""
        rollout = super().sample(noise)
        p = right_to_go(
            self.model, self.task, rollout.data["question"], temperature=self.temperature
        )[..., 0]
        self.seen.append((of_rollout(rollout)["silent_groups"].double(), p.double()))
        return rollout

    def metrics(self) -> dict[str, Tensor]:
        """The share of silent groups since the last log, its expectation, and its variance."""
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
    """Warm start once; then every group size: its rate chosen on some models, judged on others."""
    start = warm_start(settings, settings.models, progress)
    estimator = ladder.get(settings.rung).estimator
    found: dict[str, Swept[Curves]] = {}
    for group in progress(settings.groups, "group sizes"):
        budget = replace(settings, group=group, prompts=settings.completions // group)
        found[str(group)] = sweep_rates(
            budget, estimator, start, progress, asks=Watched, text=f"G = {group}"
        )
    sizes = {size: summary(swept, settings) for size, swept in found.items()}
    said = {f"G = {size}": swept.choice for size, swept in found.items()}
    caption = (
        f"{settings.completions} completions per rollout at every G. Gain over the own warm start:"
        f" {described(settings.seeds)}, rates chosen on {settings.tuning} other models and other"
        " questions. Thin dashed: p^G + (1−p)^G, averaged over the questions asked, p exact."
        f" {edges(said, settings.rates)}"
    )
    series = {"sizes": sizes, "start": start.accuracy, "rates": settings.rates}
    result = Result(series=series, facts=_facts(settings, sizes), caption=caption.strip())
    return told(result, {f"G = {size}": swept.judged.halted for size, swept in found.items()})


def summary(swept: Swept[Curves], settings: Settings) -> dict[str, Any]:
    """What is kept of one G: its rate, and of the judged models accuracy and silent groups along
    the way.
    """
    curves = swept.judged
    way, way_half = interval(curves.gain[:, 0])
    silent, expected, variance = (
        curves.values[name][1:, 0].double()
        for name in ("silent_measured", "silent_expected", "silent_variance")
    )
    return {
        "samples": [step * settings.completions for step in curves.steps],
        "rate": swept.choice.rate,
        "interior": swept.choice.interior,
        "sweep": None if swept.tried is None else swept.tried.final.mean(-1),
        "accuracy": curves.values["accuracy"][:, 0].mean(-1),
        "gain": way,
        "gain_half": way_half,
        "final_seeds": curves.final[0],
        "silent": silent.mean(-1),
        "silent_error": (variance.sum(-1)).sqrt() / variance.shape[-1],
        "silent_expected": expected.mean(-1),
        "seconds": curves.seconds / settings.seeds,
    }


def _facts(settings: Settings, sizes: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    """Silent groups against the formula, for each G over all rollouts; and accuracy with many
    questions against few, model by model.
    """
    facts = []
    for group, found in sizes.items():
        measured, expected = float(found["silent"].mean()), float(found["silent_expected"].mean())
        # given p, groups are independent: the error is known
        error = float(found["silent_error"].square().sum().sqrt()) / len(found["silent_error"])
        claim = (
            "A share p^G + (1−p)^G of a language model's groups is silent, averaged over the"
            f" questions (G = {group}, while it learns)"
        )
        facts.append(Fact.simulated(claim, SILENT, measured, error, expected, number=13))
    small, large = str(min(settings.groups)), str(max(settings.groups))
    if small != large:
        mean, error = paired_error(sizes[small]["final_seeds"], sizes[large]["final_seeds"])
        claim = (
            f"At {settings.completions} completions per rollout G = {small} ends above G = {large}"
            " in held-out accuracy, each at its best rate (difference, model by model)"
        )
        facts.append(
            Fact.above(claim, "this course", mean, 0.0, error, runs=settings.seeds, chance=CHANCE)
        )
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
    _draw_ends(end, result, sizes)
    for size, colour in zip(sizes, colours, strict=True):
        x, y, error, expected = (
            result.array("sizes", size, name)
            for name in ("samples", "silent", "silent_error", "silent_expected")
        )
        figures.points(quiet, x[1:], y, 2 * error, color=colour, markersize=5, capsize=0)
        figures.expectation(quiet, x=x[1:], y=expected, label=f"_{size}")
        # where its name is written
        quiet.plot(x[-1:], expected[-1:], alpha=0, color=colour, label=f"G = {size}")
    quiet.set_ylim(0, 1)
    figures.describe(
        quiet, "Silent groups follow p^G + (1−p)^G", "completions", "silent groups (share)"
    )
    for ax in (way, quiet):
        ax.locator_params(axis="x", nbins=5)
    figures.label_ends(way)
    figures.label_ends(
        quiet, [line for line in quiet.get_lines() if str(line.get_label()).startswith("G")]
    )
    return figure


def _draw_ends(ax: Axes, result: Result, sizes: list[str]) -> None:
    """Final gain by G, with its interval and its learning rate."""
    place = np.arange(len(sizes), dtype=float)
    gain, half = (
        [float(result.array("sizes", size, name)[-1]) for size in sizes]
        for name in ("gain", "gain_half")
    )
    figures.points(ax, place, gain, half, result.settings["rung"], linestyle="-")
    completions = int(result.settings["completions"])
    words = [
        f"{size}\n{completions // int(size)}\n{float(result.array('sizes', size, 'rate')):g}"
        for size in sizes
    ]
    ax.set_xticks(place, words)
    ax.margins(x=0.08)
    figures.describe(
        ax,
        "Where it ends",
        "G; questions per rollout; learning rate",
        "final gain over the warm start",
    )
