"""What every lesson promises: figures at every slider's ends, checkers that tell right from wrong,
notebooks equal to their sources.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from course.lesson import SYLLABUS, build, exercise, info, pages, question
from course.lesson.confusions import CONFUSIONS
from course.lesson.exercise import NOT_ATTEMPTED
from course.lesson.view import PIXELS_PER_INCH, WIDGET, image
from course.site import frames
from tests.helpers import colours_apart
from tests.lessons.conftest import lesson_of

LESSONS = [lesson.number for lesson in build.written()]
each_lesson = pytest.mark.parametrize("number", LESSONS)
PNG = b"\x89PNG\r\n\x1a\n"


def saved(number: str) -> Any:
    """The notebook as it is committed."""
    return nbformat.read(build.target(info(number)), as_version=4)


def test_every_lesson_of_the_syllabus_is_written() -> None:
    assert list(SYLLABUS) == LESSONS


# ---------------------------------------------------------------- what a lesson asks


@pytest.mark.slow
@each_lesson
def test_a_lesson_asks_shows_and_exercises(number: str) -> None:
    lesson = lesson_of(number)
    assert len(lesson.questions) >= 3
    assert len(lesson.explores) >= 1
    assert len(lesson.exercises) >= 2


@pytest.mark.slow
@each_lesson
def test_a_lesson_has_every_question_and_exercise_of_its_files_in_that_order(number: str) -> None:
    assert list(lesson_of(number).questions) == list(question.load(number))
    assert list(lesson_of(number).exercises) == list(exercise.load(number))


def test_the_place_of_a_choice_does_not_tell_whether_it_is_right() -> None:
    """Of the questions with three choices or more, no letter has the right answer in half."""
    every = [each for number in LESSONS for each in question.load(number).values()]
    right = [
        letter
        for each in every
        for letter, choice in each.shown.items()
        if choice == each.answer and len(each.choices) >= 3
    ]
    assert len(right) > 50
    assert all(right.count(letter) < len(right) / 2 for letter in "ABC")


def strings(cells: Any) -> Iterator[str]:
    """Every string of the code, pieces joined as Python joins them, and all prose."""
    for cell in cells:
        if cell.cell_type == "markdown":
            yield cell.source
        else:
            python = re.sub(r"^( *)%.*", r"\1pass", cell.source, flags=re.MULTILINE)  # no %pip
            for node in ast.walk(ast.parse(python)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@each_lesson
def test_no_cell_tells_an_answer_or_a_feedback(number: str) -> None:
    """Neither the source nor the input of a saved cell: GitHub shows both without being asked."""
    for cells in (build.cells(info(number)).cells, saved(number).cells):
        told = list(strings(cells))
        for name, asked in question.load(number).items():
            for choice, feedback in asked.choices.items():
                assert [text for text in told if feedback in text] == [], f"{name}: {choice}"
            assert asked.text not in told
            asks = [cell for cell in cells if f'lesson.ask("{name}")' in cell.source]
            assert len(asks) == 1, name


@each_lesson
def test_no_cell_tells_a_solution_or_a_hint(number: str) -> None:
    for cells in (build.cells(info(number)).cells, saved(number).cells):
        told, code = list(strings(cells)), "\n".join(cell.source for cell in cells)
        for name, made in exercise.load(number).items():
            assert [text for text in told if any(hint in text for hint in made.hints)] == [], name
            body = exercise.source_of(made.solution).partition(":\n")[2].strip()
            assert body
            assert body not in code, name
            assert made.solution.__name__ not in code, name


@pytest.mark.slow
@each_lesson
def test_figures_draw_at_the_ends_of_every_slider(number: str) -> None:
    for name, explore in lesson_of(number).explores.items():
        corners = list(explore.corners())
        first = explore.picture()
        assert first.startswith(PNG), name
        width, height = explore.figure().get_size_inches()
        changed = 0
        for corner in corners:
            drawn = explore.picture(**corner)
            assert drawn.startswith(PNG), (name, corner)
            changed += drawn != first
            # nothing is cut where the axes stay in their places
            canvas = FigureCanvasAgg(explore.figure(**corner))
            box = canvas.figure.get_tightbbox(canvas.get_renderer())
            over = max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)
            assert over * PIXELS_PER_INCH <= 2, (name, corner)
            # and it is the picture that Matplotlib alone makes of this figure
            assert colours_apart(drawn, image(explore.figure(**corner))) <= 3, (name, corner)
        assert changed > len(corners) // 2, f"{name}: the sliders change nothing"


@pytest.mark.slow
@each_lesson
def test_the_statements_that_explores_need_draw_what_the_whole_lesson_draws(number: str) -> None:
    """The site draws its frames without running the rest of a lesson."""
    whole, alone = lesson_of(number), frames.explores(number)
    assert list(alone.explores) == list(whole.explores)
    for name, explore in alone.explores.items():
        # where an explore has drawn before, its axes stand where those pictures had them
        unused = replace(whole.explores[name])
        assert explore.picture() == unused.picture(), name
        last = dict(list(explore.corners())[-1])
        assert explore.picture(**last) == unused.picture(**last), name


@pytest.mark.slow
@each_lesson
def test_checkers_know_right_from_wrong(number: str) -> None:
    """The solution passes, the stub is «not attempted», and each plausible wrong answer gets a
    counter-example.
    """
    for name, made in lesson_of(number).exercises.items():
        assert made.verdict(made.solution) is None, name
        assert made.verdict(lambda *a, **k: NotImplemented) == NOT_ATTEMPTED, name
        for wrong in made.wrong:
            said = made.verdict(wrong)
            assert said is not None, f"{name}: a wrong answer passed"
            assert said != NOT_ATTEMPTED, name
            assert len(said) > 15, f"{name}: no counter-example in {said!r}"


# ---------------------------------------------------------------- notebook and source


@each_lesson
def test_a_notebook_is_its_source_executed(number: str) -> None:
    """Same cells with the same text, counts 1..N, no widget state, ids that differ, pictures with
    alternative text, under 500 kB.
    """
    notebook, source = saved(number), build.cells(info(number), build.read_index())
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert [dict(cell.metadata) for cell in notebook.cells] == [
        dict(cell.metadata) for cell in source.cells
    ]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert WIDGET not in output.get("data", {})
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 20, "a picture without words"
            assert output.output_type != "error"
            assert output.get("name") != "stderr", "a warning stands on the page"
    assert build.target(info(number)).stat().st_size < build.LIMIT


@each_lesson
def test_code_fits_into_a_hundred_columns(number: str) -> None:
    code = [cell.source for cell in build.cells(info(number)).cells if cell.cell_type == "code"]
    assert [line for text in code for line in text.splitlines() if len(line) > 100] == []


@each_lesson
def test_a_lesson_opens_with_its_measured_time_and_ends_with_what_to_take_away(number: str) -> None:
    seconds, minutes = (build.read_index()[number][name] for name in ("seconds", "minutes"))
    assert 0 < seconds <= 60
    text = [cell.source for cell in saved(number).cells if cell.cell_type == "markdown"]
    assert text[0].startswith(f"# {number} · ")
    assert f"about {seconds} seconds" in text[0]
    assert f"about {minutes} minutes" in text[0]
    assert any(part.startswith("## Take away") or "\n## Take away" in part for part in text)


@pytest.mark.slow
@each_lesson
def test_the_index_counts_what_the_lesson_asks(number: str) -> None:
    entry = dict(build.read_index()[number])
    assert entry.pop("seconds") > 0
    assert entry.pop("minutes") == build.minutes(info(number))
    assert entry == build.counted(lesson_of(number))


def test_the_first_code_installs_the_course_only_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs the same in every lesson; IPython hands %pip on to what installs."""
    from IPython.core.interactiveshell import InteractiveShell

    from course.lab.places import repository

    code = [
        next(cell for cell in build.cells(info(number)).cells if cell.cell_type == "code")
        for number in LESSONS
    ]
    assert len({cell.source for cell in code}) == 1
    shell, asked = InteractiveShell(), list[str]()
    monkeypatch.setattr(
        shell, "run_line_magic", lambda name, line, **kwargs: asked.append(f"{name} {line}")
    )
    assert shell.run_cell(code[0].source).result is None
    assert asked == []
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shell.run_cell(code[0].source)
    assert asked == [f'pip install -q "pg-ladder @ git+{repository()}"']


