"""The command `course`: climb the ladder, open the lessons, show the rungs, and count the claims
that were reproduced.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from course import ladder
from course.errors import CourseError, require, unknown
from course.lab import ablation, climb, ledger
from course.lab.terminal import FACT_FAILED, OK, Parser, guarded, text_table
from course.train import files
from course.train.device import pick_device
from course.train.metrics import GLOSSARY

QUICK_RUNS = 40
KINDS = {
    "rung": "the ladder, bottom to top",
    "descendant": "descendants",
    "branch": "branches",
    "own": "your own",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 if a fact does not hold, 2 for bad input (one
    line), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(arguments))


def _main(argv: list[str]) -> int:
    commands = {
        "ladder": _ladder,
        "facts": _facts,
        "rungs": _rungs,
        "metrics": _metrics,
        "lab": _lab,
        "progress": _progress,
        "notebooks": _notebooks,
    }
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise unknown("command", argv[0], commands)
    parser = _parser()
    chosen, further = parser.parse_known_args(argv)
    if further and chosen.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    chosen.further = further  # JupyterLab's own
    if chosen.command is None:
        print(parser.format_help())
        return OK
    return commands[chosen.command](chosen)


def _parser() -> Parser:
    parser = Parser(
        prog="course",
        description="From REINFORCE to GRPO, one replaced part at a time.",
        epilog=f"""beside it:
  python -m bandits [NAME]  one ablation on bandits: writes figures/NAME.png and NAME.json
                            (no NAME: list them)
  python -m tinylm [NAME]   the same for the tiny language model
  both take --set field=value, --seed, --device, --rungs, --out, --redraw;
  NAME --help shows the settings

ablations on bandits: {_ablations("bandits.ablations")}
ablations on the tiny language model: {_ablations("tinylm.ablations")}

