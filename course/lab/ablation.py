"""Ablations: find them by name, run them, and draw their figures again.

An ablation is a module of `bandits.ablations` or `tinylm.ablations` with

    TITLE             one line that says what the figure shows
    EXPECTED_SECONDS  the time of `run` with the default settings, on two CPU cores
    SETTINGS          an instance of a frozen subclass of `course.lab.settings.Checked`; the
                      comment above or after a field is its help
    THREADS           the number of CPU threads (optional, default 1: small tensors are no faster
                      on more threads, and one thread gives everybody the same numbers)
    FIGURE            the name of its files, if it differs from the module's (optional)
    run(settings, progress) → Result     measures, but does not draw
    plot(result) → Figure                draws, but does not measure, so that the figure can be
                                         drawn again from the JSON
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from course.errors import CourseError, require, unknown
from course.lab.diverged import without_numbers
from course.lab.places import names
from course.lab.result import Result, environment
from course.lab.settings import Checked, check
from course.lab.terminal import QUIET, Progress
from course.train import files

# ---------------------------------------------------------------- finding


def load(package: str, name: str) -> ModuleType:
    """The module of the ablation `name`.

    Raises `CourseError` for an unknown name (and suggests the nearest) or an incomplete module.
    """
    known = names(package)
    if name not in known:
        raise (
            unknown("ablation", name, known)
            if known
            else CourseError(f"unknown ablation {name!r}: {package} has no ablations here yet")
        )
    module = importlib.import_module(f"{package}.{name}")
    missing = [
        part
        for part in ("TITLE", "EXPECTED_SECONDS", "SETTINGS", "run", "plot")
        if not hasattr(module, part)
    ]
    if missing:
        raise CourseError(
            f"ablation {name}: got a module without {', '.join(missing)}; allowed is one that has"
            " them, see course.lab.ablation"
        )
    require(
        isinstance(module.SETTINGS, Checked),
        f"ablation {name}",
        type(module.SETTINGS).__name__,
        "an instance of a frozen dataclass on course.lab.settings.Checked as SETTINGS",
    )
    return module


def discover(package: str | ModuleType) -> dict[str, ModuleType]:
    """All ablations of a package: name → module."""
    path = package if isinstance(package, str) else package.__name__
    return {name: load(path, name) for name in names(path)}


def figure_name(module: ModuleType) -> str:
    """The name of an ablation's files: its FIGURE, or else the name of its module."""
    return str(getattr(module, "FIGURE", module.__name__.rpartition(".")[2]))


# ---------------------------------------------------------------- running


def run_ablation(
    module: ModuleType,
    settings: Any = None,
    folder: Path | str | None = None,
    progress: Progress = QUIET,
    *,
    name: str | None = None,
) -> Result:
    """Run an ablation, and write NAME.png and NAME.json to `folder` (None: write nothing).

    `settings` None uses SETTINGS of the module; `name` None uses `figure_name`. Raises
    `CourseError`, before the run, if a setting is wrong or the folder cannot be written.
    """
    settings = module.SETTINGS if settings is None else settings
    check(settings)
    if folder is not None:
        files.check_writable(folder)
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(getattr(module, "THREADS", 1))
    try:
        found = module.run(settings, progress)
    finally:
        progress.close()
        torch.set_num_threads(threads)
    require(
        isinstance(found, Result),
        f"{module.__name__}.run",
        type(found).__name__,
        "a course.lab.result.Result",
    )
    found = dataclasses.replace(
        without_numbers(found, getattr(settings, "rungs", None) or ()),
        name=name or figure_name(module),
        title=module.TITLE,
        settings=settings,
        seconds=time.perf_counter() - start,
        environment=environment(str(getattr(settings, "device", "cpu"))),
    )
    if folder is not None:
        found.save(folder, module.plot(found))
    return found


def redraw(module: ModuleType, folder: Path | str) -> Path:
    """Draw the figure again from the JSON in `folder`, without running; the JSON is not changed.

    Returns the path of the picture. Raises `CourseError` if the JSON is damaged or its data cannot
    be drawn.
    """
    from course.lab.figures import png

    name = figure_name(module)
    path = Path(folder) / f"{name}.json"
    found = Result.load(path)
    try:
        picture = png(module.plot(found))
    except CourseError as error:
        raise CourseError(f"{path}: {error}") from None
    except Exception as error:  # foreign data may make the plot raise anything
        raise CourseError(
            f"{path}: got data that {name} cannot draw ({type(error).__name__}: {error}); allowed"
            " is what it has written: run it again"
        ) from error
    files.replace_files({path.with_suffix(".png"): picture})
    return path.with_suffix(".png")
