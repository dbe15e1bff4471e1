"""Bad input is refused at the door: a `CourseError` of one line that names the field, the value,
and what is allowed.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit, GaussianBandit
from course import ladder
from course.errors import Clash, CourseError, Diverged
from course.estimator import Estimator, replace
from course.learner import Learner
from course.parts import (
    CISPO,
    GAE,
    K1,
    K2,
    K3,
    KL,
    TD,
    AdaptiveBeta,
    BatchMean,
    BatchStd,
    BelowMean,
    Clip,
    Constant,
    ConstantLength,
    DivergenceKL,
    DivergenceTV,
    ExactKL,
    GammaWeight,
    GeometricMean,
    GroupMean,
    GroupStd,
    InLoss,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    MirrorDescent,
    NoKL,
    OldPolicy,
    RewardToGo,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    TokenWhitening,
    Value,
)
from course.rollout import Policy, Rollout
from course.train import checkpoint
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD, Adam, LinearDecay
from course.train.trust_region import TRPO, NaturalGradient
from tests.helpers import bernoulli_bandit, stream

ROOT = Path(__file__).parents[2]


def refused(says: str, attempt: Callable[[], Any], kind: type[CourseError] = CourseError) -> str:
    """The error's text: one line that holds `says`."""
    with pytest.raises(kind) as caught:
        attempt()
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    return text


def rollout(group: int = 3, tokens: int = 2, **changes: Any) -> Rollout:
    """Two prompts; every optional field that the rungs ask for."""
    shape = (2, group, tokens)
    fields: dict[str, Any] = {
        "reward": torch.linspace(0.0, 1.0, 2 * group * tokens).reshape(shape),
        "log_prob": torch.full(shape, -0.7),
        "mask": torch.ones(shape, dtype=torch.bool),
        "ref_log_prob": torch.full(shape, -0.9),
        "value": torch.zeros(shape),
        "greedy_reward": torch.zeros(2),
    }
    return Rollout(**(fields | changes))


def learner(
    runs: tuple[int, ...] = (2,),
    estimator: Estimator = ladder.clip,
    optimizer: Any = None,
    **options: Any,
) -> Learner:
    return Learner(
        bernoulli_bandit(runs), estimator, optimizer or SGD(0.1), stream(runs), **options
    )


# ---------------------------------------------------------------- what was sampled

WRONG_ROLLOUTS: list[tuple[dict[str, Any], str]] = [
    (
        {"reward": torch.zeros(3, 2)},
        "rollout.reward: got (3, 2); allowed is at least the three axes [Q, G, T]",
    ),
    (
        {"reward": torch.zeros(2, 0, 2)},
        "rollout.reward: got (2, 0, 2); allowed is no axis of length 0",
    ),
    ({"reward": [[[1.0]]]}, "rollout.reward: got [[[1.0]]]; allowed is a tensor"),
    (
        {"reward": torch.ones(2, 3, 2, dtype=torch.long)},
        "rollout.reward: got torch.int64; allowed is a floating-point type",
    ),
    (
        {"log_prob": torch.zeros(2, 3, 1)},
        "rollout.log_prob: got (2, 3, 1); allowed is the shape (2, 3, 2)",
    ),
    ({"log_prob": None}, "rollout.log_prob: got None; allowed is a tensor"),
    ({"mask": torch.ones(2, 3, 2)}, "rollout.mask: got torch.float32; allowed is torch.bool"),
    ({"mask": torch.ones(3, 2, dtype=torch.bool)}, "rollout.mask: got (3, 2)"),
    ({"ref_log_prob": torch.zeros(2, 3)}, "rollout.ref_log_prob: got (2, 3)"),
    ({"value": torch.zeros(1, 3, 2)}, "rollout.value: got (1, 3, 2)"),
    (
        {"truncated": torch.zeros(2, 3)},
        "rollout.truncated: got torch.float32; allowed is torch.bool",
    ),
    (
        {"truncated": torch.zeros(2, 3, 2, dtype=torch.bool)},
        "rollout.truncated: got (2, 3, 2); allowed is the shape (2, 3)",
    ),
    ({"bootstrap": torch.zeros(2)}, "rollout.bootstrap: got (2,)"),
    (
        {"greedy_reward": torch.zeros(2, 3)},
        "rollout.greedy_reward: got (2, 3); allowed is the shape (2,)",
    ),
    ({"kl_coef": torch.ones(2)}, "rollout.kl_coef: got (2,); allowed is the shape ()"),
    (
        {"old_log_dist": torch.zeros(2, 2, 2, 5)},
        "rollout.old_log_dist: got (2, 2, 2, 5); allowed is [..., Q, G or 1, T or 1, V]",
    ),
    ({"ref_log_dist": torch.zeros(1, 1, 1, 5)}, "rollout.ref_log_dist: got (1, 1, 1, 5)"),
    ({"limit": 0}, "rollout.limit: got 0; allowed is a positive number of tokens"),
    ({"limit": 2.5}, "rollout.limit: got 2.5; allowed is a positive number of tokens"),
    ({"limit": True}, "rollout.limit: got True"),
    ({"ref_log_prob": [0.0]}, "rollout.ref_log_prob: got [0.0]; allowed is a tensor"),
    ({"value": 0.0}, "rollout.value: got 0.0; allowed is a tensor"),
    ({"kl_coef": 1.0}, "rollout.kl_coef: got 1.0; allowed is a tensor"),
    ({"old_log_dist": "old"}, "rollout.old_log_dist: got 'old'; allowed is a tensor"),
    (
        {"log_prob": torch.zeros(2, 3, 2, dtype=torch.long)},
        "rollout.log_prob: got torch.int64; allowed is a floating-point type",
    ),
    (
        {"greedy_reward": torch.zeros(2, dtype=torch.bool)},
        "rollout.greedy_reward: got torch.bool; allowed is a floating-point type",
    ),
    (
        {"bootstrap": torch.zeros(2, 3)},
        "rollout.truncated: got None; allowed is a tensor [..., Q, G] where there is a bootstrap",
    ),
    (
        {"old_log_dist": torch.zeros(2, 1, 1, 5), "ref_log_dist": torch.zeros(2, 1, 1, 1)},
        "rollout.ref_log_dist: got (2, 1, 1, 1); allowed is the rollout's V = 5 on the last axis",
    ),
    (
        {"data": {"prompt": torch.zeros(3)}},
        "rollout.data['prompt']: got (3,); allowed is a shape that leads with [..., Q] = (2,)",
    ),
    ({"data": {"prompt": [1, 2]}}, "rollout.data['prompt']: got [1, 2]; allowed is a tensor"),
]


