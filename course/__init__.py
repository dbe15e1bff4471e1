"""Policy-gradient methods from REINFORCE to GRPO, as one objective with replaceable parts."""

TYPE_CHECKING = False  # the constant of typing, without importing typing
if TYPE_CHECKING:
    from course.errors import Clash, CourseError, Diverged
    from course.estimator import Estimator, Frozen, replace
    from course.ladder import RUNGS, register
    from course.lesson import Lesson
    from course.rollout import Policy, Rollout

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
    """Begin lesson `number` ("01"); the first cell of every lesson calls it."""
    from course.lesson import setup as begin

    return begin(number, seed)


if not TYPE_CHECKING:  # loaded on first use, so that `course --help` does not wait for PyTorch
    _HOMES = {
        "errors": ("Clash", "CourseError", "Diverged"),
        "estimator": ("Estimator", "Frozen", "replace"),
        "ladder": ("RUNGS", "register"),
        "rollout": ("Policy", "Rollout"),
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name == home or name in names:
                module = import_module(f"course.{home}")
                return module if name == home else getattr(module, name)
        raise AttributeError(f"module 'course' has no attribute {name!r}")
