"""The equations of lesson 11 in numbers: groups and answers listed here one by one, slopes by
differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bandits.theory import beyond, objectives
from bandits.theory.entropy import predicted
from bandits.theory.trust_regions import slope
from course import ladder
from course.exact import Outcomes, microscope
from course.parts import SequenceTIS
from course.rollout import Rollout

F64 = torch.float64
P3, PAY = (0.5, 0.3, 0.2), (0.2, 0.5, 0.8)


def by_sequences(advantages: Callable[[list[float]], list[float]], p: float, group: int) -> float:
    """w in E[ĝ] = w∇p: every sequence of right and wrong, on the right answer's own logit."""
    total = 0.0
    for rewards in itertools.product((1.0, 0.0), repeat=group):
        chance = math.prod(p if r else 1 - p for r in rewards)
        pairs = zip(advantages(list(rewards)), rewards, strict=True)
        total += chance * sum(a * (1 - p if r else -p) for a, r in pairs) / group
    return total / (p * (1 - p))


def over_the_mean(rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    return [(r - mean) / mean if mean else 0.0 for r in rewards]


def first_right(rewards: list[float]) -> list[float]:
    """1 for the right answer if it is the only one."""
    return [r if sum(rewards) == 1 else 0.0 for r in rewards]


# ---------------------------------------------------------------- what is maximised


def test_pass_at_k_and_the_logarithm() -> None:
    """eq:pass-at-k: by listing k answers, its slope by a difference, and 1/p as a sum of slopes."""
    p, k, h = 0.3, 5, 1e-6
    listed = sum(
        math.prod(p if r else 1 - p for r in one)
        for one in itertools.product((1, 0), repeat=k)
        if any(one)
    )
    at = torch.tensor([p, p + h, p - h], dtype=F64)
    value, above, below = beyond.pass_at_k(at, k).tolist()
    assert value == pytest.approx(listed, abs=1e-12)
    assert (above - below) / (2 * h) == pytest.approx(k * (1 - p) ** (k - 1), rel=1e-6)
    total = 0.0
    for each in range(1, 120):
        high, low = beyond.pass_at_k(at[1:], each).tolist()
        total += (high - low) / (2 * h) / each
    assert total == pytest.approx(1 / p, rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_weight_of_any_advantage_of_counts(p: float) -> None:
    """eq:weight-by-counts: for the group mean and for two advantages that are nobody's."""
    group = 5
    noise = torch.Generator().manual_seed(0)
    right, wrong = torch.randn(2, group + 1, generator=noise, dtype=F64)

    def of_counts(rewards: list[float]) -> list[float]:
        m = int(sum(rewards))
        return [float(right[m] if r else wrong[m]) for r in rewards]

    found = beyond.weight_by_counts(right, wrong, torch.tensor(p, dtype=F64))
    assert float(found) == pytest.approx(by_sequences(of_counts, p, group), rel=1e-10)
    share = torch.arange(group + 1, dtype=F64) / group
    found = beyond.weight_by_counts(1 - share, -share, torch.tensor(p, dtype=F64))
    assert float(found) == pytest.approx((group - 1) / group, rel=1e-12)


@pytest.mark.parametrize(("p", "group"), [(0.3, 4), (0.05, 6), (0.9, 3)])
def test_maxrl_is_the_logarithm_cut_off_before_the_last_term(p: float, group: int) -> None:
    """eq:maxrl-weight: by listing groups, and as a sum of G − 1 terms; 2.19 at p = .3, G = 4."""
    found = float(objectives.likelihood_weight(torch.tensor(p, dtype=F64), group - 1))
    assert found == pytest.approx(by_sequences(over_the_mean, p, group), rel=1e-10)
    assert found == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, group)), rel=1e-10)
    if (p, group) == (0.3, 4):
        assert found == pytest.approx(2.19)


def test_the_leader_climbs_the_best_of_the_group() -> None:
    """eq:leader-gradient: E[max of G] over all groups by automatic differentiation, any rewards."""
    theta = torch.tensor(P3, dtype=F64).log().requires_grad_()
    pi = theta.softmax(0)
    best = sum(
        math.prod([pi[a] for a in arms], start=torch.tensor(1.0, dtype=F64))
        * max(PAY[a] for a in arms)
        for arms in itertools.product(range(3), repeat=3)
    )
    assert isinstance(best, Tensor)
    [true] = torch.autograd.grad(best, theta)
    listed = Outcomes.of_arms(torch.tensor([P3], dtype=F64).log(), torch.tensor([PAY], dtype=F64))
    seen = microscope(ladder.leader, listed, 3, covariance=False)
    torch.testing.assert_close(3 * seen.expected, true, atol=1e-12, rtol=0)
    assert by_sequences(first_right, 0.3, 4) == pytest.approx(0.7**3, rel=1e-10)


# ---------------------------------------------------------------- how far to trust


