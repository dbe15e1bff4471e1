"""How a policy's gradient changes as its samples become stale: agreement at π_old, and the limits.

At π_old every rung with a ratio has the policy gradient of its own advantage. On one rollout that
is reused again and again, rewards in {0, 1} without a baseline imitate what was rewarded and then
stop. Centred rewards push with a constant force for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from bandits.flow import ascend, expected_gradient
from bandits.linear import SharedTask, linear_bandit
from course import ladder
from course.estimator import Estimator, replace, uses_critic
from course.exact import Outcomes, group_mean_factor, kl_gradient, microscope, relative_distance
from course.lab.statistics import named_interval
from course.lab.sweep import Choice, choose, finished
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import K3, ExactKL, NoKL, ScoreFunction
from course.train.optim import SGD

REFERENCE = torch.tensor([(0.25, 0.72, 0.03)], dtype=torch.float64)  # on B3
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
    """The names of the registered rungs whose surrogate uses the ratio ρ."""
    own = ("rung", "descendant", "branch")
    return [
        name
        for name, rung in ladder.RUNGS.items()
        if rung.kind in own and not isinstance(rung.estimator.surrogate, ScoreFunction)
    ]


def distance_to_policy_gradient(name: str, listed: Outcomes, group: int) -> float:
    """The relative distance of a rung's E[ĝ] from the policy gradient of the same advantage.

    It is ‖E[ĝ] − E[ĝ of A·log π]‖ / ‖E[ĝ of A·log π]‖, where the second estimator has the score
    function as its surrogate. On-policy it is 0: `eq:surrogate-gradient-at-old`.
    """
    estimator = ladder.get(name).estimator
    twin = replace(estimator, surrogate=ScoreFunction())
    found, plain = (
        microscope(one, listed, group, covariance=False).expected for one in (estimator, twin)
    )
    return relative_distance(found, plain)


def anchored_b3() -> Outcomes:
    """B3 with a critic's value .4 and the reference (.25, .72, .03)."""
    return b3(reference=REFERENCE.log(), value=torch.tensor([0.4], dtype=torch.float64))


