"""What the parts after GRPO change, in closed form: what is maximised, which tokens and samples.

Lesson 11 derives these; its tests compare each with an enumeration.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# ---------------------------------------------------------------- what is maximised


def pass_at_k(p: Tensor, k: Tensor | float) -> Tensor:
    """1 − (1−p)^k, the probability that one of k answers is right: p and k broadcast.

    Its derivative is k(1−p)^{k−1}, and Σ_k of that over k is 1/p, the derivative of log p. Source:
    Chen et al. 2021. eq:pass-at-k
    """
    return 1 - (1 - p) ** k


def weight_by_counts(right: Tensor, wrong: Tensor, p: Tensor) -> Tensor:
    """w(p) in E[ĝ] = w(p)∇p for an advantage that depends on how many of the group are right.

    right, wrong [G + 1]: the advantage of a right and of a wrong answer where M = 0 … G of the
    group are right; p [...], strictly between 0 and 1 → [...]. Rewards are 0 or 1, samples on
    policy, and the tokens of an answer are summed.
    w = (1/G) Σ_M P(M) (M·right_M/p − (G − M)·wrong_M/(1−p)). Source: here. eq:weight-by-counts
    """
    group = len(right) - 1
    counts = torch.arange(group + 1, dtype=torch.float64)
    log_ways = math.lgamma(group + 1) - torch.lgamma(counts + 1) - torch.lgamma(group - counts + 1)
    q = p.double().unsqueeze(-1)  # [..., 1] beside the counts [G + 1]
    chance = (log_ways + counts * q.log() + (group - counts) * (1 - q).log()).exp()
    push = counts * right / q - (group - counts) * wrong / (1 - q)
    return (chance * push).sum(-1) / group


# ---------------------------------------------------------------- which tokens


def score_size(log_prob: Tensor) -> Tensor:
    """1 − Σ_v π_v²: the mean squared length of a token's score, with respect to its own logits.

    log_prob [..., V] → [...]. It is 0 where the policy is sure, and 1 − 1/V where it is undecided.
    eq:score-size
    """
    return 1 - (2 * log_prob).exp().sum(-1)


# ---------------------------------------------------------------- which samples


def requeued(log_prob: Tensor, kept: Tensor) -> Tensor:
    """log μ [..., K] of what is left if answer a is dropped, and sampled anew, unless it is kept.

    `kept` [..., K] are the probabilities of being kept, above 0: μ_a = π_a c_a / Σ_b π_b c_b.
    Source: here. eq:requeued
    """
    return torch.log_softmax(log_prob + kept.log(), -1)
