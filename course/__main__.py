"""The command `course`, and `python -m course`."""

import sys

from course.lab.interrupt import quiet

quiet()  # before anything else is loaded

from course.lab.terminal import guarded  # noqa: E402


def main() -> int:
    """Run the command; returns its exit status."""
    return guarded(_command)


def _command() -> int:
    from course.cli import command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
