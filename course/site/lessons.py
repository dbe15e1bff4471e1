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

from course.lesson.syllabus import LessonInfo
from course.site.frames import Frames, webp
from course.site.links import Links

ASSETS = "_static/lessons"  # pictures and frames
FOLDED = "hide-input"  # MyST-NB's names for a cell's input
REMOVED = "remove-input"


def page_of(
    notebook: Any, lesson: LessonInfo, frames: Mapping[str, Frames], links: Links
) -> tuple[Any, dict[str, bytes]]:
    """(the notebook as a page, its pictures: path in the site → content).

    Folded cells stay folded. A question's cell, which tells the answer, is left out; its output is
    marked so that the page's script asks it. An explore without frames is a picture with a caption.
    """
    notebook = copy.deepcopy(notebook)
    page = f"notebooks/{lesson.file}.ipynb"
    files: dict[str, bytes] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            text = one_line_breaks(links.markdown(cell["source"], page))
            cell["source"] = linked_equations(text)
            continue
        tags = cell["metadata"].setdefault("tags", [])
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            tags.append(FOLDED)
        if any(_text(output).startswith("question: ") for output in cell.get("outputs", [])):
            tags[:] = [tag for tag in tags if tag != FOLDED] + [REMOVED]
        names = iter(explored(cell["source"]))
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            text = _text(output)
            if text.startswith("explore: ") and "image/png" in data:
                shown, more = explore(
                    next(names, ""), text.removeprefix("explore: "), data, lesson, frames
                )
                files |= more
                _only_html(data, shown)
            elif "image/png" in data:
                path = f"{ASSETS}/{lesson.number}/{number:03d}-{place}.webp"
                files[path] = webp(base64.b64decode(data["image/png"]))
                _only_html(data, picture(path, text))
            elif text.startswith("question: ") and "text/html" in data:
                asked = links.markup(data["text/html"], page)
                _only_html(data, f'<div class="course-question">{asked}</div>')
            elif "text/html" in data:
                _only_html(data, links.markup(data["text/html"], page))
    return notebook, files


def explored(source: str) -> list[str]:
    """The names of the explores in a cell, in their order."""
    return [
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "lesson.explore"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def explore(
    name: str,
    caption: str,
    data: Mapping[str, Any],
    lesson: LessonInfo,
    frames: Mapping[str, Frames],
) -> tuple[str, dict[str, bytes]]:
    """(HTML, pictures) of an explore: controls over its frames, or the saved picture alone."""
    folder = f"{ASSETS}/{lesson.number}/{name}"
    drawn = frames.get(name)
    if drawn is None:
        path = f"{folder}.webp"
        return picture(path, caption), {path: webp(base64.b64decode(data["image/png"]))}
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
        ],
    }
    first = picture(f"{folder}/{drawn.start}.webp", caption)
    script = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<div class="course-explore" data-name="{html.escape(name)}">{first}'
        f'<script type="application/json">{script}</script></div>',
        files,
    )


def picture(path: str, caption: str) -> str:
    """HTML of a picture with its description below it, which is its alternative text too."""
    said = html.escape(caption)
    return (
        f'<figure class="course-picture"><img src="../{path}" alt="{said}" loading="lazy">'
        f"<figcaption>{said}</figcaption></figure>"
    )


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
