"""The README says what is true: its generated parts are up to date, its commands are one line, its
example runs.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from course import cli, ladder
from course.estimator import Estimator
from course.lab import ledger
from tests.helpers import make_rollout

ROOT = Path(__file__).parent.parent
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
