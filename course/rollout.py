"""The two inputs of an estimator: a `Rollout` of samples and the current `Policy` on its tokens.

Tensors have the axes [..., Q, G, T]: independent runs, prompts, samples of one prompt (the group),
tokens. A bandit is the case T = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from course.errors import CourseError, NotFinite, require, require_number

NARROW = (torch.float16, torch.bfloat16)  # too few digits for means, squares and weights
# how many of the last axes of [..., Q, G, T] each field lacks
AXES_MISSING = {
    "log_prob": 0,
    "mask": 0,
    "sampler_log_prob": 0,
    "ref_log_prob": 0,
    "value": 0,
    "truncated": 1,
    "bootstrap": 1,
    "greedy_reward": 2,
    "kl_coef": 3,
}
DISTRIBUTIONS = ("old_log_dist", "ref_log_dist")
# the optional fields and log_prob, whose numbers are read before they are used
READ = (
    "log_prob",
    "sampler_log_prob",
    "ref_log_prob",
    "value",
    "bootstrap",
    "greedy_reward",
    "components",
    "kl_coef",
    *DISTRIBUTIONS,
)


@dataclass(frozen=True)
class Rollout:
    """Samples of a policy, with all data that stays constant while the policy is updated.

    Log-probabilities are in nats. The required fields are [..., Q, G, T]:

    - `reward`: may be on any token, chosen or not; 0 on padding;
    - `log_prob`: under π_old, the learner's policy before the updates, with temperature and top-k.
      Without a `sampler_log_prob`, π_old is the distribution that really sampled the tokens;
    - `mask`, bool: True where the policy chose the token, False on prompts, padding and the turns
      of other speakers. A sample without a chosen token does not count (`exists`).

    The optional fields:

    - `sampler_log_prob` [..., Q, G, T]: log-probabilities under μ, the distribution that really
      sampled the tokens, if that is not π_old: another engine, precision, temperature, top-p, or
      weights some updates old. Only a `Correction` reads it; without one, the samples are taken for
      π_old's. To correct by the ratio π/μ itself, give μ's as `log_prob` and leave this None;
    - `ref_log_prob` [..., Q, G, T]: log-probabilities under the reference policy;
    - `value` [..., Q, G, T]: the critic's estimate for the state before each token;
    - `greedy_reward` [..., Q]: the reward of the greedy answer;
    - `truncated` [..., Q, G], bool: cut off at the generation limit;
    - `bootstrap` [..., Q, G]: the value of the state after the last token of a truncated sample;
    - `old_log_dist`, `ref_log_dist` [..., Q, G or 1, T or 1, V]: log-probabilities of all tokens;
    - `components` [..., Q, G, C]: C rewards of each sample, of which `reward` is the weighted sum;
      without them `reward` is the only one (`each_reward`);
    - `kl_coef` [...]: the current adaptive β;
    - `limit`: the generation limit in tokens, Dr. GRPO's divisor; None means T;
    - `data`: tensors [..., Q, ...] that the problem needs to evaluate its policy on the samples.

    Except for `reward`, entries where the mask is False may be anything, also NaN. Raises
    `CourseError` if a shape or type is wrong.
    """

    reward: Tensor
    log_prob: Tensor
    mask: Tensor
    ref_log_prob: Tensor | None = None
    value: Tensor | None = None
    bootstrap: Tensor | None = None
    greedy_reward: Tensor | None = None
    truncated: Tensor | None = None
    old_log_dist: Tensor | None = None
    ref_log_dist: Tensor | None = None
    kl_coef: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    components: Tensor | None = None
    limit: int | None = None
    data: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reward", "log_prob", "mask"):
            _tensor(f"rollout.{name}", getattr(self, name), "[..., Q, G, T]", bools=name == "mask")
        shape = self.reward.shape
        require(
            len(shape) >= 3, "rollout.reward", tuple(shape), "at least the three axes [Q, G, T]"
        )
        require(
            min(shape[-3:]) > 0, "rollout.reward", tuple(shape), "no axis of length 0 among Q, G, T"
        )
        self._check((*AXES_MISSING, *DISTRIBUTIONS, "components"))
        require(
            self.bootstrap is None or self.truncated is not None,
            "rollout.truncated",
            None,
            "a tensor [..., Q, G] where there is a bootstrap, which belongs to truncated samples",
        )
        allowed = "a positive number of tokens"
        require_number("rollout.limit", self.limit, allowed, above=0, whole=True, optional=True)
        for name, tensor in self.data.items():
            _leads_with_prompts(f"rollout.data[{name!r}]", tensor, shape)

    def _check(self, names: Iterable[str]) -> None:
        """Raise `CourseError` if the type or shape of one of these tensors is wrong."""
        shape = self.reward.shape
        for name in names:
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if name in DISTRIBUTIONS:
                _broadcasts(f"rollout.{name}", tensor, shape)
            elif name == "components":
                _tensor("rollout.components", tensor, "[..., Q, G, C] or None")
                fits = tensor.shape[:-1] == shape[:-1] and tensor.shape[-1] > 0
                allowed = f"[..., Q, G, C] for [..., Q, G] = {tuple(shape[:-1])}, C at least 1"
                require(fits, "rollout.components", tuple(tensor.shape), allowed)
            else:
                bools = name in ("mask", "truncated")
                _tensor(f"rollout.{name}", tensor, "of its own shape or None", bools=bools)
                _same_shape(f"rollout.{name}", tensor, shape[: len(shape) - AXES_MISSING[name]])
        _same_vocabulary("rollout.ref_log_dist", self.ref_log_dist, self.old_log_dist)

    def having(self, **optional: Tensor) -> Rollout:
        """The same with these optional fields.

        If it had none of them, the others are not checked, nor their numbers read, once more.
        """
        if any(getattr(self, name) is not None for name in optional):
            return replace(self, **cast(Any, optional))
        fuller = copy(self)  # what was read of the numbers is kept beside the fields
        vars(fuller).update(optional)
        fuller._check(optional)
        if "_read" in vars(self) and self.runs.numel():
            added = sum(float(_telling(name, tensor)) for name, tensor in optional.items())
            vars(fuller)["_read"] = self._read if math.isfinite(added) else math.nan
        return fuller

    @property
    def runs(self) -> torch.Size:
        """The run axes `...`."""
        return self.reward.shape[:-3]

    @property
    def total_reward(self) -> Tensor:
        """The reward of each sample [..., Q, G], summed over its tokens."""
        return self.reward[..., 0] if self.reward.shape[-1] == 1 else self.reward.sum(-1)

    @property
    def each_reward(self) -> Tensor:
        """The rewards of each sample apart, [C, ..., Q, G]: components are one more run axis."""
        if self.components is None:
            return self.total_reward.unsqueeze(0)
        return self.components.movedim(-1, 0)

    @property
    def length(self) -> Tensor:
        """The number of tokens that the policy chose, per sample [..., Q, G]. eq:answer-length"""
        return self.mask.sum(-1)

    @property
    def exists(self) -> Tensor:
        """[..., Q, G] bool: True for samples with at least one chosen token.

        Means, spreads and the test for zero variance leave out the other samples.
        """
        return self.mask[..., 0] if self.mask.shape[-1] == 1 else self.mask.any(-1)

    @property
    def present(self) -> Tensor | None:
        """`exists`, or None where every sample does, so that there is nothing to leave out."""
        return None if self.is_whole or self._fewest == self._samples else self.exists

    def select(self, where: Tensor, values: Tensor) -> Tensor:
        """`values` [..., Q, G, T] where `where` is True, and 0 elsewhere, whatever is stored there.

        Costs nothing where that is the mask itself and the policy chose every token.
        """
        if where is self.mask and self.is_whole:
            return values
        return torch.where(where, values, torch.zeros_like(values))

    def widened(self) -> Rollout:
        """A copy with float16 and bfloat16 tensors in float32.

        Means, squares and weights then neither overflow nor round to 0.
        """
        narrow: dict[str, Any] = {
            name: value.float()
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.dtype in NARROW
        }
        return replace(self, **narrow) if narrow else self

    def check_values(self) -> None:
        """Raise `CourseError` if a used number is not finite or a run has no chosen token."""
        if not self.is_finite:
            self._refuse_what_is_not_finite()
        if not self.is_whole and self._fewest == 0:
            raise CourseError(
                "rollout.mask: got a run in which no token is the policy's own; allowed is at least"
                " one True per run"
            )

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite, also those that are not used.

        It may be False all the same, where only a sum of finite numbers is not.
        """
        return math.isfinite(self._read)

    @cached_property
    def is_whole(self) -> bool:
        """Whether the policy chose every token, so that nothing has to be selected.

        It may be False all the same (where a number is not finite, say): selecting is never wrong.
        """
        return self.is_finite and self._read != 0

    @cached_property
    def _fewest(self) -> int:
        """How many samples exist in the run in which the fewest do."""
        counts = self.exists.sum((-2, -1))
        return int(counts.amin()) if counts.numel() else self._samples

    @property
    def _samples(self) -> int:
        return self.mask.shape[-3] * self.mask.shape[-2]

    @cached_property
    def _read(self) -> float:
        """Two answers for one wait for the device: a sum that is finite if every number is, times
        whether the mask is True everywhere (0: it is not; 0·∞ is NaN).
        """
        if not self.runs.numel():
            return 0.0
        total = _telling("reward", self.reward)
        for name in READ:
            tensor = getattr(self, name)
            if tensor is not None:
                total = total + _telling(name, tensor)
        return float(total.detach() * self.mask.view(torch.uint8).amin())

    def _refuse_what_is_not_finite(self) -> None:
        """Raise `CourseError` for the first number that is used and not finite, if there is one."""
        everywhere = torch.ones((), dtype=torch.bool, device=self.mask.device)
        used = {
            "reward": everywhere,
            "log_prob": self.mask,
            "sampler_log_prob": self.mask,
            "ref_log_prob": self.mask,
            "value": self.mask,
            "bootstrap": everywhere if self.truncated is None else self.truncated & self.exists,
            "greedy_reward": everywhere,
            "components": self.exists.unsqueeze(-1),
        }
        for name, where in used.items():
            tensor = getattr(self, name)
            if tensor is not None:
                self._refuse(name, tensor, ~torch.isfinite(tensor) & where, "a finite number")
        if self.kl_coef is not None:
            usable = torch.isfinite(self.kl_coef) & (self.kl_coef >= 0)
            self._refuse("kl_coef", self.kl_coef, ~usable, "a finite number ≥ 0")
        for name in DISTRIBUTIONS:
            log_dist = getattr(self, name)
            if log_dist is not None:
                where = read_places(log_dist, self.mask).unsqueeze(-1)
                bad = (log_dist.isnan() | (log_dist == torch.inf)) & where
                self._refuse(name, log_dist, bad, "a log-probability, which may be -inf")
        size = self.reward.abs().flatten(-3)  # [..., Q·G·T]
        if not bool(torch.isfinite(size.sum(-1)).all()):
            over = ~torch.isfinite(size.sum(-1, keepdim=True)) & (size == size.amax(-1, True))
            allowed = "a number small enough that the sum over the run is finite"
            self._refuse("reward", self.reward, over.view_as(self.reward), allowed)

    def _refuse(self, name: str, tensor: Tensor, bad: Tensor, allowed: str) -> None:
        """Raise `NotFinite` for the first place where `bad` is True."""
        places = bad.nonzero()
        if len(places):
            index = tuple(places[0].tolist())
            got = f"{tensor[index].item()} at index {index}"
            runs = runs_with(bad, len(self.runs))
            raise NotFinite(f"rollout.{name}: got {got}; allowed is {allowed}", runs)

    def without(self, runs: Tensor) -> Rollout:
        """The same with 0 for every number of the runs `runs` [...] bool, which are given up; what
        was sampled (`data`, the masks) stays.
        """

        def blank(tensor: Tensor) -> Tensor:
            lost = runs.view(*runs.shape, *(1,) * (tensor.dim() - runs.dim()))
            return torch.where(lost, torch.zeros_like(tensor), tensor)

        changes: dict[str, Any] = {
            f.name: blank(tensor)
            for f in fields(self)
            if isinstance(tensor := getattr(self, f.name), Tensor) and tensor.is_floating_point()
        }
        return replace(self, **changes)

    def prompts(self, index: Tensor) -> Rollout:
        """The minibatch of the prompts `index` [n], cut along Q."""
        axis = len(self.runs)

        def take(tensor: Tensor) -> Tensor:
            return tensor.index_select(axis, index)

        changes: dict[str, Any] = {
            f.name: take(getattr(self, f.name))
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor) and f.name != "kl_coef"
        }
        data = {name: take(tensor) for name, tensor in self.data.items()}
        part = replace(self, **changes, data=data)
        # known already: a part of what is whole is whole, and nobody waits for it again
        vars(part)["is_whole"] = self.is_whole
        return part


