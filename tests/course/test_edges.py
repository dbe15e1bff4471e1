"""The edges of the process: encodings, streams that are missing, full or closed, Ctrl-C, files of
the user's own. What every command promises: one line, exit 2, nothing lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from course.errors import CourseError
from course.lab.settings import Checked, read
from course.lab.terminal import explain, spell

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line as a user types it; `python` is this Python."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("python", sys.executable)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        timeout=120,
    )


ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@posix
def test_output_that_cannot_be_encoded_is_spelled(tmp_path: Path) -> None:
    windows = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    found = shell("python -m course rungs | cat", tmp_path, **windows)
    assert found.returncode == 0
    assert "1/N Sigma_i Sigma_t [A·log pi],  A = R" in found.stdout.decode("cp1252")
    found = shell("python -m course metrics | cat", tmp_path, **ASCII)
    assert found.returncode == 0
    assert found.stdout.isascii()


@pytest.mark.parametrize(
    ("character", "ascii"),
    [
        ("ρ", "rho"),
        ("Σ", "Sigma"),
        ("−", "-"),
        ("≥", ">="),
        ("½", "1/2"),
        ("₁", "1"),
        ("é", "e"),
        ("🎲", "\\U0001f3b2"),
    ],
)
def test_every_character_has_an_ascii_spelling(character: str, ascii: str) -> None:
    assert spell(character) == ascii


@posix
@pytest.mark.slow
def test_missing_streams_do_not_stop_the_work(tmp_path: Path) -> None:
    found = shell("python -m bandits microscope --out D >&- 2>&-", tmp_path)
    assert found.returncode == 0
    assert sorted(os.listdir(tmp_path / "D")) == ["microscope.json", "microscope.png"]


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_output_device_is_one_line_and_status_2(tmp_path: Path) -> None:
    found = shell("python -m course rungs > /dev/full", tmp_path)
    assert found.returncode == 2
    assert found.stderr.startswith(b"error: output: got No space left on device")
    assert found.stderr.count(b"\n") == 1
    assert shell("python -m course laddr 2> /dev/full", tmp_path).returncode == 2


@posix
@pytest.mark.slow
def test_a_closed_pipe_does_not_end_a_training(tmp_path: Path) -> None:
    nano = "--preset nano --digits 1 --warm-lr .01 --warm-target .1 --prompts 4 --group 4"
    found = shell(f"python -m tinylm train {nano} --rollouts 3 --out T | head -1", tmp_path)
    assert found.returncode == 0
    assert (tmp_path / "T" / "checkpoint.safetensors").exists()


@posix
@pytest.mark.parametrize(
    ("text", "says"),
    [("raise SystemExit(0)", "SystemExit: 0"), ("raise BaseException('b')", "BaseException: b")],
)
def test_whatever_a_file_of_ones_own_raises_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(text)

    @dataclass(frozen=True)
    class Chosen(Checked):
        rung: str = "grpo"

    with pytest.raises(CourseError, match=says) as caught:
        read(Chosen, ["--rung", f"{tmp_path / 'mine.py'}:e"], "x")
    assert "mine.py: got a file that does not run" in str(caught.value)


def test_what_the_machine_refuses_is_no_mistake_of_the_course() -> None:
    assert "memory" in str(explain(MemoryError("Unable to allocate 76 GiB")))
    assert "memory" in str(explain(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    assert "nested" in str(explain(RecursionError("maximum recursion depth exceeded")))
    assert "'locked'" in str(explain(PermissionError(13, "Permission denied", "locked")))
    assert explain(ZeroDivisionError("division by zero")) is None


def test_notebooks_are_not_built_outside_of_the_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from course import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "EQUATIONS.md").write_text("mine")
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")  # no text: not this course's
    assert cli.main(["notebooks", "--pages"]) == 2
    assert "notebooks: got" in capsys.readouterr().err
    assert (tmp_path / "EQUATIONS.md").read_text() == "mine"
