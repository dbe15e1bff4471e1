"""`python -m tinylm train | eval | sample` trains or queries a model; NAME runs an ablation.

Without arguments it lists the commands and the ablations.
"""

import os
import sys

from course.lab.interrupt import leave, quiet

quiet()  # before anything else is loaded
# Threads that wait for each other sleep. By default OpenMP's spin, and where other programs use the
# processors, too, a rollout then takes ten times as long: the thread that is waited for does not
# run while the other one spins in its place. It counts only if set before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from course.lab.terminal import guarded  # noqa: E402


def _command() -> int:
    from tinylm.commands import command

    return command("python -m tinylm", sys.argv[1:])


if __name__ == "__main__":
    leave(guarded(_command))
