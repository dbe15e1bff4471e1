"""What is masked, unused or extreme: it changes nothing, comes to its limit, or is refused.

Numbers at places nobody reads, log-ratios of ±100, low precision, samples without a token, and
answers of parts that have the wrong shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.parts import (
    K1,
    K2,
    K3,
    KL,
    AdaptiveBeta,
    Aggregation,
    AllSamples,
    Baseline,
    BatchMean,
    BatchStd,
    Clip,
    ConstantLength,
    Credit,
    DropSilentGroups,
    ExactKL,
    GammaWeight,
    GroupMean,
    GroupStd,
    GroupTokenMean,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    NoKL,
    NoScale,
    OldPolicy,
    RatioLevel,
    Reference,
    RewardToGo,
    SampleFilter,
    Scale,
    ScoreFunction,
    SequenceMean,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    Surrogate,
    TokenMean,
    TokenWhitening,
    TotalReturn,
)
from course.rollout import Policy, Rollout
from course.train import metrics
from course.train.critic import RunningMean
from tests.course.test_properties import (
    BESIDE,
    EVERY,
    EXAMPLES,
    WORDS,
    Case,
    cases,
    derivatives,
    evaluate,
    every,
    make_case,
)
from tests.helpers import close, f64, make_rollout

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# ---------------------------------------------------------------- masked places


def measure(estimator: Estimator, case: Case) -> dict[str, Tensor]:
    """Objective, gradients and every metric of one update."""
    frozen = estimator.freeze(case.rollout)
    seen = metrics.of_update(estimator, Policy(**case.policy), frozen)
    sampled = metrics.of_rollout(case.rollout)
    return evaluate(estimator, case) | seen | {f"rollout.{k}": v for k, v in sampled.items()}


@every
@EXAMPLES
@given(
    case=cases(empty=True),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -300.0]),
    wide=st.booleans(),
)
def test_a_value_at_a_masked_place_changes_nothing_whatever_it_is(
    estimator: Estimator, case: Case, garbage: float, wide: bool
) -> None:
    """Neither the objective nor a gradient nor a metric, in any tensor: log-probabilities, values,
    the value after a sample that was not cut, distributions of each token or shared by a group.
    """
    estimator = replace(estimator, entropy_coef=0.1, value_coef=0.5)
    mask = case.rollout.mask
    shared = mask if wide else mask.any(-2, keepdim=True)

    def widen(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith("log_dist"):
            return tensor
        group = tensor[..., :1, :, :]
        return group.expand(*shared.shape, WORDS).clone()

    def spoil(name: str, tensor: Tensor) -> Tensor:
        name = name.removeprefix("policy.")
        if name.endswith("log_dist"):
            read = shared.unsqueeze(-1)
        elif name in ("log_prob", "ref_log_prob", "value"):
            read = mask
        elif name == "bootstrap":
            assert case.rollout.truncated is not None
            read = case.rollout.truncated & mask.any(-1)
        else:
            return tensor
        return torch.where(read, tensor, torch.full_like(tensor, garbage))

    clean = case.each(widen)
    got, want = measure(estimator, clean.each(spoil)), measure(estimator, clean)
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name
        assert not bool(want[name].isnan().any()), name
    assert all(bool((got[name][~mask] == 0).all()) for name in ("log_prob", "value"))


@dataclass(frozen=True)
class WithoutSecond(SampleFilter):
    """Drops the second sample of every group."""

    def __call__(self, rollout: Rollout) -> Tensor:
        kept = torch.ones(rollout.mask.shape[:-1], dtype=torch.bool)
        kept[..., 1] = False
        return kept


@dataclass(frozen=True)
class Sparing(Aggregation):
    """Another aggregation's weights, and 0 for the first token of the first sample."""

    inner: Aggregation = SequenceSum()

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        weight = self.inner(mask, limit, dtype)
        weight[..., 0, 0, 0] = 0.0
        return weight


