"""The microscope for a loss that is a plain function: its expected gradient, by listing batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.exact.counting import check_group_size
from course.exact.outcomes import Outcomes, sampling_probability
from course.exact.view import refuse_above_largest


def expected_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], outcomes: Outcomes, group_size: int
) -> Tensor:
    """E[ĝ] [D] of a loss, with ĝ minus its gradient: the exact mean over every batch.

    `loss(log_prob, reward)` gets the log-probabilities [N, T] of N = `group_size` answers to one
    prompt, and their rewards [N, T]; it returns one number, to be minimised. It is called on every
    ordered batch that can occur, so it may treat the answers of a batch differently. A loss that
    does not depend on `log_prob` has the gradient 0.

    Raises `CourseError` if there are several prompts or padded tokens, if there are too many
    batches, or if the loss is not one number.
    """
    group = int(check_group_size(group_size))
    require(len(outcomes.reward) == 1, "outcomes", f"{len(outcomes.reward)} prompts", "one prompt")
    require(bool(outcomes.mask.all()), "outcomes", "padding", "answers of one length")
    chance = sampling_probability(outcomes)[0]
    alive = chance.nonzero().squeeze(-1).tolist()
    refuse_above_largest(len(alive) ** group * group * 100, f"{len(alive) ** group:,} batches")
    log_prob, reward, score = outcomes.log_prob[0], outcomes.reward[0], outcomes.score[0]
    total = score.new_zeros(score.shape[-1])
    for batch in itertools.product(alive, repeat=group):
        index = torch.tensor(batch, device=score.device)
        by_token = _gradient(loss, log_prob[index], reward[index])
        total -= chance[index].prod() * torch.einsum("nt,ntd->d", by_token, score[index])
    return total


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], log_prob: Tensor, reward: Tensor) -> Tensor:
    """The gradient [N, T] of the loss with respect to each log-probability."""
    leaf = log_prob.clone().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf, reward)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CourseError(f"loss: got {got}; allowed is a tensor with one number")
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    [found] = torch.autograd.grad(value.sum(), [leaf], allow_unused=True, materialize_grads=True)
    return found
