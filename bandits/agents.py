"""Classical bandit algorithms, for comparison at equal pulls: ε-greedy, UCB and Thompson sampling.

These algorithms keep an estimate for each arm, where a policy gradient keeps logits. They are
batched over runs and prompts [..., Q], and every run has its own random numbers. A setting may be a
tensor [...] with one number per run. To write another algorithm, write a class with `act` and
`learn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from bandits.environments import Environment, arms_first, pick
from course.arguments import typed
from course.errors import require, require_finite, require_fits_runs, require_number
from course.train.noise import Noise
from course.train.optim import over_runs

Setting = float | Tensor
# proposals per gamma number: all are rejected with probability at most (1 − 0.9517)^4 < 6e-6
CANDIDATES = 4


class Agent(Protocol):
    """Pulls one arm of every prompt at a time and learns from its reward."""

    def act(self, noise: Noise) -> Tensor:
        """The arms [..., Q, 1] to pull now."""
        ...

    def learn(self, action: Tensor, reward: Tensor) -> None:
        """Learn from the rewards [..., Q, 1] of the arms `action` [..., Q, 1]."""
        ...


@typed
class Metered(Environment):
    """An environment that measures the regret, in the same way for every algorithm.

    `pulls` counts the pulls per prompt so far. `regret` [...] is Σ (μ* − μ_a), averaged over
    prompts, with the exact means at the time of each pull (eq:regret). Every `every` pulls both are
    recorded in `marks` and `regrets` [marks, ...].
    """

    def __init__(self, inner: Environment, every: int = 1) -> None:
        require(
            isinstance(every, int) and every > 0,
            "Metered.every",
            every,
            "a whole number of pulls > 0",
        )
        super().__init__(inner.mean, lengths=inner.lengths)
        self.inner, self.every, self.pulls = inner, every, 0
        self.regret = torch.zeros_like(self.mean[..., 0].mean(-1))
        self.marks: list[int] = []
        self._rows: list[Tensor] = []

    def reward(self, action: Tensor, noise: Noise) -> Tensor:
        self.regret = self.regret + (pick(self.mean, self.best) - pick(self.mean, action)).sum(
            -1
        ).mean(-1)
        before, self.pulls = self.pulls, self.pulls + action.shape[-1]
        if self.pulls // self.every > before // self.every:
            self.marks.append(self.pulls)
            self._rows.append(self.regret)
        return self.inner.reward(action, noise)

    def advance(self, noise: Noise) -> None:
        self.inner.advance(noise)
        self.mean = self.inner.mean

    def outcomes(self) -> tuple[Tensor, Tensor]:
        return self.inner.outcomes()

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def load(self, state: dict[str, Tensor]) -> None:
        self.inner.load(state)
        self.mean = self.inner.mean

    @property
    def regrets(self) -> Tensor:
        """The regret so far at each of `marks`, [marks, ...]."""
        return torch.stack(self._rows)


@typed
def play(
    agent: Agent,
    environment: Environment,
    pulls: int,
    noise: Noise,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> None:
    """Let an agent act, receive the reward and learn, `pulls` times.

    `progress` wraps the range of pulls, for example with a progress bar.
    """
    require(isinstance(pulls, int) and pulls > 0, "pulls", pulls, "a whole number > 0")
    for _ in progress(range(pulls)):
        action = agent.act(noise)
        agent.learn(action, environment.reward(action, noise))
        environment.advance(noise)


@typed
class ActionValues:
    """What ε-greedy and UCB share: each arm's number of pulls and estimated value, [..., Q, K].

    `count` holds the pulls and `value` the estimates. `step_size` None gives the sample average,
    with step 1/n for the n-th reward (Sutton & Barto 2018, eq. 2.3). A number in (0, 1] gives an
    exponentially weighted average (eq. 2.5). Ties are broken by an order of the arms that each run
    draws at the start.
    """

    def __init__(
        self,
        noise: Noise,
        prompts: int,
        arms: int,
        *,
        initial: Setting = 0.0,
        step_size: float | None = None,
    ) -> None:
        require(
            prompts > 0 and arms > 1,
            "(prompts, arms)",
            (prompts, arms),
            "at least 1 prompt and 2 arms",
        )
        require(
            step_size is None or 0 < step_size <= 1,
            "step_size",
            step_size,
            "None for the sample average, or a number in (0, 1]",
        )
        _require_setting("initial", initial, noise.runs)
        self.step_size = step_size
        self.count = arms_first(
            torch.zeros(*noise.runs, prompts, arms, dtype=noise.dtype, device=noise.device)
        )
        self.value = torch.zeros_like(self.count) + _per_arm(initial)
        self._order = arms_first(noise.uniform(prompts, arms))

    def learn(self, action: Tensor, reward: Tensor) -> None:
        count = pick(self.count, action) + 1
        value = pick(self.value, action)
        _put(self.count, action, count)
        _put(
            self.value,
            action,
            value + (reward - value) * (1 / count if self.step_size is None else self.step_size),
        )

    def best(self, score: Tensor) -> Tensor:
        """The arm [..., Q, 1] with the highest score [..., Q, K]."""
        top = score.movedim(-1, 0).amax(0).unsqueeze(-1)
        return highest(torch.where(score == top, self._order, -1.0))


@typed
class EpsilonGreedy(ActionValues):
    """With probability ε a uniformly random arm, otherwise the arm with the highest estimate.

    With ε = 0 and a high `initial` value it still explores, because every arm pulled disappoints
    (optimistic initial values). Sutton & Barto 2018, §2.2 and §2.6. `epsilon` and `initial` may be
    tensors [...].
    """

    def __init__(
        self,
        noise: Noise,
        prompts: int,
        arms: int,
        epsilon: Setting,
        *,
        initial: Setting = 0.0,
        step_size: float | None = None,
    ) -> None:
        super().__init__(noise, prompts, arms, initial=initial, step_size=step_size)
        _require_setting("EpsilonGreedy.epsilon", epsilon, noise.runs)
        low, high = torch.as_tensor(epsilon, device=getattr(epsilon, "device", "cpu")).aminmax()
        require(
            bool(0 <= low <= high <= 1),
            "EpsilonGreedy.epsilon",
            epsilon,
            "a probability (or a tensor of them, one per run)",
        )
        self.epsilon = epsilon

    def act(self, noise: Noise) -> Tensor:
        prompts, arms = self.value.shape[-2:]
        coin, which = noise.uniform(prompts, 1), noise.uniform(prompts, 1)
        anything = (which * arms).long().clamp(max=arms - 1)
        return torch.where(coin < over_runs(self.epsilon, coin), anything, self.best(self.value))


@typed
class UCB(ActionValues):
    """Pulls every arm once, then the arm with the highest value + c·√(ln t / n).

    t is the number of this pull (Sutton & Barto 2018, eq. 2.10). c = √2 is UCB1 for rewards in
    [0, 1] (Auer et al. 2002, theorem 1, where t counts only the previous pulls and so is 1 less).
    `c` may be a tensor [...].
    """

    def __init__(self, noise: Noise, prompts: int, arms: int, c: Setting = math.sqrt(2)) -> None:
        super().__init__(noise, prompts, arms)
        require_fits_runs("UCB.c", c, noise.runs)
        require(
            bool((torch.as_tensor(c, device=getattr(c, "device", "cpu")) >= 0).all()),
            "UCB.c",
            c,
            "a number ≥ 0 (or a tensor of them, one per run)",
        )
        self.c, self.pulls = c, 0

    def act(self, noise: Noise) -> Tensor:
        self.pulls += 1
        bonus = over_runs(self.c, self.count) * (math.log(self.pulls) / self.count).sqrt()
        return self.best(torch.where(self.count > 0, self.value + bonus, torch.inf))


@typed
class BetaThompson:
    """Thompson sampling for rewards 0 and 1: pull the arm with the highest posterior draw.

    With a uniform prior the posterior is Beta(1 + successes, 1 + failures). `wins` and `losses` are
    these two parameters, [..., Q, K]. Thompson 1933; Chapelle & Li 2011, algorithm 2.
    """

    def __init__(self, noise: Noise, prompts: int, arms: int) -> None:
        require(
            prompts > 0 and arms > 1,
            "(prompts, arms)",
            (prompts, arms),
            "at least 1 prompt and 2 arms",
        )
        self.wins = arms_first(
            torch.ones(*noise.runs, prompts, arms, dtype=noise.dtype, device=noise.device)
        )
        self.losses = self.wins.clone(memory_format=torch.preserve_format)

    def act(self, noise: Noise) -> Tensor:
        return highest(beta(self.wins, self.losses, noise))

    def learn(self, action: Tensor, reward: Tensor) -> None:
        _put(self.wins, action, pick(self.wins, action) + reward)
        _put(self.losses, action, pick(self.losses, action) + (1 - reward))


@typed
class GaussianThompson:
    """Thompson sampling for Gaussian rewards with a Gaussian prior on each arm's mean.

    Rewards are N(μ_a, `std`²) and the prior is μ_a ~ N(`prior_mean`, `prior_std`²). The posterior
    is N(`mean`, 1/`precision`), both [..., Q, K]. Precisions add up, and the posterior mean is the
    precision-weighted mean.
    """

    def __init__(
        self,
        noise: Noise,
        prompts: int,
        arms: int,
        *,
        prior_mean: float = 0.0,
        prior_std: float = 1.0,
        std: float = 1.0,
    ) -> None:
        require(
            prompts > 0 and arms > 1,
            "(prompts, arms)",
            (prompts, arms),
            "at least 1 prompt and 2 arms",
        )
        require(
            prior_std > 0 and std > 0,
            "(prior_std, std)",
            (prior_std, std),
            "standard deviations > 0",
        )
        require_number("prior_mean", prior_mean, "a finite number")
        shape = (*noise.runs, prompts, arms)
        self.mean = arms_first(
            torch.full(shape, prior_mean, dtype=noise.dtype, device=noise.device)
        )
        self.precision = torch.full_like(self.mean, prior_std**-2)
        self.reward_precision = std**-2

    def act(self, noise: Noise) -> Tensor:
        draw = self.mean + noise.normal(*self.mean.shape[-2:]) / self.precision.sqrt()
        return highest(draw)

    def learn(self, action: Tensor, reward: Tensor) -> None:
        precision = pick(self.precision, action) + self.reward_precision
        mean = pick(self.mean, action)
        _put(self.precision, action, precision)
        _put(self.mean, action, mean + (reward - mean) * self.reward_precision / precision)


# ------------------------------------------------------------- numbers from the runs' own streams


def beta(a: Tensor, b: Tensor, noise: Noise) -> Tensor:
    """Beta(a, b) random numbers [..., Q, K], a and b ≥ 1: X/(X + Y) from gamma numbers X and Y."""
    x, y = gamma(torch.stack([a.movedim(-1, 0), b.movedim(-1, 0)]), noise).unbind()
    return (x / (x + y)).movedim(0, -1)


def gamma(shape: Tensor, noise: Noise) -> Tensor:
    """Gamma(shape, 1) random numbers [2, K, ..., Q] for shapes ≥ 1, by rejection.

    Marsaglia & Tsang 2000. Every number gets `CANDIDATES` proposals and takes the first accepted
    one, so that each run's stream always advances by the same amount. If all are rejected, which
    happens with probability below 6e-6, the number is shape − ⅓, the centre of the proposals.
    """
    kinds, arms, prompts = shape.shape[0], shape.shape[1], shape.shape[-1]
    runs = shape.dim() - 3
    # [..., C, kinds, K, Q] → [C, kinds, K, ..., Q]
    to_front = (*range(runs, runs + 3), *range(runs), runs + 3)
    normal = noise.normal(CANDIDATES, kinds, arms, prompts).permute(to_front)
    uniform = noise.uniform(CANDIDATES, kinds, arms, prompts).permute(to_front)
    d = shape - 1 / 3
    found, accepted = _propose(d, normal[0], uniform[0])
    for x, u in zip(normal[1:], uniform[1:], strict=True):
        left = (~accepted).nonzero(as_tuple=True)
        found[left], accepted[left] = _propose(d[left], x[left], u[left])
    return torch.where(accepted, found, d)


def _propose(d: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A proposal d·v with v = (1 + x/√(9d))³, and whether it is accepted."""
    v = (1 + x / (9 * d).sqrt()) ** 3
    log_v = v.clamp(min=1e-30).log()
    return d * v, (v > 0) & (u.log() < 0.5 * x * x + d * (1 - v + log_v))


def _require_setting(field: str, setting: Setting, runs: torch.Size) -> None:
    """Raise `CourseError` unless a setting is a finite number, or one for each run [...]."""
    if isinstance(setting, Tensor):
        require_fits_runs(field, setting, runs)
        require_finite(field, setting)
    else:
        require_number(field, setting, "a finite number (or a tensor of them, one per run)")


def _per_arm(setting: Setting) -> Setting:
    """A setting [...] reshaped to broadcast against [..., Q, K]."""
    return setting[..., None, None] if isinstance(setting, Tensor) else setting


def highest(score: Tensor) -> Tensor:
    """The arm [..., Q, 1] with the highest score [..., Q, K]."""
    # along a first axis, max is several times faster than argmax
    return score.movedim(-1, 0).max(0).indices.unsqueeze(-1)


def _put(per_arm: Tensor, action: Tensor, value: Tensor) -> None:
    """Write `value` [..., Q, 1] into `per_arm` [..., Q, K] at `action` [..., Q, 1], in place."""
    per_arm.movedim(-1, 0).scatter_(0, action.movedim(-1, 0), value.movedim(-1, 0))
