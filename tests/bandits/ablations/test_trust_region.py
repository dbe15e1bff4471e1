"""TRPO, clip and plain ascent: the bound per run, the closed-form step of one softmax, a rung of
one's own, refusals.
"""

from __future__ import annotations

import pytest
import torch

from bandits.ablations import trust_region as ablation
from bandits.ablations.trust_region import Settings, train
from bandits.environments import Deterministic
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET
from course.learner import Learner
from course.parts.kl import exact_kl
from course.train.noise import Noise
from course.train.trust_region import TRPO

SMALL = Settings(
    bounds=(0.01, 0.3),
    learning_rates=(4.0, 64.0),
    epochs=3,
    runs=6,
    rollouts=8,
    prompts=4,
    features=12,
)


def test_the_exact_facts_hold_on_a_small_setting() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.holds for fact in result.facts[:3]] == [True] * 3
    shares = sum(result.array("shares", name) for name in ("full", "shortened", "none"))
    assert shares == pytest.approx(1.0)


def test_every_run_keeps_the_bound_of_its_own() -> None:
    climb = train(ladder.surrogate, (0.001, 0.03, 1.0), True, SMALL, QUIET, "TRPO")
    largest = climb.moved.amax((0, 2))
    assert bool(
        (largest <= torch.tensor([0.001, 0.03, 1.0], dtype=torch.float64) * (1 + 1e-9)).all()
    )
    assert bool(
        (largest > torch.tensor([0.0005, 0.015, 0.5], dtype=torch.float64)).all()
    )  # and uses it


def test_the_step_is_the_natural_gradient_of_a_softmax_in_closed_form() -> None:
    """F⁺g = g/π less its mean, at the length √(2δ / gᵀF⁺g), halved until the bound holds."""
    noise, bound = Noise((5,), 3, dtype=torch.float64), 0.02
    environment = Deterministic(torch.tensor([[0.0, 0.3, 1.0]], dtype=torch.float64))
    policy = Softmax(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().expand(5, 1, 3))
    bandit = Bandit(environment, policy, 16)
    before = policy.log_probs().detach()[:, 0]
    rollout = bandit.sample(Noise((5,), 3, dtype=torch.float64))
    gain = ladder.surrogate.objective(bandit.policy(rollout), ladder.surrogate.freeze(rollout))
    g = torch.autograd.grad(gain.sum(), policy.parameters)[0][:, 0]
    learner = Learner(bandit, ladder.surrogate, TRPO(bound, damping=0.0), noise)
    fraction = learner.train(1)["step_fraction"][0]
    natural = g / before.exp()
    natural = natural - natural.mean(-1, keepdim=True)
    length = (2 * bound / (g * natural).sum(-1)).sqrt()
    expected = torch.log_softmax(before + (fraction * length).unsqueeze(-1) * natural, -1)
    torch.testing.assert_close(policy.log_probs()[:, 0], expected, rtol=1e-7, atol=1e-9)
    assert bool((exact_kl(before, expected) <= bound).all())


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), torch.tensor([0.1, 0.0])])
def test_a_bound_that_is_none_is_refused(bound: float | torch.Tensor) -> None:
    with pytest.raises(CourseError, match=r"TRPO\.max_kl"):
        TRPO(bound)


def test_other_rungs_stand_beside_trpo() -> None:
    settings = Settings(
        rungs=("grpo",),
        bounds=(0.1,),
        learning_rates=(4.0,),
        epochs=2,
        runs=2,
        rollouts=3,
        prompts=2,
        features=6,
    )
    result = ablation.run(settings, QUIET)
    assert set(result.series["methods"]) == {"trpo", "grpo"}


@pytest.mark.parametrize(
    "wrong",
    [{"bounds": (0.1, 0.01)}, {"learning_rates": (0.0,)}, {"epochs": 0}, {"runs": 1}, {"group": 1}],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        Settings(**wrong)
