"""Four small bandits for the microscope that together tell the rungs of the ladder apart.

on policy     B3: π = (.5, .3, .2), Bernoulli means (.2, .5, .8)
off policy    B3's samples, but the current policy is (.4, .3, .3)
two prompts   B3 and a second prompt with lower rewards, so the batch mean fits neither
ragged        B3 with answers of 1, 2 and 4 tokens, so the aggregation over tokens matters
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
    """The four cases, each with a reference policy and a critic that knows the exact value."""
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
