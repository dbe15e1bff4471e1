"""DPPO, GMPO, mirror descent and TOPR against loops from the papers' formulas; what they refuse."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace as with_fields

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.parts import (
    DivergenceKL,
    DivergenceTV,
    GammaWeight,
    GeometricMean,
    GroupMean,
    HighEntropy,
    MirrorDescent,
    RewardToGo,
    SecondMoment,
    SequenceMean,
    SequenceMeanRatio,
    SequenceRatio,
    SequenceSum,
    SequenceTIS,
    Surrogate,
    Tapered,
    TokenMean,
    TokenTIS,
)
from course.rollout import Policy, Rollout
from course.train import metrics
from tests.helpers import close, f64, make_rollout, slopes

NEW = (DivergenceTV(), DivergenceKL(), GeometricMean(), MirrorDescent(0.4), Tapered())
every = pytest.mark.parametrize("surrogate", NEW, ids=lambda part: part.short)


def case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Rollout, Tensor]:
    """Two runs of two ragged groups with holes, and log π far from log π_old."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, 3, 5)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[..., 0] = True
    old = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(0.02, 0.98).log()
    new = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(0.02, 0.98).log()
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Rollout(reward.to(dtype), old.to(dtype), mask), new.to(dtype)


def chosen(rollout: Rollout) -> list[tuple[int, ...]]:
    return [tuple(place) for place in rollout.mask.nonzero().tolist()]


def loops(surrogate: Surrogate, rollout: Rollout, new: Tensor, advantage: Tensor) -> Tensor:
    """∂ (Σ of the terms over the chosen tokens) / ∂ log π, token by token, from the papers."""
    want = torch.zeros_like(new, dtype=torch.float64)
    for at in chosen(rollout):
        a, log_rho = advantage[at].item(), (new[at] - rollout.log_prob[at]).item()
        p, q = math.exp(new[at]), math.exp(rollout.log_prob[at])
        sample = [u for u in chosen(rollout) if u[:-1] == at[:-1]]
        if isinstance(surrogate, DivergenceTV):
            low, high = surrogate.delta_low, surrogate.delta_high
            inside = p - q <= high if a > 0 else q - p <= low
            want[at] = min(p / q, 20.0) * a * inside
        elif isinstance(surrogate, DivergenceKL):
            kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
            low, high = surrogate.delta_low, surrogate.delta_high
            inside = (kl <= high or p <= q) if a > 0 else (kl <= low or p >= q)
            want[at] = min(p / q, 20.0) * a * inside
        elif isinstance(surrogate, GeometricMean):
            # Σ_u A_u·s_u, each s_u the sample's mean with the clip of its own A's sign
            for u in sample:
                mean, own = 0.0, 0.0
                for v in sample:
                    moved = (new[v] - rollout.log_prob[v]).item()
                    low, high = -surrogate.epsilon_low, surrogate.high
                    up = advantage[v].item() > 0
                    kept = min(moved, high) if up else max(moved, low)
                    mean += kept / len(sample)
                    own = float(kept == moved) if v == at else own
                want[at] += advantage[u].item() * math.exp(mean) * own / len(sample)
        elif isinstance(surrogate, MirrorDescent):
            want[at] = a - surrogate.beta * log_rho
        else:
            want[at] = a if a >= 0 else min(p / q, 1.0) * a
    return want


@every
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("credit", ["per sample", "per token"])
def test_each_against_loops(surrogate: Surrogate, seed: int, credit: str) -> None:
    """Both sides of every bound, one advantage per sample or one per token."""
    estimator = Estimator(baseline=GroupMean(), surrogate=surrogate)
    if credit == "per token":
        estimator = replace(estimator, credit=RewardToGo())
    rollout, new = case(seed)
    advantage = estimator.freeze(rollout).advantage
    want = loops(surrogate, rollout, new, advantage) / 6  # SequenceSum: 1/(Q·G)
    close(slopes(estimator, rollout, new), want)
    seen = (new - rollout.log_prob, new, advantage)
    flat = surrogate.clipped(*seen) & rollout.mask
    if isinstance(surrogate, DivergenceTV | DivergenceKL | GeometricMean):
        assert 0 < int(flat.sum()) < int(rollout.mask.sum())
    if isinstance(surrogate, DivergenceTV | DivergenceKL):
        assert bool((want[flat] == 0).all())