@pytest.mark.parametrize(
    ("changes", "says"), WRONG_ROLLOUTS, ids=[says.split(";")[0] for _, says in WRONG_ROLLOUTS]
)
def test_a_rollout_of_the_wrong_shape_or_type_is_refused(
    changes: dict[str, Any], says: str
) -> None:
    refused(says, lambda: rollout(**changes))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (
            Policy(torch.zeros(2, 3, 1)),
            "policy.log_prob: got (2, 3, 1); allowed is the shape (2, 3, 2)",
        ),
        (Policy(torch.zeros(3, 2)), "policy.log_prob: got (3, 2)"),
        (Policy(torch.zeros(2, 3, 2), value=torch.zeros(2, 1, 1)), "policy.value: got (2, 1, 1)"),
        (
            Policy(torch.zeros(2, 3, 2), torch.zeros(2, 2, 2, 4)),
            "policy.log_dist: got (2, 2, 2, 4)",
        ),
        (Policy(torch.zeros(2, 3, 2), torch.zeros(3, 2, 4)), "policy.log_dist: got (3, 2, 4)"),
        (
            Policy(torch.zeros(2, 3, 2), torch.zeros(2, 1, 1, 1)),
            "policy.log_dist: got (2, 1, 1, 1); allowed is the rollout's V = 5 on the last axis",
        ),
        (
            Policy(None),  # type: ignore[arg-type]
            "policy.log_prob: got None; allowed is a tensor",
        ),
        (
            Policy(torch.zeros(2, 3, 2), value=[0.0]),  # type: ignore[arg-type]
            "policy.value: got [0.0]; allowed is a tensor",
        ),
        (
            Policy(torch.zeros(2, 3, 2, dtype=torch.long)),
            "policy.log_prob: got torch.int64; allowed is a floating-point type",
        ),
    ],
)
def test_a_policy_that_would_only_fit_by_broadcasting_is_refused(policy: Policy, says: str) -> None:
    """[Q, G] log-probabilities against [Q, G, 1] rewards would make [Q, Q, G]: numbers, and none of
    them right.
    """
    frozen = ladder.ppo_value.freeze(rollout(ref_log_dist=torch.zeros(2, 1, 1, 5)))
    refused(says, lambda: ladder.ppo_value.objective(policy, frozen))


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_reward_that_is_no_number_is_refused_with_its_place(value: float, shown: str) -> None:
    broken = rollout()
    broken.reward[1, 0, 1] = value
    refused(
        f"rollout.reward: got {shown} at index (1, 0, 1); allowed is a finite number",
        lambda: ladder.clip.freeze(broken),
    )


NUMBERS: dict[str, tuple[tuple[int, ...], str]] = {
    "log_prob": ((1, 2, 1), "a finite number"),
    "ref_log_prob": ((1, 2, 1), "a finite number"),
    "value": ((0, 1, 0), "a finite number"),
    "bootstrap": ((1, 2), "a finite number"),
    "greedy_reward": ((1,), "a finite number"),
    "kl_coef": ((), "a finite number ≥ 0"),
    "old_log_dist": ((1, 0, 1, 3), "a log-probability, which may be -inf"),
    "ref_log_dist": ((0, 0, 0, 2), "a log-probability, which may be -inf"),
}


