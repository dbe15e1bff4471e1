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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import ascend, expected_gradient
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import K2, K3, ExactKL, GroupStd, ImportanceSampling

RIGHT_AND_WRONG = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))

KINDS = ("std, k2", "std, k3", "no std, k2")
MROUEH, VOJNOVIC = "Mroueh 2025 (2503.06639)", "Vojnovic & Yun 2025 (2502.18548)"
HERE, BOTH = "derived here, checked by enumeration", f"{MROUEH}; {VOJNOVIC}"
# of each kind: E[ĝ] on the right answer's logit, and where it is 0, each with its source
FORMS = (
    (("p(1−p)·(w_G(p) − β·log(odds/reference odds))", BOTH),
     ("logit p = logit p_ref + w_G(p)/β", f"{MROUEH}, at finite G")),
    (("p(1−p)·w_G(p) − β·(p − p_ref)", HERE),
     ("p − w_G(p)·p(1−p)/β = p_ref", f"{VOJNOVIC}, at finite G")),
    (("p(1−p)·((G−1)/G − β·log(odds/reference odds))", BOTH),
     ("logit p = logit p_ref + (G−1)/(Gβ), exponential tilting", VOJNOVIC)),
)  # fmt: skip

EDGE = 45.0  # roots are searched within |logit p| ≤ EDGE, which is 1 − p down to 3e-20


@dataclass(frozen=True)
class Prompt(Checked):
    """The settings of a training: one prompt with a right and a wrong answer, all enumerated."""

    group: int = 8  # samples per prompt
    reference: float = 0.3  # success probability of the reference, and where training starts
    # KL coefficients of the sweep
    betas: tuple[float, ...] = (0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0)
    step: float = 0.15  # step of the flow, in units of 1/β (the natural gradient's own scale)
    steps: int = 200  # updates of the flow

    def __post_init__(self) -> None:
        super().__post_init__()
        self.listed("group")
        self.inside("reference")
        require(min(self.betas) > 0, "betas", self.betas, "numbers > 0")
        require(0 < self.step <= 1, "step", self.step, "a number above 0, at most 1")

    def listed(self, name: str) -> None:
        """Raise `CourseError` if this field is no group size that can be enumerated."""
        size = getattr(self, name)
        require(2 <= size <= 1024, name, size, "a whole number from 2 to 1024")

    def inside(self, name: str) -> None:
        """Raise `CourseError` if this field is no probability between 0 and 1."""
        p = getattr(self, name)
        require(0 < p < 1, name, p, "a probability between 0 and 1")


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


def probability(x: float) -> float:
    """p at x = logit p."""
    return 1 / (1 + math.exp(-x))


def roots(of: Callable[[Tensor], Tensor], points: int = 3601) -> list[tuple[float, bool]]:
    """The zeros of a drift in increasing order, each as (logit p, whether it is stable).

    A scan of `points` points finds the sign changes, and bisection refines them.
    """
    x = torch.linspace(-EDGE, EDGE, points, dtype=torch.float64)
    sign = of(x) > 0
    turns = (sign[1:] != sign[:-1]).nonzero().squeeze(-1)
    low, high, falling = x[turns], x[turns + 1], sign[turns]  # [zeros]
    for _ in range(60):
        middle = (low + high) / 2
        before = (of(middle) > 0) == falling
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return list(zip(((low + high) / 2).tolist(), falling.tolist(), strict=True))


def limits(kind: str, reference: float, beta: float, group: float) -> list[tuple[float, bool]]:
    """The roots of the closed-form equation: (logit p, whether it is stable)."""
    return roots(lambda x: drift(kind, x, reference, beta, group))


def lowest(kind: str, reference: float, beta: float, group: float, stable: bool = True) -> float:
    """logit p at the lowest stable root of `limits`, or the lowest unstable one; NaN if none.

    A flow that starts at the reference ends at the lowest stable root.
    """
    found = [x for x, holds in limits(kind, reference, beta, group) if holds == stable]
    return found[0] if found else math.nan


def stabilities(reference: float, beta: float, group: float) -> str:
    """What the roots of the first equation are, from the lowest: "stable, repelling", or "none"."""
    found = limits(KINDS[0], reference, beta, group)
    return ", ".join("stable" if stable else "repelling" for _, stable in found) or "none"


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


def smallest_beta(reference: float, points: int = 1_000_001) -> float:
    """The smallest β that has a root of the first equation at G = ∞, on a grid of logit p.

    Each x above the reference's logit is a root for one β, w/(x − x_ref). `fold` has the minimum in
    closed form.
    """
    x = torch.linspace(logit(reference) + 0.5, 12, points, dtype=torch.float64)
    return float((weight(x, math.inf) / (x - logit(reference))).min())


def recursion(x: float, reference: float, beta: float, group: float) -> float:
    """Mroueh's next logit p: logit p_ref + w(old p)/β."""
    return logit(reference) + float(weight(torch.tensor(x, dtype=torch.float64), group)) / beta


