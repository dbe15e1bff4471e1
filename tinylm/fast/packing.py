"""Which tokens one pass computes: what completions of a prompt share, the prompt and every common
beginning, is computed once.

G completions of a prompt are a tree. Its trunk is the prompt, and two completions part where their
tokens first differ. Packed as one sequence under a mask, every token of the tree is there once
and sees those on its way from the root. (Two prompts are two trees, also where they are equal.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor

from tinylm.tasks import PAD, VOCABULARY


@dataclass(frozen=True)
class Packed:
    """B sequences of L places each, and the N rows that are computed to fill them.

    `tokens` [*runs, N] and `positions` [N] or [*runs, N] of the rows; the first `unread` of them
    are seen by others and their final states are read by nobody. `places` [L] or [*runs, B, L] are
    positions, `mask` [L, L] or [*runs, B, L, L] (bool) says which place sees which. `row` [*runs,
    B, L] is the row that fills a place, and `first` [*runs, N] the place of a row, counted b·L + l;
    sequences of different length are filled up with places that nobody sees. Both are None where
    every place is a row of its own, place by place: row l·B + b.
    """

    tokens: Tensor
    positions: Tensor
    unread: int
    places: Tensor
    mask: Tensor
    row: Tensor | None = None
    first: Tensor | None = None

    def spread(self, rows: Tensor) -> Tensor:
        """Rows [*runs, N, c] → places [*runs, B, L, c]."""
        if self.row is not None:
            return look_up(rows, self.row)
        return rows.unflatten(-2, (self.places.shape[-1], -1)).transpose(-2, -3)

    def collect(self, places: Tensor, start: int = 0) -> Tensor:
        """Places [*runs, B, L, c] → rows from number `start` on [*runs, N − start, c]."""
        if self.first is not None:
            return look_up(places.flatten(-3, -2), self.first[..., start:])
        return places.transpose(-2, -3).flatten(-3, -2)[..., start:, :]


def sequences(tokens: Tensor, read: int) -> Packed:
    """Sequences [*runs, B, L] by themselves, each token seeing those before it; the states of the
    last `read` tokens are asked for.
    """
    rows, length = tokens.shape[-2:]
    places = torch.arange(length, device=tokens.device)
    mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    flat = tokens.transpose(-1, -2).flatten(-2)
    return Packed(flat, places.repeat_interleave(rows), (length - read) * rows, places, mask)


def pack(prompt: Tensor, tokens: Tensor, *, merge: bool = True) -> tuple[Packed, Tensor]:
    """Prompts [*runs, Q, P] and their completions [*runs, Q, G, T] → what to compute, and `before`
    [*runs, Q, G, T].

    `before` is the row, counted from the first one that is read, whose state comes before each
    token: what the token is drawn from; undefined before padding. Nothing is computed for the last
    of the T tokens, after which nothing is drawn, and where beginnings are merged,
    nothing for padding. `merge` False gives every completion a branch of its own, padding included,
    so that shapes do not depend on what was sampled (for compiled programs); so does G = 1.
    """
    return (
        _merged(prompt, tokens)
        if merge and min(tokens.shape[-2:]) > 1
        else _unmerged(prompt, tokens)
    )


def _unmerged(prompt: Tensor, tokens: Tensor) -> tuple[Packed, Tensor]:
    """The trunk and G branches that have nothing else in common."""
    (prompts, width), (group, limit) = prompt.shape[-2:], tokens.shape[-2:]
    steps = group * (limit - 1)
    places, mask = tree(width, group, limit - 1, prompt.device)
    flat = torch.cat([prompt, tokens[..., :-1].flatten(-2)], -1).transpose(-1, -2).flatten(-2)
    read = (
        torch.arange(prompts * (1 + steps), device=prompt.device)
        .unflatten(0, (-1, prompts))
        .t()
        .expand(*prompt.shape[:-1], -1)
    )
    trunk, branches = read.split([1, steps], -1)
    before = torch.cat(
        [
            trunk.unsqueeze(-1).expand(*tokens.shape[:-1], 1),
            branches.unflatten(-1, (group, limit - 1)),
        ],
        -1,
    )
    return (
        Packed(flat, places.repeat_interleave(prompts), (width - 1) * prompts, places, mask),
        before,
    )


def tree(
    prompt: int, group: int, tokens: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Positions [L] and mask [L, L] of one prompt and G completions packed as one sequence, L =
    prompt + G·tokens.

    Every completion sees the prompt and itself, and its positions count on from the prompt's end,
    as if it stood alone.
    """
    row = torch.arange(prompt + group * tokens, device=device)
    behind = row >= prompt
    step = torch.where(behind, (row - prompt) % max(tokens, 1), row)
    branch = torch.where(behind, (row - prompt) // max(tokens, 1), -1)
    positions = torch.where(behind, prompt + step, row)
    same = branch.unsqueeze(-1) == branch
    mask = (~behind & (row <= row.unsqueeze(-1))) | (behind & same & (step <= step.unsqueeze(-1)))
    return positions, mask


def _merged(prompt: Tensor, tokens: Tensor) -> tuple[Packed, Tensor]:
    """The tree whose branches part where tokens first differ.

    Node (g, t) represents all members that are alike up to token t.
    """
    (prompts, width), (group, limit) = prompt.shape[-2:], tokens.shape[-2:]
    device, runs, steps = prompt.device, prompt.shape[:-2], limit - 1
    inputs, asked = tokens[..., :-1], tokens[..., 1:] != PAD
    twin, alike = torch.zeros_like(inputs[..., 0]), []
    for step in range(steps):
        twin = twins(twin, inputs[..., step])
        alike.append(twin)
    same = torch.stack(alike, -1)  # [*runs, Q, G, T − 1]
    goes_on = (
        torch.zeros_like(same).scatter_reduce(-2, same, asked.long(), "amax") > 0
    )  # some member that is alike up to here does
    lead = goes_on & (same == torch.arange(group, device=device).unsqueeze(-1))
    same = same * steps + torch.arange(
        steps, device=device
    )  # from here on as a node's number, g·(T − 1) + t
    nodes = Nodes.of(lead.flatten(-2))
    member, step_of = nodes.where // steps, nodes.where % steps  # [*runs, Q, M]
    # a node sees those that stand for its member at their own step, if that is not later
    stands = same.flatten(-2).gather(
        -1, (member.unsqueeze(-1) * steps + step_of.unsqueeze(-2)).flatten(-2)
    )
    seen = stands.unflatten(-1, (step_of.shape[-1], -1)) == nodes.where.unsqueeze(-2)
    seen &= (step_of.unsqueeze(-2) <= step_of.unsqueeze(-1)) & nodes.used.unsqueeze(-2)
    length = width + step_of.shape[-1]
    mask = (
        torch.ones(length, length, dtype=torch.bool, device=device)
        .tril()
        .expand(*runs, prompts, -1, -1)
        .clone()
    )
    mask[..., width:, width:] = seen

    trunk = torch.arange(width, device=device)
    rows = trunk * prompts + torch.arange(prompts, device=device).unsqueeze(-1)  # [Q, P]
    row = torch.cat([rows.expand(*runs, -1, -1), width * prompts + nodes.number], -1)
    slot = torch.arange(prompts * length, device=device).unflatten(0, (prompts, length))
    place = torch.cat([trunk.expand(*runs, prompts, -1), width + step_of], -1)

    def in_order(trunk: Tensor, branches: Tensor) -> Tensor:
        """The trunk's place by place, then the nodes': [*runs or (), Q, P] and [*runs or (), Q, M]
        → [*runs, N].
        """
        return torch.cat(
            [
                trunk.mT.flatten(-2).expand(*runs, -1),
                branches.flatten(-2).expand(*runs, -1).gather(-1, nodes.first),
            ],
            -1,
        )

    packed = Packed(
        tokens=in_order(prompt, inputs.flatten(-2).gather(-1, nodes.where)),
        positions=in_order(place[..., :width], place[..., width:]),
        unread=(width - 1) * prompts,
        places=place,
        mask=mask,
        row=row,
        first=in_order(slot[:, :width], slot[:, width:]),
    )
    return packed, torch.cat(
        [rows[:, :1].unsqueeze(-1).expand(*runs, -1, group, 1), prompts + nodes.rows(same)], -1
    )


@dataclass(frozen=True)
class Nodes:
    """What is computed of each group, numbered twice: M places for each prompt, as many as the
    largest needs, and N rows in all.

    `place` [*runs, Q, S] of everything that is marked; `where` [*runs, Q, M] it stands, `used`
    [*runs, Q, M], and its row `number` [*runs, Q, M]; `first` [*runs, N] the place of each row,
    counted q·M + m. N is that of the run with most; others repeat a row that nobody reads.
    """

    place: Tensor
    where: Tensor
    used: Tensor
    number: Tensor
    first: Tensor

    @classmethod
    def of(cls, lead: Tensor) -> Self:
        """From the marks [*runs, Q, S]."""
        place, where = _numbered(lead)
        used = torch.arange(where.shape[-1], device=lead.device) < lead.sum(-1, keepdim=True)
        number, first = _numbered(used.flatten(-2))
        return cls(place, where, used, number.unflatten(-1, used.shape[-2:]), first)

    def places(self, stands: Tensor) -> Tensor:
        """The places of what was marked, by where it stands: `stands` [*runs, Q, ...] from 0 to S −
        1 → the same shape.
        """
        return self._read(self.place, stands)

    def rows(self, stands: Tensor) -> Tensor:
        """Their rows, as `places`."""
        return self._read(self.number, self.places(stands))

    def _read(self, table: Tensor, index: Tensor) -> Tensor:
        return table.gather(-1, index.flatten(table.dim() - 1)).view_as(index)


def twins(twin: Tensor, token: Tensor) -> Tensor:
    """For each member of a group the first one that begins with the same tokens: from what it was
    up to here [..., G], and the next token [..., G] → [..., G].
    """
    group = token.shape[-1]
    key = twin * VOCABULARY + token
    member = torch.arange(group, device=token.device).expand_as(key)
    first = torch.full((*key.shape[:-1], group * VOCABULARY), group, device=token.device)
    return first.scatter_reduce(-1, key, member, "amin").gather(-1, key)


def _numbered(lead: Tensor) -> tuple[Tensor, Tensor]:
    """What is marked [..., S] counted along the last axis: the number of each [..., S], and where
    each number is [..., N].

    N is the largest count, at least 1. The number of what is not marked is undefined; shorter
    rows end in zeros.
    """
    number = lead.cumsum(-1) - 1
    count = max(1, int(number[..., -1].max()) + 1)
    place = torch.arange(lead.shape[-1], device=lead.device).expand_as(lead)
    where = torch.zeros(*lead.shape[:-1], count + 1, dtype=torch.long, device=lead.device)
    return (
        number.clamp(min=0),
        where.scatter(-1, torch.where(lead, number, count), place)[..., :count],
    )


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of each run's table [*runs, N, c] by their numbers [*runs, ...] → [*runs, ..., c].

    The gradient adds up rows that were read several times in one fixed order, whatever the number
    of threads.
    """
    runs = table.shape[:-2]
    if runs:
        shift = torch.arange(prod(runs), device=table.device) * table.shape[-2]
        index = index + shift.reshape(*runs, *(1,) * (index.dim() - len(runs)))
        table = table.flatten(0, -2)
    return torch.nn.functional.embedding(index, table)


__all__ = ["Nodes", "Packed", "look_up", "pack", "sequences", "tree", "twins"]