@every
@pytest.mark.parametrize(
    "aggregation",
    [
        *(kind(count_empty=n) for kind in (SequenceSum, SequenceMean) for n in (False, True)),
        ConstantLength(),
        ConstantLength(7, count_empty=True),
        TokenMean(),
        GroupTokenMean(),
    ],
    ids=lambda aggregation: repr(aggregation),
)
def test_selecting_and_not_selecting_agree_where_all_is_finite(
    estimator: Estimator, aggregation: Aggregation
) -> None:
    """Where every token is chosen nothing need be selected: the same objective and gradient as with
    selecting, also where the second sample, the first token or both have the weight 0. There it is
    selected, and NaN in a sample of weight 0 is not felt.
    """
    estimator = replace(estimator, entropy_coef=0.1, value_coef=0.5)
    drawn = make_case((2,), 3, 3, 4, torch.float64, 5)
    whole = drawn.each(lambda _, t: t, mask=torch.ones(2, 3, 3, 4, dtype=torch.bool))
    selecting = whole.each(lambda _, t: t)
    vars(selecting.rollout)["is_whole"] = False
    for sample, token in product((False, True), repeat=2):
        unused = torch.zeros(2, 3, 3, 4, dtype=torch.bool)
        unused[..., 1, :], unused[..., 0, 0, 0] = sample, token
        chosen = replace(
            estimator,
            aggregation=Sparing(inner=aggregation) if token else aggregation,
            sample_filter=WithoutSecond() if sample else AllSamples(),
        )
        frozen = chosen.freeze(whole.rollout)
        assert frozen.is_whole == (not sample and not token)
        assert bool(((frozen.weight == 0) == unused).all())
        want = derivatives(chosen, dataclasses.replace(frozen, is_whole=True), whole.policy)
        careful = chosen.freeze(selecting.rollout)
        assert not careful.is_whole
        close(careful.advantage, frozen.advantage)
        for name, found in derivatives(chosen, careful, whole.policy).items():
            close(found, want[name])
        if token:  # an answer's ratio reads all tokens, with a weight or without
            continue
        assert bool((want["log_prob"][unused] == 0).all())
        spoiled = whole.policy | {
            name: torch.where(unused, math.nan, whole.policy[name])
            for name in ("log_prob", "value")
        }
        for name, found in derivatives(chosen, frozen, spoiled).items():
            close(found, want[name])


def test_a_dropped_group_is_not_felt_however_far_the_policy_is() -> None:
    """A silent group's KL has weight 0; its e^200 must not come back as 0·∞."""
    rollout = make_rollout(
        [[[1.0], [1.0]], [[1.0], [0.0]]],
        [[[-0.5], [-0.5]], [[-0.5], [-0.5]]],
        ref_log_prob=[[[-0.5], [-0.5]], [[-0.5], [-0.5]]],
    )
    for kl in (K3(), K3(place=InLossTimesRatio()), K2(), NoKL()):
        estimator = replace(replace(ladder.surrogate, kl=kl), sample_filter=DropSilentGroups())
        for far in (900.0, -900.0, math.inf, -math.inf, math.nan):
            log_prob = f64([[[far], [-0.5]], [[-0.7], [-0.7]]]).requires_grad_()
            objective = estimator.objective(Policy(log_prob), estimator.freeze(rollout))
            near = f64([[[-0.5], [-0.5]], [[-0.7], [-0.7]]])
            expected = estimator.objective(Policy(near), estimator.freeze(rollout))
            close(objective.detach(), expected)
            [gradient] = torch.autograd.grad(objective, log_prob)
            close(gradient[0], [[0.0], [0.0]])
            assert bool(torch.isfinite(gradient).all())


def test_entropy_and_metrics_with_nan_at_a_masked_token_by_hand() -> None:
    """π = (½, ½), A = 1, log π = log ½, c = .1: −.6931 + .0693, gradient by the logits (½, −½)."""
    logits = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[[True, False]]])
    nan = torch.full((), math.nan, dtype=torch.float64)
    log_dist = torch.where(chosen.unsqueeze(-1), logits.log_softmax(-1), nan)
    value = torch.where(chosen, f64([[[0.5, 0.5]]]), nan)
    rollout = make_rollout([[[1.0, 0.0]]], mask=chosen, ref_log_dist=log_dist.detach().tolist())
    policy = Policy(log_dist[..., 0], log_dist, value)
    estimator = Estimator(entropy_coef=0.1)
    frozen = estimator.freeze(rollout)
    objective = estimator.objective(policy, frozen)
    close(objective.detach(), 1.1 * math.log(0.5) - 0.2 * math.log(0.5))
    assert objective.item() == pytest.approx(-0.6238, abs=5e-5)
    [gradient] = torch.autograd.grad(objective, logits)
    close(gradient.flatten(), [0.5, -0.5, 0.0, 0.0])
    seen = metrics.of_update(estimator, policy, frozen)
    close(seen["entropy"], math.log(2))
    close(seen["value_error"], 0.25)
    close(seen["kl_ref"], 0.0)
    penalised = replace(estimator, kl=ExactKL(1.0))
    close(penalised.loss(policy, rollout).detach(), -objective.detach())


