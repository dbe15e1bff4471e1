"""The errors the course raises: one line each, saying which field, which value, and what is
allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CourseError(ValueError):
    """Bad input, refused at the door.

    The command line prints its one line and exits with status 2.
    """


class Clash(CourseError):
    """Two parts of an estimator that cannot work together, named, with the reason."""


class Diverged(CourseError):
    """Training met a NaN or an infinity; the message holds the step, the metric and the file with
    the last good state.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `CourseError` unless `condition` holds: «field: got value, allowed is …»."""
    if not condition:
        raise CourseError(f"{field}: got {value!r}; allowed is {allowed}")


def unknown(kind: str, name: str, known: Iterable[str]) -> CourseError:
    """The error for a name nobody registered, with the nearest real ones suggested."""
    known = list(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    hint = f"did you mean {by_lower[near[0]]!r}?" if near else f"known: {', '.join(known)}"
    return CourseError(f"unknown {kind} {name!r}: {hint}")
