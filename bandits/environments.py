"""Environments of bandits: the rewards of the arms.

Everything is batched over runs and prompts [..., Q], and every run has its own random numbers. To
write another environment, write a class with `mean` [..., Q, K], the exact expected rewards, and
`reward`. Store the arms as the first axis in memory (`arms_first`), because reductions over a short
last axis are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import CourseError, require, require_finite, require_floats, require_number
from course.train.noise import Noise


def arms_first(tensor: Tensor) -> Tensor:
    """The same tensor [..., K], stored with the arms as the first axis in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def pick(per_arm: Tensor, action: Tensor) -> Tensor:
    """per_arm [..., Q, K] at the actions [..., Q, G] → [..., Q, G].

    If `per_arm` has no run axes, all runs share it.
    """
    if per_arm.dim() < action.dim():
        per_arm = per_arm.expand(*action.shape[:-1], per_arm.shape[-1])
    if (
        action.shape[-1] == 1
    ):  # gathering along the first axis is much faster for arms-first tensors
        return per_arm.movedim(-1, 0).gather(0, action.movedim(-1, 0)).movedim(0, -1)
    return per_arm.gather(-1, action)


@typed
@dataclass
class Environment:
    """Arms with expected rewards `mean` [..., Q, K]. It is deterministic; subclasses add noise.

    `lengths` [K], in tokens, makes the arms answers of different lengths: T is the longest, and the
    reward is on the last token. Raises `CourseError` for a wrong shape or a mean that is not
    finite.
    """

    mean: Tensor
    lengths: Tensor | None = field(default=None, kw_only=True)
    _best: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.mean.shape)
        require_floats("environment.mean", self.mean)
        require(
            self.mean.dim() >= 2 and min(shape[-2:]) > 0,
            "environment.mean",
            shape,
            "a shape [..., Q, K]",
        )
        require_finite("environment.mean", self.mean)
        if self.lengths is not None:
            whole = not self.lengths.is_floating_point() and self.lengths.dtype != torch.bool
            require(whole, "environment.lengths", self.lengths.dtype, "a type of whole numbers")
            require(
                self.lengths.shape == self.mean.shape[-1:],
                "environment.lengths",
                tuple(self.lengths.shape),
                f"one per arm, {shape[-1:]}",
            )
            require(
                bool((self.lengths > 0).all()),
                "environment.lengths",
                self.lengths.tolist(),
                "positive numbers of tokens",
            )
        self.mean = arms_first(self.mean)

    @property
    def best(self) -> Tensor:
        """The arm with the largest mean, [..., Q, 1]."""
        if self._best is None or self._best[0] is not self.mean:
            self._best = (self.mean, self.mean.movedim(-1, 0).argmax(0).unsqueeze(-1))
        return self._best[1]

    @property
    def arms(self) -> int:
        """K."""
        return self.mean.shape[-1]

    @property
    def prompts(self) -> int:
        """Q."""
        return self.mean.shape[-2]

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        """Rewards [..., Q, G] of the arms `action` [..., Q, G] (int64)."""
        return pick(self.mean, action)

    def advance(self, noise: Noise) -> None:
        """Move one step in time, after every rollout. A stationary environment does nothing."""

    def state(self) -> dict[str, Tensor]:
        """The tensors that `advance` changes, so that a saved run can continue."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved `state`."""

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """All rewards each arm can pay and their probabilities, both [..., Q, K, S].

        Raises `CourseError` if they cannot be listed.
        """
        return self.mean.unsqueeze(-1), torch.ones_like(self.mean).unsqueeze(-1)


class Deterministic(Environment):
    """Every arm always pays its mean."""


class Bernoulli(Environment):
    """Arms pay 1 with probability `mean`, else 0."""

    def __post_init__(self) -> None:
        require(
            bool(((self.mean >= 0) & (self.mean <= 1)).all()),
            "Bernoulli.mean",
            "a number outside",
            "probabilities from 0 to 1",
        )
        super().__post_init__()

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        return (noise.uniform(*action.shape[-2:]) < pick(self.mean, action)).to(self.mean.dtype)

    def outcomes(self) -> tuple[Tensor, Tensor]:
        values = torch.stack([torch.ones_like(self.mean), torch.zeros_like(self.mean)], -1)
        return values, torch.stack([self.mean, 1 - self.mean], -1)


