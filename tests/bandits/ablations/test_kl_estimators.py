"""KL estimators: values by closed forms and by quadrature, refusals."""

from __future__ import annotations

import pytest
import torch

from bandits.ablations import kl_estimators as ablation
from bandits.ablations.kl_estimators import Settings
from bandits.theory.kl_estimators import quadrature
from course.errors import CourseError
from course.exact import control_variate_minimum, gaussian_kl_moments, relative_distance
from course.lab.terminal import QUIET


def test_all_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(Settings(runs=20, samples=1000), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {19}


@pytest.mark.parametrize("mu", [0.03, 0.3, 1.0, 1.4])
def test_closed_forms_are_the_quadrature(mu: float) -> None:
    found, closed = quadrature(mu), gaussian_kl_moments(mu)
    for name, moments in closed.items():
        assert found[name][0] == pytest.approx(float(moments.bias), abs=1e-9)
        assert found[name][1] == pytest.approx(float(moments.std), rel=1e-7)


def test_only_the_coefficient_1_is_never_negative() -> None:
    log_r = torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    for coefficient in (0.3, 0.9, 1.0, 1.1, 3.0):
        least = float((-log_r + coefficient * torch.expm1(log_r)).min())
        assert control_variate_minimum(coefficient) == pytest.approx(least, abs=1e-9)
        assert (least < -1e-3) == (coefficient != 1.0)


def test_relative_distance_is_of_the_second_and_absolute_beside_zero() -> None:
    three, four = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert relative_distance(three, four) == pytest.approx(5 / 4)
    assert relative_distance(four, three) == pytest.approx(5 / 3)
    assert relative_distance(three, 0 * three) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "wrong", [{"means": (0.0,)}, {"means": ()}, {"runs": 1}, {"samples": 1}, {"seed": -1}]
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)
