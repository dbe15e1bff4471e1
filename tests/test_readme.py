"""The README says what is true: its generated parts are up to date, its commands are one line, its
example runs.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import torch

from course import cli, ladder
from course.estimator import Estimator
from course.lab import ledger
from tests.helpers import make_rollout

ROOT = Path(__file__).parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    found = re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found is not None
    return found[1].strip()


def test_the_count_of_claims_and_what_did_not_hold_are_those_of_the_results() -> None:
    facts = ledger.ledger(ROOT / "figures")
    assert between("facts") == facts.summary
    assert between("failures") == facts.failures


def test_the_table_of_rungs_is_the_registry() -> None:
    assert between("ladder") == cli.ladder_table()


def test_the_list_of_lessons_is_the_syllabus() -> None:
    assert between("lessons") == cli.lessons_table()


def test_the_badges_open_lesson_00_of_the_repository_that_pyproject_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert between("badges").strip() == cli.badges()
    name = "someone/fork"
    monkeypatch.setattr("course.lab.places.repository", lambda: f"https://github.com/{name}")
    pages = dict(re.findall(r"\[!\[([^\]]+)\]\([^)]+\)\]\(([^)]+)\)", cli.badges()))
    lesson = "notebooks/00_the_map.ipynb"
    assert (ROOT / lesson).is_file()
    colab = f"https://colab.research.google.com/github/{name}/blob/main/{lesson}"
    assert pages["Open lesson 00 in Colab"] == colab
    binder = f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/{lesson}"
    assert pages["Open lesson 00 on Binder"] == binder


def test_machines_that_others_lend_get_python_3_11_and_the_pinned_versions() -> None:
    """Binder reads .binder/, Codespaces .devcontainer/; both take PyTorch for the CPU."""
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["image"].endswith("python:3.11")
    assert (ROOT / ".binder/runtime.txt").read_text(encoding="utf-8").strip() == "python-3.11"
    binder = ROOT / ".binder/postBuild"
    assert os.access(binder, os.X_OK) or os.name == "nt"
    for text in (container["postCreateCommand"], binder.read_text(encoding="utf-8")):
        assert f"--extra-index-url {CPU_INDEX} -c constraints.txt -e" in text
    assert f"PIP_EXTRA_INDEX_URL={CPU_INDEX}" in README


def test_uv_takes_the_cpu_build_on_linux_and_every_pin_is_exact() -> None:
    uv = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    [index] = uv["index"]
    assert index["url"] == CPU_INDEX
    assert index["explicit"]  # nothing but torch comes from there
    assert uv["sources"]["torch"]["index"] == index["name"]
    assert uv["sources"]["torch"]["marker"] == "sys_platform == 'linux'"
    pins = [line for line in CONSTRAINTS if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    needs = [*project["dependencies"], *(need for extra in extras for need in extra)]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in pins}
    named = {re.split(r"[>=\[]", need)[0].lower() for need in needs} - {"pg-ladder"}
    assert named - pinned == set()


def test_no_paragraph_of_the_readme_begins_with_a_comment() -> None:
    """A line that begins with one starts a block of HTML, which cuts a paragraph in two."""
    lines = README.splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("<!--") and before.strip() and not before.startswith(("|", "- ", "[!")):
            pytest.fail(f"{line!r} after {before!r}")
        if re.match(r"<!-- [\w/ ]+ -->\S", line):
            pytest.fail(f"{line!r} before {after!r}")


def test_every_numbered_claim_on_bandits_was_measured() -> None:
    measured = {fact.number for _, fact in ledger.ledger(ROOT / "figures").entries}
    assert set(range(1, 24)) <= measured


def test_both_set_up_commands_are_one_line_that_makes_its_own_environment() -> None:
    for name in ("run", "test"):
        block = re.search(f"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
        assert block is not None
        [line] = block[1].splitlines()
        assert line.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt "
        )


def test_the_estimator_of_ones_own_takes_ten_lines_and_works(tmp_path: Path) -> None:
    block = re.search(r"<!-- mine -->\n```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 10
    (tmp_path / "mine.py").write_text(block[1])
    median: Estimator = ladder.get(f"{tmp_path}/mine.py:median").estimator
    advantage = median.freeze(make_rollout([[[1.0], [2.0], [6.0]]])).advantage
    assert torch.equal(advantage.flatten(), torch.tensor([-1.0, 0.0, 4.0], dtype=advantage.dtype))


def test_every_figure_has_its_numbers_and_every_ablation_its_figure() -> None:
    from course.lab import ablation

    for picture in (ROOT / "figures").glob("*.png"):
        assert picture.with_suffix(".json").is_file(), picture
    for package in ("bandits.ablations", "tinylm.ablations"):
        for module in ablation.discover(package).values():
            assert (ROOT / "figures" / f"{ablation.figure_name(module)}.png").is_file(), (
                module.__name__
            )
