"""The KL anchor on a language model: what it holds, what it costs, and what it buys.

A nano transformer is warm-started on addition AND subtraction of digits; reinforcement learning
then rewards sums alone. So small a table holds no questions out: accuracies are of all of them.
GRPO is trained with each estimator of the KL at each place and with each β, at one learning rate:
the best without KL, chosen on other models and questions. What to look for:

    the actual distance from the reference, which β is meant to control
    k1 in the loss: on-policy its gradient has mean 0, so it does not hold the policy. From the
      second update of a rollout on it is worse: descending β·E_old[log π] means ascending
      β·KL(π_old‖π), which drives the policy away from its own samples
    differences, which are no longer trained: are some forgotten, and does an anchor keep them?
    sums, which are rewarded: does an anchor make them worse?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import ladder
from course.errors import misnamed, require
from course.estimator import replace as swap
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, named_interval
from course.lab.sweep import edges
from course.lab.terminal import Progress
from course.parts import K1, K2, K3, KL, ExactKL, InLossTimesRatio, InReward
from tinylm import tasks
from tinylm.curves import Curves, SweptBudget, compared, held_out, sweep_rates, train
from tinylm.tasks import Task, TaskSettings
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "the KL anchor: β × estimator × place, against the distance really travelled and what it does"
    " to another skill"
)
FIGURE = "tinylm_kl"
EXPECTED_SECONDS = 220.0
TRAINED, KEPT = "addition", "subtraction"  # rewarded, and not
LOOSE = "k1 in the loss"
ANCHORS = (
    "k2 in the loss",
    "k3 in the loss",
    "ρ·k3 in the loss",
    "exact in the loss",
)  # with the gradient of a KL, in the loss
PENALTIES: dict[str, KL] = {  # at β = 1
    LOOSE: K1(1.0),
    "k2 in the loss": K2(1.0),
    "k3 in the loss": K3(1.0),
    "ρ·k3 in the loss": K3(1.0, place=InLossTimesRatio()),
    "exact in the loss": ExactKL(1.0),
    "k1 in the reward": K1(1.0, place=InReward()),
}


@dataclass(frozen=True)
class Settings(SweptBudget):
    """Which penalties, how strong; and the size of each training."""

    penalties: tuple[str, ...] = tuple(PENALTIES)  # estimator and place
    betas: tuple[float, ...] = (0.1, 1.0)  # strengths β
    preset: str = "nano"  # nano, mini, small or gpu
    digits: int = 1  # digits of each number
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    rollouts: int = 160  # rollouts of reinforcement learning
    epochs: int = 4  # updates per rollout: with one, k1 in the loss only adds noise
    warm_target: float = 0.4  # sampled accuracy of the warm start on both skills together
    log_every: int = 160  # rollouts; the last one is logged, too
    tuning: int = 4  # models that choose the rate
    seeds: int = 12  # models that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.penalties:
            if name not in PENALTIES:
                raise misnamed("penalties", "penalty", name, PENALTIES)
        require(min(self.betas) > 0, "betas", self.betas, "numbers > 0")


SETTINGS = Settings()
SHOWN = ("accuracy", KEPT, "kl_start")


def two_skills(digits: int) -> tuple[Task, Task, Tensor]:
    """Both tasks in one table for the warm start; the same table to train on sums alone, which are
    all judged; and the rows of all differences, which are never trained on again.
    """
    first, second = (tasks.make(TaskSettings(name=name, digits=digits)) for name in (TRAINED, KEPT))
    whole, count = tasks.together(first, second), len(first.prompt)
    sums = replace(whole, train=first.train, held_out=torch.arange(count))
    return whole, sums, count + torch.arange(len(second.prompt))


def run(settings: Settings, progress: Progress) -> Result:
    """One warm start; the rate without KL; then one training for each penalty and β."""
    s = settings
    both, sums, others = two_skills(s.digits)
    start = warm_start(s, s.models, progress, task=both)
    start = replace(start, task=sums.to(s.device))
    also = {KEPT: held_out(replace(start.task, held_out=others), s.judged).to(s.device)}
    base = ladder.get("length_mean").estimator  # GRPO less its KL
    swept = sweep_rates(s, base, start, progress, also=also, text="no KL")
    halted = {"no KL": swept.judged.halted}
    rate, judged = (swept.choice.rate,), range(s.tuning, s.models)
    found: dict[str, dict[str, Any]] = {}
    for name in progress(s.penalties, "penalties"):
        ended = []
        for beta in s.betas:
            text, estimator = f"{name}, β = {beta:g}", swap(base, kl=at(name, beta))
            curves = train(s, estimator, start, rate, judged, progress, also=also, text=text)
            halted[text] = curves.halted
            ended.append(ends(curves))
        found[name] = {key: torch.stack([one[key] for one in ended]) for key in SHOWN}
    none = ends(swept.judged)
    before = {name: swept.judged.values[name][0, 0] for name in ("accuracy", KEPT)}
    series = {
        "none": none | {f"{name}_mean": none[name].mean() for name in SHOWN},
        "penalties": {name: kept | over(kept, none) for name, kept in found.items()},
        "start": {name: value.mean() for name, value in before.items()},
        "start_over_none": {n: interval(before[n] - none[n])[0] for n in ("accuracy", KEPT)},
        "rate": swept.choice.rate,
        "sampled": start.accuracy,
    }
    caption = (
        "Addition and subtraction by supervision, then GRPO rewarded for addition alone. Accuracies"
        " are of greedy answers, and the distance is KL(π‖reference) along them."
        f" Less, or as a multiple of, what the same model has without KL: {described(s.seeds)}. One"
        f" learning rate, {swept.choice.rate:g}: the best for sums without KL, chosen on {s.tuning}"
        f" other models and other questions. {edges({'no KL': swept.choice}, s.rates)}"
    )
    result = Result(series=series, facts=_facts(s, found, none, before), caption=caption.strip())
    return told(result, halted)


def at(name: str, beta: float) -> KL:
    """The penalty with coefficient `beta`."""
    return replace(PENALTIES[name], beta=beta)


def ends(curves: Curves) -> dict[str, Tensor]:
    """Each model's last numbers [S], the other skill's among them."""
    return {name: curves.values[name][-1, 0] for name in SHOWN}


def over(kept: Mapping[str, Tensor], none: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a penalty [β, S] changes, model by model: accuracies less those without KL, and the log
    of the ratio of the distances.
    """
    far = kept["kl_start"].log10() - none["kl_start"].log10()
    found = named_interval("over_kl_start", far)
    for name in ("accuracy", KEPT):
        found |= named_interval(f"over_{name}", kept[name] - none[name])
    return found


