"""What the tests of the core share: tiny rollouts, the derivative of an objective by each
log-probability, small bandits.
"""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit
from course.estimator import Estimator
from course.rollout import Policy, Rollout
from course.train.noise import Noise


def f64(values: Any) -> Tensor:
    """Nested lists as a float64 tensor."""
    return torch.as_tensor(values, dtype=torch.float64)


def close(got: Any, want: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    """Equal up to rounding: float64 unless said otherwise."""
    torch.testing.assert_close(f64(got), f64(want), rtol=rtol, atol=atol)


def few_ulp(got: Tensor, want: Tensor, count: int = 16) -> None:
    """Equal up to `count` units in the last place of the largest entry."""
    tolerance = count * torch.finfo(want.dtype).eps * max(1.0, float(want.detach().abs().max()))
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def make_rollout(reward: Any, log_prob: Any = None, mask: Any = None, **optional: Any) -> Rollout:
    """A rollout from nested lists [..., Q, G, T]; by default every token was chosen, each with
    probability ½.
    """
    reward = f64(reward)
    log_prob = torch.full_like(reward, math.log(0.5)) if log_prob is None else f64(log_prob)
    mask = (
        torch.ones(reward.shape, dtype=torch.bool)
        if mask is None
        else torch.as_tensor(mask, dtype=torch.bool)
    )
    floats = (
        "ref_log_prob",
        "sampler_log_prob",
        "value",
        "bootstrap",
        "greedy_reward",
        "old_log_dist",
        "ref_log_dist",
        "kl_coef",
    )
    optional = {name: f64(value) if name in floats else value for name, value in optional.items()}
    if "truncated" in optional:
        optional["truncated"] = torch.as_tensor(optional["truncated"], dtype=torch.bool)
    return Rollout(reward, log_prob, mask, **optional)


def slopes(estimator: Estimator, rollout: Rollout, log_prob: Tensor, **policy: Tensor) -> Tensor:
    """∂ objective / ∂ log π of every token [..., Q, G, T], at the policy's log-probabilities
    `log_prob`.
    """
    leaf = log_prob.detach().clone().requires_grad_()
    objective = estimator.objective(Policy(leaf, **policy), estimator.freeze(rollout))
    return torch.autograd.grad(objective.sum(), leaf)[0]


def bernoulli_bandit(
    runs: tuple[int, ...] = (),
    means: Any = ((0.2, 0.5, 0.8), (0.9, 0.4, 0.1)),
    group: int = 4,
    *,
    logits: Any = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Bandit:
    """Two prompts with three arms that pay 1 or 0; all runs start at the same logits (default:
    uniform).
    """
    mean = torch.tensor(means, dtype=dtype)
    start = (
        torch.zeros(mean.shape, dtype=dtype)
        if logits is None
        else torch.as_tensor(logits, dtype=dtype)
    )
    return Bandit(Bernoulli(mean), Softmax(start.expand(*runs, *start.shape)), group, **options)


def stream(runs: tuple[int, ...] = (), seed: int = 0, **options: Any) -> Noise:
    """Noise in float64."""
    return Noise(runs, seed, **{"dtype": torch.float64, **options})


def colours_apart(one: bytes, other: bytes) -> int:
    """The largest difference of a colour, 0 to 255, between two pictures of one size."""
    from PIL import Image, ImageChops

    first, second = (Image.open(io.BytesIO(each)).convert("RGB") for each in (one, other))
    assert first.size == second.size
    return max(int(most) for _, most in ImageChops.difference(first, second).getextrema())
