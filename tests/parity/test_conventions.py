"""`course/CONVENTIONS.md` and the parity tests say the same: needs neither TRL nor verl."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from course import ladder
from course.lesson.conventions import table

HERE = Path(__file__).parent
FILES = ("test_trl.py", "test_verl.py")
UNNAMED = {
    "test_the_samples_reach_every_branch",
    "test_the_corrections_reach_every_branch",
    "test_rloo_without_kl_and_with_another_clip",
}  # of the tests' own making
NOTHING = re.compile(
    r"$|none|never|no critic|.*\(read\)$"
)  # cells that state nothing a test could run


def read_tests(file: str) -> tuple[set[str], set[str]]:
    """The test functions of a file, and the names in its `CASES`, read without importing it."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    functions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    cases = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CASES"
    ]
    keys = {
        ast.literal_eval(key)
        for case in cases
        if isinstance(case, ast.Dict)
        for key in case.keys
        if key is not None
    }
    return functions, keys


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    """A row names at least one test that exists, and no parity test stands outside the table."""
    rows = table("What differs")
    assert len({row[0] for row in rows}) == len(rows) > 25
    known = {file: read_tests(file) for file in FILES}
    named: dict[str, set[str]] = {file: set() for file in FILES}
    for row in rows:
        assert len(row) == 6, row
        held = re.findall(r"`([^`]+)`", row[-1])
        assert held, f"{row[0]}: no test"
        for name in held:
            found = re.fullmatch(r"(test_\w+\.py)::(test_\w+)(?:\[(.+)\])?", name)
            assert found, f"{row[0]}: {name} is no test's name"
            functions, cases = known[found[1]]
            assert found[2] in functions, f"{row[0]}: there is no {name}"
            assert found[3] is None or found[3] in cases, f"{row[0]}: there is no case {name}"
            named[found[1]].add(found[2])
    named["test_trl.py"].add(
        "test_the_options_of_the_table_select_the_rung"
    )  # the second table is its input
    for file in FILES:
        assert known[file][0] - named[file] <= UNNAMED


def test_what_a_library_is_said_to_do_is_run_in_it() -> None:
    """A row that says what TRL does names a test that runs TRL, and likewise verl; «(read)» marks
    what was only read.
    """
    for row in table("What differs"):
        for cell, file in ((row[2], "test_trl.py"), (row[3], "test_verl.py")):
            assert NOTHING.match(cell) or file in row[-1], f"{row[0]}: no test in {file}"


def test_every_rung_has_its_names() -> None:
    """The second table has the course's own rungs, all of them, in the ladder's order; most are run
    by the tests.
    """
    rows = table("The same rung in TRL and verl")
    here = [row[0].strip("`") for row in rows]
    names = [name for name, rung in ladder.RUNGS.items() if rung.kind != "own"]
    missing = [name for name in names if name not in here]
    assert missing == [], f"course/CONVENTIONS.md: no row for {', '.join(missing)}"
    assert here == names
    assert sum(row[1].startswith("`") for row in rows) >= 15
    assert sum(row[2].startswith("`") for row in rows) >= 26
    for row in rows:
        for cell in row[1:]:
            assert cell.startswith(("`", "none", "the row above")), row
