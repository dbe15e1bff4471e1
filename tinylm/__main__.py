"""`python -m tinylm NAME` runs one ablation on the tiny language model; without a name it lists them."""

import sys

from course.ablation import main

if __name__ == "__main__":
    sys.exit(main("tinylm.ablations", "python -m tinylm"))
