"""The arms of reinforcement learning from random weights: what they differ in, and GRPO's end."""

from __future__ import annotations

import dataclasses

import pytest

from course import ladder
from course.estimator import uses_reference
from course.parts import K2, K3
from tinylm.from_zero import ARMS, BELOW, predicted


def test_the_rungs_are_the_ladders_and_no_rung_below_grpo_has_a_kl() -> None:
    for name in (*BELOW, "grpo"):
        assert ARMS[name].estimator == ladder.get(name).estimator
        assert uses_reference(ARMS[name].estimator) == (name == "grpo")
    left_out = ["surrogate", "clip"]  # as the baseline with one update per rollout
    rungs = [rung.name for rung in ladder.select() if rung.name not in left_out]
    assert rungs == [*BELOW, "grpo"]
    assert {arm.reward for name, arm in ARMS.items() if name.endswith("_end")} == {
        "exact+digits+end"
    }


def test_the_other_arms_replace_one_part_or_the_reward() -> None:
    def differs(name: str, rung: str) -> set[str]:
        one, other = ARMS[name].estimator, ladder.get(rung).estimator
        return {
            field.name
            for field in dataclasses.fields(one)
            if field.compare and getattr(one, field.name) != getattr(other, field.name)
        }

    assert differs("reinforce_kl", "reinforce") == {"kl"}
    assert differs("group_mean_kl", "group_mean") == {"kl"}
    assert differs("entropy", "length_mean") == {"entropy_coef"}
    assert differs("reverse_kl", "grpo") == {"kl"}
    assert ARMS["reverse_kl"].estimator.kl == K2(0.04)
    assert ARMS["reinforce_kl"].estimator.kl == ladder.grpo.kl == K3(0.04)
    for name in ("reinforce", "group_mean", "length_mean", "grpo"):
        assert ARMS[f"{name}_end"].estimator == ladder.get(name).estimator
    assert ARMS["grpo_exact"].estimator == ladder.grpo
    assert ARMS["grpo_exact"].reward == "exact"


def test_the_bandits_prediction_is_the_balance_of_reward_and_kl() -> None:
    """Pairs, where w = 1: (1 − ε)ε/4 = β(17/18 − ε/4) for three digits and the end; 18 tokens."""
    wrong = predicted(digits=2, group=2)["wrong"]
    assert (1 - wrong) * wrong / 4 == pytest.approx(0.04 * (17 / 18 - wrong / 4), rel=1e-9)
    silent = predicted(digits=2, group=16)
    assert silent["silent_groups"] == pytest.approx((1 - silent["wrong"]) ** 16)
