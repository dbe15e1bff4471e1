"""Aggregation: the weight w of each token in the objective, from the mask [..., Q, G, T]."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.errors import require_flag, require_number
from course.parts.base import Part, Scope


@dataclass(frozen=True)
class Aggregation(Part):
    """mask and generation limit (in tokens) → weight w per token, [..., Q, G, T].

    The mask (bool) is False for every token of a sample that the filter dropped. The mean over
    samples runs over the N samples that have a token left; with `count_empty` it runs over all Q·G,
    as in TRL. `symbol` is the LaTeX of the sum.
    """

    count_empty: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require_flag(f"{type(self).__name__}.count_empty", self.count_empty)

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def samples(self, mask: Tensor) -> Tensor:
        """N [..., 1, 1, 1], the number of samples that the mean over samples divides by."""
        if self.count_empty:
            return torch.full(
                (*mask.shape[:-3], 1, 1, 1), mask.shape[-3] * mask.shape[-2], device=mask.device
            )
        exists = mask if mask.shape[-1] == 1 else mask.any(-1, keepdim=True)
        return exists.sum((-3, -2), keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class SequenceSum(Aggregation):
    """Sum over the tokens of a sample, mean over samples: the policy gradient of whole answers.

    Source: Williams 1992. eq:sum-over-the-answer
    """

    symbol = r"\frac1N\sum_{i}\sum_{t=1}^{|o_i|}"
    plain = "1/N Σ_i Σ_t"

    reads = ("empty",)

    @property
    def scope(self) -> Scope:
        return "token" if self.count_empty else "batch"  # N counts the others

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype) / self.samples(mask)


@dataclass(frozen=True)
class SequenceMean(Aggregation):
    """Mean over the tokens of a sample, mean over samples: GRPO's 1/|o| (Shao et al. 2024, eq. 3).

    eq:one-over-length
    """

    symbol = r"\frac1N\sum_{i}\frac1{|o_i|}\sum_{t=1}^{|o_i|}"
    plain = "1/N Σ_i 1/|o_i| Σ_t"

    reads = ("empty",)

    @property
    def scope(self) -> Scope:
        return "sample" if self.count_empty else "batch"  # N counts the others

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype) / (mask.sum(-1, keepdim=True).clamp(min=1) * self.samples(mask))


@dataclass(frozen=True)
class TokenMean(Aggregation):
    """Mean over all tokens of the batch, so that long answers weigh more.

    Yu et al. 2025 (DAPO), eq. 12, divide by the tokens of each group; this divides by the tokens
    of the batch, as TRL and verl do. eq:token-mean-weight
    """

    scope, reads = "batch", ("length",)
    symbol = r"\frac1{\sum_i|o_i|}\sum_{i}\sum_{t=1}^{|o_i|}"
    plain = "1/Σ|o| Σ_i Σ_t"

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype) / mask.sum((-3, -2, -1), keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class GroupTokenMean(Aggregation):
    """Mean over all tokens of a group, mean over the N_q groups that have one.

    Long answers weigh more beside others to their prompt, and all prompts weigh alike. Source: Yu
    et al. 2025 (DAPO), eq. 8 for each prompt; Khatri et al. 2025 (ScaleRL) call it the prompt
    average.
    """

    scope, reads = "batch", ("length",)
    symbol = r"\frac1{N_q}\sum_{q}\frac1{\sum_{j\le G}|o_j|}\sum_{i\le G}\sum_{t=1}^{|o_i|}"
    plain = "1/N_q Σ_q 1/Σ_group|o| Σ_i Σ_t"

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        tokens = mask.sum((-2, -1), keepdim=True)  # of each group, [..., Q, 1, 1]
        groups = (tokens > 0).sum(-3, keepdim=True).clamp(min=1)
        return mask.to(dtype) / (tokens.clamp(min=1) * groups)


@dataclass(frozen=True)
class ConstantLength(Aggregation):
    """Sum over the tokens of a sample divided by a constant, then the mean over samples.

    `length` is the constant, in tokens; None takes the rollout's generation limit. Source: Liu et
    al. 2025 (Dr. GRPO), listing 1.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(
            "ConstantLength.length",
            self.length,
            "None or a positive number of tokens",
            above=0,
            whole=True,
            optional=True,
        )

    @property
    def latex(self) -> str:
        return rf"\frac1N\sum_{{i}}\frac1{{{self.length or 'L'}}}\sum_{{t=1}}^{{|o_i|}}"

    @property
    def text(self) -> str:
        return f"1/N Σ_i 1/{self.length or 'L'} Σ_t"

    reads = ("empty",)

    @property
    def scope(self) -> Scope:
        return "token" if self.count_empty else "batch"  # N counts the others

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype) / (self.samples(mask) * (self.length or limit))
