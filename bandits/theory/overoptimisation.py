"""Over-optimisation on a bandit: a reward learned from votes is maximised, the true one measured.

One prompt with K answers (arms), each described by a few features, its length among them. The true
("gold") reward grows with the features, but a length beyond a point costs. Annotators compare pairs
of the reference's samples, and a reward that is linear in the features is fitted to their votes:
the proxy. Among the reference's answers it is nearly right; a maximiser leaves them. After the
votes nothing is sampled: the policies below are tables over the arms.

Shapes: [..., K] with run axes `...`, one run for each bandit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bandits.theory.preferences import most_likely
from course.errors import require
from course.train.noise import Noise


@dataclass(frozen=True)
class World:
    """S bandits with K answers each: features [S, K, d], gold [S, K].

    Feature 0 is the length, in standard deviations from the mean. The reference is uniform. Gold is
    counted from what the reference gets.
    """

    features: Tensor
    gold: Tensor

    @property
    def log_ref(self) -> Tensor:
        """The reference policy's log-probabilities [K], in nats."""
        return torch.zeros_like(self.gold[0]).log_softmax(-1)

    @property
    def length(self) -> Tensor:
        """[S, K]"""
        return self.features[..., 0]


def world(noise: Noise, arms: int, features: int, cost: float, pays: float = 1.0) -> World:
    """Normal features x [S, K, d]; gold = pays·x₀ + x₁ − ½·cost·x₀², less its mean.

    With `cost` 0 the gold reward is linear, so that a linear reward model can be right everywhere
    and nothing can be gamed. Else length x₀ pays up to pays/cost and costs beyond. The other
    features do not matter.
    """
    require(features >= 2, "features", features, "at least 2: the length and the quality")
    x = noise.normal(arms, features)
    gold = pays * x[..., 0] + x[..., 1] - cost / 2 * x[..., 0].square()
    return World(x, gold - gold.mean(-1, keepdim=True))


def expected(log_prob: Tensor, values: Tensor) -> Tensor:
    """E[values] under policies [..., K] in nats → [...]."""
    return (log_prob.exp() * values).sum(-1)


def kl(log_prob: Tensor, log_ref: Tensor) -> Tensor:
    """KL(π‖π_ref) [...] in nats; an arm that π never takes adds 0."""
    there = log_prob > -torch.inf
    return torch.where(there, log_prob.exp() * (log_prob - log_ref), 0.0).sum(-1).clamp(min=0)


# ---------------------------------------------------------------- votes, and the reward of them


@dataclass(frozen=True)
class Votes:
    """N votes per bandit: the numbers of the winning and of the losing arms, each [S, N]."""

    winner: Tensor
    loser: Tensor

    def first(self, count: int) -> Votes:
        """The first `count` of them."""
        return Votes(self.winner[:, :count], self.loser[:, :count])

    def again(self, noise: Noise) -> Votes:
        """As many, drawn from them with replacement: a bootstrap sample."""
        count = self.winner.shape[-1]
        index = (noise.uniform(count) * count).long().clamp(max=count - 1)
        return Votes(self.winner.gather(-1, index), self.loser.gather(-1, index))


def vote(score: Tensor, noise: Noise, count: int) -> Votes:
    """`count` votes on pairs of the reference's samples: the first wins with σ(score₁ − score₂).

    `score` [S, K] is the gold reward, or what a biased annotator sees in its place.
    """
    arms = score.shape[-1]
    drawn = (noise.uniform(2, count) * arms).long().clamp(max=arms - 1)  # [S, 2, n]
    first, second = drawn.unbind(-2)
    ahead = score.gather(-1, first) - score.gather(-1, second)
    wins = noise.uniform(count) < ahead.sigmoid()
    return Votes(torch.where(wins, first, second), torch.where(wins, second, first))


def linear(features: Tensor) -> Tensor:
    """What a linear reward model looks at: the features alone, [S, K, d]."""
    return features


def with_squares(features: Tensor) -> Tensor:
    """A richer reward model: the features and their squares, [S, K, 2d]."""
    return torch.cat([features, features.square()], -1)


def bradley_terry(seen: Tensor, votes: Votes, prior: float = 0.1) -> Tensor:
    """The most probable reward seen·w of each arm [S, K], given votes and a normal prior on w.

    `seen` [S, K, m] is what the reward model looks at, `prior` the prior's precision, which keeps w
    finite.
    """
    require(prior > 0, "prior", prior, "a number > 0")

    def rows(of: Tensor) -> Tensor:
        return seen.gather(-2, of.unsqueeze(-1).expand(*of.shape, seen.shape[-1]))

    ahead = rows(votes.winner) - rows(votes.loser)  # [S, N, m]
    weight = most_likely(ahead, torch.ones_like(ahead[..., 0]), prior)
    return (seen @ weight.unsqueeze(-1)).squeeze(-1)


# ---------------------------------------------------------------- policies that maximise a score


