"""The shared policy-gradient core: every algorithm from REINFORCE to GRPO is one objective with one
part swapped.
"""

from typing import TYPE_CHECKING

from course.errors import Clash, CourseError, Diverged
from course.estimator import Estimator, Frozen, replace
from course.ladder import RUNGS, register
from course.rollout import Policy, Rollout

if TYPE_CHECKING:
    from course.lesson import Lesson

__version__ = "0.1.0"
__all__ = [
    "RUNGS",
    "Clash",
    "CourseError",
    "Diverged",
    "Estimator",
    "Frozen",
    "Policy",
    "Rollout",
    "register",
    "replace",
    "setup",
]


def setup(number: str, seed: int = 0) -> "Lesson":
    """Begin lesson «01»: what every lesson's first cell calls; see `course.lesson`."""
    from course.lesson import setup as begin

    return begin(number, seed)
