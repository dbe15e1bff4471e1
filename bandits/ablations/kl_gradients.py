"""k1, k2, k3: what each pushes towards, by where it is put.

All exact, through the estimators that train, with every reward 0.

    three arms  the same letter in another place is another penalty: look where each point lands,
                and which points share a place.
    sequences   two tokens: penalties summed token by token drop what a token does to the tokens
                after it.
    the bug     the inverted ratio, log π − log ref where log ref − log π is meant: find it from the
                curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.ablations.kl_estimators import COLOURS, HERE, REFERENCE
from bandits.exact import B3_POLICY
from bandits.theory import kl_estimators as theory
from course.errors import require
from course.exact import group_mean_factor, group_std_weight, kl_gradient, relative_distance
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import K1, GroupMean, InReward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "which divergence the gradient of k1, k2, k3 really descends, in the loss and in the reward"
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """Three arms and two tokens; nothing is sampled."""

    # probabilities of the reference, beside the policy (.5, .3, .2)
    reference: tuple[float, float, float] = REFERENCE
    group: int = 4  # samples per prompt, where a group's mean is taken
    rate: float = 0.2  # learning rate of the curves
    steps: int = 60  # updates of the curves

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "group")
        whole = min(self.reference) > 0 and abs(sum(self.reference) - 1) < 1e-9
        require(whole, "reference", self.reference, "three probabilities > 0 that sum to 1")


SETTINGS = Settings()
COMEDY = "A Comedy of Estimators 2025 (2512.21852)"
BOTH = f"Tang & Munos 2025 (2506.09477); {COMEDY}"
OURS = "exact KL in the loss", "k2 in the reward", "k3 in the reward"  # derived here
PENALTIES = "k1 in the reward", "k2 in the loss", "k3 in the loss"
CURVES = tuple(f"{how}{name}" for name in PENALTIES for how in ("", "inverted "))
CAPTION = "Gradients and curves are exact. β = 1, all rewards 0, policy (.5, .3, .2)."


def run(settings: Settings, progress: Progress) -> Result:
    """Everything is enumerated."""
    policy = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    reference = torch.tensor(settings.reference, dtype=torch.float64).log()
    found = {
        name: theory.penalty_gradient(penalty, policy, reference)
        for name, penalty in theory.placements().items()
    }
    k1, mean = K1(1.0, InReward()), GroupMean()
    found["centred"] = theory.penalty_gradient(k1, policy, reference, settings.group, baseline=mean)
    true, tokens = theory.divergence_gradients(policy, reference), theory.two_tokens()
    sequences = theory.sequence_gradients(tokens)
    curves = {
        name: theory.penalty_curve(name, policy, reference, settings.rate, settings.steps)
        for name in progress(CURVES, "curves")
    }
    whole, dropped = kl_gradient(tokens), theory.later_tokens(tokens)
    series = {
        "gradients": {name: theory.in_plane(one) for name, one in found.items()},
        "true": {name: theory.in_plane(one) for name, one in true.items()},
        "sequences": {name: relative_distance(one, whole) for name, one in sequences.items()},
        "dropped": dropped.norm() / whole.norm(),
        "curves": curves,
    }
    facts = [*_gradient_facts(found, true), *_scaling_facts(settings, found)]
    facts += [*_sequence_facts(whole, dropped, sequences), *_curve_facts(curves)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _gradient_facts(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> list[Fact]:
    published, bug = Facts(BOTH, 20), Facts(HERE, 21)
    for name, (what, target) in theory.descended(true).items():
        off = relative_distance(found[name], target)
        claim = f"{name} descends {what} (relative distance, three arms)"
        facts, source = (bug, HERE) if name.startswith("inverted") else (published, BOTH)
        facts.exact(claim, off, 0.0, source=HERE if name in OURS else source)
    for name in ("k2 in the reward", "k3 in the reward"):
        nearest = min(relative_distance(found[name], true[kl]) for kl in ("KL(π‖ref)", "KL(ref‖π)"))
        claim = f"{name} is far from both KL gradients (relative distance to the nearer, above ½)"
        published.above(claim, nearest, 0.5)
    return [*published, *bug]


def _scaling_facts(s: Settings, found: Mapping[str, Tensor]) -> Facts:
    """k1 in the reward under a group's mean, and under its std."""
    facts, full, many = Facts(HERE, 20), found["k1 in the reward"], 512
    claim = "under a group mean that includes the sample, k1 in the reward is scaled by (G − 1)/G"
    share = found["centred"] @ full / (full @ full)
    facts.exact(f"{claim} (G = {s.group})", share, group_mean_factor(s.group))
    gap, p = theory.two_arms_gap(), 0.3
    claim = "under the group's std, with no other reward, it is scaled by w_G(p)/|k1 − other k1|"
    claim += " (two arms, .3 and .7 against .6 and .4, G = 8)"
    facts.exact(claim, theory.scale_under_std(8), group_std_weight(p, 8) / gap)
    claim = "for large groups that is 1/std(k1), less 1/(8Gp(1 − p)) of it: scale times std(k1)"
    scaled = theory.scale_under_std(many) * gap * math.sqrt(p * (1 - p))
    facts.exact(f"{claim} (G = {many})", scaled, 1 - 1 / (8 * many * p * (1 - p)), 5)
    claim = "and β cancels: β = .01 has the gradient of β = 1 (relative distance)"
    one, other = (theory.gradient_under_std(8, beta) for beta in (0.01, 1.0))
    facts.exact(claim, relative_distance(one, other), 0.0)
    return facts


