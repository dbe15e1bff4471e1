"""Dividing by an answer's length punishes long wrong answers less than short wrong ones.

Four answers, right or wrong, of 2 or of 8 tokens, all equally likely at first. Only the first token
is a choice, so every rung sees the same four arms and only the weight of a sample differs. Under
GRPO's 1/|o| a token of a long answer counts a quarter of a token of a short one: among right
answers the short are reinforced more, among wrong ones the long are held back less. From the first
step on, what is wrong tends to be long. A constant divisor and the plain sum keep both lengths
alike. The mean over all tokens of the batch lies between: a long answer lengthens its own batch, so
it is weighed a little less.

The flow follows the exact expected gradient; each rung's learning rate is set so that its first
step is of the same size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bandits.flow import ascend
from bandits.theory.length_bias import (
    ANSWERS,
    UNIFORM,
    first_push,
    four_answers,
    push_by_hand,
    read_off,
)
from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "four answers, right or wrong, short or long: 1/|o| lets wrong answers grow long, a constant"
    " divisor does not"
)
EXPECTED_SECONDS = 7.0


@dataclass(frozen=True)
class Settings(Checked):
    """The answers and the flow; nothing is sampled, so there is no seed."""

    rungs: tuple[str, ...] = ("group_std", "grpo", "token_mean", "dr_grpo")  # which estimators
    short: int = 2  # tokens of a short answer
    long: int = 8  # tokens of a long answer
    group: int = 8  # samples per prompt
    steps: int = 400  # updates of the flow
    # mean size of the first update of a logit, which sets each rung's learning rate
    first_step: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"a length above the short one, {self.short}, up to 64"
        require(self.short < self.long <= 64, "long", self.long, allowed)
        allowed = "from 2 to 16: every group is listed at every step"
        require(2 <= self.group <= 16, "group", self.group, allowed)
        require(self.steps > 1, "steps", self.steps, "at least 2")
        require(self.first_step > 0, "first_step", self.first_step, "a number > 0")

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a short and of a long answer."""
        return self.short, self.long


SETTINGS = Settings()
SOURCE = "Liu et al. 2025 (Dr. GRPO, 2503.20783)"
WEIGH_LENGTH = ("grpo", "length_mean", "token_mean")  # rungs that weigh an answer by its length
CAPTION = (
    "Exact expected gradients, nothing sampled. Left: hollow diamonds are the closed forms; each"
    " rung's pushes are divided by their mean size, which a learning rate would undo. Middle and"
    " right: the flow from four equally likely answers; where GRPO's turns, its KL holds it. In a"
    " larger batch the token mean's bias is smaller."
)


