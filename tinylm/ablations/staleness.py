"""How many updates can one rollout bear?

Policy gradient, bare ratio and clip, centred and not, and TRPO beside them.

Everybody gets the same rollouts; what grows is the number of updates made on each. With one, policy
gradient, ratio and clip are one curve. With many, the policy gradient goes on pushing along
advantages that were measured on a policy of the past.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.terminal import Progress
from course.train.trust_region import TRPO
from tinylm.experiment import Budget, Curves, interval, train, warm_start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "updates per rollout: who collapses on stale samples, and what the ratio, the clip and a trust"
    " region do about it"
)
FIGURE = "tinylm_staleness"
EXPECTED_SECONDS = 400.0


@dataclass(frozen=True)
class Settings(Budget):
    """Which estimators, and how many updates."""

    rungs: tuple[str, ...] = ("reinforce", "baseline", "surrogate", "clip")  # which estimators
    updates: tuple[int, ...] = (1, 2, 4, 8, 16)  # on every rollout
    rate: float = 5e-4  # Adam's learning rate, falling to 0 in a line
    rollouts: int = 50  # of reinforcement learning, for everybody
    max_kl: float = 0.01  # TRPO's bound, nats per token; 0: no TRPO

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.updates) > 0 and min(self.updates) > 0,
            "updates",
            self.updates,
            "whole numbers > 0",
        )
        require(self.rate > 0, "rate", self.rate, "a number > 0")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Every estimator with every number of updates, from one warm start."""
    start = warm_start(settings, progress)
    series: dict[str, dict[str, Any]] = {}
    for name in progress(settings.rungs, "estimators"):
        ends = []
        for updates in progress(settings.updates, name):
            curves = train(
                ladder.get(name).estimator,
                replace(settings, epochs=updates),
                start,
                (settings.rate,),
                progress,
            )
            ends.append(_end(curves))
        series[name] = {key: torch.stack([end[key] for end in ends]) for key in ends[0]}
    trpo: dict[str, torch.Tensor] = {}
    if settings.max_kl:
        surrogate = ladder.get("surrogate").estimator
        trpo = _end(
            train(
                surrogate,
                settings,
                start,
                (settings.rate,),
                progress,
                optimizer=lambda _: TRPO(settings.max_kl),
                text="TRPO",
            )
        )
    everything = {
        "estimators": series,
        "updates": settings.updates,
        "start": start.accuracy,
        "trpo": trpo,
    }
    return Result(
        series=everything,
        facts=_facts(settings, series),
        caption="Mean of the seeds and its 95 % interval; rollouts equal for all.",
    )


def _end(curves: Curves) -> dict[str, torch.Tensor]:
    values = {
        name: curves.values[name][-1, 0]
        for name in ("accuracy", "entropy", "kl_start", "ratio_max", "clip_fraction")
        if name in curves.values
    }
    mean, half = interval(values["accuracy"])
    return {"accuracy_mean": mean, "accuracy_half": half} | {
        str(name): value for name, value in values.items()
    }


def _facts(settings: Settings, series: dict[str, dict[str, Any]]) -> list[Fact]:
    facts = []
    if 1 in settings.updates and {"baseline", "surrogate", "clip"} <= set(series):
        one = settings.updates.index(1)
        ends = torch.stack(
            [series[name]["accuracy"][one] for name in ("baseline", "surrogate", "clip")]
        )
        text = (
            "With one update per rollout, policy gradient, ratio and clip end at the same held-out"
            " accuracy (largest difference)"
        )
        spread = float((ends.max(0).values - ends.min(0).values).max())
        # the three runs are the same up to rounding, which over many updates may turn single
        # answers
        facts.append(Fact(text, "this course", spread, 0.0, 0.0, 3 / settings.judged, "equal", 11))
    many = max(settings.updates)
    last = {name: series[name]["accuracy"][settings.updates.index(many)] for name in series}
    if {"reinforce", "baseline", "surrogate", "clip"} <= set(last):
        worse = (
            ("surrogate", "clip", "The bare ratio", "the clip"),
            (
                "baseline",
                "reinforce",
                "The policy gradient with centred advantages",
                "the one without a baseline (rewards 0 and 1 push nothing down)",
            ),
        )
        for low, high, text, other in worse:
            lost = last[high] - last[low]
            error = float(lost.std() / len(lost) ** 0.5) if len(lost) > 1 else float("nan")
            claim = (
                f"{text} bears {many} updates per rollout worse than {other} (accuracy lost, seed"
                " by seed)"
            )
            facts.append(
                Fact.above(claim, "this course", float(lost.mean()), 0.0, error, number=11)
            )
    return facts


def plot(result: Result) -> Figure:
    """Final accuracy against updates per rollout, and how far the ratio and the policy went."""
    figure, (accuracy, kl, ratio) = figures.new_figure(1, 3, width=14.0, height=4.6)
    updates = result.array("updates")
    for name in result.settings["rungs"]:
        figures.band(
            accuracy,
            updates,
            result.array("estimators", name, "accuracy_mean"),
            result.array("estimators", name, "accuracy_half"),
            name,
        )
        for ax, what in ((kl, "kl_start"), (ratio, "ratio_max")):
            figures.band(ax, updates, result.array("estimators", name, what).mean(-1), None, name)
    if result.series["trpo"]:
        figures.expectation(
            accuracy, y=float(result.array("trpo", "accuracy_mean")), label="TRPO, one step"
        )
    figures.expectation(
        accuracy, y=float(result.array("start").mean()), label="warm start, sampled"
    )
    for ax in (accuracy, kl, ratio):
        ax.set_xscale("log", base=2)
        ax.set_xticks(updates, [f"{value:g}" for value in updates])
    kl.set_yscale("log")
    accuracy.set_ylim(-0.02, 1.02)
    figures.describe(
        accuracy, "Accuracy at equal samples", "updates per rollout", "held-out greedy accuracy"
    )
    figures.describe(
        kl, "Distance travelled", "updates per rollout", "KL(π‖start) of an answer (nats)"
    )
    figures.describe(ratio, "The largest ratio of the last rollout", "updates per rollout", "ρ")
    for ax in (accuracy, kl, ratio):
        figures.label_ends(ax)
    return figure
