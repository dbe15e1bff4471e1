"""Three ways to limit a step, at equal samples: a bound on KL (TRPO), PPO's clip, or no limit.

All three climb the same sampled surrogate ρA on the same contextual bandit with shared parameters;
each takes a sweep of step sizes. TRPO takes one natural-gradient step per rollout at the length
where KL(π_old‖π) should be δ, and shortens it until the KL, computed exactly, is at most δ and the
surrogate has risen. The others take several epochs of plain gradient. Look for: the KL of TRPO's
steps, which never pass the bound, beside the clip's, which have none; how much of the final reward
survives other step sizes, with the mean KL of a rollout as the common currency; how often TRPO had
to shorten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory.trust_region import Climb, StepTask, train
from course import ladder
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import described, named_interval, paired_error
from course.lab.sweep import Choice, choose, edges, finished
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "TRPO's hard bound, PPO's clip and plain ascent on one surrogate: reward, KL per rollout, and"
    " how much the step size matters"
)
EXPECTED_SECONDS = 12.0


@dataclass(frozen=True)
class Settings(StepTask):
    """A contextual bandit with shared parameters; every method sees the same number of samples."""

    # estimators for plain gradient; TRPO takes `surrogate` and its bound
    rungs: tuple[str, ...] = ("clip", "surrogate")
    # TRPO's bounds δ on KL(π_old‖π), nats
    bounds: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    # step sizes of the others
    learning_rates: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising("bounds", "learning_rates")


SETTINGS = Settings()
SCHULMAN = "Schulman et al. 2015 (TRPO, 1502.05477), appendix C"
HERE = "measured here"
CAPTION = (
    "Equal samples, shared parameters. Each method at the step size that was best on other runs."
    " Thin dotted lines: the largest KL of any run. Dashed: TRPO's bound."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Train TRPO and the others over their sweeps; choose the step size on one half of the runs,
    report the other.
    """
    s = settings
    climbs = {"trpo": train(ladder.surrogate, s.bounds, True, s, progress, "TRPO")}
    for name in s.rungs:
        climbs[name] = train(ladder.get(name).estimator, s.learning_rates, False, s, progress, name)
    series: dict[str, dict[str, object]] = {}
    best: dict[str, Choice] = {}
    halted: dict[str, Tensor] = {}
    for name, climb in climbs.items():
        final, sizes = climb.reward[-1], s.bounds if name == "trpo" else s.learning_rates
        values = finished(final, climb.halted)[:, : s.runs]
        chosen = best[name] = choose(values, sizes, final[:, s.runs :])
        halted[name] = climb.halted[chosen.index, s.runs :]
        moved, at = climb.moved[:, :, s.runs :], chosen.index
        series[name] = {
            "best": chosen.rate,
            **named_interval("curve", climb.reward[:, at, s.runs :]),
            **named_interval("final", final[:, s.runs :]),
            "moved": moved[:, at].mean(-1),
            "most_moved": moved[:, at].amax(-1),
            "mean_kl": moved.mean((0, 2)),
            "largest_kl": moved.amax((0, 2)),
        }
    fraction = climbs["trpo"].fraction
    assert fraction is not None
    none, full = fraction == 0, fraction == 1
    shares = {"full": full, "shortened": ~full & ~none, "none": none}
    found = {
        "samples": [(rollout + 1) * s.group * s.prompts for rollout in range(s.rollouts)],
        "methods": series,
        "shares": {name: which.double().mean((0, 2)) for name, which in shares.items()},
    }
    others = {name: choice for name, choice in best.items() if name != "trpo"}
    ends = edges({"TRPO": best["trpo"]}, s.bounds, "bound"), edges(others, s.learning_rates)
    caption = " ".join([CAPTION, f"Bands: {described(s.runs)}.", *filter(None, ends)])
    return told(Result(series=found, facts=_facts(s, climbs, best), caption=caption), halted)


# ---------------------------------------------------------------- facts


