"""The logged metrics, each defined once in the glossary that docs, logs and figures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.estimator import Estimator, Frozen
from course.parts.base import ask_tensor
from course.parts.baseline import mean_of, silent
from course.parts.correction import log_kappa
from course.parts.kl import exact_kl_where, k3
from course.rollout import Policy, Rollout
from course.train.optim import per_run_dot


def token_mean(values: Tensor, tokens: Tensor) -> Tensor:
    """Token means of n minibatches [n, ...] → the mean over all their tokens [...].

    `tokens` [n, ...] counts the chosen tokens of each minibatch.
    """
    # the mean of a minibatch without chosen tokens is undefined
    known = torch.where(tokens > 0, values, torch.zeros_like(values))
    weight = tokens.to(values.dtype)
    return (known * weight).sum(0) / weight.sum(0)


def update_mean(values: Tensor, tokens: Tensor) -> Tensor:
    """One number per update [n, ...] → their mean [...]; every update has the same weight."""
    return values.mean(0)


def smallest(values: Tensor, tokens: Tensor) -> Tensor:
    """One number per update [n, ...] → the smallest [...]."""
    return values.amin(0)


def largest(values: Tensor, tokens: Tensor) -> Tensor:
    """One number per update [n, ...] → the largest [...]."""
    return values.amax(0)


@dataclass(frozen=True)
class Metric:
    """A logged quantity, one number per run [...].

    `pool` combines the numbers of an epoch's minibatches into one, as if they were a single batch.
    """

    name: str
    unit: str
    definition: str
    pool: Callable[[Tensor, Tensor], Tensor] = update_mean


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
            "entropy",
            "nats",
            "entropy of the next-token distribution, mean over chosen tokens",
            pool=token_mean,
        ),
        Metric(
            "kl_old",
            "nats",
            "KL(π_old‖π) per chosen token; exact where the distribution is known, else the mean"
            " of k3",
            pool=token_mean,
        ),
        Metric(
            "kl_ref",
            "nats",
            "KL(π‖π_ref) per chosen token; exact where the distribution is known, else the mean"
            " of k3",
            pool=token_mean,
        ),
        Metric(
            "clip_fraction",
            "share",
            "chosen tokens whose surrogate is flat in ρ; 0 where a rollout serves one update",
            pool=token_mean,
        ),
        Metric(
            "sampler_kl",
            "nats",
            "KL(μ‖π_old) per chosen token, the mean of k3: how far the sampler is from the learner",
            pool=token_mean,
        ),
        Metric(
            "correction_mean",
            "",
            "mean weight c of the correction over chosen tokens",
            pool=token_mean,
        ),
        Metric(
            "correction_dropped",
            "share",
            "chosen tokens that the correction drops: c = 0",
            pool=token_mean,
        ),
        Metric("ratio_min", "", "smallest ρ of a chosen token", pool=smallest),
        Metric("ratio_max", "", "largest ρ of a chosen token", pool=largest),
        Metric(
            "gradient_norm",
            "",
            "length of the gradient before clipping; of the minibatches' mean gradient where there"
            " are several",
        ),
        Metric(
            "value_error",
            "",
            "mean of (V − R)² over chosen tokens: the critic's squared error",
            pool=token_mean,
        ),
        Metric(
            "updates",
            "",
            "updates that this rollout was used for, fewer than epochs × minibatches where the KL"
            " stop ended them",
        ),
        Metric("kl_coef", "", "the adaptive β of this rollout"),
        Metric("entropy_coef", "", "the adaptive coefficient of this rollout's entropy bonus"),
        Metric("trust_region_kl", "nats", "KL(π_old‖π) after the TRPO step", pool=token_mean),
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
            pool=token_mean,
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


def chosen_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the chosen tokens of each run: values [..., Q, G or 1, T or 1] → [...].

    It is 0 if a run has no chosen token. Values outside the mask may be NaN, so they are replaced,
    not multiplied by 0.
    """
    chosen = torch.where(mask, values, torch.zeros_like(values))
    return chosen.sum((-3, -2, -1)) / mask.sum((-3, -2, -1)).clamp(min=1)


def mean_kl(log_q: Tensor, log_p: Tensor, mask: Tensor) -> Tensor:
    """The mean KL(q‖p) over chosen tokens [...], in nats. eq:mean-token-kl

    `log_q` and `log_p` are log-probabilities [..., Q, G or 1, T or 1, V].
    """
    return chosen_mean(exact_kl_where(log_q, log_p, mask), mask)


def of_rollout(rollout: Rollout) -> dict[str, Tensor]:
    """The metrics of the samples, name → [...]; samples without a chosen token do not count."""
    rollout = rollout.widened()
    score, exists = rollout.total_reward, rollout.exists

    def mean(values: Tensor, exists: Tensor) -> Tensor:
        return mean_of(values.to(score.dtype), (-2, -1), exists).squeeze((-2, -1))

    logged = {
        "reward": mean(score, exists),
        "silent_groups": mean(silent(score, exists=exists), exists.any(-1, keepdim=True)),
        "length": mean(rollout.length, exists),
    }
    if rollout.truncated is not None:
        logged["truncated"] = mean(rollout.truncated, exists)
    if rollout.kl_coef is not None:
        logged["kl_coef"] = rollout.kl_coef
    return logged


