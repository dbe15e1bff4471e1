"""Results: tolerances follow from stated errors, files are whole or absent, and the ledger counts
what the numbers say.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from course.errors import CourseError
from course.lab import ledger, statistics
from course.lab.facts import Fact, Facts
from course.lab.result import Result, environment
from course.train import files

PICTURE = b"\x89PNG a picture"


def fact(measured: object = 0.5, expected: object = 0.5, **more: object) -> Fact:
    return Fact.exact("a claim", "a source", measured, expected, **more)


def result(**more: object) -> Result:
    given = {
        "name": "coin",
        "title": "A coin",
        "settings": {"runs": 3},
        "series": {"x": [1, 2]},
        "facts": [fact(number=4)],
    }
    return Result(**{**given, **more})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- tolerances


def test_simulated_tolerance_is_four_errors_in_quadrature() -> None:
    compared = Fact.simulated("c", "s", 1.0, 0.03, 1.2, 0.04)
    assert compared.tolerance == pytest.approx(4 * 0.05)
    assert compared.holds
    assert not Fact.simulated("c", "s", 1.0, 0.03, 1.2001, 0.04).holds
    assert Fact.simulated("c", "s", 1.0, 0.03, 1.1199).holds
    assert not Fact.simulated("c", "s", 1.0, 0.03, 1.1201).holds


def test_published_tolerance_adds_the_rounding_of_print() -> None:
    compared = Fact.published("c", "s", 0.741, 0.002, 0.73, rounding=0.005)
    assert compared.tolerance == pytest.approx(0.013)
    assert compared.holds
    assert not Fact.published("c", "s", 0.7431, 0.002, 0.73, rounding=0.005).holds


def test_exact_tolerance_is_relative_and_takes_a_scale_where_terms_cancel() -> None:
    assert fact(1e6 * (1 + 5e-10), 1e6).holds
    assert not fact(1e6 * (1 + 2e-9), 1e6).holds
    assert fact(1e-6, 1e-6 * (1 + 2e-9)).holds is False
    assert fact(5e-10, 0.0).tolerance == pytest.approx(1e-9)
    assert fact(3e-7, 0.0, scale=1e3).holds
    assert fact(1.01, 1.0, digits=2).tolerance == pytest.approx(0.01)


def test_bounds_must_be_passed_by_four_standard_errors() -> None:
    assert Fact.above("c", "s", 1.41, 1.0, 0.1).holds
    assert not Fact.above("c", "s", 1.39, 1.0, 0.1).holds
    assert Fact.below("c", "s", 0.59, 1.0, 0.1).holds
    assert not Fact.below("c", "s", 0.61, 1.0, 0.1).holds
    assert not Fact.above("c", "s", 1.0, 1.0).holds


@pytest.mark.parametrize("make", [Fact.exact, Fact.above, Fact.below])
def test_nan_never_holds(make: object) -> None:
    assert not make("c", "s", math.nan, 1.0).holds
    assert not make("c", "s", 1.0, math.nan).holds


def test_an_unknown_or_infinite_error_proves_nothing() -> None:
    for error in (math.nan, math.inf):
        assert not Fact.simulated("c", "s", 1.0, error, 1.0).holds
        assert not Fact.published("c", "s", 1.0, error, 1.0, 0.5).holds


def test_words_and_truth_values_are_compared_as_they_are() -> None:
    assert fact(np.bool_(True), True).holds
    assert not fact(True, False).holds
    assert not fact(True, 1).holds  # a truth value is not a number
    assert not fact(1, True).holds
    assert fact("arm B", "arm B").holds
    assert not fact("arm B", "arm A").holds
    assert fact(math.inf, math.inf).holds


def test_scalars_of_every_kind_become_numbers() -> None:
    for value in (torch.tensor([0.25]), np.float32(0.25), np.array([[0.25]]), 0.25):
        assert fact(value, 0.25).measured == 0.25
    assert fact(torch.tensor(3), 3).holds


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Fact.simulated("c", "s", 1.0, -0.1, 1.0), "standard_error"),
        (lambda: Fact.simulated("c", "s", 1.0, 0.1, 1.0, -0.1), "expected_error"),
        (lambda: Fact.published("c", "s", 1.0, 0.1, 1.0, -0.5), "rounding"),
        (lambda: Fact("c", "s", 1.0, 0.0, 1.0, 0.0, "near"), "relation"),
        (lambda: Fact.above("c", "s", "high", 1.0), "relation"),
        (lambda: Fact.exact("", "s", 1.0, 1.0), "claim"),
        (lambda: Fact.exact("c", "s", 1.0, 1.0, number=0), "number"),
        (lambda: Fact.exact("c", "s", 1.0, 1.0, digits=12), "digits"),
        (lambda: Fact.exact("c", "s", torch.ones(2), 1.0), "measured"),
        (lambda: Fact.exact("c", "s", None, 1.0), "measured"),
    ],
)
def test_impossible_facts_are_refused_by_field(make: object, field: str) -> None:
    with pytest.raises(CourseError, match=field):
        make()


def test_tolerance_covers_what_it_says_it_covers() -> None:
    """4 standard errors of a mean of 50 normal draws are passed with probability 2·P(t₄₉ > 4) =
    2.1e-4: 0.8 in 4,000.
    """
    draws = np.random.default_rng(0).normal(2.0, 3.0, (50, 4000))
    mean, error = statistics.mean_error(draws)
    outside = sum(
        not Fact.simulated("c", "s", m, e, 2.0).holds for m, e in zip(mean, error, strict=True)
    )
    assert outside <= 6  # Poisson(0.8) is beyond 6 once in 50,000


def test_mean_error_is_the_standard_error_of_the_mean() -> None:
    mean, error = statistics.mean_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt(5 / 3) / 2)
    with pytest.raises(CourseError, match="at least 2"):
        statistics.mean_error([1.0])


def test_share_error_is_never_zero() -> None:
    share, error = statistics.share_error(0, 96)
    assert share == 0
    assert error == pytest.approx(math.sqrt(0.02 * 0.98 / 100))


# ---------------------------------------------------------------- round trip


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    facts = [
        fact(number=12),
        Fact.simulated("σ → 0", "Šmíd 1999", 0.1, 0.2, 0.3),
        fact(True, True),
        fact(math.inf, math.inf),
    ]
    saved = result(
        settings={"rates": (0.1, 0.4), "device": "cpu", "beta": None, "baseline": True},
        series={
            "reward": torch.linspace(0, 1, 30).reshape(2, 15),
            "by G": {2: np.float32(1.5), 4: [True, "a", -0.0]},
            "n": np.int64(7),
        },
        facts=facts,
        environment=environment(),
        seconds=1.23456,
        caption="What one sees: “a coin”.",
    )
    saved.save(tmp_path, PICTURE)
    loaded = Result.load(tmp_path / "coin.json")
    assert loaded == saved
    assert (tmp_path / "coin.png").read_bytes() == PICTURE
    assert loaded.settings["rates"] == [0.1, 0.4]
    assert loaded.series["by G"]["4"] == [True, "a", 0.0]
    assert loaded.array("reward").shape == (2, 15)
    assert loaded.array("by G", "2") == 1.5
    assert loaded.seconds == 1.23


def test_not_a_number_and_infinities_survive_in_valid_json(tmp_path: Path) -> None:
    result(series={"x": [math.nan, math.inf, -math.inf, 1.0]}, facts=[fact(math.nan, 1.0)]).save(
        tmp_path, PICTURE
    )
    text = (tmp_path / "coin.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    loaded = Result.load(tmp_path / "coin.json")
    assert np.array_equal(loaded.array("x"), [math.nan, math.inf, -math.inf, 1.0], equal_nan=True)
    assert math.isnan(float(loaded.facts[0].measured))
    assert loaded.held == 0


def test_series_are_rounded_to_seven_digits_and_settings_are_not() -> None:
    rounded = result(series={"x": [math.pi, 1e-12 * math.pi]}, settings={"rate": math.pi})
    assert rounded.series["x"] == [3.141593, 3.141593e-12]
    assert rounded.settings["rate"] == math.pi


def test_json_is_laid_out_for_diffs() -> None:
    """A list of numbers stands on lines of 12, a list of lists has a line for each, an entry of a
    dict its own.
    """
    lines = result(series={"x": list(range(13)), "y": [[1, 2], [3, 4]]}).text().splitlines()
    assert '  "x": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,' in lines
    assert "   12]," in lines
    assert "   [1, 2]," in lines
    assert "   [3, 4]" in lines


def test_dataclass_settings_are_written_by_field() -> None:
    @dataclass(frozen=True)
    class Settings:
        runs: int = 3
        out: Path = Path("x")

    assert result(settings=Settings()).settings == {"runs": 3, "out": "x"}


def test_environment_names_versions_hardware_and_no_date() -> None:
    first = environment()
    assert first["torch"] == torch.__version__
    assert first["threads"] == torch.get_num_threads()
    assert {"python", "numpy", "matplotlib", "course", "hardware", "device"} <= set(first)
    assert {"cpu", "cores"} <= set(first["hardware"])
    assert first == environment()


def test_what_json_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(CourseError, match=r"result\.series\.deep\.x: got object"):
        result(series={"deep": {"x": [object()]}})
    with pytest.raises(CourseError, match=r"result\.name"):
        result(name="../elsewhere")
    with pytest.raises(CourseError, match=r"allowed is x"):
        result().array("z")


# ---------------------------------------------------------------- whole files or none


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A folder with an older pair of files."""
    result(title="the old one").save(tmp_path, b"old picture")
    return tmp_path


