"""The natural gradient of a tabular softmax in closed form, without conjugate gradient or damping.

Conjugate gradient with damping 1e-8 cannot follow a policy into a corner of the simplex, because
the eigenvalues of the Fisher matrix F go to 0 with the probabilities. In closed form F = diag(π) −
ππᵀ, and F⁺g = g/π − mean(g/π) whenever the g_a sum to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bandits.policies import log_softmax
from course.errors import require
from course.train.optim import Closures, _FirstOrder, over_runs


def natural_direction(gradient: Tensor, log_prob: Tensor) -> Tensor:
    """F⁺g of a softmax: gradient g [..., K] and log π [..., K] → [..., K].

    `eq:natural-gradient-softmax`. g must sum to 0 over the arms, as every policy gradient does; so
    does the result. For the true gradient g = π(r − J) it is r − mean(r), with the unweighted mean.
    For one sample, g = (r − b)(e_a − π), it is (r − b)/π(a)·(e_a − 1/K). If an arm's probability
    underflows (below 1e-308 in float64), its g/π is lost; it is set to 0, the average of g/π under
    π, before the mean is subtracted. Kakade 2001; Chung et al. 2021 (2008.13773).
    """
    probability = log_prob.exp()
    alive = probability > torch.finfo(log_prob.dtype).tiny
    ratio = torch.where(
        alive,
        gradient / torch.where(alive, probability, torch.ones_like(probability)),
        torch.zeros_like(gradient),
    )
    # the arms are the first axis in memory, and reducing over that axis is faster
    mean = ratio.movedim(-1, 0).mean(0).unsqueeze(-1)  # [..., 1]
    return ratio - mean


class SoftmaxNaturalGradient(_FirstOrder):
    """θ ← θ + lr·F⁺g for the logits [..., Q, K] of a `Softmax`, exactly.

    `course.train.trust_region.NaturalGradient` approximates the same step. In both, F is the Fisher
    matrix of the mean over prompts, so each prompt's direction is multiplied by Q. Raises
    `CourseError` if there are other parameters, such as a critic's.
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
