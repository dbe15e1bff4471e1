"""Where training ends: the anchor's estimator and the group's std decide it, not β alone.

One replaced part, another limit: `bandits.theory.kl_fixed_points` explains the equations, their
roots and the recursion. Here the expected gradient, enumerated, is followed until it stops, and
compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory import kl_fixed_points as theory
from bandits.theory.kl_fixed_points import KINDS, estimators, limits, logit, measured_drift, settle
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "where GRPO's success probability settles: k2 or k3, with or without the std, and when it does"
    " not settle at all"
)
EXPECTED_SECONDS = 16.0


@dataclass(frozen=True)
class Settings(Checked):
    """One prompt with a right and a wrong answer; everything is enumerated."""

    group: int = 8  # samples per prompt
    reference: float = 0.3  # success probability of the reference, and where training starts
    # KL coefficients of the sweep
    betas: tuple[float, ...] = (0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0)
    beta: float = 0.5  # coefficient of the curves, one of `betas`
    step: float = 0.15  # step of the flow, in units of 1/β (the natural gradient's own scale)
    steps: int = 200  # updates of the flow
    cobweb_group: int = 256  # samples per prompt where the recursion is compared with the flow
    cobweb_reference: float = 0.001  # success probability of the reference there
    cobweb_beta: float = 0.7  # KL coefficient there
    seed: int = 0  # unused: nothing is sampled

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "cobweb_group"):
            size = getattr(self, name)
            require(2 <= size <= 1024, name, size, "a whole number from 2 to 1024")
        for name in ("reference", "cobweb_reference"):
            p = getattr(self, name)
            require(0 < p < 1, name, p, "a probability between 0 and 1")
        require(min(self.betas) > 0, "betas", self.betas, "numbers > 0")
        drawn = self.beta in self.betas
        require(drawn, "beta, betas", f"{self.beta} and {self.betas}", "one of the betas as beta")
        require(self.cobweb_beta > 0, "cobweb_beta", self.cobweb_beta, "a number > 0")
        require(0 < self.step <= 1, "step", self.step, "a number above 0, at most 1")


SETTINGS = Settings()
MROUEH = "Mroueh 2025 (2503.06639)"
VOJNOVIC = "Vojnovic & Yun 2025 (2502.18548)"
HERE = "derived here, checked by enumeration"
SMOOTH = torch.linspace(-4, 8, 241, dtype=torch.float64)
CAPTION = "Exact: every group is enumerated. Dashed: roots of the closed-form equations."


def run(settings: Settings, progress: Progress) -> Result:
    """Flows for every β and estimator, drifts on a grid, the recursion against the flow."""
    s = settings
    flows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for beta in progress(s.betas, "flows"):
        for kind, one in estimators(beta).items():
            flows[kind].append(
                settle(one, s.reference, s.reference, beta, s.group, s.step, s.steps)
            )
    ends = {kind: [float(path[-1]) for path in paths] for kind, paths in flows.items()}
    grid = torch.linspace(-4, 8, 25, dtype=torch.float64)
    # the recursion and the flow from one start: natural gradient with a small step and with 1/β
    web, p_ref, beta, size = "std, k2", s.cobweb_reference, s.cobweb_beta, s.cobweb_group
    small = settle(estimators(beta)[web], p_ref, p_ref, beta, size, s.step, s.steps // 2)
    large = settle(estimators(beta)[web], p_ref, p_ref, beta, size, 1.0, 4)
    fine = torch.linspace(-8, 20, 141, dtype=torch.float64)
    born, height = theory.fold(s.reference)
    low, high = math.log10(min(s.betas)), math.log10(max(s.betas))
    sweep = torch.logspace(low, high, 61, dtype=torch.float64).tolist()
    sweep = sorted([*sweep, *(born * near for near in (1.0002, 1.004, 1.015, 1.03))])

    def root(kind: str, beta: float, group: float, stable: bool = True) -> float:
        found = [x for x, holds in limits(kind, s.reference, beta, group) if holds == stable]
        return _probability(found[0]) if found else math.nan

    def recursion(group: float) -> list[float]:
        return [theory.recursion(float(x), p_ref, beta, group) for x in fine]

    at = s.betas.index(s.beta)
    series = {
        "curves": {kind: torch.sigmoid(paths[at]) for kind, paths in flows.items()},
        "targets": {
            kind: _probability(limits(kind, s.reference, s.beta, s.group)[0][0]) for kind in KINDS
        },
        "betas": s.betas,
        "ends": {kind: [_probability(x) for x in values] for kind, values in ends.items()},
        "sweep": sweep,
        "closed": {
            kind: {
                name: [root(kind, beta, group) for beta in sweep]
                for name, group in (("finite", s.group), ("infinite", math.inf))
            }
            for kind in KINDS
        },
        "repelling": [root(web, beta, math.inf, stable=False) for beta in sweep],
        "fold": [born, _probability(height)],
        "grid": grid,
        "smooth": SMOOTH,
        "field": {f"{beta:g}": _field(s, beta, grid, progress) for beta in (0.5, 2.0)},
        "fine": fine,
        "recursion": {"finite": recursion(size), "infinite": recursion(math.inf)},
        "cobweb": {"flow": small, "recursion": large},
        "cobweb_roots": [x for x, _ in limits(web, p_ref, beta, size)],
    }
    facts = [*_drift_facts(s), *_limit_facts(s, ends), *_root_facts()]
    return Result(series=series, facts=[*facts, *_cobweb_facts(s, small, large)], caption=CAPTION)


def _field(s: Settings, beta: float, grid: Tensor, progress: Progress) -> dict[str, object]:
    """The drift over β of "std, k2": enumerated and in closed form (also at G = ∞); its zeros."""
    kind, found = "std, k2", {}
    for name, group in (("finite", float(s.group)), ("infinite", math.inf)):
        zeros = limits(kind, s.reference, beta, group)
        found[name] = {
            "closed": theory.drift(kind, SMOOTH, s.reference, beta, group) / beta,
            "stable": [x for x, stable in zeros if stable],
            "repelling": [x for x, stable in zeros if not stable],
        }
    estimator, places = estimators(beta)[kind], progress(grid.tolist(), "drift")
    drifts = [measured_drift(estimator, x, s.reference, s.group) / beta for x in places]
    return {**found, "measured": drifts}


def _probability(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------- facts


def _drift_facts(s: Settings) -> Facts:
    """The expected gradient against its closed form, at nine policies."""
    facts, places = (
        Facts(f"{MROUEH}; {VOJNOVIC}", 22),
        torch.linspace(-6, 6, 9, dtype=torch.float64),
    )
    forms = (
        ("p(1−p)·(w_G(p) − β·log(odds/reference odds))", ""),
        ("p(1−p)·w_G(p) − β·(p − p_ref)", HERE),
        ("p(1−p)·((G−1)/G − β·log(odds/reference odds))", ""),
    )
    where = (
        f"(G = {s.group}, p_ref = {s.reference:g}, β = {s.beta:g}; largest relative difference at 9"
    )
    for kind, (form, source) in zip(KINDS, forms, strict=True):
        closed = theory.drift(kind, places, s.reference, s.beta, s.group)
        one = estimators(s.beta)[kind]
        drifts = [measured_drift(one, x, s.reference, s.group) for x in places.tolist()]
        off = (torch.tensor(drifts, dtype=torch.float64) - closed).abs() / closed.abs().clamp(min=1)
        claim = f"{kind} in the loss: E[ĝ] on the right answer's logit is {form} {where} policies)"
        facts.exact(claim, off.max(), 0.0, source=source)
    return facts


def _limit_facts(s: Settings, ends: Mapping[str, Sequence[float]]) -> Facts:
    """Where the flow stopped against the root of the equation."""
    facts, at = Facts(VOJNOVIC, 22), s.betas.index(s.beta)
    where = f"(G = {s.group}, p_ref = {s.reference:g}, β = {s.beta:g}: final p)"
    for kind, equation, source in (
        (KINDS[0], "logit p = logit p_ref + w_G(p)/β", f"{MROUEH}, at finite G"),
        (KINDS[1], "p − w_G(p)·p(1−p)/β = p_ref", f"{VOJNOVIC}, at finite G"),
        (KINDS[2], "exponential tilting, logit p = logit p_ref + (G−1)/(Gβ)", VOJNOVIC),
    ):
        roots = [limits(kind, s.reference, beta, s.group)[0][0] for beta in s.betas]
        end, expected = _probability(ends[kind][at]), _probability(roots[at])
        claim = f"{kind} in the loss: training ends where {equation} {where}"
        facts.exact(claim, end, expected, 7, source=source)
        gap = max(abs(x - root) for x, root in zip(ends[kind], roots, strict=True))
        claim = f"{kind} in the loss: the same at every β from {min(s.betas):g} to"
        claim = f"{claim} {max(s.betas):g} (largest difference in logit p)"
        facts.exact(claim, gap, 0.0, 7, source=source)
    return facts


def _root_facts() -> Facts:
    """None or two roots at G = ∞, one or three at finite G."""
    kind, p_ref, facts = "std, k2", 0.3, Facts(HERE, 22)
    none, two = (limits(kind, p_ref, beta, math.inf) for beta in (0.5, 2.0))
    where = "with the std at G = ∞ and k2 in the loss, p_ref = .3"
    facts.exact(f"{where}, β = .5: number of fixed points", len(none), 0, source=MROUEH)
    facts.exact(f"{where}, β = 2: number of fixed points", len(two), 2, source=MROUEH)
    claim = f"the lower of the two, p = {_probability(two[0][0]):.4f}, is stable"
    facts.exact(claim, two[0][1], True)
    facts.exact(
        f"the upper of the two, p = {_probability(two[1][0]):.4f}, repels", two[1][1], False
    )
    # each x is a fixed point of one β: the smallest of them
    x = torch.linspace(logit(p_ref) + 0.5, 12, 1_000_001, dtype=torch.float64)
    least = float((theory.weight(x, math.inf) / (x - logit(p_ref))).min())
    claim = f"{where}: the two are born at β = sinh(x/2), x − logit p_ref = 2 coth(x/2) (β)"
    facts.exact(claim, least, theory.fold(p_ref)[0])
    left = _probability(float(settle(estimators(0.5)[kind], p_ref, p_ref, 0.5, 8, 0.2, 150)[-1]))
    claim = "at finite G a fixed point always remains, because w_G ≤ √(G − 1): p_ref = .3, β = .5,"
    waits = _probability(limits(kind, p_ref, 0.5, 8)[-1][0])
    facts.exact(f"{claim} G = 8 ends at p where G = ∞ has none", left, waits, 7)
    many, large = limits(kind, p_ref, 2.0, 1024), estimators(2.0)[kind]
    claim = "p_ref = .3, β = 2, G = 1024: number of fixed points (the third lies beyond the"
    facts.exact(f"{claim} repelling one)", len(many), 3)
    repelling = many[1][0] if len(many) == 3 else math.nan
    below, above = (measured_drift(large, repelling + shift, p_ref, 1024) for shift in (-0.3, 0.3))
    claim = "there, just below the repelling point, E[ĝ] leads down (d logit p/dt, nats per unit of"
    facts.below(f"{claim} time)", below)
    facts.above("and just above it, up", above)
    return facts


def _cobweb_facts(s: Settings, flow: Tensor, steps: Tensor) -> Facts:
    """Mroueh's recursion is not the gradient flow: logit p along both."""
    p_ref, beta, group, kind = s.cobweb_reference, s.cobweb_beta, s.cobweb_group, "std, k2"
    where, facts = f"p_ref = {p_ref:g}, β = {beta:g}", Facts(MROUEH, 22)
    infinite, finite = (limits(kind, p_ref, beta, size) for size in (math.inf, group))
    formula = [logit(p_ref)]
    for _ in range(len(steps) - 1):
        formula.append(theory.recursion(formula[-1], p_ref, beta, group))
    pairs = zip(steps.tolist(), formula, strict=True)
    worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
    claim = f"the recursion is natural-gradient ascent with rate 1/β ({where}, G = {group}; largest"
    facts.exact(f"{claim} relative difference in logit p)", worst, 0.0, source=HERE)
    claim = "one step of it is where the frozen objective E_old[ρA] − β·KL(π‖ref) is stationary"
    left = theory.gradient_after_step(0.3, 2.0, 8)
    facts.exact(f"{claim} (p_ref = .3, β = 2, G = 8; gradient left)", left, 0.0)
    claim = f"the flow from p_ref converges to the lowest fixed point ({where}, G = {group}:"
    end, near = _probability(float(flow[-1])), _probability(finite[0][0])
    facts.exact(f"{claim} final p)", end, near, 6, source=HERE)
    if (p_ref, beta) != (0.001, 0.7):  # whether the recursion leaves depends on both
        return facts
    far = logit(p_ref)
    for _ in range(3):  # cosh overflows further out than 700
        far = min(theory.recursion(far, p_ref, beta, math.inf), 700.0)
    claim = f"at G = ∞ ({where}) the recursion escapes to 1: p after 3 steps"
    facts.exact(claim, _probability(far), 1.0)
    # of the recursion in logit p at its fixed point: d/dx of (2/β) cosh(x/2)
    slope, p = math.sinh(infinite[0][0] / 2) / beta, _probability(infinite[0][0])
    claim = f"although its fixed point p = {p:.4f} is stable for the flow: slope of the recursion"
    facts.below(f"{claim} there, below −1", slope, -1.0, source=HERE)
    ends, root = (math.log10(1 / (1 + math.exp(x))) for x in (float(steps[-1]), finite[-1][0]))
    claim = f"at finite G it ends beside 1 ({where}, G = {group}: log10 of 1 − p, against the"
    facts.exact(f"{claim} highest fixed point)", ends, root, 6)
    return facts


