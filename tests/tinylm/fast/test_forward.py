"""The quick path is the plain model: values, gradients and second derivatives, packed and with a
cache, for one model and several, both kinds of positions, answers of any length.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from course.train.noise import Noise
from tests.helpers import close
from tests.tinylm.helpers import repeated, separate, tiny
from tinylm.fast.cache import extend, prefill
from tinylm.fast.forward import flops_per_token, hidden
from tinylm.fast.packing import Packed, sequences
from tinylm.model import ModelSettings, Transformer
from tinylm.sampling import sample
from tinylm.scoring import (
    log_dists_and_values,
    log_probs,
    states_before,
    values,
)
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY

POSITIONS = pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
RUNS = pytest.mark.parametrize("runs", [(), (3,), (2, 2)], ids=["alone", "three", "two by two"])
SIZES = pytest.mark.parametrize(("group", "limit"), [(1, 4), (5, 1), (5, 4)])


def draw(*shape: int, below: int = len(CHARACTERS), seed: int = 0) -> Tensor:
    """Random tokens."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def answers(*shape: int, seed: int = 1) -> Tensor:
    """Random completions of 1 to T tokens, few of them different at first, so that many begin
    alike; some end, some are cut.
    """
    tokens = draw(*shape, below=3, seed=seed)
    length = draw(*shape[:-1], below=shape[-1] + 1, seed=seed + 1).unsqueeze(-1)
    place = torch.arange(shape[-1])
    tokens = torch.where(place == length, END, tokens)
    return torch.where(place > length, PAD, tokens)


