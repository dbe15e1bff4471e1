"""A real JupyterLab on a copy of lessons, and a page of a browser in which one of them has run.

The tests in the browser and the benchmark of the sliders use it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from course.lesson import build, copies, info, progress

SECONDS = 1000  # milliseconds, for the browser's time limits
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The path of the system's Chromium; None if it has none."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def jupyterlab(folder: Path, lessons: Iterable[str]) -> Iterator[str]:
    """Copy the lessons into folder/notebooks and yield the address of a JupyterLab there.

    Running them leaves the committed ones alone, and what is answered is noted in the folder.
    """
    root = Path(__file__).resolve().parents[2]
    (folder / "notebooks").mkdir()
    for number in lessons:
        shutil.copy(build.target(info(number)), folder / "notebooks")
    # lessons look for the course they stand in, and for its figures
    shutil.copy(root / "pyproject.toml", folder)
    (folder / "figures").symlink_to(root / "figures")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    noted = str(folder / "progress.json")
    environment = os.environ | {
        progress.FILE: noted,
        "PYTHONPATH": str(root),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        **copies.without_news(),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"),
        *("--ServerApp.token=", "--ServerApp.password="),
        f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]
    before, os.environ[progress.FILE] = os.environ.get(progress.FILE), noted
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, cwd=root, **quiet)
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
        os.environ.pop(progress.FILE)
        if before is not None:
            os.environ[progress.FILE] = before
        server.terminate()
        server.wait(20)


def opened(browser: Any, lab: str, number: str, width: int = 1300, height: int = 1400) -> Any:
    """A page with the lesson as it was saved, its kernel idle."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{lab}/lab/tree/{info(number).file}.ipynb?reset", timeout=90 * SECONDS)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90 * SECONDS)
    page.wait_for_selector("text=/\\| Idle/", timeout=90 * SECONDS)  # the kernel is there
    return page


def run_all(page: Any, live: str = ".widget-vbox") -> None:
    """Run all cells; returns when none is waiting or running, and something `live` is there."""
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-item:has-text('Run All Cells') >> nth=0")
    page.wait_for_selector(live, timeout=150 * SECONDS)
    page.wait_for_timeout(3 * SECONDS)
    busy = page.locator(".jp-InputPrompt", has_text="[*]")
    until(lambda: busy.count() == 0, "cells are still running", 150)


def until(true: Callable[[], bool], otherwise: str, seconds: float = 30) -> None:
    """Wait until something is true; if it is not in time, an AssertionError that says so."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, otherwise
        time.sleep(0.2)
