"""Ablations: a module with settings, a run and a plot is a command, a figure, and facts on file.

An ablation is a module of `bandits.ablations` or `tinylm.ablations` with

    TITLE             one line: what one sees
    EXPECTED_SECONDS  of `run` with the default settings, on two CPU cores
    SETTINGS          an instance of a frozen dataclass on `course.lab.settings.Checked`; the
                      comment behind or above a field is its help
    THREADS           of the CPU (optional; 1: small tensors are no faster on more, and one gives
                      everybody the same numbers)
    FIGURE            the name of its files, where it is not the module's own (optional)
    run(settings, progress) → Result     measures (no drawing)
    plot(result) → Figure                draws (no measuring): a figure can be drawn again from its
    JSON
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
from course.lab.places import names
from course.lab.result import Result, environment
from course.lab.settings import Checked, check
from course.lab.terminal import QUIET, Progress
from course.train import files

# ---------------------------------------------------------------- finding


def load(package: str, name: str) -> ModuleType:
    """The ablation of that name.

    Raises `CourseError` for an unknown name (the nearest is suggested) or an incomplete module.
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
    """Every ablation of a package: name → module."""
    path = package if isinstance(package, str) else package.__name__
    return {name: load(path, name) for name in names(path)}


def figure_name(module: ModuleType) -> str:
    """The name of an ablation's files: its FIGURE, or its own name where it has none."""
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

    `settings`: default SETTINGS.

    `name`: another name for the files than the ablation's own, where something else runs it.

    Raises `CourseError` before the run if the folder cannot be written.
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
        found,
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
    """Draw the figure again from the JSON in `folder`, without running; the JSON stays as it is.

    Returns the picture's path. Raises `CourseError` where the JSON is damaged, or holds what the
    ablation cannot draw.
    """
    from course.lab.figures import png

    name = figure_name(module)
    path = Path(folder) / f"{name}.json"
    found = Result.load(path)
    try:
        picture = png(module.plot(found))
    except CourseError as error:
        raise CourseError(f"{path}: {error}") from None
    except Exception as error:  # whatever foreign data makes of a plot
        raise CourseError(
            f"{path}: got data that {name} cannot draw ({type(error).__name__}: {error}); allowed"
            " is what it has written: run it again"
        ) from error
    files.replace_files({path.with_suffix(".png"): picture})
    return path.with_suffix(".png")
