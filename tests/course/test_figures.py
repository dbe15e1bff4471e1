"""The house style: rungs can be told apart, labels do not overlap, and the same data give the same
bytes.
"""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from course.errors import CourseError
from course.lab import figures
from course.ladder import RUNGS, select

STYLES = [rung.style for rung in RUNGS.values() if rung.style is not None]
STYLES += figures.OTHER_STYLES.values()

# Machado, Oliveira & Fernandes 2009, severity 1: what a dichromat sees of linear RGB
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopes": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopes": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopes": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(colour: str, eyes: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of what those eyes see of a colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(eyes @ linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def drawn(values: list[float] | None = None) -> Figure:
    figure, [ax] = figures.new_figure()
    for name, value in zip(("grpo", "clip", "mine"), values or [0.2, 0.5, 0.9], strict=True):
        figures.band(ax, [0, 1, 2], [0, value, value], 0.05, name)
    figures.expectation(ax, y=0.9, label="best arm")
    figures.describe(ax, "A title", "updates", "reward")
    figures.label_ends(ax)
    return figure


def test_no_two_rungs_share_colour_and_line_style() -> None:
    styles = [tuple(figures.style_of(name).values()) for name in RUNGS]
    assert len(set(styles)) == len(styles)


def test_the_eight_rungs_stay_apart_for_every_kind_of_colour_vision() -> None:
    colours = [figures.style_of(rung.name)["color"] for rung in select()]
    assert len(colours) == 8
    for eyes in SEEN_BY.values():
        nearest = min(
            np.linalg.norm(lab(a, eyes) - lab(b, eyes))
            for a, b in itertools.combinations(colours, 2)
        )
        assert nearest > 15  # ΔE₇₆; about 2.3 is just noticeable


def test_every_line_keeps_a_contrast_of_three_to_the_page() -> None:
    colours = {colour for colour, _ in STYLES} | set(figures.OWN_COLOURS) | set(figures.shades(7))
    assert min(figures.contrast_to_white(to_rgb(colour)) for colour in colours) >= 2.3
    assert min(figures.contrast_to_white(to_rgb(colour)) for colour, _ in STYLES) >= 3


def test_contrast_and_readable_text_follow_wcag() -> None:
    assert figures.contrast_to_white((1, 1, 1)) == pytest.approx(1)
    assert figures.contrast_to_white((0, 0, 0)) == pytest.approx(21)
    assert figures.contrast_to_white(to_rgb("#767676")) == pytest.approx(
        4.54, abs=0.005
    )  # WCAG's own example
    assert figures.readable("#0057a3") == "#0057a3"
    assert figures.contrast_to_white(to_rgb(figures.readable("#b8860b"))) >= 4.5


def test_an_own_rung_has_one_style_in_every_process() -> None:
    code = "from course.lab.figures import style_of; print(style_of('my_estimator'))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    ).stdout
    assert elsewhere.strip() == str(figures.style_of("my_estimator"))
    known = {tuple(style) for style in STYLES}
    for name in map("own_{}".format, range(200)):
        assert tuple(figures.style_of(name).values()) not in known


@given(st.lists(st.floats(-100, 400), min_size=1, max_size=12))
def test_spread_keeps_the_gap_the_bounds_and_the_order(wanted: list[float]) -> None:
    places = figures.spread(wanted, 12.0, 0.0, 300.0)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(places[order]) >= 12.0 - 1e-9)
    assert places.min() >= -1e-9
    assert places.max() <= 300 + 1e-9


def test_spread_is_the_least_squares_solution() -> None:
    assert figures.spread([0, 50, 100], 12) == pytest.approx(
        [0, 50, 100]
    )  # nothing overlaps: nothing moves
    assert figures.spread([50, 50], 12) == pytest.approx([44, 56])
    assert figures.spread([10, 9, 50], 12) == pytest.approx([15.5, 3.5, 50])
    assert figures.spread([1, 2], 12, low=0) == pytest.approx(
        [0, 12]
    )  # −4.5 and 7.5 without the bound
    assert figures.spread([5, 5, 5], 12, 0, 12) == pytest.approx(
        [0, 6, 12]
    )  # what does not fit comes nearer


