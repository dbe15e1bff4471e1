"""A rare, large reward under the group std: the expected gradient, and the group size it needs.

The gradient is computed in two ways. The group size is the smallest one at which it points to the
better arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bandits.environments import Discrete
from bandits.exact import outcomes
from course import ladder
from course.errors import CourseError, require
from course.estimator import Estimator, replace
from course.exact import Outcomes, microscope
from course.parts import GroupStd

STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))
LIMIT = 2000  # largest group size, in samples, that a search tries


@dataclass(frozen=True)
class RarePrize:
    """Two arms: A always pays `sure`; B pays `large` with probability `chance` and otherwise 0.

    B must be better, 0 < sure < chance·large; otherwise it raises `CourseError`.
    """

    sure: float = 0.5
    large: float = 10.0
    chance: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.chance < 1, "chance", self.chance, "a probability between 0 and 1")
        mean = self.chance * self.large
        fits = 0 < self.sure < mean
        pays = f"{self.sure:g} and {self.large:g}"
        require(fits, "sure, large", pays, f"above 0, and sure below B's mean, {mean:g}")

    @property
    def slope(self) -> float:
        """∇J on arm B's logit if both arms have probability ½: ½·½·(B's mean − A's mean)."""
        return (self.chance * self.large - self.sure) / 4


def environment(prize: RarePrize) -> Discrete:
    """Arms A and B as an environment with one prompt: values and probabilities [1, 2, 2]."""
    values = [[[prize.sure, prize.sure], [prize.large, 0.0]]]
    chances = [[[1.0, 0.0], [prize.chance, 1 - prize.chance]]]
    return Discrete(
        torch.tensor(values, dtype=torch.float64), torch.tensor(chances, dtype=torch.float64)
    )


def listed(prize: RarePrize, b: float = 0.5) -> Outcomes:
    """All outcomes if arm B has probability `b`."""
    return outcomes(environment(prize), torch.tensor([[1 - b, b]], dtype=torch.float64).log())


def push(estimator: Estimator, can_happen: Outcomes, group: int) -> float:
    """The exact expected gradient on arm B's logit, by the microscope."""
    return float(microscope(estimator, can_happen, group, covariance=False).expected[1])


def push_by_counts(arms: RarePrize, group: int, b: float = 0.5) -> float:
    """The expected gradient on arm B's logit under group mean and std, by a sum over counts.

    The counts say how many samples of the group are A, B with the prize, and B without it. The sum
    is Σ multinomial · [(1−b)·(advantages of B's samples) − b·(advantages of A's)] / G.
    Zero-variance groups give 0. eq:push-on-the-rare-prize
    """
    a, prize = torch.meshgrid(
        torch.arange(group + 1).double(), torch.arange(group + 1).double(), indexing="ij"
    )
    blank = group - a - prize
    inside = (blank >= 0) & (torch.stack([a, prize, blank]).amax(0) < group)
    a, prize, blank = a[inside], prize[inside], blank[inside]
    ways = (
        math.lgamma(group + 1)
        - torch.lgamma(a + 1)
        - torch.lgamma(prize + 1)
        - torch.lgamma(blank + 1)
    )
    chance = (
        a * math.log(1 - b)
        + prize * math.log(b * arms.chance)
        + blank * math.log(b * (1 - arms.chance))
    )
    mean = (arms.sure * a + arms.large * prize) / group
    square = a * (arms.sure - mean) ** 2 + prize * (arms.large - mean) ** 2 + blank * mean**2
    of_a, of_b = a * (arms.sure - mean), prize * (arms.large - mean) - blank * mean
    return float(
        ((ways + chance).exp() * ((1 - b) * of_b - b * of_a) / (square / group).sqrt()).sum()
        / group
    )


def first_group(prize: RarePrize, b: float) -> int:
    """The smallest G at which `push_by_counts` is positive, by doubling and bisection.

    Raises `CourseError` if there is none up to about `LIMIT`.
    """
    low, high = 1, 2
    while push_by_counts(prize, high, b) <= 0:
        low, high = high, 2 * high
        if low > LIMIT:
            raise CourseError(
                f"large: got rewards whose gradient still points to A with {low} samples; allowed"
                " is a less rare reward"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if push_by_counts(prize, middle, b) > 0 else (middle, high)
    return high


def first_listed(prize: RarePrize) -> int:
    """The smallest G at which the microscope's gradient points to B, from probability ½ each.

    It tries one G after another and raises `CourseError` beyond 200.
    """
    half, group = listed(prize), 2
    while push(STD, half, group) <= 0:
        group += 1
        require(group <= 200, "large", prize.large, "a reward less rare: its first G is beyond 200")
    return group
