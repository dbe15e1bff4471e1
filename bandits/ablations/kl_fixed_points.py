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

import torch
from torch import Tensor

from bandits.theory import kl_fixed_points as theory
from bandits.theory.kl_fixed_points import HERE, KINDS, MROUEH, limits, lowest, probability
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "where GRPO's success probability settles: k2 or k3, with the std or not, or nowhere"
EXPECTED_SECONDS = 26.0


@dataclass(frozen=True)
class Settings(theory.Prompt):
    """What is run: the sweep on one prompt, and the recursion on another."""

    beta: float = 0.5  # coefficient of the curves, one of `betas`
    cobweb_group: int = 256  # samples per prompt where the recursion is compared with the flow
    cobweb_reference: float = 0.001  # success probability of the reference there
    cobweb_beta: float = 0.7  # KL coefficient there
    seed: int = 0  # unused: nothing is sampled

    def __post_init__(self) -> None:
        super().__post_init__()
        self.listed("cobweb_group")
        self.inside("cobweb_reference")
        drawn = self.beta in self.betas
        require(drawn, "beta, betas", f"{self.beta} and {self.betas}", "one of the betas as beta")
        require(self.cobweb_beta > 0, "cobweb_beta", self.cobweb_beta, "a number > 0")


SETTINGS = Settings()
STD_K2 = KINDS[0]
CAPTION = "Exact: every group is enumerated. Dashed: roots of the closed-form equations."


