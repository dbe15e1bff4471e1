"""The common style of all figures: one style per rung, intervals, expectations, line labels.

Figures are `matplotlib.figure.Figure` objects drawn by Agg, without pyplot, so no global state
changes. matplotlib is imported when the first figure is made. The colours and line styles of the
rungs come from the registry.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from course.errors import CourseError, require
from course.ladder import RUNGS
from course.registry import DASH as DASH
from course.registry import DASHDOT as DASHDOT
from course.registry import DOT as DOT
from course.registry import SOLID as SOLID
from course.registry import Dashes as Dashes
from course.registry import LineStyle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from course.lab.result import Result

DPI = 144
FONT = 11.0  # points
SMALLEST_FONT = 10.0
INK = "#222222"  # text, axes, expectations
Style = dict[str, Any]

# styles of methods that are not rungs; the styles of rungs are in the registry
OTHER_STYLES: dict[str, LineStyle] = {
    "trpo": LineStyle("#225522", SOLID),
    "natural_gradient": LineStyle("#225522", DASHDOT),
    "exact": LineStyle("#666666", SOLID),
    "epsilon_greedy": LineStyle("#666666", DASH),
    "ucb": LineStyle("#666666", DOT),
    "thompson": LineStyle("#666666", DASHDOT),
}
OWN_COLOURS = (
    "#332288",
    "#117733",
    "#0f7f7f",
    "#7f7f1e",
    "#9a6a00",
    "#c0504d",
    "#882255",
    "#aa4499",
    "#5566aa",
    "#444444",
)
OWN_DASHES: tuple[Dashes, ...] = (
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 2)),
    (0, (2.5, 1.2)),
    (0, (9, 1.5, 2.5, 1.5)),
    (0, (9, 1.5, 1.2, 1.5, 1.2, 1.5)),
)


def style_of(name: str) -> Style:
    """`color` and `linestyle` of a rung, the same in every figure.

    A rung of your own without a style gets one of 50, which depends on its name only.
    """
    given = RUNGS[name].style if name in RUNGS else OTHER_STYLES.get(name)
    if given is not None:
        colour, dashes = given
    else:
        pick = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        colour = OWN_COLOURS[pick % len(OWN_COLOURS)]
        dashes = OWN_DASHES[pick // len(OWN_COLOURS) % len(OWN_DASHES)]
    return {"color": colour, "linestyle": dashes}


def shades(count: int) -> list[str]:
    """`count` colours from dark to light, all readable on white, for an ordered setting.

    Examples are group sizes and learning rates.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    require(count > 0, "count", count, "a number ≥ 1")
    return [to_hex(colormaps["viridis"](place)) for place in np.linspace(0.0, 0.68, count)]


def shaded(values: Sequence[Any]) -> list[tuple[Any, str]]:
    """Each value of an ordered setting with its colour of `shades`."""
    return list(zip(values, shades(len(values)), strict=True))


