"""Does `python -m tinylm train` always work? The same command with twenty fresh seeds.

Each training is what the command does with its defaults and one seed: random weights, a supervised
warm start to 30 % of sampled answers right, then GRPO. What to look for:

    whether every curve crosses 95 % of the held-out questions, and how far apart they do
    the left end: the warm start knows the hundreds and tens, and about half of the units, where it
      is one off. Seeds that know them unevenly, some digits hardly at all, arrive last: where all
      answers of a group are wrong, nothing is learned
    that the curves rise from the first rollout. With `--lr 2e-3 --lr-warmup 20` they fall first:
      the policy moves by 0.05 to 0.1 nats per token in each update, mostly along the noise of 1,024
      answers, and loses in twenty rollouts a third of what the warm start has taught
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from course.errors import require_number
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.terminal import Progress
from course.train.device import keep_memory
from tinylm.evaluate import accuracy
from tinylm.training import Training, TrainSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "python -m tinylm train with twenty fresh seeds: who reaches 95 %, and when"
FIGURE = "tinylm_train"
EXPECTED_SECONDS = 800.0
SEEN = "measured here"


@dataclass(frozen=True)
class Settings(TrainSettings):
    """The settings of `python -m tinylm train`; `seed` is replaced by those of the trainings."""

    first: int = 100  # seed of the first training; the others follow
    seeds: int = 20  # trainings
    goal: float = 0.95  # greedy accuracy on held-out questions
    eval_every: int = 20  # rollouts between greedy evaluations on held-out questions
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("goal", self.goal, "a share between 0 and 1", above=0, below=1)
        require_number("runs", self.runs, "1: each training has its own seed", at_most=1)
        for name in ("rollouts", "eval_every", "warm_target"):
            require_number(name, getattr(self, name), "a number > 0", above=0)


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """One training after the other, each with its own seed."""
    keep_memory()  # as the command does
    numbers = range(settings.first, settings.first + settings.seeds)
    found = []
    for seed in progress(numbers, "trainings"):
        with progress.bar(settings.rollouts, f"seed {seed}") as bar:
            found.append(trained(settings, seed, bar.update))
    return described(settings, found)


def trained(settings: Settings, seed: int, tick: Callable[[int], Any]) -> dict[str, Any]:
    """One training: its accuracy along the rollouts, and what it took.

    `seconds` are CPU time, without the evaluations.
    """
    own = {field.name: getattr(settings, field.name) for field in fields(TrainSettings)}
    training = Training(TrainSettings(**own | {"seed": seed, "eval_every": 0}))
    spent = 0.0
    while training.phase == "warm":
        began = time.process_time()
        training.step()
        spent += time.process_time() - began
    warm = spent
    rollouts, curve = [0], [greedy(training)]
    while not training.done:
        began = time.process_time()
        training.step()
        spent += time.process_time() - began
        tick(1)
        done = training.learner.steps
        if done % settings.eval_every == 0 or training.done:
            rollouts.append(done)
            curve.append(greedy(training))
    return {
        "seed": seed,
        "warm_seconds": warm,
        "seconds": spent,
        "rollouts": rollouts,
        "accuracy": curve,
    }


def greedy(training: Training) -> float:
    """The share of all held-out questions whose greedy answer is right."""
    return float(accuracy(training.model, training.task).mean())


def crossing(rollouts: list[int], curve: list[float], goal: float) -> float:
    """The first evaluated rollout at which the accuracy is `goal` or more; NaN if there is none."""
    return next((float(x) for x, y in zip(rollouts, curve, strict=True) if y >= goal), np.nan)


def described(settings: Settings, found: list[dict[str, Any]]) -> Result:
    """The result of all trainings, with its facts."""
    curves = np.array([one["accuracy"] for one in found])
    crossed = [crossing(one["rollouts"], one["accuracy"], settings.goal) for one in found]
    kept = {name: [one[name] for one in found] for name in found[0] if name != "rollouts"}
    series = {**kept, "rollouts": found[0]["rollouts"], "crossed": crossed}
    goal, ends = f"{settings.goal:.0%}", curves[:, -1]
    early = int(np.argmin(np.abs(np.array(found[0]["rollouts"]) - 20)))
    gain = curves[:, early] - curves[:, 0]
    facts = [
        Fact.exact(
            f"Of {len(found)} fresh seeds, those that end at {goal} of the held-out questions or"
            " more",
            SEEN,
            int((ends >= settings.goal).sum()),
            len(found),
        ),
        Fact.above(
            f"Twenty rollouts lose nothing of the warm start: mean gain of {len(found)} seeds",
            SEEN,
            float(gain.mean()),
            0.0,
            float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else 0.0,
            runs=len(gain) if len(gain) > 1 else None,
        ),
    ]
    seconds = median(one["seconds"] for one in found)
    middle = median(np.nan_to_num(crossed, nan=np.inf).tolist())
    when = f"median: {middle:.0f} rollouts" if np.isfinite(middle) else "most never do"
    caption = (
        f"Greedy exact match on all held-out questions; a line for each of {len(found)} seeds, a"
        f" dot where it first reaches {goal} ({when}). The median training took {seconds:.0f}"
        " seconds of CPU time on one thread, warm start included."
    )
    return Result(series=series, facts=facts, caption=caption)


def plot(result: Result) -> Figure:
    """Accuracy over rollouts, a thin line for each seed, and a dot where it crosses the goal."""
    figure, [ax] = figures.new_figure(width=8.0, height=4.6)
    rollouts, crossed = result.array("rollouts"), result.array("crossed")
    goal = float(result.settings["goal"])
    order = np.argsort(np.where(np.isnan(crossed), np.inf, crossed), kind="stable")
    curves = result.array("accuracy")[order]
    for curve, colour in zip(curves, figures.shades(len(curves)), strict=True):
        ax.plot(rollouts, curve, color=colour, linewidth=0.9)
    ax.plot(crossed, np.full_like(crossed, goal), "o", color=figures.INK, markersize=4, alpha=0.6)
    figures.expectation(ax, goal)
    ends = f"{int((curves[:, -1] >= goal).sum())} of {len(curves)} seeds end above {goal:.0%}"
    figures.note(ax, ends, (float(rollouts[-1]), goal), (0, -16), ha="right", va="top")
    ax.set_ylim(-0.02, 1.03)
    ax.set_xlim(left=0)
    figures.describe(
        ax,
        "python -m tinylm train, a line for each seed",
        "rollouts of GRPO after the warm start",
        "held-out questions right, greedy (share)",
    )
    return figure


__all__ = [
    "EXPECTED_SECONDS",
    "FIGURE",
    "SETTINGS",
    "TITLE",
    "Settings",
    "crossing",
    "plot",
    "run",
    "trained",
]