def recursion_path(reference: float, beta: float, group: float, steps: int) -> list[float]:
    """logit p [steps + 1] along Mroueh's recursion, which starts at the reference."""
    path = [logit(reference)]
    for _ in range(steps):
        path.append(recursion(path[-1], reference, beta, group))
    return path


def staircase(path: Tensor) -> tuple[Tensor, Tensor]:
    """The cobweb of a recursion's path [n + 1]: x and y [2n + 1], up or down, then across."""
    corners = path.repeat_interleave(2)
    return corners[:-1], torch.cat([corners[:1], corners[2:]])


def recursion_gap(steps: Tensor, reference: float, beta: float, group: float) -> float:
    """Largest difference of logit p along `steps` [n + 1] and the recursion, relative above 1."""
    formula = recursion_path(reference, beta, group, len(steps) - 1)
    path: list[float] = steps.tolist()
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(path, formula, strict=True))


def beside_root(x: float, reference: float, beta: float, group: int) -> tuple[float, float]:
    """The enumerated drifts of the first kind 0.3 nats below and above x = logit p."""
    one = estimators(beta)[KINDS[0]]
    low, high = (measured_drift(one, x + shift, reference, group) for shift in (-0.3, 0.3))
    return low, high


def recursion_slope(x: float, beta: float) -> float:
    """d(next x)/dx of the recursion at G = ∞ and x = logit p: sinh(x/2)/β.

    Steps around a root leave it where the slope there is below −1, although small steps converge.
    """
    return math.sinh(x / 2) / beta


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


def drift_gap(kind: str, reference: float, beta: float, group: int, x: Tensor) -> float:
    """Largest difference of the enumerated drift and `drift` at x = logit p [n], relative above 1.

    Both are the expected gradient E[ĝ] of the right answer's logit over p(1 − p).
    """
    one, closed = estimators(beta)[kind], drift(kind, x, reference, beta, group)
    measured = [measured_drift(one, at, reference, group) for at in x.tolist()]
    off = (torch.tensor(measured, dtype=torch.float64) - closed).abs() / closed.abs().clamp(min=1)
    return float(off.max())


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


# ---------------------------------------------------------------- curves of many settings


def flows(s: Prompt, progress: Progress) -> dict[str, list[Tensor]]:
    """For each of `KINDS` and each β, logit p [steps + 1] of `settle` from the reference."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for beta in progress(s.betas, "flows"):
        for kind, one in estimators(beta).items():
            path = settle(one, s.reference, s.reference, beta, s.group, s.step, s.steps)
            found[kind].append(path)
    return found


def limit_curves(s: Prompt) -> dict[str, object]:
    """The limits p of every kind over a fine sweep of β, at this G and at G = ∞.

    `repelling` is the unstable root of the first equation at G = ∞, and `fold` the (β, p) at which
    it meets the stable one. The sweep [65] is denser there.
    """
    born, height = fold(s.reference)
    sweep = np.geomspace(min(s.betas), max(s.betas), 61).tolist()
    sweep = sorted([*sweep, *(born * near for near in (1.0002, 1.004, 1.015, 1.03))])

    def curve(kind: str, size: float, stable: bool = True) -> list[float]:
        return [probability(lowest(kind, s.reference, beta, size, stable)) for beta in sweep]

    closed = {
        kind: {"finite": curve(kind, s.group), "infinite": curve(kind, math.inf)} for kind in KINDS
    }
    repelling = curve(KINDS[0], math.inf, stable=False)
    return {
        "sweep": sweep,
        "closed": closed,
        "repelling": repelling,
        "fold": [born, probability(height)],
    }


def drift_field(
    s: Prompt, beta: float, grid: Tensor, smooth: Tensor, progress: Progress
) -> dict[str, object]:
    """The drift of the first kind over β: enumerated on `grid` [n], and in closed form.

    The closed form on `smooth` [m] and its zeros (as logit p) are at this G and at G = ∞.
    """
    kind, found = KINDS[0], dict[str, object]()
    for name, size in (("finite", float(s.group)), ("infinite", math.inf)):
        zeros = limits(kind, s.reference, beta, size)
        found[name] = {
            "closed": drift(kind, smooth, s.reference, beta, size) / beta,
            "stable": [x for x, stable in zeros if stable],
            "repelling": [x for x, stable in zeros if not stable],
        }
    estimator, places = estimators(beta)[kind], progress(grid.tolist(), "drift")
    measured = [measured_drift(estimator, x, s.reference, s.group) / beta for x in places]
    return {**found, "measured": measured}


def recursion_map(x: Tensor, reference: float, beta: float, group: int) -> dict[str, Tensor]:
    """The recursion's next logit p from x [n], at this G and at G = ∞."""
    sizes = {"finite": float(group), "infinite": math.inf}
    return {name: logit(reference) + weight(x, size) / beta for name, size in sizes.items()}
