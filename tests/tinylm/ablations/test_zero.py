"""Reinforcement learning from nothing: arms are paired, and every claim on them is written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from course.errors import CourseError
from course.lab.statistics import paired_interval
from course.lab.terminal import QUIET, Progress
from tinylm.ablations import zero, zero_arms
from tinylm.ablations.zero import Settings, run
from tinylm.from_zero import ARMS, CLAIMS, LOGGED

SMALL = {
    "preset": "nano",
    "digits": 1,
    "prompts": 8,
    "group": 4,
    "rollouts": 4,
    "log_every": 1,
    "judged": 5,
    "seeds": 4,
}


def test_arms_are_paired_and_an_arm_alone_is_what_it_is_among_others() -> None:
    found = run(Settings(**SMALL, arms=("length_mean", "grpo_end", "grpo")), QUIET)
    alone = run(Settings(**SMALL, arms=("grpo",)), QUIET)
    for name in (*LOGGED, "final"):
        np.testing.assert_array_equal(
            found.array("arms", "grpo", name), alone.array("arms", "grpo", name)
        )
    starts = [found.array("arms", name, "accuracy")[0] for name in found.series["arms"]]
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])
    for name in ("length_mean", "grpo"):
        assert found.array("arms", name, "completions").tolist() == [0, 32, 64, 96, 128]
        assert found.array("arms", name, "truncated").shape == (5, 4)
        assert np.isnan(found.array("arms", name, "entropy")[0]).all()
        np.testing.assert_array_equal(
            found.array("arms", name, "final"), found.array("arms", name, "accuracy")[-1]
        )


def test_differences_are_students_and_every_claim_on_trained_arms_is_written() -> None:
    settings = Settings(**SMALL, arms=("all",))
    assert settings.arms == tuple(ARMS) == zero_arms.SETTINGS.arms
    found = run(settings, QUIET)
    assert len(found.facts) == len(CLAIMS) + 4
    for ahead, behind, _ in CLAIMS:
        finals = (found.array("arms", name, "final") for name in (ahead, behind))
        mean, half = paired_interval(*finals)
        row = found.series["differences"][f"{ahead} - {behind}"]
        assert row["mean"] == pytest.approx(mean, abs=1e-6)
        assert row["half"] == pytest.approx(half, abs=1e-6)
    zero_arms.plot(dataclasses.replace(found, settings=settings))
    two = run(Settings(**SMALL | {"seeds": 2}), QUIET)
    assert two.facts == []  # two models are too few for a claim
    assert list(two.series["differences"]) == ["grpo - length_mean"]
    zero.plot(two)


def test_the_accuracy_is_told_while_it_climbs(capsys: pytest.CaptureFixture[str]) -> None:
    run(Settings(**SMALL), Progress())
    lines = [line for line in capsys.readouterr().out.splitlines() if "held out" in line]
    assert [line.split("rollout")[0].strip() for line in lines] == ["GRPO"] * 4 + [
        "Length mean 1/|o|"
    ] * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"arms": ("gpro",)},
        {"arms": ()},
        {"group": 1},
        {"seeds": 1},
        {"rate": 0.0},
        {"held_out": 0.0},
        {"prompts": 0},
        {"warm_target": 0.3},
    ],
)
def test_settings_are_refused_at_the_door(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))[:6]):
        Settings(**wrong)
