"""The KL anchor on a language model: what it holds, what it costs, and what it buys.

A small transformer is warm-started on addition AND subtraction; reinforcement learning then rewards
sums alone. GRPO is trained with each estimator of the KL at each place (k1, k2, k3 in the loss, k3
times the ratio, k1 in the reward, the exact KL of every token) and each β. What to look for:

    the actual distance from the reference, which β is meant to control
    k1 in the loss: on-policy its gradient has mean 0, so it does not hold the policy. From the
      second update of a rollout on it is worse: descending β·E_old[log π] means ascending
      β·KL(π_old‖π), which drives the policy away from its own samples
    sums, which are rewarded: does an anchor make them worse?
    differences, which are no longer trained (the dotted line is the warm start): are some
      forgotten, and does an anchor keep them? The facts say which effects exceed the scatter of the
      models
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import ladder
from course.errors import misnamed, require
from course.estimator import Estimator
from course.estimator import replace as swap
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, mean_error
from course.lab.terminal import Progress
from course.parts import K1, K2, K3, KL, ExactKL, InLossTimesRatio, InReward
from tinylm import tasks
from tinylm.curves import CHANCE, AblationBudget, Curves, held_out, train
from tinylm.tasks import Task, TaskSettings
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = (
    "the KL anchor: β × estimator × place, against the distance really travelled and what it does"
    " to another skill"
)
FIGURE = "tinylm_kl"
EXPECTED_SECONDS = 480.0
SEEN = "measured here"
TRAINED, KEPT = "addition", "subtraction"  # rewarded, and not
LOOSE = "k1 in the loss"
ANCHORS = (
    "k2 in the loss",
    "k3 in the loss",
    "ρ·k3 in the loss",
    "exact in the loss",
)  # with the gradient of a KL, in the loss


@dataclass(frozen=True)
class Penalty:
    """A KL penalty: its class, its place, and how it is drawn."""

    kind: type[KL]
    options: Mapping[str, Any]
    colour: str
    dashes: Any = figures.SOLID

    def at(self, beta: float) -> KL:
        """The penalty with coefficient `beta`."""
        return self.kind(beta, **self.options)


PENALTIES: dict[str, Penalty] = {
    LOOSE: Penalty(K1, {}, "#4a98e0"),
    "k2 in the loss": Penalty(K2, {}, "#b8860b"),
    "k3 in the loss": Penalty(K3, {}, "#b8320f"),
    "ρ·k3 in the loss": Penalty(K3, {"place": InLossTimesRatio()}, "#c25fa0", figures.DASH),
    "k1 in the reward": Penalty(K1, {"place": InReward()}, "#0057a3", figures.DASH),
    "exact in the loss": Penalty(ExactKL, {}, "#00875f"),
}


@dataclass(frozen=True)
class Settings(AblationBudget):
    """Which penalties, how strong; and the size of each training."""

    penalties: tuple[str, ...] = tuple(PENALTIES)  # estimator and place
    betas: tuple[float, ...] = (0.1, 0.3, 1.0)  # strengths β
    rate: float = 1e-3  # Adam's learning rate, which falls linearly to 0
    rollouts: int = 120  # rollouts of reinforcement learning
    warm_target: float = 0.4  # sampled accuracy of the warm start on both skills together
    warm_lr: float = 3e-3  # Adam's learning rate in the warm start
    warm_batch: int = 256  # demonstrations per step: two skills need more of them
    seeds: int = 5  # models that are judged
    log_every: int = 120  # rollouts; the last one is logged, too

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.penalties:
            if name not in PENALTIES:
                raise misnamed("penalties", "penalty", name, PENALTIES)
        require(min(self.betas) > 0, "betas", self.betas, "numbers > 0")


SETTINGS = Settings()
SHOWN = ("accuracy", KEPT, "kl_start", "silent_groups")


def two_skills(digits: int) -> tuple[Task, Task, Tensor]:
    """Both tasks in one table for the warm start; the same table split to train on sums alone.

    The third result holds the rows of the held-out differences.
    """
    first, second = (tasks.make(TaskSettings(name=name, digits=digits)) for name in (TRAINED, KEPT))
    count = len(first.prompt)
    whole = replace(
        first,
        prompt=torch.cat([first.prompt, second.prompt]),
        target=torch.cat([first.target, second.target]),
        answer=torch.cat([first.answer, second.answer]),
        difficulty=torch.cat([first.difficulty, second.difficulty]),
        train=torch.cat([first.train, second.train + count]),
        held_out=torch.cat([first.held_out, second.held_out + count]),
    )
    return (
        whole,
        replace(whole, train=first.train, held_out=first.held_out),
        second.held_out + count,
    )


def ends(curves: Curves) -> dict[str, Any]:
    """What is kept of a training: each seed's last numbers, the other skill's among them."""
    kept: dict[str, Any] = {name: curves.values[name][-1, 0] for name in SHOWN}
    for name in SHOWN:
        kept[f"{name}_mean"], kept[f"{name}_half"] = interval(kept[name])
    return kept | {"halted": curves.halted[0].float().mean(), "seconds": curves.seconds}


def run(settings: Settings, progress: Progress) -> Result:
    """One warm start; then one training without KL, and one for each penalty and β, all seeds at
    once.
    """
    both, sums, others = two_skills(settings.digits)
    start = warm_start(settings, settings.seeds, progress, task=both)
    start = replace(start, task=sums.to(settings.device))
    others = held_out(replace(start.task, held_out=others), settings.judged).to(settings.device)
    base = ladder.get("length_mean").estimator  # GRPO less its KL

    halted: dict[str, Tensor] = {}

    def trained(estimator: Estimator, text: str) -> Curves:
        curves = train(
            settings,
            estimator,
            start,
            (settings.rate,),
            range(settings.seeds),
            progress,
            also={KEPT: others},
            text=text,
        )
        halted[text] = curves.halted
        return curves

    free = trained(base, "no KL")
    found: dict[str, dict[str, Any]] = {}
    for name in progress(settings.penalties, "penalties"):
        every = [
            ends(trained(swap(base, kl=PENALTIES[name].at(beta)), f"{name}, β = {beta:g}"))
            for beta in settings.betas
        ]
        found[name] = {
            key: torch.stack([torch.as_tensor(one[key]) for one in every]) for key in every[0]
        }
    none = ends(free)
    before = {name: free.values[name][0, 0] for name in ("accuracy", KEPT)}
    series = {
        "none": none,
        "penalties": found,
        "start": {name: value.mean() for name, value in before.items()},
        "sampled": start.accuracy,
    }
    caption = f"{CAPTION} Intervals: {described(settings.seeds)}."
    result = Result(series=series, facts=_facts(settings, found, none, before), caption=caption)
    return told(result, halted)


def _facts(
    s: Settings,
    found: Mapping[str, Mapping[str, Tensor]],
    none: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> list[Fact]:
    """Differences model by model (same warm start, same questions); each is written, whether it
    holds or not.
    """
    facts: list[Fact] = []
    most = f"With β = {s.betas[-1]:g}"

    def compare(claim: str, difference: Tensor, *, above: bool = False) -> None:
        mean, error = mean_error(difference)
        make = Fact.above if above else Fact.below
        facts.append(make(claim, SEEN, mean, 0.0, error, runs=s.seeds, chance=CHANCE))

    claim = (
        "Rewarding sums alone costs differences: accuracy on them after training without KL, less"
        " that before"
    )
    compare(claim, none[KEPT] - before[KEPT])
    for name in (*ANCHORS, "k1 in the reward"):
        if name in found:
            claim = (
                f"{most} {name} ends nearer to the reference than no KL does (log of the ratio of"
                " the distances)"
            )
            compare(claim, found[name]["kl_start"][-1].log() - none["kl_start"].log())
    if all(name in found for name in ANCHORS):
        claim = (
            f"{most} differences are kept better than without KL (accuracy less that without, mean"
            f" of {', '.join(ANCHORS)})"
        )
        kept = torch.stack([found[name][KEPT][-1] for name in ANCHORS]).mean(0)
        compare(claim, kept - none[KEPT], above=True)
    if LOOSE in found and s.epochs > 1:
        claim = f"{most} {LOOSE} destroys what is rewarded: accuracy on sums, less that without KL"
        compare(claim, found[LOOSE]["accuracy"][-1] - none["accuracy"])
    return facts


CAPTION = (
    "Addition and subtraction by supervision, then GRPO rewarded for addition alone. Accuracies are"
    " greedy, on held-out questions, less those of the same model without KL. One learning rate for"
    " all, not swept. The distance is KL(π‖reference) along greedy answers. Points of one β are"
    " moved apart a little."
)


def plot(result: Result) -> Figure:
    """Distance, the skill that is rewarded and the one that is not, against β; and one skill
    against the other.
    """
    figure, (distance, rewarded, kept, both) = figures.new_figure(2, 2, width=13.6, height=9.2)
    names = list(result.series["penalties"])
    _against_beta(
        distance,
        result,
        "kl_start",
        lambda name: interval(result.array("penalties", name, "kl_start")),
    )
    figures.expectation(distance, float(result.array("none", "kl_start_mean")), label="no KL")
    distance.set_yscale("log")
    figures.describe(
        distance,
        "How far it really went: k1 in the loss holds nothing",
        "strength β of the penalty",
        "KL(π‖reference) of an answer (nats)",
    )
    for ax, what, title in (
        (rewarded, "accuracy", "Sums: rewarded"),
        (kept, KEPT, "Differences: not asked for any more"),
    ):
        _against_beta(
            ax,
            result,
            what,
            lambda name, what=what: interval(_gain(result, name, what)),  # type: ignore[misc]
        )
        figures.expectation(ax, 0.0, label="no KL")
        level = float(result.array("start", what) - result.array("none", f"{what}_mean"))
        ax.axhline(level, color="#777777", linewidth=1.2, linestyle=":", label="warm start")
        ax.set_ylim(-0.25, 0.2)
        figures.describe(ax, title, "strength β of the penalty", "accuracy less that without KL")
    for name in names:
        if name != LOOSE:
            x, y = (_gain(result, name, what).mean(-1) for what in ("accuracy", KEPT))
            look = {"color": PENALTIES[name].colour, "linestyle": PENALTIES[name].dashes}
            both.plot(x, y, linewidth=1.4, label=name, **look)
            both.scatter(
                x, y, s=[20 + 45 * place for place in range(len(x))], color=look["color"], zorder=3
            )
    begun = [
        float(result.array("start", what) - result.array("none", f"{what}_mean"))
        for what in ("accuracy", KEPT)
    ]
    for where, label, marker in ((begun, "warm start", "s"), ([0.0, 0.0], "no KL", "X")):
        both.scatter(where[0], where[1], s=90, marker=marker, color=figures.INK, zorder=4)
        both.annotate(
            label, (where[0], where[1]), (10, -4), textcoords="offset points", color=figures.INK
        )
    figures.describe(
        both,
        "One against the other (larger point: larger β)",
        "sums: accuracy less that without KL",
        "differences: the same",
    )
    both.margins(0.12)
    if LOOSE in names:
        both.text(
            0.02,
            0.03,
            f"{LOOSE} leaves the picture to the lower left",
            transform=both.transAxes,
            color=PENALTIES[LOOSE].colour,
        )
    for ax in (distance, rewarded, kept):
        figures.label_ends(ax)
    both.legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _gain(result: Result, name: str, what: str) -> NDArray[np.float64]:
    """[β, seeds] what is measured, less what the same seed has without KL."""
    return result.array("penalties", name, what) - result.array("none", what)


def _against_beta(
    ax: Axes, result: Result, what: str, measured: Callable[[str], tuple[Any, Any]]
) -> None:
    betas, names = (
        np.asarray(result.settings["betas"], dtype=float),
        list(result.series["penalties"]),
    )
    for place, name in enumerate(names):
        mean, half = measured(name)
        if what == "kl_start":
            half = np.minimum(half, 0.9 * mean)  # what is drawn on a logarithmic axis is above 0
        x = betas * 1.05 ** (place - (len(names) - 1) / 2)
        style = {"color": PENALTIES[name].colour, "linestyle": PENALTIES[name].dashes}
        figures.band(ax, x, mean, None, label=name, marker="o", markersize=4, **style)
        ax.errorbar(x, mean, half, color=style["color"], linestyle="none", linewidth=1.1, alpha=0.7)
    figures.log_axis(ax, "x", list(betas))


__all__ = [
    "EXPECTED_SECONDS",
    "FIGURE",
    "PENALTIES",
    "SETTINGS",
    "TITLE",
    "Settings",
    "plot",
    "run",
    "two_skills",
]
