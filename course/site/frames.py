"""The frames of explores: each figure drawn ahead over a grid of its sliders.

A page without a kernel shows them. Only those statements of a lesson's source run that its explores
need, so that drawing does not take the time of the whole lesson.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from course.lab.side_by_side import side_by_side
from course.lab.terminal import QUIET, Progress
from course.lesson import Lesson, build, info
from course.lesson.explore import Choice, Control, Explore

FEWEST = 3  # values of a slider: both ends and the start
# Explore → a control that stays at its start, since all combinations would be hundreds of pictures
STILL = {"simplex": "left", "update": "asked"}


@dataclass(frozen=True)
class Stops:
    """The values at which one control was drawn: `values[start]` is where it starts."""

    name: str
    label: str
    kind: str  # "slider", "choice" or "still"
    values: tuple[Any, ...]
    start: int

    @property
    def shown(self) -> tuple[str, ...]:
        """The values as text, at most three significant digits."""
        return tuple(
            f"{value:.3g}" if isinstance(value, float) else str(value) for value in self.values
        )


@dataclass(frozen=True)
class Frames:
    """An explore as pictures: the stops of its controls, and a picture for every combination.

    The last control varies fastest.
    """

    name: str
    stops: tuple[Stops, ...]
    pictures: tuple[bytes, ...]  # WebP

    @property
    def start(self) -> int:
        """The place of the picture at the starting values."""
        place = 0
        for each in self.stops:
            place = place * len(each.values) + each.start
        return place


def stops(name: str, control: Control, count: int) -> Stops:
    """At most `count` values of a control; both ends and the start are always among them.

    A choice keeps all its options. With a `count` of 1 either stays at its start.
    """
    label = control.label or name
    if count == 1:
        return Stops(name, label, "still", (control.start,), 0)
    if isinstance(control, Choice):
        options = tuple(control.options)
        return Stops(name, label, "choice", options, options.index(control.start))
    steps = round((control.high - control.low) / control.step)
    start = round((control.value - control.low) / control.step)
    chosen = {round(i * steps / (count - 1)) for i in range(count)} if count <= steps else None
    places = sorted(chosen or range(steps + 1))
    if start not in places:  # it takes the place of the nearest that is no end
        inner = places[1:-1]
        nearest = min(inner, key=lambda place: abs(place - start))
        places[places.index(nearest)] = start
        places.sort()
    values = tuple(_value(control, place) for place in places)
    return Stops(name, label, "slider", values, places.index(start))


def _value(slider: Any, place: int) -> Any:
    value = slider.low + place * slider.step
    if not isinstance(value, int):
        value = round(value, 10)  # 0.1 · 3 is 0.3 on a slider
    return 10.0**value if slider.log else value


def grid(controls: Mapping[str, Control], most: int, still: str | None = None) -> tuple[Stops, ...]:
    """The stops of all controls: the slider with the most loses one until `most` frames do.

    The control `still` stays at its start. A slider keeps at least three, a choice all its options;
    so there may be more than `most`.
    """
    counts = {
        name: len(control.options)
        if isinstance(control, Choice)
        else round((control.high - control.low) / control.step) + 1
        for name, control in controls.items()
    }
    if still is not None:
        counts[still] = 1
    sliders = [name for name, control in controls.items() if not isinstance(control, Choice)]
    while math.prod(counts.values()) > most:
        longest = max(sliders, key=lambda name: counts[name], default=None)
        if longest is None or counts[longest] <= FEWEST:
            break
        counts[longest] -= 1
    return tuple(stops(name, control, counts[name]) for name, control in controls.items())


def draw(explore: Explore, most: int) -> Frames:
    """Draw an explore over its grid (see `grid` and `STILL`)."""
    each = grid(explore.controls, most, STILL.get(explore.name))
    names = [stop.name for stop in each]
    pictures = tuple(
        webp(explore.picture(**dict(zip(names, values, strict=True))))
        for values in itertools.product(*(stop.values for stop in each))
    )
    return Frames(explore.name, each, pictures)


def webp(png: bytes) -> bytes:
    """The same picture, pixel by pixel, as a WebP, which is about half as large."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, "webp", lossless=True, quality=30, method=2)
    return buffer.getvalue()


