"""What a baseline buys, exactly: the gradient's length and noise against the group size.

`bandits.theory.baselines` lists every group that can be drawn on B3, so nothing here is estimated.
Look for three things: means shorten the gradient and the std lengthens it; with two samples per
prompt leave-one-out is noisier than no baseline; a constant added to all rewards makes plain
REINFORCE tens of times noisier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bandits.theory import baselines as theory
from bandits.theory.baselines import baselines, canonical, enumerated_variance, listed_variance
from course import ladder
from course.errors import require
from course.exact import (
    every_group,
    gradient,
    group_mean_factor,
    pair_gradient,
    rloo_covariance,
    rloo_crossover,
    sample_covariance,
    variance_at_baseline,
)
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "what a baseline buys: length and noise of the gradient against G, and the best baseline"
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """Which estimators, and how many samples they get; nothing is sampled, so there is no seed."""

    # which estimators; the critic knows J
    rungs: tuple[str, ...] = ("reinforce", "ppo_value", "group_mean", "rloo", "group_std")
    groups: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # samples per prompt
    listed: int = 5  # samples per prompt where an identity is checked group by group
    offset: float = 4.0  # added to every reward in the comparison of baselines

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = len(self.groups) > 1 and min(self.groups) >= 2
        require(fits, "groups", self.groups, "at least two group sizes, each ≥ 2")
        self.rising("groups")
        allowed = "from 2 to 12: every group is listed"
        require(2 <= self.listed <= 12, "listed", self.listed, allowed)
        require(self.offset >= 0, "offset", self.offset, "a number ≥ 0")


SETTINGS = Settings()
BASELINES = {
    "none": "none",
    "mean": "J, the mean",
    "scalar": "best constant b*",
    "coordinate": "best per logit",
}
COLOURS = {"none": "#000000", "mean": "#b8860b", "scalar": "#0057a3", "coordinate": "#00875f"}
SPAN = torch.linspace(-0.1, 1.05, 47, dtype=torch.float64)  # baselines whose variance is drawn


def run(settings: Settings, progress: Progress) -> Result:
    """Every rung at every group size, and the variance of one sample at every baseline."""
    here, there = canonical(), canonical(settings.offset)
    series = {
        "groups": settings.groups,
        "rungs": theory.measured_curves(settings.rungs, here, settings.groups, progress),
        "expected": theory.expected_curves(here, settings.groups),
        "baseline": baselines(here),
        "variance": {name: enumerated_variance(here, b) for name, b in baselines(here).items()},
        "variance_shifted": {
            name: enumerated_variance(there, b) for name, b in baselines(there).items()
        },
        "parabola": {
            "b": SPAN,
            "variance": [float(variance_at_baseline(here, float(b))) for b in SPAN],
        },
        "crossover": rloo_crossover(here),
    }
    facts = [*_identity(settings.listed), *_best_baselines(settings.offset)]
    return Result(series=series, facts=[*facts, *_crossover(settings.groups)], caption=CAPTION)


# ---------------------------------------------------------------- facts


def _identity(group: int) -> Facts:
    """The covariance identity on every group that can be drawn."""
    outcomes, facts = canonical(), Facts("Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)", 3)
    loo, mean = (every_group(one, outcomes, group) for one in (ladder.rloo, ladder.group_mean))
    drawn = loo.outcome[:, 0]
    reward, score = outcomes.total_reward[0][drawn], outcomes.total_score[0][drawn]
    of_all = f"largest difference of all {len(drawn)} groups of {group} on B3"

    def same(claim: str, one: Tensor, other: Tensor, where: str = of_all) -> None:
        facts.exact(f"{claim}: {where}", (one - other).abs().max(), 0.0)

    claim = "RLOO's gradient is Σ_{i<j} (r_i − r_j)(s_i − s_j)/(G(G−1))"
    same(claim, loo.gradient, pair_gradient(reward, score))
    claim = "RLOO's gradient is the sample covariance of reward and score"
    same(claim, loo.gradient, sample_covariance(reward, score))
    claim = "A group mean that includes the sample gives (G−1)/G of RLOO's gradient"
    same(claim, mean.gradient, group_mean_factor(group) * loo.gradient)
    average = torch.einsum("m,md->d", loo.chance, loo.gradient)
    claim, where = "RLOO's gradient, averaged over them, is ∇J", "largest difference"
    same(claim, average, gradient(outcomes), f"{where}, {group} samples on B3")
    return facts


def _best_baselines(offset: float) -> Facts:
    """Variances at the four baselines, listed and by formula; then with all rewards shifted."""
    here, there = canonical(), canonical(offset)
    before, after = baselines(here), baselines(there)
    facts, ours = Facts("Weaver & Tao 2001; Greensmith et al. 2004", 4), "this course"
    claim = "The constant baseline with the least variance on B3 is E[r‖s‖²]/E‖s‖² (from enumerated"
    found = theory.lowest_point(here)
    facts.exact(f"{claim} variances at three baselines)", found, before["scalar"])
    for name, b in before.items():
        claim = f"Variance of one sample's gradient on B3, baseline: {BASELINES[name]} (enumerated;"
        seen, expected = enumerated_variance(here, b), variance_at_baseline(here, b)
        facts.exact(f"{claim} expected: the formula)", seen, expected)
    plain = enumerated_variance(here, before["none"])
    ratio = enumerated_variance(there, after["none"]) / plain
    claim = f"Adding {offset:g} to every reward multiplies REINFORCE's variance on B3 (a ratio;"
    expected = theory.reinforce_variance(here, offset) / theory.reinforce_variance(here)
    facts.exact(f"{claim} expected: by the formula)", ratio, expected, source=ours)
    same = f"Adding {offset:g} to every reward leaves"
    for name in ("mean", "scalar", "coordinate"):
        change = enumerated_variance(there, after[name]) - enumerated_variance(here, before[name])
        claim = f"{same} the variance at {BASELINES[name]} as it was (difference)"
        facts.exact(claim, change, 0.0, source=ours)
    for name in ("rloo", "group_mean", "group_std"):
        change = theory.covariance_change(name, here, there, 4)
        claim = f"{same} {name}'s covariance on B3 as it was (G = 4, largest difference)"
        facts.exact(claim, change, 0.0, source=ours)
    return facts


def _crossover(groups: tuple[int, ...]) -> Facts:
    """RLOO's variance against its formula at every G, and the G at which it equals REINFORCE's."""
    here, facts = canonical(), Facts("this course", 5)
    formula = {group: float(rloo_covariance(here, group)[0].trace()) for group in groups}
    off = max(abs(listed_variance("rloo", here, g) / formula[g] - 1) for g in groups)
    claim = "RLOO's variance on B3 is Var = V_J/G + (σ_r² E‖s‖² + ‖∇J‖²)/(G(G−1)) (largest relative"
    facts.exact(f"{claim} difference, G = {groups[0]} … {groups[-1]})", off, 0.0)
    loo = [listed_variance("rloo", here, g) for g in (2, 3)]
    plain = [listed_variance("reinforce", here, g) for g in (2, 3)]
    claim = "With 2 samples per prompt on B3, RLOO is noisier than REINFORCE without a baseline"
    facts.above(f"{claim} (total variance of a batch)", loo[0], plain[0])
    facts.below("With 3 samples per prompt on B3, RLOO is quieter than REINFORCE", loo[1], plain[1])
    claim = "RLOO and REINFORCE are equally noisy on B3 at G = 1 + c/(V_0 − V_J), c that numerator"
    claim = f"{claim} (from the enumerated variances at G = 2, 3)"
    facts.exact(claim, theory.crossing(here), rloo_crossover(here)[0])
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Every group listed, nothing sampled. Diamonds and dashes: closed forms. The noise is that of"
    " gradients rescaled to the length of ∇J, since a learning rate undoes the length; so the two"
    " group means, with themselves and without, are one curve."
)


def plot(result: Result) -> Figure:
    """Length and noise against G; the variance at each baseline, before and after a shift."""
    figure, (length, noise, parabola, shift) = figures.new_figure(2, 2, width=12.2, height=8.2)
    groups, rungs = result.array("groups"), result.settings["rungs"]
    for ax, what in ((length, "length"), (noise, "noise")):
        for name in rungs:
            figures.band(ax, groups, result.array("rungs", name, what), name=name)
        for name in rungs:
            if what in result.series["expected"].get(name, {}):
                formula = result.array("expected", name, what)
                figures.expectation(ax, formula, groups, "_closed form", marker="D")
        figures.log_axis(ax, "x", groups, base=2)
        ax.set_ylim(bottom=0)
    closed = [line for line in length.get_lines() if line.get_label() == "_closed form"]
    length.legend(closed[:1], ["closed form"], loc="lower right", frameon=False)
    place, level = float(result.array("crossover")[0]), float(result.array("variance", "none"))
    figures.expectation(noise, level, place, "_crossover", marker="o")
    figures.note(noise, f"equal at G = {place:.2f}", (place, level), (40, -30), line=True)
    samples, title = "samples per prompt, G", "Means shorten the gradient, the std lengthens it"
    figures.describe(length, title, samples, "‖E[ĝ]‖ / ‖∇J‖", ends=True)
    title, y = "Two samples: leave-one-out is the noisier", "G · variance, rescaled to ‖∇J‖"
    figures.describe(noise, title, samples, y, ends=True)
    _draw_parabola(parabola, result)
    _draw_shift(shift, result)
    return figure


def _draw_parabola(ax: Axes, result: Result) -> None:
    title, x = "On B3 the mean is nearly the best constant", "baseline b (in units of reward)"
    y = "variance of one sample's gradient"
    figures.describe(ax, title, x, y, ylim=(0.085, 0.34))
    figures.expectation(ax, x=result.array("parabola", "b"), y=result.array("parabola", "variance"))
    for name, shift in (("none", (10, 6)), ("mean", (-20, 50)), ("scalar", (14, -38))):
        b = float(result.array("baseline", name)[0])
        variance = float(result.array("variance", name))
        ax.plot(b, variance, "o", color=COLOURS[name], markersize=9)
        text = f"{BASELINES[name]}: b = {b:.3f}"
        joined = name != "none"
        figures.note(ax, text, (b, variance), shift, line=joined, color=COLOURS[name])
    level, colour = float(result.array("variance", "coordinate")), COLOURS["coordinate"]
    ax.axhline(level, color=colour, linewidth=1.6)
    figures.note(ax, "a constant for each logit", (-0.1, level), (0, -14), color=colour)


def _draw_shift(ax: Axes, result: Result) -> None:
    offset = result.settings["offset"]
    figures.describe(ax, f"Add {offset:g} to every reward", "", "variance of one sample's gradient")
    figures.log_axis(ax, "y")
    for place, name in enumerate(BASELINES):
        for side, key, alpha in ((-0.19, "variance", 1.0), (0.19, "variance_shifted", 0.45)):
            value = float(result.array(key, name))
            ax.bar(place + side, value, 0.36, color=COLOURS[name], alpha=alpha)
            figures.note(ax, f"{value:.3g}", (place + side, value), (0, 3), ha="center")
    labels = [text.replace(" ", "\n", 1) for text in BASELINES.values()]
    ax.set_xticks(range(len(BASELINES)), labels)
    ax.set_ylim(0.05, 60)
    text = f"left: rewards as they are, right: + {offset:g}"
    figures.note(ax, text, (0.98, 0.94), xycoords="axes fraction", ha="right")
