"""Questions that are answered before the solution is shown, with feedback for every choice.

They stand in notebooks/src/questions/NN.toml, beside the lessons, so that a lesson's own cells tell
no answer. Each has two faces: a widget, and a static form for a page without a kernel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.errors import CourseError, require
from course.lesson import tables
from course.lesson.sources import linked_html
from course.lesson.syllabus import described, read_again
from course.lesson.view import box, fold, plain

if TYPE_CHECKING:
    from ipywidgets import Widget

RIGHT, WRONG = "#00875f", "#b8320f"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_loaded: dict[Path, tuple[int, dict[str, Question]]] = {}  # path → (time of change, its questions)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `choices` maps each choice to its feedback.

    `answer` is the right choice. Raises `CourseError` if it is not among them, or a feedback is
    empty.
    """

    name: str
    text: str
    choices: Mapping[str, str]
    answer: str

    def __post_init__(self) -> None:
        require(
            len(self.choices) >= 2,
            f"question {self.name}.choices",
            len(self.choices),
            "at least two",
        )
        require(
            self.answer in self.choices,
            f"question {self.name}.answer",
            self.answer,
            f"one of {list(self.choices)}",
        )
        for choice, feedback in self.choices.items():
            require(
                bool(feedback.strip()),
                f"question {self.name}: feedback of {choice!r}",
                feedback,
                "a sentence",
            )

    @property
    def shown(self) -> dict[str, str]:
        """Letter → choice, in the order in which every face shows them.

        The order is fixed, and shuffled by the question's name and the choices' text.
        """

        def place(choice: str) -> bytes:
            return hashlib.sha256(f"{self.name}: {choice}".encode()).digest()

        return {chr(ord("A") + i): each for i, each in enumerate(sorted(self.choices, key=place))}

    def feedback(self, choice: str) -> str:
        """HTML that says whether the choice is right, and why."""
        right = choice == self.answer
        return box(
            ("<b>Right.</b> " if right else "<b>No.</b> ") + linked_html(self.choices[choice]),
            RIGHT if right else WRONG,
        )

    @property
    def static(self) -> str:
        """HTML for a page without a kernel: each choice unfolds its feedback."""
        folded = "".join(
            fold(f"{letter}. {choice}", self.feedback(choice))
            for letter, choice in self.shown.items()
        )
        asked = f"<b>Predict.</b> {linked_html(self.text)}"
        return box(f"{asked} <i>Choose, then unfold your choice.</i>{folded}", "#0057a3")

    def widget(self, answered: Callable[[str], None], before: str | None = None) -> Widget:
        """The live form: choose, commit, read the feedback. `answered(choice)` after each commit.

        `before` is the choice of an earlier day, shown with its feedback; None or a choice that is
        no more among them: none.
        """
        import ipywidgets as widgets

        head = widgets.HTML(
            f'<div style="line-height:1.5"><b>Predict.</b> {linked_html(self.text)}</div>'
        )
        choose = widgets.RadioButtons(
            options=[(f"{letter}. {plain(each)}", each) for letter, each in self.shown.items()],
            value=None,
            layout=widgets.Layout(width="auto"),
        )
        commit = widgets.Button(description="Commit", disabled=True, button_style="primary")
        said = widgets.HTML()

        def chosen(_: object) -> None:
            commit.disabled = choose.value is None

        def committed(_: object) -> None:
            if choose.value is None:
                return
            said.value = self.feedback(choose.value)
            answered(choose.value)

        choose.observe(chosen, "value")
        commit.on_click(committed)
        if before is not None and before in self.choices:
            choose.value = before
            said.value = self.feedback(before)
        return widgets.VBox(
            [head, choose, commit, said],
            layout=widgets.Layout(border_left="4px solid #0057a3", padding="2px 14px"),
        )


def path(lesson: str) -> Path:
    """The file with the questions of lesson "NN"."""
    return described() / "questions" / f"{lesson}.toml"


def load(lesson: str) -> dict[str, Question]:
    """Name → question of lesson "NN", in the order of its file; none if there is no file.

    The file is read again when it changed. Raises `CourseError` that names the file, the question
    and the field if it is wrong.
    """
    return read_again(path(lesson), _loaded, _parsed) or {}


def _parsed(place: Path) -> dict[str, Question]:
    found = tables.read(place, "a table per question")
    return {name: _question(f"{place}: {name}", name, entry) for name, entry in found.items()}


def _question(where: str, name: str, entry: Any) -> Question:
    """A question from its table; `where` begins each error."""
    require(NAME.fullmatch(name) is not None, where, name, "a name of a-z, 0-9 and single hyphens")
    tables.check(where, entry, {"text": str, "choices": list})
    choices: dict[str, str] = {}
    right = []
    for number, each in enumerate(entry["choices"], 1):
        here = f"{where}.choices, number {number}"
        tables.check(here, each, {"text": str, "feedback": str}, {"right": bool})
        require(each["text"] not in choices, f"{here}.text", each["text"], "a choice of its own")
        choices[each["text"]] = each["feedback"]
        if each.get("right", False):
            right.append(each["text"])
    require(len(right) == 1, f"{where}.choices", f"{len(right)} with right = true", "one")
    try:
        return Question(name, entry["text"], choices, right[0])
    except CourseError as error:
        raise CourseError(f"{where}: {error}") from None
