"""A tiny bonus that GRPO still sees: the std decides which starting points reach the target.

`bandits.theory.reward_design` explains the window, the bonus and the policy. Left, with the group's
std: a near bonus opens the way to the target, a far one is a trap. Right, the same with other eps
and without the std.

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
from numpy.typing import ArrayLike
from torch import Tensor

from bandits.theory import reward_design as theory
from bandits.theory.reward_design import Search, drift, label, reached
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.statistics import share_error, share_interval
from course.lab.sweep import choose, edges
from course.lab.terminal import Progress
from course.parts import GroupStd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "a reward of 0.001 doubles the basin of attraction, or is a trap: GRPO divides by the std"
EXPECTED_SECONDS = 25.0
SOURCE = "Lelarge (dataflowr, notebook Gauss_GRPO)"
LEFT_OUT = "this course: the ablation that Lelarge leaves out"
DERIVED = "this course: derived"
QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)  # of the runs' ends: band and line
CAPTION = (
    "Left: with the std (eps 1e-8), as published. Right: other eps, and no std. Each at its best"
    " learning rate for the plain window, chosen on other runs. Bands above are 95 % intervals,"
    " below from the 10 % to the 90 % quantile."
)


@dataclass(frozen=True)
class Settings(Search):
    """What is run. The learning rates are chosen with the first design, the plain window."""

    # which estimators; those that divide by the group's std run once per eps
    rungs: tuple[str, ...] = ("group_std", "group_mean")
    eps: tuple[float, ...] = (1e-8, 1e-4, 0.0)  # added to the std; the first is the notebook's
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)  # chosen on other runs, α = 0
    drift_groups: int = 20_000  # groups for each expected gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "drift_groups")
        self.rising("learning_rates")
        require(min(self.eps) >= 0, "eps", self.eps, "numbers ≥ 0")


SETTINGS = Settings()
Mean = tuple[float, float]  # with its standard error


def run(settings: Settings, progress: Progress) -> Result:
    """Choose each estimator's rate on the plain window; then every design from every start."""
    s, ends, choices = settings, {}, {}
    every = theory.variants(s.rungs, s.eps)
    for name, estimator in progress(every.items(), "estimators", total=len(every)):
        plain = theory.train(estimator, s, s.designs[:1], s.learning_rates, s.seed + 1, progress)[0]
        choices[name] = choose(reached(plain).double().flatten(1), s.learning_rates)
        rate = [choices[name].rate]
        ends[name] = theory.train(estimator, s, s.designs, rate, s.seed, progress)[:, 0]
    series = {
        "designs": s.designs,
        "starts": s.starts,
        "rates": {name: choice.rate for name, choice in choices.items()},
        "share": {name: reached(final).double().mean(-1) for name, final in ends.items()},
        "ends": {name: final.quantile(QUANTILES, -1).movedim(0, 1) for name, final in ends.items()},
        "chance_of_a_hit": theory.chance_of_a_hit(s.starts, s.steps * s.group),
    }
    caption = f"{CAPTION} {edges(choices, s.learning_rates)}".strip()
    return Result(series=series, facts=_facts(s, ends), caption=caption)


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    same = {name: getattr(SETTINGS, name) for name in ("rungs", "runs", "seed", "drift_groups")}
    facts, both = _of_the_gradient(settings), {*SETTINGS.rungs} <= {*settings.rungs}
    if both and dataclasses.replace(settings, **same) == SETTINGS:
        # what was seen from these starting points, with these learning rates to choose from
        facts += _of_the_ends(settings, ends)
    return facts


def _of_the_gradient(s: Settings) -> Facts:
    """What holds whatever the budget: of closed forms, and of expected gradients."""
    std, mean_only = (ladder.get(name).estimator for name in ("group_std", "group_mean"))
    bare, published = (replace(std, scale=GroupStd(eps=eps)) for eps in (0.0, 1e-8))
    groups, seed, facts = s.drift_groups, s.seed + 2, Facts(DERIVED, 16, runs=s.drift_groups)

    def at(*places: float, by: Estimator, delta: float = 2.0, group: int = 10) -> list[Mean]:
        return theory.push(by, (0.001, delta), places, group, groups, seed)

    summits = ", ".join(str(theory.summits(0.001, delta)) for delta in (2.0, 3.0, 4.0))
    claim = "How many maxima the mean reward has with a bonus of .001 at δ = 2, 3 and 4: no trap"
    facts.exact(claim, summits, "1, 1, 1")
    expected = 0.9 * theory.true_gradient(torch.tensor(-1.0), 0.001, 2.0)
    claim = "Without the std E[ĝ] is (G−1)/G times the true gradient (G = 10, θ = −1, δ = 2)"
    facts.simulated(claim, at(-1.0, by=mean_only)[0], expected)
    low, high = (drift(bare, (alpha, 2.0), [-10.0], 10, 1000, seed) for alpha in (0.001, 0.01))
    claim = "With eps = 0 the same samples give one gradient for α = .001 and .01 (θ = −10)"
    facts.exact(claim, (low - high).abs().max(), 0.0)
    claim = "With eps = 0 and G = 2 even a bonus of 10⁻³⁵ pushes with 1/√π (θ = −10)"
    facts.simulated(claim, at(-10.0, by=bare, group=2)[0], 1 / math.sqrt(math.pi))
    claim = "With the std and δ = 2 E[ĝ] points to the target from every θ = 1 … 6 (the largest)"
    found = at(1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, by=published)
    facts.below(claim, max(found), source=SOURCE)
    for delta in (3.0, 4.0):
        below, above = at(delta - 0.5, delta + 0.5, by=published, delta=delta)
        claim = f"With the std and δ = {delta:g} E[ĝ] points up to the bonus from θ = {delta - 0.5}"
        facts.above(claim, below, source=SOURCE)
        claim = f"and down to it from θ = {delta + 0.5}: a second stable point (δ = {delta:g})"
        facts.below(claim, above, source=SOURCE)
    return facts


