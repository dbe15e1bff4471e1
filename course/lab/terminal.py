"""Terminal output of commands: progress bars, tables, and errors as one line with an exit status.

It imports almost nothing, so that a command is guarded from the start.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar, cast

from course.errors import CourseError
from course.lab.interrupt import INTERRUPTED, end, importing

OK, FACT_FAILED, BAD_INPUT, MISTAKE = 0, 1, 2, 70  # exit statuses
# errors of a pipe whose reader has closed it; Windows reports an invalid argument
GONE = {errno.EPIPE, errno.ESHUTDOWN} | ({errno.EINVAL} if os.name == "nt" else set())
NO_MEMORY = re.compile(
    "can't allocate|not enough memory|out ?of ?memory|Storage size calculation overflowed"
    "|array is too big|Maximum allowed dimension|too large to convert|Overflow when unpacking",
    re.IGNORECASE,
)
SPELLED = {
    **dict.fromkeys("−–—─━", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤", "+"),
    **dict.fromkeys("«»“”„", '"'),
    **dict.fromkeys("‘’", "'"),
    **{"≥": ">=", "≤": "<=", "≠": "!=", "≈": "~", "±": "+-", "×": "x", "·": "*", "⁄": "/"},
    **{
        "→": "->",
        "←": "<-",
        "⏎": "<end>",
        "§": "section ",
        "∞": "inf",
        "√": "sqrt",
        "∇": "grad ",
        "‖": "||",
    },
    **{"…": "...", "∑": "sum", "∂": "d", "∈": "in"},
}
AGAIN, LONGEST_IMPORT = 0.05, 1.0  # seconds after which a Ctrl-C that had no effect is raised again
Item = TypeVar("Item")


class Progress:
    """Progress bars on stderr, with the time left.

    `silent=True` shows nothing (for tests and for the saved outputs of notebooks).

    `for seed in progress(seeds, "seeds"): …` wraps an iterable. `with progress.bar(total, "steps")
    as bar: bar.update(10)` is advanced by hand. Bars disappear when they are finished.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self._open: list[Any] = []

    def __call__(
        self, iterable: Iterable[Item], text: str = "", total: int | None = None
    ) -> Iterator[Item]:
        """Yield the items of `iterable` and advance a bar."""
        with self._make(text, total, iterable) as bar:
            yield from bar

    def bar(self, total: int, text: str = "") -> Any:
        """A bar of `total` steps, advanced by `bar.update(n)`; a context manager."""
        return self._make(text, total, None)

    def say(self, text: str) -> None:
        """Print a line above the open bars; nothing if silent."""
        if not self.silent:
            from tqdm import tqdm

            tqdm.write(text)

    def close(self) -> None:
        """Remove the bars that an error or Ctrl-C left open."""
        for bar in reversed(self._open):
            bar.close()
        self._open.clear()

    def _make(self, text: str, total: int | None, iterable: Iterable[Any] | None) -> Any:
        from tqdm import tqdm  # imported only if a bar is shown

        pause = (
            0.1 if sys.stderr.isatty() else 10.0
        )  # a log file gets a line every ten seconds, not ten lines a second
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


# ---------------------------------------------------------------- what a command promises


class Shown(Exception):
    """The help was requested and shown, so the command ends with status 0."""


def guarded(body: Callable[[], int]) -> int:
    """Run `body` and return the exit status of the command; an error gives one line on stderr.

    The status is what `body` returns; 2 after a `CourseError` or an error of the machine (files,
    memory, a full output device); 130 after Ctrl-C; 70, with a traceback, for a bug of the course.
    Characters that cannot be encoded are spelled in ASCII. A missing stream, or one whose reader
    has closed it, does not stop the command.
    """
    _prepare_streams()
    try:
        with _noted_interrupts() as interrupts:
            status = body()
    except Shown:
        status = OK
    except KeyboardInterrupt:
        status = _interrupted()
    except BaseException as error:
        said = explain(error)
        if interrupts:  # libraries may turn a Ctrl-C while they load into another error
            status = _interrupted()
        elif said is None:
            _say(f"{traceback.format_exc()}\nThis is a mistake of the course, not of yours.")
            status = MISTAKE
        else:
            _say(f"error: {said}")
            status = BAD_INPUT
    return _finish(status)


