"""Properties of the whole core, over shapes, masks, offsets, scales and both number types: for
every rung, and some parts beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import ladder
from course.estimator import Estimator, Frozen, replace
from course.parts import (
    GAE,
    K1,
    K2,
    K3,
    TD,
    BatchMean,
    BatchStd,
    BelowMean,
    Clip,
    Constant,
    ConstantLength,
    DropSilentGroups,
    DropTruncated,
    EachReward,
    ExactKL,
    Greedy,
    GroupMean,
    GroupStd,
    GroupTokenMean,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    MaxRL,
    MirrorDescent,
    NoKL,
    OldPolicy,
    PassKTraining,
    RejectK3,
    RewardToGo,
    SequenceMaskTIS,
    SequenceMean,
    SequenceRatio,
    SequenceSum,
    SequenceTIS,
    SoftGate,
    TeacherLogRatio,
    TokenFilter,
    TokenMean,
    TokenMIS,
    TokenWhitening,
    Value,
)
from course.rollout import Policy, Rollout

EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
WORDS = 3  # V, the size of the vocabulary

RUNGS = {name: rung.estimator for name, rung in ladder.RUNGS.items() if rung.kind != "own"}
BESIDE = {
    "sequence product": Estimator(
        baseline=LeaveOneOut(), ratio=SequenceRatio(), surrogate=Clip(0.2, 0.4, dual_clip=3.0)
    ),
    "ratio cap": Estimator(
        baseline=GroupMean(), surrogate=Clip(0.2, ratio_cap=2.0), aggregation=TokenMean()
    ),
    "batch std": Estimator(
        baseline=BatchMean(), scale=BatchStd(1), surrogate=SoftGate(), aggregation=ConstantLength(7)
    ),
    "sample std": Estimator(
        baseline=GroupMean(), scale=GroupStd(1, 1e-4), kl=K3(0.1, place=InLossTimesRatio())
    ),
    "counts empty": Estimator(
        baseline=GroupMean(),
        aggregation=SequenceMean(count_empty=True),
        sample_filter=DropTruncated(),
    ),
    "exact kl": Estimator(
        baseline=LengthWeighted(),
        surrogate=ImportanceSampling(),
        kl=ExactKL(0.2),
        entropy_coef=0.3,
        aggregation=TokenMean(),
    ),
    "exact kl in the reward": Estimator(
        credit=RewardToGo(0.9),
        baseline=GroupMean(),
        kl=ExactKL(0.2, place=InReward(), accept_bias=True),
    ),
    "k1 of the old policy": Estimator(
        baseline=Greedy(),
        surrogate=ImportanceSampling(),
        kl=K1(0.5, place=InLossTimesRatio(), anchor=OldPolicy()),
    ),
    "td": Estimator(
        credit=TD(0.8),
        baseline=Value(),
        surrogate=ImportanceSampling(),
        value_coef=1.0,
        aggregation=SequenceMean(),
    ),
    "whitened critic": Estimator(
        credit=GAE(0.9, 0.7), baseline=Value(), scale=TokenWhitening(), value_coef=0.5, kl=K2(0.1)
    ),
    "truncated by sequence": Estimator(
        baseline=GroupMean(), surrogate=Clip(), kl=K3(0.1), correction=SequenceTIS(1.5)
    ),
    "masked by token": Estimator(
        baseline=GroupMean(), surrogate=Clip(), kl=K3(0.1), correction=TokenMIS(0.7, 1.5)
    ),
    "masked by sequence": Estimator(
        baseline=GroupMean(),
        ratio=SequenceRatio(),
        surrogate=SoftGate(),
        correction=SequenceMaskTIS(0.8, 1.3),
    ),
    "rejected": Estimator(baseline=GroupMean(), kl=K2(0.1), correction=RejectK3(0.5)),
}
EVERY = RUNGS | BESIDE
every = pytest.mark.parametrize("estimator", EVERY.values(), ids=EVERY.keys())
ADDING_UP = {  # without filters that compare the tokens of a minibatch
    name: e
    for name, e in EVERY.items()
    if not (isinstance(e.sample_filter, TokenFilter) and e.sample_filter.scope == "batch")
}


# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Case:
    """A rollout with every optional field, and what a policy says of it: all tensors lead with
    [..., Q].
    """

    rollout: Rollout
    policy: dict[str, Tensor]

    @property
    def axes(self) -> int:
        return len(self.rollout.runs)

    def each(self, change: Callable[[str, Tensor], Tensor], **replaced: Any) -> Case:
        """The case with every tensor changed by name: the policy's are «policy.log_prob» …"""
        fields = {f.name: getattr(self.rollout, f.name) for f in dataclasses.fields(Rollout)}
        changes = {
            name: change(name, tensor)
            for name, tensor in fields.items()
            if isinstance(tensor, Tensor)
        }
        policy = {name: change(f"policy.{name}", tensor) for name, tensor in self.policy.items()}
        return Case(dataclasses.replace(self.rollout, **(changes | replaced)), policy)


