"""Random samples that our estimators and a production library are both given: ragged, several
groups, off policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from course.estimator import Estimator
from course.rollout import Policy, Rollout

# tokens: the generation limit, longer than any sample, so that a divisor by the longest would be
# seen
LIMIT = 9
TOLERANCE = 1e-9  # absolute, on losses and gradients of order 1


@dataclass(frozen=True)
class Samples:
    """[Q, G, T] of two policies, a reference and a sampler that is none of them, float64.

    `length` [Q, G] tokens, of which `mask` are the policy's own.

    `score` [Q, G] is the outcome reward, a multiple of 1/64 since TRL rounds rewards to float32;
    `log_dist` [Q, G, T, V] log-probabilities of every token under the current policy (for the
    entropy only). All are garbage outside `mask`.
    """

    score: Tensor
    length: Tensor
    mask: Tensor
    truncated: Tensor
    old: Tensor
    ref: Tensor
    new: Tensor
    log_dist: Tensor
    sampler: Tensor

    @property
    def rollout(self) -> Rollout:
        """What our estimators see: the outcome reward sits on the last token of its sample."""
        reward = torch.zeros_like(self.old).scatter(
            -1, self.length.unsqueeze(-1) - 1, self.score.unsqueeze(-1)
        )
        return Rollout(
            reward,
            self.old,
            self.mask,
            ref_log_prob=self.ref,
            sampler_log_prob=self.sampler,
            truncated=self.truncated,
            limit=LIMIT,
        )

    def on_policy(self) -> Samples:
        """The same samples before any update: π = π_old."""
        return replace(self, new=self.old)


def draw(
    seed: int,
    *,
    prompts: int = 3,
    group: int = 4,
    tokens: int = 7,
    holes: bool = False,
    truncated: bool = False,
) -> Samples:
    """Samples of Q prompts × G completions of 1 to T tokens.

    The first group is silent: all its rewards are equal.

    `holes` takes tokens out of the middle that the policy did not choose (a tool's answer);
    `truncated` marks some samples as cut at the limit.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, group, tokens)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    length = torch.randint(1, tokens + 1, shape[:-1], generator=generator)
    length[-1, 0] = tokens
    mask = torch.arange(tokens).expand(shape) < length.unsqueeze(-1)
    if holes:
        tools = torch.rand(shape, generator=generator) < 0.3
        tools.scatter_(-1, length.unsqueeze(-1) - 1, False)  # the end token is the policy's own
        mask = mask & ~tools
    cut = torch.rand(shape[:-1], generator=generator) < (0.3 if truncated else 0.0)
    cut[-1] = torch.arange(group) == (1 if truncated else group)
    score = torch.randint(-64, 129, shape[:-1], generator=generator).double() / 64
    if prompts > 1:
        score[0] = score[0, 0]
    old = -0.2 - normal(*shape).abs()
    log_dist = torch.log_softmax(normal(*shape, 5), -1)
    return Samples(
        score,
        length,
        mask,
        cut,
        old,
        old + 0.4 * normal(*shape),
        old + 0.6 * normal(*shape),
        log_dist,
        old + 0.5 * normal(*shape),
    )


@dataclass(frozen=True)
class Result:
    """A loss, its gradient by every log-probability [Q, G, T] and by every entry of `log_dist` [Q,
    G, T, V].
    """

    loss: Tensor
    gradient: Tensor
    by_dist: Tensor


def ours(estimator: Estimator, samples: Samples, rollout: Rollout | None = None) -> Result:
    """Our loss and its gradients; `rollout` in place of the samples' own, where an estimator needs
    more of it.
    """
    new, log_dist = samples.new.clone().requires_grad_(), samples.log_dist.clone().requires_grad_()
    loss = estimator.loss(Policy(new, log_dist), samples.rollout if rollout is None else rollout)
    gradient, by_dist = torch.autograd.grad(
        loss, (new, log_dist), allow_unused=True, materialize_grads=True
    )
    return Result(loss.detach(), gradient, by_dist)


def agree(mine: Result, theirs: Result) -> None:
    """The same loss and the same gradients, to 1e-9, and no zero compared with a zero."""
    assert float(mine.gradient.abs().max()) > 1e-3
    close(mine.loss, theirs.loss)
    close(mine.gradient, theirs.gradient)
    close(mine.by_dist, theirs.by_dist)


def close(mine: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-9."""
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=TOLERANCE)


def apart(mine: Tensor, theirs: Tensor) -> None:
    """Really different: a convention that is said to differ must be seen to."""
    assert float((mine - theirs).abs().max()) > 1e-4