@dataclass(frozen=True)
class Policy:
    """The current policy evaluated on a rollout's tokens, differentiable in its parameters.

    - `log_prob` [..., Q, G, T]: log-probabilities of the sampled tokens, in nats;
    - `log_dist` [..., Q, G or 1, T or 1, V]: of all tokens, for exact KL and entropy;
    - `value` [..., Q, G, T]: the critic's estimate for the state before each token.
    """

    log_prob: Tensor
    log_dist: Tensor | None = None
    value: Tensor | None = None

    def check(self, rollout: Rollout) -> None:
        """Raise `CourseError` if a shape differs from the rollout's.

        Broadcasting might accept another shape and compute something else.
        """
        shape = rollout.reward.shape
        _tensor("policy.log_prob", self.log_prob, "[..., Q, G, T]")
        _same_shape("policy.log_prob", self.log_prob, shape)
        if self.value is not None:
            _tensor("policy.value", self.value, "[..., Q, G, T]")
            _same_shape("policy.value", self.value, shape)
        _broadcasts("policy.log_dist", self.log_dist, shape)
        for sampled in (rollout.old_log_dist, rollout.ref_log_dist):
            _same_vocabulary("policy.log_dist", self.log_dist, sampled)

    def widened(self) -> Policy:
        """A copy with float16 and bfloat16 tensors in float32; gradients flow back."""
        narrow = {
            name: tensor.float()
            for name, tensor in vars(self).items()
            if tensor is not None and tensor.dtype in NARROW
        }
        return replace(self, **narrow) if narrow else self

    @property
    def entropy(self) -> Tensor:
        """Entropy of the next-token distribution [..., Q, G or 1, T or 1], in nats.

        Raises `CourseError` without `log_dist`. eq:token-entropy
        """
        if self.log_dist is None:
            raise CourseError(
                "policy.log_dist: got None; allowed is the full distribution, which entropy needs"
            )
        return entropy(self.log_dist)

    def entropy_where(self, mask: Tensor) -> Tensor:
        """`entropy` at the places that `mask` [..., Q, G, T] uses; 0 elsewhere, also for NaN."""
        if self.log_dist is None:
            return self.entropy
        return entropy(where_read(self.log_dist, mask))


