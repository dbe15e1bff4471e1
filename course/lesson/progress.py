"""A learner's progress: one small JSON file of the user, which may be deleted at any time.

It is the same file wherever the lessons are opened.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.lesson.syllabus import folder
from course.train.files import locked, replace_files

Progress = dict[str, dict[str, list[str]]]  # lesson number → "questions" and "exercises" → names
FILE = "PG_LADDER_PROGRESS"  # the environment variable that sets another path
LOCK, PATIENCE = ".progress.lock", 5.0  # file name; seconds to wait for another notebook
KINDS = ("questions", "exercises")
ANSWERS = "answers"  # of a lesson: question → the choice that was made last, right or wrong


def path() -> Path:
    """The path of the progress file: PG_LADDER_PROGRESS, or pg-ladder/progress.json.

    The latter is in the folder where the system keeps the data of programs for a user.
    """
    if os.environ.get(FILE):
        return Path(os.environ[FILE])
    return _user_data() / "pg-ladder" / "progress.json"


def _user_data() -> Path:
    """The folder where the system keeps the data of programs for this user."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")


def _older() -> Path | None:
    """Where earlier versions kept the file: next to the notebooks."""
    return None if os.environ.get(FILE) else folder() / ".progress.json"


def read() -> Progress:
    """The progress so far, also from the file of earlier versions; damaged files are ignored."""
    done: Progress = {}
    for place in (path(), _older()):
        for lesson, kinds in (_load(place) or {}).items():
            for kind in KINDS:
                names = kinds.get(kind) if isinstance(kinds, dict) else None
                known = done.setdefault(lesson, {}).setdefault(kind, [])
                for name in names if isinstance(names, list) else ():
                    if isinstance(name, str) and name not in known:
                        known.append(name)
    found = {lesson: {k: n for k, n in kinds.items() if n} for lesson, kinds in done.items()}
    return {lesson: kinds for lesson, kinds in found.items() if kinds}


def _load(place: Path | None) -> dict[str, Any] | None:
    """The contents of the file, also unknown entries; None if it is missing or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8")) if place is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def check() -> None:
    """Raise `CourseError` if the file exists and is damaged."""
    here = path()
    if here.exists() and _load(here) is None:
        raise CourseError(
            f"{here}: got a damaged file; allowed is what the lessons write: the next answer sets"
            " it aside, `course progress --delete` removes it"
        )


@contextmanager
def nowhere() -> Iterator[None]:
    """Discard progress that is recorded inside this context, also by child processes.

    The build uses it, since no learner answers the questions there.
    """
    before = os.environ.get(FILE)
    with tempfile.TemporaryDirectory() as empty:
        os.environ[FILE] = str(Path(empty) / "progress.json")
        try:
            yield
        finally:
            if before is None:
                del os.environ[FILE]
            else:
                os.environ[FILE] = before


def record(lesson: str, kind: str, name: str) -> None:
    """Record a right answer (kind "questions") or a passed exercise (kind "exercises").

    It never raises, since progress is only a convenience. A damaged file is renamed to
    progress.json.damaged. Unknown entries are kept, and so are entries that another notebook
    records at the same time.
    """
    if name in read().get(lesson, {}).get(kind, ()):
        return

    def append(body: dict[str, Any]) -> None:
        _slot(_slot(body, lesson, dict), kind, list).append(name)

    _change(append)


def record_answer(lesson: str, question: str, choice: str) -> None:
    """Record which choice a learner has made, right or wrong; as careful as `record`."""

    def put(body: dict[str, Any]) -> None:
        _slot(_slot(body, lesson, dict), ANSWERS, dict)[question] = choice

    _change(put)


def answers(lesson: str) -> dict[str, str]:
    """Question → the choice that was made last, in lesson "NN"; damaged entries are ignored."""
    entry = (_load(path()) or {}).get(lesson)
    found = entry.get(ANSWERS) if isinstance(entry, dict) else None
    every = found.items() if isinstance(found, dict) else ()
    return {question: choice for question, choice in every if isinstance(choice, str)}


def _change(change: Callable[[dict[str, Any]], None]) -> None:
    """Read the file, `change` its contents, write it; a damaged file is set aside."""
    here = path()
    with suppress(OSError, ValueError):  # a failed write must not stop the lesson
        here.parent.mkdir(parents=True, exist_ok=True)
        with locked(here.with_name(LOCK), f"{here}: another notebook writes", PATIENCE):
            body = _load(here)
            if body is None and here.exists():
                here.replace(_free(here.with_name(f"{here.name}.damaged")))
            body = body or {}
            change(body)
            text = json.dumps(body, indent=1, sort_keys=True) + "\n"
            replace_files({here: text.encode("utf-8")})


def _slot(body: dict[str, Any], key: str, kind: type) -> Any:
    """`body[key]`, created if missing; a value of another type moves to "key, odd"."""
    if key in body and not isinstance(body[key], kind):
        body[f"{key}, odd"] = body.pop(key)
    return body.setdefault(key, kind())


def _free(place: Path) -> Path:
    """This path, or the first of place.2, place.3 … that does not exist."""
    number, found = 2, place
    while found.exists():
        found, number = place.with_name(f"{place.name}.{number}"), number + 1
    return found


def delete() -> bool:
    """Delete all progress; returns True if there was any."""
    places = [place for place in (path(), _older()) if place is not None and place.exists()]
    for place in places:
        place.unlink()
    return bool(places)
