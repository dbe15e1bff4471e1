"""What dividing by an answer's length does to the first push, and to the length of answers.

Four answers, right or wrong, short or long. Only the first token is a choice, so every rung sees
the same four arms and only the weight of a sample differs. `lengths` are (short, long), in tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.flow import expected_gradient
from course.estimator import Estimator
from course.exact import group_mean_factor, group_std_weight
from course.parts import (
    AllSamples,
    ConstantLength,
    GroupMean,
    GroupStd,
    NoScale,
    SequenceMean,
    SequenceSum,
    TokenMean,
)

ANSWERS = ("right, short", "right, long", "wrong, short", "wrong, long")
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64).log()


def four_answers(lengths: tuple[int, int]) -> Environment:
    """The four answers of `ANSWERS`: rewards 1, 1, 0, 0."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    return Environment(rewards, lengths=torch.tensor([*lengths, *lengths]))


def first_push(estimator: Estimator, lengths: tuple[int, int], group: int) -> Tensor:
    """[4] the expected gradient on the logits at the uniform policy, which is its own reference."""
    return expected_gradient(estimator, four_answers(lengths), UNIFORM, group, reference=UNIFORM)


def push_by_hand(estimator: Estimator, lengths: tuple[int, int], group: int) -> Tensor | None:
    """[4] the same in closed form: scale · ¼ · (r_a − ½) · weight(|o_a|); None for an estimator
    with another baseline, scale, aggregation or filter than those below.

    At the uniform policy an answer's length says nothing of its reward, so the mean weight of its
    length factors out. The scores' other part, −π, cancels: the four terms add up to 0. `scale` is
    w_G(½) or (G−1)/G.
    """
    parts = (estimator.baseline, GroupMean), (estimator.sample_filter, AllSamples)
    if not all(isinstance(part, kind) for part, kind in parts):
        return None
    if isinstance(estimator.scale, GroupStd):
        scale = float(group_std_weight(0.5, group, estimator.scale.ddof, estimator.scale.eps))
    elif isinstance(estimator.scale, NoScale):
        scale = group_mean_factor(group)
    else:
        return None
    aggregation, tokens = estimator.aggregation, torch.tensor([*lengths, *lengths])
    if isinstance(aggregation, SequenceMean):
        weight = 1 / tokens.double()
    elif isinstance(aggregation, ConstantLength):
        weight = torch.ones(4, dtype=torch.float64) / (aggregation.length or lengths[1])
    elif isinstance(aggregation, TokenMean):
        weight = group * torch.tensor(
            [mean_inverse_tokens(own, lengths, group) for own in tokens.tolist()],
            dtype=torch.float64,
        )
    elif isinstance(aggregation, SequenceSum):
        weight = torch.ones(4, dtype=torch.float64)
    else:
        return None
    return scale * 0.25 * torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64) * weight


def mean_inverse_tokens(own: int, lengths: tuple[int, int], group: int) -> float:
    """E[1 / tokens of the group] for a sample of `own` tokens: of the others, each is long with
    probability ½.
    """
    (short, long), others = lengths, group - 1
    ways = [math.comb(others, count) / 2**others for count in range(others + 1)]
    return sum(
        way / (own + short * (others - count) + long * count) for count, way in enumerate(ways)
    )


def read_off(path: Tensor) -> dict[str, Tensor]:
    """Success probability and the share of long answers among right and among wrong ones, from
    policies [steps + 1, 4].
    """
    right, wrong = path[:, :2].sum(-1), path[:, 2:].sum(-1)
    return {"success": right, "long_right": path[:, 1] / right, "long_wrong": path[:, 3] / wrong}
