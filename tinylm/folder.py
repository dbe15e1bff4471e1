"""The folder of a training: its checkpoint, its log, and a lock that keeps other trainings out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.train.files import check_writable, locked, replace_files, unwritable
from tinylm.training import PHASES, Training

CHECKPOINT, METRICS, LOCK = "checkpoint.safetensors", "metrics.jsonl", ".training.lock"


def run(
    training: Training,
    folder: Path,
    *,
    overwrite: bool = False,
    save_every: int = 25,
    begin: Callable[[], None] = lambda: None,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
    tick: Callable[[Training], None] = lambda training: None,
) -> float:
    """Run a training to its end and keep its checkpoint and its log in `folder`.

    It writes checkpoint.safetensors and metrics.jsonl, and returns the seconds spent training. A
    training that was loaded from this folder continues its log; rows that a killed run wrote after
    its last checkpoint are written again. Any other training starts a new log, and only in a folder
    that holds no training, or with `overwrite`.

    `begin` is called once when the folder belongs to this training, `show` for every row of the
    log, and `tick` after every step. Raises `CourseError`, before anything is written, if another
    process trains in the folder, if the folder holds another training, or if its log is damaged. It
    also raises `CourseError` if the disk is full; the previous checkpoint then stays intact.
    """
    path, log = folder / CHECKPOINT, folder / METRICS
    check_writable(folder)
    taken = (
        f"out: got {str(folder)!r}, where another training is running; allowed is another folder"
    )
    with locked(folder / LOCK, taken):
        rows = _rows(log)
        if not training.is_saved_in(path):
            _refuse_other(folder, overwrite)
            rows = []
        here = PHASES.index(training.phase), training.learner.steps
        kept = "".join(line for place, line in rows if place <= here)
        # from here on there is something to resume
        replace_files({**training.files(path), log: kept.encode("utf-8")})
        training.was_saved_in(path)
        begin()
        spent, since = 0.0, 0
        while not training.done:
            start = time.perf_counter()
            row = training.step()
            spent += time.perf_counter() - start
            if row is not None:
                _append(log, row)
                show(row)
            tick(training)
            since += 1
            if since >= save_every or training.done:
                training.save(path)
                since = 0
        return spent


def _refuse_other(folder: Path, overwrite: bool) -> None:
    there = [name for name in (CHECKPOINT, METRICS) if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise CourseError(
            f"out: got {str(folder)!r}, which holds another training ({', '.join(there)}); allowed"
            " is another folder, --resume to go on with it, --overwrite to replace it"
        )


def _rows(log: Path) -> list[tuple[tuple[int, int], str]]:
    """The lines of a log, each with its phase and step.

    A last line that a killed run left unfinished is omitted. Raises `CourseError` if the file is
    not a log.
    """
    if not log.exists():
        return []
    rows: list[tuple[tuple[int, int], str]] = []
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                place = PHASES.index(row["phase"]), int(row["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise ValueError(f"line {number} is no row of it") from None
            rows.append((place, line))
    except (OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise CourseError(
            f"{log}: got a file that is no log of a training ({reason}); allowed is one JSON object"
            " a line, or no such file: move it away"
        ) from None
    return rows


def _append(log: Path, row: dict[str, Any]) -> None:
    try:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise unwritable(log, error) from error
