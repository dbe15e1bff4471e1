"""Paths: the folder of the course, the folder of figures, and the names of ablations.

This module imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

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