def everything() -> Rollout:
    """Every optional field; the second prompt's samples were cut."""
    cut = torch.tensor([[False] * 3, [True] * 3])
    log_dist = torch.full((2, 1, 2, 4), 0.25).log()
    return rollout(
        truncated=cut,
        bootstrap=torch.zeros(2, 3),
        kl_coef=torch.ones(()),
        old_log_dist=log_dist,
        ref_log_dist=log_dist.clone(),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_where_it_is_used_is_refused_with_its_place(
    name: str, bad: float
) -> None:
    index, allowed = NUMBERS[name]
    broken = everything()
    getattr(broken, name)[index] = bad
    if name.endswith("log_dist") and bad == -math.inf:
        ladder.clip.freeze(broken)  # a token that never comes
        return
    says = f"rollout.{name}: got {bad} at index {index}; allowed is {allowed}"
    refused(says, lambda: ladder.clip.freeze(broken))


def test_a_negative_coefficient_is_refused_and_garbage_where_nobody_looks_is_not() -> None:
    says = "rollout.kl_coef: got -1.0 at index (); allowed is a finite number ≥ 0"
    refused(says, lambda: ladder.clip.freeze(rollout(kl_coef=torch.tensor(-1.0))))
    garbage = everything()
    garbage.mask[1, 2, 1] = False
    for name in ("log_prob", "ref_log_prob", "value"):
        getattr(garbage, name)[1, 2, 1] = math.nan
    garbage.bootstrap[0, 1] = math.inf  # type: ignore[index]
    assert bool(torch.isfinite(ladder.ppo.freeze(garbage).advantage).all())


def test_a_run_without_a_token_of_the_policys_own_is_refused() -> None:
    mask = torch.ones(2, 2, 3, 1, dtype=torch.bool)
    mask[1] = False
    pair = Rollout(torch.rand(2, 2, 3, 1), torch.rand(2, 2, 3, 1), mask)
    refused(
        "rollout.mask: got a run in which no token is the policy's own",
        lambda: ladder.clip.freeze(pair),
    )


@pytest.mark.parametrize(
    "name",
    ["group_mean", "group_std", "grpo", "rloo", "opo", "dapo", "dr_grpo", "reinforce_pp_baseline"],
)
def test_a_group_of_one_is_refused_where_samples_are_compared(name: str) -> None:
    says = refused(
        "got G = 1 sample per prompt; allowed is G ≥ 2",
        lambda: ladder.get(name).estimator.freeze(rollout(group=1)),
    )
    assert says.startswith(f"{type(ladder.get(name).estimator.baseline).__name__}()")


@pytest.mark.parametrize(
    "estimator", [ladder.baseline, ladder.reinforce_pp, Estimator(scale=BatchStd())]
)
def test_a_batch_of_one_is_refused_where_samples_of_the_batch_are_compared(
    estimator: Estimator,
) -> None:
    one = {name: torch.zeros(1, 1, 1) for name in ("reward", "log_prob", "ref_log_prob")}
    single = Rollout(mask=torch.ones(1, 1, 1, dtype=torch.bool), **one)
    refused("a batch of at least two samples", lambda: estimator.freeze(single))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("grpo", "ref_log_prob"),
        ("reinforce_pp", "ref_log_prob"),
        ("ppo", "value"),
        ("remax", "greedy_reward"),
        ("ppo_kl", "old_log_dist"),
    ],
)
def test_what_an_estimator_needs_and_the_rollout_lacks_is_named(name: str, field: str) -> None:
    says = refused(
        f"rollout.{field}: got None; allowed is a tensor",
        lambda: ladder.get(name).estimator.freeze(rollout(**{field: None})),
    )
    assert "needs it" in says


def test_a_truncated_sample_needs_the_value_after_it() -> None:
    cut = rollout(truncated=torch.tensor([[True, False, False]] * 2))
    refused("rollout.bootstrap: got None", lambda: ladder.ppo.freeze(cut))
    refused(
        "rollout.truncated: got None",
        lambda: replace(ladder.clip, sample_filter=_drop_truncated()).freeze(rollout()),
    )


def _drop_truncated() -> Any:
    from course.parts import DropTruncated

    return DropTruncated()


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (
            replace(ladder.clip, entropy_coef=0.1),
            "policy.log_dist: got None; allowed is the full distribution, which entropy needs",
        ),
        (ladder.ppo_value, "policy.value: got None; allowed is the critic's values"),
        (
            replace(ladder.clip, kl=ExactKL(0.1)),
            "policy.log_dist: got None; allowed is the full distribution, which ExactKL needs",
        ),
    ],
)
def test_what_an_estimator_needs_and_the_policy_lacks_is_named(
    estimator: Estimator, says: str
) -> None:
    sampled = rollout(ref_log_dist=torch.zeros(2, 1, 1, 1))
    refused(says, lambda: estimator.loss(Policy(sampled.log_prob), sampled))


