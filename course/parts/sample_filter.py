"""Sample filters: which samples count at all.

Advantages are computed before, from everything that was sampled.
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
    """Rollout → [..., Q, G] bool, True where the sample counts.

    Reads raw rewards, lengths and truncation.
    """

    def __call__(self, rollout: Rollout) -> Tensor | None:
        raise NotImplementedError


@dataclass(frozen=True)
class AllSamples(SampleFilter):
    """Every sample counts."""

    scope = "token"
    plain = "all"
    symbol = r"\text{all samples}"

    def __call__(self, rollout: Rollout) -> None:
        return None


@dataclass(frozen=True)
class DropSilentGroups(SampleFilter):
    """Groups whose raw scores are all equal do not count (DAPO's dynamic sampling: Yu et al. 2025,
    eq. 11, without the refill).
    """

    scope, reads = "group", ("total_reward", "empty")
    plain = "drop silent groups"
    symbol = r"\text{groups with }\max R\ne\min R"

    def __call__(self, rollout: Rollout) -> Tensor:
        score = rollout.total_reward
        return ~silent(score, exists=rollout.exists).expand(score.shape)


@dataclass(frozen=True)
class DropTruncated(SampleFilter):
    """Samples cut at the generation limit do not count (overlong filtering: Yu et al.
    2025, §3.4).
    """

    scope = "sample"
    needs = ("truncated",)
    plain = "drop truncated"
    symbol = r"\text{samples that ended}"

    def __call__(self, rollout: Rollout) -> Tensor:
        assert rollout.truncated is not None
        return torch.logical_not(rollout.truncated)