@pytest.mark.parametrize("values", [[0.2, 0.5, 0.9], [0.5, 0.5, 0.5], [0.5, 0.501, 0.499]])
def test_labels_at_line_ends_do_not_overlap(values: list[float]) -> None:
    figure = drawn(values)
    figure.draw_without_rendering()
    labels = [text for text in figure.findobj(Annotation) if text.get_text()]
    assert {text.get_text() for text in labels} == {"grpo", "clip", "mine", "best arm"}
    boxes = [Text.get_window_extent(text) for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_labels_ignore_lines_without_a_finite_point() -> None:
    _, [ax] = figures.new_figure()
    figures.band(ax, [0, 1], [np.nan, np.nan], None, "grpo")
    figures.band(ax, [0, 1], [1.0, np.nan], None, "clip")
    figures.label_ends(ax)
    assert [text.get_text() for text in ax.texts] == ["clip"]


def test_a_band_is_the_mean_plus_and_minus_its_half_width() -> None:
    _, [ax] = figures.new_figure()
    line = figures.band(ax, [0, 1], [2.0, 3.0], [0.5, 0.25], "grpo", label="GRPO")
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert set(heights) == {1.5, 2.5, 2.75, 3.25}
    assert line.get_color() == figures.style_of("grpo")["color"]
    assert line.get_label() == "GRPO"
    with pytest.raises(CourseError, match="one length"):
        figures.band(ax, [0, 1, 2], [2.0, 3.0])


def test_an_expectation_needs_a_level_a_place_or_a_curve() -> None:
    _, [ax] = figures.new_figure()
    assert list(figures.expectation(ax, y=0.5).get_ydata()) == [0.5, 0.5]
    assert list(figures.expectation(ax, x=2).get_xdata()) == [2, 2]
    assert figures.expectation(ax, x=[1, 2], y=[3, 4], marker="D").get_linestyle() == "None"
    with pytest.raises(CourseError, match="expectation"):
        figures.expectation(ax)
    with pytest.raises(CourseError, match="marker"):
        figures.expectation(ax, y=0.5, marker="D")


def test_the_same_figure_gives_the_same_opaque_bytes() -> None:
    first, second = figures.png(drawn()), figures.png(drawn())
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    assert b"tIME" not in first
    pixels = imread(io.BytesIO(first))
    assert pixels.shape[:2] == (4.0 * figures.DPI, int(6.4 * figures.DPI))
    assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
    assert np.all(pixels[0, 0, :3] == 1)


def test_no_text_is_smaller_than_ten_points() -> None:
    figure, [ax] = figures.new_figure()
    ax.text(0.5, 0.5, "tiny", fontsize=5, transform=ax.transAxes)
    figures.png(figure)
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 10


def test_nothing_global_is_touched() -> None:
    code = """import matplotlib
before = matplotlib.rcParams.copy()
import sys
from course.lab import figures
figure, panels = figures.new_figure(1, 2, sharey=True)
figures.band(panels[0], [0, 1], [0, 1], 0.1, "grpo")
figures.label_ends(panels[0])
figures.png(figure)
# asking for the backend imports pyplot
same = all(before[key] == matplotlib.rcParams[key] for key in before if key != "backend")
print("matplotlib.pyplot" in sys.modules, same, len(panels))"""
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "True", "2"]


def test_rows_stand_in_order_with_their_intervals_and_colours():
    _, [ax] = figures.new_figure()
    figures.rows(ax, ["clip", "grpo", "mine"], [1.0, 2.0, 4.0], [0.5, 0.25, 0.0])
    figures.rows(ax, ["clip", "grpo", "mine"], [3.0, 3.5, 5.0], aside=0.2, marker="s")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["clip", "grpo", "mine"]
    low, high = ax.get_ylim()
    assert low > 2 > 0 > high  # the first row is the highest
    bars = [container for container in ax.containers if container.has_xerr]
    assert len(bars) == 3
    for row, (bar, middle, half) in enumerate(zip(bars, (1, 2, 4), (0.5, 0.25, 0), strict=True)):
        [segment] = bar.lines[2][0].get_segments()
        np.testing.assert_allclose(segment, [[middle - half, row], [middle + half, row]])
        name = ("clip", "grpo", "mine")[row]
        assert bar.lines[0].get_color() == figures.style_of(name)["color"]
    squares = [line for line in ax.get_lines() if line.get_marker() == "s"]
    assert [tuple(line.get_xydata()[0]) for line in squares] == [(3, 0.2), (3.5, 1.2), (5, 2.2)]
    with pytest.raises(CourseError, match="one value and one label for each name"):
        figures.rows(ax, ["clip", "grpo"], [1.0])


def test_points_have_their_interval_along_the_axis_asked_for():
    _, [ax] = figures.new_figure()
    figures.points(ax, [1, 2], [3, 5], [0.5, 1.0])
    figures.points(ax, 4, 6, 2, across=True)
    upright, flat = ax.containers
    np.testing.assert_allclose(upright.lines[2][0].get_segments()[1], [[2, 4], [2, 6]])
    np.testing.assert_allclose(flat.lines[2][0].get_segments()[0], [[2, 6], [6, 6]])


def test_a_log_axis_has_the_ticks_it_was_given_and_no_others():
    figure, [ax] = figures.new_figure()
    ax.plot([1, 100], [1, 100])
    figures.log_axis(ax, "x", [1, 2.5, 40])
    figures.log_axis(ax, "y", [1, 64], ["one", "many"], base=2)
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2.5", "40"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "many"]
    assert len(ax.get_xticks(minor=True)) == len(ax.get_yticks(minor=True)) == 0
    with pytest.raises(CourseError, match="which"):
        figures.log_axis(ax, "z")


def test_references_and_dots_are_no_labelled_curves():
    _, [ax] = figures.new_figure()
    figures.reference(ax, y=0.5, label="a coin")
    figures.reference(ax, x=2.0, label="the start")
    curve = figures.dots_on_curve(ax, [1, 2], [3, 4], [1, 1.5, 2], [3, 3.4, 4], "#0057a3", "law")
    named = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    assert named == [curve]
    assert {text.get_text().strip() for text in ax.texts} == {"a coin", "the start"}
    with pytest.raises(CourseError, match="one of the two"):
        figures.reference(ax)


def test_a_note_is_moved_by_points_and_joined_by_a_line_if_asked():
    _, [ax] = figures.new_figure()
    figures.note(ax, "here", (1.0, 2.0), (10, -5), line=True)
    [written] = [text for text in ax.texts if isinstance(text, Annotation)]
    assert (written.xy, written.get_position()) == ((1.0, 2.0), (10, -5))
    assert written.arrow_patch is not None


def test_a_legend_above_has_each_label_of_the_panels_once() -> None:
    figure, panels = figures.new_figure(1, 2)
    for ax, names in zip(panels, (("a", "b", "_hidden"), ("b", "c")), strict=True):
        for name in names:
            ax.plot([0, 1], [0, 1], label=name)
    figures.legend_above(panels, columns=3)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
