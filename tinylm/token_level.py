"""What token by token costs, exactly: ratios, penalties and weights of a prompt whose completions
are all listed, against the gradients of J and of the KL of whole answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course import exact, ladder
from course.estimator import Estimator, replace
from course.exact import microscope
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

RATIO = replace(
    ladder.rloo, surrogate=ImportanceSampling()
)  # ρ·A with the others' mean: unbiased where the ratio is exact
SEQUENCE_RATIO = replace(RATIO, ratio=SequenceRatio())
AT_SEQUENCE_LEVEL: dict[
    str, Estimator
] = {  # what a bandit and the transformer must agree on, token by token
    "ratio": SEQUENCE_RATIO,
    "clip": replace(SEQUENCE_RATIO, surrogate=Clip(0.2)),
    "std": replace(replace(SEQUENCE_RATIO, baseline=GroupMean()), scale=GroupStd()),
    "1/|o|": replace(SEQUENCE_RATIO, aggregation=ladder.length_mean.aggregation),
}
TOKEN_KL: dict[str, Estimator] = {  # all would be ∇KL(π‖ref) on a bandit
    "k2": Estimator(kl=K2(1.0)),
    "ρ·k1": Estimator(kl=K1(1.0, place=InLossTimesRatio())),
    "ρ·k3": Estimator(kl=K3(1.0, place=InLossTimesRatio())),
    "exact": Estimator(kl=ExactKL(1.0)),
}
REWARD_KL = Estimator(kl=K1(1.0, place=InReward()))
FORWARD_KL = Estimator(kl=K3(1.0))  # ∇KL(ref‖π) on a bandit


def angle(vector: Tensor, truth: Tensor) -> float:
    """Degrees between two vectors [D]."""
    along = vector @ truth / truth.norm()
    across = (vector - along * truth / truth.norm()).norm()
    return math.degrees(math.atan2(float(across), float(along)))


def off(vector: Tensor, truth: Tensor) -> float:
    """‖vector − truth‖ / ‖truth‖."""
    return float((vector - truth).norm() / truth.norm())


def from_arms(bridge: Bridge, estimator: Estimator, group: int) -> Tensor:
    """[1, K, T] the bandit's expected coefficient of each arm, on every token of the completion
    that the arm is.
    """
    found = microscope(estimator, bridge.arms, group, covariance=False).coefficient
    return found[..., :1] * bridge.mask


def ratio_row(bridge: Bridge) -> dict[str, float]:
    """How far E[ĝ] and the surrogate's own forecast are from ∇J and J, with a ratio per token and
    per sequence.

    In groups of two: with the others' mean as baseline E[ĝ] does not depend on G. The forecasts:
    eq:token-ratio-forecast.
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
    """How far the expected gradients of penalties are from that of the answers' KL.

    The bridge's rewards are 0 and its π samples.
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


def identity_row(bridge: Bridge, group: int, noise: Noise, size: int = 64) -> dict[str, float]:
    """The bandit and the transformer: the largest difference in J, in coefficients, and in the
    gradient of one sampled group, of `size` so that it is not silent.
    """
    bandit = bridge.bandit(size)
    rollout = bandit.sample(noise)  # of π_old: both stand there
    with torch.no_grad():
        bandit.parameters[0].copy_(bridge.log_prob[None])  # and now both are π
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


def weight_row(bridge: Bridge, groups: Sequence[int], group: int) -> dict[str, Any]:
    """E[ĝ] of the group std along ∇p, and what is left over: with the sum for each of `groups`, and
    with 1/|o| for `group` (times the right answer's length).
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