def _facts(s: Settings, climbs: Mapping[str, Climb], best: Mapping[str, Choice]) -> Facts:
    trpo, facts = climbs["trpo"], Facts(HERE, runs=s.runs)
    assert trpo.fraction is not None
    assert trpo.claimed is not None
    bounds = torch.tensor(s.bounds, dtype=torch.float64)[:, None]
    over, still = int((trpo.moved > bounds * (1 + 1e-9)).sum()), trpo.moved[trpo.fraction == 0]
    claim = f"TRPO's steps with KL(π_old‖π) above their bound, of {trpo.moved.numel():,} at"
    facts.exact(f"{claim} {len(s.bounds)} bounds", over, 0, source=SCHULMAN)
    apart = (trpo.claimed - trpo.moved).abs().max()
    claim = "the KL that its line search reports is that of the policies before and after (largest"
    facts.exact(f"{claim} difference, nats)", apart, 0.0)
    claim = f"where it accepts no step ({still.numel():,} rollouts) the policy stays: largest KL of"
    facts.exact(f"{claim} such a rollout (nats)", still.abs().sum(), 0.0, source=SCHULMAN)
    if "clip" in best:
        claim = (
            "At its best bound TRPO ends above the clip at its best learning rate (difference of"
        )
        reward = paired_error(best["trpo"].judged, best["clip"].judged)
        facts.above(f"{claim} final reward, equal samples)", reward)
    if "clip" in best and "surrogate" in best:
        reward = paired_error(best["clip"].judged, best["surrogate"].judged)
        facts.above("and the clip above plain ascent on the same surrogate (difference)", reward)
    if "clip" in climbs:
        moved = climbs["clip"].moved[:, best["clip"].index, s.runs :]
        claim = "The clip bounds no KL: the largest of one rollout at its best learning rate"
        claim += f" {best['clip'].rate:g}, over the mean of all, is more than twice"
        most = moved.max() / moved.mean()
        facts.above(claim, most, 2.0, source="Wang et al. 2019 (1903.07940)")
    return facts


# ---------------------------------------------------------------- figure

LABELS = {"trpo": "TRPO", "clip": "clip", "surrogate": "plain ascent"}


def plot(result: Result) -> Figure:
    """Reward at the best step size, KL per rollout, reward against KL, and the line search."""
    figure, (curves, moved, robust, search) = figures.new_figure(2, 2, width=12.8, height=9.0)
    samples, bound = result.array("samples"), float(result.array("methods", "trpo", "best"))
    for name in result.series["methods"]:
        of, label = ("methods", name), LABELS.get(name, name)
        figures.curve(curves, samples, result, *of, "curve", name=name, label=label)
        dots: dict[str, Any] = {"marker": "o", "markersize": 5, "label": label}
        kl = result.array(*of, "mean_kl")
        figures.curve(robust, kl, result, *of, "final", name=name, **dots)
        dotted: dict[str, Any] = {"linestyle": ":", "linewidth": 1.3, "label": "_"}
        for what, look in (("moved", {"label": label}), ("most_moved", dotted)):
            far = np.maximum(result.array(*of, what), 1e-7)
            figures.band(moved, samples, far, name=name, **look)
    figures.expectation(moved, bound)
    style: dict[str, Any] = {"color": figures.INK, "ha": "right"}
    text = f"- -  TRPO's bound, δ = {bound:g}"
    moved.text(0.98, 0.05, text, transform=moved.transAxes, **style)
    figures.log_axis(moved, "y")
    figures.log_axis(robust, "x")
    y, title = "expected reward", "Reward, each at its best step size"
    figures.describe(curves, title, "samples", y, ylim=(0, 1), ends=True)
    y, title = "KL(π_old‖π) (nats): mean, largest (dotted)", "How far one rollout moves the policy"
    figures.describe(moved, title, "samples", y, ylim=(bound / 10, None), ends=True)
    x, title = "mean KL(π_old‖π) of a rollout (nats)", "Every step size of the sweep"
    figures.describe(robust, title, x, "final expected reward", ylim=(0, 1), ends=True)
    _plot_search(search, result)
    return figure


def _plot_search(ax: Axes, result: Result) -> None:
    """What the line search did at each bound."""
    bounds = [f"{bound:g}" for bound in result.settings["bounds"]]
    below, last = np.zeros(len(bounds)), len(bounds) - 0.5
    for name, colour, text in (
        ("full", "#225522", "full step"),
        ("shortened", "#7fae7f", "shortened:\nKL too large\nor no gain"),
        ("none", "#a8a8a8", "no step"),
    ):
        share = result.array("shares", name)
        ax.bar(bounds, share, bottom=below, color=colour, width=0.8)
        place = below[-1] + share[-1] / 2
        ax.text(last, place, text, color=figures.readable(colour), va="center")
        below = below + share
    ax.grid(False, axis="x")
    title, y = "TRPO's line search: halving a step quarters its KL", "share of rollouts"
    figures.describe(ax, title, "bound δ (nats)", y, xlim=(-0.6, last), ylim=(0, 1))
