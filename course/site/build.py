"""Build the site: its pages' sources into a temporary folder, Sphinx over them, then one rename."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from course.errors import CourseError, require
from course.lab import ledger
from course.lab.places import project_root
from course.lab.result import Result
from course.lab.terminal import QUIET, Progress
from course.lesson import build as notebooks
from course.lesson import info
from course.lesson import pages as generated
from course.site import lessons, pages
from course.site.frames import Frames, draw_all
from course.site.links import Links
from course.train.files import unwritable

MARK = ".pg-ladder-site"  # the file that says that a folder is a site of this course
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme")
MATHJAX = "sphinx-mathjax-offline"  # a package of the files of MathJax 3, and nothing else
MATHJAX_FILES = ("tex-chtml-full.js", "output/chtml/fonts/")  # what a page loads


def build(
    out: Path,
    numbers: Sequence[str] = (),
    *,
    most: int,
    explored: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
    progress: Progress = QUIET,
) -> Path:
    """Build the site into `out`, whole or not at all; returns `out`.

    `numbers` are the lessons (default: all), `most` bounds an explore's pictures (0: the saved one
    alone), which are drawn for the lessons `explored` (default: each). Raises `CourseError` if
    `out` is a folder of something else, if the extra `site` is not installed, or if Sphinx fails.
    What Sphinx warns of is reported; `progress` shows how far the drawing is.
    """
    check_installed()
    root = checkout()
    out = Path(os.path.abspath(out))
    check_ours(out)
    chosen = [info(number).number for number in numbers] or [
        lesson.number for lesson in notebooks.written()
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            sources, made = Path(temporary, "sources"), Path(temporary, "site")
            wanted = [info(each).number for each in (chosen if explored is None else explored)]
            drawn = draw_all(wanted, most, progress) if most else {}
            write_sources(root, sources, chosen, drawn, report)
            report("the pages …")
            for warning in run_sphinx(sources, made, Path(temporary, "doctrees")):
                report(warning)
            (made / MARK).write_text("built by `course site`\n", encoding="utf-8")
            (made / ".nojekyll").touch()  # or GitHub leaves out folders such as _static
            put(made, out, Path(temporary, "before"))
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def check_installed() -> None:
    """Raise `CourseError` if a package of the extra `site` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    try:
        importlib.metadata.version(MATHJAX)
    except importlib.metadata.PackageNotFoundError:
        missing.append(MATHJAX)
    if missing:
        raise CourseError(
            f"site: got an environment without {', '.join(missing)}; allowed is one with the extra"
            ' `site`: pip install -c constraints.txt -e ".[site]"'
        )


def checkout() -> Path:
    """The folder of the course. Raises `CourseError` outside a checkout."""
    root = project_root()
    if root is None:
        allowed = "a folder of a checkout of the course"
        raise CourseError(f"site: got {str(Path.cwd())!r}; allowed is {allowed}")
    return root


def check_ours(out: Path) -> None:
    """Raise `CourseError` unless `out` is missing, empty, or a site that was built before."""
    ours = not out.exists() or (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir())))
    allowed = "a new or empty folder, or one that `course site` made"
    require(ours, "out", str(out), allowed)


def put(made: Path, out: Path, before: Path) -> None:
    """Move the new site into its place; what stood there comes back if that fails."""
    check_ours(out)  # it may have been filled meanwhile
    if out.exists():
        os.replace(out, before)
    try:
        os.replace(made, out)
    except OSError:
        if before.exists():
            os.replace(before, out)
        raise


# ---------------------------------------------------------------- the sources of the pages