# ---------------------------------------------------------------- log-ratios of ±100


def one_token(
    surrogate: Surrogate, advantage: float, log_ratio: float, dtype: torch.dtype
) -> tuple[float, float]:
    """The surrogate of one token and its slope by log π."""
    leaf = torch.tensor([log_ratio], dtype=dtype, requires_grad=True)
    value = surrogate(leaf, leaf - 1.0, torch.tensor([advantage], dtype=dtype))
    return value.item(), torch.autograd.grad(value.sum(), leaf)[0].item()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("log_ratio", [89.0, 100.0, 1000.0, math.inf])
@pytest.mark.parametrize(
    ("surrogate", "advantage", "value"),
    [
        (Clip(0.2), 1.0, 1.2),
        (Clip(0.2), 0.0, 0.0),
        (Clip(0.2, 0.28), 2.0, 2.56),
        (Clip(0.2, dual_clip=3.0), -1.0, -3.0),
        (Clip(0.2, ratio_cap=3.0), -1.0, -3.0),
        (Clip(0.2, ratio_cap=1.1), 1.0, 1.1),
        (Clip(0.2, ratio_cap=2.0, dual_clip=5.0), -1.0, -2.0),
        (SoftGate(), 1.0, 4.0),
        (SoftGate(1.0, 2.0), -1.0, -2.0),
        (SoftGate(), 0.0, 0.0),
        (ImportanceSampling(), 0.0, 0.0),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_what_is_flat_or_unused_has_its_limit_and_no_gradient(
    surrogate: Surrogate, advantage: float, value: float, log_ratio: float, dtype: torch.dtype
) -> None:
    found, slope = one_token(surrogate, advantage, log_ratio, dtype)
    assert found == pytest.approx(value, rel=2 * torch.finfo(dtype).eps)
    assert slope == 0.0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize(
    ("surrogate", "value"),
    [(Clip(0.2), -0.8), (SoftGate(1.0, 2.0), -2 / (1 + math.exp(2))), (ImportanceSampling(), 0.0)],
    ids=lambda value: getattr(value, "short", None),
)
def test_what_became_impossible_has_its_limit_too(
    surrogate: Surrogate, value: float, dtype: torch.dtype
) -> None:
    found, slope = one_token(surrogate, -1.0, -1000.0, dtype)
    assert found == pytest.approx(value, rel=2 * torch.finfo(dtype).eps)
    assert slope == 0.0


def test_log_pi_of_minus_infinity_is_not_felt_without_advantage() -> None:
    for surrogate in (ScoreFunction(), ladder.cispo.surrogate):
        assert one_token(surrogate, 0.0, -math.inf, torch.float32) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_sequence_of_a_hundred_tokens_each_e_times_likelier(
    whole: bool, dtype: torch.dtype
) -> None:
    """ρ = e^100 leaves float32: clipped to 1.2 per token, and flat."""
    estimator = Estimator(surrogate=Clip(0.2), ratio=SequenceRatio(whole=whole))
    old = torch.full((1, 1, 100), -2.0, dtype=dtype)
    reward = torch.zeros_like(old)
    reward[..., -1] = 1.0
    rollout = Rollout(reward, old, torch.ones_like(old, dtype=torch.bool))
    now = (old + 1).requires_grad_()
    objective = estimator.objective(Policy(now), estimator.freeze(rollout))
    assert objective.item() == pytest.approx(120.0, rel=1e-5)
    assert bool((torch.autograd.grad(objective, now)[0] == 0).all())


RARE = {
    "k3 times ratio": K3(1.0, place=InLossTimesRatio()),
    "k2 times ratio": K2(1.0, place=InLossTimesRatio()),
    "k1 times ratio": K1(1.0, place=InLossTimesRatio()),
    "k3 of the old policy times ratio": K3(1.0, place=InLossTimesRatio(), anchor=OldPolicy()),
}
EXTREME = EVERY | {name: replace(ladder.reinforce, kl=kl) for name, kl in RARE.items()}


@pytest.mark.parametrize("estimator", EXTREME.values(), ids=EXTREME.keys())
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("pattern", ["up", "down", "both", "one"])
def test_log_ratios_of_a_hundred_give_the_limit_or_a_refusal(
    estimator: Estimator, dtype: torch.dtype, pattern: str
) -> None:
    """Against float64, where e^100 is a number: the same loss and gradient wherever float32 can
    hold them, ±∞ of the same sign where it cannot, and never NaN without a word.
    """
    case = make_case((), 2, 3, 3, torch.float64, 5, empty=True)
    shift = {
        "up": torch.full((2, 3, 3), 100.0),
        "down": torch.full((2, 3, 3), -100.0),
        "both": 100.0 - 200.0 * (torch.arange(18) % 2).reshape(2, 3, 3),
        "one": 100.0 * (torch.arange(18) == 7).reshape(2, 3, 3),
    }[pattern]
    # rounded to the type first, so that all types are asked the same question
    case = case.each(lambda _, t: t.to(dtype).double() if t.is_floating_point() else t)
    moved = (case.rollout.log_prob + shift).to(dtype)
    narrow = case.each(lambda _, t: t.to(dtype) if t.is_floating_point() else t)
    narrow = Case(narrow.rollout, narrow.policy | {"log_prob": moved})
    exact = Case(case.rollout, case.policy | {"log_prob": moved.double()})
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    largest = torch.finfo(wide).max
    want = evaluate(estimator, exact)
    got = evaluate(estimator, narrow)
    assert got["objective"].dtype == wide
    if bool(got["objective"].isnan()):  # ∞ − ∞: there is no limit
        assert dtype != torch.float64
        assert pattern != "one"
        with pytest.raises(CourseError, match=r"^loss: got nan; allowed is "):
            estimator.loss(Policy(**narrow.policy), narrow.rollout)
        return
    for name, expected in want.items():
        assert not bool(expected.isnan().any())
        over = expected.abs() > largest / 4
        assert not bool(got[name].isnan().any()), name
        beyond = got[name].double()[over]
        assert bool(((beyond.abs() > largest / 8) & (beyond.sign() == expected[over].sign())).all())
        digits = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(
            got[name].double()[~over], expected[~over], rtol=digits, atol=digits
        )


@pytest.mark.parametrize("name", ["exact kl in the reward", "k3 in the reward"])
def test_a_penalty_that_is_infinite_in_the_reward_is_refused(name: str) -> None:
    biased = K3(1.0, place=InReward(), accept_bias=True)
    estimator = BESIDE.get(name, replace(ladder.group_mean, kl=biased))
    case = make_case((), 2, 3, 2, torch.float32, 5)
    rollout = dataclasses.replace(
        case.rollout,
        ref_log_prob=case.rollout.log_prob + 100,
        ref_log_dist=torch.full((2, 3, 2, WORDS), -torch.inf).index_fill(-1, torch.tensor(0), 0.0),
    )
    with pytest.raises(CourseError, match=r"got a penalty of inf in the reward; allowed is a fin"):
        estimator.freeze(rollout)


def test_a_coefficient_of_zero_is_no_term_whatever_it_multiplies() -> None:
    """β, the entropy's and the critic's: 0 times what is infinite or NaN is 0."""
    far = [[[500.0], [-math.inf]]]
    dist = [[[[0.0, -math.inf]], [[-math.inf, 0.0]]]]
    rollout = make_rollout(
        [[[1.0], [0.0]]], ref_log_prob=[[[900.0], [-0.5]]], ref_log_dist=dist, kl_coef=0.0
    )
    for kl in (
        K3(0.0),
        K3(0.0, place=InLossTimesRatio()),
        ExactKL(0.0),
        K1(0.0, place=InReward()),
        K3(beta=AdaptiveBeta(), anchor=OldPolicy()),
    ):
        estimator = replace(ladder.clip, baseline=GroupMean(), kl=kl)
        log_prob = f64(far).requires_grad_()
        log_dist = f64(dist).flip(-1).requires_grad_()
        policy = Policy(log_prob, log_dist, f64([[[math.nan], [math.nan]]]))
        loss = estimator.loss(policy, rollout)
        close(loss.detach(), -(1.2 * 0.5 - 0.8 * 0.5) / 2)
        gradients = torch.autograd.grad(
            loss, (log_prob, log_dist), allow_unused=True, materialize_grads=True
        )
        assert all(bool((gradient == 0).all()) for gradient in gradients)


# ---------------------------------------------------------------- the adaptive coefficient


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_adaptive_beta_stays_positive_and_finite_and_comes_back(dtype: torch.dtype) -> None:
    rule, quiet, loud = AdaptiveBeta(1.0, 0.01), f64([0.0]).to(dtype), f64([1.0]).to(dtype)
    for first, then, rises in ((quiet, loud, True), (loud, quiet, False)):
        beta = torch.ones(1, dtype=dtype)
        for _ in range(160):
            beta = rule.update(beta, first)
        assert 0 < beta.item() < math.inf
        for _ in range(20):
            before, beta = beta, rule.update(beta, then)
            assert bool(beta > before) == rises
        assert beta.item() == 1.0


def test_adaptive_beta_recovers_from_a_saved_zero_or_infinity() -> None:
    rule = AdaptiveBeta(2.0, 0.01)
    beta = rule.update(torch.tensor([0.0, math.inf]), torch.tensor([1.0, 0.0]))
    assert beta.tolist() == [2.0**-19, 2.0**21]


# ---------------------------------------------------------------- samples without a token


def three(*scores: float, **optional: Any) -> Rollout:
    """G = 3 and T = 2, the third sample without a chosen token."""
    mask = [[[True, True], [True, False], [False, False]]]
    return make_rollout([[[score, 0.0] for score in scores]], mask=mask, **optional)


@pytest.mark.parametrize(
    ("baseline", "scale", "want"),
    [
        (GroupMean(), NoScale(), [0.5, -0.5]),
        (LeaveOneOut(), NoScale(), [1.0, -1.0]),
        (BatchMean(), NoScale(), [0.5, -0.5]),
        (LengthWeighted(), NoScale(), [1 / 3, -2 / 3]),
        (GroupMean(), GroupStd(eps=0.0), [1.0, -1.0]),
        (GroupMean(), GroupStd(ddof=1, eps=0.0), [0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5)]),
        (BatchMean(), BatchStd(eps=0.0), [1.0, -1.0]),
        (BatchMean(), BatchStd(ddof=1, eps=0.0), [0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5)]),
    ],
    ids=lambda value: getattr(value, "short", None),
)
@pytest.mark.parametrize("third", [0.0, 7.0, -1e9])
def test_a_sample_without_a_token_is_no_sample(
    baseline: Baseline, scale: Scale, want: list[float], third: float
) -> None:
    """Rewards 1, 0 and anything; the third has no chosen token, so the group has two samples."""
    estimator = Estimator(baseline=baseline, scale=scale)
    advantage = estimator.freeze(three(1.0, 0.0, third)).advantage
    close(advantage, [[[want[0]] * 2, [want[1], 0.0], [0.0, 0.0]]])