@torch.no_grad()
def of_update(estimator: Estimator, policy: Policy, frozen: Frozen) -> dict[str, Tensor]:
    """The metrics of one update, taken before it is applied, name → [...]."""
    rollout, mask, policy = frozen.rollout, frozen.rollout.mask, policy.widened()
    log_ratio = estimator.log_ratio(policy, rollout)
    ratio, surrogate = log_ratio.exp(), estimator.surrogate
    log_prob = rollout.select(mask, policy.log_prob)
    asked = surrogate.clipped, log_ratio, log_prob, frozen.advantage
    clipped = ask_tensor("surrogate", surrogate, mask.shape, *asked, flags=True)
    logged = {
        # eq:flat-token-share
        "clip_fraction": chosen_mean(clipped.to(ratio.dtype), mask),
        "ratio_min": ratio.masked_fill(~mask, torch.inf).amin((-3, -2, -1)),
        "ratio_max": ratio.masked_fill(~mask, -torch.inf).amax((-3, -2, -1)),
        "kl_old": kl_to_old(policy, rollout),
    }
    if rollout.sampler_log_prob is not None:
        logged["sampler_kl"] = chosen_mean(k3(log_kappa(rollout)), mask)
    if frozen.correction is not None:
        logged["correction_mean"] = chosen_mean(frozen.correction, mask)
        dropped = (frozen.correction == 0).to(ratio.dtype)
        logged["correction_dropped"] = chosen_mean(dropped, mask)
    if policy.log_dist is not None:
        logged["entropy"] = chosen_mean(policy.entropy_where(mask), mask)
    if policy.log_dist is not None and rollout.ref_log_dist is not None:
        logged["kl_ref"] = mean_kl(policy.log_dist, rollout.ref_log_dist, mask)
    elif rollout.ref_log_prob is not None:
        logged["kl_ref"] = chosen_mean(k3(rollout.ref_log_prob - policy.log_prob), mask)
    if policy.value is not None:
        logged["value_error"] = chosen_mean((policy.value - frozen.target) ** 2, mask)
    return logged


def kl_to_old(policy: Policy, rollout: Rollout) -> Tensor:
    """KL(π_old‖π) per chosen token [...], in nats.

    Exact if both distributions are known, else the mean of k3, which is unbiased.
    """
    if policy.log_dist is not None and rollout.old_log_dist is not None:
        if (
            policy.log_dist.data_ptr() == rollout.old_log_dist.data_ptr()
            and policy.log_dist.shape == rollout.old_log_dist.shape
        ):
            return rollout.reward.new_zeros(rollout.runs)  # both are the same tensor
        return mean_kl(rollout.old_log_dist, policy.log_dist, rollout.mask)
    return chosen_mean(k3(policy.log_prob - rollout.log_prob), rollout.mask)


@dataclass
class Epoch:
    """The metrics of one epoch: its minibatches are logged as if they were one batch.

    Minibatches differ in their number of tokens, so token means are weighted by it (`Metric.pool`).
    Gradients are averaged before their norm is taken. `active` [...] bool marks the runs that took
    part; None means all.
    """

    active: Tensor | None = None
    rows: list[dict[str, Tensor]] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)  # [...] of each minibatch
    gradient: Sequence[Tensor] = ()  # the sum of the minibatches' [..., *rest]

    def add(self, seen: Mapping[str, Tensor], mask: Tensor, gradients: Sequence[Tensor]) -> None:
        """Add one update: its metrics (name → [...]), the mask of its minibatch, its gradients."""
        self.rows.append(dict(seen))
        self.tokens.append(mask.sum((-3, -2, -1)))
        if self.gradient:
            gradients = [a + b for a, b in zip(self.gradient, gradients, strict=True)]
        self.gradient = gradients

    def pooled(self) -> dict[str, Tensor]:
        """The metrics of the whole epoch, name → [...]."""
        count, tokens = len(self.rows), torch.stack(self.tokens)
        norm = per_run_dot(self.gradient, self.gradient, tokens.dim() - 1).sqrt()
        logged = {"gradient_norm": norm / count}
        for name in self.rows[0]:
            pool = GLOSSARY[name].pool if name in GLOSSARY else update_mean
            values = [row[name] for row in self.rows]
            logged[name] = values[0] if count == 1 else pool(torch.stack(values), tokens)
        return logged

    def after(self, earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`pooled`, but with the metrics of `earlier` epochs for runs that took no part.

        If runs may stop early, it also has the number of `updates` so far.
        """
        now = self.pooled()
        if self.active is None:
            return now
        updates = (self.active * len(self.rows)).to(now["gradient_norm"].dtype)
        if earlier:
            now = {name: torch.where(self.active, now[name], earlier[name]) for name in now}
            updates = updates + earlier["updates"]
        return now | {"updates": updates}