# ---------------------------------------------------------------- the parts

WRONG_PARTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: K3(beta=-0.1), "K3.beta: got -0.1; allowed is a number ≥ 0"),
    (lambda: K1(beta=-1.0, place=InReward()), "K1.beta: got -1.0"),
    (lambda: K2(beta=math.nan), "K2.beta: got nan"),
    (lambda: ExactKL(beta=math.inf), "ExactKL.beta: got inf"),
    (lambda: NoKL(beta=0.1), "NoKL.beta: got 0.1; allowed is 0"),
    (lambda: K3(max_log_r=-1.0), "K3.max_log_r: got -1.0"),
    (lambda: K3(place=InLoss), "K3.place: got"),  # type: ignore[arg-type]
    (lambda: K3(anchor=OldPolicy), "K3.anchor: got"),  # type: ignore[arg-type]
    (lambda: AdaptiveBeta(initial=0.0), "AdaptiveBeta.initial: got 0.0"),
    (lambda: AdaptiveBeta(target=-0.01), "AdaptiveBeta.target: got -0.01"),
    (lambda: Clip(1.5), "Clip.epsilon_low: got 1.5; allowed is a number from 0 to 1"),
    (lambda: Clip(0.2, -0.1), "Clip.epsilon_high: got -0.1"),
    (lambda: Clip(ratio_cap=0.0), "Clip.ratio_cap: got 0.0"),
    (
        lambda: Clip(0.2, 0.5, dual_clip=1.4),
        "Clip.dual_clip: got 1.4; allowed is None or a number above 1 + ε_high = 1.5",
    ),
    (lambda: CISPO(-1.0), "CISPO.epsilon_high: got -1.0"),
    (lambda: CISPO(epsilon_low=2.0), "CISPO.epsilon_low: got 2.0"),
    (lambda: SoftGate(0.0), "SoftGate.tau_positive: got 0.0"),
    (lambda: GammaWeight(lambda_negative=0.0), "GammaWeight.lambda_negative: got 0.0"),
    (lambda: DivergenceTV(0.0), "DivergenceTV.delta_low: got 0.0"),
    (lambda: DivergenceKL(delta_high=-0.1), "DivergenceKL.delta_high: got -0.1"),
    (lambda: DivergenceTV(ratio_cap=0.5), "DivergenceTV.ratio_cap: got 0.5"),
    (lambda: GeometricMean(-0.1), "GeometricMean.epsilon_low: got -0.1"),
    (lambda: GeometricMean(0.4, -0.1), "GeometricMean.epsilon_high: got -0.1"),
    (lambda: MirrorDescent(0.0), "MirrorDescent.beta: got 0.0"),
    (lambda: BelowMean(float("inf")), "BelowMean.by: got inf"),
    (lambda: GAE(gamma=1.1), "GAE.gamma: got 1.1"),
    (lambda: GAE(gae_lambda=-0.1), "GAE.gae_lambda: got -0.1"),
    (lambda: TD(gae_lambda=0.5), "TD.gae_lambda: got 0.5"),
    (lambda: RewardToGo(math.nan), "RewardToGo.gamma: got nan"),
    (lambda: GroupStd(ddof=2), "GroupStd.ddof: got 2"),
    (lambda: BatchStd(eps=-1e-8), "BatchStd.eps: got -1e-08"),
    (lambda: TokenWhitening(-1.0), "TokenWhitening.eps: got -1.0"),
    (lambda: TokenWhitening(ddof=2), "TokenWhitening.ddof: got 2"),
    (lambda: ConstantLength(0), "ConstantLength.length: got 0"),
    (lambda: Constant(math.nan), "Constant.b: got nan"),
    (lambda: Clip("0.2"), "Clip.epsilon_low: got '0.2'; allowed is a number from 0 to 1"),
    (lambda: Clip(True), "Clip.epsilon_low: got True"),
    (lambda: Clip(torch.tensor(0.2)), "Clip.epsilon_low: got tensor(0.2000)"),
    (lambda: Clip(0.2, "high"), "Clip.epsilon_high: got 'high'"),
    (lambda: Clip(ratio_cap=math.inf), "Clip.ratio_cap: got inf; allowed is None or a number > 0"),
    (lambda: Clip(dual_clip=[3.0]), "Clip.dual_clip: got [3.0]"),
    (lambda: CISPO(None), "CISPO.epsilon_high: got None"),
    (lambda: SoftGate(tau_negative="1"), "SoftGate.tau_negative: got '1'"),
    (lambda: K3(beta=None), "K3.beta: got None; allowed is a number ≥ 0"),
    (lambda: K3(beta=False), "K3.beta: got False"),
    (lambda: NoKL(beta="0"), "NoKL.beta: got '0'; allowed is 0"),
    (lambda: NoKL(place=None), "NoKL.place: got None"),
    (lambda: NoKL(anchor=1), "NoKL.anchor: got 1"),
    (lambda: NoKL(accept_bias="no"), "NoKL.accept_bias: got 'no'; allowed is True or False"),
    (lambda: K1(accept_bias=1), "K1.accept_bias: got 1; allowed is True or False"),
    (lambda: AdaptiveBeta("1"), "AdaptiveBeta.initial: got '1'; allowed is a number > 0"),
    (lambda: RewardToGo(None), "RewardToGo.gamma: got None; allowed is a number from 0 to 1"),
    (lambda: GAE(gamma=True), "GAE.gamma: got True"),
    (lambda: TD(gae_lambda="0"), "TD.gae_lambda: got '0'"),
    (lambda: GroupStd(ddof=True), "GroupStd.ddof: got True; allowed is 0 (population) or 1"),
    (lambda: GroupStd(ddof=0.0), "GroupStd.ddof: got 0.0"),
    (lambda: TokenWhitening(None), "TokenWhitening.eps: got None"),
    (lambda: ConstantLength(2.5), "ConstantLength.length: got 2.5"),
    (lambda: SequenceSum(count_empty=1), "SequenceSum.count_empty: got 1; allowed is True or"),
    (lambda: ConstantLength(count_empty=None), "ConstantLength.count_empty: got None"),
    (lambda: SequenceRatio(whole="yes"), "SequenceRatio.whole: got 'yes'; allowed is True or"),
    (lambda: Constant("0.5"), "Constant.b: got '0.5'; allowed is a finite number"),
    (lambda: Estimator(entropy_coef="0.1"), "estimator.entropy_coef: got '0.1'"),
    (lambda: Estimator(value_clip=0.0), "estimator.value_clip: got 0.0; allowed is None or a"),
    (lambda: Estimator(value_clip=True), "estimator.value_clip: got True"),
    (lambda: Estimator(value_coef=True), "estimator.value_coef: got True"),
    (lambda: Estimator(entropy_coef=10**400), "estimator.entropy_coef: got 1000"),
    (lambda: Estimator(baseline=GroupMean), "estimator.baseline: got"),  # type: ignore[arg-type]
    (lambda: Estimator(kl=Clip()), "estimator.kl: got"),  # type: ignore[arg-type]
    (lambda: Estimator(entropy_coef=-0.01), "estimator.entropy_coef: got -0.01"),
    (lambda: Estimator(value_coef=math.inf), "estimator.value_coef: got inf"),
    (
        lambda: replace(ladder.clip, basline=GroupMean()),
        "replace: got 'basline'; allowed is one of credit, baseline",
    ),
]


