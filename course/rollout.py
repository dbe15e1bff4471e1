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

from course.errors import CourseError, require


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
    is 0 on padding. `limit` is the generation limit in tokens (default: T), the divisor of Dr.
    GRPO. `data` is the problem's own: what it needs to score the samples again. Its tensors lead
    with [..., Q].
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
            require(
                isinstance(getattr(self, name), Tensor),
                f"rollout.{name}",
                getattr(self, name),
                "a tensor [..., Q, G, T]",
            )
        shape = self.reward.shape
        require(
            len(shape) >= 3, "rollout.reward", tuple(shape), "at least the three axes [Q, G, T]"
        )
        require(
            min(shape[-3:]) > 0, "rollout.reward", tuple(shape), "no axis of length 0 among Q, G, T"
        )
        for name in ("log_prob", "mask", "ref_log_prob", "value"):
            _same_shape(f"rollout.{name}", getattr(self, name), shape)
        for name in ("truncated", "bootstrap"):
            _same_shape(f"rollout.{name}", getattr(self, name), shape[:-1])
        _same_shape("rollout.greedy_reward", self.greedy_reward, shape[:-2])
        _same_shape("rollout.kl_coef", self.kl_coef, shape[:-3])
        for name in ("old_log_dist", "ref_log_dist"):
            _broadcasts(f"rollout.{name}", getattr(self, name), shape)
        require(
            self.reward.is_floating_point(),
            "rollout.reward",
            self.reward.dtype,
            "a floating-point type",
        )
        require(
            self.mask.dtype == torch.bool,
            "rollout.mask",
            self.mask.dtype,
            "torch.bool, True where the policy chose the token",
        )
        cut = self.truncated
        require(
            cut is None or cut.dtype == torch.bool,
            "rollout.truncated",
            getattr(cut, "dtype", None),
            "torch.bool, True where cut",
        )
        require(
            self.limit is None or self.limit > 0,
            "rollout.limit",
            self.limit,
            "a positive number of tokens",
        )

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

    def check_values(self) -> None:
        """Refuse what would train on nonsense: rewards that are not finite, samples none of which
        has a token.
        """
        if not bool(
            torch.isfinite(self.reward.sum())
        ):  # one cheap reduction first: this runs at every step
            bad = (~torch.isfinite(self.reward)).nonzero()
            if len(bad):
                where = tuple(bad[0].tolist())
                raise CourseError(
                    f"rollout.reward: got {self.reward[where].item()} at index {where}; allowed is"
                    " a finite number"
                )
        if not bool(self.mask.flatten(-3).any(-1).all()):
            raise CourseError(
                "rollout.mask: got a run in which no token is the policy's own; allowed is at least"
                " one True per run"
            )

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
        _same_shape("policy.log_prob", self.log_prob, shape)
        _same_shape("policy.value", self.value, shape)
        _broadcasts("policy.log_dist", self.log_dist, shape)

    @property
    def entropy(self) -> Tensor:
        """[..., Q, G or 1, T or 1] entropy of the next-token distribution, in nats.

        Needs `log_dist`. eq:token-entropy
        """
        if self.log_dist is None:
            raise CourseError(
                "policy.log_dist: got None; allowed is the full distribution, which the entropy"
                " needs"
            )
        return -(
            self.log_dist.exp() * self.log_dist.clamp(min=torch.finfo(self.log_dist.dtype).min)
        ).sum(-1)


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


def _same_shape(name: str, tensor: Tensor | None, shape: torch.Size) -> None:
    if tensor is not None and tensor.shape != shape:
        require(
            False,
            name,
            tuple(tensor.shape),
            f"the shape {tuple(shape)} that rollout.reward asks for",
        )


def _broadcasts(name: str, tensor: Tensor | None, shape: torch.Size) -> None:
    if tensor is None:
        return
    fits = tensor.dim() == len(shape) + 1 and tensor.shape[:-3] == shape[:-2]
    fits = fits and all(
        have in (1, want) for have, want in zip(tensor.shape[-3:-1], shape[-2:], strict=True)
    )
    require(
        fits,
        name,
        tuple(tensor.shape),
        f"[..., Q, G or 1, T or 1, V] for [..., Q, G, T] = {tuple(shape)}",
    )
