"""Write files completely or not at all, and several files all together or none.

A file is written under a temporary name in the same folder and then renamed. Several files are
renamed one after the other. A journal lists what they replace, so that the next process that reads
or writes in the folder can undo a change that was killed half-way.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from course.errors import CourseError

LOCK, JOURNAL = ".course.lock", ".course.journal"
NEW, OLD = ".course.tmp", ".course.old"  # endings of temporary files: new content, old content
PATIENCE = 10.0  # seconds to wait for another process that is writing in the same folder


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files so that either all are new or all are unchanged, whatever interrupts it.

    This holds even for `kill -9` between two renames, if readers call `settle` before they read.
    Missing folders are created, and temporary files of killed processes are removed. Raises
    `CourseError`, which names the file, if it cannot be written.
    """
    files = {Path(os.path.realpath(path)): content for path, content in contents.items()}
    home = next(iter(files)).parent  # the journal's folder
    path = home / LOCK
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _writing(home):
            _settle(home)
            try:
                for path, content in files.items():
                    _write(_beside(path, NEW), content)
                if len(files) > 1:
                    for path in files:
                        if path.exists():
                            _keep(path)
                    path = next(iter(files))
                    _write_journal(home, list(files))
                for path in files:
                    os.replace(_beside(path, NEW), path)
                (home / JOURNAL).unlink(missing_ok=True)  # from here on the new files count
            finally:
                _settle(home)
                for other in files:  # also in other folders than `home`
                    _remove(_beside(other, NEW), _beside(other, OLD))
    except OSError as error:
        raise unwritable(path, error) from error


def settle(folder: Path | str) -> None:
    """Undo a `replace_files` that was killed half-way, so that the files of a folder match.

    Call it before reading several files of the folder.
    """
    folder = Path(os.path.realpath(folder))
    if (folder / JOURNAL).exists():
        with suppress(OSError), _writing(folder):  # a read-only folder is left unchanged
            _settle(folder)


def check_writable(folder: Path | str) -> Path:
    """Check, before a long run, that files can be written to `folder`; creates it if missing.

    Raises `CourseError` if not.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _writing(folder):
            _settle(folder)
    except OSError as error:
        raise CourseError(
            f"out: got {str(folder)!r} ({error.strerror or error}); allowed is a folder that can be"
            " written"
        ) from None
    return folder


@contextmanager
def locked(path: Path, taken: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, and remove it afterwards.

    Raises `CourseError(taken)` if another process holds it for more than `wait` seconds. The lock
    is the operating system's, so a killed process does not keep it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise CourseError(taken) from None
    try:
        yield
    finally:
        # removed while it is held: a process that waits for the removed file notices and makes a
        # new one. Windows cannot remove an open file, but there releasing the lock removes it
        _remove(path)
        lock.release()


def unwritable(path: Path, error: OSError) -> CourseError:
    """The error for a file that could not be written."""
    return CourseError(
        f"{path}: cannot be written ({error.strerror or error}); allowed is a folder with room,"
        " open for writing"
    )


def _writing(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder: only one process at a time changes files in it.

    Half-written files in a locked folder therefore belong to a process that was killed.
    """
    taken = f"{folder}: got a folder that another process is writing to; try again"
    return locked(folder / LOCK, taken, PATIENCE)


def _settle(folder: Path) -> None:
    """Put back the files that a journal names, and remove temporary files."""
    journal = folder / JOURNAL
    if journal.exists():
        for name, existed in _journalled(journal):
            path = folder / name
            old = _beside(path, OLD)
            if old.exists():
                os.replace(old, path)
            elif not existed:
                path.unlink(missing_ok=True)
            _remove(_beside(path, NEW))
        journal.unlink()
    _remove(*folder.glob(f".*{NEW}"), *folder.glob(f".*{OLD}"))


def _journalled(journal: Path) -> list[tuple[str, bool]]:
    """What a journal holds; raises `CourseError` if it is not one that `_write_journal` wrote."""
    try:
        content = journal.read_bytes()
        rows = json.loads(content)
        names = [(name, existed) for name, existed in rows["files"]]
        if content == _journal(names):  # else a wrong name would lose what is kept under the right
            return names
        reason = "the checksum is not that of its contents"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error)
    raise CourseError(
        f"{journal}: got a damaged journal ({reason}); allowed is one that this course wrote:"
        f" move it away, and the files *{OLD} beside it, which hold what it would put back"
    )


def _write_journal(folder: Path, paths: list[Path]) -> None:
    rows = [(os.path.relpath(path, folder), _beside(path, OLD).exists()) for path in paths]
    _write(_beside(folder / JOURNAL, NEW), _journal(rows))
    os.replace(_beside(folder / JOURNAL, NEW), folder / JOURNAL)


def _journal(rows: list[tuple[str, bool]]) -> bytes:
    """The bytes of a journal: for each file its name and whether it existed, and a checksum."""
    listed = json.dumps(rows)
    return json.dumps({"files": rows, "sum": zlib.crc32(listed.encode())}).encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a rename must not reach the disk before the content


def _keep(path: Path) -> None:
    """Keep a file's present content under a second name: a hard link, or else a copy."""
    try:
        os.link(path, _beside(path, OLD))
    except OSError:
        shutil.copyfile(path, _beside(path, OLD))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}{ending}")


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