exit status: 0; 1 a fact does not hold; 2 bad input;
130 Ctrl-C, which leaves whole files or none""",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    main_job = commands.add_parser(
        "ladder",
        help="the main job: climb the ladder; a table and figures",
        description=_ladder.__doc__,
    )
    main_job.add_argument(
        "--rungs",
        metavar="a,b,mine.py:mine",
        help="the estimators to compare (default: the eight rungs)",
    )
    main_job.add_argument("--runs", type=int, metavar="N", help="independent runs of each")
    main_job.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random streams (default 0)"
    )
    main_job.add_argument("--device", metavar="NAME", help="cpu, cuda or auto")
    main_job.add_argument("--out", metavar="DIR", help="folder for the files (default: figures/)")
    main_job.add_argument(
        "--quick",
        action="store_true",
        help="a first look in under a minute: fewer runs, a smaller model",
    )

    facts = commands.add_parser(
        "facts",
        help="every claim that was measured, and whether it holds",
        description=_facts.__doc__,
    )
    facts.add_argument("--folder", metavar="DIR", help="where the results are (default: figures/)")
    generated = "write the generated parts of README.md, or of FILE: this count, the ladder's table"
    facts.add_argument("--readme", nargs="?", const="", metavar="FILE", help=generated)

    commands.add_parser(
        "rungs",
        help="every estimator: what it replaces, its equation, its source",
        description=_rungs.__doc__,
    )

    commands.add_parser(
        "metrics", help="every logged metric and what it means", description=_metrics.__doc__
    )

    lab = commands.add_parser(
        "lab", help="open the lessons in JupyterLab", description=_lab.__doc__
    )
    progress = commands.add_parser(
        "progress",
        help="what you have answered and passed in the lessons",
        description=_progress.__doc__,
    )
    progress.add_argument("--delete", action="store_true", help="forget it all")

    notebooks = commands.add_parser(
        "notebooks", help="build the lessons from notebooks/src/", description=_notebooks.__doc__
    )
    notebooks.add_argument("lessons", nargs="*", metavar="NN", help="which (default: all)")
    notebooks.add_argument(
        "--pages",
        action="store_true",
        help="only the generated pages and the index, nothing is executed",
    )

    lab.epilog = "further arguments, such as --no-browser, go to JupyterLab"
    return parser


def _ablations(package: str) -> str:
    """The names, found without importing any of them."""
    return ", ".join(ablation.names(package)) or "none yet"


def _ladder(chosen: Namespace) -> int:
    """Put every rung under the microscope, climb the ladder on a contextual bandit, then on a tiny
    language model.
    """
    require(chosen.runs is None or chosen.runs > 0, "--runs", chosen.runs, "a whole number ≥ 1")
    require(chosen.seed >= 0, "--seed", chosen.seed, "a whole number ≥ 0")
    require(
        not (chosen.quick and chosen.runs),
        "--quick",
        f"--runs {chosen.runs} as well",
        "one of the two",
    )
    device = None if chosen.device is None else str(pick_device(chosen.device))
    rungs = None if chosen.rungs is None else list(ablation.resolve_rungs(chosen.rungs))
    out = files.check_writable(Path(chosen.out) if chosen.out else ablation.default_folder())
    # by name: the core knows nothing of bandits or transformers
    runs = QUICK_RUNS if chosen.quick else chosen.runs
    bandit, exact = importlib.import_module("bandits.climb").climb(
        rungs, runs, chosen.seed, device, out
    )
    model = importlib.import_module("tinylm.climb").climb(
        rungs, chosen.seed, device, out, chosen.quick
    )
    names = [rung.name for rung in ladder.select(rungs)]
    picture = climb.write(climb.together(names, [bandit, model]), out)
    print(f"\n{climb.table(names, [bandit, model])}\n")
    print(
        "± half the 95 % interval; bias, spread: of the gradient on B3, as a share of ‖∇J‖, exact,"
        " on / off policy"
    )
    results_of_all = (exact, bandit.result, model.result)
    for found in results_of_all:
        print(f"\n{found.title}")
        ablation.report(found)
    print(
        f"\nside by side: {picture}; more: "
        + ", ".join(str(out / f"{found.name}.png") for found in results_of_all)
    )
    print(
        "next: `python -m bandits` and `python -m tinylm` list the ablations, `course facts` shows"
        " every claim that was checked"
    )
    return OK if all(found.held == len(found.facts) for found in results_of_all) else FACT_FAILED


def _facts(chosen: Namespace) -> int:
    """Print the ledger: every claim that a result in the folder measured.

    The exit status is 1 if one does not hold.
    """
    facts = ledger.ledger(Path(chosen.folder) if chosen.folder else ablation.default_folder())
    print(facts.table())
    print(facts.summary)
    if chosen.readme is not None:
        path = (
            Path(chosen.readme)
            if chosen.readme
            else (ablation.project_root() or Path()) / "README.md"
        )
        pieces = {
            "facts": facts.summary,
            "ladder": f"\n{ladder_table()}\n",
            "lessons": f"\n{lessons_table()}\n",
        }
        print(f"{path}: {'updated' if ledger.update_readme(path, pieces) else 'up to date'}")
    return OK if facts.held == len(facts.entries) else FACT_FAILED


def _rungs(chosen: Namespace) -> int:
    """Show every estimator: the rung it stands on, the part it replaces, its equation in one line,
    its source.
    """
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


def _metrics(chosen: Namespace) -> int:
    """The glossary: every metric that is logged, its unit, and its definition."""
    print(
        text_table(
            ("metric", "unit", "definition"),
            [(m.name, m.unit or "–", m.definition) for m in GLOSSARY.values()],
        )
    )
    return OK


def ladder_table() -> str:
    """The eight rungs as a Markdown table: rung, replaced part, equation, source."""
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
    """The lessons as a Markdown table: a picture, the lesson, what to take away, the
    measured time.
    """
    from course.lesson.syllabus import SYLLABUS, index

    seconds = {number: entry["seconds"] for number, entry in index().items()}
    rows = ["| | lesson | the one thing to take away | computes |", "| --- | --- | --- | --- |"]
    for number, lesson in SYLLABUS.items():
        picture = f'<img src="figures/{lesson.figure}.png" width="150" alt="{lesson.title}">'
        link = f"[**{number} · {lesson.title}**](notebooks/{lesson.file}.ipynb)"
        rows.append(f"| {picture} | {link} | {lesson.takeaway} | {seconds.get(number, '–')} s |")
    return "\n".join(rows)


def _lab(chosen: Namespace) -> int:
    """Start JupyterLab on the lessons, with lesson 00 open."""
    folder = (ablation.project_root() or Path()) / "notebooks"
    lessons = sorted(folder.glob("*.ipynb"))
    if not lessons:
        raise CourseError(
            f"lab: got no lessons in {str(folder)!r}; allowed is a checkout of the course whose"
            " notebooks/ has some"
        )
    if importlib.util.find_spec("jupyterlab") is None:
        raise CourseError(
            "lab: got no JupyterLab; allowed is an environment that has it: pip install jupyterlab"
        )
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(lessons[0]), *chosen.further])


def _progress(chosen: Namespace) -> int:
    """Show which questions you have answered and which exercises you have passed; they are kept in
    one file, which this can delete.
    """
    from course.lesson import progress
    from course.lesson.syllabus import SYLLABUS, index

    if chosen.delete:
        print(
            f"{progress.path()}:"
            f" {'deleted' if progress.delete() else 'there was nothing to delete'}"
        )
        return OK
    done, asked = progress.read(), index()
    rows = []
    for number, lesson in SYLLABUS.items():
        mine, there = done.get(number, {}), asked.get(number, {})
        counts = [
            f"{len(mine.get(kind, []))} of {len(there.get(kind, []))}"
            for kind in ("questions", "exercises")
        ]
        rows.append((number, lesson.title, *counts))
    print(text_table(("", "lesson", "questions answered", "exercises passed"), rows))
    print(f"kept in {progress.path()}")
    return OK


def _notebooks(chosen: Namespace) -> int:
    """Build the notebooks from notebooks/src/: execute, save, measure the time; then write the
    generated pages.
    """
    from course.lesson import build, pages

    if not chosen.pages:
        build.build(chosen.lessons)
    build.refresh_index(chosen.lessons)
    for path in pages.write():
        print(path)
    return OK