# ---------------------------------------------------------------- the figure

STYLES = {
    kind: figures.style_of(rung)
    for kind, rung in zip(KINDS, ("group_std", "grpo", "group_mean"), strict=True)
}
NAMES = {
    "std, k2": "std, k2: KL(π‖ref)",
    "std, k3": "std, k3: KL(ref‖π)",
    "no std, k2": "no std, k2",
}
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
NEAR_ONE = (1 - 1e-5, 1 - 1e-7)


def plot(result: Result) -> Figure:
    """Three limits; the limits against β; the drift that has no zero; the recursion that leaves."""
    figure, (curves, sweep, field, web) = figures.new_figure(2, 2, width=13.2, height=9.4)
    _plot_curves(curves, result)
    _plot_sweep(sweep, result)
    _plot_field(field, result)
    _plot_web(web, result)
    return figure


def _plot_curves(ax: Axes, result: Result) -> None:
    for kind in KINDS:
        curve, look = result.array("curves", kind)[:41], {**STYLES[kind], "linestyle": "-"}
        figures.band(ax, np.arange(len(curve)), curve, label=NAMES[kind], **look)
        figures.expectation(ax, float(result.array("targets", kind)))
    beta, group, start = (result.settings[name] for name in ("beta", "group", "reference"))
    figures.expectation(ax, start)
    figures.note(ax, "reference", (40, start + 0.015), ha="right")
    ax.set_ylim(0.2, 1.02)
    y = f"success probability p (β = {beta:g}, G = {group})"
    figures.describe(ax, "One replaced part, another limit", "updates (natural gradient, exact)", y)
    figures.label_ends(ax)


