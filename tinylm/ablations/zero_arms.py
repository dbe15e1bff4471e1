"""From zero, every arm: which part, anchor or reward lets random weights learn two-digit sums.

It is `python -m tinylm zero` with all its arms and four models each; see there what they are. What
to look for:

    the rungs: five without a KL (with one update per rollout ratio and clip change nothing), and
      GRPO
    the KL under REINFORCE and under the group mean without std: what the std adds
    an entropy bonus, and the reverse KL (k2) with GRPO's β, in the KL's place. On the three arms of
      `python -m bandits rare_prize` neither helps much; here k2 nearly does what k3 does
    credit for the end token, where nothing has to be kept alive until it is found
    GRPO with the exact reward alone, which hardly ever pays
    silent groups at GRPO's end, and the level that the KL's balance with the reward predicts
"""

from __future__ import annotations

from dataclasses import replace

from tinylm.ablations import zero
from tinylm.ablations.zero import plot, run
from tinylm.from_zero import ARMS

TITLE = "two-digit sums from random weights: rungs, three KLs, an entropy bonus, other rewards"
FIGURE = "tinylm_zero"
EXPECTED_SECONDS = 3600.0
SETTINGS = replace(zero.SETTINGS, arms=tuple(ARMS), seeds=4)

__all__ = ["EXPECTED_SECONDS", "FIGURE", "SETTINGS", "TITLE", "plot", "run"]