def kl_part(beta: float, group: int = 4) -> dict[str, float]:
    """What GRPO's KL term adds to the expected gradient on B3: relative distances from candidates.

    "sampled" is E[β(π_ref/π − 1)∇log π], "forward" −β∇KL(π_ref‖π), and "reverse" −β∇KL(π‖π_ref).
    "exact_kl" is the distance from "reverse" if the exact KL stands in the loss instead of k3.
    """
    on_b3, grpo = anchored_b3(), replace(ladder.grpo, kl=K3(beta=beta))
    push, plain, direct = (
        microscope(one, on_b3, group, covariance=False).expected
        for one in (grpo, replace(grpo, kl=NoKL()), replace(grpo, kl=ExactKL(beta)))
    )
    policy, eye = torch.tensor(B3_POLICY, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    ratio = REFERENCE[0] / policy
    sampled = beta * (policy * (ratio - 1)) @ (eye - policy)
    forward, reverse = (-beta * kl_gradient(on_b3, way) for way in ("forward", "reverse"))
    return {
        "sampled": relative_distance(push - plain, sampled),
        "forward": relative_distance(push - plain, forward),
        "reverse": relative_distance(push - plain, reverse),
        "exact_kl": relative_distance(direct - plain, reverse),
    }


def stale_limit() -> tuple[Tensor, float, float]:
    """The limit of many updates on rewards in {0, 1} without a baseline (`eq:stale-limit`).

    Returns the policy π_old·μ/J [3], its expected reward E[μ²]/J, and J of π_old.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    before = policy @ means
    return policy * means / before, float(policy @ means**2 / before), float(before)


def stale_paths(names: Iterable[str], group: int, rate: float, updates: int) -> dict[str, Tensor]:
    """log π [updates + 1, 3] of each rung on one rollout of B3 that is used again and again.

    The updates follow the exact expected gradient at samples of the first policy.
    """
    start = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    exact: dict[str, Any] = {"rate": rate, "steps": updates, "stale": True}
    return {
        name: ascend(ladder.get(name).estimator, THREE_ARMS, start, group, **exact)
        for name in names
    }


def pull_at_stale_limit(group: int) -> float:
    """‖E[ĝ]‖ of REINFORCE at the policy of `stale_limit`, on samples of B3's first policy."""
    start, (limit, *_) = torch.tensor(B3_POLICY, dtype=torch.float64).log(), stale_limit()
    pull = expected_gradient(ladder.reinforce, THREE_ARMS, limit.log(), group, old=start)
    return float(pull.norm())


def centred_path(group: int, rate: float, updates: int) -> Tensor:
    """The log-probabilities [updates + 1, 3] of the centred score function on B3, in closed form.

    Every update adds rate · (G−1)/G · π_old(μ − J) to the logits.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    push = group_mean_factor(group) * policy * (means - policy @ means)
    count = torch.arange(updates + 1, dtype=torch.float64).unsqueeze(-1)
    return torch.log_softmax(policy.log() + rate * count * push, -1)


def train(
    estimator: Estimator,
    settings: SharedTask,
    epochs: int,
    rates: Sequence[float],
    numbers: range,
    offsets: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Expected reward after training [L, R], and which runs diverged [L, R] bool.

    There are L learning rates, and `numbers` are those of the R runs. `offsets` [L] are added to
    all rewards while training (default: none).
    """
    offset = torch.tensor([0.0] * len(rates) if offsets is None else offsets, dtype=torch.float64)
    wired: dict[str, Any] = {"reference": "start", "greedy": True}
    wired["critic"] = uses_critic(estimator)
    bandit, noise = linear_bandit(
        settings.sizes, offset, numbers, settings.group, settings.seed, **wired
    )
    rate = torch.tensor(rates, dtype=torch.float64).unsqueeze(-1).expand(bandit.runs)
    loop: dict[str, Any] = {"log_every": settings.rollouts, "halt_diverged": True}
    learner = Learner(bandit, estimator, SGD(rate), noise, epochs=epochs, **loop)
    learner.train(settings.rollouts)
    return bandit.metrics()["expected_reward"] - offset.unsqueeze(-1), learner.diverged


def shifted_reinforce(
    settings: SharedTask,
    epochs: Iterable[int],
    offsets: Sequence[float],
    rate: float,
    numbers: range,
) -> Tensor:
    """Final rewards [epochs, offsets, R] of REINFORCE, which sees rewards plus an offset."""
    rates = [rate] * len(offsets)
    return torch.stack(
        [train(ladder.reinforce, settings, count, rates, numbers, offsets)[0] for count in epochs]
    )


@dataclass(frozen=True)
class Rung:
    """One rung's final rewards in the judging runs, and which of them diverged.

    `every` and `lost` are [epochs, rates, runs]; `own` is the choice of the learning rate for each
    number of epochs.
    """

    every: Tensor
    lost: Tensor
    own: list[Choice]

    @property
    def rate(self) -> float:
        """The learning rate that is best with one update per rollout."""
        return self.own[0].rate

    @property
    def kept(self) -> Tensor:
        """Final rewards [epochs, runs] at that learning rate."""
        return self.every[:, self.own[0].index]

    @property
    def retuned(self) -> Tensor:
        """Final rewards [epochs, runs] at the best learning rate for each number of epochs."""
        return torch.stack([self.every[i, one.index] for i, one in enumerate(self.own)])

    def as_series(self) -> dict[str, Any]:
        """Its learning rates, and `kept` ("fixed") and `retuned` with intervals over the runs."""
        return {
            "rate": self.rate,
            "rates": [one.rate for one in self.own],
            **named_interval("fixed", self.kept),
            **named_interval("retuned", self.retuned),
        }


def choices_and_halted(
    found: Mapping[str, Rung], epochs: Sequence[int]
) -> tuple[dict[str, Choice], dict[str, Tensor]]:
    """For each rung and number of epochs, its own choice of the rate, and who diverged.

    The second is [R] bool, at the rate that is best with one update per rollout.
    """
    own, halted = {}, {}
    for name, rung in found.items():
        for i, count in enumerate(epochs):
            own[f"{name} with {count} updates"] = rung.own[i]
            halted[f"{name} with {count} updates"] = rung.lost[i, rung.own[0].index]
    return own, halted


def sweep(
    settings: SharedTask,
    rungs: Mapping[str, Estimator],
    epochs: Sequence[int],
    rates: Sequence[float],
    progress: Progress,
) -> dict[str, Rung]:
    """Train every rung at every rate, with every number of updates per rollout."""
    found, half = {}, settings.runs
    for name in progress(tuple(rungs), "rungs"):
        estimator = rungs[name]
        trained = [
            train(estimator, settings, count, rates, range(2 * half))
            for count in progress(epochs, name)
        ]
        final, lost = (torch.stack(each) for each in zip(*trained, strict=True))
        own = [
            choose(finished(each, gone)[:, :half], rates, each[:, half:])
            for each, gone in zip(final, lost, strict=True)
        ]
        found[name] = Rung(final[..., half:], lost[..., half:], own)
    return found
