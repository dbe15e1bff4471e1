"""Packed trees: every distinct token once, with the values and gradients of completions that each
stand alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers import close
from tests.tinylm.helpers import separate, tiny
from tinylm.fast.forward import hidden
from tinylm.fast.packing import Nodes, look_up, pack, tree, twins
from tinylm.model import Transformer
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY

POSITIONS = pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
RUNS = pytest.mark.parametrize("runs", [(), (3,), (2, 2)], ids=["alone", "three", "two by two"])


def ragged(*shape: int, letters: int = 2, seed: int = 0) -> Tensor:
    """Completions [..., T] of a few letters, so that beginnings agree; an end in a third of the
    places, and padding behind it.
    """
    drawn = torch.randint(letters + 1, shape, generator=torch.Generator().manual_seed(seed))
    drawn[drawn == letters] = END
    ended = (drawn == END).cumsum(-1) - (drawn == END).long()
    return torch.where(ended > 0, PAD, drawn)


def questions(*shape: int) -> Tensor:
    return torch.randint(len(CHARACTERS), shape, generator=torch.Generator().manual_seed(9))


def beginnings(tokens: Tensor) -> list[set[tuple[int, ...]]]:
    """Of each prompt's completions [Q, G, T]: what has to be computed, every different beginning
    behind which a token is drawn.
    """
    found = []
    for group in tokens.tolist():
        drawn = [[token for token in row if token != PAD] for row in group]
        found.append({tuple(row[:t]) for row in drawn for t in range(1, len(row))})
    return found


# ---------------------------------------------------------------- by hand


def test_the_tree_by_hand() -> None:
    """A prompt of two tokens p q, and two completions a b and c d: p q a b c d."""
    positions, mask = tree(2, 2, 2)
    assert positions.tolist() == [0, 1, 2, 3, 2, 3]
    want = ["p     ", "pq    ", "pqa   ", "pqab  ", "pq  c ", "pq  cd"]
    assert [
        "".join("pqabcd"[j] if seen else " " for j, seen in enumerate(row)) for row in mask.tolist()
    ] == want


def test_a_tree_without_branches_is_a_sequence() -> None:
    positions, mask = tree(3, 1, 4)
    assert torch.equal(positions, torch.arange(7))
    assert torch.equal(mask, torch.ones(7, 7, dtype=torch.bool).tril())
    positions, mask = tree(3, 5, 0)
    assert torch.equal(positions, torch.arange(3))
    assert torch.equal(mask, torch.ones(3, 3, dtype=torch.bool).tril())


def test_the_merged_tree_by_hand() -> None:
    """Prompt 8 9; completions 1 2 end, 1 2 3, 1 end, 4 5 end: the 1 is there once, 1 2 too, and
    what nobody draws behind is not.
    """
    prompt = torch.tensor([[8, 9]])
    tokens = torch.tensor([[[1, 2, END, PAD], [1, 2, 3, 7], [1, END, PAD, PAD], [4, 5, END, PAD]]])
    packed, before = pack(prompt, tokens)
    assert packed.unread == 1
    assert packed.row is not None
    assert packed.first is not None
    assert packed.tokens.tolist() == [8, 9, 1, 2, 3, 4, 5] or sorted(packed.tokens.tolist()) == [
        1,
        2,
        3,
        4,
        5,
        8,
        9,
    ]
    position = dict(zip(packed.tokens.tolist(), packed.positions.tolist(), strict=True))
    assert position == {8: 0, 9: 1, 1: 2, 2: 3, 3: 4, 4: 2, 5: 3}
    stands = packed.tokens[packed.row][0].tolist()  # the token at each place
    seen = {
        token: {stands[j] for j in range(len(stands)) if packed.mask[0, i, j]}
        for i, token in enumerate(stands)
    }
    assert seen == {
        8: {8},
        9: {8, 9},
        1: {8, 9, 1},
        2: {8, 9, 1, 2},
        3: {8, 9, 1, 2, 3},
        4: {8, 9, 4},
        5: {8, 9, 4, 5},
    }
    last = packed.tokens[packed.unread :][before][
        0
    ].tolist()  # the token whose state each token is drawn from
    assert [row[:n] for row, n in zip(last, (3, 4, 2, 3), strict=True)] == [
        [9, 1, 2],
        [9, 1, 2, 3],
        [9, 1],
        [9, 4, 5],
    ]


def test_a_completion_that_was_cut_hides_no_twin_that_goes_on() -> None:
    """Padding without an end before it, in the first of two that begin alike."""
    model, prompt = tiny(), questions(1, 4)
    tokens = torch.tensor([[[1, PAD, PAD], [1, 2, 3]]])
    want = separate(model, prompt, tokens)[tokens != PAD]
    for order in ([0, 1], [1, 0]):
        packed, before = pack(prompt, tokens[:, order])
        close(
            look_up(hidden(model, packed), before)[:, order][tokens != PAD],
            want,
            rtol=1e-12,
            atol=1e-12,
        )


def test_twins_are_the_first_that_began_alike() -> None:
    tokens = torch.tensor([[[1, 1], [2, 1], [1, 2], [2, 1], [1, 1]]])
    first = twins(torch.zeros(1, 5, dtype=torch.long), tokens[..., 0])
    assert first.tolist() == [[0, 1, 0, 1, 0]]
    assert twins(first, tokens[..., 1]).tolist() == [[0, 1, 2, 1, 0]]


def test_nodes_are_numbered_in_their_group_and_among_all() -> None:
    marks = torch.tensor(
        [[[False, True, True, False], [True, False, False, False], [False, False, False, False]]]
    )
    nodes = Nodes.of(marks)
    assert nodes.used.tolist() == [[[True, True], [True, False], [False, False]]]
    assert nodes.where[nodes.used].tolist() == [1, 2, 0]
    assert nodes.number[nodes.used].tolist() == [0, 1, 2]
    assert nodes.first.tolist() == [[0, 1, 2]]
    assert nodes.place[marks].tolist() == [0, 1, 0]


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("letters", [1, 2, 5])
def test_every_distinct_beginning_is_computed_once_and_nothing_else(letters: int) -> None:
    prompt, tokens = questions(6, 4), ragged(6, 5, 4, letters=letters)
    packed, before = pack(prompt, tokens)
    want = beginnings(tokens)
    assert packed.tokens.shape == (6 * 4 + sum(map(len, want)),)
    for q, group in enumerate(
        tokens.tolist()
    ):  # one row for each beginning, and different ones for different beginnings
        rows: dict[tuple[int, ...], set[int]] = {}
        for g, row in enumerate(group):
            for t, token in enumerate(row):
                if token != PAD:
                    rows.setdefault(tuple(row[:t]), set()).add(int(before[q, g, t]))
        assert all(len(each) == 1 for each in rows.values())
        assert len(set.union(*rows.values())) == len(rows)
    apart, _ = pack(prompt, tokens, merge=False)
    assert apart.tokens.shape == (6 * (4 + 5 * 3),)


def test_several_models_pad_to_the_one_with_most_rows() -> None:
    prompt, tokens = questions(2, 3, 4), ragged(2, 3, 5, 4)
    tokens[1] = torch.tensor([1, END, PAD, PAD])  # one beginning for each prompt
    packed, _ = pack(prompt, tokens)
    assert packed.tokens.shape == (2, 3 * 4 + sum(map(len, beginnings(tokens[0]))))


@POSITIONS
@RUNS
@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("merge", [False, True], ids=["prompt shared", "beginnings shared"])
@pytest.mark.parametrize("group", [1, 5])
def test_the_packed_tree_has_the_values_and_gradients_of_repeated_prompts(
    runs: tuple[int, ...], rotary: bool, limit: int, merge: bool, group: int
) -> None:
    model = tiny(runs, rotary=rotary, value=True)
    prompt, tokens = questions(*runs, 3, 4), ragged(*runs, 3, group, limit, seed=1)
    chosen = (tokens != PAD).unsqueeze(-1)
    packed, before = pack(prompt, tokens, merge=merge)
    mine, apart = (
        torch.where(chosen, each, 0.0)
        for each in (look_up(hidden(model, packed), before), separate(model, prompt, tokens))
    )
    close(mine, apart, rtol=1e-12, atol=1e-12)
    weigh = torch.randn(
        *runs,
        3,
        group,
        limit,
        VOCABULARY + 1,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    got, want = _gradients(model, mine, weigh * chosen), _gradients(model, apart, weigh * chosen)
    assert all(bool((gradient != 0).any()) for gradient in want)  # every weight takes part
    scale = max(float(gradient.abs().max()) for gradient in want)
    for a, b in zip(got, want, strict=True):
        close(a / scale, b / scale, rtol=0, atol=1e-12)


def _gradients(model: Transformer, states: Tensor, weigh: Tensor) -> tuple[Tensor, ...]:
    both = torch.cat(
        [torch.log_softmax(model.logits(states), -1), model.values(states).unsqueeze(-1)], -1
    )
    return torch.autograd.grad((weigh * both).sum(), model.parameters)


def test_looking_rows_up_adds_their_gradients_up() -> None:
    table = torch.randn(
        2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    index = torch.tensor([[[0, 4], [4, 4]], [[1, 2], [3, 0]]])
    got = look_up(table, index)
    for run in range(2):
        assert torch.equal(got[run], table[run][index[run]])
    (gradient,) = torch.autograd.grad(got.sum(), table)
    assert gradient[..., 0].tolist() == [[1, 0, 0, 0, 3], [1, 1, 1, 1, 0]]
