"""Explore: sliders that redraw a figure.

The draw function is a plain function of the sliders' values, so that tests can call it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from course.errors import require
from course.lesson.paint import Painter, axes_of, longest_label

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

LABEL = "14em"  # the room for a control's label: 26 letters


@dataclass(frozen=True)
class Slider:
    """A slider from `low` to `high` in steps of `step`, starting at `value`.

    It gives whole numbers if all four are whole. With `log`, the number x gives 10^x. Raises
    `CourseError` if a number is out of range.
    """

    low: float
    high: float
    step: float
    value: float
    label: str = ""
    log: bool = False

    def __post_init__(self) -> None:
        require(
            self.low < self.high and self.step > 0,
            "slider",
            (self.low, self.high, self.step),
            "low < high, step > 0",
        )
        require(
            self.low <= self.value <= self.high,
            "slider.value",
            self.value,
            f"from {self.low} to {self.high}",
        )

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Both ends of the slider, as the draw function gets them; tests try them."""
        return (10.0**self.low, 10.0**self.high) if self.log else (self.low, self.high)

    @property
    def start(self) -> Any:
        """The starting value, as the draw function gets it."""
        return 10.0**self.value if self.log else self.value

    def widget(self, name: str) -> Widget:
        """The live slider."""
        import ipywidgets as widgets

        label: dict[str, Any] = {
            "description": self.label or name,
            "style": {"description_width": LABEL},
            "layout": {"width": "36em", "max_width": "98%"},  # the number stays in a narrow window
        }
        if self.log:
            return widgets.FloatLogSlider(
                value=self.start, base=10, min=self.low, max=self.high, step=self.step, **label
            )
        whole = all(
            isinstance(number, int) for number in (self.low, self.high, self.step, self.value)
        )
        kind = widgets.IntSlider if whole else widgets.FloatSlider
        return kind(value=self.value, min=self.low, max=self.high, step=self.step, **label)


@dataclass(frozen=True)
class Choice:
    """A menu of options, starting at `value` (default: the first); options are shown as text."""

    options: Sequence[Any]
    value: Any = None
    label: str = ""

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All options; tests try each of them."""
        return tuple(self.options)

    @property
    def start(self) -> Any:
        """The starting option."""
        return self.options[0] if self.value is None else self.value

    def widget(self, name: str) -> Widget:
        """The live menu."""
        import ipywidgets as widgets

        style = {"description_width": LABEL}
        return widgets.Dropdown(
            options=list(self.options),
            value=self.start,
            description=self.label or name,
            style=style,
        )


Control = Slider | Choice


@dataclass(frozen=True)
class Explore:
    """A draw function with its controls: name of a parameter → control.

    If it is `steady`, its axes always stand where they stand in the first figure, else wherever
    labels of that length let them.
    """

    name: str
    draw: Callable[..., Figure]
    controls: Mapping[str, Control]
    steady: bool = True
    _places: dict[tuple[int, ...], list[Bbox]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _painter: Painter = field(default_factory=Painter, init=False, repr=False, compare=False)

    @property
    def start(self) -> dict[str, Any]:
        """The values of the static picture."""
        return {name: control.start for name, control in self.controls.items()}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every combination of the controls' extremes, for tests."""
        names = list(self.controls)
        for values in itertools.product(*(self.controls[name].extremes for name in names)):
            yield dict(zip(names, values, strict=True))

    def picture(self, **values: Any) -> bytes:
        """The figure at these values (default: the starting values), as a PNG."""
        return self._painter.png(self.figure(**values))

    def figure(self, **values: Any) -> Figure:
        """The figure at these values (default: the starting values).

        Finding the places of the axes takes half of a picture's time. If they are steady it is done
        once, else once for each length of their labels; and what stays where it was is easier to
        compare.
        """
        figure = self.draw(**self.start | values)
        room = () if self.steady else tuple(map(longest_label, axes_of(figure)))
        if room not in self._places:
            if (layout := figure.get_layout_engine()) is not None:
                layout.execute(figure)
            self._places[room] = [axes.get_position() for axes in figure.axes]
        if len(figure.axes) == len(self._places[room]):
            figure.set_layout_engine("none")
            for axes, place in zip(figure.axes, self._places[room], strict=True):
                axes.set_position(place)
        return figure

    def widget(self) -> Widget:
        """The live form: controls above the picture.

        A redraw leaves some thousand objects in cycles, so Python's collector runs every few of
        them, and each time looked through all that torch and the lesson hold, for a third of a
        second. What is there when the widget is made is left out of it (`gc.freeze`).
        """
        import gc

        import ipywidgets as widgets

        live = {name: control.widget(name) for name, control in self.controls.items()}
        shown = widgets.Image(
            value=self.picture(), format="png", layout=widgets.Layout(max_width="100%")
        )
        gc.collect()
        gc.freeze()

        def redraw(_: object) -> None:
            shown.value = self.picture(**{name: each.value for name, each in live.items()})

        for each in live.values():
            each.observe(redraw, "value")
        return widgets.VBox(
            [*live.values(), shown], layout=widgets.Layout(align_items="flex-start")
        )
