"""Why clipping does not bound the ratio: where two arms fall silent, and small steps until they do.

Two arms pay 1 and 0; the first was sampled with a small probability π₁.
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
from course.estimator import Estimator, replace
from course.exact import microscope
from course.learner import Learner
from course.parts import Clip, Constant, NoBaseline
from course.train.noise import Noise
from course.train.optim import SGD

UNCENTRED = replace(ladder.clip, baseline=NoBaseline())
SHORT = 1e-9  # a gradient length below all that occur, except 0
EVERY = 10  # steps between two points of a path


def clip_bounds(estimator: Estimator) -> tuple[float, float] | None:
    """(1 − ε_low, 1 + ε_high), or None where nothing is clipped."""
    clip = estimator.surrogate
    return (1 - clip.epsilon_low, 1 + clip.high) if isinstance(clip, Clip) else None


def limit(share: Tensor, low: float, high: float, centred: bool = True) -> Tensor:
    """Where ρ₁ stops: both arms silent, and π₁ ≤ 1 (`eq:clip-limit`). [...] → [...].

    Arm 1 is silent above `high` = 1 + ε_high, arm 2 below `low` = 1 − ε_low, that is above
    ρ₁ = (1 − (1−ε_low)(1−π₁))/π₁. Rewards that are not `centred` give arm 2 no advantage, so it is
    silent from the start.
    """
    stop = torch.full_like(share, high)
    if centred:
        stop = torch.maximum((1 - low * (1 - share)) / share, stop)
    return stop.minimum(1 / share)


def push(share: float, ratio: float) -> float:
    """The clip's expected gradient of arm 1's logit at ρ₁ = `ratio`, under the microscope, with the
    advantage r − π₁ (`eq:clip-push`). `share` is π₁.
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
    """What an estimator's small steps did: ρ₁ and ρ₂ [logs, runs] after `steps` [logs]; a run is a
    π₁.

    `before` and `after` [runs] are ρ₁ on both sides of the last step that moved it upwards,
    `clipped` [runs] the share of samples whose objective is flat at the end.
    """

    steps: Tensor
    good: Tensor
    bad: Tensor
    before: Tensor
    after: Tensor
    clipped: Tensor


def small_steps(
    estimator: Estimator, shares: Sequence[float], group: int, length: float, steps: int
) -> Path:
    """`steps` steps of equal `length` (nats of the logits) on one rollout of `group` arms in exact
    proportion, as if it had infinitely many samples; for all π₁ of `shares` at once.
    """
    share = torch.tensor(shares, dtype=torch.float64)
    good = (share * group).round().long()
    counts = torch.stack([good, group - good], -1).unsqueeze(-2)  # [runs, prompts = 1, arms = 2]
    policy = Softmax.of(counts.double() / group)
    arms = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    bandit = Population(arms, policy, counts, reference="start")
    noise = Noise(bandit.runs, dtype=torch.float64)  # nothing is drawn from it
    # clipping the gradient's length at next to nothing gives every step the same length
    learner = Learner(
        bandit, estimator, SGD(length / SHORT), noise, max_grad_norm=SHORT, log_every=steps
    )
    old = torch.stack([share, 1 - share], -1)

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
