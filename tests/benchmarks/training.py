"""How long does `python -m tinylm train` take with its defaults, and where does it end, seed by
seed?

From nothing to two-digit sums: the warm start, then GRPO, timed without the evaluations, which are
made on all held-out questions. Every seed is a training of its own, one after the other.

    python -m tests.benchmarks.training          prints a table, writes benchmark_training.png and
    .json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result, environment
from course.lab.terminal import text_table
from course.train.device import keep_memory
from course.train.files import check_writable
from course.train.noise import Noise
from tinylm.evaluate import accuracy
from tinylm.training import Training, TrainSettings

GOAL = 0.95  # greedy exact match on held-out questions
LOOK = 50  # steps (of the warm start, or rollouts) between evaluations


def train(seed: int) -> dict[str, Any]:
    """One training: seconds and greedy held-out accuracy along the way, and the sampled one that
    reinforcement learning starts from.
    """
    training = Training(TrainSettings(seed=seed, device="cpu", eval_every=0))
    seconds, curve, spent = [0.0], [greedy(training)], 0.0
    found: dict[str, Any] = {"seed": seed}
    while not training.done:
        warm = training.phase == "warm"
        began = time.perf_counter()
        training.step()
        spent += time.perf_counter() - began
        begins = warm and training.phase != "warm"
        if begins:
            found["warm_seconds"] = spent
            found["begins"] = len(
                seconds
            )  # the point of the curve at which reinforcement learning does
            found["start"] = float(
                accuracy(training.model, training.task, Noise((), seed), samples=8).mean()
            )
        if begins or training.done or training.learner.steps % LOOK == 0:
            seconds.append(spent)
            curve.append(greedy(training))
    return found | {"seconds": seconds, "accuracy": curve}


def greedy(training: Training) -> float:
    """Exact match on all held-out questions."""
    return float(accuracy(training.model, training.task).mean())


def measure(seeds: int, threads: int) -> Result:
    """All seeds in turn."""
    torch.set_num_threads(threads)
    keep_memory()  # as `python -m tinylm train` does
    began = time.perf_counter()
    runs = [train(seed) for seed in range(seeds)]
    facts = [
        Fact.above(
            f"Held-out greedy accuracy at the end, worst of {seeds} seeds",
            "this course",
            min(r["accuracy"][-1] for r in runs),
            GOAL,
        ),
        Fact.below(
            f"Sampled held-out accuracy that reinforcement learning starts from, highest of {seeds}"
            " seeds",
            "this course",
            max(r["start"] for r in runs),
            0.5,
        ),
    ]
    return Result(
        name="benchmark_training",
        title="python -m tinylm train: from nothing to two-digit sums",
        settings={"seeds": seeds, "threads": threads},
        series={"runs": runs},
        facts=facts,
        environment=environment("cpu"),
        caption=(
            "Greedy exact match on all held-out questions over the seconds spent on training,"
            f" {threads} threads; one line for each seed, its dot where the warm start ends and"
            " reinforcement learning begins."
        ),
        seconds=time.perf_counter() - began,
    )


def plot(result: Result):  # type: ignore[no-untyped-def]
    """Accuracy over seconds, a line for each seed."""
    figure, [ax] = figures.new_figure(width=7.0, height=4.0)
    runs = result.series["runs"]
    lines = []
    for run, colour in zip(runs, figures.shades(len(runs)), strict=True):
        [line] = ax.plot(run["seconds"], run["accuracy"], color=colour)
        ax.plot(run["seconds"][run["begins"]], run["accuracy"][run["begins"]], "o", color=colour)
        lines.append(line)
    figures.expectation(ax, GOAL)
    ax.text(0, GOAL, f" goal, {100 * GOAL:.0f} %", va="bottom")
    ax.set_ylim(-0.02, 1.03)
    ax.set_xlim(left=0)
    figures.label_ends(ax, lines, [f"seed {run['seed']}" for run in runs])
    figures.describe(
        ax, "From nothing to two-digit sums", "seconds of training", "held-out accuracy, greedy"
    )
    return figure


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    chosen = parser.parse_args()
    check_writable(chosen.out)
    found = measure(chosen.seeds, chosen.threads)
    rows = [
        (
            run["seed"],
            f"{run['start']:.3f}",
            f"{run['warm_seconds']:.1f}",
            f"{run['seconds'][-1]:.1f}",
            f"{run['accuracy'][-1]:.3f}",
        )
        for run in found.series["runs"]
    ]
    print(
        text_table(
            ("seed", "sampled, at the start", "warm start, s", "all, s", "greedy, at the end"), rows
        )
    )
    for path in found.save(chosen.out, plot(found)):
        print(path)


if __name__ == "__main__":
    main()
