"""The syllabus: number, file, title, take-away, rungs and figure of every lesson."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from course.errors import CourseError, require
from course.lab.places import home

T = TypeVar("T")


@dataclass(frozen=True)
class LessonInfo:
    """One row of the syllabus; `figure` is the name of a file in figures/, without extension."""

    number: str
    name: str
    title: str
    takeaway: str
    rungs: tuple[str, ...]
    figure: str
    optional: bool = False  # no other lesson needs it

    @property
    def heading(self) -> str:
        """The number and the title, as tables show them; an optional lesson says so."""
        return f"{self.number} · {self.title}{' (optional)' if self.optional else ''}"

    @property
    def file(self) -> str:
        """FILE in notebooks/src/FILE.py and notebooks/FILE.ipynb."""
        return f"{self.number}_{self.name}"


_ROWS: tuple[tuple[Any, ...], ...] = (
    (
        "00",
        "the_map",
        "The map",
        "every algorithm from REINFORCE to GRPO is one objective with one part swapped",
        (),
        "ladder",
    ),
    (
        "01",
        "policy_gradient",
        "Policy gradient for one-step rewards",
        "E[r ∇log π] = ∇J, and one step needs no policy-gradient theorem",
        ("reinforce",),
        "gradient_bandit",
    ),
    (
        "02",
        "baselines",
        "Baselines and advantages",
        "a baseline moves the variance, not the mean, and it can cost",
        ("baseline",),
        "bias_variance",
    ),
    (
        "03",
        "importance_ratio",
        "The importance ratio",
        "at π_old every surrogate has one gradient; further out, samples go stale",
        ("surrogate",),
        "effective_samples",
    ),
    (
        "03b",
        "trpo",
        "TRPO",
        "a bound on the KL of a step belongs to the optimiser; the objective stays the same",
        (),
        "trust_region",
        True,
    ),
    (
        "04",
        "clipping",
        "PPO's clip",
        "the clip is a flat region, not a bound on the ratio",
        ("clip",),
        "clip_unbounded",
    ),
    (
        "05",
        "critics",
        "Critics and GAE",
        "a critic gives every token its own credit, and has to be learned",
        ("ppo",),
        "tinylm_critic",
    ),
    (
        "06",
        "group_baseline",
        "The group baseline",
        "the mean changes the noise and the step's length; the std changes what is optimised",
        ("group_mean", "group_std", "length_mean"),
        "difficulty",
    ),
    (
        "07",
        "kl_anchor",
        "The KL anchor",
        "which KL, where, decides what is optimised; it is no critic",
        ("grpo",),
        "kl_estimators",
    ),
    (
        "08",
        "language_model",
        "From bandits to a language model",
        "a prompt is a bandit whose arms are its completions, at sequence level",
        ("grpo",),
        "bridge",
    ),
    (
        "09",
        "ladder_on_a_language_model",
        "The ladder on a language model",
        "which part mattered, under which stress and by how much, with intervals that decide",
        ("grpo",),
        "parts",
    ),
    (
        "10",
        "rewards",
        "Where rewards come from",
        "what covaries with the reward grows: first what is meant, then what is left",
        (),
        "overoptimisation",
    ),
    (
        "10b",
        "my_reward_is_flat",
        "My reward is flat",
        "read ten answers, call the reward, print a group, count; only then touch the algorithm",
        (),
        "tinylm_train",
        True,
    ),
    (
        "11",
        "beyond_grpo",
        "Beyond GRPO",
        "each new name replaces one part, and one quantity says what it does",
        (
            *("maxrl", "leader", "pkpo", "gdpo", "cispo", "sapo", "vespo", "dppo_tv"),
            *("high_entropy", "clip_cov", "opsm", "m2po", "tis_grpo"),
        ),
        "mismatch",
    ),
)
SYLLABUS: dict[str, LessonInfo] = {row[0]: LessonInfo(*row) for row in _ROWS}


def info(number: str) -> LessonInfo:
    """The syllabus row of a lesson, by "01", 1, "03b", "3b" or "01_policy_gradient".

    Raises `CourseError` for an unknown lesson.
    """
    key = str(number).partition("_")[0]
    key = key.zfill(3 if key[-1:].isalpha() else 2)
    require(key in SYLLABUS, "lesson", number, ", ".join(SYLLABUS))
    return SYLLABUS[key]


def folder() -> Path:
    """The folder notebooks/ of the course: of the checkout one stands in, or as it is installed."""
    return home() / "notebooks"


def read_again(
    place: Path, known: dict[Path, tuple[int, T]], read: Callable[[Path], T]
) -> T | None:
    """What `read` makes of a file, kept until the file changes; None if there is no file."""
    try:
        changed = place.stat().st_mtime_ns
    except OSError:
        return None
    if place not in known or known[place][0] != changed:
        known[place] = changed, read(place)
    return known[place][1]


def described() -> Path:
    """The folder with the sources of lessons, with their questions and exercises beside them.

    It is notebooks/src of the course that one stands in, or else of the course that is imported, so
    that a notebook can be opened in any folder.
    """
    beside = Path(__file__).resolve().parents[2] / "notebooks"
    places = [place / "src" for place in (folder(), beside)]
    return next((place for place in places if (place / "questions").is_dir()), places[0])


def index() -> Mapping[str, dict[str, Any]]:
    """The contents of notebooks/lessons.json: lesson number → times, questions, exercises.

    The last build wrote it. Raises `CourseError` if the file is damaged.
    """
    path = folder() / "lessons.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise _damaged(path, "no object of objects")
    for number, entry in found.items():
        for kind in ("questions", "exercises"):
            names = entry.get(kind, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _damaged(path, f"{number}.{kind} that is no list of names")
        for kind in ("seconds", "minutes"):
            time = entry.get(kind, 0)
            if not isinstance(time, int) or isinstance(time, bool) or time < 0:
                raise _damaged(path, f"{number}.{kind} that is no whole number")
    return found


def _damaged(path: Path, what: str) -> CourseError:
    return CourseError(
        f"{path}: got a damaged file ({what}); allowed is what `course notebooks` writes: move it"
        " away and build the lessons again"
    )
