"""`python -m bandits NAME` runs one ablation on bandits; without a name it lists them."""

import sys

from course.lab.interrupt import leave, quiet

quiet()  # before anything else is loaded

from course.lab.terminal import guarded  # noqa: E402


def _command() -> int:
    from course.lab.command import command

    return command("bandits.ablations", "python -m bandits", sys.argv[1:])


if __name__ == "__main__":
    leave(guarded(_command))
