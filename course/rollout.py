"""What was sampled (`Rollout`) and what the policy says of it now (`Policy`): all that an estimator
ever sees.

Every tensor ends in the axes [..., Q, G, T]: independent runs, prompts, samples of one prompt (the
group), tokens. A bandit is the case T = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from course.errors import CourseError, require, require_number

NARROW = (torch.float16, torch.bfloat16)  # too few digits for means, squares and weights
# how many of the last axes of [..., Q, G, T] a tensor of the rollout does not have
AXES_MISSING = {
    "log_prob": 0,
    "mask": 0,
    "ref_log_prob": 0,
    "value": 0,
    "truncated": 1,
    "bootstrap": 1,
    "greedy_reward": 2,
    "kl_coef": 3,
}


@dataclass(frozen=True)
class Rollout:
    """Samples of a policy, with everything about them that does not change while the policy is
    updated.

    Shapes: `reward`, `log_prob`, `mask` are [..., Q, G, T]. Optional ones: `ref_log_prob`, `value`
    [..., Q, G, T]; `greedy_reward` [..., Q]; `truncated` [..., Q, G] (bool) and `bootstrap` [...,
    Q, G], the value of the state after the last token of a truncated sample; `old_log_dist`,
    `ref_log_dist` [..., Q, G or 1, T or 1, V], log-probabilities over every token; `kl_coef` [...],
    the adaptive coefficient of this moment. Log-probabilities are in nats.

    `log_prob` belongs to the distribution the tokens were really drawn from (temperature and top-k
    included). `mask` is True where the policy chose the token: prompts, padding and other speakers'
    turns are False. `reward` may sit on any token, also on one that the policy did not choose; it
    is 0 on padding. Whatever else is stored where the mask is False may be anything, also NaN. A
    sample with no chosen token at all is no sample (`exists`). `limit` is the generation limit in
    tokens (default: T), the divisor of Dr. GRPO. `data` is the problem's own: what it needs to
    score the samples again. Its tensors lead with [..., Q].
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
    limit: int | None = None
    data: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reward", "log_prob", "mask"):
            bools = name == "mask"
            _tensor(f"rollout.{name}", getattr(self, name), "[..., Q, G, T]", bools=bools)
        shape = self.reward.shape
        require(
            len(shape) >= 3, "rollout.reward", tuple(shape), "at least the three axes [Q, G, T]"
        )
        require(
            min(shape[-3:]) > 0, "rollout.reward", tuple(shape), "no axis of length 0 among Q, G, T"
        )
        for name, missing in AXES_MISSING.items():
            tensor = getattr(self, name)
            if tensor is not None:
                bools = name in ("mask", "truncated")
                _tensor(f"rollout.{name}", tensor, "of its own shape or None", bools=bools)
                _same_shape(f"rollout.{name}", tensor, shape[: len(shape) - missing])
        for name in ("old_log_dist", "ref_log_dist"):
            _broadcasts(f"rollout.{name}", getattr(self, name), shape)
        _same_vocabulary("rollout.ref_log_dist", self.ref_log_dist, self.old_log_dist)
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

    @property
    def runs(self) -> torch.Size:
        """The run axes `...`."""
        return self.reward.shape[:-3]

    @property
    def total_reward(self) -> Tensor:
        """[..., Q, G] the reward of a sample: the sum over its tokens."""
        return self.reward[..., 0] if self.reward.shape[-1] == 1 else self.reward.sum(-1)

    @property
    def length(self) -> Tensor:
        """[..., Q, G] how many tokens of a sample the policy chose. eq:answer-length"""
        return self.mask.sum(-1)

    @property
    def exists(self) -> Tensor:
        """[..., Q, G] bool: the samples with a chosen token. One without is no sample: no mean,
        spread or test for silence counts it.
        """
        return self.mask[..., 0] if self.mask.shape[-1] == 1 else self.mask.any(-1)

    def widened(self) -> Rollout:
        """The same with every float16 or bfloat16 tensor in float32, where means, squares and
        weights neither overflow nor round to 0.
        """
        narrow = {
            f.name: getattr(self, f.name).float()
            for f in fields(self)
            if getattr(getattr(self, f.name), "dtype", None) in NARROW
        }
        return replace(self, **narrow) if narrow else self

    def check_values(self) -> None:
        """Refuse what would train on nonsense: numbers that are not finite where they are used,
        runs none of whose samples has a token.
        """
        if not self.is_finite:
            self._refuse_what_is_not_finite()
        if not bool(self.mask.flatten(-3).any(-1).all()):
            raise CourseError(
                "rollout.mask: got a run in which no token is the policy's own; allowed is at least"
                " one True per run"
            )

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite (or, of log-probabilities, −inf), and so is their sum."""
        return bool(torch.isfinite(self._overall()))

    def _overall(self) -> Tensor:
        """One number that is finite if every number is: cheap, since it is taken at every step."""
        total = self.reward.abs().sum()  # absolute, so that no part of the sum overflows either
        for tensor in (self.log_prob, self.ref_log_prob, self.value, self.bootstrap):
            if tensor is not None:
                total = total + tensor.sum()
        if self.greedy_reward is not None:
            total = total + self.greedy_reward.sum()
        if self.kl_coef is not None:
            total = total + self.kl_coef.sqrt().sum()  # NaN below 0
        for log_dist in (self.old_log_dist, self.ref_log_dist):
            if log_dist is not None:
                total = total + log_dist.amax()  # −inf is a log-probability
        return total

    def _refuse_what_is_not_finite(self) -> None:
        """Raise for the first number that is not finite and is used; return if there is none."""
        everywhere = torch.ones((), dtype=torch.bool, device=self.mask.device)
        used = {
            "reward": everywhere,
            "log_prob": self.mask,
            "ref_log_prob": self.mask,
            "value": self.mask,
            "bootstrap": everywhere if self.truncated is None else self.truncated & self.exists,
            "greedy_reward": everywhere,
        }
        for name, where in used.items():
            tensor = getattr(self, name)
            if tensor is not None:
                _refuse(name, tensor, ~torch.isfinite(tensor) & where, "a finite number")
        if self.kl_coef is not None:
            usable = torch.isfinite(self.kl_coef) & (self.kl_coef >= 0)
            _refuse("kl_coef", self.kl_coef, ~usable, "a finite number ≥ 0")
        for name in ("old_log_dist", "ref_log_dist"):
            log_dist = getattr(self, name)
            if log_dist is not None:
                where = read_places(log_dist, self.mask).unsqueeze(-1)
                bad = (log_dist.isnan() | (log_dist == torch.inf)) & where
                _refuse(name, log_dist, bad, "a log-probability, which may be -inf")
        if not bool(torch.isfinite(self.reward.abs().sum())):
            largest = self.reward.abs() == self.reward.abs().amax()
            allowed = "a number small enough that the sum over the batch is finite"
            _refuse("reward", self.reward, largest, allowed)

    def prompts(self, index: Tensor) -> Rollout:
        """The same rollout, of the prompts `index` [n] alone (a minibatch along Q)."""
        axis = len(self.runs)

        def take(tensor: Tensor) -> Tensor:
            return tensor.index_select(axis, index)

        changes: dict[str, Any] = {
            f.name: take(getattr(self, f.name))
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor) and f.name != "kl_coef"
        }
        data = {name: take(tensor) for name, tensor in self.data.items()}
        return replace(self, **changes, data=data)


@dataclass(frozen=True)
class Policy:
    """What the policy that is being trained says of a rollout's tokens, differentiable in its
    parameters.

    `log_prob` [..., Q, G, T] in nats; `log_dist` [..., Q, G or 1, T or 1, V], log-probabilities
    over every token (for exact KL and entropy); `value` [..., Q, G, T], the critic's estimate of
    the state before each token.
    """

    log_prob: Tensor
    log_dist: Tensor | None = None
    value: Tensor | None = None

    def check(self, rollout: Rollout) -> None:
        """Refuse a shape that is not the rollout's, which broadcasting would accept
        and get wrong.
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
        """The same with every float16 or bfloat16 tensor in float32; gradients flow back."""
        narrow = {
            name: tensor.float()
            for name, tensor in vars(self).items()
            if tensor is not None and tensor.dtype in NARROW
        }
        return replace(self, **narrow) if narrow else self

    @property
    def entropy(self) -> Tensor:
        """[..., Q, G or 1, T or 1] entropy of the next-token distribution, in nats.

        Needs `log_dist`. eq:token-entropy
        """
        if self.log_dist is None:
            raise CourseError(
                "policy.log_dist: got None; allowed is the full distribution, which entropy needs"
            )
        return entropy(self.log_dist)

    def entropy_where(self, mask: Tensor) -> Tensor:
        """`entropy` where a chosen token of `mask` [..., Q, G, T] reads it, and 0 elsewhere,
        whatever is stored there.
        """
        if self.log_dist is None:
            return self.entropy
        return entropy(where_read(self.log_dist, mask))


