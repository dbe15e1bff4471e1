"""Results: one schema for everything that is measured.

Next to each figure, a JSON holds its data and the facts that were checked.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from course.errors import CourseError, require, require_number
from course.lab.encoding import SERIES_DIGITS, decode, dump, plain
from course.lab.facts import Fact
from course.train.files import replace_files, settle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "pg-ladder result 1"


@dataclass(frozen=True)
class Result:
    """The result of one ablation: the data of its figure, and the facts that were checked.

    - `settings`: field → value;
    - `series`: name → number or nested lists. Tensors and arrays are converted, and numbers rounded
      to 7 significant digits, so that a figure drawn from the JSON is the same as the first one;
    - `environment`: see `environment()`;
    - `seconds`: the time of the run;
    - `caption`: one sentence below the figure.

    An ablation returns `Result(series=…, facts=…, caption=…)`, and `run_ablation` fills in the
    rest. Raises `CourseError` for a value that JSON cannot hold.
    """

    name: str = ""
    title: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[Fact] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    caption: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "title", "caption"):
            require(
                isinstance(getattr(self, name), str), f"result.{name}", getattr(self, name), "text"
            )
        require(
            re.fullmatch(r"[A-Za-z0-9_-]*", self.name) is not None,
            "result.name",
            self.name,
            "letters, digits, _ and -",
        )
        require_number("result.seconds", self.seconds, "a number ≥ 0", at_least=0)
        for name, digits in (("settings", None), ("series", SERIES_DIGITS), ("environment", None)):
            object.__setattr__(self, name, plain(getattr(self, name), digits, f"result.{name}"))
            require(
                isinstance(getattr(self, name), dict),
                f"result.{name}",
                type(getattr(self, name)).__name__,
                "a mapping",
            )
        object.__setattr__(self, "facts", list(self.facts))
        for fact in self.facts:
            require(isinstance(fact, Fact), "result.facts", fact, "a list of Fact")
        object.__setattr__(self, "seconds", float(f"{self.seconds:.3g}"))

    def array(self, *keys: str) -> NDArray[np.float64]:
        """The series under `keys` (one per level) as an array of float64.

        Raises `CourseError`, which lists the known series, if there is none under these keys.
        """
        level: Any = self.series
        for key in map(str, keys):
            if not isinstance(level, dict) or key not in level:
                there = ", ".join(level) if isinstance(level, dict) else "a number or a list"
                raise CourseError(
                    f"result.series: got {'.'.join(map(str, keys))!r}; allowed is {there}"
                )
            level = level[key]
        try:
            return np.asarray(level, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            name = ".".join(map(str, keys))
            raise CourseError(
                f"result.series: got {name!r} ({error}); allowed is numbers in equal rows"
            ) from None

    @property
    def held(self) -> int:
        """The number of facts that hold."""
        return sum(fact.holds for fact in self.facts)

    def text(self) -> str:
        """The JSON text, with at most 12 numbers per line, so that diffs stay readable."""
        body = {
            "schema": SCHEMA,
            "name": self.name,
            "title": self.title,
            "caption": self.caption,
            "settings": self.settings,
            "facts": [fact.as_json() for fact in self.facts],
            "environment": self.environment,
            "seconds": self.seconds,
            "series": self.series,
        }
        return dump(body) + "\n"

    def save(self, folder: Path | str, figure: Figure | bytes) -> tuple[Path, Path]:
        """Write NAME.png and NAME.json, both or neither, and return their paths.

        `figure` is a Figure or the bytes of a PNG. If anything interrupts this (Ctrl-C too), the
        earlier files stay. Raises `CourseError` if the folder cannot be written.
        """
        require(self.name != "", "result.name", self.name, "a name to save it under")
        picture = figure if isinstance(figure, bytes) else _render(figure)
        folder = Path(folder)
        paths = folder / f"{self.name}.png", folder / f"{self.name}.json"
        replace_files(dict(zip(paths, (picture, self.text().encode()), strict=True)))
        return paths

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Read a result back.

        Raises `CourseError`, which names the file, if it is missing, damaged or not a result of
        this course.
        """
        path = Path(path)
        settle(path.parent)  # so that the picture and its numbers match
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CourseError(
                f"{path}: got no such file; allowed is the JSON of an ablation that has been run"
            ) from None
        except OSError as error:
            raise CourseError(
                f"{path}: got {error.strerror or error}; allowed is a file that can be read"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CourseError(
                f"{path}: got a damaged file ({error}); allowed is JSON: run the ablation again"
            ) from None
        try:
            require(
                isinstance(body, dict) and body.get("schema") == SCHEMA,
                "schema",
                _kind(body),
                f"{SCHEMA!r}",
            )
            body.pop("schema")
            names = [f.name for f in fields(cls)]
            require(set(body) == set(names), "fields", ", ".join(body), ", ".join(names))
            require(
                isinstance(body["facts"], list), "facts", type(body["facts"]).__name__, "a list"
            )
            body["facts"] = [Fact.from_json(fact) for fact in body["facts"]]
            body["series"] = decode(body["series"])
            body["settings"] = decode(body["settings"])
            return cls(**body)
        except (CourseError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CourseError(f"{path} is no whole result of this course: {error}") from None


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, hardware and threads, on which numbers may depend.

    There is no date, so that the same run gives the same text.
    """
    packages = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "matplotlib": _version("matplotlib"),
        "course": _version("pg-ladder"),
    }
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": cores()}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        **packages,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _render(figure: Figure) -> bytes:
    from course.lab.figures import (
        png,
    )  # imported late, so that `import course.lab.result` does not load matplotlib

    return png(figure)


def _kind(body: Any) -> str:
    return (
        str(body.get("schema", "no schema"))
        if isinstance(body, dict)
        else f"a JSON {type(body).__name__}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text("utf-8", "replace"),
            re.MULTILINE,
        )
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