@pytest.mark.parametrize(
    ("make", "says"),
    WRONG_PARTS,
    ids=[says.split(":")[0] + says.split("got")[1][:12] for _, says in WRONG_PARTS],
)
def test_a_wrong_setting_is_refused_when_the_part_is_made(
    make: Callable[[], Any], says: str
) -> None:
    refused(says, make)


CLASHES: list[tuple[Callable[[], Any], tuple[str, ...]]] = [
    *(
        (lambda b=baseline: Estimator(credit=GAE(), baseline=b), ("GAE()", baseline.short))
        for baseline in (GroupMean(), LeaveOneOut(), BatchMean(), LengthWeighted(), Constant(0.5))
    ),
    (lambda: replace(ladder.group_mean, credit=TD()), ("TD()", "GroupMean()")),
    (lambda: replace(ladder.ppo, baseline=LeaveOneOut()), ("GAE()", "LeaveOneOut()")),
    (lambda: replace(ladder.ppo, scale=GroupStd()), ("GroupStd()", "GAE()", "TokenWhitening()")),
    (lambda: replace(ladder.ppo, scale=BatchStd()), ("BatchStd()", "GAE()")),
    (lambda: K2(place=InReward()), ("K2", "InReward()", "accept_bias")),
    (lambda: K3(place=InReward()), ("K3", "InReward()", "accept_bias")),
    (lambda: ExactKL(place=InReward()), ("ExactKL", "InReward()", "accept_bias")),
    (lambda: K1(place=InReward(), anchor=OldPolicy()), ("K1", "InReward()", "OldPolicy()")),
    (lambda: ExactKL(place=InLossTimesRatio()), ("ExactKL", "InLossTimesRatio()")),
]


