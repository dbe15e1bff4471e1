"""The shared policy-gradient core: every algorithm from REINFORCE to GRPO is one objective with one part swapped."""

from course.errors import Clash, CourseError, Diverged
from course.estimator import Estimator, Frozen, replace
from course.ladder import RUNGS, register
from course.rollout import Policy, Rollout

__version__ = "0.1.0"
__all__ = ["RUNGS", "Clash", "CourseError", "Diverged", "Estimator", "Frozen", "Policy", "Rollout", "register", "replace"]
