"""The built site in headless Chromium: no kernel, no network, a phone's width, both themes.

Needs the extras `browser` and `site` and the system's chromium.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import nbformat
import pytest

from course.lesson import build as notebooks
from course.lesson import info
from course.lesson import pages as generated
from course.site import build, frames
from course.site.serve import server

pytest.importorskip("sphinx", reason='no Sphinx: pip install -c constraints.txt -e ".[site]"')
pytestmark = pytest.mark.slow
WIDTHS = {1280: 900, 400: 800}  # pixels → height
LESSON = "04"  # whose explores are drawn; the others show their saved picture
FEW = 4  # pictures of an explore
BYTES = 60_000_000
PAGES = (
    "index.html",
    *(f"notebooks/{lesson.file}.html" for lesson in notebooks.written()),
    *(f"notebooks/{name.removesuffix('.md')}.html" for name in generated.PAGES),
    "course/CONVENTIONS.html",
    "ablations/index.html",
    "ablations/staleness.html",
    "api/index.html",
    "api/course.estimator.html",
    "files/course/ladder.py.html",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said: list[str] = []
    out = tmp_path_factory.mktemp("site") / "site"
    made = build.build(out, most=FEW, explored=[LESSON], report=said.append)
    assert [line for line in said if "WARNING" in line or "ERROR" in line] == []
    return made


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    running = server(site, 0)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}/"
    running.shutdown()
    running.server_close()


@pytest.fixture(params=[(w, t) for w in WIDTHS for t in ("light", "dark")], ids=str)
def page(request: Any, browser: Any, address: str) -> Iterator[Any]:
    """A page of a width and theme; any error or request to elsewhere fails the test."""
    width, theme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]}, color_scheme=theme
    )
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    made.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:")) else wrong.append(asked.url),
    )
    made.on(
        "response",
        lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None,
    )
    yield made
    context.close()
    assert wrong == []


def test_no_page_is_wider_than_the_screen_and_its_theme_is_the_readers(
    page: Any, address: str
) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for name in PAGES:
        page.goto(address + name)
        theme = page.evaluate("document.documentElement.dataset.theme")
        assert theme == ("dark" if dark else "light"), name
        ends, width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert ends <= width, f"{name}: {ends} pixels wide on a screen of {width}"


# every piece of text of a page's articles: its colour's contrast with the ground below it
CONTRASTS = """() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const rgb = numbers(getComputedStyle(at).backgroundColor);
      if (rgb.length === 3 || rgb[3] > 0.99) return rgb;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([ratio.toFixed(2), element.className, element.textContent]);
  }
  return found;
}"""


@pytest.mark.parametrize(
    "name",
    [
        f"notebooks/{info(LESSON).file}.html",
        f"notebooks/{info('02').file}.html",
        "notebooks/CHEATSHEET.html",
        "api/course.estimator.html",
        "files/course/ladder.py.html",
    ],
)
def test_code_formulas_and_words_stand_out_from_the_page(
    page: Any, address: str, name: str
) -> None:
    page.goto(address + name)
    if name.startswith("notebooks/0"):  # the cheat sheet has no formulas
        page.wait_for_function("window.MathJax?.startup?.promise")
        page.evaluate("MathJax.startup.promise")
        page.wait_for_selector("mjx-container")
    assert page.evaluate(CONTRASTS) == []


def test_every_picture_has_its_words(page: Any, address: str) -> None:
    for lesson in notebooks.written():
        page.goto(f"{address}notebooks/{lesson.file}.html")
        images = page.locator("article img")
        shown = sum(
            "image/png" in output.get("data", {})
            for cell in nbformat.read(notebooks.target(lesson), as_version=4).cells
            for output in cell.get("outputs", ())
        )
        assert images.count() == shown >= (2 if lesson.optional else 3), lesson.file
        for words in images.evaluate_all("all => all.map((image) => image.alt)"):
            assert len(words) > 20


def test_mathematics_is_typeset(page: Any, address: str) -> None:
    page.goto(f"{address}notebooks/04_clipping.html")
    page.wait_for_selector("mjx-container[display=true]")
    assert page.locator("mjx-merror").count() == 0


def test_a_slider_shows_another_picture_and_back(page: Any, address: str) -> None:
    page.goto(f"{address}notebooks/04_clipping.html")
    box = page.locator(".course-explore[data-name=clip]")
    box.scroll_into_view_if_needed()
    image, slider = box.locator("img"), box.locator("input[type=range]").first
    first = image.get_attribute("src")
    loaded = "image => image.complete && image.naturalWidth > 0"
    page.wait_for_function(loaded, arg=image.element_handle())
    slider.focus()
    start = slider.input_value()
    slider.press("ArrowRight" if start == "0" else "ArrowLeft")
    assert image.get_attribute("src") != first
    page.wait_for_function(loaded, arg=image.element_handle())
    slider.press("ArrowLeft" if start == "0" else "ArrowRight")
    assert image.get_attribute("src") == first
    box.locator("select").select_option(label="max")
    assert image.get_attribute("src") != first


def test_a_question_tells_nothing_until_a_choice_and_then_whether_it_is_right(
    page: Any, address: str
) -> None:
    page.goto(f"{address}notebooks/04_clipping.html")
    question = page.locator(".course-question").first
    assert "Right." not in question.inner_text()
    assert "No." not in question.inner_text()
    assert "lesson.ask(" not in page.locator("main").inner_text()
    said = []
    for button in question.locator(".course-choices button").all():
        button.click()
        said.append(question.locator(".course-feedback").inner_text())
    assert sum(text.startswith("Right.") for text in said) == 1
    assert sum(text.startswith("No.") for text in said) == len(said) - 1 >= 1


def test_folded_code_unfolds_and_code_can_be_copied(page: Any, address: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}notebooks/04_clipping.html")
    folded = page.locator("details.hide").first
    assert not folded.locator("pre").is_visible()
    folded.locator("summary").click()
    assert folded.locator("pre").first.is_visible()
    block = page.locator(".course-copyable:visible").first
    block.hover()
    block.locator(".course-copy").click()
    page.wait_for_selector(".course-copy:text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()").strip() == (
        block.locator("pre").inner_text().strip()
    )


class _Found(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            if value and name in ("href", "src"):
                self.links.add(value)


def test_every_internal_link_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    found: dict[str, _Found] = {}
    for path in site.rglob("*.html"):
        if "_static" in path.relative_to(site).parts:  # templates of the theme, no pages
            continue
        found[path.relative_to(site).as_posix()] = each = _Found()
        each.feed(path.read_text(encoding="utf-8"))
    dead = []
    for name, each in found.items():
        for link in each.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            path, anchor = urldefrag(urljoin(f"/{name}", link))
            target = unquote(path.partition("?")[0]).lstrip("/") or "index.html"
            placed = not anchor or target not in found or unquote(anchor) in found[target].anchors
            if not (site / target).is_file() or not placed:
                dead.append(f"{name}: {link}")
    assert dead == []
    for page in PAGES:
        assert page in found


def test_every_explore_has_a_frame_for_each_place_of_its_controls(site: Path) -> None:
    explores = frames.explores(LESSON).explores
    assert len(explores) >= 2
    for name, explore in explores.items():
        folder = site / "_static" / "lessons" / LESSON / name
        places = [len(each.values) for each in frames.grid(explore.controls, FEW)]
        assert len(list(folder.glob("*.webp"))) == math.prod(places) >= FEW


def test_the_site_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < BYTES