@pytest.mark.parametrize(
    ("make", "names"), CLASHES, ids=[" × ".join(names[:2]) for _, names in CLASHES]
)
def test_parts_that_clash_say_which_and_why(
    make: Callable[[], Any], names: tuple[str, ...]
) -> None:
    text = refused("clashes with", make, Clash)
    assert all(name in text for name in names)
    assert len(text.partition(": ")[2]) > 30  # the reason


def test_an_adaptive_beta_holds_to_the_old_policy() -> None:
    refused("K1.anchor: got Reference()", lambda: K1(beta=AdaptiveBeta()))


def test_what_is_biased_can_still_be_studied_on_purpose() -> None:
    for kind in (K2, K3, ExactKL):
        assert isinstance(Estimator(kl=kind(place=InReward(), accept_bias=True)).kl, KL)
    assert Estimator(credit=GAE(), baseline=Value(), scale=TokenWhitening()).credit == GAE()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("grop", "grpo"),
        ("GRPO", "grpo"),
        ("reinforc", "reinforce"),
        ("dr-grpo", "dr_grpo"),
        ("RLOO", "rloo"),
    ],
)
def test_an_unknown_rung_suggests_the_nearest(name: str, nearest: str) -> None:
    refused(f"unknown rung {name!r}: did you mean {nearest!r}?", lambda: ladder.get(name))


def test_a_rung_nothing_is_near_to_lists_them_all() -> None:
    assert "grpo" in refused("unknown rung 'zzz': known: reinforce, ", lambda: ladder.get("zzz"))


# ---------------------------------------------------------------- optimisers and the learner

WRONG_OPTIMIZERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: SGD(0.0), "lr: got 0.0; allowed is a finite number > 0"),
    (lambda: SGD(-0.1), "lr: got -0.1"),
    (lambda: SGD(math.nan), "lr: got nan"),
    (lambda: Adam(math.inf), "lr: got inf"),
    (lambda: SGD(torch.tensor([0.1, 0.0])), "lr: got 0.0; allowed is a finite number > 0"),
    (lambda: SGD(torch.tensor([0.1, math.inf])), "lr: got inf"),
    (lambda: Adam(0.1, betas=(0.9, 1.0)), "Adam.betas: got 1.0; allowed is two numbers"),
    (lambda: Adam(0.1, betas=(0.9,)), "Adam.betas: got (0.9,)"),  # type: ignore[arg-type]
    (lambda: Adam(0.1, eps=-1e-8), "Adam.eps: got -1e-08"),
    (lambda: Adam(0.1, weight_decay=-0.1), "Adam.weight_decay: got -0.1"),
    (lambda: LinearDecay(0), "LinearDecay.steps: got 0"),
    (
        lambda: LinearDecay(10, warmup=10),
        "LinearDecay.warmup: got 10; allowed is a whole number of updates from 0 to below steps",
    ),
    (lambda: LinearDecay(10, final=-0.5), "LinearDecay.final: got -0.5"),
    (lambda: NaturalGradient(0.1, iterations=0), "NaturalGradient.iterations: got 0"),
    (lambda: NaturalGradient(0.1, damping=-1.0), "NaturalGradient.damping: got -1.0"),
    (lambda: TRPO(0.0), "TRPO.max_kl: got 0.0; allowed is a finite number of nats > 0"),
    (lambda: TRPO(math.inf), "TRPO.max_kl: got inf"),
    (lambda: TRPO(backtracks=0), "TRPO.backtracks: got 0"),
    (lambda: TRPO(shrink=1.0), "TRPO.shrink: got 1.0"),
]


@pytest.mark.parametrize(
    ("make", "says"), WRONG_OPTIMIZERS, ids=[says.split(";")[0] for _, says in WRONG_OPTIMIZERS]
)
def test_a_wrong_optimiser_setting_is_refused(make: Callable[[], Any], says: str) -> None:
    refused(says, make)