def test_a_group_whose_samples_with_tokens_are_equal_is_silent() -> None:
    rollout = three(1.0, 1.0, 0.0)
    for estimator in (ladder.group_std, ladder.rloo, ladder.opo, ladder.baseline):
        assert bool((estimator.freeze(rollout).advantage == 0).all())
    assert DropSilentGroups()(rollout).tolist() == [[False] * 3]
    assert bool((ladder.dapo.freeze(rollout).weight == 0).all())
    alone = make_rollout([[[1.0], [3.0]], [[1.0], [0.0]]], mask=[[[True], [False]], [[True]] * 2])
    for estimator in (ladder.group_std, ladder.rloo):
        assert bool((estimator.freeze(alone).advantage[0] == 0).all())


def test_total_return_and_reward_to_go_agree_where_a_sample_has_no_token() -> None:
    rollout = three(1.0, 0.5, 9.0)
    total, to_go = (c(rollout.reward, rollout) for c in (TotalReturn(), RewardToGo()))
    close(total[rollout.mask], to_go[rollout.mask].cumsum(0)[[0, 0, 2]] * 0 + f64([1, 1, 0.5]))
    close(total[0, 2], [0.0, 0.0])
    close(to_go[0, 2], [0.0, 0.0])
    late = make_rollout(
        [[[0.0, 1.0], [0.0, 0.0], [5.0, 0.0]]], mask=[[[True] * 2, [True] * 2, [False] * 2]]
    )
    advantages = [
        Estimator(credit=credit, baseline=GroupMean()).freeze(late).advantage
        for credit in (TotalReturn(), RewardToGo())
    ]
    close(advantages[0], advantages[1])
    close(advantages[0], [[[0.5, 0.5], [-0.5, -0.5], [0.0, 0.0]]])


