"""How fast policy gradient, natural policy gradient and GRPO reach the best arm, without noise.

`bandits.theory.flows` has the flows and their closed forms. What to look for: dividing by the std
makes the slope −2 in place of −1 until nearly every group is silent. The last panel takes real
steps with the exact gradient: t·(1 − p) settles at (K−1)/(Kη).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.theory import flows as theory
from bandits.theory.flows import Array, Flow, flow, largest_gap, odds, rate_limit
from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import GroupStd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "rates without noise: the last stretch to the best arm, and escape times from a bad start"
EXPECTED_SECONDS = 18.0
PAPER = "Mei et al. 2020 (2005.06392)"
MEI = f"{PAPER} for the order 1/t; constant derived"
WEIGHT = "derived from w_G: Mroueh 2025 (2503.06639), Davis & Recht 2025 (2510.13651)"


@dataclass(frozen=True)
class Settings(Checked):
    """Two arms for the flows; K arms and a learning rate for the exact steps."""

    rungs: tuple[str, ...] = ("reinforce", "group_std")  # which estimators
    groups: tuple[int, ...] = (2, 8, 64)  # samples per group, for rungs that compare within one
    gap: float = 1.0  # reward of the best arm minus that of the other
    small_gap: float = 0.25  # the same, for the curve with a smaller gap
    span: float = 24.0  # log-odds, in nats: flows run from −span·¾ to span
    arms: tuple[int, ...] = (2, 5, 20)  # K of the exact steps; one arm pays 1, the others 0
    lr: float = 0.4  # learning rate η of the exact steps
    steps: int = 5000  # exact steps from the uniform policy

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.groups) >= 2, "groups", self.groups, "whole numbers ≥ 2")
        for name in ("gap", "small_gap", "lr"):
            value = getattr(self, name)
            require(0 < value <= 1, name, value, "a number above 0, at most 1")
        allowed = "from 4 to 30 nats: beyond, 1 − p is lost in rounding"
        require(4 <= self.span <= 30, "span", self.span, allowed)
        require(min(self.arms) >= 2, "arms", self.arms, "whole numbers ≥ 2")
        self.at_least(100, "steps")


SETTINGS = Settings()
assert isinstance(ladder.group_std.scale, GroupStd)
EPS = ladder.group_std.scale.eps


def run(settings: Settings, progress: Progress) -> Result:
    """The flows of every rung, natural PG and G = ∞ in closed form, and exact steps on K arms."""
    gap, span = settings.gap, settings.span
    flows = theory.flows(settings.rungs, settings.groups, gap, span, progress)
    plain = next((one for one in flows if one.rung == "reinforce"), None)
    plain = plain or flow("reinforce", None, gap, span)
    small = flow("reinforce", None, settings.small_gap, span)
    natural, infinite = theory.natural_times(plain), theory.weight_times(span, math.inf, 0.0)
    steps = {
        arms: theory.exact_steps(arms, settings.lr, settings.steps)
        for arms in progress(settings.arms, "exact steps")
    }
    series: dict[str, Any] = {
        "log_odds": plain.u,
        "flows": [{"rung": one.rung, "group": one.group or 0, "t": one.t} for one in flows],
        "small_gap": small.t,
        "natural": natural,
        "infinite": infinite,
        "steps": {str(k): {"step": t, "missing": left} for k, (t, left) in steps.items()},
    }
    facts = [*_policy_gradient_facts(settings, plain, small, natural)]
    facts += [*_group_facts(settings, flows, infinite), *_step_facts(settings, steps)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _policy_gradient_facts(s: Settings, plain: Flow, small: Flow, natural: Array) -> Facts:
    start, missing = odds(plain.u[0])[0], odds(plain.u[-1])[1]
    arms, facts = max(s.arms), Facts("derived", 7)
    for one in (plain, small):
        at, scale = f"(two arms, gap {one.gap:g})", 2 * one.gap
        claim = "Policy gradient's flow takes (u + sinh u)/Δ from p = ½ to log-odds u: largest"
        off = largest_gap(one.t, (one.u + np.sinh(one.u)) / one.gap)
        facts.exact(f"{claim} relative difference {at}", off, 0.0, 8)
        claim = f"Policy gradient: 1 − p ~ 1/(2Δt), as 2Δt(1−p) at 1 − p = {missing:.1e} {at}"
        facts.exact(claim, scale * one.t[-1] * missing, 1.0, 6, source=MEI)
        claim = "Policy gradient escapes from p₀ to ½ in 1/(2Δp₀), as time·2Δp₀ at p₀ ="
        facts.exact(f"{claim} {start:.1e} {at}", -scale * one.t[0] * start, 1.0, 5)
    claim = f"Natural PG: 1 − p falls as e^(−Δt), as log-odds per unit of time (gap {s.gap:g})"
    facts.exact(claim, plain.u[-1] / natural[-1], s.gap, source=f"derived; linear rate: {PAPER}")
    many = flow("reinforce", None, 1.0, s.span, arms, -math.log(arms - 1))
    claim = f"Policy gradient's flow from uniform on K = {arms} arms: t(1−p)·K/(K−1) → 1"
    facts.exact(claim, many.t[-1] * missing * arms / (arms - 1), 1.0, 6, source=MEI)
    return facts


def _group_facts(s: Settings, flows: Sequence[Flow], infinite: Array) -> Facts:
    edges, facts = theory.nodes(-0.75 * s.span, s.span)[0], Facts(WEIGHT, 7)
    start, missing = odds(edges[0])[0], odds(edges[-1])[1]
    claim = "GRPO at G = ∞ takes 2 sinh(u/2) from p = ½ to log-odds u: largest relative difference"
    facts.exact(claim, largest_gap(infinite, 2 * np.sinh(edges / 2)), 0.0, 8)
    claim = f"GRPO at G = ∞: 1 − p ~ 1/t² whatever the gap, as t²(1−p) at 1 − p = {missing:.1e}"
    facts.exact(claim, infinite[-1] ** 2 * missing, 1.0, 6)
    claim = f"GRPO at G = ∞ escapes from p₀ to ½ in 1/√p₀, as time·√p₀ at p₀ = {start:.1e}"
    facts.exact(claim, -infinite[0] * math.sqrt(start), 1.0, 6)
    claim = "GRPO on a rollout with answers in exact proportion (p = .15) has the gradient of G = ∞"
    facts.exact(claim, *theory.proportional_gradient(3, 17, EPS))
    for f in flows:
        if f.rung != "group_std" or f.group is None:
            continue
        root, at = 2 * math.sqrt(f.group - 1), f"(G = {f.group}, eps {EPS:g})"
        off = largest_gap(f.t, theory.weight_times(s.span, f.group, EPS))
        claim = "GRPO's flow is that of the weight w_G(p): largest relative difference of the times"
        facts.exact(f"{claim} {at}", off, 0.0)
        # four digits: eps of the std leaves eps·√G of the weight
        claim = "GRPO at finite G: 1 − p → 1/(2√(G−1)t), as 2√(G−1)·t(1−p) at 1 − p ="
        facts.exact(f"{claim} {missing:.1e} {at}", root * f.t[-1] * missing, 1.0, 4)
        claim = "GRPO at finite G escapes in 1/(2√(G−1)p₀), as time·2√(G−1)p₀ at p₀ ="
        facts.exact(f"{claim} {start:.1e} {at}", -root * f.t[0] * start, 1.0, 4)
    group, gap, small = max(s.groups), s.gap, s.small_gap
    fast, slow = (theory.speed(ladder.group_std, group, 1.0, each) for each in (gap, small))
    claim = f"GRPO's speed does not depend on the gap (ratio: {small:g} over {gap:g}, G = {group})"
    facts.exact(claim, slow / fast, 1.0, 4)
    return facts


def _step_facts(s: Settings, steps: dict[int, tuple[Array, Array]]) -> list[Fact]:
    """Late slope of 1/(1−p) against its limit and the first correction of finite time."""
    facts = []
    for arms, (step, missing) in steps.items():
        claim = f"Exact gradient steps from uniform, K = {arms}, η = {s.lr:g}: t·(1−p) → (K−1)/(Kη)"
        claim = f"{claim}, over the last half of {s.steps:,} steps (with the first correction)"
        rate, left = theory.late_rate(step, missing), theory.rate_error(arms, s.lr, s.steps)
        facts.append(Fact(claim, MEI, rate, 0.0, rate_limit(arms, s.lr, s.steps), left, number=7))
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Flows of the exact expected gradient, two arms; thin dashed lines are the derived asymptotes."
    " Right: steps with the exact gradient on K arms, one of which pays 1."
)


def plot(result: Result) -> Figure:
    """1 − p against time; time from p₀ to ½ against 1/p₀; t·(1 − p) of exact steps on K arms."""
    figure, (late, early, steps) = figures.new_figure(1, 3, width=14.5, height=4.8)
    gap, lr, u = result.settings["gap"], result.settings["lr"], result.array("log_odds")
    missing, inverse = 1 / (1 + np.exp(u)), 1 + np.exp(-u)
    for t, label, style in _curves(result):
        shown = (t > 0.05) & (missing > 1e-7)
        late.plot(t[shown], missing[shown], label=label, **style)
        shown = (u < -1) & (inverse < 1.2e7)
        early.plot(inverse[shown], -t[shown], label=label, **style)
    curves = list(early.get_lines())
    # the constants c of 1 − p = 1/(ct) and of the escape time 1/(c·p₀)
    constants = [2 * result.settings[name] for name in ("gap", "small_gap")]
    constants += [2 * math.sqrt(group - 1) for group in result.settings["groups"]]
    grid, far = np.geomspace(3, 3e6, 60), np.geomspace(30, 1e7, 60)
    for c in constants:
        figures.expectation(late, 1 / (c * grid), grid)
        figures.expectation(early, far / c, far)
    figures.expectation(late, 1 / grid**2, grid)
    figures.expectation(early, np.sqrt(far), far)
    near = grid[grid < 20]
    figures.expectation(late, np.exp(-gap * near), near)
    figures.expectation(early, np.log(far) / gap, far)
    _formulas(late, 0.99, "right", ("1/(2Δt)", "1/(2√(G−1) t)", "1/t²", "exp(−Δt)"))
    _formulas(early, 0.03, "left", ("1/(2Δp₀)", "1/(2√(G−1) p₀)", "1/√p₀", "log(1/p₀)/Δ"))
    for arms, colour in figures.shaded(result.settings["arms"]):
        step, rest = result.array("steps", arms, "step"), result.array("steps", arms, "missing")
        words = f"K = {arms}: {rate_limit(arms, lr):.4g}"
        steps.plot(step, step * rest, color=colour, linewidth=2.0, label=words)
        figures.expectation(steps, rate_limit(arms, lr))
    for ax in (late, early, steps):
        figures.log_axis(ax, "x")
        figures.log_axis(ax, "y", [0.5, 1, 2, 5, 10, 20] if ax is steps else None)
    steps.minorticks_off()
    x, y = "time t from p = ½", "1 − p, the other arm's probability"
    figures.describe(late, "The last stretch", x, y, xlim=(0.3, 3e6), ylim=(1e-6, 1))
    x, y = "1/p₀, p₀ the best arm's probability at the start", "time until p = ½"
    figures.describe(early, "Out of a bad start", x, y, xlim=(4, 1.3e7), ylim=(1, 1e8))
    figures.label_ends(early, curves)
    title = f"Exact steps (η = {lr:g}): t(1−p) → (K−1)/(Kη)"
    figures.describe(steps, title, "steps t from the uniform policy", "t · (1 − p)", ends=True)
    return figure


def _curves(result: Result) -> list[tuple[Array, str, dict[str, Any]]]:
    """Times, label and line style of every flow."""
    gap, small, groups = (result.settings[name] for name in ("gap", "small_gap", "groups"))
    plain = {**figures.style_of("reinforce"), "linewidth": 3.2}  # wide: GRPO at G = 2 lies on it
    grey = {**plain, "color": "#8a8a8a"}
    drawn = [(result.array("small_gap"), f"REINFORCE, Δ = {small:g}", grey)]
    for entry in result.series["flows"]:
        style: dict[str, Any] = {"linewidth": 2.0, **figures.style_of(entry["rung"])}
        label = ladder.get(entry["rung"]).title
        if entry["rung"] == "reinforce":
            style, label = plain, f"{label}, Δ = {gap:g}"
        elif entry["group"]:
            share = (groups.index(entry["group"]) + 1) / len(groups)
            style |= {"linewidth": 1.2 + 1.4 * share}
            label = f"{label}, G = {entry['group']}"
        drawn.append((np.asarray(entry["t"], dtype=float), label, style))
    limit = {**figures.style_of("group_std"), "linestyle": figures.DOT, "linewidth": 2.4}
    drawn.append((result.array("infinite"), "Group std, G = ∞", limit))
    natural = {**figures.style_of("natural_gradient"), "linewidth": 2}
    drawn.append((result.array("natural"), f"natural PG, Δ = {gap:g}", natural))
    return drawn


def _formulas(ax: Axes, x: float, side: str, formulas: Sequence[str]) -> None:
    """What the dashed lines are, at the top of the panel."""
    names = ("REINFORCE", "group std", "G = ∞", "natural PG")
    rows = [f"{name}:  {formula}" for name, formula in zip(names, formulas, strict=True)]
    style: dict[str, Any] = {"ha": side, "va": "top", "linespacing": 1.4, "color": figures.INK}
    ax.text(x, 0.98, "\n".join(["dashed: the limits", *rows]), transform=ax.transAxes, **style)
