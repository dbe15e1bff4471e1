"""GRPO against classical bandit algorithms: equal pulls, honest tuning, closed forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bandits.ablations import classical as ablation
from bandits.ablations.classical import Settings
from bandits.agents import Metered
from bandits.contest import Contest, Played, ground, judge, played, uniform_cost
from bandits.environments import Bernoulli
from course.errors import CourseError
from course.lab.statistics import mean_error
from course.lab.terminal import QUIET

SMALL = Settings(
    rungs=("group_std",),
    pulls=256,
    group=8,
    groups=(2, 8),
    learning_rates=(0.001, 4.0),
    epsilons=(0.1, 1.0),
    bonuses=(0.35, 1000.0),
    runs=150,
    tuning_runs=50,
)


@pytest.mark.parametrize(
    ("name", "group"),
    [("group_std", 8), ("grpo", 2), ("remax", 8), ("reinforce", 8), ("ppo_value", 8)],
)
def test_every_policy_gradient_gets_exactly_the_pulls(name, group):
    arms = played(SMALL.contest, name, SMALL.learning_rates, group).arms
    assert arms.pulls == SMALL.pulls
    assert arms.regret.shape == (2, 200)


@pytest.mark.parametrize("name", ablation.LABELS)
def test_so_does_every_classical_algorithm(name):
    assert played(SMALL.contest, name, SMALL.sweeps[name], 1).arms.pulls == SMALL.pulls


def test_who_learns_nothing_pays_the_closed_form():
    assert uniform_cost(10) == pytest.approx(10 / 11 - 1 / 2)
    for found, place in (
        (played(SMALL.contest, "epsilon_greedy", SMALL.epsilons, 1), 1),
        (played(SMALL.contest, "ucb", SMALL.bonuses, 1), 1),
        (played(SMALL.contest, "group_std", (1e-9,), 8), 0),
    ):
        mean, error = mean_error(found.arms.regret[place] / SMALL.pulls)
        assert abs(mean - uniform_cost(10)) < 4 * error


def test_run_number_n_has_the_same_arms_everywhere():
    _, one = ground(SMALL.contest, 1)
    _, three = ground(SMALL.contest, 3)
    assert torch.equal(three.mean, one.mean.expand(3, -1, -1, -1))


def test_the_setting_is_chosen_on_the_tuning_runs_alone():
    contest = Contest(pulls=16, every=4, tuning_runs=2, runs=3)
    arms = Metered(Bernoulli(torch.zeros(2, 5, 1, 2)), every=4)
    arms.marks = [4, 8, 12, 16]
    per_pull = torch.tensor(
        [[1.0, 1.0, 9.0, 9.0, 9.0], [2.0, 2.0, 0.0, 0.0, 0.0]]
    )  # the first value is better on the tuning runs only
    arms._rows = [mark * per_pull for mark in arms.marks]
    arms.regret = arms._rows[-1]
    sound = torch.zeros(2, 5, dtype=torch.bool)
    judged = judge(contest, (0.5, 2.0), Played(arms, sound))
    assert judged.choice.rate == 0.5
    assert not judged.choice.interior
    assert judged.regret.tolist() == [144.0] * 3
    assert judged.tail.tolist() == [9.0] * 3


def test_the_claims_are_made_for_the_default_experiment_only():
    assert ablation.SETTINGS.is_default
    assert dataclasses.replace(ablation.SETTINGS, rungs=("dapo",), runs=10, seed=3).is_default
    assert not SMALL.is_default
    result = ablation.run(SMALL, QUIET)
    assert result.facts == []
    assert set(result.series["algorithms"]) == {"group_std", *ablation.LABELS}
    assert len(result.series["by_group"]["group_std"]["regret"]) == 2
    assert (
        float(result.array("algorithms", "thompson", "regret")[-1]) < 0.5 * result.series["uniform"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": 3},
        {"groups": (1,)},
        {"pulls": 32},
        {"rungs": ()},
        {"epsilons": (2.0,)},
        {"learning_rates": (0.0,)},
        {"runs": 1},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(CourseError, match="allowed is"):
        Settings(**wrong)
