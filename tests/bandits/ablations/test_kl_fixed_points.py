"""KL fixed points: roots against the equations as published, flows against roots, several arms, the
recursion, refusals.
"""

from __future__ import annotations

import math

import pytest
import torch

from bandits.ablations import kl_fixed_points as ablation
from bandits.ablations.kl_fixed_points import Settings
from bandits.environments import Deterministic
from bandits.flow import ascend
from bandits.theory.kl_fixed_points import (
    KINDS,
    drift_gap,
    estimators,
    fold,
    limits,
    logit,
    lowest,
    policy_at,
    probability,
    recursion,
    recursion_gap,
    recursion_slope,
    settle,
    stabilities,
    staircase,
)
from course.errors import CourseError
from course.exact import group_std_weight
from course.lab.terminal import QUIET

SMALL = Settings(
    group=4,
    betas=(2.0,),
    beta=2.0,
    step=0.3,
    steps=60,
    cobweb_group=32,
    cobweb_reference=0.05,
    cobweb_beta=1.0,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.slow
def test_all_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {22}


@pytest.mark.parametrize("group", [2, 8, math.inf])
@pytest.mark.parametrize("beta", [0.8, 2.0, 5.0])
def test_roots_solve_the_equations_in_p(group: float, beta: float) -> None:
    ref = 0.2
    for kind in KINDS:
        for x, _ in limits(kind, ref, beta, group):
            p = sigmoid(x)
            if not 1e-6 < p < 1 - 1e-6:
                continue
            w = float(group_std_weight(p, group))
            factor = 1.0 if group == math.inf else (group - 1) / group
            left, right = {
                "std, k2": (logit(p), logit(ref) + w / beta),
                "std, k3": (p - w * p * (1 - p) / beta, ref),
                "no std, k2": (
                    p,
                    ref * math.exp(factor / beta) / (ref * math.exp(factor / beta) + 1 - ref),
                ),
            }[kind]
            assert left == pytest.approx(right, rel=1e-7)


def test_none_or_two_at_infinity_one_or_three_below() -> None:
    assert [len(limits("std, k2", 0.3, beta, math.inf)) for beta in (0.5, 2.0)] == [0, 2]
    assert [stable for _, stable in limits("std, k2", 0.3, 2.0, math.inf)] == [True, False]
    assert [
        len(limits("std, k2", 0.3, beta, group))
        for beta, group in ((0.5, 8), (2.0, 8), (2.0, 1024))
    ] == [1, 1, 3]
    beta, _ = fold(0.3)
    assert [len(limits("std, k2", 0.3, beta * share, math.inf)) for share in (0.999, 1.001)] == [
        0,
        2,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_of_the_estimator_ends_at_the_root(kind: str) -> None:
    path = settle(estimators(2.0)[kind], 0.3, 0.3, 2.0, 6, 0.3, 120)
    assert float(path[-1]) == pytest.approx(limits(kind, 0.3, 2.0, 6)[0][0], abs=1e-7)


def test_several_right_answers_keep_the_proportions_of_the_reference() -> None:
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    environment = Deterministic(torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64))
    for kind in KINDS:
        estimator, anchor = estimators(2.0)[kind], reference.log()
        end = ascend(
            estimator, environment, anchor, 4, rate=0.15, steps=100, reference=anchor, natural=True
        )[-1].exp()
        p = sigmoid(limits(kind, 0.3, 2.0, 4)[0][0])
        torch.testing.assert_close(
            end,
            torch.cat([reference[:2] / 0.3 * p, reference[2:] / 0.7 * (1 - p)]),
            rtol=1e-6,
            atol=1e-9,
        )


def test_one_step_of_size_1_over_beta_is_the_recursion() -> None:
    x, beta, group = -1.0, 0.9, 8
    [_, after] = settle(estimators(beta)["std, k2"], sigmoid(x), 0.3, beta, group, 1.0, 1)
    assert float(after) == pytest.approx(recursion(x, 0.3, beta, group), rel=1e-10)
    assert recursion(x, 0.3, beta, group) == pytest.approx(
        logit(0.3) + float(group_std_weight(sigmoid(x), group)) / beta
    )


def test_the_recursion_leaves_where_the_flow_stays() -> None:
    x = limits("std, k2", 0.001, 0.7, math.inf)[0][0]
    assert sigmoid(x) == pytest.approx(0.1016, abs=5e-5)
    slope = (
        recursion(x + 1e-6, 0.001, 0.7, math.inf) - recursion(x - 1e-6, 0.001, 0.7, math.inf)
    ) / 2e-6
    assert slope == pytest.approx(recursion_slope(x, 0.7), rel=1e-6)
    assert slope < -1
    assert recursion(logit(0.001), 0.001, 0.7, math.inf) > 30


def test_policy_at_is_the_logit_far_out_too() -> None:
    assert float(policy_at(40.0)[1]) == pytest.approx(-40.0, rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": 1},
        {"reference": 1.0},
        {"betas": (0.0,), "beta": 0.0},
        {"beta": 0.123},
        {"step": 2.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)


def test_the_lowest_root_is_the_lower_of_two_and_nan_where_there_is_none() -> None:
    # at the roots of G = ∞, logit p − logit .3 = 1/(β √(p(1 − p)))
    for stable, below in ((True, True), (False, False)):
        p = probability(lowest("std, k2", 0.3, 2.0, math.inf, stable))
        assert logit(p) - logit(0.3) == pytest.approx(0.5 / math.sqrt(p * (1 - p)))
        assert (p < 0.9) is below
    assert math.isnan(lowest("std, k2", 0.3, 0.5, math.inf))
    assert stabilities(0.3, 0.5, math.inf) == "none"
    assert stabilities(0.3, 2.0, 1024) == "stable, repelling, stable"


def test_gaps_are_relative_and_see_a_path_or_a_coefficient_that_is_off() -> None:
    first = logit(0.3)
    second = first + float(group_std_weight(0.3, 8)) / 2.0  # one step of the recursion, written out
    path = torch.tensor([first, second + 0.5 * max(1.0, abs(second))], dtype=torch.float64)
    assert recursion_gap(path, 0.3, 2.0, 8) == pytest.approx(0.5)
    places = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert drift_gap("std, k3", 0.3, 2.0, 4, places) == pytest.approx(0, abs=1e-12)


def test_the_staircase_goes_to_the_next_height_and_then_across_to_the_diagonal() -> None:
    x, y = staircase(torch.tensor([1.0, 3.0, 2.0]))
    assert x.tolist() == [1.0, 1.0, 3.0, 3.0, 2.0]
    assert y.tolist() == [1.0, 3.0, 3.0, 2.0, 2.0]
