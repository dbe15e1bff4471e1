"""Staleness: agreement at π_old for every registered ratio rung, the stale limit by hand, one
curve, the shared bandit, refusals.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bandits.ablations import staleness as ablation
from bandits.ablations.staleness import Settings, train
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.flow import ascend, expected_gradient
from bandits.linear import linear_bandit
from bandits.theory.staleness import (
    THREE_ARMS,
    centred_path,
    distance_to_policy_gradient,
    ragged,
    ratio_rungs,
    stale_limit,
)
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.terminal import QUIET
from course.parts import BelowMean
from course.train.noise import Noise

SMALL = Settings(
    rungs=("baseline", "surrogate", "clip"),
    epochs=(1, 3),
    runs=3,
    rollouts=4,
    prompts=3,
    features=9,
    arms=4,
    group=4,
    stale_updates=40,
)


def test_the_exact_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(dataclasses.replace(SMALL, stale_updates=100, stale_rate=1.5), QUIET)
    exact = [fact for fact in result.facts if fact.standard_error == 0]
    assert [fact.claim for fact in exact if not fact.holds] == []
    assert {fact.number for fact in exact} == {9, 11}
    assert len(exact) >= 11


@pytest.mark.parametrize("name", ratio_rungs())
def test_at_the_old_policy_a_ratio_rung_is_policy_gradient(name: str) -> None:
    assert distance_to_policy_gradient(name, ragged(), 2) < 1e-12


def test_one_update_is_one_curve_and_three_are_three() -> None:
    def final(name: str, epochs: int) -> torch.Tensor:
        return train(ladder.get(name).estimator, SMALL, epochs, (16.0, 64.0), range(3))[0]

    one, three = (torch.stack([final(name, epochs) for name in SMALL.rungs]) for epochs in (1, 3))
    torch.testing.assert_close(one[1:], one[:1].expand(2, -1, -1), rtol=0, atol=1e-12)
    assert not torch.allclose(three[0], three[1])
    assert not torch.allclose(three[1], three[2])


def test_the_stale_limit_by_hand() -> None:
    limit, after, before = stale_limit()
    assert limit.tolist() == pytest.approx([0.10 / 0.41, 0.15 / 0.41, 0.16 / 0.41])
    assert before == pytest.approx(0.41)
    assert after == pytest.approx((0.5 * 0.04 + 0.3 * 0.25 + 0.2 * 0.64) / 0.41)


def test_stale_paths_follow_their_closed_forms() -> None:
    start, group, rate, updates = torch.tensor(B3_POLICY, dtype=torch.float64).log(), 4, 1.5, 100
    paths = {
        name: ascend(
            ladder.get(name).estimator,
            THREE_ARMS,
            start,
            group,
            rate=rate,
            steps=updates,
            stale=True,
        )
        for name in ("reinforce", "baseline", "surrogate", "clip")
    }
    torch.testing.assert_close(
        paths["baseline"], centred_path(group, rate, updates), rtol=1e-10, atol=1e-12
    )
    moved = {
        name: float((path[0].exp() * (path[0] - path[-1])).sum()) for name, path in paths.items()
    }
    assert moved["clip"] < moved["reinforce"] < moved["surrogate"] < moved["baseline"]


def test_settings_beside_each_other_are_the_same_bandit_alone() -> None:
    offset = torch.tensor([0.0, -1.0], dtype=torch.float64)
    both, noise = linear_bandit((3, 4, 5), offset, range(2, 5), 6, 7)
    alone, own = linear_bandit((3, 4, 5), offset[1:], range(4, 5), 6, 7)
    assert isinstance(noise, Noise)
    first, second = both.sample(noise), alone.sample(own)
    assert torch.equal(
        first.data["action"][0], first.data["action"][1]
    )  # one stream for all settings
    assert torch.equal(first.reward[0] - 1, first.reward[1])
    assert torch.equal(first.reward[1, 2], second.reward[0, 0])
    assert set(first.reward[0].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": (2, 4)},
        {"epochs": (1,)},
        {"learning_rates": ()},
        {"offsets": (1.0,)},
        {"group": 1},
        {"stale_rate": 0.0},
        {"runs": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)


@pytest.mark.parametrize("by", [0.7, 2.0])
def test_below_the_mean_stale_samples_come_to_rest_at_full_support(by: float) -> None:
    """AsymRE: with b below every reward the exact pull is 0 at π_old(R − b)/δ, b = J − δ."""
    start, means = (torch.tensor(each, dtype=torch.float64) for each in (B3_POLICY, B3_MEANS))
    rest = start * (means - start @ means + by) / by
    assert float(rest.min()) > 0
    assert float(rest.sum()) == pytest.approx(1.0)
    estimator = replace(ladder.asymre, baseline=BelowMean(by))
    pull = expected_gradient(estimator, THREE_ARMS, rest.log(), 40, old=start.log())
    factor = 39 / 40  # the mean includes the sample itself
    shrunk = start * (factor * (means - start @ means) + by) / by
    assert float(pull.norm()) > 1e-4
    pull = expected_gradient(estimator, THREE_ARMS, shrunk.log(), 40, old=start.log())
    assert float(pull.norm()) < 1e-12
