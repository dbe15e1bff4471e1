"""Lessons as their readers meet them: a real JupyterLab in headless Chromium.

Needs the extra `browser` and the system's chromium.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from course.lesson import build, info, progress

LESSONS = ("01", "04", "07")
SECONDS = 1000  # milliseconds, for the browser's time limits


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the lessons, so that running them leaves the
    committed ones alone.
    """
    pytest.importorskip("jupyterlab")
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for number in LESSONS:
        shutil.copy(build.target(info(number)), folder / "notebooks")
    shutil.copy(
        root / "pyproject.toml", folder
    )  # lessons look for the course they stand in, and for its figures
    (folder / "figures").symlink_to(root / "figures")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        progress.FILE: str(folder / "progress.json"),
        "PYTHONPATH": str(root),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    before, os.environ[progress.FILE] = os.environ[progress.FILE], environment[progress.FILE]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += [
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]
    server = subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, "JupyterLab did not start"
                time.sleep(0.5)
        yield address
    finally:
        os.environ[progress.FILE] = before
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_runs_answers_and_redraws(number: str, browser: Any, lab: str) -> None:
    """Run all cells; move a slider: another picture; answer a question: feedback; try an exercise
    wrongly and rightly: its verdicts.
    """
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.goto(f"{lab}/lab/tree/{info(number).file}.ipynb?reset", timeout=90 * SECONDS)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90 * SECONDS)
    page.wait_for_selector("text=/\\| Idle/", timeout=90 * SECONDS)  # the kernel is there
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-item:has-text('Run All Cells') >> nth=0")
    page.wait_for_selector(".widget-vbox", timeout=150 * SECONDS)
    _finished(page)
    assert (
        page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count()
        == 0
    )

    page.wait_for_selector(".noUi-handle", timeout=150 * SECONDS)
    box = page.locator(".widget-vbox:has(.noUi-handle)").first
    box.scroll_into_view_if_needed()
    picture = box.locator("img").first
    before = picture.get_attribute("src")
    handle = box.locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight" if _can_rise(handle) else "ArrowLeft")
    _until(
        lambda: picture.get_attribute("src") != before, "the slider moved and the picture stayed"
    )

    question = page.locator(".widget-vbox:has(input[type=radio])").first
    question.scroll_into_view_if_needed()
    said = question.locator(".widget-html-content").last
    answers = set()
    for choice in range(question.locator("input[type=radio]").count()):
        question.locator("input[type=radio]").nth(choice).check()
        question.locator("button").first.click()
        _until(
            lambda: (
                said.inner_text().startswith(("Right.", "No.")) and said.inner_text() not in answers
            ),
            "no feedback",
        )
        answers.add(said.inner_text())
    assert sum(text.startswith("Right.") for text in answers) == 1
    _until(
        lambda: len(progress.read().get(number, {}).get("questions", [])) == 1,
        "a right answer was not noted",
    )

    place, name = _first_stub(number)
    cell = page.locator(".jp-Notebook .jp-Cell").nth(place)
    cell.scroll_into_view_if_needed()
    _until(
        lambda: "Not attempted yet." in cell.locator(".jp-OutputArea").first.inner_text(),
        "the untouched stub has no verdict",
    )
    for attempt, verdict in (("wrong[0]", "Not yet."), ("solution", "Passed.")):
        cell.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(f"{name}.check({name}.{attempt})")
        page.keyboard.press("Control+Enter")
        output = cell.locator(".jp-OutputArea").first
        _until(lambda out=output, said=verdict: said in out.inner_text(), f"no «{verdict}»")
    assert progress.read()[number]["exercises"]
    page.close()


def _first_stub(number: str) -> tuple[int, str]:
    """The place of the first cell with an untouched stub among the lesson's cells, and the name of
    its exercise.
    """
    for place, cell in enumerate(build.cells(info(number)).cells):
        found = re.search(r"^(\w+)\.check\(", cell.source, re.MULTILINE)
        if cell.cell_type == "code" and found and "return NotImplemented" in cell.source:
            return place, found[1]
    raise AssertionError(f"lesson {number} has no stub")


def _finished(page: Any) -> None:
    """Wait until no cell is waiting or running."""
    page.wait_for_timeout(3 * SECONDS)
    busy = page.locator(".jp-InputPrompt", has_text="[*]")
    _until(lambda: busy.count() == 0, "cells are still running", 150)


def _can_rise(handle: Any) -> bool:
    now, most = (
        float(handle.get_attribute(name) or 0) for name in ("aria-valuenow", "aria-valuemax")
    )
    return now < most


def _until(true: Any, otherwise: str, seconds: float = 30) -> None:
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, otherwise
        time.sleep(0.2)


def test_a_lesson_saved_and_opened_without_its_kernel_shows_its_static_faces(
    browser: Any, lab: str
) -> None:
    """Run a question and an explore, save, end the kernel, open again: no widget's error, but the
    folded question, the explore's picture and its caption, which a live widget had hidden.
    """
    number = LESSONS[1]
    errors = re.compile("Error displaying widget|Loading widget")
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.goto(f"{lab}/lab/tree/{info(number).file}.ipynb?reset", timeout=90 * SECONDS)
    page.wait_for_selector("text=/\\| Idle/", timeout=90 * SECONDS)
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-item:has-text('Run All Cells') >> nth=0")
    page.wait_for_selector(".course-live .noUi-handle", timeout=150 * SECONDS)
    _finished(page)
    live = page.locator(".jp-OutputArea-child:has(.course-live)").count()
    assert live >= 2
    hidden = page.locator(".jp-OutputArea-child:has(.course-live) + .jp-OutputArea-child")
    assert [each.is_visible() for each in hidden.all()] == [False] * live
    page.keyboard.press("Control+s")
    page.wait_for_timeout(3 * SECONDS)
    page.evaluate(
        """async () => {
            const token = document.cookie.match(/_xsrf=([^;]*)/);
            const headers = token ? {'X-XSRFToken': token[1]} : {};
            for (const one of await (await fetch('/api/sessions')).json())
                await fetch('/api/sessions/' + one.id, {method: 'DELETE', headers});
        }"""
    )
    page.close()
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.goto(f"{lab}/lab/tree/{info(number).file}.ipynb?reset", timeout=90 * SECONDS)
    page.wait_for_selector("text=/\\| Idle/", timeout=90 * SECONDS)
    page.wait_for_timeout(3 * SECONDS)
    dead = page.locator(".jp-OutputArea-output", has_text=errors)
    assert dead.count() == live  # the file does hold the widgets
    assert [each.is_visible() for each in dead.all()] == [False] * live
    static = page.locator(
        ".jp-OutputArea-child:has(> .jp-OutputArea-output:text-matches('displaying|Loading'))"
        " + .jp-OutputArea-child"
    )
    assert [each.is_visible() for each in static.all()] == [True] * live
    assert page.locator("text=What to look for.").count() >= 1
    page.close()