def _facts(
    s: Settings,
    found: Mapping[str, Mapping[str, Tensor]],
    none: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> list[Fact]:
    """Differences model by model; each is written, whether it holds or not. The directions are
    theory's, and were fixed before the run.
    """
    most = f"With β = {s.betas[-1]:g}"
    claim = "Rewarding sums alone costs differences: accuracy on them before and after, without KL"
    facts = [compared(claim, before[KEPT], none[KEPT])]
    for name in (*ANCHORS, "k1 in the reward"):
        if name in found:
            claim = f"{most} {name} ends nearer to the reference than no KL does (log of distance)"
            facts.append(compared(claim, none["kl_start"].log(), found[name]["kl_start"][-1].log()))
    if all(name in found for name in ANCHORS):
        claim = (
            f"{most} differences are kept better than without KL (accuracy, mean of"
            f" {', '.join(ANCHORS)})"
        )
        kept = torch.stack([found[name][KEPT][-1] for name in ANCHORS]).mean(0)
        facts.append(compared(claim, kept, none[KEPT]))
    if LOOSE in found and s.epochs > 1:
        claim = f"{most} {LOOSE} destroys what is rewarded: accuracy on sums without KL, less its"
        facts.append(compared(claim, none["accuracy"], found[LOOSE]["accuracy"][-1]))
    return facts


def plot(result: Result) -> Figure:
    """A row for each penalty: distance and both skills, beside the same model without KL."""
    figure, (far, kept, rewarded) = figures.new_figure(1, 3, width=16.0, height=4.8)
    _rows(far, result, "kl_start")
    _rows(kept, result, KEPT)
    _rows(rewarded, result, "accuracy")
    far.set_xticks([-1, 0, 1, 2], ["0.1 ×", "1 ×", "10 ×", "100 ×"])
    x = "KL(π‖reference) as a multiple of that without KL"
    figures.describe(far, "What holds the policy: not k1 in the loss", x)
    x = "accuracy less that without KL, paired"
    figures.describe(kept, "Differences, not asked for any more", x)
    figures.describe(rewarded, "Sums, which are rewarded", x)
    figures.legend_above([far], columns=2)
    return figure


def _rows(ax: Axes, result: Result, what: str) -> None:
    """A row per penalty, a shade per β; a dotted line where the warm start was."""
    names, betas = list(result.series["penalties"]), result.settings["betas"]
    mean, half = (
        np.array([result.array("penalties", name, f"over_{what}{end}") for name in names])
        for end in ("", "_half")
    )  # [penalties, β]
    for i, (beta, colour) in enumerate(zip(betas, figures.shades(len(betas)), strict=True)):
        aside, label = 0.2 * (i - len(betas) / 2 + 0.5), f"β = {beta:g}"
        figures.rows(ax, names, mean[:, i], half[:, i], aside=aside, color=colour, label=label)
    figures.reference(ax, x=0.0, label="no KL")
    if what == "kl_start":
        return
    begun = float(result.array("start_over_none", what))
    figures.reference(ax, x=begun, label="warm start", linestyle=":")
    low = min(-0.2, begun - 0.1)
    ax.set_xlim(low, max(0.15, begun + 0.12))
    for row, values in enumerate(mean):  # what leaves the picture
        out = [f"{value:+.2f}" for value in values if value < low]
        if out:
            figures.note(ax, f"← {' and '.join(out)}", (low, row), (4, -14))
