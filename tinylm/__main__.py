"""`python -m tinylm train | eval | sample` works on a model; `python -m tinylm NAME` runs one
ablation; no name lists them.
"""

import sys

from course.lab.ablation import main
from course.train.device import keep_memory
from tinylm import commands

if __name__ == "__main__":
    keep_memory()
    arguments = sys.argv[1:]
    if arguments and arguments[0] in commands.COMMANDS:
        sys.exit(commands.main(arguments))
    status = main("tinylm.ablations", "python -m tinylm", arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"\n{commands.OVERVIEW}")
    sys.exit(status)
