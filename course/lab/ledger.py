"""The ledger: all facts of a folder of results, and the generated parts of the README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from course.errors import CourseError, require
from course.lab.claims import CLAIMS
from course.lab.facts import Fact
from course.lab.result import Result
from course.train.files import replace_files


@dataclass(frozen=True)
class Ledger:
    """All facts of a folder of results, as (name of the result, fact), in the order of claims."""

    entries: Sequence[tuple[str, Fact]]

    @property
    def held(self) -> int:
        """The number of facts that hold."""
        return sum(fact.holds for _, fact in self.entries)

    @property
    def summary(self) -> str:
        """The sentence "N of M claims reproduced"."""
        return f"{self.held} of {len(self.entries)} claims reproduced"

    @property
    def failures(self) -> str:
        """The facts that do not hold, as a Markdown list; a sentence if all hold."""
        rows = [f"- {fact.claim} ({name}.json)" for name, fact in self.entries if not fact.holds]
        return "\n".join(["These do not:", "", *rows]) if rows else "At present all of them hold."

    @property
    def measured(self) -> dict[int, list[str]]:
        """The number of each claim → the results that measured it."""
        found: dict[int, list[str]] = {}
        for name, fact in self.entries:
            if fact.number is not None:
                found.setdefault(fact.number, []).append(name)
        return found

    def table(self, width: int = 100) -> str:
        """The facts in plain text, claim by claim, in lines of at most `width` columns."""
        lines = []
        for number, entries in groupby(self.entries, key=lambda entry: entry[1].number):
            title = "not on the list" if number is None else f"{number} · {CLAIMS[number].title}"
            lines += ["", title]
            for name, fact in entries:
                verdict = "holds" if fact.holds else "DOES NOT HOLD"
                text = f"{fact.claim}  [{name}]"
                lines += wrap(text, width, initial_indent="  ", subsequent_indent="  ")
                lines.append(f"      {verdict}: {fact.found} {fact.wanted}")
        return "\n".join(lines).strip("\n")


def ledger(folder: Path | str) -> Ledger:
    """Collect the facts of all results in `folder`.

    Raises `CourseError` if there are none, or a file is damaged.
    """
    folder = Path(folder)
    results = [Result.load(path) for path in sorted(folder.glob("*.json"))]
    require(
        len(results) > 0,
        "folder",
        str(folder),
        "a folder with results: `course bandits NAME` makes one",
    )
    entries = [(result.name, fact) for result in results for fact in result.facts]
    for name, fact in entries:
        require(
            fact.number is None or fact.number in CLAIMS,
            f"{name}: fact.number",
            fact.number,
            "a number of course/lab/claims.py, or None",
        )
    return Ledger(
        sorted(entries, key=lambda entry: (entry[1].number is None, entry[1].number or 0))
    )


def update_readme(path: Path | str, pieces: Mapping[str, str]) -> bool:
    """Write each piece between its markers `<!-- name -->` and `<!-- /name -->` in a text file.

    Returns True if that changed the file. Raises `CourseError`, and writes nothing, if the file or
    a pair of markers is missing.
    """
    path = Path(path)
    try:
        text = changed = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise CourseError(
            f"readme: got {str(path)!r} ({why}); allowed is a text file that is there"
        ) from None
    for name, piece in pieces.items():
        pattern = re.compile(
            f"(<!-- {re.escape(name)} -->).*?(<!-- /{re.escape(name)} -->)", re.DOTALL
        )
        require(
            pattern.search(changed) is not None,
            "readme",
            str(path),
            f"a file with the markers <!-- {name} --> and <!-- /{name} -->",
        )
        changed = pattern.sub(lambda found, piece=piece: f"{found[1]}{piece}{found[2]}", changed)  # type: ignore[misc]
    if changed != text:
        replace_files({path: changed.encode()})
    return changed != text
