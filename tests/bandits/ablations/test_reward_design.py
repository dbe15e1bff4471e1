"""Reward design on a Gaussian policy: the closed forms of the ablation against quadrature, and both
effects at small size.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bandits.ablations import reward_design as ablation
from bandits.theory import reward_design as theory
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.settings import read
from course.lab.terminal import QUIET
from course.parts import GroupStd

SMALL = dataclasses.replace(
    ablation.SETTINGS, runs=8, steps=150, far=5.0, learning_rates=(0.3,), drift_groups=4000
)


def mean_reward(theta: torch.Tensor, alpha: float, delta: float) -> torch.Tensor:
    """J(θ) by the midpoint rule on the pieces where the reward is smooth."""
    total = torch.zeros_like(theta)
    for low, high in ((-15.0, -0.5), (-0.5, 0.5), (0.5, 15.0)):
        step = (high - low) / 20_000
        x = torch.linspace(low + step / 2, high - step / 2, 20_000, dtype=torch.float64)
        density = torch.exp(-((x - theta) ** 2) / 2) / math.sqrt(2 * math.pi)
        paid = theory.reward(
            x, torch.tensor(alpha, dtype=torch.float64), torch.tensor(delta, dtype=torch.float64)
        )
        total = total + (density * paid).sum() * step
    return total


@pytest.mark.parametrize(
    ("theta", "alpha", "delta"),
    [(-1.0, 0.0, 2.0), (0.3, 0.01, 2.0), (3.0, 0.3, 4.0), (-2.0, 0.9, 3.0)],
)
def test_the_true_gradient_is_the_derivative_of_the_mean_reward(
    theta: float, alpha: float, delta: float
) -> None:
    place = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(mean_reward(place, alpha, delta), place)
    assert float(theory.true_gradient(place.detach(), alpha, delta)) == pytest.approx(
        float(slope), abs=1e-8
    )


def test_the_chance_of_a_hit_counts_the_window() -> None:
    theta = torch.tensor([0.0, -3.0], dtype=torch.float64)
    normal = torch.distributions.Normal(theta, 1.0)
    miss = 1 - (normal.cdf(torch.tensor(0.5)) - normal.cdf(torch.tensor(-0.5)))
    torch.testing.assert_close(theory.chance_of_a_hit(theta, 7), 1 - miss**7)


def test_the_mean_reward_has_one_maximum_with_a_tiny_bonus_and_two_with_a_large_one() -> None:
    assert theory.summits(0.001, 4.0) == 1
    assert theory.summits(0.5, 6.0) == 2


def test_the_width_counts_half_a_unit_for_each_start_that_reaches_the_window() -> None:
    narrow = torch.tensor([[0.1, 2.0], [0.2, 0.3], [3.0, 4.0]])  # widths 1 and .5 of two runs
    wide = torch.zeros(3, 2)
    assert theory.width_gain(narrow, wide) == pytest.approx((1.5 - 0.75, 0.25))
    assert theory.width_ratio(narrow, wide)[0] == pytest.approx(2.0)
    # relative errors add in squares: .25/.75 of the first, none of the second
    assert theory.width_ratio(narrow, wide)[1] == pytest.approx(2 * 0.25 / 0.75)


def test_without_the_std_the_expected_gradient_is_the_true_one_less_the_self_included_share() -> (
    None
):
    places = [-2.0, -0.7, 1.2]
    samples = theory.drift(ladder.get("group_mean").estimator, (0.2, 2.0), places, 4, 20_000, 3)
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(len(samples))
    expected = 0.75 * theory.true_gradient(torch.tensor(places, dtype=torch.float64), 0.2, 2.0)
    assert ((mean - expected).abs() < 4 * error).all()


def test_a_bonus_of_any_height_pushes_alike_where_eps_is_zero() -> None:
    bare = replace(ladder.get("group_std").estimator, scale=GroupStd(eps=0.0))
    low, high = (theory.drift(bare, (alpha, 2.0), [-6.0], 5, 200, 1) for alpha in (1e-6, 0.5))
    torch.testing.assert_close(low, high)
    assert low.mean() > 0.3
    with_eps = theory.drift(ladder.get("group_std").estimator, (1e-6, 2.0), [-6.0], 5, 200, 1)
    assert with_eps.abs().max() < 1e-3


def test_both_effects_at_small_size() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    start = result.array("starts").tolist().index
    published, looser, exact, none = (
        result.array("share", name) for name in result.series["rates"]
    )
    assert published[0][start(-4.5)] < 0.5 < published[1][start(-4.5)]  # the bonus opens a way …
    assert looser[1][start(-4.5)] < 0.5 < exact[1][start(-4.5)]  # … if eps lets it
    assert abs(none[1] - none[0]).max() <= 0.5  # … and never without the std
    assert (
        published[-1][start(3.0)] < 0.5 < none[-1][start(3.0)]
    )  # δ = 4 catches, but not without the std
    assert result.array("ends", next(iter(result.series["rates"])))[-1][1][
        start(3.0)
    ] == pytest.approx(4.0, abs=0.5)


@pytest.mark.parametrize(
    "assignment",
    [
        "group=1",
        "alphas=0.1,0.2",
        "alphas=0,1",
        "eps=-1e-8",
        "learning_rates=0",
        "runs=1",
        "far=0.2",
        "deltas=",
    ],
)
def test_settings_are_refused_at_the_door(assignment: str) -> None:
    option = f"--{assignment.replace('_', '-')}"
    with pytest.raises(CourseError, match=option.partition("=")[0]):
        read(ablation.Settings, [option], "reward_design")
