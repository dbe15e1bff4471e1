"""The gradient bandit: every rule for the running mean against the book's pseudocode, and the
identities behind them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bandits.ablations import gradient_bandit as ablation
from bandits.ablations.gradient_bandit import Settings
from bandits.theory.gradient_bandit import (
    INCLUDED,
    OWN,
    PUBLISHED,
    RULES,
    ZERO,
    Setup,
    printed_error,
    train,
)
from course.errors import CourseError
from course.lab.statistics import mean_error
from course.lab.terminal import QUIET
from course.train.noise import Noise

SMALL = Settings(learning_rates=(0.1, 0.4), runs=4, steps=60, log_every=60)


def by_hand(settings: Settings, rule: str, rate: float, share: float, run: int) -> float:
    """One run of Sutton & Barto 2018, eq. 2.12, in a plain loop; the probability of the best arm at
    the end.
    """
    noise = Noise((1,), settings.seed, numbers=[run], dtype=torch.float64)
    truth = settings.mean + noise.normal(1, settings.arms).flatten().numpy()
    preference, rewards = np.zeros(settings.arms), []
    for _ in range(settings.steps):
        policy = np.exp(preference) / np.exp(preference).sum()
        arm = int(np.searchsorted(policy.cumsum(), float(noise.uniform(1, 1)), side="right"))
        reward = truth[arm] + float(noise.normal(1, 1))
        earlier = (
            {OWN: reward, INCLUDED: reward, ZERO: 0.0}[rule] if not rewards else np.mean(rewards)
        )
        rewards.append(reward)
        baseline = share * (np.mean(rewards) if rule == INCLUDED else earlier)
        preference += rate * (reward - baseline) * (np.eye(settings.arms)[arm] - policy)
    return float((np.exp(preference) / np.exp(preference).sum())[truth.argmax()])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_the_books_pseudocode(rule):
    rates, shares = [0.1, 0.4, 0.4], [1.0, 1.0, 0.0]
    ends = train(SMALL.bed, rule, rates, shares, dtype=torch.float64)["optimal_action"][-1]
    for place, (rate, share) in enumerate(zip(rates, shares, strict=True)):
        for run in range(SMALL.runs):
            assert float(ends[place, run]) == pytest.approx(
                by_hand(SMALL, rule, rate, share, run), abs=1e-9
            )


def test_the_identities_hold_exactly():
    facts = ablation.identities(SMALL)
    assert len(facts) == 4
    assert all(fact.holds and fact.number == 1 for fact in facts)


def test_an_offset_is_not_invisible_to_the_rule_that_starts_from_zero():
    shifted, plain = (
        train(dataclasses.replace(SMALL.bed, mean=mean), ZERO, [0.4], [1.0], dtype=torch.float64)[
            "optimal_action"
        ][-1]
        for mean in (4.0, 0.0)
    )
    assert float((shifted - plain).abs().max()) > 0.01


def test_the_order_of_the_rules_and_the_published_ends_at_fewer_runs():
    bed = Setup(runs=1500, log_every=1000)
    ends = {
        rule: train(bed, rule, [0.1, 0.4], [1.0, 1.0])["optimal_action"][-1] for rule in (OWN, ZERO)
    }
    difference, error = mean_error(ends[OWN][1] - ends[ZERO][1])
    assert difference > 2 * error
    for place, rate in enumerate((0.1, 0.4)):
        mean, error = mean_error(ends[OWN][place])
        assert abs(mean - PUBLISHED[rate, True]) < 4 * np.hypot(
            error, printed_error(PUBLISHED[rate, True])
        )


def test_published_numbers_are_expected_of_the_books_experiment_only():
    assert ablation.SETTINGS.as_published
    for change in ({"mean": 0.0}, {"steps": 500}, {"arms": 5}, {"learning_rates": (0.1,)}):
        assert not dataclasses.replace(ablation.SETTINGS, **change).as_published
    claims = [fact.claim for fact in ablation.run(SMALL, QUIET).facts]
    assert len(claims) == len(ablation.identities(SMALL))


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": 1},
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"log_every": 0},
        {"mean": float("inf")},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(CourseError, match="allowed is"):
        Settings(**wrong)
