"""What is installed from the wheel does everything, in a folder where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEGABYTES = 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the course, built from a copy of what is tracked."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    asked = subprocess.run(listed, cwd=ROOT, capture_output=True)
    if asked.returncode:
        pytest.skip("no git checkout")
    for name in filter(None, asked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)]
    subprocess.run(pip, check=True, timeout=300)
    [made] = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the course from the wheel; what it needs is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    return folder


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_wheel_carries_lessons_figures_and_types_and_is_small(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("notebooks/*.ipynb", "notebooks/*.md", "notebooks/src/*/*.toml", "figures/*.*"):
        paths = list(ROOT.glob(pattern))
        assert paths
        for path in paths:
            assert f"course/material/{path.relative_to(ROOT).as_posix()}" in names
    assert {"course/py.typed", "course/CONVENTIONS.md"} <= names
    assert not [name for name in names if name.startswith(("tests/", "notebooks/"))]
    assert wheel.stat().st_size < MEGABYTES * 1e6
    described = zipfile.ZipFile(wheel).read("pg_ladder-0.1.0.dist-info/METADATA").decode()
    assert "](figures/" not in described
    assert "/raw/main/figures/parts.png)" in described


@pytest.mark.slow
def test_every_command_works_from_the_wheel_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    where = run(installed, tmp_path, "-c", "import course; print(course.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    for words, says in (
        (["facts"], "claims reproduced"),
        (["progress"], "The map"),
        (["bandits"], "gradient_bandit"),
        (["tinylm"], "train"),
        (["start", "mine"], "files copied into mine"),
    ):
        done = run(installed, tmp_path, "-m", "course", *words)
        assert says in done.stdout, (words, done.stderr)
        assert done.returncode == (1 if words == ["facts"] else 0), (words, done.stderr)
    assert (tmp_path / "mine" / "notebooks" / "09_ladder_on_a_language_model.ipynb").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.slow
def test_a_lesson_that_reads_figures_runs_in_a_copy_from_the_wheel(
    installed: Path, tmp_path: Path
) -> None:
    assert run(installed, tmp_path, "-m", "course", "start", "mine").returncode == 0
    code = (
        "import nbformat; from nbclient import NotebookClient;"
        "lesson = nbformat.read('07_kl_anchor.ipynb', as_version=4);"
        "NotebookClient(lesson, timeout=120, kernel_name='python3').execute();"
        "print('executed')"
    )
    done = run(installed, tmp_path / "mine" / "notebooks", "-c", code)
    assert done.stdout == "executed\n", done.stderr
