"""Why clipping does not bound the ratio: the limit of many small steps on one rollout of two arms.

The arms pay 1 and 0; the first was sampled with a small probability π₁.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.policies import Softmax
from bandits.population import Population
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import microscope
from course.learner import Learner
from course.parts import Clip, Constant, NoBaseline
from course.train.noise import Noise
from course.train.optim import SGD

UNCENTRED = replace(ladder.clip, baseline=NoBaseline())
SHORT = 1e-9  # shorter than every gradient that occurs, except 0
EVERY = 10  # steps between two points of a path


def clip_bounds(estimator: Estimator) -> tuple[float, float] | None:
    """(1 − ε_low, 1 + ε_high), or None if the estimator does not clip."""
    clip = estimator.surrogate
    return (1 - clip.epsilon_low, 1 + clip.high) if isinstance(clip, Clip) else None


def limit(share: Tensor, low: float, high: float, centred: bool = True) -> Tensor:
    """The value of ρ₁ at which it stops, because both arms are clipped (`eq:clip-limit`).

    π₁ [...] → ρ₁ [...]. Arm 1 has no gradient above ρ₁ = `high` = 1 + ε_high. Arm 2 has none below
    ρ₂ = `low` = 1 − ε_low, which is above ρ₁ = (1 − (1−ε_low)(1−π₁))/π₁. If the rewards are not
    `centred`, arm 2 has advantage 0 and never has a gradient. ρ₁ cannot exceed 1/π₁.
    """
    stop = torch.full_like(share, high)
    if centred:
        stop = torch.maximum((1 - low * (1 - share)) / share, stop)
    return stop.minimum(1 / share)


def push(share: float, ratio: float) -> float:
    """The clip's exact expected gradient on arm 1's logit at ρ₁ = `ratio` (`eq:clip-push`).

    The advantage is r − π₁, and `share` is π₁.
    """
    now, old = (
        torch.tensor([[p, 1 - p]], dtype=torch.float64).log() for p in (share * ratio, share)
    )
    arms = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    estimator = replace(ladder.clip, baseline=Constant(share))
    seen = microscope(estimator, outcomes(arms, now, old=old), 1, covariance=False)
    return float(seen.expected[0])


@dataclass(frozen=True)
class Path:
    """The path of an estimator's small steps, with one run for each π₁.

    `good` and `bad` are ρ₁ and ρ₂ [logs, runs] after `steps` [logs]. `before` and `after` [runs]
    are ρ₁ before and after the last step that increased it. `clipped` [runs] is the share of
    samples that are clipped at the end.
    """

    steps: Tensor
    good: Tensor
    bad: Tensor
    before: Tensor
    after: Tensor
    clipped: Tensor


def small_steps(
    estimator: Estimator,
    shares: Sequence[float],
    group: int,
    length: float,
    steps: int,
    others: int = 1,
) -> Path:
    """Take `steps` steps of equal `length` on one rollout, for all π₁ in `shares` at once.

    The rollout holds `group` samples with the arms in exact proportion, as if there were infinitely
    many. The length of a step is in nats of the logits. `others` arms that pay 0 share what the
    first leaves equally; ρ₂ is that of each.
    """
    share = torch.tensor(shares, dtype=torch.float64)
    good = (share * group).round().long()
    each = (group - good) // others
    allowed = f"a divisor of what the first arm leaves of {group} samples"
    require(bool((each * others == group - good).all()), "others", others, allowed)
    # [runs, prompts = 1, arms]
    counts = torch.stack([good, *[each] * others], -1).unsqueeze(-2)
    policy = Softmax.of(counts.double() / group)
    pays = torch.tensor([[1.0] + [0.0] * others], dtype=torch.float64)
    arms = Deterministic(pays)
    bandit = Population(arms, policy, counts, reference="start")
    noise = Noise(bandit.runs, dtype=torch.float64)  # nothing is drawn from it
    # clipping the gradient's norm to a tiny value gives every step the same length
    learner = Learner(
        bandit, estimator, SGD(length / SHORT), noise, max_grad_norm=SHORT, log_every=steps
    )
    old = counts[:, 0].double() / group

    def ratios() -> Tensor:
        with torch.no_grad():
            return policy.log_probs()[..., 0, :].exp() / old  # [runs, arms]

    seen, now, below, above = [ratios()], ratios(), torch.ones_like(share), torch.ones_like(share)
    for _ in range(steps - 1):
        last = now
        learner.step()
        now = ratios()
        rose = now[:, 0] > last[:, 0]
        below, above = torch.where(rose, last[:, 0], below), torch.where(rose, now[:, 0], above)
        if learner.steps % EVERY == 0:
            seen.append(now)
    learner.step(log=True)
    ratio = torch.stack(seen)  # [logs, runs, arms]
    clipped = learner.history["clip_fraction"][-1]
    return Path(
        torch.arange(len(seen)) * EVERY, ratio[..., 0], ratio[..., 1], below, above, clipped
    )
