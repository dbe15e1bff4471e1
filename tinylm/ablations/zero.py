"""From zero: two-digit sums from random weights by reinforcement learning alone (R1-Zero, small).

Nothing is demonstrated. The reward is 1 for the exact answer and up to ½ for its digits. GRPO goes
from 0 to nearly all held-out questions. The same estimator without its KL, `length_mean`, mostly
ends at 0: the credit for digits is satisfied without the end token, so the policy becomes certain
of answers that never end, all samples of a group pay the same ½, and the group is silent. The end
token has died out before it was ever worth something. Now and then a model finds it in time: one
of four did, and stayed near 60 %.

What to look for:

    accuracy with the KL and without it, from the same random weights and streams
    entropy, and the share of answers that are cut at the limit: what dies without the KL
    the same prevented otherwise: an entropy bonus, the reverse KL, credit for the end token; and
      which of them needs the std

`python -m bandits rare_prize` explains it on three arms. `python -m tinylm zero` runs the two arms
that matter; `python -m tinylm zero_arms` runs all of them, for the course's figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course.errors import misnamed, require_number
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import described, interval, mean_error, paired_error, paired_interval
from course.lab.terminal import Progress
from tinylm.curves import CHANCE, AblationBudget
from tinylm.from_zero import ARMS, BELOW, CLAIMS, predicted, trained
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "two-digit sums from random weights: GRPO with its KL, and the same without"
FIGURE = "tinylm_zero_live"
EXPECTED_SECONDS = 320.0
SEEN = "measured here"
ENOUGH = 4  # models; with fewer, no claim is made
LATE = 4  # logged rollouts at the end
NUMBER = 42  # of the claim in the course's list


@dataclass(frozen=True)
class Settings(AblationBudget):
    """Which arms, and the size of each training; the arms decide on the reward."""

    arms: tuple[str, ...] = ("grpo", "length_mean")  # those that are trained, or all
    rate: float = 3e-3  # Adam's learning rate, which falls linearly to 0
    preset: str = "mini"  # nano, mini, small or gpu
    digits: int = 2  # digits of each number
    warm_target: float = 0.0  # no demonstration
    prompts: int = 64  # questions per rollout
    group: int = 16  # completions per question
    rollouts: int = 1200  # rollouts of reinforcement learning
    log_every: int = 50  # rollouts between two points of a curve
    judged: int = 500  # held-out questions that measure the accuracy
    tuning: int = 2  # the first models helped to choose the rate, and are not among …
    seeds: int = 2  # … the models that are judged, each from its own random weights

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arms == ("all",):
            object.__setattr__(self, "arms", tuple(ARMS))
        for name in self.arms:
            if name not in ARMS:
                raise misnamed("arms", "arm", name, ["all", *ARMS])
        require_number("rate", self.rate, "a number > 0", above=0)
        require_number(
            "group", self.group, "at least 2: the answers of a group are compared", at_least=2
        )
        require_number("warm_target", self.warm_target, "0: nothing is shown", at_most=0)


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Train each arm from the same random weights, with the same random streams."""
    s = settings
    start = warm_start(s, s.tuning + s.seeds, progress)
    numbers = range(s.tuning, s.tuning + s.seeds)
    arms = {
        name: trained(s, ARMS[name], s.rate, start, numbers, progress)
        for name in progress(s.arms, "arms")
    }
    return collected(settings, arms)


def collected(settings: Settings, arms: dict[str, dict[str, Any]]) -> Result:
    """The result of the arms that were trained: finals, paired differences and facts."""
    halted = {name: torch.as_tensor(row["halted"]) for name, row in arms.items()}
    for row in arms.values():
        row["final_mean"], row["final_half"] = interval(row["final"])
    differences: dict[str, Any] = {}
    for ahead, behind, _ in _claims(arms):
        mean, half = paired_interval(arms[ahead]["final"], arms[behind]["final"])
        differences[f"{ahead} - {behind}"] = {"mean": mean, "half": half}
    expected = predicted(settings.digits, settings.group)
    series = {"arms": arms, "differences": differences, "predicted": expected}
    caption = (
        f"A {settings.preset} transformer from random weights on sums of {settings.digits} digits,"
        f" without demonstrations; greedy accuracy on held-out questions. Thin lines and dots:"
        f" single models; thick: {described(settings.seeds)}."
    )
    return told(Result(series=series, facts=_facts(settings, arms), caption=caption), halted)