def run(settings: Settings, progress: Progress) -> Result:
    """The first push of every rung, and the flow that follows it."""
    s, pushes, by_hand, flows = settings, {}, {}, {}
    for name in s.rungs:

        def bar(steps: Iterable[int], name: str = name) -> Iterable[int]:
            return progress(steps, name)

        estimator = ladder.get(name).estimator
        pushes[name] = first_push(estimator, s.lengths, s.group)
        expected = push_by_hand(estimator, s.lengths, s.group)
        if expected is not None:
            by_hand[name] = expected
        rate = s.first_step / float(pushes[name].abs().mean())
        along: dict[str, Any] = {"rate": rate, "steps": s.steps, "reference": UNIFORM}
        path = ascend(
            estimator, four_answers(s.lengths), UNIFORM, s.group, progress=bar, **along
        ).exp()
        flows[name] = read_off(path) | {"learning_rate": torch.tensor(rate, dtype=torch.float64)}
    series: dict[str, Any] = {"push": pushes, "by_hand": by_hand, "flow": flows}
    facts = [*_first_step_facts(s), *_flow_facts(s, flows)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _first_step_facts(s: Settings) -> list[Fact]:
    """How the log-odds of long against short move at the first step, on answers that are right and
    on those that are wrong.
    """
    facts, where = [], f"answers of {s.short} and {s.long} tokens, uniform policy, G = {s.group}"
    longer = "makes wrong-and-long more likely than wrong-and-short from the first step"
    for name, says in (
        ("grpo", f"GRPO's 1/|o| {longer}"),
        ("length_mean", f"1/|o| alone {longer}"),
        ("token_mean", "the mean over the batch's tokens does so too, a little"),
        ("dr_grpo", "a constant divisor does not"),
        ("group_std", "the plain sum over tokens does not"),
    ):
        estimator = ladder.get(name).estimator
        push = first_push(estimator, s.lengths, s.group)
        expected = push_by_hand(estimator, s.lengths, s.group)
        assert expected is not None
        found, form = push[3] - push[2], expected[3] - expected[2]
        claim = f"{name}: {says} (difference of the expected gradients on their logits; {where})"
        facts.append(Fact.exact(claim, SOURCE, found, form, number=18))
        if name in WEIGH_LENGTH:
            tenth = 0.1 * abs(push[2])
            claim = f"{name}: that difference is more than a tenth of the pull on the short one"
            facts.append(Fact.above(f"{claim} ({where})", SOURCE, found, tenth, number=18))
    push, ratio = first_push(ladder.grpo, s.lengths, s.group), s.long / s.short
    for what, measured in (
        (f"a right answer of {s.short} tokens is reinforced", push[0] / push[1]),
        (f"a wrong answer of {s.short} tokens is held back", push[2] / push[3]),
    ):
        claim = (
            f"Under 1/|o| {what} {ratio:g} times as much as one of {s.long} (ratio of gradients)"
        )
        facts.append(Fact.exact(claim, SOURCE, measured, ratio, number=18))
    return facts


def _flow_facts(s: Settings, flows: dict[str, Any]) -> list[Fact]:
    """Where the flow leads: the share of long answers among those still wrong."""
    facts, how = [], f"after {s.steps} exact updates (a share; ½ at the start)"
    for name in s.rungs:
        wrong, right = flows[name]["long_wrong"], flows[name]["long_right"]
        claim = f"{name}: long ones among the wrong answers {how}"
        if name in WEIGH_LENGTH:
            facts.append(Fact.above(claim, SOURCE, wrong[-1], 0.5, number=18))
            # GRPO's share turns later, where its KL holds it
            every = wrong.diff() > 0 if name != "grpo" else wrong[1:2] > wrong[0]
            when = "at every update" if name != "grpo" else "at the first update"
            claim = f"{name}: the share of long ones among the wrong answers rises {when}"
            facts.append(Fact.exact(claim, SOURCE, bool(every.all()), True, number=18))
            claim = f"{name}: long ones among the right answers {how}"
            facts.append(Fact.below(claim, SOURCE, right[-1], 0.5, number=18))
        elif name in ("dr_grpo", "group_std"):
            facts.append(Fact.exact(claim, SOURCE, wrong[-1], 0.5, number=18))
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """The first push on each answer; the length of wrong and of right answers as the
    policy learns.
    """
    options: dict[str, Any] = {"width": 15.0, "height": 4.8, "width_ratios": (1.25, 1, 1)}
    figure, (first, wrong, right) = figures.new_figure(1, 3, **options)
    _draw_first(first, result)
    short, long = result.settings["short"], result.settings["long"]
    for ax, key, title in (
        (wrong, "long_wrong", "the wrong grow long"),
        (right, "long_right", "the right grow short"),
    ):
        for name in result.settings["rungs"]:
            length = short + (long - short) * result.array("flow", name, key)
            figures.band(ax, result.array("flow", name, "success"), length, name=name)
        ax.set_ylim(short - 0.2, long + 0.2)
        ax.set_xlim(0.48, 1.0)
        x, y = "success probability of the policy", f"mean length of {key[5:]} answers (tokens)"
        figures.describe(ax, f"Under 1/|o| {title}", x, y)
        figures.label_ends(ax)
    return figure


def _draw_first(ax: Axes, result: Result) -> None:
    names = list(result.settings["rungs"])
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        push, x = result.array("push", name), np.arange(4) + (place - (len(names) - 1) / 2) * width
        size = abs(push).mean()
        ax.bar(x, push / size, width, color=figures.style_of(name)["color"], label=name)
        if name in result.series["by_hand"]:
            form = result.array("by_hand", name) / size
            figures.expectation(ax, form, x, marker="D", label="_closed form")
    ax.axhline(0, color="#777777", linewidth=1.0)
    ax.set_xticks(range(4), list(ANSWERS))
    ax.legend(frameon=False, loc="upper right")
    y = "expected gradient on its logit, mean size 1"
    figures.describe(ax, "The first step", "answer", y)