def explain(error: BaseException) -> str | None:
    """One line that explains bad input or an error of the machine; None for a bug of the course."""
    text = " ".join(str(error).split())
    if isinstance(error, CourseError):
        return text
    if isinstance(error, SystemExit):
        return f"sys.exit: got {text or 'a call'} in the middle of the work; allowed is to go on"
    if isinstance(error, MemoryError) or NO_MEMORY.search(f"{type(error).__name__} {text}"):
        return f"memory: got sizes that do not fit ({text[:120]}); allowed is what this machine has"
    if isinstance(error, RecursionError):
        return "got something nested too deeply; allowed is a file that a command has written"
    if isinstance(error, UnicodeError):
        return f"got text that cannot be read ({text}); allowed is UTF-8"
    if isinstance(error, OSError):
        place = f"{error.filename!r} " if error.filename is not None else ""
        return f"file: got {place}({error.strerror or text}); allowed is one that can be used"
    return None


@contextmanager
def _noted_interrupts() -> Iterator[list[float]]:
    """Yield a list of the times of every Ctrl-C; each also raises KeyboardInterrupt.

    It is raised again if Python had to ignore it, as in a `__del__`. In the middle of an import it
    waits for the end of the import, and after `LONGEST_IMPORT` seconds it ends the process.
    """
    seen: list[float] = []
    over = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(time.monotonic())
        if not importing(frame):
            raise KeyboardInterrupt
        if seen[-1] - seen[0] > LONGEST_IMPORT:
            end(number, frame)
        again()

    def again() -> None:
        threading.Thread(target=after_a_moment, daemon=True).start()

    def after_a_moment() -> None:
        if not over.wait(AGAIN):
            signal.raise_signal(signal.SIGINT)

    def ignored(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            again()
        else:
            hook(unraisable)

    ours = threading.current_thread() is threading.main_thread() and (
        before := signal.getsignal(signal.SIGINT)
    ) in (signal.default_int_handler, end)
    hook = sys.unraisablehook
    if ours:
        signal.signal(signal.SIGINT, note)
        sys.unraisablehook = ignored
    try:
        yield seen
    finally:
        over.set()
        if ours:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = hook


def _interrupted() -> int:
    _say("interrupted: no file was left half-written")
    return INTERRUPTED


def _say(text: str) -> None:
    """Print a line on stderr, which may be closed or full."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _finish(status: int) -> int:
    """`status`, or 2 if the output could not be written."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    failed = sys.stdout.failed if isinstance(sys.stdout, _Patient) else None
    if failed is None or failed.errno in GONE:
        return status
    _say(f"error: output: got {failed.strerror or failed}; allowed is a place with room for it")
    return BAD_INPUT


class _Patient:
    """A text stream that never raises: after a first failure, which `failed` keeps, it drops all.

    What is written later goes to the null device.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.failed = stream, cast(OSError | None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or drop everything from now on."""
        try:
            return int(self.stream.write(text))
        except OSError as error:
            return self._give_up(error) or len(text)

    def flush(self) -> None:
        """Flush, or drop everything from now on."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> int:
        self.failed = self.failed or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # what is still buffered is dropped as well
        os.close(nowhere)
        return 0


def _prepare_streams() -> None:
    """Make stdout and stderr accept every character and survive a write error.

    Streams that a notebook or a test has replaced are left unchanged.
    """
    codecs.register_error("spelled", _spelled)
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:  # else the next file to be opened would get a closed stream's number
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="spelled")
            setattr(sys, name, _Patient(stream))


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encodings: "ρ ≥ ½" becomes "rho >= 1/2"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(spell, error.object[error.start : error.end])), error.end


def spell(character: str) -> str:
    """A character in ASCII: its meaning, its Greek name, its form without accent, or its code."""
    if character in SPELLED:
        return SPELLED[character]
    greek = re.match(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    if greek:
        return greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(SPELLED.get(part, part) for part in parts if not unicodedata.combining(part))
    if plain.isascii() and plain:
        return plain
    return character.encode("ascii", "backslashreplace").decode()


# ---------------------------------------------------------------- text


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()
) -> str:
    """A table in plain text; columns whose index is in `right` are aligned to the right."""
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
    """A time that is easy to read: 0.4 s, 40 s, 3 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
