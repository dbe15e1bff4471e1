"""The ladder on a language model, so that it decides: who needs how many completions.

A supervised warm start teaches a small transformer two-digit sums to about 30 %. Every rung, every
descendant and every branch continues from there with the same questions and random streams, with
one update per rollout and with eight. Each has its own learning rate, chosen by the mean accuracy
along the run on other models and other held-out questions. What counts is how many completions it
takes until 50, 90 and 95 % of held-out questions are right, and the accuracy at the end.

What to look for:

    one ranking per number of updates: log2 of the completions less the first rung's, model by model
    the noise floor in it: the first rung once more, with other random streams
    rungs whose gradient is the same with one update per rollout, and what parts them with eight

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
from tinylm.curves import SweptBudget, mean_along, peak_bytes, sweep_rates
from tinylm.ranking import AGAIN, Row, facts_of, percent, ranked, said
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "every rung on two-digit sums: completions to 90 % right, ranked, with the noise floor"
FIGURE = "tinylm_ladder"
EXPECTED_SECONDS = 17000.0


@dataclass(frozen=True)
class Settings(SweptBudget):
    """What is compared; `updates` replaces the budget's epochs, `rollouts_of` its rollouts."""

    # which estimators; the others are compared with the first
    rungs: tuple[str, ...] = tuple(n for n, rung in ladder.RUNGS.items() if rung.kind != "own")
    updates: tuple[int, ...] = (1, 8)  # on every rollout; a ranking for each
    levels: tuple[float, ...] = (0.5, 0.9, 0.95)  # held-out accuracies that are to be reached
    ranked_at: float = 0.9  # the one of them that ranks
    preset: str = "small"  # nano, mini, small or gpu
    warm_lr: float = 2e-3  # Adam's learning rate in the warm start
    warm_batch: int = 256  # demonstrations per step
    prompts: int = 64  # questions per rollout
    lr_warmup: int = 100  # updates over which the learning rate rises from 0
    rollouts_of: tuple[int, ...] = (300, 200)  # rollouts, for each number of updates
    log_every: int = 10  # rollouts between two points of a curve
    judged: int = 400  # held-out questions that measure the accuracy
    # Adam's learning rates, each of which falls linearly to 0 …
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    slower: tuple[float, ...] = (1.0, 4.0)  # … divided by this, for each number of updates
    seeds: int = 8  # models that are judged
    workers: int | None = None  # processes side by side; none: one for each core

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising("updates", "levels")
        require(max(self.levels) < 1, "levels", self.levels, "shares below 1")
        for name in ("rollouts_of", "slower"):
            each, allowed = (
                getattr(self, name),
                f"{len(self.updates)} numbers, one for each of updates",
            )
            require(len(each) == len(self.updates) and min(each) > 0, name, each, f"{allowed}, > 0")
        require(self.ranked_at in self.levels, "ranked_at", self.ranked_at, f"one of {self.levels}")

    @property
    def names(self) -> tuple[str, ...]:
        """The rows of a ranking: the rungs, and the first once more."""
        return (*self.rungs, AGAIN)

    def budget(self, updates: int) -> Settings:
        """The budget of the trainings with so many updates per rollout."""
        at = self.updates.index(updates)
        rates = tuple(float(f"{rate / self.slower[at]:.3g}") for rate in self.rates)
        return replace(self, epochs=updates, rollouts=self.rollouts_of[at], rates=rates)


SETTINGS = Settings()


