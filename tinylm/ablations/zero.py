"""From zero: two-digit sums from random weights by reinforcement learning alone (R1-Zero, small).

Nothing is demonstrated. The reward is 1 for the exact answer and up to ½ for its digits. GRPO goes
from 0 to nearly all held-out questions. The same estimator without its KL, `length_mean`, ends at
0: the credit for digits is satisfied without the end token, so the policy becomes certain of
answers that never end, all samples of a group pay the same ½, and the group is silent. The end
token has died out before it was ever worth something. Not every model does: of two with other
rounding one found the end after 600 rollouts, and stayed near 40 %.

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
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import misnamed, require_number
from course.estimator import Estimator
from course.estimator import replace as swap
from course.exact import anchored_error
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, mean_error, paired_error, paired_interval
from course.lab.terminal import Progress
from course.parts import K2, K3
from tinylm.curves import CHANCE, AblationBudget, Curves, train
from tinylm.tasks import VOCABULARY
from tinylm.warm_start import Start, warm_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "two-digit sums from random weights: GRPO with its KL, and the same without"
FIGURE = "tinylm_zero_live"
EXPECTED_SECONDS = 170.0
SEEN = "measured here"
ENOUGH = 4  # models; with fewer, no claim is made
LATE = 4  # logged rollouts at the end
NUMBER = 42  # of the claim in the course's list
LOGGED = ("accuracy", "entropy", "truncated", "silent_groups", "length", "reward", "kl_start")


@dataclass(frozen=True)
class Arm:
    """An estimator, the reward it is trained with, and how the figure calls the two."""

    label: str
    estimator: Estimator
    style: str  # the rung whose colour it has
    reward: str = "exact+digits"


def _rung(name: str) -> Arm:
    return Arm(ladder.get(name).title, ladder.get(name).estimator, name)


BELOW = ("reinforce", "baseline", "surrogate", "clip", "group_mean", "group_std", "length_mean")
END = "exact+digits+end"
_ANCHOR = ladder.grpo.kl
ARMS: dict[str, Arm] = {
    **{name: _rung(name) for name in (*BELOW, "grpo")},
    # the same KL under other rungs
    "reinforce_kl": Arm("REINFORCE + KL", swap(ladder.reinforce, kl=_ANCHOR), "reinforce"),
    "group_mean_kl": Arm("Group mean + KL", swap(ladder.group_mean, kl=_ANCHOR), "group_mean"),
    # something else in its place
    "entropy": Arm(
        "entropy bonus .02 for the KL", swap(ladder.length_mean, entropy_coef=0.02), "length_mean"
    ),
    "reverse_kl": Arm(
        "k2 for k3: the reverse KL", swap(ladder.length_mean, kl=K2(_ANCHOR.beta)), "length_mean"
    ),
    # another reward
    "reinforce_end": Arm("REINFORCE, end credited", ladder.reinforce, "reinforce", END),
    "group_mean_end": Arm("Group mean, end credited", ladder.group_mean, "group_mean", END),
    "length_mean_end": Arm("Length mean, end credited", ladder.length_mean, "length_mean", END),
    "grpo_end": Arm("GRPO, end credited", ladder.grpo, "grpo", END),
    "grpo_exact": Arm("GRPO, exact reward alone", ladder.grpo, "grpo", "exact"),
}
# the arm expected ahead and the one behind, fixed before the run, and what the difference says
CLAIMS: tuple[tuple[str, str, str], ...] = (
    *(("grpo", name, "the KL decides") for name in BELOW),
    ("grpo", "reinforce_kl", "the KL alone does not do it"),
    ("grpo", "group_mean_kl", "the KL without the std does not do it"),
    ("grpo", "entropy", "an entropy bonus does not replace the KL"),
    ("grpo", "reverse_kl", "the reverse KL does not replace it"),
    ("grpo", "grpo_exact", "the exact reward alone teaches less"),
    ("length_mean_end", "length_mean", "credit for the end helps where there is no KL"),
    ("length_mean_end", "group_mean_end", "with that credit, and no KL, the std decides"),
    ("length_mean_end", "reinforce_end", "with that credit, and no KL, REINFORCE stays behind"),
    ("grpo", "length_mean_end", "credit for the end does not replace the KL"),
)


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
    rollouts: int = 700  # rollouts of reinforcement learning
    log_every: int = 50  # rollouts between two points of a curve
    judged: int = 500  # held-out questions that measure the accuracy
    seeds: int = 2  # models, each from its own random weights

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
    start = warm_start(settings, settings.seeds, progress)
    arms = {name: trained(settings, name, start, progress) for name in settings.arms}
    return collected(settings, arms)


def trained(settings: Settings, name: str, start: Start, progress: Progress) -> dict[str, Any]:
    """The curves of one arm, [logs, S] each; what is logged of rollouts is NaN before the first."""
    arm = ARMS[name]

    def say(step: int, row: dict[str, Tensor]) -> None:
        right = " ".join(f"{100 * share:5.1f} %" for share in row["accuracy"].flatten().tolist())
        progress.say(
            f"{arm.label:20} rollout {step:5,}: held out {right};"
            f" cut at the limit {100 * float(row['truncated'].mean()):.0f} %,"
            f" entropy {float(row['entropy'].mean()):.2f} nats"
        )

    curves = train(
        replace(settings, reward=arm.reward),
        arm.estimator,
        start,
        (settings.rate,),
        range(settings.seeds),
        progress,
        text=arm.label,
        seen=say,
    )
    return kept(curves, settings) | {"label": arm.label, "reward_name": arm.reward}


def kept(curves: Curves, settings: Settings) -> dict[str, Any]:
    """What the JSON keeps of a training: curves [logs, S], final accuracies [S], seconds."""
    row: dict[str, Any] = {
        "rollouts": curves.steps,
        "completions": [step * settings.prompts * settings.group for step in curves.steps],
        "final": curves.final[0],
        "seconds": curves.seconds,
        "halted": curves.halted[0],
    }
    for name in LOGGED:
        values = curves.values[name][:, 0].clone()
        if name != "accuracy":
            values[0] = float("nan")
        row[name] = values
    return row


def collected(settings: Settings, arms: dict[str, dict[str, Any]]) -> Result:
    """The result of the arms that were trained: finals, paired differences and facts."""
    halted = {name: torch.as_tensor(row["halted"]) for name, row in arms.items()}
    for row in arms.values():
        row["final_mean"], row["final_half"] = interval(row["final"])
    differences: dict[str, Any] = {}
    for ahead, behind, _ in CLAIMS:
        if ahead in arms and behind in arms:
            mean, half = paired_interval(arms[ahead]["final"], arms[behind]["final"])
            differences[f"{ahead} - {behind}"] = {"mean": mean, "half": half}
    series = {"arms": arms, "differences": differences, "predicted": predicted(settings)}
    caption = (
        f"A {settings.preset} transformer from random weights on sums of {settings.digits} digits,"
        f" without demonstrations; greedy accuracy on held-out questions. Thin lines and dots:"
        f" single models; thick: {described(settings.seeds)}."
    )
    return told(Result(series=series, facts=_facts(settings, arms), caption=caption), halted)


def predicted(settings: Settings) -> dict[str, float]:
    """What the bandit predicts of GRPO's end: its share of wrong samples and of silent groups.

    The KL towards the uniform start holds wrong tokens at a share where it equals the pull of the
    reward. An answer has one token more than its digits, which is the end.
    """
    kl, tokens = ladder.grpo.kl, settings.digits + 2
    assert isinstance(kl, K3)
    assert isinstance(kl.beta, float)
    reference = 1 - 1 / (VOCABULARY - 1)  # PAD is never sampled
    wrong = anchored_error(kl.beta, settings.group, tokens, reference)
    return {"wrong": wrong, "silent_groups": (1 - wrong) ** settings.group}


def _facts(s: Settings, arms: dict[str, dict[str, Any]]) -> list[Fact]:
    at = f"{s.rollouts:,} rollouts from random weights"
    facts: list[Fact] = []
    above = partial(Fact.above, number=NUMBER)
    if s.seeds < ENOUGH:
        return facts
    for ahead, behind, why in CLAIMS:
        if ahead in arms and behind in arms:
            mean, error = paired_error(arms[ahead]["final"], arms[behind]["final"])
            claim = (
                f"{why}: held-out accuracy after {at}, {ARMS[ahead].label} less"
                f" {ARMS[behind].label}"
            )
            facts.append(above(claim, SEEN, mean, 0.0, error, runs=s.seeds, chance=CHANCE))
    below = [name for name in BELOW if name in arms]
    if below:
        most = max(float(torch.as_tensor(arms[name]["final"]).max()) for name in below)
        claim = (
            f"Without a KL the best model of {', '.join(below)} answers fewer than one held-out"
            f" question in fifty after {at}"
        )
        facts.append(Fact.below(claim, SEEN, most, 0.02, number=NUMBER))
    if "grpo" in arms:
        least = float(torch.as_tensor(arms["grpo"]["final"]).min())
        claim = f"GRPO's worst model answers more than 95 % of held-out questions after {at}"
        facts.append(above(claim, SEEN, least, 0.95))
    if "grpo" in arms:
        silent = torch.as_tensor(arms["grpo"]["silent_groups"])[-LATE:].double().mean(0)
        mean, error = mean_error(silent)
        claim = (
            f"GRPO's share of silent groups in its last {LATE} logged rollouts, against the balance"
            " of KL and reward"
        )
        expected = predicted(s)["silent_groups"]
        same = partial(Fact.simulated, number=NUMBER, runs=s.seeds, chance=CHANCE)
        facts.append(same(claim, "derived", mean, error, expected))
    if "grpo" in arms and "length_mean" in arms:
        cut = (torch.as_tensor(arms[name]["truncated"])[-1] for name in ("length_mean", "grpo"))
        mean, error = paired_error(*cut)
        claim = f"Without its KL the answers are cut at the limit: difference of the shares, {at}"
        facts.append(above(claim, SEEN, mean, 0.5, error, runs=s.seeds, chance=CHANCE))
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """Accuracy with and without the KL, all arms at the end, and what dies along the way."""
    figure, panels = figures.new_figure(2, 3, width=14.5, height=9.0)
    accuracy, ends, spare, entropy, cut, silent = panels
    grid = ends.get_gridspec()
    assert grid is not None
    spare.remove()
    ends.set_subplotspec(grid[0, 1:])
    there = list(result.series["arms"])
    below = [name for name in BELOW if name in there]
    labels = dict.fromkeys(below, "_below")
    if below:
        count = f"{len(below)} rungs without a KL" if len(below) > 1 else ARMS[below[0]].label
        labels[below[-1]] = count
    rungs = [*below, *(name for name in ("grpo",) if name in there)]
    _curves(
        accuracy, result, rungs, "accuracy", "With its KL, and without", "held-out accuracy", labels
    )
    _ends(ends, result, there)
    few = [name for name in ("reinforce", "length_mean", "entropy", "grpo") if name in there]
    short = {"length_mean": "without KL", "entropy": "entropy bonus"}
    _curves(entropy, result, few, "entropy", "Without it, entropy dies", "nats per token", short)
    _curves(cut, result, few, "truncated", "… and the end token", "answers cut (share)", short)
    _curves(silent, result, few, "silent_groups", "… groups fall silent", "share of groups", short)
    figures.expectation(
        silent, float(result.array("predicted", "silent_groups")), label="GRPO, predicted"
    )
    for ax in (accuracy, cut, silent):
        ax.set_ylim(-0.02, 1.02)
    entropy.set_ylim(0.0, None)
    for ax in (accuracy, entropy, cut, silent):
        figures.label_ends(ax)
    return figure


def _style(name: str) -> dict[str, Any]:
    """The rung's style; arms that are no rung have its colour and a line of their own."""
    style = figures.style_of(ARMS[name].style)
    return style if name == ARMS[name].style else style | {"linestyle": figures.DASHDOT}