@pytest.mark.parametrize(("runs", "rates"), [((2,), 3), ((2, 2), 2), ((), 2), ((2,), (1, 2))])
def test_learning_rates_that_do_not_belong_to_the_runs_are_refused(
    runs: tuple[int, ...], rates: Any
) -> None:
    """Two rates for no run would be taken for rates of the two prompts, without a word."""
    refused(
        "optimizer.lr: got (",
        lambda: learner(
            runs, optimizer=SGD(torch.full(rates if isinstance(rates, tuple) else (rates,), 0.1))
        ),
    )
    assert learner((2, 3), optimizer=SGD(torch.full((2, 1), 0.1))).train(1).steps == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs: got 0; allowed is a whole number > 0"),
        ({"epochs": 1.5}, "epochs: got 1.5"),
        ({"minibatches": -1}, "minibatches: got -1"),
        ({"log_every": 0}, "log_every: got 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0"),
        ({"critic": RunningMean()}, "critic: got"),
    ],
)
def test_a_wrong_learner_setting_is_refused(options: dict[str, Any], says: str) -> None:
    refused(says, lambda: learner(**options))


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda: learner().train(0), "steps: got 0"),
        (
            lambda: learner(minibatches=3).train(1),
            "minibatches: got 3; allowed is at most the 2 prompts of the rollout",
        ),
        (
            lambda: Learner(bernoulli_bandit((2,)), ladder.clip, SGD(0.1), stream((3,))),
            "noise.runs: got (3,)",
        ),
        (lambda: stream(3), "noise.runs: got 3; allowed is a shape, such as (8,)"),  # type: ignore[arg-type]
        (lambda: learner(estimator=ladder.grpo).train(1), "rollout.ref_log_prob: got None"),
        (lambda: learner(estimator=ladder.ppo).train(1), "rollout.value: got None"),
        (
            lambda: Learner(
                bernoulli_bandit(group=1), ladder.clip_higher, SGD(0.1), stream()
            ).train(1),
            "GroupMean(): got G = 1",
        ),
        (
            lambda: learner(
                estimator=replace(ladder.clip, baseline=Value()),
                critic=RunningMean(share=torch.ones(3)),
            ).train(1),
            "RunningMean.share: got (3,); allowed is a number or one for each of the runs (2,)",
        ),
        (lambda: RunningMean(first="mean"), "RunningMean.first: got 'mean'"),
        (lambda: Noise((2,), -1), "seed: got -1"),
        (
            lambda: Noise((2,), 0, numbers=[1]),
            "noise.numbers: got 1; allowed is one number for each of the 2 runs",
        ),
        (lambda: Noise((1,), 0, numbers=[-1]), "noise.numbers: got -1"),
        (
            lambda: learner().train(1)["rewards"],
            "metric: got 'rewards'; allowed is one of reward, ",
        ),
        (lambda: bernoulli_bandit(group=0), "group: got 0"),
        (lambda: bernoulli_bandit(means=[[0.2, 1.5, 0.1]]), "Bernoulli.mean: got"),
        (lambda: bernoulli_bandit(logits=torch.zeros(2, 4)), "policy: got (2, 4)"),
        (
            lambda: bernoulli_bandit((2,), reference=torch.zeros(2, 3)),
            "reference: got (2, 3); allowed is the policy's own shape (2, 2, 3)",
        ),
        (lambda: bernoulli_bandit(reference="old"), "reference: got 'old'"),
    ],
)
def test_a_wrong_experiment_is_refused(attempt: Callable[[], Any], says: str) -> None:
    refused(says, attempt)


# ---------------------------------------------------------------- training that diverges


class Broken(Bandit):
    """Pays NaN in one run from some rollout on, until it is repaired."""

    rollouts, breaks_after = 0, 2

    def sample(self, noise: Noise) -> Rollout:
        rollout = super().sample(noise)
        self.rollouts += 1
        if self.rollouts > self.breaks_after:
            rollout.reward[1, 0, 0, 0] = math.nan
        return rollout


def broken(**options: Any) -> Learner:
    means, start = torch.tensor([[0.2, 0.5, 0.8]]), torch.zeros(2, 1, 3)
    estimator = replace(ladder.clip, baseline=Value())
    problem = Broken(Bernoulli(means), Softmax(start), 4)
    return Learner(problem, estimator, Adam(0.1), Noise((2,)), critic=RunningMean(), **options)


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(
        bool(torch.isfinite(tensor).all())
        for tensor in tensors.values()
        if tensor.is_floating_point()
    )


def test_a_reward_that_is_no_number_ends_training_with_step_metric_and_the_last_good_state(
    tmp_path: Path,
) -> None:
    path, whole = tmp_path / "rescue.state", broken()
    whole.train(2)
    stopped = broken(rescue=path)
    text = refused(
        "training stopped at step 3: rollout.reward: got nan at index (1, 0, 0, 0)",
        lambda: stopped.train(9),
        Diverged,
    )
    assert text.endswith(f"; the last good state is in {path}")
    tensors, about = checkpoint.read(path)
    assert finite(tensors)
    assert about["steps"] == 2
    assert torch.equal(tensors["parameters.0"], whole.problem.parameters[0])
    assert torch.equal(tensors["critic.mean"], whole.critic.mean)  # type: ignore[union-attr, arg-type]
    assert stopped.history.steps == [1, 2]
    again = broken()
    again.load(path)
    assert isinstance(again.problem, Broken)
    again.problem.breaks_after = 99
    assert again.train(3).steps == [3, 4, 5]
    assert finite(again.state())


def overflowing(**options: Any) -> Learner:
    """The second run's rate is so large that its very first update leaves the range of float32."""
    means, start = torch.tensor([[0.2, 0.5, 0.8]]), torch.zeros(2, 1, 3)
    noise, rates = Noise((2,)), torch.tensor([0.1, 3e38])
    environment = Bernoulli(means)
    return Learner(
        Bandit(environment, Softmax(start), 4),
        replace(ladder.reinforce, entropy_coef=0.0),
        SGD(rates),
        noise,
        **options,
    )


