"""Exact ascent on one prompt: the expected gradient of an estimator, enumerated, drives the logits.
Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import outcomes
from bandits.policies import log_softmax
from course.errors import require
from course.estimator import Estimator
from course.exact import microscope


def expected_gradient(
    estimator: Estimator,
    environment: Environment,
    log_prob: Tensor,
    group: int,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """[K] E[ĝ] with respect to the K logits of one prompt, for groups of `group` samples.

    `log_prob` [K] is the policy, `old` [K] the one that samples (None: the policy itself),
    `reference` [K] the anchor, all in nats; `environment` has one prompt and rewards that can be
    listed.
    """
    require(log_prob.dim() == 1, "log_prob", tuple(log_prob.shape), "a shape [K]: one prompt")
    one = [None if tensor is None else tensor.unsqueeze(0) for tensor in (old, reference)]
    listed = outcomes(environment, log_prob.unsqueeze(0), old=one[0], reference=one[1])
    return microscope(estimator, listed, group, covariance=False).expected


def follow(
    pull: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    rate: float,
    steps: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> Tensor:
    """`steps` updates θ ← θ + rate·`pull`(log π) from log-probabilities `start` [K]: all policies
    on the way [steps + 1, K].
    """
    path = [start]
    for _ in progress(range(steps)):
        path.append(log_softmax(path[-1] + rate * pull(path[-1])))
    return torch.stack(path)


def ascend(
    estimator: Estimator,
    environment: Environment,
    start: Tensor,
    group: int,
    *,
    rate: float,
    steps: int,
    reference: Tensor | None = None,
    natural: bool = False,
    stale: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> Tensor:
    """`steps` updates θ ← θ + rate·E[ĝ] from log-probabilities `start` [K]: all policies on the way
    [steps + 1, K].

    `stale` lets the start sample for every update, as many epochs over one rollout do; otherwise
    every update is on policy. `natural` takes the natural gradient, which for a softmax over its
    own logits is E[ĝ]/π: the same way through the simplex where K = 2, by another clock, that does
    not slow down near its edge.
    """

    def pull(log_prob: Tensor) -> Tensor:
        gradient = expected_gradient(
            estimator,
            environment,
            log_prob,
            group,
            old=start if stale else None,
            reference=reference,
        )
        return gradient / log_prob.exp() if natural else gradient

    return follow(pull, start, rate=rate, steps=steps, progress=progress)
