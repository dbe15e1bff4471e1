"""Gradient flows without noise: the speed and the duration of the climb to the best arm.

The best arm pays 1, the other 1 − Δ; p is the best arm's probability and u = log(p/(1 − p)). The
flow dθ/dt = E[ĝ] of an enumerated gradient stays on one line, so the time from u₀ to u₁ is the
integral of du over the speed du/dt: no sampling, no steps. Closed forms, from p = ½ (t = 0):

    policy gradient    du/dt = 2Δ p(1−p)         t = (u + sinh u)/Δ        1 − p → 1/(2Δt)
    natural PG         du/dt = Δ                 t = u/Δ                   1 − p → e^(−Δt)
    GRPO, G = ∞        du/dt = 2 √(p(1−p))       t = 2 sinh(u/2)           1 − p → 1/t², whatever Δ
    GRPO, G finite     du/dt = 2 p(1−p) w_G(p)   w_G → √(G−1) at both ends: 1 − p → 1/(2√(G−1) t)

Dividing by the std makes the slope −2 in place of −1, and takes the gap out of it; but only until
nearly every group is silent, and then the slope is −1 again. Out of a bad start it is the same
story: 1/√p₀ in place of 1/p₀.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.natural import natural_direction
from bandits.policies import Softmax, log_softmax
from bandits.population import Population, every_arm
from course import ladder
from course.estimator import Estimator
from course.exact import group_std_weight, microscope
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

Array = NDArray[np.float64]
# Gauss–Legendre quadrature with NODES nodes per PANEL nats of log-odds; times are accurate to 1e-9
PANEL, NODES = 0.5, 4


def one_against_the_rest(u: float, arms: int = 2) -> Tensor:
    """Log-probabilities [1, K]: the first arm has log-odds u, the others share the rest equally."""
    rest = torch.full((1, arms), -math.log(arms - 1), dtype=torch.float64)
    rest[0, 0] = u
    return log_softmax(rest)


def speed(estimator: Estimator, group: int, u: float, gap: float, arms: int = 2) -> float:
    """du/dt of the flow dθ/dt = E[ĝ], along the policies of `one_against_the_rest`.

    If the best arm's logit has the expected gradient g, each other logit has −g/(K−1), so the
    log-odds move by g·K/(K−1). The score 1 − p is computed from −u, so it stays precise when p
    rounds to 1.
    """
    log_prob = one_against_the_rest(u, arms)
    mean = torch.full((1, arms), 1 - gap, dtype=torch.float64)
    mean[0, 0] = 1.0
    p = torch.sigmoid(torch.tensor([u, -u], dtype=torch.float64))
    score = torch.full((1, arms, 1), -float(p[0]), dtype=torch.float64)
    score[0, 0, 0] = p[1]
    seen = microscope(
        estimator, outcomes(Deterministic(mean), log_prob, score=score), group, covariance=False
    )
    return float(seen.expected[0]) * arms / (arms - 1)


def odds(u: float) -> tuple[float, float]:
    """p and 1 − p at log-odds u."""
    return 1 / (1 + math.exp(-u)), 1 / (1 + math.exp(u))


def largest_gap(measured: Array, expected: Array) -> float:
    """Largest relative difference of two arrays [n], where the expected one is not 0."""
    there = expected != 0
    return float(np.abs(measured[there] / expected[there] - 1).max())


def natural_speed(plain: float, u: float) -> float:
    """du/dt of the natural flow dθ/dt = F⁺E[ĝ] on two arms, from the plain flow's speed."""
    direction = natural_direction(
        torch.tensor([plain, -plain], dtype=torch.float64) / 2, one_against_the_rest(u)[0]
    )
    return float(direction[0] - direction[1])


def nodes(low: float, high: float) -> tuple[Array, Array, Array]:
    """Panel edges [n + 1] from low to high, and Gauss–Legendre nodes and weights [n, NODES]."""
    count = max(1, round((high - low) / PANEL))
    edges = np.linspace(low, high, count + 1)
    places, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(edges)[:, None] / 2
    return edges, edges[:-1, None] + half * (places + 1), half * weights


def times(speeds: Array, weights: Array, edges: Array, start: float = 0.0) -> Array:
    """The times t [n + 1] at the panel edges: the integral of 1/speed from log-odds `start`.

    `start` must be an edge.
    """
    passed = np.concatenate([[0.0], (weights / speeds).sum(-1).cumsum()])
    return np.asarray(passed - passed[int(np.abs(edges - start).argmin())])


@dataclass(frozen=True)
class Flow:
    """One curve: the times `t` [n] at which the log-odds are `u` [n], with t = 0 at p = ½.

    `group` is None if E[ĝ] does not depend on G.
    """

    rung: str
    group: int | None
    gap: float
    u: Array
    t: Array
    speeds: Array  # [n − 1, NODES]


def needs_group(estimator: Estimator) -> bool:
    """Whether E[ĝ] depends on G, because a part of the estimator looks at other samples."""
    parts = (estimator.baseline, estimator.scale, estimator.sample_filter)
    return any(part.scope in ("group", "batch") for part in parts)


