"""Where things are: the folder of the course one stands in, where figures go, and which ablations
there are. Light: nothing is loaded for it.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

PROJECT = "pg-ladder"


def project_root(start: Path | None = None) -> Path | None:
    """The folder of this course's pyproject.toml at or above `start` (default: the current folder);
    None outside of it.

    A pyproject.toml that cannot be read, or is no text, is not this course's.
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
    """Where figures go: `figures/` of the course one stands in, otherwise of the current folder."""
    root = project_root()
    return Path("figures") if root is None or root == Path.cwd().resolve() else root / "figures"


def names(package: str) -> list[str]:
    """The ablations of a package by name, none of them imported; empty where there is no such
    package.
    """
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
