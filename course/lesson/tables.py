"""TOML files beside the lessons: read whole, and checked field by field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course.errors import CourseError, require

_ALLOWED = {
    str: "a sentence",
    list: "an array",
    bool: "true or false",
    int: "a whole number",
}


def read(place: Path, allowed: str) -> dict[str, Any]:
    """The tables of a file. Raises `CourseError` with what is `allowed` if it is no TOML."""
    try:
        return tomllib.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CourseError(f"{place}: got no TOML ({error}); allowed is {allowed}") from None


def check(
    where: str, entry: Any, needed: Mapping[str, type], more: Mapping[str, type] | None = None
) -> None:
    """Require a table with the `needed` keys, perhaps some of `more`, of their types, not blank."""
    kinds = {**needed, **(more or {})}
    require(isinstance(entry, dict), where, entry, f"a table with {', '.join(needed)}")
    for key in needed:
        require(key in entry, where, f"no {key}", f"a table with {', '.join(needed)}")
    for key, value in entry.items():
        require(key in kinds, where, key, f"the keys {', '.join(kinds)}")
        fits = isinstance(value, kinds[key]) and (not isinstance(value, str) or bool(value.strip()))
        require(fits, f"{where}.{key}", value, _ALLOWED[kinds[key]])
