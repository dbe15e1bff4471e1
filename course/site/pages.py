"""The generated pages of the site: ablations, glossary, bibliography, API, listings of files."""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from course import ladder
from course.lab.result import Result
from course.lesson import build, pages
from course.lesson.map import lesson_of
from course.lesson.syllabus import SYLLABUS, LessonInfo
from course.parts.base import Part
from course.registry import Rung
from course.site.links import LISTINGS, SHOWN, Links
from course.train.metrics import GLOSSARY

PACKAGES = ("course", "bandits", "tinylm")
REFERENCE = (  # page, title in the list of contents
    ("notebooks/CHEATSHEET.md", "Every objective on one page"),
    ("notebooks/EQUATIONS.md", "Equation, function, test"),
    ("notebooks/CONFUSIONS.md", "What people ask"),
    ("notebooks/CLAIMS.md", "What the course claims"),
    ("course/CONVENTIONS.md", "Conventions: TRL and verl"),
    ("ablations/index.md", "Ablations and their facts"),
    ("glossary.md", "Glossary"),
    ("bibliography.md", "Bibliography"),
)
MORE = (("README.md", "Install and run it"), (".github/CONTRIBUTING.md", "Contributing"))
LARGEST = 200_000  # bytes of a listing; of a longer file only the beginning is shown
# of a source, without the initials and names of articles before and after: "Shao et al. 2024"
WORK = re.compile(
    r"((?:[A-ZÀ-Ž][\w'’-]+)(?:(?:, | & | and | of )[A-ZÀ-Ž][\w'’-]+)*(?: et al\.)?),? (\d{4})(?!\d)"
)
NUMBER = re.compile(r"(?<![\w./])(\d{4}\.\d{5})(?!\w)")
EQUATION_SOURCE = re.compile(r"`eq:([a-z0-9-]+)` · ([^\n]+)")


def cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


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
        entries.append((page, f"{lesson.number} · {lesson.title}"))
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


def ablation_page(result: Result, figure: str, data: str) -> str:
    """One ablation: figure, caption, every fact with whether it holds, settings, environment."""
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
    """A cell of a table of facts: plain text, arXiv numbers as links."""
    return NUMBER.sub(r"[\1](https://arxiv.org/abs/\1)", escaped(" ".join(text.split())))


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


# ---------------------------------------------------------------- glossary and bibliography