def run(settings: Settings, progress: Progress) -> Result:
    """Flows for every β and estimator, drifts on a grid, the recursion against the flow."""
    s, at = settings, settings.betas.index(settings.beta)
    flows = theory.flows(s, progress)
    grid, smooth = (torch.linspace(-4, 8, count, dtype=torch.float64) for count in (25, 241))
    # the recursion and the flow from one start: natural gradient with a small step and with 1/β
    p_ref, beta, size = s.cobweb_reference, s.cobweb_beta, s.cobweb_group
    std_k2 = theory.estimators(beta)[STD_K2]
    small = theory.settle(std_k2, p_ref, p_ref, beta, size, s.step, s.steps // 2)
    large = theory.settle(std_k2, p_ref, p_ref, beta, size, 1.0, 4)
    fine = torch.linspace(-8, 20, 141, dtype=torch.float64)
    series = {
        "curves": {kind: torch.sigmoid(paths[at]) for kind, paths in flows.items()},
        "targets": {k: probability(lowest(k, s.reference, s.beta, s.group)) for k in KINDS},
        "betas": s.betas,
        "ends": {k: [probability(float(path[-1])) for path in of] for k, of in flows.items()},
        **theory.limit_curves(s),
        "grid": grid,
        "smooth": smooth,
        "field": {f"{b:g}": theory.drift_field(s, b, grid, smooth, progress) for b in (0.5, 2.0)},
        "fine": fine,
        "recursion": theory.recursion_map(fine, p_ref, beta, size),
        "cobweb": {"flow": small, "recursion": large},
        "cobweb_roots": [x for x, _ in limits(STD_K2, p_ref, beta, size)],
    }
    facts = [*_equation_facts(s, flows), *_root_facts(), *_cobweb_facts(s, small, large)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _equation_facts(s: Settings, flows: Mapping[str, Sequence[Tensor]]) -> Facts:
    """The expected gradient at nine policies, and where the flow stopped, against the equations."""
    facts, places = Facts(HERE, 22), torch.linspace(-6, 6, 9, dtype=torch.float64)
    at = f"(G = {s.group}, p_ref = {s.reference:g}, β = {s.beta:g})"
    for kind, ((gradient, who), (equation, source)) in zip(KINDS, theory.FORMS, strict=True):
        gap = theory.drift_gap(kind, s.reference, s.beta, s.group, places)
        claim = f"{kind} in the loss: E[ĝ] on the right answer's logit is {gradient} {at}"
        facts.exact(claim, gap, 0.0, source=who)
        roots = [lowest(kind, s.reference, beta, s.group) for beta in s.betas]
        ends = [float(path[-1]) for path in flows[kind]]
        gap = max(abs(end - root) for end, root in zip(ends, roots, strict=True))
        claim = f"{kind} in the loss: at every β training ends where {equation} (gap in logit p)"
        facts.exact(claim, gap, 0.0, 7, source=source)
    return facts


def _root_facts() -> Facts:
    """None or two roots at G = ∞, one or three at finite G."""
    p_ref, facts = 0.3, Facts(HERE, 22)
    for beta, group, expected in (
        (0.5, math.inf, "none"),
        (2.0, math.inf, "stable, repelling"),
        (0.5, 8, "stable"),
        (2.0, 1024, "stable, repelling, stable"),
    ):
        found = theory.stabilities(p_ref, beta, group)
        size, source = ("∞", MROUEH) if group == math.inf else (f"{group:g}", HERE)
        claim = f"std, k2, p_ref = .3, β = {beta:g}, G = {size}: the fixed points, from the lowest"
        facts.exact(claim, found, expected, source=source)
    claim = "at G = ∞ the two meet at β = sinh(x/2), x − logit p_ref = 2 coth(x/2) (smallest β)"
    facts.exact(claim, theory.smallest_beta(p_ref), theory.fold(p_ref)[0])
    repelling = lowest(STD_K2, p_ref, 2.0, 1024, stable=False)
    below, above = theory.beside_root(repelling, p_ref, 2.0, 1024)
    facts.below("just below that repelling point (G = 1024) E[ĝ] leads down (d logit p/dt)", below)
    facts.above("and just above it, up", above)
    return facts


def _cobweb_facts(s: Settings, flow: Tensor, steps: Tensor) -> Facts:
    """Mroueh's recursion is not the gradient flow: logit p along both."""
    p_ref, beta, group = s.cobweb_reference, s.cobweb_beta, s.cobweb_group
    where, facts = f"p_ref = {p_ref:g}, β = {beta:g}", Facts(MROUEH, 22)
    claim = f"the recursion is natural-gradient ascent with rate 1/β ({where}, G = {group})"
    facts.exact(claim, theory.recursion_gap(steps, p_ref, beta, group), 0.0, source=HERE)
    claim = "after one step of it E_old[ρA] − β·KL(π‖ref) is stationary (gradient left; G = 8)"
    facts.exact(claim, theory.gradient_after_step(0.3, 2.0, 8), 0.0)
    claim = f"the flow from p_ref ends at the lowest fixed point (p; {where}, G = {group})"
    end, near = (probability(x) for x in (float(flow[-1]), lowest(STD_K2, p_ref, beta, group)))
    facts.exact(claim, end, near, 6, source=HERE)
    if (p_ref, beta) != (0.001, 0.7):  # whether the recursion leaves depends on both
        return facts
    far = probability(theory.recursion_path(p_ref, beta, math.inf, 3)[-1])
    facts.exact(f"at G = ∞ ({where}) the recursion escapes to 1: p after 3 steps", far, 1.0)
    x = lowest(STD_K2, p_ref, beta, math.inf)
    claim = f"although the flow settles at p = {probability(x):.4f}: the recursion's slope there"
    facts.below(claim, theory.recursion_slope(x, beta), -1.0, source=HERE)
    highest = limits(STD_K2, p_ref, beta, group)[-1][0]
    end, root = (math.log10(probability(-x)) for x in (float(steps[-1]), highest))
    claim = f"at G = {group} it ends at the highest fixed point, beside 1 (log10 of 1 − p)"
    facts.exact(claim, end, root, 6)
    return facts


# ---------------------------------------------------------------- the figure

RUNGS = "group_std", "grpo", "group_mean"  # with a KL penalty of their own; the styles are theirs
STYLES = {kind: figures.style_of(rung) for kind, rung in zip(KINDS, RUNGS, strict=True)}
PURPLE = STYLES[STD_K2]["color"]
NAMES = dict(zip(KINDS, ("std, k2: KL(π‖ref)", "std, k3: KL(ref‖π)", "no std, k2"), strict=True))
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-7)


def plot(result: Result) -> Figure:
    """Three limits; the limits against β; the drift that has no zero; the recursion that leaves."""
    figure, (curves, sweep, field, web) = figures.new_figure(2, 2, width=13.2, height=9.4)
    beta, group, start = (result.settings[name] for name in ("beta", "group", "reference"))
    x, solid = result.array("sweep"), dict[str, Any](linestyle=figures.SOLID)
    for kind in KINDS:
        path, colour = result.array("curves", kind)[:41], STYLES[kind]["color"]
        figures.band(curves, range(len(path)), path, label=NAMES[kind], color=colour, **solid)
        figures.expectation(curves, float(result.array("targets", kind)))
        sweep.plot(result.array("betas"), result.array("ends", kind), "o", color=colour)
        figures.expectation(sweep, result.array("closed", kind, "finite"), x)
    figures.expectation(curves, start)
    figures.note(curves, "reference", (40, start + 0.015), ha="right")
    title, time = "One replaced part, another limit", "updates (natural gradient, exact)"
    y = f"success probability p (β = {beta:g}, G = {group})"
    figures.describe(curves, title, time, y, ylim=(0.2, 1.02), ends=True)
    line: dict[str, Any] = {"color": PURPLE, "linewidth": 1.6, "label": "_"}
    figures.band(sweep, x, result.array("closed", STD_K2, "infinite"), **solid, **line)
    figures.band(sweep, x, result.array("repelling"), linestyle=":", **line)
    at, height = result.array("fold")
    sweep.plot(at, height, "D", color=PURPLE)
    text = f"std, k2 at G = ∞: no limit\nbelow β = {at:.2f}, above it one\nthat holds (line) and"
    text = f"{text} one\nthat repels (dotted)"
    figures.note(sweep, text, (at, height), (95, -50), line=True, color=PURPLE)
    figures.log_axis(sweep, "x", [0.5, 1, 2, 4, 8])
    title, y = "Where each ends, and the equations (dashed)", "limit of the success probability p"
    figures.describe(sweep, title, "β", f"{y} (dots: G = {group})", ylim=(0.28, 1.02))
    _plot_field(field, result)
    _plot_web(web, result)
    return figure


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
                ax.plot(zeros, 0 * zeros, "o", color=colour, mfc=fill, ms=9, mew=1.8, zorder=4)
    ax.axhline(0, color=figures.INK, linewidth=1)
    _probability_axis(ax, "x", TICKS[2:7])
    title = "std, k2: at G = ∞ it may never stop (● holds, ○ repels)"
    x, y = "success probability p (logit scale)", "drift of logit p, over β"
    figures.describe(ax, title, x, y, xlim=(-4, 8), ylim=(-6, 9), legend="lower left")


def _probability_axis(ax: Axes, which: str, places: Sequence[float]) -> None:
    """Name these places on an axis of logits by their probabilities."""
    names = [f"{p:g}" if p <= 0.999 else f"1−10$^{{{round(math.log10(1 - p))}}}$" for p in places]
    ticks = ax.set_xticks if which == "x" else ax.set_yticks
    ticks([theory.logit(p) for p in places], names)


def _plot_web(ax: Axes, result: Result) -> None:
    fine, infinite = result.array("fine"), result.array("recursion", "infinite")
    path, flow = result.array("cobweb", "recursion"), result.array("cobweb", "flow")
    roots, shown = result.array("cobweb_roots"), infinite < 19
    figures.expectation(ax, fine, fine)
    ax.plot(fine, result.array("recursion", "finite"), color=PURPLE, linewidth=2)
    ax.plot(fine[shown], infinite[shown], color=PURPLE, linewidth=1.2, linestyle=":")
    ax.plot(*theory.staircase(torch.from_numpy(path)), color="#0057a3", linewidth=1.8)
    ax.plot(flow, flow, "o-", color="#00875f", markersize=5, linewidth=1)
    figures.expectation(ax, roots, roots, marker="o")
    formula = "logit p_ref + w(old p)/β\n(dotted: G = ∞)\n○  its fixed points"
    leaves = "the recursion (step 1/β)\nleaves at once"
    stays = "the flow (small steps) stays at the first"
    inside: dict[str, Any] = {"xycoords": "axes fraction"}
    figures.note(ax, formula, (0.56, 0.36), color=PURPLE, **inside)
    figures.note(ax, leaves, (0.11, 0.73), color="#0057a3", **inside)
    figures.note(ax, stays, (0.10, 0.04), color="#00875f", **inside)
    _probability_axis(ax, "x", TICKS[:6:2] + TICKS[6:])
    _probability_axis(ax, "y", TICKS)
    title, span = f"The recursion is not the flow (G = {result.settings['cobweb_group']})", (-8, 19)
    figures.describe(ax, title, "old p (logit scale)", "next p", xlim=span, ylim=span)
