"""The smallest critic: a running mean of the rewards per run and prompt, used as the value."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from course.arguments import require_type
from course.errors import require_finite, require_fits_runs, require_flag, require_number
from course.parts.baseline import mean_of
from course.rollout import Rollout


class RunningMean:
    """V = the mean of the rewards so far, [..., Q].

    Three meanings of "so far" are in use, and they differ:

    - `include_current=True`: the mean includes the rewards of the rollout that it is the baseline
      of (as in a widely used replication);
    - `include_current=False, first="reward"`: the mean of earlier rewards; the baseline of the
      first rollout is its own reward (Sutton & Barto 2018, §2.8);
    - `include_current=False, first="zero"`: the mean of earlier rewards; the baseline of the first
      rollout is 0. Only this one never depends on the sample.

    `per_prompt=False` keeps one mean for all prompts of a run. `share` (a number, or one per run
    [...]) multiplies V, so that runs with a baseline (1) and without (0) fit in one tensor.
    """

    made_with = ("include_current", "first", "per_prompt", "share")

    def __init__(
        self,
        *,
        include_current: bool = False,
        first: str = "zero",
        per_prompt: bool = True,
        share: float | Tensor = 1.0,
    ) -> None:
        require_type("RunningMean.first", first, Literal["zero", "reward"])
        require_flag("RunningMean.include_current", include_current)
        require_flag("RunningMean.per_prompt", per_prompt)
        if isinstance(share, Tensor):
            require_type("RunningMean.share", share, Tensor)
            require_finite("RunningMean.share", share)
        else:
            require_number("RunningMean.share", share, "a finite number, or a tensor, one per run")
        self.include_current, self.first, self.per_prompt = include_current, first, per_prompt
        self.share = share.unsqueeze(-1) if isinstance(share, Tensor) else share
        self.mean: Tensor | None = None  # [..., Q or 1]
        self.count = 0

    def write(self, rollout: Rollout) -> Rollout:
        """The rollout with `value` filled in; its rewards are added to the mean.

        Raises `CourseError` if `share` does not fit the runs.
        """
        if isinstance(self.share, Tensor):
            require_fits_runs("RunningMean.share", self.share.squeeze(-1), rollout.runs)
        # samples without a chosen token do not count; a prompt with no other keeps its mean
        exists = rollout.present
        there = None if exists is None else exists.any(-1)
        now = mean_of(rollout.total_reward, (-1,), exists).squeeze(-1)
        if not self.per_prompt:
            now = mean_of(now, (-1,), there)
            there = None if there is None else there.any(-1, keepdim=True)
        before = torch.zeros_like(now) if self.mean is None else self.mean
        mean = torch.lerp(before, now, 1 / (self.count + 1))
        self.mean = mean if there is None else torch.where(there, mean, before)
        self.count += 1
        if self.include_current or (self.count == 1 and self.first == "reward"):
            before = self.mean
        if isinstance(self.share, Tensor) or self.share != 1:
            before = before * self.share
        value = before.unsqueeze(-1).unsqueeze(-1).expand(rollout.reward.shape)
        return rollout.having(value=value)

    def state(self) -> dict[str, Tensor]:
        """The mean and the number of rollouts that it averages."""
        saved = {"count": torch.tensor(self.count, device="cpu")}
        return saved if self.mean is None else saved | {"mean": self.mean.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved `state`."""
        self.count, self.mean = int(state["count"]), state.get("mean")
