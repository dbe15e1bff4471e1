"""The parameter study: its closed forms, its limits, and the summits at fewer runs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bandits.ablations import parameter_study as ablation
from bandits.ablations.parameter_study import PEAKS, PUBLISHED_RUNS, Settings
from bandits.theory.best_arm import expected_maximum, maximum_error
from bandits.theory.parameter_study import regret
from course.errors import CourseError
from course.lab.statistics import mean_error

SMALL = Settings(
    epsilons=(1 / 16, 1.0),
    learning_rates=(1e-9, 0.25),
    bonuses=(1.0, 1e6),
    optimism=(1.0,),
    runs=400,
    steps=300,
)


def test_expected_maximum_of_two_and_three_normal_numbers():
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-12)
    assert expected_maximum(3) == pytest.approx(3 / (2 * math.sqrt(math.pi)), abs=1e-12)
    assert expected_maximum(10) == pytest.approx(1.53875273, abs=1e-8)


def test_luck_is_the_spread_of_the_maximum():
    # Var max of two N(0, 1) is 1 − 1/π
    expected = math.sqrt((1 - 1 / math.pi) / PUBLISHED_RUNS)
    assert maximum_error(2, PUBLISHED_RUNS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "place"), [("epsilon_greedy", 1), ("gradient_bandit", 0), ("ucb", 1)]
)
def test_who_does_not_learn_pays_the_whole_maximum(name, place):
    mean, error = mean_error(regret(SMALL.study, name, SMALL.parameters[name])[place])
    assert abs(mean - expected_maximum(10)) < 4 * error


def test_learners_pay_less_and_ucb_the_least():
    cost = {name: regret(SMALL.study, name, SMALL.parameters[name]) for name in PEAKS}
    best = {name: cost[name].mean(-1).min() for name in PEAKS}
    assert max(best.values()) < 0.5 * expected_maximum(10)
    assert min(best, key=lambda name: float(best[name])) == "ucb"


def test_the_same_arms_for_every_algorithm_and_value():
    settings = dataclasses.replace(SMALL, epsilons=(0.5, 1.0), bonuses=(1e6,), runs=50, steps=20)
    never = (
        regret(settings.study, name, settings.parameters[name])[-1]
        for name in ("epsilon_greedy", "ucb")
    )
    assert (
        float(torch.corrcoef(torch.stack(list(never)))[0, 1]) > 0.5
    )  # pulls are independent, the arms are not


def test_published_numbers_are_expected_of_the_books_experiment_only():
    assert ablation.SETTINGS.as_published
    assert not SMALL.as_published
    assert not dataclasses.replace(ablation.SETTINGS, arms=5).as_published


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": 1},
        {"epsilons": (0.5, 1.5)},
        {"bonuses": ()},
        {"learning_rates": (0.2, 0.1)},
        {"optimism": (0.0, 1.0)},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(CourseError, match="allowed is"):
        Settings(**wrong)
