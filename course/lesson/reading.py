"""How long a first read of a lesson takes: counted in its source, at a stated pace.

Sections whose heading says "optional" are left out, and so are exercises, folded code and the
section *At work*.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WORDS_A_MINUTE = 80  # of prose that is to be understood; a formula within a line is one word
LINES_A_MINUTE = 30  # of code that is not folded
MINUTES_A_FORMULA = 2  # of a displayed formula, derived once more
DISPLAYED = re.compile(r"\$\$.*?\$\$", re.DOTALL)
INLINE = re.compile(r"\$[^$]+\$")
WORD = re.compile(r"\S*\w\S*")  # not a table's bar, nor a heading's mark
HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
ASKED = re.compile(r"lesson\.(ask|picture|explore)\(")


@dataclass(frozen=True)
class Reading:
    """What a reader of a lesson goes through once."""

    words: int
    formulas: int  # displayed
    lines: int  # of code
    looks: int  # questions, figures and explores
    exercises: int  # not counted in the minutes

    @property
    def minutes(self) -> int:
        """Minutes of a first read, rounded up to five."""
        minutes = (
            self.words / WORDS_A_MINUTE
            + self.formulas * MINUTES_A_FORMULA
            + self.lines / LINES_A_MINUTE
            + self.looks
        )
        return 5 * math.ceil(minutes / 5)

    @property
    def text(self) -> str:
        """The minutes with what they count, as the opening of a lesson says them."""
        words = f"{round(self.words, -2):,} words at {WORDS_A_MINUTE} a minute"
        formulas = f"{MINUTES_A_FORMULA} minutes for each of {self.formulas} formulas"
        looks = f"one for each of {self.looks} questions and figures"
        code = f"code at {LINES_A_MINUTE} lines a minute"
        one = self.exercises == 1
        exercises = "1 exercise comes" if one else f"{self.exercises} exercises come"
        return (
            f"about {self.minutes} minutes ({words}, {formulas}, {looks}, {code};"
            f" {exercises} on top)"
        )


def reading(cells: Iterable[Any]) -> Reading:
    """What the cells of a lesson hold, without its optional sections."""
    words = formulas = lines = looks = exercises = 0
    optional = False
    for cell in cells:
        if cell.cell_type == "markdown":
            for part in re.split(r"(?m)^(?=#+ )", cell.source):
                found = HEADING.match(part)
                optional = "optional" in found[0].lower() if found else optional
                if not optional:
                    formulas += len(DISPLAYED.findall(part))
                    words += len(WORD.findall(INLINE.sub("x", DISPLAYED.sub(" ", part))))
            continue
        if optional:
            continue
        looks += len(ASKED.findall(cell.source))
        exercises += cell.source.count("lesson.exercise(")
        if not cell.metadata.get("jupyter", {}).get("source_hidden", False):
            lines += sum(bool(line.strip()) for line in cell.source.splitlines())
    return Reading(words, formulas, lines, looks, exercises)
