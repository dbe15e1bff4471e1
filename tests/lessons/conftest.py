"""Every lesson's source, run once as a plain program for all tests."""

from __future__ import annotations

from functools import cache

import torch

from course.lesson import Lesson, build, info


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
