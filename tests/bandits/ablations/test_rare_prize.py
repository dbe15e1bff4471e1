"""Three arms, one of them rare: pulls worked out by hand, the balance with the KL, and the time to
the rare arm.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bandits.ablations import rare_prize as ablation
from bandits.environments import Deterministic
from bandits.flow import expected_gradient
from bandits.theory.rare_prize import (
    RARE,
    REWARDS,
    WRONG,
    Pull,
    balance,
    flow,
    found_after,
    sampled,
    start_of,
)
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.exact import anchored_error
from course.lab.terminal import QUIET
from course.parts import K3, GroupStd

D = torch.float64
START = start_of(0.1, 1e-3)


def test_pairs_have_the_pull_of_the_better_arm_over_the_worse() -> None:
    """Two samples that differ have advantages ±1: π_i π_j for every pair of arms."""
    pull = Pull(group=2).expected(torch.tensor([0.2, 0.7, 0.1], dtype=D).log(), START)
    want = torch.tensor([-0.2 * 0.8, 0.7 * (0.2 - 0.1), 0.1 * 0.9], dtype=D)
    torch.testing.assert_close(pull, want, atol=1e-5, rtol=0)
    # without the std the advantages are half the differences .5, 1.5 and 1
    plain = Pull(std=False, group=2).expected(torch.tensor([0.2, 0.7, 0.1], dtype=D).log(), START)
    first = -0.2 * (0.7 * 0.25 + 0.1 * 0.75)
    last = 0.1 * (0.2 * 0.75 + 0.7 * 0.5)
    torch.testing.assert_close(plain, torch.tensor([first, -first - last, last], dtype=D))


def test_only_k3_pulls_up_an_arm_that_has_died() -> None:
    dead = torch.tensor([1e-9, 1 - 2e-9, 1e-9], dtype=D).log()
    for kind, want in (("none", 0.0), ("k3", 0.04 * 1e-3), ("k2", 0.0), ("entropy", 0.0)):
        pull = Pull(kind, 0.04).expected(dead, START)
        assert float(pull[RARE]) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize(("group", "beta"), [(2, 0.04), (16, 0.04), (16, 0.004)])
def test_the_anchored_error_is_where_reward_and_kl_are_equal(group: int, beta: float) -> None:
    """By enumeration: right and wrong, k3 towards a reference that is wrong with probability .9."""
    wrong = anchored_error(beta, group, reference=0.9)
    estimator = replace(ladder.length_mean, scale=GroupStd(eps=0.0), kl=K3(beta))
    policy, reference = (torch.tensor([x, 1 - x], dtype=D).log() for x in (wrong, 0.9))
    rewards = Deterministic(torch.tensor([[0.0, 1.0]], dtype=D))
    drift = expected_gradient(estimator, rewards, policy, group, reference=reference)
    torch.testing.assert_close(drift, torch.zeros(2, dtype=D), atol=1e-12, rtol=0)


def test_the_balance_of_pairs_by_hand() -> None:
    """Pairs push with π_wrong π_half and k3 with β(ref − π): START has .899 wrong answers."""
    for wrong in (0.2, 0.01):
        want = -wrong * (1 - wrong) + 0.04 * (0.899 - wrong)
        assert balance(0.04, 2, START, wrong) == pytest.approx(want, abs=1e-5)


def test_sampled_trainings_are_logged_every_few_updates_and_after_the_last() -> None:
    steps, rare = sampled(Pull(), START, rate=1e-9, updates=7, runs=3, log_every=5, seed=0)
    assert steps == [1, 6, 7]
    # hardly a step: the rare arm keeps its probability, which is 1e-3
    torch.testing.assert_close(rare, torch.full((3, 3), 1e-3, dtype=D), rtol=1e-6, atol=0)


def test_an_error_in_many_places_is_shared_by_them() -> None:
    """With pairs w_2 = 1 everywhere: (1 − ε)ε/T = β(ref − ε/T), a quadratic equation."""
    for beta, tokens in ((0.02, 1), (0.02, 4)):
        total = beta * tokens * 0.9  # ε² − (1 + β)ε + βT ref = 0
        want = ((1 + beta) - math.sqrt((1 + beta) ** 2 - 4 * total)) / 2
        # w_2(p) = 1: the two samples of a pair differ with probability 2p(1−p), with A = ±1
        assert anchored_error(beta, 2, tokens, 0.9) == pytest.approx(want, rel=1e-9)
    assert anchored_error(0.0, 16) == pytest.approx(0.0, abs=1e-15)
    with pytest.raises(CourseError, match="beta"):
        anchored_error(1.0, 2, tokens=4)  # ¼ (1 − ε)ε is at most 1/16


def test_the_rare_arm_is_found_first_under_k3() -> None:
    start = start_of(0.1, 0.01)
    after = {kind: found_after(Pull(kind, 0.04), start, 1.0, 500) for kind in ("none", "k3", "k2")}
    assert after["k3"] < after["k2"] < after["none"] < 500
    path = flow(Pull("k3", 0.04), start, 1.0, int(after["k3"])).exp()
    assert float(path[-1, RARE]) > 0.5 >= float(path[-2, RARE])
    assert found_after(Pull(), start, 1.0, int(after["none"]) - 1) == math.inf


def test_sampled_trainings_follow_the_flow_and_claims_are_written() -> None:
    settings = dataclasses.replace(
        ablation.SETTINGS, rare=0.05, coefs=(0.04, 0.2), updates=20, most=300, runs=2000
    )
    settings = dataclasses.replace(settings, rate=0.1, log_every=5)
    found = ablation.run(settings, QUIET)
    exact = [fact.holds for fact in found.facts if fact.source == ablation.DERIVED]
    assert exact[:2] == [True, True]
    for kind in ("none", "k3", "k2", "entropy"):
        path = flow(Pull(kind, 0.04), start_of(0.1, 0.05), 0.1, 20).exp()[:, RARE]
        steps = found.array("anchors", kind, "steps").astype(int)
        sampled, half = (found.array("anchors", kind, f"sampled{end}") for end in ("", "_half"))
        # small steps: the mean of the runs is the flow, up to the curvature
        assert (abs(sampled - path[steps].numpy()) < 2 * half + 2e-3).all()
    ablation.plot(dataclasses.replace(found, settings=settings))


@pytest.mark.parametrize(
    "wrong",
    [{"half": 0.0}, {"rare": 0.95}, {"group": 1}, {"coefs": ()}, {"coefs": (0.0,)}, {"runs": 1}],
)
def test_settings_are_refused_at_the_door(wrong: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        dataclasses.replace(ablation.SETTINGS, **wrong)
    assert REWARDS[WRONG] == 0
