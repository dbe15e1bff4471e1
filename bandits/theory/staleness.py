"""What happens to a policy's gradient when its samples are old: agreement at π_old, and the limits.

At π_old every rung with a ratio has the policy gradient of its own advantage. On one rollout used
again and again, rewards in {0, 1} without baseline imitate what was rewarded and stop there;
centred rewards push with one force for ever.
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
    """The registered rungs whose surrogate uses ρ."""
    own = ("rung", "descendant", "branch")
    return [
        name
        for name, rung in ladder.RUNGS.items()
        if rung.kind in own and not isinstance(rung.estimator.surrogate, ScoreFunction)
    ]


def distance_to_policy_gradient(name: str, listed: Outcomes, group: int) -> float:
    """‖E[ĝ] − E[ĝ of A·log π]‖ / ‖the latter‖ for the rung and the same rung with the score
    function as its surrogate.

    0 on policy: `eq:surrogate-gradient-at-old`.
    """
    estimator = ladder.get(name).estimator
    twin = replace(estimator, surrogate=ScoreFunction())
    found, plain = (
        microscope(one, listed, group, covariance=False).expected for one in (estimator, twin)
    )
    return relative_distance(found, plain)


def stale_limit() -> tuple[Tensor, float, float]:
    """Where rewards in {0, 1} without baseline end (`eq:stale-limit`): π_old·μ/J [3]; its expected
    reward E[μ²]/J; and J before.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    before = policy @ means
    return policy * means / before, float(policy @ means**2 / before), float(before)


def centred_path(group: int, rate: float, updates: int) -> Tensor:
    """[updates + 1, 3] closed form for the centred score function on B3: logits grow by the
    constant (G−1)/G·π_old(μ − J).
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    push = group_mean_factor(group) * policy * (means - policy @ means)
    count = torch.arange(updates + 1, dtype=torch.float64).unsqueeze(-1)
    return torch.log_softmax(policy.log() + rate * count * push, -1)
