"""Build the executed notebooks from notebooks/src/NN_name.py (`python -m course notebooks`).

The source is in percent format. A cell that keeps its place keeps its id. Widget state and
timestamps are left out, and execution counts are 1..N. The measured time is written to
notebooks/lessons.json, and the opening of the lesson shows it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import course
from course.errors import CourseError, require
from course.lab.places import repository
from course.lesson import Lesson, at_work, progress, sources
from course.lesson.reading import Reading, reading
from course.lesson.syllabus import SYLLABUS, LessonInfo, folder, index, info
from course.lesson.view import WIDGET
from course.train.files import replace_files

LIMIT = 500_000  # bytes of a saved notebook
TIME = "{{time}}"  # the placeholder in a lesson's opening
AT_WORK = "{{at work}}"  # the placeholder for the section of that name, a cell of its own
CELL_SECONDS = 120
KEPT = ("jupyter", "tags")  # the metadata of a cell that are kept
INSTALL = """# Installs the course where it is missing, as in Colab; elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("course") is None:
    %pip install -q "pg-ladder @ git+{repository}" """.rstrip()


def source(lesson: LessonInfo) -> Path:
    """The path of the source, which people edit."""
    return folder() / "src" / f"{lesson.file}.py"


def target(lesson: LessonInfo) -> Path:
    """The path of the notebook, which is built."""
    return folder() / f"{lesson.file}.ipynb"


def written() -> list[LessonInfo]:
    """The lessons that have a source."""
    return [lesson for lesson in SYLLABUS.values() if source(lesson).is_file()]


def cells(lesson: LessonInfo, times: dict[str, Any] | None = None) -> Any:
    """The source as a notebook without outputs.

    With `times` (the contents of lessons.json) the opening says how long the lesson computes. The
    section *At work* is put in its place, and the cell that installs the course where it is missing
    before the first cell of code. What the prose cites becomes a link.
    """
    notebook = _written(lesson)
    spent = (times or {}).get(lesson.number, {}).get("seconds")
    first_read = reading(notebook.cells)
    for cell in notebook.cells:
        cell.metadata = {name: value for name, value in cell.metadata.items() if name in KEPT}
        if TIME in cell.source and spent is not None:
            cell.source = cell.source.replace(TIME, _time(spent, first_read))
        if cell.source.strip() == AT_WORK:
            cell.source = at_work.load(lesson).markdown
        if cell.cell_type == "markdown":
            cell.source = sources.linked(cell.source)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first, _installing())
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _time(seconds: int, first_read: Reading) -> str:
    """What a lesson takes: the machine's time, which was measured, and the reader's."""
    computing = f"about {seconds} seconds of computing on two CPU cores, measured"
    return f"{computing}, and a first read {first_read.text}"


def minutes(lesson: LessonInfo) -> int:
    """Minutes of a first read of a lesson, as its opening says."""
    return reading(_written(lesson).cells).minutes


def _written(lesson: LessonInfo) -> Any:
    """The source as a notebook, with nothing put into its placeholders."""
    import jupytext

    return jupytext.reads(source(lesson).read_text(encoding="utf-8"), fmt="py:percent")


def _installing() -> Any:
    """The first code cell of every lesson, folded; a page on the web leaves it out."""
    from nbformat.v4 import new_code_cell

    return new_code_cell(
        INSTALL.format(repository=repository()),
        metadata={"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]},
    )


def build(names: Sequence[str] = (), report: Callable[[str], None] = print) -> list[Path]:
    """Execute and save the named lessons (default: all that have a source); returns their paths.

    Raises `CourseError` if a cell fails or a source is missing.
    """
    chosen = [info(name) for name in names] or written()
    saved = []
    for lesson in chosen:
        require(
            source(lesson).is_file(),
            "lesson",
            lesson.file,
            f"one whose source {source(lesson)} is there",
        )
        report(f"{lesson.file} …")
        seconds, path = _build(lesson)
        report(f"{lesson.file}: {seconds:.1f} s, {path.stat().st_size / 1000:.0f} kB")
        saved.append(path)
    return saved


def kernel_environment() -> dict[str, str]:
    """The environment of a kernel that builds: what runs there is the course that builds.

    A `PYTHONPATH` to another checkout would otherwise put its code, and its results, on the page.
    """
    ours = str(Path(course.__file__).parents[1])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def _build(lesson: LessonInfo) -> tuple[float, Path]:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = cells(lesson, read_index())
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder())}},
    )
    began = time.perf_counter()
    try:
        with progress.nowhere():
            client.execute(env=kernel_environment())
    except CellExecutionError as error:
        raise CourseError(
            f"{source(lesson)}: a cell failed: {error.ename}: {error.evalue}\n{error}"
        ) from None
    seconds = time.perf_counter() - began
    times = read_index()  # read again, since another lesson may have been built meanwhile
    times[lesson.number] = {
        **times.get(lesson.number, {}),
        "minutes": minutes(lesson),
        "seconds": _rounded(seconds, times.get(lesson.number, {}).get("seconds")),
    }
    again = cells(lesson, times)  # with the measured time in the opening
    require(
        len(again.cells) == len(notebook.cells),
        str(source(lesson)),
        "a change while it was built",
        "one that waits",
    )
    for cell, told in zip(notebook.cells, again.cells, strict=True):
        cell.source = told.source
    old = nbformat.read(target(lesson), as_version=4) if target(lesson).is_file() else None
    tidy(notebook, old)
    text = nbformat.writes(notebook, version=4) + "\n"
    require(len(text) < LIMIT, f"{lesson.file}.ipynb", f"{len(text)} bytes", f"less than {LIMIT}")
    replace_files({target(lesson): text.encode("utf-8"), **_index_file(times)})
    return seconds, target(lesson)


def tidy(notebook: Any, old: Any = None) -> None:
    """Remove what differs from build to build.

    Cell ids are those of the old notebook at the same place. There are no timestamps and no
    widgets, and execution counts are 1..N.
    """
    notebook.metadata.pop("widgets", None)
    before = [cell.get("id") for cell in old.cells] if old is not None else []
    taken = set(before)
    number = 0
    for place, cell in enumerate(notebook.cells):
        fresh = f"cell-{place:03d}"
        cell["id"] = (
            before[place]
            if place < len(before) and before[place]
            else fresh
            if fresh not in taken
            else f"{fresh}-new"
        )
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.outputs = [each for each in _whole_streams(cell.outputs) if not _only_live(each)]
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = number
            if "data" in output:
                output["data"].pop(WIDGET, None)
                told = output["metadata"].get("image/png", {}).get("alt")
                output["metadata"] = {"image/png": {"alt": told}} if told else {}


def _only_live(output: Any) -> bool:
    """Whether an output is a widget and nothing else: the static form comes behind it."""
    return set(output.get("data", ())) == {WIDGET}


def _whole_streams(outputs: list[Any]) -> list[Any]:
    """Merge consecutive pieces of one output stream."""
    whole: list[Any] = []
    for output in outputs:
        before = whole[-1] if whole else None
        if (
            before is not None
            and "stream" == output.output_type == before.output_type
            and output.name == before.name
        ):
            before.text += output.text
        else:
            whole.append(output)
    return whole


def _rounded(seconds: float, known: int | None) -> int:
    """Round up to a multiple of five seconds; keep the known time if it is close.

    Times of a machine are noisy, and the saved one should not change with each build.
    """
    rounded = max(5, 5 * math.ceil(seconds / 5))
    return known if known is not None and abs(known - rounded) <= max(5, known // 4) else rounded


def counted(asked: Lesson) -> dict[str, Any]:
    """The names of a lesson's questions, exercises and explores."""
    return {
        "questions": list(asked.questions),
        "exercises": list(asked.exercises),
        "explores": list(asked.explores),
    }


