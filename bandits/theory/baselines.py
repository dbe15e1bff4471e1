"""How a baseline changes the gradient's length and variance on B3, by formula and by enumeration.

B3 is π = (.5, .3, .2) with Bernoulli means .2, .5, .8; every group that can be drawn is listed. A
group mean shortens the gradient a little and dividing by the std lengthens it; neither changes its
direction. With two samples per prompt the leave-one-out baseline is noisier than no baseline,
because comparing with a single other sample costs more than it saves; the crossing lies between two
and three samples. Adding a constant to all rewards, which does not change the best policy, makes
plain REINFORCE tens of times noisier and leaves every centred rung unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bandits.exact import b3
from course import ladder
from course.estimator import replace
from course.exact import (
    Outcomes,
    gradient,
    group_mean_factor,
    group_std_weight,
    microscope,
    objective,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    probability,
    rloo_covariance,
    variance_at_baseline,
)
from course.lab.terminal import Progress
from course.parts import Constant


def canonical(offset: float = 0.0) -> Outcomes:
    """B3 with everything that any rung needs: a critic that knows J, and a reference policy.

    The reference policy is the policy itself.
    """
    plain = b3(offset=offset)
    return b3(
        reference=plain.log_prob.new_tensor([[0.5, 0.3, 0.2]]).log(),
        value=torch.tensor([objective(plain)]).double(),
        offset=offset,
    )


def baselines(outcomes: Outcomes) -> dict[str, Tensor]:
    """Four baselines: none, the mean J and the best constant b* (each [1]), and the best per logit.

    The best baseline per logit is [1, D].
    """
    mean = torch.tensor([objective(outcomes)], dtype=torch.float64)
    best = optimal_baseline(outcomes), optimal_baseline_per_coordinate(outcomes)
    return {"none": torch.zeros_like(mean), "mean": mean, "scalar": best[0], "coordinate": best[1]}


def enumerated_variance(outcomes: Outcomes, baseline: Tensor) -> float:
    """The variance of one sample's gradient at `baseline` [1] or [1, D], by the microscope.

    It enumerates an estimator with that constant baseline, one logit at a time.
    """
    total = 0.0
    for d, b in enumerate(baseline.expand(1, outcomes.score.shape[-1])[0].tolist()):
        covariance = microscope(
            replace(ladder.reinforce, baseline=Constant(b)), outcomes, 2
        ).covariance
        assert covariance is not None
        total += 2 * float(covariance[d, d])
    return total


def lowest_point(outcomes: Outcomes) -> float:
    """The minimum of the parabola through the enumerated variances at b = 0, ½ and 1."""
    low, middle, high = (
        enumerated_variance(outcomes, torch.tensor([b], dtype=torch.float64))
        for b in (0.0, 0.5, 1.0)
    )
    bend, slope = 2 * (low + high - 2 * middle), 4 * middle - 3 * low - high
    return -slope / (2 * bend)


def listed_variance(rung: str, outcomes: Outcomes, group: int) -> float:
    """The total variance of a rung's gradient from one group, by the microscope."""
    return microscope(ladder.get(rung).estimator, outcomes, group).variance


def covariance_change(rung: str, one: Outcomes, other: Outcomes, group: int) -> float:
    """Largest difference of a rung's gradient covariances [D, D] with two lists of outcomes."""
    estimator = ladder.get(rung).estimator
    first, second = (microscope(estimator, outcomes, group).covariance for outcomes in (one, other))
    assert first is not None
    assert second is not None
    return float((first - second).abs().max())


def crossing(outcomes: Outcomes) -> float:
    """The G at which RLOO and REINFORCE are equally noisy, from variances at G = 2 and 3 alone.

    For REINFORCE G·Var is a constant; for RLOO it is a + c/(G − 1), so that c = 2·(value at 2 −
    value at 3) and a = 2·(value at 3) − (value at 2).
    """
    two, three = (group * listed_variance("rloo", outcomes, group) for group in (2, 3))
    plain = 2 * listed_variance("reinforce", outcomes, 2)
    return 1 + 2 * (two - three) / (plain - (2 * three - two))


def reinforce_variance(outcomes: Outcomes, offset: float = 0.0) -> Tensor:
    """The variance of one sample's gradient without a baseline, when every reward grows by offset.

    It is E[(r + offset)²‖s‖²] − ‖∇J‖², and ∇J does not depend on the offset.
    """
    p, reward = probability(outcomes)[0], outcomes.total_reward[0] + offset
    square = outcomes.total_score[0].square().sum(-1)
    return (p * reward**2 * square).sum() - gradient(outcomes).square().sum()


def measured_curves(
    rungs: Sequence[str], outcomes: Outcomes, groups: Sequence[int], progress: Progress
) -> dict[str, dict[str, list[float]]]:
    """The gradient of each rung at each G, enumerated: its length, direction and variance.

    "length" is ‖E[ĝ]‖/‖∇J‖, "cosine" that of the two, "variance" G times the total variance, and
    "noise" the same after rescaling the gradient to the length of ∇J. All are [groups].
    """
    curves = {}
    for name in progress(rungs, "rungs"):
        seen = [microscope(ladder.get(name).estimator, outcomes, group) for group in groups]
        length = [float(one.expected.norm() / one.gradient.norm()) for one in seen]
        variance = [one.variance * group for one, group in zip(seen, groups, strict=True)]
        curves[name] = {
            "length": length,
            "cosine": [one.cosine for one in seen],
            "variance": variance,
            "noise": [total / size**2 for total, size in zip(variance, length, strict=True)],
        }
    return curves


def expected_curves(
    outcomes: Outcomes, groups: tuple[int, ...]
) -> dict[str, dict[str, list[float]]]:
    """Closed forms of the gradient's "length" and "noise", for the estimators that have one."""
    none, mean = (float(variance_at_baseline(outcomes, b)) for b in (0.0, objective(outcomes)))
    pair = [group * float(rloo_covariance(outcomes, group)[0].trace()) for group in groups]
    one = [1.0] * len(groups)
    return {
        "reinforce": {"length": one, "noise": [none] * len(groups)},
        "ppo_value": {"length": one, "noise": [mean] * len(groups)},
        "rloo": {"length": one, "noise": pair},
        "group_mean": {"length": [group_mean_factor(group) for group in groups], "noise": pair},
        "group_std": {
            "length": [
                float(group_std_weight(objective(outcomes), group, eps=1e-6)) for group in groups
            ]
        },
    }
