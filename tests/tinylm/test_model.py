"""The transformer against itself in plain loops, with a cache, and with several models in one
program. Trees: `test_packing.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course.errors import CourseError
from course.train.optim import per_run_dot
from tests.helpers import close, few_ulp
from tests.tinylm.helpers import WIDTH, reference_states, rows_of, separate, tiny
from tinylm.fast.cache import extend, prefill
from tinylm.fast.forward import flops_per_token, hidden
from tinylm.fast.norm import norm
from tinylm.fast.packing import Packed, sequences
from tinylm.model import PRESETS, ModelSettings, Transformer
from tinylm.scoring import log_dists, log_dists_and_values, states_before
from tinylm.tasks import CHARACTERS, VOCABULARY

POSITIONS = pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
RUNS = pytest.mark.parametrize("runs", [(), (3,), (2, 2)], ids=["alone", "three", "two by two"])


def draw(*shape: int, below: int = len(CHARACTERS), seed: int = 0) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def whole(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """States of whole sequences [*runs, B, L], each token seeing those before it."""
    rows, length = tokens.shape[-2:]
    return hidden(model, sequences(tokens, length)).unflatten(-2, (length, rows)).transpose(-2, -3)


# ---------------------------------------------------------------- what it computes


@POSITIONS
def test_states_are_those_of_the_transformer_in_plain_loops(rotary: bool) -> None:
    model = tiny(rotary=rotary, value=True)
    tokens = draw(3, 7, below=VOCABULARY)
    got = whole(model, tokens)
    weights = rows_of(model)
    for row in range(3):
        want = torch.tensor(
            reference_states(weights, model.settings, tokens[row].tolist()), dtype=torch.float64
        )
        close(got[row], want, rtol=1e-11, atol=1e-12)
        close(model.logits(got[row]), want @ model.weights["head"], rtol=1e-11, atol=1e-12)
        close(
            model.values(got[row]),
            (want @ model.weights["value"]).squeeze(-1),
            rtol=1e-11,
            atol=1e-12,
        )


@POSITIONS
def test_states_of_several_models_are_those_of_each_in_plain_loops(rotary: bool) -> None:
    model = tiny((2,), rotary=rotary, layers=1)
    tokens = draw(2, 2, 5)  # every model its own sequences
    got = whole(model, tokens)
    for run in range(2):
        for row in range(2):
            want = reference_states(rows_of(model, run), model.settings, tokens[run, row].tolist())
            close(got[run, row], want, rtol=1e-11, atol=1e-12)


def test_the_norm_and_its_first_two_derivatives_are_torchs() -> None:
    x = torch.randn(
        5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    weigh = torch.linspace(-1, 2, 30, dtype=torch.float64).view(5, 6)
    found = []
    for each in (norm, lambda x: torch.nn.functional.rms_norm(x, (6,), eps=1e-6)):
        y = each(x)
        (first,) = torch.autograd.grad((y.sin() * weigh).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first.square() * weigh).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad((second * weigh).sum(), x)
        found.append((y, first, second, third))
    for mine, torchs in zip(*found, strict=True):
        close(mine.detach(), torchs.detach(), rtol=1e-11, atol=1e-12)


def test_the_norm_is_computed_in_float32_where_products_are_not() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weigh = torch.linspace(-1, 1, x.numel()).view_as(x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, torchs = norm(x), torch.nn.functional.rms_norm(x, (64,), eps=1e-6)
        slopes = [torch.autograd.grad((y * weigh).sum(), x)[0] for y in (mine, torchs)]
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


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


# ---------------------------------------------------------------- several models in one program


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_alone_begins_with_the_bits_it_has_among_others(dtype: torch.dtype) -> None:
    settings = ModelSettings(16, 2, 2, 24, value=True)
    three, five = (
        Transformer(settings, (3,), seed=5, dtype=dtype),
        Transformer(settings, (5,), seed=5, dtype=dtype),
    )
    for number in range(3):
        alone = Transformer(settings, seed=5, numbers=[number], dtype=dtype)
        for name, weight in alone.weights.items():
            assert torch.equal(weight, three.weights[name][number])
            assert torch.equal(weight, five.weights[name][number])
    assert not torch.equal(three.weights["head"][0], three.weights["head"][1])
    assert not torch.equal(
        three.weights["head"], Transformer(settings, (3,), seed=6, dtype=dtype).weights["head"]
    )


@POSITIONS
def test_a_model_alone_scores_and_learns_as_among_others(rotary: bool) -> None:
    together = tiny((3,), rotary=rotary, seed=5)
    prompt, tokens = draw(3, 2, 4), draw(3, 2, 3, 4, seed=1)
    log_dist = log_dists(together, prompt, tokens)
    gradients = torch.autograd.grad(log_dist[..., 0].sum(), together.parameters)
    for run in range(3):
        alone = tiny(rotary=rotary, seed=5)
        for name, weight in alone.weights.items():
            weight.data = together.weights[name][run].detach().clone()
        own = log_dists(alone, prompt[run], tokens[run])
        few_ulp(own[..., :-2], log_dist[run][..., :-2])  # PAD is −∞
        own_gradients = torch.autograd.grad(own[..., 0].sum(), alone.parameters)
        norm = float(per_run_dot(own_gradients, own_gradients, 0).sqrt())
        for got, want in zip(own_gradients, gradients, strict=True):
            few_ulp(got / norm, want[run] / norm)


# ---------------------------------------------------------------- shape, size, precision


def parameters_by_hand(settings: ModelSettings) -> int:
    d, h, v = settings.width, settings.hidden, VOCABULARY
    block = 3 * d * d + d * d + 2 * d * h
    return (
        v * d
        + (0 if settings.rotary else settings.context * d)
        + settings.layers * block
        + d * v
        + (d if settings.value else 0)
    )


@pytest.mark.parametrize("runs", [(), (2,)])
@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"value": True}])
def test_size_counts_one_models_numbers(runs: tuple[int, ...], options: dict) -> None:
    model = tiny(runs, **options)
    assert model.size == parameters_by_hand(model.settings)


def test_presets_are_as_large_as_they_say() -> None:
    assert Transformer(PRESETS["nano"]).size == parameters_by_hand(PRESETS["nano"])
    assert 9_000 < parameters_by_hand(PRESETS["nano"]) < 11_000
    assert 250_000 < parameters_by_hand(PRESETS["small"]) < 350_000
    assert parameters_by_hand(PRESETS["gpu"]) >= 10_000_000


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


def test_a_snapshot_stays_where_it_was() -> None:
    model = tiny((2,), value=True)
    frozen = model.copy()
    before = {name: weight.clone() for name, weight in frozen.weights.items()}
    with torch.no_grad():
        for weight in model.parameters:
            weight += 1
    assert not any(weight.requires_grad for weight in frozen.parameters)
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.weights.items())
    assert frozen.weights.keys() == model.weights.keys()
    assert frozen.size == model.size


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 0}, r"model\.width: got 0"),
        ({"layers": 0}, r"model\.layers"),
        ({"context": -1}, r"model\.context"),
        ({"width": 20, "heads": 4}, r"model\.width: got 20; allowed is a multiple of 2·heads = 8"),
    ],
)
def test_impossible_shapes_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        ModelSettings(**settings)


# ---------------------------------------------------------------- on a GPU, where there is one

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@gpu
@POSITIONS
@RUNS
def test_a_gpu_gives_the_numbers_of_the_cpu(runs: tuple[int, ...], rotary: bool) -> None:
    there = Transformer(
        ModelSettings(WIDTH, 2, 2, 12, 16, rotary=rotary, value=True),
        runs,
        device="cuda",
        dtype=torch.float64,
    )
    here = Transformer(
        ModelSettings(WIDTH, 2, 2, 12, 16, rotary=rotary, value=True), runs, dtype=torch.float64
    )
    prompt, tokens = draw(*runs, 3, 4), draw(*runs, 3, 5, 4, seed=1)
    got = log_dists(there, prompt.cuda(), tokens.cuda())
    want = log_dists(here, prompt, tokens)
    close(got[..., : len(CHARACTERS)].cpu(), want[..., : len(CHARACTERS)], atol=1e-10)
    mine = torch.autograd.grad(
        got[..., 0].sum(), there.parameters, allow_unused=True, materialize_grads=True
    )
    theirs = torch.autograd.grad(
        want[..., 0].sum(), here.parameters, allow_unused=True, materialize_grads=True
    )
    for a, b in zip(mine, theirs, strict=True):
        close(a.cpu(), b, rtol=1e-9, atol=1e-10)