def index_path() -> Path:
    """The path of lessons.json: the measured times and the names of questions and exercises."""
    return folder() / "lessons.json"


def read_index() -> dict[str, Any]:
    """The contents of lessons.json; empty if there is no file.

    Raises `CourseError` if the file is damaged.
    """
    return dict(index())


def refresh_index(names: Sequence[str] = ()) -> None:
    """Update the names of questions and exercises of the lessons (default: all); keep the times."""
    times = read_index()
    for lesson in [info(name) for name in names] or written():
        known = times.get(lesson.number, {})
        asked = counted(collect(lesson))
        times[lesson.number] = {**known, **asked, "minutes": minutes(lesson)}
    replace_files(_index_file(times))


def _index_file(times: dict[str, Any]) -> dict[Path, bytes]:
    return {index_path(): (json.dumps(times, indent=1, sort_keys=True) + "\n").encode("utf-8")}


def collect(lesson: LessonInfo) -> Lesson:
    """Run the source of a lesson as a plain program and return its `Lesson`.

    Tests and the index use it.
    """
    return run(lesson, source(lesson).read_text(encoding="utf-8"))


def run(lesson: LessonInfo, text: str) -> Lesson:
    """Run a program, the source of a lesson or some of its lines; returns the `Lesson` it made."""
    import linecache

    path = source(lesson)
    linecache.cache[str(path)] = (
        len(text),
        None,
        text.splitlines(keepends=True),
        str(path),
    )  # so that inspect finds the source of its functions
    module = types.ModuleType(f"lesson_{lesson.number}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    # its output belongs in the notebook, and no learner has answered its questions
    with progress.nowhere(), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    found = [thing for thing in vars(module).values() if isinstance(thing, Lesson)]
    require(len(found) == 1, f"{path}", f"{len(found)} lessons", 'one call of course.setup("NN")')
    return found[0]


def prose(lesson: LessonInfo) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) of every section: the text from a heading to the next one.

    A cell that begins without a heading goes on under the last one before it.
    """
    heading = lesson.title
    for cell in cells(lesson).cells:
        if cell.cell_type != "markdown":
            continue
        for part in re.split(r"^(?=#{1,6} )", cell.source, flags=re.MULTILINE):
            if part.startswith("#"):
                heading = part.partition("\n")[0].partition("<!--")[0].lstrip("# ").strip()
            if part:
                yield heading, part
