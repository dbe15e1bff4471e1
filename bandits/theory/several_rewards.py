"""Two rewards of one answer, added first or normalised first: which weight each of them gets.

An answer earns two rewards independently, with probabilities p₁ and p₂, each with a logit of its
own. Then E[ĝ] on logit k is w_k·∇p_k, and w₁/w₂ says how much louder the first reward is heard.
Everything is listed: four kinds of answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from course import ladder
from course.estimator import Estimator, replace
from course.exact import Outcomes, closed_forms, microscope
from course.parts import EachReward, GroupStd
from course.rollout import Rollout

KINDS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
EPS = 1e-7  # so small that the formulas hold to five digits
SCHEMES: Mapping[str, Estimator] = {
    "added, no std": ladder.group_mean,
    "added, then std": replace(ladder.group_mean, scale=GroupStd(eps=EPS)),
    "each std, then added": replace(ladder.group_mean, scale=EachReward(eps=EPS)),
}
TOY = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)


def two_rewards(p: tuple[float, float], unit: float = 1.0) -> Outcomes:
    """The four kinds of answers; the second reward pays `unit` in place of 1.

    The parameters are the two logits: the score of an answer is (r₁ − p₁, r₂ − p₂), rewards in
    units of 1.
    """
    chance = torch.tensor(p, dtype=torch.float64)
    prob = torch.where(KINDS > 0, chance, 1 - chance).prod(-1)  # [4]
    paid = KINDS * torch.tensor([1.0, unit], dtype=torch.float64)
    return Outcomes.of_arms(
        prob.log().unsqueeze(0),
        paid.sum(-1).unsqueeze(0),
        score=(KINDS - chance).unsqueeze(0),
        components=paid.unsqueeze(0),
    )


def weights(
    estimator: Estimator, p: tuple[float, float], group: float, unit: float = 1.0
) -> Tensor:
    """w [2]: E[ĝ] of each logit over p_k(1−p_k), from all groups of one prompt."""
    found = microscope(estimator, two_rewards(p, unit), group, covariance=False).expected
    chance = torch.tensor(p, dtype=torch.float64)
    return found / (chance * (1 - chance))


def louder(estimator: Estimator, p: tuple[float, float], group: float, unit: float = 1.0) -> float:
    """w₁/w₂, how much louder the first reward is heard than the second."""
    first, second = weights(estimator, p, group, unit).tolist()
    return float(first / second)


def louder_in_a_large_batch(p: tuple[float, float], group: int) -> float:
    """w₁/w₂ of rewards normalised each in its group, in a batch of many prompts.

    There the whitening divides by a constant, and each reward has its own w_G(p): the ratio is
    w_G(p₁)/w_G(p₂).
    """
    first, second = (float(closed_forms.group_std_weight(x, group, 0, 0.0)) for x in p)
    return first / second


def louder_in_the_limit(p: tuple[float, float]) -> float:
    """√(p₂(1−p₂) / (p₁(1−p₁))): the same for large groups."""
    return math.sqrt(p[1] * (1 - p[1]) / (p[0] * (1 - p[0])))


def toy() -> dict[str, Tensor]:
    """The advantages [2 groups, 2 answers] of the paper's toy, added first and normalised first.

    Rewards are (0, 0) and (0, 1) in one group, (0, 0) and (1, 1) in the other; the std is that of a
    sample, as in TRL.
    """
    zero, sure = torch.zeros(2, 2, 1, dtype=torch.float64), torch.ones(2, 2, 1, dtype=torch.bool)
    rollout = Rollout(TOY.sum(-1, keepdim=True), zero, sure, components=TOY)
    made = {"added first": GroupStd(1, EPS), "normalised first": EachReward(None, 1, EPS)}
    return {
        name: replace(ladder.group_mean, scale=scale).freeze(rollout).advantage[..., 0]
        for name, scale in made.items()
    }


def direction(estimator: Estimator, p: tuple[float, float], group: float) -> float:
    """The cosine of E[ĝ] and ∇(p₁ + p₂), with respect to the two logits."""
    return microscope(estimator, two_rewards(p), group, covariance=False).cosine
