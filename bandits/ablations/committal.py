"""Two baselines with equal variance and different outcomes: a baseline does more than cut variance.

`bandits.theory.committal` explains the three arms and why one baseline commits and the other keeps
looking. What to look for: on the simplex, where paths end; in the last panel, how the share of runs
that miss the best arm grows with the step size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.policies import log_softmax
from bandits.theory import committal as theory
from bandits.theory.committal import BASELINES, ThreeArms, measured_variance, off_best
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import share_error
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "baselines of equal variance, one too low and one too high: one gets stuck at a wrong arm, the"
    " other does not"
)
EXPECTED_SECONDS = 75.0
CHUNG = "Chung et al. 2021 (2008.13773)"
MEI = "Mei et al. 2022 (2301.06276)"
HERE = "measured here; not published"


@dataclass(frozen=True)
class Settings(ThreeArms):
    """The published setting, and the step sizes to compare it with."""

    lr: float = 0.025  # step size of the published figure
    lrs: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # step sizes to compare
    steps: int = 4000  # updates, one pull each
    longer: int = 3  # how many times as many updates to give the runs of the published step size
    runs: int = 400  # independent runs per baseline and step size
    shown: int = 30  # paths that are drawn, per baseline
    seed: int = 0  # of the first run's random numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(10, "steps")
        self.at_least(2, "runs")
        require(self.shown <= self.runs, "shown", self.shown, f"at most runs = {self.runs}")

    @property
    def rates(self) -> tuple[float, ...]:
        """The step sizes that are run, in order; `lr` is one of them."""
        return tuple(sorted({self.lr, *self.lrs}))


SETTINGS = Settings()
Share = tuple[float, float]  # with its standard error
DRAWN = ("below", "above", "value")


def label(kind: str, settings: Mapping[str, Any]) -> str:
    """How the figure and the facts call a baseline."""
    shift = settings["shift"]
    return {
        "below": f"b* − {shift:g}",
        "best": "b*",
        "above": f"b* + {shift:g}",
        "value": "V",
        "fixed": f"fixed, {max(settings['rewards']) + shift:g}",
    }[kind]


def run(settings: Settings, progress: Progress) -> Result:
    """All baselines and step sizes at once, then the published step size on for longer."""
    s, kinds, here = settings, list(BASELINES), settings.rates.index(settings.lr)
    drawn = here, s.shown
    logits, updates, paths = theory.train(s, s.rates, s.runs, s.steps, s.seed, progress, drawn)
    pair = logits[[kinds.index("below"), kinds.index("above")], here]
    more = s.steps * (s.longer - 1)
    later = theory.longer(s, pair, s.lr, s.seed + 1, more, progress)
    lost = dict(zip(kinds, off_best(logits), strict=True))  # each [rates, runs]
    silent = (log_softmax(logits).exp() == 0).any(-1).double().mean(-1)
    series = {
        "rates": s.rates,
        "updates": updates,
        "paths": {kind: paths[kinds.index(kind), ..., :2] for kind in DRAWN},
        "lost": {kind: row.double().mean(-1) for kind, row in lost.items()},
        "lost_error": {kind: [_share(one)[1] for one in row] for kind, row in lost.items()},
        "lost_later": dict(zip(("below", "above"), later.double().mean(-1), strict=True)),
        "underflow": dict(zip(kinds, silent, strict=True)),
    }
    facts = [*_exact_facts(s), *_run_facts(s, lost, logits, later)]
    return Result(series=series, facts=facts, caption=CAPTION)


def _share(hits: Tensor) -> Share:
    """The share of runs and its standard error, of truth values [runs]."""
    return share_error(int(hits.sum()), max(1, len(hits)))


# ---------------------------------------------------------------- facts


def _exact_facts(arms: ThreeArms) -> Facts:
    reward, log_prob = arms.reward, log_softmax(arms.logits)
    best = float(theory.least_variance_baseline(log_prob, reward))
    low, middle, high = (measured_variance(arms, best + sign * arms.shift) for sign in (-1, 0, 1))
    off = theory.step_gaps(arms, best)
    size = max(float(step.abs().max()) for step in theory.direct_steps(arms, best))
    at, facts = f"rewards {arms.rewards}, logits {arms.start}", Facts(CHUNG, 6)
    claim = "One pull's natural gradient is (r − b)/π(a)·(e_a − 1/K) (by conjugate gradient)"
    facts.exact(claim, off["fisher"], 0.0, scale=size)
    claim = "and the same step from F = diag(π) − ππᵀ in closed form (largest difference)"
    facts.exact(claim, off["closed"], 0.0, scale=size)
    claim = f"The baseline of least variance is b* = Σ(r/π)/Σ(1/π) ({at}; by three variances)"
    facts.exact(claim, theory.vertex(arms), best, source="derived")
    claim = f"b* + {arms.shift:g} has the variance of b* − {arms.shift:g} (of one natural gradient)"
    facts.exact(claim, high, low)
    claim = "At b* the variance is (1 − 1/K) Σ(r − b)²/π − ‖r − mean(r)‖²"
    formula = theory.natural_variance(log_prob, reward, best)
    facts.exact(claim, middle, formula, source="derived")
    claim = f"At the start the value V is noisier than b* − {arms.shift:g} (total variances)"
    value = measured_variance(arms, float(log_prob.exp() @ reward))
    facts.above(claim, value, low, source="derived")
    return facts


def _run_facts(s: Settings, lost: Mapping[str, Tensor], logits: Tensor, later: Tensor) -> Facts:
    here, facts = s.rates.index(s.lr), Facts(HERE, 6)
    share = {kind: _share(row[here]) for kind, row in lost.items()}
    low, high = (label(kind, asdict(s)) for kind in ("below", "above"))
    total, step = s.steps * s.longer, f"(step {s.lr:g})"
    at = f"(step {s.lr:g}, {s.steps:,} updates, {s.runs} runs)"

    def more(claim: str, one: Share, other: Share, source: str = "") -> None:
        both = one[0] - other[0], math.hypot(one[1], other[1])
        facts.above(f"{claim}: difference of the shares", both, source=source)

    claim = f"{low} loses more runs than {high}, of the same variance {at}"
    more(claim, share["below"], share["above"], CHUNG)
    claim = f"{low} loses more runs than the value V, which is the noisier {at}"
    more(claim, share["below"], share["value"])
    for kind, source in (("value", MEI), ("fixed", HERE)):
        claim = (
            f"With the baseline {label(kind, asdict(s))} fewer than one run in twenty misses the"
        )
        facts.below(f"{claim} best arm {at}", share[kind], 0.05, source=source)
    claim = f"After {total:,} updates {low} still has lost more runs than {high} {step}"
    more(claim, _share(later[0]), _share(later[1]))
    claim = f"Most runs lost by {low} after {s.steps:,} updates are still lost after {total:,}"
    facts.above(f"{claim} {step}", _share(later[0][lost["below"][here]]), 0.5)
    claim = f"In every run that {high} loses the worst arm has become the rarest, so that b* is"
    rarest = logits[list(BASELINES).index("above"), here].argmin(-1) == s.reward.argmin()
    missed = rarest[lost["above"][here]]
    facts.exact(f"{claim} near that arm's reward", bool(missed.all()), True, source="derived")
    claim = f"{low} loses more runs at step {s.rates[-1]:g} than at {s.rates[0]:g}"
    more(claim, _share(lost["below"][-1]), _share(lost["below"][0]))
    claim = "From log-probabilities (r − b)/π(a) never overflows: all logits are finite"
    facts.exact(claim, bool(torch.isfinite(logits).all()), True, source="derived")
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Natural policy gradient on three arms, one pull per update; paths that end off the best arm"
    " are red. Shares are means over runs, bands are ± 2 standard errors."
)
FOUND, LOST = "#0057a3", "#c0391b"
STYLES: dict[str, dict[str, Any]] = {
    "below": {"color": LOST, "linestyle": figures.SOLID},
    "best": {"color": "#b8860b", "linestyle": figures.DASHDOT},
    "above": {"color": FOUND, "linestyle": figures.DASH},
    "value": {"color": "#00875f", "linestyle": figures.SOLID},
    "fixed": {"color": "#666666", "linestyle": figures.DOT},
}
WHAT = {
    "below": "too low, it commits",
    "above": "too high, it keeps looking",
    "value": "the value, noisiest at the start",
}
# of the best, middle and worst arm
CORNERS = torch.tensor([[0.5, 0.75**0.5], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64).numpy()


def plot(result: Result) -> Figure:
    """Paths on the simplex for three baselines; how many runs miss the best arm, by step size."""
    figure, panels = figures.new_figure(2, 2, width=10.4, height=8.6)
    for ax, kind in zip(panels, DRAWN, strict=False):
        _triangle(ax, result, kind)
    ax, rates = panels[3], result.array("rates")
    for kind, style in STYLES.items():
        share, error = 100 * result.array("lost", kind), 200 * result.array("lost_error", kind)
        words = label(kind, result.settings)
        figures.band(ax, rates, share, error, label=words, marker="o", markersize=4, **style)
    figures.log_axis(ax, "x", rates)
    title = f"Larger steps commit more: after {result.settings['steps']:,} updates"
    y = "runs that miss the best arm, %"
    figures.describe(ax, title, "step size", y, ylim=(-3, 100), ends=True)
    figures.expectation(ax, x=result.settings["lr"])
    figures.note(ax, "the other panels", (result.settings["lr"], 96), (5, 0), va="top")
    return figure


def _triangle(ax: Axes, result: Result, kind: str) -> None:
    rewards = result.settings["rewards"]
    here = list(result.array("rates")).index(result.settings["lr"])
    paths = result.array("paths", kind)  # [shown, updates, 2]
    points = np.concatenate([paths, 1 - paths.sum(-1, keepdims=True)], -1) @ CORNERS
    ax.fill(*CORNERS.T, facecolor="#f6f6f6", edgecolor="#777777", linewidth=1.0, zorder=0)
    for path, missed in zip(points, paths[:, -1, 0] < 0.5, strict=True):
        colour = LOST if missed else FOUND
        ax.plot(*path.T, color=colour, linewidth=0.9, alpha=0.65)
        ax.plot(*path[-1], "o", color=colour, markersize=7, zorder=4, clip_on=False)
    ax.plot(*points[0, 0], "s", color=figures.INK, markersize=8, zorder=5)
    figures.note(ax, "start", points[0, 0], (6, 8), va="bottom")
    best, middle, worst = (f"r = {reward:g}" for reward in rewards)
    figures.note(ax, f"best arm, {best}", CORNERS[0], (0, 8), ha="center", va="bottom")
    figures.note(ax, middle, CORNERS[1], (-4, -12), ha="left", va="top")
    figures.note(ax, worst, CORNERS[2], (6, -12), ha="right", va="top")
    lost = round(float(result.array("lost", kind)[here]) * result.settings["runs"])
    count = f"{lost or 'none'} of {result.settings['runs']} runs\nmiss the best arm"
    colour = LOST if lost else FOUND
    ax.text(0.02, 0.86, count, transform=ax.transAxes, fontsize=11, color=colour, va="top")
    title = f"{label(kind, result.settings)}: {WHAT[kind]}"
    figures.describe(ax, title, xlim=(-0.06, 1.06), ylim=(-0.12, 1.0))
    ax.set_aspect("equal")
    ax.axis("off")