def _plot_sweep(ax: Axes, result: Result) -> None:
    x, colour = result.array("sweep"), STYLES["std, k2"]["color"]
    for kind in KINDS:
        look: dict[str, Any] = {"color": STYLES[kind]["color"], "markersize": 6}
        ax.plot(result.array("betas"), result.array("ends", kind), "o", **look)
        figures.expectation(ax, result.array("closed", kind, "finite"), x)
    line: dict[str, Any] = {"color": colour, "linewidth": 1.6, "label": "_"}
    figures.band(ax, x, result.array("closed", "std, k2", "infinite"), linestyle="-", **line)
    figures.band(ax, x, result.array("repelling"), linestyle=":", **line)
    at, height = result.array("fold")
    ax.plot(at, height, "D", color=colour, markersize=6)
    text = f"std, k2 at G = ∞: no limit\nbelow β = {at:.2f}, above it one\nthat holds (line) and"
    text, joined = f"{text} one\nthat repels (dotted)", {"arrowstyle": "-", "color": colour}
    ax.annotate(text, (at, height), (2.4, 0.70), color=figures.readable(colour), arrowprops=joined)
    figures.log_axis(ax, "x", [0.5, 1, 2, 4, 8])
    ax.set_ylim(0.28, 1.02)
    y = f"limit of the success probability p (dots: G = {result.settings['group']})"
    figures.describe(ax, "Where each ends, and the equations (dashed)", "β", y)


