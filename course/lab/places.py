"""Paths: the folder of the course, the folder of figures, and the names of ablations.

This module imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

from course.errors import CourseError

PROJECT = "pg-ladder"


def project_root(start: Path | None = None) -> Path | None:
    """The folder with this course's pyproject.toml, at or above `start`; None if there is none.

    `start` None is the current folder. A pyproject.toml that cannot be read is ignored.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        try:
            config = (folder / "pyproject.toml").read_bytes()
        except OSError:
            continue
        if re.search(rf'^name\s*=\s*"{PROJECT}"'.encode(), config, re.MULTILINE):
            return folder
    return None


def home() -> Path:
    """The folder whose notebooks/ and figures/ are the course's own.

    It is the checkout one stands in, else what was installed: course/material of a wheel, or the
    checkout of an editable install.
    """
    package = Path(__file__).resolve().parents[1]
    carried = package / "material"
    return project_root() or (carried if carried.is_dir() else package.parent)


def measured(name: str) -> Path:
    """The JSON of an ablation as the course comes with it; lessons draw from it."""
    return home() / "figures" / f"{name}.json"


def results() -> Path:
    """Where results are read: `default_folder()` if it has some, else those the course has."""
    here = default_folder()
    return here if any(here.glob("*.json")) else home() / "figures"


def repository() -> str:
    """The public address of the repository: the line Repository in the checkout's pyproject.toml.

    Raises `CourseError` where there is none.
    """
    path = home() / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r'^Repository\s*=\s*"(https://[^"]+)"', text, re.MULTILINE)
    if found is None:
        raise CourseError(
            f"{path}: got no address of the repository; allowed is a line"
            ' Repository = "https://github.com/OWNER/NAME" under [project.urls]'
        )
    return found[1]


def default_folder() -> Path:
    """Where figures go: `figures/` of the course, or of the current folder outside a checkout."""
    root = project_root()
    return Path("figures") if root is None or root == Path.cwd().resolve() else root / "figures"


def names(package: str) -> list[str]:
    """The names of a package's ablations, without importing them; empty if there is no package."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(
        module.name
        for module in pkgutil.iter_modules(places or [])
        if not module.name.startswith("_")
    )
