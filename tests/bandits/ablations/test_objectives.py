"""What each scale maximises: formulas by enumeration, the facts, the settings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bandits.ablations import objectives as ablation
from bandits.ablations.objectives import Settings
from bandits.theory import objectives as theory
from bandits.theory.difficulty import right_or_wrong, weight
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.lab.terminal import QUIET
from course.parts import PassKTraining
from tests.helpers import close, f64

REWARDS, POLICY = (0.0, 1.0, 1.0, 3.0), (0.4, 0.3, 0.2, 0.1)


@pytest.mark.parametrize(("group", "k"), [(4, 2), (5, 3), (4, 4)])
def test_pass_k_trainings_curve_by_every_sequence_of_answers(group: int, k: int) -> None:
    """Every right or wrong, every subset of k: mean and std of their best, per answer."""
    p, total = 0.3, 0.0
    for right in itertools.product((0.0, 1.0), repeat=group):
        subsets = list(itertools.combinations(range(group), k))
        best = [max(right[i] for i in chosen) for chosen in subsets]
        mean = sum(best) / len(best)
        std = math.sqrt(mean * (1 - mean))
        if std == 0:
            continue
        for i in range(group):
            own = [b for b, chosen in zip(best, subsets, strict=True) if i in chosen]
            push = (sum(own) / len(own) - mean) / std / group
            total += (
                math.prod(p if x else 1 - p for x in right)
                * push
                * (1 / p if right[i] else -1 / (1 - p))
            )
    close(theory.pass_k_training_weight(f64(p), group, k), total)
    found = weight(replace(ladder.leader, scale=PassKTraining(k)), right_or_wrong(p), group)
    close(found, total, atol=1e-12)


def test_the_likelihood_and_the_tries_are_derivatives() -> None:
    p = f64([0.05, 0.4, 0.95]).requires_grad_()
    (slope,) = torch.autograd.grad((1 - (1 - p) ** 5).sum(), p)
    close(theory.pass_at_k_weight(p, 5), slope)
    terms = sum(theory.pass_at_k_weight(p, k) / k for k in range(1, 8))
    close(theory.likelihood_weight(p, 7), terms)
    close(theory.likelihood_weight(p, 2000), 1 / p)  # ∇log p


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_gradient_of_the_best_of_k_by_every_tuple(k: int) -> None:
    theta = f64(POLICY).log().requires_grad_()
    chance, total = theta.softmax(0), f64(0.0)
    for chosen in itertools.product(range(4), repeat=k):
        total = total + chance[list(chosen)].prod() * max(REWARDS[i] for i in chosen)
    close(theory.expected_best(REWARDS, POLICY, k), torch.autograd.grad(total, theta)[0])


def test_the_objective_is_the_integral_as_a_share() -> None:
    p = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.float64)
    found = theory.objective_of(theory.pass_at_k_weight(p, 4), p)
    close(found, 1 - (1 - p) ** 4, atol=1e-3)


def test_right_and_wrong_answers_alone_add_up_to_both() -> None:
    listed = right_or_wrong(0.2)
    both = weight(ladder.plus_minus, listed, 3)
    close(weight(theory.PSR, listed, 3) + weight(theory.NSR, listed, 3), both)
    # one sample: ½ of a right answer's score of norm √2 (1−p), with probability p
    close(theory.second_moment(theory.PSR, 0.2), 0.2 * 0.25 * 2 * 0.8**2)
    close(theory.second_moment(theory.NSR, 0.2), 0.8 * 0.25 * 2 * 0.2**2)


FAILED = [
    "MaxRL leans more to hard prompts than Pass@k training: w(.05)/w(.5) (G = 8, k = 4)",
]


def test_which_facts_hold_and_which_do_not() -> None:
    """Pass@k training has hardly any weight in the middle, where four tries nearly always do."""
    result = ablation.run(Settings(points=3), QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == FAILED
    assert {fact.number for fact in result.facts} == {25, 26}
    assert len(result.facts) == 25


@pytest.mark.parametrize(
    "change",
    [
        {"groups": (1, 8)},
        {"groups": (8, 4)},
        {"group": 5},
        {"k": 5},
        {"k": 1},
        {"points": 2},
        {"rewards": (1.0,)},
        {"policy": (0.5, 0.5)},
        {"policy": (0.4, 0.3, 0.3, 0.1)},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
