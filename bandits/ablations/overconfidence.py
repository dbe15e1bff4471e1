"""Forecasts of an uncertain event: dividing by the group std makes a policy overconfident.

An event happens with probability .7. The policy answers with a forecast 0, .1, …, 1 and earns 1 −
(q − y)², the Brier score, which is best on average at q = .7. All samples of a group are scored on
the same event. Without the std the policy settles at .7. With it, each group's rewards are scaled
to the same spread whether the event happened or not, so what counts is which forecast was nearer,
not by how much: the 30 % of events that should punish overconfidence are large, and are scaled
down. Between any two forecasts the majority wins, and the policy goes towards 1.

Look also at how it depends on the group: with more samples it takes longer, and in the limit of
infinitely many, started from all forecasts alike, it settles at .8, still overconfident.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.flow import follow
from bandits.theory import overconfidence as theory
from bandits.theory.overconfidence import Forecasting, Trained, train
from course import ladder
from course.errors import require
from course.exact import group_mean_factor
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import mean_error
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "forecasting an uncertain event: calibrated at .7 without the std, overconfident with it"
EXPECTED_SECONDS = 12.0


STRIDE = 5  # the exact flow takes one step where the runs take five, five times as long


@dataclass(frozen=True)
class Settings(Forecasting):
    """The event, the forecasts and the runs; which estimators and group sizes."""

    rungs: tuple[str, ...] = ("group_mean", "rloo", "group_std")  # which estimators
    group: int = 4  # samples per event, where one size is enough
    groups: tuple[int, ...] = (2, 4, 16, 64)  # samples per event, group_std alone

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "from 2 to 6: every group is listed at every step"
        require(2 <= self.group <= 6, "group", self.group, allowed)
        require(min(self.groups) >= 2, "groups", self.groups, "group sizes ≥ 2")
        whole = self.steps >= 10 and self.steps % STRIDE == 0
        require(whole, "steps", self.steps, f"a multiple of {STRIDE}, at least 10")


SETTINGS = Settings()
SOURCE = "Bereket & Leskovec 2025 (2508.11800)"
CAPTION = (
    "Training runs: mean over runs and 95 % interval. Dashed in the first panel: the flow along the"
    " exact expected gradient; in the second: infinitely many samples; in the last: the closed"
    " forms. A committed run stays where it is, so the runs lag behind the flow."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Exact flows and training runs for every rung; every group size; pairs of forecasts."""
    s, environment = settings, settings.event
    uniform = torch.full((s.forecasts,), 1 / s.forecasts, dtype=torch.float64).log()
    flows, count = {}, s.steps // STRIDE
    for name in s.rungs:
        drift = partial(theory.pull, ladder.get(name).estimator, environment, group=s.group)
        bar = partial(progress, text=f"{name}, exact")
        rate = STRIDE * s.learning_rate
        path = follow(drift, uniform, rate=rate, steps=count, progress=bar).exp()
        flows[name] = {"forecast": path @ environment.grid, "policy": path[-1]}
    std = ladder.get("group_std").estimator
    trained = {name: train(s, ladder.get(name).estimator, s.group, progress) for name in s.rungs}
    sizes = {group: train(s, std, group, progress) for group in s.groups}
    endless = partial(theory.limit_gradient, environment)
    limit = follow(endless, uniform, rate=s.learning_rate, steps=20 * s.steps).exp()
    # forecasts to compare with the calibrated one
    above = torch.linspace(s.p, 1, 7).tolist()[1:]
    pair = partial(theory.pair, p=s.p, share=0.5, group=s.group)
    by_score = partial(theory.pair_by_score, p=s.p, share=0.5, group=s.group)
    series: dict[str, Any] = {
        "grid": environment.grid,
        "flow_steps": torch.arange(count + 1) * STRIDE,
        "flow": flows,
        "runs": {name: one.series for name, one in trained.items()},
        "groups": {group: one.series for group, one in sizes.items()},
        "limit": {"forecast": limit[: s.steps + 1] @ environment.grid, "policy": limit[-1]},
        "pairs": {
            "q": above,
            "std": [pair(theory.STD, higher=q) for q in above],
            "mean": [pair(ladder.group_mean, higher=q) for q in above],
        },
        "pairs_expected": {
            "std": [theory.pair_by_majority(s.p, 0.5, s.group)] * len(above),
            "mean": [by_score(higher=q) for q in above],
        },
    }
    facts = [*_exact_facts(s, uniform), *_flow_facts(s, series), *_run_facts(s, trained, sizes)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _exact_facts(s: Settings, uniform: Tensor) -> Facts:
    """What holds to rounding error: no bias without the std, and the pairs."""
    p, group, environment, facts = s.p, s.group, s.event, Facts("this course", 15)
    pi, score = uniform.exp(), environment.mean[0]
    gradient = group_mean_factor(group) * pi * (score - pi @ score)
    off = (theory.pull(ladder.group_mean, environment, uniform, group) - gradient).abs().max()
    claim = "A shared event does not bias the group mean: E[ĝ] = (G−1)/G·∇J (largest difference,"
    facts.exact(f"{claim} uniform policy, G = {group})", off, 0.0)
    for share in (0.1, 0.5):
        where = f"(forecasts {p:g} and 1, the latter with probability {share:g}, G = {group})"
        claim = "With the std only the majority counts: the gradient on 1's logit is"
        found, form = theory.pair(theory.STD, p, 1.0, share, group), theory.pair_by_majority
        facts.exact(f"{claim} (2p−1) w_G(π) π(1−π) {where}", found, form(p, share, group))
        claim = "Without it that gradient is −(G−1)/G·π(1−π)(1−p)², towards the calibrated forecast"
        found = theory.pair(ladder.group_mean, p, 1.0, share, group)
        facts.exact(f"{claim} {where}", found, theory.pair_by_score(p, 1.0, share, group))
    return facts


def _flow_facts(s: Settings, series: dict[str, Any]) -> Facts:
    """Where the exact expected gradient leads."""
    grid, facts = series["grid"], Facts(SOURCE, 15)
    for name, words, expected in (
        ("group_mean", "without the std, the likeliest forecast becomes the calibrated", s.p),
        ("rloo", "of RLOO, the likeliest forecast becomes the calibrated", s.p),
        ("group_std", "with the std, the likeliest forecast becomes", 1.0),
    ):
        if name in s.rungs:
            end = grid[series["flow"][name]["policy"].argmax()]
            facts.exact(f"Following E[ĝ] {words} {expected:g} (G = {s.group})", end, expected)
    if s.p == 0.7 and s.forecasts == 11:
        claim = "With the std and infinitely many samples, from all forecasts alike, the likeliest"
        claim += f" after {20 * s.steps} exact updates is .8: not .7, not 1"
        end = grid[series["limit"]["policy"].argmax()]
        facts.exact(claim, end, 0.8, source="this course")
    return facts


def _run_facts(s: Settings, trained: dict[str, Trained], sizes: dict[int, Trained]) -> Facts:
    """Where the training runs end."""
    facts, how = Facts(SOURCE, 15, runs=s.runs), f"mean forecast after {s.steps} updates"
    for name in ("group_mean", "rloo"):
        if name in trained:
            claim = f"{name} ends within half a step of the grid of the calibrated {s.p:g} (G ="
            found = mean_error(trained[name].end)
            facts.published(f"{claim} {s.group}, {how})", found, s.p, s.step / 2)
    for group, one in sizes.items():
        claim = f"group_std ends more than a step of the grid above the calibrated {s.p:g} (G ="
        facts.above(f"{claim} {group}, {how})", mean_error(one.end), s.p + s.step)
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Mean forecast by rung and by group size; the final policies; two forecasts alone."""
    figure, (rungs, groups, policies, pairs) = figures.new_figure(2, 2, width=12.6, height=8.6)
    p, group, names = (result.settings[name] for name in ("p", "group", "rungs"))
    after = result.array("flow_steps")[1:]
    for name in names:
        steps = result.array("runs", name, "steps")
        figures.curve(rungs, steps, result, "runs", name, "forecast", name=name)
        figures.expectation(rungs, result.array("flow", name, "forecast")[1:], after)
    for size, colour in figures.shaded(list(result.series["groups"])):
        look = {"color": colour, "linestyle": "-", "label": f"G = {size}"}
        steps = result.array("groups", size, "steps")
        figures.curve(groups, steps, result, "groups", size, "forecast", **look)
    limit = result.array("limit", "forecast")
    figures.expectation(groups, limit[1:], range(1, len(limit)), label="G = ∞")
    for ax, title, y in (
        (rungs, f"Only the std is overconfident (G = {group})", "mean forecast"),
        (groups, "… at every group size", "mean forecast, group_std"),
    ):
        ax.axhline(p, color="#777777", linewidth=1.0, label="_calibrated")
        figures.note(ax, f"calibrated: {p:g}", (1.3, p), (0, 4))
        figures.log_axis(ax, "x")
        span: dict[str, Any] = {"xlim": (0.8, 1.1 * after[-1]), "ylim": (0.45, 1.02)}
        figures.describe(ax, title, "updates", y, **span, ends=True)
    grid = result.array("grid")
    width = 0.8 * (grid[1] - grid[0]) / len(names)
    for place, name in enumerate(names):
        x = grid + (place - (len(names) - 1) / 2) * width
        height, colour = result.array("runs", name, "policy"), figures.style_of(name)["color"]
        policies.bar(x, height, width, color=colour, label=name)
    figures.expectation(policies, x=p)
    policies.set_xticks(grid, [f"{q:.2g}" for q in grid])
    title = f"What is forecast after {result.settings['steps']} updates (G = {group})"
    y = "probability, mean over runs"
    figures.describe(policies, title, "forecast", y, legend="upper left")
    _plot_pairs(pairs, result)
    return figure


def _plot_pairs(ax: Axes, result: Result) -> None:
    q, p = result.array("pairs", "q"), result.settings["p"]
    for name, key, text, height in (
        ("group_std", "std", "with the std: the majority decides, always up", 0.145),
        ("group_mean", "mean", "mean alone: down, the more the further off", 0.016),
    ):
        colour = figures.style_of(name)["color"]
        ax.plot(q, result.array("pairs", key), "o", color=colour)
        figures.expectation(ax, result.array("pairs_expected", key), q)
        figures.note(ax, text, (q[0], height), color=colour, fontsize=11)
    ax.axhline(0, color="#777777", linewidth=1.0)
    title = f"Why: a forecast above {p:g} against {p:g} itself"
    y = "expected gradient on its logit"
    figures.describe(ax, title, "the higher forecast", y, ylim=(-0.05, 0.18))