def test_metrics_count_samples_that_exist() -> None:
    """Scores 1, 0 of lengths 2, 1; a second prompt has none at all."""
    rollout = make_rollout(
        [[[1.0, 0.0], [0.0, 0.0], [9.0, 0.0]], [[5.0, 0.0]] * 3],
        mask=[[[True, True], [True, False], [False, False]], [[False, False]] * 3],
        truncated=[[True, False, True], [True] * 3],
    )
    seen = metrics.of_rollout(rollout)
    close(seen["reward"], 0.5)
    close(seen["length"], 1.5)
    close(seen["truncated"], 0.5)
    close(seen["silent_groups"], 0.0)
    quiet = make_rollout(
        [[[1.0], [1.0], [9.0]], [[0.0], [1.0], [1.0]]],
        mask=[[[True], [True], [False]], [[True]] * 3],
    )
    close(metrics.of_rollout(quiet)["silent_groups"], 0.5)


def test_a_running_mean_takes_in_samples_that_exist() -> None:
    critic = RunningMean()
    critic.write(three(1.0, 0.0, 9.0))
    assert critic.mean is not None
    close(critic.mean, [0.5])
    nobody = make_rollout([[[4.0]], [[2.0]]], mask=[[[False]], [[True]]])
    pair = RunningMean()
    pair.write(make_rollout([[[1.0]], [[0.0]]]))
    pair.write(nobody)
    assert pair.mean is not None
    close(pair.mean, [1.0, 1.0])