def entropy(log_dist: Tensor) -> Tensor:
    """−Σ_v π_v log π_v: log-probabilities [..., V] → [...], in nats; 0·log 0 counts as 0.

    Rows of zeros, which `where_read` puts at unused places, give 0.
    """
    return -(log_dist.exp() * log_dist.clamp(min=torch.finfo(log_dist.dtype).min)).sum(-1)


def read_places(log_dist: Tensor, mask: Tensor) -> Tensor:
    """The places of `log_dist` that at least one chosen token uses: [..., Q, G or 1, T or 1] bool.

    `log_dist` is [..., Q, G or 1, T or 1, V]; `mask` [..., Q, G, T] marks the chosen tokens.
    """
    for axis in (-2, -1):
        if log_dist.shape[axis - 1] == 1 and mask.shape[axis] != 1:
            mask = mask.any(axis, keepdim=True)
    return mask


def where_read(log_dist: Tensor, mask: Tensor) -> Tensor:
    """`log_dist` [..., Q, G or 1, T or 1, V] with zeros at the places that no chosen token uses.

    Those places may hold NaN. They are replaced before any arithmetic, since NaN · 0 is NaN.
    """
    read = read_places(log_dist, mask).unsqueeze(-1)
    return torch.where(read, log_dist, torch.zeros_like(log_dist))