def entropy(log_dist: Tensor) -> Tensor:
    """−Σ_v π_v log π_v of log-probabilities [..., V] → [...] in nats; 0·log 0 = 0, and the 0 that
    stands for what nobody reads (`where_read`) has entropy 0.
    """
    return -(log_dist.exp() * log_dist.clamp(min=torch.finfo(log_dist.dtype).min)).sum(-1)


def read_places(log_dist: Tensor, mask: Tensor) -> Tensor:
    """[..., Q, G or 1, T or 1] bool: where a distribution `log_dist` [..., Q, G or 1, T or 1, V] is
    read, by at least one chosen token of `mask` [..., Q, G, T].
    """
    for axis in (-2, -1):
        if log_dist.shape[axis - 1] == 1 and mask.shape[axis] != 1:
            mask = mask.any(axis, keepdim=True)
    return mask


def where_read(log_dist: Tensor, mask: Tensor) -> Tensor:
    """`log_dist` [..., Q, G or 1, T or 1, V] with zeros instead of what nobody reads, which may
    be anything: selected before the arithmetic, since NaN · 0 is NaN.
    """
    read = read_places(log_dist, mask).unsqueeze(-1)
    return torch.where(read, log_dist, torch.zeros_like(log_dist))


def on_last_token(reward: Tensor, mask: Tensor) -> Tensor:
    """One reward per sample [..., Q, G], put on the last token that the policy chose: the rewards
    [..., Q, G, T] of outcome supervision, 0 elsewhere.

    A sample without a chosen token carries it on its first place, where it teaches nothing.
    """
    if mask.shape[-1] == 1:
        return reward.unsqueeze(-1)
    last = mask.cumsum(-1).argmax(-1, keepdim=True)  # the first place where the count is whole
    nothing = torch.zeros(mask.shape, dtype=reward.dtype, device=reward.device)
    return nothing.scatter(-1, last, reward.unsqueeze(-1))


