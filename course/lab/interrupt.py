"""Ctrl-C while a command loads: it ends at once with status 130, without a traceback.

What a command's first line calls; it imports next to nothing. `guarded` takes over from it.
"""

import os
import signal


def end(number: int, frame: object) -> None:
    """What Ctrl-C does before there is anything to lose."""
    os._exit(130)


def quiet() -> None:
    """From now on, unless somebody else has decided what Ctrl-C does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
