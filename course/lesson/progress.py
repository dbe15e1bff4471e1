"""What a learner has answered and passed: one small JSON file in the course's folder, which can be
deleted at any time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from course.lesson.syllabus import folder
from course.train.files import replace_files

Progress = dict[str, dict[str, list[str]]]  # lesson number → "questions" and "exercises" → names
FILE = "PG_LADDER_PROGRESS"  # an environment variable that puts the file somewhere else


def path() -> Path:
    """Where progress is kept: notebooks/.progress.json, or the file that
    PG_LADDER_PROGRESS names.
    """
    return Path(os.environ[FILE]) if os.environ.get(FILE) else folder() / ".progress.json"


def read() -> Progress:
    """What was done so far; empty where there is no file, or one that is damaged."""
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
        return {
            str(lesson): {kind: [str(name) for name in done[kind]] for kind in done}
            for lesson, done in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def record(lesson: str, kind: str, name: str) -> None:
    """Note that a question (kind «questions») was answered right or an exercise («exercises»)
    passed. Never raises: it is a convenience.
    """
    done = read()
    names = done.setdefault(lesson, {}).setdefault(kind, [])
    if name in names:
        return
    names.append(name)
    try:
        replace_files({path(): (json.dumps(done, indent=1, sort_keys=True) + "\n").encode("utf-8")})
    except (OSError, ValueError):
        return  # a folder that cannot be written loses progress, not the lesson


def delete() -> bool:
    """Forget everything; True if there was something."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    return True
