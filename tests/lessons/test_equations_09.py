"""The equations of lesson 09 in numbers: written out by hand, enumerated, or worked in plain
Python.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from course.estimator import Estimator, Frozen
from course.lab.statistics import mean_error
from course.lab.stress import Pair, Trained, row
from course.lab.sweep import Choice
from course.parts import Clip
from course.rollout import Policy, Rollout
from course.train.metrics import mean_kl, of_update
from course.train.optim import Adam, Closures, LinearDecay, clip_gradients
from tinylm import tasks
from tinylm.evaluate import right_to_go
from tinylm.model import ModelSettings, Transformer
from tinylm.scoring import log_dists

MASK = torch.tensor([[[True, True], [True, False]]])  # [Q = 1, G = 2, T = 2]


def distribution(*rows: tuple[float, ...]) -> torch.Tensor:
    """[1, 2, 2, 3] log-probabilities: of token 1 and 2 of two samples."""
    return torch.tensor(rows, dtype=torch.float64).reshape(1, 2, 2, 3).log()


DIST = distribution((0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.6, 0.2, 0.2), (0.4, 0.4, 0.2))
OLD = distribution((0.2, 0.3, 0.5), (0.3, 0.3, 0.4), (0.6, 0.3, 0.1), (0.1, 0.8, 0.1))


def test_exact_success_rate() -> None:
    """eq:exact-success-rate: the product over tokens is the probability of the one right completion
    in a list of all of three tokens.
    """
    task = tasks.make(tasks.TaskSettings(digits=1))
    model = Transformer(
        ModelSettings(width=8, layers=1, heads=2, hidden=8, context=task.context),
        dtype=torch.float64,
    )
    question = task.train[:2]
    end = int(task.target[question[0], -1])
    words = range(end + 1)
    every = [
        row for row in itertools.product(words, repeat=2) if end not in row[:1]
    ]  # first token no end
    tokens = torch.tensor([(a, b, c) for a, b in every if b != end for c in words])
    with torch.no_grad():
        log_dist = log_dists(model, task.prompt[question], tokens.expand(2, -1, -1))
    log_prob = log_dist.gather(-1, tokens.expand(2, -1, -1).unsqueeze(-1)).squeeze(-1).sum(-1)
    right = (tokens == task.target[question].unsqueeze(1)).all(-1)
    assert bool((right.sum(-1) == 1).all())
    found = right_to_go(model, task, question)[..., 0]
    assert torch.allclose(found, (log_prob.exp() * right).sum(-1), atol=1e-12)
    assert float(log_prob.exp().sum(-1).max()) < 1  # what ends early is not in the list


def test_token_entropy() -> None:
    """eq:token-entropy: −Σ π log π of each token, by hand, and its mean over chosen tokens in the
    log.
    """
    policy = Policy(torch.zeros(1, 2, 2, dtype=torch.float64), DIST)
    hand = [
        [-sum(p * math.log(p) for p in row) for row in sample] for sample in DIST[0].exp().tolist()
    ]
    assert torch.allclose(policy.entropy[0], torch.tensor(hand, dtype=torch.float64), atol=1e-12)
    logged = of_update(Estimator(), policy, frozen())
    assert float(logged["entropy"]) == pytest.approx(
        (hand[0][0] + hand[0][1] + hand[1][0]) / 3, abs=1e-12
    )


def frozen(log_prob: torch.Tensor | None = None, advantage: torch.Tensor | None = None) -> Frozen:
    zero = torch.zeros(1, 2, 2, dtype=torch.float64)
    rollout = Rollout(zero, zero if log_prob is None else log_prob, MASK)
    return Frozen(rollout, zero if advantage is None else advantage, zero, zero)


def test_mean_token_kl() -> None:
    """eq:mean-token-kl: Σ π_old log(π_old/π) of each chosen token, by hand, and their mean."""
    rows = list(
        zip(OLD.exp().flatten(0, 2).tolist(), DIST.exp().flatten(0, 2).tolist(), strict=True)
    )[:3]  # the fourth is no token
    hand = sum(sum(q * math.log(q / p) for q, p in zip(*row, strict=True)) for row in rows) / 3
    assert float(mean_kl(OLD, DIST, MASK)) == pytest.approx(hand, abs=1e-12)


def test_flat_token_share() -> None:
    """eq:flat-token-share: the logged clip fraction is the share of chosen tokens at which the
    clipped objective has slope 0.
    """
    ratio = torch.tensor([[[1.5, 0.7], [1.1, 9.0]]], dtype=torch.float64)
    for sign in (1.0, -1.0):
        advantage = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]], dtype=torch.float64) * sign
        leaf = ratio.clone().requires_grad_()
        slope = torch.autograd.grad(
            torch.minimum(leaf * advantage, leaf.clamp(0.8, 1.2) * advantage).sum(), leaf
        )[0]
        exact = int(((slope == 0) & MASK).sum()) / 3
        logged = of_update(
            Estimator(surrogate=Clip(0.2)),
            Policy(ratio.log()),
            frozen(advantage=advantage),
        )
        assert float(logged["clip_fraction"]) == pytest.approx(exact, abs=1e-12)
        assert exact == (pytest.approx(2 / 3) if sign > 0 else 0)


def test_gradient_norm_clip() -> None:
    """eq:gradient-norm-clip: a gradient longer than c gets the length c and keeps its direction; a
    shorter one stays; per run.
    """
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    (cut,) = clip_gradients([gradient], gradient.norm(dim=-1), 1.0)
    assert torch.allclose(
        cut, torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=torch.float64), atol=1e-12
    )


def test_learning_rate_schedule() -> None:
    """eq:learning-rate-schedule: the two branches by hand for n = 6, w = 2."""
    schedule = LinearDecay(6, warmup=2)
    assert [schedule(k) for k in range(7)] == pytest.approx(
        [1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4, 0], abs=1e-12
    )


def test_adam_step() -> None:
    """eq:adam-step: three steps worked in plain Python; ten times the gradients make the same
    steps.
    """
    gradients, lr, beta1, beta2, eps = (1.0, -0.4, 0.3), 0.1, 0.9, 0.98, 1e-8
    theta = m = v = 0.0
    for k, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        theta -= lr * (m / (1 - beta1**k)) / (math.sqrt(v / (1 - beta2**k)) + eps)
    for factor in (1.0, 10.0):
        place = torch.zeros(1, dtype=torch.float64)
        closures = Closures(
            [place],
            loss=torch.zeros_like,
            log_dist=torch.zeros_like,
            mean_kl=torch.sub,
            old_log_dist=None,
        )  # not asked for
        adam = Adam(lr, betas=(beta1, beta2), eps=eps)
        for g in gradients:
            adam.step([torch.tensor([factor * g], dtype=torch.float64)], closures)
        assert float(place) == pytest.approx(theta, abs=1e-8)


def test_entropy_bonus() -> None:
    """eq:entropy-bonus: the objective grows by the coefficient times the weighted entropy, worked
    by hand.
    """
    reward = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]], dtype=torch.float64)
    log_prob = DIST[..., 0]
    policy, rollout = Policy(log_prob, DIST), Rollout(reward, log_prob, MASK)
    plain = Estimator()
    bonus = replace(plain, entropy_coef=0.3)
    gained = -bonus.loss(policy, rollout) + plain.loss(policy, rollout)
    entropies = [
        -sum(p * math.log(p) for p in row) for row in DIST.exp().flatten(0, 2).tolist()[:3]
    ]
    assert float(gained) == pytest.approx(
        0.3 * sum(entropies) / 2, abs=1e-12
    )  # N = 2 samples, tokens summed


def test_paired_effect() -> None:
    """eq:paired-effect: the mean along the run, subtracted seed by seed, by hand; t for 3 pairs is
    4.303. The scatter that both arms share does not count.
    """
    below = [[0.10, 0.50, 0.90], [0.20, 0.60, 1.00]]  # [K = 2 logs, 3 seeds]
    rung = [[0.11, 0.53, 0.92], [0.23, 0.65, 1.04]]

    def trained(path: list[list[float]]) -> Trained:
        along = torch.tensor(path, dtype=torch.float64).unsqueeze(1)  # [K, one rate, S]
        return Trained({"success": along}, torch.zeros(1, 3, dtype=torch.bool))

    low, high = trained(below), trained(rung)
    rate = Choice(0.1, 1, 3)
    pair = Pair((rate, rate), low, high)
    found = row("reinforce", "baseline", "offset", pair, low, pair, None)
    hand = [0.02, 0.04, 0.03]  # ((.01 + .03)/2, (.03 + .05)/2, (.02 + .04)/2)
    half = 4.302653 * math.sqrt(sum((each - 0.03) ** 2 for each in hand) / 2 / 3)
    assert found["effect"] == pytest.approx(0.03, abs=1e-12)
    assert found["effect_half"] == pytest.approx(half, rel=1e-6)


def test_seed_standard_error() -> None:
    """eq:seed-standard-error: of 1, 2, 6: mean 3, deviation √7, error √(7/3)."""
    mean, error = mean_error(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert mean == pytest.approx(3, abs=1e-12)
    assert error == pytest.approx(math.sqrt(7 / 3), abs=1e-12)