def is_as_before(folder: Path) -> bool:
    old = Result.load(folder / "coin.json").title == "the old one"
    return (
        old
        and (folder / "coin.png").read_bytes() == b"old picture"
        and names_in(folder) == {"coin.json", "coin.png"}
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 3])  # the journal, the picture, the numbers
def test_a_failure_between_the_files_leaves_both_as_before(
    before: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: BaseException,
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            raise error
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    for folder in (before, empty):
        calls.clear()
        with pytest.raises(CourseError if isinstance(error, OSError) else KeyboardInterrupt):
            result(title="the new one").save(folder, b"new picture")
    assert is_as_before(before)
    assert names_in(empty) == set()


def test_a_disk_that_fills_up_leaves_both_as_before(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.fsync

    def full(file: int) -> None:
        os.ftruncate(file, 10)
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(file)

    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CourseError, match="No space left"):
        result().save(before, PICTURE)
    monkeypatch.undo()
    assert is_as_before(before)


def test_a_picture_that_cannot_be_drawn_leaves_both_as_before(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from course.lab import figures

    def broken(figure: object) -> bytes:
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "png", broken)
    with pytest.raises(RuntimeError, match="no font"):
        result().save(before, figures.new_figure()[0])
    assert is_as_before(before)


KILLED = """
import os, signal, sys
from course.train import files
from tests.course.test_results import result
call, place = os.{call}, [0]
def killed(*arguments):
    place[0] += 1
    if place[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments)
files.os.{call} = killed
result(title="the new one").save(sys.argv[1], b"new picture")
"""


@pytest.mark.parametrize(
    ("call", "at"),
    [
        (call, at)
        for call, times in (("fsync", 3), ("link", 2), ("replace", 3))
        for at in range(1, times + 1)
    ],
)
@pytest.mark.parametrize("reader", ["load", "save", "ledger", "check"])
def test_a_kill_anywhere_leaves_a_pair_that_belongs_together_and_no_litter(
    before: Path, call: str, at: int, reader: str
) -> None:
    """kill -9 while each of the files is written, kept, or renamed; then something reads or writes
    there.
    """
    script = KILLED.format(call=call, at=at)
    root = str(Path(__file__).parents[2])
    killed = subprocess.run(
        [sys.executable, "-c", script, str(before)], env={**os.environ, "PYTHONPATH": root}
    )
    assert killed.returncode == -signal.SIGKILL
    if reader == "load":
        Result.load(before / "coin.json")
    elif reader == "ledger":
        ledger.ledger(before)
    elif reader == "check":
        files.check_writable(before)
    else:
        result(name="other").save(before, PICTURE)
        (before / "other.json").unlink()
        (before / "other.png").unlink()
    picture, title = (before / "coin.png").read_bytes(), Result.load(before / "coin.json").title
    assert (picture, title) == (b"old picture", "the old one")
    files.check_writable(before)  # any next run
    assert names_in(before) == {"coin.json", "coin.png"}


def test_a_pair_that_was_not_there_before_is_gone_after_a_kill_between(tmp_path: Path) -> None:
    script = KILLED.format(call="replace", at=3)
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": root}
    )
    assert "coin.png" in names_in(tmp_path)  # renamed, and its numbers were not
    files.settle(tmp_path)
    assert names_in(tmp_path) == set()


