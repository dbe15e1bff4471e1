"""Work side by side: the same results as in one process, in order; errors and lost processes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from course import ladder, replace
from course.errors import CourseError, require
from course.lab.side_by_side import side_by_side
from course.lab.terminal import QUIET
from course.registry import FILES, RUNGS

OWN = "from course import ladder, replace\nmine_beside = replace(ladder.grpo, entropy_coef=0.25)\n"


def power(base: float, exponent: int) -> torch.Tensor:
    require(exponent >= 0, "exponent", exponent, "at least 0")
    return torch.tensor(base, dtype=torch.float64) ** exponent


def place(_: int) -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


def entropy_of(name: str) -> float:
    return ladder.get(name).estimator.entropy_coef


def vanish(_: int) -> None:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    with side_by_side(workers, QUIET) as spread:
        found = spread(partial(power, 2.0), [(n,) for n in range(6)], "powers")
        assert [float(each) for each in found] == [1, 2, 4, 8, 16, 32]
        with pytest.raises(CourseError, match="exponent: got -1"):
            spread(partial(power, 2.0), [(1,), (-1,)], "powers")


def test_each_process_is_another_one_and_has_one_thread() -> None:
    with side_by_side(2, QUIET) as spread:
        found = spread(place, [(n,) for n in range(4)], "places")
    assert os.getpid() not in {pid for pid, _ in found}
    assert {threads for _, threads in found} == {1}


def test_a_rung_from_a_file_is_known_there_and_one_from_nowhere_stays_here(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    try:
        ladder.get(f"{path}:mine_beside")
        with side_by_side(2, QUIET) as spread:
            assert spread(entropy_of, [("mine_beside",)] * 2, "own") == [0.25, 0.25]
            [(pid, _)] = spread(place, [(0,)], "places")
        assert pid != os.getpid()
        ladder.register("from_nowhere", replace(ladder.grpo, entropy_coef=0.125))
        with side_by_side(2, QUIET) as spread:
            assert spread(entropy_of, [("from_nowhere",)], "own") == [0.125]
            assert spread(place, [(0,)], "places")[0][0] == os.getpid()
    finally:
        for table in (RUNGS, FILES):
            for name in ("mine_beside", "from_nowhere"):
                table.pop(name, None)


def test_a_process_that_dies_gives_one_line() -> None:
    with side_by_side(2, QUIET) as spread, pytest.raises(CourseError, match="workers: a process"):
        spread(vanish, [(0,), (1,)], "lost")
