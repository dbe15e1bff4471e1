"""How many updates can one rollout bear?

Policy gradient, bare ratio and clip, centred and not, and TRPO beside them.

Every estimator gets the same number of rollouts; the number of updates on each rollout varies. With
one update, policy gradient, ratio and clip are one curve. With many, the policy gradient keeps
pushing along advantages that were measured on an old policy. All use one learning rate; whether a
smaller one would help is another question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, mean_error
from course.lab.terminal import Progress
from course.train.trust_region import TRPO
from tinylm.curves import CHANCE, AblationBudget, Curves, train
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "updates per rollout: who collapses on stale samples, and what the ratio, the clip and a trust"
    " region do about it"
)
FIGURE = "tinylm_staleness"
EXPECTED_SECONDS = 220.0
SAME = ("baseline", "surrogate", "clip")  # one curve with one update per rollout
SHOWN = ("accuracy", "entropy", "kl_start", "ratio_max", "clip_fraction")


@dataclass(frozen=True)
class Settings(AblationBudget):
    """Which estimators, and how many updates; `epochs` of the budget is replaced by these."""

    rungs: tuple[str, ...] = ("reinforce", *SAME)  # which estimators
    updates: tuple[int, ...] = (1, 4, 16)  # on every rollout
    rate: float = 5e-4  # Adam's learning rate, which falls linearly to 0
    rollouts: int = 40  # of reinforcement learning, for everybody
    log_every: int = 40  # rollouts; the last one is logged, too
    max_kl: float = 0.01  # TRPO's bound, nats per token; 0: no TRPO

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_kl >= 0, "max_kl", self.max_kl, "a number ≥ 0")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Every estimator with every number of updates, from one warm start."""
    start, numbers = warm_start(settings, settings.seeds, progress), range(settings.seeds)
    series: dict[str, dict[str, Any]] = {}
    curves: Curves | None = None
    halted: dict[str, Tensor] = {}
    for name in progress(settings.rungs, "estimators"):
        ends = []
        for updates in progress(settings.updates, name):
            budget = replace(settings, epochs=updates)
            estimator = ladder.get(name).estimator
            curves = train(budget, estimator, start, (settings.rate,), numbers, progress)
            ends.append(_end(curves))
            halted[f"{name}, {updates} updates"] = curves.halted
        series[name] = {
            key: torch.stack([torch.as_tensor(e[key]) for e in ends]) for key in ends[0]
        }
    trpo: dict[str, Any] = {}
    if settings.max_kl:
        constrained = train(
            replace(settings, epochs=1),
            ladder.get("surrogate").estimator,
            start,
            (settings.rate,),
            numbers,
            progress,
            optimizer=TRPO(settings.max_kl),
            text="TRPO",
        )
        trpo, halted["TRPO"] = _end(constrained), constrained.halted
    assert curves is not None
    before = curves.values["accuracy"][0, 0]  # greedy, as all the others
    caption = (
        f"{described(settings.seeds)[0].upper()}{described(settings.seeds)[1:]}; rollouts and"
        f" learning rate ({settings.rate:g}, not swept) equal for all."
    )
    result = Result(
        series={
            "estimators": series,
            "updates": settings.updates,
            "start": before,
            "sampled": start.accuracy,
            "trpo": trpo,
        },
        facts=_facts(settings, series, trpo, before),
        caption=caption,
    )
    return told(result, halted)


def _end(curves: Curves) -> dict[str, Any]:
    kept: dict[str, Any] = {name: curves.values[name][-1, 0] for name in SHOWN}
    kept["accuracy_mean"], kept["accuracy_half"] = interval(kept["accuracy"])
    return kept | {"halted": curves.halted[0].float().mean()}


def _facts(
    s: Settings, series: dict[str, dict[str, Any]], trpo: dict[str, Any], before: Tensor
) -> list[Fact]:
    """One curve with one update; who loses with many, model by model.

    The directions are fixed, from theory and an earlier run with other models: centred advantages
    push down what a stale sample did wrong, and nothing bounds that.
    """
    facts = []
    if 1 in s.updates and set(SAME) <= set(series):
        far = torch.stack([series[name]["kl_start"][s.updates.index(1)] for name in SAME])
        claim = (
            "With one update per rollout, policy gradient, ratio and clip go the same way: largest"
            " difference of their KL to the start, as a share of it"
        )
        apart = (far.max(0).values - far.min(0).values) / far.mean(0)
        facts.append(Fact(claim, "this course", float(apart.max()), 0.0, 0.0, 1e-3, number=11))
    many = max(s.updates)
    last = {name: rows["accuracy"][s.updates.index(many)] for name, rows in series.items()}
    one = {name: rows["accuracy"][s.updates.index(min(s.updates))] for name, rows in series.items()}
    claims = []
    if {"reinforce", *SAME} <= set(last):
        claims = [
            (
                f"The bare ratio bears {many} updates per rollout worse than the clip",
                last["clip"] - last["surrogate"],
            ),
            (
                f"The policy gradient with centred advantages bears {many} updates per rollout"
                " worse than the one without a baseline (rewards 0 and 1 push nothing down)",
                last["reinforce"] - last["baseline"],
            ),
            (
                f"The clip bears {many} updates per rollout worse than {min(s.updates)}",
                one["clip"] - last["clip"],
            ),
        ]
    if trpo:
        claims.append(
            ("TRPO, one step per rollout, ends above its start", trpo["accuracy"] - before)
        )
    for claim, difference in claims:
        mean, error = mean_error(difference)
        text = f"{claim} (difference of accuracies, model by model)"
        facts.append(
            Fact.above(
                text, "this course", mean, 0.0, error, number=11, runs=s.seeds, chance=CHANCE
            )
        )
    return facts


def plot(result: Result) -> Figure:
    """Final accuracy against updates per rollout, and how far the ratio and the policy went."""
    figure, (accuracy, kl, ratio) = figures.new_figure(1, 3, width=14.0, height=4.6)
    updates = result.array("updates")
    for name in result.settings["rungs"]:
        mean, half = (
            result.array("estimators", name, what) for what in ("accuracy_mean", "accuracy_half")
        )
        figures.band(accuracy, updates, mean, half, name)
        for ax, what in ((kl, "kl_start"), (ratio, "ratio_max")):
            figures.band(ax, updates, result.array("estimators", name, what).mean(-1), None, name)
    levels = {"warm start, greedy": result.array("start")}
    if result.series["trpo"]:
        levels["TRPO, one step"] = result.array("trpo", "accuracy")
    for label, values in levels.items():
        figures.expectation(accuracy, y=float(values.mean()), label=label)
    for ax in (accuracy, kl, ratio):
        figures.log_axis(ax, "x", list(updates), base=2)
    figures.log_axis(kl, "y")
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
