"""The results of a climb of the ladder on several problems, in one table and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course import ladder
from course.lab import figures
from course.lab.result import Result
from course.lab.terminal import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Climbed:
    """The climb on one problem: its result, with `series["rungs"][name]`, and how to show it.

    `curve` names the series that is drawn over `samples`, with its interval `curve`_half; `unit`
    describes it. `columns` adds columns to the table: heading → name of the rung → text.
    """

    problem: str
    result: Result
    curve: str
    unit: str
    columns: Mapping[str, Mapping[str, str]]


def table(rungs: Sequence[str], climbed: Sequence[Climbed]) -> str:
    """The table of a climb, with one row per rung.

    A row has the replaced part and, for each problem, the final value ± half its 95 % interval and
    the columns of the problem.
    """
    header, columns = (
        ["rung", "replaced part"],
        [list(rungs), [ladder.get(name).replaced for name in rungs]],
    )
    for one in climbed:
        header += [f"{one.problem}: {one.unit}", *one.columns]
        columns.append([_end(one, name) for name in rungs])
        columns += [[column[name] for name in rungs] for column in one.columns.values()]
    return text_table(header, list(zip(*columns, strict=True)))


def _end(one: Climbed, name: str) -> str:
    """The final value of a rung, with the number of halted runs; no value if all were halted."""
    mean, half = (
        one.result.array("rungs", name, key)[-1] for key in (one.curve, f"{one.curve}_half")
    )
    halted, runs = _halted(one, name)
    said = f"halted in {halted} of {runs}"
    if halted == runs:
        return said
    return f"{mean:.3f} ± {half:.3f}" + (f", {said}" if halted else "")


def _halted(one: Climbed, name: str) -> tuple[int, int]:
    """(number of runs that diverged and were halted, number of all runs) of a rung."""
    runs = int(one.result.settings.get("runs", one.result.settings.get("seeds", 1)))
    return round(float(one.result.array("rungs", name, "halted")) * runs), runs


def without_result(rungs: Sequence[str], climbed: Sequence[Climbed]) -> list[str]:
    """The rungs without a result, as "problem: rung": those of which all runs diverged."""
    found = []
    for one in climbed:
        lost = [name for name in rungs for halted, runs in [_halted(one, name)] if halted == runs]
        found += [f"{one.problem}: {name}" for name in lost]
    return found


def together(rungs: Sequence[str], climbed: Sequence[Climbed]) -> Result:
    """The curves of all problems in one result, named `climb`."""
    series: dict[str, Any] = {}
    for one in climbed:
        keys = ("samples", one.curve, f"{one.curve}_half")
        curves = {
            name: {key: one.result.array("rungs", name, key) for key in keys} for name in rungs
        }
        series[one.problem] = {"curve": one.curve, "unit": one.unit, "rungs": curves}
    return Result(
        name="climb",
        title="the ladder, " + " and ".join(one.problem for one in climbed),
        settings={
            "rungs": list(rungs),
            **{one.problem: dict(one.result.settings) for one in climbed},
        },
        series=series,
        environment=climbed[0].result.environment,
        seconds=sum(one.result.seconds for one in climbed),
        caption="Mean of the runs and its 95 % interval; every rung gets the same samples.",
    )


def plot(result: Result) -> Figure:
    """One panel per problem; a rung has the same colour and line style in all panels."""
    problems = list(result.series)
    figure, panels = figures.new_figure(1, len(problems), width=6.2 * len(problems), height=4.6)
    for ax, problem in zip(panels, problems, strict=True):
        about = result.series[problem]
        for name in result.settings["rungs"]:
            x, y, half = (
                result.array(problem, "rungs", name, key)
                for key in ("samples", about["curve"], f"{about['curve']}_half")
            )
            figures.band(ax, x, y, half, name)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        figures.describe(ax, problem[0].upper() + problem[1:], "samples", about["unit"])
    for ax in panels:
        figures.label_ends(ax)
    return figure


def write(result: Result, out: Path) -> Path:
    """Save the result and its figure to a folder; returns the picture's path."""
    return result.save(out, plot(result))[0]
