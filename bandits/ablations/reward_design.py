"""A tiny bonus that GRPO still sees: the std decides which starting points reach the target.

A Gaussian policy N(θ, 1) looks for the target 0. The reward is (1−α)·1[|x| ≤ ½] + α·exp(−(x−δ)²/2):
a window that pays 1, and a bonus around δ that pays a thousandth. Left, with the group's std: the
bonus more than doubles the starting points from which the target is reached, and a bonus too far
from the target keeps what it attracted. Right, the same with other eps and without the std:
dividing by the std makes a bonus of any height α push as hard as the target does, down to where the
rewards' spread meets eps. Without the std the policy neither profits nor is caught: it sees the
bonus at its true size.

After M. Lelarge's notebook Gauss_GRPO (dataflowr), which sweeps α and δ with the std and eps = 1e-8
and draws the landscape; here policies are trained from every starting point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory.reward_design import (
    WINDOW,
    Search,
    chance_of_a_hit,
    drift,
    label,
    reached,
    train,
    true_gradient,
    variants,
    width,
    written,
)
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.statistics import mean_error, share_error, share_interval
from course.lab.sweep import choose, edges
from course.lab.terminal import Progress
from course.parts import GroupStd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "a reward of 0.001 doubles the basin of attraction, or becomes a trap: only because GRPO"
    " divides by the std"
)
EXPECTED_SECONDS = 25.0
SOURCE = "Lelarge (dataflowr, notebook Gauss_GRPO)"
LEFT_OUT = "this course: the ablation that Lelarge leaves out"
DERIVED = "this course: derived"
QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)  # of the runs' ends: band and line
CAPTION = (
    "A Gaussian policy in search of the window |x| ≤ ½. Left: with the std (eps 1e-8), as"
    " published. Right: other eps, and no std. Each at its best learning rate for the plain window,"
    " chosen on other runs; bands above are 95 % intervals, below from the 10 % to the 90 %"
    " quantile."
)


@dataclass(frozen=True)
class Settings(Search):
    """What is run. The first design is the plain window, with which learning rates are chosen."""

    # which estimators; those that divide by the group's std run once per eps
    rungs: tuple[str, ...] = ("group_std", "group_mean")
    # what is added to the std; the first is the notebook's
    eps: tuple[float, ...] = (1e-8, 1e-4, 0.0)
    alphas: tuple[float, ...] = (0.0, 0.001, 0.01)  # height of the bonus, with the first δ
    deltas: tuple[float, ...] = (2.0, 3.0, 4.0)  # place of the bonus, with the second α
    # each estimator's own is chosen with α = 0, on other runs
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    drift_groups: int = 20_000  # groups for each expected gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "drift_groups")
        self.rising("learning_rates")
        require(min(self.eps) >= 0, "eps", self.eps, "numbers ≥ 0")
        further = len(self.alphas) > 1 and self.alphas[0] == 0
        require(further, "alphas", self.alphas, "0 and at least one more")
        within = all(0 <= alpha < 1 for alpha in self.alphas)
        require(within, "alphas", self.alphas, "numbers from 0 to below 1")

    @property
    def designs(self) -> list[tuple[float, float]]:
        """The rewards (α, δ): the sweep of α at the first δ, then the further δ at the second α."""
        first, further = self.deltas[0], self.deltas[1:]
        return [*((a, first) for a in self.alphas), *((self.alphas[1], d) for d in further)]


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Choose each estimator's learning rate on the plain window; then every design from every
    starting point.
    """
    s, ends, choices = settings, {}, {}
    every = variants(s.rungs, s.eps)
    for name, estimator in progress(every.items(), "estimators", total=len(every)):
        plain = train(estimator, s, s.designs[:1], s.learning_rates, s.seed + 1, progress)[0]
        choices[name] = choose(reached(plain).double().flatten(1), s.learning_rates)
        rate = [choices[name].rate]
        ends[name] = train(estimator, s, s.designs, rate, s.seed, progress)[:, 0]
    series = {
        "designs": s.designs,
        "starts": s.starts,
        "rates": {name: choice.rate for name, choice in choices.items()},
        "share": {name: reached(final).double().mean(-1) for name, final in ends.items()},
        "ends": {name: final.quantile(QUANTILES, -1).movedim(0, 1) for name, final in ends.items()},
        "chance_of_a_hit": chance_of_a_hit(s.starts, s.steps * s.group),
    }
    caption = f"{CAPTION} {edges(choices, s.learning_rates)}".strip()
    return Result(series=series, facts=_facts(s, ends), caption=caption)


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    same = {name: getattr(SETTINGS, name) for name in ("rungs", "runs", "seed", "drift_groups")}
    facts = _of_the_gradient(settings)
    if dataclasses.replace(settings, **same) == SETTINGS:
        # what was seen from these starting points, with these learning rates to choose from
        facts += _of_the_basin(settings, ends) + _of_the_trap(settings, ends)
    return facts


