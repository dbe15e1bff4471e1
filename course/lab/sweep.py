"""Sweeps: a learning rate is chosen on some runs and judged on others, and a best one at the end of
the sweep is said to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.lab.facts import Fact
from course.lab.result import Result

Trained = TypeVar("Trained")  # whatever a training returns


@dataclass(frozen=True)
class Choice:
    """The rate that did best on the tuning runs.

    `index` is its place in the sweep; `interior`: it lies between two rates that were tried, so
    that the sweep holds a summit. `judged` [S'] are the judging runs' values at that rate, where
    they were given.
    """

    rate: float
    index: int
    interior: bool
    judged: Tensor | None = None


def choose(values: Tensor, rates: Sequence[float], judged: Tensor | None = None) -> Choice:
    """The rate with the highest mean of `values` [L, S] (L rates, S tuning runs).

    `judged` [L, S'] are the same values of other runs, which have no say. A rate at which a run
    has no value (NaN, diverged) is not chosen; of equals, the smaller rate is. Pass −values where
    less is better. Raises `CourseError` if the rates do not increase or no rate has a value.
    """
    require(values.dim() == 2 and values.shape[1] > 0, "values", tuple(values.shape), "[L, S]")
    require(
        len(rates) == len(values), "rates", tuple(rates), f"{len(values)} numbers, one for each row"
    )
    require(
        all(low < high for low, high in pairwise(rates)),
        "rates",
        tuple(rates),
        "increasing numbers",
    )
    mean = values.double().mean(-1)
    mean = torch.where(mean.isnan(), -torch.inf, mean)
    best = int(mean.argmax())
    if mean[best] == -torch.inf:
        raise CourseError(
            f"rates: got {tuple(rates)}; at each of them a run diverged: allowed is a sweep with"
            " smaller ones"
        )
    if judged is not None:
        require(
            judged.dim() == 2 and len(judged) == len(rates),
            "judged",
            tuple(judged.shape),
            f"[{len(rates)}, runs]",
        )
    return Choice(
        rate=float(rates[best]),
        index=best,
        interior=0 < best < len(rates) - 1,
        judged=None if judged is None else judged[best],
    )


def finished(values: Tensor, halted: Tensor) -> Tensor:
    """`values` [L, S] of the runs that did not diverge, NaN where one did, for `choose`; where a
    run diverged at every rate, as they are: halted runs have a last good value.
    """
    kept = torch.where(halted, torch.nan, values)
    return values if bool(kept.isnan().any(-1).all()) else kept


def told(found: Result, halted: Mapping[str, Tensor]) -> Result:
    """The result of runs of which `halted` [...] bool diverged, arm by arm.

    A halted run keeps its last good policy, and what is measured of that looks like a number. So
    where there is one, a sentence of the caption and a fact that does not hold say how many of
    which arm: an arm that lost all runs has no result. Unchanged where no run diverged.
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


@dataclass(frozen=True)
class Swept(Generic[Trained]):
    """What `sweep` found: `tried` at every rate on the tuning runs (None: there was one rate, and
    nothing to choose), `judged` at the chosen rate on the judging runs.
    """

    choice: Choice
    tried: Trained | None
    judged: Trained


def sweep(
    train: Callable[[Sequence[float], range], Trained],
    value: Callable[[Trained], Tensor],
    rates: Sequence[float],
    tuning: range,
    judging: range,
) -> Swept[Trained]:
    """Train at all rates on the run numbers `tuning`, then at the best of them on `judging`.

    `train(rates, numbers)` trains L × S runs; run n takes its start and its streams from n alone,
    so that arms swept with the same numbers are paired, run by run. `value` gives their [L, S]
    values, more is better. One rate is not swept. Raises `CourseError` if a run number would both
    choose and judge.
    """
    if len(rates) == 1:
        return Swept(Choice(float(rates[0]), 0, interior=False), None, train(rates, judging))
    both = sorted({*tuning} & {*judging})
    require(
        len(tuning) > 0 and len(judging) > 0 and not both,
        "judging",
        judging,
        f"run numbers that are not among {tuning}",
    )
    tried = train(rates, tuning)
    choice = choose(value(tried), rates)
    return Swept(choice, tried, train([choice.rate], judging))


def edges(
    choices: Mapping[str, Choice], rates: Sequence[float], what: str = "learning rate"
) -> str:
    """A sentence for the caption that names who chose a rate at an end of the sweep, where a wider
    sweep might find a better one; empty where nobody did.
    """
    outer = [name for name, choice in choices.items() if not choice.interior]
    if not outer:
        return ""
    if len(rates) == 1:
        return f"One {what}, {rates[0]:g}, for all: none was swept."
    said = ", ".join(f"{name} ({choices[name].rate:g})" for name in outer)
    return (
        f"At an end of the sweep ({rates[0]:g} … {rates[-1]:g}), so that a wider one may find a"
        f" better {what}: {said}."
    )


__all__ = ["Choice", "Swept", "choose", "edges", "finished", "sweep", "told"]
