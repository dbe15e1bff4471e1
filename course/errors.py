"""The errors of the course: one line that names the field, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 200  # characters of a value in a message


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
        raise CourseError(f"{field}: got {_shown(value)}; allowed is {allowed}")


def _shown(value: object) -> str:
    """A value for a message: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a class of the user's own, whose repr fails
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


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

    Numbers are ints, floats and NumPy's scalars. Fractions are not, because tensors cannot be
    multiplied by them; nor are strings, tensors, lists, True, False, NaN, and integers too large
    for a float. `whole` allows integers only (numpy's too, but not 2.0); `optional` allows None.
    """
    if optional and value is None:
        return
    number = as_float(value, numbers.Integral if whole else numbers.Real)
    fits = (
        math.isfinite(number)
        and (at_least is None or number >= at_least)
        and (at_most is None or number <= at_most)
        and (above is None or number > above)
        and (below is None or number < below)
    )
    require(fits, field, value, allowed)


def as_float(value: object, kind: type) -> float:
    """`value` as a float; NaN if it is no number of `kind`, or too large for a float.

    A number is an int, a float or a scalar of NumPy, but not True or False.
    """
    scalar = isinstance(value, int | float) or hasattr(value, "dtype")
    if not scalar or not isinstance(value, kind) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.nan


def require_floats(field: str, tensor: Tensor) -> None:
    """Raise `CourseError` unless a tensor is of a floating-point type."""
    require(tensor.is_floating_point(), field, tensor.dtype, "a floating-point type")


def require_logits(field: str, tensor: Tensor) -> None:
    """Raise `CourseError` unless a tensor holds logits or logarithms of probabilities.

    They are floating-point numbers, none NaN or +∞; −∞ stands for probability 0.
    """
    require_floats(field, tensor)
    usable = tensor < math.inf
    if not bool(usable.all()):
        require(False, field, tensor.detach()[~usable][0].item(), "numbers, not NaN or +∞")


def require_broadcasts(field: str, tensor: Tensor, shape: Iterable[int]) -> None:
    """Raise `CourseError` unless a tensor broadcasts to `shape`."""
    have, want = tuple(tensor.shape), tuple(shape)
    pairs = zip(reversed(have), reversed(want), strict=False)
    fits = len(have) <= len(want) and all(one in (1, other) for one, other in pairs)
    require(fits, field, have, f"a shape that broadcasts to {want}")


def require_fits_runs(field: str, value: object, runs: Iterable[int]) -> None:
    """Raise `CourseError` for a tensor [...] that does not have one number for each run.

    Each axis has the length of the run axis, or 1. Numbers and tensors without axes fit always.
    """
    shape, runs = tuple(getattr(value, "shape", ())), tuple(runs)
    fits = len(shape) == len(runs) and all(
        have in (1, want) for have, want in zip(shape, runs, strict=True)
    )
    require(not shape or fits, field, shape, f"a number or one for each of the runs {runs}")


def require_finite(field: str, tensor: Tensor) -> None:
    """Raise `CourseError` unless every number of a tensor is finite."""
    finite = tensor.isfinite()
    if not bool(finite.all()):
        require(False, field, tensor.detach()[~finite][0].item(), "finite numbers")


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
