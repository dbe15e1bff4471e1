"""Forecasts of an uncertain event: the expected gradient, its limit, and the case of two forecasts.

An event y happens with probability p. A forecast q earns 1 − (q − y)², the Brier score. All samples
of a group are scored on the same event.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.environments import Deterministic, SharedForecast
from bandits.flow import expected_gradient
from course import ladder
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.parts import GroupStd

STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))


def pull(estimator: Estimator, environment: SharedForecast, log_prob: Tensor, group: int) -> Tensor:
    """E[ĝ] [K] at `log_prob` [K]; the samples of a group share the event.

    It enumerates the groups for each outcome of the event, then averages over the outcomes.
    """
    given = [Deterministic(reward.unsqueeze(0)) for reward in environment.given]
    no, yes = (expected_gradient(estimator, fixed, log_prob, group) for fixed in given)
    return (1 - environment.p) * no + environment.p * yes


def limit_gradient(environment: SharedForecast, log_prob: Tensor) -> Tensor:
    """The same [K] for group mean and std with G → ∞: Σ_y P(y) π (r_y − E r_y)/σ(r_y)."""
    pi, total = log_prob.exp(), torch.zeros(log_prob.shape[-1], dtype=torch.float64)
    for happened, chance in ((0, 1 - environment.p), (1, environment.p)):
        reward = environment.given[happened]
        centred = reward - pi @ reward
        total += chance * pi * centred / (pi @ centred**2).sqrt()
    return total


def pair(estimator: Estimator, p: float, higher: float, share: float, group: int) -> float:
    """The expected gradient on the logit of a `higher` forecast that has probability `share`.

    The only other forecast is the calibrated one, p.
    """
    environment = SharedForecast(torch.tensor([p, higher], dtype=torch.float64), p)
    log_prob = torch.tensor([1 - share, share], dtype=torch.float64).log()
    return float(pull(estimator, environment, log_prob, group)[1])


def pair_by_majority(p: float, share: float, group: int) -> float:
    """`pair` with the std: (2p − 1) w_G(π) π(1 − π), independent of the forecasts.

    Given y, two forecasts have only two rewards, and the std removes their size.
    """
    return (2 * p - 1) * float(group_std_weight(share, group)) * share * (1 - share)


def pair_by_score(p: float, higher: float, share: float, group: int) -> float:
    """`pair` without the std: −(G−1)/G π(1 − π)(q − p)².

    (q − p)² is the difference of the two expected Brier scores.
    """
    return -group_mean_factor(group) * share * (1 - share) * (higher - p) ** 2
