"""Sweeps: choose a learning rate on some runs, and evaluate it on others.

`edges` reports rates that were best at an end of the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from course.errors import CourseError, require

Trained = TypeVar("Trained")  # whatever a training returns


@dataclass(frozen=True)
class Choice:
    """The rate that was best on the tuning runs.

    `index` is its place in the sweep. `interior` is True if it is between two rates that were
    tried, so that the sweep contains a maximum. `judged` [S'] are the values of the judging runs at
    that rate, if they were given.
    """

    rate: float
    index: int
    interior: bool
    judged: Tensor | None = None


def choose(values: Tensor, rates: Sequence[float], judged: Tensor | None = None) -> Choice:
    """The rate with the highest mean of `values` [L, S] (L rates, S tuning runs).

    `judged` [L, S'] are the values of other runs, which do not influence the choice. A rate at
    which a run diverged (NaN) is not chosen; of equal rates, the smaller one is. If less is better,
    pass −values. Raises `CourseError` if the rates do not increase, or a run diverged at each.
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
    """`values` [L, S] with NaN for runs that diverged (`halted` [L, S]), as `choose` expects.

    If a run diverged at every rate, `values` are returned unchanged; halted runs then count with
    their last good value.
    """
    kept = torch.where(halted, torch.nan, values)
    return values if bool(kept.isnan().any(-1).all()) else kept


@dataclass(frozen=True)
class Swept(Generic[Trained]):
    """The result of a sweep.

    `tried` holds the tuning runs at the rates that were given (None if there was only one rate),
    `judged` the judging runs at the chosen rate. `values` is every rate that was tried → the mean
    value of the tuning runs there, rates increasing.
    """

    choice: Choice
    tried: Trained | None
    judged: Trained
    values: Mapping[float, float] = field(default_factory=dict)


def sweep(
    train: Callable[[Sequence[float], range], Trained],
    value: Callable[[Trained], Tensor],
    rates: Sequence[float],
    tuning: range,
    judging: range,
    wider: int = 0,
) -> Swept[Trained]:
    """Train at all rates on the run numbers `tuning`, then at the best rate on `judging`.

    `train(rates, numbers)` trains L × S runs. The start and the random streams of run n depend on n
    only, so methods that are swept with the same numbers are paired run by run. `value` returns the
    values [L, S] of the runs; more is better. A single rate needs no tuning runs. While the best
    rate is at an end, up to `wider` more are tried beyond it, each by the factor between the last
    two. Raises `CourseError` if a run number is in both ranges.
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
    values = dict(zip(rates, value(tried), strict=True))
    while True:
        ordered = sorted(values)
        choice = choose(torch.stack([values[rate] for rate in ordered]), ordered)
        if choice.interior or not wider:
            break
        wider -= 1
        end, inner = ordered[:2] if choice.index == 0 else ordered[:-3:-1]
        beyond = float(f"{end * end / inner:.3g}")
        [values[beyond]] = value(train([beyond], tuning))
    means = {rate: float(values[rate].double().mean()) for rate in ordered}
    return Swept(choice, tried, train([choice.rate], judging), means)


def edges(
    choices: Mapping[str, Choice], rates: Sequence[float], what: str = "learning rate"
) -> str:
    """A sentence for the caption that names the methods whose best rate is at an end of the sweep.

    For them a wider sweep might find a better rate. It is empty if there are none.
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


__all__ = ["Choice", "Swept", "choose", "edges", "finished", "sweep"]
