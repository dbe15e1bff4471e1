"""Lesson 04's equations in numbers: PPO's clip sign by sign, its lower bound, where a clipped ratio
stops, and three descendants.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.theory import clip_unbounded
from course import ladder
from course.estimator import replace
from course.exact import microscope
from course.parts import CISPO, Clip, Constant
from course.parts.surrogate import clipped_surrogate

RATIOS = (0.0, 0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 1.39, 1.41, 5.0)
CASES = list(itertools.product(RATIOS, (2.0, -0.5), (0.2, 0.1), (0.2, 0.4)))


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sign_by_sign(ratio: float, advantage: float, low: float, high: float) -> float:
    return advantage * (min(ratio, 1 + high) if advantage > 0 else max(ratio, 1 - low))


def test_the_clip_sign_by_sign() -> None:
    """`eq:clipped-surrogate`: A·min(ρ, 1+ε) for A > 0, A·max(ρ, 1−ε) for A < 0."""
    for ratio, advantage, low, high in CASES:
        found = float(clipped_surrogate(f64(ratio), f64(advantage), low, high))
        assert found == pytest.approx(sign_by_sign(ratio, advantage, low, high), abs=1e-12)


def test_the_gradient_is_zero_where_the_clip_says_flat_and_the_surrogates_elsewhere() -> None:
    """`eq:clip-flat`: the slope by finite differences is 0 or A, as `clipped` says."""
    for ratio, advantage, low, high in CASES:
        if ratio == 0:
            continue
        up, down = (
            float(Clip(low, high)(f64(ratio + d).log(), f64(0.0), f64(advantage)))
            for d in (1e-6, -1e-6)
        )
        flat = bool(Clip(low, high).clipped(f64(ratio).log(), f64(0.0), f64(advantage)))
        assert flat == ((advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low))
        assert (up - down) / 2e-6 == pytest.approx(0.0 if flat else advantage, abs=1e-6)


def test_the_clip_is_a_lower_bound_and_misses_what_lies_beyond() -> None:
    """`eq:clip-lower-bound`: ρA − f is |A| times the excess over the bound on A's side, never
    negative.
    """
    for ratio, advantage, low, high in CASES:
        missed = ratio * advantage - float(clipped_surrogate(f64(ratio), f64(advantage), low, high))
        excess = ratio - 1 - high if advantage > 0 else 1 - low - ratio
        assert missed == pytest.approx(abs(advantage) * max(0.0, excess), abs=1e-12)
        assert missed >= 0


def two_arms(share: float, ratio: float, clip: Clip) -> float:
    """The expected gradient of arm 1's logit at ρ₁ = `ratio`, rewards 1 and 0, b = π₁: by
    enumeration.
    """
    now, old = (f64(p, 1 - p).log().unsqueeze(0) for p in (share * ratio, share))
    listed = outcomes(Deterministic(f64(1.0, 0.0).unsqueeze(0)), now, old=old)
    return float(
        microscope(
            replace(ladder.clip, baseline=Constant(share), surrogate=clip),
            listed,
            1,
            covariance=False,
        ).expected[0]
    )


@pytest.mark.parametrize("share", [0.005, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("clip", [Clip(0.2), Clip(0.1, 0.4)])
def test_the_ratio_stops_where_the_other_arm_falls_silent(share: float, clip: Clip) -> None:
    """`eq:clip-limit`: pushed just below it, not above it; 2.8 for π₁ = .1."""
    stop = float(clip_unbounded.limit(f64(share), 1 - clip.epsilon_low, 1 + clip.high))
    assert two_arms(share, 0.999 * stop, clip) > 0
    if 1.001 * stop < 1 / share:
        assert two_arms(share, 1.001 * stop, clip) == 0
    assert float(clip_unbounded.limit(f64(0.1), 0.8, 1.2)) == pytest.approx(2.8)


def test_between_the_bounds_only_the_bad_arm_pushes() -> None:
    """`eq:clip-push`: π₁·π(1)·π(2), from the closed form and from the enumeration."""
    for ratio in (1.3, 2.0, 2.7):
        want = 0.1 * (0.1 * ratio) * (1 - 0.1 * ratio)
        assert clip_unbounded.push(0.1, ratio) == pytest.approx(want, abs=1e-12)
        assert two_arms(0.1, ratio, Clip(0.2)) == pytest.approx(want, abs=1e-12)


def test_a_wider_upper_bound_gives_probability_more_room() -> None:
    """`eq:clip-higher`: a good sample is pushed until its probability has gained ε_high·p."""
    for p, high in ((0.01, 0.2), (0.01, 0.28), (0.5, 0.28)):
        room = high * p
        for gained, flat in ((0.999 * room, False), (1.001 * room, True)):
            assert (
                bool(Clip(0.2, high).clipped(f64((p + gained) / p).log(), f64(0.0), f64(1.0)))
                == flat
            )


def test_dual_clip_bounds_the_objective_of_bad_samples_from_below() -> None:
    """`eq:dual-clip`: max(f, cA) for A < 0, f itself for A > 0."""
    for ratio, advantage in itertools.product((0.5, 1.0, 2.9, 3.1, 30.0), (1.5, -1.5)):
        plain = sign_by_sign(ratio, advantage, 0.2, 0.2)
        want = max(plain, 3 * advantage) if advantage < 0 else plain
        assert float(
            Clip(0.2, dual_clip=3.0)(f64(ratio).log(), f64(0.0), f64(advantage))
        ) == pytest.approx(want)


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    """`eq:cispo`: the derivative by log π is clip(ρ)·A, with bounds that are offsets from 1."""
    for ratio, advantage in itertools.product((0.1, 0.9, 1.27, 1.29, 40.0), (1.0, -2.0)):
        log_ratio = f64(ratio).log().requires_grad_()
        [slope] = torch.autograd.grad(
            CISPO(epsilon_high=0.28)(log_ratio, log_ratio, f64(advantage)).sum(), log_ratio
        )
        assert float(slope) == pytest.approx(min(ratio, 1.28) * advantage)
        [slope] = torch.autograd.grad(
            CISPO(0.28, 0.2)(log_ratio, log_ratio, f64(advantage)).sum(), log_ratio
        )
        assert float(slope) == pytest.approx(min(max(ratio, 0.8), 1.28) * advantage)
