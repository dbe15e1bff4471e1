"""A rollout with every arm in exact proportion, so that its sample mean is an expectation."""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.environments import Environment, pick
from bandits.policies import LinearSoftmax, Softmax
from bandits.problem import Bandit
from course.arguments import typed
from course.errors import require
from course.exact.counting import members
from course.rollout import Rollout, on_last_token
from course.train.noise import Noise


@typed
class Population(Bandit):
    """A bandit without randomness: every rollout holds arm a `counts[a]` times, paying its mean.

    `counts` [..., Q, K] (int64, all with the same sum G) represent the sampling policy
    π_old = counts/G. It stays fixed while the policy changes, as in many updates on one rollout.
    There are two uses:

    - counts = G·π_old gives an estimator's exact objective on a stale rollout, as if G were
      infinite;
    - counts = 1 for each arm, with an `ImportanceSampling` surrogate, gives the gradient of Σ π A,
      which is the exact ∇J.

    An arm with a length (`environment.lengths`) is an answer of that many tokens, the first of
    which is the choice. `reference` is as in `Bandit`: log-probabilities [..., Q, K] or "start".
    Raises `CourseError` for wrong counts.
    """

    def __init__(
        self,
        environment: Environment,
        policy: Softmax | LinearSoftmax,
        counts: Tensor,
        *,
        reference: Tensor | str | None = None,
    ) -> None:
        whole = not counts.is_floating_point() and counts.dtype != torch.bool
        require(whole, "counts", counts.dtype, "a type of whole numbers, such as torch.int64")
        require(bool((counts >= 0).all()), "counts", counts.tolist(), "whole numbers ≥ 0")
        total = counts.sum(-1)
        group = int(total.flatten()[0])
        require(
            bool((total == group).all()) and group > 0,
            "counts",
            total.tolist(),
            "the same sum G > 0 for every run and prompt",
        )
        super().__init__(environment, policy, group, reference=reference)
        shape = (*self.runs, *environment.mean.shape[-2:])
        counts = counts.expand(shape)
        action = members(counts.reshape(-1, shape[-1]), group).reshape(*shape[:-1], group)
        dtype = policy.parameters[0].dtype
        old = (counts.to(dtype) / group).log()
        ref, mask = self.reference, self._mask(action)
        self.rollout = Rollout(
            reward=on_last_token(pick(environment.mean.to(dtype).expand(shape), action), mask),
            log_prob=self._on_first_token(pick(old, action)),
            mask=mask,
            ref_log_prob=None if ref is None else self._on_first_token(pick(ref, action)),
            old_log_dist=self._dist(old),
            ref_log_dist=None if ref is None else self._dist(ref),
            data={"action": action, "prompt": self._prompts},
        )

    def sample(self, noise: Noise) -> Rollout:
        """The population, which is the same every time."""
        return self.rollout


@typed
def every_arm(environment: Environment, policy: Softmax | LinearSoftmax) -> Population:
    """The population with each arm once: `ImportanceSampling` surrogates then have the exact ∇J."""
    return Population(
        environment,
        policy,
        torch.ones(environment.mean.shape[-2:], dtype=torch.long, device=environment.mean.device),
    )
