"""The exact error of working token by token instead of with whole answers.

All completions of a prompt are listed. Ratios, KL penalties and weights per token are compared with
the gradients of J and of the KL of whole answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course import exact, ladder
from course.estimator import Estimator, replace
from course.exact import group_std_weight, microscope
from course.lab.terminal import QUIET, Progress
from course.parts import (
    K1,
    K2,
    K3,
    Clip,
    ExactKL,
    GroupMean,
    GroupStd,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
    SequenceRatio,
)
from course.train.noise import Noise
from tinylm.bridge import Bridge
from tinylm.moved import Policies
from tinylm.rewards import ExactMatch

# ρ·A with the leave-one-out mean: unbiased if the ratio is exact
RATIO = replace(ladder.rloo, surrogate=ImportanceSampling())
SEQUENCE_RATIO = replace(RATIO, ratio=SequenceRatio())
# estimators on which the bandit and the transformer must agree
AT_SEQUENCE_LEVEL: dict[str, Estimator] = {
    "ratio": SEQUENCE_RATIO,
    "clip": replace(SEQUENCE_RATIO, surrogate=Clip(0.2)),
    "std": replace(replace(SEQUENCE_RATIO, baseline=GroupMean()), scale=GroupStd()),
    "1/|o|": replace(SEQUENCE_RATIO, aggregation=ladder.length_mean.aggregation),
}
TOKEN_KL: dict[str, Estimator] = {  # on a bandit the expected gradient of each is ∇KL(π‖ref)
    "k2": Estimator(kl=K2(1.0)),
    "ρ·k1": Estimator(kl=K1(1.0, place=InLossTimesRatio())),
    "ρ·k3": Estimator(kl=K3(1.0, place=InLossTimesRatio())),
    "exact": Estimator(kl=ExactKL(1.0)),
}
REWARD_KL = Estimator(kl=K1(1.0, place=InReward()))
FORWARD_KL = Estimator(kl=K3(1.0))  # ∇KL(ref‖π) on a bandit


def angle(vector: Tensor, truth: Tensor) -> float:
    """The angle between two vectors [D], in degrees."""
    along = vector @ truth / truth.norm()
    across = (vector - along * truth / truth.norm()).norm()
    return math.degrees(math.atan2(float(across), float(along)))


def off(vector: Tensor, truth: Tensor) -> float:
    """‖vector − truth‖ / ‖truth‖."""
    return float((vector - truth).norm() / truth.norm())


def beside_bandit(bridge: Bridge, estimator: Estimator, group: int) -> dict[str, dict[str, float]]:
    """Bias and spread as shares of ‖∇J‖, and the angle from ∇J to E[ĝ] in degrees.

    They are those of the "transformer", and of the "bandit" with one logit per completion.
    """
    views = {"transformer": bridge.microscope, "bandit": bridge.bandit_microscope}
    found = {who: look(estimator, group) for who, look in views.items()}
    return {
        who: {
            "bias": seen.relative_bias,
            "angle": angle(seen.expected, seen.gradient),
            "spread": seen.std / float(seen.gradient.norm()),
        }
        for who, seen in found.items()
    }


def from_arms(bridge: Bridge, estimator: Estimator, group: int) -> Tensor:
    """The bandit's expected coefficient of each arm, on all tokens of its completion [1, K, T]."""
    found = microscope(estimator, bridge.arms, group, covariance=False).coefficient
    return found[..., :1] * bridge.mask


def ratio_row(bridge: Bridge) -> dict[str, float]:
    """How far E[ĝ] is from ∇J, and the surrogate's forecast from J, with token and sequence ratios.

    The groups have two samples; with a leave-one-out baseline E[ĝ] does not depend on G. The
    forecasts are eq:token-ratio-forecast.
    """
    outcomes = bridge.outcomes
    old = outcomes.old[0].sum(-1).exp()
    before = float(old @ bridge.reward)
    log_ratio = torch.where(bridge.mask, outcomes.log_prob - outcomes.old, 0.0)[0]
    gain = (log_ratio.exp() - 1).sum(-1), log_ratio.sum(-1).exp() - 1
    token, sequence = (float(old @ (each * (bridge.reward - before))) for each in gain)
    return {
        "kl": exact.kl(outcomes),
        "J": bridge.objective,
        "J_old": before,
        "token": bridge.microscope(RATIO, 2, spread=False).relative_bias,
        "sequence": bridge.microscope(SEQUENCE_RATIO, 2, spread=False).relative_bias,
        "forecast_token": before + token,
        "forecast_sequence": before + sequence,
    }


