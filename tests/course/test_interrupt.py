"""One Ctrl-C always ends a command with status 130, whatever is running when it comes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from course.errors import CourseError
from course.lab.interrupt import INTERRUPTED, importing
from course.lab.terminal import guarded
from course.train import files
from course.train.files import JOURNAL, check_writable, replace_files

MODULE = """
import signal, sys
from course.lab.interrupt import importing

inside = importing(sys._getframe())
try:
    signal.raise_signal(signal.SIGINT)
    swallowed = False
except BaseException:
    swallowed = True
"""


@pytest.fixture(autouse=True)
def python_answers_ctrl_c() -> Iterator[None]:
    """As in a command's own process; one of several that run tests side by side ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def work() -> int:
    """What a command does after the Ctrl-C: it would go on for a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.001)
    return 0


def test_a_ctrl_c_that_python_ignores_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)  # an exception in here is ignored

    def body() -> int:
        Dying()
        return work()

    assert guarded(body) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: no file was left half-written\n"
    assert sys.unraisablehook.__module__ != "course.lab.terminal"


def test_a_ctrl_c_in_an_import_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module would swallow it: PyTorch aborts the process."""
    (tmp_path / "interrupted_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def body() -> int:
        import interrupted_module  # type: ignore[import-not-found]

        assert interrupted_module.inside
        assert not interrupted_module.swallowed
        return work()

    assert guarded(body) == INTERRUPTED
    assert "interrupted_module" in sys.modules
    assert not importing(sys._getframe())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'"x"', b"[1]", b'[["x"]]', b'[["x", 2]]', b"[" * 100_000]
)
def test_a_damaged_journal_is_told_and_nothing_is_changed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / JOURNAL).write_bytes(content)
    for attempt in (
        lambda: check_writable(tmp_path),
        lambda: replace_files({tmp_path / "x": b"new"}),
    ):
        with pytest.raises(CourseError, match=r"damaged journal .*allowed is"):
            attempt()
    assert (tmp_path / "x").read_text() == "old"


def test_a_journal_with_a_flipped_byte_is_no_reason_to_lose_the_old_file(tmp_path: Path) -> None:
    """A wrong name in it, and what is kept under the right one would be removed as litter."""
    for name in ("x", "y"):
        (tmp_path / name).write_text("old")

    def flip(journal: bytes, place: int) -> bytes:
        return journal[:place] + bytes([journal[place] ^ 1]) + journal[place + 1 :]

    # as a kill between the two renames leaves it
    for name in ("x", "y"):
        files._keep(tmp_path / name)
    files._write_journal(tmp_path, [tmp_path / "x", tmp_path / "y"])
    (tmp_path / "y").unlink()
    (tmp_path / "y").write_text("new")
    whole = (tmp_path / JOURNAL).read_bytes()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for place in range(len(whole)):
        (tmp_path / JOURNAL).write_bytes(flip(whole, place))
        with pytest.raises(CourseError, match=r"damaged journal .*allowed is"):
            check_writable(tmp_path)
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert left | {JOURNAL: whole} == before
    (tmp_path / JOURNAL).write_bytes(whole)
    check_writable(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old", "y": "old"}
