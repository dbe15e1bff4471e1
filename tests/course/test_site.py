"""The site: grids of frames, what an explore needs, links, pages; and its folder, whole or not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from course import cli
from course.errors import CourseError
from course.lesson import Choice, Slider, info
from course.site import build, frames, lessons, pages
from course.site.links import Links

ROOT = Path(__file__).parents[2]
INSTALLED = all(importlib.util.find_spec(name) is not None for name in build.NEEDED)
needs_sphinx = pytest.mark.skipif(
    not INSTALLED, reason='no Sphinx: pip install -c constraints.txt -e ".[site]"'
)


# ---------------------------------------------------------------- frames


def test_a_short_slider_keeps_all_its_values() -> None:
    stops = frames.stops("share", Slider(0.0, 0.3, 0.1, 0.2, "π₁"), 4)
    assert stops.values == (0.0, 0.1, 0.2, 0.3)
    assert (stops.label, stops.start) == ("π₁", 2)


def test_fewer_values_of_a_slider_have_both_ends_and_the_start() -> None:
    stops = frames.stops("group", Slider(2, 64, 1, 8), 4)
    assert stops.values[0] == 2
    assert stops.values[-1] == 64
    assert stops.values[stops.start] == 8
    assert len(stops.values) == 4
    assert list(stops.values) == sorted(stops.values)
    assert all(isinstance(value, int) for value in stops.values)


def test_a_logarithmic_slider_gives_powers_of_ten() -> None:
    stops = frames.stops("rate", Slider(-2.0, 1.0, 1.0, -1.0, log=True), 4)
    assert stops.values == pytest.approx((0.01, 0.1, 1.0, 10.0))
    assert stops.shown == ("0.01", "0.1", "1", "10")


def test_the_longest_slider_loses_values_until_the_frames_fit_and_a_choice_none() -> None:
    controls: dict[str, Any] = {
        "way": Choice(("min", "max"), "max"),
        "low": Slider(0.0, 1.0, 0.1, 0.5),
        "high": Slider(0, 3, 1, 0),
    }
    way, low, high = frames.grid(controls, 24)
    assert (way.values, way.start) == (("min", "max"), 1)
    assert len(low.values) * len(high.values) <= 12
    assert (low.values[0], low.values[-1]) == (0.0, 1.0)


def test_the_first_picture_shown_is_that_of_the_starting_values() -> None:
    stops = (
        frames.Stops("a", "a", "choice", ("x", "y"), 1),
        frames.Stops("b", "b", "slider", (1, 2, 3), 2),
    )
    order = [(a, b) for a in stops[0].values for b in stops[1].values]
    assert order[frames.Frames("e", stops, ()).start] == ("y", 3)


def test_a_webp_has_the_pixels_of_the_png() -> None:
    import io

    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    with Image.open(io.BytesIO(frames.webp(png.getvalue()))) as again:
        assert np.array_equal(np.asarray(again.convert("RGB")), pixels)


SOURCE = """\
import course
import slow
lesson = course.setup("01")
unused = slow.result()
numbers = [1]
numbers.append(2)
print(slow.result())
def draw(x):
    return plot(x, later, numbers)
lesson.ask("q", "?", {"a": slow.result()}, "a")
def plot(x, *rest):
    return x
later = 3
for i in range(2):
    numbers[i] = 0
