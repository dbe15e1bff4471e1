"""Three ways to limit a step: a hard bound on KL (TRPO), a flat region (PPO's clip), nothing (plain
ascent). Equal samples.

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
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
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
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("epochs", 1),
            ("runs", 2),
            ("rollouts", 2),
            ("prompts", 1),
            ("arms", 2),
            ("features", 1),
            ("group", 2),
        ):
            require(
                getattr(self, name) >= least, name, getattr(self, name), f"a whole number ≥ {least}"
            )
        for name in ("bounds", "learning_rates"):
            values = getattr(self, name)
            require(
                len(values) > 0 and min(values) > 0 and list(values) == sorted(values),
                name,
                values,
                "numbers > 0 in rising order",
            )


SETTINGS = Settings()
SCHULMAN = "Schulman et al. 2015 (TRPO, 1502.05477), appendix C"
HERE = "measured here"


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
    step (0: none taken).
    """

    reward: Tensor
    moved: Tensor
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
    """Train with all step sizes at once: run axes (step sizes, 2·runs).

    `hard`: TRPO with bounds `sizes`; else SGD.
    """
    where = settings.prompts, settings.arms, settings.features
    none, numbers = torch.zeros(len(sizes), dtype=torch.float64), range(2 * settings.runs)
    options: dict[str, Any] = {
        "reference": "start",
        "critic": uses_critic(estimator),
        "greedy": True,
    }
    bandit, noise = linear_bandit(
        where, none, numbers, settings.group, settings.seed, Watched, **options
    )
    size = torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1).expand(bandit.runs)
    optimizer: Optimizer = TRPO(size) if hard else SGD(size)
    learner = Learner(
        bandit,
        estimator,
        optimizer,
        noise,
        epochs=1 if hard else settings.epochs,
        halt_diverged=True,
    )
    history = learner.train(
        settings.rollouts, lambda steps: progress(steps, name, total=settings.rollouts)
    )
    fraction, claimed = (
        (history["step_fraction"], history["trust_region_kl"]) if hard else (None, None)
    )
    return Climb(history["expected_reward"], history["moved"], fraction, claimed)


def run(settings: Settings, progress: Progress) -> Result:
    """Train TRPO and the others over their sweeps; choose the step size on one half of the runs,
    report the other.
    """
    s = settings
    climbs = {"trpo": train(ladder.surrogate, s.bounds, True, s, progress, "TRPO")}
    for name in s.rungs:
        climbs[name] = train(ladder.get(name).estimator, s.learning_rates, False, s, progress, name)
    tune, judge = slice(None, s.runs), slice(s.runs, None)
    series: dict[str, dict[str, object]] = {}
    best: dict[str, int] = {}
    for name, climb in climbs.items():
        place = best[name] = int(climb.reward[-1, :, tune].mean(-1).argmax())
        moved = climb.moved[:, :, judge]
        series[name] = {
            "best": (s.bounds if name == "trpo" else s.learning_rates)[place],
            **_interval("curve", climb.reward[:, place, judge]),
            **_interval("final", climb.reward[-1, :, judge]),
            "moved": moved[:, place].mean(-1),
            "most_moved": moved[:, place].amax(-1),
            "mean_kl": moved.mean((0, 2)),
            "largest_kl": moved.amax((0, 2)),
        }
    fraction = climbs["trpo"].fraction
    assert fraction is not None
    shares = {
        "full": fraction == 1,
        "shortened": (fraction < 1) & (fraction > 0),
        "none": fraction == 0,
    }
    samples = [(rollout + 1) * s.group * s.prompts for rollout in range(s.rollouts)]
    return Result(
        series={
            "samples": samples,
            "methods": series,
            "shares": {name: which.double().mean((0, 2)) for name, which in shares.items()},
        },
        facts=_facts(s, climbs, best),
        caption=CAPTION,
    )


def _interval(name: str, values: Tensor) -> dict[str, Tensor]:
    """Mean over runs (the last axis) and half of its 95 % interval."""
    return {name: values.mean(-1), f"{name}_half": 1.96 * values.std(-1) / values.shape[-1] ** 0.5}


