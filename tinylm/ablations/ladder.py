"""The ladder on a language model, so that it decides: who learns sums sooner, by how much.

A supervised warm start teaches a small transformer two-digit sums to about 30 %. Every rung, every
descendant and every branch continues from there with the same questions and random streams, with
one update per rollout; those of the ladder and the best known of the others with eight as well
(two epochs of four minibatches).
Each has its own learning rate, chosen by the mean accuracy along the run on other models and other
held-out questions. By the same mean they are ranked. Beside it stand the completions until 50, 90
and 95 % of held-out questions are right, and the accuracy at the end.

What to look for:

    one ranking per number of updates: accuracy along the run less the first rung's, paired
    the noise floor in it: the first rung once more, with other random streams
    rungs that do the same with one update per rollout, in one row, and what parts them with eight

`arm` measures one rung and returns plain data; `collected` makes the result of the arms there are.
So a run that takes hours can be spread, stopped and continued.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.diverged import told
from course.lab.encoding import plain
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.side_by_side import side_by_side
from course.lab.statistics import described
from course.lab.sweep import Choice, edges
from course.lab.terminal import Progress
from course.train.optim import SGD
from tinylm.curves import SweptBudget, mean_along, peak_bytes, sweep_rates, train
from tinylm.ranking import AGAIN, Row, facts_of, ranked, said
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "every rung on two-digit sums, ranked, with the noise floor"
FIGURE = "tinylm_ladder"
EXPECTED_SECONDS = 6000.0


@dataclass(frozen=True)
class Settings(SweptBudget):
    """What is compared; `updates` and `epochs_of` replace the budget's epochs and minibatches,
    `rollouts_of` its rollouts.
    """

    # which estimators; the others are compared with the first
    rungs: tuple[str, ...] = tuple(n for n, rung in ladder.RUNGS.items() if rung.kind != "own")
    # those of them that are trained with several updates per rollout as well
    rungs_of_several: tuple[str, ...] = (
        *(n for n, rung in ladder.RUNGS.items() if rung.kind == "rung"),
        *("rloo", "dr_grpo", "token_mean", "clip_higher", "dapo", "gspo", "cispo", "sapo"),
    )
    updates: tuple[int, ...] = (1, 8)  # on every rollout; a ranking for each
    # passes over the rollout, for each number of updates; the others are its minibatches
    epochs_of: tuple[int, ...] = (1, 2)
    levels: tuple[float, ...] = (0.5, 0.9, 0.95)  # held-out accuracies that are to be reached
    preset: str = "small"  # nano, mini, small or gpu
    warm_lr: float = 2e-3  # Adam's learning rate in the warm start
    warm_batch: int = 256  # demonstrations per step
    prompts: int = 32  # questions per rollout
    lr_warmup: int = 60  # updates over which the learning rate rises from 0
    rollouts_of: tuple[int, ...] = (400, 280)  # rollouts, for each number of updates
    log_every: int = 10  # rollouts between two points of a curve
    judged: int = 400  # held-out questions that measure the accuracy
    # Adam's learning rates, each of which falls linearly to 0 …
    rates: tuple[float, ...] = (1.75e-4, 3.5e-4, 7e-4)
    slower: tuple[float, ...] = (1.0, 1.75)  # … divided by this, for each number of updates
    wider: int = 2  # rates that are tried beyond an end of them where that is best
    seeds: int = 8  # models that are judged
    workers: int | None = None  # processes side by side; none: one for each core

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising("updates", "levels")
        require(max(self.levels) < 1, "levels", self.levels, "shares below 1")
        for name in ("rollouts_of", "slower", "epochs_of"):
            each, allowed = (
                getattr(self, name),
                f"{len(self.updates)} numbers, one for each of updates",
            )
            require(len(each) == len(self.updates) and min(each) > 0, name, each, f"{allowed}, > 0")
        for epochs, updates in zip(self.epochs_of, self.updates, strict=True):
            require(updates % epochs == 0, "epochs_of", epochs, f"a divisor of {updates} updates")

    def names(self, updates: int) -> tuple[str, ...]:
        """The rows of a ranking: the rungs, and the first once more."""
        rungs = self.rungs
        if updates > 1:
            rungs = tuple(n for n in rungs if n in (rungs[0], *self.rungs_of_several))
        return (*rungs, AGAIN)

    def budget(self, updates: int) -> Settings:
        """The budget of the trainings with so many updates per rollout."""
        at = self.updates.index(updates)
        rates = tuple(float(f"{rate / self.slower[at]:.3g}") for rate in self.rates)
        epochs = self.epochs_of[at]
        return replace(
            self,
            epochs=epochs,
            minibatches=updates // epochs,
            rollouts=self.rollouts_of[at],
            rates=rates,
        )


SETTINGS = Settings()


# ---------------------------------------------------------------- measuring


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every rung with every number of updates, side by side."""
    start = warm_start(settings, settings.models, progress)
    tasks = [
        (updates, names)
        for updates in settings.updates
        for names in (*alike(settings, start, updates), (AGAIN,))
    ]
    workers, device = settings.workers, settings.device
    with TemporaryDirectory() as folder, side_by_side(workers, progress, device) as spread:
        kept = Path(folder) / "start"  # once on disk, and not in every task
        kept.write_bytes(pickle.dumps(start))
        rows = spread(partial(_arm_of, settings, kept), tasks, "rungs")
    return collected(settings, rows)


