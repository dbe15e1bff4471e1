"""The command `course`, and `python -m course`."""

import sys
from typing import NoReturn

from course.lab.interrupt import leave, quiet

quiet()  # before any other import, so that Ctrl-C while loading shows no traceback

from course.lab.terminal import guarded  # noqa: E402


def main() -> NoReturn:
    """Run the command, and end with its exit status."""
    leave(guarded(_command))


def _command() -> int:
    from course.cli import command

    return command(sys.argv[1:])


if __name__ == "__main__":
    main()