def derivatives(values: Sequence[Tensor], model: Transformer) -> list[Tensor]:
    """Of a function of the values that treats each differently: the gradient, and a product of the
    second derivative with a vector, weight by weight.
    """
    mixed = sum(
        (each.sin() * torch.linspace(0.5, 2, each.numel()).view_as(each)).sum() for each in values
    )
    assert isinstance(mixed, Tensor)
    first = torch.autograd.grad(
        mixed, model.parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    along = torch.stack(
        [(g * torch.linspace(-1, 1, g.numel(), dtype=g.dtype).view_as(g)).sum() for g in first]
    ).sum()
    second = torch.autograd.grad(along, model.parameters, allow_unused=True, materialize_grads=True)
    return [*(g.detach() for g in first), *second]


# ---------------------------------------------------------------- plain = fast


@POSITIONS
@RUNS
@SIZES
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_log_probs_and_values_are_the_plain_ones_with_both_derivatives(
    runs: tuple[int, ...], rotary: bool, group: int, limit: int, temperature: float
) -> None:
    model = tiny(runs, rotary=rotary, value=True)
    prompt, tokens = draw(*runs, 3, 4), answers(*runs, 3, group, limit)
    mask = tokens != PAD
    fast = log_probs(model, prompt, tokens, temperature=temperature)
    plain = model.log_probs(repeated(prompt, tokens), tokens, temperature)
    assert fast.shape == tokens.shape
    assert bool((fast[~mask] == 0).all())
    assert bool((fast[mask] < 0).all())
    close(fast.detach(), plain.detach(), rtol=1e-11)

    _, judged = log_dists_and_values(model, prompt, tokens, temperature=temperature)
    alone = values(model, prompt, tokens)
    truth = model.values(separate(model, prompt, tokens))
    close(judged[mask].detach(), truth[mask].detach(), rtol=1e-11)
    close(alone[mask].detach(), truth[mask].detach(), rtol=1e-11)

    got = derivatives([fast, torch.where(mask, judged, 0.0)], model)
    want = derivatives([plain, torch.where(mask, truth, 0.0)], model)
    count = len(model.parameters)
    for order in (slice(0, count), slice(count, None)):
        scale = max(float(each.abs().max()) for each in want[order])
        assert scale > 0
        for mine, theirs in zip(got[order], want[order], strict=True):
            close(mine / scale, theirs / scale, rtol=0, atol=1e-11)


@POSITIONS
@RUNS
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_sampled_with_a_cache_has_the_plain_models_log_probs(
    runs: tuple[int, ...], rotary: bool, temperature: float
) -> None:
    model = tiny(runs, rotary=rotary)
    prompt = draw(*runs, 3, 4)
    made = sample(model, prompt, 40, 5, Noise(runs, dtype=torch.float64), temperature=temperature)
    plain = model.log_probs(repeated(prompt, made.tokens), made.tokens, temperature)
    close(made.log_prob, plain.detach(), rtol=1e-11)
    assert bool(made.mask.all(-1).any())
    assert bool((~made.mask).any())  # some are cut, some end


@POSITIONS
def test_in_bfloat16_both_are_float32_up_to_bfloat16s_rounding(rotary: bool) -> None:
    model = tiny(rotary=rotary, dtype=torch.float32)
    prompt, tokens = draw(8, 4), answers(8, 5, 4)
    exact = model.log_probs(repeated(prompt, tokens), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        fast = log_probs(model, prompt, tokens)
        plain = model.log_probs(repeated(prompt, tokens), tokens)
    for each in (fast, plain):
        error = (each - exact).abs().max()
        assert each.dtype == torch.float32
        assert 1e-4 < error < 0.2  # 8 bits: .004 per product


# ---------------------------------------------------------------- the pieces


def whole(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """States of whole sequences [*runs, B, L], each token seeing those before it."""
    rows, length = tokens.shape[-2:]
    return hidden(model, sequences(tokens, length)).unflatten(-2, (length, rows)).transpose(-2, -3)


def test_a_token_sees_what_the_mask_shows_it_and_nothing_else() -> None:
    """By derivatives: a state depends on exactly those embeddings that it may see."""
    model, length = tiny(layers=1), 5
    mask = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        dtype=torch.bool,
    )
    tokens = torch.arange(length).unsqueeze(
        0
    )  # all different, so that rows of the embedding are places
    places = torch.arange(length)
    got = hidden(model, Packed(tokens.flatten(), places, 0, places, mask)).unsqueeze(0)
    for place in range(length):
        (slope,) = torch.autograd.grad(
            got[0, place, 0], model.weights["embedding"], retain_graph=True
        )
        assert torch.equal(slope[:length].abs().sum(-1) > 0, mask[place])


@POSITIONS
@RUNS
def test_cached_states_are_uncached_ones(runs: tuple[int, ...], rotary: bool) -> None:
    model, (prompts, width, group, limit) = tiny(runs, rotary=rotary), (2, 4, 3, 5)
    prompt, tokens = (
        draw(*runs, prompts, width),
        draw(*runs, prompts, group, limit, below=VOCABULARY, seed=1),
    )
    want = separate(model, prompt, tokens)
    state, cache = prefill(model, prompt)
    close(state.unsqueeze(-2).expand_as(want[..., 0, :]), want[..., 0, :], atol=1e-12)
    each = (
        torch.arange(prompts * group).unflatten(0, (prompts, group)).expand(*runs, -1, -1)
    )  # every completion a row of its own
    path, own = each[..., None][..., :0], []
    for step in range(limit - 1):
        path = torch.cat([path, (step * prompts * group + each).unsqueeze(-1)], -1)
        state, own = extend(
            model, tokens[..., step].flatten(-2), path, each.flatten(-2), cache, own
        )
        close(state.unflatten(-2, (prompts, group)), want[..., step + 1, :], atol=1e-12)


def test_arithmetic_is_counted_as_torch_counts_it() -> None:
    settings, length = ModelSettings(16, 2, 4, 40, context=12), 9
    model = Transformer(settings)
    with FlopCounterMode(display=False) as counter:
        model.logits(whole(model, draw(1, length)))
    assert counter.get_total_flops() == length * flops_per_token(settings, length)


@POSITIONS
def test_bfloat16_products_round_by_about_their_precision(rotary: bool) -> None:
    model = tiny(rotary=rotary, dtype=torch.float32, value=True)
    prompt, tokens = draw(2, 4), draw(2, 3, 4, seed=1)
    want, want_values = log_dists_and_values(model, prompt, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        got, values = log_dists_and_values(model, prompt, tokens)
    assert got.dtype == torch.float32
    assert values.dtype == torch.float32
    error = (got - want)[..., : len(CHARACTERS)].abs().max()
    assert 1e-5 < error < 0.2  # it is bfloat16 (8 bits: .004 per product) and it is the same model
    gradients = torch.autograd.grad(got[..., 0].sum() + values.sum(), model.parameters)
    exact = torch.autograd.grad(want[..., 0].sum() + want_values.sum(), model.parameters)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_gradients_have_the_same_bits_with_two_threads_every_time() -> None:
    """Scattered additions would not: their order is that of the threads."""
    threads = torch.get_num_threads()
    model = Transformer(ModelSettings(128, 1, 4, 128, context=16))
    prompt, tokens = draw(64, 6), draw(64, 8, 4, seed=1)
    try:
        torch.set_num_threads(2)
        seen = [
            torch.autograd.grad(
                states_before(model, prompt, tokens).square().sum(),
                model.parameters,
                allow_unused=True,
            )
            for _ in range(6)
        ]
    finally:
        torch.set_num_threads(threads)
    for again in seen[1:]:
        assert all(a is None or torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
