"""The registry of rungs: estimators by name, with source, paper settings and line style."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from course.errors import CourseError, require, unknown
from course.estimator import PART_KINDS, Estimator
from course.parts.base import OWN

Paper = Mapping[str, str | float]
Dashes = str | tuple[float, tuple[float, ...]]  # as matplotlib writes them

SOLID: Dashes = "-"
DASH: Dashes = (0, (5, 1.6))
DOT: Dashes = (0, (1.2, 1.4))
DASHDOT: Dashes = (0, (6, 1.6, 1.2, 1.6))


class LineStyle(NamedTuple):
    """How every figure draws a rung.

    The colours of the eight rungs have a contrast of at least 3 with white and differ for every
    kind of colour blindness. They are darkened colours of Okabe & Ito 2008 and Tol 2021. Rungs
    whose curves may coincide are neighbours on the ladder: one is dashed and the other solid, so
    both stay visible.
    """

    colour: str  # #rrggbb
    dashes: Dashes


@dataclass(frozen=True)
class Rung:
    """An estimator with its name, title, source, the settings of its paper, and its style.

    `kind` is "rung", "descendant", "branch" or "own". `style` None gives a style that depends on
    the name only. Raises `CourseError` if `kind` or `style` is not allowed.
    """

    name: str
    estimator: Estimator
    title: str
    source: str
    kind: str = "own"
    paper: Paper = field(default_factory=dict)
    style: LineStyle | None = None

    def __post_init__(self) -> None:
        colour = None if self.style is None else self.style[0]
        require(
            colour is None or re.fullmatch("#[0-9a-fA-F]{6}", colour) is not None,
            "rung.style",
            self.style,
            "None or LineStyle('#rrggbb', dashes)",
        )
        require(
            self.kind in ("rung", "descendant", "branch", "own"),
            "rung.kind",
            self.kind,
            "rung, descendant, branch or own",
        )
        object.__setattr__(self, "paper", MappingProxyType(dict(self.paper)))

    @property
    def on(self) -> str | None:
        """The name of the rung below; None if it is the first, or the one below has no name."""
        below = self.estimator.below
        return None if below is None else name_of(below)

    @property
    def replaced(self) -> str:
        """The parts that differ from the rung below, for a table: "baseline: GroupMean()"."""
        changed = sorted(
            self.estimator.changed, key=list(self.estimator.__dataclass_fields__).index
        )
        parts = [name for name in changed if name in PART_KINDS]
        return ", ".join(f"{name}: {getattr(self.estimator, name).short}" for name in parts) or "—"


RUNGS: dict[str, Rung] = {}
FILES: dict[str, str] = {}  # of rungs loaded from a file: "/path/file.py:name", for another process


def register(
    name: str,
    estimator: Estimator,
    title: str = "",
    source: str = "",
    kind: str = "own",
    paper: Paper | None = None,
    style: LineStyle | None = None,
) -> Rung:
    """Register an estimator under a name, for use in every ablation, figure and lesson widget.

    Raises `CourseError` if another estimator has the name, or it is not a Python identifier.
    """
    require(name.isidentifier(), "rung name", name, "a Python identifier")
    known = RUNGS.get(name)
    if known is not None and known.estimator != estimator:
        raise CourseError(
            f"rung name: got {name!r}, which stands for another estimator already; allowed is a new"
            " name"
        )
    if (
        known is not None and known.kind != "own"
    ):  # the course's own rungs keep their kind, title and source
        return known
    RUNGS[name] = Rung(
        name, estimator, title or name, source or "your own", kind, paper or {}, style
    )
    return RUNGS[name]


class Entry(Protocol):
    """A function that registers a rung of the course and returns its estimator."""

    def __call__(
        self,
        name: str,
        estimator: Estimator,
        title: str,
        source: str,
        style: LineStyle,
        **paper: str | float,
    ) -> Estimator: ...


def entry(kind: str) -> Entry:
    """A function that registers rungs of this kind; keyword arguments are the paper's settings."""

    def enter(
        name: str,
        estimator: Estimator,
        title: str,
        source: str,
        style: LineStyle,
        **paper: str | float,
    ) -> Estimator:
        return register(name, estimator, title, source, kind, paper, style).estimator

    return enter


def get(name: str) -> Rung:
    """The rung `name`; "file.py:name" loads an estimator of your own from a Python file.

    Raises `CourseError` for an unknown name or a file that does not run.
    """
    if ".py:" in name:
        return _load(*name.rsplit(":", 1))
    if name not in RUNGS:
        raise unknown("rung", name, RUNGS)
    return RUNGS[name]


def select(names: Iterable[str] | None = None) -> list[Rung]:
    """The rungs with these names, in this order; None gives the eight rungs of the ladder."""
    if names is None:
        return [rung for rung in RUNGS.values() if rung.kind == "rung"]
    chosen = [get(name.strip()) for name in names]
    require(len(chosen) > 0, "rungs", "", "at least one name")
    return chosen


def name_of(estimator: Estimator) -> str | None:
    """The name under which an estimator is registered, or None."""
    return next((rung.name for rung in RUNGS.values() if rung.estimator == estimator), None)


def _load(path: str, attribute: str) -> Rung:
    if not Path(path).is_file():
        raise CourseError(
            f"rungs: got {path!r}, which is no file; allowed is a registered name or FILE.py:NAME"
        )
    name = f"{OWN}{Path(path).resolve()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(
            spec
        )  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt):
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise CourseError(
                f"{path}: got a file that does not run ({said}); allowed is one that does"
            ) from error
    estimator = getattr(sys.modules[name], attribute, None)
    if not isinstance(estimator, Estimator):
        found = [n for n, it in vars(sys.modules[name]).items() if isinstance(it, Estimator)]
        kind = type(estimator).__name__ if hasattr(sys.modules[name], attribute) else "no such name"
        allowed = f"an Estimator{': ' if found else ''}{', '.join(found)}"
        raise CourseError(f"{path}:{attribute}: got {kind}; allowed is {allowed}")
    rung = register(attribute, estimator)
    FILES[attribute] = f"{Path(path).resolve()}:{attribute}"
    return rung
