"""From zero: one-digit sums from random weights by reinforcement learning alone, no demonstration.

A nano model has to find out by chance that 3+7= is to be answered by two digits and the end. With
the exact reward that happens to about one completion in 5,000 at first: nearly every group is
silent, and nothing is learned until a first hit. Credit for each digit speaks from the first
rollout on. What to look for:

    how long each reward leaves the groups silent, and what that costs
    the digits alone: most of them are right in the end, and hardly an answer is, since nobody asked
    the model to stop
    the questions it was trained on, and those it never saw (ten): at this size it learns the table
    more than it learns to add
    groups that fall silent again before all is learned: the policy has become sure of wrong
    answers, and the curves go flat

What the entropy bonus is for, and what too much of it does, is seen with entropy_coef = 0 and 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import require, unknown
from course.estimator import replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, share_error
from course.lab.terminal import Progress
from course.train import metrics
from course.train.noise import Noise
from tinylm import tasks
from tinylm.experiment import Budget, Curves, Start, interval, train
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import REWARDS
from tinylm.scoring import log_probs
from tinylm.tasks import TaskSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "one-digit sums from random weights: reinforcement learning alone, with exact reward and with"
    " credit for digits"
)
FIGURE = "tinylm_zero"
EXPECTED_SECONDS = 70.0
SEEN = "measured here"
PROBE = 1024  # groups per model that are sampled before training, to count the silent ones
COLOURS = {
    "exact": "#0057a3",
    "digits": "#b8320f",
    "exact+digits": "#00875f",
    "exact+format": "#7a1f5c",
}
TRAINED, HELD_OUT = "trained", "accuracy"  # the questions it learns from, and those it never sees


@dataclass(frozen=True)
class Settings(Checked):
    """Which rewards, and the size of each training."""

    # verifiable rewards, of those of `train --reward`
    rewards: tuple[str, ...] = ("exact", "digits", "exact+digits")
    entropy_coef: float = 0.02  # of the entropy bonus
    rate: float = 3e-3  # Adam's learning rate, falling to 0 in a line
    prompts: int = 64  # questions per rollout
    group: int = 16  # completions per question
    rollouts: int = 300  # of reinforcement learning
    epochs: int = 2  # updates per rollout
    held_out: float = 0.1  # share of the 100 questions that is never trained on
    log_every: int = 10  # rollouts
    seeds: int = 3  # models
    seed: int = 0  # of all streams
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rewards:
            if name not in REWARDS:
                raise unknown("reward", name, REWARDS)
        require(len(self.rewards) > 0, "rewards", self.rewards, "at least one name")
        require(
            0 <= self.entropy_coef < float("inf"), "entropy_coef", self.entropy_coef, "a number ≥ 0"
        )
        require(0 < self.rate < float("inf"), "rate", self.rate, "a number > 0")
        require(
            self.group > 1, "group", self.group, "at least 2: the answers of a group are compared"
        )
        require(self.seeds > 1, "seeds", self.seeds, "at least 2, for an interval")
        _ = self.budget, self.task  # what cannot be is refused here

    @property
    def budget(self) -> Budget:
        """The same as every experiment's budget; the warm start is none."""
        names = ("prompts", "group", "rollouts", "epochs", "log_every", "seeds", "seed", "device")
        return Budget(digits=1, warm_target=0.0, **{name: getattr(self, name) for name in names})

    @property
    def task(self) -> TaskSettings:
        """One-digit sums, a part of them held out."""
        return TaskSettings(digits=1, held_out=self.held_out)


SETTINGS = Settings()


def from_nothing(settings: Settings) -> Start:
    """The nano model with random weights, one for each seed."""
    task = tasks.make(settings.task).to(settings.device)
    model = Transformer(
        PRESETS["nano"], (settings.seeds,), 7_000 + settings.seed, device=settings.device
    )
    weights = {name: weight.detach().clone() for name, weight in model.weights.items()}
    return Start(task, model.settings, weights, torch.zeros(settings.seeds))


def chance(start: Start) -> Tensor:
    """[seeds, N] the probability that the untrained model answers each training question right: of
    its one right completion.
    """
    model, task = _untrained(start), start.task
    target = task.target[task.train]
    with torch.no_grad():
        own = log_probs(
            model,
            task.prompt[task.train].expand(*model.runs, -1, -1),
            target.unsqueeze(-2).expand(*model.runs, -1, -1, -1),
        )
    return own.sum((-2, -1)).exp()


def silent_at_first(start: Start, settings: Settings) -> tuple[int, int]:
    """How many of how many groups of the untrained model are silent under the exact reward."""
    problem = LanguageModel(_untrained(start), start.task, prompts=PROBE, group=settings.group)
    rollout = problem.sample(
        Noise((settings.seeds,), 6_000 + settings.seed, device=settings.device)
    )
    total = PROBE * settings.seeds
    return round(float(metrics.of_rollout(rollout)["silent_groups"].mean()) * total), total


def _untrained(start: Start) -> Transformer:
    count = next(iter(start.weights.values())).shape[0]
    model = Transformer(start.settings, (count,), 0, device=start.task.prompt.device)
    model.weights.update(start.weights)
    return model


def run(settings: Settings, progress: Progress) -> Result:
    """One training for each reward, all from the same random weights; and what chance
    gives before.
    """
    start = from_nothing(settings)
    estimator = replace(ladder.get("group_std").estimator, entropy_coef=settings.entropy_coef)
    found: dict[str, dict[str, Any]] = {}
    for name in settings.rewards:
        also = {TRAINED: start.task.train}
        curves = train(
            estimator,
            settings.budget,
            start,
            (settings.rate,),
            progress,
            reward=REWARDS[name],
            also=also,
            text=name,
        )
        found[name] = kept(curves, settings)
    p = chance(start)
    expected = (p**settings.group + (1 - p) ** settings.group).mean()
    series = {"rewards": found, "chance": p.mean(), "silent_expected": expected}
    return Result(series=series, facts=_facts(settings, found, start, expected), caption=CAPTION)


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
            mean, error = mean_error(last[name] - found[name][TRAINED][0])
            claim = (
                f"From random weights, reward “{name}”: share of the training questions right after"
                f" {s.rollouts} rollouts, less that before"
            )
            facts.append(Fact.above(claim, SEEN, mean, 0.0, error))
    if "digits" in last and "exact+digits" in last:
        mean, error = mean_error(last["digits"] - last["exact+digits"])
        claim = (
            "Credit for the digits alone, which does not ask for the end, answers fewer questions"
            " right (difference to exact+digits)"
        )
        facts.append(Fact.below(claim, SEEN, mean, 0.0, error))
    return facts


CAPTION = (
    "A nano transformer from random weights, GRPO's advantage, clip and an entropy bonus, no warm"
    " start. Thin lines: seeds; thick: their mean. Accuracy is greedy exact match, whatever the"
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
    "from_nothing",
    "plot",
    "run",
]
