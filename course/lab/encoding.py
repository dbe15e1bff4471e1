"""JSON encoding of results: tensors as nested lists, NaN and infinities as strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course.errors import CourseError, require

SERIES_DIGITS = 7  # significant digits of a series that are kept
NUMBERS_PER_LINE = 12
SPECIAL = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}  # JSON has no such numbers: they are written as strings


def plain(value: Any, digits: int | None = None, where: str = "value") -> Any:
    """`value` in the types of JSON: tensors and arrays become nested lists, dataclasses dicts.

    Keys of mappings become strings. Floats are rounded to `digits` significant digits (None: not
    rounded). Raises `CourseError`, which names the place, for any other type.
    """
    if isinstance(value, str):
        require(value not in SPECIAL, where, value, f"any text but {', '.join(SPECIAL)}")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return rounded(float(value), digits)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return plain(
            (tensor.double() if tensor.is_floating_point() else tensor).numpy(), digits, where
        )
    if isinstance(value, np.ndarray | np.generic):
        require(
            value.dtype.kind in "biufU",
            where,
            f"an array of {value.dtype}",
            "numbers, truth values or text",
        )
        return plain(value.tolist(), digits, where)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name), digits, f"{where}.{f.name}")
            for f in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item, digits, where) for item in value]
    if isinstance(value, Path | torch.device):
        return str(value)
    raise CourseError(
        f"{where}: got {type(value).__name__}; allowed is numbers, text, tensors, arrays, and lists"
        " or dicts of them"
    )


def rounded(value: float, digits: int | None) -> float:
    return (
        value if digits is None or not math.isfinite(value) else float(f"{value:.{digits}g}") + 0.0
    )  # + 0.0 turns −0.0 into 0.0


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decode(value: Any) -> Any:
    """Turn the strings for NaN and the infinities back into floats."""
    if isinstance(value, str):
        return SPECIAL.get(value, value)
    if isinstance(value, list):
        return [decode(item) for item in value]
    return {key: decode(item) for key, item in value.items()} if isinstance(value, dict) else value


def dump(value: Any, indent: str = "") -> str:
    """JSON text: one line per entry of a dict or nested list, and 12 numbers per line in others."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {dump(item, deeper)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + dump(item, deeper) for item in value) + f"\n{indent}]"
    if isinstance(value, list):
        items = [dump(item) for item in value]
        lines = [
            ", ".join(items[start : start + NUMBERS_PER_LINE])
            for start in range(0, len(items), NUMBERS_PER_LINE)
        ]
        return "[" + f",\n{deeper}".join(lines) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        value = next(word for word, number in SPECIAL.items() if str(number) == str(value))
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
