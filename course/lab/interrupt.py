"""Ctrl-C at both ends of a command: while it loads, and while Python itself ends. The status
is 130, and there is no traceback.

A command's first line calls `quiet`, its last `leave`; this imports next to nothing. Between the
two `guarded` is in charge.
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

    After Ctrl-C without Python's own ending: where a library swallowed a KeyboardInterrupt in code
    of its own, that would kill the process by the signal (status −2) in place of 130.
    """
    if status == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # gone, full or missing
                stream.flush()
        os._exit(status)
    sys.exit(status)
