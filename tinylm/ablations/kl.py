"""The KL anchor on a language model: what it holds, what it costs, and what it buys.

A small transformer is warm-started on addition AND subtraction; reinforcement learning then rewards sums alone. GRPO is trained
with each estimator of the KL at each place (k1, k2, k3 in the loss, k3 times the ratio, k1 in the reward, the exact KL of every
token) and each β. What to look for:

    the distance really travelled from the reference, which is what β is meant to set: it does so to a different degree for each
    k1 in the loss, whose gradient has mean 0 on policy: it holds nothing
    k1 in the reward under the group's std: where all answers of a group score alike, the penalty's own differences are all there is,
      and the std blows them up to size 1, whatever β
    sums, which is what is rewarded, and differences, which nobody asked for any more: the anchor costs of the one, and keeps the other
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import figures, ladder
from course.errors import require, unknown
from course.estimator import Estimator
from course.estimator import replace as swap
from course.parts import K1, K2, K3, KL, ExactKL, InLossTimesRatio, InReward
from course.results import Fact, Result, mean_error
from course.terminal import Progress
from tinylm import tasks
from tinylm.experiment import Budget, Curves, interval, train, warm_start
from tinylm.tasks import Task, TaskSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "the KL anchor: β × estimator × place, against the distance really travelled and what it does to another skill"
FIGURE = "tinylm_kl"
EXPECTED_SECONDS = 300.0
SEEN = "measured here"
TRAINED, KEPT = "addition", "subtraction"  # rewarded, and not


@dataclass(frozen=True)
class Penalty:
    """One way to hold the policy: its class and place, and how it is drawn."""

    kind: type[KL]
    options: Mapping[str, Any]
    colour: str
    dashes: Any = figures.SOLID

    def at(self, beta: float) -> KL:
        """The part, with that β."""
        return self.kind(beta, **self.options)


PENALTIES: dict[str, Penalty] = {
    "k1 in the loss": Penalty(K1, {}, "#4a98e0"),
    "k2 in the loss": Penalty(K2, {}, "#b8860b"),
    "k3 in the loss": Penalty(K3, {}, "#b8320f"),
    "ρ·k3 in the loss": Penalty(K3, {"place": InLossTimesRatio()}, "#c25fa0", figures.DASH),
    "k1 in the reward": Penalty(K1, {"place": InReward()}, "#0057a3", figures.DASH),
    "exact in the loss": Penalty(ExactKL, {}, "#00875f"),
}


@dataclass(frozen=True)
class Settings(Budget):
    """Which penalties, how strong; and the size of each training."""

    penalties: tuple[str, ...] = tuple(PENALTIES)  # estimator and place
    betas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # strengths β
    rate: float = 7e-4  # Adam's learning rate, falling to 0 in a line
    prompts: int = 16  # questions per rollout
    rollouts: int = 60  # of reinforcement learning
    epochs: int = 2  # updates per rollout
    warm_target: float = 0.4  # sampled accuracy of the warm start on both skills together
    log_every: int = 60  # rollouts; also the last one
    seeds: int = 4  # models

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.penalties:
            if name not in PENALTIES:
                raise unknown("penalty", name, PENALTIES)
        require(len(self.penalties) > 0, "penalties", self.penalties, "at least one name")
        require(len(self.betas) > 0 and min(self.betas) > 0, "betas", self.betas, "numbers > 0")
        require(0 < self.rate < float("inf"), "rate", self.rate, "a number > 0")
        require(self.seeds > 1, "seeds", self.seeds, "at least 2, for an interval")


SETTINGS = Settings()
SHOWN = ("accuracy", KEPT, "kl_start", "silent_groups")


def two_skills(digits: int) -> tuple[Task, Task, Tensor]:
    """Both tasks as one table, to warm-start on; the same table with sums alone to train on and to judge; held-out differences' rows."""
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
    return whole, replace(whole, train=first.train, held_out=first.held_out), second.held_out + count


def ends(curves: Curves) -> dict[str, Any]:
    """What is kept of a training: each seed's last numbers, the other skill's among them."""
    kept: dict[str, Any] = {name: curves.values[name][-1, 0] for name in SHOWN}
    for name in SHOWN:
        kept[f"{name}_mean"], kept[f"{name}_half"] = interval(kept[name])
    return kept | {"halted": curves.halted[0].float().mean(), "seconds": curves.seconds}