def kl_row(bridge: Bridge) -> dict[str, float]:
    """How far the expected gradients of KL penalties are from that of the KL of whole answers.

    The bridge must have rewards of 0 and be on-policy.
    """
    reverse, forward = (
        bridge.pull_back(exact.kl_coefficient(bridge.outcomes, d)) for d in ("reverse", "forward")
    )

    def descent(estimator: Estimator) -> Tensor:
        return -bridge.microscope(estimator, 1, spread=False).expected

    row = {name: off(descent(estimator), reverse) for name, estimator in TOKEN_KL.items()}
    return row | {
        "k1 in the reward": off(descent(REWARD_KL), reverse),
        "k2 of the sequence": off(-bridge.pull_back(from_arms(bridge, TOKEN_KL["k2"], 1)), reverse),
        "k3": off(descent(FORWARD_KL), forward),
        "k3 of the sequence": off(-bridge.pull_back(from_arms(bridge, FORWARD_KL, 1)), forward),
    }


def drift(
    policies: Policies, rows: Sequence[int], progress: Progress = QUIET
) -> dict[str, list[list[float]]]:
    """`ratio_row` and `kl_row` of each prompt after each number of updates: name → [rows, updates].

    The ratio's reference is the policy that sampled; the KL is taken on-policy, towards it.
    """
    task, old, nothing = policies.task, policies.old, ExactMatch(weight=0.0)
    found = [
        [
            ratio_row(Bridge(now, task, row, old=old, reference=old))
            | kl_row(Bridge(now, task, row, reference=old, reward=nothing))
            for now in policies.moved.values()
        ]
        for row in progress(rows, "prompts")
    ]
    return {name: [[at[name] for at in path] for path in found] for name in found[0][0]}


def identity_row(bridge: Bridge, group: int, noise: Noise, size: int = 64) -> dict[str, float]:
    """The largest differences between the bandit and the transformer.

    They are compared in J, in the coefficients, and in the gradient of one sampled group. That
    group has `size` samples, so that it is almost surely not a zero-variance group.
    """
    bandit = bridge.bandit(size)
    rollout = bandit.sample(noise)  # samples of π_old
    with torch.no_grad():
        bandit.parameters[0].copy_(bridge.log_prob[None])  # the bandit's policy is now π
    differences, batch = [], []
    for estimator in AT_SEQUENCE_LEVEL.values():
        tokens = microscope(estimator, bridge.outcomes, group, covariance=False).coefficient
        differences.append(off(from_arms(bridge, estimator, group), tokens))
        objective = estimator.objective(bandit.policy(rollout), estimator.freeze(rollout))
        by_logit = torch.autograd.grad(objective.sum(), bandit.parameters)[0][0]
        through_bandit = bridge.pull_back(by_logit.unsqueeze(-1).expand(bridge.mask.shape)[None])
        same = bridge.rollout(rollout.data["action"][0])
        direct = torch.autograd.grad(
            estimator.objective(bridge.policy(same), estimator.freeze(same)).sum(),
            bridge.model.parameters,
            materialize_grads=True,
        )
        batch.append(off(through_bandit, torch.cat([g.flatten() for g in direct])))
    return {
        "J": abs(float(bandit.metrics()["expected_reward"]) - bridge.objective),
        "coefficient": max(differences),
        "batch": max(batch),
    }


def std_weight(p: Any, group: int) -> np.ndarray:
    """w_G(p) of the rung `group_std`, with its ε, for success probabilities p [n]."""
    eps = ladder.group_std.scale.eps  # type: ignore[attr-defined]
    return group_std_weight(torch.as_tensor(p, dtype=torch.float64), group, eps=eps).numpy()


def weight_row(bridge: Bridge, groups: Sequence[int], group: int) -> dict[str, Any]:
    """E[ĝ] under the group std, split into its component along ∇p and the rest.

    "sum" and "rest" use the sum over tokens, for each size in `groups`. "mean" and "angle" use
    1/|o| with `group` samples; "mean" is multiplied by the length of the right answer.
    """
    right = int(bridge.mask[bridge.reward.argmax()].sum())
    row: dict[str, Any] = {"p": bridge.objective, "right": right, "sum": [], "rest": []}
    along = bridge.gradient / bridge.gradient.square().sum()
    for size in groups:
        found = bridge.microscope(ladder.group_std, size, spread=False).expected
        row["sum"].append(float(found @ along))
        row["rest"].append(off(found, float(found @ along) * bridge.gradient))
    found = bridge.microscope(ladder.length_mean, group, spread=False).expected
    return row | {"mean": right * float(found @ along), "angle": angle(found, bridge.gradient)}
