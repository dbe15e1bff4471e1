"""Ablations: a module with settings, a run and a plot is a command, a figure, and facts on file.

An ablation is a module of `bandits.ablations` or `tinylm.ablations` with

    TITLE             one line: what one sees
    EXPECTED_SECONDS  of `run` with the default settings, on two CPU cores
    SETTINGS          a frozen dataclass instance; what stands behind # on a field's line is its
                      help
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
import importlib.util
import inspect
import math
import pkgutil
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from course import ladder
from course.errors import CourseError, require, unknown
from course.lab.facts import Fact
from course.lab.result import Result, environment
from course.lab.terminal import (
    FACT_FAILED,
    OK,
    QUIET,
    Parser,
    Progress,
    duration,
    guarded,
    text_table,
)
from course.train import files
from course.train.device import pick_device

__all__ = [
    "Fact",
    "Progress",
    "Result",
    "discover",
    "load",
    "main",
    "names",
    "run_ablation",
    "with_settings",
]
PROJECT = "pg-ladder"
WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


# ---------------------------------------------------------------- finding


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
    settings = module.SETTINGS
    frozen = (
        dataclasses.is_dataclass(settings)
        and not isinstance(settings, type)
        and type(settings).__dataclass_params__.frozen  # type: ignore[attr-defined]
    )
    require(
        frozen,
        f"ablation {name}",
        type(settings).__name__,
        "an instance of a frozen dataclass as SETTINGS",
    )
    return module


def discover(package: str | ModuleType) -> dict[str, ModuleType]:
    """Every ablation of a package: name → module."""
    path = package if isinstance(package, str) else package.__name__
    return {name: load(path, name) for name in names(path)}


def figure_name(module: ModuleType) -> str:
    """The name of an ablation's files: its FIGURE, or its own name where it has none."""
    return str(getattr(module, "FIGURE", module.__name__.rpartition(".")[2]))


def project_root(start: Path | None = None) -> Path | None:
    """The folder of this course's pyproject.toml at or above `start` (default: the current folder);
    None outside of it.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        config = folder / "pyproject.toml"
        if config.is_file() and re.search(
            rf'^name\s*=\s*"{PROJECT}"', config.read_text(encoding="utf-8"), re.MULTILINE
        ):
            return folder
    return None


def default_folder() -> Path:
    """Where figures go: `figures/` of the course one stands in, otherwise of the current folder."""
    root = project_root()
    return Path("figures") if root is None or root == Path.cwd().resolve() else root / "figures"


# ---------------------------------------------------------------- settings


def with_settings(settings: Any, assignments: Iterable[str]) -> Any:
    """Settings with fields replaced by «field=value» texts, each read by its field's type.

    int, float, bool, str, Literal, Path, tuples of them (a,b,c) and «X | None» (none) are
    understood. Raises `CourseError` for an unknown field or a value that its type does not allow.
    """
    hints = typing.get_type_hints(type(settings))
    known = [f.name for f in dataclasses.fields(settings) if f.init]
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        require(sign == "=" and name != "", "--set", assignment, "field=value")
        if name not in known:
            raise unknown("setting", name, known)
        try:
            changes[name] = _read(hints[name], text.strip())
        except ValueError:
            raise CourseError(
                f"--set {name}: got {text!r}; allowed is {_allowed(hints[name])}"
            ) from None
    return dataclasses.replace(settings, **changes)


def resolve_rungs(text: str) -> tuple[str, ...]:
    """The names in «a,b,mine.py:mine», each looked up, files loaded once and registered: afterwards
    mine is a name like any other.
    """
    return tuple(
        rung.name for rung in ladder.select(part for part in text.split(",") if part.strip())
    )


def _read(kind: Any, text: str) -> Any:
    """`text` as a value of that type; ValueError if it is none."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() == "none":
            return None
        for option in inner:
            if option is not type(None):
                try:
                    return _read(option, text)
                except ValueError:
                    continue
        raise ValueError
    if origin is typing.Literal:
        return _first([choice for choice in inner if str(choice) == text])
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(kinds) != len(parts):
            raise ValueError
        return tuple(_read(one, part) for one, part in zip(kinds, parts, strict=True))
    if kind is bool:
        return _first([value for word, value in WORDS.items() if word == text.lower()])
    if kind is int:
        return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else _whole(float(text))
    if kind is float:
        value = float(text)
        if math.isnan(value):
            raise ValueError
        return value
    if kind in (str, Path):
        return kind(text)
    raise ValueError


def _first(found: list[Any]) -> Any:
    if not found:
        raise ValueError
    return found[0]


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _allowed(kind: Any) -> str:
    """What can be written for a type, in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _allowed(option) for option in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple:
        many = len(inner) == 2 and inner[1] is Ellipsis
        return (
            f"a list a,b,c, each {_allowed(inner[0])}"
            if many
            else "a list of " + ", ".join(_allowed(one) for one in inner)
        )
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
    }.get(kind, "a change in the code")


def _describe_settings(settings: Any) -> str:
    """The fields as a table: name, default, what may be written, and the comment behind the field
    in the code.
    """
    hints = typing.get_type_hints(type(settings))
    try:
        sources = [
            inspect.getsource(kind)
            for kind in reversed(type(settings).__mro__)
            if dataclasses.is_dataclass(kind)
        ]
        notes = dict(
            re.findall(r"^\s+(\w+)\s*:[^#\n]*#\s*(.+?)\s*$", "".join(sources), re.MULTILINE)
        )
    except (OSError, TypeError):  # no source at hand
        notes = {}
    rows = [
        (
            f"  {f.name}",
            _written(getattr(settings, f.name)),
            _allowed(hints[f.name]),
            notes.get(f.name, ""),
        )
        for f in dataclasses.fields(settings)
    ]
    return text_table(("  field", "default", "allowed", ""), rows)


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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

    Returns the picture's path.
    """
    from course.lab.figures import png

    name = figure_name(module)
    found = Result.load(Path(folder) / f"{name}.json")
    path = Path(folder) / f"{name}.png"
    files.replace_files({path: png(module.plot(found))})
    return path


