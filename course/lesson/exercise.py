"""Exercises: a checker compares an attempt with an exact answer and gives a counter-example."""

from __future__ import annotations

import html
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from course.errors import require
from course.lesson.view import box, fold, rich, show

Attempt = Callable[..., Any]
NOT_ATTEMPTED = "not attempted"


@dataclass(frozen=True)
class Exercise:
    """An exercise; `test(attempt)` returns None if it is right, else a counter-example.

    `solution` is a right attempt, and `wrong` has at least two plausible wrong ones. Tests run the
    checker on all of them and on an unchanged stub, which returns NotImplemented. `hints` are
    three, from a nudge to nearly the answer.
    """

    name: str
    task: str
    test: Callable[[Attempt], str | None]
    solution: Attempt
    wrong: Sequence[Attempt]
    hints: Sequence[str]
    passed: Callable[[], None] = field(default=lambda: None, repr=False)

    def __post_init__(self) -> None:
        require(len(self.hints) == 3, f"exercise {self.name}.hints", len(self.hints), "three")
        require(
            len(self.wrong) >= 2,
            f"exercise {self.name}.wrong",
            len(self.wrong),
            "at least two plausible wrong answers",
        )

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
                "<b>Not attempted yet.</b> Replace <code>return NotImplemented</code>.",
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


class _Untouched(Exception):
    pass
