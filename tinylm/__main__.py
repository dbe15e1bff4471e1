"""`python -m tinylm train | eval | sample` trains or queries a model; NAME runs an ablation.

Without arguments it lists the commands and the ablations.
"""

import sys

from course.lab.interrupt import leave, quiet

quiet()  # before anything else is loaded

from course.lab.terminal import guarded  # noqa: E402


def _command() -> int:
    from tinylm.commands import command

    return command("python -m tinylm", sys.argv[1:])


if __name__ == "__main__":
    leave(guarded(_command))
