"""What all tests share: one thread, and a registry that is as it was after each test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from course.registry import RUNGS

# what tests answer in lessons is not the user's progress; their subprocesses inherit it
os.environ["PG_LADDER_PROGRESS"] = os.path.join(tempfile.mkdtemp(), "progress.json")
torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Iterator[None]:
    """Estimators that a test registers are gone after it."""
    before = dict(RUNGS)
    yield
    RUNGS.clear()
    RUNGS.update(before)
