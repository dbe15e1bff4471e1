"""Facts: a claim beside what was measured, with its error, what was expected, and
whether it holds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from course.errors import require
from course.lab.encoding import SPECIAL, decode, is_number, rounded

RELATIONS = {"equal": "=", "above": ">", "below": "<"}
ERRORS = 4.0  # a fact may be off by this many standard errors: by chance about once in 16,000 facts
FACT_DIGITS = 12  # and of a fact's numbers
Value = float | int | bool | str


@dataclass(frozen=True)
class Fact:
    """A claim compared with what was measured.

    `number` is its place in the course's list of claims (None: not on the list), `source` who says
    so, with the equation. `measured` and `expected` are in the claim's own unit; `standard_error`
    is that of `measured` (0: exact). `relation`: measured is "equal" to expected within
    `tolerance`, or "above" or "below" it by more than `tolerance`. Use the constructors (`exact`,
    `simulated`, `published`, `above`, `below`): there the tolerance follows from the stated errors.
    Numbers are rounded to 12 significant digits first, so what is judged is what is written. Raises
    `CourseError` on a negative error, an unknown relation, or words where only numbers can be
    compared.
    """

    claim: str
    source: str
    measured: Value
    standard_error: float
    expected: Value
    tolerance: float
    relation: str = "equal"
    number: int | None = None

    def __post_init__(self) -> None:
        for name in ("claim", "source"):
            text = getattr(self, name)
            require(
                isinstance(text, str) and text.strip() != "", f"fact.{name}", text, "a sentence"
            )
        require(self.relation in RELATIONS, "fact.relation", self.relation, ", ".join(RELATIONS))
        number = self.number
        require(
            number is None or (type(number) is int and number > 0),
            "fact.number",
            number,
            "a whole number ≥ 1, or None",
        )
        for name in ("measured", "standard_error", "expected", "tolerance"):
            object.__setattr__(self, name, _scalar(name, getattr(self, name)))
        for name in ("standard_error", "tolerance"):
            value = getattr(self, name)
            require(is_number(value) and not value < 0, f"fact.{name}", value, "a number ≥ 0")
        if not (is_number(self.measured) and is_number(self.expected)):
            require(
                self.relation == "equal",
                "fact.relation",
                self.relation,
                f"equal, since {self.measured!r} is no number",
            )

    @property
    def holds(self) -> bool:
        """Whether the claim was reproduced.

        What is not a number (NaN) never is, nor what has an infinite tolerance.
        """
        measured, expected = self.measured, self.expected
        if not (is_number(measured) and is_number(expected)):
            return type(measured) is type(expected) and measured == expected
        assert not isinstance(measured, str)
        assert not isinstance(expected, str)
        if not math.isfinite(self.tolerance):
            return False
        if self.relation == "equal":
            return measured == expected or abs(measured - expected) <= self.tolerance
        return (
            measured - expected > self.tolerance
            if self.relation == "above"
            else expected - measured > self.tolerance
        )

    @classmethod
    def exact(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        digits: int = 9,
        *,
        scale: float | None = None,
        number: int | None = None,
    ) -> Fact:
        """Two computations of one number, equal to `digits` significant digits: tolerance =
        10^−digits · scale.

        `scale` is the size of the terms that are added up; default |expected|, or 1 where 0 is
        expected. Words and truth values are compared as they are.
        """
        require(0 < digits < FACT_DIGITS, "fact.digits", digits, f"1 … {FACT_DIGITS - 1}")
        want = _scalar("expected", expected)
        size = scale if scale is not None else (abs(float(want)) or 1.0) if is_number(want) else 0.0
        tolerance = 10.0**-digits * size if math.isfinite(size) else 0.0
        return cls(claim, source, measured, 0.0, expected, tolerance, number=number)

    @classmethod
    def simulated(
        cls,
        claim: str,
        source: str,
        measured: Any,
        standard_error: Any,
        expected: Any,
        expected_error: Any = 0.0,
        *,
        number: int | None = None,
    ) -> Fact:
        """A simulation against a formula or another simulation: tolerance = 4·√(standard_error² +
        expected_error²).
        """
        errors = float(standard_error), float(expected_error)
        for name, error in zip(("standard_error", "expected_error"), errors, strict=True):
            require(not error < 0, f"fact.{name}", error, "a number ≥ 0")
        return cls(
            claim,
            source,
            measured,
            standard_error,
            expected,
            ERRORS * math.hypot(*errors),
            number=number,
        )

    @classmethod
    def published(
        cls,
        claim: str,
        source: str,
        measured: Any,
        standard_error: Any,
        expected: Any,
        rounding: float,
        *,
        number: int | None = None,
    ) -> Fact:
        """A simulation against print: tolerance = 4·standard_error + rounding.

        `rounding` is half a unit of the last published digit (.73 → .005), or the error of reading
        the number off a figure.
        """
        require(
            rounding >= 0, "fact.rounding", rounding, "half a unit of the last published digit, ≥ 0"
        )
        return cls(
            claim,
            source,
            measured,
            standard_error,
            expected,
            ERRORS * float(standard_error) + rounding,
            number=number,
        )

    @classmethod
    def above(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        standard_error: Any = 0.0,
        *,
        number: int | None = None,
    ) -> Fact:
        """measured > expected, by more than 4 standard errors."""
        return cls(
            claim,
            source,
            measured,
            standard_error,
            expected,
            ERRORS * float(standard_error),
            "above",
            number,
        )

    @classmethod
    def below(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        standard_error: Any = 0.0,
        *,
        number: int | None = None,
    ) -> Fact:
        """measured < expected, by more than 4 standard errors."""
        return cls(
            claim,
            source,
            measured,
            standard_error,
            expected,
            ERRORS * float(standard_error),
            "below",
            number,
        )

    def as_json(self) -> dict[str, Any]:
        """The fact as it is written, the verdict included."""
        return {
            "number": self.number,
            **{k: v for k, v in asdict(self).items() if k != "number"},
            "holds": self.holds,
        }

    @classmethod
    def from_json(cls, data: Any) -> Fact:
        """Read a fact back.

        Raises `CourseError` if a field is missing or foreign, or the written verdict is not what
        the numbers say.
        """
        names = [f.name for f in fields(cls)]
        require(isinstance(data, dict), "fact", type(data).__name__, "a JSON object")
        require(
            set(data) == {*names, "holds"},
            "fact",
            ", ".join(data),
            f"an object with {', '.join(names)}, holds and no more",
        )
        numeric = ("measured", "standard_error", "expected", "tolerance")
        fact = cls(
            **{name: decode(data[name]) if name in numeric else data[name] for name in names}
        )
        require(
            data["holds"] is fact.holds,
            "fact.holds",
            data["holds"],
            f"{fact.holds}, which is what its numbers say: {fact.claim}",
        )
        return fact

    @property
    def found(self) -> str:
        """measured ± standard error, for a table."""
        return _with_error(self.measured, self.standard_error)

    @property
    def wanted(self) -> str:
        """The relation, what was expected, and the tolerance, for a table."""
        exact = self.tolerance == 0 or not is_number(self.expected)
        close = isinstance(self.expected, int | float) and 0 < self.tolerance <= 1e-6 * abs(
            self.expected
        )
        return f"{RELATIONS[self.relation]} {_show(self.expected)}" + (
            "" if exact or close else f" ± {self.tolerance:.2g}"
        )


def _scalar(name: str, value: Any) -> Any:
    """One number, truth value or word out of whatever holds it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        require(
            int(np.prod(value.shape)) == 1,
            f"fact.{name}",
            f"shape {tuple(value.shape)}",
            "a single number",
        )
        value = value.item()
    require(
        isinstance(value, bool | int | float | str),
        f"fact.{name}",
        value,
        "a number, a truth value or text",
    )
    if isinstance(value, str):
        require(value not in SPECIAL, f"fact.{name}", value, f"any text but {', '.join(SPECIAL)}")
    return rounded(value, FACT_DIGITS) if isinstance(value, float) else value


def _show(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _with_error(value: Value, error: float) -> str:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not error > 0
        or not math.isfinite(error)
    ):
        return _show(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error
    return (
        f"{value:.{decimals}f} ± {error:.{decimals}f}"
        if decimals <= 8
        else f"{value:.6g} ± {error:.1e}"
    )
