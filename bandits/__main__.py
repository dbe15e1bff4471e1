"""`python -m bandits NAME` runs one ablation on bandits; without a name it lists them."""

import sys

from course.lab.ablation import main

if __name__ == "__main__":
    sys.exit(main("bandits.ablations", "python -m bandits"))
