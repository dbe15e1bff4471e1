"""Files are written whole or not at all, several of them together or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from course.errors import CourseError


def check_writable(folder: Path | str) -> Path:
    """Make sure, before a long run, that files can be written to `folder` (made if need be).

    Raises `CourseError` if not.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files so that either all are new or all are as before, whatever stops it.

    Raises `CourseError` on disk errors.
    """
    fresh = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    kept = {path: path.with_name(f".{path.name}.{os.getpid()}.old") for path in contents}
    begun: list[Path] = []
    try:
        for path, content in contents.items():
            fresh[path].write_bytes(content)
            if path.is_file():
                kept[path].write_bytes(path.read_bytes())
        for path in contents:
            begun.append(path)
            os.replace(fresh[path], path)
    except BaseException as error:
        for path in begun:
            renamed = not fresh[path].exists()
            if renamed and kept[path].exists():
                os.replace(kept[path], path)
            elif renamed:  # nothing was there before
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(next(iter(contents)).parent, error) from None
        raise
    finally:
        for path in (*fresh.values(), *kept.values()):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def unwritable(folder: Path, error: OSError) -> CourseError:
    return CourseError(
        f"out: got {str(folder)!r} ({error.strerror or error}); allowed is a folder that can be"
        " written"
    )
