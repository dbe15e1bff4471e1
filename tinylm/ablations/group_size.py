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

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, named_interval
from course.lab.sweep import Swept, edges
from course.lab.terminal import Progress
from tinylm.curves import Curves, SweptBudget, compared, sweep_rates
from tinylm.warm_start import warm_start
from tinylm.watched import WatchedGroups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "many questions or many answers to each: GRPO with groups of 2 to 32, and how many of them are"
    " silent"
)
FIGURE = "tinylm_group_size"
EXPECTED_SECONDS = 200.0
SILENT = "Yu et al. 2025 (DAPO, 2503.14476), §3.2; the formula: this course"


@dataclass(frozen=True)
class Settings(SweptBudget):
    """`prompts` and `group` of the budget are replaced: each size of the group gets completions / G
    prompts.
    """

    rung: str = "grpo"  # which estimator
    groups: tuple[int, ...] = (2, 4, 8, 16, 32)  # completions per question, G
    completions: int = 128  # per rollout, at every G
    log_every: int = 8  # rollouts
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (1e-4, 3e-4, 9e-4, 2.7e-3)
    tuning: int = 2  # models that choose the rate
    seeds: int = 10  # models that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.groups) > 1, "groups", self.groups, "whole numbers > 1")
        whole = all(self.completions % group == 0 for group in self.groups)
        allowed = f"a multiple of every group size {self.groups}"
        require(whole, "completions", self.completions, allowed)


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every group size: its rate chosen on some models, judged on others."""
    s, start = settings, warm_start(settings, settings.models, progress)
    estimator = ladder.get(s.rung).estimator
    found: dict[int, Swept[Curves]] = {}
    for group in progress(s.groups, "group sizes"):
        budget = replace(s, group=group, prompts=s.completions // group)
        found[group] = sweep_rates(
            budget, estimator, start, progress, asks=WatchedGroups, text=f"G = {group}"
        )
    largest = found[max(s.groups)].judged
    sizes = {str(group): summary(swept, largest, s) for group, swept in found.items()}
    said = {f"G = {group}": swept.choice for group, swept in found.items()}
    caption = (
        f"{s.completions} completions per rollout at every G. Differences model by model:"
        f" {described(s.seeds)}; the warm start's greedy accuracy is {largest.start.mean():.2f}."
        f" Rates chosen on {s.tuning} other models and other questions. Thin dashed: p^G + (1−p)^G,"
        f" averaged over the questions asked, p exact. {edges(said, s.rates)}"
    )
    series = {
        "sizes": sizes,
        "start": largest.start[0],
        "start_over_largest": named_interval("mean", largest.start[0] - largest.final[0]),
        "sampled": start.accuracy,
        "rates": s.rates,
    }
    result = Result(series=series, facts=_facts(s, sizes), caption=caption.strip())
    return told(result, {f"G = {group}": swept.judged.halted for group, swept in found.items()})


def summary(swept: Swept[Curves], largest: Curves, settings: Settings) -> dict[str, Any]:
    """What is kept of one G: its rate, and of the judged models accuracy and silent groups along
    the way; `over_largest` is the final accuracy less that of the largest G, model by model.
    """
    curves = swept.judged
    silent, expected, variance = (
        curves.values[f"silent_{name}"][1:, 0].double()
        for name in ("measured", "expected", "variance")
    )
    return {
        "samples": [step * settings.completions for step in curves.steps],
        "rate": swept.choice.rate,
        "interior": swept.choice.interior,
        "sweep": None if swept.tried is None else swept.tried.final.mean(-1),
        "final_seeds": curves.final[0],
        "silent": silent.mean(-1),
        "silent_error": (variance.sum(-1)).sqrt() / variance.shape[-1],
        "silent_expected": expected.mean(-1),
        "seconds": curves.seconds / settings.seeds,
        **named_interval("gain", curves.gain[:, 0]),
        **named_interval("over_largest", curves.final[0] - largest.final[0]),
    }


def _facts(settings: Settings, sizes: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    """Silent groups against the formula, for each G over all rollouts; and accuracy with many
    questions against few, model by model (a direction that an earlier run with other models fixed).
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
        claim = (
            f"At {settings.completions} completions per rollout G = {small} ends above G = {large}"
            " in held-out accuracy, each at its best rate"
        )
        facts.append(compared(claim, *(sizes[each]["final_seeds"] for each in (small, large))))
    return facts


def plot(result: Result) -> Figure:
    """What a smaller G buys over the largest, model by model; the way there; and silent groups
    beside the formula.
    """
    figure, (end, way, quiet) = figures.new_figure(1, 3, width=15.5, height=4.8)
    sizes = [str(group) for group in result.settings["groups"]]
    _draw_ends(end, result, sizes)
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        look = {"color": colour, "linestyle": "-"}
        x, y, silent, error, expected = (
            result.array("sizes", size, name)
            for name in ("samples", "gain", "silent", "silent_error", "silent_expected")
        )
        figures.band(way, x, y, label=f"G = {size}", **look)
        figures.points(quiet, x[1:], silent, 2 * error, color=colour, markersize=5, capsize=0)
        figures.expectation(quiet, x=x[1:], y=expected, label=f"_{size}")
        # where its name is written
        quiet.plot(x[-1:], expected[-1:], alpha=0, color=colour, label=f"G = {size}")
    figures.reference(way, 0.0, label="warm start")
    quiet.set_ylim(0, 1)
    figures.describe(way, "The way there", "completions", "held-out accuracy above the warm start")
    title = "Silent groups follow p^G + (1−p)^G"
    figures.describe(quiet, title, "completions", "silent groups (share)")
    for ax in (way, quiet):
        ax.locator_params(axis="x", nbins=5)
        figures.label_ends(ax, [x for x in ax.get_lines() if str(x.get_label()).startswith("G")])
    return figure


def _draw_ends(ax: Axes, result: Result, sizes: list[str]) -> None:
    """Final accuracy of each G less that of the largest, model by model, and its learning rate."""
    over, half = (
        [float(result.array("sizes", size, name)) for size in sizes]
        for name in ("over_largest", "over_largest_half")
    )
    figures.points(ax, range(len(sizes)), over, half, result.settings["rung"], markersize=8)
    begun = float(result.array("start_over_largest", "mean"))
    figures.reference(ax, 0.0)
    figures.reference(ax, begun, label="warm start", linestyle=":")
    completions = int(result.settings["completions"])
    words = [
        f"{size}\n{completions // int(size)}\n{float(result.array('sizes', size, 'rate')):g}"
        for size in sizes
    ]
    ax.set_xticks(range(len(sizes)), words)
    ax.margins(x=0.08)
    x = "G; questions per rollout; learning rate"
    y = f"final accuracy less that of G = {sizes[-1]}, paired"
    figures.describe(ax, "Many questions or many answers", x, y)
