"""The tables of course/CONVENTIONS.md: ours, TRL's and verl's conventions, options and rungs.

The cheat sheet, the section *At work* of each lesson and the parity tests read the same rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from course.errors import require

PATH = Path(__file__).resolve().parents[1] / "CONVENTIONS.md"
DIFFERS, OPTIONS, RUNGS = (
    "What differs",
    "Options and their defaults",
    "The same rung in TRL and verl",
)
LIBRARIES = ("TRL", "verl")


@dataclass(frozen=True)
class Convention:
    """A row of the first table: what ours, TRL and verl do; `tests` are the names of its tests."""

    name: str
    ours: str
    trl: str
    verl: str
    source: str
    tests: str


@dataclass(frozen=True)
class Option:
    """An option of a library, with its default as the library writes it and what it sets."""

    library: str
    name: str
    default: str
    sets: str


def table(title: str) -> list[list[str]]:
    """The rows, cell by cell, of the first table under the heading `title`, without its head."""
    return _lines(title)[2:]


def conventions() -> dict[str, Convention]:
    """Name → row of the first table."""
    return {row[0]: Convention(*row) for row in table(DIFFERS)}


def options() -> dict[str, Option]:
    """Name → option of the table of defaults, TRL's and verl's."""
    found = {}
    for library, name, default, sets in table(OPTIONS):
        require(library in LIBRARIES, f"{PATH.name}, {OPTIONS}", library, " or ".join(LIBRARIES))
        found[name.strip("`")] = Option(library, name.strip("`"), default.strip("`"), sets)
    return found


def rungs() -> dict[str, tuple[str, str]]:
    """Rung → its options in TRL and in verl, from the last table."""
    return {row[0].strip("`"): (row[1], row[2]) for row in table(RUNGS)}


def versions() -> tuple[str, str]:
    """TRL's and verl's name with the version that the page speaks of, as "TRL 1.16"."""
    head = _lines(DIFFERS)[0]
    return head[2], head[3]


def anchor(heading: str) -> str:
    """The fragment that leads to a heading of a Markdown file, as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def cell(text: str) -> str:
    """Text as a cell of a Markdown table: on one line, and a bar in it is no border."""
    return re.sub(r"\s*\n\s*", " ", text.strip()).replace("|", "\\|")


@cache
def _text(changed: int) -> str:
    return PATH.read_text(encoding="utf-8")


def _lines(title: str) -> list[list[str]]:
    text = _text(PATH.stat().st_mtime_ns)
    require(f"## {title}\n" in text, PATH.name, "no such heading", f"a table under “{title}”")
    part = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [
        [part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", row.strip()[1:-1])]
        for row in rows
    ]