def glossary(links: Links) -> str:
    """Estimators with their lessons, parts, symbols and logged metrics, from the code itself."""
    page = "glossary.md"
    lines = [
        "# Glossary\n",
        "From the code: the registry, the parts' own descriptions, the symbols, the metrics.\n",
        "## Estimators\n",
        "| name | title | replaced part | lesson | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rung in ladder.RUNGS.values():
        if rung.kind != "own":
            lines.append("| " + " | ".join(_rung_row(rung, links)) + " |")
    lines += [
        "\n## Parts\n",
        "| part | kind | what it is | file |",
        "| --- | --- | --- | --- |",
    ]
    for part in parts():
        file = f"{part.__module__.replace('.', '/')}.py"
        kind = file.removeprefix("course/parts/").removesuffix(".py")
        said = escaped(first_line(part))
        link = f'<a href="{links.relative(file, page)}">{file}</a>'
        lines.append(f"| `{part.__name__}` | {kind} | {said} | {link} |")
    lines += ["\n## Symbols\n", "| symbol | variable | shape | unit | meaning |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(cell(each) for each in row) + " |" for row in pages.SYMBOLS]
    lines += ["\n## Logged metrics\n", "| metric | unit | definition |", "| --- | --- | --- |"]
    for metric in GLOSSARY.values():
        lines.append(f"| `{metric.name}` | {metric.unit or '–'} | {escaped(metric.definition)} |")
    return "\n".join(lines) + "\n"


def _rung_row(rung: Rung, links: Links) -> tuple[str, ...]:
    lesson = lesson_of(rung.name)
    page = f"notebooks/{lesson.file}.ipynb" if lesson else ""
    link = ""
    if lesson:
        link = f'<a href="{links.relative(page, "glossary.md")}">{lesson.number}</a>'
    replaced = f"`{rung.replaced}` of `{rung.on}`" if rung.on else "–"
    return (f"`{rung.name}`", escaped(rung.title), replaced, link, _fact_cell(rung.source))


def parts() -> list[type[Part]]:
    """Every public part, in the order of its file and name."""
    found: set[type[Part]] = set()
    waiting = [Part]
    while waiting:
        for each in waiting.pop().__subclasses__():
            waiting.append(each)
            if each.__module__.startswith("course.parts.") and not each.__name__.startswith("_"):
                found.add(each)
    return sorted(found, key=lambda part: (part.__module__, part.__name__))


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def cited(results: Iterable[Result]) -> Iterator[tuple[str, str, str]]:
    """Yield (source, where it is cited, page of the site): lessons, estimators, facts."""
    for lesson in build.written():
        for _, text in build.prose(lesson):
            for tag, source in EQUATION_SOURCE.findall(text):
                yield source, f"eq:{tag}", f"notebooks/{lesson.file}.ipynb"
    for rung in ladder.RUNGS.values():
        if rung.kind != "own":
            yield rung.source, rung.name, "glossary.md"
    for result in results:
        for fact in result.facts:
            yield fact.source, result.name.replace("_", " "), f"ablations/{result.name}.md"


def works(citations: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, dict[str, str]]]:
    """Work ("Authors YEAR") → (arXiv number or "", {where it is cited: page}), by name.

    A source may name several works, split by ";". The arXiv number is that of any citation of the
    work which has one.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for source, where, page in citations:
        for piece in source.split(";"):
            named = WORK.findall(piece)
            number = NUMBER.search(piece)
            for authors, year in named:
                key = f"{authors} {year}"
                known, places = found.get(key, ("", {}))
                single = number[1] if number and len(named) == 1 else ""
                found[key] = (known or single, {**places, where: page})
    return dict(sorted(found.items()))


def bibliography(results: Iterable[Result], links: Links) -> str:
    """Every work that an equation, an estimator or a fact names, and where it does."""
    lines = [
        "# Bibliography\n",
        (
            "Every work that an equation of a lesson, an estimator or a fact of an ablation names"
            " as its source, and where.\n"
        ),
        "| work | | cited by |",
        "| --- | --- | --- |",
    ]
    for work, (number, places) in works(cited(results)).items():
        link = f"[arXiv {number}](https://arxiv.org/abs/{number})" if number else ""
        where = ", ".join(
            f'<a href="{links.relative(page, "bibliography.md")}">{escaped(name)}</a>'
            for name, page in places.items()
        )
        lines.append(f"| {escaped(work)} | {link} | {where} |")
    return "\n".join(lines) + "\n"


def with_rows(equations: str) -> str:
    """The equation map with an anchor at each row, to which the lessons' equations lead."""
    return re.sub(
        r"^\| `eq:([a-z0-9-]+)` \|", r'| <span id="eq-\1"></span>`eq:\1` |', equations, flags=re.M
    )


# ---------------------------------------------------------------- API and listings


def modules(root: Path) -> dict[str, list[str]]:
    """Package → its public modules, by dotted name."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            if any(name.startswith("_") for name in names if name != "__init__"):
                continue
            name = ".".join(names[:-1] if names[-1] == "__init__" else names)
            found.setdefault(package, []).append(name)
    return found


def api_page(module: str, file: str) -> str:
    """The page of a module: its docstring, and those of its public names."""
    options = "   :members:\n   :member-order: bysource\n   :show-inheritance:\n"
    title = f":orphan:\n\n{module}\n{'=' * len(module)}\n\n"
    return f"{title}`Source <{file}>`__\n\n.. automodule:: {module}\n{options}"


def api_index(found: dict[str, list[str]]) -> str:
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
