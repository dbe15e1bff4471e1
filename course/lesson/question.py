"""Questions that are answered before the solution is shown, with feedback for every choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from course.errors import require
from course.lesson.view import box, fold, rich

if TYPE_CHECKING:
    from ipywidgets import Widget

RIGHT, WRONG = "#00875f", "#b8320f"


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

    def feedback(self, choice: str) -> str:
        """HTML that says whether the choice is right, and why."""
        right = choice == self.answer
        return box(
            ("<b>Right.</b> " if right else "<b>No.</b> ") + rich(self.choices[choice]),
            RIGHT if right else WRONG,
        )

    @property
    def static(self) -> str:
        """HTML for a page without a kernel: each choice unfolds its feedback."""
        folded = "".join(fold(choice, self.feedback(choice)) for choice in self.choices)
        return box(
            f"<b>Predict.</b> {rich(self.text)} <i>Choose, then unfold your choice.</i>{folded}",
            "#0057a3",
        )

    def widget(self, done: Callable[[], None]) -> Widget:
        """The live form: choose, commit, read the feedback. A right answer calls `done`."""
        import ipywidgets as widgets

        head = widgets.HTML(f'<div style="line-height:1.5"><b>Predict.</b> {rich(self.text)}</div>')
        choose = widgets.RadioButtons(
            options=list(self.choices), value=None, layout=widgets.Layout(width="auto")
        )
        commit = widgets.Button(description="Commit", disabled=True, button_style="primary")
        said = widgets.HTML()

        def chosen(_: object) -> None:
            commit.disabled = choose.value is None

        def committed(_: object) -> None:
            if choose.value is None:
                return
            said.value = self.feedback(choose.value)
            if choose.value == self.answer:
                done()

        choose.observe(chosen, "value")
        commit.on_click(committed)
        return widgets.VBox(
            [head, choose, commit, said],
            layout=widgets.Layout(border_left="4px solid #0057a3", padding="2px 14px"),
        )