def test_an_update_that_overflows_is_undone_and_the_state_before_it_saved(tmp_path: Path) -> None:
    path = tmp_path / "rescue.state"
    stopped = overflowing(rescue=path)
    stopped.estimator = replace(
        stopped.estimator, baseline=Constant(9.0)
    )  # gradients longer than 1
    text = refused(
        "a parameter became infinite or NaN in the update", lambda: stopped.train(5), Diverged
    )
    assert re.match(r"training stopped at step \d: ", text)
    assert finite(checkpoint.read(path)[0])
    assert bool(torch.isfinite(stopped.problem.parameters[0]).all())
    calm = overflowing()
    calm.estimator = stopped.estimator
    calm.load(path)
    calm.optimizer = SGD(0.1)
    calm.train(2)
    assert finite(calm.state())


def test_a_run_whose_update_overflows_halts_alone() -> None:
    both = overflowing(halt_diverged=True)
    both.estimator = replace(both.estimator, baseline=Constant(9.0))
    both.train(4)
    assert both.halted is not None
    assert both.halted.tolist() == [False, True]
    assert bool(torch.isfinite(both.problem.parameters[0]).all())
    assert bool((both.problem.parameters[0][0] != 0).any())


def test_divergence_is_told_even_where_the_state_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stopped = broken(rescue=tmp_path / "file" / "rescue.state")
    text = refused(
        "training stopped at step 3: rollout.reward: got nan", lambda: stopped.train(9), Diverged
    )
    assert "the last good state could not be saved" in text


def test_a_rollout_that_cannot_be_used_is_bad_input_and_no_divergence() -> None:
    with pytest.raises(CourseError) as caught:
        learner(estimator=ladder.grpo, rescue="nowhere/at/all").train(1)
    assert not isinstance(caught.value, Diverged)


# ---------------------------------------------------------------- the command line

MINE = """
import torch
from course import ladder, replace
from course.parts import Surrogate

class Root(Surrogate):
    def __call__(self, log_ratio, log_prob, advantage):
        return (advantage - 9).sqrt() * log_prob

rooted = replace(ladder.clip, surrogate=Root())
"""
COMMANDS = {
    "unknown rung": (
        "-m bandits policy_variance --rungs reinforc",
        "unknown rung 'reinforc': did you mean 'reinforce'?",
    ),
    "unknown ablation": (
        "-m bandits policy_varience",
        "unknown ablation 'policy_varience': did you mean 'policy_variance'?",
    ),
    "wrong setting": (
        "-m bandits policy_variance --group 1",
        "--group: got 1; allowed is a whole number ≥ 2",
    ),
    "unwritable folder": (
        "-m bandits policy_variance --out mine.py/figures",
        "out: got 'mine.py/figures'",
    ),
    "diverged": (
        "-m bandits reward_design --rungs mine.py:rooted --runs 2",
        "training stopped at step 1: loss became nan",
    ),
    "file that does not run": (
        "-m bandits policy_variance --rungs broken.py:mine",
        "broken.py: got a file that does not run (SyntaxError",
    ),
    "ladder, unwritable folder": (
        "-m course ladder --out /proc/nowhere",
        "out: got '/proc/nowhere'",
    ),
}


@pytest.fixture(scope="module")
def commands(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, dict[str, subprocess.Popen[str]]]]:
    """All commands at once, each as a user would type it, in a folder with two files of the user's
    own. Those whose test was not selected are ended with the others.
    """
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(MINE)
    (folder / "broken.py").write_text("mine = (\n")
    with ExitStack() as running:
        started = {
            name: running.enter_context(
                subprocess.Popen(
                    [sys.executable, *arguments.split()],
                    cwd=folder,
                    env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for name, (arguments, _) in COMMANDS.items()
        }
        yield folder, started
        for process in started.values():
            process.kill()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_in_one_line_and_with_status_2(
    name: str, commands: tuple[Path, dict[str, subprocess.Popen[str]]]
) -> None:
    folder, started = commands
    _, err = started[name].communicate(timeout=300)
    lines = [
        line
        for line in err.replace("\x1b[A", "").split("\n")
        if line.strip() and "it/s]" not in line
    ]  # without the bars
    assert started[name].returncode == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert COMMANDS[name][1] in lines[0]
    assert not (folder / "figures").exists() or not list((folder / "figures").iterdir())


def test_a_gaussian_bandit_needs_samples() -> None:
    from bandits.environments import Continuous
    from bandits.policies import GaussianPolicy

    refused(
        "group: got 0",
        lambda: GaussianBandit(Continuous(lambda x: -(x**2)), GaussianPolicy(torch.zeros(1)), 0),
    )
