"""What lessons are made of: questions, explorable figures, exercises, progress, the builder."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from matplotlib.figure import Figure

import course
from course import cli, setup
from course.errors import CourseError
from course.lab import figures
from course.lesson import SYLLABUS, Choice, Slider, build, exercise, info, progress, syllabus
from course.lesson import question as questions
from course.lesson.exercise import NOT_ATTEMPTED, Exercise
from course.lesson.explore import Explore
from course.lesson.question import Question
from course.lesson.view import image
from tests.helpers import colours_apart

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.FILE, str(tmp_path / "progress.json"))


def half() -> Question:
    return Question("half", "What is ½ of 4?", {"2": "4 = 2 + 2.", "1": "That is a quarter."}, "2")


def test_every_choice_has_feedback_and_only_the_answer_is_right() -> None:
    assert "Right." in half().feedback("2")
    assert "4 = 2 + 2." in half().feedback("2")
    assert "No." in half().feedback("1")
    assert half().static.count("<details") == 2


@pytest.mark.parametrize(
    ("choices", "answer"),
    [({"1": "x"}, "1"), ({"1": "x", "2": "y"}, "3"), ({"1": "x", "2": " "}, "1")],
    ids=["one choice", "no answer", "mute"],
)
def test_a_question_that_cannot_be_answered_is_refused(
    choices: dict[str, str], answer: str
) -> None:
    with pytest.raises(CourseError, match="question q"):
        Question("q", "?", choices, answer)


def test_a_question_is_text_and_no_markup() -> None:
    question = Question("q", "a < b & `x < y` **bold**", {"<b>": "<i>", "c": "d"}, "c")
    assert "a &lt; b &amp; <code>x &lt; y</code> <b>bold</b>" in question.static
    assert "<i>" not in question.feedback("<b>")


def test_the_live_question_commits_once_something_is_chosen() -> None:
    done: list[str] = []
    live = half().widget(done.append)
    choose, commit, said = live.children[1:]
    assert commit.disabled
    choose.value = "1"
    assert not commit.disabled
    commit.click()
    assert "quarter" in said.value
    assert done == ["1"]
    choose.value = "2"
    commit.click()
    assert "Right." in said.value
    assert done == ["1", "2"]


def test_an_earlier_answer_is_shown_with_its_feedback() -> None:
    choose, commit, said = half().widget(lambda choice: None, before="1").children[1:]
    assert choose.value == "1"
    assert not commit.disabled
    assert "quarter" in said.value
    for before in (None, "a choice of another edition"):
        choose, commit, said = half().widget(lambda choice: None, before=before).children[1:]
        assert (choose.value, commit.disabled, said.value) == (None, True, "")


def test_every_face_shows_the_choices_in_one_order_under_the_same_letters() -> None:
    question = Question("three", "?", {"`x`": "1", "**y**": "2", "z < 1": "3"}, "z < 1")
    assert sorted(question.shown) == ["A", "B", "C"]
    assert sorted(question.shown.values()) == sorted(question.choices)
    again = Question("three", "?", dict(reversed(question.choices.items())), "z < 1")
    assert again.shown == question.shown  # the file's order tells nothing
    labels = [label for label, _ in question.widget(print).children[1].options]
    marks = {"`x`": "x", "**y**": "y", "z < 1": "z < 1"}
    assert labels == [f"{letter}. {marks[each]}" for letter, each in question.shown.items()]
    html = {"`x`": "<code>x</code>", "**y**": "<b>y</b>", "z < 1": "z &lt; 1"}
    places = [
        question.static.index(f"{letter}. {html[each]}</summary>")
        for letter, each in question.shown.items()
    ]
    assert places == sorted(places)


def test_the_name_decides_the_order_of_the_choices() -> None:
    choices = {each: "x" for each in "abcd"}
    first = [Question(f"q{i}", "?", choices, "a").shown["A"] for i in range(200)]
    assert all(30 < first.count(each) < 70 for each in "abcd")  # 50 ± 3 standard deviations


# ---------------------------------------------------------------- files of questions

GOOD = """\
[half]
text = "What is ½ of 4?"
[[half.choices]]
text = "2"
right = true
feedback = "4 = 2 + 2."
[[half.choices]]
text = "1"
feedback = '''
That is
a quarter.'''
"""


def test_questions_are_read_from_their_file_and_read_again_when_it_changes(workshop: Path) -> None:
    place = workshop / "src" / "questions" / "01.toml"
    place.parent.mkdir()
    assert questions.load("01") == {}
    place.write_text(GOOD, encoding="utf-8")
    os.utime(place, ns=(1, 1))
    expected = Question(
        "half", "What is ½ of 4?", {"2": "4 = 2 + 2.", "1": "That is\na quarter."}, "2"
    )
    assert questions.load("01") == {"half": expected}
    assert questions.load("01")["half"] is questions.load("01")["half"]
    place.write_text(GOOD.replace("[half", "[other").replace("[[half", "[[other"))
    os.utime(place, ns=(2, 2))
    assert list(questions.load("01")) == ["other"]
    lesson = setup("01")
    lesson.ask("other")
    assert lesson.questions["other"].answer == "2"
    with pytest.raises(CourseError, match=r"01\.toml: got 'half'; allowed is one of other"):
        lesson.ask("half")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[half]", "[half", "got no TOML"),
        ('text = "What is ½ of 4?"', "", "half: got 'no text'"),
        ('text = "What is ½ of 4?"', 'txt = "?"\ntext = "?"', "half: got 'txt'"),
        ('text = "What is ½ of 4?"', 'text = " "', "half.text: got ' '"),
        ('text = "What is ½ of 4?"', "text = 4", "half.text: got 4"),
        ("right = true", "", "half.choices: got '0 with right = true'"),
        ('feedback = "4', 'right = true\nfeedback = "4', "got no TOML"),
        ("right = true", "right = 1", "half.choices, number 1.right: got 1"),
        ('text = "1"', 'text = "1"\nright = true', "half.choices: got '2 with right = true'"),
        ('text = "1"', 'text = "2"', "half.choices, number 2.text: got '2'"),
        ('feedback = "4 = 2 + 2."', "", "half.choices, number 1: got 'no feedback'"),
        ('feedback = "4 = 2 + 2."', 'feedback = ""', "half.choices, number 1.feedback: got ''"),
        ("half", '"a half"', "a half: got 'a half'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_file_and_field(
    workshop: Path, old: str, new: str, told: str
) -> None:
    place = workshop / "src" / "questions" / "01.toml"
    place.parent.mkdir()
    assert old in GOOD
    place.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(CourseError) as error:
        questions.load("01")
    assert str(error.value).startswith(f"{place}: {told}")
    assert "allowed is" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_choice_alone_is_no_question(workshop: Path) -> None:
    place = workshop / "src" / "questions" / "01.toml"
    place.parent.mkdir()
    place.write_text(GOOD.partition('[[half.choices]]\ntext = "1"')[0], encoding="utf-8")
    with pytest.raises(CourseError, match=r"01\.toml: half: .*at least two"):
        questions.load("01")


def test_questions_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = questions.path("04")
    assert here.is_file()
    monkeypatch.chdir(tmp_path)
    assert questions.path("04").is_file()
    assert list(questions.load("04"))


# ---------------------------------------------------------------- explore


def line(slope: float, kind: str = "a"):  # type: ignore[no-untyped-def]
    figure, [ax] = figures.new_figure(width=3, height=2)
    figures.band(ax, [0, 1], [0, slope], name=kind)
    ax.set_ylim(-100, 100)
    return figure


def test_moving_a_slider_redraws_the_picture() -> None:
    explore = Explore(
        "line", line, {"slope": Slider(-2.0, 2.0, 0.5, 1.0), "kind": Choice(["a", "b"])}
    )
    assert len(list(explore.corners())) == 4
    live = explore.widget()
    slider, menu, shown = live.children
    before = shown.value
    slider.value = -2.0
    assert shown.value == explore.picture(slope=-2.0) != before
    menu.value = "b"
    assert shown.value == explore.picture(slope=-2.0, kind="b")


def test_a_picture_after_others_is_what_matplotlib_draws_of_its_figure() -> None:
    """Ticks that stayed are laid in as they were drawn; those that changed are drawn."""

    def draw(top: float, scale: str, title: str, ticks: bool) -> Figure:
        figure, [left, right] = figures.new_figure(1, 2, width=5, height=2.2)
        left.plot([1, 3], [0.1, top])
        left.set_xscale(scale)
        left.set_ylim(0, top)
        right.plot([0, 1], [0, 1e-9 * top])  # its axis says 1e-9 above, and the title makes room
        if ticks:
            left.set_xticks([1, 2], ["one", "two"])
        figures.describe(left, title, "x", "y")
        figures.describe(right, title, "x")
        return figure

    explore = Explore("axes", draw, {}, steady=False)
    for top, scale, title, ticks in itertools.product(
        (1.0, 2.0, 3000.0, 1.0), ("linear", "log"), ("", "A < B"), (False, True)
    ):
        values = {"top": top, "scale": scale, "title": title, "ticks": ticks}
        wanted = image(explore.figure(**values))
        assert colours_apart(explore.picture(**values), wanted) <= 3, values


def test_a_logarithmic_slider_gives_powers_of_ten() -> None:
    slider = Slider(-3.0, 0.0, 1.0, -2.0, log=True)
    assert slider.start == pytest.approx(0.01)
    assert slider.extremes == pytest.approx((0.001, 1.0))
    assert slider.widget("x").value == pytest.approx(0.01)


@pytest.mark.parametrize("numbers", [(1, 0, 1, 0), (0, 1, 0, 0), (0, 1, 0.1, 2)])
def test_a_slider_that_cannot_move_is_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(CourseError, match="slider"):
        Slider(*numbers)


def test_a_slider_must_be_a_parameter_of_what_it_draws() -> None:
    with pytest.raises(CourseError, match="explore e"):
        setup("01").explore("e", line, "x", slop=Slider(0, 1, 1, 0))


# ---------------------------------------------------------------- exercises


def double() -> Exercise:
    def test(attempt):  # type: ignore[no-untyped-def]
        for x in (0.0, 1.0, 2.0):
            if attempt(x) != 2 * x:
                return f"for {x} it gives {attempt(x)}, right is {2 * x}"
        return None

    return Exercise(
        "double",
        "Double it.",
        test,
        lambda x: x + x,
        [lambda x: x, lambda x: x * x],
        ["+", "x +", "x + x"],
    )


def test_a_checker_tells_right_wrong_untouched_and_broken_apart() -> None:
    exercise = double()
    assert exercise.verdict(lambda x: 2 * x) is None
    assert exercise.verdict(lambda x: NotImplemented) == NOT_ATTEMPTED
    assert exercise.verdict(lambda x: 0.0) == "for 1.0 it gives 0.0, right is 2.0"
    assert exercise.verdict(lambda x: 1 / 0) == "it raised ZeroDivisionError: division by zero"
    assert (
        exercise.verdict(lambda x: 0.0 if x == 0 else NotImplemented)
        == "it returns NotImplemented for some inputs"
    )


def test_an_exercise_has_three_hints_and_two_wrong_answers() -> None:
    with pytest.raises(CourseError, match="hints"):
        Exercise("e", "t", lambda a: None, len, [len, len], ["one"])
    with pytest.raises(CourseError, match="wrong"):
        Exercise("e", "t", lambda a: None, len, [len], ["1", "2", "3"])


# ---------------------------------------------------------------- progress


def test_progress_is_kept_deleted_and_survives_a_damaged_file() -> None:
    assert progress.read() == {}
    progress.record("01", "questions", "a")
    progress.record("01", "questions", "a")
    progress.record("01", "exercises", "b")
    assert progress.read() == {"01": {"questions": ["a"], "exercises": ["b"]}}
    progress.path().write_text("{")
    assert progress.read() == {}
    progress.path().write_text('{"01": 3}')
    assert progress.read() == {}
    assert progress.delete()
    assert not progress.delete()


def test_a_damaged_file_is_set_aside_and_odd_entries_stay() -> None:
    place = progress.path()
    for number, damaged in enumerate((b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"), 1):
        place.write_bytes(damaged)
        progress.record("01", "questions", "a")
        name = f"{place.name}.damaged" + (f".{number}" if number > 1 else "")
        assert place.with_name(name).read_bytes() == damaged
        assert progress.read() == {"01": {"questions": ["a"]}}
    odd = {"01": {"questions": ["a", 7], "notes": 1}, "02": 3, "03": {"exercises": "b"}, "x": None}
    place.write_text(json.dumps(odd))
    for lesson, kind in (("01", "questions"), ("02", "questions"), ("03", "exercises")):
        progress.record(lesson, kind, "new")
    kept = json.loads(place.read_text())
    assert kept["01"] == {"questions": ["a", 7, "new"], "notes": 1}
    assert kept["02, odd"] == 3
    assert kept["03"] == {"exercises, odd": "b", "exercises": ["new"]}
    assert kept["x"] is None
    assert progress.read() == {
        "01": {"questions": ["a", "new"]},
        "02": {"questions": ["new"]},
        "03": {"exercises": ["new"]},
    }


def test_the_last_choice_of_every_question_is_kept_beside_the_progress() -> None:
    assert progress.answers("01") == {}
    progress.record_answer("01", "a", "ρ > 1")
    progress.record_answer("01", "b", "no")
    progress.record_answer("01", "a", "ρ < 1")
    progress.record("01", "questions", "a")
    assert progress.answers("01") == {"a": "ρ < 1", "b": "no"}
    assert progress.answers("02") == {}
    assert progress.read() == {"01": {"questions": ["a"]}}
    progress.path().write_text('{"01": {"answers": {"a": 3, "b": "x"}}, "02": {"answers": [1]}}')
    assert progress.answers("01") == {"b": "x"}
    assert progress.answers("02") == {}
    progress.record_answer("02", "c", "y")
    assert json.loads(progress.path().read_text())["02"] == {
        "answers": {"c": "y"},
        "answers, odd": [1],
    }
    progress.path().write_text("{")
    assert progress.answers("01") == {}


@pytest.mark.slow
def test_notebooks_that_write_progress_at_once_lose_no_answer() -> None:
    code = "import sys; from course.lesson import progress\n"
    code += "for i in range(8): progress.record(sys.argv[1], 'questions', f'q{i}')"
    several = [subprocess.Popen([sys.executable, "-c", code, f"0{n}"]) for n in range(3)]
    assert [one.wait(120) for one in several] == [0, 0, 0]
    asked = {"questions": [f"q{i}" for i in range(8)]}
    assert progress.read() == {"00": asked, "01": asked, "02": asked}
    assert [found.name for found in progress.path().parent.iterdir()] == ["progress.json"]


def test_a_damaged_progress_file_is_told_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for text in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        progress.path().write_bytes(text)
        assert cli.main(["progress"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {progress.path()}: got a damaged file")
        assert told.count("\n") == 1
    progress.record("01", "questions", "a")
    assert cli.main(["progress"]) == 0


def test_building_a_lesson_leaves_the_readers_progress_alone() -> None:
    with progress.nowhere():
        progress.record("01", "questions", "a")
        assert progress.read() == {"01": {"questions": ["a"]}}
    assert progress.read() == {}


def test_progress_does_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lesson run outside of the checkout counts inside; what was noted beside the notebooks
    before counts on.
    """
    monkeypatch.delenv(progress.FILE)
    for variable in ("HOME", "XDG_DATA_HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    (checkout / "notebooks").mkdir(parents=True)
    elsewhere.mkdir()
    (checkout / "pyproject.toml").write_text('name = "pg-ladder"\n')
    (checkout / "notebooks" / ".progress.json").write_text('{"02": {"exercises": ["old"]}}')
    monkeypatch.chdir(elsewhere)
    progress.record("01", "questions", "a")
    monkeypatch.chdir(checkout)
    assert progress.read() == {"01": {"questions": ["a"]}, "02": {"exercises": ["old"]}}
    assert list(elsewhere.iterdir()) == []
    assert progress.delete()
    assert progress.read() == {}
    assert not progress.delete()


def test_passing_an_exercise_is_noted(workshop: Path) -> None:
    place = exercises(workshop, DOUBLE)
    lesson = setup("02")
    lesson.exercise("double").check(lambda x: x)
    assert progress.read() == {}
    lesson.exercises["double"].check(lambda x: 2 * x)
    assert progress.read() == {"02": {"exercises": ["double"]}}
    with pytest.raises(CourseError, match=r"02\.py: got 'triple'; allowed is one of double"):
        lesson.exercise("triple")
    place.unlink()
    with pytest.raises(CourseError, match="none: there is no such file"):
        setup("02").exercise("double")


# ---------------------------------------------------------------- files of exercises

DOUBLE = """\
from course.lesson.exercise import Exercise


def test_double(attempt):
    return None if attempt(3) == 6 else f"for 3 it gives {attempt(3)}, right is 6"


DOUBLE = Exercise(
    "double",
    "Double it.",
    test=test_double,
    solution=lambda x: x + x,
    wrong=[lambda x: x, lambda x: x * x],
    hints=["+", "x +", "x + x"],
)
"""


def exercises(workshop: Path, text: str, changed: int = 1) -> Path:
    """The file of the exercises of lesson 02."""
    (workshop / "src" / "questions").mkdir(exist_ok=True)  # a folder of lessons has both
    place = workshop / "src" / "exercises" / "02.py"
    place.parent.mkdir(exist_ok=True)
    place.write_text(text, encoding="utf-8")
    os.utime(place, ns=(changed, changed))
    return place


def test_an_exercise_that_was_passed_says_so_later_and_nbval_does_not_see_it(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exercises(workshop, DOUBLE)
    shown: list[str] = []
    monkeypatch.setattr(
        "course.lesson.exercise.show", lambda text, markup: shown.append(text + markup)
    )
    setup("02").exercise("double").check(lambda x: NotImplemented)
    setup("02").exercise("double").check(lambda x: 2 * x)
    setup("02").exercise("double").check(lambda x: NotImplemented)
    first, passed, later = shown
    assert "Passed" in passed
    assert "earlier day" not in first + passed
    assert "You have passed it on an earlier day." in later
    rules = re.findall(
        r"^regex: (.*)$\n^replace: (.*)$",
        (ROOT / "notebooks" / "sanitize.cfg").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rules) == 3
    for pattern, instead in rules:
        first, later = (re.sub(pattern, instead, text) for text in (first, later))
    assert first == later


def test_exercises_are_read_again_when_their_file_changes(workshop: Path) -> None:
    exercises(workshop, DOUBLE)
    first = exercise.load("02")["double"]
    assert exercise.load("02")["double"] is first
    assert exercise.load("03") == {}
    exercises(workshop, DOUBLE.replace("Double it.", "Twice it."), changed=2)
    assert exercise.load("02")["double"].task == "Twice it."
    assert "x + x" in exercise.source_of(exercise.load("02")["double"].solution)


def test_a_test_gets_from_the_lesson_what_it_takes_and_nothing_else(workshop: Path) -> None:
    exercises(
        workshop, DOUBLE.replace("(attempt):", "(attempt, *, factor):").replace("6", "3*factor")
    )
    made = setup("02").exercise("double", factor=2)
    assert made.verdict(made.solution) is None
    assert setup("02").exercise("double", factor=3).verdict(made.solution) is not None
    for data in ({}, {"factors": 2}, {"factor": 2, "more": 1}):
        with pytest.raises(CourseError, match=r"exercise double, .*allowed is \['factor'\]"):
            setup("02").exercise("double", **data)


def test_a_fault_to_be_found_stands_in_the_file_of_exercises(workshop: Path) -> None:
    exercises(workshop, DOUBLE + "\n\ndef thrice(x):\n    return 3 * x\n")
    lesson = setup("02")
    assert lesson.hidden("thrice")(2) == 6
    assert exercise.source_of(lesson.hidden("thrice")) == "def thrice(x):\n    return 3 * x\n"
    for name in ("fourfold", "DOUBLE"):
        with pytest.raises(CourseError, match=rf"lesson\.hidden, .*02\.py: got '{name}'"):
            lesson.hidden(name)
    with pytest.raises(CourseError, match=r"03\.py: got 'thrice'"):
        exercise.hidden("03", "thrice")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", "got ZeroDivisionError: division by zero"),
        ("def", "got SyntaxError: "),
        ("import no_such_module", "got ModuleNotFoundError: No module named 'no_such_module'"),
        (DOUBLE + "AGAIN = Exercise('double', '', len, len, [len, len], 'abc')", "got ['double', "),
        (DOUBLE.replace('"x + x"', ""), "got CourseError: exercise double.hints: got 2"),
    ],
)
def test_a_wrong_file_of_exercises_is_refused_in_one_line(
    workshop: Path, text: str, told: str
) -> None:
    place = exercises(workshop, text)
    with pytest.raises(CourseError) as error:
        exercise.load("02")
    assert str(error.value).startswith(f"{place}: {told}")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- setting up and building


