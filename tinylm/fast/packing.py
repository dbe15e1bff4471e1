"""Packing completions so that the prompt and every common prefix are computed only once.

The G completions of a prompt form a tree. Its trunk is the prompt, and two completions branch where
their tokens first differ. The tree is packed as one sequence with an attention mask: every node
appears once and attends to the nodes on its path from the root. Each prompt has its own tree, even
if two prompts are equal.
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

    `tokens` [*runs, N] and `positions` [N] or [*runs, N] belong to the rows. The final states of
    the first `unread` rows are not read; other rows only attend to them. `places` [L] or
    [*runs, B, L] are the positions of the places. `mask` [L, L] or [*runs, B, L, L] (bool) says
    which place attends to which. `row` [*runs, B, L] is the row that fills each place, and `first`
    [*runs, N] the place of each row, counted as b·L + l. Shorter sequences are padded with places
    that no row attends to. `row` and `first` are None if every place has a row of its own: row l·B
    + b.
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
        return torch.unflatten(rows, -2, (self.places.shape[-1], -1)).transpose(-2, -3)

    def collect(self, places: Tensor, start: int = 0) -> Tensor:
        """Places [*runs, B, L, c] → the rows from number `start` on, [*runs, N − start, c]."""
        if self.first is not None:
            return look_up(places.flatten(-3, -2), self.first[..., start:])
        return places.transpose(-2, -3).flatten(-3, -2)[..., start:, :]


def sequences(tokens: Tensor, read: int) -> Packed:
    """Independent causal sequences [*runs, B, L]; only the last `read` tokens' states are read."""
    rows, length = tokens.shape[-2:]
    places = torch.arange(length, device=tokens.device)
    mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    flat = tokens.transpose(-1, -2).flatten(-2)
    return Packed(flat, places.repeat_interleave(rows), (length - read) * rows, places, mask)


def pack(prompt: Tensor, tokens: Tensor, *, merge: bool = True) -> tuple[Packed, Tensor]:
    """Prompts [*runs, Q, P] and completions [*runs, Q, G, T] → the packed rows, and `before`.

    `before` [*runs, Q, G, T] is the row whose state predicts each token, counted from the first row
    that is read; it is undefined before padding. The last of the T tokens gets no row, because
    nothing is drawn after it. With `merge`, padding gets no row either. `merge` False gives every
    completion a branch of its own, padding included, so that the shapes do not depend on what was
    sampled, as compiled programs need. With G = 1 there is nothing to merge.
    """
    return (
        _merged(prompt, tokens)
        if merge and min(tokens.shape[-2:]) > 1
        else _unmerged(prompt, tokens)
    )


