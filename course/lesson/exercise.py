"""Exercises: a checker compares an attempt with an exact answer and gives a counter-example.

They stand in notebooks/src/exercises/NN.py, beside the lessons, so that a lesson's own cells show
no solution. The faulty parts of *Break it* stand there too.
"""

from __future__ import annotations

import html
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from course.errors import CourseError, require
from course.lesson.syllabus import described, read_again
from course.lesson.view import box, fold, rich, show

Attempt = Callable[..., Any]
NOT_ATTEMPTED = "not attempted"
# notebooks/sanitize.cfg names it, so that a lesson passes nbval on a learner's machine, too
EARLIER = '<span class="earlier"> You have passed it on an earlier day.</span>'


@dataclass(frozen=True)
class Exercise:
    """An exercise; `test(attempt)` returns None if it is right, else a counter-example.

    A test may take more by keyword, behind a `*`: what the lesson has computed (see `given`).

    `solution` is a right attempt, and `wrong` has at least two plausible wrong ones. Tests run the
    checker on all of them and on an unchanged stub, which returns NotImplemented. `hints` are
    three, from a nudge to nearly the answer.
    """

    name: str
    task: str
    test: Callable[..., str | None]
    solution: Attempt
    wrong: Sequence[Attempt]
    hints: Sequence[str]
    passed: Callable[[], None] = field(default=lambda: None, repr=False)
    before: bool = False  # whether the learner passed it on an earlier day

    def __post_init__(self) -> None:
        require(len(self.hints) == 3, f"exercise {self.name}.hints", len(self.hints), "three")
        require(
            len(self.wrong) >= 2,
            f"exercise {self.name}.wrong",
            len(self.wrong),
            "at least two plausible wrong answers",
        )

    @property
    def data(self) -> list[str]:
        """The names of what the test takes from the lesson."""
        parameters = inspect.signature(self.test).parameters.values()
        return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]

    def given(self, passed: Callable[[], None], before: bool = False, **data: Any) -> Exercise:
        """This exercise with the lesson's `data` for its test; `passed()` is called when it is.

        `before` says that it has been passed on an earlier day.

        Raises `CourseError` if the data are not those that the test takes.
        """
        require(
            sorted(data) == sorted(self.data),
            f"exercise {self.name}, what the lesson gives",
            sorted(data),
            f"{sorted(self.data)}",
        )
        test = partial(self.test, **data) if data else self.test
        return replace(self, test=test, passed=passed, before=before)

    def verdict(self, attempt: Attempt) -> str | None:
        """None if the attempt is right, "not attempted" for the unchanged stub, else what is wrong.

        What is wrong is a counter-example or the error that the attempt raised.
        """
        tried = False

        def watched(*arguments: Any, **options: Any) -> Any:
            nonlocal tried
            result = attempt(*arguments, **options)
            if result is NotImplemented:
                raise _Untouched
            tried = True
            return result

        try:
            return self.test(watched)
        except _Untouched:
            return NOT_ATTEMPTED if not tried else "it returns NotImplemented for some inputs"
        except Exception as error:
            return f"it raised {type(error).__name__}: {error}"

    def check(self, attempt: Attempt) -> None:
        """Test an attempt and show the verdict, the hints and the folded solution."""
        said = self.verdict(attempt)
        if said is None:
            self.passed()
            head, colour, text = (
                "<b>Passed.</b> It agrees with the exact answer everywhere it was tried.",
                "#00875f",
                "passed",
            )
        elif said == NOT_ATTEMPTED:
            head, colour, text = (
                "<b>Not attempted yet.</b> Replace <code>return NotImplemented</code>."
                + (EARLIER if self.before else ""),
                "#777777",
                NOT_ATTEMPTED,
            )
        else:
            head, colour, text = f"<b>Not yet.</b> {rich(said)}", "#b8320f", f"not yet: {said}"
        folded = [fold(f"hint {i + 1}", rich(hint)) for i, hint in enumerate(self.hints)]
        source = html.escape(textwrap.dedent(source_of(self.solution)))
        folded.append(fold("solution", f"<pre>{source}</pre>"))
        show(
            text=f"exercise {self.name}: {text}",
            markup=box(f"<b>Exercise.</b> {rich(self.task)}<br>{head}{''.join(folded)}", colour),
        )


def source_of(thing: Any) -> str:
    """The source of a function or class; its name if the source is not available."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return str(getattr(thing, "__name__", thing))


_loaded: dict[Path, tuple[int, types.ModuleType]] = {}  # path → (time of change, what it has)


def path(lesson: str) -> Path:
    """The file with the exercises of lesson "NN"."""
    return described() / "exercises" / f"{lesson}.py"


def load(lesson: str) -> dict[str, Exercise]:
    """Name → exercise of lesson "NN", in the order of its file; none if there is no file.

    The file is run again when it changed. Raises `CourseError` that names the file if it fails, or
    has a name twice.
    """
    module = read_again(path(lesson), _loaded, _run)
    return {} if module is None else {each.name: each for each in _exercises(module)}


def hidden(lesson: str, name: str) -> Any:
    """The class or function `name` of lesson "NN"'s file, which no cell of the lesson shows.

    It is for what a reader should find by its effects. Raises `CourseError` if there is none.
    """
    found = getattr(read_again(path(lesson), _loaded, _run), name, None)
    require(callable(found), f"lesson.hidden, {path(lesson)}", name, "a class or function there")
    return found


def _exercises(module: types.ModuleType) -> list[Exercise]:
    return [thing for thing in vars(module).values() if isinstance(thing, Exercise)]


def _run(place: Path) -> types.ModuleType:
    module = types.ModuleType(f"exercises_{place.stem}")
    module.__file__ = str(place)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    try:
        text = place.read_text(encoding="utf-8")
        exec(compile(text, str(place), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise CourseError(
            f"{place}: got {type(error).__name__}: {' '.join(str(error).split())}; allowed is a"
            " Python file that runs"
        ) from error
    names = [each.name for each in _exercises(module)]
    require(len(set(names)) == len(names), f"{place}", names, "exercises of different names")
    return module


class _Untouched(Exception):
    pass