def make_case(
    runs: tuple[int, ...],
    prompts: int,
    group: int,
    tokens: int,
    dtype: torch.dtype,
    seed: int,
    *,
    empty: bool = False,
) -> Case:
    """Rewards are multiples of ¼, on any token; with `empty`, some samples have no token of the
    policy's own.
    """
    rng = np.random.default_rng(seed)
    samples, every_token = (*runs, prompts, group), (*runs, prompts, group, tokens)

    def real(array: Any) -> Tensor:
        return torch.as_tensor(array).to(dtype)

    def nats(*shape: int) -> Tensor:
        return real(-rng.exponential(0.7, shape) - 0.05)

    def log_dist(group: int, tokens: int) -> Tensor:
        return real(rng.normal(size=(*runs, prompts, group, tokens, WORDS))).log_softmax(-1)

    mask = rng.random(every_token) < 0.7
    if empty:
        mask[rng.random(samples) < 0.3] = False
        mask[..., 0, 0, -1] = True  # no run is without any token
    else:
        mask[..., -1] |= ~mask.any(-1)
    wide = bool(rng.integers(2))  # distributions of each sample and token, or shared
    rollout = Rollout(
        reward=real(rng.integers(-4, 5, every_token) / 4),
        log_prob=nats(*every_token),
        mask=torch.as_tensor(mask),
        ref_log_prob=nats(*every_token),
        sampler_log_prob=nats(*every_token),
        value=real(rng.normal(size=every_token)),
        bootstrap=real(rng.normal(size=samples)),
        greedy_reward=real(rng.integers(-4, 5, (*runs, prompts)) / 4),
        truncated=torch.as_tensor(rng.random(samples) < 0.3),
        old_log_dist=log_dist(group if wide else 1, tokens),
        ref_log_dist=log_dist(1, tokens),
        components=real(rng.integers(-2, 3, (*samples, 3)) / 2) if rng.integers(2) else None,
        kl_coef=real(rng.uniform(0.1, 2.0, runs)),
        limit=tokens + 3,
        data={"prompt": torch.arange(prompts).expand(*runs, prompts)},
    )
    old = rollout.log_prob
    policy = {
        "log_prob": old + 0.3 * real(rng.normal(size=every_token)),
        "value": real(rng.normal(size=every_token)),
    }
    return Case(rollout, policy | {"log_dist": log_dist(group if wide else 1, tokens)})


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    empty: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32),
) -> Case:
    runs = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    prompts, group, tokens = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 5)),
        draw(st.integers(1, 5)),
    )
    return make_case(
        runs,
        prompts,
        group,
        tokens,
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 2**32 - 1)),
        empty=empty,
    )


float64 = (torch.float64,)


# ---------------------------------------------------------------- what is compared


def evaluate(estimator: Estimator, case: Case) -> dict[str, Tensor]:
    """The objective [...] and its gradient by everything that the policy says."""
    return derivatives(estimator, estimator.freeze(case.rollout), case.policy)