# ---------------------------------------------------------------- the command


def main(package: str, prog: str, argv: Sequence[str] | None = None) -> int:
    """The command `python -m bandits` (or tinylm): lists the ablations of `package`, or runs one.

    Returns the exit status.

    0: all facts hold. 1: a fact does not hold (the files are written). 2: bad input, one line on
    stderr. 130: Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(package, prog, arguments))


def _main(package: str, prog: str, argv: list[str]) -> int:
    parser = _parser(prog)
    chosen = parser.parse_args(argv)
    if chosen.name is None:
        print(parser.format_help() if chosen.help else listing(package, prog))
        return OK
    module = load(package, chosen.name)
    if chosen.help:
        print(_help(module, chosen.name, prog))
        return OK
    folder = Path(chosen.out) if chosen.out else default_folder()
    if chosen.redraw:
        given = [
            f"--{option}"
            for option in ("set", "seed", "device", "rungs")
            if getattr(chosen, option) is not None
        ]
        require(
            not given,
            "--redraw",
            f"{', '.join(given)} as well",
            "--redraw with --out alone: the settings are those in the JSON",
        )
        print(f"drew {redraw(module, folder)} again")
        return OK
    settings = _settings(module, chosen)
    files.check_writable(folder)
    print(f"{chosen.name}: {module.TITLE}")
    print(
        f"takes about {duration(module.EXPECTED_SECONDS)} with the default settings on two CPU"
        " cores",
        flush=True,
    )
    if (
        settings != module.SETTINGS
        and folder.resolve() == default_folder().resolve()
        and (folder / f"{figure_name(module)}.json").exists()
    ):
        print(
            f"other settings than the default: this replaces {folder / figure_name(module)}.png and"
            " .json (--out DIR keeps them)",
            flush=True,
        )
    found = run_ablation(module, settings, folder, Progress())
    report(found)
    path = folder / figure_name(module)
    print(f"wrote {path}.png and {path}.json after {duration(found.seconds)}")
    return OK if found.held == len(found.facts) else FACT_FAILED


def report(found: Result) -> None:
    """Print the facts of a result, those that do not hold marked, and their count."""
    if found.facts:
        rows = [
            ("yes" if fact.holds else "NO", fact.found, fact.wanted, fact.claim)
            for fact in found.facts
        ]
        print(text_table(("holds", "measured ± se", "expected", "claim"), rows))
        print(f"{found.held} of {len(found.facts)} claims reproduced")


def listing(package: str, prog: str) -> str:
    """Every ablation with its title and expected time, as a table, and how to run one."""
    modules = discover(package)
    if not modules:
        return f"{prog}: no ablations here yet"
    rows = [
        (name, duration(module.EXPECTED_SECONDS), module.TITLE) for name, module in modules.items()
    ]
    table = text_table(("NAME", "time", "what one sees"), rows, right=[1])
    return f"{table}\n\n{prog} NAME runs one; {prog} NAME --help shows its settings"


def _parser(prog: str) -> Parser:
    about = "Run one ablation: writes figures/NAME.png and NAME.json. Without NAME: list them."
    parser = Parser(prog=prog, add_help=False, description=about)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the ablation to run")
    parser.add_argument(
        "--set",
        metavar="field=value",
        nargs="+",
        action="extend",
        help="change settings; lists as a,b,c",
    )
    parser.add_argument("--seed", metavar="N", help="shorthand for --set seed=N")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, auto …, where the ablation has that setting"
    )
    parser.add_argument(
        "--rungs",
        metavar="a,b,mine.py:mine",
        help="the estimators to compare, where the ablation has that setting",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the files (default: figures/)")
    parser.add_argument(
        "--redraw", action="store_true", help="draw the figure again from its JSON, without running"
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this; after NAME: its settings"
    )
    return parser


def _help(module: ModuleType, name: str, prog: str) -> str:
    usage = _parser(f"{prog} {name}").format_usage().replace(" [NAME]", "").strip()
    about = (module.__doc__ or module.TITLE).strip()
    time_line = f"Takes about {duration(module.EXPECTED_SECONDS)} on two CPU cores."
    return (
        f"{usage}\n\n{about}\n\n{time_line}\n\nSettings (--set"
        f" field=value):\n{_describe_settings(module.SETTINGS)}"
    )


def _settings(module: ModuleType, chosen: Any) -> Any:
    """The settings asked for by --set and its shorthands."""
    has = {f.name for f in dataclasses.fields(module.SETTINGS)}
    readers: dict[str, Callable[[str], str]] = {
        "seed": str,
        "device": lambda text: str(pick_device(text)),
        "rungs": lambda text: ",".join(resolve_rungs(text)),
    }
    assignments = []
    for assignment in chosen.set or []:
        name, sign, text = assignment.partition("=")
        assignments.append(
            f"{name}={readers[name](text)}"
            if sign and name in readers and name in has
            else assignment
        )
    for name, reader in readers.items():
        text = getattr(chosen, name)
        if text is not None:
            require(
                name in has,
                f"--{name}",
                text,
                f"no such option: {chosen.name} has no setting {name!r}",
            )
            assignments.append(f"{name}={reader(text)}")
    return with_settings(module.SETTINGS, assignments)
