"""Combinatorics of groups: compositions, multisets and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course.errors import require_number

CHUNK = 200_000  # cells per pass: the pass stays in the cache


def check_group_size(group_size: float, at_least: int = 1, infinite: bool = False) -> float:
    """Return `group_size`; raises `CourseError` unless it is a whole number ≥ `at_least`.

    `infinite` also allows math.inf, a float; so 4.0, which stands beside it in lists of group
    sizes, counts as 4.
    """
    if infinite and isinstance(group_size, float) and group_size == math.inf:
        return group_size
    if infinite and isinstance(group_size, float) and group_size.is_integer():
        group_size = int(group_size)
    allowed = f"a whole number of samples ≥ {at_least}" + (" or math.inf" if infinite else "")
    require_number("group_size", group_size, allowed, whole=True, at_least=at_least)
    return group_size


def compositions(total: int, kinds: int, device: torch.device | None = None) -> Tensor:
    """All ways to split `total` into `kinds` counts: [M, kinds].

    M = C(total + kinds − 1, total).
    """
    if total == 0:
        return torch.zeros((1, kinds), dtype=torch.long, device=device)
    counts = torch.full(
        (1, 1), total, device=device
    )  # the last column holds what is not yet distributed
    for _ in range(kinds - 1):
        ways = counts[:, -1] + 1
        parent = torch.arange(len(ways), device=device).repeat_interleave(ways)
        taken = torch.arange(len(parent), device=device) - (ways.cumsum(0) - ways)[parent]
        counts = torch.cat(
            [counts[parent, :-1], taken.unsqueeze(-1), (counts[parent, -1] - taken).unsqueeze(-1)],
            1,
        )
    return counts


def members(counts: Tensor, total: int) -> Tensor:
    """Counts [M, kinds], each row summing to `total` → the kind of each member, [M, total]."""
    kinds = torch.arange(counts.shape[1], device=counts.device).repeat(len(counts))
    return kinds.repeat_interleave(counts.flatten()).view(len(counts), total)


def log_multinomial(counts: Tensor, log_p: Tensor) -> Tensor:
    """log of N!/Π n_k! · Π p_k^{n_k}: counts [M, kinds] and log p [kinds] → [M]."""
    counts = counts.double()  # lgamma of integers would be computed in float32
    log_ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    return log_ways + (counts * log_p).sum(-1)


def chunks(total: int, cells_each: int, device: torch.device) -> Iterator[Tensor]:
    """The numbers 0 … total − 1 in pieces of about `CHUNK` cells."""
    step = max(1, CHUNK // cells_each)
    for start in range(0, total, step):
        yield torch.arange(start, min(start + step, total), device=device)


def mixed_digits(number: Tensor, sizes: list[int]) -> list[Tensor]:
    """Numbers below Π sizes → their digits in the mixed base `sizes`; the last varies fastest."""
    digits = []
    for size in reversed(sizes):
        digits.append(number % size)
        number = number // size
    return digits[::-1]
