"""What tests of lessons share: each source run once as a plain program, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from course.lesson import Lesson, build, info
from tests.lessons.lab import chromium


@cache
def lesson_of(number: str) -> Lesson:
    """What the lesson asks and draws; its source runs to its end, as a reader's notebook would.

    Leaves torch's threads as they were.
    """
    threads = torch.get_num_threads()
    try:
        return build.collect(info(number))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; the test is skipped, and says why, where it or playwright is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason='no playwright: pip install -c constraints.txt -e ".[browser]"',
    )
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
