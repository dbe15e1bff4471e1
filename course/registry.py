"""The registry behind the ladder: estimators by name, with where they come from, the settings
their papers use, and how figures draw them.
"""

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

    Colours of the eight rungs keep a contrast of 3 to white and stay apart for every kind of colour
    blindness; after Okabe & Ito 2008 and Tol 2021, darkened. Rungs that may coincide stand on
    neighbouring places of the ladder: a dashed one over a solid one leaves both visible.
    """

    colour: str  # #rrggbb
    dashes: Dashes


@dataclass(frozen=True)
class Rung:
    """An estimator with its name, where it comes from, the rung it stands on, the settings its
    paper uses, and its style in figures (None: one that its name alone decides).
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
        """The name of the rung it stands on."""
        below = self.estimator.below
        return None if below is None else name_of(below)

    @property
    def replaced(self) -> str:
        """What was replaced, for a table: «baseline: GroupMean()»."""
        changed = sorted(
            self.estimator.changed, key=list(self.estimator.__dataclass_fields__).index
        )
        parts = [name for name in changed if name in PART_KINDS]
        return ", ".join(f"{name}: {getattr(self.estimator, name).short}" for name in parts) or "—"


RUNGS: dict[str, Rung] = {}


def register(
    name: str,
    estimator: Estimator,
    title: str = "",
    source: str = "",
    kind: str = "own",
    paper: Paper | None = None,
    style: LineStyle | None = None,
) -> Rung:
    """Enter an estimator under a name, so that every ablation, figure and lesson widget takes it.

    Raises if the name is taken.
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
    """A call that enters a rung of the course and returns its estimator."""

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
    """How the ladder enters its rungs of that kind; what the paper used comes last, by name."""

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
    """The rung of that name; «file.py:name» loads an estimator of your own from a Python file."""
    if ".py:" in name:
        return _load(*name.rsplit(":", 1))
    if name not in RUNGS:
        raise unknown("rung", name, RUNGS)
    return RUNGS[name]


def select(names: Iterable[str] | None = None) -> list[Rung]:
    """The rungs of those names, in that order; None gives the eight of the ladder."""
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
    return register(attribute, estimator)