def flow(
    rung: str,
    group: int | None,
    gap: float,
    span: float,
    arms: int = 2,
    low: float | None = None,
) -> Flow:
    """The flow of a rung, from log-odds `low` (default −¾ span) to `span`."""
    edges, places, weights = nodes(-0.75 * span if low is None else low, span)
    estimator = ladder.get(rung).estimator
    speeds = np.array(
        [[speed(estimator, group or 1, float(u), gap, arms) for u in row] for row in places]
    )
    t = times(speeds, weights, edges, 0.0 if low is None else low)
    return Flow(rung, group, gap, edges, t, speeds)


def flows(
    rungs: Sequence[str], groups: Sequence[int], gap: float, span: float, progress: Progress
) -> list[Flow]:
    """The flow of every rung, at every group size if its E[ĝ] depends on it."""
    wanted = [
        (name, group)
        for name in rungs
        for group in (groups if needs_group(ladder.get(name).estimator) else (None,))
    ]
    return [flow(name, group, gap, span) for name, group in progress(wanted, "flows")]


def natural_times(plain: Flow) -> Array:
    """The times at the edges of the flow `plain` if it followed the natural gradient instead."""
    edges, places, weights = nodes(float(plain.u[0]), float(plain.u[-1]))
    pairs = zip(plain.speeds.ravel(), places.ravel(), strict=True)
    speeds = np.array([natural_speed(v, float(u)) for v, u in pairs])
    return times(speeds.reshape(places.shape), weights, edges)


def weight_times(span: float, group: float, eps: float) -> Array:
    """The times at the edges of `flow`, computed independently from the closed form w_G(p)."""
    edges, places, weights = nodes(-0.75 * span, span)
    u = torch.from_numpy(places)
    p, rest = torch.sigmoid(u), torch.sigmoid(-u)
    rare = torch.minimum(p, rest)  # w_G(p) = w_G(1 − p), and the smaller one is more precise
    weight = (
        1 / ((p * rest).sqrt() + eps)
        if group == math.inf
        else group_std_weight(rare, group, eps=eps)
    )
    return times((2 * p * rest * weight).numpy(), weights, edges)


# ---------------------------------------------------------------- exact steps


def exact_steps(arms: int, lr: float, steps: int) -> tuple[Array, Array]:
    """Gradient ascent with the exact gradient from the uniform policy; one arm pays 1.

    Returns step numbers and 1 − p, both [logs].
    """
    reward = torch.zeros(1, arms, dtype=torch.float64)
    reward[0, 0] = 1.0
    bandit = every_arm(Deterministic(reward), Softmax(torch.zeros(1, arms, dtype=torch.float64)))
    noise = Noise((), dtype=torch.float64)  # nothing is drawn from it
    learner = Learner(bandit, ladder.surrogate, SGD(lr), noise, log_every=10**9)
    logged: list[float] = []
    spaced = {round(10 ** (place / 8)) for place in range(80)} | {steps // 2, steps}
    stops = sorted(stop for stop in spaced if stop <= steps)
    for stop in stops:
        learner.train(stop - learner.steps)
        with torch.no_grad():
            rest = bandit.arm_policy.log_probs()[0, 1:].exp().sum()
        logged.append(float(rest))
    return np.array(stops, dtype=float), np.array(logged)


def rate_limit(arms: int, lr: float, steps: float = math.inf) -> float:
    """(K−1)/(Kη), the limit of t(1 − p) under exact gradient steps from the uniform policy.

    One of K arms pays 1; eq:softmax-gradient-rate. With finite `steps` it is the inverse slope of
    1/(1 − p) over the last half of the steps, up to (log t / t)². With a = ηK/(K−1) and q = 1 − p,
    the odds x = p/q grow by the factor e^{apq}. So 1/q = 1 + x grows by ap²(1 + apq/2 + …) = a(1 −
    (2 − a/2)q + …), and q ≈ 1/(at) has the mean 2 ln 2/(aT) over the last half of T steps.
    """
    a = lr * arms / (arms - 1)
    return (1 + (2 - a / 2) * 2 * math.log(2) / (a * steps)) / a


def late_rate(steps: Array, missing: Array) -> float:
    """The inverse slope of 1/(1 − p) over the last half of the steps; `missing` is 1 − p [logs]."""
    half = int(np.abs(steps - steps[-1] // 2).argmin())
    return float((steps[-1] - steps[half]) / (1 / missing[-1] - 1 / missing[half]))


def rate_error(arms: int, lr: float, steps: int) -> float:
    """A bound on what `rate_limit` leaves out: four times its order, (log T/(aT))², of it."""
    a = 1 / rate_limit(arms, lr)
    return 4 * rate_limit(arms, lr, steps) * (math.log(steps) / (a * steps)) ** 2


def proportional_gradient(right: int, wrong: int, eps: float) -> tuple[float, float]:
    """Group std's gradient on a rollout in exact proportion, which is G = ∞; and p(1−p)/(σ + eps).

    p is the share of `right` answers and σ = √(p(1−p)).
    """
    counts = torch.tensor([[right, wrong]])
    p = right / (right + wrong)
    policy = Softmax.of(counts.double() / (right + wrong))
    pays = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    bandit = Population(pays, policy, counts)
    rollout = bandit.sample(Noise((), dtype=torch.float64))
    ladder.group_std.objective(bandit.policy(rollout), ladder.group_std.freeze(rollout)).backward()
    assert policy.logits.grad is not None
    return float(policy.logits.grad[0, 0]), p * (1 - p) / (math.sqrt(p * (1 - p)) + eps)
