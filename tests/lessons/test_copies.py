"""A learner's copy of the lessons: whole or not at all, and never over what is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from course.errors import CourseError
from course.lesson import SYLLABUS, build, copies, pages


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_copy_has_every_lesson_every_page_and_the_figures_they_lead_to(tmp_path: Path) -> None:
    copied = copies.start(tmp_path / "mine")
    found = contents(tmp_path / "mine")
    assert {tmp_path / "mine" / path for path in found} == set(copied.written)
    assert copied.kept == ()
    for lesson in SYLLABUS.values():
        path = Path("notebooks") / f"{lesson.file}.ipynb"
        assert found[path] == build.target(lesson).read_bytes()
    for page in pages.PAGES:
        assert found[Path("notebooks") / page] == (build.folder() / page).read_bytes()
    # CLAIMS.md links the numbers of every claim
    claims = found[Path("notebooks/CLAIMS.md")].decode()
    assert "(../figures/bridge.json)" in claims
    assert Path("figures/bridge.json") in found
    assert set(copies.start(tmp_path / "mine").written) == set()


def test_what_is_there_is_kept_and_named(tmp_path: Path) -> None:
    lessons = tmp_path / "notebooks"
    lessons.mkdir()
    (lessons / "04_clipping.ipynb").write_text("mine")
    (lessons / "CLAIMS.md").symlink_to(tmp_path / "nowhere")
    (lessons / "other.txt").write_text("not the course's")
    copied = copies.start(tmp_path)
    assert set(copied.kept) == {lessons / "04_clipping.ipynb", lessons / "CLAIMS.md"}
    assert (lessons / "04_clipping.ipynb").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert (lessons / "other.txt").read_text() == "not the course's"
    assert (lessons / "05_critics.ipynb").is_file()


def test_a_copy_that_cannot_be_finished_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moved = os.replace, []

    def full(source: Path, target: Path) -> None:
        if len(moved) == 3:
            raise OSError(28, "No space left on device")
        if str(source).endswith(".course.tmp") and "journal" not in str(source):
            moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CourseError, match="No space left"):
        copies.start(tmp_path / "mine")
    assert contents(tmp_path / "mine") == {}


def test_a_course_without_lessons_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('name = "pg-ladder"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match=r"lessons: got .*allowed is a folder with 00_the_map"):
        copies.start(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
