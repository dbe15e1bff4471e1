"""Runs that diverged, and rungs that give NaN alone: they are no result, and a result says so."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from course.lab.facts import Fact
from course.lab.result import Result

ERRORS = ("half", "error")  # how the names of series end that are NaN where there is one run


def told(found: Result, halted: Mapping[str, Tensor]) -> Result:
    """The result, with a report of the runs that diverged; `halted`: method → [...] bool.

    A halted run keeps its last good policy, so its measurements look like ordinary numbers. If
    there are halted runs, a sentence in the caption and a fact that does not hold say how many each
    method has; a method all of whose runs were halted has no result. Otherwise the result is
    unchanged.
    """
    lost = {name: (int(runs.sum()), runs.numel()) for name, runs in halted.items()}
    said = [
        f"{name} {count} of {runs}{', so no result' if count == runs else ''}"
        for name, (count, runs) in lost.items()
        if count
    ]
    if not said:
        return found
    which = "; ".join(said)
    caption = f"{found.caption} Diverged and were halted: {which}."
    count = sum(count for count, _ in lost.values())
    fact = Fact.exact(f"No run diverged and was halted ({which})", "this course", count, 0)
    return replace(found, caption=caption.strip(), facts=[*found.facts, fact])


def without_numbers(found: Result, names: Collection[str]) -> Result:
    """The result, with a sentence of the caption and a fact that does not hold where a series of
    one of `names` (rungs, say) is NaN throughout; unchanged where none is.
    """
    lost = [name for name in names if any(_none(at) for at in _under(name, found.series))]
    if not lost:
        return found
    which = ", ".join(lost)
    fact = Fact.exact(f"No rung gives NaN alone ({which})", "this course", len(lost), 0)
    caption = f"{found.caption} NaN, so no result: {which}.".strip()
    return replace(found, caption=caption, facts=[*found.facts, fact])


def _under(name: str, series: Mapping[str, Any]) -> Iterator[Any]:
    """Whatever stands under that key, on any level."""
    for key, value in series.items():
        if key == name:
            yield value
        elif isinstance(value, dict):
            yield from _under(name, value)


def _none(value: Any) -> bool:
    """Whether a series in here is NaN throughout."""
    if isinstance(value, dict):
        return any(_none(each) for key, each in value.items() if not key.endswith(ERRORS))
    numbers = list(_flat(value))
    return len(numbers) > 0 and all(isinstance(n, float) and math.isnan(n) for n in numbers)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


__all__ = ["told", "without_numbers"]
