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

from bandits.linear import linear_bandit
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import described, named_interval, paired_error
from course.lab.sweep import Choice, choose, edges, finished
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts.kl import exact_kl
from course.rollout import Rollout
from course.train.noise import Noise
from course.train.optim import SGD, Optimizer
from course.train.trust_region import TRPO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "TRPO's hard bound, PPO's clip and plain ascent on one surrogate: reward, KL per rollout, and"
    " how much the step size matters"
)
EXPECTED_SECONDS = 12.0


@dataclass(frozen=True)
class Settings(Checked):
    """A contextual bandit with shared parameters; every method sees the same number of samples."""

    # estimators for plain gradient; TRPO takes `surrogate` and its bound
    rungs: tuple[str, ...] = ("clip", "surrogate")
    # TRPO's bounds δ on KL(π_old‖π), nats
    bounds: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    # step sizes of the others
    learning_rates: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
    epochs: int = 8  # updates per rollout of the others
    runs: int = 50  # independent runs that are reported (as many again choose the step size)
    rollouts: int = 60  # rollouts of each run
    prompts: int = 16  # prompts, each with one right answer that pays 1; the others pay 0
    arms: int = 10  # answers of each prompt
    features: int = 48  # parameters, shared by all prompts (each answer has random features)
    group: int = 8  # samples per prompt and rollout
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "rollouts", "arms", "group"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number ≥ 2")
        for name in ("bounds", "learning_rates"):
            values = getattr(self, name)
            rising = min(values) > 0 and list(values) == sorted(set(values))
            require(rising, name, values, "numbers > 0 in rising order")


SETTINGS = Settings()
SCHULMAN = "Schulman et al. 2015 (TRPO, 1502.05477), appendix C"
HERE = "measured here"
CAPTION = (
    "Equal samples, shared parameters. Each method at the step size that was best on other runs."
    " Thin dotted lines: the largest KL of any run. Dashed: TRPO's bound."
)


class Watched(Bandit):
    """A bandit that also logs how far the policy has moved since it sampled, after all updates of
    the rollout.
    """

    def sample(self, noise: Noise) -> Rollout:
        rollout = super().sample(noise)
        assert rollout.old_log_dist is not None
        self.before = rollout.old_log_dist[..., 0, 0, :]
        return rollout

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The bandit's, and `moved` [...]: KL(π_old‖π) in nats, mean over prompts."""
        return super().metrics() | {
            "moved": exact_kl(self.before, self.arm_policy.log_probs()).mean(-1)
        }


@dataclass(frozen=True)
class Climb:
    """One method, trained: [rollouts, step sizes, 2·runs] each. `fraction` is TRPO's, of the full
    step (0: none taken). `halted` [step sizes, 2·runs] bool: diverged.
    """

    reward: Tensor
    moved: Tensor
    halted: Tensor
    fraction: Tensor | None
    claimed: Tensor | None


def train(
    estimator: Estimator,
    sizes: tuple[float, ...],
    hard: bool,
    settings: Settings,
    progress: Progress,
    name: str,
) -> Climb:
    """Train with all step sizes at once: run axes (step sizes, 2·runs). A run's number alone
    decides its random streams.

    `hard`: TRPO with bounds `sizes`; else SGD.
    """
    where = settings.prompts, settings.arms, settings.features
    none, numbers = torch.zeros(len(sizes), dtype=torch.float64), range(2 * settings.runs)
    wired: dict[str, Any] = {"reference": "start", "greedy": True}
    wired["critic"] = uses_critic(estimator)
    bandit, noise = linear_bandit(
        where, none, numbers, settings.group, settings.seed, Watched, **wired
    )
    size = torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1).expand(bandit.runs)
    optimizer: Optimizer = TRPO(size) if hard else SGD(size)
    loop: dict[str, Any] = {"epochs": 1 if hard else settings.epochs, "halt_diverged": True}
    learner = Learner(bandit, estimator, optimizer, noise, **loop)
    history = learner.train(
        settings.rollouts, lambda steps: progress(steps, name, total=settings.rollouts)
    )
    of_search = (history["step_fraction"], history["trust_region_kl"]) if hard else (None, None)
    return Climb(history["expected_reward"], history["moved"], learner.diverged, *of_search)


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


