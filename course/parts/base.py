"""What all parts share: a part is a frozen dataclass that knows its own formula and
what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from course.errors import Clash

if TYPE_CHECKING:
    from course.estimator import Estimator


@dataclass(frozen=True)
class Part:
    """One replaceable term of the objective.

    A part of your own subclasses one of its eight kinds and adds `__call__`.

    `symbol` is the LaTeX of the term, `plain` its form for a terminal; both may be properties that
    use the fields. `needs` names the optional fields of the `Rollout` without which the part cannot
    work.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    symbol: ClassVar[str] = ""
    plain: ClassVar[str] = ""

    @property
    def latex(self) -> str:
        """The term in LaTeX; its class name where a part of your own defines no `symbol`."""
        return self.symbol or rf"\mathrm{{{type(self).__name__}}}"

    @property
    def text(self) -> str:
        """The term for a terminal."""
        return self.plain or type(self).__name__

    @property
    def short(self) -> str:
        """The part as one would write it: only the fields that differ from the defaults."""
        default = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in fields(self)
        }
        given = [
            f"{name}={getattr(self, name)!r}"
            for name in default
            if getattr(self, name) != default[name]
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def check(self, estimator: Estimator) -> None:
        """Raise `Clash` if this part cannot work among the others of `estimator`."""

    def clash(self, other: Part, why: str) -> Clash:
        """The error that names both parts and the reason."""
        return Clash(f"{self.short} clashes with {other.short}: {why}")


def number(value: float) -> str:
    """A coefficient as LaTeX writes it: 0.04, 10^{-6}, 3\\times10^{-4}."""
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\times {power}"