def run(settings: Settings, progress: Progress) -> Result:
    """One warm start; then one training without KL, and one for each penalty and β, all seeds at once."""
    both, sums, others = two_skills(settings.digits)
    start = warm_start(settings, progress, task=both)
    start = replace(start, task=sums.to(settings.device))
    others = others[:: max(1, len(others) // settings.judged)][: settings.judged].to(settings.device)
    base = ladder.get("length_mean").estimator  # GRPO less its KL

    def trained(estimator: Estimator, text: str) -> Curves:
        return train(estimator, settings, start, (settings.rate,), progress, also={KEPT: others}, text=text)

    free = trained(base, "no KL")
    found: dict[str, dict[str, Any]] = {}
    for name in progress(settings.penalties, "penalties"):
        every = [ends(trained(swap(base, kl=PENALTIES[name].at(beta)), f"{name}, β = {beta:g}")) for beta in settings.betas]
        found[name] = {key: torch.stack([torch.as_tensor(one[key]) for one in every]) for key in every[0]}
    none = ends(free)
    before = {name: free.values[name][0, 0] for name in ("accuracy", KEPT)}
    series = {"none": none, "penalties": found, "start": {name: value.mean() for name, value in before.items()}, "sampled": start.accuracy}
    return Result(series=series, facts=_facts(settings, found, none, before), caption=CAPTION)


def _facts(s: Settings, found: Mapping[str, Mapping[str, Tensor]], none: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[Fact]:
    """Differences seed by seed (same warm start, same questions), with their standard errors."""
    facts: list[Fact] = []
    most = f"With β = {s.betas[-1]:g}"

    def below(claim: str, one: Tensor, other: Tensor) -> None:
        mean, error = mean_error(one - other)
        facts.append(Fact.below(claim, SEEN, mean, 0.0, error))

    below("Rewarding sums alone costs differences: accuracy on them after training without KL, less that before", none[KEPT], before[KEPT])
    for name in ("k2 in the loss", "k3 in the loss", "exact in the loss"):
        if name in found:
            claim = f"{most} {name} keeps the policy nearer to the reference than no KL does (difference of the distance, nats)"
            below(claim, found[name]["kl_start"][-1], none["kl_start"])
    return facts


CAPTION = (
    "Addition and subtraction by supervision, then GRPO rewarded for addition alone. Mean of the seeds and its 95 % interval "
    "(Student's t); accuracies are greedy, on held-out questions; the distance is KL(π‖reference) along greedy answers."
)


def plot(result: Result) -> Figure:
    """Distance, the skill that is rewarded and the one that is not, against β; and what the distance costs and buys."""
    figure, panels = figures.new_figure(2, 2, width=13.0, height=9.2)
    distance, rewarded, kept, both = panels
    _against_beta(distance, result, "kl_start", "β sets the distance, or does not", "KL(π‖reference) of an answer (nats)")
    _against_beta(rewarded, result, "accuracy", "Sums: rewarded", "held-out accuracy")
    _against_beta(kept, result, KEPT, "Differences: not rewarded any more", "held-out accuracy")
    for name in result.series["penalties"]:
        x, y = (result.array("penalties", name, f"{what}_mean") for what in ("accuracy", KEPT))
        colour = PENALTIES[name].colour
        both.plot(x, y, color=colour, linestyle=PENALTIES[name].dashes, linewidth=1.2, zorder=2, label=name)
        sizes = 22 + 55 * torch.linspace(0, 1, len(x)).numpy()
        both.scatter(x, y, s=sizes, color=colour, zorder=3)
    for where, label, marker in (
        ((result.array("start", "accuracy"), result.array("start", KEPT)), "warm start", "s"),
        ((result.array("none", "accuracy_mean"), result.array("none", f"{KEPT}_mean")), "no KL", "X"),
    ):
        both.scatter(*where, s=90, marker=marker, color=figures.INK, zorder=4)
        both.annotate(label, (float(where[0]), float(where[1])), (9, 5), textcoords="offset points", color=figures.INK)
    figures.describe(both, "One skill against the other (larger: larger β)", "accuracy on sums", "accuracy on differences")
    both.margins(0.12)
    for ax in (distance, rewarded, kept):
        figures.label_ends(ax)
    return figure


def _against_beta(ax: Axes, result: Result, what: str, title: str, unit: str) -> None:
    betas = result.settings["betas"]
    for name in result.series["penalties"]:
        mean, half = (result.array("penalties", name, f"{what}_{part}") for part in ("mean", "half"))
        style = {"color": PENALTIES[name].colour, "linestyle": PENALTIES[name].dashes}
        figures.band(ax, betas, mean, None, label=name, marker="o", markersize=4, **style)
        ax.errorbar(betas, mean, half, color=style["color"], linestyle="none", linewidth=0.9, alpha=0.6)
    figures.expectation(ax, float(result.array("none", f"{what}_mean")), label="no KL")
    if what != "kl_start":
        level = float(result.array("start", what))
        ax.axhline(level, color="#777777", linewidth=1.0, linestyle=":", label="warm start")
    ax.set_xscale("log")
    ax.set_xticks(betas, [f"{beta:g}" for beta in betas])
    ax.set_xticks([], minor=True)
    figures.describe(ax, title, "strength β of the penalty", unit)


__all__ = ["EXPECTED_SECONDS", "FIGURE", "PENALTIES", "SETTINGS", "TITLE", "Settings", "plot", "run", "two_skills"]
