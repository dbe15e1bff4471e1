"""The command of a package of ablations: list them, run one, or draw its figure again.

It is behind `python -m bandits` and `python -m tinylm`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, cast

import tyro

from course.errors import CourseError, require
from course.lab.ablation import discover, figure_name, load, redraw, run_ablation
from course.lab.places import default_folder
from course.lab.result import Result
from course.lab.settings import given, named, option, read
from course.lab.terminal import FACT_FAILED, OK, Progress, duration, guarded, text_table
from course.train.device import pick_device
from course.train.files import check_writable

HELP = ("-h", "--help")


def main(package: str, prog: str, argv: Sequence[str] | None = None) -> int:
    """Run the command in its own process; returns the exit status (see `guarded`)."""
    return guarded(lambda: command(package, prog, sys.argv[1:] if argv is None else argv))


def command(package: str, prog: str, argv: Sequence[str]) -> int:
    """List the ablations of `package`, or run one.

    Returns 0, or 1 if a fact does not hold; the files are written in both cases.
    """
    if not argv or argv[0] in HELP:
        print(listing(package, prog))
        return OK
    if argv[0].startswith("-"):
        raise CourseError(f"{prog}: got {argv[0]!r}; allowed is the NAME of an ablation first")
    module, name = load(package, argv[0]), argv[0]
    chosen = read(_options(module), argv[1:], f"{prog} {name}", _about(module))
    folder = chosen.out or default_folder()
    if chosen.redraw:
        others = [field for field in given(argv) if field not in ("out", "redraw")]
        require(
            not others,
            "--redraw",
            f"{', '.join(map(option, others))} as well",
            "--redraw with --out alone: the settings are those in the JSON",
        )
        print(f"drew {redraw(module, folder)} again")
        return OK
    settings = on_device(chosen.settings)
    check_writable(folder)
    print(f"{name}: {module.TITLE}\n{_time(module)} with the default settings", flush=True)
    path = folder / figure_name(module)
    foreign = settings != module.SETTINGS and folder.resolve() == default_folder().resolve()
    if foreign and path.with_suffix(".json").exists():
        print(
            f"other settings than the default: this replaces {path}.png and .json (--out DIR keeps"
            " them)",
            flush=True,
        )
    found = run_ablation(module, settings, folder, Progress())
    report(found)
    print(f"wrote {path}.png and {path}.json after {duration(found.seconds)}")
    return OK if found.held == len(found.facts) else FACT_FAILED


def on_device(settings: Any) -> Any:
    """The settings, with their device (if they have one) replaced by the one that is used.

    Raises `CourseError` if this machine does not have the device.
    """
    if not hasattr(settings, "device"):
        return settings
    try:
        return dataclasses.replace(settings, device=str(pick_device(settings.device)))
    except CourseError as error:
        raise named(error, type(settings)) from None


def report(found: Result) -> None:
    """Print the facts of a result and how many hold; "NO" marks those that do not."""
    if found.facts:
        rows = [
            ("yes" if fact.holds else "NO", fact.found, fact.wanted, fact.claim)
            for fact in found.facts
        ]
        print(text_table(("holds", "measured ± se", "expected", "claim"), rows))
        print(f"{found.held} of {len(found.facts)} claims reproduced")


def listing(package: str, prog: str) -> str:
    """A table of the ablations with title and expected time, and how to run one."""
    modules = discover(package)
    if not modules:
        return f"{prog}: no ablations here yet"
    rows = [
        (name, duration(module.EXPECTED_SECONDS), module.TITLE) for name, module in modules.items()
    ]
    table = text_table(("NAME", "time", "what one sees"), rows, right=[1])
    return (
        f"{table}\n\n{prog} NAME runs one and writes figures/NAME.png and NAME.json\n"
        f"{prog} NAME --FIELD VALUE changes a setting, --out DIR writes elsewhere, --redraw only"
        f" draws again;\n{prog} NAME --help shows its settings"
    )


def options(package: str) -> dict[str, type[Any]]:
    """The command-line options of every ablation of a package: name → dataclass."""
    return {name: _options(module) for name, module in discover(package).items()}


def _options(module: ModuleType) -> type[Any]:
    """A dataclass of the settings of an ablation and the options that every ablation has."""
    settings, flat = module.SETTINGS, cast(Any, tyro.conf.OmitArgPrefixes)
    out = Annotated[Path | None, tyro.conf.arg(help="folder for the files, instead of figures/")]
    again = Annotated[bool, tyro.conf.arg(help="draw again from the JSON, without running")]
    fields = [
        (
            "settings",
            flat[type(settings)],
            dataclasses.field(default=settings),
        ),
        ("out", out, dataclasses.field(default=None)),
        ("redraw", again, dataclasses.field(default=False)),
    ]
    return dataclasses.make_dataclass("options", fields, frozen=True)


def _about(module: ModuleType) -> str:
    return f"{(module.__doc__ or module.TITLE).strip()}\n\n{_time(module)}."


def _time(module: ModuleType) -> str:
    return f"takes about {duration(module.EXPECTED_SECONDS)} on two CPU cores"