@typed
@dataclass
class Gaussian(Environment):
    """Arms pay `mean` + `std`·N(0, 1): the k-armed testbed (Sutton & Barto 2018, §2.3)."""

    std: float = 1.0

    def __post_init__(self) -> None:
        require_number("Gaussian.std", self.std, "a number ≥ 0", at_least=0)
        super().__post_init__()

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        return torch.add(pick(self.mean, action), noise.normal(*action.shape[-2:]), alpha=self.std)

    def outcomes(self) -> tuple[Tensor, Tensor]:
        require(
            self.std == 0,
            "Gaussian.std",
            self.std,
            "0 where outcomes are to be listed (there are infinitely many)",
        )
        return super().outcomes()


@typed
@dataclass
class HeavyTailed(Environment):
    """Arms pay `mean` plus Student's t noise with `freedom` degrees (2: infinite variance)."""

    freedom: int = 2

    def __post_init__(self) -> None:
        allowed = "a whole number from 2, below which the mean does not exist, to 1000"
        require_number(
            "HeavyTailed.freedom", self.freedom, allowed, at_least=2, at_most=1000, whole=True
        )
        super().__post_init__()

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        normal = noise.normal(*action.shape[-2:], 1 + self.freedom)
        t = normal[..., 0] / (normal[..., 1:] ** 2).mean(-1).sqrt()
        return pick(self.mean, action) + t

    def outcomes(self) -> tuple[Tensor, Tensor]:
        raise CourseError(
            "HeavyTailed.outcomes: got a continuous reward; allowed is one whose values can be"
            " listed"
        )


@typed
class Discrete(Environment):
    """Each arm pays one of S values: `values` and their probabilities `chances` [..., Q, K, S]."""

    def __init__(self, values: Tensor, chances: Tensor, lengths: Tensor | None = None) -> None:
        for name, tensor in (("values", values), ("chances", chances)):
            require_floats(f"Discrete.{name}", tensor)
        require(values.dim() >= 3, "Discrete.values", tuple(values.shape), "a shape [..., Q, K, S]")
        require_finite("Discrete.values", values)
        require(
            values.shape == chances.shape,
            "Discrete.chances",
            tuple(chances.shape),
            f"the shape of values, {tuple(values.shape)}",
        )
        total = chances.sum(-1)
        require(
            bool(((chances >= 0).all(-1) & ((total - 1).abs() < 1e-6)).all()),
            "Discrete.chances",
            total.tolist(),
            "probabilities that sum to 1",
        )
        self.values, self.chances = values, chances
        super().__init__((values * chances).sum(-1), lengths=lengths)

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        index = action.unsqueeze(-1).expand(*action.shape, self.values.shape[-1])
        values = self.values.expand(*action.shape[:-1], *self.values.shape[-2:]).gather(-2, index)
        cumulative = (
            self.chances.cumsum(-1)
            .expand(*action.shape[:-1], *self.chances.shape[-2:])
            .gather(-2, index)
        )
        which = (cumulative[..., :-1] <= noise.uniform(*action.shape[-2:]).unsqueeze(-1)).sum(
            -1, keepdim=True
        )
        return values.gather(-1, which).squeeze(-1)

    def outcomes(self) -> tuple[Tensor, Tensor]:
        return self.values, self.chances


@typed
@dataclass
class RandomWalk(Gaussian):
    """A non-stationary bandit: after every pull each arm's mean moves by `drift`·N(0, 1).

    Sutton & Barto 2018, exercise 2.5.
    """

    drift: float = 0.01

    def __post_init__(self) -> None:
        require_number("RandomWalk.drift", self.drift, "a finite number")
        super().__post_init__()

    def advance(self, noise: Noise) -> None:
        steps = noise.normal(*self.mean.shape[-2:])
        self.mean = arms_first(self.mean + self.drift * steps)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load(self, state: dict[str, Tensor]) -> None:
        self.mean = arms_first(state["mean"].to(self.mean.device))


