"""Clipping does not bound the ratio: many small steps on one rollout take ρ far above 1 + ε.

Two arms; the first pays 1 and was sampled with a small probability π₁, the second pays 0. The
rollout holds both arms in exact proportion, as if it had infinitely many samples, and the policy
takes small gradient steps on it until nothing moves. Clipping takes a sample out of the gradient
when its own ratio has gone far enough in the direction its advantage pushes it. With centred
advantages both arms push: the first falls silent at ρ₁ = 1 + ε, the second only at ρ₂ = 1 − ε, and
the two probabilities sum to 1. So the second arm keeps pulling the first one's ratio up, to (1 −
(1−ε)(1−π₁))/π₁: for π₁ = .1 and ε = .2 to 2.8, and higher the rarer the arm was. With rewards as
they are (1 and 0, no baseline) the second arm has no advantage, pushes nothing, and ρ₁ stops at
1.2. The clip is a flat region of each sample's objective, not a bound on π.

What to look for: in the first panel, ρ₁ passing 1.2 without slowing to a halt; in the last, by how
much as π₁ → 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.theory import clip_unbounded as theory
from bandits.theory.clip_unbounded import Path, clip_bounds, limit, push
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import NoBaseline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "clipping does not bound the ratio: many small steps on one rollout take ρ to 2.8, not 1.2"
EXPECTED_SECONDS = 9.0
WANG = "Wang et al. 2019 (1903.07940); limit derived"


@dataclass(frozen=True)
class Settings(Checked):
    """Two arms that pay 1 and 0, and the size of the steps."""

    # which estimators, beside the clip without a baseline
    rungs: tuple[str, ...] = ("surrogate", "clip", "grpo")
    share: float = 0.1  # π₁, the good arm's probability in the rollout, for the first panels
    # the same, for the last panel
    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    group: int = 200  # arms in the rollout, in exact proportion: G·π₁ must be whole
    length: float = 0.001  # length of each small step, in nats of the logits
    steps: int = 4000  # small steps on the same rollout

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "group")
        for name, share in [("share", self.share), *(("shares", each) for each in self.shares)]:
            whole = abs(share * self.group - round(share * self.group)) < 1e-9
            allowed = f"a multiple of 1/{self.group} above 0 and below 1"
            require(0 < share < 1 and whole, name, share, allowed)
        allowed = "a number of nats above 0, at most 0.1"
        require(0 < self.length <= 0.1, "length", self.length, allowed)
        self.at_least(100, "steps")

    @property
    def all_shares(self) -> tuple[float, ...]:
        """π₁ of every run, in order; `share` is one of them."""
        return tuple(sorted({self.share, *self.shares}))


SETTINGS = Settings()
UNCENTRED = "clip, no baseline"
OLIVE = {"color": "#c96f00", "linestyle": figures.DASHDOT}  # of the clip without a baseline


def estimator_of(name: str) -> Estimator:
    """The rung of that name, or the clip without a baseline."""
    return theory.UNCENTRED if name == UNCENTRED else ladder.get(name).estimator


def run(settings: Settings, progress: Progress) -> Result:
    """Every estimator on every π₁."""
    s = settings
    found = {
        name: theory.small_steps(estimator_of(name), s.all_shares, s.group, s.length, s.steps)
        for name in progress([*s.rungs, UNCENTRED], "estimators")
    }
    here = settings.all_shares.index(settings.share)
    series = {
        "share": settings.all_shares,
        "steps": next(iter(found.values())).steps,
        "good": {name: path.good[:, here] for name, path in found.items()},
        "bad": {name: path.bad[:, here] for name, path in found.items()},
        "end": {name: path.after for name, path in found.items()},
    }
    return Result(series=series, facts=_facts(settings, found), caption=CAPTION)


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, found: dict[str, Path]) -> Facts:
    share = torch.tensor(settings.all_shares, dtype=torch.float64)
    here, facts = settings.all_shares.index(settings.share), Facts(WANG, 10)
    at = f"(π₁ = {settings.share:g}, rewards 1 and 0)"

    def stopped(claim: str, measured: Tensor, expected: float) -> None:
        # one step of that length changes a log-probability by less than √2 times it
        reach = math.sqrt(2) * settings.length * expected
        facts.append(Fact(claim, WANG, measured.item(), 0.0, expected, reach, number=10))

    for name, path in found.items():
        bounds = clip_bounds(estimator_of(name))
        if bounds is None:
            continue
        low, high = bounds
        centred = not isinstance(estimator_of(name).baseline, NoBaseline)
        stop = limit(share, low, high, centred)
        formula = f"(1 − {low:g}(1−π₁))/π₁" if centred else f"{high:g}"
        claim = f"{name}: many small steps on one rollout take ρ₁ to {formula}, and there it stops"
        stopped(f"{claim} {at}", path.after[here], float(stop[here]))
        within = ((path.before <= stop + 1e-12) & (stop <= path.after + 1e-12)).all()
        claim = f"{name}: that limit lies within the last small step, for every π₁ from"
        facts.exact(f"{claim} {share[0]:g} to {share[-1]:g}", bool(within), True)
    if "clip" in found:
        path, stop = found["clip"], limit(share, 0.8, 1.2)
        claim = "clip: when everything has stopped, ρ₂ is 1 − ε, and ρ₁ is what that leaves"
        stopped(f"{claim} {at}", path.bad[-1, here], 0.8)
        claim = f"clip: every sample is clipped then, and still ρ₁ is {float(stop[here]):g}: share"
        facts.exact(f"{claim} of samples clipped {at}", path.clipped[here], 1.0)
        claim = "clip: the rarer the good arm was, the further its ratio goes: ρ₁ at π₁ ="
        stopped(f"{claim} {share[0]:g}", path.after[0], float(stop[0]))
    end = float(limit(share[here], 0.8, 1.2))
    middle, over, now = (1.2 + end) / 2, end + 0.01, settings.share * (1.2 + end) / 2
    gradient = f"expected gradient of arm 1's logit {at}"
    claim = f"clip at ρ₁ = {middle:g}: only the bad arm pushes, with π₁·π(1)·π(2): {gradient}"
    facts.exact(claim, push(settings.share, middle), settings.share * now * (1 - now))
    claim = f"clip at ρ₁ = {over:g}: nothing pushes any more: {gradient}"
    facts.exact(claim, push(settings.share, over), 0.0)
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Two arms that pay 1 and 0, small steps of equal length on one rollout in exact proportion."
    " Dashed: where both arms fall silent, (1 − (1−ε)(1−π₁))/π₁, and the 1 + ε that one might"
    " expect."
)


def plot(result: Result) -> Figure:
    """ρ of both arms against the small steps; where ρ of the good arm ends."""
    figure, (good, bad, ends) = figures.new_figure(1, 3, width=15.0, height=4.7)
    share, steps = result.settings["share"], result.array("steps")
    stop = float(limit(torch.tensor(share, dtype=torch.float64), 0.8, 1.2))
    reached = [steps[result.array("good", name) >= 0.99 * stop] for name in result.series["good"]]
    shown = steps <= 2 * min((at[0] for at in reached if len(at)), default=steps[-1])
    left = f"(1 − 0.8·{1 - share:g})/{share:g} = {stop:.3g}"
    for ax, which, low, high, levels in (
        (good, "good", 0.8, 1.6 * stop, ((1.2, "1 + ε = 1.2", 4), (stop, left, -13))),
        (bad, "bad", 0.55, 1.03, ((0.8, "1 − ε = 0.8", 4),)),
    ):
        for name in result.series[which]:
            path = result.array(which, name)[shown]
            figures.band(ax, steps[shown], path, name=name, label=_title(name), **_look(name))
        curves = ax.get_lines()
        ax.set_ylim(low, high)
        for level, text, up in levels:
            figures.expectation(ax, level)
            figures.note(ax, text, (steps[shown][-1], level), (-4, up), ha="right")
        figures.label_ends(ax, list(curves))
    small, y = "small steps on one rollout", f"ρ₂ = π(arm 2)/{1 - share:g}"
    figures.describe(good, "The good arm runs past 1 + ε …", small, f"ρ₁ = π(arm 1)/{share:g}")
    figures.describe(bad, "… until the bad arm is silent too", small, y)
    _draw_ends(ends, result)
    return figure


def _look(name: str) -> dict[str, Any]:
    return {"linewidth": 2.2, **(OLIVE if name == UNCENTRED else {})}


def _title(name: str) -> str:
    own = {"surrogate": "ρA, no clip", "clip": "clip", UNCENTRED: UNCENTRED}
    return own.get(name) or ladder.get(name).title


def _draw_ends(ax: Axes, result: Result) -> None:
    share = result.array("share")
    for name in result.series["end"]:
        if clip_bounds(estimator_of(name)) is not None:
            marker, size = "s" if name == UNCENTRED else "o", 8 if name == "clip" else 5
            colour = OLIVE["color"] if name == UNCENTRED else figures.style_of(name)["color"]
            end = result.array("end", name)
            ax.plot(share, end, marker, color=colour, markersize=size, label=_title(name))
    grid = torch.logspace(-2.4, -0.05, 200, dtype=torch.float64)
    figures.expectation(ax, limit(grid, 0.8, 1.2).numpy(), grid.numpy())
    figures.expectation(ax, torch.full_like(grid, 1.2).numpy(), grid.numpy())
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y", [1.2, 2, 5, 10, 20, 50])
    ax.minorticks_off()
    x = "π₁, probability of the good arm in the rollout"
    figures.describe(ax, "The rarer the arm, the further it goes", x, "where ρ₁ ends")
    measured = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    ax.legend(handles=measured, frameon=False, fontsize=10)
