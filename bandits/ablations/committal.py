"""Two baselines with equal variance and different outcomes: a baseline does more than cut variance.

Natural policy gradient on three arms that pay 1, .7 and 0, one pull per update, starting at a
policy that prefers the worst arm. The baseline b* has the least variance; b* − ½ and b* + ½ have
the same variance as each other, exactly. With the lower one a pull of the middle arm is good news
(.7 > b), raises that arm, and is soon the only thing that happens: the policy commits. With the
higher one every pull is bad news while the best arm is the rarest: what was pulled comes down, and
the policy keeps looking. The value of the policy as the baseline, V = Σ π r, is the noisiest of
them at the start, and almost never gets stuck.

What to look for: on the simplex, where paths end; in the last panel, how the share of runs that
miss the best arm grows with the step size. Not even b* + ½ is safe, because b* follows the rarest
arm: where the worst arm has become the rarest, b* = 0, so b* + ½ < .7, and the middle arm is good
news again. A baseline fixed above every reward never commits; with large steps it never settles
either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.natural import SoftmaxNaturalGradient
from bandits.policies import log_softmax
from bandits.theory.committal import (
    BASELINES,
    ThreeArms,
    direct_steps,
    learner,
    least_variance_baseline,
    longer,
    measured_variance,
    natural_variance,
    one_step,
    probabilities,
    problem,
)
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import share_error
from course.lab.terminal import Progress
from course.train.trust_region import NaturalGradient

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
class Settings(Checked):
    """The published setting, and the step sizes to compare it with."""

    # reward of each of the three arms, always the same; the first is the best
    rewards: tuple[float, ...] = (1.0, 0.7, 0.0)
    start: tuple[float, ...] = (0.0, 3.0, 5.0)  # logits at the start, in nats
    shift: float = 0.5  # how far the two baselines are from the variance-minimising one, in reward
    lr: float = 0.025  # step size of the published figure
    lrs: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # step sizes to compare
    steps: int = 4000  # updates, one pull each
    longer: int = 3  # how many times as many updates to give the runs of the published step size
    runs: int = 400  # independent runs per baseline and step size
    shown: int = 30  # paths that are drawn, per baseline
    seed: int = 0  # of the first run's random numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.three_arms  # refuses rewards, logits and a shift that are none
        self.at_least(10, "steps")
        self.at_least(2, "runs")
        require(self.shown <= self.runs, "shown", self.shown, f"at most runs = {self.runs}")

    @property
    def three_arms(self) -> ThreeArms:
        """The arms, the start, and the shift of the baselines."""
        return ThreeArms(self.rewards, self.start, self.shift)

    @property
    def rates(self) -> tuple[float, ...]:
        """The step sizes that are run, in order; `lr` is one of them."""
        return tuple(sorted({self.lr, *self.lrs}))


SETTINGS = Settings()
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


@dataclass(frozen=True)
class Seen:
    """What the facts need of the runs.

    `lost` [baselines, rates, runs]: off the best arm at the end; `worst_is_rarest` [runs]: of those
    with b* + shift; `later` [2, runs]: still off after longer, with b* − shift and b* + shift.
    """

    lost: Tensor
    worst_is_rarest: Tensor
    later: Tensor
    finite: bool


def run(settings: Settings, progress: Progress) -> Result:
    """All baselines and step sizes at once, then the published step size on for longer."""
    arms, kinds, rates = settings.three_arms, list(BASELINES), settings.rates
    here, shape = rates.index(settings.lr), (len(BASELINES), len(rates), settings.runs)
    bandit = problem(arms, kinds, arms.logits.expand(*shape, -1))
    each = torch.tensor(rates, dtype=torch.float64)[:, None].expand(shape).contiguous()
    teacher = learner(bandit, each, settings.seed)
    spaced = {round(10 ** (place / 16)) for place in range(160)} & set(range(settings.steps))
    stops = [*sorted(spaced), settings.steps]
    drawn = [log_softmax(arms.logits).exp().expand(len(kinds), settings.shown, -1)]
    with progress.bar(settings.steps, "updates") as bar:
        for stop in stops:
            bar.update(stop - teacher.steps)
            teacher.train(stop - teacher.steps)
            drawn.append(probabilities(bandit)[:, here, : settings.shown])
    end, logits = probabilities(bandit), bandit.parameters[0].detach()[..., 0, :]
    low, high = kinds.index("below"), kinds.index("above")
    more = settings.steps * (settings.longer - 1)
    worst = settings.rewards.index(min(settings.rewards))
    seen = Seen(
        lost=end[..., 0] < 0.5,
        worst_is_rarest=log_softmax(logits[high, here]).argmin(-1) == worst,
        later=longer(
            arms, logits[[low, high], here], settings.lr, settings.seed + 1, more, progress
        ),
        finite=bool(torch.isfinite(logits).all()),
    )
    paths = torch.stack(drawn, 2)[..., :2]
    by_kind = list(enumerate(kinds))
    series = {
        "rates": rates,
        "updates": [0, *stops],
        "paths": {kind: paths[kinds.index(kind)] for kind in DRAWN},
        "lost": {kind: seen.lost[i].double().mean(-1) for i, kind in by_kind},
        "lost_error": {kind: [_share(row)[1] for row in seen.lost[i]] for i, kind in by_kind},
        "lost_later": {
            kind: share
            for kind, share in zip(("below", "above"), seen.later.double().mean(-1), strict=True)
        },
        "underflow": {kind: (end[i] == 0).any(-1).double().mean(-1) for i, kind in by_kind},
    }
    facts = [*_exact_facts(arms), *_simulated_facts(settings, seen)]
    return Result(series=series, facts=facts, caption=CAPTION)


def _share(hits: Tensor) -> tuple[float, float]:
    """The share of runs and its standard error, of truth values [runs]."""
    return share_error(int(hits.sum()), max(1, len(hits)))


# ---------------------------------------------------------------- facts


def _exact_facts(arms: ThreeArms) -> Facts:
    reward, log_prob = arms.reward, log_softmax(arms.logits)
    best = float(least_variance_baseline(log_prob, reward))
    low, middle, high = (measured_variance(arms, best + sign * arms.shift) for sign in (-1, 0, 1))
    direct, off = direct_steps(arms, best), {}
    size = max(float(step.abs().max()) for step in direct)
    for name, make in (
        ("fisher", lambda: NaturalGradient(1.0, damping=0.0)),
        ("closed", lambda: SoftmaxNaturalGradient(1.0)),
    ):
        # up to the same number for all arms, which changes no probability
        steps = [one_step(arms, make(), a, best) for a in range(3)]
        gaps = [step - step.mean() - want for step, want in zip(steps, direct, strict=True)]
        off[name] = max(float(difference.abs().max()) for difference in gaps)
    at, pull = f"rewards {arms.rewards}, logits {arms.start}", "one pull's natural gradient"
    facts = Facts(CHUNG, 6)
    claim = "One pull's natural gradient is (r − b)/π(a)·(e_a − 1/K): largest difference from"
    facts.exact(f"{claim} conjugate gradient on the Fisher matrix", off["fisher"], 0.0, scale=size)
    claim = "The same step from F = diag(π) − ππᵀ in closed form: largest difference"
    facts.exact(claim, off["closed"], 0.0, scale=size)
    # the vertex of the parabola through three points that are known without b*: b = 0, 1, 2
    zero, one, two = (measured_variance(arms, float(b)) for b in range(3))
    vertex = 1 + (zero - two) / (2 * (zero - 2 * one + two))
    claim = f"The baseline of least variance is b* = Σ(r/π)/Σ(1/π) ({at}); measured: the vertex of"
    facts.exact(f"{claim} the parabola through three variances", vertex, best, source="derived")
    claim = f"b* + {arms.shift:g} has the variance of b* − {arms.shift:g} (total variance of"
    facts.exact(f"{claim} {pull}; {at})", high, low)
    claim = f"At b* the variance is (1 − 1/K) Σ(r − b)²/π − ‖r − mean(r)‖² ({at})"
    facts.exact(claim, middle, natural_variance(log_prob, reward, best), source="derived")
    claim = f"At the start the value V is noisier than b* − {arms.shift:g}: total variance of"
    value = measured_variance(arms, float(log_prob.exp() @ reward))
    facts.above(f"{claim} {pull} ({at})", value, low, source="derived")
    return facts


def _simulated_facts(settings: Settings, seen: Seen) -> Facts:
    here, kinds = settings.rates.index(settings.lr), list(BASELINES)
    share = {kind: _share(seen.lost[i, here]) for i, kind in enumerate(kinds)}
    name = {kind: label(kind, asdict(settings)) for kind in kinds}
    total, step = settings.steps * settings.longer, f"(step {settings.lr:g})"
    at = f"(step {settings.lr:g}, {settings.steps:,} updates, {settings.runs} runs)"
    facts, low, high = Facts(HERE, 6), name["below"], name["above"]

    def more(
        claim: str, one: tuple[float, float], other: tuple[float, float], source: str = ""
    ) -> None:
        both = one[0] - other[0], math.hypot(one[1], other[1])
        facts.above(f"{claim}: difference of the shares", both, source=source)

    claim = f"{low} loses more runs than {high}, of the same variance {at}"
    more(claim, share["below"], share["above"], CHUNG)
    claim = f"{low} loses more runs than the value V, which is the noisier {at}"
    more(claim, share["below"], share["value"])
    for kind, source in (("value", MEI), ("fixed", HERE)):
        claim = f"With the baseline {name[kind]} fewer than one run in twenty misses the best arm"
        facts.below(f"{claim} {at}", share[kind], 0.05, source=source)
    claim = f"After {total:,} updates {low} still has lost more runs than {high} {step}"
    more(claim, _share(seen.later[0]), _share(seen.later[1]))
    claim = f"Most runs lost by {low} after {settings.steps:,} updates are still lost after"
    facts.above(f"{claim} {total:,} {step}", _share(seen.later[0][seen.lost[0, here]]), 0.5)
    claim = f"In every run that {high} loses the worst arm has become the rarest, so that b* is"
    rarest = bool(seen.worst_is_rarest[seen.lost[kinds.index("above"), here]].all())
    facts.exact(f"{claim} near that arm's reward", rarest, True, source="derived")
    claim = f"Larger steps commit sooner: {low} loses more runs at step {settings.rates[-1]:g} than"
    more(f"{claim} at {settings.rates[0]:g}", _share(seen.lost[0, -1]), _share(seen.lost[0, 0]))
    claim = "Computed from log-probabilities, steps of (r − b)/π(a) never overflow: every logit of"
    facts.exact(f"{claim} every run is finite", seen.finite, True, source="derived")
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