@typed
class SharedForecast(Environment):
    """The arms are forecasts q of an event y ~ Bernoulli(p) that the whole group shares.

    The reward is 1 − (q − y)², the Brier score. `grid` [K] are the forecasts. Bereket & Leskovec
    2025 (2508.11800).
    """

    def __init__(self, grid: Tensor, p: float, prompts: int = 1) -> None:
        require(0 <= p <= 1, "SharedForecast.p", p, "a probability")
        fits = grid.dim() == 1 and grid.is_floating_point()
        require(fits, "SharedForecast.grid", grid, "a floating-point tensor [K] of forecasts")
        require_number("SharedForecast.prompts", prompts, "a whole number > 0", above=0, whole=True)
        self.grid, self.p = grid, p
        # [2, K] rewards for y = 0 and for y = 1
        self.given = torch.stack([1 - grid**2, 1 - (grid - 1) ** 2])
        super().__init__(((1 - p) * self.given[0] + p * self.given[1]).expand(prompts, -1))

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        happened = noise.uniform(action.shape[-2], 1) < self.p
        return torch.where(happened, self.given[1][action], self.given[0][action])

    def outcomes(self) -> tuple[Tensor, Tensor]:
        raise CourseError(
            "SharedForecast.outcomes: got a y that the group shares; allowed is listing for a given"
            " y, then the mean over y"
        )


@typed
@dataclass
class Continuous:
    """A continuous action for a Gaussian policy: `score` maps actions [..., Q, G] to rewards."""

    score: Callable[[Tensor], Tensor]
    prompts: int = 1
    lengths: None = None

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        """The rewards [..., Q, G] of the actions."""
        return self.score(action)

    def advance(self, noise: Noise) -> None:
        """Do nothing: this environment is stationary."""


@typed
def testbed(
    noise: Noise, arms: int = 10, *, mean: float = 0.0, spread: float = 1.0, std: float = 1.0
) -> Gaussian:
    """The k-armed testbed of Sutton & Barto 2018, §2.3.

    Each run draws its arms' means from N(`mean`, `spread`²); the rewards have standard deviation
    `std`.
    """
    require_number("arms", arms, "at least 1", at_least=1, whole=True)
    for name, value in (("mean", mean), ("spread", spread)):
        require_number(name, value, "a finite number")
    return Gaussian(mean + spread * noise.normal(1, arms), std=std)


@typed
def contextual(
    noise: Noise,
    difficulty: Sequence[float],
    arms: int = 10,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
) -> Discrete:
    """A contextual bandit whose prompts differ in difficulty.

    Prompt q has one right arm, which always pays `scale`. Each other arm pays `scale` with
    probability `difficulty[q]`·U(0, 1). `offset` is added to every reward. Each run draws its own
    arms. Raises `CourseError` for a value out of range.
    """
    require(
        len(difficulty) > 0 and all(0 <= d <= 1 for d in difficulty),
        "difficulty",
        difficulty,
        "numbers from 0 to 1, one per prompt",
    )
    require_number("arms", arms, "at least 2", at_least=2, whole=True)
    require_number("scale", scale, "a number > 0", above=0)
    require_number("offset", offset, "a finite number")
    prompts = len(difficulty)
    level = torch.tensor(difficulty, dtype=noise.dtype, device=noise.device).unsqueeze(-1)
    chance = level * noise.uniform(prompts, arms)
    right = (noise.uniform(prompts, 1) * arms).long().clamp(max=arms - 1)
    chance = chance.scatter(-1, right, 1.0)
    values = torch.tensor([offset + scale, offset], dtype=noise.dtype, device=noise.device).expand(
        *chance.shape, 2
    )
    return Discrete(values, torch.stack([chance, 1 - chance], -1))