def best_of(log_ref: Tensor, score: Tensor, count: float) -> Tensor:
    """The policy [..., K] that takes the arm of the largest score among `count` samples, in nats.

    P(the winner's score ≤ s) = F(s)^n, with F that of one sample; arms of equal score share their
    chance by the reference's probabilities. eq:best-of-n
    """
    prob = log_ref.exp().expand(score.shape)
    ordered, place = score.sort(-1)
    up_to = torch.nn.functional.pad(prob.gather(-1, place).cumsum(-1), (1, 0))  # [..., K + 1]
    up_to = up_to / up_to[..., -1:]
    at_most = up_to.gather(-1, torch.searchsorted(ordered, score.contiguous(), right=True))
    below = up_to.gather(-1, torch.searchsorted(ordered, score.contiguous()))
    chance = at_most.pow(count) - below.pow(count)  # of all arms with this score together
    return (chance * prob / (at_most - below)).log()


def best_of_kl(count: float) -> float:
    """log n − (n−1)/n: the KL of best-of-n where no two samples have one score, in nats.

    Where they may, it is an upper bound (Beirami et al. 2024). eq:best-of-n-kl
    """
    require(count >= 1, "count", count, "a number ≥ 1")
    return float(np.log(count) - (count - 1) / count)


def gradient_path(log_ref: Tensor, score: Tensor, steps: int, largest: float) -> Iterator[Tensor]:
    """Policy gradient on the score, without a KL, from the reference: `steps` + 1 times [..., K].

    θ_k moves by h·π_k (score_k − E[score]), the exact gradient. h changes along the path, so that
    the logit that moves most moves by `largest`; the path itself is that of small steps.
    """
    log_prob = log_ref.expand(score.shape)
    yield log_prob
    for _ in range(steps):
        slope = log_prob.exp() * (score - expected(log_prob, score).unsqueeze(-1))
        move = slope * (largest / slope.abs().amax(-1, keepdim=True).clamp(min=1e-300))
        log_prob = torch.log_softmax(log_prob + move, -1)
        yield log_prob


# ---------------------------------------------------------------- curves over d = √KL

Measures = Mapping[str, Callable[[Tensor], Tensor]]  # name → what is measured of [..., K]


def win_rate(log_prob: Tensor, score: Tensor) -> Tensor:
    """How often annotators prefer a sample of π [M, S, K] to one of the uniform reference: [M, S].

    E[σ(s_a − s_b)] with `score` [S, K], what they see; exact, over all pairs of arms.
    """
    beats = torch.stack([(s.unsqueeze(-1) - s).sigmoid().mean(-1) for s in score])  # [S, K]
    return expected(log_prob, beats)


def along(
    policies: Iterable[Tensor], log_ref: Tensor, measures: Measures, grid: Tensor
) -> dict[str, Tensor]:
    """Measures along a path of policies [S, K], as functions of d = √KL: each [S, len(grid)].

    Between two policies of the path they are interpolated. Raises `CourseError` if the path ends
    before the grid does.
    """
    seen = [
        [kl(policy, log_ref).sqrt(), *(measure(policy) for measure in measures.values())]
        for policy in policies
    ]
    distance, *measured = (torch.stack(column, -1) for column in zip(*seen, strict=True))
    reached = float(distance.amax(-1).min())
    require(
        reached >= float(grid[-1]), "d", float(grid[-1]), f"at most {reached:.3g}, the path's end"
    )
    return {
        name: torch.stack(
            [
                torch.from_numpy(np.interp(grid.numpy(), x.numpy(), y.numpy()))
                for x, y in zip(distance, values, strict=True)
            ]
        )
        for name, values in zip(measures, measured, strict=True)
    }


# ---------------------------------------------------------------- Gao's forms

FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "best-of-n": lambda d: np.stack([d, -(d**2)], -1),  # d(α − βd)
    "rl": lambda d: np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], -1),  # d(α − β log d)
}


@dataclass(frozen=True)
class GaoFit:
    """A form of Gao et al. 2023 fitted to gold against d = √KL.

    `residual` is the root mean square error of `fitted` [N], as a share of the largest |gold|.
    """

    alpha: float
    beta: float
    fitted: list[float]
    residual: float


def gao_fit(form: str, distance: Tensor, gold: Tensor) -> GaoFit:
    """Least squares of R = d(α − βd) ("best-of-n") or d(α − β log d) ("rl") on points [N].

    Both are linear in α and β. Raises `CourseError` for another form. Source: Gao et al. 2023.
    """
    require(form in FORMS, "form", form, ", ".join(FORMS))
    d, seen = distance.double().numpy(), gold.double().numpy()
    design = FORMS[form](d)
    (alpha, beta), *_ = np.linalg.lstsq(design, seen, rcond=None)
    fitted = design @ np.array([alpha, beta])
    residual = float(np.sqrt(np.mean((fitted - seen) ** 2)) / np.abs(seen).max())
    return GaoFit(float(alpha), float(beta), fitted.tolist(), residual)