def write_sources(
    root: Path,
    to: Path,
    numbers: Sequence[str],
    drawn: Mapping[str, Sequence[Frames]],
    report: Callable[[str], None],
) -> None:
    """Write the source of every page of the site, and the files that pages show."""
    import nbformat

    chosen = pages.lessons_of(numbers)
    results = [Result.load(path) for path in sorted((root / "figures").glob("*.json"))]
    found = pages.modules(root)
    links = Links(
        root,
        frozenset(
            [
                "index.md",
                "api/index.md",
                *(page for page, _ in (*pages.REFERENCE, *pages.MORE)),
                *(f"notebooks/{lesson.file}.ipynb" for lesson in notebooks.written()),
                *(f"ablations/{result.name}.md" for result in results),
            ]
        ),
        {file: module for group in found.values() for module, file in group.items()},
    )
    files: dict[str, str] = {}
    for lesson in notebooks.written():
        page = f"notebooks/{lesson.file}.ipynb"
        if lesson not in chosen:  # so that links to it lead somewhere
            files[f"notebooks/{lesson.file}.md"] = f"{pages.HEAD}\n# {lesson.heading}\n"
            continue
        saved = notebooks.target(lesson)
        if saved.is_file():
            notebook = nbformat.read(saved, as_version=4)
        else:
            report(f"{saved.name} is not built: its page has no outputs")
            notebook = notebooks.cells(lesson, notebooks.read_index())
        frames = {each.name: each for each in drawn.get(lesson.number, ())}
        shown, pictures = lessons.page_of(notebook, lesson, frames, links)
        files[page] = nbformat.writes(shown, version=4)
        lessons.write(pictures, to)
    written = {f"notebooks/{name}": make for name, make in generated.PAGES.items()}
    for page, _ in (*pages.REFERENCE, *pages.MORE):
        if page in written:  # as it is today, also where the saved one is of yesterday
            files[page] = links.markdown(written[page](), page)
        elif (root / page).is_file():
            files[page] = links.markdown((root / page).read_text(encoding="utf-8"), page)
    files["ablations/index.md"] = pages.ablations_index(results)
    for result in results:
        page = f"ablations/{result.name}.md"
        files[page] = links.markdown(pages.ablation_page(result), page)
    files["api/index.md"] = pages.api_index(found)
    for file, module in links.modules.items():
        page = f"api/{module}.rst"
        listing = posixpath.relpath(links.listing(file), "api")
        files[page] = pages.api_page(module, listing)
    summary = ledger.ledger(root / "figures").summary
    files["index.md"] = pages.index(chosen, links, summary)
    files |= dict(pages.listings(links))
    lessons.write({path: text.encode("utf-8") for path, text in files.items()}, to)
    static = to / "_static"
    (static / "figures").mkdir(parents=True, exist_ok=True)
    for figure in (root / "figures").iterdir():
        if figure.suffix in (".png", ".json"):
            shutil.copy(figure, static / "figures")
    for asset in (Path(__file__).parent / "static").iterdir():
        shutil.copy(asset, static)
    copy_mathjax(static / "mathjax")


def copy_mathjax(to: Path) -> None:
    """Copy what pages load of MathJax from the installed package."""
    for file in importlib.metadata.files(MATHJAX) or ():
        inside = str(file).partition("/static/mathjax/")[2]
        if inside.startswith(MATHJAX_FILES):
            (to / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), to / inside)
    require(
        (to / MATHJAX_FILES[0]).is_file(), "site", f"no {MATHJAX_FILES[0]}", f"one in {MATHJAX}"
    )


# ---------------------------------------------------------------- Sphinx

CONFIGURATION: dict[str, Any] = {
    "project": "From REINFORCE to GRPO",
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"],
    "exclude_patterns": ["_static/**"],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "myst_dmath_double_inline": True,
    "suppress_warnings": ["myst.header", "misc.highlighting_failure"],
    "autodoc_typehints": "signature",
    "maximum_signature_line_length": 70,
    "python_use_unqualified_type_names": True,
    "html_theme": "sphinx_book_theme",
    "html_title": "From REINFORCE to GRPO",
    "html_static_path": ["_static"],
    "html_favicon": "_static/favicon.svg",
    "html_context": {"default_mode": "auto"},
    "html_css_files": ["course.css"],
    "html_js_files": [("course.js", {"defer": "defer"})],
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_copyright": False,
    "html_show_sphinx": False,
    "html_theme_options": {
        "navbar_persistent": [],  # the side bar has the search
        "use_download_button": False,
        "use_fullscreen_button": False,
        "show_navbar_depth": 1,
        "show_toc_level": 2,
        "pygments_light_style": "xcode",  # readable: a contrast of 4.5 : 1 everywhere
        "pygments_dark_style": "github-dark",
    },
    "mathjax_path": "mathjax/tex-chtml-full.js",
    "mathjax_options": {"defer": "defer"},
}


def run_sphinx(sources: Path, to: Path, doctrees: Path) -> list[str]:
    """Run Sphinx over the sources; returns its warnings. Raises `CourseError` if it fails."""
    import io
    import warnings

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warned = io.StringIO()
    with patch_docutils(), docutils_namespace(), warnings.catch_warnings():
        # what the theme and Sphinx have to settle among themselves; warnings about the pages are
        # those that Sphinx writes
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        app = Sphinx(
            srcdir=sources,
            confdir=None,
            outdir=to,
            doctreedir=doctrees,
            buildername="html",
            confoverrides=CONFIGURATION,
            status=None,
            warning=warned,
            freshenv=True,
        )
        app.connect("autodoc-process-docstring", _plain)
        app.build(force_all=True)
    lines = [line for line in warned.getvalue().splitlines() if re.search("WARNING|ERROR", line)]
    if app.statuscode:
        raise CourseError("site: Sphinx failed:\n" + "\n".join(lines[:20]))
    return lines


def _plain(_app: object, _what: str, _name: str, _thing: object, _opt: object, lines: Any) -> None:
    lines[:] = pages.plain_docstring(lines)