def _facts(s: Settings, climbs: Mapping[str, Climb], best: Mapping[str, int]) -> list[Fact]:
    trpo = climbs["trpo"]
    assert trpo.fraction is not None
    assert trpo.claimed is not None
    bounds = torch.tensor(s.bounds, dtype=torch.float64)[:, None]
    over = int((trpo.moved > bounds * (1 + 1e-9)).sum())
    still = trpo.fraction == 0
    facts = [
        Fact.exact(
            f"TRPO's steps with KL(π_old‖π) above their bound, of {trpo.moved.numel():,} at"
            f" {len(s.bounds)} bounds",
            SCHULMAN,
            over,
            0,
        ),
        Fact.exact(
            "the KL that its line search reports is the KL of the policies before and after"
            " (largest difference, nats)",
            HERE,
            (trpo.claimed - trpo.moved).abs().max(),
            0.0,
        ),
        Fact.exact(
            "where it accepts no step the policy stays: largest KL of such a rollout (nats)",
            SCHULMAN,
            trpo.moved[still].sum(),
            0.0,
        ),
    ]
    judged = {name: climb.reward[-1, best[name], s.runs :] for name, climb in climbs.items()}

    def differ(claim: str, one: str, other: str) -> None:
        if one in judged and other in judged:
            mean, error = mean_error(judged[one] - judged[other])
            facts.append(Fact.above(claim, HERE, mean, 0.0, error))

    differ(
        "At its best bound TRPO ends above the clip at its best learning rate (difference of final"
        " reward, equal samples)",
        "trpo",
        "clip",
    )
    differ(
        "and the clip above plain ascent on the same surrogate (difference)", "clip", "surrogate"
    )
    if "clip" in climbs:
        place = best["clip"]
        moved = climbs["clip"].moved[:, place, s.runs :]
        claim = (
            "The clip bounds no KL: the largest of one rollout at its best learning rate"
            f" {s.learning_rates[place]:g}, over the mean of all"
        )
        facts.append(
            Fact.above(claim, "Wang et al. 2019 (1903.07940)", moved.max() / moved.mean(), 1.0)
        )
    return facts


CAPTION = (
    "Equal samples, shared parameters. Each method at the step size that was best on other runs;"
    " bands are 95 % intervals. Thin dotted lines: the largest KL of any run. Dashed: TRPO's bound."
)
LABELS = {"trpo": "TRPO", "clip": "clip", "surrogate": "plain ascent"}


def plot(result: Result) -> Figure:
    """Curves at the best step size; the KL of each rollout against the bound; reward against KL per
    rollout; line search.
    """
    figure, (curves, moved, robust, search) = figures.new_figure(2, 2, width=12.8, height=9.0)
    samples, methods = result.array("samples"), list(result.series["methods"])
    for name in methods:
        label = LABELS.get(name, name)
        figures.band(
            curves,
            samples,
            result.array("methods", name, "curve"),
            result.array("methods", name, "curve_half"),
            name,
            label,
        )
        kl, most = (
            result.array("methods", name, "moved"),
            result.array("methods", name, "most_moved"),
        )
        figures.band(moved, samples, np.maximum(kl, 1e-7), name=name, label=label)
        style = {**figures.style_of(name), "linestyle": ":", "linewidth": 1.3}
        figures.band(moved, samples, np.maximum(most, 1e-7), label="_", **style)
        mean_kl = result.array("methods", name, "mean_kl")
        final, half = (
            result.array("methods", name, "final"),
            result.array("methods", name, "final_half"),
        )
        figures.band(robust, mean_kl, final, half, name, label, marker="o", markersize=5)
    figures.describe(curves, "Reward, each at its best step size", "samples", "expected reward")
    curves.set_ylim(0, 1)
    bound = float(result.array("methods", "trpo", "best"))
    figures.expectation(moved, bound)
    moved.text(
        0.98,
        0.05,
        f"- -  TRPO's bound, δ = {bound:g}",
        transform=moved.transAxes,
        color=figures.INK,
        ha="right",
    )
    moved.set_yscale("log")
    moved.set_ylim(bound / 10, None)
    figures.describe(
        moved,
        "How far one rollout moves the policy",
        "samples",
        "KL(π_old‖π) (nats): mean, largest (dotted)",
    )
    robust.set_xscale("log")
    robust.set_ylim(0, 1)
    figures.describe(
        robust,
        "Every step size of the sweep",
        "mean KL(π_old‖π) of a rollout (nats)",
        "final expected reward",
    )
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
