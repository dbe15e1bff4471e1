"""The works that lessons and docstrings cite: notebooks/src/sources.toml.

A citation is its key there, "Authors YEAR". The build of a lesson makes a link of each, so that a
lesson's source stays plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.errors import require
from course.lesson import tables
from course.lesson.syllabus import described, read_again
from course.lesson.view import rich

PAGE = "BIBLIOGRAPHY.md"
ARXIV = re.compile(r"(?<![\w./\[])((?:0[7-9]|1\d|2\d)(?:0[1-9]|1[0-2])\.\d{5})(?![\w\]])")
CITATION = re.compile(  # also one that no source has
    r"(?<![\w&-])[A-ZÀ-Ž][\w'’.-]*(?:(?:, | & | and )[A-ZÀ-Ž][\w'’-]*)*(?: et al\.)?,? \(?"
    r"(?:19|20)\d\d(?![\d\w])"
)
NO_AUTHORS = re.compile(
    "(?:In|Since|By|From|Until|January|February|March|April|May|June|July|August|September|October"
    "|November|December) "
)
KEPT = re.compile(  # of Markdown: code, headings, mathematics, links, comments, HTML
    r"(^```.*?^```|^\#+ [^\n]*|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<!--.*?-->"
    r"|<[^>\n]+>)",
    re.DOTALL | re.MULTILINE,
)
_loaded: dict[Path, tuple[int, dict[str, Source]]] = {}


@dataclass(frozen=True)
class Source:
    """One work. `also` are other words that mean it; `article` marks those the course builds on."""

    key: str
    authors: str
    title: str
    year: int | None
    link: str | None
    also: tuple[str, ...]
    article: bool

    @property
    def anchor(self) -> str:
        """The name of its row on the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.key.casefold()).strip("-")

    def address(self, folder: str = "") -> str:
        """Where a citation leads: to the work, or to its row if its address is not known.

        `folder` leads from the citing page to notebooks/, such as "../notebooks/".
        """
        return self.link or f"{folder}{PAGE}#{self.anchor}"


def path() -> Path:
    """The file with the sources."""
    return described() / "sources.toml"


def load() -> dict[str, Source]:
    """Key → source, in the order of the file; none if there is no file.

    Raises `CourseError` that names the file, the source and the field if it is wrong.
    """
    return read_again(path(), _loaded, _parsed) or {}


def _parsed(place: Path) -> dict[str, Source]:
    found = tables.read(place, "a table per source")
    return {key: _source(f"{place}: {key}", key, entry) for key, entry in found.items()}


def _source(where: str, key: str, entry: Any) -> Source:
    more = {"link": str, "year": int, "also": list, "article": bool}
    tables.check(where, entry, {"authors": str, "title": str}, more)
    link = entry.get("link")
    plain = link is None or re.fullmatch(r"https?://[^\s()<>]+", link) is not None
    require(
        plain, f"{where}.link", link, "an address without brackets (%28 and %29 in their place)"
    )
    year = re.search(r"\b(\d{4})$", key)
    return Source(
        key,
        entry["authors"],
        entry["title"],
        int(year[1]) if year else entry.get("year"),
        link,
        tuple(entry.get("also", ())),
        entry.get("article", False),
    )


# ---------------------------------------------------------------- citations in a text


def linked(text: str, folder: str = "") -> str:
    """Markdown in which every citation of a source, and every arXiv number, is a link.

    A citation with its own number behind it, "Authors YEAR (NUMBER)", is one link. `folder`: see
    `Source.address`.
    """
    known = load()
    if not known:
        return text
    pattern, meant = _pattern(known.values())

    with_number = re.compile(rf"({pattern.pattern})(\s+\((\d{{4}}\.\d{{5}})\))?")

    def link(found: re.Match[str]) -> str:
        to, number = meant(found[1]).address(folder), found[3]
        if number is not None and to.endswith(number):
            return f"[{found[0]}]({to})"
        return f"[{found[1]}]({to}){found[2] or ''}"

    def cited(part: str) -> str:
        return with_number.sub(link, part)

    def numbered(part: str) -> str:
        return ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", part)

    return outside(outside(text, cited), numbered)


def linked_html(text: str) -> str:
    """A text with the markup that `view.rich` knows, as HTML in which every citation is a link.

    A click opens another tab, since a widget's page is the learner's notebook.
    """
    link = r'<a href="\2" target="_blank" rel="noopener">\1</a>'
    return re.sub(r"\[([^\[\]]+)\]\(([^\s()]+)\)", link, rich(linked(text)))


def outside(text: str, change: Callable[[str], str]) -> str:
    """Markdown changed wherever it is no code, heading, mathematics, link, comment or HTML."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(KEPT.split(text)))


def cited(text: str) -> set[str]:
    """The keys of the sources that a text cites, wherever they stand in it."""
    known = load()
    if not known:
        return set()
    pattern, meant = _pattern(known.values())
    return {meant(found[0]).key for found in pattern.finditer(text)}


def unknown(text: str) -> Iterator[str]:
    """Yield what looks like a citation, "Name YEAR", outside the links of a text."""
    plain = " ".join(" ".join(KEPT.split(text)[::2]).split())
    for found in CITATION.finditer(plain):
        if NO_AUTHORS.match(found[0]) is None:
            yield found[0]


def _pattern(known: Iterable[Source]) -> tuple[re.Pattern[str], Callable[[str], Source]]:
    """(what finds a citation in a text, the source that a found one means).

    Its words may be on two lines; "(2017)" and "and" are as good as "2017" and "&".
    """
    means = {_plain(word): each for each in known for word in (each.key, *each.also)}
    words = sorted(means, key=len, reverse=True)
    pattern = "|".join(_loosely(word) for word in words)
    return re.compile(rf"(?<![\w&-])(?:{pattern})(?!\w)"), lambda found: means[_plain(found)]


def _loosely(word: str) -> str:
    authors, _, year = word.rpartition(" ")
    if not re.fullmatch(r"\d{4}", year):
        authors, year = word, ""
    names = r"\s+".join("(?:&|and)" if part == "&" else re.escape(part) for part in authors.split())
    return names + (rf",?\s+(?:{year}|\({year}\))" if year else "")


def _plain(word: str) -> str:
    """A citation as its key is written."""
    word = re.sub(r",?\s+\(?(\d{4})\)?$", r" \1", word)
    return " ".join("&" if part == "and" else part for part in word.split())
