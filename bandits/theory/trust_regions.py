"""How far each surrogate lets a policy go: its slope, where it falls silent, where small steps end.

One arm pays 1 and was sampled with probability π₁; the others pay 0 and share the rest equally.
The rollout holds all arms in exact proportion, with rewards centred by their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.parts import (
    Clip,
    DivergenceKL,
    DivergenceTV,
    GeometricMean,
    MirrorDescent,
    SecondMoment,
    Surrogate,
)

HALVINGS = 200  # of an interval: more than float64 can tell apart


def on_one_base(name: str, beta: float) -> Estimator:
    """The rung's surrogate and filter on `group_mean`, so that all differ in nothing else.

    A mirror descent has the spring `beta`.
    """
    estimator = ladder.get(name).estimator
    surrogate = estimator.surrogate
    if isinstance(surrogate, MirrorDescent):
        surrogate = MirrorDescent(beta)
    parts = {"surrogate": surrogate, "sample_filter": estimator.sample_filter}
    return replace(ladder.group_mean, **parts)


def slope(surrogate: Surrogate, ratio: Tensor, old: Tensor, advantage: float) -> Tensor:
    """∂ term / ∂ log π of one token at each ρ and π_old (same shape), divided by A.

    ∇log π times this is what the sample adds to the gradient: 1 is policy gradient's.
    eq:surrogate-weight
    """
    log_prob = (ratio * old).log().unsqueeze(-1).requires_grad_()  # [..., T = 1]
    weight = torch.full_like(log_prob, advantage)
    term = surrogate(log_prob - old.log().unsqueeze(-1), log_prob, weight)
    [found] = torch.autograd.grad(term.sum(), log_prob)
    return found.squeeze(-1) / advantage


def push(surrogate: Surrogate, share: float, ratio: Tensor, others: int = 1) -> Tensor:
    """The exact gradient on the good arm's logit at each ρ₁ [n].

    Σ_a π_old(a) s_a A_a (1[a = 1] − π(1)), with the slope s_a of arm a's sample.
    """
    now = share * ratio
    old_bad = (1 - share) / others
    bad_ratio = (1 - now) / (1 - share)
    good = slope(surrogate, ratio, torch.full_like(ratio, share), 1 - share) * (1 - share)
    bad = slope(surrogate, bad_ratio, torch.full_like(ratio, old_bad), -share) * -share
    return share * good * (1 - now) - (1 - share) * bad * now


# ---------------------------------------------------------------- where a token falls silent


def divide(inside: Callable[[float], bool], low: float, high: float) -> float:
    """The number between `low`, where `inside` holds, and `high`, where it does not, at which it
    changes.
    """
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return (low + high) / 2


def binary_kl(old: float, now: float) -> float:
    """KL between "this arm or another" under two probabilities, in nats."""

    def part(q: float, p: float) -> float:
        return 0.0 if q == 0 else math.inf if p <= 0 else q * math.log(q / p)

    return part(old, now) + part(1 - old, 1 - now)


def silent(estimator: Estimator, old: float) -> tuple[float, float] | None:
    """The ρ below which a blamed token is silent, and the ρ above which a praised one is.

    Silent means without a gradient. `old` is its π_old. 0 and ∞ mean nowhere; None means that the
    estimator silences no token. M2PO compares tokens: its numbers hold for two arms, of which both
    must have moved so far.
    """
    part, chosen = estimator.surrogate, estimator.sample_filter
    if isinstance(chosen, SecondMoment):
        root = math.sqrt(chosen.tau)
        return math.exp(-root), math.exp(root)
    if isinstance(part, Clip):
        return 1 - part.epsilon_low, 1 + part.high
    if isinstance(part, GeometricMean):
        return math.exp(-part.epsilon_low), math.exp(part.high)
    if isinstance(part, DivergenceTV):
        return max(1 - part.delta_low / old, 0.0), 1 + part.delta_high / old
    if isinstance(part, DivergenceKL):
        low, high = (
            divide(lambda p, d=delta: binary_kl(old, p) <= d, old, end) / old  # type: ignore[misc]
            for delta, end in ((part.delta_low, 0.0), (part.delta_high, 1.0))
        )
        return low, high
    return None


# ---------------------------------------------------------------- where small steps end


def end(estimator: Estimator, share: float, others: int = 1) -> float:
    """ρ₁ at which many small steps on one rollout stop: `clip_unbounded.limit` for every surrogate.

    As long as one arm has a gradient the good arm gains. It stops where the good arm is silent and
    the others are, too, or at 1/π₁. A mirror descent stops where the springs hold the rewards.
    """
    require(0 < share < 1, "share", share, "between 0 and 1")
    most = 1 / share
    if isinstance(estimator.surrogate, MirrorDescent):
        return spring_end(estimator.surrogate.beta, share, others)
    praised, blamed = (silent(estimator, p) for p in (share, (1 - share) / others))
    if praised is None or blamed is None:
        return most
    left = (1 - blamed[0] * (1 - share)) / share  # what the others leave when all are silent
    return min(max(praised[1], left), most)


def spring_end(beta: float, share: float, others: int = 1) -> float:
    """ρ₁ at which mirror descent has no gradient: π₁(A₁ − β log ρ₁) = π(1) β KL(π_old‖π).

    All arms that pay 0 move by one ratio, so their number makes no difference.
    """

    def pulls(ratio: float) -> bool:
        now = share * ratio
        kl = binary_kl(share, now)
        return share * (1 - share - beta * math.log(ratio)) > now * beta * kl

    return divide(pulls, 1.0, 1 / share)


def ends(estimator: Estimator, shares: Iterable[float], others: int = 1) -> Tensor:
    """`end` at each π₁ [n]."""
    return torch.tensor([end(estimator, share, others) for share in shares], dtype=torch.float64)