def _of_the_gradient(s: Settings) -> Facts:
    """What holds whatever the budget: of closed forms, and of expected gradients."""
    std, mean_only = (ladder.get(name).estimator for name in ("group_std", "group_mean"))
    bare, published = (replace(std, scale=GroupStd(eps=eps)) for eps in (0.0, 1e-8))
    seed, facts = s.seed + 2, Facts(DERIVED, 16, runs=s.drift_groups)

    def push(
        estimator: Estimator, delta: float, places: Sequence[float], group: int = 10
    ) -> list[tuple[float, float]]:
        samples = drift(estimator, (0.001, delta), places, group, s.drift_groups, seed)
        return list(zip(*mean_error(samples), strict=True))

    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    for delta in (2.0, 3.0, 4.0):
        slope = true_gradient(grid, 0.001, delta)
        summits = int(((slope[:-1] > 0) & (slope[1:] <= 0)).sum())
        claim = "The mean reward itself has one maximum on [−10, 10] (bonus .001 at δ ="
        facts.exact(f"{claim} {delta:g}): no trap", summits, 1)
    expected = float(0.9 * true_gradient(torch.tensor(-1.0), 0.001, 2.0))
    claim = "Without the std E[ĝ] is (G−1)/G times the true gradient (G = 10, θ = −1, δ = 2)"
    facts.simulated(claim, push(mean_only, 2.0, [-1.0])[0], expected)
    low, high = (drift(bare, (alpha, 2.0), [-10.0], 10, 1000, seed) for alpha in (0.001, 0.01))
    claim = "With eps = 0 the same samples give one gradient for α = .001 and .01 (θ = −10)"
    facts.exact(claim, (low - high).abs().max(), 0.0)
    claim = "With eps = 0 and G = 2 even a bonus of 10⁻³⁵ pushes with 1/√π (θ = −10)"
    facts.simulated(claim, push(bare, 2.0, [-10.0], 2)[0], 1 / math.sqrt(math.pi))
    claim = "With the std and δ = 2 E[ĝ] points to the target from every θ = 1 … 6 (the largest)"
    places = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    facts.below(claim, max(push(published, 2.0, places)), source=SOURCE)
    for delta in (3.0, 4.0):
        below, above = push(published, delta, [delta - 0.5, delta + 0.5])
        claim = f"With the std and δ = {delta:g} E[ĝ] points up to the bonus from θ = {delta - 0.5}"
        facts.above(claim, below, source=SOURCE)
        claim = f"and down to it from θ = {delta + 0.5}: a second stable point (δ = {delta:g})"
        facts.below(claim, above, source=SOURCE)
    return facts


def _of_the_basin(s: Settings, ends: Mapping[str, Tensor]) -> Facts:
    """Sweep 1: how wide the basin is, with α and without."""
    facts, names = (
        Facts(LEFT_OUT, 16, runs=s.runs),
        [label("group_std", eps) for eps in (1e-8, 1e-4, 0.0)],
    )
    if not {*names, "group_mean"} <= ends.keys():
        return facts
    widths = {name: [width(final) for final in finals[:2]] for name, finals in ends.items()}
    (plain, plain_error), (bonus, bonus_error) = widths[names[0]]
    (bare, bare_error), (bare_bonus, bare_bonus_error) = widths["group_mean"]
    (narrow, narrow_error), gain = widths[names[1]][1], bonus - plain
    wider = bonus / plain * math.hypot(plain_error / plain, bonus_error / bonus)
    claim = "With the std (eps = 1e-8) a bonus of .001 at δ = 2 widens the basin by more than half"
    facts.above(f"{claim} (ratio of widths)", (bonus / plain, wider), 1.5, source=SOURCE)
    claim = (
        "With eps = 1e-4 that bonus leaves the basin narrower than with 1e-8 (width in std of π)"
    )
    facts.below(claim, (narrow, math.hypot(narrow_error, bonus_error)), bonus)
    claim = "Without the std it gains less than a tenth of that width (gain over gain with the std)"
    apart = math.hypot(bare_error, bare_bonus_error)
    facts.below(claim, ((bare_bonus - bare) / gain, apart / gain), 0.1)
    for eps, start, most, source in (
        (1e-8, -5.0, True, SOURCE),
        (1e-4, -5.0, False, LEFT_OUT),
        (0.0, -10.0, True, LEFT_OUT),
    ):
        hits = reached(ends[label("group_std", eps)][1][s.starts.tolist().index(start)])
        claim = f"with a bonus of .001 and eps = {written(eps)}, θ = {start:g} leads to the target"
        _share_of_runs(facts, claim, hits, most, source)
    return facts


