"""The stated minutes of a first read: what is counted, and that every lesson says them."""

from __future__ import annotations

import nbformat.v4
import pytest

from course.lesson import build, info
from course.lesson.reading import Reading, reading

code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
HIDDEN = {"jupyter": {"source_hidden": True}}


def test_words_formulas_code_and_looks_are_counted_by_hand() -> None:
    """A formula within a line is one word; a displayed one is a formula and no word."""
    found = reading(
        [
            prose("# A title\n\nTwo words, $x + y$ and\n\n$$a = b\\tag{1}$$\n\nmore."),
            code("one = 1\n\ntwo = 2"),
            code('lesson.ask("a")\nlesson.picture(f, "b")', metadata=HIDDEN),
            code('lesson.explore("c", draw, "d")\nmine = lesson.exercise("e")'),
        ]
    )
    assert found == Reading(words=2 + 4 + 1, formulas=1, lines=4, looks=3, exercises=1)


def test_an_optional_section_ends_at_the_next_heading() -> None:
    cells = [
        prose("## Main\n\none two"),
        prose("## More (optional)\n\n$$x$$\n\nthree four five"),
        code("left_out = 1"),
        prose("## Main again\n\nsix"),
        code("counted = 1"),
    ]
    assert reading(cells) == Reading(words=6, formulas=0, lines=1, looks=0, exercises=0)


@pytest.mark.parametrize(
    ("found", "minutes"),
    [
        (Reading(0, 0, 0, 0, 3), 0),
        (Reading(80, 1, 30, 1, 0), 5),
        (Reading(81, 1, 30, 1, 0), 10),
        (Reading(800, 10, 300, 10, 2), 50),
    ],
)
def test_minutes_are_rounded_up_to_five(found: Reading, minutes: int) -> None:
    """80 words, half a formula, 30 lines or a figure take a minute each."""
    assert found.minutes == minutes
    assert found.text.startswith(f"about {minutes} minutes (")


def test_an_opening_says_both_times() -> None:
    """The seconds are those of the index, the minutes those of the source."""
    [opening, *_] = build.cells(info("00"), {"00": {"seconds": 15}}).cells
    assert "about 15 seconds of computing" in opening.source
    assert f"about {build.minutes(info('00'))} minutes" in opening.source
