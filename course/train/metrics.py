"""The metrics that every rung logs, each defined once: the glossary that docs, logs and figures
share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course.estimator import Estimator, Frozen
from course.parts.baseline import silent
from course.parts.kl import exact_kl, k3
from course.rollout import Policy, Rollout


@dataclass(frozen=True)
class Metric:
    """A logged quantity, one number per run [...]."""

    name: str
    unit: str
    definition: str


GLOSSARY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("reward", "", "mean score of the rollout's samples"),
        Metric(
            "silent_groups",
            "share",
            "groups whose samples all have the same score: they teach nothing",
        ),
        Metric("length", "tokens", "mean number of tokens per sample that the policy chose"),
        Metric("truncated", "share", "samples cut at the generation limit"),
        Metric(
            "entropy", "nats", "entropy of the next-token distribution, mean over chosen tokens"
        ),
        Metric(
            "kl_old",
            "nats",
            "KL(π_old‖π) per chosen token; exact where the distribution is known, else the mean"
            " of k3",
        ),
        Metric(
            "kl_ref",
            "nats",
            "KL(π‖π_ref) per chosen token; exact where the distribution is known, else the mean"
            " of k3",
        ),
        Metric(
            "clip_fraction",
            "share",
            "chosen tokens whose surrogate is flat in ρ; 0 where a rollout serves one update",
        ),
        Metric("ratio_min", "", "smallest ρ of a chosen token"),
        Metric("ratio_max", "", "largest ρ of a chosen token"),
        Metric("gradient_norm", "", "length of the gradient before clipping"),
        Metric(
            "value_error", "", "mean of (V − R)² over chosen tokens: the critic's squared error"
        ),
        Metric("kl_coef", "", "the adaptive β of this rollout"),
        Metric("trust_region_kl", "nats", "KL(π_old‖π) after the TRPO step"),
        Metric(
            "step_fraction",
            "",
            "share of the full natural step that TRPO's line search accepted; 0: no step",
        ),
        Metric("expected_reward", "", "exact J of the current policy, by enumeration"),
        Metric(
            "optimal_action",
            "share",
            "probability that the policy gives to the best arm, mean over prompts",
        ),
        Metric(
            "cross_entropy",
            "nats",
            "−log π of a demonstration's token, mean over tokens: the loss of the warm start",
        ),
        Metric(
            "warm_accuracy",
            "share",
            "sampled completions of training questions that are right, which ends the warm start",
        ),
        Metric("accuracy", "share", "greedy answers to held-out questions that are right"),
        Metric("action_mean", "", "mean of a Gaussian policy, averaged over prompts"),
        Metric("action_std", "", "standard deviation of a Gaussian policy, averaged over prompts"),
    )
}

COMBINE = {
    "ratio_min": torch.amin,
    "ratio_max": torch.amax,
}  # how minibatches are put together; the rest: their mean


def chosen_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the chosen tokens, per run: [..., Q, G or 1, T or 1] and the mask → [...]."""
    weight = mask.to(values.dtype)
    return (values * weight).sum((-3, -2, -1)) / weight.sum((-3, -2, -1))


def mean_kl(log_q: Tensor, log_p: Tensor, mask: Tensor) -> Tensor:
    """KL(q‖p) of log-probabilities [..., Q, G or 1, T or 1, V], mean over chosen tokens → [...] in
    nats. eq:mean-token-kl
    """
    return chosen_mean(exact_kl(log_q, log_p), mask)


def of_rollout(rollout: Rollout) -> dict[str, Tensor]:
    """What the samples alone say, name → [...]."""
    score = rollout.total_reward
    logged = {
        "reward": score.mean((-2, -1)),
        "silent_groups": silent(score).to(score.dtype).mean((-2, -1)),
        "length": rollout.length.to(score.dtype).mean((-2, -1)),
    }
    if rollout.truncated is not None:
        logged["truncated"] = rollout.truncated.to(score.dtype).mean((-2, -1))
    if rollout.kl_coef is not None:
        logged["kl_coef"] = rollout.kl_coef
    return logged


@torch.no_grad()
def of_update(
    estimator: Estimator, policy: Policy, frozen: Frozen, gradient_norm: Tensor
) -> dict[str, Tensor]:
    """What one update sees before it is applied, name → [...]."""
    rollout, mask = frozen.rollout, frozen.rollout.mask
    log_ratio = estimator.log_ratio(policy, rollout)
    ratio = log_ratio.exp()
    logged = {
        "gradient_norm": gradient_norm,
        # eq:flat-token-share
        "clip_fraction": chosen_mean(
            estimator.surrogate.clipped(log_ratio, frozen.advantage).to(ratio.dtype), mask
        ),
        "ratio_min": ratio.masked_fill(~mask, torch.inf).amin((-3, -2, -1)),
        "ratio_max": ratio.masked_fill(~mask, -torch.inf).amax((-3, -2, -1)),
        "kl_old": kl_to_old(policy, rollout),
    }
    if policy.log_dist is not None:
        logged["entropy"] = chosen_mean(policy.entropy, mask)
    if policy.log_dist is not None and rollout.ref_log_dist is not None:
        logged["kl_ref"] = mean_kl(policy.log_dist, rollout.ref_log_dist, mask)
    elif rollout.ref_log_prob is not None:
        logged["kl_ref"] = chosen_mean(
            _masked(k3(rollout.ref_log_prob - policy.log_prob), mask), mask
        )
    if policy.value is not None:
        logged["value_error"] = chosen_mean((policy.value - frozen.target) ** 2, mask)
    return logged


def kl_to_old(policy: Policy, rollout: Rollout) -> Tensor:
    """KL(π_old‖π) per chosen token [...], exact where both distributions are known, else the mean
    of k3 (unbiased).
    """
    if policy.log_dist is not None and rollout.old_log_dist is not None:
        if (
            policy.log_dist.data_ptr() == rollout.old_log_dist.data_ptr()
            and policy.log_dist.shape == rollout.old_log_dist.shape
        ):
            return rollout.reward.new_zeros(rollout.runs)  # the very tensor that was sampled from
        return mean_kl(rollout.old_log_dist, policy.log_dist, rollout.mask)
    return chosen_mean(_masked(k3(policy.log_prob - rollout.log_prob), rollout.mask), rollout.mask)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))


def combine(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of several minibatches as one: extremes of extremes, means of the rest."""
    if len(updates) == 1:
        return dict(updates[0])
    stacked = {name: torch.stack([update[name] for update in updates]) for name in updates[0]}
    return {
        name: COMBINE[name](values, 0) if name in COMBINE else values.mean(0)
        for name, values in stacked.items()
    }
