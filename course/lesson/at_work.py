"""*At work*: what the part of a lesson is called in TRL and verl, its defaults, and one trap.

A lesson's choice of rows is notebooks/src/at_work/NN.toml; the rows are those of CONVENTIONS.md,
which the parity tests compare with the libraries. The build puts the section in a lesson's place
`{{at work}}`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.errors import CourseError, require
from course.lesson import conventions
from course.lesson.conventions import anchor, cell
from course.lesson.syllabus import LessonInfo, described

PAGE = "CONVENTIONS.md"  # generated, in notebooks/: a heading for every convention
KEYS = {"options": list, "rows": list, "rungs": list, "remark": str, "trap": str, "trap_row": str}
NEEDED = ("options", "rows", "trap", "trap_row")


@dataclass(frozen=True)
class AtWork:
    """A lesson's choice: names of options, of conventions and of rungs, a remark and a trap.

    `trap_row` is the convention that the trap is about; its tests hold the trap true.
    """

    options: tuple[str, ...]
    rows: tuple[str, ...]
    rungs: tuple[str, ...]
    remark: str
    trap: str
    trap_row: str

    @property
    def named(self) -> list[str]:
        """The conventions of this lesson, the trap's first, each once."""
        return list(dict.fromkeys([self.trap_row, *self.rows]))

    @property
    def markdown(self) -> str:
        """The section, with its heading."""
        trl, verl = conventions.versions()
        called = {"TRL": trl, "verl": verl}
        known = conventions.options()
        parts = ["## At work"]
        if self.options:
            parts += ["", f"What this is called in {trl} and {verl}, and what they do unless you"]
            parts[-1] += " say otherwise."
            parts += ["", "| | option | default | what it sets |", "| --- | --- | --- | --- |"]
            for option in (known[name] for name in self.options):
                cells = (f"`{option.name}`", f"`{option.default}`", cell(option.sets))
                parts.append(f"| {called[option.library]} | {' | '.join(cells)} |")
        if self.rungs:
            parts += ["", f"| rung | {trl} | {verl} |", "| --- | --- | --- |"]
            names = conventions.rungs()
            for rung in self.rungs:
                parts.append(f"| `{rung}` | {' | '.join(cell(name) for name in names[rung])} |")
        parts += ["", self.remark] if self.remark else []
        parts += ["", f"**A trap.** {self.trap}"]
        listed = " · ".join(link(row) for row in self.named)
        parts += ["", f"Where ours, TRL and verl differ, each with its test: {listed}."]
        return "\n".join(parts)


def link(row: str) -> str:
    """A link, from a lesson, to a convention."""
    return f"[{row}]({PAGE}#{anchor(row)})"


def path(lesson: str) -> Path:
    """The file with the choice of lesson "NN"."""
    return described() / "at_work" / f"{lesson}.toml"


def load(lesson: LessonInfo) -> AtWork:
    """The choice of a lesson; the rungs are those of the syllabus unless the file names others.

    Raises `CourseError` that names the file and the field if it is wrong, or names a row, an option
    or a rung that CONVENTIONS.md does not have.
    """
    place = path(lesson.number)
    try:
        found: dict[str, Any] = tomllib.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"{place}: got no TOML ({error}); allowed is a choice of rows") from None
    for key, value in found.items():
        require(key in KEYS, f"{place}", key, f"the keys {', '.join(KEYS)}")
        require(isinstance(value, KEYS[key]), f"{place}: {key}", value, f"a {KEYS[key].__name__}")
    for key in NEEDED:
        require(key in found, f"{place}", f"no {key}", f"a file with {', '.join(NEEDED)}")
    rungs = found.get("rungs", list(lesson.rungs))
    for key, names, known in (
        ("options", found["options"], conventions.options()),
        ("rows", [*found["rows"], found["trap_row"]], conventions.conventions()),
        ("rungs", rungs, conventions.rungs()),
    ):
        _among(f"{place}: {key}", names, known)
    return AtWork(
        options=tuple(found["options"]),
        rows=tuple(found["rows"]),
        rungs=tuple(rungs),
        remark=found.get("remark", "").strip(),
        trap=found["trap"].strip(),
        trap_row=found["trap_row"],
    )


def _among(where: str, names: Iterable[object], known: Iterable[str]) -> None:
    for name in names:
        require(name in list(known), where, name, f"a row of {conventions.PATH.name}")