def runs_with(bad: Tensor, runs: int) -> Tensor:
    """[...] bool: the runs in which `bad` [..., *rest], with that many run axes, is True
    somewhere.
    """
    return bad.flatten(runs).any(-1) if bad.dim() > runs else bad


def on_last_token(reward: Tensor, mask: Tensor) -> Tensor:
    """One reward per sample [..., Q, G] → rewards per token [..., Q, G, T] (outcome supervision).

    The reward is on the last token that the policy chose; all others are 0. In a sample without a
    chosen token it is on the first place, where it has no effect.
    """
    if mask.shape[-1] == 1:
        return reward.unsqueeze(-1)
    last = mask.cumsum(-1).argmax(-1, keepdim=True)  # where the count first reaches its maximum
    nothing = torch.zeros(mask.shape, dtype=reward.dtype, device=reward.device)
    return nothing.scatter(-1, last, reward.unsqueeze(-1))


def _telling(name: str, tensor: Tensor) -> Tensor:
    """One number that is finite only if every number of this field is; cheap, as every step needs
    it.
    """
    if name == "reward":
        return tensor.abs().sum()  # absolute: then no partial sum overflows either
    if name == "kl_coef":
        return tensor.sqrt().sum()  # the root is NaN for a negative coefficient
    return tensor.amax() if name in DISTRIBUTIONS else tensor.sum()  # the largest: −inf is allowed


