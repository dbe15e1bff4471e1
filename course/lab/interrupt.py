"""Ctrl-C while a command loads or while Python ends: status 130 and no traceback.

The first line of a command calls `quiet` and the last one `leave`; in between `guarded` handles
Ctrl-C. This module imports almost nothing.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

INTERRUPTED = 130  # the exit status


def end(number: int, frame: object) -> None:
    """The handler of Ctrl-C while nothing can be lost: end the process."""
    os._exit(INTERRUPTED)


def quiet() -> None:
    """Install `end` as the handler of Ctrl-C, unless another handler is already installed."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def leave(status: int) -> NoReturn:
    """End the process with `status`.

    After Ctrl-C it skips Python's own shutdown. If a library has swallowed a KeyboardInterrupt,
    that shutdown would kill the process by the signal (status −2) instead of ending with 130.
    """
    if status == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, full or missing
                stream.flush()
        os._exit(status)
    sys.exit(status)
