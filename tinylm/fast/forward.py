"""The forward pass of `tinylm.model` over packed rows, with every common prefix computed once.

There is one row for each distinct prefix (see `packing.py`), so a linear layer is one (batched)
matrix product. Attention is explicit, because the fused kernel is slower at this size and has no
second derivative on the CPU, which TRPO needs. Shapes: N rows, which fill B sequences of L places;
H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from tinylm.fast.norm import norm
from tinylm.fast.packing import Packed, look_up
from tinylm.model import ModelSettings, Transformer, rotate
from tinylm.tasks import VOCABULARY


def hidden(model: Transformer, packed: Packed) -> Tensor:
    """The final hidden states [*runs, n, d] of the n rows whose states are read."""
    return (_compiled() if model.compiled else _hidden)(model, packed)


def _hidden(model: Transformer, packed: Packed) -> Tensor:
    return blocks(model, packed)[0]


@cache
def _compiled() -> Callable[[Transformer, Packed], Tensor]:
    return torch.compile(_hidden, dynamic=False)


def blocks(model: Transformer, packed: Packed) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The final hidden states [*runs, n, d] of the rows that are read, and all keys and values.

    Keys and values come as one pair for each layer, each [*runs, B, H, L, d/H].
    """
    x = embed(model, packed.tokens, packed.positions)  # [*runs, N, d]
    hide = torch.zeros(packed.mask.shape, dtype=x.dtype, device=x.device)
    hide = hide.masked_fill(~packed.mask, -torch.inf).unsqueeze(-3)  # [..., 1, L, L] for all heads
    last = model.settings.layers - 1
    keys, values = [], []
    for i in range(model.settings.layers):
        # rows → places, where attention happens: each [*runs, B, H, L, d/H]
        at_places = packed.spread(apply_weight(model, f"{i}.qkv", norm(x)))
        q, k, v = heads(model, at_places, packed.places)
        keys.append(k)
        values.append(v)
        scores = (q @ k.transpose(-1, -2)).add_(hide)
        mixed = torch.softmax(scores, -1) @ v
        # places → rows; after the last attention only the rows that are read are needed
        start = packed.unread if i == last else 0
        x = rest_of_block(model, i, x[..., start:, :], packed.collect(side_by_side(mixed), start))
    return norm(x), keys, values


def embed(model: Transformer, tokens: Tensor, positions: Tensor) -> Tensor:
    """Embed tokens [*runs, N] at positions [N] or [*runs, N] → [*runs, N, d]."""
    x = look_up(model.weights["embedding"], tokens)
    if model.settings.rotary:
        return x
    return x + look_up(model.weights["positions"], positions.expand_as(tokens))


def apply_weight(model: Transformer, name: str, x: Tensor) -> Tensor:
    """Multiply x [*runs, ..., n] by the named weight [*runs, n, m] → [*runs, ..., m].

    It is one matrix product for each run.
    """
    weight, runs = model.weights[name], len(model.runs)
    if not runs:
        return x @ weight
    return torch.unflatten(x.flatten(runs, -2) @ weight, -2, x.shape[runs:-1])


def heads(model: Transformer, parts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split [*runs, B, L, 3d] into queries, keys and values, each [*runs, B, H, L, d/H].

    `positions` [L] or [*runs, B, L] are for rotary embeddings. The queries are already divided by
    √(d/H).
    """
    count = model.settings.heads
    size = model.settings.width // count
    q, k, v = (part.unflatten(-1, (count, size)).transpose(-2, -3) for part in parts.chunk(3, -1))
    if model.settings.rotary:
        cos, sin = (table[positions].unsqueeze(-3) for table in model.angles)  # for all heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return q * size**-0.5, k, v


def side_by_side(mixed: Tensor) -> Tensor:
    """Concatenate the heads' results [*runs, B, H, L, d/H] → [*runs, B, L, d]."""
    return mixed.transpose(-2, -3).flatten(-2)


def rest_of_block(model: Transformer, layer: int, x: Tensor, mixed: Tensor) -> Tensor:
    """Rows x and their attention outputs `mixed`, both [*runs, N, d] → the block's output."""
    x = x + apply_weight(model, f"{layer}.out", mixed)
    inner = torch.relu_(apply_weight(model, f"{layer}.up", norm(x)))
    return x.add_(apply_weight(model, f"{layer}.down", inner))  # the norm has not kept x


def flops_per_token(settings: ModelSettings, length: int, *, read: bool = True) -> float:
    """Floating-point operations of one token's forward pass, with attention to `length` tokens.

    A multiply-add counts as 2. `read` False is for a token whose final state is not read: its pass
    ends with the keys and values of the last block.
    """
    d, h = settings.width, settings.hidden
    matrices = settings.layers * (4 * d * d + 2 * d * h) + d * VOCABULARY
    if not read:
        matrices -= d * d + 2 * d * h + d * VOCABULARY
    return 2.0 * (matrices + settings.layers * 2 * d * length)


__all__ = ["apply_weight", "blocks", "embed", "flops_per_token", "heads", "hidden", "rest_of_block"]
