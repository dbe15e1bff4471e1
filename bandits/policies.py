"""Policies for bandits: tabular softmax, linear softmax, and a Gaussian over a continuous action.

A policy owns its parameters [..., *rest], where `...` are the run axes. To write another policy,
write a class with `parameters` and `log_probs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bandits.environments import arms_first, pick
from course.arguments import typed
from course.errors import (
    require,
    require_broadcasts,
    require_finite,
    require_floats,
    require_logits,
    require_number,
)
from course.train.noise import Noise


def log_softmax(logits: Tensor) -> Tensor:
    """log_softmax over the last axis of [..., K]; fast for tensors made by `arms_first`."""
    return torch.log_softmax(logits.movedim(-1, 0), 0).movedim(0, -1)


def draw(log_probs: Tensor, noise: Noise, group: int) -> Tensor:
    """Draw arms [..., Q, G] from log-probabilities [..., Q, K].

    Inverts the cumulative distribution function at uniform random numbers.
    """
    cumulative = log_probs.detach().movedim(-1, 0)[:-1].exp().cumsum_(0)  # [K−1, ..., Q]
    uniform = noise.uniform(log_probs.shape[-2], group)
    # F − u ≤ 0 summed as floats is faster than counting booleans
    if group == 1:  # no axis to broadcast over
        return cumulative.sub_(uniform.squeeze(-1)).le_(0).sum(0).long().unsqueeze(-1)
    return (cumulative.unsqueeze(-1) - uniform).le_(0).sum(0).long()


@typed
class Softmax:
    """π = softmax(θ) with a logit for every arm of every prompt: θ [..., Q, K].

    Sutton & Barto 2018, eq. 2.11.
    """

    def __init__(self, logits: Tensor) -> None:
        require(logits.dim() >= 2, "Softmax.logits", tuple(logits.shape), "a shape [..., Q, K]")
        require_logits("Softmax.logits", logits)
        # the copy keeps the layout but does not share the caller's memory
        self.logits = arms_first(logits.detach()).clone().requires_grad_()
        self.parameters: Sequence[Tensor] = [self.logits]

    @classmethod
    @typed
    def uniform(cls, noise: Noise, prompts: int, arms: int) -> Softmax:
        """The uniform policy, with the run axes, dtype and device of `noise`."""
        for name, size in (("prompts", prompts), ("arms", arms)):
            require_number(
                f"Softmax.uniform.{name}", size, "a whole number > 0", above=0, whole=True
            )
        return cls(torch.zeros(*noise.runs, prompts, arms, dtype=noise.dtype, device=noise.device))

    @classmethod
    @typed
    def of(cls, probability: Tensor) -> Softmax:
        """The policy with these probabilities [..., Q, K]."""
        fits = probability.is_floating_point() and bool((probability >= 0).all())
        require(fits, "Softmax.of.probability", probability, "floating-point numbers ≥ 0")
        return cls(probability.log())

    def log_probs(self) -> Tensor:
        """[..., Q, K] in nats."""
        return log_softmax(self.logits)


@typed
class LinearSoftmax:
    """π(·|q) = softmax(x_q·θ): features x [Q, K, D], and weights θ [..., D] shared by all prompts.

    Sutton & Barto 2018, eq. 13.2.
    """

    def __init__(self, features: Tensor, weights: Tensor) -> None:
        require(
            features.dim() == 3,
            "LinearSoftmax.features",
            tuple(features.shape),
            "a shape [Q, K, D]",
        )
        require(
            weights.shape[-1:] == features.shape[-1:],
            "LinearSoftmax.weights",
            tuple(weights.shape),
            f"[..., {features.shape[-1]}]",
        )
        for name, tensor in (("features", features), ("weights", weights)):
            require_floats(f"LinearSoftmax.{name}", tensor)
            require_finite(f"LinearSoftmax.{name}", tensor)
        self.features = features
        self.weights = weights.detach().clone().requires_grad_()
        self.parameters: Sequence[Tensor] = [self.weights]

    def log_probs(self) -> Tensor:
        """[..., Q, K] in nats."""
        return torch.log_softmax(
            torch.einsum("...d,qkd->k...q", self.weights, self.features), 0
        ).movedim(0, -1)


@typed
class GaussianPolicy:
    """a ~ N(μ, σ²) for each prompt: `mean` and `log_std` [..., Q]; σ is learned if `learn_std`."""

    def __init__(self, mean: Tensor, std: float | Tensor = 1.0, *, learn_std: bool = False) -> None:
        require(mean.dim() >= 1, "GaussianPolicy.mean", tuple(mean.shape), "a shape [..., Q]")
        require_floats("GaussianPolicy.mean", mean)
        require_finite("GaussianPolicy.mean", mean)
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        require_broadcasts("GaussianPolicy.std", std, mean.shape)
        positive = bool(((std > 0) & (std < torch.inf)).all())
        require(positive, "GaussianPolicy.std", std, "finite numbers > 0")
        self.mean = mean.detach().clone().requires_grad_()
        self.log_std = std.log().expand(mean.shape).clone().requires_grad_(learn_std)
        self.parameters: Sequence[Tensor] = [self.mean, self.log_std] if learn_std else [self.mean]

    def draw(self, noise: Noise, group: int) -> Tensor:
        """Draw `group` actions for each prompt: [..., Q, G]."""
        with torch.no_grad():
            return self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * noise.normal(
                self.mean.shape[-1], group
            )

    def log_prob(self, action: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The log-density of actions [..., n, G], in nats.

        `prompts` [n] are the numbers of the prompts they belong to (default: all Q).
        """
        mean, log_std = (
            p if prompts is None else p.index_select(-1, prompts) for p in (self.mean, self.log_std)
        )
        standard = (action - mean.unsqueeze(-1)) * (-log_std).exp().unsqueeze(-1)
        return -0.5 * standard**2 - log_std.unsqueeze(-1) - 0.5 * math.log(2 * math.pi)


__all__ = ["GaussianPolicy", "LinearSoftmax", "Softmax", "draw", "log_softmax", "pick"]
