"""A coefficient of the entropy bonus that follows the entropy: for `Estimator.entropy_coef`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import require, require_number


@dataclass(frozen=True)
class AdaptiveEntropy:
    """Skywork-OR1's: the coefficient c rises by `delta` where H ≤ target, and falls elsewhere.

    The bonus is c where H ≤ target, and 0 elsewhere, so that it acts only where entropy is missing.
    H is the mean entropy over a rollout's chosen tokens, in nats, under the policy that sampled it;
    it decides on the bonus of that rollout and on the next c. `target` is in nats, c in units of
    reward per nat, between `least` and `most`. The learner keeps one c per run. Raises
    `CourseError` if a setting is out of range. Source: He et al. 2025 (Skywork-OR1, 2505.22312);
    TRL calls it `use_adaptive_entropy`, and these are its defaults.
    """

    target: float = 0.2
    initial: float = 0.0
    delta: float = 0.005
    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_number(f"{name}.target", self.target, "a number of nats > 0", above=0)
        require_number(f"{name}.delta", self.delta, "a number > 0", above=0)
        require_number(f"{name}.least", self.least, "a number ≥ 0", at_least=0)
        allowed = f"a number above least = {self.least:g}"
        require_number(f"{name}.most", self.most, allowed, above=self.least)
        require_number(f"{name}.initial", self.initial, "a number")
        allowed = f"from least = {self.least:g} to most = {self.most:g}"
        inside = self.least <= self.initial <= self.most
        require(inside, f"{name}.initial", self.initial, allowed)

    def applied(self, coefficient: Tensor, entropy: Tensor) -> Tensor:
        """c [...] and the measured entropy [...], in nats → the coefficient of the bonus [...]."""
        return torch.where(entropy <= self.target, coefficient, torch.zeros_like(coefficient))

    def update(self, coefficient: Tensor, entropy: Tensor) -> Tensor:
        """c [...] and the measured entropy [...], in nats → the next c [...]."""
        up, down = coefficient + self.delta, coefficient - self.delta
        return torch.where(entropy <= self.target, up, down).clamp(self.least, self.most)
