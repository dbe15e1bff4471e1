"""Links between pages and files of the repository: each leads to a page of the site.

Pages lie where their files lie in the repository, so a relative link between two pages stays. A
link to a file that is no page leads to its listing, which is made for it.
"""

from __future__ import annotations

import html
import importlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from course.errors import require

FIGURES = "figures"  # copied as they are
LISTINGS = "files"  # the folder of listings
SHOWN = (".py", ".cfg", ".toml", ".txt", ".json", ".md", ".sh", ".yml", ".yaml", "")  # as text
MARKDOWN = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
ATTRIBUTE = re.compile(r'\b(href|src)="([^"]+)"')
FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"`([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)`")  # of something public


@dataclass
class Links:
    """The pages of a site, and the files of the repository `root` that its pages link to.

    `pages` are paths in the repository, such as "notebooks/CLAIMS.md"; `modules` says of a Python
    file which module it is, whose page a link leads to. Raises `CourseError` for a link to a file
    that does not exist.
    """

    root: Path
    pages: frozenset[str]
    modules: Mapping[str, str] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)

    def address(self, link: str, page: str) -> str:
        """Where a relative link on a page leads, as a path of the site; others stay as they are."""
        path, mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:|//", path):
            return link
        return self.relative(self.target(path, page), page) + mark + anchor

    def target(self, link: str, page: str) -> str:
        """The file of the repository that a relative link on a page leads to."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))

    def relative(self, target: str, page: str) -> str:
        """The address of a file of the repository, relative to a page."""
        if target in self.pages:
            to = html_of(target)
        elif target in self.modules:
            to = f"api/{self.modules[target]}.html"
        elif target == FIGURES:
            to = "ablations/index.html"
        elif target.startswith(f"{FIGURES}/") and (self.root / target).is_file():
            to = f"_static/{target}"
        else:
            to = self.listing(target, page)
        return posixpath.relpath(to, posixpath.dirname(page) or ".")

    def listing(self, target: str, page: str = "") -> str:
        """The address of a file's or folder's listing, which will be made."""
        there = self.root / target
        require(
            there.exists() and there.resolve().is_relative_to(self.root.resolve()),
            f"{page or 'site'}: link",
            target,
            "a file or folder of the course",
        )
        self.listed.add(target)
        return f"{LISTINGS}/{target}/index.html" if there.is_dir() else f"{LISTINGS}/{target}.html"

    def markdown(self, text: str, page: str) -> str:
        """Markdown whose links lead to pages of the site, those of a module's name to its place.

        A link that moves becomes HTML, since Sphinx knows pages only and no other files.
        """

        def linked(found: re.Match[str]) -> str:
            image, words, link = found.groups()
            address = self.address(link, page)
            if address == link:
                return found[0]
            if image:
                return f'<img src="{address}" alt="{html.escape(words)}">'
            name = NAME.fullmatch(words)
            return self.to_name(link, name[1] if name else "", page, _inline(words))

        blocks = FENCED.split(text)
        return "".join(
            block if i % 2 else MARKDOWN.sub(linked, self.markup(block, page))
            for i, block in enumerate(blocks)
        )

    def to_name(self, link: str, name: str, page: str, words: str) -> str:
        """A link, whose `words` are HTML, to the place of a public `name` on its module's page.

        To the page itself if there is no such place.
        """
        address = self.address(link, page)
        module = self.modules.get(self.target(link, page))
        if module and name and is_public(module, name):
            address += f"#{module}.{name}"
        return f'<a href="{address}">{words}</a>'

    def markup(self, text: str, page: str) -> str:
        """HTML whose links lead to pages of the site."""
        return ATTRIBUTE.sub(lambda found: f'{found[1]}="{self.address(found[2], page)}"', text)


def is_public(module: str, name: str) -> bool:
    """Whether a module's page describes `name`: it is there and public; it may be a method."""
    thing: object = importlib.import_module(module)
    for part in name.split("."):
        if part.startswith("_") or not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    place = (getattr(thing, "__module__", None), getattr(thing, "__qualname__", None))
    return place == (module, name)  # and neither imported nor inherited


def html_of(page: str) -> str:
    """The file of the site that a page becomes."""
    return re.sub(r"\.(ipynb|md|rst)$", ".html", page)


def _inline(words: str) -> str:
    """The words of a Markdown link as HTML."""
    words = re.sub(r"`([^`]+)`", r"<code>\1</code>", words)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", words)
