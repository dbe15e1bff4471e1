"""How fast policy gradient, natural policy gradient and GRPO reach the best arm, without noise.

The best arm pays 1, the other 1 − Δ; p is the best arm's probability and u = log(p/(1 − p)). Each
estimator's expected gradient is enumerated exactly, and since its flow dθ/dt = E[ĝ] stays on one
line, the time from u₀ to u₁ is the integral of du over the speed du/dt: no sampling, no steps.
Closed forms, from p = ½ (t = 0):

    policy gradient    du/dt = 2Δ p(1−p)         t = (u + sinh u)/Δ        1 − p → 1/(2Δt)
    natural PG         du/dt = Δ                 t = u/Δ                   1 − p → e^(−Δt)
    GRPO, G = ∞        du/dt = 2 √(p(1−p))       t = 2 sinh(u/2)           1 − p → 1/t², whatever Δ
    GRPO, G finite     du/dt = 2 p(1−p) w_G(p)   w_G → √(G−1) at both ends: 1 − p → 1/(2√(G−1) t)

What to look for: dividing by the std makes the slope −2 in place of −1, and takes the gap out of
it; but only until nearly every group is silent, and then the slope is −1 again. Out of a bad start
it is the same story: 1/√p₀ in place of 1/p₀. The last panel takes real steps with the exact
gradient: t·(1 − p) settles at (K−1)/(Kη).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.theory.flows import (
    Array,
    Flow,
    exact_steps,
    flow,
    natural_times,
    needs_group,
    nodes,
    proportional_gradient,
    rate_limit,
    speed,
    weight_times,
)
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
MEI = "Mei et al. 2020 (2005.06392) for the order 1/t; constant derived"
WEIGHT = "derived from w_G: Mroueh 2025 (2503.06639), Davis & Recht 2025 (2510.13651)"


@dataclass(frozen=True)
class Settings(Checked):
    """Two arms for the flows; K arms and a learning rate for the exact steps."""

    rungs: tuple[str, ...] = ("reinforce", "group_std")  # which estimators
    # samples per group, for estimators that compare within one
    groups: tuple[int, ...] = (2, 8, 64)
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
    wanted = [
        (name, group)
        for name in settings.rungs
        for group in (settings.groups if needs_group(ladder.get(name).estimator) else (None,))
    ]
    flows = [flow(name, group, gap, span) for name, group in progress(wanted, "flows")]
    found = [one for one in flows if one.rung == "reinforce"]
    plain = found[0] if found else flow("reinforce", None, gap, span)
    small = flow("reinforce", None, settings.small_gap, span)
    natural, infinite = natural_times(plain), weight_times(span, math.inf, 0.0)
    steps = {
        arms: exact_steps(arms, settings.lr, settings.steps)
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


def _off(measured: Array, expected: Array) -> float:
    """Largest relative difference, where expected is not 0."""
    there = expected != 0
    return float(np.abs(measured[there] / expected[there] - 1).max())


def _odds(u: float) -> tuple[float, float]:
    """p and 1 − p."""
    return 1 / (1 + math.exp(-u)), 1 / (1 + math.exp(u))


def _policy_gradient_facts(s: Settings, plain: Flow, small: Flow, natural: Array) -> Facts:
    start, missing, facts = _odds(plain.u[0])[0], _odds(plain.u[-1])[1], Facts("derived", 7)
    for one in (plain, small):
        at, scale = f"(two arms, gap {one.gap:g})", 2 * one.gap
        claim = "Policy gradient's flow takes (u + sinh u)/Δ from p = ½ to log-odds u: largest"
        off = _off(one.t, (one.u + np.sinh(one.u)) / one.gap)
        facts.exact(f"{claim} relative difference {at}", off, 0.0, 8)
        claim = f"Policy gradient: 1 − p ~ 1/(2Δt), as 2Δt(1−p) at 1 − p = {missing:.1e} {at}"
        facts.exact(claim, scale * one.t[-1] * missing, 1.0, 6, source=MEI)
        claim = "Policy gradient escapes from p₀ to ½ in 1/(2Δp₀), as time·2Δp₀ at p₀ ="
        facts.exact(f"{claim} {start:.1e} {at}", -scale * one.t[0] * start, 1.0, 5)
    claim = "Natural PG: 1 − p falls as e^(−Δt), as log-odds per unit of time (two arms, gap"
    source = "derived; linear rate: Mei et al. 2020 (2005.06392)"
    facts.exact(f"{claim} {s.gap:g})", plain.u[-1] / natural[-1], s.gap, source=source)
    arms = max(s.arms)
    many = flow("reinforce", None, 1.0, s.span, arms, -math.log(arms - 1))
    claim = f"Policy gradient's flow from uniform on K = {arms} arms that pay 1, 0, …, 0:"
    claim = f"{claim} t(1−p)·K/(K−1) → 1, at 1 − p = {missing:.1e}"
    facts.exact(claim, many.t[-1] * missing * arms / (arms - 1), 1.0, 6, source=MEI)
    return facts


def _group_facts(s: Settings, flows: Sequence[Flow], infinite: Array) -> Facts:
    edges, facts = nodes(-0.75 * s.span, s.span)[0], Facts(WEIGHT, 7)
    start, missing = _odds(edges[0])[0], _odds(edges[-1])[1]
    claim = "GRPO at G = ∞ takes 2 sinh(u/2) from p = ½ to log-odds u: largest relative difference"
    facts.exact(claim, _off(infinite, 2 * np.sinh(edges / 2)), 0.0, 8)
    claim = f"GRPO at G = ∞: 1 − p ~ 1/t² whatever the gap, as t²(1−p) at 1 − p = {missing:.1e}"
    facts.exact(claim, infinite[-1] ** 2 * missing, 1.0, 6)
    claim = f"GRPO at G = ∞ escapes from p₀ to ½ in 1/√p₀, as time·√p₀ at p₀ = {start:.1e}"
    facts.exact(claim, -infinite[0] * math.sqrt(start), 1.0, 6)
    claim = "GRPO on a rollout with right and wrong answers in exact proportion (p = .15) has the"
    facts.exact(f"{claim} gradient p(1−p)/√(p(1−p)) of G = ∞", *proportional_gradient(3, 17, EPS))
    for f in flows:
        if f.rung != "group_std" or f.group is None:
            continue
        root, at = 2 * math.sqrt(f.group - 1), f"(G = {f.group}, eps {EPS:g})"
        claim = "GRPO's flow is that of the weight w_G(p): largest relative difference of the times"
        facts.exact(f"{claim} {at}", _off(f.t, weight_times(s.span, f.group, EPS)), 0.0)
        # four digits: eps of the std leaves eps·√G of the weight
        claim = "GRPO at finite G: 1 − p → 1/(2√(G−1)t), as 2√(G−1)·t(1−p) at 1 − p ="
        facts.exact(f"{claim} {missing:.1e} {at}", root * f.t[-1] * missing, 1.0, 4)
        claim = "GRPO at finite G escapes in 1/(2√(G−1)p₀), as time·2√(G−1)p₀ at p₀ ="
        facts.exact(f"{claim} {start:.1e} {at}", -root * f.t[0] * start, 1.0, 4)
    group, gap, small = max(s.groups), s.gap, s.small_gap
    fast, slow = (speed(ladder.group_std, group, 1.0, each) for each in (gap, small))
    claim = f"GRPO's speed does not depend on the gap: speed at gap {small:g} over speed at gap"
    facts.exact(f"{claim} {gap:g} (G = {group}, log-odds 1)", slow / fast, 1.0, 4)
    return facts


def _step_facts(s: Settings, steps: dict[int, tuple[Array, Array]]) -> list[Fact]:
    """Late slope of 1/(1−p) against its limit and the first correction of finite time."""
    facts = []
    for arms, (step, missing) in steps.items():
        half = int(np.abs(step - s.steps // 2).argmin())
        slope = (1 / missing[-1] - 1 / missing[half]) / (step[-1] - step[half])
        expected = rate_limit(arms, s.lr, s.steps)
        claim = (
            f"Exact gradient steps from uniform, K = {arms}, η = {s.lr:g}: t·(1−p) → (K−1)/(Kη),"
            f" from the slope of 1/(1−p) over the last half of {s.steps:,} steps (expected: with"
            " the first correction, 2(2 − a/2) ln 2/(aT), a = Kη/(K−1))"
        )
        # what is left is of the order of (log T/(aT))²
        a = 1 / rate_limit(arms, s.lr)
        left = 4 * expected * (math.log(s.steps) / (a * s.steps)) ** 2
        facts.append(Fact(claim, MEI, 1 / slope, 0.0, expected, left, number=7))
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Flows of the exact expected gradient, two arms; thin dashed lines are the asymptotes derived"
    " in closed form. Right: gradient steps with the exact gradient on K arms, one of which pays 1."
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
    gap, small = result.settings["gap"], result.settings["small_gap"]
    groups = list(result.settings["groups"])
    plain = {**figures.style_of("reinforce"), "linewidth": 3.2}  # wide: GRPO at G = 2 lies on it
    std, natural = figures.style_of("group_std"), figures.style_of("natural_gradient")
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
    limit = {**std, "linestyle": figures.DOT, "linewidth": 2.4}
    drawn.append((result.array("infinite"), "Group std, G = ∞", limit))
    drawn.append((result.array("natural"), f"natural PG, Δ = {gap:g}", {**natural, "linewidth": 2}))
    return drawn


def _formulas(ax: Axes, x: float, side: str, formulas: Sequence[str]) -> None:
    """What the dashed lines are, at the top of the panel."""
    names = ("REINFORCE", "group std", "G = ∞", "natural PG")
    rows = [f"{name}:  {formula}" for name, formula in zip(names, formulas, strict=True)]
    text = "\n".join(["dashed: the limits", *rows])
    style: dict[str, Any] = {"ha": side, "va": "top", "linespacing": 1.4, "color": figures.INK}
    ax.text(x, 0.98, text, transform=ax.transAxes, **style)
