"""How long does a slider take to answer, as a learner meets it: JupyterLab in headless Chromium?

Each lesson is run in a browser. Each slider of each of its explores is then moved by the keyboard,
20 steps one after the other, from end to end and back; a step's time is from the key's event in the
page to the new picture, decoded and ready to be painted. That includes both ways of the message,
the drawing in the kernel and the PNG. Asked for: a median of at most 150 ms and a worst of at most
300 ms on two quiet cores; the load of the machine is printed, since with other work beside it the
times mean little.

    python -m tests.benchmarks.sliders [LESSON …]        default: all; needs the extra `browser`
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course.lab.terminal import text_table
from course.lesson import build
from tests.lessons.lab import chromium, jupyterlab, opened, run_all

STEPS = 20
MEDIAN, WORST = 150, 300  # milliseconds asked for
PAUSE = 150  # milliseconds between a picture and the next step, so that nothing is queued
TIMED = """([box, handle, steps, pause]) => {
    // milliseconds of each step of a handle until the box shows another picture
    const picture = box.querySelector('img');
    const now = () => Number(handle.getAttribute('aria-valuenow'));
    const most = Number(handle.getAttribute('aria-valuemax'));
    const least = Number(handle.getAttribute('aria-valuemin'));
    const wait = (time) => new Promise((done) => setTimeout(done, time));
    let key = now() < most ? 'ArrowRight' : 'ArrowLeft';
    const step = () => new Promise((done) => {
        const before = picture.src, start = performance.now();
        const over = setTimeout(() => done(null), 5000);
        new MutationObserver(async (_, watching) => {
            if (picture.src === before) return;
            watching.disconnect();
            await picture.decode().catch(() => null);
            clearTimeout(over);
            done(performance.now() - start);
        }).observe(picture, {attributes: true, attributeFilter: ['src']});
        handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    });
    return (async () => {
        const times = [];
        for (let i = 0; i < steps; i++) {
            if (now() >= most) key = 'ArrowLeft';
            if (now() <= least) key = 'ArrowRight';
            times.push(await step());
            await wait(pause);
        }
        return times;
    })();
}"""


def timed(page: Any) -> Iterator[tuple[str, list[float]]]:
    """Yield (label, milliseconds of each step) of every slider of a lesson that has run.

    A step that leaves the picture as it was, byte for byte, has no time.
    """
    for box in page.locator(".course-live:has(.noUi-handle)").all():
        box.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        for slider in box.locator(".widget-inline-hbox:has(.noUi-handle)").all():
            label = slider.locator(".widget-label").inner_text()
            handle = slider.locator(".noUi-handle").element_handle()
            handle.focus()
            times = page.evaluate(TIMED, [box.element_handle(), handle, STEPS, PAUSE])
            yield label, [each for each in times if each is not None]


def main() -> None:
    """Print a table: lesson, slider, steps, median and worst, the load, and what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sliders")
    parser.add_argument("lessons", nargs="*", metavar="LESSON")
    written = {lesson.number: lesson for lesson in build.written()}
    lessons = parser.parse_args().lessons or list(written)
    from playwright.sync_api import sync_playwright

    rows = []
    everything: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder), lessons) as lab,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for number in lessons:
            page = opened(browser, lab, number)
            run_all(page)
            for label, times in timed(page):
                middle, worst = statistics.median(times), max(times)
                fine = middle <= MEDIAN and worst <= WORST
                verdict = "yes" if fine else "no"
                load = f"{os.getloadavg()[0]:.1f}"
                cells = (number, label, len(times), f"{middle:.0f}", f"{worst:.0f}", load, verdict)
                rows.append([str(cell) for cell in cells])
                everything += times
            page.close()
    heads = ["lesson", "slider", "steps", "median ms", "worst ms", "load", "as asked"]
    print(text_table(heads, rows))
    print(f"all {len(everything)}: median {statistics.median(everything):.0f} ms,", end=" ")
    print(f"worst {max(everything):.0f} ms (asked: {MEDIAN} and {WORST})")


if __name__ == "__main__":
    main()
