"""Questions that share weights: the bandit on which each part of the ladder is tried.

Every question has one right answer among K, and starts at a success probability of its own. The
policy is linear: each answer of each question has a weight of its own, and random features that all
questions share. So what is learned on one question disturbs the others, as in a network.

`follow` takes expected updates instead of sampled ones, and predicts what dividing by the group's
std does to hard and easy questions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.policies import LinearSoftmax
from course.estimator import Estimator
from course.exact import group_mean_factor, group_std_weight
from course.parts import GroupStd


def start(success: Tensor, arms: int) -> Tensor:
    """log π [Q, K] of policies whose first answer, the right one, has probability `success` [Q]."""
    wrong = (1 - success) / (arms - 1)
    return torch.cat([success.unsqueeze(-1), wrong.unsqueeze(-1).expand(-1, arms - 1)], -1).log()


def shared_policy(
    log_prob: Tensor, runs: tuple[int, ...], width: int, strength: float
) -> LinearSoftmax:
    """A linear policy that starts at `log_prob` [Q, K], with weights [*runs, Q·K + width].

    The last `width` features are random, with standard deviation `strength`/√width, and their
    weights start at 0. They are the same for all runs.
    """
    prompts, arms = log_prob.shape
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(prompts, arms, width, generator=generator, dtype=torch.float64)
    random = random.to(log_prob) * strength / width**0.5
    own = torch.eye(prompts * arms).to(log_prob).view(prompts, arms, -1)
    weights = torch.cat([log_prob.flatten(), torch.zeros(width).to(log_prob)])
    return LinearSoftmax(torch.cat([own, random], -1), weights.expand(*runs, -1))


def follow(
    estimator: Estimator, policy: LinearSoftmax, group: int, rate: float, steps: int
) -> Tensor:
    """Success probabilities [steps + 1, Q] along expected on-policy updates, one per rollout.

    With a group baseline E[ĝ] = Σ_q w(p_q) ∇p_q / Q, where w = w_G(p) if the group's std divides
    and (G−1)/G if it does not. `policy` has no runs, and is changed.
    """
    scale, path = estimator.scale, []
    for _ in range(steps + 1):
        success = policy.log_probs()[:, 0].exp()
        path.append(p := success.detach())
        if isinstance(scale, GroupStd):
            weight = group_std_weight(p, group, scale.ddof, scale.eps).to(p)
        else:
            weight = torch.full_like(p, group_mean_factor(group))
        [gradient] = torch.autograd.grad((weight * success).mean(), policy.parameters)
        with torch.no_grad():
            policy.parameters[0].add_(rate * gradient)
    return torch.stack(path)


__all__ = ["follow", "shared_policy", "start"]
