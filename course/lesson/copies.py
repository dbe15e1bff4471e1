"""A learner's own copy of the lessons, which no update of the course touches.

It has the same two folders as the course, notebooks/ and figures/, so that every link of a lesson
leads somewhere. What exists already is kept, whoever made it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from course.errors import CourseError, require
from course.lab.places import home, project_root
from course.lesson.syllabus import SYLLABUS, info
from course.train.files import replace_files

NAME = "my_course"  # of the copy that `course lab` makes
FIRST = Path("notebooks") / f"{SYLLABUS['00'].file}.ipynb"
LINKED = re.compile(rb"figures/([\w.-]+\.(?:png|json))")  # in a lesson or a page


@dataclass(frozen=True)
class Copied:
    """What a copy wrote, and what it kept because it was there and is different; paths."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def lessons() -> dict[Path, bytes]:
    """Every file of a copy, by its path inside the copy: lessons, pages, figures they lead to.

    Raises `CourseError` if the course has no lessons, as in an incomplete checkout.
    """
    root = home()
    found = {
        path.relative_to(root): path.read_bytes()
        for pattern in ("*.ipynb", "*.md")
        for path in sorted((root / "notebooks").glob(pattern))
    }
    require(FIRST in found, "lessons", str(root / "notebooks"), f"a folder with {FIRST.name}")
    linked = {name.decode() for text in found.values() for name in LINKED.findall(text)}
    for name in sorted(linked):
        if (root / "figures" / name).is_file():
            found[Path("figures") / name] = (root / "figures" / name).read_bytes()
    return found


def default() -> Path:
    """Where `course lab` works: the copy one stands in, else my_course of the checkout or here."""
    here = Path.cwd()
    for folder in (here, here.parent):
        if (folder / FIRST).is_file() and folder.resolve() != home().resolve():
            return folder
    return (project_root() or here) / NAME


def start(folder: Path) -> Copied:
    """Copy the lessons into `folder`: all that are missing there, or none.

    Raises `CourseError` if it is no folder, or cannot be written.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise CourseError(
            f"folder: got {str(folder)!r}, which is a file; allowed is a folder, new or not"
        )
    wanted = {folder / path: content for path, content in lessons().items()}
    missing = {path: text for path, text in wanted.items() if not os.path.lexists(path)}
    kept = (path for path in wanted if path not in missing and not _same(path, wanted))
    copied = Copied(tuple(missing), tuple(kept))
    if missing:
        replace_files(missing)
    return copied


def reset(folder: Path, lesson: str) -> tuple[Path, Path | None]:
    """Bring a lesson of a copy back to how the course has it.

    Returns its path, and where the learner's version was put: beside it, under the first free name
    NN_name.yours.ipynb, NN_name.yours-2.ipynb … (None if it did not differ). Raises `CourseError`
    for an unknown lesson.
    """
    path = folder / "notebooks" / f"{info(lesson).file}.ipynb"
    fresh = {folder / name: content for name, content in lessons().items()}
    if not path.is_file():
        replace_files({path: fresh[path]})
        return path, None
    if _same(path, fresh):
        return path, None
    number, aside = 2, path.with_suffix(".yours.ipynb")
    while os.path.lexists(aside):
        aside, number = path.with_suffix(f".yours-{number}.ipynb"), number + 1
    replace_files({aside: path.read_bytes(), path: fresh[path]})
    return path, aside


def without_news() -> dict[str, str]:
    """What to set so that JupyterLab asks nobody about news or updates, and the learner neither."""
    ours = str(Path(__file__).parent / "jupyter")
    path = "JUPYTER_CONFIG_PATH"  # more folders with settings; the learner's own stay
    return {path: os.pathsep.join(filter(None, [ours, os.environ.get(path)]))}


def _same(path: Path, wanted: Mapping[Path, bytes]) -> bool:
    return path.is_file() and path.read_bytes() == wanted[path]