lesson.explore("e", draw, "look")
"""


def test_an_explore_keeps_what_it_needs_in_its_lines_and_nothing_else() -> None:
    kept = frames.only_explores(SOURCE).splitlines()
    lines = SOURCE.splitlines()
    dropped = {2, 4, 7, 10}
    assert kept == ["" if n in dropped else line for n, line in enumerate(lines, 1)]


# ---------------------------------------------------------------- links and pages


def links(*names: str) -> Links:
    return Links(ROOT, frozenset(names))


def test_a_link_leads_to_a_page_else_to_a_listing() -> None:
    some = links("notebooks/CLAIMS.md", "notebooks/03_importance_ratio.ipynb")
    page = "notebooks/EQUATIONS.md"
    assert some.address("03_importance_ratio.ipynb", page) == "03_importance_ratio.html"
    assert some.address("CLAIMS.md#top", page) == "CLAIMS.html#top"
    assert some.address("../course/ladder.py", page) == "../files/course/ladder.py.html"
    assert some.address("../tinylm/fast", page) == "../files/tinylm/fast/index.html"
    assert some.address("../figures/parts.json", page) == "../_static/figures/parts.json"
    assert some.address("https://arxiv.org", page) == "https://arxiv.org"
    assert some.listed == {"course/ladder.py", "tinylm/fast"}


@pytest.mark.parametrize("link", ["../course/none.py", "../../elsewhere.py"])
def test_a_link_to_no_file_of_the_course_is_refused(link: str) -> None:
    with pytest.raises(CourseError, match="a file or folder of the course"):
        links().address(link, "notebooks/CLAIMS.md")


def test_arxiv_numbers_become_links_but_not_in_code_and_mathematics() -> None:
    said = links().markdown("DAPO (2503.14476), `2503.14476`, $x=2503.14476$", "index.md")
    link = "[2503.14476](https://arxiv.org/abs/2503.14476)"
    assert said == f"DAPO ({link}), `2503.14476`, $x=2503.14476$"


def test_code_is_no_link() -> None:
    text = "```python\nf[1](course/none.py)\n```\n"
    assert links().markdown(text, "index.md") == text


def test_works_are_told_apart_and_take_their_number_from_any_citation() -> None:
    found = pages.works(
        [
            ("Kool et al. 2019; Ahmadian et al. 2024 (2402.14740), eq. 9", "eq:loo", "a.md"),
            ("Ahmadian et al. 2024", "rloo", "b.md"),
            ("derived here", "x", "c.md"),
            ("Sutton & Barto 2018, eq. 13.1", "y", "d.md"),
        ]
    )
    assert found == {
        "Ahmadian et al. 2024": ("2402.14740", {"eq:loo": "a.md", "rloo": "b.md"}),
        "Kool et al. 2019": ("", {"eq:loo": "a.md"}),
        "Sutton & Barto 2018": ("", {"y": "d.md"}),
    }


def test_a_docstring_is_text_with_code_and_no_other_markup() -> None:
    lines = ["The mean |o| of `rewards` [*, Q_].", "", "    x * y", "", "- `a`: one"]
    assert pages.plain_docstring(lines) == [
        r"The mean \|o\| of ``rewards`` [\*, Q\_].",
        "",
        "",
        "::",
        "",
        "        x * y",
        "",
        "- ``a``: one",
    ]


def test_displayed_mathematics_keeps_its_lines_without_a_double_backslash() -> None:
    text = "$$f = \\begin{cases} a & b\\\\[3pt] c & d\\end{cases} \\tag{4.1}$$ and `a\\\\b`"
    wanted = "$$f = \\begin{cases} a & b\\cr  c & d\\end{cases} \\tag{4.1}$$ and `a\\\\b`"
    assert lessons.one_line_breaks(text) == wanted


def notebook() -> dict[str, Any]:
    def cell(source: str, text: str, **data: str) -> dict[str, Any]:
        shown = {"output_type": "display_data", "data": {"text/plain": text, **data}}
        metadata = {"jupyter": {"source_hidden": True}}
        return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [shown]}

    asked = cell("lesson.ask('q')", "question: which?", **{"text/html": "<details>no</details>"})
    code = cell("lesson.code(f)", "file", **{"text/html": '<a href="01_policy_gradient.ipynb">'})
    return {"cells": [asked, code]}


def test_a_question_hides_its_cell_and_a_folded_cell_stays_folded() -> None:
    page, files = lessons.page_of(
        notebook(), info("04"), {}, links("notebooks/01_policy_gradient.ipynb")
    )
    asked, code = page["cells"]
    assert asked["metadata"]["tags"] == [lessons.REMOVED]
    assert code["metadata"]["tags"] == [lessons.FOLDED]
    shown = asked["outputs"][0]["data"]["text/html"]
    assert shown == '<div class="course-question"><details>no</details></div>'
    assert code["outputs"][0]["data"]["text/html"] == '<a href="01_policy_gradient.html">'
    assert files == {}


def test_an_explore_names_its_frames_and_its_controls() -> None:
    stops = (frames.Stops("low", "ε_low", "slider", (0.1, 0.2), 1),)
    drawn = frames.Frames("clip", stops, (b"first", b"second"))
    markup, files = lessons.explore("clip", "Look <here>", {}, info("04"), {"clip": drawn})
    folder = "_static/lessons/04/clip"
    assert files == {f"{folder}/0.webp": b"first", f"{folder}/1.webp": b"second"}
    assert f'src="../{folder}/1.webp" alt="Look &lt;here&gt;"' in markup
    told = json.loads(markup.partition('application/json">')[2].partition("</script>")[0])
    assert told["controls"] == [
        {"label": "ε_low", "kind": "slider", "values": ["0.1", "0.2"], "start": 1}
    ]


# ---------------------------------------------------------------- the folder


def test_a_folder_of_something_else_is_refused_and_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "check_installed", lambda: None)
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["site", "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert "one that `course site` made" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("words", [["--frames", "-1"], ["--serve", "65536"]])
def test_a_wrong_number_is_refused_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["site", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words[0].strip("-") in line


def test_without_sphinx_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "NEEDED", ("no_such_sphinx",))
    assert cli.main(["site", "--out", str(tmp_path / "site")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no_such_sphinx" in line
    assert ".[site]" in line
    assert not (tmp_path / "site").exists()


def test_a_new_site_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    made, out = tmp_path / "made", tmp_path / "site"
    for folder, name in ((made, "new.html"), (out, "old.html")):
        folder.mkdir()
        (folder / name).touch()
        (folder / build.MARK).touch()
    build.put(made, out, tmp_path / "before")
    assert sorted(path.name for path in out.iterdir()) == [build.MARK, "new.html"]


@needs_sphinx
@pytest.mark.slow
def test_a_failed_build_leaves_the_old_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "site"
    out.mkdir()
    (out / build.MARK).touch()

    def fails(*_: object) -> None:
        raise CourseError("site: Sphinx warns")

    monkeypatch.setattr(build, "run_sphinx", fails)
    with pytest.raises(CourseError, match="Sphinx warns"):
        build.build(out, ["04"], most=0, report=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert [path.name for path in out.iterdir()] == [build.MARK]
