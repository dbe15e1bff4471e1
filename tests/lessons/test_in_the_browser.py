"""Lessons as their readers meet them: a real JupyterLab in headless Chromium.

Needs the extra `browser` and the system's chromium.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from course.lesson import build, info, progress
from tests.lessons.lab import SECONDS, jupyterlab, opened, run_all, until

LESSONS = ("00", "01", "04", "07")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the lessons."""
    pytest.importorskip("jupyterlab")
    with jupyterlab(tmp_path_factory.mktemp("lab"), LESSONS) as address:
        yield address


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_runs_answers_and_redraws(number: str, browser: Any, lab: str) -> None:
    """Run all cells; move a slider: another picture; answer a question: feedback; try an exercise
    wrongly and rightly: its verdicts.
    """
    page = opened(browser, lab, number)
    run_all(page)
    assert (
        page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count()
        == 0
    )

    page.wait_for_selector(".noUi-handle", timeout=150 * SECONDS)
    box = page.locator(".widget-vbox:has(.noUi-handle)").first
    box.scroll_into_view_if_needed()
    picture = box.locator("img").first
    before = picture.get_attribute("src")
    words = ".widget-label, .widget-readout"
    wider = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
    assert box.locator(words).evaluate_all(wider) == []  # no label and no number is cut
    handle = box.locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight" if _can_rise(handle) else "ArrowLeft")
    until(lambda: picture.get_attribute("src") != before, "the slider moved and the picture stayed")

    question = page.locator(".widget-vbox:has(input[type=radio])").first
    question.scroll_into_view_if_needed()
    said = question.locator(".widget-html-content").last
    answers = set()
    for choice in range(question.locator("input[type=radio]").count()):
        question.locator("input[type=radio]").nth(choice).check()
        question.locator("button").first.click()
        until(
            lambda: (
                said.inner_text().startswith(("Right.", "No.")) and said.inner_text() not in answers
            ),
            "no feedback",
        )
        answers.add(said.inner_text())
    assert sum(text.startswith("Right.") for text in answers) == 1
    until(
        lambda: len(progress.read().get(number, {}).get("questions", [])) == 1,
        "a right answer was not noted",
    )

    place, name = _first_stub(number)
    cell = page.locator(".jp-Notebook .jp-Cell").nth(place)
    cell.scroll_into_view_if_needed()
    until(
        lambda: "Not attempted yet." in cell.locator(".jp-OutputArea").first.inner_text(),
        "the untouched stub has no verdict",
    )
    for attempt, verdict in (("wrong[0]", "Not yet."), ("solution", "Passed.")):
        cell.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(f"{name}.check({name}.{attempt})")
        page.keyboard.press("Control+Enter")
        output = cell.locator(".jp-OutputArea").first
        until(lambda out=output, said=verdict: said in out.inner_text(), f"no «{verdict}»")
    assert progress.read()[number]["exercises"]
    page.close()


def _first_stub(number: str) -> tuple[int, str]:
    """The place of the first cell with an untouched stub among the lesson's cells, and the name of
    its exercise.
    """
    for place, cell in enumerate(build.cells(info(number)).cells):
        found = re.search(r"^(\w+)\.check\(", cell.source, re.MULTILINE)
        if cell.cell_type == "code" and found and "return NotImplemented" in cell.source:
            return place, found[1]
    raise AssertionError(f"lesson {number} has no stub")


def _can_rise(handle: Any) -> bool:
    now, most = (
        float(handle.get_attribute(name) or 0) for name in ("aria-valuenow", "aria-valuemax")
    )
    return now < most


# the contrast of each coloured term of a formula with the page of the notebook
CONTRASTS = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor);
  return [...document.querySelectorAll('mjx-container [style*="color"]')]
    .map((term) => light(getComputedStyle(term).color))
    .map((term) => (Math.max(term, page) + 0.05) / (Math.min(term, page) + 0.05));
}"""


def assert_formulas_stand_out(page: Any) -> None:
    """On the light and on the dark page; it leaves the light one."""
    for theme, light in (("Dark", "false"), ("Light", "true")):
        page.click("li.lm-MenuBar-item:has-text('Settings')")
        page.click(".lm-Menu-item:has-text('Theme')")
        page.click(f".lm-Menu-item:has-text('JupyterLab {theme}') >> nth=0")
        page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) >= 3
        assert min(contrasts) >= 4.5, (theme, contrasts)


def test_a_lesson_saved_and_opened_without_its_kernel_shows_its_static_faces(
    browser: Any, lab: str
) -> None:
    """Run a question and an explore, save, end the kernel, open again: no widget's error, but the
    folded question, the explore's picture and its caption, which a live widget had hidden.
    """
    number = LESSONS[2]
    errors = re.compile("Error displaying widget|Loading widget")
    page = opened(browser, lab, number)
    run_all(page, ".course-live .noUi-handle")
    live = page.locator(".jp-OutputArea-child:has(.course-live)").count()
    assert live >= 2
    hidden = page.locator(".jp-OutputArea-child:has(.course-live) + .jp-OutputArea-child")
    assert [each.is_visible() for each in hidden.all()] == [False] * live
    assert_formulas_stand_out(page)
    printed = page.locator("[data-mime-type='application/vnd.jupyter.stdout'] pre")
    look = "all => all.map(e => getComputedStyle(e)).map(e => [e.whiteSpace, e.overflowX])"
    looks = {tuple(each) for each in printed.evaluate_all(look)}
    assert looks == {("pre", "auto")}  # tables keep their columns in a narrow window
    page.keyboard.press("Control+s")
    page.wait_for_timeout(3 * SECONDS)
    page.evaluate(
        """async () => {
            const token = document.cookie.match(/_xsrf=([^;]*)/);
            const headers = token ? {'X-XSRFToken': token[1]} : {};
            for (const one of await (await fetch('/api/sessions')).json())
                await fetch('/api/sessions/' + one.id, {method: 'DELETE', headers});
        }"""
    )
    page.close()
    page = opened(browser, lab, number)
    page.wait_for_timeout(3 * SECONDS)
    dead = page.locator(".jp-OutputArea-output", has_text=errors)
    assert dead.count() == live  # the file does hold the widgets
    assert [each.is_visible() for each in dead.all()] == [False] * live
    static = page.locator(
        ".jp-OutputArea-child:has(> .jp-OutputArea-output:text-matches('displaying|Loading'))"
        " + .jp-OutputArea-child"
    )
    assert [each.is_visible() for each in static.all()] == [True] * live
    assert page.locator("text=What to look for.").count() >= 1
    assert_formulas_stand_out(page)
    assert page.locator(".jp-toast, .Toastify__toast", has_text="news").count() == 0
    page.close()
