"""Settings: what every settings dataclass has in common, and how a command line is read into one.

Settings are frozen dataclasses. A wrong value is refused when they are made (`Checked`), in the
same words wherever it comes from; `read` fills them from a command line through tyro.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from course.errors import require, require_number

LARGEST_SEED = 2**32 - 1  # leaves room for the offsets and factors that make streams of it
# of the whole numbers: 0 means none, or never
MAY_BE_ZERO = ("rollouts", "lr_warmup", "eval_every", "sync_reference")
RATES = ("lr", "lrs", "rate", "rates")  # the last word of a learning rate's name


@dataclass(frozen=True)
class Checked:
    """The base of all settings: every field is checked by its type and its name, see `check`.

    A class with rules of its own extends `__post_init__` and calls this one first.
    """

    def __post_init__(self) -> None:
        check(self)


def check(settings: Any) -> None:
    """Raise `CourseError`, naming the field, unless every field of a settings dataclass is what its
    type and its name say.

    A whole number is an `int` > 0 (≥ 0 for a seed and where 0 means none; True and 2.5 are none); a
    `float` field holds a finite number, > 0 where it is a learning rate; a tuple is not empty, and
    each of its items is checked; rungs are known names; a Literal is one of its values. What other
    types a field may have is left to its own class.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        _check(field.name, getattr(settings, field.name), hints[field.name])


def _check(name: str, value: Any, kind: Any) -> None:
    """One value: `kind` is its type as the class declares it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return
        (kind,) = [option for option in inner if option is not type(None)][:1]
        _check(name, value, kind)
    elif origin is typing.Literal:
        require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
    elif origin is tuple:
        many = len(inner) == 2 and inner[1] is Ellipsis
        fits = isinstance(value, tuple) and (len(value) > 0 if many else len(value) == len(inner))
        require(fits, name, value, f"{'at least one value' if many else f'{len(inner)} values'}")
        for item, one in zip(value, inner[:1] * len(value) if many else inner, strict=True):
            _check(name, item, one)
    elif kind is bool:
        require(isinstance(value, bool), name, value, "True or False")
    elif kind is int:
        _check_whole(name, value)
    elif kind is float:
        rate = name.rpartition("_")[2] in RATES
        require_number(
            name,
            value,
            "a finite number > 0" if rate else "a finite number",
            above=0 if rate else None,
        )
    elif kind is str:
        require(isinstance(value, str) and value != "", name, value, "a text")
        if name in ("rung", "rungs"):
            _check_rung(value)


def _check_whole(name: str, value: Any) -> None:
    if name == "seed":
        allowed = f"a whole number from 0 to {LARGEST_SEED}"
        require_number(name, value, allowed, at_least=0, at_most=LARGEST_SEED, whole=True)
        return
    least = 0 if name in MAY_BE_ZERO else 1
    require_number(name, value, f"a whole number ≥ {least}", at_least=least, whole=True)


def _check_rung(name: str) -> None:
    from course import ladder  # here: settings are read by light commands too

    ladder.get(name)