def test_two_who_write_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Four processes write pairs of one name over and over: what is there is always of one."""
    script = (
        "import sys\nfrom tests.course.test_results import result\n"
        "for i in range(25):\n"
        "    result(title=sys.argv[2]).save(sys.argv[1], sys.argv[2].encode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], env=environment)
        for name in ("one", "two", "three")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    title = Result.load(tmp_path / "coin.json").title
    assert (tmp_path / "coin.png").read_bytes() == title.encode()
    assert names_in(tmp_path) == {"coin.json", "coin.png"}


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "file").symlink_to(tmp_path / "there" / "file")
    files.replace_files({tmp_path / "file": b"new"})
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in (".coin.png.tmp", "notes.old", ".hidden"):
        (tmp_path / name).write_text("mine")
    result().save(tmp_path, PICTURE)
    assert names_in(tmp_path) == {".coin.png.tmp", "notes.old", ".hidden", "coin.json", "coin.png"}


def test_saving_twice_replaces_and_leaves_nothing_beside(before: Path) -> None:
    result(title="the new one").save(before, PICTURE)
    assert Result.load(before / "coin.json").title == "the new one"
    assert names_in(before) == {"coin.json", "coin.png"}


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match=r"out: got .*file/figures.*allowed is a folder"):
        files.check_writable(tmp_path / "file" / "figures")
    with pytest.raises(CourseError, match=r"coin\.png: cannot be written"):
        result().save(tmp_path / "file", PICTURE)
    assert files.check_writable(tmp_path / "a" / "b").is_dir()
    assert names_in(tmp_path / "a" / "b") == set()


# ---------------------------------------------------------------- damaged files


def damaged(path: Path, change: object) -> Path:
    result().save(path.parent, PICTURE)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body.pop("schema"), "no schema"),
        (lambda body: body.pop("series"), "fields"),
        (lambda body: body.update(author="me"), "author"),
        (lambda body: body.update(facts={}), "facts"),
        (lambda body: body.update(series=[1]), "series"),
        (lambda body: body["facts"][0].pop("tolerance"), "tolerance"),
        (lambda body: body["facts"][0].update(standard_error="small"), "standard_error"),
        (lambda body: body["facts"][0].update(relation="near"), "relation"),
        (lambda body: body["facts"][0].update(holds=False), "holds"),
        (lambda body: body["facts"][0].update(measured=0.6), "holds"),
        (lambda body: body.update(seconds="long"), "seconds"),
    ],
)
def test_damaged_results_are_refused_with_file_and_field(
    tmp_path: Path, change: object, says: str
) -> None:
    path = damaged(tmp_path / "coin.json", change)
    with pytest.raises(CourseError, match=r"coin\.json.*" + says):
        Result.load(path)


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no such file"):
        Result.load(tmp_path / "none.json")
    result().save(tmp_path, PICTURE)
    path = tmp_path / "coin.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CourseError, match="damaged"):
        Result.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CourseError, match="damaged"):
        Result.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(CourseError, match="JSON list"):
        Result.load(path)


# ---------------------------------------------------------------- the ledger


def test_the_ledger_counts_and_orders_by_claim(tmp_path: Path) -> None:
    result(name="b", facts=[fact(number=12), fact(0.5, 0.6, number=3)]).save(tmp_path, PICTURE)
    result(name="a", facts=[fact(), fact(number=4)]).save(tmp_path, PICTURE)
    found = ledger.ledger(tmp_path)
    assert [(name, one.number, one.holds) for name, one in found.entries] == [
        ("b", 3, False),
        ("a", 4, True),
        ("b", 12, True),
        ("a", None, True),
    ]
    assert found.summary == "3 of 4 claims reproduced"
    headings = [line for line in found.table().splitlines() if line and line[0] != " "]
    assert headings == [
        "3 · covariance identity",
        "4 · optimal baseline",
        "12 · what dividing by the std optimises",
        "not on the list",
    ]
    assert found.table().count("holds: ") == 3
    assert found.table().count("DOES NOT HOLD: ") == 1
    assert max(map(len, found.table(60).splitlines())) <= 60
    assert found.measured == {3: ["b"], 4: ["a"], 12: ["b"]}


def test_a_number_that_is_not_on_the_list_of_claims_is_refused(tmp_path: Path) -> None:
    result(name="a", facts=[fact(number=999)]).save(tmp_path, PICTURE)
    with pytest.raises(CourseError, match=r"a: fact\.number: got 999; allowed is a number of"):
        ledger.ledger(tmp_path)


def test_an_empty_folder_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="folder"):
        ledger.ledger(tmp_path)


def test_the_readme_count_is_generated(tmp_path: Path) -> None:
    result().save(tmp_path, PICTURE)
    found = ledger.ledger(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("So far <!-- facts -->0 of 0<!-- /facts -->, measured.\n")
    assert ledger.update_readme(readme, {"facts": found.summary})
    assert (
        readme.read_text()
        == "So far <!-- facts -->1 of 1 claims reproduced<!-- /facts -->, measured.\n"
    )
    assert not ledger.update_readme(readme, {"facts": found.summary})
    readme.write_text("no markers")
    with pytest.raises(CourseError, match="markers"):
        ledger.update_readme(readme, {"facts": found.summary})


@pytest.mark.parametrize(
    ("measured", "error", "shown"),
    [
        (0.123456, 0.00123, "0.1235 ± 0.0012"),
        (1234.5, 67.0, "1234 ± 67"),
        (0.5, 0.0, "0.5"),
        (True, 0.0, "True"),
        (1 / 3, 0.0, "0.333333"),
    ],
)
def test_measurements_are_shown_to_two_digits_of_their_error(
    measured: float, error: float, shown: str
) -> None:
    assert Fact("c", "s", measured, error, measured, 0.0).found == shown


def test_the_core_imports_without_matplotlib() -> None:
    code = (
        "import sys, course, course.lab.result, course.lab.figures, course.lab.ablation,"
        " course.cli; print('matplotlib' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_facts_of_one_source_are_those_of_the_constructors() -> None:
    facts = Facts("somebody 2020, eq. 1", 3, runs=20)
    facts.exact("a", 1.0, 1.0 + 1e-10)
    facts.simulated("b", (1.0, 0.1), 1.2, 0.05, source="somebody else")
    facts.published("c", (0.5, 0.01), 0.52, 0.005)
    facts.above("d", (2.0, 0.1), 1.0)
    facts.below("e", 1.0, 2.0)
    source, given = "somebody 2020, eq. 1", {"number": 3, "runs": 20}
    assert facts == [
        Fact.exact("a", source, 1.0, 1.0 + 1e-10, number=3),
        Fact.simulated("b", "somebody else", 1.0, 0.1, 1.2, 0.05, **given),
        Fact.published("c", source, 0.5, 0.01, 0.52, 0.005, **given),
        Fact.above("d", source, 2.0, 1.0, 0.1, **given),
        Fact.below("e", source, 1.0, 2.0, number=3),  # no error, so nothing was estimated
    ]
