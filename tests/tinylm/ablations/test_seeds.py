"""Twenty trainings with fresh seeds: each is the command's own, and who fails is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from course.errors import CourseError
from course.lab.terminal import QUIET
from tinylm.ablations.seeds import Settings, crossing, described, plot, run, trained
from tinylm.training import Training, TrainSettings

SMALL: dict[str, Any] = {
    "preset": "nano",
    "digits": 1,
    "warm_target": 0.1,
    "rollouts": 5,
    "prompts": 4,
    "group": 4,
}


def test_a_training_is_that_of_the_command_with_the_same_seed() -> None:
    training = Training(TrainSettings(**SMALL, seed=8, eval_every=2, device="cpu"))
    rows = []
    while not training.done:
        rows.append(training.step() or {})
    expected = {row["step"]: row["accuracy"] for row in rows if "accuracy" in row}
    found = trained(Settings(**SMALL, eval_every=2), 8, lambda done: None)
    assert dict(zip(found["rollouts"][1:], found["accuracy"][1:], strict=True)) == expected
    assert list(expected) == [2, 4, 5]  # the last rollout is evaluated, too
    assert 0 < found["warm_seconds"] < found["seconds"]


def test_every_training_has_the_seed_that_its_place_says() -> None:
    found = run(Settings(**SMALL, first=31, seeds=2), QUIET)
    assert found.series["seed"] == [31, 32]
    alone = trained(Settings(**SMALL), 32, lambda done: None)
    assert found.series["accuracy"][1] == pytest.approx(alone["accuracy"], abs=1e-7)


def test_the_settings_are_those_of_the_command() -> None:
    own, command = Settings(), TrainSettings()
    for name in ("preset", "digits", "warm_target", "rung", "rollouts", "lr", "prompts", "group"):
        assert getattr(own, name) == getattr(command, name), name


def made(*curves: list[float]) -> list[dict[str, Any]]:
    """Trainings with these accuracies at rollouts 0, 20, 40."""
    return [
        {"seed": i, "warm_seconds": 1.0, "seconds": 3.0 + i}
        | {"rollouts": [0, 20, 40], "accuracy": curve}
        for i, curve in enumerate(curves)
    ]


def test_a_seed_counts_if_it_ends_at_the_goal_and_crosses_where_it_first_reaches_it() -> None:
    assert crossing([0, 20, 40], [0.5, 0.95, 0.9], 0.95) == 20
    assert math.isnan(crossing([0, 20, 40], [0.5, 0.8, 0.9], 0.95))
    three = made([0.4, 0.95, 0.95], [0.4, 0.96, 0.94], [0.4, 0.5, 0.6])
    found = described(Settings(), three)
    reached, kept = found.facts
    assert (reached.measured, reached.expected, reached.holds) == (1, 3, False)
    assert kept.measured == pytest.approx((0.55 + 0.56 + 0.1) / 3)
    assert found.series["crossed"][:2] == [20.0, 20.0]
    assert math.isnan(found.series["crossed"][2])
    assert "took 4 seconds" in found.caption  # the middle one of 3, 4 and 5
    assert described(Settings(), three[:1]).facts[0].holds
    plot(replace(found, settings=Settings()))  # a line without a crossing, too


@pytest.mark.parametrize(
    "wrong", [{"goal": 1.0}, {"goal": 0.0}, {"runs": 2}, {"rollouts": 0}, {"warm_target": 0.0}]
)
def test_settings_are_refused_at_the_door(wrong: dict[str, Any]) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)