def of_lesson(number: str, most: int) -> list[Frames]:
    """All explores of a lesson, drawn; by the whole lesson where some of its lines do not do."""
    try:
        return [draw(explore, most) for explore in explores(number).explores.values()]
    except Exception:  # a statement changed something in a way that its names do not tell
        whole = build.collect(info(number))
        return [draw(explore, most) for explore in whole.explores.values()]


def explores(number: str) -> Lesson:
    """The lesson with its explores alone: the rest of its source does not run."""
    lesson = info(number)
    return build.run(lesson, only_explores(build.source(lesson).read_text(encoding="utf-8")))


# ---------------------------------------------------------------- the statements that are needed


def only_explores(text: str) -> str:
    """The program without what neither `setup` nor a call of `lesson.explore` needs.

    It is read backwards: a statement is needed if it binds, or may change, a name that is needed
    after it. A function's names are needed where the function is. A call may change what its names
    were made from, as a learner changes its model. What is not needed becomes empty lines, so that
    line numbers stay.
    """
    statements = ast.parse(text).body
    inside: dict[str, set[str]] = {}  # a function or class → the names in it
    made_of: dict[str, set[str]] = {}  # a variable → the variables that its value was made from
    for each in statements:
        if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
            inside.setdefault(each.name, set()).update(_used(each))
        for name in _bound_anew(each):
            made_of.setdefault(name, set()).update(_used(each))
    kept: set[int] = set()
    needed: set[str] = set()
    for place in reversed(range(len(statements))):
        each = statements[place]
        changed = set(_changed(each))
        if isinstance(each, ast.Expr):
            changed |= _closed(set(_used(each)), made_of) & set(made_of)
        if not (_explores(each) or _sets_up(each) or (needed & changed - {"lesson"})):
            continue
        if not _explores(each) and _shows(each):
            continue
        kept.add(place)
        needed -= _bound_anew(each)
        needed |= _closed(set(_used(each)), inside)
    lines = text.splitlines()
    stay = {n for i in kept for n in range(_first(statements[i]), _last(statements[i]) + 1)}
    return "\n".join(line if n in stay else "" for n, line in enumerate(lines, 1)) + "\n"


def _explores(statement: ast.stmt) -> bool:
    return _calls(statement, "lesson.explore")


def _sets_up(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and _is_call(statement.value, "course.setup")


def _shows(statement: ast.stmt) -> bool:
    """Whether a statement is a call of the lesson's other tools, or prints."""
    return isinstance(statement, ast.Expr) and (
        not isinstance(statement.value, ast.Call)
        or ast.unparse(statement.value.func).startswith(("lesson.", "print"))
    )


def _calls(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.Expr) and _is_call(statement.value, name)


def _is_call(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def _used(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id


def _changed(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement binds, and those of objects that it may change in place."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((each.asname or each.name).partition(".")[0] for each in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            yield from _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _root(node.value.func)


def _closed(names: set[str], more: Mapping[str, set[str]]) -> set[str]:
    """The names, and all that they lead to."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= more.get(name, set()) - found
    return found


def _bound_anew(statement: ast.stmt) -> set[str]:
    """The names to which a statement gives a value of its own, whatever they were before."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {
        node.id
        for target in targets
        for node in ([target] if isinstance(target, ast.Name) else getattr(target, "elts", ()))
        if isinstance(node, ast.Name)
    }


def _root(node: ast.expr) -> Iterator[str]:
    """The name at the beginning of `a.b[c].d`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _first(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([int(statement.lineno), *(int(each.lineno) for each in decorators)])


def _last(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


# ---------------------------------------------------------------- all lessons


def draw_all(
    numbers: Sequence[str], most: int, progress: Progress = QUIET
) -> dict[str, list[Frames]]:
    """Lesson → its explores, drawn, lessons side by side."""
    with side_by_side(None, progress) as spread:
        drawn = spread(of_lesson, [(number, most) for number in numbers], "pictures of sliders")
    return dict(zip(numbers, drawn, strict=True))