# ---------------------------------------------------------------- precision


def column(values: list[float], dtype: torch.dtype) -> Rollout:
    reward = torch.tensor([[[value] for value in values]], dtype=dtype)
    return Rollout(reward, torch.full_like(reward, -1.0), torch.ones_like(reward, dtype=torch.bool))


def test_low_precision_rewards_are_compared_in_float32() -> None:
    """bfloat16 1, 1, 1, 1.0078125: mean 1 + 2⁻⁹, std √3·2⁻⁹; float16 0, 1000: 500 on either side,
    though 500² is beyond float16.
    """
    near = column([1.0, 1.0, 1.0, 1.0078125], torch.bfloat16)
    step, std = 2.0**-9, math.sqrt(3) * 2.0**-9 + 1e-6
    found = ladder.group_std.freeze(near).advantage.flatten()
    assert found.dtype == torch.float32
    close(found, [-step / std] * 3 + [3 * step / std], rtol=1e-5)
    others = [-4 * step / 3] * 3 + [4 * step]
    close(ladder.rloo.freeze(near).advantage.flatten(), others, rtol=1e-5, atol=1e-7)
    far = column([0.0, 1000.0], torch.float16)
    for name in ("group_std", "whitened"):
        found = ladder.get(name).estimator.freeze(far).advantage.flatten()
        close(found, [-1.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize("size", [2e20, 1e30, 1e38])
def test_rewards_whose_squares_leave_float32_are_scaled_first(size: float) -> None:
    rollout = column([0.0, size], torch.float32)
    for scale in (GroupStd(), BatchStd(), TokenWhitening()):
        estimator = Estimator(baseline=GroupMean(), scale=scale)
        close(estimator.freeze(rollout).advantage.flatten(), [-1.0, 1.0], rtol=1e-5)


def test_rewards_whose_sum_leaves_the_type_are_refused() -> None:
    rollout = column([0.0, 2e38, 3e38], torch.float32)
    with pytest.raises(CourseError, match=r"^rollout\.reward: got 3\S*e\+38 at index \(0, 2, 0\)"):
        ladder.group_std.freeze(rollout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_weights_of_a_large_batch_do_not_underflow(dtype: torch.dtype) -> None:
    """G = 4096, T = 64: a token weighs 2⁻¹⁸, which float16 rounds to 0 or to a subnormal."""
    reward = torch.zeros(1, 4096, 64, dtype=dtype)
    rollout = Rollout(reward, reward, torch.ones_like(reward, dtype=torch.bool))
    for name in ("token_mean", "length_mean"):
        weight = ladder.get(name).estimator.freeze(rollout).weight
        assert weight.dtype == torch.float32
        assert bool((weight == 2.0**-18).all())
        close(weight.sum(), 1.0)


def test_gspo_in_bfloat16_is_float32s_on_the_same_numbers() -> None:
    case = make_case((), 2, 4, 5, torch.float32, 11)
    narrow = case.each(lambda _, t: t.bfloat16() if t.is_floating_point() else t)
    wide = narrow.each(lambda _, t: t.float() if t.is_floating_point() else t)
    got, want = (evaluate(ladder.gspo, each) for each in (narrow, wide))
    assert torch.equal(got["objective"], want["objective"])
    assert torch.equal(got["log_prob"], want["log_prob"].bfloat16())


# ---------------------------------------------------------------- shapes of what parts answer


def part(kind: type, name: str, answer: Callable[..., Any], method: str = "__call__") -> Any:
    """A part of one's own that answers what `answer` makes of its arguments."""
    body = {method: lambda self, *arguments: answer(*arguments)}
    return dataclass(frozen=True)(type(name, (kind,), body))()


def square() -> Case:
    """Q = G = T = 3: every wrong broadcast is legal."""
    return make_case((), 3, 3, 3, torch.float64, 2)


def leave(_: Any) -> None:
    raise SystemExit(3)


FULL, SAMPLES = r"\(3, 3, 3\)", r"\(3, 3\)"
WRONG: dict[str, tuple[str, type, Callable[..., Any], str]] = {
    "credit [Q, G]": ("credit", Credit, lambda r, _: r.sum(-1), FULL),
    "credit [Q, G, 1]": ("credit", Credit, lambda r, _: r.sum(-1, keepdim=True), FULL),
    "baseline [Q, G]": ("baseline", Baseline, lambda r, _: r, FULL),
    "baseline [G]": ("baseline", Baseline, lambda r, _: r[0], FULL),
    "baseline []": ("baseline", Baseline, lambda r, _: r.mean(), FULL),
    "baseline new axis": ("baseline", Baseline, lambda r, _: r[None, ..., None], FULL),
    "baseline longer": ("baseline", Baseline, lambda r, _: r.unsqueeze(-1).expand(3, 3, 4), FULL),
    "baseline text": ("baseline", Baseline, lambda r, _: "0.5", "got str"),
    "baseline bool": ("baseline", Baseline, lambda r, _: True, "got bool"),
    "scale [Q, G]": ("scale", Scale, lambda a, r, _: r, FULL),
    "scale [Q, G, 1]": ("scale", Scale, lambda a, r, _: r.unsqueeze(-1), FULL),
    "ratio [Q, G]": ("ratio", RatioLevel, lambda r, m: r.sum(-1), FULL),
    "ratio [Q, G, 1]": ("ratio", RatioLevel, lambda r, m: r.sum(-1, keepdim=True), FULL),
    "surrogate [Q, G]": ("surrogate", Surrogate, lambda r, p, a: (p * a).sum(-1), FULL),
    "surrogate []": ("surrogate", Surrogate, lambda r, p, a: (p * a).sum(), FULL),
    "aggregation [Q, G]": ("aggregation", Aggregation, lambda m, n, d: m.any(-1).to(d), FULL),
    "aggregation bool": ("aggregation", Aggregation, lambda m, n, d: m, "torch.bool"),
    "filter [Q]": ("sample_filter", SampleFilter, lambda r: r.mask.any(-1).any(-1), SAMPLES),
    "filter [Q, G, T]": ("sample_filter", SampleFilter, lambda r: r.mask, SAMPLES),
    "filter of floats": ("sample_filter", SampleFilter, lambda r: r.total_reward, "torch.bool"),
}
NONE_OR_RAISES: dict[str, tuple[type, str]] = {
    "credit": (Credit, "__call__"),
    "baseline": (Baseline, "__call__"),
    "scale": (Scale, "__call__"),
    "ratio": (RatioLevel, "__call__"),
    "surrogate": (Surrogate, "__call__"),
    "aggregation": (Aggregation, "__call__"),
    "kl": (KL, "estimate"),
}


def refusal(place: str, own: Any) -> str:
    """The one line in which an estimator with this part of one's own refuses."""
    case = square()
    estimator = replace(ladder.clip, **{place: own})
    with pytest.raises(CourseError) as caught:
        evaluate(estimator, case)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"estimator.{place}: ")
    assert "Mine()" in text
    return text


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_of_another_shape_is_refused_also_where_it_would_broadcast(name: str) -> None:
    place, kind, answer, says = WRONG[name]
    text = refusal(place, part(kind, "Mine", answer))
    assert "; allowed is " in text
    assert says.replace("\\", "") in text


def test_a_penalty_of_another_shape_is_refused() -> None:
    for kind in ({}, {"place": InLossTimesRatio()}):
        own = dataclasses.replace(part(KL, "Mine", lambda r: r.sum(-1), "estimate"), **kind)
        with pytest.raises(
            CourseError, match=r"^estimator\.kl: got shape \(3, 3\) of .* from Mine"
        ):
            evaluate(replace(ladder.clip, kl=own), square())
    in_reward = dataclasses.replace(
        part(KL, "Mine", lambda r: r.sum(-1), "estimate"), place=InReward(), accept_bias=True
    )
    with pytest.raises(CourseError, match=r"^estimator\.kl: got shape \(3, 3\)"):
        evaluate(replace(ladder.clip, kl=in_reward), square())


@pytest.mark.parametrize("place", NONE_OR_RAISES)
def test_a_part_that_answers_none_or_raises_is_named(place: str) -> None:
    kind, method = NONE_OR_RAISES[place]
    assert "got NoneType from Mine()" in refusal(place, part(kind, "Mine", lambda *_: None, method))

    def broken(*_: Any) -> None:
        raise KeyError("no\nsuch thing")

    assert "Mine() raised KeyError: 'no\\nsuch thing'" in refusal(
        place, part(kind, "Mine", broken, method)
    )
    assert "Mine() raised SystemExit: 3" in refusal(
        place, part(kind, "Mine", lambda *_: leave(0), method)
    )
    assert "Mine() raised NotImplementedError" in refusal(place, part(kind, "Mine", print, "other"))


def test_what_a_part_raised_stays_the_cause() -> None:
    own = part(Baseline, "Mine", lambda *_: 1 / 0)
    with pytest.raises(CourseError) as caught:
        replace(ladder.clip, baseline=own).freeze(square().rollout)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_part_that_needs_an_unknown_field_is_refused_when_the_estimator_is_made() -> None:
    own = dataclass(frozen=True)(type("Mine", (GroupMean,), {"needs": ("critic",)}))()
    with pytest.raises(CourseError, match=r"^estimator\.baseline: needs of Mine\(\): got 'critic'"):
        replace(ladder.clip, baseline=own)


def wrong_answers(shape: tuple[int, ...]) -> dict[str, object]:
    """What could be broadcast to [Q, G, T] = `shape`, or taken for numbers, and is neither."""
    prompts, group, tokens = shape
    return {
        "one per sample": torch.ones(prompts, group),
        "one per token": torch.ones(tokens),
        "a scalar": torch.ones(()),
        "one axis more": torch.ones(1, prompts, group, tokens),
        "whole numbers": torch.ones(shape, dtype=torch.long),
        "a list": [1.0],
        "None": None,
    }


@pytest.mark.parametrize("what", wrong_answers((3, 3, 3)))
def test_anchors_coefficients_and_flat_regions_of_ones_own_are_checked_too(what: str) -> None:
    """Q = G = T, where every one of them would line up with an axis that it does not mean."""
    answer = wrong_answers((3, 3, 3))[what]

    class Near(Reference):
        def exact(self, log_dist: Tensor, rollout: Rollout, mask: Tensor) -> Any:
            return answer

    class Times(K3):
        def coefficient(self, rollout: Rollout) -> Any:
            return answer

    class Flat(Clip):
        def clipped(self, log_ratio: Tensor, log_prob: Tensor, advantage: Tensor) -> Any:
            return answer

    case = make_case((), 3, 3, 3, torch.float64, 5)
    policy = Policy(**case.policy)
    for kl, place in ((ExactKL(anchor=Near()), "kl.anchor"), (Times(), "kl")):
        estimator = replace(ladder.clip, kl=kl)
        with pytest.raises(
            CourseError, match=rf"^estimator\.{place}: got .*; allowed is a number or"
        ):
            estimator.loss(policy, case.rollout)
    estimator = replace(ladder.clip, surrogate=Flat())
    with pytest.raises(
        CourseError, match=r"^estimator\.surrogate: got .*; allowed is a torch\.bool"
    ):
        metrics.of_update(estimator, policy, estimator.freeze(case.rollout))


def test_every_legal_shape_of_a_baseline_is_kept() -> None:
    case = square()
    for shape in ((3, 3, 3), (3, 3, 1), (3, 1, 1), (1, 1, 1), (1, 3, 3)):
        own = part(Baseline, "Mine", lambda r, _, s=shape: torch.full(s, 0.25, dtype=r.dtype))
        advantage = replace(ladder.reinforce, baseline=own).freeze(case.rollout).advantage
        whole = case.rollout.total_reward.unsqueeze(-1) - 0.25
        close(advantage, torch.where(case.rollout.mask, whole.expand(3, 3, 3), 0.0))
    plain = replace(ladder.reinforce, baseline=part(Baseline, "Mine", lambda *_: 0))
    assert bool((plain.freeze(case.rollout).advantage != 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gamma_weight_of_a_far_sample_is_zero_and_its_gradient_too(dtype: torch.dtype) -> None:
    """ρ of 0 and of ∞ in this float type, also where log π = −∞."""
    log_ratio = torch.tensor([1e4, -1e4, 1e4], dtype=dtype)
    log_prob = torch.tensor([-1.0, -1e4, -torch.inf], dtype=dtype, requires_grad=True)
    term = GammaWeight()(log_ratio, log_prob, torch.tensor([1.0, -1.0, 1.0], dtype=dtype))
    (slope,) = torch.autograd.grad(term.sum(), log_prob)
    assert bool((term == 0).all())
    assert bool((slope == 0).all())