def derivatives(
    estimator: Estimator, frozen: Frozen, policy: dict[str, Tensor]
) -> dict[str, Tensor]:
    """`evaluate` of what was frozen already."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in policy.items()}
    objective = estimator.objective(Policy(**leaves), frozen)
    gradients = torch.autograd.grad(
        objective.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {"objective": objective.detach(), **dict(zip(leaves, gradients, strict=True))}


def same(
    got: dict[str, Tensor], want: dict[str, Tensor], ulps: float = 64.0, why: str = ""
) -> None:
    """Equal up to some units in the last place of the largest number there."""
    largest = max(1.0, *(float(tensor.abs().max()) for tensor in want.values()))
    for name, tensor in want.items():
        atol = ulps * torch.finfo(tensor.dtype).eps * largest
        torch.testing.assert_close(
            got[name],
            tensor,
            rtol=0.0,
            atol=atol,
            msg=lambda text, name=name: f"{why} {name}: {text}",
        )


def along(case: Case, axis: str, index: Tensor) -> Case:
    """The case with its prompts («Q») or the samples of each group («G») picked by `index`."""

    def take(name: str, tensor: Tensor) -> Tensor:
        place = case.axes + "QG".index(axis)
        if name == "kl_coef" or tensor.dim() <= place or (axis == "G" and tensor.shape[place] == 1):
            return tensor
        return tensor.index_select(place, index)

    data = (
        {name: take(name, tensor) for name, tensor in case.rollout.data.items()}
        if axis == "Q"
        else case.rollout.data
    )
    return case.each(take, data=data)


def no_penalty(estimator: Estimator) -> Estimator:
    """The same without what does not come from rewards: KL, entropy, the critic's error."""
    return replace(estimator, kl=NoKL(), entropy_coef=0.0, value_coef=0.0)


def on_last_token(case: Case, added: Tensor | float, factor: float = 1.0) -> Case:
    """The case with rewards times `factor`, and `added` to the last chosen token of each sample;
    several rewards become `factor` times as large, too.
    """
    mask = case.rollout.mask
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    components = case.rollout.components
    return dataclasses.replace(
        case,
        rollout=dataclasses.replace(
            case.rollout,
            reward=case.rollout.reward * factor + added * last,
            components=None if components is None else components * factor,
        ),
    )


# ---------------------------------------------------------------- offsets and scales of the rewards

COMPARING = BatchMean | GroupMean | LeaveOneOut | LengthWeighted
SHIFTED = {
    name: e
    for name, e in EVERY.items()
    if isinstance(e.baseline, COMPARING)
    and not isinstance(e.scale, MaxRL)  # the mean that it divides by feels the constant
    and getattr(e.credit, "gamma", 1.0) == 1.0
}


@pytest.mark.parametrize("estimator", SHIFTED.values(), ids=SHIFTED.keys())
@EXAMPLES
@given(case=cases(), quarters=st.integers(-4000, 4000))
def test_adding_a_constant_to_every_reward_changes_nothing_under_a_comparing_baseline(
    estimator: Estimator, case: Case, quarters: int
) -> None:
    """Rewards and offset are multiples of ¼, and whole numbers of them: sums are exact, and only
    the divisions round.
    """
    shifted = on_last_token(case, quarters / 4)
    ulps = 64 * (
        8 + abs(quarters)
    )  # the mean loses what the offset takes, and 1/std ≤ 10 multiplies it
    same(evaluate(estimator, shifted), evaluate(estimator, case), ulps)


def test_rewards_without_a_baseline_feel_a_constant() -> None:
    case = make_case((), 2, 3, 2, torch.float64, 1)
    for name in ("reinforce", "ppo", "remax"):
        before, after = (
            evaluate(EVERY[name], c)["log_prob"] for c in (case, on_last_token(case, 4.0))
        )
        assert float((before - after).abs().max()) > 0.1, name


STD = {
    name: e
    for name, e in EVERY.items()
    if isinstance(e.scale, GroupStd | BatchStd | TokenWhitening)
    and not isinstance(e.baseline, Value)
}


@pytest.mark.parametrize("estimator", STD.values(), ids=STD.keys())
@EXAMPLES
@given(case=cases(), power=st.integers(-18, 18))
def test_with_eps_zero_a_std_undoes_the_scale_of_the_rewards_to_the_bit(
    estimator: Estimator, case: Case, power: int
) -> None:
    """A power of two scales every float exactly, so nothing at all may change."""
    bare = replace(no_penalty(estimator), scale=dataclasses.replace(estimator.scale, eps=0.0))
    scaled, as_it_was = evaluate(bare, on_last_token(case, 0.0, 2.0**power)), evaluate(bare, case)
    assert all(torch.equal(scaled[name], as_it_was[name]) for name in as_it_was)


