"""The house: imports point one way, and no module needs itself.

What stands lower is imported by what stands higher. Imports inside functions count for the
packages too, except in `course/cli.py` and `course/lesson/pages.py`, which start what stands above.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # of course/, from the ground up; what is on one floor may import from it and from below
    ("errors", "arguments", "rollout", "parts", "equation", "estimator"),
    ("registry", "exact", "train"),
    ("ladder", "learner"),
    ("lab",),
    ("lesson",),
    ("site",),
    ("cli", "__main__"),
)
STARTS_THE_REST = {"course.cli", "course.lesson.pages"}  # by imports inside functions only


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package in ("course", "bandits", "tinylm"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, *, inside: bool) -> Iterator[str]:
    """What a module imports; `inside`: also inside functions, never for typing alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif inside or not isinstance(node, ast.FunctionDef):
            yield from imports(node, inside=inside)


def arrows(*, inside: bool) -> dict[str, set[str]]:
    """Module → the modules of the three packages that it imports."""
    return {
        name: {
            other
            for other in imports(ast.parse(path.read_text("utf-8")), inside=inside)
            if other in MODULES and other != name
        }
        for name, path in MODULES.items()
    }


def floor(module: str) -> int:
    """The floor on which a module of course/ stands."""
    room = module.split(".")[1]
    [number] = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return number


def test_every_module_of_the_core_stands_on_a_floor() -> None:
    for name in MODULES:
        if name.startswith("course."):
            floor(name)


def test_imports_of_the_core_point_downwards() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows(inside=True).items()
        for other in others
        if name.startswith("course.") and other.startswith("course.") and floor(other) > floor(name)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["course", "bandits"])
def test_a_package_knows_nothing_of_those_above_it(package: str) -> None:
    above = {"course": ("bandits", "tinylm"), "bandits": ("tinylm",)}[package]
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows(inside=True).items()
        for other in others
        if name.split(".")[0] == package
        and other.split(".")[0] in above
        and name not in STARTS_THE_REST
    ]
    assert wrong == []


def test_the_language_model_imports_bandits_in_the_bridge_alone() -> None:
    importing = {
        name
        for name, others in arrows(inside=True).items()
        if name.split(".")[0] == "tinylm" and any(o.split(".")[0] == "bandits" for o in others)
    }
    assert importing <= {"tinylm.bridge", "tinylm.ablations.bridge"}


def test_no_import_runs_in_a_circle() -> None:
    """Depth first over imports at module level; a package's `__init__` belongs to its modules."""
    graph, done = arrows(inside=False), set[str]()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*way, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())