def _claims(arms: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The claims of which both arms were trained."""
    return [claim for claim in CLAIMS if claim[0] in arms and claim[1] in arms]


def _facts(s: Settings, arms: Mapping[str, Mapping[str, Any]]) -> Facts:
    """What the difference of two arms says, model by model; and how GRPO and the others end."""
    at = f"{s.rollouts:,} rollouts from random weights"
    facts = Facts(SEEN, NUMBER, runs=s.seeds, chance=CHANCE)
    if s.seeds < ENOUGH:
        return facts

    def of(name: str, what: str) -> Tensor:
        return torch.as_tensor(arms[name][what])

    for ahead, behind, why in _claims(arms):
        claim = f"{why}: held-out accuracy after {at}, {ARMS[ahead].label} less"
        more = paired_error(of(ahead, "final"), of(behind, "final"))
        facts.above(f"{claim} {ARMS[behind].label}", more)
    below = [name for name in BELOW if name in arms]
    if below:
        most = max(float(of(name, "final").max()) for name in below)
        claim = f"Without a KL the best model of {', '.join(below)} answers fewer than one held-out"
        facts.below(f"{claim} question in fifty after {at}", most, 0.02)
    if "grpo" in arms:
        claim = f"GRPO's worst model answers more than 95 % of held-out questions after {at}"
        facts.above(claim, float(of("grpo", "final").min()), 0.95)
        silent = mean_error(of("grpo", "silent_groups")[-LATE:].double().mean(0))
        claim = f"GRPO's share of silent groups in its last {LATE} logged rollouts, against the"
        expected = predicted(s.digits, s.group)["silent_groups"]
        facts.simulated(f"{claim} balance of KL and reward", silent, expected, source="derived")
    if "grpo" in arms and "length_mean" in arms:
        cut = paired_error(*(of(name, "truncated")[-1] for name in ("length_mean", "grpo")))
        claim = f"Without its KL the answers are cut at the limit: difference of the shares, {at}"
        facts.above(claim, cut, 0.5)
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """Accuracy with and without the KL, all arms at the end, and what dies along the way."""
    figure, panels = figures.new_figure(2, 3, width=16.0, height=8.4, width_ratios=(3, 3, 4))
    accuracy, entropy, ends, cut, silent, spare = panels
    grid = ends.get_gridspec()
    assert grid is not None
    spare.remove()
    ends.set_subplotspec(grid[:, 2])
    there = list(result.series["arms"])
    below = [name for name in BELOW if name in there]
    labels = dict.fromkeys(below, "_below")  # one label for all of them
    if below:
        count = f"{len(below)} rungs without a KL" if len(below) > 1 else ARMS[below[0]].label
        labels[below[-1]] = count
    rungs = [name for name in (*below, "grpo") if name in there]
    few = [name for name in ("reinforce", "length_mean", "entropy", "grpo") if name in there]
    short = {"length_mean": "without KL", "entropy": "entropy bonus"}
    level = float(result.array("predicted", "silent_groups"))
    figures.expectation(silent, level, label="GRPO, predicted")
    for ax, names, what, title, unit, words in (
        (accuracy, rungs, "accuracy", "With its KL, and without", "held-out accuracy", labels),
        (entropy, few, "entropy", "Without it, entropy dies", "nats per token", short),
        (cut, few, "truncated", "… and the end token", "answers cut (share)", short),
        (silent, few, "silent_groups", "… groups fall silent", "share of groups", short),
    ):
        for name in names:
            _curves(ax, result, name, what, words.get(name, ARMS[name].label))
        span = (0.0, None) if what == "entropy" else (-0.02, 1.02)
        figures.describe(ax, title, "completions (thousands)", unit, ylim=span, ends=True)
    _ends(ends, result, there)
    return figure


def _style(name: str) -> dict[str, Any]:
    """The rung's style; arms that are no rung have its colour and a line of their own."""
    style = figures.style_of(ARMS[name].style)
    return style if name == ARMS[name].style else style | {"linestyle": figures.DASHDOT}


def _curves(ax: Axes, result: Result, name: str, what: str, label: str) -> None:
    """One arm: its mean, and each model as a thin line."""
    x, values = result.array("arms", name, "completions") / 1000, result.array("arms", name, what)
    for seed in values.T:
        ax.plot(x, seed, linewidth=0.8, alpha=0.4, label="_seed", **_style(name))
    figures.band(ax, x, values.mean(-1), label=label, **_style(name))


def _ends(ax: Axes, result: Result, names: list[str]) -> None:
    """The final accuracy of every arm: mean with interval, and each model."""
    means, halves = (
        [float(result.array("arms", name, f"final_{what}")) for name in names]
        for what in ("mean", "half")
    )
    for row, name in enumerate(names):
        colour, final = _style(name)["color"], result.array("arms", name, "final")
        ax.plot(final, [row] * len(final), "o", color=colour, markersize=3.5, alpha=0.5)
        figures.points(ax, means[row], row, halves[row], color=colour, across=True)
    ax.set_yticks(range(len(names)), [ARMS[name].label for name in names])
    span: dict[str, Any] = {"xlim": (-0.05, 1.05), "ylim": (len(names) - 0.4, -0.6)}
    figures.describe(ax, "All arms at the end", "held-out accuracy", **span)
