"""How the group std weighs prompts by difficulty, and how 1/|o| weighs answers by length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import B3_MEANS, B3_POLICY, outcomes
from course import ladder
from course.estimator import Estimator, replace
from course.exact import Outcomes, every_group, group_std_weight, microscope, objective
from course.parts import GroupStd, SequenceMean
from course.parts.baseline import silent

# the group_std rung without its eps, for which the law is exact
STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))
LENGTH_MEAN = replace(STD, aggregation=SequenceMean())  # the same with 1/|o|
MANY = 1024  # a group size close to the limit of infinitely many samples


def right_or_wrong(p: float, lengths: tuple[int, int] | None = None) -> Outcomes:
    """A right answer of probability `p` and a wrong one; `lengths` are (right, wrong) in tokens."""
    length = None if lengths is None else torch.tensor(lengths)
    environment = Environment(torch.tensor([[1.0, 0.0]], dtype=torch.float64), lengths=length)
    return outcomes(environment, torch.tensor([[p, 1 - p]], dtype=torch.float64).log())


def four_answers(p: float, short: int, long: int) -> Outcomes:
    """Four answers: right and short, right and long, wrong and short, wrong and long.

    An answer is right with probability `p` and, independently, short with probability ½.
    """
    reward = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    policy = torch.tensor([[p / 2, p / 2, (1 - p) / 2, (1 - p) / 2]], dtype=torch.float64)
    lengths = torch.tensor([short, long, short, long])
    return outcomes(Environment(reward, lengths=lengths), policy.log())


def twins(p: float) -> Outcomes:
    """Two prompts that share their logits; each is answered right with probability `p`."""
    log_prob = torch.tensor([[p, 1 - p]] * 2, dtype=torch.float64).log()
    reward = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    score = right_or_wrong(p).score[:, :, 0].expand(2, 2, 2)  # [prompts, arms, parameters]
    return outcomes(Environment(reward), log_prob, score=score)


def weight(estimator: Estimator, listed: Outcomes, group: int) -> float:
    """E[ĝ]·∇p / ‖∇p‖²: the weight of ∇p in the expected gradient."""
    seen = microscope(estimator, listed, group, covariance=False)
    return float(seen.expected @ seen.gradient / seen.gradient.square().sum())


def weights(
    estimator: Estimator, p: Tensor, group: int, lengths: tuple[int, int] | None = None
) -> Tensor:
    """`weight` [n] at success probabilities p [n]; `lengths` as for `right_or_wrong`."""
    return p.new_tensor([weight(estimator, right_or_wrong(x, lengths), group) for x in p.tolist()])


def angle(estimator: Estimator, listed: Outcomes, group: int) -> float:
    """The angle between E[ĝ] and ∇p, in degrees."""
    cosine = microscope(estimator, listed, group, covariance=False).cosine
    return math.degrees(math.acos(min(1.0, cosine)))


def silent_share(listed: Outcomes, group: int) -> float:
    """The probability of a group whose gradient is exactly zero (a zero-variance group)."""
    every = every_group(STD, listed, group)
    return float(every.chance[(every.gradient == 0).all(-1)].sum())


def silent_shares(p: Tensor, group: int) -> Tensor:
    """`silent_share` [n] of a right and a wrong answer at success probabilities p [n]."""
    return p.new_tensor([silent_share(right_or_wrong(x), group) for x in p.tolist()])


def asked_again(listed: Outcomes, group: int) -> Tensor:
    """E[ĝ] [D] of the std if silent groups of one prompt are sampled again until none is silent.

    It is E[ĝ | the group is not silent], and silence is decided by the rewards (Yu et al. 2025,
    DAPO, eq. 11).
    """
    every = every_group(STD, listed, group)
    loud = ~silent(listed.total_reward[0][every.outcome[:, 0]])[:, 0]  # [groups]
    chance = every.chance[loud]
    return torch.einsum("m,md->d", chance, every.gradient[loud]) / chance.sum()


def length_pairs(short: int, long: int) -> list[tuple[int, int]]:
    """The four pairs of a right answer's length and a wrong one's, in tokens."""
    return [(right, wrong) for right in (short, long) for wrong in (short, long)]


def length_weight(p: Tensor, group: int, right: int, wrong: int) -> Tensor:
    """The weight of ∇p under 1/|o| if right and wrong answers have these lengths in tokens.

    It is w_G(p)·((1−p)/right + p/wrong), for p of any shape.
    """
    return group_std_weight(p, group) * ((1 - p) / right + p / wrong)


def length_angle(short: int, long: int) -> float:
    """The angle between E[ĝ] and ∇p in degrees, of `four_answers` at p = ½ under 1/|o|.

    E[ĝ] pushes right and wrong answers by ±(1/short, 1/long), and ∇p pushes them by ±(1, 1).
    """
    push = torch.tensor([1 / short, 1 / long], dtype=torch.float64)
    return math.degrees(math.acos(float(push.sum() / (push.norm() * math.sqrt(2)))))


def length_law(listed: Outcomes, group: int) -> Tensor:
    """E[ĝ] [D] under 1/|o| with eps = 0: w_G(p) Σ_a π_a (1[a right] − p) s_a / |o_a|.

    It follows from E[A_i | i right] = w_G(p)(1 − p) and E[A_i | i wrong] = −w_G(p) p.
    eq:length-mean-law
    """
    p, length = objective(listed), listed.mask.sum(-1)
    own = listed.log_prob.sum(-1).exp() * (listed.total_reward - p) / length
    return group_std_weight(p, group) * torch.einsum("qk,qkd->d", own, listed.total_score)


def shortfall(p: float, group: int) -> float:
    """1/(8Gp(1−p)): the relative gap of w_G(p) to its limit 1/√(p(1−p)), up to order 1/G².

    It is the second-order term of E[√(x(1−x))] with x = N/G, because the second derivative of
    √(x(1−x)) is −¼(x(1−x))^(−3/2) and the variance of x is p(1−p)/G.
    """
    return 1 / (8 * group * p * (1 - p))


def arcsine_gradient() -> Tensor:
    """∇ 2·arcsin √J [D] on B3 by automatic differentiation, with J = Σ softmax(θ)·μ.

    eq:arcsine-objective
    """
    theta = torch.tensor(B3_POLICY, dtype=torch.float64).log().requires_grad_()
    j = (theta.softmax(0) * torch.tensor(B3_MEANS, dtype=torch.float64)).sum()
    return torch.autograd.grad(2 * j.sqrt().arcsin(), theta)[0]
