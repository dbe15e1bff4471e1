"""The errors of the course: one line that names the field, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class CourseError(ValueError):
    """Bad input. Commands print its one line and exit with status 2."""


class Clash(CourseError):
    """Two parts of an estimator cannot work together; the message names both and the reason."""


class NotFinite(CourseError):
    """A number of a rollout is NaN or infinite where it is used; `runs` [...] bool says in which
    runs, so that a learner can halt these and go on with the others.
    """

    def __init__(self, message: str, runs: Tensor) -> None:
        super().__init__(message)
        self.runs = runs


class Diverged(CourseError):
    """Training met a NaN or an infinity.

    The message names the step, the quantity and the file with the last good state.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `CourseError` ("field: got value; allowed is …") unless `condition` holds."""
    if not condition:
        raise CourseError(f"{field}: got {value!r}; allowed is {allowed}")


def require_number(
    field: str,
    value: object,
    allowed: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise `CourseError` unless `value` is one finite number within the given bounds.

    Strings, tensors, lists, True and False do not count as numbers. Nor do NaN and integers too
    large for a float. `whole` allows integers only (numpy's too, but not 2.0); `optional` allows
    None.
    """
    if optional and value is None:
        return
    number = _as_float(value, numbers.Integral if whole else numbers.Real)
    fits = (
        math.isfinite(number)
        and (at_least is None or number >= at_least)
        and (at_most is None or number <= at_most)
        and (above is None or number > above)
        and (below is None or number < below)
    )
    require(fits, field, value, allowed)


def _as_float(value: object, kind: type) -> float:
    """`value` as a float; NaN if it is not of `kind`, or too large for a float."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.nan


def require_flag(field: str, value: object) -> None:
    """Raise `CourseError` unless `value` is True or False."""
    require(isinstance(value, bool), field, value, "True or False")


def misnamed(field: str, kind: str, name: str, known: Iterable[str]) -> CourseError:
    """The error for a field whose value is a name nobody registered."""
    return CourseError(f"{field}: got {unknown(kind, name, known)}")


def unknown(kind: str, name: str, known: Iterable[str]) -> CourseError:
    """The error for an unknown name; it suggests the nearest known one, or lists them all."""
    known = list(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    hint = f"did you mean {by_lower[near[0]]!r}?" if near else f"known: {', '.join(known)}"
    return CourseError(f"unknown {kind} {name!r}: {hint}")
