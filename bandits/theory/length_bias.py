"""How dividing by an answer's length changes the first update, and then the length of answers.

There are four answers: right or wrong, short or long. Only the first token is a choice, so every
rung sees the same four arms, and rungs differ only in the weight of a sample. `lengths` are
(short, long), in tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.flow import expected_gradient
from course.estimator import Estimator
from course.exact import group_mean_factor, group_std_weight
from course.parts import Aggregation, GroupMean, GroupStd, NoScale

ANSWERS = ("right, short", "right, long", "wrong, short", "wrong, long")
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64).log()


def four_answers(lengths: tuple[int, int]) -> Environment:
    """The four answers of `ANSWERS`: rewards 1, 1, 0, 0."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    return Environment(rewards, lengths=torch.tensor([*lengths, *lengths]))


def first_push(estimator: Estimator, lengths: tuple[int, int], group: int) -> Tensor:
    """The expected gradient [4] on the logits, at the uniform policy as its own reference."""
    return expected_gradient(estimator, four_answers(lengths), UNIFORM, group, reference=UNIFORM)


def push_by_hand(estimator: Estimator, lengths: tuple[int, int], group: int) -> Tensor | None:
    """The same [4] in closed form: scale · ¼ · (r_a − ½) · weight(|o_a|).

    Returns None for an estimator with another baseline or scale than those below, or with a filter.
    At the uniform policy an answer's length is independent of its reward, so the mean weight
    of its length factors out. The part −π of the scores cancels, because the four terms sum to 0.
    `scale` is w_G(½) or (G−1)/G.
    """
    if type(estimator.baseline) is not GroupMean or not estimator.sample_filter.implied:
        return None
    # exactly this class, because a subclass may compute another scale
    if type(estimator.scale) is GroupStd:
        scale = float(group_std_weight(0.5, group, estimator.scale.ddof, estimator.scale.eps))
    elif type(estimator.scale) is NoScale:
        scale = group_mean_factor(group)
    else:
        return None
    weight = [mean_weight(estimator.aggregation, own, lengths, group) for own in (*lengths,) * 2]
    reward = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64)
    return scale * 0.25 * reward * torch.tensor(weight, dtype=torch.float64)


def mean_weight(aggregation: Aggregation, own: int, lengths: tuple[int, int], group: int) -> float:
    """G · E[w] of the first token of a sample of `own` tokens.

    Each of the other samples is long with probability ½.
    """
    (short, long), others, total = lengths, group - 1, 0.0
    for count in range(others + 1):  # count of the others are long
        length = torch.tensor([own, *[short] * (others - count), *[long] * count])
        mask = torch.arange(long) < length.unsqueeze(-1)  # [G, T]
        weight = aggregation(mask.unsqueeze(0), long, torch.float64)  # [1, G, T]
        total += math.comb(others, count) / 2**others * float(weight[0, 0, 0])
    return group * total


def read_off(path: Tensor) -> dict[str, Tensor]:
    """The success probability and the share of long answers, along policies [steps + 1, 4].

    The share is given separately for right and for wrong answers.
    """
    right, wrong = path[:, :2].sum(-1), path[:, 2:].sum(-1)
    return {"success": right, "long_right": path[:, 1] / right, "long_wrong": path[:, 3] / wrong}
