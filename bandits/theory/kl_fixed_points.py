"""Where training with a KL penalty ends: closed-form drifts, their roots, and the flow to them.

There is one prompt with a right answer (reward 1) and a wrong one (reward 0). p is the success
probability, p_ref that of the reference policy, and w = w_G(p) the weight from the group std
(1/√(p(1−p)) at G = ∞). Following the enumerated expected gradient until it stops gives:

    std, k2 in the loss      logit p = logit p_ref + w/β           (KL(π‖ref); Mroueh 2025)
    std, k3 in the loss      p − w·p(1−p)/β = p_ref                (KL(ref‖π): GRPO)
    no std, k2 in the loss   logit p = logit p_ref + (G−1)/(Gβ)    (exponential tilting)

At G = ∞ the first equation has either no root or two, a stable and an unstable one. At finite G it
has one or three, because w_G never exceeds √(G−1), so there is always a stable root near 1.
Mroueh's recursion inserts the old p into w and solves for the new one. This is the same
natural-gradient ascent with the large step 1/β, and it can diverge from a root at which small steps
converge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import ascend, expected_gradient
from course import ladder
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.parts import K2, K3, ExactKL, GroupStd, ImportanceSampling

RIGHT_AND_WRONG = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))

KINDS = ("std, k2", "std, k3", "no std, k2")

EDGE = 45.0  # roots are searched within |logit p| ≤ EDGE, which is 1 − p down to 3e-20


def estimators(beta: float) -> dict[str, Estimator]:
    """The three estimators of `KINDS`, rungs of the ladder with eps = 0 as in the formulas."""
    std = replace(ladder.length_mean, scale=GroupStd(eps=0.0))
    return {
        "std, k2": replace(std, kl=K2(beta)),
        "std, k3": replace(std, kl=K3(beta)),
        "no std, k2": replace(ladder.group_mean, kl=K2(beta)),
    }


def weight(x: Tensor, group: float) -> Tensor:
    """w_G(p) at x = logit p, [...]; at G = ∞ it is 2 cosh(x/2), which avoids rounding 1 − p."""
    if group == math.inf:
        return 2 * torch.cosh(x / 2)
    return torch.where(
        x < 0, group_std_weight(torch.sigmoid(x), group), group_std_weight(torch.sigmoid(-x), group)
    )  # w(p) = w(1 − p)


def drift(kind: str, x: Tensor, reference: float, beta: float, group: float) -> Tensor:
    """d logit p/dt of the natural gradient at x = logit p, [...]: E[ĝ]/(p(1−p)) in closed form.

    Its zeros are the limits of training. `eq:kl-fixed-points`
    """
    centred = 1.0 if group == math.inf else group_mean_factor(int(group))
    gain = torch.full_like(x, centred) if kind == "no std, k2" else weight(x, group)
    if kind == "std, k3":
        return gain + beta * (
            reference * (1 + torch.exp(-x)) - (1 - reference) * (1 + torch.exp(x))
        )  # ref/p − (1 − ref)/(1 − p)
    return gain - beta * (x - logit(reference))


def logit(p: float) -> float:
    """log p/(1 − p)."""
    return math.log(p / (1 - p))


def roots(of: Callable[[Tensor], Tensor], points: int = 3601) -> list[tuple[float, bool]]:
    """The zeros of a drift in increasing order, each as (logit p, whether it is stable).

    A scan of `points` points finds the sign changes, and bisection refines them.
    """
    x = torch.linspace(-EDGE, EDGE, points, dtype=torch.float64)
    sign = of(x) > 0
    turns = (sign[1:] != sign[:-1]).nonzero().squeeze(-1)
    found = []
    for turn in turns.tolist():
        low, high, falling = x[turn], x[turn + 1], bool(sign[turn])
        for _ in range(60):
            middle = (low + high) / 2
            if bool(of(middle) > 0) == falling:
                low = middle
            else:
                high = middle
        found.append((float((low + high) / 2), falling))
    return found


def limits(kind: str, reference: float, beta: float, group: float) -> list[tuple[float, bool]]:
    """The roots of the closed-form equation: (logit p, whether it is stable)."""
    return roots(lambda x: drift(kind, x, reference, beta, group))


def fold(reference: float) -> tuple[float, float]:
    """(β, logit p) at which the two roots of the first equation meet at G = ∞.

    There are no roots at smaller β. x − x_ref = (2/β) cosh(x/2) and its derivative 1 = sinh(x/2)/β
    give x − x_ref = 2 coth(x/2) and β = sinh(x/2).
    """
    low, high = 1e-6, EDGE
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if middle - logit(reference) < 2 / math.tanh(middle / 2)
            else (low, middle)
        )
    return math.sinh(low / 2), low


def recursion(x: float, reference: float, beta: float, group: float) -> float:
    """Mroueh's next logit p: logit p_ref + w(old p)/β."""
    return logit(reference) + float(weight(torch.tensor(x, dtype=torch.float64), group)) / beta


def policy_at(x: float) -> Tensor:
    """The log-probabilities [2] of the right and the wrong answer at x = logit p."""
    both = torch.tensor([x, -x], dtype=torch.float64)
    return torch.nn.functional.logsigmoid(both)


def logits_of(path: Tensor) -> Tensor:
    """Policies [..., 2] → logit p [...]."""
    return path[..., 0] - path[..., 1]


def measured_drift(estimator: Estimator, x: float, reference: float, group: int) -> float:
    """d logit p/dt of the natural gradient by enumeration.

    It is E[ĝ]/π of the right answer minus that of the wrong one.
    """
    policy = policy_at(x)
    rate = (
        expected_gradient(
            estimator, RIGHT_AND_WRONG, policy, group, reference=policy_at(logit(reference))
        )
        / policy.exp()
    )
    return float(rate[0] - rate[1])


def settle(
    estimator: Estimator,
    start: float,
    reference: float,
    beta: float,
    group: int,
    step: float,
    steps: int,
) -> Tensor:
    """logit p [steps + 1] along natural-gradient ascent with learning rate step/β.

    `start` and `reference` are success probabilities.
    """
    anchor = policy_at(logit(reference))
    path = ascend(
        estimator,
        RIGHT_AND_WRONG,
        policy_at(logit(start)),
        group,
        rate=step / beta,
        steps=steps,
        reference=anchor,
        natural=True,
    )
    return logits_of(path)


def gradient_after_step(reference: float, beta: float, group: int) -> float:
    """Length of the expected gradient of E_old[ρA] − β·KL(π‖ref) after one step of the recursion.

    The old policy is the reference; 0 means that the step has reached a stationary point.
    """
    old = policy_at(logit(reference))
    new = policy_at(recursion(logit(reference), reference, beta, group))
    std = estimators(beta)["std, k2"]
    frozen = replace(std, surrogate=ImportanceSampling(), kl=ExactKL(beta))
    gradient = expected_gradient(frozen, RIGHT_AND_WRONG, new, group, old=old, reference=old)
    return float(gradient.norm())