def _plot_field(ax: Axes, result: Result) -> None:
    grid, smooth, of = result.array("grid"), result.array("smooth"), result.array
    for beta, colour in (("0.5", "#7a1f5c"), ("2", "#c25fa0")):
        ax.plot(grid, of("field", beta, "measured"), "o", color=colour, markersize=4.5)
        for size, dashes in (("finite", (0, (4, 2))), ("infinite", "-")):
            name = f"β = {beta}, G = {'∞' if size == 'infinite' else result.settings['group']}"
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.8}
            figures.band(ax, smooth, of("field", beta, size, "closed"), label=name, **look)
            for kind, fill in (("stable", colour), ("repelling", "white")):
                zeros = of("field", beta, size, kind)
                zeros = zeros[zeros < 8]
                dot: dict[str, Any] = {"markersize": 9, "markeredgewidth": 1.8, "zorder": 4}
                ax.plot(zeros, 0 * zeros, "o", color=colour, markerfacecolor=fill, **dot)
    ax.axhline(0, color=figures.INK, linewidth=1)
    ax.set_ylim(-6, 9)
    _probability_axis(ax, (-4, 8), TICKS)
    title = "std, k2: at G = ∞ it may never stop (● holds, ○ repels)"
    figures.describe(ax, title, "success probability p (logit scale)", "drift of logit p, over β")
    ax.legend(loc="lower left", frameon=False, fontsize=10)


