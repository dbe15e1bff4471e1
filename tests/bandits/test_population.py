"""The population of a bandit with arms of different length, against the microscope and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import outcomes
from bandits.policies import Softmax
from bandits.population import Population, every_arm
from course import ladder, replace
from course.estimator import Estimator
from course.exact import gradient, microscope
from course.parts import Constant, ConstantLength, SequenceMean, SequenceSum, TokenMean
from tests.helpers import close, f64

MEANS, LENGTHS = f64([[0.2, 0.5, 0.8]]), torch.tensor([1, 2, 4])
COUNTS = torch.tensor([[2, 3, 5]])  # π_old = (.2, .3, .5)
ARMS = Bernoulli(MEANS, lengths=LENGTHS)
POLICY = f64([[0.5, 0.3, 0.2]]).log()
REFERENCE = f64([[0.25, 0.25, 0.5]]).log()
LISTED = outcomes(ARMS, POLICY, old=(COUNTS.double() / 10).log(), reference=REFERENCE)


def push(estimator: Estimator, bandit: Population) -> Tensor:
    """[K] the gradient of the estimator's objective on the whole population, by logit."""
    rollout = bandit.rollout
    objective = estimator.objective(bandit.policy(rollout), estimator.freeze(rollout))
    return torch.autograd.grad(objective.sum(), bandit.parameters)[0][0]


@pytest.mark.parametrize("aggregation", [SequenceSum(), SequenceMean(), ConstantLength(3)])
@pytest.mark.parametrize("rung", ["reinforce", "surrogate", "sapo", "grpo"])
def test_what_compares_no_samples_is_what_the_microscope_expects(
    rung: str, aggregation: SequenceSum
) -> None:
    """Off policy, with a constant baseline: every sample's push is its own, so that an expectation
    over batches is the mean over the population. Rewards of 0 and 1 count by their mean, since both
    baselines and these surrogates are linear in A of one sign.
    """
    estimator = replace(ladder.get(rung).estimator, baseline=Constant(-1.0))
    estimator = replace(replace(estimator, scale=ladder.clip.scale), aggregation=aggregation)
    bandit = Population(ARMS, Softmax(POLICY.clone()), COUNTS, reference=REFERENCE)
    close(push(estimator, bandit), microscope(estimator, LISTED, 3).expected)


@pytest.mark.parametrize("aggregation", [SequenceSum(), SequenceMean()])
def test_a_group_baseline_is_the_limit_of_large_groups(aggregation: SequenceSum) -> None:
    """E[ĝ] of a group that includes the sample is (G − 1)/G of the population's, for every G."""
    estimator = replace(ladder.baseline, baseline=ladder.group_mean.baseline)
    estimator = replace(estimator, aggregation=aggregation)
    whole = push(estimator, Population(ARMS, Softmax(POLICY.clone()), COUNTS))
    for group in (2, 5):
        seen = microscope(estimator, LISTED, group).expected
        close(seen, (group - 1) / group * whole)


def test_every_arm_once_has_the_exact_gradient() -> None:
    bandit = every_arm(ARMS, Softmax(POLICY.clone()))
    close(push(ladder.surrogate, bandit), gradient(LISTED))


def test_token_mean_by_hand() -> None:
    """Σ_a c_a |o_a| tokens; ρ π_old = π: arms weigh c_a ρ_a R_a (1[a = b] − π_b) on the choice."""
    estimator = replace(replace(ladder.surrogate, baseline=Constant(0.0)), aggregation=TokenMean())
    bandit = Population(ARMS, Softmax(POLICY.clone()), COUNTS)
    p, weight = POLICY.exp()[0], 10 * POLICY.exp()[0] * MEANS[0] / (2 * 1 + 3 * 2 + 5 * 4)
    close(push(estimator, bandit), weight - weight.sum() * p)


def test_masks_and_rewards_are_those_of_answers() -> None:
    rollout = Population(ARMS, Softmax(POLICY.clone()), COUNTS).rollout
    assert rollout.length.tolist() == [[1, 1, 2, 2, 2, 4, 4, 4, 4, 4]]
    close(rollout.total_reward, [[0.2] * 2 + [0.5] * 3 + [0.8] * 5])
    last = rollout.mask & (rollout.mask.cumsum(-1) == rollout.length.unsqueeze(-1))
    assert torch.equal(rollout.reward != 0, last)