# ---------------------------------------------------------------- measuring


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every rung with every number of updates, side by side."""
    start = warm_start(settings, settings.models, progress)
    tasks = [(name, updates) for updates in settings.updates for name in settings.names]
    workers, device = settings.workers, settings.device
    with TemporaryDirectory() as folder, side_by_side(workers, progress, device) as spread:
        kept = Path(folder) / "start"  # once on disk, and not in every task
        kept.write_bytes(pickle.dumps(start))
        return collected(settings, spread(partial(_arm_of, settings, kept), tasks, "rungs"))


def _arm_of(settings: Settings, kept: Path, name: str, updates: int) -> dict[str, Any]:
    """`arm` from a warm start on disk."""
    return arm(settings, pickle.loads(kept.read_bytes()), name, updates)


def arm(settings: Settings, start: Start, name: str, updates: int) -> dict[str, Any]:
    """Train one rung with so many updates per rollout; returns plain data for `collected`.

    `accuracy` is [logs][S] at `completions` [logs]; `swept` [L] is the mean accuracy along the run
    of the tuning models at each rate. `AGAIN` is the first rung: the same weights and rate, but its
    judged models draw from the streams of the next seed.
    """
    budget = settings.budget(updates)
    other = replace(budget, seed=budget.seed + 1) if name == AGAIN else budget
    estimator = ladder.get(settings.rungs[0] if name == AGAIN else name).estimator
    found = sweep_rates(budget, estimator, start, value=mean_along, judged_with=other)
    noise = Streams(settings.seed, (1, settings.seeds), range(settings.seeds)).noise(JUDGE)
    row: dict[str, Any] = {
        "rung": name,
        "updates": updates,
        "rate": found.choice.rate,
        "interior": found.choice.interior,
        "swept": None if found.tried is None else mean_along(found.tried).mean(-1),
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
    first, levels, ranked_at = settings.rungs[0], settings.levels, settings.ranked_at
    series: dict[str, Any] = {}
    facts: list[Fact] = []
    halted: dict[str, Any] = {}
    caption = (
        f"Bars: paired differences, {described(settings.seeds)}. Each rung at the rate with the"
        f" highest mean accuracy along the run, chosen on {settings.tuning} other models and other"
        " questions; what that choice adds is not in the intervals. Models that never get there"
        " count with the whole run (censored); their number is written. Noise floor: the reference"
        " at its rate from the same weights, with other random streams."
    )
    for updates in settings.updates:
        mine = {row["rung"]: row for row in rows if row["updates"] == updates}
        if first not in mine:
            continue
        series[str(updates)] = table = ranked(mine, first, levels, ranked_at)
        facts += facts_of(table, first, updates, ranked_at)
        chosen = {n: Choice(mine[n]["rate"], 0, mine[n]["interior"]) for n in mine if n != AGAIN}
        outside = edges(chosen, settings.budget(updates).rates)
        caption += f" {said(updates)}: {outside}" if outside else ""
        halted |= {f"{n}, {said(updates)}": torch.tensor(row["halted"]) for n, row in mine.items()}
    require(len(series) > 0, "rows", len(rows), f"at least one of {first}")
    return told(Result(series=series, facts=facts, caption=caption), halted)


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """For each number of updates: the ranking, completions to each level, the final accuracy."""
    tables: dict[str, dict[str, Row]] = {name: dict(each) for name, each in result.series.items()}
    high = [1.6 + 0.27 * len(table) for table in tables.values()]
    sizes: dict[str, Any] = {"height_ratios": high, "width_ratios": (1.2, 1.0, 0.8)}
    figure, panels = figures.new_figure(len(tables), 3, width=17.0, height=sum(high), **sizes)
    first, ranked_at = result.settings["rungs"][0], percent(result.settings["ranked_at"])
    for at, (updates, table) in enumerate(tables.items()):
        ranking, levels, ends = panels[3 * at : 3 * at + 3]
        names = [first if name == AGAIN else name for name in table]
        own = {first: f"{first}: the reference", AGAIN: f"NOISE FLOOR: {first}, other streams"}
        labels = [f"{own.get(name, name)}  lr {row['rate']:g}" for name, row in table.items()]
        for ax, what, text in ((ranking, "behind", labels), (ends, "over", [""] * len(names))):
            numbers = (
                [float(row[key]) for row in table.values()] for key in (what, f"{what}_half")
            )
            figures.rows(ax, names, *numbers, labels=text)
            figures.reference(ax, x=0.0)
            if AGAIN in table:
                mean, half = (float(table[AGAIN][key]) for key in (what, f"{what}_half"))
                ax.axvspan(mean - half, mean + half, color="#777777", alpha=0.18, linewidth=0)
        for place, row in enumerate(table.values()):
            if row["never"][ranked_at]:
                end = float(row["behind"]) + float(row["behind_half"]), place
                words = f"{row['never'][ranked_at]} of {len(row['final'])} never"
                figures.note(ranking, words, end, (6, 0), va="center", color="#777777")
        title = f"{said(int(updates))}: completions to {ranked_at} % right"
        unit = f"log2, less {first}'s, paired, 95 % interval (1: twice as many)"
        ranking.margins(x=0.15)
        figures.describe(ranking, title, unit)
        figures.describe(ends, f"Final accuracy, less {first}'s", "paired, 95 % interval")
        _levels(levels, names, list(table.values()))
    return figure


def _levels(ax: Axes, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Completions to each level: the geometric mean over models, hollow where some never do."""
    for marker, level in zip("<os>^v", rows[0]["to"], strict=False):
        for place, (name, row) in enumerate(zip(names, rows, strict=True)):
            x = float(np.exp2(np.log2(np.array(row["to"][level], float)).mean()))
            colour = figures.style_of(name)["color"]
            fill = "none" if row["never"][level] else colour
            figures.points(ax, x, place, None, name, marker=marker, markerfacecolor=fill)
        ax.plot([], [], marker, color="#444444", label=f"{level} %")
    ax.set_yticks(range(len(names)), [""] * len(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    figures.log_axis(ax, "x", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    figures.describe(ax, "… and to each level", "hollow: some never", legend="lower left")
