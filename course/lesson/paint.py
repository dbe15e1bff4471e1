"""Pictures of an explore, painted one after the other: what stayed as it was is not drawn again.

Ticks, their labels and the grid take two thirds of a picture's time, and most stay while a slider
moves. So each axis is drawn once, on transparent ground, and laid into the pictures that follow.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from course.lesson.view import PIXELS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

KEPT = 24  # drawn axes of one explore, half a megabyte each


class Drawn(NamedTuple):
    """An axis as `pixels` [height, width, RGBA], where they lie, and what the axis covers."""

    pixels: NDArray[np.uint8]
    left: int
    bottom: int
    covers: Bbox | None


class Painter:
    """Paints the pictures of one explore, which are all of one size."""

    def __init__(self) -> None:
        self._sheets: tuple[Any, Any] | None = None  # a picture; an axis alone
        self._drawn: dict[Hashable, Drawn] = {}  # the one that was used last is the last

    def png(self, figure: Figure) -> bytes:
        """The figure as an opaque PNG: the picture that `view.image` makes, to the eye."""
        from PIL import Image

        figure.set_dpi(PIXELS_PER_INCH)
        figure.set_facecolor("white")
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")
        sheet, beside = self._of_size(*(int(side) for side in figure.bbox.size))
        for axes in figure.axes:
            axes.apply_aspect()
        for axis in axes_of(figure):
            self._lay(axis, beside)
        sheet.clear()
        figure.draw(sheet)
        size = int(sheet.width), int(sheet.height)
        picture = Image.frombuffer("RGBA", size, sheet.buffer_rgba(), "raw", "RGBA", 0, 1)
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def _of_size(self, width: int, height: int) -> tuple[Any, Any]:
        """Two sheets; as long as the size stays they do, and remember how wide each text is."""
        from matplotlib.backends.backend_agg import RendererAgg

        made: Any = RendererAgg  # Matplotlib gives no types for it
        now = self._sheets
        if now is None or (now[0].width, now[0].height) != (width, height):
            self._drawn.clear()
            now = made(width, height, PIXELS_PER_INCH), made(width, height, PIXELS_PER_INCH)
            self._sheets = now
        return now

    def _lay(self, axis: Axis, beside: Any) -> None:
        """Let the axis, when it is drawn, be the one that was drawn before, if they look alike."""
        key = look(axis)
        if (drawn := self._drawn.pop(key, None)) is None:
            beside.clear()
            axis.draw(beside)
            drawn = _cut(np.asarray(beside.buffer_rgba()), axis.get_tightbbox(beside))
        if axis.offsetText.get_text():
            return  # it is the axes' own, and their title may make room for it
        self._drawn[key] = drawn
        if len(self._drawn) > KEPT:
            del self._drawn[next(iter(self._drawn))]
        vars(axis).update(draw=partial(_laid, drawn), get_tightbbox=lambda *_, **__: drawn.covers)


def axes_of(figure: Figure) -> Iterator[Axis]:
    """Every x and y axis that is drawn."""
    for axes in figure.axes:
        if axes.axison:
            yield from (each for each in (axes.xaxis, axes.yaxis) if each.get_visible())


def longest_label(axis: Axis) -> int:
    """The letters of the longest label of those ticks that are not outside of it."""
    low, high = sorted(axis.get_view_interval())
    inside = (len(text) for place, text in zip(*labels(axis), strict=True) if low <= place <= high)
    return max(inside, default=0)


def labels(axis: Axis) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The places and the texts of an axis' ticks, some of which may lie outside of it."""
    places = axis.get_majorticklocs()
    return tuple(places), tuple(axis.get_major_formatter().format_ticks(list(places)))


def look(axis: Axis) -> Hashable:
    """All that decides how an axis of a lesson's figure looks; equal ones look alike."""
    return (
        axis.get_label_position(),
        tuple(axis.axes.bbox.bounds),
        tuple(axis.get_view_interval()),
        axis.get_scale(),
        labels(axis),
        tuple(axis.get_minorticklocs()),
        axis.get_label_text(),
        axis.label.get_color(),
        repr((axis.get_tick_params("major"), axis.get_tick_params("minor"))),
    )


def _cut(sheet: NDArray[np.uint8], covers: Bbox | None) -> Drawn:
    """What is on a sheet [height, width, RGBA], without the empty rows and columns around it."""
    rows, columns = (np.flatnonzero(sheet[..., 3].any(side)) for side in (1, 0))
    if not len(rows):
        return Drawn(sheet[:0].copy(), 0, 0, covers)
    pixels = sheet[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return Drawn(pixels, int(columns[0]), len(sheet) - int(rows[-1]) - 1, covers)


def _laid(drawn: Drawn, renderer: RendererBase, *_: Any) -> None:
    if drawn.pixels.size:
        renderer.draw_image(renderer.new_gc(), drawn.left, drawn.bottom, drawn.pixels[::-1])
