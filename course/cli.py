"""The command `course` and its subcommands: ladder, ablations, lessons, rungs, facts."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from course import __version__
from course.errors import CourseError, require, unknown
from course.lab.places import default_folder, names, project_root, results
from course.lab.settings import Checked, read
from course.lab.terminal import FACT_FAILED, OK, guarded, text_table

KINDS = {
    "rung": "the ladder, bottom to top",
    "descendant": "descendants",
    "branch": "branches",
    "own": "your own",
}
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see `guarded`)."""
    return guarded(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    """Run `course` with these arguments; returns 0, or 1 if a fact does not hold."""
    if not argv or argv[0] in HELP:
        print(overview())
        return OK
    if argv[0] == "--version":
        print(f"course {__version__}")
        return OK
    if argv[0] == "--completion":
        return _completion(argv[1:])
    if argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    return COMMANDS[argv[0]][1](argv[1:])


def overview() -> str:
    """The overview of all commands and ablations, on one page."""
    rows = [(f"  {name}", about) for name, (about, _) in COMMANDS.items()]
    width = max(len(name) for name, _ in rows) + 2
    lines = "\n".join(f"{name:<{width}}{about}" for name, about in rows)
    return f"""usage: course COMMAND [options]

From REINFORCE to GRPO, one replaced part at a time.

{lines}

`course COMMAND --help` shows the options of a command, `course --version` the version, and `course
--completion bash` (or zsh, tcsh) prints a script for completion in the shell.
`python -m bandits NAME` is `course bandits NAME`, and `python -m tinylm` is `course tinylm`. An
ablation writes figures/NAME.png and NAME.json; its settings are options (--runs 50 --seed 1).

ablations on bandits: {", ".join(names("bandits.ablations"))}
ablations on the tiny language model: {", ".join(names("tinylm.ablations"))}

exit status: 0 success; 1 a fact does not hold; 2 bad input or an error of the machine (files,
memory); 70 a bug of the course; 130 Ctrl-C, which leaves no half-written file"""


# ---------------------------------------------------------------- the main job


@dataclass(frozen=True)
class Ladder(Checked):
    """Measure what each part of the ladder buys, on a contextual bandit and on a transformer.

    Every rung is trained beside the rung below it, under the stress that its part is for and
    without. Before that, the microscope gives the exact bias and spread of every gradient.
    """

    # the estimators to compare with the one below each, such as clip,grpo,mine.py:mine (none: the
    # eight rungs)
    rungs: tuple[str, ...] | None = None
    seed: int = 0  # of all random streams
    device: str | None = None  # cpu, cuda or auto (none: cpu)
    out: Path | None = None  # folder for the files (none: figures/)
    quick: bool = False  # a first look: fewer rollouts and streams, and no claim has to hold

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rungs is not None:
            from course.lab.stress import rows_of

            allowed = "at least one rung that stands on another"
            require(bool(rows_of(self.rungs)), "rungs", ", ".join(self.rungs), allowed)


def _ladder(argv: Sequence[str]) -> int:
    chosen = read(Ladder, argv, "course ladder")
    from bandits.ablations import microscope
    from bandits.ablations import parts as on_bandit
    from course.lab import stress
    from course.lab.ablation import run_ablation
    from course.lab.command import on_device, report
    from course.lab.terminal import Progress, duration
    from course.train.files import check_writable
    from tinylm.ablations import parts as on_model

    out = check_writable(chosen.out or default_folder())
    shared: dict[str, Any] = {"seed": chosen.seed}
    shared |= {} if chosen.rungs is None else {"rungs": chosen.rungs}
    shared |= {} if chosen.device is None else {"device": on_device(chosen).device}
    progress = Progress()
    seen = microscope.SETTINGS
    if chosen.rungs is not None:
        seen = dataclasses.replace(seen, rungs=chosen.rungs)
    exact = run_ablation(microscope, seen, out, progress)
    print(f"every gradient against the true one: {out / 'microscope.png'}", flush=True)
    found = {}
    for module in (on_bandit, on_model):
        settings = module.QUICK if chosen.quick else module.SETTINGS
        expected = module.QUICK_SECONDS if chosen.quick else module.EXPECTED_SECONDS
        print(f"each part under its stress, {module.WHERE}: about {duration(expected)}", flush=True)
        settings = dataclasses.replace(settings, **shared)
        found[module.WHERE] = run_ablation(module, settings, out, progress)
    together = stress.together(found)
    together.save(out, stress.forest(found))
    print(f"\n{stress.table(found)}\n\n{stress.CELLS}\n")
    print(stress.purposes(chosen.rungs or on_bandit.SETTINGS.rungs))
    for result in (exact, *found.values()):
        print(f"\n{result.title}")
        report(result)
    print(f"\nthe figure: {out / 'parts.png'}; its data: {out / 'parts.json'}")
    print(
        "next: `course lab` opens the lessons, `course bandits` and `course tinylm` list the"
        " ablations, `course facts` shows every claim that was checked"
    )
    if chosen.quick:
        print("a first look, with few streams: without --quick more of the claims are decided")
        return OK
    held = all(result.held == len(result.facts) for result in (exact, *found.values()))
    return OK if held else FACT_FAILED


def _bandits(argv: Sequence[str]) -> int:
    from course.lab.command import command

    return command("bandits.ablations", "course bandits", argv)


def _tinylm(argv: Sequence[str]) -> int:
    from tinylm.commands import command

    return command("course tinylm", argv)


# ---------------------------------------------------------------- what was found, what there is


@dataclass(frozen=True)
class Facts:
    """Print every claim that the results in a folder measured, and whether it holds.

    The exit status is 1 if one does not hold.
    """

    # where the results are (none: figures/, or what the course comes with if there are none)
    folder: Path | None = None
    # also write the generated parts of this file (README.md if you name none): the number of
    # claims, the tables of the ladder and of the lessons, the badges
    readme: Path | None = None


def _facts(argv: Sequence[str]) -> int:
    from course.lab import ledger

    if argv and argv[-1] == "--readme":
        argv = [*argv, str((project_root() or Path()) / "README.md")]
    chosen = read(Facts, argv, "course facts")

    facts = ledger.ledger(chosen.folder or results())
    print(facts.table())
    print(facts.summary)
    if chosen.readme is not None:
        pieces = {
            "facts": facts.summary,
            "failures": f"\n{facts.failures}\n",
            "ladder": f"\n{ladder_table()}\n",
            "lessons": f"\n{lessons_table()}\n",
            "badges": f"\n{badges()}\n",
        }
        changed = ledger.update_readme(chosen.readme, pieces)
        print(f"{chosen.readme}: {'updated' if changed else 'up to date'}")
    return OK if facts.held == len(facts.entries) else FACT_FAILED


@dataclass(frozen=True)
class Rungs:
    """Show every estimator: the rung below it, the replaced part, its equation and its source."""


def _rungs(argv: Sequence[str]) -> int:
    read(Rungs, argv, "course rungs")
    from course import ladder

    width = max(len(name) for name in ladder.RUNGS) + 2
    for kind, heading in KINDS.items():
        rungs = [rung for rung in ladder.RUNGS.values() if rung.kind == kind]
        if rungs:
            print(f"{heading}\n")
        for rung in rungs:
            step = f"{rung.on} with {rung.replaced}" if rung.on else "the first rung"
            print(f"  {rung.name:<{width}}{step}\n  {'':<{width}}{rung.estimator.text()}")
            if rung.source:
                print(f"  {'':<{width}}{rung.source}")
        if rungs:
            print()
    return OK


@dataclass(frozen=True)
class Metrics:
    """Show the glossary: every logged metric with its unit and definition."""


def _metrics(argv: Sequence[str]) -> int:
    read(Metrics, argv, "course metrics")
    from course.train.metrics import GLOSSARY

    rows = [(m.name, m.unit or "–", m.definition) for m in GLOSSARY.values()]
    print(text_table(("metric", "unit", "definition"), rows))
    return OK


def ladder_table() -> str:
    """The eight rungs as a Markdown table: rung, replaced part, equation, source."""
    from course import ladder

    rows = ["| rung | the replaced part | its objective | source |", "| --- | --- | --- | --- |"]
    for rung in ladder.select():
        cells = (
            f"**{rung.name}**",
            f"`{rung.replaced}`" if rung.on else "—",
            f"`{rung.estimator.text()}`",
            rung.source,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def lessons_table() -> str:
    """The lessons as a Markdown table: picture, title, what to take away, reader's and CPU time."""
    from course.lesson.syllabus import SYLLABUS, index

    known = index()
    rows = [
        "| | lesson | the one thing to take away | a first read | computes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number, lesson in SYLLABUS.items():
        picture = f'<img src="figures/{lesson.figure}.png" width="150" alt="{lesson.title}">'
        link = f"[**{lesson.heading}**](notebooks/{lesson.file}.ipynb)"
        minutes, seconds = (known.get(number, {}).get(key, "–") for key in ("minutes", "seconds"))
        rows.append(f"| {picture} | {link} | {lesson.takeaway} | {minutes} min | {seconds} s |")
    return "\n".join(rows)


def badges() -> str:
    """Links, as Markdown, that open lesson 00 in Colab, on Binder and in a Codespace.

    Empty until pyproject.toml has the repository's address.
    """
    from course.lab.places import repository
    from course.lesson.syllabus import info

    name = repository().removeprefix("https://github.com/")
    if name.startswith("__"):  # no address yet: no link that leads nowhere
        return ""
    first = f"notebooks/{info('00').file}.ipynb"
    places = (
        (
            "Open lesson 00 in Colab",
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{name}/blob/main/{first}",
        ),
        (
            "Open lesson 00 on Binder",
            "https://mybinder.org/badge_logo.svg",
            f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/{first}",
        ),
        (
            "Open in GitHub Codespaces",
            "https://github.com/codespaces/badge.svg",
            f"https://codespaces.new/{name}",
        ),
    )
    return "\n".join(f"[![{text}]({picture})]({page})" for text, picture, page in places)


# ---------------------------------------------------------------- the lessons


@dataclass(frozen=True)
class Start:
    """Copy the lessons into a folder of yours, with the pages and figures that they lead to.

    Files that exist there are kept and named; nothing is ever overwritten.
    """

    folder: tyro.conf.Positional[Path]  # such as my_course; it may exist already


def _start(argv: Sequence[str]) -> int:
    chosen = read(Start, argv, "course start")
    from course.lesson import copies

    copied = copies.start(chosen.folder)
    print(f"{len(copied.written)} files copied into {chosen.folder}")
    for path in copied.kept:
        print(f"kept, since it was there and is different: {path}")
    print(f"next: course lab {chosen.folder}")
    return OK


LAB = """usage: course lab [DIR] [--reset NN] [options of JupyterLab]

Open lesson 00 in JupyterLab, in a copy of the lessons that is yours: in DIR, or in the copy that
you stand in, or in my_course, which is made if it is missing. What you change there stays yours,
and an update of the course does not touch it.

--reset NN     bring lesson NN back to how the course has it; your version is put beside it
--no-browser   start the server alone"""


def _lab(argv: Sequence[str]) -> int:
    argv = list(argv)
    if argv[:1] and argv[0] in HELP:
        print(LAB)
        return OK
    from course.lesson import copies

    folder = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else copies.default()
    if argv[:1] == ["--reset"]:
        require(len(argv) == 2, "--reset", " ".join(argv[1:]), "the number of one lesson, as 04")
        path, aside = copies.reset(folder, argv[1])
        print(f"{path}: as the course has it{f'; yours is now {aside}' if aside else ''}")
        return OK
    if importlib.util.find_spec("jupyterlab") is None:
        raise CourseError(
            "lab: got no JupyterLab; allowed is an environment that has it: pip install jupyterlab"
        )
    copied = copies.start(folder)
    print(f"your copy of the lessons: {folder}", flush=True)
    if copied.kept:
        print(
            f"{len(copied.kept)} files there differ from the course's and are kept;"
            " `course lab --reset NN` brings a lesson back",
            flush=True,
        )
    root = f"--ServerApp.root_dir={folder.resolve()}"
    first = str((folder / copies.FIRST).resolve())
    return _until_it_ends([sys.executable, "-m", "jupyterlab", root, first, *argv])


def _until_it_ends(command: Sequence[str]) -> int:
    """Run JupyterLab, which asks what a Ctrl-C means; returns its exit status.

    Ctrl-C reaches it too, as it shares the terminal. The handler does nothing here, and the program
    does not inherit it.
    """
    from course.lesson import copies

    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.Popen(command, env=os.environ | copies.without_news()).wait()
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Progress:
    """Show how many questions you have answered and how many exercises you have passed.

    Your progress is kept in one file, which --delete removes.
    """

    delete: bool = False  # delete all progress


def _progress(argv: Sequence[str]) -> int:
    chosen = read(Progress, argv, "course progress")
    from course.lesson import progress
    from course.lesson.syllabus import SYLLABUS, index

    if chosen.delete:
        said = "deleted" if progress.delete() else "there was nothing to delete"
        print(f"{progress.path()}: {said}")
        return OK
    progress.check()
    done, asked = progress.read(), index()
    rows = []
    for number, lesson in SYLLABUS.items():
        mine, there = done.get(number, {}), asked.get(number, {})
        counts = [
            f"{len(mine.get(kind, []))} of {len(there.get(kind, []))}"
            for kind in ("questions", "exercises")
        ]
        rows.append((lesson.heading, *counts))
    print(text_table(("lesson", "questions answered", "exercises passed"), rows))
    print(f"kept in {progress.path()}")
    return OK


@dataclass(frozen=True)
class Notebooks:
    """Execute the lessons in notebooks/src/, save them as notebooks, and write the generated pages.

    The measured time of each lesson is saved too.
    """

    lessons: tyro.conf.Positional[tuple[str, ...]] = ()  # numbers, such as 04 (none: all)
    pages: bool = False  # write only the generated pages, execute nothing


def _notebooks(argv: Sequence[str]) -> int:
    chosen = read(Notebooks, argv, "course notebooks")
    require(
        project_root() is not None,
        "notebooks",
        str(Path.cwd()),
        "a folder of a checkout of the course, whose notebooks/ this writes",
    )
    from course.lesson import build, pages

    if not chosen.pages:
        build.build(chosen.lessons)
        build.refresh_index(chosen.lessons)
    for path in pages.write():
        print(path)
    return OK


@dataclass(frozen=True)
class Site:
    """Build the course as web pages, and serve them on this machine if you ask for it.

    Needs the extra `site`. Nothing is executed but the drawing of the sliders' pictures, and
    nothing is fetched. The folder is replaced as a whole, or stays as it is.
    """

    out: Path = Path("site")  # folder for the pages: a new one, or one that this command made
    serve: int | None = None  # also serve it at this port, until Ctrl-C (--serve alone: 8000)
    # at most so many pictures of each figure with sliders (0: the saved one, without sliders)
    frames: int = 24

    def __post_init__(self) -> None:
        require(0 <= self.frames <= MOST_FRAMES, "frames", self.frames, f"0 to {MOST_FRAMES}")
        port = self.serve
        require(port is None or 0 <= port < 2**16, "serve", port, "a port, 0 to 65535")


MOST_FRAMES = 10_000  # of one figure
PORT = "8000"


def _site(argv: Sequence[str]) -> int:
    words: list[str] = []
    for place, word in enumerate(argv):
        words.append(word)
        if word == "--serve" and (place + 1 == len(argv) or argv[place + 1].startswith("-")):
            words.append(PORT)
    chosen = read(Site, words, "course site")
    from course.lab import terminal
    from course.site import build, serve

    folder = build.build(chosen.out, most=chosen.frames, progress=terminal.Progress())
    print(folder / "index.html")
    if chosen.serve is not None:
        serve.serve(folder, chosen.serve)
    return OK


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "ladder": ("the main job: what each part buys; a table and figures", _ladder),
    "bandits": ("the ablations on bandits: list them, run one", _bandits),
    "tinylm": ("the tiny language model: its ablations; train, evaluate, sample", _tinylm),
    "facts": ("every claim that was measured, and whether it holds", _facts),
    "rungs": ("every estimator: what it replaces, its equation, its source", _rungs),
    "metrics": ("every logged metric and what it means", _metrics),
    "lab": ("open your copy of the lessons in JupyterLab", _lab),
    "start": ("copy the lessons into a folder of yours", _start),
    "progress": ("what you have answered and passed in the lessons", _progress),
    "notebooks": ("build the lessons from notebooks/src/", _notebooks),
    "site": ("build the course as web pages, and serve them", _site),
}


# ---------------------------------------------------------------- shell completion


def _completion(argv: Sequence[str]) -> int:
    """Print the shell script that completes commands, ablations and settings."""
    from course.lab.command import options
    from tinylm import commands

    shells = ("bash", "zsh", "tcsh")
    require(len(argv) == 1 and argv[0] in shells, "--completion", " ".join(argv), ", ".join(shells))
    kinds: dict[str, Any] = {
        "ladder": Ladder,
        "bandits": _one_of("bandits", options("bandits.ablations")),
        "tinylm": _one_of("tinylm", {**commands.OPTIONS, **options("tinylm.ablations")}),
        "facts": Facts,
        "rungs": Rungs,
        "metrics": Metrics,
        "start": Start,
        "progress": Progress,
        "notebooks": Notebooks,
        "site": Site,
    }
    with suppress(SystemExit):  # which is how it ends when it has printed the script
        tyro.cli(_union(kinds), prog="course", args=["--tyro-print-completion", argv[0]])
    return OK


def _one_of(name: str, kinds: dict[str, Any]) -> Any:
    """A command whose first argument is one of several names."""
    words: Any = tyro.conf.OmitSubcommandPrefixes
    return dataclasses.make_dataclass(name, [("name", words[_union(kinds)])])


def _union(kinds: dict[str, Any]) -> Any:
    """A subcommand for each of these classes, under its name."""
    named = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items()]
    return Union[tuple(named)]  # noqa: UP007
