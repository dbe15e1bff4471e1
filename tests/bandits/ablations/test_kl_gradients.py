"""KL penalties: gradients by hand and by finite differences of the divergences, two tokens, the
bug, refusals.
"""

from __future__ import annotations

import math

import pytest
import torch

from bandits.ablations import kl_gradients as ablation
from bandits.ablations.kl_gradients import Settings
from bandits.theory.kl_estimators import (
    InvertedReference,
    descended,
    divergence_gradients,
    gradient_under_std,
    in_plane,
    later_tokens,
    penalty_gradient,
    placements,
    scale_under_std,
    sequence_gradients,
    two_arms_gap,
    two_tokens,
)
from course.errors import CourseError
from course.exact import kl_gradient
from course.lab.terminal import QUIET
from course.parts import K1, K3, InReward

PI, REF = (0.5, 0.3, 0.2), (0.25, 0.72, 0.03)
POLICY, REFERENCE = (torch.tensor(values, dtype=torch.float64).log() for values in (PI, REF))


def by_hand(weight: list[float]) -> torch.Tensor:
    """Σ_a π_a·weight_a·(e_a − π), written out."""
    return torch.tensor(
        [sum(PI[a] * weight[a] * ((a == b) - PI[b]) for a in range(3)) for b in range(3)],
        dtype=torch.float64,
    )


LOG_R = [math.log(r / p) for r, p in zip(REF, PI, strict=True)]
REVERSE = by_hand([-log_r for log_r in LOG_R])
FORWARD = by_hand([1 - math.exp(log_r) for log_r in LOG_R])
CHI = by_hand([math.exp(-log_r) for log_r in LOG_R])
EXPECTED = {
    "k1 in the loss": 0 * REVERSE,
    "k2 in the loss": REVERSE,
    "k3 in the loss": FORWARD,
    "exact KL in the loss": REVERSE,
    "ρ·k1 in the loss": REVERSE,
    "ρ·k3 in the loss": REVERSE,
    "k1 in the reward": REVERSE,
    "k2 in the reward": by_hand([0.5 * log_r**2 for log_r in LOG_R]),
    "k3 in the reward": REVERSE - FORWARD,
    "inverted k1 in the loss": 0 * REVERSE,
    "inverted k1 in the reward": -REVERSE,
    "inverted ρ·k1 in the loss": -REVERSE,
    "inverted k2 in the loss": REVERSE,
    "inverted k3 in the loss": CHI,
}


def test_all_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(Settings(steps=20), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {20, 21}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_placement_has_the_gradient_written_out_by_hand(name: str) -> None:
    torch.testing.assert_close(
        penalty_gradient(placements()[name], POLICY, REFERENCE),
        EXPECTED[name],
        rtol=1e-11,
        atol=1e-13,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_what_each_placement_is_said_to_descend_is_the_gradient_by_hand(name: str) -> None:
    said = descended(divergence_gradients(POLICY, REFERENCE))
    torch.testing.assert_close(said[name][1], EXPECTED[name], rtol=1e-11, atol=1e-13)


def test_the_group_std_scales_k1_in_the_reward_by_its_weight() -> None:
    # two samples of two values: every group that differs has std |gap|/2, so advantages ±1, and
    # differs with probability 2·.3·.7; the score of the first arm is (.7, −.7) or (−.3, .3)
    gap = math.log(0.3 / 0.6) - math.log(0.7 / 0.4)
    assert two_arms_gap() == pytest.approx(abs(gap))
    expected = 0.5 * 2 * 0.3 * 0.7 * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gradient_under_std(2), expected, rtol=1e-10, atol=0)
    true = 0.3 * 0.7 * abs(gap)  # of the first arm's logit
    assert scale_under_std(2) == pytest.approx(0.3 * 0.7 / true)


def test_coordinates_in_the_plane_keep_lengths_and_angles() -> None:
    one, other = REVERSE, FORWARD
    torch.testing.assert_close(in_plane(one) @ in_plane(other), one @ other)
    torch.testing.assert_close(in_plane(one).norm(), one.norm())


def test_hand_written_gradients_are_finite_differences_of_the_divergences() -> None:
    def kl(q: torch.Tensor, p: torch.Tensor) -> float:
        return float((q.exp() * (q - p)).sum())

    step, found = 1e-6, divergence_gradients(POLICY, REFERENCE)
    for b in range(3):
        up, down = (
            torch.log_softmax(POLICY + sign * step * torch.eye(3, dtype=torch.float64)[b], 0)
            for sign in (1, -1)
        )
        assert (kl(up, REFERENCE) - kl(down, REFERENCE)) / (2 * step) == pytest.approx(
            float(REVERSE[b]), abs=1e-8
        )
        assert (kl(REFERENCE, up) - kl(REFERENCE, down)) / (2 * step) == pytest.approx(
            float(FORWARD[b]), abs=1e-8
        )
    for name, expected in (("KL(π‖ref)", REVERSE), ("KL(ref‖π)", FORWARD), ("½χ²(π‖ref)", CHI)):
        torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-13)


def test_two_token_scores_are_derivatives_of_the_log_probabilities() -> None:
    listed = two_tokens()
    probability = listed.log_prob.sum(-1).exp()
    assert float(probability.sum()) == pytest.approx(1)
    assert (
        float(torch.einsum("qk,qktd->d", probability, listed.score).abs().max()) < 1e-15
    )  # E[score] = 0
    true, dropped = kl_gradient(listed), later_tokens(listed)
    found = sequence_gradients(listed)
    torch.testing.assert_close(found.pop("k1 in the reward"), true)
    for gradient in found.values():
        torch.testing.assert_close(gradient + dropped, true)
    assert float(dropped.norm()) > 0.1 * float(true.norm())


def test_inverted_reference_flips_the_sign_of_log_r() -> None:
    wrong, right = K1(1.0, InReward(), InvertedReference()), K1(1.0, InReward())
    torch.testing.assert_close(
        penalty_gradient(wrong, POLICY, REFERENCE), -penalty_gradient(right, POLICY, REFERENCE)
    )
    assert not torch.allclose(
        penalty_gradient(K3(1.0, anchor=InvertedReference()), POLICY, REFERENCE), FORWARD
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"reference": (0.5, 0.5, 0.5)},
        {"group": 1},
        {"rate": 0.0},
        {"steps": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)