def test_the_weight_of_a_surrogate_is_its_slope_in_log_pi() -> None:
    """eq:surrogate-weight: φ written out for six surrogates; all are 1 at ρ = 1."""
    ratio = [0.5, 0.9, 1.0, 1.1, 2.0]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def gate(r: float, tau: float) -> float:
        return 4 * sigmoid(tau * (r - 1)) * (1 - sigmoid(tau * (r - 1))) * r

    def gamma(r: float, k: float, lam: float) -> float:
        return math.exp(lam) * r**k * math.exp(-lam * r)

    expected: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
        "surrogate": (lambda r: r, lambda r: r),
        "clip": (lambda r: r if r <= 1.2 else 0.0, lambda r: r if r >= 0.8 else 0.0),
        "cispo": (lambda r: min(r, 1.28), lambda r: min(r, 1.28)),
        "gmpo": (
            lambda r: r if r <= math.exp(0.4) else 0.0,
            lambda r: r if r >= math.exp(-0.4) else 0.0,
        ),
        "sapo": (lambda r: gate(r, 1.0), lambda r: gate(r, 1.05)),
        "vespo": (lambda r: gamma(r, 2, 3), lambda r: gamma(r, 3, 2)),
    }
    for name, rows in expected.items():
        part = ladder.get(name).estimator.surrogate
        for sign, want in zip((2.0, -0.5), rows, strict=True):
            at = torch.tensor(ratio, dtype=F64)
            found = slope(part, at, torch.full_like(at, 0.1), sign)
            assert found.tolist() == pytest.approx([want(r) for r in ratio], abs=1e-7), (name, sign)
            assert float(found[2]) == pytest.approx(1, abs=1e-9)


# ---------------------------------------------------------------- which tokens


def test_entropy_changes_by_a_covariance() -> None:
    """eq:entropy-covariance: against a small finite step, for a step that is nobody's."""
    noise = torch.Generator().manual_seed(1)
    logits, step = torch.randn(2, 6, generator=noise, dtype=F64)

    def entropy(z: Tensor) -> float:
        p = z.softmax(-1).tolist()
        return -sum(x * math.log(x) for x in p)

    h = 1e-5
    measured = (entropy(logits + h * step) - entropy(logits - h * step)) / (2 * h)
    found = float(predicted(logits.log_softmax(-1), step))
    assert found == pytest.approx(measured, rel=1e-7)


def test_a_sure_token_has_no_score() -> None:
    """eq:score-size: E‖e_o − π‖² by listing the tokens."""
    for pi in ((0.99, 0.01), (0.5, 0.5), P3):
        want = 0.0
        for o, chance in enumerate(pi):
            want += chance * sum(((v == o) - q) ** 2 for v, q in enumerate(pi))
        found = float(beyond.score_size(torch.tensor(pi, dtype=F64).log()))
        assert found == pytest.approx(want, rel=1e-12)


# ---------------------------------------------------------------- which samples, and whose


def test_what_is_dropped_and_asked_again_comes_from_another_policy() -> None:
    """eq:requeued: by drawing until an answer is kept, up to 200 times; and the push on a logit."""
    kept = (1.0, 0.25, 0.6)
    reach = [0.0, 0.0, 0.0]
    waiting = 1.0
    for _ in range(200):
        reach = [r + waiting * p * c for r, p, c in zip(reach, P3, kept, strict=True)]
        waiting *= sum(p * (1 - c) for p, c in zip(P3, kept, strict=True))
    log_pi = torch.tensor(P3, dtype=F64).log()
    mu = beyond.requeued(log_pi, torch.tensor(kept, dtype=F64))
    assert mu.exp().tolist() == pytest.approx(reach, abs=1e-12)
    mean = sum(m * r for m, r in zip(reach, PAY, strict=True))
    listed = Outcomes.of_arms(
        log_pi[None], torch.tensor([PAY], dtype=F64), sampler_log_prob=mu[None]
    )
    seen = microscope(ladder.rloo, listed, 4, covariance=False).expected
    want = [m * (r - mean) for m, r in zip(reach, PAY, strict=True)]
    assert seen.tolist() == pytest.approx(want, abs=1e-12)


def test_a_whole_answers_weight_gives_the_gradient_of_the_learner() -> None:
    """eq:answer-weight: two tokens, all answers listed; a token's own weight does not give it."""
    noise = torch.Generator().manual_seed(2)
    theta = torch.randn(3, 2, generator=noise, dtype=F64).requires_grad_()  # first, then by prefix
    drawn = torch.randn(3, 2, generator=noise, dtype=F64).log_softmax(-1)
    live = theta.log_softmax(-1)
    answers = list(itertools.product(range(2), repeat=2))
    worth = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): -2.0, (1, 1): 3.0}

    def tokens(table: Tensor, answer: tuple[int, ...]) -> list[Tensor]:
        return [table[0, answer[0]], table[1 + answer[0], answer[1]]]

    J = sum(torch.stack(tokens(live, one)).sum().exp() * worth[one] for one in answers)
    assert isinstance(J, Tensor)
    [true] = torch.autograd.grad(J, theta, retain_graph=True)
    by_answer, by_token = torch.zeros_like(theta), torch.zeros_like(theta)
    for one in answers:
        now, mu = torch.stack(tokens(live, one)), torch.stack(tokens(drawn, one))
        rollout = Rollout(
            torch.zeros(1, 1, 2, dtype=F64),
            now.detach()[None, None],
            torch.ones(1, 1, 2, dtype=torch.bool),
            sampler_log_prob=mu[None, None],
        )
        weight = SequenceTIS(cap=None)(rollout)[0, 0]
        chance = float(mu.sum().exp())
        [push] = torch.autograd.grad((weight * now).sum() * worth[one], theta, retain_graph=True)
        by_answer += chance * push
        own = (now - mu).exp().detach()
        [push] = torch.autograd.grad((own * now).sum() * worth[one], theta, retain_graph=True)
        by_token += chance * push
    torch.testing.assert_close(by_answer, true, atol=1e-12, rtol=0)
    assert (by_token - true).abs().max() > 0.01
