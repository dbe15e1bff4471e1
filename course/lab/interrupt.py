"""Ctrl-C while a command loads or while Python ends: status 130 and no traceback.

The first line of a command calls `quiet` and the last one `leave`; in between `guarded` handles
Ctrl-C. This module imports only what Python has loaded anyway, so that `quiet` comes at once.
"""

import _signal  # `signal` makes its enumerations first, and a Ctrl-C meanwhile gives a traceback
import os
import sys

TYPE_CHECKING = False  # the constant of typing, without importing typing
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130  # the exit status


def end(number: int, frame: object) -> None:
    """The handler of Ctrl-C while nothing can be lost: end the process."""
    os._exit(INTERRUPTED)


def quiet() -> None:
    """Install `end` as the handler of Ctrl-C, unless another handler is already installed."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, end)


def importing(frame: "FrameType | None") -> bool:
    """Whether an import is in progress where `frame` is.

    A library that meets an exception in the middle of its import may swallow it, hang or abort the
    process, as PyTorch does.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave(status: int) -> "NoReturn":
    """End the process with `status`.

    After Ctrl-C it skips Python's own shutdown. If a library has swallowed a KeyboardInterrupt,
    that shutdown would kill the process by the signal (status −2) instead of ending with 130.
    """
    if status == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):  # closed, full or missing
                continue
        os._exit(status)
    sys.exit(status)