@pytest.mark.parametrize("estimator", STD.values(), ids=STD.keys())
@EXAMPLES
@given(case=cases(), power=st.integers(-1100, -30))
def test_with_eps_zero_rewards_that_underflow_leave_finite_numbers(
    estimator: Estimator, case: Case, power: int
) -> None:
    bare = replace(no_penalty(estimator), scale=dataclasses.replace(estimator.scale, eps=0.0))
    assert all(
        bool(torch.isfinite(tensor).all())
        for tensor in evaluate(bare, on_last_token(case, 0.0, 2.0**power)).values()
    )


UNSCALED = {
    name: e
    for name, e in EVERY.items()
    if name not in STD
    and not isinstance(e.scale, MaxRL | PassKTraining | EachReward)
    and not isinstance(e.surrogate, MirrorDescent)  # its spring knows no rewards
    and not isinstance(e.baseline, BelowMean | Constant | Greedy | Value)
    and not isinstance(e.credit, TeacherLogRatio)
}


@pytest.mark.parametrize("estimator", UNSCALED.values(), ids=UNSCALED.keys())
@EXAMPLES
@given(case=cases(), power=st.integers(-18, 18))
def test_without_a_std_the_policy_gradient_scales_with_the_rewards(
    estimator: Estimator, case: Case, power: int
) -> None:
    bare = no_penalty(estimator)
    scaled, as_it_was = evaluate(bare, on_last_token(case, 0.0, 2.0**power)), evaluate(bare, case)
    assert all(torch.equal(scaled[name], 2.0**power * as_it_was[name]) for name in as_it_was)


@pytest.mark.parametrize("name", ["maxrl", "pass_k_training"])
@EXAMPLES
@given(case=cases(), power=st.integers(-18, 18))
def test_the_groups_mean_or_best_undoes_the_scale_of_the_rewards_to_the_bit(
    name: str, case: Case, power: int
) -> None:
    """(R − mean)/mean and (mean of best − mean)/std have no unit."""
    scaled = evaluate(EVERY[name], on_last_token(case, 0.0, 2.0**power))
    as_it_was = evaluate(EVERY[name], case)
    assert all(torch.equal(scaled[name], as_it_was[name]) for name in as_it_was)


# ---------------------------------------------------------------- masks


@every
@EXAMPLES
@given(case=cases(empty=True), padding=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_masked_tokens_put_in_anywhere_change_nothing(
    estimator: Estimator, case: Case, padding: int, seed: int
) -> None:
    """Padding at the end, prompts before and other speakers' turns between: zero reward, anything
    else at random.
    """
    rng = np.random.default_rng(seed)
    tokens = case.rollout.reward.shape[-1]
    place = torch.as_tensor(np.sort(rng.permutation(tokens + padding)[:tokens]))

    def widen(name: str, tensor: Tensor) -> Tensor:
        axis = case.axes + 2
        per_token = name.removeprefix("policy.") in (
            "reward",
            "mask",
            "log_prob",
            "ref_log_prob",
            "sampler_log_prob",
            "value",
            "log_dist",
            "old_log_dist",
            "ref_log_dist",
        )
        if not per_token:
            return tensor
        shape = (*tensor.shape[:axis], tokens + padding, *tensor.shape[axis + 1 :])
        noise = (
            torch.zeros(shape)
            if name in ("reward", "mask")
            else -torch.as_tensor(rng.exponential(2.0, shape))
        )
        return noise.to(tensor.dtype).index_copy(axis, place, tensor)

    got, want = evaluate(estimator, case.each(widen)), evaluate(estimator, case)
    for name, axis in (("log_prob", -1), ("value", -1), ("log_dist", -2)):
        got[name] = got[name].index_select(axis, place)
    same(got, want)


@every
@EXAMPLES
@given(case=cases())
def test_a_reward_at_a_token_the_policy_did_not_choose_belongs_to_the_one_before_it(
    estimator: Estimator, case: Case
) -> None:
    """Another speaker's answer rewards what was said before; moving the reward there changes
    nothing.
    """
    mask, reward = case.rollout.mask, case.rollout.reward
    reward = reward * (mask.cumsum(-1) > 0)
    before = (
        torch.where(mask, torch.arange(mask.shape[-1]).expand(mask.shape), -1)
        .cummax(-1)
        .values.clamp(min=0)
    )
    moved = torch.zeros_like(reward).scatter_add(-1, before, reward)
    got, want = (
        evaluate(estimator, Case(dataclasses.replace(case.rollout, reward=r), case.policy))
        for r in (moved, reward)
    )
    same(got, want)


@pytest.mark.parametrize("limit", [None, 8])
def test_without_a_limit_only_a_constant_length_feels_padding(limit: int | None) -> None:
    """Its divisor is then T itself: the limit has to be given where batches are padded."""
    case = make_case((), 2, 3, 4, torch.float64, 3)
    short = dataclasses.replace(case.rollout, limit=limit, old_log_dist=None, ref_log_dist=None)
    case, objectives = Case(short, {"log_prob": case.policy["log_prob"]}), []
    for padding in (0, 4):
        padded = case.each(
            lambda name, tensor, n=padding: (
                torch.nn.functional.pad(tensor, (0, n)) if tensor.dim() == 3 else tensor
            )
        )  # type: ignore[misc]
        objectives.append(float(evaluate(ladder.dr_grpo, padded)["objective"]))
    assert objectives[0] == pytest.approx(objectives[1] * (2 if limit is None else 1))


# ---------------------------------------------------------------- runs, prompts and samples


@every
@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(1, 4)),
    double=st.booleans(),
)
def test_a_run_alone_equals_it_among_others(
    estimator: Estimator, seed: int, shape: tuple[int, int, int], double: bool
) -> None:
    together = make_case(
        (2, 3), *shape, torch.float64 if double else torch.float32, seed, empty=True
    )
    among = evaluate(estimator, together)
    for run in ((0, 0), (1, 2)):
        alone = together.each(lambda name, tensor, run=run: tensor[run], data={})  # type: ignore[misc]
        same(
            evaluate(estimator, alone),
            {name: tensor[run] for name, tensor in among.items()},
            ulps=16,
        )


