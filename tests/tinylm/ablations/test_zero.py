"""Reinforcement learning from nothing: what chance gives, and what each reward asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from course.errors import CourseError
from course.lab.terminal import QUIET
from tests.tinylm.helpers import tokens_of
from tinylm.ablations.zero import Settings, chance, run
from tinylm.bridge import Bridge
from tinylm.model import Transformer
from tinylm.rewards import REWARDS
from tinylm.tasks import Task
from tinylm.warm_start import warm_start

SMALL = {"prompts": 8, "group": 8, "rollouts": 2, "log_every": 1, "seeds": 2}


def test_chance_is_the_enumerated_probability_of_the_right_answer() -> None:
    start = warm_start(Settings(), 2)
    p = chance(start)
    assert p.shape == (2, len(start.task.train))
    for seed in range(2):
        model = Transformer(start.model)
        model.weights.update(
            {name: weight[seed].requires_grad_() for name, weight in start.weights.items()}
        )
        for place in (0, 40):
            bridge = Bridge(model, start.task, int(start.task.train[place]))
            assert float(bridge.log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)
            assert float(p[seed, place]) == pytest.approx(bridge.objective, rel=1e-4)


def test_the_silent_share_follows_from_chance_and_curves_start_untrained() -> None:
    found = run(Settings(**SMALL), QUIET)
    silent = found.facts[0]
    assert silent.holds
    p = chance(warm_start(Settings(**SMALL), 2))
    assert silent.expected == pytest.approx(float((p**8 + (1 - p) ** 8).mean()), rel=1e-6)
    for name in Settings().rewards:
        assert found.array("rewards", name, "completions").tolist() == [0.0, 64.0, 128.0]
        np.testing.assert_array_equal(
            found.array("rewards", name, "trained")[0],
            found.array("rewards", "exact", "trained")[0],
        )
        assert np.isnan(found.array("rewards", name, "silent_groups")[0]).all()


def test_credit_for_digits_does_not_ask_for_the_end() -> None:
    task: Task = warm_start(Settings(), 1).task
    row = torch.tensor([3 * 10 + 4])
    for text, exact, digits in (
        ("07⏎", 1.0, 1.0),
        ("075", 0.0, 1.0),
        ("05⏎", 0.0, 0.5),
        ("⏎", 0.0, 0.0),
    ):
        answer = torch.tensor([tokens_of(text, task.limit)])
        assert float(REWARDS["exact"](answer, row, task)) == exact
        assert float(REWARDS["digits"](answer, row, task)) == digits


@pytest.mark.parametrize(
    "wrong",
    [
        {"rewards": ("exakt",)},
        {"rewards": ()},
        {"group": 1},
        {"seeds": 1},
        {"rate": 0.0},
        {"entropy_coef": -1.0},
        {"held_out": 0.0},
        {"prompts": 0},
        {"warm_target": 0.3},
    ],
)
def test_settings_are_refused_at_the_door(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))[:6]):
        Settings(**wrong)
