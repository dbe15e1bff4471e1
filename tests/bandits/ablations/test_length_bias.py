"""The length toy: groups of two written out, both directions of the flow, and refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bandits.ablations import length_bias as ablation
from bandits.ablations.length_bias import Settings
from bandits.theory.length_bias import first_push, mean_weight, push_by_hand
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.terminal import QUIET
from course.parts import (
    Aggregation,
    ConstantLength,
    NoScale,
    SequenceMean,
    SequenceSum,
    TokenMean,
)
from course.rollout import Rollout

SMALL = Settings(group=3, steps=3)
REWARD, LENGTH = (1, 1, 0, 0), (2, 8, 2, 8)


def by_hand(weigh: Callable[[int, int], float]) -> list[float]:
    """E[ĝ] of pairs at the uniform policy: the right one of a mixed pair gets +1, the wrong one −1;
    `weigh` own and other length.
    """
    total = [0.0] * 4
    for i, j in itertools.product(range(4), repeat=2):
        if REWARD[i] != REWARD[j]:
            for own, other in ((i, j), (j, i)):
                advantage = 2 * REWARD[own] - 1
                for d in range(4):
                    total[d] += (
                        advantage * weigh(LENGTH[own], LENGTH[other]) * ((own == d) - 0.25) / 16
                    )
    return total


@pytest.mark.parametrize(
    ("name", "weigh"),
    [
        ("group_std", lambda own, other: 1 / 2),
        ("length_mean", lambda own, other: 1 / (2 * own)),
        ("grpo", lambda own, other: 1 / (2 * own)),
        ("token_mean", lambda own, other: 1 / (own + other)),
        (
            "dr_grpo",
            lambda own, other: 0.5 / (2 * 8),
        ),  # no std: the advantages of a mixed pair are ±½
    ],
)
def test_the_first_push_is_the_sum_over_pairs(
    name: str, weigh: Callable[[int, int], float]
) -> None:
    found = first_push(ladder.get(name).estimator, (2, 8), 2)
    assert found.tolist() == pytest.approx(
        by_hand(weigh), rel=3e-6, abs=1e-12
    )  # the rungs' eps of 1e-6 beside a std of ½


def test_the_mean_weight_of_a_pair_by_hand() -> None:
    """Twice the first token's weight in a pair whose other sample is short or long."""
    for own, want in ((2, (1 / 4 + 1 / 10) / 2), (8, (1 / 10 + 1 / 16) / 2)):
        assert mean_weight(TokenMean(), own, (2, 8), 2) == pytest.approx(2 * want)
        assert mean_weight(SequenceMean(), own, (2, 8), 2) == pytest.approx(1 / own)
        assert mean_weight(SequenceSum(), own, (2, 8), 2) == pytest.approx(1)
        assert mean_weight(ConstantLength(), own, (2, 8), 2) == pytest.approx(1 / 8)


@dataclass(frozen=True)
class Doubled(NoScale):
    """Twice the advantage, under a known class's name."""

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return 2 * advantage


@dataclass(frozen=True)
class FirstTokens(Aggregation):
    """1/√|o| per sample: a weight of one's own is asked for, not looked up."""

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype) / (mask.sum(-1, keepdim=True).sqrt() * self.samples(mask))


def test_parts_of_ones_own_are_asked_or_left_alone() -> None:
    assert push_by_hand(replace(ladder.group_mean, scale=Doubled()), (2, 5), 3) is None
    own = replace(ladder.group_std, aggregation=FirstTokens())
    expected = push_by_hand(own, (2, 5), 3)
    assert expected is not None
    torch.testing.assert_close(first_push(own, (2, 5), 3), expected, rtol=1e-9, atol=1e-12)


def test_whichever_rung_has_a_push_by_hand_has_the_right_one() -> None:
    by_hand = {name: push_by_hand(rung.estimator, (2, 5), 3) for name, rung in ladder.RUNGS.items()}
    for name, expected in by_hand.items():
        if expected is not None:
            found = first_push(ladder.get(name).estimator, (2, 5), 3)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    known = {"group_mean", "group_std", "length_mean", "grpo", "token_mean", "dr_grpo"}
    assert known <= {name for name, expected in by_hand.items() if expected is not None}
    assert {"reinforce", "rloo", "dapo"} <= {name for name in by_hand if by_hand[name] is None}


def test_facts_hold_on_a_short_flow() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {18}
    wrong, right = (result.array("flow", "grpo", key) for key in ("long_wrong", "long_right"))
    assert (wrong[1:] > wrong[:-1]).all()
    assert (right[1:] < right[:-1]).all()
    assert (result.array("flow", "dr_grpo", "success")[1:] > 0.5).all()


@pytest.mark.parametrize("change", [{"long": 2}, {"group": 1}, {"steps": 1}, {"first_step": 0.0}])
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