def test_ids_stay_where_a_cell_did_not_move() -> None:
    old = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("2")]
    )
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in "abc"])
    new.cells[0].outputs = [
        nbformat.v4.new_output("display_data", {"text/plain": "x", WIDGET: {"model_id": "1"}})
    ]
    build.tidy(new, old)
    assert [cell.id for cell in new.cells][:2] == [cell.id for cell in old.cells]
    assert [cell.execution_count for cell in new.cells] == [1, 2, 3]
    assert list(new.cells[0].outputs[0]["data"]) == ["text/plain"]


# ---------------------------------------------------------------- equations, confusions, pages


def test_an_equation_stands_once_in_a_lesson_once_in_the_code_and_in_a_test() -> None:
    lessons, code, tests = (
        pages.tags_in_lessons(),
        pages.tags_in_code(),
        pages.tags_in_code(("tests",)),
    )
    assert {tag: where for tag, where in lessons.items() if len(where) > 1} == {}
    assert {tag: where for tag, where in code.items() if len(where) > 1} == {}
    assert set(lessons) == set(code)
    assert set(lessons) <= set(tests)
    assert len(lessons) >= 50


def test_every_equation_of_a_test_is_checked_by_a_test_function() -> None:
    named = re.compile(r"test_\w+|\w*[tT]est\w*")
    for tag, places in pages.tags_in_code(("tests",)).items():
        assert any(named.match(place.name) for place in places), (
            f"eq:{tag} stands outside of any test"
        )


