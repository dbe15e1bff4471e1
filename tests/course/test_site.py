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
from course.lesson import build as notebooks
from course.lesson.question import load
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
    way, low, high = frames.grid(controls, 24, still="way")
    assert (way.values, way.start) == (("max",), 0)
    assert len(low.values) * len(high.values) <= 24


def test_a_control_that_stays_still_is_one_of_its_explore() -> None:
    """By the sources, so that no lesson has to run."""
    told = "\n".join(
        notebooks.source(lesson).read_text(encoding="utf-8") for lesson in notebooks.written()
    )
    for name, control in frames.STILL.items():
        call = told.partition(f'lesson.explore(\n    "{name}",')[2].partition("\n)\n")[0]
        assert f"\n    {control}=" in call, name


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
import slower
lesson = course.setup("01")
import slow
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
model = slow.model()
half = slow.half(model)
slow.Learner(half, 3).train(80)
other = slow.model()
other.train(80)
lesson.explore("e", draw, "look", at=model)
later = slow.result()
numbers.append(later)
"""


def test_an_explore_keeps_what_it_needs_in_its_lines_and_nothing_else() -> None:
    kept = frames.only_explores(SOURCE).splitlines()
    lines = SOURCE.splitlines()
    dropped = {2, 5, 8, 11, 20, 21, 23, 24}
    assert kept == ["" if n in dropped else line for n, line in enumerate(lines, 1)]


# ---------------------------------------------------------------- links and pages


def links(*names: str) -> Links:
    return Links(ROOT, frozenset(names))


def test_a_link_leads_to_a_page_else_to_a_listing() -> None:
    some = links("notebooks/CLAIMS.md", "notebooks/03_importance_ratio.ipynb")
    page = "notebooks/EQUATIONS.md"
    assert some.address("03_importance_ratio.ipynb", page) == "03_importance_ratio.html"
    assert some.address("CLAIMS.md#top", page) == "CLAIMS.html#top"
    assert some.address("../tests/helpers.py", page) == "../files/tests/helpers.py.html"
    assert some.address("../tinylm/fast", page) == "../files/tinylm/fast/index.html"
    assert some.address("../figures/parts.json", page) == "../_static/figures/parts.json"
    assert some.address("https://arxiv.org", page) == "https://arxiv.org"
    assert some.listed == {"tests/helpers.py", "tinylm/fast"}


def test_a_link_to_a_module_leads_to_its_page_and_that_of_a_public_name_to_its_place() -> None:
    some = Links(ROOT, frozenset(), {"course/parts/kl.py": "course.parts.kl"})
    page, kl = "notebooks/EQUATIONS.md", "../api/course.parts.kl.html"
    assert some.address("../course/parts/kl.py", page) == kl
    for words, anchor in (
        ("`k3`", "#course.parts.kl.k3"),
        ("`K3.times_ratio`", "#course.parts.kl.K3.times_ratio"),
        ("`Part`", ""),  # imported
        ("`K3.text`", ""),  # inherited
        ("`_private`", ""),
        ("`(module)`", ""),
        ("kl", ""),
    ):
        inside = words.replace("`", "<code>", 1).replace("`", "</code>")
        said = some.markdown(f"[{words}](../course/parts/kl.py)", page)
        assert said == f'<a href="{kl}{anchor}">{inside}</a>'


@pytest.mark.parametrize("link", ["../course/none.py", "../../elsewhere.py"])
def test_a_link_to_no_file_of_the_course_is_refused(link: str) -> None:
    with pytest.raises(CourseError, match="a file or folder of the course"):
        links().address(link, "notebooks/CLAIMS.md")


def test_code_is_no_link() -> None:
    text = "```python\nf[1](course/none.py)\n```\n"
    assert links().markdown(text, "index.md") == text


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
    def cell(source: str, *outputs: dict[str, str], **metadata: Any) -> dict[str, Any]:
        shown = [{"output_type": "display_data", "data": data} for data in outputs]
        return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": shown}

    hidden = {"source_hidden": True}
    face = '<style class="course-face">.jp-x {display: none}</style>'
    asked = {"text/plain": "question: which?", "text/html": "<details>old</details>"}
    code = {"text/plain": "file", "text/html": f'<a href="01_policy_gradient.ipynb">{face}'}
    return {
        "cells": [
            cell("import x\nif not x:\n    %pip install x", tags=["remove-cell"]),
            cell('lesson.ask("flat-side")', asked, jupyter=hidden),
            cell("lesson.code(f)", code, jupyter=hidden),
        ]
    }


def test_a_lesson_as_a_page_asks_its_questions_folds_what_is_folded_and_installs_nothing() -> None:
    page, files = lessons.page_of(
        notebook(), info("04"), {}, links("notebooks/01_policy_gradient.ipynb")
    )
    asked, code = page["cells"]
    assert asked["metadata"]["tags"] == [lessons.REMOVED]
    assert code["metadata"]["tags"] == [lessons.FOLDED]
    shown = asked["outputs"][0]["data"]["text/html"]
    question = load("04")["flat-side"]
    assert shown.startswith('<div class="course-question" data-name="flat-side">')
    assert all(question.feedback(choice) in shown for choice in question.choices)
    assert code["outputs"][0]["data"]["text/html"] == '<a href="01_policy_gradient.html">'
    assert files == {}


def test_an_explore_names_its_frames_its_controls_and_what_stays_still() -> None:
    stops = (
        frames.Stops("low", "ε_low", "slider", (0.1, 0.2), 1),
        frames.Stops("rung", "the rung", "still", ("clip",), 0),
    )
    drawn = frames.Frames("clip", stops, (b"first", b"second"))
    markup, files = lessons.explore("clip", "Look <here>", {}, info("04"), drawn)
    folder = "_static/lessons/04/clip"
    assert files == {f"{folder}/0.webp": b"first", f"{folder}/1.webp": b"second"}
    assert f'src="../{folder}/1.webp" alt="Look &lt;here&gt;"' in markup
    told = json.loads(markup.partition('application/json">')[2].partition("</script>")[0])
    assert told["controls"] == [
        {"label": "ε_low", "kind": "slider", "values": ["0.1", "0.2"], "start": 1}
    ]
    assert "“the rung” stays at clip" in markup


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


def test_where_some_lines_of_a_lesson_do_not_do_the_whole_lesson_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from matplotlib.figure import Figure

    from course.lesson import Lesson
    from course.lesson.explore import Explore

    def fails(_: str) -> Lesson:
        raise NameError("a name that was changed elsewhere")

    whole = Lesson(info("04"))
    whole.explores["e"] = Explore("e", lambda x: Figure(), {"x": Slider(0, 1, 1, 0)})
    monkeypatch.setattr(frames, "explores", fails)
    monkeypatch.setattr(notebooks, "collect", lambda lesson: whole)
    [drawn] = frames.of_lesson("04", 4)
    assert len(drawn.pictures) == 2
