"""What the commands share: progress bars, tables in plain text, and errors as one line with an exit
status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from course.errors import CourseError

OK, FACT_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit statuses
Item = TypeVar("Item")


class Progress:
    """Progress bars on stderr, with the time left.

    `silent=True` shows nothing (tests, notebooks' saved outputs).

    `for seed in progress(seeds, "seeds"): …` wraps an iterable; `with progress.bar(total, "steps")
    as bar: bar.update(10)` is moved by hand. Bars vanish when they are done.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self._open: list[Any] = []

    def __call__(
        self, iterable: Iterable[Item], text: str = "", total: int | None = None
    ) -> Iterator[Item]:
        """The items of `iterable`, one after another, with a bar beside them."""
        with self._make(text, total, iterable) as bar:
            yield from bar

    def bar(self, total: int, text: str = "") -> Any:
        """A bar of `total` steps to be moved by `bar.update(n)`; a context manager."""
        return self._make(text, total, None)

    def close(self) -> None:
        """Take away the bars that an error or Ctrl-C left open, so that what is printed next starts
        on a clean line.
        """
        for bar in reversed(self._open):
            bar.close()
        self._open.clear()

    def _make(self, text: str, total: int | None, iterable: Iterable[Any] | None) -> Any:
        pause = (
            0.1 if sys.stderr.isatty() else 10.0
        )  # a log file gets a line now and then, not ten a second
        bar = tqdm(
            iterable,
            desc=text or None,
            total=total,
            disable=self.silent,
            leave=False,
            mininterval=pause,
            dynamic_ncols=True,
        )
        self._open = [*(old for old in self._open if not old.disable), bar]
        return bar


QUIET = Progress(silent=True)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument as a one-line `CourseError` and keeps the
    line breaks of its texts.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise CourseError(f"{message}; `{self.prog} --help` shows what is allowed")


def guarded(body: Callable[[], int]) -> int:
    """The exit status of a command: what `body` returns, 2 with one line on stderr for a
    `CourseError`, 130 after Ctrl-C.
    """
    try:
        status = body()
        sys.stdout.flush()
        return status
    except CourseError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: no file was left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `course facts | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()
) -> str:
    """A table in plain text, columns padded to their widest cell; the columns whose index is in
    `right` end flush.
    """
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    flush = set(right)

    def line(row: Sequence[str]) -> str:
        places = enumerate(zip(row, widths, strict=True))
        return "  ".join(
            cell.rjust(width) if index in flush else cell.ljust(width)
            for index, (cell, width) in places
        ).rstrip()

    return "\n".join(
        [
            line(cells[0]),
            "  ".join("─" * width for width in widths),
            *(line(row) for row in cells[1:]),
        ]
    )


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 40 s, 3 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
