"""Exact gradient ascent on one prompt: the logits follow an estimator's enumerated expectation.

Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import outcomes
from bandits.policies import log_softmax
from course.arguments import typed
from course.errors import require
from course.estimator import Estimator
from course.exact import microscope


@typed
def expected_gradient(
    estimator: Estimator,
    environment: Environment,
    log_prob: Tensor,
    group: int,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """E[ĝ] [K] with respect to the K logits of one prompt, for groups of `group` samples.

    `log_prob` [K] is the current policy, `old` [K] the sampling policy (None: the current one), and
    `reference` [K] the reference policy, all in nats. `environment` has one prompt and rewards that
    can be listed. Raises `CourseError` otherwise.
    """
    require(log_prob.dim() == 1, "log_prob", tuple(log_prob.shape), "a shape [K]: one prompt")
    one = [None if tensor is None else tensor.unsqueeze(0) for tensor in (old, reference)]
    listed = outcomes(environment, log_prob.unsqueeze(0), old=one[0], reference=one[1])
    return microscope(estimator, listed, group, covariance=False).expected


@typed
def follow(
    pull: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    rate: float,
    steps: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> Tensor:
    """Take `steps` updates θ ← θ + rate·`pull`(log π) from log-probabilities `start` [K].

    Returns the log-probabilities before the first update and after each one, [steps + 1, K].
    """
    path = [start]
    for _ in progress(range(steps)):
        path.append(log_softmax(path[-1] + rate * pull(path[-1])))
    return torch.stack(path)


@typed
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
    """Take `steps` updates θ ← θ + rate·E[ĝ] from log-probabilities `start` [K].

    Returns the log-probabilities before the first update and after each one, [steps + 1, K]. With
    `stale`, every update uses samples of the initial policy, as many epochs over one rollout do;
    otherwise every update is on-policy. With `natural`, the step follows the natural gradient,
    which for a tabular softmax is E[ĝ]/π. With K = 2 it follows the same path as the plain
    gradient, but does not slow down near the edge of the simplex.
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
