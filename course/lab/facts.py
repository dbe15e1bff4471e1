"""Facts: a claim with the measured value, its error, the expected value, and whether it holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, Unpack

import numpy as np
from torch import Tensor

from course.errors import require
from course.lab.encoding import SPECIAL, decode, is_number, rounded
from course.lab.statistics import student

RELATIONS = {"equal": "=", "above": ">", "below": "<"}
ERRORS = 4.0  # a fact may be off by this many standard errors, if they are known
# The chance of a larger normal error, in either direction: about 1 in 16,000. If the standard error
# is estimated from few runs, the same chance takes more of them: 5.1 with 20 runs, 17 with 5.
CHANCE = math.erfc(ERRORS / math.sqrt(2))
FACT_DIGITS = 12  # significant digits of a fact's numbers
Value = float | int | bool | str


class Given(TypedDict, total=False):
    """What every constructor for estimated values takes by name; see `Fact`."""

    number: int | None
    runs: int | None
    chance: float


@dataclass(frozen=True)
class Fact:
    """A claim compared with a measurement.

    - `number`: the number of the claim in the course's list; None if it is not on the list;
    - `source`: who makes the claim, with the equation;
    - `measured`, `expected`: in the unit of the claim; `standard_error` is that of `measured`, and
      0 means exact;
    - `relation`: "equal" if measured equals expected within `tolerance`, "above" or "below" if it
      differs by more than `tolerance` in that direction;
    - `runs`: how many independent runs the errors were estimated from; None for known errors, or so
      many runs that it does not matter;
    - `chance`: the probability that an error exceeds the tolerance, in either direction; None if
      the values are exact or the tolerance was set by hand.

    Use the constructors (`exact`, `simulated`, `published`, `above`, `below`), which derive the
    tolerance from the errors, `runs` and `chance`. Numbers are rounded to 12 significant digits
    first, so that the comparison uses what is written. Raises `CourseError` for a negative error,
    an unknown relation, or text compared by "above" or "below".
    """

    claim: str
    source: str
    measured: Value
    standard_error: float
    expected: Value
    tolerance: float
    relation: str = "equal"
    number: int | None = None
    runs: int | None = None
    chance: float | None = None

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
        runs = self.runs
        require(
            runs is None or (type(runs) is int and runs > 0),
            "fact.runs",
            runs,
            "a whole number ≥ 1, or None",
        )
        if self.chance is not None:
            object.__setattr__(self, "chance", _scalar("chance", self.chance))
            require(
                is_number(self.chance) and 0 < self.chance < 1,
                "fact.chance",
                self.chance,
                "between 0 and 1, or None",
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

        Never True for NaN or for an infinite tolerance.
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
        """Two computations of one number that agree to `digits` significant digits.

        The tolerance is 10^−digits · scale. `scale` is the size of the terms that are added up; the
        default is |expected|, or 1 if that is 0. Strings and truth values must be equal.
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
        **given: Unpack[Given],
    ) -> Fact:
        """A simulation compared with a formula or with another simulation.

        The tolerance is t·√(standard_error² + expected_error²), and an error exceeds t standard
        errors with probability `chance`. For known errors (`runs` None) t = 4. If both errors are
        estimated, pass the smaller number of runs: t may then be too large, but not too small.
        """
        errors = float(standard_error), float(expected_error)
        for name, error in zip(("standard_error", "expected_error"), errors, strict=True):
            require(not error < 0, f"fact.{name}", error, "a number ≥ 0")
        numbers = measured, standard_error, expected
        return cls._estimated((claim, source, *numbers), math.hypot(*errors), **given)

    @classmethod
    def published(
        cls,
        claim: str,
        source: str,
        measured: Any,
        standard_error: Any,
        expected: Any,
        rounding: float,
        **given: Unpack[Given],
    ) -> Fact:
        """A simulation compared with a published number.

        The tolerance is t·standard_error + rounding, with t as in `simulated`. `rounding` is half a
        unit of the last published digit (.73 → .005), or the error of reading a figure.
        """
        allowed = "half a unit of the last published digit, ≥ 0"
        require(rounding >= 0, "fact.rounding", rounding, allowed)
        numbers = measured, standard_error, expected
        error = float(standard_error)
        return cls._estimated((claim, source, *numbers), error, rounding=rounding, **given)

    @classmethod
    def above(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        standard_error: Any = 0.0,
        **given: Unpack[Given],
    ) -> Fact:
        """measured > expected, by more than t standard errors, t as in `simulated`."""
        numbers = measured, standard_error, expected
        error = float(standard_error)
        return cls._estimated((claim, source, *numbers), error, relation="above", **given)

    @classmethod
    def below(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        standard_error: Any = 0.0,
        **given: Unpack[Given],
    ) -> Fact:
        """measured < expected, by more than t standard errors, t as in `simulated`."""
        numbers = measured, standard_error, expected
        error = float(standard_error)
        return cls._estimated((claim, source, *numbers), error, relation="below", **given)

    @classmethod
    def _estimated(
        cls,
        values: tuple[str, str, Any, Any, Any],
        error: float,
        *,
        rounding: float = 0.0,
        relation: str = "equal",
        number: int | None = None,
        runs: int | None = None,
        chance: float = CHANCE,
    ) -> Fact:
        """A fact whose tolerance is exceeded by a random error with probability `chance`."""
        if error == 0 and runs is None:  # nothing was estimated
            return cls(*values, rounding, relation, number)
        tolerance = rounding + (student(chance, runs) * error if error else 0.0)
        return cls(*values, tolerance, relation, number, runs, chance)

    def as_json(self) -> dict[str, Any]:
        """The fact as it is written to JSON, with the verdict."""
        return {
            "number": self.number,
            **{k: v for k, v in asdict(self).items() if k != "number"},
            "holds": self.holds,
        }

    @classmethod
    def from_json(cls, data: Any) -> Fact:
        """Read a fact back.

        Raises `CourseError` if a field is missing or unknown, or the written verdict contradicts
        the numbers. Older files have neither `runs` nor `chance`.
        """
        names = [f.name for f in fields(cls)]
        require(isinstance(data, dict), "fact", type(data).__name__, "a JSON object")
        data = {"runs": None, "chance": None} | data
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
        """The text "measured ± standard error", for a table."""
        return _with_error(self.measured, self.standard_error)

    @property
    def wanted(self) -> str:
        """The relation, the expected value and the tolerance, for a table."""
        exact = self.tolerance == 0 or not is_number(self.expected)
        close = isinstance(self.expected, int | float) and 0 < self.tolerance <= 1e-6 * abs(
            self.expected
        )
        return f"{RELATIONS[self.relation]} {_show(self.expected)}" + (
            "" if exact or close else f" ± {self.tolerance:.2g}"
        )