def _sequence_facts(true: Tensor, dropped: Tensor, found: Mapping[str, Tensor]) -> Facts:
    """Penalties on answers of two tokens, against the whole KL's gradient and what sums drop."""
    facts, where = Facts(HERE, 20), "(two tokens of three words; relative distance)"
    for name, gradient in found.items():
        if name == "k1 in the reward":
            claim, off = f"{name} has the whole KL's gradient", relative_distance(gradient, true)
            facts.exact(f"{claim} {where}", off, 0.0, source=COMEDY)
            continue
        claim = f"{name}, has that gradient less E[KL(second token) ∇log π(first token)]"
        facts.exact(f"{claim} {where}", relative_distance(gradient, true - dropped), 0.0)
    claim = "and what they drop is no small part of it (share of its length, here)"
    facts.above(claim, dropped.norm() / true.norm(), 0.1)
    return facts


def _curve_facts(found: Mapping[str, Tensor]) -> Facts:
    facts = Facts(HERE, 21)
    for name, claim, expected in (
        (CURVES[0], "k1 in the reward, alone: share of updates at which KL(π‖ref) falls", 1.0),
        (CURVES[1], "inverted k1 in the reward, alone: share of updates at which it falls", 0.0),
        (CURVES[5], "inverted k3 in the loss, alone, is an anchor: share at which it falls", 1.0),
    ):
        facts.exact(claim, (found[name].diff() < 0).double().mean(), expected)
    apart = (found[CURVES[2]] - found[CURVES[3]]).abs().max()
    claim = "k2 and inverted k2 in the loss have one curve (largest difference, nats)"
    facts.exact(claim, apart, 0.0)
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """What a token-by-token sum misses; the bug from its curves; where each gradient points."""
    options: dict[str, Any] = {"width": 18.5, "height": 4.8, "width_ratios": (1, 1.1, 1.1)}
    figure, (tokens, bug, plane) = figures.new_figure(1, 3, **options)
    _plot_plane(plane, result)
    _plot_tokens(tokens, result)
    _plot_curves(bug, result)
    return figure


