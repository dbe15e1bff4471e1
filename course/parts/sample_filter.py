"""Sample filters: which samples count in the objective.

A filter does not change advantages: they are computed from all samples of the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from course.parts.base import Part
from course.parts.baseline import silent
from course.rollout import Rollout


@dataclass(frozen=True)
class SampleFilter(Part):
    """Rollout → [..., Q, G] bool, True where the sample counts; None means that all count.

    A filter reads raw rewards, lengths and truncation, not advantages.
    """

    def __call__(self, rollout: Rollout) -> Tensor | None:
        raise NotImplementedError


@dataclass(frozen=True)
class AllSamples(SampleFilter):
    """Every sample counts."""

    scope, implied = "token", True
    plain = "all"
    symbol = r"\text{all samples}"

    def __call__(self, rollout: Rollout) -> None:
        return None


@dataclass(frozen=True)
class DropSilentGroups(SampleFilter):
    """Drop zero-variance groups, in which all samples have the same raw reward.

    This is DAPO's dynamic sampling (Yu et al. 2025, eq. 11) without the refill by new prompts.
    """

    scope, reads = "group", ("total_reward", "empty")
    plain = "drop silent groups"
    symbol = r"\text{groups with }\max R\ne\min R"

    def __call__(self, rollout: Rollout) -> Tensor:
        score = rollout.total_reward
        return ~silent(score, exists=rollout.present).expand(score.shape)


@dataclass(frozen=True)
class DropTruncated(SampleFilter):
    """Drop samples that were cut off at the generation limit.

    The paper calls it overlong filtering (Yu et al. 2025, §3.4).
    """

    scope = "sample"
    needs = ("truncated",)
    plain = "drop truncated"
    symbol = r"\text{samples that ended}"

    def __call__(self, rollout: Rollout) -> Tensor:
        assert rollout.truncated is not None
        return torch.logical_not(rollout.truncated)