def _facts(s: Settings, climbs: Mapping[str, Climb], best: Mapping[str, Choice]) -> list[Fact]:
    trpo = climbs["trpo"]
    assert trpo.fraction is not None
    assert trpo.claimed is not None
    bounds = torch.tensor(s.bounds, dtype=torch.float64)[:, None]
    over, still = int((trpo.moved > bounds * (1 + 1e-9)).sum()), trpo.moved[trpo.fraction == 0]
    apart = (trpo.claimed - trpo.moved).abs().max()
    above = f"TRPO's steps with KL(π_old‖π) above their bound, of {trpo.moved.numel():,} at"
    same = "the KL that its line search reports is the KL of the policies before and after (largest"
    stays = f"where it accepts no step ({still.numel():,} rollouts) the policy stays: largest KL of"
    facts = [
        Fact.exact(f"{above} {len(s.bounds)} bounds", SCHULMAN, over, 0),
        Fact.exact(f"{same} difference, nats)", HERE, apart, 0.0),
        Fact.exact(f"{stays} such a rollout (nats)", SCHULMAN, still.abs().sum(), 0.0),
    ]
    for claim, one, other in (
        ("At its best bound TRPO ends above the clip at its best learning rate (difference of final"
         " reward, equal samples)", "trpo", "clip"),
        ("and the clip above plain ascent on the same surrogate (difference)", "clip", "surrogate"),
    ):  # fmt: skip
        if one in best and other in best:
            mean, error = paired_error(best[one].judged, best[other].judged)
            facts.append(Fact.above(claim, HERE, mean, 0.0, error, runs=s.runs))
    if "clip" in climbs:
        chosen = best["clip"]
        moved = climbs["clip"].moved[:, chosen.index, s.runs :]
        claim = "The clip bounds no KL: the largest of one rollout at its best learning rate"
        claim += f" {chosen.rate:g}, over the mean of all, is more than twice"
        most = moved.max() / moved.mean()
        facts.append(Fact.above(claim, "Wang et al. 2019 (1903.07940)", most, 2.0))
    return facts


LABELS = {"trpo": "TRPO", "clip": "clip", "surrogate": "plain ascent"}


def plot(result: Result) -> Figure:
    """Curves at the best step size; the KL of each rollout against the bound; reward against KL per
    rollout; line search.
    """
    figure, (curves, moved, robust, search) = figures.new_figure(2, 2, width=12.8, height=9.0)
    samples, bound = result.array("samples"), float(result.array("methods", "trpo", "best"))
    for name in result.series["methods"]:
        label, style = LABELS.get(name, name), figures.style_of(name)
        of = {what: result.array("methods", name, what) for what in result.series["methods"][name]}
        figures.band(curves, samples, of["curve"], of["curve_half"], name, label)
        figures.band(moved, samples, np.maximum(of["moved"], 1e-7), name=name, label=label)
        dotted = {**style, "linestyle": ":", "linewidth": 1.3, "label": "_"}
        figures.band(moved, samples, np.maximum(of["most_moved"], 1e-7), **dotted)
        dots: dict[str, Any] = {"marker": "o", "markersize": 5}
        figures.band(robust, of["mean_kl"], of["final"], of["final_half"], name, label, **dots)
    figures.describe(curves, "Reward, each at its best step size", "samples", "expected reward")
    for ax in (curves, robust):
        ax.set_ylim(0, 1)
    figures.expectation(moved, bound)
    text, place = f"- -  TRPO's bound, δ = {bound:g}", (0.98, 0.05)
    moved.text(*place, text, transform=moved.transAxes, color=figures.INK, ha="right")
    figures.log_axis(moved, "y")
    moved.set_ylim(bound / 10, None)
    y = "KL(π_old‖π) (nats): mean, largest (dotted)"
    figures.describe(moved, "How far one rollout moves the policy", "samples", y)
    figures.log_axis(robust, "x")
    x = "mean KL(π_old‖π) of a rollout (nats)"
    figures.describe(robust, "Every step size of the sweep", x, "final expected reward")
    for ax in (curves, moved, robust):
        figures.label_ends(ax)
    _plot_search(search, result)
    return figure


def _plot_search(ax: Axes, result: Result) -> None:
    """What the line search did at each bound."""
    bounds = [f"{bound:g}" for bound in result.settings["bounds"]]
    below = np.zeros(len(bounds))
    for name, colour, text in (
        ("full", "#225522", "full step"),
        ("shortened", "#7fae7f", "shortened:\nKL too large\nor no gain"),
        ("none", "#a8a8a8", "no step"),
    ):
        share = result.array("shares", name)
        ax.bar(bounds, share, bottom=below, color=colour, width=0.8)
        place = below[-1] + share[-1] / 2
        ax.text(len(bounds) - 0.5, place, text, color=figures.readable(colour), va="center")
        below = below + share
    ax.set_ylim(0, 1)
    ax.set_xlim(-0.6, len(bounds) - 0.5)
    ax.grid(False, axis="x")
    figures.describe(
        ax,
        "TRPO's line search: halving a step quarters its KL",
        "bound δ (nats)",
        "share of rollouts",
    )
