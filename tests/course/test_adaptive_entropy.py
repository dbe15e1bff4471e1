"""An entropy bonus that follows the entropy: its rule by hand, per run, and through a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bandits.environments import Environment
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.learner import Learner
from course.parts import AdaptiveEntropy
from course.train.noise import Noise
from course.train.optim import SGD
from tests.helpers import close, f64

RULE = AdaptiveEntropy(target=0.9, initial=0.1, delta=0.04, least=0.02, most=0.2)
STEPS = 14


def learner(rule: AdaptiveEntropy | float = RULE, **settings: int) -> Learner:
    """Two runs with learning rates of their own; three prompts of four arms."""
    noise = Noise((2,), 3)
    environment = Environment(torch.eye(4)[:3])
    bandit = Bandit(environment, Softmax.uniform(noise, 3, 4), 6)
    estimator = replace(ladder.group_mean, entropy_coef=rule)
    return Learner(bandit, estimator, SGD(torch.tensor([1.0, 9.0])), noise, **settings)


def test_the_rule_by_hand() -> None:
    """Up where H ≤ target, down elsewhere, within the bounds; the bonus only where H ≤ target."""
    c, entropy = f64([0.1, 0.1, 0.19, 0.03]), f64([0.9, 0.91, 0.2, 2.0])
    close(RULE.update(c, entropy), [0.14, 0.06, 0.2, 0.02])
    close(RULE.applied(c, entropy), [0.1, 0.0, 0.19, 0.0])


@pytest.mark.parametrize("minibatches", [1, 3])
def test_every_rollout_has_the_coefficient_that_the_entropies_before_gave(minibatches: int) -> None:
    """With one update per rollout the logged entropy is that of the policy that sampled."""
    trained = learner(minibatches=minibatches)
    c = [0.1, 0.1]
    for _ in range(STEPS):
        logits = trained.problem.parameters[0].detach().clone()
        policy = logits.softmax(-1)
        entropy = -(policy * policy.log()).sum(-1).mean(-1)  # as many tokens for each prompt
        trained.step(log=True)
        row = {name: trained.history[name][-1] for name in ("entropy_coef",)}
        for run in range(2):
            low = float(entropy[run]) <= 0.9
            close(row["entropy_coef"][run], c[run] if low else 0.0, atol=1e-6)
            c[run] = min(max(c[run] + (0.04 if low else -0.04), 0.02), 0.2)
    assert trained.entropy_coef is not None
    close(trained.entropy_coef, c, atol=1e-6)
    applied = trained.history["entropy_coef"]
    assert bool((applied == 0).any())
    assert bool((applied > 0.1).any())


def test_a_rollouts_bonus_is_that_of_its_coefficient() -> None:
    """Each run with its own: the update is the one of a fixed coefficient of that size."""
    rule = AdaptiveEntropy(target=9.0, initial=0.2)
    adaptive, fixed, none = (learner(each) for each in (rule, 0.2, 0.0))
    for one in (adaptive, fixed, none):
        one.step()
        one.step()
    # the second rollout has .205
    first, second, third = (one.problem.parameters[0].detach() for one in (adaptive, fixed, none))
    assert float((first - second).abs().max()) < 0.1 * float((first - third).abs().max())
    assert not torch.equal(first, second)
    silent = learner(AdaptiveEntropy(target=1e-6, initial=0.2))
    silent.step()
    silent.step()
    close(silent.problem.parameters[0].detach(), third, rtol=1e-6, atol=1e-7)


def test_a_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, first, then = learner(), learner(), learner()
    whole.train(STEPS)
    first.train(STEPS // 2)
    first.save(tmp_path / "half")
    then.load(tmp_path / "half")
    then.train(STEPS - STEPS // 2)
    assert torch.equal(whole.problem.parameters[0], then.problem.parameters[0])
    assert whole.entropy_coef is not None
    assert then.entropy_coef is not None
    assert torch.equal(whole.entropy_coef, then.entropy_coef)


def test_it_holds_the_entropy_where_a_training_without_it_loses_it() -> None:
    held = learner(AdaptiveEntropy(target=0.6, delta=0.05))
    free = learner(0.0)
    for one in (held, free):
        one.train(300)
    assert float(held.history["entropy"][-1].min()) > 0.3
    assert float(free.history["entropy"][-1].max()) < 0.15


def test_it_says_what_it_is() -> None:
    estimator = replace(ladder.group_mean, entropy_coef=RULE)
    assert "+ α·H" in estimator.text()
    assert r"\alpha_{\text{adaptive}}" in estimator.latex()
    assert "policy.log_dist" in estimator.needs


@pytest.mark.parametrize(
    "change",
    [
        {"target": 0.0},
        {"delta": 0.0},
        {"least": -1.0},
        {"most": 0.0},
        {"initial": 2.0},
        {"initial": "0.1"},
        {"target": True},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=rf"AdaptiveEntropy\.{next(iter(change))}"):
        AdaptiveEntropy(**change)  # type: ignore[arg-type]
