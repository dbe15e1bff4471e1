"""From zero: one-digit sums from random weights by reinforcement learning alone, no demonstration.

A nano model must find out by chance that the answer to 3+7= is two digits and the end token. With
the exact reward about one completion in 5,000 succeeds at first, so nearly every group has zero
variance ("silent"), and nothing is learned before the first success. Credit for each digit gives a
gradient from the first rollout on. What to look for:

    how long the groups stay silent under each reward, and what that costs
    credit for digits alone: most digits end up right but hardly any answer does, because the reward
      does not require the model to stop
    trained questions against the ten held-out ones: at this size the model memorises the table more
      than it learns to add
    groups that become silent again before everything is learned: the policy has become certain of
      wrong answers, and the curves go flat

Set entropy_coef to 0 and to 0.1 to see what the entropy bonus is for, and what too much of it does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import misnamed, require_number
from course.estimator import replace as swap
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, paired_error, share_error
from course.lab.terminal import Progress
from course.train import metrics
from tinylm.curves import CHANCE, AblationBudget, Curves, train
from tinylm.problem import LanguageModel
from tinylm.rewards import REWARDS
from tinylm.scoring import log_probs
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams, copies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "one-digit sums from random weights: reinforcement learning alone, with exact reward and with"
    " credit for digits"
)
FIGURE = "tinylm_zero"
EXPECTED_SECONDS = 120.0
SEEN = "measured here"
PROBE = 1024  # groups per model in a batch of those that are sampled before training
BATCHES = 12  # of them, so that silent groups are not mistaken for all groups
COLOURS = {
    "exact": "#0057a3",
    "digits": "#b8320f",
    "exact+digits": "#00875f",
    "exact+format": "#7a1f5c",
}
TRAINED, HELD_OUT = "trained", "accuracy"  # the questions it learns from, and those it never sees


@dataclass(frozen=True)
class Settings(AblationBudget):
    """Which rewards, and the size of each training; `reward` of the budget is replaced by these."""

    # verifiable rewards, of those of `train --reward`
    rewards: tuple[str, ...] = ("exact", "digits", "exact+digits")
    entropy_coef: float = 0.02  # coefficient of the entropy bonus
    rate: float = 3e-3  # Adam's learning rate, which falls linearly to 0
    preset: str = "nano"  # nano, mini, small or gpu
    digits: int = 1  # digits of each number
    warm_target: float = 0.0  # no demonstration
    prompts: int = 64  # questions per rollout
    group: int = 16  # completions per question
    rollouts: int = 300  # rollouts of reinforcement learning

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rewards:
            if name not in REWARDS:
                raise misnamed("rewards", "reward", name, REWARDS)
        require_number("entropy_coef", self.entropy_coef, "a number ≥ 0", at_least=0)
        require_number(
            "group", self.group, "at least 2: the answers of a group are compared", at_least=2
        )
        require_number("warm_target", self.warm_target, "0: nothing is shown", at_most=0)


SETTINGS = Settings()


def chance(start: Start) -> Tensor:
    """The probability [seeds, N] that the untrained model answers a training question right."""
    runs, task = (len(start.accuracy),), start.task
    with torch.no_grad():
        own = log_probs(
            copies(start.weights, start.model, runs),
            task.prompt[task.train].expand(*runs, -1, -1),
            task.target[task.train].unsqueeze(-2).expand(*runs, -1, -1, -1),
        )
    return own.sum((-2, -1)).exp()


def silent_at_first(start: Start, settings: Settings) -> tuple[int, int]:
    """How many of how many groups of the untrained model are silent under the exact reward."""
    runs = (settings.seeds,)
    model = copies(start.weights, start.model, runs)
    problem = LanguageModel(model, start.task, prompts=PROBE, group=settings.group)
    noise = Streams(settings.seed, runs, range(settings.seeds), settings.device).noise(JUDGE)
    shares = [metrics.of_rollout(problem.sample(noise))["silent_groups"] for _ in range(BATCHES)]
    total = PROBE * settings.seeds * BATCHES
    return round(float(torch.stack(shares).double().mean()) * total), total


def run(settings: Settings, progress: Progress) -> Result:
    """One training for each reward, all from the same random weights, and the chance level."""
    start = warm_start(settings, settings.seeds, progress)
    estimator = swap(ladder.get("group_std").estimator, entropy_coef=settings.entropy_coef)
    found: dict[str, dict[str, Any]] = {}
    halted: dict[str, Tensor] = {}
    for name in settings.rewards:
        curves = train(
            replace(settings, reward=name),
            estimator,
            start,
            (settings.rate,),
            range(settings.seeds),
            progress,
            questions=start.task.held_out,
            also={TRAINED: start.task.train},
            text=name,
        )
        found[name], halted[name] = kept(curves, settings), curves.halted
    p = chance(start)
    expected = (p**settings.group + (1 - p) ** settings.group).mean()
    series = {"rewards": found, "chance": p.mean(), "silent_expected": expected}
    caption = f"{CAPTION} Thick: {described(settings.seeds)}."
    facts = _facts(settings, found, start, expected)
    return told(Result(series=series, facts=facts, caption=caption), halted)


def kept(curves: Curves, settings: Settings) -> dict[str, Any]:
    """Curves of every seed [logs, S], their mean and interval; what is logged of rollouts is NaN
    before the first.
    """
    row: dict[str, Any] = {
        "completions": [step * settings.prompts * settings.group for step in curves.steps],
        "seconds": curves.seconds,
    }
    for name in (HELD_OUT, TRAINED, "silent_groups", "entropy", "reward"):
        values = curves.values[name][:, 0].clone()
        if name not in (HELD_OUT, TRAINED):
            values[0] = float("nan")
        row[name] = values
        row[f"{name}_mean"], row[f"{name}_half"] = interval(values)
    return row


def _facts(
    s: Settings, found: dict[str, dict[str, Any]], start: Start, expected: Tensor
) -> list[Fact]:
    hits, total = silent_at_first(start, s)
    share, error = share_error(hits, total)
    facts = [
        Fact.simulated(
            f"Random weights, exact reward: share of silent groups of {s.group}, against the mean"
            " of (1 − p)^G + p^G over the questions",
            "closed form",
            share,
            error,
            float(expected),
        )
    ]
    last = {name: row[TRAINED][-1] for name, row in found.items()}
    for name in ("exact", "exact+digits"):
        if name in last:
            mean, error = paired_error(last[name], found[name][TRAINED][0])
            claim = (
                f"From random weights, reward “{name}”: share of the training questions right after"
                f" {s.rollouts} rollouts, less that before, is above one half"
            )
            facts.append(Fact.above(claim, SEEN, mean, 0.5, error, runs=s.seeds, chance=CHANCE))
    if "digits" in last and "exact+digits" in last:
        mean, error = paired_error(last["digits"], last["exact+digits"])
        claim = (
            "Credit for the digits alone, which does not ask for the end, answers fewer questions"
            " right (difference to exact+digits)"
        )
        facts.append(Fact.below(claim, SEEN, mean, 0.0, error, runs=s.seeds, chance=CHANCE))
    return facts


CAPTION = (
    "A nano transformer from random weights, GRPO's advantage, clip and an entropy bonus, no warm"
    " start. Thin lines: seeds. Accuracy is greedy exact match, whatever the"
    " reward is; held out are 10 of the 100 questions by default."
)


def plot(result: Result) -> Figure:
    """Accuracy on the questions trained on and on the others, silent groups, and the
    reward itself.
    """
    figure, (trained, held, silent, reward) = figures.new_figure(2, 2, width=13.0, height=9.0)
    _curves(
        trained, result, TRAINED, "From 0: questions it is trained on", "answered right (share)"
    )
    _curves(held, result, HELD_OUT, "Questions it never saw", "answered right (share)")
    _curves(silent, result, "silent_groups", "Silent groups teach nothing", "share of groups")
    _curves(reward, result, "reward", "What each reward sees of it", "mean reward")
    figures.expectation(silent, float(result.array("silent_expected")), label="exact, by chance")
    for ax in (trained, held, silent):
        ax.set_ylim(-0.02, 1.02)
    reward.set_ylim(-0.02, None)
    for ax in (trained, held, silent, reward):
        figures.label_ends(ax)
    return figure


def _curves(ax: Axes, result: Result, what: str, title: str, unit: str) -> None:
    for name in result.settings["rewards"]:
        x = result.array("rewards", name, "completions") / 1000
        for seed in result.array("rewards", name, what).T:
            ax.plot(
                x,
                seed,
                color=COLOURS.get(name, figures.INK),
                linewidth=0.8,
                alpha=0.4,
                label="_seed",
            )
        figures.band(
            ax,
            x,
            result.array("rewards", name, f"{what}_mean"),
            color=COLOURS.get(name, figures.INK),
            linestyle="-",
            label=name,
        )
    figures.describe(ax, title, "completions (thousands)", unit)


__all__ = [
    "EXPECTED_SECONDS",
    "FIGURE",
    "SETTINGS",
    "TITLE",
    "Settings",
    "chance",
    "plot",
    "run",
]
