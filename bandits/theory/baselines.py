"""How a constant baseline changes the gradient's variance on B3, by formula and by enumeration."""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.exact import b3
from course import ladder
from course.estimator import replace
from course.exact import (
    Outcomes,
    group_mean_factor,
    group_std_weight,
    microscope,
    objective,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    rloo_covariance,
    variance_at_baseline,
)
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