def test_setup_takes_one_thread_and_gives_everybody_the_same_numbers() -> None:
    before = torch.get_num_threads()
    try:
        lesson = setup("03", seed=5)
        assert torch.get_num_threads() == 1
        assert torch.equal(lesson.noise(2).uniform(3), setup("03", seed=5).noise(2).uniform(3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["1", 1, "01", "01_policy_gradient"])
def test_a_lesson_is_found_by_number_or_name(name: str) -> None:
    assert info(name) is SYLLABUS["01"]


@pytest.mark.parametrize("name", ["3b", "03b", "03b_trpo"])
def test_a_lesson_beside_the_others_has_a_letter_and_says_that_it_is_optional(name: str) -> None:
    assert info(name) is SYLLABUS["03b"]
    assert info("03b").heading.startswith("03b · ")
    assert info("03b").heading.endswith(" (optional)")
    assert [number for number, lesson in SYLLABUS.items() if lesson.optional] == ["03b", "10b"]


def test_an_unknown_lesson_is_refused() -> None:
    with pytest.raises(CourseError, match="lesson: got '77'"):
        info("77")


def test_code_shows_the_package_s_own_source(capsys: pytest.CaptureFixture[str]) -> None:
    setup("01").code(figures.band, Slider)  # outside a notebook nothing is shown, and nothing fails
    assert capsys.readouterr().out == ""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of lessons of its own."""
    (tmp_path / "src").mkdir()
    for module in (build, syllabus):  # `described` looks there through `syllabus`
        monkeypatch.setattr(module, "folder", lambda: tmp_path)
    monkeypatch.setattr(
        build, "_rounded", lambda seconds, known: 5
    )  # whatever the machine is doing
    return tmp_path


TEXT = """# %% [markdown]
# # 01 · Small
#
# {{time}}.

# %%
import course

lesson = course.setup("01")
print(1 + 1)
"""


def test_a_kernel_that_builds_runs_the_course_that_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where PYTHONPATH names another checkout."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "course.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(other))
    asked = [sys.executable, "-c", "import course; print(course.__file__)"]
    for environment, there in (
        (None, other / "course.py"),
        (build.kernel_environment(), Path(course.__file__)),
    ):
        said = subprocess.run(
            asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert Path(said.stdout.strip()) == there


@pytest.mark.slow
def test_building_executes_saves_and_measures(workshop: Path) -> None:
    (workshop / "src" / "01_policy_gradient.py").write_text(TEXT)
    [path] = build.build(["01"], report=lambda text: None)
    build.refresh_index(["01"])
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[-1].outputs[0].text == "2\n"  # after the installing cell
    entry = json.loads((workshop / "lessons.json").read_text())["01"]
    assert entry["seconds"] in range(5, 121, 5)  # upwards to whole five, however busy the machine
    computing = f"about {entry['seconds']} seconds of computing on two CPU cores, measured, and a"
    assert computing in notebook.cells[0].source
    assert entry == {
        "seconds": entry["seconds"],
        "minutes": 5,
        "questions": [],
        "exercises": [],
        "explores": [],
    }
    before = path.read_bytes()
    build.build(["01"], report=lambda text: None)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_failing_cell_is_named_and_the_old_notebook_stays(workshop: Path) -> None:
    (workshop / "src" / "01_policy_gradient.py").write_text(TEXT)
    [path] = build.build(["01"], report=lambda text: None)
    before = path.read_bytes()
    (workshop / "src" / "01_policy_gradient.py").write_text(TEXT + "\n# %%\n1 / 0\n")
    with pytest.raises(CourseError, match="ZeroDivisionError: division by zero"):
        build.build(["01"], report=lambda text: None)
    assert path.read_bytes() == before


def test_a_lesson_without_a_source_is_refused(workshop: Path) -> None:
    with pytest.raises(CourseError, match="02_baselines"):
        build.build(["02"], report=lambda text: None)


# ---------------------------------------------------------------- pictures have words


def test_a_picture_is_shown_with_its_words_as_alternative_text_and_as_a_caption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    from course.lesson import view

    shown: list[tuple[dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(view, "in_notebook", lambda: True)
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, metadata, raw: shown.append((data, metadata)),
    )
    setup("01").picture(Figure(), "Run A < B")
    (picture, told), (below, _) = shown
    assert picture["image/png"].startswith("iVBOR")
    assert told == {"image/png": {"alt": "Run A < B"}}
    assert ">Run A &lt; B</div>" in below["text/html"]


def test_a_saved_picture_keeps_its_words_and_no_other_metadata() -> None:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    told = {"image/png": {"alt": "words"}, "other": {"x": 1}}
    made.cells[0].outputs = [
        nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata=told)
    ]
    build.tidy(made)
    assert made.cells[0].outputs[0].metadata == {"image/png": {"alt": "words"}}