def _curves(
    ax: Axes,
    result: Result,
    names: list[str],
    what: str,
    title: str,
    unit: str,
    labels: Mapping[str, str],
) -> None:
    for name in names:
        x = result.array("arms", name, "completions") / 1000
        values = result.array("arms", name, what)
        for seed in values.T:
            ax.plot(x, seed, linewidth=0.8, alpha=0.4, label="_seed", **_style(name))
        label = labels.get(name, ARMS[name].label)
        figures.band(ax, x, values.mean(-1), label=label, **_style(name))
    figures.describe(ax, title, "completions (thousands)", unit)


def _ends(ax: Axes, result: Result, names: list[str]) -> None:
    """The final accuracy of every arm: mean with interval, and each model."""
    means, halves = (
        [float(result.array("arms", name, f"final_{what}")) for name in names]
        for what in ("mean", "half")
    )
    labels = [ARMS[name].label for name in names]
    for row, name in enumerate(names):
        colour, final = _style(name)["color"], result.array("arms", name, "final")
        ax.plot(final, [row] * len(final), "o", color=colour, markersize=3.5, alpha=0.5)
        figures.points(ax, means[row], row, halves[row], color=colour, across=True)
    ax.set_yticks(range(len(names)), labels)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-0.05, 1.05)
    figures.describe(ax, "All arms at the end", "held-out accuracy", "")


__all__ = [
    "ARMS",
    "BELOW",
    "CLAIMS",
    "EXPECTED_SECONDS",
    "FIGURE",
    "SETTINGS",
    "TITLE",
    "Arm",
    "Settings",
    "collected",
    "kept",
    "plot",
    "predicted",
    "run",
    "trained",
]
