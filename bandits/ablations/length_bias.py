"""What dividing by the length of an answer does: wrong and long is punished less than wrong and
short.

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

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.flow import ascend, expected_gradient
from course import ladder
from course.errors import require
from course.exact import group_mean_factor, group_std_weight
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import ConstantLength, GroupStd, SequenceMean, TokenMean

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
        require(
            0 < self.short < self.long <= 64,
            "long",
            self.long,
            f"a length above the short one, {self.short}, up to 64",
        )
        require(
            2 <= self.group <= 16,
            "group",
            self.group,
            "from 2 to 16: every group is listed at every step",
        )
        require(self.steps > 1, "steps", self.steps, "at least 2")
        require(self.first_step > 0, "first_step", self.first_step, "a number > 0")


SETTINGS = Settings()
ANSWERS = ("right, short", "right, long", "wrong, short", "wrong, long")
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64).log()


def environment(settings: Settings) -> Environment:
    """The four answers of `ANSWERS`: rewards 1, 1, 0, 0."""
    lengths = torch.tensor([settings.short, settings.long, settings.short, settings.long])
    return Environment(torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), lengths=lengths)


def first_push(settings: Settings, name: str) -> Tensor:
    """[4] the expected gradient on the logits at the uniform policy, which is its own reference."""
    return expected_gradient(
        ladder.get(name).estimator,
        environment(settings),
        UNIFORM,
        settings.group,
        reference=UNIFORM,
    )


def push_by_hand(settings: Settings, name: str) -> Tensor | None:
    """[4] the same in closed form, for the estimators that have one: scale · ¼ · (r_a − ½) ·
    weight(|o_a|).

    At the uniform policy an answer's length says nothing of its reward, so the mean weight of its
    length factors out. The scores' other part, −π, cancels: the four terms add up to 0. `scale` is
    w_G(½) or (G−1)/G.
    """
    if name not in ("group_std", "length_mean", "grpo", "token_mean", "dr_grpo"):
        return None
    estimator, group = ladder.get(name).estimator, settings.group
    aggregation = estimator.aggregation
    lengths = environment(settings).lengths
    assert lengths is not None
    weight = torch.ones(4, dtype=torch.float64)
    if isinstance(aggregation, SequenceMean):
        weight = weight / lengths
    elif isinstance(aggregation, ConstantLength):
        weight = weight / (aggregation.length or settings.long)
    elif isinstance(aggregation, TokenMean):
        weight = torch.tensor(
            [group * mean_inverse_tokens(settings, int(length)) for length in lengths],
            dtype=torch.float64,
        )
    scale = group_mean_factor(group)
    if isinstance(estimator.scale, GroupStd):
        scale = float(group_std_weight(0.5, group, estimator.scale.ddof, estimator.scale.eps))
    return scale * 0.25 * torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64) * weight


def mean_inverse_tokens(settings: Settings, own: int) -> float:
    """E[1 / tokens of the group] for a sample of `own` tokens: of the others, each is long with
    probability ½.
    """
    others = settings.group - 1
    ways = [math.comb(others, long) / 2**others for long in range(others + 1)]
    return sum(
        way / (own + settings.short * (others - long) + settings.long * long)
        for long, way in enumerate(ways)
    )


def run(settings: Settings, progress: Progress) -> Result:
    """The first push of every rung, and the flow that follows it."""
    pushes, flows = {}, {}
    for name in settings.rungs:

        def bar(steps: Iterable[int], name: str = name) -> Iterable[int]:
            return progress(steps, name)

        pushes[name] = first_push(settings, name)
        rate = settings.first_step / float(pushes[name].abs().mean())
        path = ascend(
            ladder.get(name).estimator, environment(settings), UNIFORM, settings.group,
            rate=rate, steps=settings.steps, reference=UNIFORM, progress=bar,
        ).exp()  # fmt: skip
        flows[name] = read_off(path) | {"learning_rate": rate}
    by_hand = {
        name: push for name in settings.rungs if (push := push_by_hand(settings, name)) is not None
    }
    series: dict[str, Any] = {"push": pushes, "by_hand": by_hand, "flow": flows}
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def read_off(path: Tensor) -> dict[str, Any]:
    """Success probability and the share of long answers among right and among wrong ones, from
    policies [steps + 1, 4].
    """
    right, wrong = path[:, :2].sum(-1), path[:, 2:].sum(-1)
    return {"success": right, "long_right": path[:, 1] / right, "long_wrong": path[:, 3] / wrong}


# ---------------------------------------------------------------- facts

SOURCE = "Liu et al. 2025 (Dr. GRPO, 2503.20783)"


def _facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    return [*_first_step_facts(settings), *_flow_facts(settings, series)]


def _first_step_facts(settings: Settings) -> list[Fact]:
    """How the log-odds of long against short move at the first step, on answers that are right and
    on those that are wrong.
    """
    short, long, group, facts = settings.short, settings.long, settings.group, []
    where = f"answers of {short} and {long} tokens, uniform policy, G = {group}"
    for name, says in (
        (
            "grpo",
            (
                "GRPO's 1/|o| makes wrong-and-long more likely than wrong-and-short from the first"
                " step"
            ),
        ),
        (
            "length_mean",
            "1/|o| alone makes wrong-and-long more likely than wrong-and-short from the first step",
        ),
        ("token_mean", "the mean over the batch's tokens does so too, a little"),
        ("dr_grpo", "a constant divisor does not"),
        ("group_std", "the plain sum over tokens does not"),
    ):
        push, by_hand = first_push(settings, name), push_by_hand(settings, name)
        assert by_hand is not None
        claim = f"{name}: {says} (difference of the expected gradients on their logits; {where})"
        facts.append(
            Fact.exact(claim, SOURCE, push[3] - push[2], by_hand[3] - by_hand[2], number=18)
        )
        if name in ("grpo", "length_mean", "token_mean"):
            facts.append(
                Fact.above(
                    f"{name}: that difference is positive ({where})",
                    SOURCE,
                    push[3] - push[2],
                    0.0,
                    number=18,
                )
            )
    push, ratio = first_push(settings, "grpo"), settings.long / settings.short
    claim = (
        f"Under 1/|o| a right answer of {short} tokens is reinforced {ratio:g} times as much as one"
        f" of {long} (ratio of gradients)"
    )
    facts.append(Fact.exact(claim, SOURCE, push[0] / push[1], ratio, number=18))
    claim = (
        f"Under 1/|o| a wrong answer of {short} tokens is held back {ratio:g} times as much as one"
        f" of {long} (ratio of gradients)"
    )
    facts.append(Fact.exact(claim, SOURCE, push[2] / push[3], ratio, number=18))
    return facts


def _flow_facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    """Where the flow leads: the share of long answers among those still wrong."""
    facts = []
    for name in settings.rungs:
        share = series["flow"][name]["long_wrong"]
        how = f"after {settings.steps} exact updates (a share; ½ at the start)"
        if name in ("grpo", "length_mean", "token_mean"):
            facts.append(
                Fact.above(
                    f"{name}: long ones among the wrong answers {how}",
                    SOURCE,
                    share[-1],
                    0.5,
                    number=18,
                )
            )
            rises = bool((share.diff() > 0).all()) if name != "grpo" else bool(share[1] > share[0])
            when = "at every update" if name != "grpo" else "at the first update"
            facts.append(
                Fact.exact(
                    f"{name}: the share of long ones among the wrong answers rises {when}",
                    SOURCE,
                    rises,
                    True,
                    number=18,
                )
            )
            right = series["flow"][name]["long_right"][-1]
            facts.append(
                Fact.below(
                    f"{name}: long ones among the right answers {how}",
                    SOURCE,
                    right,
                    0.5,
                    number=18,
                )
            )
        elif name in ("dr_grpo", "group_std"):
            facts.append(
                Fact.exact(
                    f"{name}: long ones among the wrong answers {how}",
                    SOURCE,
                    share[-1],
                    0.5,
                    number=18,
                )
            )
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Exact expected gradients, nothing sampled. Left: hollow diamonds are the closed forms; each"
    " rung's pushes are divided by their mean size, which a learning rate would undo. Middle and"
    " right: the flow from four equally likely answers; where GRPO's turns, its KL holds it. In a"
    " larger batch the token mean's bias is smaller."
)


def plot(result: Result) -> Figure:
    """The first push on each answer; the length of wrong and of right answers as the
    policy learns.
    """
    figure, (first, wrong, right) = figures.new_figure(
        1, 3, width=15.0, height=4.8, width_ratios=(1.25, 1, 1)
    )
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
        figures.describe(
            ax,
            f"Under 1/|o| {title}",
            "success probability of the policy",
            f"mean length of {key[5:]} answers (tokens)",
        )
        figures.label_ends(
            ax, [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        )
    return figure


def _draw_first(ax: Axes, result: Result) -> None:
    names = list(result.settings["rungs"])
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        push = result.array("push", name)
        size = abs(push).mean()
        x = torch.arange(4).numpy() + (place - (len(names) - 1) / 2) * width
        ax.bar(x, push / size, width, color=figures.style_of(name)["color"], label=name)
        if name in result.series["by_hand"]:
            figures.expectation(
                ax, x=x, y=result.array("by_hand", name) / size, marker="D", label="_closed form"
            )
    ax.axhline(0, color="#777777", linewidth=1.0)
    ax.set_xticks(range(4), [f"{answer}" for answer in ANSWERS])
    ax.legend(frameon=False, loc="upper right")
    figures.describe(ax, "The first step", "answer", "expected gradient on its logit, mean size 1")