@every
def test_what_is_stored_at_other_tokens_changes_nothing(surrogate: Surrogate) -> None:
    """In the rollout and in the policy, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        estimator = replace(ladder.length_mean, surrogate=surrogate)
        rollout, new = case(1, dtype)
        clean = slopes(estimator, rollout, new)
        for garbage in (torch.nan, torch.inf, -torch.inf, 700.0, 0.0):
            dirty = with_fields(
                rollout, log_prob=rollout.log_prob.masked_fill(~rollout.mask, garbage)
            )
            found = slopes(estimator, dirty, new.masked_fill(~rollout.mask, garbage))
            assert torch.equal(found, clean)
            assert found.dtype == dtype
        policy = Policy(new.masked_fill(~rollout.mask, torch.nan))
        logged = metrics.of_update(estimator, policy, estimator.freeze(rollout))
        assert bool(torch.isfinite(logged["clip_fraction"]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_share_of_clipped_tokens_is_that_of_the_trust_region(dtype: torch.dtype) -> None:
    """`clip_fraction` knows log π, which the bound of a probability needs."""
    old, now = f64([[[0.5, 0.01, 0.9, 0.3]]]).to(dtype).log(), f64([[[0.7, 0.1, 0.7, 0.2]]])
    rollout = Rollout(f64([[[0, 0, 0, 1.0]]]).to(dtype), old, torch.ones(1, 1, 4, dtype=torch.bool))
    estimator = Estimator(surrogate=DivergenceTV())
    logged = metrics.of_update(estimator, Policy(now.to(dtype).log()), estimator.freeze(rollout))
    assert logged["clip_fraction"].item() == 0.25  # .2 more than .15; ρ = 10 is only .09 more
    blamed = with_fields(rollout, reward=-rollout.reward)
    logged = metrics.of_update(estimator, Policy(now.to(dtype).log()), estimator.freeze(blamed))
    assert logged["clip_fraction"].item() == 0.25  # .9 to .7, at ρ = .78


# ---------------------------------------------------------------- the trust region of a token


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_binary_kl_at_the_ends(dtype: torch.dtype) -> None:
    """Probabilities of 0 and 1 on either side, and near 1, where 1 − π would lose its digits."""
    part = DivergenceKL()

    def moved(old: float, now: float) -> float:
        each = (torch.tensor([value], dtype=dtype) for value in (now, old))
        return part.moved(*each).item()

    assert moved(0.0, 0.0) == 0.0
    assert moved(0.0, math.log(0.5)) == pytest.approx(math.log(2))
    assert moved(math.log(0.5), 0.0) == math.inf
    tiny = -1e-6  # π_old = 1 − 1e-6, now 1 − 2e-6: 1e-6·(1 − log 2), to second order
    want = 1e-6 * (1 - math.log(2))
    assert moved(tiny, 2 * tiny) == pytest.approx(want, rel=0.1 if dtype == torch.float32 else 1e-5)
    q, p = 0.3, 0.45
    want = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert moved(math.log(q), math.log(p)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("part", [DivergenceTV(), DivergenceKL()], ids=lambda part: part.short)
def test_a_token_far_away_has_a_weight_of_at_most_twenty(
    part: Surrogate, dtype: torch.dtype
) -> None:
    """Against A nothing is flat, and ρ = e^1000 leaves no infinity and no NaN."""
    log_prob = torch.tensor([-1.0, -1.0, -1001.0, -torch.inf], dtype=dtype, requires_grad=True)
    log_ratio = torch.tensor([1000.0, 1000.0, -1000.0, -torch.inf], dtype=dtype)
    term = part(log_ratio, log_prob, torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=dtype))
    (slope,) = torch.autograd.grad(term.sum(), log_prob)
    assert term.tolist() == [20.0, 0.0, 0.0, 0.0]
    assert slope.tolist() == [-20.0, 0.0, 0.0, 0.0]


def test_a_ratio_that_is_far_for_the_clip_may_be_near_in_probability() -> None:
    """.01 → .1 is ρ = 10 and a move of .09; .9 → .74 is ρ = .82 and a move of .16."""
    old, now = f64([0.01, 0.9]).log(), f64([0.1, 0.74]).log()
    advantage = f64([1.0, -1.0])
    seen = (now - old, now, advantage)
    assert ladder.clip.surrogate.clipped(*seen).tolist() == [True, False]
    assert DivergenceTV().clipped(*seen).tolist() == [False, True]


# ---------------------------------------------------------------- GMPO, Kimi, TOPR


def test_gmpo_counts_a_sample_once_and_weighs_it_by_a_geometric_mean() -> None:
    """ρ = 2 and ½ of a right answer: clipped to e^.4 and ½, s = √(e^.4/2) = .864."""
    old = f64([[[0.25, 0.5, 0.5], [0.5, 0.5, 0.5]]]).log()
    now = f64([[[0.5, 0.25, 0.9], [0.5, 0.25, 0.75]]]).log()
    mask = [[[True, True, False], [True, True, True]]]
    rollout = make_rollout([[[0, 1.0, 0], [0, 0, 0]]], old, mask)
    estimator = replace(replace(ladder.gmpo, scale=Estimator().scale), baseline=GroupMean())
    right = math.sqrt(math.exp(0.4) / 2)
    wrong = (1.5 * math.exp(-0.4)) ** (1 / 3)  # ρ = 1, ½ → e^−.4, 1.5
    objective = estimator.objective(Policy(now), estimator.freeze(rollout))
    assert objective.item() == pytest.approx((0.5 * right - 0.5 * wrong) / 2, rel=1e-12)
    want = [[[0, right / 2, 0], [-wrong / 3, 0, -wrong / 3]]]
    close(slopes(estimator, rollout, now), f64(want) * 0.5 / 2)


def test_kimis_spring_is_that_of_whole_answers() -> None:
    """∇ of A·log π(o) − (β/2)(log π(o)/π_old(o))² (Kimi k1.5), as every token feels it."""
    rollout, new = case(2)
    estimator = replace(ladder.kimi, surrogate=MirrorDescent(0.3))
    advantage = estimator.freeze(rollout).advantage
    leaf = new.clone().requires_grad_()
    log_prob = torch.where(rollout.mask, leaf, 0.0).sum(-1)
    moved = torch.where(rollout.mask, leaf - rollout.log_prob, 0.0).sum(-1)
    value = (advantage[..., 0] * log_prob - 0.15 * moved**2).sum((-2, -1)) / 6
    (want,) = torch.autograd.grad(value.sum(), leaf)
    close(slopes(estimator, rollout, new), want)


def test_mirror_descent_rests_where_its_slope_is_zero() -> None:
    """At log ρ = A/β; beyond, it pulls back."""
    beta, advantage = 0.5, f64([0.4, -0.4])
    for factor, sign in ((0.5, 1.0), (1.0, 0.0), (2.0, -1.0)):
        leaf = (factor * advantage / beta).requires_grad_()
        value = MirrorDescent(beta)(leaf, leaf - 1.0, advantage).sum()
        (slope,) = torch.autograd.grad(value, leaf)
        close(slope, sign * advantage * (0.5 if factor == 0.5 else 1.0))


def test_topr_imitates_praise_and_fades_blame() -> None:
    """Two answers of two tokens, ρ = 4 and ¼ as products: weights 1 and ¼."""
    old = f64([[[0.2, 0.2], [0.4, 0.4]]]).log()
    now = f64([[[0.4, 0.4], [0.2, 0.2]]]).log()
    for reward, want in (([1.0, -1.0], [0.5, -0.125]), ([-1.0, 1.0], [-0.5, 0.5])):
        rollout = make_rollout([[[0, reward[0]], [0, reward[1]]]], old)
        found = slopes(ladder.topr, rollout, now)
        close(found, f64(want).view(1, 2, 1).expand(1, 2, 2))


# ---------------------------------------------------------------- refusals

PROBABILITIES = [DivergenceTV(), DivergenceKL()]
SEQUENCES = [SequenceRatio(), SequenceMeanRatio(), SequenceMeanRatio(whole=True)]


@pytest.mark.parametrize("ratio", SEQUENCES, ids=lambda part: part.short)
@pytest.mark.parametrize("surrogate", [*PROBABILITIES, GeometricMean()], ids=lambda p: p.short)
def test_a_ratio_of_answers_is_refused(surrogate: Surrogate, ratio: SequenceRatio) -> None:
    says = rf"{type(surrogate).__name__}\(\) clashes with {type(ratio).__name__}.*TokenRatio\(\)"
    with pytest.raises(CourseError, match=says):
        Estimator(surrogate=surrogate, ratio=ratio)


@pytest.mark.parametrize("correction", [TokenTIS(), SequenceTIS()], ids=lambda part: part.short)
@pytest.mark.parametrize("surrogate", [GammaWeight(), GeometricMean()], ids=lambda part: part.short)
def test_a_correction_that_would_be_another_method_is_refused(
    surrogate: Surrogate, correction: TokenTIS | SequenceTIS
) -> None:
    says = r"clashes with .*TIS\(\): .* rollout\.log_prob, so that ρ = π/μ$"
    with pytest.raises(CourseError, match=says):
        Estimator(surrogate=surrogate, correction=correction)
    for other in (*PROBABILITIES, MirrorDescent(), Tapered()):
        Estimator(surrogate=other, correction=correction)


def test_gmpo_refuses_a_filter_on_tokens() -> None:
    for part in (HighEntropy(), SecondMoment()):
        with pytest.raises(CourseError, match=r"GeometricMean\(\) clashes with .*out of the mean"):
            Estimator(surrogate=GeometricMean(), sample_filter=part)


@every
@pytest.mark.parametrize(
    "weighing", [SequenceSum(), SequenceMean(), TokenMean()], ids=lambda part: part.short
)
def test_minibatches_add_up(surrogate: Surrogate, weighing: SequenceSum) -> None:
    estimator = Estimator(baseline=GroupMean(), surrogate=surrogate, aggregation=weighing)
    rollout, new = case(3)
    frozen = estimator.freeze(rollout)
    parts = [torch.tensor([q]) for q in range(2)]
    each = [estimator.objective(Policy(new[:, part]), frozen.prompts(part)) for part in parts]
    close(sum(each), estimator.objective(Policy(new), frozen))


def test_dropped_places_are_all_listed() -> None:
    """The loops above look at every chosen token once."""
    rollout, _ = case(0)
    every_place = itertools.product(*(range(n) for n in rollout.mask.shape))
    assert chosen(rollout) == [at for at in every_place if bool(rollout.mask[at])]
