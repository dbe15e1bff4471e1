"""The commands: settings from text, exit statuses, whole files or none, and errors of one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from course import cli, ladder
from course.errors import CourseError
from course.lab import ablation, command, places
from course.lab.facts import Fact
from course.lab.result import SCHEMA, Result
from course.lab.terminal import QUIET, Progress, Shown, duration, guarded, text_table
from course.train import device

COIN = '''"""A coin of one's own: thrown, counted, compared."""
import time
from dataclasses import dataclass
import numpy as np
from course.lab import figures
from course.ladder import select
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import share_error

TITLE = "How often a coin shows heads"
EXPECTED_SECONDS = 0.1


@dataclass(frozen=True)
class Settings(Checked):
    throws: int = 1_000  # independent throws
    chance: float = 0.5  # of heads
    expected: float = 0.5
    wait: float = 0.0  # seconds to sleep, in all
    rungs: tuple[str, ...] = ("clip", "grpo")
    device: str = "cpu"
    seed: int = 0


SETTINGS = Settings()


def run(settings, progress):
    heads = np.random.default_rng(settings.seed).random(settings.throws) < settings.chance
    for _ in progress(range(100), "throws"):
        time.sleep(settings.wait / 100)
    share, error = share_error(int(heads.sum()), settings.throws)
    names = [rung.name for rung in select(settings.rungs)]
    claim = "a coin is fair", "Bernoulli 1713"
    facts = [Fact.simulated(*claim, share, error, settings.expected, number=1)]
    counts = np.cumsum(heads) / np.arange(1, settings.throws + 1)
    series = {"share": counts, "rungs": names}
    return Result(series=series, facts=facts, caption="The share of heads.")


