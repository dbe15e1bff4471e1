"""The surrogate's identity and effective samples: sums written out, tables of logits against
autograd, sampled groups.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bandits.ablations import effective_samples as ablation
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import effective_samples as theory
from bandits.theory.effective_samples import Sums
from course import ladder
from course.errors import CourseError
from course.exact import gradient, objective
from course.lab.terminal import QUIET
from course.parts import Constant

SMALL = replace(ablation.SETTINGS, group=4, points=4)
TASK = Sums()


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def any_policy(task: Sums, seed: int) -> torch.Tensor:
    """log π over answers of a random table."""
    count = task.words**task.tokens
    return torch.log_softmax(
        torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), 0
    )


@pytest.mark.parametrize(("tokens", "words"), [(2, 3), (3, 2), (3, 3), (4, 2)])
def test_tables_reproduce_any_policy_over_answers(tokens: int, words: int) -> None:
    task = Sums(tokens, words)
    policy = any_policy(task, 1)
    logits = theory.logits_of(policy, task)
    assert logits.shape == (sum(words**t for t in range(tokens)), words)
    assert torch.allclose(theory.token_log_probs(logits, task).sum(-1), policy, atol=1e-12)


def test_listed_gradient_is_the_derivative_of_the_expected_reward() -> None:
    now, old = any_policy(TASK, 2), any_policy(TASK, 3)
    listed = theory.sequences(TASK, now, old)
    logits = theory.logits_of(now, TASK).requires_grad_()
    value = (theory.token_log_probs(logits, TASK).sum(-1).exp() * theory.answers(TASK)[1]).sum()
    [derivative] = torch.autograd.grad(value, logits)
    assert objective(listed) == pytest.approx(value.item())
    assert torch.allclose(gradient(listed), derivative.flatten(), atol=1e-12)


def test_one_token_moments_written_out() -> None:
    """E and spread of ρ(r − J) on B3 for a π' that is on no path, by summing over arms
    and rewards.
    """
    old, now, mean = f64(B3_POLICY), f64((0.1, 0.25, 0.65)), f64(B3_MEANS)
    before = float(old @ mean)
    estimator = replace(ladder.surrogate, baseline=Constant(before))
    listed = theory.bernoulli_arms(now.log(), old.log())
    found = theory.objective_moments(estimator, listed, 5)
    ratio = now / old
    first = float((old * ratio * (mean - before)).sum())
    square = float((old * ratio**2 * (mean * (1 - before) ** 2 + (1 - mean) * before**2)).sum())
    assert first == pytest.approx(float(now @ mean) - before)
    assert found == pytest.approx((first, ((square - first**2) / 5) ** 0.5))
    assert theory.ratio_spread(listed, 5) == pytest.approx(found[1])


def test_effective_samples_and_distance_written_out() -> None:
    old, now = f64(B3_POLICY), f64((0.1, 0.25, 0.65))
    listed = theory.bernoulli_arms(now.log(), old.log())
    assert theory.second_moment(listed) == pytest.approx(
        0.1**2 / 0.5 + 0.25**2 / 0.3 + 0.65**2 / 0.2
    )
    assert theory.distance(listed) == pytest.approx(float((now * (now / old).log()).sum()))


def test_the_second_moment_of_a_tilted_policy_written_out() -> None:
    """λ = log 2 on rewards 0, 1 and 2 doubles and quadruples: Z(λ) = 1.9, Z(2λ) = 4.9."""
    log_prob, reward, strength = f64((0.5, 0.3, 0.2)).log(), f64((0, 1, 2)), math.log(2)
    want = (0.5 + 0.3 * 4 + 0.2 * 16) / (0.5 + 0.3 * 2 + 0.2 * 4) ** 2
    assert theory.tilted_moment(log_prob, reward, strength) == pytest.approx(want)


def test_token_ratios_of_two_tokens_written_out() -> None:
    """Two coins, ⅔ for a 0, right if they differ: the tilt makes both right answers twice as
    likely, so that π' = (4, 4, 4, 1)/13 against π = (4, 2, 2, 1)/9.
    """
    found = theory.by_token_and_by_answer(Sums(2, 2), math.log(2))
    gain = 8 / 13 - 4 / 9
    first, second = (8 / 13) / (2 / 3), (5 / 13) / (1 / 3)  # ρ of a first token 0, and 1
    # second tokens: after a 0 both have ½, after a 1 they have ⅘ and ⅕
    ratio = {"00": first + 3 / 4, "01": first + 3 / 2, "10": second + 6 / 5, "11": second + 3 / 5}
    chance, right = {"00": 4, "01": 2, "10": 2, "11": 1}, {"01", "10"}
    surrogate = sum(chance[x] / 9 * ratio[x] * ((x in right) - 4 / 9) for x in chance)
    assert found["gain"] == pytest.approx(gain)
    assert found["whole"] == pytest.approx(gain)
    assert found["token"] == pytest.approx(surrogate)
    assert found["kl"] == pytest.approx(math.log(9 / 13) + 8 / 13 * math.log(2))
    assert found["whole_bias"] == pytest.approx(0, abs=1e-12)


def test_effective_samples_are_what_weighted_samples_are_worth() -> None:
    """Kish's (Σρ)²/Σρ² of many real samples, against G/E[ρ²]."""
    old, now = f64(B3_POLICY), f64((0.1, 0.25, 0.65))
    arm = torch.multinomial(
        old, 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    ratio = (now / old)[arm]
    assert float(ratio.sum() ** 2 / (ratio**2).sum()) / len(arm) == pytest.approx(
        1 / theory.second_moment(theory.bernoulli_arms(now.log(), old.log())), rel=0.01
    )


@pytest.mark.parametrize(("tokens", "words"), [(2, 3), (3, 3)])
def test_all_facts_hold(tokens: int, words: int) -> None:
    result = ablation.run(replace(SMALL, tokens=tokens, words=words), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == []
    assert {fact.number for fact in result.facts} == {8}


@pytest.mark.parametrize(
    "wrong", [{"rungs": ()}, {"group": 1}, {"tokens": 1}, {"words": 9}, {"farthest": 0.0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        replace(SMALL, **wrong)