def _unmerged(prompt: Tensor, tokens: Tensor) -> tuple[Packed, Tensor]:
    """Pack the prompt as the trunk, with one separate branch for each of the G completions."""
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
    """Positions [L] and mask [L, L] of a prompt and G completions packed as one sequence.

    L = prompt + G·tokens. Every completion attends to the prompt and to itself, and its positions
    continue from the end of the prompt, as if it were the only completion.
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
    """Pack the tree whose branches separate where the tokens first differ.

    Node (g, t) represents all members with the same tokens up to t, of which g is the first.
    """
    (prompts, width), (group, limit) = prompt.shape[-2:], tokens.shape[-2:]
    device, runs, steps = prompt.device, prompt.shape[:-2], limit - 1
    inputs, asked = tokens[..., :-1], tokens[..., 1:] != PAD
    twin, alike = torch.zeros_like(inputs[..., 0]), []
    for step in range(steps):
        twin = twins(twin, inputs[..., step])
        alike.append(twin)
    same = torch.stack(alike, -1)  # [*runs, Q, G, T − 1]
    # True for a node if at least one of the members it represents continues after step t
    goes_on = torch.zeros_like(same).scatter_reduce(-2, same, asked.long(), "amax") > 0
    lead = goes_on & (same == torch.arange(group, device=device).unsqueeze(-1))
    # from here on `same` holds node numbers g·(T − 1) + t
    same = same * steps + torch.arange(steps, device=device)
    nodes = Nodes.of(lead.flatten(-2))
    member, step_of = nodes.where // steps, nodes.where % steps  # [*runs, Q, M]
    # a node attends to the nodes that represent its member at the same step or earlier
    stands = same.flatten(-2).gather(
        -1, (member.unsqueeze(-1) * steps + step_of.unsqueeze(-2)).flatten(-2)
    )
    seen = stands.unflatten(-1, (step_of.shape[-1], -1)) == nodes.where.unsqueeze(-2)
    seen &= (step_of.unsqueeze(-2) <= step_of.unsqueeze(-1)) & nodes.used.unsqueeze(-2)
    length = width + step_of.shape[-1]  # P places of the prompt, then M of the nodes
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
        """One entry per row: the trunk's by position, then the nodes'.

        [*runs or (), Q, P] and [*runs or (), Q, M] → [*runs, N].
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
    """The marked candidates of each group, numbered twice: by place in the group and by row.

    Each prompt has S candidates and M places, where M is the largest count of any prompt. There are
    N rows in all. `place` [*runs, Q, S] is each marked candidate's place. For each place, `where`
    [*runs, Q, M] is its candidate, `used` says whether it has one, and `number` is its row. `first`
    [*runs, N] is the place of each row, counted as q·M + m. N belongs to the run with the most
    rows; the other runs repeat a row that is not read.
    """

    place: Tensor
    where: Tensor
    used: Tensor
    number: Tensor
    first: Tensor

    @classmethod
    def of(cls, lead: Tensor) -> Self:
        """Number the candidates that are marked True in `lead` [*runs, Q, S]."""
        place, where = _numbered(lead)
        used = torch.arange(where.shape[-1], device=lead.device) < lead.sum(-1, keepdim=True)
        number, first = _numbered(used.flatten(-2))
        return cls(place, where, used, number.unflatten(-1, used.shape[-2:]), first)

    def places(self, stands: Tensor) -> Tensor:
        """The places of marked candidates `stands` [*runs, Q, ...], 0 to S − 1 → the same shape."""
        return self._read(self.place, stands)

    def rows(self, stands: Tensor) -> Tensor:
        """The rows of marked candidates `stands` [*runs, Q, ...], 0 to S − 1 → the same shape."""
        return self._read(self.number, self.places(stands))

    def _read(self, table: Tensor, index: Tensor) -> Tensor:
        return table.gather(-1, index.flatten(table.dim() - 1)).view_as(index)


def twins(twin: Tensor, token: Tensor) -> Tensor:
    """For each member of a group, the first member that has the same tokens so far.

    The twins one step earlier [..., G] and the next token [..., G] → the twins now [..., G].
    """
    group = token.shape[-1]
    key = twin * VOCABULARY + token
    member = torch.arange(group, device=token.device).expand_as(key)
    first = torch.full((*key.shape[:-1], group * VOCABULARY), group, device=token.device)
    return first.scatter_reduce(-1, key, member, "amin").gather(-1, key)


def _numbered(lead: Tensor) -> tuple[Tensor, Tensor]:
    """Number the True entries of `lead` [..., S] along the last axis.

    Returns each entry's number [..., S], undefined for a False entry, and the entry of each number
    [..., N]. N is the largest count, at least 1; rows with fewer entries end in zeros.
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
    """Read rows of each run's table [*runs, N, c] at `index` [*runs, ...] → [*runs, ..., c].

    The gradient of a row that is read several times is summed in a fixed order, whatever the number
    of threads.
    """
    runs = table.shape[:-2]
    if runs:
        shift = torch.arange(prod(runs), device=table.device) * table.shape[-2]
        index = index + shift.reshape(*runs, *(1,) * (index.dim() - len(runs)))
        table = table.flatten(0, -2)
    return torch.nn.functional.embedding(index, table)


__all__ = ["Nodes", "Packed", "look_up", "pack", "sequences", "tree", "twins"]
