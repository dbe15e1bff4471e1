"""Decoding one token at a time from cached keys and values, as sampling does.

The keys and values of a prompt are computed once for its group, and those of a common prefix once
for all completions that share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.fast import forward
from tinylm.fast.norm import norm
from tinylm.fast.packing import look_up, sequences
from tinylm.model import Transformer


@dataclass(frozen=True)
class Cache:
    """The prompts' keys and values, one pair for each layer, each [*runs, Q, H, P, d/H]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def prefill(model: Transformer, prompt: Tensor) -> tuple[Tensor, Cache]:
    """Prompts [*runs, Q, P] → the hidden state of the last token [*runs, Q, d], and the cache."""
    state, keys, values = forward.blocks(model, sequences(prompt, 1))
    # contiguous: every later step reads them as matrices, which else copies them each time
    kept = [tuple(each.contiguous() for each in both) for both in (keys, values)]
    return state, Cache(*kept)


def extend(
    model: Transformer,
    token: Tensor,
    path: Tensor,
    first: Tensor,
    prompt: Cache,
    own: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Add one token to every completion; it attends to its prompt and its completion so far.

    Completions with the same tokens so far share one row. `token` [*runs, N] holds the new rows'
    tokens. `path` [*runs, Q, M, t] holds, for each of a prompt's M distinct prefixes, the row
    numbers of its t tokens, counted over all steps. `first` [*runs, N] says which prefix each new
    row ends, counted as q·M + m. Returns the new rows' hidden states [*runs, N, d] and, for each
    layer, the keys and values of all rows so far [*runs, rows, 2d]: `own` of the next step.
    """
    count = model.settings.heads
    size = model.settings.width // count
    before = own[0].shape[-2] if own else 0
    steps = prompt.keys[0].shape[-2] + path.shape[-1] - 1
    position = torch.full((1,), steps, device=token.device)
    x = forward.embed(model, token, position)  # [*runs, N, d]
    kept = []
    for i in range(model.settings.layers):
        parts = forward.apply_weight(model, f"{i}.qkv", norm(x)).unsqueeze(-2)
        q, k, v = forward.heads(model, parts, position)  # each [*runs, N, H, 1, d/H]
        rows = torch.cat([k, v], -3).flatten(-3)  # [*runs, N, 2d]
        kept.append(torch.cat([own[i], rows], -2) if own else rows)
        # keys and values of each prefix's own tokens [*runs, Q, M, t, H, d/H], and the last query
        on_path = look_up(kept[-1], path).unflatten(-1, (2, count, size))
        k, v = on_path.unbind(-3)
        q = look_up(q.flatten(-3), path[..., -1] - before)
        q = q.unflatten(-1, (count, size))  # [*runs, Q, M, H, d/H]
        # attention scores on the prompt [*runs, Q, H, P, M] and on its own tokens
        # [*runs, Q, H, t, M]
        of_prompt = prompt.keys[i] @ q.movedim(-3, -1)
        of_own = (k * q.unsqueeze(-3)).sum(-1).movedim(-3, -1).transpose(-2, -3)
        shares = torch.softmax(torch.cat([of_prompt, of_own], -2), -2)
        on_prompt, on_own = shares.tensor_split([of_prompt.shape[-2]], -2)
        # attention's output with the heads concatenated: [*runs, Q, M, d]
        mixed = forward.side_by_side(on_prompt.mT @ prompt.values[i])
        on_own = on_own.transpose(-2, -3).movedim(-1, -3).unsqueeze(-1)  # [*runs, Q, M, t, H, 1]
        mixed = mixed + (on_own * v).sum(-3).flatten(-2)
        x = forward.rest_of_block(model, i, x, look_up(mixed.flatten(-3, -2), first))
    return norm(x), kept


__all__ = ["Cache", "extend", "prefill"]