BLUE, RED, PURPLE, BROWN = "#0057a3", "#b8320f", "#7a1f5c", "#8a6d3b"
# a gradient, its sign in the picture, where the sign is, its colour, what else lands there
KEY = (
    ("k1 in the loss", "a", (-9, 8), "#444444", "0: k1 in the loss, inverted or not"),
    ("k1 in the reward", "b", (10, -8), BLUE,
     "∇KL(π‖ref): k1 in the reward;\nk2, ρ·k1, ρ·k3, exact KL in the loss;\n"
     "inverted k2 in the loss"),
    ("centred", "c", (-10, -7), "#00875f",
     "(G − 1)/G of b: k1 in the reward,\nless the group's mean"),
    ("k3 in the loss", "d", (10, 5), RED, "∇KL(ref‖π): k3 in the loss (GRPO)"),
    ("inverted k3 in the loss", "e", (11, 0), PURPLE, "½∇χ²(π‖ref): inverted k3 in the loss"),
    ("inverted k1 in the reward", "f", (-11, 0), BLUE,
     "−∇KL(π‖ref), away from it: inverted k1\nin the reward, inverted ρ·k1 in the loss"),
    ("k2 in the reward", "g", (-11, 0), BROWN, "neither: k2 in the reward"),
    ("k3 in the reward", "h", (-11, 0), BROWN, "neither: k3 in the reward"),
)  # fmt: skip


def _plot_plane(ax: Axes, result: Result) -> None:
    for name, colour in (("KL(π‖ref)", BLUE), ("KL(ref‖π)", RED), ("½χ²(π‖ref)", PURPLE)):
        ax.plot(*zip((0, 0), result.array("true", name), strict=True), color=colour, linewidth=2.0)
    bold: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11, "fontweight": "bold"}
    line = 0.97
    for name, sign, offset, colour, text in KEY:
        ink, place = figures.readable(colour), result.array("gradients", name)
        ax.plot(*place, "o", color=colour, markersize=8)
        figures.note(ax, sign, (place[0], place[1]), offset, color=ink, **bold)
        beside: dict[str, Any] = {"xycoords": "axes fraction", "color": ink, "va": "top"}
        figures.note(ax, sign, (1.04, line), fontsize=11, fontweight="bold", **beside)
        figures.note(ax, text, (1.10, line), **beside)
        line -= 0.055 * (text.count("\n") + 1) + 0.025
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.12)
    title, x = "Where each penalty pushes (three arms, exact)", "gradient in the logits: first arm"
    figures.describe(ax, title, f"{x} against second", "both against third")


def _plot_tokens(ax: Axes, result: Result) -> None:
    names, dropped = list(result.series["sequences"]), float(result.array("dropped"))
    missed = [float(result.array("sequences", name)) for name in names]
    ax.barh(names, missed, color=[BLUE, *["#b8860b"] * (len(names) - 1)], height=0.55)
    ax.invert_yaxis()
    figures.expectation(ax, x=dropped)
    what = "what they drop:\nE[KL(2nd token)\n· ∇log π(1st)]"
    figures.note(ax, what, (dropped * 1.04, 2.5), va="center")
    figures.note(ax, "0: nothing missed", (0.003, 0), color=BLUE, va="center")
    ax.grid(False, axis="y")
    title, x = "Two tokens: what each misses", "‖E[ĝ] − ∇KL‖ / ‖∇KL‖"
    figures.describe(ax, title, x, xlim=(0, dropped * 1.75))


def _plot_curves(ax: Axes, result: Result) -> None:
    labels = ("k1 in the reward =\nk2 in the loss =\ninverted k2", CURVES[1], "_", "_", *CURVES[4:])
    for place, (name, label) in enumerate(zip(CURVES, labels, strict=True)):
        colour, curve = COLOURS[("k1", "k2", "k3")[place // 2]], result.array("curves", name)
        look: dict[str, Any] = {"linestyle": (0, (4, 2)) if place % 2 else "-"}
        look["linewidth"] = 2.0 if place else 4.0
        figures.band(ax, np.arange(len(curve)), curve, color=colour, label=label, **look)
    figures.log_axis(ax, "y")
    title, x = "The inverted ratio, seen from its curves", "updates with the penalty alone"
    figures.describe(ax, title, x, "KL(π‖ref) (nats)", ends=True)
