"""The natural gradient of a tabular softmax in closed form: F⁺g with the exact Fisher matrix, no
conjugate gradient, no damping.

Conjugate gradient with damping 1e-8 cannot follow a policy into a corner of the simplex, where the
eigenvalues of F go to 0 with the probabilities. In closed form F = diag(π) − ππᵀ, and F⁺g = g/π −
mean(g/π) wherever the g_a sum to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bandits.policies import log_softmax
from course.errors import require
from course.train.optim import Closures, _FirstOrder, over_runs


def natural_direction(gradient: Tensor, log_prob: Tensor) -> Tensor:
    """F⁺g of one softmax: gradient g [..., K] with Σ g = 0 (every policy gradient is), log π [...,
    K] → [..., K], Σ = 0.

    `eq:natural-gradient-softmax`.

    For the true gradient, g = π(r − J), it is r − mean(r), the unweighted mean; for one sample, g =
    (r − b)(e_a − π), it is (r − b)/π(a)·(e_a − 1/K). An arm whose probability underflows (below
    1e-308 in float64) gets 0 before the mean is taken, which is the average of g/π under π: what it
    would get cannot be seen in g any more. Kakade 2001; Chung et al. 2021 (2008.13773).
    """
    probability = log_prob.exp()
    alive = probability > torch.finfo(log_prob.dtype).tiny
    ratio = torch.where(
        alive,
        gradient / torch.where(alive, probability, torch.ones_like(probability)),
        torch.zeros_like(gradient),
    )
    return ratio - ratio.movedim(-1, 0).mean(0).unsqueeze(
        -1
    )  # over the first axis in memory, where arms are


class SoftmaxNaturalGradient(_FirstOrder):
    """θ ← θ + lr·F⁺g for the logits [..., Q, K] of `Softmax`: what
    `course.train.trust_region.NaturalGradient` approximates.

    F is the Fisher matrix of the mean over prompts, so a prompt's own direction is multiplied by Q,
    as it is there.
    """

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        require(
            len(closures.parameters) == 1,
            "parameters",
            len(closures.parameters),
            "the logits of one Softmax policy, and no critic",
        )
        [logits], [gradient] = closures.parameters, gradients
        rate = self._rate(closures)
        with torch.no_grad():
            direction = natural_direction(gradient, log_softmax(logits)) * logits.shape[-2]
            logits.sub_(over_runs(rate, logits) * direction)
        return {}
