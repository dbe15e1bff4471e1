"""The variance of a Gaussian policy's gradient: closed forms against moments of normals, quadrature
and enumeration by hand.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bandits.ablations import policy_variance as ablation
from bandits.theory import policy_variance as theory
from course import ladder
from course.errors import CourseError
from course.lab.settings import read
from course.lab.terminal import QUIET

SIGMA = torch.tensor([0.02, 0.5, 3.0], dtype=torch.float64)
MOMENTS = {0: 1, 1: 0, 2: 1, 3: 0, 4: 3, 5: 0, 6: 15}  # E z^n of a standard normal


def by_moments(distance: float, sigma: float, b: float) -> tuple[float, float]:
    """Mean and variance of (z/σ)(−(d+σz)² − b), a polynomial in z, from the moments of z."""
    coefficients = {1: (-(distance**2) - b) / sigma, 2: -2 * distance, 3: -sigma}
    mean = sum(c * MOMENTS[n] for n, c in coefficients.items())
    second = sum(
        c * k * MOMENTS[n + m] for n, c in coefficients.items() for m, k in coefficients.items()
    )
    return mean, second - mean**2


@pytest.mark.parametrize("name", list(theory.BASELINES))
@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
def test_the_closed_forms_are_the_moments_and_the_quadrature_through_the_estimator(
    name: str, distance: float
) -> None:
    z, weight = theory.quadrature(1)
    mean, variance = theory.moments(theory.gradients(name, distance, SIGMA, z[:, 0]), weight)
    closed = theory.CLOSED_FORM[name](distance, SIGMA)
    for i, sigma in enumerate(SIGMA.tolist()):
        b = float(theory.BASELINES[name](distance, SIGMA)[i])
        assert (float(mean[i]), float(variance[i])) == pytest.approx(
            by_moments(distance, sigma, b), rel=1e-10
        )
        assert float(closed[i]) == pytest.approx(float(variance[i]), rel=1e-10)
        assert float(mean[i]) == pytest.approx(-2 * distance)


def test_no_constant_is_better_than_the_best_one() -> None:
    for b in (-1.0, -4.0, 0.0):
        assert by_moments(1.0, 0.5, b)[1] > float(theory.CLOSED_FORM["best b"](1.0, SIGMA)[1])
    assert by_moments(1.0, 0.5, -1.75)[1] == pytest.approx(
        float(theory.CLOSED_FORM["best b"](1.0, SIGMA)[1])
    )


@pytest.mark.parametrize("name", ["reinforce", "rloo", "group_mean"])
def test_the_noise_of_groups_is_that_of_the_quadrature(name: str) -> None:
    z, weight = theory.quadrature(3)
    mean, variance = theory.moments(
        theory.of_group(ladder.get(name).estimator, 0.7, SIGMA, z), weight
    )
    expected = theory.expected_noise(name, 3, 0.7, SIGMA)
    assert expected is not None
    torch.testing.assert_close(variance.sqrt() / mean.abs(), expected)
    torch.testing.assert_close(mean, torch.full_like(mean, theory.expected_mean(name, 3, 0.7)))


def test_the_mean_spread_of_two_and_of_three_normals() -> None:
    assert theory.mean_spread(2) == pytest.approx(
        1 / math.sqrt(math.pi)
    )  # half of E|z₁ − z₂| = 2/√π
    z = torch.randn(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert theory.mean_spread(3) == pytest.approx(float(z.std(-1, correction=0).mean()), abs=0.004)


def test_every_fact_holds_at_small_size() -> None:
    result = ablation.run(
        dataclasses.replace(
            ablation.SETTINGS, sigmas=(0.01, 1.0), batches=20, samples=200, group=3
        ),
        QUIET,
    )
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert len(result.facts) == 16


@pytest.mark.parametrize(
    "assignment", ["distance=0", "sigmas=0.1,-1", "sigmas=", "group=1", "batches=1", "samples=1"]
)
def test_settings_are_refused_at_the_door(assignment: str) -> None:
    option = f"--{assignment.replace('_', '-')}"
    with pytest.raises(CourseError, match=option.partition("=")[0]):
        read(ablation.Settings, [option], "policy_variance")