def new_figure(
    rows: int = 1,
    cols: int = 1,
    *,
    width: float | None = None,
    height: float | None = None,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A styled figure of `rows` × `cols` panels, and its axes in reading order.

    `width` and `height` are in inches. `options` go to `Figure.subplots` (sharex, sharey,
    width_ratios …).
    """
    from matplotlib.figure import Figure

    size = width or (6.4 if cols == 1 else 4.7 * cols), height or (4.0 if rows == 1 else 3.4 * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, cols, **options)).flat)
    for ax in panels:
        _dress(ax)
    return figure, panels


def describe(
    ax: Axes,
    title: str = "",
    x: str = "",
    y: str = "",
    *,
    xlim: tuple[float | None, float | None] | None = None,
    ylim: tuple[float | None, float | None] | None = None,
    ends: bool = False,
    legend: str = "",
    ncols: int = 1,
) -> None:
    """Set the title (on the left), the axis labels with units, and the limits of a panel.

    Call it last for a panel, after its curves and scales. `ends` labels the curves at their right
    ends; `legend` is the place of a legend instead, in `ncols` columns.
    """
    ax.set_title(title, loc="left", fontsize=FONT + 1, fontweight="bold", color=INK)
    ax.set_xlabel(x, fontsize=FONT, color=INK)
    ax.set_ylabel(y, fontsize=FONT, color=INK)
    if xlim is not None:
        ax.set_xlim(*xlim)
    if ylim is not None:
        ax.set_ylim(*ylim)
    if ends:
        label_ends(ax)
    if legend:
        look: Style = {"loc": legend, "ncols": ncols, "handlelength": 1.8, "columnspacing": 1.2}
        ax.legend(frameon=False, fontsize=SMALLEST_FONT, **look)


def band(
    ax: Axes,
    x: ArrayLike,
    mean: ArrayLike,
    half_width: ArrayLike | None = None,
    name: str = "",
    label: str | None = None,
    **line: Any,
) -> Line2D:
    """Draw a curve with an interval: mean ± half_width, all [n]; returns the line.

    `name` decides the style, `label` (default: `name`) is the text, and `line` overrides details of
    the style (color, linestyle, linewidth …).
    """
    x, mean = np.asarray(x, dtype=float), np.asarray(mean, dtype=float)
    require(
        x.shape == mean.shape and x.ndim == 1,
        "band",
        f"x {x.shape} and mean {mean.shape}",
        "two series of one length",
    )
    style: Style = {"linewidth": 2.0, **style_of(name), **line}
    [curve] = ax.plot(x, mean, label=name if label is None else label, **style)
    if half_width is not None:
        half = np.broadcast_to(np.asarray(half_width, dtype=float), mean.shape)
        ax.fill_between(
            x, mean - half, mean + half, color=style["color"], alpha=0.18, linewidth=0, zorder=1.5
        )
    return curve


def curve(
    ax: Axes, x: ArrayLike, result: Result, *keys: str, name: str = "", **line: Any
) -> Line2D:
    """`band` of a series of a result and, if there is one, of its interval, named KEY_half."""
    *above, last = keys
    holder: Any = result.series
    for key in above:
        holder = holder[key]
    half = result.array(*above, f"{last}_half") if f"{last}_half" in holder else None
    return band(ax, x, result.array(*keys), half, name, **line)


def expectation(
    ax: Axes,
    y: ArrayLike | None = None,
    x: ArrayLike | None = None,
    label: str | None = None,
    marker: str | None = None,
) -> Line2D:
    """Draw an expected value, published or in closed form, as a thin dark dashed line.

    `y` alone gives a horizontal line, `x` alone a vertical one, both together a curve. With
    `marker` ("D", "o" …) they are hollow points instead of a line.
    """
    style: Style = {
        "color": INK,
        "linewidth": 1.1,
        "linestyle": (0, (4, 3)),
        "label": label,
        "zorder": 3.0,
    }
    if x is not None and y is not None:
        if marker:
            style |= {
                "linestyle": "none",
                "marker": marker,
                "markersize": 7,
                "markerfacecolor": "none",
                "markeredgewidth": 1.3,
            }
        [line] = ax.plot(
            np.atleast_1d(np.asarray(x, dtype=float)),
            np.atleast_1d(np.asarray(y, dtype=float)),
            **style,
        )
        return line
    if (x is None) == (y is None) or marker:
        raise CourseError(
            "expectation: got neither a level (y), nor a place (x), nor a curve (x and y); a marker"
            " needs both"
        )
    return (
        ax.axhline(float(np.asarray(y)), **style)
        if y is not None
        else ax.axvline(float(np.asarray(x)), **style)
    )


def points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    half_width: ArrayLike | None = None,
    name: str = "",
    label: str | None = None,
    *,
    across: bool = False,
    **style: Any,
) -> None:
    """Draw points with intervals, all [n]: y ± half_width, or x ± half_width with `across`.

    `name` decides the colour, `label` (default: none) is the text of the legend, and `style`
    overrides details (color, marker, markersize …).
    """
    look: Style = {
        "color": style_of(name)["color"],
        "linestyle": "none",
        "marker": "o",
        "capsize": 3,
        "linewidth": 1.3,
        "label": label,
        **style,
    }
    x, y = (np.atleast_1d(np.asarray(values, dtype=float)) for values in (x, y))
    half = None if half_width is None else np.atleast_1d(np.asarray(half_width, dtype=float))
    ax.errorbar(x, y, yerr=None if across else half, xerr=half if across else None, **look)


def rows(
    ax: Axes,
    names: Sequence[str],
    middle: ArrayLike,
    half_width: ArrayLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    aside: float = 0.0,
    **style: Any,
) -> None:
    """Draw one row per name, the first at the top: middle ± half_width [n].

    `labels` (default: the names) are the texts of the rows. A second call with another marker adds
    a second quantity to the same rows; `aside` (in rows) moves it where points would overlap.
    """
    values = np.asarray(middle, dtype=float)
    shown = list(names) if labels is None else list(labels)
    require(
        values.shape == (len(names),) and len(shown) == len(names),
        "rows",
        f"{len(names)} names, {len(shown)} labels and values of shape {values.shape}",
        "one value and one label for each name",
    )
    halves = np.zeros(len(names)) if half_width is None else np.asarray(half_width, dtype=float)
    for row, (name, value, half) in enumerate(zip(names, values, halves, strict=True)):
        interval = None if half_width is None else half
        points(ax, value, row + aside, interval, name, across=True, **style)
    ax.set_yticks(range(len(names)), shown)
    ax.set_ylim(len(names) - 0.4, -0.6)


def dots_on_curve(
    ax: Axes,
    x: ArrayLike,
    measured: ArrayLike,
    fine: ArrayLike,
    formula: ArrayLike,
    colour: str,
    label: str,
) -> Line2D:
    """Draw measured values as dots [n] on the curve of their formula [m].

    Returns the curve, which has the label.
    """
    ax.plot(np.asarray(x), np.asarray(measured), "o", color=colour, markersize=4.5, label="_dots")
    [curve] = ax.plot(
        np.asarray(fine), np.asarray(formula), color=colour, linewidth=1.2, label=label
    )
    return curve


def reference(
    ax: Axes, y: float | None = None, x: float | None = None, label: str = "", **line: Any
) -> None:
    """Draw a thin grey reference line for the curves (such as 0, one half, the start).

    With `y` it is horizontal, with its label above the right end; with `x` it is vertical, with its
    label at the top.
    """
    require((y is None) != (x is None), "reference", f"y={y}, x={x}", "one of the two")
    style: Style = {"color": "#777777", "linewidth": 1.0, "zorder": 1.0, **line}
    words: Style = {"color": readable(style["color"]), "fontsize": 10, "va": "bottom"}
    if y is not None:
        ax.axhline(y, label="_reference", **style)
        ax.text(0.99, y, label, transform=ax.get_yaxis_transform(), ha="right", **words)
    elif x is not None:
        ax.axvline(x, label="_reference", **style)
        at_top = {**words, "va": "top"}
        ax.text(x, 0.98, f" {label}", transform=ax.get_xaxis_transform(), **at_top)


def log_axis(
    ax: Axes,
    which: str,
    places: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    base: float = 10.0,
) -> None:
    """Make the "x" or "y" axis logarithmic.

    `places` are the only ticks, if they are given; `labels` are their texts (default: the numbers).
    """
    from matplotlib.ticker import NullLocator

    require(which in ("x", "y"), "which", which, "x or y")
    scale, ticks, axis = (
        (ax.set_xscale, ax.set_xticks, ax.xaxis)
        if which == "x"
        else (ax.set_yscale, ax.set_yticks, ax.yaxis)
    )
    scale("log", base=base)
    if places is not None:
        numbers = np.asarray(places, dtype=float).tolist()
        ticks(numbers, [f"{number:g}" for number in numbers] if labels is None else labels)
        axis.set_minor_locator(NullLocator())


def powers_of_two(ax: Axes) -> None:
    """Make the x axis logarithmic with base 2; its ticks say 1/4, 1/2, 1, 2 …"""
    log_axis(ax, "x", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")


def note(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    shift: tuple[float, float] = (0.0, 0.0),
    *,
    line: bool = False,
    **style: Any,
) -> None:
    """Write a short text at a place in data coordinates, moved by `shift` points.

    `line` joins the text with the place. `style` overrides details (color, ha, va, xycoords …). The
    colour is darkened until it is readable.
    """
    look: Style = {"color": INK, "fontsize": 10, "annotation_clip": False, **style}
    look["color"] = readable(look["color"])
    if line:
        look["arrowprops"] = {
            "arrowstyle": "-",
            "color": look["color"],
            "linewidth": 0.8,
            "shrinkB": 5,
        }
    ax.annotate(text, place, shift, textcoords="offset points", **look)


def legend_above(panels: Sequence[Axes], columns: int) -> None:
    """Draw one legend above the figure, with each label of the panels once."""
    named: dict[str, Any] = {}
    for ax in panels:
        for mark, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, mark)
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    figure.legend(
        named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False
    )


def label_ends(
    ax: Axes,
    lines: Sequence[Line2D] | None = None,
    labels: Sequence[str] | None = None,
    size: float = 10.0,
) -> None:
    """Write the label of each line next to its right end, in its colour, without overlaps.

    Call it last for a panel, after limits and scales are set. `lines` None takes every labelled
    line of the panel.
    """
    from matplotlib.transforms import ScaledTranslation

    chosen = list(ax.get_lines()) if lines is None else list(lines)
    names = [str(line.get_label()) for line in chosen] if labels is None else list(labels)
    require(
        len(names) == len(chosen), "labels", len(names), f"one for each of the {len(chosen)} lines"
    )
    figure = ax.get_figure(root=True)
    if figure is None:
        raise CourseError(
            "label_ends: got a panel without a figure; allowed is one that `new_figure` made"
        )
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)  # fixes the height of the panel
    box, points = ax.get_window_extent(), 72.0 / figure.dpi
    ends = []
    for line, name in zip(chosen, names, strict=True):
        place = _right_end(line)
        if not name.startswith("_") and place is not None:
            ends.append((line, name, (place - (box.x0, box.y0)) * points))
    if not ends:
        return
    wide, high = box.width * points, box.height * points
    wanted = np.array([end[1] for _, _, end in ends])
    for (line, name, end), level in zip(
        ends, spread(wanted, 1.25 * size, 0.5 * size, high - 0.5 * size), strict=True
    ):
        colour = readable(line.get_color())
        shifted = abs(level - end[1]) > 0.3 * size or end[0] < wide - 2
        arrow = (
            {
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0.0, 0.5),
            }
            if shifted
            else None
        )
        ax.annotate(
            name,
            xy=(end[0] / wide, min(max(end[1] / high, 0.0), 1.0)),
            xycoords="axes fraction",
            xytext=(1.0, level / high),
            textcoords=ax.transAxes
            + ScaledTranslation((12 if shifted else 5) / 72, 0, figure.dpi_scale_trans),
            color=colour,
            fontsize=size,
            va="center",
            arrowprops=arrow,
            annotation_clip=False,
        )


def spread(
    wanted: ArrayLike, gap: float, low: float = -np.inf, high: float = np.inf
) -> NDArray[np.float64]:
    """Places closest to the `wanted` ones [n] that are at least `gap` apart and in [low, high].

    "Closest" means least squares. With z_i = y_i − i·gap this is isotonic regression, solved by
    pooling neighbours. If n labels do not fit, `gap` shrinks.
    """
    wanted = np.asarray(wanted, dtype=float)
    count = len(wanted)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = np.argsort(wanted, kind="stable")
    pools: list[tuple[float, int]] = []  # (mean, size), means increasing
    for target in wanted[order] - gap * np.arange(count):
        mean, size = float(target), 1
        while pools and pools[-1][0] >= mean:
            before, many = pools.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        pools.append((mean, size))
    level = np.clip(
        np.repeat([mean for mean, _ in pools], [size for _, size in pools]),
        low,
        high - gap * (count - 1),
    )
    places = np.empty(count)
    places[order] = level + gap * np.arange(count)
    return places


def readable(colour: Any, contrast: float = 4.5) -> str:
    """The colour, darkened until text has this contrast with white (WCAG 2.1, §1.4.3)."""
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.array(to_rgb(colour))
    while contrast_to_white(rgb) < contrast:
        rgb = rgb * 0.96
    return to_hex(tuple(rgb))


def contrast_to_white(rgb: ArrayLike) -> float:
    """The contrast ratio, from 1 to 21, of an sRGB colour [3] in 0 … 1 with white (WCAG 2.1)."""
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05))


def png(figure: Figure) -> bytes:
    """The figure as a PNG: opaque, at a fixed resolution, with no text below 10 points.

    The file has no date and no program name, so equal figures give equal bytes.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(max(float(text.get_fontsize()), SMALLEST_FONT))
    buffer = io.BytesIO()
    with matplotlib.rc_context(
        {"savefig.bbox": None, "savefig.transparent": False, "text.usetex": False}
    ):
        figure.savefig(
            buffer,
            format="png",
            dpi=DPI,
            facecolor="white",
            edgecolor="white",
            metadata={"Software": None},
        )
    return buffer.getvalue()


def _dress(ax: Axes) -> None:
    """Set the spines, grid and fonts of the common style."""
    ax.set_facecolor("white")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#777777")
    ax.grid(True, color="#e4e4e4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.02)
    ax.tick_params(labelsize=SMALLEST_FONT, color="#777777", labelcolor=INK)


def _right_end(line: Line2D) -> NDArray[np.float64] | None:
    """The rightmost finite point of a line, in pixels [2]; None if it has none."""
    data = np.column_stack(
        [
            np.asarray(line.get_xdata(orig=False), float),
            np.asarray(line.get_ydata(orig=False), float),
        ]
    )
    with np.errstate(all="ignore"):
        pixels = np.asarray(line.get_transform().transform(data))
    finite = pixels[np.isfinite(pixels).all(1)]
    return None if len(finite) == 0 else finite[finite[:, 0].argmax()]