def _of_the_ends(s: Settings, ends: Mapping[str, Tensor]) -> Facts:
    """How wide the basin is with the bonus and without, and whom a bonus at δ = 4 catches."""
    published, loose, bare = (label("group_std", eps) for eps in (1e-8, 1e-4, 0.0))
    facts, start = Facts(LEFT_OUT, 16, runs=s.runs), s.starts.tolist().index
    plain, bonus = ends[published][:2]
    claim = "With the std (eps = 1e-8) a bonus of .001 at δ = 2 widens the basin by more than half"
    ratio = theory.width_ratio(plain, bonus)
    facts.above(f"{claim} (ratio of widths)", ratio, 1.5, source=SOURCE)
    claim = "With eps = 1e-4 that bonus widens it less than with 1e-8 (difference, in std of π)"
    facts.below(claim, theory.width_gain(bonus, ends[loose][1]))
    claim = "Without the std it gains less than a tenth of that width (gain over gain with the std)"
    gained, error = theory.width_gain(*ends["group_mean"][:2])
    gain, _ = theory.width_gain(plain, bonus)
    facts.below(claim, (gained / gain, error / gain), 0.1)

    def runs(claim: str, hits: Tensor, most: bool = True, source: str = LEFT_OUT) -> None:
        add, how = (facts.above, "Most") if most else (facts.below, "Few")
        share = share_error(int(hits.sum()), hits.numel())
        add(f"{how} runs: {claim} (share)", share, 0.5, source=source)

    for name, place, most in ((published, -5.0, True), (loose, -5.0, False), (bare, -10.0, True)):
        claim = f"with a bonus of .001 and {name.partition(', ')[2]}, θ = {place:g} leads to the"
        source = SOURCE if name == published else LEFT_OUT
        runs(f"{claim} target", reached(ends[name][1][start(place)]), most, source)
    final = {name: of[s.designs.index((0.001, 4.0))][start(3.0)] for name, of in ends.items()}
    for name, source in ((published, SOURCE), (loose, LEFT_OUT)):
        caught = (final[name] - 4.0).abs() <= theory.WINDOW
        claim = f"with the std ({name.partition(', ')[2]}), θ = 3 leads to a bonus at δ = 4 and"
        runs(f"{claim} stays", caught, source=source)
    claim = "without the std, θ = 3 leads past a bonus at δ = 4 to the target"
    runs(claim, reached(final["group_mean"]))
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Who reaches the target, and where policies end: by the bonus, and by the estimator."""
    options: dict[str, Any] = {"width": 12.6, "height": 9.0, "sharex": True, "sharey": "row"}
    figure, (basin, basin_by, ends, ends_by) = figures.new_figure(2, 2, **options)
    alphas, deltas = result.settings["alphas"], result.settings["deltas"]
    starts, names = result.array("starts"), list(result.series["rates"])
    for place, (alpha, colour) in enumerate(figures.shaded(alphas)):
        look = {"label": f"bonus α = {alpha:g}", "color": colour, "linestyle": "-"}
        _share(basin, result, names[0], place, **look)
    places = [1, *range(len(alphas), len(alphas) + len(deltas) - 1)]  # of the designs with each δ
    for place, (delta, colour) in zip(places, figures.shaded(deltas), strict=True):
        look = {"label": f"bonus at δ = {delta:g}", "color": colour, "linestyle": "-"}
        _curve(ends, result, names[0], result.array("ends", names[0])[place], **look)
    for name in names:
        look = {"label": _short(name), **_style(name, names)}
        _share(basin_by, result, name, 1, **look)
        _curve(ends_by, result, name, result.array("ends", name)[-1], **look)
    hit = result.array("chance_of_a_hit")
    for ax in (basin, basin_by):
        figures.expectation(ax, hit, starts, "window ever sampled (θ fixed)")
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    for ax in (ends, ends_by):
        figures.expectation(ax, starts, starts)
        figures.note(ax, "not moved", (-7.4, -7.4), (10, -10), va="center")
    x, bonus = "where θ starts; the target is 0", f"α = {alphas[1]:g}"
    only = f"… but only through the std ({bonus}, δ ="
    top: dict[str, Any] = {"ylim": (-0.03, 1.42), "legend": "upper center", "ncols": 2}
    title = f"A bonus of {alphas[1]:g} opens the way to the target …"
    figures.describe(basin, title, "", "share of runs that reach the target", **top)
    figures.describe(basin_by, f"{only} {deltas[0]:g})", **top)
    bottom: dict[str, Any] = {"ylim": (float(starts[0]), float(starts[-1])), "ends": True}
    title = f"Too far away it becomes a trap ({bonus}) …"
    figures.describe(ends, title, x, "where the mean θ ends (median of runs)", **bottom)
    figures.describe(ends_by, f"{only} {deltas[-1]:g})", x, **bottom)
    return figure


def _share(ax: Axes, result: Result, name: str, design: int, **look: Any) -> None:
    """The share of runs that reach the target, with Wilson's 95 % interval."""
    share, runs = result.array("share", name)[design], result.settings["runs"]
    low, high = zip(*(share_interval(round(one * runs), runs) for one in share), strict=True)
    _curve(ax, result, name, (low, share, high), **look)


def _curve(ax: Axes, result: Result, name: str, rows: ArrayLike, **look: Any) -> None:
    """The middle one of three rows [3, S] over the starting points, between the other two."""
    starts, (low, middle, high) = result.array("starts"), np.asarray(rows)
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
