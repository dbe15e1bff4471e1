"""Classical bandit algorithms, for comparison at equal pulls: ε-greedy, UCB and Thompson sampling.

They keep an estimate per arm where a policy gradient keeps logits. Batched like everything else
over runs and prompts [..., Q], every run with random numbers of its own; settings may be tensors
[...], one number per run. A new one is a class with `act` and `learn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from bandits.environments import Environment, arms_first, pick
from course.errors import require
from course.train.noise import Noise
from course.train.optim import over_runs

Setting = float | Tensor
CANDIDATES = (
    4  # proposals per gamma number: all are rejected with a chance of at most (1 − 0.9517)^4 < 6e-6
)


class Agent(Protocol):
    """Pulls one arm of every prompt at a time and learns from what it paid."""

    def act(self, noise: Noise) -> Tensor:
        """Arms [..., Q, 1] to pull now."""
        ...

    def learn(self, action: Tensor, reward: Tensor) -> None:
        """Take in the rewards [..., Q, 1] of the arms `action` [..., Q, 1]."""
        ...


class Metered(Environment):
    """An environment with a meter, so that every algorithm's bill is written by one hand, whatever
    it does with its pulls.

    `pulls` per prompt so far, and `regret` [...] Σ (μ* − μ_a) from the exact means of the moment,
    averaged over prompts (eq:regret). Every `every` pulls they are noted down: `marks`, and
    `regrets` [marks, ...].
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
        """[marks, ...] the regret so far at each of `marks`."""
        return torch.stack(self._rows)


def play(
    agent: Agent,
    environment: Environment,
    pulls: int,
    noise: Noise,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> None:
    """The loop of all of them: act, be paid, learn, `pulls` times.

    `progress` wraps the range of pulls (a bar, say).
    """
    require(isinstance(pulls, int) and pulls > 0, "pulls", pulls, "a whole number > 0")
    for _ in progress(range(pulls)):
        action = agent.act(noise)
        agent.learn(action, environment.reward(action, noise))
        environment.advance(noise)


class ActionValues:
    """What ε-greedy and UCB share: pulls `count` and estimates `value` of every arm, [..., Q, K].

    `step_size` None gives the sample average, n-th reward weighted 1/n (Sutton & Barto 2018, eq.
    2.3); a number in (0, 1] an average that forgets (eq. 2.5). Ties go by an order of the arms that
    each run draws for itself at the start.
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


class EpsilonGreedy(ActionValues):
    """With probability ε any arm, else the best so far.

    ε = 0 with a high `initial` value explores by disappointment.

    Sutton & Barto 2018, §2.2 and §2.6. `epsilon` and `initial` may be tensors [...].
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


class UCB(ActionValues):
    """The arm with the highest value + c·√(ln t / n), t the pull's number; every arm once first
    (Sutton & Barto 2018, eq. 2.10).

    c = √2 is UCB1 for rewards in [0, 1] (Auer et al. 2002, theorem 1; there t counts the pulls
    before, so this starts one ahead). `c` may be a tensor [...].
    """

    def __init__(self, noise: Noise, prompts: int, arms: int, c: Setting = math.sqrt(2)) -> None:
        super().__init__(noise, prompts, arms)
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


class BetaThompson:
    """Thompson sampling for rewards 0 and 1: a draw from every arm's posterior, and the arm whose
    draw is the highest.

    From the uniform prior the posterior is Beta(1 + successes, 1 + failures); `wins` and `losses`
    are those two parameters, [..., Q, K]. Thompson 1933; Chapelle & Li 2011, algorithm 2.
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


class GaussianThompson:
    """Thompson sampling for rewards N(μ_a, `std`²) from the prior μ_a ~ N(`prior_mean`,
    `prior_std`²).

    The posterior is N(`mean`, 1/`precision`), both [..., Q, K]: precisions add up, means are
    weighted by them.
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
    """Beta(a, b) numbers [..., Q, K] for parameters ≥ 1: X/(X + Y) of gamma numbers X and Y."""
    x, y = gamma(torch.stack([a.movedim(-1, 0), b.movedim(-1, 0)]), noise)
    return (x / (x + y)).movedim(0, -1)


def gamma(shape: Tensor, noise: Noise) -> Tensor:
    """Gamma(shape, 1) numbers for shapes ≥ 1, [2, K, ..., Q]: rejection by Marsaglia & Tsang 2000.

    So that each run's stream moves by the same amount whatever happens in others, every number gets
    `CANDIDATES` proposals and takes the first that is accepted; where none is (a chance below 6e-6)
    it is the middle one, shape − ⅓.
    """
    kinds, arms, prompts = shape.shape[0], shape.shape[1], shape.shape[-1]
    runs = shape.dim() - 3
    to_front = (
        *range(runs, runs + 3),
        *range(runs),
        runs + 3,
    )  # [..., C, kinds, K, Q] → [C, kinds, K, ..., Q]
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


def _per_arm(setting: Setting) -> Setting:
    """A setting [...] so that it broadcasts against [..., Q, K]."""
    return setting[..., None, None] if isinstance(setting, Tensor) else setting


def highest(score: Tensor) -> Tensor:
    """The arm [..., Q, 1] with the highest score [..., Q, K].

    (max is several times faster than argmax along a first axis.)
    """
    return score.movedim(-1, 0).max(0).indices.unsqueeze(-1)


def _put(per_arm: Tensor, action: Tensor, value: Tensor) -> None:
    """Write `value` [..., Q, 1] at the arms `action` [..., Q, 1] of per_arm [..., Q,
    K], in place.
    """
    per_arm.movedim(-1, 0).scatter_(0, action.movedim(-1, 0), value.movedim(-1, 0))
