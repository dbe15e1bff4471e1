"""The generated pages of the site: the first page, ablations, API, listings of files."""

from __future__ import annotations

import importlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from course.lab.result import Result
from course.lesson import sources
from course.lesson.conventions import cell
from course.lesson.reference import first_line, python_files
from course.lesson.syllabus import SYLLABUS, LessonInfo
from course.site.links import LISTINGS, SHOWN, Links

REFERENCE = (  # page, title in the list of contents
    ("notebooks/CHEATSHEET.md", "Every objective on one page"),
    ("notebooks/EQUATIONS.md", "Equation, function, test"),
    ("notebooks/CONFUSIONS.md", "What people ask"),
    ("notebooks/CLAIMS.md", "What the course claims"),
    ("notebooks/CONVENTIONS.md", "Conventions: TRL and verl"),
    ("ablations/index.md", "Ablations and their facts"),
    ("notebooks/GLOSSARY.md", "Glossary"),
    ("notebooks/SLIPS.md", "Where other articles slip"),
    ("notebooks/BIBLIOGRAPHY.md", "Bibliography"),
)
MORE = (
    ("README.md", "Install and run it"),
    (".github/CONTRIBUTING.md", "Contributing"),
    ("course/CONVENTIONS.md", "Conventions, as the tests read them"),
)
LARGEST = 200_000  # bytes of a listing; of a longer file only the beginning is shown


