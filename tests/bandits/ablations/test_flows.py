"""Flows: speeds by hand, times against an ODE solver, escape times, and exact steps by the plain
recursion.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import binom

from bandits.ablations import flows as ablation
from bandits.theory import flows
from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET

SMALL = replace(ablation.SETTINGS, groups=(2, 5), span=8.0, arms=(2, 4), steps=400)


def group_std_speed(u: float, group: int) -> float:
    """du/dt of GRPO by hand: one right answer's advantage √((G−N)/N), a wrong one's −√(N/(G−N)),
    summed over N ~ Bin(G, p).
    """
    p = 1 / (1 + math.exp(-u))
    total = 0.0
    for n in range(1, group):
        right, wrong = math.sqrt((group - n) / n), -math.sqrt(n / (group - n))
        derivative = (
            n * right * (1 - p) - (group - n) * wrong * p
        )  # of the best arm's logit, summed over the group
        total += binom.pmf(n, group, p) * derivative / group
    return 2 * total


@pytest.mark.parametrize("u", [-6.0, -1.0, 0.0, 2.5, 7.0])
def test_speeds_by_hand(u: float) -> None:
    p = 1 / (1 + math.exp(-u))
    assert flows.speed(ladder.reinforce, 1, u, 0.3) == pytest.approx(
        2 * 0.3 * p * (1 - p), rel=1e-12
    )
    assert flows.speed(ladder.reinforce, 1, u, 1.0, arms=5) == pytest.approx(
        p * (1 - p) * 5 / 4, rel=1e-12
    )
    assert flows.speed(ladder.group_std, 2, u, 0.3) == pytest.approx(
        2 * p * (1 - p), rel=1e-5
    )  # w ≡ 1: REINFORCE at gap 1
    assert flows.speed(ladder.group_std, 6, u, 1.0) == pytest.approx(
        group_std_speed(u, 6), rel=2e-5
    )  # eps of the std
    assert flows.natural_speed(2 * 0.3 * p * (1 - p), u) == pytest.approx(0.3, rel=1e-10)


@pytest.mark.parametrize(("rung", "group"), [("reinforce", None), ("group_std", 5)])
def test_times_agree_with_an_ode_solver(rung: str, group: int | None) -> None:
    found = flows.flow(rung, group, 1.0, SMALL.span)
    estimator = ladder.get(rung).estimator
    start, end = found.u[4], found.u[-5]

    def speed(_: float, u: np.ndarray) -> list[float]:
        return [flows.speed(estimator, group or 1, float(u[0]), 1.0)]

    solved = solve_ivp(speed, (0.0, found.t[-5] - found.t[4]), [start], rtol=1e-6, atol=1e-9)
    assert solved.y[0, -1] == pytest.approx(end, abs=1e-5)


def test_exact_steps_are_the_recursion_written_out() -> None:
    for arms in (2, 4):
        step, missing = flows.exact_steps(arms, SMALL.lr, SMALL.steps)
        u, want = 0.0, {}  # best logit minus any other's
        for t in range(1, SMALL.steps + 1):
            p = 1 / (1 + (arms - 1) * math.exp(-u))
            u += SMALL.lr * p * (1 - p) * arms / (arms - 1)
            want[t] = 1 - 1 / (1 + (arms - 1) * math.exp(-u))
        assert missing == pytest.approx([want[int(t)] for t in step], rel=1e-9)


def test_the_late_rate_is_the_inverse_slope_over_the_last_half() -> None:
    steps = np.array([1.0, 10.0, 50.0, 100.0])
    assert flows.late_rate(steps, 1 / (3 + 0.5 * steps)) == pytest.approx(2.0)
    bent = 1 / np.array([1.0, 7.0, 25.0, 45.0])  # 1/(1 − p) rises by 20 over the last 50 steps
    assert flows.late_rate(steps, bent) == pytest.approx(2.5)


def test_a_flow_for_every_group_size_only_where_samples_are_compared() -> None:
    found = flows.flows(("reinforce", "group_std"), (2, 3), 1.0, 4.0, QUIET)
    assert [(one.rung, one.group) for one in found] == [
        ("reinforce", None),
        ("group_std", 2),
        ("group_std", 3),
    ]


@pytest.mark.slow
def test_all_facts_hold_at_the_default_span() -> None:
    result = ablation.run(replace(ablation.SETTINGS, groups=(5,), arms=(4,), steps=1000), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {7}


@pytest.mark.parametrize(
    "wrong", [{"groups": (1,)}, {"gap": 0.0}, {"span": 50.0}, {"arms": (1,)}, {"lr": 2.0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        replace(SMALL, **wrong)