def _probability_axis(
    ax: Axes, span: tuple[float, float], x: Sequence[float], y: Sequence[float] = ()
) -> None:
    """Name places on logit axes by their probabilities; `span` limits the first axis."""
    names = {
        p: f"{p:g}" if p <= 0.999 else f"1−10$^{{{round(math.log10(1 - p))}}}$" for p in (*x, *y)
    }
    shown = [p for p in x if span[0] <= logit(p) <= span[1]]
    ax.set_xlim(*span)
    ax.set_xticks([logit(p) for p in shown], [names[p] for p in shown])
    if y:
        ax.set_yticks([logit(p) for p in y], [names[p] for p in y])


def _plot_web(ax: Axes, result: Result) -> None:
    fine, infinite = result.array("fine"), result.array("recursion", "infinite")
    path, flow = result.array("cobweb", "recursion"), result.array("cobweb", "flow")
    colour, low = STYLES["std, k2"]["color"], infinite < 19
    figures.expectation(ax, fine, fine)
    ax.plot(fine, result.array("recursion", "finite"), color=colour, linewidth=2)
    ax.plot(fine[low], infinite[low], color=colour, linewidth=1.2, linestyle=":")
    corners = np.repeat(path, 2)  # from the diagonal up, then across
    across = np.concatenate([corners[:1], corners[2:]])
    ax.plot(corners[:-1], across, color="#0057a3", linewidth=1.8)
    ax.plot(flow, flow, "o-", color="#00875f", markersize=5, linewidth=1)
    roots = result.array("cobweb_roots")
    ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.5}
    ax.plot(roots, roots, "o", color=figures.INK, markersize=8, **ring)
    for text, place, ink, va in (
        ("the recursion (step 1/β)\nleaves at once", (0.11, 0.80), "#0057a3", "top"),
        ("the flow (small steps) stays at the first", (0.10, 0.05), "#00875f", "center"),
        ("logit p_ref + w(old p)/β\n(dotted: G = ∞)\n○  its fixed points", (0.56, 0.42), colour,
         "center"),
    ):  # fmt: skip
        ax.text(*place, text, transform=ax.transAxes, color=figures.readable(ink), va=va)
    ax.set_ylim(-8, 19)
    _probability_axis(ax, (-8, 19), TICKS[::2] + NEAR_ONE, TICKS + NEAR_ONE)
    title = f"The recursion is not the flow (G = {result.settings['cobweb_group']})"
    figures.describe(ax, title, "old p (logit scale)", "next p")
