"""Several rewards: added first or normalised first, and which of them is heard.

An answer earns two rewards independently, a common one (p = ½) and a rare one. Look for three
things: groups that differ have one advantage when the rewards are added first; normalised first, a
rare reward is louder than a common one, by a known factor in a batch of many prompts; and then the
unit in which a reward is paid hardly matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bandits.theory import several_rewards as theory
from bandits.theory.several_rewards import SCHEMES
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "several rewards: added first or normalised first, and which is heard"
EXPECTED_SECONDS = 3.0


@dataclass(frozen=True)
class Settings(Checked):
    """The probabilities, the group and the units; nothing is sampled."""

    group: int = 8  # answers to the prompt
    common: float = 0.5  # probability of the second reward
    rare: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the first
    units: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # what the second pays

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.group <= 16, "group", self.group, "2 to 16: all groups are listed")
        require(0 < self.common < 1, "common", self.common, "between 0 and 1")
        self.rising("rare", "units")
        require(self.rare[-1] < 1, "rare", self.rare, "probabilities below 1")


SETTINGS = Settings()
SOURCE = "GDPO 2026 (2601.05242)"
OURS = "derived, and enumerated here"
CAPTION = (
    "Exact, nothing sampled. Left: the paper's toy, two groups of two answers with two rewards."
    " Middle and right: w₁/w₂, with E[ĝ] = w_k·∇p_k on the logit of reward k; one prompt, or a"
    " batch of many, where whitening divides by a constant."
)
COLOURS = {
    "added, no std": "#666666",
    "added, then std": "#0057a3",
    "each std, then added": "#b8320f",
}


def run(settings: Settings, progress: Progress) -> Result:
    """The toy; how much louder the rare reward is; what the unit of a reward does."""
    s = settings
    toy = theory.toy()
    pairs = [(rare, s.common) for rare in s.rare]
    by_rare = {
        name: [theory.louder(scheme, p, s.group) for p in pairs]
        for name, scheme in progress(list(SCHEMES.items()), "schemes")
    }
    middle = (0.1, s.common)
    by_unit = {
        name: [theory.louder(scheme, middle, s.group, unit) for unit in s.units]
        for name, scheme in SCHEMES.items()
    }
    series: dict[str, Any] = {
        "toy": toy,
        "rare": by_rare,
        "large_batch": [theory.louder_in_a_large_batch(p, s.group) for p in pairs],
        "limit": [theory.louder_in_the_limit(p) for p in pairs],
        "unit": by_unit,
    }
    return Result(series=series, facts=_facts(s, toy, series), caption=CAPTION)


def _facts(s: Settings, toy: dict[str, torch.Tensor], series: dict[str, Any]) -> Facts:
    """The toy and the formulas; then directions, written before the run.

    Two do not hold with one prompt, where the whitening is the group's own: the last, and that the
    unit does not matter, for where both rewards cancel it scales up what eps has left of them.
    """
    facts = Facts(SOURCE, 30)
    first, normal = toy["added first"], toy["normalised first"]
    claim = "Rewards (0, 1) and (0, 2) have one advantage when added first: that of"
    for group, which in ((0, "the first group"), (1, "the second group")):
        facts.exact(f"{claim} {which}", first[group, 1], 0.5**0.5, 5)
    claim = "Normalised first, the group in which both rewards differ counts twice:"
    facts.exact(f"{claim} advantage of the first group, .548", normal[0, 1], 0.3**0.5, 5)
    facts.exact(f"{claim} of the second, 1.095", normal[1, 1], 1.2**0.5, 5)
    pair, large = (s.rare[0], s.common), Facts(OURS, 30)
    where = f"p = {pair[0]:g} and {pair[1]:g}"
    for name in ("added, no std", "added, then std"):
        found = theory.louder(SCHEMES[name], pair, math.inf)
        large.exact(
            f"In large groups both rewards are heard alike ({name}: w₁/w₂, {where})", found, 1
        )
    found = theory.louder(SCHEMES["each std, then added"], pair, math.inf)
    claim = "Normalised first, w₁/w₂ is √(p₂(1−p₂)/(p₁(1−p₁))) in large groups"
    large.exact(f"{claim} ({where})", found, theory.louder_in_the_limit(pair), 5)
    units, at = series["unit"], f"G = {s.group}, {where}"
    for name, want in (("added, no std", 1 / s.units[-1]), ("each std, then added", None)):
        base = units[name][s.units.index(1.0)] if 1.0 in s.units else units[name][0]
        goal = base if want is None else want
        said = "does not change w₁/w₂" if want is None else "divides w₁/w₂ by that"
        claim = f"Paying the common reward {s.units[-1]:g} times as much {said} ({name})"
        large.exact(claim, units[name][-1], goal, 5)
    claim = f"Normalised first, the rare reward is louder at G = {s.group}, too ({where})"
    large.above(claim, series["large_batch"][0], 1.0)
    claim = f"A small group makes it less loud than a large one ({at})"
    large.below(claim, series["large_batch"][0], series["limit"][0])
    claim = f"Added, then std: a rare reward is heard less than a common one ({at})"
    large.below(claim, series["rare"]["added, then std"][0], 1.0)
    each, added = (theory.direction(SCHEMES[n], pair, s.group) for n in list(SCHEMES)[:0:-1])
    claim = f"Normalised first points further from ∇(p₁ + p₂) than added first (cosine, {where})"
    large.below(claim, each, added)
    facts.extend(large)
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """The toy; the rare reward's weight; the unit's effect."""
    figure, (toy, rare, unit) = figures.new_figure(1, 3, width=15.5, height=4.8)
    for name, colour, aside in (
        ("added first", COLOURS["added, then std"], -0.08),
        ("normalised first", COLOURS["each std, then added"], 0.08),
    ):
        found = result.array("toy", name)[:, 1]
        figures.points(toy, [aside, 1 + aside], found, None, name, name, color=colour, markersize=9)
    toy.set_xticks([0, 1], ["one reward differs", "both differ"])
    title = "Added first, two groups are one"
    figures.describe(
        toy,
        title,
        "group",
        "advantage of the better answer",
        xlim=(-0.5, 1.5),
        ylim=(0, 1.5),
        legend="upper left",
    )
    settings = result.settings
    for name, colour in COLOURS.items():
        for ax, key, x in ((rare, "rare", settings["rare"]), (unit, "unit", settings["units"])):
            line: dict[str, Any] = {"color": colour, "marker": "o", "linestyle": "-"}
            figures.band(ax, x, result.array(key, name), None, name, name, **line)
    line = {"color": COLOURS["each std, then added"], "linestyle": "--"}
    label = f"the same, many prompts, G = {settings['group']}"
    figures.band(rare, settings["rare"], result.array("large_batch"), None, "x", label, **line)
    figures.expectation(rare, result.array("limit"), settings["rare"], label="the same, G = ∞")
    figures.log_axis(rare, "x", settings["rare"])
    figures.log_axis(rare, "y", (0.5, 1, 2, 4))
    where = "probability of the rare reward"
    y = "w₁/w₂: how much louder it is"
    figures.describe(rare, "Normalised first, the rare is louder", where, y, legend="upper right")
    figures.log_axis(unit, "x", settings["units"])
    figures.log_axis(unit, "y", (0.1, 1, 10))
    title = "… and units hardly matter"
    figures.describe(unit, title, "what the common reward pays", y, legend="lower left")
    return figure
