"""Serve a built site on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from course.errors import CourseError

HOST = "127.0.0.1"  # this machine alone


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder; port 0 takes any free one. Raises `CourseError` if it is taken."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise CourseError(
            f"serve: got port {port} ({getattr(error, 'strerror', None) or error}); allowed is a"
            " free port, 0 to 65535"
        ) from None


def serve(folder: Path, port: int, report: Callable[[str], None] = print) -> None:
    """Serve a folder until Ctrl-C."""
    with server(folder, port) as running:
        report(f"http://{HOST}:{running.server_address[1]}/ (Ctrl-C ends it)")
        running.serve_forever()
