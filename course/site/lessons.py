"""Lessons as pages: a saved notebook with its questions, explores and pictures for a page alone."""

from __future__ import annotations

import ast
import base64
import copy
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course.lesson import question
from course.lesson.syllabus import LessonInfo
from course.site.frames import Frames, webp
from course.site.links import Links

ASSETS = "_static/lessons"  # pictures and frames
FOLDED = "hide-input"  # MyST-NB's names for a cell's input
REMOVED = "remove-input"
LEFT_OUT = "remove-cell"  # the tag of a cell that is for a live notebook alone
SHOWN = re.compile(r"[\w./-]+\.py · ")  # the beginning of what `lesson.code` shows
STYLE = re.compile(r'<style class="course-face">.*?</style>', re.DOTALL)


def page_of(
    notebook: Any, lesson: LessonInfo, frames: Mapping[str, Frames], links: Links
) -> tuple[Any, dict[str, bytes]]:
    """(the notebook as a page, its pictures: path in the site → content).

    Folded cells stay folded, so is the code of sliders, and what is for a live notebook alone is
    left out. A question is one that the page's script asks. An explore without frames is a picture.
    """
    notebook = copy.deepcopy(notebook)
    page = f"notebooks/{lesson.file}.ipynb"
    files: dict[str, bytes] = {}
    asked = question.load(lesson.number)
    notebook["cells"] = [
        cell for cell in notebook["cells"] if LEFT_OUT not in cell["metadata"].get("tags", [])
    ]
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            text = one_line_breaks(links.markdown(cell["source"], page))
            cell["source"] = linked_equations(text)
            continue
        tags = cell["metadata"].setdefault("tags", [])
        explored = called(cell["source"], "explore")
        questions, explores = iter(called(cell["source"], "ask")), iter(explored)
        if any(_text(output).startswith("question: ") for output in cell.get("outputs", [])):
            tags.append(REMOVED)
        elif cell["metadata"].get("jupyter", {}).get("source_hidden") or explored:
            tags.append(FOLDED)
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            text = _text(output)
            if text.startswith("explore: ") and "image/png" in data:
                name = next(explores)
                said = text.removeprefix("explore: ")
                shown, more = explore(name, said, data, lesson, frames.get(name))
                files |= more
                _only_html(data, shown)
            elif text.startswith("question: "):
                name = next(questions)
                # a notebook of yesterday may ask what is no more among the questions of today
                saved = STYLE.sub("", data.get("text/html", ""))
                shown = links.markup(asked[name].static if name in asked else saved, page)
                _only_html(data, f'<div class="course-question" data-name="{name}">{shown}</div>')
            elif "image/png" in data:
                path = f"{ASSETS}/{lesson.number}/{number:03d}-{place}.webp"
                files[path] = webp(base64.b64decode(data["image/png"]))
                _only_html(data, picture(path, text))
            elif SHOWN.match(text) and "text/html" in data and "lesson.code(" in cell["source"]:
                _only_html(data, listing(text, page, links))
            elif "text/html" in data:
                _only_html(data, links.markup(STYLE.sub("", data["text/html"]), page))
    return notebook, files


def listing(text: str, page: str, links: Links) -> str:
    """HTML of what `lesson.code` shows, "FILE · NAME" and a source, in the page's own colours.

    The name leads to its place in the description of its module.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    place, _, source = text.partition("\n\n")
    path, _, name = place.partition(" · ")
    head = f"<code>{html.escape(place)}</code>"
    if path in links.modules:
        head = links.to_name(f"../{path}", name, page, head)
    lines = highlight(source, PythonLexer(), HtmlFormatter())
    return f'<div class="course-place">{head}</div><div class="highlight-python">{lines}</div>'


def called(source: str, tool: str) -> list[str]:
    """The first arguments of the calls lesson.TOOL("name", …) in a cell, in their order."""
    return [
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == f"lesson.{tool}"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def explore(
    name: str, said: str, data: Mapping[str, Any], lesson: LessonInfo, drawn: Frames | None
) -> tuple[str, dict[str, bytes]]:
    """(HTML, pictures) of an explore: controls over its frames, or the saved picture alone.

    `said` is the alternative text. A control that was held still is named below the picture.
    """
    folder = f"{ASSETS}/{lesson.number}/{name}"
    if drawn is None:
        path = f"{folder}.webp"
        return picture(path, said), {path: webp(base64.b64decode(data["image/png"]))}
    files = {f"{folder}/{i}.webp": each for i, each in enumerate(drawn.pictures)}
    told = {
        "folder": f"../{folder}",
        "controls": [
            {
                "label": each.label,
                "kind": each.kind,
                "values": each.shown,
                "start": each.start,
            }
            for each in drawn.stops
            if len(each.values) > 1
        ],
    }
    first = picture(f"{folder}/{drawn.start}.webp", said)
    script = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
    still = "".join(
        f'<p class="course-still">On this page “{html.escape(each.label)}” stays at'
        f" {html.escape(each.shown[0])}. In JupyterLab you can move it.</p>"
        for each in drawn.stops
        if len(each.values) == 1
    )
    return (
        f'<div class="course-explore" data-name="{html.escape(name)}">{first}{still}'
        f'<script type="application/json">{script}</script></div>',
        files,
    )


def picture(path: str, said: str) -> str:
    """HTML of a picture with its alternative text."""
    return f'<img class="course-picture" src="../{path}" alt="{html.escape(said)}" loading="lazy">'


def one_line_breaks(text: str) -> str:
    """Markdown whose displayed mathematics breaks lines by \\cr, which means the same.

    Around a double backslash Sphinx puts an environment in which MathJax allows no \\tag.
    """

    def broken(found: re.Match[str]) -> str:
        return re.sub(r"\\\\(\[[^\]]*\])?", r"\\cr ", found[0])

    return re.sub(r"\$\$.+?\$\$", broken, text, flags=re.DOTALL)


def linked_equations(text: str) -> str:
    """Markdown in which each `eq:NAME` leads to its row of the equation map."""
    return re.sub(
        r"`eq:([a-z0-9-]+)`", r'<a href="EQUATIONS.html#eq-\1"><code>eq:\1</code></a>', text
    )


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files into a folder that is being built."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _text(output: Mapping[str, Any]) -> str:
    return str(output.get("data", {}).get("text/plain", ""))


def _only_html(data: dict[str, Any], markup: str) -> None:
    data.clear()
    data["text/html"] = markup
