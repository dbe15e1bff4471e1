"""What the commands share: progress bars, tables in plain text, and errors as one line with an exit
status.

It imports next to nothing, so that a command is guarded from its first moment on.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from course.errors import CourseError
from course.lab.interrupt import INTERRUPTED, end

OK, FACT_FAILED, BAD_INPUT, MISTAKE = 0, 1, 2, 70  # exit statuses
# a reader that has gone away; Windows calls it an invalid argument
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
        from tqdm import tqdm  # here: what nobody looks at costs nothing

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


# ---------------------------------------------------------------- what a command promises


class Shown(Exception):
    """There is nothing more to do: the help was asked for, and shown."""


def guarded(body: Callable[[], int]) -> int:
    """The exit status of a command: what `body` returns, and one line on stderr where it fails.

    2 for a `CourseError` and for what the machine refuses (files, memory, a full output device);
    130 after Ctrl-C; 70, with a traceback, for a mistake of the course's own. Output that cannot be
    encoded is spelled in ASCII; a stream that is missing, or whose reader has gone, does not stop
    the work.
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
        if interrupts:  # libraries turn a Ctrl-C while they load into errors of their own
            status = _interrupted()
        elif said is None:
            _say(f"{traceback.format_exc()}\nThis is a mistake of the course, not of yours.")
            status = MISTAKE
        else:
            _say(f"error: {said}")
            status = BAD_INPUT
    return _finish(status)


def explain(error: BaseException) -> str | None:
    """What to tell the user, in one line, about bad input or about what the machine refused; None
    for a mistake of the course's own.
    """
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
def _noted_interrupts() -> Iterator[list[int]]:
    """A list that holds whatever Ctrl-C has come; each raises KeyboardInterrupt as ever."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread() and (
        before := signal.getsignal(signal.SIGINT)
    ) in (signal.default_int_handler, end)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _interrupted() -> int:
    _say("interrupted: no file was left half-written")
    return INTERRUPTED


def _say(text: str) -> None:
    """One more line on stderr, which may be gone or full."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _finish(status: int) -> int:
    """`status`, unless what was printed could not be written: then 2."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    failed = sys.stdout.failed if isinstance(sys.stdout, _Patient) else None
    if failed is None or failed.errno in GONE:
        return status
    _say(f"error: output: got {failed.strerror or failed}; allowed is a place with room for it")
    return BAD_INPUT


class _Patient:
    """A text stream that goes on when it cannot be written to: the first failure is kept in
    `failed`, and from then on everything goes to nowhere.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.failed = stream, cast(OSError | None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or give up for good."""
        try:
            return int(self.stream.write(text))
        except OSError as error:
            return self._give_up(error) or len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> int:
        self.failed = self.failed or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # so that what is still buffered goes there as well
        os.close(nowhere)
        return 0


def _prepare_streams() -> None:
    """Make stdout and stderr take whatever is printed. Streams that somebody else has put in place
    (a notebook, a test) are left alone.
    """
    codecs.register_error("spelled", _spelled)
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:  # a closed stream's number would be given to the next file that is opened
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
    """An error handler of encodings: «ρ ≥ ½» becomes «rho >= 1/2»."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(spell, error.object[error.start : error.end])), error.end


def spell(character: str) -> str:
    """A character in ASCII: by its meaning, its name in Greek, its plain form, or its number."""
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