@every
@EXAMPLES
@given(case=cases(empty=True), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_prompts_and_of_a_groups_samples_does_not_matter(
    estimator: Estimator, case: Case, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    want = evaluate(estimator, case)
    for axis in "QG":
        place = case.axes + "QG".index(axis)
        order = torch.as_tensor(rng.permutation(case.rollout.reward.shape[place]))
        got = evaluate(estimator, along(case, axis, order))
        moved = {
            n: t if n == "objective" or t.shape[place] == 1 else t.index_select(place, order)
            for n, t in want.items()
        }
        same(got, moved, why=axis)


@pytest.mark.parametrize("estimator", ADDING_UP.values(), ids=ADDING_UP.keys())
@EXAMPLES
@given(case=cases(empty=True), seed=st.integers(0, 2**32 - 1))
def test_minibatches_of_the_frozen_batch_add_up_to_it(
    estimator: Estimator, case: Case, seed: int
) -> None:
    prompts = case.rollout.reward.shape[-3]
    rng = np.random.default_rng(seed)
    order = rng.permutation(prompts)
    cuts = np.sort(rng.integers(0, prompts + 1, 2))
    leaves = {
        name: tensor.detach().clone().requires_grad_() for name, tensor in case.policy.items()
    }
    frozen = estimator.freeze(case.rollout)
    total = torch.zeros(case.rollout.runs, dtype=case.rollout.reward.dtype)
    for index in (torch.as_tensor(part) for part in np.split(order, cuts) if len(part)):
        part = {name: tensor.index_select(case.axes, index) for name, tensor in leaves.items()}
        total = total + estimator.objective(Policy(**part), frozen.prompts(index))
    gradients = torch.autograd.grad(
        total.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    same(
        {"objective": total.detach(), **dict(zip(leaves, gradients, strict=True))},
        evaluate(estimator, case),
    )


@every
@EXAMPLES
@given(case=cases(empty=True, dtypes=float64))
def test_single_precision_agrees_with_double(estimator: Estimator, case: Case) -> None:
    """Rewards are exact in both; only near-equal ones, where a std magnifies rounding, need the
    room.
    """
    single = case.each(
        lambda name, tensor: tensor.float() if tensor.is_floating_point() else tensor
    )
    got = {name: tensor.double() for name, tensor in evaluate(estimator, single).items()}
    same(
        got, evaluate(estimator, case), ulps=1000 * 2.0**29
    )  # 2^29: from the ulp of float64 to that of float32


# ---------------------------------------------------------------- equal rewards

# a spring on log ρ is felt without an advantage: see test_invariants
SILENCED = {
    name: e
    for name, e in SHIFTED.items()
    if not e.kl.in_reward and not isinstance(e.surrogate, MirrorDescent)
}


@pytest.mark.parametrize("estimator", SILENCED.values(), ids=SILENCED.keys())
@EXAMPLES
@given(case=cases(), score=st.floats(-1e6, 1e6, width=32))
def test_equal_rewards_give_exactly_no_policy_gradient_and_the_kl_is_still_felt(
    estimator: Estimator, case: Case, score: float
) -> None:
    """Whatever the number and its rounding: not one bit of advantage is left in
    either precision.
    """
    equal = on_last_token(case, torch.tensor(score, dtype=case.rollout.reward.dtype), 0.0)
    frozen = estimator.freeze(equal.rollout)
    assert bool((frozen.advantage == 0).all())
    found = evaluate(estimator, equal)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert bool((evaluate(no_penalty(estimator), equal)["log_prob"] == 0).all())
    if not isinstance(estimator.kl, NoKL) and not isinstance(
        estimator.sample_filter, DropSilentGroups
    ):
        assert bool(
            (found["log_dist" if isinstance(estimator.kl, ExactKL) else "log_prob"] != 0).any()
        )


@EXAMPLES
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_dropping_silent_groups_is_having_sampled_only_the_others(case: Case, seed: int) -> None:
    """Weights, and with them the mean over tokens, are those of a batch without the
    silent prompts.
    """
    runs, prompts = case.rollout.runs, case.rollout.reward.shape[-3]
    quiet = torch.as_tensor(np.random.default_rng(seed).random(prompts) < 0.5)
    loud = on_last_token(
        case,
        torch.arange(case.rollout.reward.shape[-2], dtype=case.rollout.reward.dtype).unsqueeze(-1),
        0.0,
    )
    reward = torch.where(
        quiet[:, None, None], torch.zeros_like(loud.rollout.reward), loud.rollout.reward
    )
    mixed = dataclasses.replace(loud, rollout=dataclasses.replace(loud.rollout, reward=reward))
    got, index = evaluate(ladder.dapo, mixed), (~quiet).nonzero().squeeze(-1)
    if len(index) == 0:
        assert bool((got["objective"] == 0).all())
        assert got["objective"].shape == runs
        return
    got["log_prob"] = got["log_prob"].index_select(len(runs), index)
    want = evaluate(ladder.clip_higher, along(loud, "Q", index))
    same(
        {name: got[name] for name in ("objective", "log_prob")},
        {name: want[name] for name in ("objective", "log_prob")},
    )


# ---------------------------------------------------------------- weights


@EXAMPLES
@given(case=cases(empty=True, dtypes=float64), count_empty=st.booleans(), length=st.integers(1, 40))
def test_what_weights_sum_to(case: Case, count_empty: bool, length: int) -> None:
    """Per sample and over the batch, for every aggregation; 0 outside of the mask, and never
    negative.
    """
    mask = case.rollout.mask
    tokens = mask.sum(-1).double()
    samples = torch.full(
        case.rollout.runs,
        float(mask[..., 0].numel() / max(1, case.rollout.runs.numel())),
        dtype=torch.float64,
    )
    counted = (samples if count_empty else (tokens > 0).sum((-2, -1)).double())[..., None, None]
    expected = {
        SequenceSum(count_empty=count_empty): tokens / counted,
        SequenceMean(count_empty=count_empty): (tokens > 0) / counted,
        ConstantLength(length, count_empty=count_empty): tokens / counted / length,
        ConstantLength(count_empty=count_empty): tokens / counted / (case.rollout.limit or 0),
        TokenMean(): tokens / tokens.sum((-2, -1), keepdim=True),
        GroupTokenMean(): tokens
        / tokens.sum(-1, keepdim=True).clamp(min=1)
        / (tokens > 0).any(-1).sum(-1)[..., None, None],
    }
    for aggregation, per_sample in expected.items():
        weight = aggregation(mask, case.rollout.limit or 0, torch.float64)
        torch.testing.assert_close(
            weight.sum(-1), per_sample, msg=lambda text, a=aggregation: f"{a.short}: {text}"
        )
        assert bool((weight[~mask] == 0).all())
        assert bool((weight >= 0).all())
        total = weight.sum((-3, -2, -1))
        if isinstance(aggregation, TokenMean | GroupTokenMean) or (
            isinstance(aggregation, SequenceMean) and not count_empty
        ):
            torch.testing.assert_close(total, torch.ones_like(total))
