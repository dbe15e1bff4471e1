"""The map of the course: the ladder and the lessons as HTML with links, and the progress table."""

from __future__ import annotations

import html
from typing import Any

from course import ladder
from course.lab.figures import style_of
from course.lesson import progress
from course.lesson.syllabus import SYLLABUS, LessonInfo, index
from course.registry import Rung


def lesson_of(rung: str) -> LessonInfo | None:
    """The first lesson with this rung; None if there is none."""
    return next((lesson for lesson in SYLLABUS.values() if rung in lesson.rungs), None)


def ladder_map() -> tuple[str, str]:
    """(text, HTML) of the map.

    It lists the eight rungs from the top down, each with its replaced part and its lesson, then the
    other estimators and all lessons.
    """
    rungs = ladder.select()
    lines = [
        f"{rung.name:<12} {_step(rung):<34} {rung.estimator.text()}" for rung in reversed(rungs)
    ]
    rows = "".join(_row(rung) for rung in reversed(rungs))
    markup = f'<table style="border-collapse:collapse">{rows}</table>'
    for kind, heading in (("branch", "beside the ladder"), ("descendant", "above it")):
        names = " · ".join(_linked(rung) for rung in ladder.RUNGS.values() if rung.kind == kind)
        markup += f'<p style="margin:.5em 0"><b>{heading}:</b> {names}</p>'
    lessons = [lesson for lesson in SYLLABUS.values() if lesson.number != "00"]
    items = "".join(
        f"<li>{_link(lesson, lesson.heading)}: {html.escape(lesson.takeaway)}</li>"
        for lesson in lessons
    )
    return (
        "\n".join(lines),
        f'{markup}<ul style="list-style:none;padding-left:0;line-height:1.7">{items}</ul>',
    )


def progress_table() -> tuple[str, str]:
    """(text, HTML): each lesson's questions and exercises done, minutes to read, seconds of CPU."""
    done, known = progress.read(), index()
    lines, rows = [], ""
    for lesson in SYLLABUS.values():
        entry = known.get(lesson.number, {})
        cells = [
            f"{_count(done, entry, lesson, kind)} {kind}" for kind in ("questions", "exercises")
        ]
        cells += [
            f"{entry[key]} {unit}" if key in entry else "–"
            for key, unit in (("minutes", "min"), ("seconds", "s"))
        ]
        padded = "".join(f" {cell:<16}" for cell in cells)
        lines.append(f"{lesson.heading:<43}{padded}".rstrip())
        columns = [_link(lesson, lesson.heading), *cells]
        rows += (
            "<tr>"
            + "".join(
                f'<td style="text-align:left;padding:.1em 1em .1em 0">{cell}</td>'
                for cell in columns
            )
            + "</tr>"
        )
    return "\n".join(lines), f"<table>{rows}</table>"


def _count(done: progress.Progress, entry: Any, lesson: LessonInfo, kind: str) -> str:
    asked = list(entry.get(kind, ()))
    have = [name for name in done.get(lesson.number, {}).get(kind, ()) if name in asked]
    return f"{len(have)} of {len(asked)}"


def _step(rung: Rung) -> str:
    return rung.replaced if rung.on else "where it starts"


def _row(rung: Rung) -> str:
    lesson = lesson_of(rung.name)
    bar = f"border-left:8px solid {style_of(rung.name)['color']};padding:.25em .9em;text-align:left"
    cells = [
        f'<td style="{bar}"><b>{html.escape(rung.title)}</b></td>',
        (
            '<td style="text-align:left;padding:.25em'
            f' .9em"><code>{html.escape(_step(rung))}</code></td>'
        ),
        f'<td style="text-align:left;padding:.25em .9em">{html.escape(rung.estimator.text())}</td>',
        (
            '<td style="text-align:left;padding:.25em'
            f' .9em">{_link(lesson, f"lesson {lesson.number}") if lesson else ""}</td>'
        ),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _linked(rung: Rung) -> str:
    lesson = lesson_of(rung.name)
    return _link(lesson, rung.title) if lesson else html.escape(rung.title)


def _link(lesson: LessonInfo, text: str) -> str:
    return f'<a href="{lesson.file}.ipynb">{html.escape(text)}</a>'
