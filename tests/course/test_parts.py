"""Every member of every part, on cases small enough to be worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from course import ladder
from course.estimator import Estimator, replace
from course.parts import (
    CISPO,
    GAE,
    K1,
    K2,
    K3,
    TD,
    AdaptiveBeta,
    AllSamples,
    BatchMean,
    BatchStd,
    Clip,
    Constant,
    ConstantLength,
    DivergenceKL,
    DivergenceTV,
    DropSilentGroups,
    DropTruncated,
    ExactKL,
    GammaWeight,
    GeometricMean,
    Greedy,
    GroupMean,
    GroupStd,
    GroupTokenMean,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    MirrorDescent,
    NoBaseline,
    NoKL,
    NoScale,
    OldPolicy,
    RewardToGo,
    ScoreFunction,
    SequenceMean,
    SequenceMeanRatio,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    Tapered,
    TokenMean,
    TokenRatio,
    TokenWhitening,
    TotalReturn,
    Value,
)
from course.parts.kl import exact_kl, k1, k2, k3
from course.rollout import Policy, Rollout, on_last_token
from tests.helpers import close, f64, make_rollout, slopes

# ---------------------------------------------------------------- credit

TURNS = [[[True, True, False, True]]]  # the third token is somebody else's
PAID = [[[0.0, 1.0, 0.5, 2.0]]]  # and earns ½, which belongs to the second
VALUES = [[[0.5, 1.0, 9.0, 1.0]]]


def test_total_return_gives_every_token_the_whole_sum() -> None:
    close(TotalReturn()(f64(PAID), make_rollout(PAID, mask=TURNS)), [[[3.5, 3.5, 3.5, 3.5]]])
    close(TotalReturn()(f64([[[7.0]]]), make_rollout([[[7.0]]])), [[[7.0]]])


@pytest.mark.parametrize(
    ("gamma", "want"),
    [
        (1.0, [3.5, 3.5, 0.0, 2.0]),
        (
            0.9,
            [0.9 * (1.5 + 0.9 * 2), 1.5 + 0.9 * 2, 0.0, 2.0],
        ),  # γ per chosen token: the foreign one takes no time
        (0.0, [0.0, 1.5, 0.0, 2.0]),
    ],
)
def test_reward_to_go_counts_time_in_chosen_tokens(gamma: float, want: list[float]) -> None:
    close(RewardToGo(gamma)(f64(PAID), make_rollout(PAID, mask=TURNS)), [[want]])


@pytest.mark.parametrize(
    ("credit", "ended", "truncated"),
    [
        # r = (0, 1.5, 2), V = (.5, 1, 1), γ = .9. Ended: δ = (.4, 1.4, 1); with V = 4 after a
        # truncation δ_3 = 2 + 3.6 − 1
        (TD(gamma=0.9), [0.9, 2.4, 0.0, 2.0], [0.9, 2.4, 0.0, 5.6]),
        (GAE(0.9, 0.0), [0.9, 2.4, 0.0, 2.0], [0.9, 2.4, 0.0, 5.6]),
        # γλ = .45: A = (.4 + .45·1.85, 1.4 + .45·1, 1) and, truncated, (.4 + .45·3.47, 1.4 +
        # .45·4.6, 4.6)
        (
            GAE(0.9, 0.5),
            [0.5 + 1.2325, 1.0 + 1.85, 0.0, 1.0 + 1.0],
            [0.5 + 1.9615, 1.0 + 3.47, 0.0, 1.0 + 4.6],
        ),
        (GAE(0.9, 1.0), [2.97, 3.3, 0.0, 2.0], [0.9 * 6.54, 1.5 + 0.9 * 5.6, 0.0, 5.6]),
        (GAE(1.0, 1.0), [3.5, 3.5, 0.0, 2.0], [7.5, 7.5, 0.0, 6.0]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_gae_by_hand(credit: GAE, ended: list[float], truncated: list[float]) -> None:
    plain = make_rollout(PAID, mask=TURNS, value=VALUES)
    close(credit(plain.reward, plain), [[ended]])
    cut = make_rollout(PAID, mask=TURNS, value=VALUES, truncated=[[True]], bootstrap=[[4.0]])
    close(credit(cut.reward, cut), [[truncated]])
    whole = make_rollout(PAID, mask=TURNS, value=VALUES, truncated=[[False]], bootstrap=[[4.0]])
    close(
        credit(whole.reward, whole), [[ended]]
    )  # a sample that ended has nothing after it, whatever the critic says


def gae_by_loops(
    reward: list[float],
    value: list[float],
    mask: list[bool],
    gamma: float,
    lam: float,
    after: float,
) -> list[float]:
    """The textbook: take out the chosen tokens, each with the rewards up to the next one, and add
    up (γλ)^l δ_{t+l}.
    """
    chosen = [t for t, own in enumerate(mask) if own]
    earned = [
        sum(reward[t:until]) for t, until in zip(chosen, [*chosen[1:], len(reward)], strict=True)
    ]
    v = [value[t] for t in chosen] + [after]
    deltas = [earned[i] + gamma * v[i + 1] - v[i] for i in range(len(chosen))]
    returns = [0.0] * len(reward)
    for i, t in enumerate(chosen):
        returns[t] = v[i] + sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(chosen)))
    return returns


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_on_random_masks_rewards_and_truncations(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 2, 3, 6)
    reward, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[..., 2] = True
    bootstrap, truncated = (
        torch.randn(shape[:-1], generator=generator).double(),
        torch.rand(shape[:-1], generator=generator) < 0.5,
    )
    rollout = make_rollout(reward, mask=mask, value=value, bootstrap=bootstrap, truncated=truncated)
    found = GAE(gamma, lam)(reward, rollout).reshape(-1, 6)
    after = torch.where(truncated, bootstrap, 0.0).flatten().tolist()
    rows = zip(
        reward.reshape(-1, 6).tolist(),
        value.reshape(-1, 6).tolist(),
        mask.reshape(-1, 6).tolist(),
        after,
        strict=True,
    )
    close(found, [gae_by_loops(r, v, m, gamma, lam, a) for r, v, m, a in rows])
    advantage = replace(ladder.ppo, credit=GAE(gamma, lam)).freeze(rollout).advantage
    close(
        advantage.reshape(-1, 6),
        torch.where(mask.reshape(-1, 6), found - value.reshape(-1, 6), 0.0),
    )


def test_the_ends_of_gae_are_td_and_reward_to_go() -> None:
    rollout = make_rollout(PAID, mask=TURNS, value=VALUES)
    assert torch.equal(
        GAE(0.9, 0.0)(rollout.reward, rollout), TD(gamma=0.9)(rollout.reward, rollout)
    )
    close(GAE(0.9, 1.0)(rollout.reward, rollout), RewardToGo(0.9)(rollout.reward, rollout))
    late = make_rollout(
        [[[0.0, 0.0, 0.0, 1.0]]], mask=[[[True, True, True, False]]]
    )  # the verdict comes after the answer
    close(TotalReturn()(late.reward, late)[..., :3], RewardToGo()(late.reward, late)[..., :3])


# ---------------------------------------------------------------- baseline

GROUPS = [[[1.0], [0.0], [2.0]], [[4.0], [4.0], [1.0]]]  # Q = 2, G = 3, T = 1


@pytest.mark.parametrize(
    ("baseline", "want"),
    [
        (NoBaseline(), [[1, 0, 2], [4, 4, 1]]),
        (Constant(0.5), [[0.5, -0.5, 1.5], [3.5, 3.5, 0.5]]),
        (BatchMean(), [[-1, -2, 0], [2, 2, -1]]),
        (GroupMean(), [[0, -1, 1], [1, 1, -2]]),
        (LeaveOneOut(), [[0, -1.5, 1.5], [1.5, 1.5, -3]]),
        (Value(), [[0.9, -0.2, 1.7], [3.6, 3.5, 0.4]]),
        (Greedy(), [[0, -1, 1], [-1, -1, -4]]),
        (LengthWeighted(), [[0, -1, 1], [1, 1, -2]]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_baseline_on_two_groups_of_three(baseline, want: list[list[float]]) -> None:  # type: ignore[no-untyped-def]
    value = [[[0.1], [0.2], [0.3]], [[0.4], [0.5], [0.6]]]
    rollout = make_rollout(GROUPS, value=value, greedy_reward=[1.0, 5.0])
    close(replace(ladder.reinforce, baseline=baseline).freeze(rollout).advantage.squeeze(-1), want)


def test_the_length_weighted_mean() -> None:
    """Lengths 1, 1, 2 and rewards 1, 0, 2: (1 + 0 + 4)/4."""
    mask = [[[True, False], [True, False], [True, True]]]
    rollout = make_rollout([[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]], mask=mask)
    close(ladder.opo.freeze(rollout).advantage, [[[-0.25, 0.0], [-1.25, 0.0], [0.75, 0.75]]])


def test_group_baselines_compare_the_return_of_the_first_chosen_token() -> None:
    """Reward to go differs from token to token; the group is compared by what the whole answers
    earned.
    """
    mask = [[[False, True, True], [False, True, True]]]
    rollout = make_rollout([[[0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]], mask=mask)
    estimator = replace(ladder.group_mean, credit=RewardToGo())
    close(estimator.freeze(rollout).advantage, [[[0.0, 3 - 2, 2 - 2], [0.0, 1 - 2, 1 - 2]]])


# ---------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("scale", "divisors"),
    [
        (NoScale(), [1.0, 1.0]),
        (GroupStd(eps=0.0), [math.sqrt(2 / 3), math.sqrt(2)]),  # squares about the mean: 2 and 6
        (GroupStd(ddof=1, eps=0.0), [1.0, math.sqrt(3)]),
        (GroupStd(ddof=1, eps=0.5), [1.5, math.sqrt(3) + 0.5]),
        (GroupStd(), [math.sqrt(2 / 3) + 1e-6, math.sqrt(2) + 1e-6]),
        (
            BatchStd(eps=0.0),
            [math.sqrt(14 / 6)] * 2,
        ),  # about the batch's mean 2: 1 + 4 + 0 + 4 + 4 + 1
        (BatchStd(ddof=1, eps=0.1), [math.sqrt(14 / 5) + 0.1] * 2),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_scale_on_two_groups_of_three(scale, divisors: list[float]) -> None:  # type: ignore[no-untyped-def]
    advantage = (
        replace(ladder.group_mean, scale=scale).freeze(make_rollout(GROUPS)).advantage.squeeze(-1)
    )
    close(advantage, f64([[0, -1, 1], [1, 1, -2]]) / f64(divisors).unsqueeze(-1))


def test_token_whitening_counts_chosen_tokens_only() -> None:
    """Advantages 3, 1, 1 on three chosen tokens: mean 5/3, variance 8/9, or 4/3 with one degree of
    freedom less.
    """
    mask = [[[True, False], [True, True]]]
    rollout = make_rollout([[[3.0, 0.0], [0.0, 1.0]]], mask=mask)
    for eps, ddof, variance in ((0.0, 0, 8 / 9), (0.5, 0, 8 / 9), (0.5, 1, 4 / 3)):
        root = math.sqrt(variance + eps)
        found = replace(ladder.reinforce, scale=TokenWhitening(eps, ddof)).freeze(rollout).advantage
        close(found, [[[4 / 3 / root, 0.0], [-2 / 3 / root, -2 / 3 / root]]])


def test_nearly_equal_rewards_are_not_silent() -> None:
    """Silence is max = min and nothing else: a difference of 1e-9 is divided up to ±1."""
    rollout = make_rollout([[[1.0], [1.0 + 1e-9]]])
    close(
        replace(ladder.group_std, scale=GroupStd(eps=0.0)).freeze(rollout).advantage,
        [[[-1.0], [1.0]]],
    )
    assert not bool(DropSilentGroups()(rollout).logical_not().any())


@pytest.mark.parametrize(
    "scale",
    [GroupStd(eps=0.0), BatchStd(eps=0.0), TokenWhitening(eps=0.0)],
    ids=lambda part: part.short,
)
def test_every_scale_turns_silence_into_zeros(scale) -> None:  # type: ignore[no-untyped-def]
    """0/0 is 0 here, also where no baseline was taken off first, and whatever stands on tokens that
    were not chosen.
    """
    mask = torch.tensor([[[True, False]] * 4 + [[True, True]] * 3])
    for paid in (0.7, -0.7):
        reward = torch.tensor([[[paid, 0.0]] * 4 + [[0.0, paid]] * 3])  # float32, on the last token
        rollout = Rollout(reward, torch.full((1, 7, 2), -1.0), mask)
        for base in (ladder.group_mean, ladder.reinforce):
            for credit in (TotalReturn(), RewardToGo()):
                estimator = replace(replace(base, credit=credit), scale=scale)
                assert bool((estimator.freeze(rollout).advantage == 0).all())


# ---------------------------------------------------------------- ratio

LOG_RATIO = f64([[[math.log(2.0), math.log(0.5), 0.0], [math.log(3.0), 0.0, 0.0]]])
CHOSEN = torch.tensor([[[True, True, True], [True, False, False]]])


@pytest.mark.parametrize(
    ("level", "rho", "weights"),
    [
        (TokenRatio(), [[2.0, 0.5, 1.0], [3.0, 1.0, 1.0]], [[2.0, 0.5, 1.0], [3.0, 1.0, 1.0]]),
        (SequenceRatio(), [[1.0] * 3, [3.0] * 3], [[1.0] * 3, [3.0] * 3]),
        (SequenceMeanRatio(), [[1.0] * 3, [3.0] * 3], [[1.0] * 3, [3.0] * 3]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_ratio_and_its_gradient(
    level, rho: list[list[float]], weights: list[list[float]]
) -> None:  # type: ignore[no-untyped-def]
    """A sequence's ratio acts on each token through that token alone: ∂ρ_t/∂log π_t = ρ, and no
    cross terms.
    """
    leaf = LOG_RATIO.clone().requires_grad_()
    ratio = level(leaf, CHOSEN).exp()
    close(ratio.detach(), [rho])
    for t in range(3):
        gradient = torch.autograd.grad(ratio[0, :, t].sum(), leaf, retain_graph=True)[0]
        want = torch.zeros(1, 2, 3, dtype=torch.float64)
        want[0, :, t] = f64(weights)[:, t]
        close(gradient, want)


@pytest.mark.parametrize(
    ("level", "share"), [(SequenceRatio(whole=True), 1.0), (SequenceMeanRatio(whole=True), 1 / 3)]
)
def test_a_whole_ratio_moves_every_token(level, share: float) -> None:  # type: ignore[no-untyped-def]
    """`whole`: the same numbers, and ∂ρ_t/∂log π_u = ρ (or ρ/|o|) for every pair of
    chosen tokens.
    """
    log_ratio = f64([[[math.log(8.0), 0.0, math.log(2.0)]]])
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    leaf = log_ratio.clone().requires_grad_()
    ratio = level(leaf, mask).exp()
    close(ratio.detach(), f64([[[16.0] * 3]]) ** share)
    for t in range(3):
        gradient = torch.autograd.grad(ratio[0, 0, t], leaf, retain_graph=True)[0]
        close(gradient, share * ratio.detach())
    assert level.text != type(level)().text
    assert level.latex != type(level)().latex


def test_the_length_normalised_ratio_is_the_geometric_mean() -> None:
    log_ratio = f64([[[math.log(8.0), 0.0, 0.0], [math.log(4.0), 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    close(SequenceMeanRatio()(log_ratio, mask).exp(), [[[2.0] * 3, [2.0] * 3]])
    close(SequenceRatio()(log_ratio, mask).exp(), [[[8.0] * 3, [4.0] * 3]])


# ---------------------------------------------------------------- surrogate


def value_and_slope(surrogate, rho: float, advantage: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """The surrogate and its derivative by ρ, at log π = −1 (of ρ by way of log ρ)."""
    log_ratio = f64([math.log(rho)]).requires_grad_()
    value = surrogate(log_ratio, log_ratio - 1 - math.log(rho), f64([advantage]))
    return value.item(), torch.autograd.grad(value.sum(), log_ratio)[0].item() / rho


@pytest.mark.parametrize(
    ("surrogate", "rho", "advantage", "value", "slope"),
    [
        (ScoreFunction(), 1.7, 2.0, -2.0, 2.0 / 1.7),  # A log π at log π = −1; ∂/∂log π = A
        (ImportanceSampling(), 1.7, 2.0, 3.4, 2.0),
        (Clip(0.2), 1.1, 2.0, 2.2, 2.0),
        (Clip(0.2), 1.3, 2.0, 2.4, 0.0),  # flat above 1 + ε where A > 0
        (Clip(0.2), 0.5, 2.0, 1.0, 2.0),  # and not below
        (Clip(0.2), 0.7, -2.0, -1.6, 0.0),  # flat below 1 − ε where A < 0
        (Clip(0.2), 1.5, -2.0, -3.0, -2.0),  # and not above
        (Clip(0.2, 0.28), 1.25, 1.0, 1.25, 1.0),
        (Clip(0.2, 0.28), 1.3, 1.0, 1.28, 0.0),
        (Clip(0.3, 0.1), 0.75, -1.0, -0.75, -1.0),
        (Clip(0.3, 0.1), 0.65, -1.0, -0.7, 0.0),
        (Clip(0.2, dual_clip=3.0), 5.0, -2.0, -6.0, 0.0),  # bounded by c·A
        (Clip(0.2, dual_clip=3.0), 2.5, -2.0, -5.0, -2.0),
        (Clip(0.2, ratio_cap=3.0), 5.0, -2.0, -6.0, 0.0),
        (Clip(0.2, ratio_cap=1.1), 1.15, 1.0, 1.1, 0.0),  # a low cap also cuts what is good
        (
            Clip(0.2, ratio_cap=1.1),
            1.15,
            -1.0,
            -1.15,
            -1.0,
        ),  # and leaves the clip's own slope where it is lower
        (CISPO(0.2), 1.7, 2.0, -2.4, 2.4 / 1.7),  # weight 1.2, times A log π
        (CISPO(0.2), 0.01, 2.0, -0.02, 2.0),  # the lower side is open
        (CISPO(0.2, 0.3), 0.01, -1.0, 0.7, -0.7 / 0.01),
        (GammaWeight(), 1.0, 2.0, -2.0, 2.0),  # φ(1) = 1, and log π = −1
        (GammaWeight(), 2.0, 1.0, -4 * math.exp(-3), 2 * math.exp(-3)),
        (GammaWeight(), 2.0, -1.0, 8 * math.exp(-2), -4 * math.exp(-2)),
        # at log π = −1 and ρ = 1.5 π_old is .245, at ρ = ½ .736, at ρ = 30 .0123: π moved by
        # .123, −.368 and .356
        (DivergenceTV(), 1.5, 2.0, -3.0, 2.0),
        (DivergenceTV(0.15, 0.1), 1.5, 2.0, 0.0, 0.0),
        (DivergenceTV(0.15, 0.1), 1.5, -2.0, 3.0, -2.0),  # against A it may move
        (DivergenceTV(0.3, 9.0), 0.5, -2.0, 0.0, 0.0),
        (DivergenceTV(0.4, 9.0), 0.5, -2.0, 1.0, -2.0),
        (DivergenceTV(0.1, 9.0), 0.5, 2.0, -1.0, 2.0),
        (DivergenceTV(9.0, 9.0), 30.0, 2.0, -40.0, 40 / 30),  # the weight is at most 20
        # KL₂: .0348 at ρ = 1.5, .2796 at ρ = ½
        (DivergenceKL(0.1, 0.03), 1.5, 2.0, 0.0, 0.0),
        (DivergenceKL(0.1, 0.04), 1.5, 2.0, -3.0, 2.0),
        (DivergenceKL(0.27, 9.0), 0.5, -2.0, 0.0, 0.0),
        (DivergenceKL(0.29, 9.0), 0.5, -2.0, 1.0, -2.0),
        (GeometricMean(0.4), 1.4, 2.0, 2.8, 2.0),  # one token: the clip at e^.4 = 1.49
        (GeometricMean(0.4), 1.6, 2.0, 2 * math.exp(0.4), 0.0),
        (GeometricMean(0.4), 0.5, -2.0, -2 * math.exp(-0.4), 0.0),
        (GeometricMean(0.1, 0.5), 1.6, 2.0, 3.2, 2.0),
        (MirrorDescent(0.5), 2.0, 1.0, -1 - math.log(2) ** 2 / 4, (1 - math.log(2) / 2) / 2),
        (Tapered(), 3.0, 2.0, -2.0, 2 / 3),
        (Tapered(), 3.0, -2.0, 2.0, -2 / 3),
        (Tapered(), 0.5, -2.0, 1.0, -2.0),  # w = ρ = ½
        (Tapered(), 0.5, 2.0, -2.0, 4.0),
        (SoftGate(1.0, 2.0), 1.0, 3.0, 6.0, 3.0),  # (4/τ)·½·A, slope A: 4 σ' = 1
        (SoftGate(1.0, 2.0), 1.0, -3.0, -3.0, -3.0),
        (
            SoftGate(1.0, 2.0),
            2.0,
            -3.0,
            -6 / (1 + math.exp(-2)),
            -12 * math.exp(-2) / (1 + math.exp(-2)) ** 2,
        ),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_surrogate_and_its_slope(
    surrogate, rho: float, advantage: float, value: float, slope: float
) -> None:  # type: ignore[no-untyped-def]
    found = value_and_slope(surrogate, rho, advantage)
    assert found == pytest.approx((value, slope), rel=1e-12, abs=1e-13)


RHOS = [0.05 + 0.1 * step for step in range(60)]  # .05, .15, … 5.95: no point on a bound


def test_ratio_cap_and_dual_clip_are_one_function_above_the_clip_and_two_below() -> None:
    for rho in RHOS:
        for advantage in (2.0, -2.0):
            cap, dual = Clip(0.2, 0.28, ratio_cap=1.5), Clip(0.2, 0.28, dual_clip=1.5)
            assert value_and_slope(cap, rho, advantage) == pytest.approx(
                value_and_slope(dual, rho, advantage)
            )
    low = Clip(
        0.2, 0.28, ratio_cap=1.1
    )  # dual_clip=1.1 is refused: it would undo the clip where A < 0
    plain = Clip(0.2, 0.28)
    assert value_and_slope(low, 1.2, 1.0)[0] == pytest.approx(1.1)
    assert value_and_slope(plain, 1.2, 1.0)[0] == pytest.approx(1.2)
    with pytest.raises(ValueError, match="dual_clip"):
        Clip(0.2, 0.28, dual_clip=1.1)


@pytest.mark.parametrize(
    "surrogate",
    [
        *(
            ScoreFunction(),
            ImportanceSampling(),
            Clip(0.2),
            Clip(0.2, 0.28),
            Clip(0.2, dual_clip=3.0),
            CISPO(0.2, 0.3),
            SoftGate(),
            GammaWeight(),
            GeometricMean(0.4),
            GeometricMean(0.1, 0.3),
            DivergenceTV(),
            DivergenceTV(0.05, 0.25),
            DivergenceKL(),
            DivergenceKL(0.01, 0.2),
            MirrorDescent(0.3),
            Tapered(),
        ),
        *(Clip(0.2, ratio_cap=cap) for cap in (0.5, 0.9, 1.1, 1.5, 4.0)),
        Clip(0.1, 0.3, ratio_cap=2.0, dual_clip=3.0),
    ],
    ids=lambda part: part.short,
)
def test_clipped_says_where_the_slope_is_zero(surrogate) -> None:  # type: ignore[no-untyped-def]
    for rho in RHOS:
        for advantage in (1.0, -1.0):
            log_ratio, log_prob = f64([math.log(rho)]), f64([-1.0])
            said = bool(surrogate.clipped(log_ratio, log_prob, f64([advantage])))
            assert said == (value_and_slope(surrogate, rho, advantage)[1] == 0), (rho, advantage)


def test_the_clip_is_a_lower_bound_of_the_ratio() -> None:
    for rho in RHOS:
        for advantage in (1.5, -1.5):
            bound = rho * advantage
            assert value_and_slope(Clip(0.2, 0.28), rho, advantage)[0] <= bound + 4 * math.ulp(
                bound
            )  # exp(log ρ) is ρ up to rounding


def test_cispos_gradient_is_the_clipped_weight_times_a_also_on_sequences() -> None:
    """ρ = (2, ½) on two tokens, clipped to (1.28, ½): ∂/∂log π = w·clip(ρ)·A with w = 1/3 (three
    tokens in the batch).
    """
    rollout = make_rollout([[[0.0, 1.0], [0.0, 0.0]]], mask=[[[True, True], [True, False]]])
    estimator = replace(ladder.cispo, scale=NoScale())
    log_prob = rollout.log_prob + f64([[[math.log(2.0), math.log(0.5)], [math.log(3.0), 0.0]]])
    close(slopes(estimator, rollout, log_prob), f64([[[1.28 / 2, 0.5 / 2], [-1.28 / 2, 0.0]]]) / 3)


# ---------------------------------------------------------------- kl

LN2 = math.log(2.0)


def test_the_three_estimators_by_hand() -> None:
    log_r = f64([LN2, 0.0, -LN2])  # r = 2, 1, ½
    close(k1(log_r), [-LN2, 0.0, LN2])
    close(k2(log_r), [LN2**2 / 2, 0.0, LN2**2 / 2])
    close(k3(log_r), [1 - LN2, 0.0, LN2 - 0.5])
    close(
        k3(f64([1e-9])), [5e-19], rtol=1e-6, atol=0.0
    )  # no cancellation: ½ (log r)² for small log r


def kl_rollout(**optional: object):  # type: ignore[no-untyped-def]
    """One prompt, two samples, T = 2 (the second sample is short): π_old = ½
    everywhere, π_ref = ¼.
    """
    mask = [[[True, True], [True, False]]]
    ref = [[[math.log(0.25)] * 2] * 2]
    return make_rollout([[[0.0, 1.0], [0.0, 0.0]]], mask=mask, ref_log_prob=ref, **optional)


def pi(*probabilities: float) -> Tensor:
    """log π of the three chosen tokens."""
    first, second, third = probabilities
    return f64([[[math.log(first), math.log(second)], [math.log(third), -50.0]]])


@pytest.mark.parametrize(
    ("kl", "per_token"),
    [
        # π = (½, ⅛, ¼): r = ref/π = (½, 2, 1), ρ = π/old = (1, ¼, ½)
        (NoKL(), [0.0, 0.0, 0.0]),
        (K1(beta=3.0), [3 * LN2, -3 * LN2, 0.0]),
        (K2(beta=2.0), [LN2**2, LN2**2, 0.0]),
        (K3(beta=1.0), [LN2 - 0.5, 1 - LN2, 0.0]),
        (K1(beta=1.0, place=InLossTimesRatio()), [LN2, -LN2 / 4, 0.0]),
        (K3(beta=1.0, place=InLossTimesRatio()), [LN2 - 0.5, (1 - LN2) / 4, 0.0]),
        # towards π_old r = π/old: the samples are of π_old, so k1 is log(old/π)
        (K1(beta=1.0, anchor=OldPolicy()), [0.0, 2 * LN2, LN2]),
        (K3(beta=1.0, anchor=OldPolicy()), [0.0, 0.25 - 1 + 2 * LN2, 0.5 - 1 + LN2]),
        (K3(beta=1.0, max_log_r=0.1), [math.exp(-0.1) - 1 + 0.1, math.exp(0.1) - 1 - 0.1, 0.0]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_penalty_in_the_loss(kl, per_token: list[float]) -> None:  # type: ignore[no-untyped-def]
    """Mean over samples of the sum over tokens; nothing else in the objective, since the advantage
    is 0.
    """
    rollout = kl_rollout()
    estimator = replace(replace(ladder.reinforce, baseline=Constant(0.0)), kl=kl)
    quiet = make_rollout(torch.zeros(1, 2, 2), mask=rollout.mask, ref_log_prob=rollout.ref_log_prob)
    objective = estimator.objective(Policy(pi(1 / 2, 1 / 8, 1 / 4)), estimator.freeze(quiet))
    close(objective, -sum(per_token) / 2)


def test_a_penalty_in_the_reward_is_frozen_with_the_sample() -> None:
    """r ← r − β log(old/ref) = r − ½·ln 2 on every chosen token; what the policy says later does
    not change it.
    """
    rollout = kl_rollout()
    estimator = replace(ladder.reinforce, kl=K1(beta=0.5, place=InReward()))
    close(estimator.freeze(rollout).advantage, [[[1 - LN2, 1 - LN2], [-LN2 / 2, 0.0]]])
    to_go = replace(estimator, credit=RewardToGo())
    close(to_go.freeze(rollout).advantage, [[[1 - LN2, 1 - LN2 / 2], [-LN2 / 2, 0.0]]])
    close(slopes(to_go, rollout, pi(1 / 2, 1 / 8, 1 / 4)), to_go.freeze(rollout).advantage / 2)
    studied = replace(ladder.reinforce, kl=K2(beta=2.0, place=InReward(), accept_bias=True))
    close(studied.freeze(rollout).advantage, [[[1 - 2 * LN2**2, 1 - 2 * LN2**2], [-(LN2**2), 0.0]]])


def test_exact_kl_in_either_direction_and_in_the_reward() -> None:
    """π = (½, ½), old = (¼, ¾), ref = (⅛, ⅞); and 0·log 0 = 0 in value and gradient."""
    pi_log_dist, old, ref = (
        f64([0.5, 0.5]).log(),
        f64([0.25, 0.75]).log(),
        f64([0.125, 0.875]).log(),
    )
    spread = [log_dist.expand(1, 1, 1, 2) for log_dist in (pi_log_dist, old, ref)]
    rollout = make_rollout([[[0.0], [0.0]]], old_log_dist=spread[1], ref_log_dist=spread[2])

    def penalty(kl: ExactKL) -> float:
        estimator = replace(ladder.reinforce, kl=kl)
        return -estimator.objective(
            Policy(rollout.log_prob, spread[0]), estimator.freeze(rollout)
        ).item()

    to_ref = 0.5 * math.log(0.5 / 0.125) + 0.5 * math.log(0.5 / 0.875)
    from_old = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert penalty(ExactKL(beta=1.0)) == pytest.approx(to_ref, rel=1e-13)
    assert penalty(ExactKL(beta=2.0, anchor=OldPolicy())) == pytest.approx(2 * from_old, rel=1e-13)
    in_reward = replace(ladder.reinforce, kl=ExactKL(beta=1.0, place=InReward(), accept_bias=True))
    old_to_ref = 0.25 * math.log(2.0) + 0.75 * math.log(0.75 / 0.875)
    close(in_reward.freeze(rollout).advantage, [[[-old_to_ref]] * 2])
    partly = make_rollout(
        [[[0.0, 0.0]]], mask=[[[True, False]]], old_log_dist=spread[1], ref_log_dist=spread[2]
    )
    close(
        in_reward.freeze(partly).advantage, [[[-old_to_ref, 0.0]]]
    )  # and once only: the second token was not chosen
    sure = f64([0.0, -math.inf]).requires_grad_()
    value = exact_kl(sure, pi_log_dist)
    assert value.item() == pytest.approx(LN2, rel=1e-15)
    close(torch.autograd.grad(value, sure)[0], [1 + LN2, 0.0])
    assert (
        exact_kl(pi_log_dist, f64([0.0, -math.inf])).item() == math.inf
    )  # π does what the reference never does


def test_adaptive_beta_halves_and_doubles_at_half_as_much_again() -> None:
    """Target .03: halved below .02, doubled above .045, else left; each run for itself."""
    rule = AdaptiveBeta(initial=1.0, target=0.03)
    kl = f64([0.0, 0.0199, 0.0201, 0.0449, 0.0451, 9.0])
    close(rule.update(f64([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), kl), [0.5, 1.0, 3.0, 4.0, 10.0, 12.0])


def test_adaptive_beta_is_read_from_the_rollout_per_run() -> None:
    kl = K1(beta=AdaptiveBeta(initial=0.7, target=0.01), anchor=OldPolicy())
    estimator = replace(ladder.surrogate, kl=kl)
    reward = torch.zeros(2, 1, 2, 1, dtype=torch.float64)
    for kl_coef, betas in ((None, [0.7, 0.7]), ([0.5, 4.0], [0.5, 4.0])):
        rollout = make_rollout(reward, **({} if kl_coef is None else {"kl_coef": kl_coef}))
        policy = Policy(rollout.log_prob - LN2)  # π = ¼: log(old/π) = ln 2 on every token
        close(
            estimator.objective(policy, estimator.freeze(rollout)), [-beta * LN2 for beta in betas]
        )


def test_tokens_that_were_not_chosen_may_hold_anything_finite() -> None:
    """Huge log-probabilities on masked tokens overflow no exponential, forwards or backwards (0·∞
    would be NaN).
    """
    rollout = kl_rollout()
    garbage = torch.where(rollout.mask, rollout.log_prob, f64(-2e3))
    reference = torch.where(rollout.mask, rollout.ref_log_prob, f64(3e3))  # type: ignore[arg-type]
    dirty = make_rollout(rollout.reward, garbage, rollout.mask, ref_log_prob=reference)
    clean_policy = pi(1 / 2, 1 / 8, 1 / 4)
    dirty_policy = torch.where(rollout.mask, clean_policy, f64(-4e3))
    penalties = (
        K3(),
        K2(),
        K3(place=InLossTimesRatio()),
        K3(anchor=OldPolicy()),
        K1(place=InReward()),
    )
    for estimator in (
        ladder.gspo,
        ladder.cispo,
        *(replace(ladder.clip, kl=kl) for kl in penalties),
    ):
        found = slopes(estimator, dirty, dirty_policy)
        close(found, slopes(estimator, rollout, clean_policy))
        assert bool((found[~rollout.mask] == 0).all())


# ---------------------------------------------------------------- aggregation and sample filter

LENGTHS = torch.tensor(
    [[[1, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 0, 0]]], dtype=torch.bool
)  # 1, 3, 2 tokens, and none


@pytest.mark.parametrize(
    ("aggregation", "per_sample"),
    [
        (SequenceSum(), [[1 / 3, 1 / 3], [1 / 3, 0]]),  # three samples have a token
        (SequenceSum(count_empty=True), [[1 / 4, 1 / 4], [1 / 4, 0]]),
        (SequenceMean(), [[1 / 3, 1 / 9], [1 / 6, 0]]),
        (SequenceMean(count_empty=True), [[1 / 4, 1 / 12], [1 / 8, 0]]),
        (TokenMean(), [[1 / 6, 1 / 6], [1 / 6, 0]]),
        (GroupTokenMean(), [[1 / 8, 1 / 8], [1 / 4, 0]]),  # groups of 4 and of 2 tokens
        (ConstantLength(), [[1 / 15, 1 / 15], [1 / 15, 0]]),  # the rollout's limit is 5
        (ConstantLength(10), [[1 / 30, 1 / 30], [1 / 30, 0]]),
        (ConstantLength(10, count_empty=True), [[1 / 40, 1 / 40], [1 / 40, 0]]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_aggregation_on_ragged_lengths(aggregation, per_sample: list[list[float]]) -> None:  # type: ignore[no-untyped-def]
    rollout = make_rollout(torch.zeros(2, 2, 3), mask=LENGTHS, limit=5)
    close(
        replace(ladder.reinforce, aggregation=aggregation).freeze(rollout).weight,
        f64(per_sample).unsqueeze(-1) * LENGTHS,
    )


def test_without_a_limit_a_constant_length_is_the_longest_sample() -> None:
    rollout = make_rollout(torch.zeros(2, 2, 3), mask=LENGTHS)
    close(
        replace(ladder.reinforce, aggregation=ConstantLength()).freeze(rollout).weight[0, 0, 0],
        1 / 9,
    )


@pytest.mark.parametrize(
    ("sample_filter", "kept"),
    [
        (AllSamples(), [[1, 1], [1, 1]]),
        (DropSilentGroups(), [[1, 1], [0, 0]]),
        (DropTruncated(), [[1, 0], [1, 1]]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_each_filter_and_what_the_mean_then_runs_over(sample_filter, kept: list[list[int]]) -> None:  # type: ignore[no-untyped-def]
    """Scores 1, 0 and 1, 1; the second sample was cut.

    Dropped samples weigh 0, and no mean counts them unless told to.
    """
    reward = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]
    rollout = make_rollout(reward, truncated=[[False, True], [False, False]])
    keep = f64(kept).unsqueeze(-1).expand(2, 2, 2)
    count = sum(map(sum, kept))
    for aggregation, divisor in (
        (SequenceSum(), count),
        (SequenceSum(count_empty=True), 4),
        (TokenMean(), 2 * count),
    ):
        estimator = Estimator(sample_filter=sample_filter, aggregation=aggregation)
        close(estimator.freeze(rollout).weight, keep / divisor)
    close(
        Estimator(sample_filter=sample_filter, baseline=GroupMean()).freeze(rollout).advantage[0],
        [[0.5, 0.5], [-0.5, -0.5]],
    )


def test_silence_is_judged_by_raw_scores_and_not_by_the_shaped_reward() -> None:
    """A KL in the reward makes every group look lively; dynamic sampling looks at what
    was earned.
    """
    rollout = make_rollout([[[1.0], [1.0]]], [[[-0.1], [-0.9]]], ref_log_prob=[[[-0.5], [-0.5]]])
    estimator = replace(
        replace(ladder.group_mean, kl=K1(beta=1.0, place=InReward())),
        sample_filter=DropSilentGroups(),
    )
    frozen = estimator.freeze(rollout)
    assert frozen.advantage.abs().min() > 0.1
    assert bool((frozen.weight == 0).all())


def test_a_batch_that_was_dropped_whole_is_zeros_and_finite() -> None:
    rollout = make_rollout([[[1.0], [1.0]]], ref_log_prob=[[[-0.5], [-0.5]]])
    for aggregation in (
        SequenceSum(),
        SequenceMean(),
        TokenMean(),
        GroupTokenMean(),
        ConstantLength(),
    ):
        estimator = Estimator(
            baseline=GroupMean(), sample_filter=DropSilentGroups(), aggregation=aggregation, kl=K3()
        )
        assert bool((slopes(estimator, rollout, rollout.log_prob - 0.3) == 0).all())


# ---------------------------------------------------------------- the whole


def test_grpos_objective_by_hand() -> None:
    """Rewards 1, 0 for answers of 2 and 1 tokens.

    A = ±.5/(.5 + 1e-6); ρ = (1, ¼) and ½; ε = .2; β k3 as above.

    w = (¼, ¼), ½. Sample 1: min(ρA, clip(ρ)A) = A, A/4. Sample 2: A < 0 and ρ = ½ < .8, so .8·A.
    """
    advantage = 0.5 / (0.5 + 1e-6)
    first = advantage - 0.04 * (LN2 - 0.5)
    second = advantage / 4 - 0.04 * (1 - LN2)
    third = -0.8 * advantage
    rollout = kl_rollout()
    objective = ladder.grpo.objective(Policy(pi(1 / 2, 1 / 8, 1 / 4)), ladder.grpo.freeze(rollout))
    close(objective, (first + second) / 4 + third / 2)
    close(ladder.grpo.loss(Policy(pi(1 / 2, 1 / 8, 1 / 4)), rollout), -objective)


def test_entropy_and_value_terms_by_hand() -> None:
    """Entropies ln 2 and ¾·ln(4/3) + ¼·ln 4; value errors 1 − R with R = 3, 3 and 0 on the chosen
    tokens; w = ½.
    """
    rollout = make_rollout(
        [[[1.0, 2.0], [0.0, 0.0]]], mask=[[[True, True], [True, False]]], value=[[[0.0] * 2] * 2]
    )
    log_dist = f64([[[[0.5, 0.5], [0.75, 0.25]]]]).log()
    value = torch.ones(1, 2, 2, dtype=torch.float64, requires_grad=True)
    policy = Policy(rollout.log_prob, log_dist, value)
    second = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    estimator = replace(replace(ladder.ppo_value, value_coef=0.6), entropy_coef=0.1)
    frozen = estimator.freeze(rollout)
    surrogate = (3 + 3 + 0) / 2
    entropy = (LN2 + second + LN2) / 2
    errors = ((1 - 3) ** 2 + (1 - 3) ** 2 + 1) / 2 / 2
    objective = estimator.objective(policy, frozen)
    close(objective.detach(), surrogate + 0.1 * entropy - 0.6 * errors)
    close(
        torch.autograd.grad(objective, value)[0], 0.6 / 2 * f64([[[2.0, 2.0], [-1.0, 0.0]]])
    )  # −w·c·(V − R)
    close(policy.entropy, [[[LN2, second]]])


def test_the_critics_target_is_the_return_and_not_the_advantage() -> None:
    rollout = make_rollout(PAID, mask=TURNS, value=VALUES)
    close(ladder.ppo_value.freeze(rollout).target, [[[3.5] * 4]])
    close(
        replace(ladder.ppo, credit=GAE(0.9, 0.5)).freeze(rollout).target,
        [[[1.7325, 2.85, 0.0, 2.0]]],
    )
    assert not ladder.ppo.freeze(rollout).target.requires_grad


def test_nothing_that_was_frozen_carries_a_gradient() -> None:
    """A is a constant, also where the rollout's own tensors still carry a graph."""
    value = f64([[[0.2], [0.3]]]).requires_grad_()
    rollout = make_rollout([[[1.0], [0.0]]])
    frozen = ladder.ppo_value.freeze(
        type(rollout)(rollout.reward, rollout.log_prob, rollout.mask, value=value)
    )
    assert not frozen.advantage.requires_grad
    assert not frozen.target.requires_grad


# ---------------------------------------------------------------- rewards of whole samples


def test_a_reward_of_a_sample_is_put_on_its_last_chosen_token() -> None:
    """Whatever stands around the chosen tokens: prompts before, other speakers between, padding."""
    mask = torch.tensor([[[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]]).bool()
    made = on_last_token(f64([[1.0, 2.0, 3.0, 4.0]]), mask)
    close(made, [[[0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 3, 0], [4, 0, 0, 0]]])
    assert torch.equal(on_last_token(f64([[5.0]]), mask[:, :1, :1]), f64([[[5.0]]]))
    long = torch.ones(2, 3, 1, 700, dtype=torch.bool)
    assert torch.equal(
        on_last_token(f64([[[7.0]] * 3] * 2), long).nonzero()[:, -1], torch.full((6,), 699)
    )
