"""How a policy's gradient changes as its samples become stale: agreement at π_old, and the limits.

At π_old every rung with a ratio has the policy gradient of its own advantage. On one rollout that
is reused again and again, rewards in {0, 1} without a baseline imitate what was rewarded and then
stop. Centred rewards push with a constant force for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, outcomes
from course import ladder
from course.estimator import replace
from course.exact import Outcomes, group_mean_factor, microscope, relative_distance
from course.parts import ScoreFunction

THREE_ARMS = Bernoulli(torch.tensor([B3_MEANS], dtype=torch.float64))


def ragged() -> Outcomes:
    """Two prompts with answers of 1, 2 and 4 tokens, on policy, with a reference."""
    environment = Bernoulli(
        torch.tensor([B3_MEANS, (0.6, 0.1, 0.3)], dtype=torch.float64),
        lengths=torch.tensor([1, 2, 4]),
    )
    policy = torch.tensor([B3_POLICY, (0.2, 0.2, 0.6)], dtype=torch.float64).log()
    reference = torch.tensor([(0.25, 0.72, 0.03), (0.5, 0.3, 0.2)], dtype=torch.float64).log()
    return outcomes(
        environment,
        policy,
        reference=reference,
        value=torch.tensor([0.4, 0.3], dtype=torch.float64),
    )


def ratio_rungs() -> list[str]:
    """The names of the registered rungs whose surrogate uses the ratio ρ."""
    own = ("rung", "descendant", "branch")
    return [
        name
        for name, rung in ladder.RUNGS.items()
        if rung.kind in own and not isinstance(rung.estimator.surrogate, ScoreFunction)
    ]


def distance_to_policy_gradient(name: str, listed: Outcomes, group: int) -> float:
    """The relative distance of a rung's E[ĝ] from the policy gradient of the same advantage.

    It is ‖E[ĝ] − E[ĝ of A·log π]‖ / ‖E[ĝ of A·log π]‖, where the second estimator has the score
    function as its surrogate. On-policy it is 0: `eq:surrogate-gradient-at-old`.
    """
    estimator = ladder.get(name).estimator
    twin = replace(estimator, surrogate=ScoreFunction())
    found, plain = (
        microscope(one, listed, group, covariance=False).expected for one in (estimator, twin)
    )
    return relative_distance(found, plain)


def stale_limit() -> tuple[Tensor, float, float]:
    """The limit of many updates on rewards in {0, 1} without a baseline (`eq:stale-limit`).

    Returns the policy π_old·μ/J [3], its expected reward E[μ²]/J, and J of π_old.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    before = policy @ means
    return policy * means / before, float(policy @ means**2 / before), float(before)


def centred_path(group: int, rate: float, updates: int) -> Tensor:
    """The log-probabilities [updates + 1, 3] of the centred score function on B3, in closed form.

    Every update adds rate · (G−1)/G · π_old(μ − J) to the logits.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    push = group_mean_factor(group) * policy * (means - policy @ means)
    count = torch.arange(updates + 1, dtype=torch.float64).unsqueeze(-1)
    return torch.log_softmax(policy.log() + rate * count * push, -1)
