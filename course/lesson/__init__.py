"""The tools of lessons: source code, questions, explorable figures, exercises and progress.

A lesson is notebooks/src/NN_name.py in percent format; `python -m course notebooks` builds the
notebook from it. Its first cell calls `course.setup("NN")`, which returns the `Lesson` that all
later cells use. Nothing here depends on bandits or transformers.
"""

from __future__ import annotations

import html
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from course.errors import require
from course.lesson import exercise, progress, question
from course.lesson.exercise import Exercise
from course.lesson.explore import Choice, Control, Explore, Slider
from course.lesson.question import Question
from course.lesson.syllabus import SYLLABUS, LessonInfo, index, info
from course.lesson.view import FACE, caption, image, in_notebook, show
from course.train.noise import Noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Lesson:
    """One lesson; it keeps its questions, explores and exercises by name, so tests find them."""

    def __init__(self, about: LessonInfo, seed: int = 0) -> None:
        self.about, self.seed = about, seed
        self.questions: dict[str, Question] = {}
        self.explores: dict[str, Explore] = {}
        self.exercises: dict[str, Exercise] = {}

    def noise(
        self,
        *runs: int,
        dtype: torch.dtype = torch.float32,
        use: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Noise:
        """Random streams for runs [...]; each `use` gives different numbers.

        `numbers` says which stream each run gets (default 0, 1, 2 …).
        """
        return Noise(runs, self.seed + use, numbers=numbers, dtype=dtype)

    def code(self, *things: Any) -> None:
        """Show the source of functions, classes or methods, under their file and name."""
        for thing in things:
            source = textwrap.dedent(inspect.getsource(thing))
            path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").resolve()
            root = Path(__file__).resolve().parents[2]
            place = (
                f"{path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name} ·"
                f" {thing.__qualname__}"
            )
            show(
                text=f"{place}\n\n{source}",
                markup=f"<code><b>{html.escape(place)}</b></code>{_highlighted(source)}",
            )

    def picture(self, figure: Figure, text: str) -> None:
        """Show a figure with its description below, which is its alternative text as well."""
        show(text=text, picture=image(figure))
        show(text="", markup=caption(text))

    def ask(self, name: str) -> None:
        """Ask question `name` of notebooks/src/questions/NN.toml, before the solution is shown."""
        self._new(name, self.questions)
        number = self.about.number
        known = question.load(number)
        require(name in known, f"lesson.ask, {question.path(number)}", name, _one_of(known))
        asked = self.questions[name] = known[name]

        def answered(choice: str) -> None:
            progress.record_answer(number, name, choice)
            if choice == asked.answer:
                progress.record(number, "questions", name)

        live = asked.widget(answered, progress.answers(number).get(name)) if in_notebook() else None
        show(text=f"question: {asked.text}", markup=asked.static + FACE, widget=live)

    def explore(
        self,
        name: str,
        draw: Callable[..., Figure],
        text: str,
        *,
        steady: bool = True,
        **controls: Control,
    ) -> None:
        """Show a figure with sliders: `draw(**values)` → Figure; `text` says what to look for.

        `steady` False lets the axes move with the length of their labels, which takes longer.
        """
        self._new(name, self.explores)
        unknown = set(controls) - set(inspect.signature(draw).parameters)
        require(not unknown, f"explore {name}", sorted(unknown), "parameters of its draw function")
        each = self.explores[name] = Explore(name, draw, controls, steady)
        if in_notebook():
            show(text=f"explore: {text}", picture=each.picture(), widget=each.widget())
            show(text="", markup=caption(f"**What to look for.** {text}") + FACE)

    def exercise(self, name: str, **data: Any) -> Exercise:
        """Exercise `name` of notebooks/src/exercises/NN.py; its test gets the lesson's `data`.

        The cell of the stub calls `.check(attempt)` of the returned object.
        """
        self._new(name, self.exercises)
        number = self.about.number
        known = exercise.load(number)
        require(name in known, f"lesson.exercise, {exercise.path(number)}", name, _one_of(known))

        def passed() -> None:
            progress.record(number, "exercises", name)

        before = name in progress.read().get(number, {}).get("exercises", ())
        made = self.exercises[name] = known[name].given(passed, before, **data)
        return made

    def hidden(self, name: str) -> Any:
        """The class or function `name` of notebooks/src/exercises/NN.py: a fault to be found.

        After the question `lesson.code` shows its source.
        """
        return exercise.hidden(self.about.number, name)

    def map(self) -> None:
        """Show the ladder and the lessons, with links."""
        from course.lesson.map import ladder_map

        text, markup = ladder_map()
        show(text=text, markup=markup)

    def progress(self) -> None:
        """Show what you have answered and passed so far, lesson by lesson."""
        from course.lesson.map import progress_table

        text, markup = progress_table()
        show(text=text, markup=markup)

    def _new(self, name: str, among: Mapping[str, object]) -> None:
        if not in_notebook():  # in a notebook a cell may be run again
            require(
                name not in among,
                f"lesson {self.about.number}",
                name,
                "a name that is not used twice",
            )


def setup(number: str, seed: int = 0) -> Lesson:
    """Begin lesson `number` and return its `Lesson`.

    It sets one CPU thread, so that your numbers equal the saved ones. Raises `CourseError` for an
    unknown lesson.
    """
    torch.set_num_threads(1)
    return Lesson(info(number), seed)


def _one_of(known: Mapping[str, object]) -> str:
    return f"one of {', '.join(known)}" if known else "none: there is no such file"


def _highlighted(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    # a light background of its own, so that the colours are readable on dark pages too
    ground = "background:#f3f3f3;color:#222"
    formatter = HtmlFormatter(
        noclasses=True,
        style="xcode",  # every colour of it stands out by 4.5 : 1
        cssstyles=f"{ground};padding:.6em;border-radius:4px;font-size:90%",
        prestyles=f"{ground};margin:0",
    )
    return str(highlight(source, PythonLexer(), formatter))


__all__ = ["SYLLABUS", "Choice", "Lesson", "Slider", "index", "info", "setup"]
