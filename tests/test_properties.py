"""Properties of the whole core, over shapes, masks, offsets, scales and both number types: for every rung, and some parts beside."""

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
from course.estimator import Estimator, replace
from course.parts import (
    GAE,
    K1,
    K2,
    K3,
    TD,
    BatchMean,
    BatchStd,
    Clip,
    ConstantLength,
    DropSilentGroups,
    DropTruncated,
    ExactKL,
    Greedy,
    GroupMean,
    GroupStd,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    NoKL,
    OldPolicy,
    Ratio,
    RewardToGo,
    SequenceMean,
    SequenceMeanRatio,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    TokenMean,
    TokenWhitening,
    Value,
)
from course.rollout import Policy, Rollout

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
WORDS = 3  # V, the size of the vocabulary

RUNGS = {name: rung.estimator for name, rung in ladder.RUNGS.items() if rung.kind != "own"}
BESIDE = {
    "sequence product": Estimator(baseline=LeaveOneOut(), ratio=SequenceRatio(), surrogate=Clip(0.2, 0.4, dual_clip=3.0)),
    "ratio cap": Estimator(baseline=GroupMean(), surrogate=Clip(0.2, ratio_cap=2.0), aggregation=TokenMean()),
    "batch std": Estimator(baseline=BatchMean(), scale=BatchStd(1), surrogate=SoftGate(), aggregation=ConstantLength(7)),
    "sample std": Estimator(baseline=GroupMean(), scale=GroupStd(1, 1e-4), kl=K3(0.1, place=InLossTimesRatio())),
    "counts empty": Estimator(baseline=GroupMean(), aggregation=SequenceMean(count_empty=True), sample_filter=DropTruncated()),
    "exact kl": Estimator(baseline=LengthWeighted(), surrogate=Ratio(), kl=ExactKL(0.2), entropy_coef=0.3, aggregation=TokenMean()),
    "exact kl in the reward": Estimator(credit=RewardToGo(0.9), baseline=GroupMean(), kl=ExactKL(0.2, place=InReward())),
    "k1 of the old policy": Estimator(baseline=Greedy(), surrogate=Ratio(), kl=K1(0.5, place=InLossTimesRatio(), anchor=OldPolicy())),
    "td": Estimator(credit=TD(0.8), baseline=Value(), surrogate=Ratio(), value_coef=1.0, aggregation=SequenceMean()),
    "whitened critic": Estimator(credit=GAE(0.9, 0.7), baseline=Value(), scale=TokenWhitening(), value_coef=0.5, kl=K2(0.1)),
}
EVERY = RUNGS | BESIDE
every = pytest.mark.parametrize("estimator", EVERY.values(), ids=EVERY.keys())


# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Case:
    """A rollout with every optional field, and what a policy says of it: all tensors lead with [..., Q]."""

    rollout: Rollout
    policy: dict[str, Tensor]

    @property
    def axes(self) -> int:
        return len(self.rollout.runs)

    def each(self, change: Callable[[str, Tensor], Tensor], **replaced: Any) -> Case:
        """The case with every tensor changed by name: the policy's are «policy.log_prob» …"""
        fields = {f.name: getattr(self.rollout, f.name) for f in dataclasses.fields(Rollout)}
        changes = {name: change(name, tensor) for name, tensor in fields.items() if isinstance(tensor, Tensor)}
        policy = {name: change(f"policy.{name}", tensor) for name, tensor in self.policy.items()}
        return Case(dataclasses.replace(self.rollout, **(changes | replaced)), policy)


def make_case(runs: tuple[int, ...], prompts: int, group: int, tokens: int, dtype: torch.dtype, seed: int, *, empty: bool = False) -> Case:
    """Rewards are multiples of ¼, on any token; with `empty`, some samples have no token of the policy's own."""
    rng = np.random.default_rng(seed)
    samples, every_token = (*runs, prompts, group), (*runs, prompts, group, tokens)

    def real(array: Any) -> Tensor:
        return torch.as_tensor(array).to(dtype)

    def nats(*shape: int) -> Tensor:
        return real(-rng.exponential(0.7, shape) - 0.05)

    def dist(group: int, tokens: int) -> Tensor:
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
        value=real(rng.normal(size=every_token)),
        bootstrap=real(rng.normal(size=samples)),
        greedy_reward=real(rng.integers(-4, 5, (*runs, prompts)) / 4),
        truncated=torch.as_tensor(rng.random(samples) < 0.3),
        old_dist=dist(group if wide else 1, tokens),
        ref_dist=dist(1, tokens),
        kl_coef=real(rng.uniform(0.1, 2.0, runs)),
        limit=tokens + 3,
        data={"prompt": torch.arange(prompts).expand(*runs, prompts)},
    )
    old = rollout.log_prob
    policy = {"log_prob": old + 0.3 * real(rng.normal(size=every_token)), "value": real(rng.normal(size=every_token))}
    return Case(rollout, policy | {"dist": dist(group if wide else 1, tokens)})


@st.composite
def cases(draw: st.DrawFn, *, empty: bool = False, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)) -> Case:
    runs = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    prompts, group, tokens = draw(st.integers(1, 4)), draw(st.integers(2, 5)), draw(st.integers(1, 5))
    return make_case(runs, prompts, group, tokens, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**32 - 1)), empty=empty)


float64 = (torch.float64,)


# ---------------------------------------------------------------- what is compared


def evaluate(estimator: Estimator, case: Case) -> dict[str, Tensor]:
    """The objective [...] and its gradient by everything that the policy says."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in case.policy.items()}
    objective = estimator.objective(Policy(**leaves), estimator.freeze(case.rollout))
    gradients = torch.autograd.grad(objective.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"objective": objective.detach(), **dict(zip(leaves, gradients, strict=True))}


def same(got: dict[str, Tensor], want: dict[str, Tensor], ulps: float = 64.0, why: str = "") -> None:
    """Equal up to some units in the last place of the largest number there."""
    largest = max(1.0, *(float(tensor.abs().max()) for tensor in want.values()))
    for name, tensor in want.items():
        atol = ulps * torch.finfo(tensor.dtype).eps * largest
        torch.testing.assert_close(got[name], tensor, rtol=0.0, atol=atol, msg=lambda text, name=name: f"{why} {name}: {text}")


def along(case: Case, axis: str, index: Tensor) -> Case:
    """The case with its prompts («Q») or the samples of each group («G») picked by `index`."""

    def take(name: str, tensor: Tensor) -> Tensor:
        place = case.axes + "QG".index(axis)
        if name == "kl_coef" or tensor.dim() <= place or (axis == "G" and tensor.shape[place] == 1):
            return tensor
        return tensor.index_select(place, index)

    data = {name: take(name, tensor) for name, tensor in case.rollout.data.items()} if axis == "Q" else case.rollout.data
    return case.each(take, data=data)