def _tensor(field: str, value: object, shape: str, *, bools: bool = False) -> None:
    """Raise `CourseError` unless `value` is a floating-point tensor (or bool, with `bools`)."""
    if isinstance(value, Tensor) and (
        value.dtype == torch.bool if bools else value.is_floating_point()
    ):
        return
    require(isinstance(value, Tensor), field, value, f"a tensor {shape}")
    assert isinstance(value, Tensor)
    if bools:
        require(value.dtype == torch.bool, field, value.dtype, "torch.bool")
    else:
        require(value.is_floating_point(), field, value.dtype, "a floating-point type")


def _same_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:  # said only where it is needed: this runs at every step
        allowed = f"the shape {tuple(shape)} that rollout.reward asks for"
        require(False, name, tuple(tensor.shape), allowed)


def _broadcasts(name: str, tensor: Tensor | None, shape: torch.Size) -> None:
    """Raise `CourseError` unless the axes of a distribution before V fit [..., Q, G, T]."""
    if tensor is None:
        return
    _tensor(name, tensor, "[..., Q, G or 1, T or 1, V] or None")
    fits = tensor.dim() == len(shape) + 1 and tensor.shape[:-3] == shape[:-2]
    group, tokens = tensor.shape[-3:-1] if fits else (0, 0)
    if group not in (1, shape[-2]) or tokens not in (1, shape[-1]):
        allowed = f"[..., Q, G or 1, T or 1, V] for [..., Q, G, T] = {tuple(shape)}"
        require(False, name, tuple(tensor.shape), allowed)


def _same_vocabulary(name: str, log_dist: Tensor | None, other: Tensor | None) -> None:
    """Raise `CourseError` if two distributions differ in V, which broadcasting might hide."""
    if log_dist is not None and other is not None and log_dist.shape[-1] != other.shape[-1]:
        allowed = f"the rollout's V = {other.shape[-1]} on the last axis"
        require(False, name, tuple(log_dist.shape), allowed)


def _leads_with_prompts(name: str, tensor: object, shape: torch.Size) -> None:
    leading = shape[:-2]
    if isinstance(tensor, Tensor) and tensor.shape[: len(leading)] == leading:
        return
    wanted = f"leads with [..., Q] = {tuple(leading)}"
    require(isinstance(tensor, Tensor), name, tensor, f"a tensor that {wanted}")
    assert isinstance(tensor, Tensor)
    require(False, name, tuple(tensor.shape), f"a shape that {wanted}")