def plot(result):
    figure, [ax] = figures.new_figure()
    share = result.array("share")
    figures.band(ax, range(len(share)), share, 0.1, "grpo")
    figures.expectation(ax, y=0.5, label="fair")
    figures.label_ends(ax)
    return figure
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of one ablation, `coin`, in a current folder of its own, and its dotted name."""
    package = f"lab_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "coin.py").write_text(COIN)
    (folder / "_helper.py").write_text("raise RuntimeError('never imported by a listing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return package


def run(package: str, *argv: str) -> int:
    return command.main(package, "python -m lab", list(argv))


def in_process(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *argv], capture_output=True, text=True, cwd=cwd, timeout=120
    )


# ---------------------------------------------------------------- running an ablation


def test_a_run_writes_both_files_and_reports_its_facts(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "coin", "--seed", "3", "--throws", "500") == 0
    out = capsys.readouterr().out
    assert "1 of 1 claims reproduced" in out
    assert f"wrote {Path('figures/coin.png')} and {Path('figures/coin.json')}" in out
    found = Result.load(tmp_path / "figures" / "coin.json")
    assert found.settings["throws"] == 500
    assert found.settings["seed"] == 3
    assert found.title == "How often a coin shows heads"
    assert len(found.array("share")) == 500
    assert found.environment["device"] == "cpu"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"coin.png", "coin.json"}


def test_a_fact_that_fails_is_status_1_and_still_on_file(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "coin", "--expected", "0.9", "--out", "elsewhere") == 1
    assert "0 of 1 claims reproduced" in capsys.readouterr().out
    assert Result.load(tmp_path / "elsewhere" / "coin.json").held == 0


def test_a_figure_drawn_again_from_its_json_is_the_same_to_the_byte(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "coin") == 0
    picture, data = (
        (tmp_path / "figures" / "coin.png").read_bytes(),
        (tmp_path / "figures" / "coin.json").read_bytes(),
    )
    (tmp_path / "figures" / "coin.png").unlink()
    module = ablation.load(lab, "coin")
    monkeypatch.setattr(module, "run", lambda settings, progress: pytest.fail("it ran"))
    assert run(lab, "coin", "--redraw") == 0
    assert (tmp_path / "figures" / "coin.png").read_bytes() == picture
    assert (tmp_path / "figures" / "coin.json").read_bytes() == data
    assert run(lab, "coin", "--redraw", "--seed", "1") == 2
    (tmp_path / "figures" / "coin.json").write_text("{")
    assert run(lab, "coin", "--redraw") == 2
    assert "damaged" in capsys.readouterr().err


def test_a_plot_that_fails_leaves_no_file(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ablation.load(lab, "coin")
    monkeypatch.setattr(module, "plot", lambda result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ablation.run_ablation(module, folder=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unwritable_folder_is_refused_before_the_run(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        ablation.load(lab, "coin"), "run", lambda settings, progress: pytest.fail("it ran")
    )
    assert run(lab, "coin", "--out", "file/figures") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: out: got 'file/figures'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["con"], "unknown ablation 'con': did you mean 'coin'?"),
        (["coin", "--throw", "3"], "unknown option '--throw': did you mean '--throws'?"),
        (["coin", "--set", "throws=3"], "--set: got 'throws=3'; allowed is --throws 3"),
        (["coin", "--throws", "x"], "--throws: got 'x'; allowed is a whole number"),
        (["coin", "--throws", "0"], "--throws: got 0; allowed is a whole number ≥ 1"),
        (["coin", "--throws", "9" * 30], "--throws: got"),
        (["coin", "--chance", "nan"], "--chance: got nan; allowed is a finite number"),
        (["coin", "--seed", "x"], "--seed: got 'x'; allowed is a whole number"),
        (["coin", "--seed", "-1"], "--seed: got -1; allowed is a whole number from 0"),
        (["coin", "--seed"], "'--seed'"),
        (["--seed", "1", "coin"], "allowed is the NAME of an ablation first"),
        (
            ["coin", "--rungs", "clip,grop"],
            "--rungs: got unknown rung 'grop': did you",
        ),
        (["coin", "--rungs", ","], "--rungs: got (); allowed is at least one value"),
        (["coin", "--rungs", "none.py:mine"], "'none.py', which is no file"),
        (["coin", "--device", "cuda:99"], "allowed is what this machine has: cpu"),
        (
            ["coin", "--device", "warp"],
            "--device: got 'warp'; allowed is what this",
        ),
        (["coin", "--redraw"], "no such file"),
        (["coin", "--colour", "red"], "unknown option '--colour'"),
        (["coin", "more"], "arguments: got 'more'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    lab: str, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_an_option_needs_a_setting_of_that_name(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = COIN.replace("    seed: int = 0\n", "").replace("settings.seed", "0")
    (tmp_path / lab / "fixed.py").write_text(source)
    assert run(lab, "fixed", "--seed", "1") == 2
    assert "unknown option '--seed'" in capsys.readouterr().err


def test_an_estimator_of_ones_own_is_compared_by_file_and_name(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from course import ladder, replace\nhalf = replace(ladder.rloo, entropy_coef=0.123)\n"
    )
    assert run(lab, "coin", "--rungs", "reinforce,mine.py:half") == 0
    found = Result.load(tmp_path / "figures" / "coin.json")
    assert found.series["rungs"] == ["reinforce", "half"]
    assert found.settings["rungs"] == ["reinforce", "half"]


def test_the_listing_names_every_ablation_with_its_time(
    lab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert places.names(lab) == ["coin"]
    assert list(ablation.discover(lab)) == ["coin"]
    assert run(lab) == 0
    out = capsys.readouterr().out
    assert "coin  0.1 s  How often a coin shows heads" in out
    assert run("no_such_package.ablations") == 0
    assert "no ablations here yet" in capsys.readouterr().out
    assert run("no_such_package.ablations", "coin") == 2


def test_help_shows_the_settings_with_their_comments(
    lab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "coin", "--help") == 0
    out = capsys.readouterr().out
    assert "A coin of one's own" in out
    assert "--throws INT" in out
    assert "independent throws (default: 1000)" in out
    assert run(lab, "--help") == 0
    assert "--redraw" in capsys.readouterr().out


def test_an_incomplete_ablation_says_what_is_missing(lab: str, tmp_path: Path) -> None:
    (tmp_path / lab / "half.py").write_text("TITLE = 'half'\nSETTINGS = None\n")
    with pytest.raises(CourseError, match="half: got a module without EXPECTED_SECONDS, run, plot"):
        ablation.load(lab, "half")
    (tmp_path / lab / "loose.py").write_text(COIN.replace("Settings(Checked)", "Settings"))
    with pytest.raises(CourseError, match="frozen dataclass"):
        ablation.load(lab, "loose")


def test_ctrl_c_leaves_no_file_and_status_130(lab: str, tmp_path: Path) -> None:
    code = (
        # a shell starts what runs in its background with Ctrl-C ignored, and the tests may be that
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from course.lab.command import main; from course.lab.interrupt import leave;"
        f"leave(main({lab!r}, 'lab', ['coin', '--wait', '60', '--out', 'out']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it says what it does before it starts
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []


def test_figures_go_to_the_course_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.default_folder() == Path("figures")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    (tmp_path / "course" / "deep").mkdir(parents=True)
    (tmp_path / "course" / "pyproject.toml").write_text('[project]\nname = "pg-ladder"\n')
    assert places.project_root() is None
    monkeypatch.chdir(tmp_path / "course" / "deep")
    assert places.default_folder() == tmp_path / "course" / "figures"
    monkeypatch.chdir(tmp_path / "course")
    assert places.default_folder() == Path("figures")


# ---------------------------------------------------------------- `course`


@pytest.fixture
def climbed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Stand-ins for what the ladder runs, which write down their settings."""
    calls: list[tuple[str, dict]] = []

    def run(module: types.ModuleType, settings: object, out: Path, progress: object) -> Result:
        name = module.__name__
        calls.append((name, dataclasses.asdict(settings)))
        row = {"below": "surrogate", "rung": "clip", "stress": "stale", "predicted": None}
        for key in ("effect", "removed", "control"):
            row |= {key: 0.5, f"{key}_half": 0.25}
        fact = Fact.exact("one is one", "arithmetic", 1.0, 1.0)
        return Result(name="stub", series={"rows": {"clip, stale": row}}, facts=[fact])

    monkeypatch.setattr("course.lab.ablation.run_ablation", run)
    return calls