def escaped(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#|~])", r"\\\1", text)


def contents(title: str, entries: Iterable[tuple[str, str]], caption: str = "") -> str:
    """A hidden list of contents, which becomes a part of the side bar."""
    lines = [f"{words} <{posixpath.splitext('/' + page)[0]}>" for page, words in entries]
    head = ["```{toctree}", ":hidden:", f":caption: {caption or title}", ""]
    return "\n".join([*head, *lines, "```", ""])


def lessons_of(numbers: Iterable[str]) -> list[LessonInfo]:
    """The lessons with these numbers."""
    return [SYLLABUS[number] for number in numbers]


# ---------------------------------------------------------------- the first page


def index(lessons: Iterable[LessonInfo], links: Links, summary: str) -> str:
    """The first page: what the course is, its lessons, and the contents of the site."""
    rows = [
        "| | lesson | the one thing to take away |",
        "| --- | --- | --- |",
    ]
    entries = []
    for lesson in lessons:
        page = f"notebooks/{lesson.file}.ipynb"
        entries.append((page, lesson.heading))
        link = f'<a href="{links.relative(page, "index.md")}"><b>{lesson.title}</b></a>'
        rows.append(f"| {lesson.number} | {link} | {cell(lesson.takeaway)} |")
    parts = [
        "# From REINFORCE to GRPO, one replaced part at a time\n",
        (
            "A course on policy-gradient methods for language models. It has one idea: **every"
            " algorithm from REINFORCE to GRPO is the same objective with one part swapped.**"
            " The parts are small Python objects. They run on multi-armed bandits, where the exact"
            " answer is known, and on a small transformer that learns arithmetic.\n"
        ),
        (
            "Nothing has to be installed to read these pages: the figures were drawn ahead, the"
            " sliders move among them, and questions answer at once. To run the lessons, change"
            " them and do their exercises, you need the course itself: "
            f'<a href="{links.relative("README.md", "index.md")}">how to install it</a>.\n'
        ),
        f"So far {summary}: [each ablation with its figure and its facts](ablations/index.md).\n",
        "\n".join(rows) + "\n",
        contents("Lessons", entries),
        contents("Reference", REFERENCE),
        contents("Code", [("api/index.md", "API"), *MORE]),
    ]
    return "\n".join(parts)


# ---------------------------------------------------------------- ablations


def ablation_page(result: Result) -> str:
    """One ablation: figure, caption, every fact with whether it holds, settings, environment."""
    figure, data = (f"../figures/{result.name}.{end}" for end in ("png", "json"))
    held = f"{result.held} of {len(result.facts)} facts hold"
    lines = [
        "---\norphan: true\n---\n",
        f"# {escaped(result.name.replace('_', ' '))}\n",
        f"{escaped(result.title)}\n",
        f'<figure class="course-picture"><img src="{figure}" alt="{_quoted(result.title)}">'
        f"<figcaption>{_quoted(result.caption)}</figcaption></figure>\n",
        f"## Facts: {held}\n" if result.facts else "## Facts: none\n",
    ]
    if result.facts:
        lines += [
            "| | claim | measured | expected | source |",
            "| --- | --- | --- | --- | --- |",
        ]
        for fact in result.facts:
            verdict = "holds" if fact.holds else "**does not hold**"
            row = (fact.claim, fact.found, fact.wanted, fact.source)
            lines.append(f"| {verdict} | " + " | ".join(_fact_cell(each) for each in row) + " |")
    where = result.environment.get("hardware", {})
    settings = "\n".join(f"{name} = {value!r}" for name, value in result.settings.items())
    lines += [
        "\n## How it was made\n",
        (
            f"{result.seconds:.0f} seconds; Python {result.environment.get('python')}, torch"
            f" {result.environment.get('torch')}, {escaped(str(where.get('cpu', '')))}."
            f' <a href="{data}">The data of the figure</a>.\n'
        ),
        f"```text\n{settings}\n```\n",
    ]
    return "\n".join(lines)


def _fact_cell(text: str) -> str:
    """A cell of a table of facts: plain text, sources as links."""
    return sources.linked(escaped(" ".join(text.split())), "../notebooks/")


def _quoted(text: str) -> str:
    import html

    return html.escape(" ".join(text.split()))


def ablations_index(results: Iterable[Result]) -> str:
    """The table of all ablations: what each shows, and how many of its facts hold."""
    lines = [
        "# Ablations and their facts\n",
        (
            "Every figure lies beside its data and its facts: claim, source, measured value,"
            " expected value, and whether it holds. A fact is written whether it holds or not.\n"
        ),
        "| ablation | what it shows | facts that hold |",
        "| --- | --- | --- |",
    ]
    for each in results:
        link = f"[{escaped(each.name.replace('_', ' '))}]({each.name}.md)"
        lines.append(f"| {link} | {escaped(each.title)} | {each.held} of {len(each.facts)} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- API and listings


def modules(root: Path) -> dict[str, dict[str, str]]:
    """Package → {its public module, by dotted name: its file}."""
    found: dict[str, dict[str, str]] = {}
    for path in python_files(root):
        file = path.relative_to(root)
        names = file.with_suffix("").parts
        if any(name.startswith("_") for name in names if name != "__init__"):
            continue
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        found.setdefault(names[0], {})[name] = file.as_posix()
    return found


def api_page(module: str, file: str) -> str:
    """The page of a module: its docstring, and those of its public names."""
    options = (
        "   :members:\n   :undoc-members:\n   :member-order: bysource\n   :show-inheritance:\n"
    )
    title = f":orphan:\n\n{module}\n{'=' * len(module)}\n\n"
    return f"{title}`Source <{file}>`__\n\n.. automodule:: {module}\n{options}"


def api_index(found: Mapping[str, Iterable[str]]) -> str:
    """The list of all modules with the first line of their docstrings."""
    lines = ["# API\n", "Every public module, from its docstrings.\n"]
    for package, names in found.items():
        lines += [f"## {package}\n", "| module | |", "| --- | --- |"]
        for name in names:
            said = escaped(first_line(importlib.import_module(name)))
            lines.append(f'| <a href="{name}.html"><code>{name}</code></a> | {said} |')
        lines.append("")
    return "\n".join(lines) + "\n"


def plain_docstring(lines: list[str]) -> list[str]:
    """A docstring of the course as reStructuredText: nothing in it but `code` is markup.

    Indented lines are code. Lists keep their items.
    """
    out: list[str] = []
    literal = False
    for line in lines:
        if not line.strip():
            literal = False if not line else literal
            out.append("")
        elif line.startswith("    ") or (literal and line.startswith(" ")):
            if not literal:
                out += ["", "::", ""]
            literal = True
            out.append(f"    {line}")
        else:
            item = re.match(r"(\s*- )(.*)", line)
            head, text = item.groups() if item else ("", line)
            out.append(head + _roled(text))
    return out


def _roled(text: str) -> str:
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(
        f"``{piece.strip('`')}``" if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    )


def listings(links: Links) -> Iterator[tuple[str, str]]:
    """Yield (page, Markdown) of the listing of each linked file and folder.

    A folder's listing links to those of its files, so more are made on the way.
    """
    done: set[str] = set()
    while links.listed - done:
        for target in sorted(links.listed - done):
            done.add(target)
            there = links.root / target
            if there.is_dir():
                yield f"{LISTINGS}/{target}/index.md", _folder(target, links)
            else:
                yield f"{LISTINGS}/{target}.md", _listing(target, there)


def _folder(target: str, links: Links) -> str:
    page = f"{LISTINGS}/{target}/index.md"
    lines = [HEAD, f"# {target}/\n"]
    for path in sorted((links.root / target).iterdir()):
        skipped = path.name.startswith((".", "__pycache__"))
        if path.is_file() and not skipped and path.suffix in SHOWN:
            where = links.relative(f"{target}/{path.name}", page)
            lines.append(f'- <a href="{where}"><code>{path.name}</code></a>')
    return "\n".join(lines) + "\n"


def _listing(target: str, path: Path) -> str:
    head = f"{HEAD}\n# {target}\n"
    text = path.read_text(encoding="utf-8")
    cut = text[:LARGEST]
    more = "\nOnly the beginning of a long file is shown.\n" if len(text) > LARGEST else ""
    fence = "`" * (max((len(run) for run in re.findall(r"`+", cut)), default=2) + 1)
    fence = fence if len(fence) > 2 else "```"
    kind = {".py": "python", ".json": "json", ".toml": "toml"}.get(path.suffix, "text")
    if len(cut) < len(text):
        kind = "text"
    return f"{head}{more}\n{fence}{{code-block}} {kind}\n:linenos:\n\n{cut}\n{fence}\n"


HEAD = "---\nnosearch: true\norphan: true\n---\n"
