"""Rewards learned from preferences: Bradley–Terry, its votes, its fit, and annotators with habits.

The answers to one prompt are a small world in which everything can be listed: each has a quality
and a length, and a reference policy that writes it with a known probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course.errors import require, require_number
from course.train.noise import Noise

SHARPNESS = 4.0  # what a whole point of worth adds to the log-odds of an annotator's vote
LENGTH_COST = 0.03  # what a token takes from the worth of an answer


def preference(ahead: Tensor, behind: Tensor) -> Tensor:
    """P(the first answer wins) of two rewards: σ(r_w − r_l), element by element.

    eq:bradley-terry · Bradley & Terry 1952
    """
    return torch.sigmoid(ahead - behind)


def vote(difference: Tensor, share: float, coins: float = 0.0) -> Tensor:
    """The expected push of one pair on r_a, at r_a − r_b = `difference`: P(a wins) − σ(r_a − r_b).

    `share` of the annotators who look prefer a; a share `coins` of all tosses a coin in place of
    looking. The push on r_b is the negative.

    eq:pair-vote · derived
    """
    return voted(share, coins) - torch.sigmoid(difference)


def voted(share: float, coins: float = 0.0) -> float:
    """P(a wins) if `share` prefer a and a share `coins` of all votes is tossed."""
    for name, value in (("share", share), ("coins", coins)):
        require_number(name, value, "a probability", at_least=0, at_most=1)
    return (1 - coins) * share + coins / 2


@dataclass(frozen=True)
class Answers:
    """All answers to one prompt: log π_ref, quality and length, [K] each."""

    log_ref: Tensor
    quality: Tensor
    length: Tensor

    @property
    def features(self) -> Tensor:
        """[K, 2] what a reward model sees: quality and length."""
        return torch.stack([self.quality, self.length], -1)

    @property
    def gold(self) -> Tensor:
        """[K] what an answer is worth: its quality, less a price for each token."""
        return self.quality - LENGTH_COST * self.length


def letters(qualities: int = 11, longest: int = 30) -> Answers:
    """Answers of every quality from 0 to 1 and every length from 1 to `longest` tokens.

    The reference policy writes middling ones: quality .4 ± .2, length 8 ± 4, independently.
    """
    require_number("qualities", qualities, "a whole number ≥ 2", at_least=2, whole=True)
    require_number("longest", longest, "a whole number ≥ 2", at_least=2, whole=True)
    quality = torch.linspace(0, 1, qualities, dtype=torch.float64)
    length = torch.arange(1, longest + 1, dtype=torch.float64)
    # [qualities, longest], then one row of answers
    logits = -((quality - 0.4) / 0.2).square()[:, None] / 2 - ((length - 8) / 4).square() / 2
    grid = torch.cartesian_prod(quality, length)
    return Answers(torch.log_softmax(logits.flatten(), -1), grid[:, 0], grid[:, 1])


def annotator(bias: float = 0.0) -> Tensor:
    """[2] how an annotator weighs quality and length in the log-odds of a vote.

    With `bias` 0 votes follow the worth of the answers; the bias is added to each token's weight.
    """
    require_number("bias", bias, "a finite number")
    return torch.tensor([SHARPNESS, bias - SHARPNESS * LENGTH_COST], dtype=torch.float64)


def ask(answers: Answers, weights: Tensor, pairs: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """`pairs` pairs of answers of the reference policy, voted on: winners and losers, [N] each.

    The vote is random, with the odds of Bradley–Terry under rewards `features @ weights`.
    """
    edges = answers.log_ref.exp().cumsum(-1)
    drawn = torch.searchsorted(edges, noise.uniform(pairs, 2).double() * edges[-1])
    reward = answers.features @ weights
    first, second = drawn.unbind(-1)
    wins = noise.uniform(pairs).double() < preference(reward[first], reward[second])
    return torch.where(wins, first, second), torch.where(wins, second, first)


def fit(
    features: Tensor,
    winner: Tensor,
    loser: Tensor,
    weight: Tensor | None = None,
    ridge: float = 1e-5,
) -> Tensor:
    """The weights [D] that minimise the preference loss of rewards `features` [K, D] @ weights.

    `winner` and `loser` [N] are numbers of answers, `weight` [N] how much each pair counts
    (default: all alike, 1/N). `ridge` holds weights that no pair decides near 0; half of it times
    their squares is added to the loss.
    """
    require(winner.shape == loser.shape, "loser", tuple(loser.shape), f"{tuple(winner.shape)}")
    ahead = features[winner] - features[loser]  # [N, D]
    share = torch.full_like(ahead[:, 0], 1 / len(ahead)) if weight is None else weight
    return most_likely(ahead, share, ridge)


def most_likely(ahead: Tensor, share: Tensor, precision: float, steps: int = 100) -> Tensor:
    """The weights w [..., m] with the largest Σ_n share_n log σ(ahead_n · w) − ½ precision·‖w‖².

    `ahead` [..., N, m] is winner less loser, `share` [..., N] how much each vote counts. Newton's
    method on a concave objective; a step that overshoots is halved.
    """
    found = torch.zeros_like(ahead[..., 0, :])  # [..., m]
    eye = torch.eye(ahead.shape[-1], dtype=ahead.dtype)

    def objective(w: Tensor) -> Tensor:
        margin = (ahead @ w.unsqueeze(-1)).squeeze(-1)
        return (share * logsigmoid(margin)).sum(-1) - precision / 2 * w.square().sum(-1)

    value = objective(found)
    for _ in range(steps):
        chance = (ahead @ found.unsqueeze(-1)).sigmoid()  # [..., N, 1]: that the winner wins
        surprise = share.unsqueeze(-1) * (1 - chance)
        slope = (ahead * surprise).sum(-2) - precision * found
        curvature = (ahead * surprise * chance).mT @ ahead + precision * eye
        step = torch.linalg.solve(curvature, slope)
        part = torch.ones_like(value)
        for _ in range(30):
            falls = objective(found + part.unsqueeze(-1) * step) < value - 1e-9
            if not bool(falls.any()):
                break
            part = torch.where(falls, part / 2, part)
        found = found + part.unsqueeze(-1) * step
        value = objective(found)
        if float(step.abs().max()) < 1e-10:
            break
    return found


def every_pair(answers: Answers, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered pairs with their chance to be drawn and voted so: winner, loser, weight [K²]."""
    count = len(answers.length)
    winner, loser = torch.cartesian_prod(torch.arange(count), torch.arange(count)).unbind(-1)
    reward, pi = answers.features @ weights, answers.log_ref.exp()
    return winner, loser, pi[winner] * pi[loser] * preference(reward[winner], reward[loser])