def _of_the_trap(s: Settings, ends: Mapping[str, Tensor]) -> Facts:
    """Sweep 2: where policies end that start between the target and a bonus at δ = 4."""
    place, start = s.designs.index((0.001, 4.0)), s.starts.tolist().index(3.0)
    final, facts = (
        {name: finals[place][start] for name, finals in ends.items()},
        Facts(LEFT_OUT, 16, runs=s.runs),
    )
    for eps, source in ((1e-8, SOURCE), (1e-4, LEFT_OUT)):
        if (name := label("group_std", eps)) in final:
            claim = (
                f"with the std (eps = {written(eps)}), θ = 3 leads to a bonus at δ = 4 and stays"
            )
            _share_of_runs(facts, claim, (final[name] - 4.0).abs() <= WINDOW, True, source)
    if "group_mean" in final:
        claim = "without the std, θ = 3 leads past a bonus at δ = 4 to the target"
        _share_of_runs(facts, claim, reached(final["group_mean"]), True, LEFT_OUT)
    return facts


def _share_of_runs(facts: Facts, claim: str, hits: Tensor, most: bool, source: str) -> None:
    """Add the fact that more than half of the runs hit, or fewer."""
    add, how = (facts.above, "Most") if most else (facts.below, "Few")
    share = share_error(int(hits.sum()), hits.numel())
    add(f"{how} runs: {claim} (share)", share, 0.5, source=source)


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Who reaches the target, and where policies end: by the bonus, and by the estimator."""
    options: dict[str, Any] = {"width": 12.6, "height": 9.0, "sharex": True, "sharey": "row"}
    figure, (basin, basin_by, ends, ends_by) = figures.new_figure(2, 2, **options)
    alphas, deltas = result.settings["alphas"], result.settings["deltas"]
    names, starts = list(result.series["rates"]), result.array("starts")
    for place, (alpha, colour) in enumerate(figures.shaded(alphas)):
        look = {"label": f"bonus α = {alpha:g}", "color": colour, "linestyle": "-"}
        _share(basin, result, names[0], place, **look)
    for order, (delta, colour) in enumerate(figures.shaded(deltas)):
        place = 1 if order == 0 else len(alphas) + order - 1
        look = {"label": f"bonus at δ = {delta:g}", "color": colour, "linestyle": "-"}
        _end(ends, result, names[0], place, **look)
    for name in names:
        look = {"label": _short(name), **_style(name, names)}
        _share(basin_by, result, name, 1, **look)
        _end(ends_by, result, name, len(alphas) + len(deltas) - 2, **look)  # the farthest bonus
    for ax in (basin, basin_by):
        hit = result.array("chance_of_a_hit")
        figures.expectation(ax, hit, starts, "window ever sampled (θ fixed)")
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    for ax in (ends, ends_by):
        figures.expectation(ax, starts, starts)
        figures.note(ax, "not moved", (-7.4, -7.4), (10, -10), va="center")
    x, only = (
        "where θ starts; the target is 0",
        f"… but only through the std (α = {alphas[1]:g}, δ =",
    )
    top: dict[str, Any] = {"ylim": (-0.03, 1.42), "legend": "upper center", "ncols": 2}
    y, title = (
        "share of runs that reach the target",
        f"A bonus of {alphas[1]:g} opens the way to the target …",
    )
    figures.describe(basin, title, "", y, **top)
    figures.describe(basin_by, f"{only} {deltas[0]:g})", **top)
    bottom: dict[str, Any] = {"ylim": (float(starts[0]), float(starts[-1])), "ends": True}
    y, title = (
        "where the mean θ ends (median of runs)",
        f"Too far away it becomes a trap (α = {alphas[1]:g}) …",
    )
    figures.describe(ends, title, x, y, **bottom)
    figures.describe(ends_by, f"{only} {deltas[-1]:g})", x, **bottom)
    return figure


def _share(ax: Axes, result: Result, name: str, design: int, **look: Any) -> None:
    """The share of runs that reach the target, with Wilson's 95 % interval."""
    share, runs = result.array("share", name)[design], result.settings["runs"]
    bounds = np.array([share_interval(round(one * runs), runs) for one in share])
    line = figures.band(ax, result.array("starts"), share, None, name, **look)
    shade: dict[str, Any] = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
    ax.fill_between(result.array("starts"), *bounds.T, **shade)


def _end(ax: Axes, result: Result, name: str, design: int, **look: Any) -> None:
    starts, (low, middle, high) = result.array("starts"), result.array("ends", name)[design]
    line = figures.band(ax, starts, middle, None, name, **look)
    ax.fill_between(starts, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def _short(name: str) -> str:
    """«÷ (std + 1e-8)» for the rungs of the ladder; a name of your own as it is."""
    rung, _, eps = name.partition(", ")
    divided = f"÷ (std + {eps.removeprefix('eps = ')})"
    return {"group_std": divided, "group_mean": "no std"}.get(rung, name)


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """The rung's colour, and for its further eps another line."""
    rung = name.partition(", ")[0]
    style, same = figures.style_of(rung), [one for one in names if one.partition(", ")[0] == rung]
    lines = (style["linestyle"], figures.DASH, figures.DOT, figures.DASHDOT)
    return style | {"linestyle": lines[same.index(name) % 4]}