def test_ladder_hands_its_options_on_and_puts_both_problems_side_by_side(
    climbed: list[tuple[str, dict]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ladder", "--rungs", "clip, grpo", "--seed", "5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    [row] = [line.split() for line in out.splitlines() if line.startswith("clip ")]
    assert row[-6:] == ["+0.500", "±", "0.250", "+0.500", "±", "0.250"]
    assert [name for name, _ in climbed] == [
        "bandits.ablations.microscope",
        "bandits.ablations.parts",
        "tinylm.ablations.parts",
    ]
    for _, settings in climbed:
        assert settings["rungs"] == ("clip", "grpo")
        if "seed" in settings:  # the microscope enumerates
            assert (settings["seed"], settings["device"]) == (5, "cpu")
    both = Result.load(tmp_path / "figures" / "parts.json")
    assert list(both.series) == ["contextual bandit", "transformer"]
    assert (tmp_path / "figures" / "parts.png").stat().st_size > 10_000
    assert cli.main(["ladder", "--quick", "--out", "x"]) == 0
    assert climbed[-1][1]["seeds"] < climbed[2][1]["seeds"]
    assert (tmp_path / "x" / "parts.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_shell_completes_commands_ablations_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--completion", "bash"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (tmp_path / "complete.bash").write_text(out)
    typed = {
        "lad": "ladder",
        "bandits micro": "microscope",
        "tinylm train --kl": "--kl-stop",
        "ladder --q": "--quick",
    }
    for words, whole in typed.items():
        asked = f"COMP_WORDS=(course {words}); COMP_CWORD={len(words.split())}; _tyro_course"
        code = f'source complete.bash; {asked}; printf %s "${{COMPREPLY[@]}}"'
        bash = ["bash", "--norc", "-c", code]
        found = subprocess.run(bash, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert found.stdout.strip() == whole


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["laddr"], "unknown command 'laddr': did you mean 'ladder'?"),
        (["ladder", "--rungs", "grop"], "did you mean 'grpo'?"),
        (["ladder", "--rungs", "reinforce"], "at least one rung that stands on another"),
        (["ladder", "--seed", "many"], "--seed: got 'many'; allowed is a whole number"),
        (["ladder", "--seed", "-1"], "--seed: got -1"),
        (["ladder", "--device", "abacus"], "what this machine has: cpu"),
        (["ladder", "--out", "file/figures"], "out: got 'file/figures'"),
        (["ladder", "--run-all"], "unknown option '--run-all'"),
        (["facts", "--folder", "nowhere"], "folder: got 'nowhere'"),
        (["lab", "file"], "folder: got 'file', which is a file"),
        (["start", "file"], "folder: got 'file', which is a file"),
        (["start", "file/deep"], "file/deep"),
    ],
)
def test_bad_arguments_of_course_are_one_line_and_status_2(
    climbed: list[tuple[str, dict]],
    argv: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert says in captured.err
    assert climbed == []


def test_facts_prints_the_ledger_and_writes_the_count(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "coin") == 0
    names = ("facts", "failures", "ladder", "lessons", "badges")
    markers = "".join(f"<!-- {name} --><!-- /{name} -->" for name in names)
    (tmp_path / "README.md").write_text(markers)
    assert cli.main(["facts", "--readme"]) == 0
    assert "a coin is fair  [coin]" in capsys.readouterr().out
    written = (tmp_path / "README.md").read_text()
    tables = {
        "failures": "At present all of them hold.",
        "ladder": cli.ladder_table(),
        "lessons": cli.lessons_table(),
        "badges": cli.badges(),
    }
    generated = "".join(
        f"<!-- {name} -->\n{table}\n<!-- /{name} -->" for name, table in tables.items()
    )
    assert written == f"<!-- facts -->1 of 1 claims reproduced<!-- /facts -->{generated}"
    assert run(lab, "coin", "--expected", "0.9") == 1
    assert cli.main(["facts", "--readme"]) == 1
    assert (
        "\n- a coin is fair (coin.json)\n<!-- /failures -->" in (tmp_path / "README.md").read_text()
    )


def test_rungs_shows_each_with_its_equation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rungs"]) == 0
    out = capsys.readouterr().out
    for rung in ladder.RUNGS.values():
        assert rung.estimator.text() in out
        assert rung.source in out
    assert "length_mean with kl: K3()" in out


@pytest.fixture
def in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder as a checkout with a lesson, and the lessons that it links to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "pg-ladder"\n')
    (tmp_path / "notebooks" / "00_the_map.ipynb").write_text("{}")
    return tmp_path


def test_lab_starts_jupyter_on_a_copy_of_the_lessons(
    in_a_checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            calls.append(command)
            ours, others = env["JUPYTER_CONFIG_PATH"].split(os.pathsep)
            assert others == "/the/learners"  # settings stay
            told = json.loads((Path(ours) / "labconfig" / "page_config.json").read_text())
            assert told["disabledExtensions"] == {
                "@jupyterlab/apputils-extension:announcements": True  # no box about news
            }

        def wait(self) -> int:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C is JupyterLab's to answer
            return 0

    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/the/learners")
    monkeypatch.setattr(cli.subprocess, "Popen", Started)
    handler = signal.getsignal(signal.SIGINT)
    for argv, folder in ((["lab"], "my_course"), (["lab", "other dir"], "other dir")):
        assert cli.main([*argv, "--no-browser"]) == 0
        copy = in_a_checkout / folder
        root, first = f"--ServerApp.root_dir={copy}", copy / "notebooks" / "00_the_map.ipynb"
        jupyter = [sys.executable, "-m", "jupyterlab"]
        assert calls[-1] == [*jupyter, root, str(first), "--no-browser"]
        assert first.read_text() == "{}"
    assert signal.getsignal(signal.SIGINT) == handler
    monkeypatch.chdir(in_a_checkout / "other dir" / "notebooks")
    assert cli.main(["lab"]) == 0
    assert calls[-1][-1] == str(in_a_checkout / "other dir" / "notebooks" / "00_the_map.ipynb")
    capsys.readouterr()
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "pip install jupyterlab" in capsys.readouterr().err


def test_lab_resets_one_lesson_and_keeps_the_learners(
    in_a_checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["start", "my_course"]) == 0
    mine = in_a_checkout / "my_course" / "notebooks" / "00_the_map.ipynb"
    for version, aside in (("first", "00_the_map.yours"), ("second", "00_the_map.yours-2")):
        mine.write_text(version)
        assert cli.main(["lab", "--reset", "00"]) == 0
        assert f"{aside}.ipynb" in capsys.readouterr().out
        assert mine.read_text() == "{}"
        assert mine.with_name(f"{aside}.ipynb").read_text() == version
    assert cli.main(["lab", "--reset", "00"]) == 0
    assert len(list(mine.parent.iterdir())) == 3
    for words in (["--reset"], ["--reset", "77"], ["--reset", "00", "more"]):
        assert cli.main(["lab", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminal")
def test_one_ctrl_c_does_not_end_the_lab(tmp_path: Path) -> None:
    """JupyterLab asks; «n» lets it go on, «y» ends it with status 0 and without a traceback."""
    pytest.importorskip("jupyterlab")
    import pty

    master, slave = pty.openpty()
    words = ["lab", "copy", "--no-browser", "--allow-root", "--ServerApp.port_retries=50"]
    code = "import os; os.setsid(); import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    code += "from course.__main__ import main; main()"
    command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        try:
            shown = read_until(master, "is running at", 90)
            os.write(master, b"\x03")
            shown += read_until(master, "(y/[n])?", 20)
            os.write(master, b"n\n")
            shown += read_until(master, "resuming operation", 20)
            assert process.poll() is None
            time.sleep(2)  # JupyterLab takes its own handler back a moment after it says so
            os.write(master, b"\x03")
            shown += read_until(master, "(y/[n])?", 20)
            os.write(master, b"y\n")
            assert process.wait(30) == 0, shown
        finally:
            process.kill()
            os.close(master)
    assert "Traceback" not in shown


def read_until(terminal: int, text: str, seconds: float) -> str:
    """What a terminal shows, up to `text`; fails if it does not come in time."""
    import select

    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no «{text}» in {shown}"
        shown += os.read(terminal, 65536).decode("utf-8", "replace")
    return shown


def test_commands_as_a_user_types_them(tmp_path: Path) -> None:
    shown = in_process("course", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    for word in (
        "ladder",
        "facts",
        "rungs",
        "lab",
        "python -m bandits",
        "python -m tinylm",
        "--runs",
    ):
        assert word in shown.stdout
    wrong = in_process("bandits", "gradient_bandti", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown ablation 'gradient_bandti'")
    assert wrong.stderr.count("\n") == 1
    listed = in_process("tinylm", cwd=tmp_path)
    assert listed.returncode == 0
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- devices and the terminal


def test_devices_are_picked_from_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.pick_device("cpu").type == "cpu"
    monkeypatch.setattr(device, "available", lambda: ["cpu", "cuda", "cuda:0"])
    assert device.pick_device().type == "cuda"
    assert device.pick_device("cuda:0").index == 0
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    assert device.pick_device("auto").type == "cpu"
    with pytest.raises(
        CourseError, match=r"device: got 'cuda'; allowed is what this machine has: cpu"
    ):
        device.pick_device("cuda")


def test_a_gpu_without_float64_is_refused_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CourseError, match=r"device: got 'mps'; allowed is .*: cpu \(or auto\)"):
        device.pick_device("mps")


def test_progress_passes_items_through_and_closes_its_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(QUIET(range(3), "three")) == [0, 1, 2]
    with QUIET.bar(3) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    loud = Progress()
    items = loud(range(3), "loud")
    assert next(iter(items)) == 0
    loud.close()
    assert "loud" in capsys.readouterr().err


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    def raises(error: BaseException) -> int:
        raise error

    assert guarded(lambda: 1) == 1
    assert guarded(lambda: raises(CourseError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert guarded(lambda: raises(KeyboardInterrupt())) == 130
    assert guarded(lambda: raises(Shown())) == 0
    capsys.readouterr()
    assert guarded(lambda: raises(SystemExit(0))) == 2  # a part of the user's own gave up
    assert capsys.readouterr().err.startswith("error: sys.exit: got 0 in the middle of the work")
    assert guarded(lambda: int(1 / 0)) == 70  # a mistake of ours keeps its traceback
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert err.endswith("This is a mistake of the course, not of yours.\n")


def test_tables_and_times_for_people() -> None:
    assert text_table(("a", "bb"), [(1, "x"), (22, "")], right=[0]).splitlines() == [
        " a  bb",
        "──  ──",
        " 1  x",
        "22",
    ]
    assert [duration(seconds) for seconds in (0.42, 9.96, 40, 170)] == [
        "0.4 s",
        "10 s",
        "40 s",
        "3 min",
    ]


def test_results_of_an_ablation_are_valid_json(lab: str, tmp_path: Path) -> None:
    assert run(lab, "coin") == 0
    body = json.loads((tmp_path / "figures" / "coin.json").read_text())
    assert body["schema"] == SCHEMA
    said = (
        "number claim source measured standard_error expected tolerance relation runs chance holds"
    )
    assert set(body["facts"][0]) == set(said.split())