def _tensor(field: str, value: object, shape: str, *, bools: bool = False) -> None:
    """Refuse what is no tensor, or one of another kind of numbers."""
    require(isinstance(value, Tensor), field, value, f"a tensor {shape}")
    assert isinstance(value, Tensor)
    if bools:
        require(value.dtype == torch.bool, field, value.dtype, "torch.bool")
    else:
        require(value.is_floating_point(), field, value.dtype, "a floating-point type")


def _same_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    allowed = f"the shape {tuple(shape)} that rollout.reward asks for"
    require(tensor.shape == shape, name, tuple(tensor.shape), allowed)


def _broadcasts(name: str, tensor: Tensor | None, shape: torch.Size) -> None:
    """A distribution lines up with [..., Q, G, T] axis by axis: 1 or the same."""
    if tensor is None:
        return
    _tensor(name, tensor, "[..., Q, G or 1, T or 1, V] or None")
    fits = tensor.dim() == len(shape) + 1 and tensor.shape[:-3] == shape[:-2]
    fits = fits and all(
        have in (1, want) for have, want in zip(tensor.shape[-3:-1], shape[-2:], strict=True)
    )
    allowed = f"[..., Q, G or 1, T or 1, V] for [..., Q, G, T] = {tuple(shape)}"
    require(fits, name, tuple(tensor.shape), allowed)


def _same_vocabulary(name: str, log_dist: Tensor | None, other: Tensor | None) -> None:
    """Two distributions over different numbers of tokens would be compared by broadcasting."""
    if log_dist is not None and other is not None:
        tokens = other.shape[-1]
        allowed = f"the rollout's V = {tokens} on the last axis"
        require(log_dist.shape[-1] == tokens, name, tuple(log_dist.shape), allowed)


def _leads_with_prompts(name: str, tensor: object, shape: torch.Size) -> None:
    leading = tuple(shape[:-2])
    require(isinstance(tensor, Tensor), name, tensor, f"a tensor that leads with {leading}")
    assert isinstance(tensor, Tensor)
    allowed = f"a shape that leads with [..., Q] = {leading}"
    require(tensor.shape[: len(leading)] == leading, name, tuple(tensor.shape), allowed)


def _refuse(name: str, tensor: Tensor, bad: Tensor, allowed: str) -> None:
    """Raise for the first place where `bad` is True."""
    places = bad.nonzero()
    if len(places):
        index = tuple(places[0].tolist())
        raise CourseError(
            f"rollout.{name}: got {tensor[index].item()} at index {index}; allowed is {allowed}"
        )
