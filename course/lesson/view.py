"""Display of lessons: rich output in a notebook, nothing elsewhere (tests, a terminal).

What is live has two outputs: a widget, and below it the static form of the same thing, which a
style hides while the widget is there. A notebook that was run, saved and opened again without its
kernel has no widget to show; the style then hides the widget's error, and the static form is seen.
"""

from __future__ import annotations

import base64
import html
import re
import sys
from typing import TYPE_CHECKING, Any

from course.estimator import CHANGED

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure

WIDGET = "application/vnd.jupyter.widget-view+json"
LIVE = "course-live"  # the class of a live widget
CHANGED_ON_DARK = "#f28c38"  # `CHANGED` of formulas where the page is dark; no colour does on both
_CHILD = ".jp-OutputArea-child"
FACE = (  # ends the static form of something live: which of the two is seen, and JupyterLab's looks
    f'<style class="course-face">{_CHILD}:has(.{LIVE}) + {_CHILD} {{display: none}}'
    # a widget without its model is a panel with a text and no element
    f" {_CHILD}:has(~ {_CHILD} .course-face) > .lm-Panel:not([data-mime-type]):not(:has(*))"
    " {display: none}"
    " [data-jp-theme-light=false] mjx-container"
    f' [style*="rgb{tuple(bytes.fromhex(CHANGED[1:]))}"]'  # as MathJax writes it
    f" {{color: {CHANGED_ON_DARK} !important}}"
    # a printed table in a narrow window keeps its columns, and scrolls
    ' .jp-RenderedText[data-mime-type$="stdout"] pre {white-space: pre; overflow-x: auto}</style>'
)
PIXELS_PER_INCH = 84  # of pictures in lessons: sharp enough, and soon drawn


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def show(
    *,
    text: str,
    markup: str | None = None,
    picture: bytes | None = None,
    widget: Widget | None = None,
) -> None:
    """Display one output as plain `text`, HTML `markup` or a PNG `picture`, below a live `widget`.

    With a widget the static form should end with `FACE` in its own or in another output's HTML.
    `text` is the alternative text of a picture, which an export to HTML takes over; JupyterLab has
    no place for it, so a caption should say the same below.
    """
    if not in_notebook():
        return
    from IPython.display import display

    if widget is not None:
        widget.add_class(LIVE)
        display({WIDGET: widget._repr_mimebundle_()[WIDGET]}, raw=True)
    data: dict[str, Any] = {"text/plain": text}
    if markup is not None:
        data["text/html"] = markup
    metadata: dict[str, Any] = {}
    if picture is not None:
        data["image/png"] = base64.b64encode(picture).decode("ascii")
        metadata["image/png"] = {"alt": text}
    display(data, metadata=metadata, raw=True)


def caption(text: str) -> str:
    """HTML of the words below a picture."""
    return (
        f'<div class="course-caption" style="font-size:90%;margin:.2em 0 .6em">{rich(text)}</div>'
    )


def image(figure: Figure) -> bytes:
    """A figure as an opaque PNG, at the resolution of lessons."""
    import io

    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=PIXELS_PER_INCH, facecolor="white", metadata={"Software": None}
    )
    return buffer.getvalue()


def fold(summary: str, body: str) -> str:
    """HTML that unfolds with a click; `body` is HTML, `summary` text (see `rich`)."""
    head = f'<summary style="cursor:pointer">{rich(summary)}</summary>'
    return (
        f'<details style="margin:.3em 0">{head}<div style="margin:.3em 0 .6em'
        f' 1.2em">{body}</div></details>'
    )


def box(body: str, colour: str) -> str:
    """HTML with a coloured edge and no other colour, so readable on light and dark pages."""
    return (
        f'<div style="border-left:4px solid {colour};padding:.2em .9em;margin:.4em 0">{body}</div>'
    )


def rich(text: str) -> str:
    """Text as HTML; the only markup is `code` in backticks and **bold**."""
    safe = html.escape(text, quote=False)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", safe).replace("\n", "<br>")


def plain(text: str) -> str:
    """Text without the markup that `rich` knows, for places that show no HTML."""
    return re.sub(r"`([^`]+)`|\*\*([^*]+)\*\*", lambda found: found[1] or found[2], text)
