"""*At work*: every lesson has it, made of the rows of CONVENTIONS.md and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from course.errors import CourseError
from course.lesson import at_work, build, conventions, info, pages

LESSONS = [lesson.number for lesson in build.written()]
each_lesson = pytest.mark.parametrize("number", LESSONS)


@each_lesson
def test_a_lesson_ends_with_it_before_what_to_take_away(number: str) -> None:
    prose = [cell.source for cell in build.cells(info(number)).cells]
    [place] = [i for i, text in enumerate(prose) if text.startswith("## At work\n")]
    assert prose[place + 1].startswith("## Take away\n")
    later = re.findall("^## .*", "\n".join(prose[place + 2 :]), flags=re.MULTILINE)
    assert [heading for heading in later if "optional" not in heading] == []
    assert not any(build.AT_WORK in text for text in prose)


@each_lesson
def test_it_shows_every_option_with_the_default_of_the_table(number: str) -> None:
    """Each option is a row of its own, under its library's name and version."""
    chosen, known = at_work.load(info(number)), conventions.options()
    rows = [line.split(" | ") for line in chosen.markdown.splitlines() if line.startswith("| ")]
    shown = {row[1].strip("`"): (row[0].strip("| "), row[2].strip("`")) for row in rows}
    called = dict(zip(conventions.LIBRARIES, conventions.versions(), strict=True))
    for name in chosen.options:
        assert shown[name] == (called[known[name].library], known[name].default)
    assert all(rung in chosen.markdown for rung in chosen.rungs)


@each_lesson
def test_its_links_lead_to_a_heading_of_the_page(number: str) -> None:
    page = pages.conventions_page().splitlines()
    anchors = {conventions.anchor(line.lstrip("# ")) for line in page if line.startswith("#")}
    for row in at_work.load(info(number)).named:
        assert f"]({at_work.PAGE}#{conventions.anchor(row)})" in at_work.load(info(number)).markdown
        assert conventions.anchor(row) in anchors
    assert at_work.PAGE in pages.PAGES


def test_every_option_is_shown_by_a_lesson_and_every_convention_is_linked_from_one() -> None:
    chosen = [at_work.load(info(number)) for number in LESSONS]
    shown = {name for each in chosen for name in each.options}
    assert set(conventions.options()) - shown == set()
    linked = {row for each in chosen for row in each.named}
    assert set(conventions.conventions()) - linked == set()


def test_an_anchor_is_githubs() -> None:
    """Lower case, spaces to hyphens, other marks dropped, letters of any alphabet kept."""
    assert conventions.anchor("std of a group: ddof and eps") == "std-of-a-group-ddof-and-eps"
    assert conventions.anchor("Dr. GRPO's name") == "dr-grpos-name"
    assert conventions.anchor("a cap below 1 + ε_high") == "a-cap-below-1--ε_high"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("options", 'options = ["GRPOConfig.epsilonn"]'),
        ("rows", 'rows = ["no such convention"]'),
        ("rungs", 'rungs = ["no-such-rung"]'),
        ("rows", 'trap_row = "no such convention"'),
        ("traps", 'traps = "two"'),
        ("trap", "trap = 7"),
        ("no TOML", "trap = "),
    ],
)
def test_a_name_that_conventions_do_not_have_is_refused_with_the_file(
    key: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        "options": 'options = ["GRPOConfig.epsilon"]',
        "rows": 'rows = ["value loss"]',
        "trap": 'trap = "A trap."',
        "trap_row": 'trap_row = "value loss"',
    }
    name = line.partition(" =")[0]
    (tmp_path / "at_work").mkdir()
    place = tmp_path / "at_work" / "04.toml"
    place.write_text("\n".join((whole | {name: line}).values()), encoding="utf-8")
    monkeypatch.setattr(at_work, "described", lambda: tmp_path)
    with pytest.raises(CourseError, match=key) as refused:
        at_work.load(info("04"))
    assert str(place) in str(refused.value)
