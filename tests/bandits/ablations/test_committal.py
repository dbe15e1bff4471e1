"""Committal baselines: the natural step, the baseline of least variance, and the chance of a pull
sequence by listing all.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from bandits.ablations import committal
from bandits.natural import SoftmaxNaturalGradient, natural_direction
from bandits.policies import log_softmax
from bandits.theory import committal as theory
from bandits.theory.committal import ThreeArms
from course.errors import CourseError
from course.lab.terminal import QUIET
from course.train.trust_region import NaturalGradient

SMALL = replace(committal.SETTINGS, lrs=(0.025, 0.4), steps=60, runs=200, shown=3, longer=2)
ARMS = SMALL


def closed_form_path(
    arms: ThreeArms, kind: str, lr: float, pulled: tuple[int, ...]
) -> tuple[float, torch.Tensor]:
    """Probability of pulling exactly `pulled`, and the policy afterwards, by the recursion θ_a +=
    lr·(r − b)/π(a).
    """
    theta = arms.logits.clone()
    reward = arms.reward
    chance = 1.0
    for arm in pulled:
        log_p = torch.log_softmax(theta, 0)
        p, inverse = log_p.exp(), (log_p.min() - log_p).exp()  # 1/π over the largest 1/π
        best = (reward * inverse).sum() / inverse.sum()
        shift = {"below": -arms.shift, "above": arms.shift}.get(kind, 0.0)
        baseline = {"value": p @ reward, "fixed": reward.max() + arms.shift}.get(kind, best + shift)
        chance *= float(p[arm])
        if chance == 0:
            break
        theta[arm] += lr * (reward[arm] - baseline) / p[arm]
    return chance, torch.softmax(theta, 0)


def test_a_few_pulls_agree_with_every_sequence_of_pulls_listed() -> None:
    """Exact mean and standard deviation of π(best) after 4 pulls, over all 81 sequences, against
    4,000 simulated runs.
    """
    pulls, runs, lr = 4, 4000, 0.4
    kinds = tuple(theory.BASELINES)
    bandit = theory.problem(ARMS, kinds, ARMS.logits.expand(len(kinds), runs, 3))
    theory.learner(bandit, lr, 1).train(pulls)
    simulated = bandit.arm_policy.log_probs().detach()[..., 0, 0].exp()
    for i, kind in enumerate(kinds):
        listed = [
            closed_form_path(ARMS, kind, lr, pulled)
            for pulled in itertools.product(range(3), repeat=pulls)
        ]
        weight = torch.tensor([chance for chance, _ in listed], dtype=torch.float64)
        value = torch.stack([policy[0] for _, policy in listed])
        assert float(weight.sum()) == pytest.approx(1.0)
        mean = weight @ value
        error = (weight @ (value - mean) ** 2).sqrt() / runs**0.5
        assert abs(simulated[i].mean() - mean) < 4.5 * error, kind
        # and every simulated policy is one of the listed ones
        assert float((simulated[i].unsqueeze(-1) - value).abs().amin(-1).max()) < 1e-10, kind


@pytest.mark.parametrize("logits", [(0.0, 3.0, 5.0), (0.0, 0.0, 0.0), (2.0, -1.0, 0.5)])
def test_one_natural_step_in_closed_form_by_conjugate_gradient_and_by_hand(
    logits: tuple[float, float, float],
) -> None:
    arms = ThreeArms(start=logits)
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
    for arm, b in itertools.product(range(3), (-0.3, 0.5, 1.4)):
        unit = torch.eye(3, dtype=torch.float64)[arm]
        by_hand = (arms.rewards[arm] - b) / p[arm] * (unit - 1 / 3)
        closed = theory.one_step(arms, SoftmaxNaturalGradient(1.0), arm, b)
        by_conjugate_gradient = theory.one_step(arms, NaturalGradient(1.0, damping=0.0), arm, b)
        assert torch.allclose(closed, by_hand, rtol=1e-10, atol=1e-12)
        assert torch.allclose(
            by_conjugate_gradient - by_conjugate_gradient.mean(), by_hand, rtol=1e-8, atol=1e-10
        )


def test_the_least_variance_baseline_survives_probabilities_that_underflow() -> None:
    reward = torch.tensor(SMALL.rewards, dtype=torch.float64)
    log_prob = log_softmax(torch.tensor([-1e4, 0.0, -2e4], dtype=torch.float64))  # 1/π overflows
    assert float(theory.least_variance_baseline(log_prob, reward)) == 0.0  # the rarest arm's reward
    gradient = torch.tensor([0.0, 1e-3, -1e-3], dtype=torch.float64)
    assert bool(torch.isfinite(natural_direction(gradient, log_prob)).all())


def test_the_vertex_of_three_variances_is_the_baseline_written_out() -> None:
    p = torch.softmax(torch.tensor(ARMS.start, dtype=torch.float64), 0)
    reward = torch.tensor(ARMS.rewards, dtype=torch.float64)
    assert theory.vertex(ARMS) == pytest.approx(float((reward / p).sum() / (1 / p).sum()))


def test_training_notes_the_policies_from_the_start_to_the_end() -> None:
    logits, updates, paths = theory.train(ARMS, (0.025, 0.4), 5, 30, 0, QUIET, (1, 2))
    assert (updates[0], updates[-1]) == (0, 30)
    assert paths.shape == (len(theory.BASELINES), 2, len(updates), 3)
    start = torch.softmax(torch.tensor(ARMS.start, dtype=torch.float64), 0)
    torch.testing.assert_close(paths[:, :, 0], start.expand(len(theory.BASELINES), 2, 3))
    torch.testing.assert_close(paths[:, :, -1], logits[:, 1, :2].softmax(-1))
    best = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert theory.off_best(best).tolist() == [False, True]  # .58 and a third


@pytest.mark.parametrize("shift", [0.25, 0.5, 2.0])
def test_baselines_equally_far_below_and_above_have_equal_variance(shift: float) -> None:
    reward = torch.tensor(SMALL.rewards, dtype=torch.float64)
    best = float(
        theory.least_variance_baseline(
            log_softmax(torch.tensor(SMALL.start, dtype=torch.float64)), reward
        )
    )
    low, middle, high = (theory.measured_variance(ARMS, best + s) for s in (-shift, 0.0, shift))
    assert low == pytest.approx(high, rel=1e-10)
    assert middle < low


def test_facts_that_need_no_long_run_hold() -> None:
    result = committal.run(SMALL, QUIET)
    sure = [
        fact for fact in result.facts if fact.standard_error == 0 and "every run" not in fact.claim
    ]
    assert len(sure) >= 6
    assert [fact.claim for fact in sure if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {6}
    assert result.array("paths", "below").shape == (3, len(result.array("updates")), 2)


@pytest.mark.parametrize(
    "wrong",
    [{"rewards": (0.7, 1.0, 0.0)}, {"lr": 0.0}, {"runs": 1}, {"shown": 500}, {"start": (0.0, 1.0)}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        replace(SMALL, **wrong)