class Facts(list[Fact]):
    """A list of facts that share a source, a number of the course's list, and a number of runs.

    Each method appends the fact that `Fact`'s constructor of the same name makes. `found` is a
    number, or a number with its standard error, as `mean_error`, `paired_error` and `share_error`
    of `course.lab.statistics` return it. `source` replaces the shared one.
    """

    def __init__(
        self,
        source: str,
        number: int | None = None,
        runs: int | None = None,
        chance: float = CHANCE,
    ) -> None:
        super().__init__()
        self.source = source
        self.number = number
        self.given: Given = {"number": number, "runs": runs, "chance": chance}

    def exact(
        self,
        claim: str,
        measured: Any,
        expected: Any,
        digits: int = 9,
        *,
        scale: float | None = None,
        source: str = "",
    ) -> None:
        source = source or self.source
        kept: dict[str, Any] = {"scale": scale, "number": self.number}
        self.append(Fact.exact(claim, source, measured, expected, digits, **kept))

    def simulated(
        self, claim: str, found: Any, expected: Any, expected_error: Any = 0.0, *, source: str = ""
    ) -> None:
        numbers = *_pair(found), expected, expected_error
        self.append(Fact.simulated(claim, source or self.source, *numbers, **self.given))

    def published(
        self, claim: str, found: Any, expected: Any, rounding: float, *, source: str = ""
    ) -> None:
        numbers = *_pair(found), expected, rounding
        self.append(Fact.published(claim, source or self.source, *numbers, **self.given))

    def above(self, claim: str, found: Any, expected: Any = 0.0, *, source: str = "") -> None:
        self._differs(Fact.above, claim, found, expected, source)

    def below(self, claim: str, found: Any, expected: Any = 0.0, *, source: str = "") -> None:
        self._differs(Fact.below, claim, found, expected, source)

    def _differs(self, make: Any, claim: str, found: Any, expected: Any, source: str) -> None:
        measured, error = _pair(found)
        # runs and a chance belong to estimates only
        given = self.given if isinstance(found, tuple) else {"number": self.number}
        self.append(make(claim, source or self.source, measured, expected, error, **given))


def _pair(found: Any) -> tuple[Any, Any]:
    """A number and its standard error; 0 for a number alone."""
    return found if isinstance(found, tuple) else (found, 0.0)


def _scalar(name: str, value: Any) -> Any:
    """The single number, truth value or string in `value`, also from a tensor or array."""
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
