"""Where entropy goes: the identity by finite differences, the trainings, the facts."""

from __future__ import annotations

import math

import pytest
import torch

from bandits.ablations import entropy as ablation
from bandits.ablations.entropy import Settings
from bandits.exact import outcomes
from bandits.theory import entropy as theory
from bandits.theory.entropy import Descent, Task
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.exact import objective
from course.lab.terminal import QUIET
from course.parts import HighEntropy
from tests.helpers import close, f64

LOG_PROB, REWARD = f64([0.6, 0.3, 0.1]).log(), f64([1.0, 0.0, 2.0])


def test_the_policy_gradient_is_that_of_the_objective() -> None:
    theta = LOG_PROB.clone().requires_grad_()
    (want,) = torch.autograd.grad((theta.softmax(0) * REWARD).sum(), theta)
    close(theory.policy_gradient(LOG_PROB, REWARD), want)


def test_the_first_order_by_a_covariance_written_out_and_by_differences() -> None:
    step = f64([0.4, -0.1, 0.7])
    policy = [0.6, 0.3, 0.1]
    mean_log = sum(p * math.log(p) for p in policy)
    mean_step = sum(p * float(x) for p, x in zip(policy, step, strict=True))
    covariance = sum(
        p * (math.log(p) - mean_log) * (float(x) - mean_step)
        for p, x in zip(policy, step, strict=True)
    )
    close(theory.predicted(LOG_PROB, step), -covariance)
    close(theory.slope(LOG_PROB, step), -covariance)
    h = 1e-5
    two_sided = (theory.moved(LOG_PROB, h * step) - theory.moved(LOG_PROB, -h * step)) / (2 * h)
    close(two_sided, -covariance, rtol=1e-8)
    # a constant moves no policy
    close(theory.predicted(LOG_PROB, torch.ones(3).double()), 0.0, atol=1e-14)


def test_the_price_is_the_entropy_that_a_small_step_costs() -> None:
    environment, log_prob = theory.example()
    step = 1e-5 * theory.steps_of(["group_std"], 4)["group_std"]
    after = (log_prob + step).log_softmax(-1)
    lost = -float(theory.moved(log_prob, step))
    gained = float((after.exp() - log_prob.exp()) @ environment.mean[0])
    assert theory.price(ladder.group_std, 4) == pytest.approx(lost / gained, rel=1e-4)


@pytest.mark.parametrize("odds", [0.5, 3.0])
def test_the_pull_of_a_bonus_by_hand(odds: float) -> None:
    """(G−1)/G · p(1−p) from the rewards; −τ p (log p + H) from the bonus."""
    p = odds / (1 + odds)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    want = 3 / 4 * p * (1 - p) - 0.2 * p * (math.log(p) + entropy)
    assert theory.bonus_pull(0.2, 4, odds) == pytest.approx(want, rel=1e-12)


def test_entropy_at_equal_reward_is_interpolated() -> None:
    """The first crossing counts; who starts above has its first entropy; who never does, none."""
    reward = f64([[[0.1, 0.9, 0.1]], [[0.5, 0.7, 0.2]], [[0.4, 0.9, 0.3]], [[0.9, 0.9, 0.4]]])
    entropy = f64([[[2.0, 1.0, 3.0]], [[1.0, 1.0, 3.0]], [[0.8, 1.0, 3.0]], [[0.2, 1.0, 3.0]]])
    path = Descent(reward, entropy, torch.zeros(1, 3, dtype=torch.bool))
    found = theory.at_reward(path, 0.3)
    close(found[0], [1.5, 1.0, 3.0])
    assert math.isnan(theory.at_reward(path, 0.5)[0, 2])


def test_the_law_is_found_where_it_holds() -> None:
    left = f64([0.1, 0.7, 1.3, 1.9])
    a, b, error = theory.exponential_law(1.2 - 0.15 * left.exp(), left)
    assert (a, b) == pytest.approx((0.15, 1.2), rel=1e-9)
    assert error < 1e-12


def test_trainings_are_paired_and_start_alike() -> None:
    """Run 3 alone is run 3 among others, at every rate; no arm changes the start."""
    task = Task(runs=4, rollouts=3, prompts=4)
    together = theory.train(ladder.group_mean, task, 2, [8.0, 64.0], range(4))
    alone = theory.train(ladder.group_mean, task, 2, [64.0], range(3, 4))
    close(alone.reward[:, 0, 0], together.reward[:, 1, 3], rtol=1e-6)
    other = theory.train(theory.parts(task)["entropy bonus"], task, 2, [8.0], range(4))
    close(other.entropy[0, 0], together.entropy[0, 0], rtol=1e-6)
    assert not torch.equal(other.entropy[-1, 0], together.entropy[-1, 0])


def test_a_mask_that_keeps_everything_changes_nothing() -> None:
    task = Task(runs=3, rollouts=3, prompts=4)
    whole = replace(ladder.group_std, sample_filter=HighEntropy(1.0))
    mine, theirs = (
        theory.train(each, task, 2, [32.0], range(3)) for each in (whole, ladder.group_std)
    )
    assert torch.equal(mine.reward, theirs.reward)


def test_the_example_is_what_its_numbers_say() -> None:
    environment, log_prob = theory.example()
    close(log_prob.exp().sum(), 1.0)
    assert objective(outcomes(environment, log_prob.unsqueeze(0))) == pytest.approx(0.62)


def test_the_exact_facts_hold_and_the_paired_ones_are_counted() -> None:
    """Of a short run; what the full one found stands in figures/entropy.json."""
    result = ablation.run(Settings(runs=3, rollouts=12, prompts=4), QUIET)
    assert {fact.number for fact in result.facts} == {27}
    exact = [fact for fact in result.facts if fact.runs is None and "law" not in fact.claim]
    assert all(fact.holds for fact in exact if "along a training" not in fact.claim)
    assert len(exact) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 1},
        {"right": 10},
        {"k": 9},
        {"spread": 0.0},
        {"bonus": 0.0},
        {"share": 1.0},
        {"level": 1.0},
        {"rate": 3.0},
        {"learning_rates": (2.0, 1.0)},
        {"powers": 2},
        {"bonuses": (0.5, 0.2)},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
