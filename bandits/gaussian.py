"""Gradients of a Gaussian policy, one for each group of samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bandits.policies import GaussianPolicy
from course.arguments import typed
from course.errors import require, require_broadcasts, require_floats
from course.estimator import Estimator
from course.rollout import Policy, Rollout


@typed
def group_gradients(
    estimator: Estimator,
    mean: Tensor,
    std: Tensor | float,
    action: Tensor,
    score: Callable[[Tensor], Tensor],
    value: Tensor | None = None,
) -> Tensor:
    """∂ objective / ∂ μ of the policy N(μ, σ²) for each group of actions: [..., G] → [...].

    The actions may be sampled or the nodes of a quadrature. `mean`, `std` and the critic's `value`
    broadcast to [...]. `score` maps actions to rewards elementwise. Every group is a run with one
    prompt, so the estimator compares nothing across groups.
    """
    require(action.dim() >= 1, "action", tuple(action.shape), "a shape [..., G]")
    require_floats("action", action)
    runs = action.shape[:-1]
    for name, each in (("mean", mean), ("std", std), ("value", value)):
        if isinstance(each, Tensor):
            require_floats(name, each)
            require_broadcasts(name, each, runs)
    std = std.expand(runs).unsqueeze(-1) if isinstance(std, Tensor) else std
    policy = GaussianPolicy(mean.expand(runs).unsqueeze(-1), std)
    action = action.unsqueeze(-2)  # [..., Q = 1, G]
    log_prob = policy.log_prob(action).unsqueeze(-1)
    rollout = Rollout(
        reward=score(action).unsqueeze(-1),
        log_prob=log_prob.detach(),
        mask=torch.ones_like(log_prob, dtype=torch.bool),
        value=(
            None
            if value is None
            else value.expand(runs)[..., None, None, None].expand(log_prob.shape)
        ),
    )
    objective = estimator.objective(Policy(log_prob), estimator.freeze(rollout))
    [gradient] = torch.autograd.grad(objective.sum(), [policy.mean])
    return gradient.squeeze(-1)
