"""The log of a training for TensorBoard, besides metrics.jsonl: one run per phase and model."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.train.files import check_writable


class Board:
    """Writes the rows of a log as scalars under their names in the glossary (`course metrics`).

    The runs are `warm` and `train`, or `warm/0`, `warm/1` … if several models are trained. What a
    resumed training writes again replaces what a killed one had written. Raises `CourseError` if
    TensorBoard is not installed, or `folder` cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CourseError(
                f"tensorboard: got an environment without it ({error}); allowed is one that has it:"
                " pip install tensorboard"
            ) from None
        self._make: Any = SummaryWriter
        self.folder = check_writable(folder)
        self._writers: dict[str, Any] = {}
        self._open = ExitStack()

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of the log: each number, or each model's, at its step."""
        for name, value in row.items():
            if name in ("phase", "step"):
                continue
            several = isinstance(value, list)
            for model, number in enumerate(value if several else [value]):
                run = f"{row['phase']}/{model}" if several else row["phase"]
                self._writer(run, row["step"]).add_scalar(name, number, row["step"])

    def close(self) -> None:
        """Write what is still buffered."""
        self._open.close()

    def _writer(self, run: str, step: int) -> Any:
        if run not in self._writers:
            # what lies there from this step on is of a training that was killed or replaced
            writer = self._make(str(self.folder / run), purge_step=step)
            self._writers[run] = self._open.enter_context(closing(writer))
        return self._writers[run]
