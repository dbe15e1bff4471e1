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
from course.parts import Aggregation, GroupMean, GroupStd, NoScale

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
    with another baseline or scale than those below, or with a filter.

    At the uniform policy an answer's length says nothing of its reward, so the mean weight of its
    length factors out. The scores' other part, −π, cancels: the four terms add up to 0. `scale` is
    w_G(½) or (G−1)/G.
    """
    if type(estimator.baseline) is not GroupMean or not estimator.sample_filter.implied:
        return None
    # the very class: what is derived from it may compute another scale
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
    """G · E[w] of the first token of a sample of `own` tokens: of the others, each is long with
    probability ½.
    """
    (short, long), others, total = lengths, group - 1, 0.0
    for count in range(others + 1):  # of them are long
        length = torch.tensor([own, *[short] * (others - count), *[long] * count])
        mask = torch.arange(long) < length.unsqueeze(-1)  # [G, T]
        weight = aggregation(mask.unsqueeze(0), long, torch.float64)  # [1, G, T]
        total += math.comb(others, count) / 2**others * float(weight[0, 0, 0])
    return group * total


def read_off(path: Tensor) -> dict[str, Tensor]:
    """Success probability and the share of long answers among right and among wrong ones, from
    policies [steps + 1, 4].
    """
    right, wrong = path[:, :2].sum(-1), path[:, 2:].sum(-1)
    return {"success": right, "long_right": path[:, 1] / right, "long_wrong": path[:, 3] / wrong}
