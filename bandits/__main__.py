"""`python -m bandits NAME` runs one ablation on bandits; without a name it lists them."""

import sys

from course.lab.terminal import guarded


def _command() -> int:
    from course.lab.command import command

    return command("bandits.ablations", "python -m bandits", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(guarded(_command))
