"""What each part buys on a language model, from other warm starts: does it hang on the start?

`python -m tinylm parts` takes one warm start for all streams. This repeats it whole from others,
each with random weights, demonstrations, questions and streams of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as change
from typing import TYPE_CHECKING, Any

from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.stress import STRESSES, rows_of
from course.lab.terminal import Progress
from tinylm.ablations import parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "what each part buys, from other warm starts of the transformer"
FIGURE = "tinylm_starts"
EXPECTED_SECONDS = 360.0


@dataclass(frozen=True)
class Settings(parts.Settings):
    """The settings of `parts`; `seed` is replaced by these."""

    others: tuple[int, ...] = (1, 2, 3)  # seeds, one for each start


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """`parts` from every start."""
    found = {
        str(seed): parts.run(change(settings, seed=seed), progress).series["rows"]
        for seed in progress(settings.others, "warm starts")
    }
    facts = []
    for below, rung, name in rows_of(settings.rungs):
        stress = STRESSES[name]
        if not stress.sign:
            continue
        apart = sum(
            rows[f"{rung}, {name}"]["effect"] > rows[f"{rung}, {name}"]["effect_half"]
            for rows in found.values()
        )
        claim = (
            f"transformer, {below} → {rung}, {stress.says}: the interval is on the side of theory"
            " from every start (number of starts)"
        )
        facts.append(Fact.exact(claim, "this course", apart, len(found), number=41))
    caption = (
        f"One row per part and stress; one bar per warm start ({len(found)}), each arm at its own"
        f" best rate, {settings.seeds} streams each."
    )
    return Result(series={"starts": found}, facts=facts, caption=caption)


def plot(result: Result) -> Figure:
    """One row per part and stress, with a bar for each start."""
    starts: dict[str, Any] = result.series["starts"]
    keys = list(next(iter(starts.values())))
    figure, [ax] = figures.new_figure(1, 1, width=9.0, height=1.4 + 0.62 * len(keys))
    names = [key.split(", ")[0] for key in keys]
    labels = [f"{key.split(', ')[0]}\n{STRESSES[key.split(', ')[1]].says}" for key in keys]
    for place, rows in enumerate(starts.values()):
        aside = 0.2 * (place - (len(starts) - 1) / 2)
        middle, half = ([rows[key][what] for key in keys] for what in ("effect", "effect_half"))
        figures.rows(ax, names, middle, half, labels=labels, aside=aside, markersize=5)
    figures.reference(ax, x=0.0)
    figures.describe(ax, "The same from other starts", "effect of the part: rung − rung below")
    return figure
