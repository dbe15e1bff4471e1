"""The ratio that clipping does not bound: where steps stop, against the limits written out; the
population problem itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bandits.ablations import clip_unbounded as ablation
from bandits.environments import Deterministic
from bandits.policies import Softmax
from bandits.population import Population, every_arm
from bandits.theory.clip_unbounded import UNCENTRED, Path, limit, push, small_steps
from course import ladder
from course.errors import CourseError
from course.estimator import Estimator
from course.lab.terminal import QUIET
from course.parts import Clip
from course.train.noise import Noise

SMALL = replace(
    ablation.SETTINGS, rungs=("clip",), shares=(0.02, 0.5), group=50, length=0.005, steps=800
)


def train(estimator: Estimator) -> Path:
    return small_steps(estimator, SMALL.all_shares, SMALL.group, SMALL.length, SMALL.steps)


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("share", "want"), [(0.1, 2.8), (0.05, 4.8), (0.5, 1.2), (0.7, 1.2), (0.9, 1 / 0.9)]
)
def test_the_limit_written_out(share: float, want: float) -> None:
    assert float(limit(f64(share), 0.8, 1.2)) == pytest.approx(want)


def test_steps_stop_where_both_arms_are_silent_and_without_a_baseline_at_the_bound() -> None:
    share = f64(SMALL.all_shares)
    centred = train(ladder.clip)
    relative = 2**0.5 * SMALL.length  # the most that one step changes log ρ
    assert torch.allclose(centred.after, limit(share, 0.8, 1.2), rtol=relative)
    assert torch.allclose(
        train(UNCENTRED).after,
        f64([1.2] * len(share)),
        rtol=relative,
    )
    higher = replace(ladder.clip, surrogate=Clip(0.1, 0.5))
    assert torch.allclose(train(higher).after, limit(share, 0.9, 1.5), rtol=relative)


def test_the_push_stops_exactly_where_the_bad_arm_is_clipped() -> None:
    assert push(0.1, 1.1) == pytest.approx(
        0.1 * 1.1 * 0.9 * 0.89 + 0.9 * (0.89 / 0.9) * 0.1 * 0.11
    )  # both arms push
    assert push(0.1, 2.0) == pytest.approx(0.1 * 0.2 * 0.8)  # the bad one alone
    assert push(0.1, 2.79) > 0
    assert push(0.1, 2.81) == 0


def test_all_facts_hold() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {10}


def test_a_population_gives_exact_expectations() -> None:
    """Each arm once under an `ImportanceSampling` surrogate: ∇J = π(r − J); in the proportions of
    π_old: the policy gradient, again exactly.
    """
    reward, p = f64([[0.3, 1.0, 0.6]]), f64([[0.2, 0.3, 0.5]])
    want = p * (reward - (p * reward).sum())
    for make in (
        every_arm,
        lambda arms, policy: Population(arms, policy, torch.tensor([[2, 3, 5]])),
    ):
        policy = Softmax.of(p)
        bandit = make(Deterministic(reward), policy)
        rollout = bandit.sample(Noise((), dtype=torch.float64))
        ladder.surrogate.objective(
            bandit.policy(rollout), ladder.surrogate.freeze(rollout)
        ).backward()
        assert policy.logits.grad is not None
        assert torch.allclose(policy.logits.grad, want, rtol=1e-12, atol=1e-15)


def test_a_population_refuses_unequal_groups() -> None:
    policy = Softmax(torch.zeros(2, 1, 2, dtype=torch.float64))
    with pytest.raises(CourseError, match="counts"):
        Population(Deterministic(f64([[1.0, 0.0]])), policy, torch.tensor([[[1, 3]], [[2, 3]]]))


@pytest.mark.parametrize(
    "wrong", [{"share": 0.015}, {"shares": (1.0,)}, {"length": 0.0}, {"steps": 10}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CourseError, match="share" if "shares" in wrong else next(iter(wrong))):
        replace(SMALL, **wrong)