def test_every_question_that_people_ask_is_answered() -> None:
    assert "(to come)" not in pages.confusions_page()
    assert list(CONFUSIONS) == sorted(CONFUSIONS)
    assert set(range(1, 30)) <= set(CONFUSIONS)


@pytest.mark.parametrize("name", list(pages.PAGES))
def test_generated_pages_are_up_to_date(name: str) -> None:
    """`python -m course notebooks --pages` writes them."""
    assert (build.folder() / name).read_text(encoding="utf-8") == pages.PAGES[name]()


def test_the_cheat_sheet_has_every_rung_with_its_exact_bias() -> None:
    from course import ladder
    from course.exact import group_mean_factor

    found = pages.on_b3()
    assert list(found) == [name for name, rung in ladder.RUNGS.items() if rung.kind != "own"]
    assert found["reinforce"][0] == pytest.approx(0, abs=1e-12)
    assert found["rloo"][0] == pytest.approx(0, abs=1e-12)
    assert found["group_mean"][0] == pytest.approx(1 - group_mean_factor(4), rel=1e-9)


def test_links_in_notebooks_lead_somewhere() -> None:
    for number in LESSONS:
        for cell in saved(number).cells:
            texts = [cell.source] if cell.cell_type == "markdown" else []
            texts += [
                output["data"]["text/html"]
                for output in cell.get("outputs", ())
                if "text/html" in output.get("data", {})
            ]
            for text in texts:
                for link in re.findall(
                    r"\]\(([\w./-]+\.(?:ipynb|md|png|json|py))\)|href=\"([\w./-]+\.ipynb)\"",
                    "".join(text),
                ):
                    target = next(filter(None, link))
                    assert (build.folder() / target).exists(), f"{number}: {target}"


def test_lessons_json_is_what_the_readme_and_the_map_read() -> None:
    index = json.loads(Path(build.index_path()).read_text(encoding="utf-8"))
    assert list(index) == sorted(index) == LESSONS