def alike(settings: Settings, start: Start, updates: int) -> list[tuple[str, ...]]:
    """The rungs, those together that do the same with so many updates per rollout.

    Each is trained for a few rollouts by plain gradient ascent, clipped as in the budget, from the
    same weights and with the same streams. Those that then agree, in every weight, to a 10,000th
    of the longest way that a weight has gone, are one row of the ranking.
    """
    budget = replace(settings.budget(updates), rollouts=4, log_every=4, judged=10, lr_warmup=1)
    before = torch.cat([weight.flatten() for weight in start.of([0]).values()])
    found: list[tuple[tuple[str, ...], Tensor]] = []
    for name in settings.names(updates)[:-1]:
        made = train(budget, ladder.get(name).estimator, start, (0.3,), (0,), optimizer=SGD)
        weights = made.problem.model.weights
        moved = torch.cat([weights[key].detach().flatten() for key in start.weights]) - before
        for place, (names, way) in enumerate(found):
            if float((moved - way).abs().max()) < 1e-4 * float(way.abs().max()):
                found[place] = (*names, name), way
                break
        else:
            found.append(((name,), moved))
    return [names for names, _ in found]


def _arm_of(settings: Settings, kept: Path, updates: int, names: tuple[str, ...]) -> dict[str, Any]:
    """`arm` from a warm start on disk."""
    return arm(settings, pickle.loads(kept.read_bytes()), updates, names)


