"""The microscope for a loss that is a plain function: its expected gradient, by listing batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bandits.exact import b3
from course import ladder
from course.errors import CourseError
from course.exact import Outcomes, expected_gradient, gradient, microscope

Loss = Callable[[Tensor, Tensor], Tensor]


def reinforce(log_prob: Tensor, reward: Tensor) -> Tensor:
    """Minus the mean of R·log π."""
    return -(reward.sum(-1) * log_prob.sum(-1)).mean()


def centred(log_prob: Tensor, reward: Tensor) -> Tensor:
    """The same with the batch's mean subtracted."""
    total = reward.sum(-1)
    return -((total - total.mean()) * log_prob.sum(-1)).mean()


def two_tokens() -> tuple[Outcomes, Tensor]:
    """Two binary tokens with probabilities .3 and .6, whatever the first; ∇J by hand.

    The answers (0, 0), (0, 1), (1, 0), (1, 1) earn 0, 1, 2 and 5.
    """
    p, q = 0.3, 0.6
    first, second = torch.tensor([1 - p, p]), torch.tensor([1 - q, q])
    answers = [(0, 0), (0, 1), (1, 0), (1, 1)]
    log_prob = torch.tensor([[first[a].log(), second[b].log()] for a, b in answers])
    score = torch.zeros(1, 4, 2, 2, dtype=torch.float64)  # of the logit of each token's 1
    for row, (a, b) in enumerate(answers):
        score[0, row, 0, 0], score[0, row, 1, 1] = a - p, b - q
    reward = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 5.0]]])
    # J = q(1 − p) + 2p(1 − q) + 5pq; ∂/∂logit = p(1 − p)·∂/∂p
    by_p, by_q = -q + 2 * (1 - q) + 5 * q, (1 - p) - 2 * p + 5 * p
    true = torch.tensor([p * (1 - p) * by_p, q * (1 - q) * by_q], dtype=torch.float64)
    return Outcomes.of_sequences(log_prob[None].double(), reward.double(), score=score), true


@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_expected_gradient_of_reinforces_loss_is_the_true_one(group: int) -> None:
    listed, true = two_tokens()
    found = expected_gradient(reinforce, listed, group)
    torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-7)  # probabilities in float32
    torch.testing.assert_close(
        expected_gradient(reinforce, b3(), group), gradient(b3()), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("group", "factor"), [(1, 0.0), (2, 1 / 2), (3, 2 / 3)])
def test_a_mean_that_includes_the_sample_shortens_the_gradient(group: int, factor: float) -> None:
    """E[ĝ] = (N − 1)/N·∇J, and what the estimator `baseline` has, enumerated in another way."""
    found = expected_gradient(centred, b3(), group)
    torch.testing.assert_close(found, factor * gradient(b3()), rtol=0, atol=1e-12)
    if group > 1:
        theirs = microscope(ladder.baseline, b3(), group).expected
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-12)


def test_each_fault_shows_in_its_own_way() -> None:
    """The sign, a detached tensor, the neighbour's reward, and each token's own reward."""
    listed, true = two_tokens()
    faults: list[tuple[Loss, Tensor]] = [
        (lambda log_prob, reward: -reinforce(log_prob, reward), -true),
        (lambda log_prob, reward: reinforce(log_prob.detach(), reward), 0 * true),
        (lambda log_prob, reward: reinforce(log_prob, reward.roll(1, 0)), 0 * true),
        (
            lambda log_prob, reward: -(reward * log_prob).sum(-1).mean(),
            true * torch.tensor([0.0, 1.0]),
        ),
    ]
    for loss, want in faults:
        found = expected_gradient(loss, listed, 2)
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)


def test_ordered_batches_count_one_by_one() -> None:
    """A loss of the first answer alone has the gradient of one answer."""
    first: Loss = lambda log_prob, reward: reinforce(log_prob[:1], reward[:1])  # noqa: E731
    torch.testing.assert_close(
        expected_gradient(first, b3(), 2), gradient(b3()), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda log_prob, reward: log_prob.sum(-1), r"loss: got \(2,\)"),
        (lambda log_prob, reward: NotImplemented, "loss: got NotImplementedType"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss: Loss, said: str) -> None:
    with pytest.raises(CourseError, match=said):
        expected_gradient(loss, b3(), 2)


def test_padding_several_prompts_and_too_many_batches_are_refused() -> None:
    listed, _ = two_tokens()
    mask = listed.mask.clone()
    mask[0, 0, 1] = False
    one_short = replace(
        listed, mask=mask, chance=torch.tensor([[0.4, 1.0, 1.0, 1.0]], dtype=torch.float64)
    )
    with pytest.raises(CourseError, match="one length"):
        expected_gradient(reinforce, one_short, 2)
    two = Outcomes.of_arms(
        torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    )
    with pytest.raises(CourseError, match="one prompt"):
        expected_gradient(reinforce, two, 2)
    with pytest.raises(CourseError, match="batches"):
        expected_gradient(reinforce, b3(), 30)
