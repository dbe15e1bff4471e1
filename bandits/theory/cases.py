"""Four small bandits for the microscope, on which the rungs of the ladder come apart one by one.

on policy     B3: π = (.5, .3, .2), Bernoulli means (.2, .5, .8)
off policy    the samples are B3's, the policy has moved on to (.4, .3, .3)
two prompts   B3 beside a prompt on which every arm pays less: the batch's mean is neither's
ragged        B3 with answers of 1, 2 and 4 tokens: how tokens are weighed begins to matter
"""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from course.exact import Outcomes

MOVED = (0.4, 0.3, 0.3)
REFERENCE = (0.2, 0.3, 0.5)
OTHER_POLICY, OTHER_MEANS = (0.6, 0.3, 0.1), (0.05, 0.1, 0.2)
LENGTHS = (1, 2, 4)


def cases() -> dict[str, Outcomes]:
    """The four cases, each with a reference policy and the exact value as its critic's."""
    policy, means = _rows(B3_POLICY), _rows(B3_MEANS)
    policies, both = _rows(B3_POLICY, OTHER_POLICY), _rows(B3_MEANS, OTHER_MEANS)
    reference, value = _rows(REFERENCE).log(), (policy * means).sum(-1)
    ragged = Bernoulli(means, lengths=torch.tensor(LENGTHS))
    return {
        "on policy": b3(reference=reference, value=value),
        "off policy": outcomes(
            Bernoulli(means), _rows(MOVED).log(), old=policy.log(), reference=reference, value=value
        ),
        "two prompts": outcomes(
            Bernoulli(both),
            policies.log(),
            reference=reference.expand(2, -1),
            value=(policies * both).sum(-1),
        ),
        "ragged": outcomes(ragged, policy.log(), reference=reference, value=value),
    }


def _rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
