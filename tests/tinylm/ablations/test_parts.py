"""The transformer's stresses: what each table asks, what each reward pays, what is looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from course.lab.ablation import run_ablation
from tinylm import stresses, tasks
from tinylm.ablations import parts
from tinylm.rewards import ExactMatch
from tinylm.wiring import copies

SMALL = dataclasses.replace(
    parts.QUICK, rollouts=2, seeds=2, tuning=1, updates=2, rates=(1e-3, 3e-3), log_every=1,
    warm_target=0.1, terms=2, workers=1,
)  # fmt: skip


def test_answers_of_two_lengths_are_both_right() -> None:
    task = stresses.two_lengths(3)
    many = len(task.prompt) // 4
    for row in (7, 7 + 3 * many):
        right = ExactMatch()(task.target[row].unsqueeze(0), torch.tensor([row]), task)
        assert right.item() == 1.0
    texts = [tasks.decode(task.target[row].tolist()) for row in (7, 7 + 3 * many)]
    assert texts == ["#07", "00;#07"]
    assert tasks.decode(task.prompt[7].tolist()) == "0+0+7="


def test_sums_come_before_differences_and_only_sums_pay() -> None:
    task = stresses.two_skills()
    reward = parts.reward_of(parts.SETTINGS, "unrewarded", task)
    rows = torch.tensor([3, len(task.prompt) // 2 + 3])
    assert [tasks.decode(task.prompt[row].tolist()) for row in rows] == ["0+3=", "0-3="]
    assert reward(task.target[rows], rows, task).tolist() == [1.0, 0.0]


def test_both_skills_pay_where_nothing_is_forgotten() -> None:
    task = stresses.two_skills()
    reward = parts.reward_of(parts.SETTINGS, "rewarded", task)
    rows = torch.tensor([3, len(task.prompt) // 2 + 3])
    assert reward(task.target[rows], rows, task).tolist() == [1.0, 1.0]


def test_from_random_weights_nothing_is_shown_and_digits_pay() -> None:
    start = parts.made(SMALL, "random")
    weights = {name: weight[0] for name, weight in start.weights.items()}
    order = stresses.by_difficulty(start)
    success = stresses.outcomes(copies(weights, start.model, ()), start.task, order, None, False)
    assert float(success["success"]) < 0.01
    reward = parts.reward_of(SMALL, "random", start.task)
    right, rows = start.task.target[[95]], torch.tensor([95])
    assert reward(right, rows, start.task).tolist() == [1.5]
    assert reward(right.where(right < tasks.PAD, tasks.PAD), rows, start.task).tolist() == [0.5]


def test_a_constant_is_added_to_right_and_wrong_answers_alike() -> None:
    task = tasks.make(parts.SETTINGS.questions)
    rows = torch.tensor([11, 42])
    wrong = task.target[rows.flip(0)]
    for training in ("offset", "constants"):
        reward = parts.reward_of(parts.SETTINGS, training, task)
        low, high = reward(wrong, rows, task), reward(task.target[rows], rows, task)
        torch.testing.assert_close(high - low, torch.ones(2))
    assert low[0] != low[1]
    offset = parts.reward_of(parts.SETTINGS, "offset", task)
    assert offset(wrong, rows, task).tolist() == [1.0, 1.0]


def test_an_uneven_diet_asks_the_easy_more_often_and_each_at_least_once() -> None:
    task = tasks.make(parts.SETTINGS.questions)
    diet = stresses.uneven(task, 10).train.bincount(minlength=len(task.prompt))
    easy = task.difficulty[task.train] == 0
    assert set(diet[task.train[easy]].tolist()) == {10}
    assert set(diet[task.train[~easy]].tolist()) == {1}
    assert int(diet[task.held_out].sum()) == 0


def test_hard_questions_come_first_and_thirds_are_means_of_the_exact_success() -> None:
    start = parts.made(SMALL, "plain")
    order = stresses.by_difficulty(start)
    weights = {name: weight[0] for name, weight in start.weights.items()}
    model = copies(weights, start.model, ())
    seen = stresses.outcomes(model, start.task, order, None, False)
    assert sorted(order.tolist()) == start.task.train.tolist()
    assert float(seen["hard"]) < float(seen["success"]) < float(seen["easy"])


@pytest.mark.slow
def test_every_part_runs_and_writes_its_figure(tmp_path: Path) -> None:
    result = run_ablation(parts, SMALL, tmp_path)
    assert len(result.series["rows"]) == 9
    assert (tmp_path / "tinylm_parts.png").stat().st_size > 10_000