def arm(settings: Settings, start: Start, updates: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Train one rung with so many updates per rollout; returns plain data for `collected`.

    It is the first of `names`; the others do the same (`alike`). `accuracy` is [logs][S] at
    `completions` [logs]; `swept` [L] is the mean accuracy along the run of the tuning models at
    each of the `rates` [L]. `AGAIN` is the first rung of all: the same weights and rate, but its
    judged models draw from the streams of the next seed.
    """
    name, *others = names
    budget = settings.budget(updates)
    other = replace(budget, seed=budget.seed + 1) if name == AGAIN else budget
    estimator = ladder.get(settings.rungs[0] if name == AGAIN else name).estimator
    found = sweep_rates(
        budget, estimator, start, value=mean_along, judged_with=other, wider=settings.wider
    )
    noise = Streams(settings.seed, (1, settings.seeds), range(settings.seeds)).noise(JUDGE)
    row: dict[str, Any] = {
        "rung": name,
        "alike": others,
        "updates": updates,
        "rate": found.choice.rate,
        "interior": found.choice.interior,
        "rates": list(found.values),
        "swept": list(found.values.values()),
        "completions": [step * budget.prompts * budget.group for step in found.judged.steps],
        "accuracy": found.judged.values["accuracy"][:, 0],
        "halted": found.judged.halted[0],
        "seconds": found.judged.seconds / settings.seeds,
        "megabytes": peak_bytes(found.judged, noise) / 1e6,
        "parameters": found.judged.parameters,
    }
    held: dict[str, Any] = plain(row)
    return held


# ---------------------------------------------------------------- the result


def collected(settings: Settings, rows: Sequence[Row]) -> Result:
    """The result of the arms that were measured; a ranking needs that of the first rung.

    Series: number of updates → rung, in the order of the ranking → its row, see `ranked`.
    """
    first = settings.rungs[0]
    series: dict[str, Any] = {}
    facts: list[Fact] = []
    halted: dict[str, Any] = {}
    caption = (
        f"Bars: paired differences, {described(settings.seeds)}. Each rung at the rate with the"
        f" highest mean accuracy along the run, chosen on {settings.tuning} other models and other"
        " questions; what that choice adds is not in the intervals. Noise floor: the reference at"
        " its rate from the same weights, with other random streams. A model that never gets to a"
        " level counts there with the whole run."
    )
    for updates in settings.updates:
        mine = {row["rung"]: row for row in rows if row["updates"] == updates}
        if first not in mine:
            continue
        series[str(updates)] = table = ranked(mine, first, settings.levels)
        facts += facts_of(table, first, updates)
        chosen = {n: Choice(r["rate"], 0, r["interior"]) for n, r in table.items() if n != AGAIN}
        outside = edges(chosen, sorted({rate for row in mine.values() for rate in row["rates"]}))
        caption += f" {said(updates)}: {outside}" if outside else ""
        halted |= {f"{n}, {said(updates)}": torch.tensor(row["halted"]) for n, row in table.items()}
    require(len(series) > 0, "rows", len(rows), f"at least one of {first}")
    return told(Result(series=series, facts=facts, caption=caption), halted)


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """For each number of updates: the ranking, the final accuracy, completions to each level."""
    tables: dict[str, dict[str, Row]] = {name: dict(each) for name, each in result.series.items()}
    high = [1.6 + 0.27 * len(table) for table in tables.values()]
    sizes: dict[str, Any] = {"height_ratios": high, "width_ratios": (1.2, 0.8, 1.0)}
    figure, panels = figures.new_figure(len(tables), 3, width=17.0, height=sum(high), **sizes)
    first = result.settings["rungs"][0]
    for at, (updates, table) in enumerate(tables.items()):
        ranking, ends, levels = panels[3 * at : 3 * at + 3]
        names = [first if name == AGAIN else name for name in table]
        own = {first: f"{first}: the reference", AGAIN: f"NOISE FLOOR: {first}, other streams"}
        labels = [
            f"{own.get(name, ' = '.join([name, *row['alike']]))}  lr {row['rate']:g}"
            for name, row in table.items()
        ]
        for ax, what, text in ((ranking, "ahead", labels), (ends, "over", [""] * len(names))):
            numbers = (
                [float(row[key]) for row in table.values()] for key in (what, f"{what}_half")
            )
            figures.rows(ax, names, *numbers, labels=text)
            figures.reference(ax, x=0.0)
            if AGAIN in table:
                mean, half = (float(table[AGAIN][key]) for key in (what, f"{what}_half"))
                ax.axvspan(mean - half, mean + half, color="#777777", alpha=0.18, linewidth=0)
        unit = f"mean accuracy along the run, less {first}'s, paired, 95 % interval"
        figures.describe(ranking, f"{said(int(updates))}: who learns sooner", unit)
        figures.describe(ends, f"Final accuracy, less {first}'s", "paired, 95 % interval")
        _levels(levels, names, list(table.values()))
    return figure


def _levels(ax: Axes, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Completions to each level: the median over models, hollow where half of them never do."""
    for marker, level in zip("<os>^v", rows[0]["to"], strict=False):
        for place, (name, row) in enumerate(zip(names, rows, strict=True)):
            x = float(np.median(row["to"][level]))
            colour = figures.style_of(name)["color"]
            fill = "none" if 2 * row["never"][level] >= len(row["final"]) else colour
            figures.points(ax, x, place, None, name, marker=marker, markerfacecolor=fill)
        ax.plot([], [], marker, color="#444444", label=f"{level} %")
    ax.set_yticks(range(len(names)), [""] * len(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    text = "median over models; hollow: half or more never"
    figures.describe(ax, "Completions to each level", text, legend="center")
