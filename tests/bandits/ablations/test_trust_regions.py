"""Trust regions: slopes, silence and limits by hand and by the objective itself; the facts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bandits.ablations import trust_regions as ablation
from bandits.ablations.trust_regions import RUNGS, Settings
from bandits.environments import Deterministic
from bandits.policies import Softmax
from bandits.population import Population
from bandits.theory import clip_unbounded
from bandits.theory import trust_regions as theory
from course import ladder
from course.errors import CourseError
from course.estimator import Estimator
from course.lab.terminal import QUIET
from course.parts import Clip, MirrorDescent
from tests.helpers import close, f64

SMALL = Settings(
    shares=(0.1, 0.5),
    others=(1, 9),
    counts=20,
    length=0.02,
    steps=300,
    epochs=(1, 3),
    learning_rates=(16.0, 64.0),
    runs=3,
    rollouts=4,
    prompts=3,
    features=9,
    arms=4,
    group=4,
)
BOUNDED = ("clip", "gmpo", "dppo_tv", "dppo_kl")


def on_base(name: str, beta: float = 0.3) -> Estimator:
    return theory.on_one_base(name, beta)


@pytest.mark.parametrize("name", [name for name in RUNGS if name != "m2po"])
@pytest.mark.parametrize("others", [1, 3])
def test_the_push_is_the_gradient_of_the_objective_on_the_rollout(name: str, others: int) -> None:
    """The learner's own objective, at a policy whose other arms lost in proportion."""
    share, counts = 0.1, 30
    each = (counts - 3) // others
    start = torch.tensor([[3, *[each] * others]])
    arms = Deterministic(f64([[1.0] + [0.0] * others]))
    for ratio in (1.0, 1.15, 2.0, 4.0, 7.0):
        now = f64([[share * ratio] + [(1 - share * ratio) / others] * others])
        policy = Softmax.of(now)
        bandit = Population(arms, policy, start, reference="start")
        frozen = on_base(name).freeze(bandit.rollout)
        objective = on_base(name).objective(bandit.policy(bandit.rollout), frozen).sum()
        [gradient] = torch.autograd.grad(objective, policy.parameters)
        found = theory.push(on_base(name).surrogate, share, f64([ratio]), others)
        close(found[0], gradient.flatten()[0], rtol=1e-10)


def test_the_clips_push_is_that_of_the_microscope() -> None:
    for ratio in (1.1, 1.5, 2.5, 2.9):
        found = theory.push(Clip(0.2), 0.1, f64([ratio]))
        close(found[0], clip_unbounded.push(0.1, ratio))


def test_the_binary_kl_by_hand() -> None:
    assert theory.binary_kl(0.3, 0.3) == 0.0
    want = 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    assert theory.binary_kl(0.3, 0.6) == pytest.approx(want)
    assert theory.binary_kl(0.3, 0.0) == theory.binary_kl(0.3, 1.0) == math.inf
    assert theory.binary_kl(0.0, 0.5) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("old", [0.02, 0.1, 0.4, 0.9])
def test_a_token_is_silent_just_beyond_its_bound_and_not_just_before(name: str, old: float) -> None:
    estimator = on_base(name)
    bounds = theory.silent(estimator, old)
    assert bounds is not None
    for bound, advantage, out in ((bounds[1], 1.0, 1 + 1e-9), (bounds[0], -1.0, 1 - 1e-9)):
        if not 0 < bound < 1 / old - 1e-6:
            continue
        for factor, silent in ((out, True), (1 / out, False)):
            ratio = f64([bound * factor])
            found = theory.slope(estimator.surrogate, ratio, f64([old]), advantage)
            assert bool(found == 0) == silent


def test_where_small_steps_end_written_out() -> None:
    """Two arms and ten; with δ = .15 nine arms of .1 never fall silent."""
    assert theory.end(on_base("clip"), 0.1) == pytest.approx(2.8)
    assert theory.end(on_base("clip"), 0.5) == pytest.approx(1.2)
    assert theory.end(on_base("clip"), 0.1, 9) == pytest.approx(2.8)
    assert theory.end(on_base("gmpo"), 0.1) == pytest.approx((1 - 0.9 * math.exp(-0.4)) / 0.1)
    assert theory.end(on_base("m2po"), 0.1) == pytest.approx((1 - 0.9 * math.exp(-0.2)) / 0.1)
    for others, want in ((1, 2.5), (2, 4.0), (3, 5.5), (5, 8.5), (6, 10.0), (9, 10.0)):
        assert theory.end(on_base("dppo_tv"), 0.1, others) == pytest.approx(want)
    reached = theory.end(on_base("dppo_kl"), 0.1)
    assert theory.binary_kl(0.1, 0.1 * reached) == pytest.approx(0.05)
    for name in ("surrogate", "sapo", "vespo", "cispo", "tapered"):
        assert theory.end(on_base(name), 0.1) == pytest.approx(10.0)
    with pytest.raises(CourseError, match=r"share: got 0\.0"):
        theory.end(on_base("clip"), 0.0)


@pytest.mark.parametrize("beta", [0.2, 0.3, 2.0])
def test_the_spring_ends_where_its_push_changes_its_sign(beta: float) -> None:
    spring = MirrorDescent(beta)
    for share in (0.05, 0.3, 0.7):
        rest = theory.spring_end(beta, share)
        before, after = theory.push(spring, share, f64([rest * (1 - 1e-6), rest * (1 + 1e-6)]))
        assert before > 0 > after
    assert theory.spring_end(0.3, 0.1) == pytest.approx(4.65, abs=0.005)


def test_more_arms_end_where_each_of_them_is_silent() -> None:
    """DPPO-TV with two other arms: each gives .15, so ρ₁ ends at 4; the clip's at 2.8 as before."""
    for name, want in (("dppo_tv", 4.0), ("clip", 2.8)):
        path = clip_unbounded.small_steps(on_base(name), (0.1,), 20, 0.01, 400, others=2)
        assert path.after[0] == pytest.approx(want, rel=2**0.5 * 0.01)
    with pytest.raises(CourseError, match=r"others: got 4; allowed is a divisor"):
        clip_unbounded.small_steps(on_base("clip"), (0.1,), 20, 0.01, 10, others=4)


def test_all_arms_share_one_base() -> None:
    for name, estimator in SMALL.estimators.items():
        assert {*estimator.diff(ladder.group_mean)} <= {"surrogate", "sample_filter"}, name
    assert SMALL.estimators["mirror_descent"].surrogate == MirrorDescent(0.3)


def test_the_exact_facts_hold_in_a_small_setting() -> None:
    """Also the small steps, of which a coarse length loses nothing but digits."""
    result = ablation.run(SMALL, QUIET)
    exact = [fact for fact in result.facts if fact.runs is None or fact.standard_error == 0]
    assert [fact.claim for fact in exact if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {10, 11}
    assert len(exact) >= 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rungs", ("clip",)),
        ("share", 0.15),
        ("others", (2, 3)),
        ("beta", 0.0),
        ("length", 0.5),
        ("epochs", (2, 4)),
    ],
)
def test_wrong_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=rf"^{field}: got "):
        dataclasses.replace(SMALL, **{field: value})  # type: ignore[arg-type]
