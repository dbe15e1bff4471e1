"""The plain transformer against loops over positions, heads and numbers; its shape, its seeds, and
several models in one program. That the quick path is equal: `fast/test_forward.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from course.errors import CourseError
from course.train.optim import per_run_dot
from tests.helpers import close, few_ulp
from tests.tinylm.helpers import WIDTH, reference_states, rows_of, tiny
from tinylm.model import PRESETS, ModelSettings, Transformer
from tinylm.scoring import log_dists
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY
from tinylm.training import Training, TrainSettings

POSITIONS = pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
RUNS = pytest.mark.parametrize("runs", [(), (3,), (2, 2)], ids=["alone", "three", "two by two"])


def draw(*shape: int, below: int = len(CHARACTERS), seed: int = 0) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- what it computes


@POSITIONS
def test_states_are_those_of_the_transformer_in_plain_loops(rotary: bool) -> None:
    model = tiny(rotary=rotary, value=True)
    tokens = draw(3, 7, below=VOCABULARY)
    got = model.hidden(tokens)
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
    got = model.hidden(tokens)
    for run in range(2):
        for row in range(2):
            want = reference_states(rows_of(model, run), model.settings, tokens[run, row].tolist())
            close(got[run, row], want, rtol=1e-11, atol=1e-12)


@POSITIONS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_loops_next_tokens(rotary: bool, temperature: float) -> None:
    """Of one sequence without any other axis; then of several, padded."""
    model = tiny(rotary=rotary)
    prompt, answers = [3, 10, 4, 15], [[0, 7, END], [12, END, PAD], [5, 5, 5]]
    head = model.weights["head"].tolist()
    want = []
    for answer in answers:
        states = reference_states(rows_of(model), model.settings, prompt + answer)
        row = []
        for t, token in enumerate(answer):
            x = states[len(prompt) + t - 1]  # of the token before
            scores = [
                math.exp(sum(a * w[v] for a, w in zip(x, head, strict=True)) / temperature)
                for v in range(VOCABULARY)
            ]
            scores[PAD] = 0.0  # never produced
            row.append(0.0 if token == PAD else math.log(scores[token] / sum(scores)))
        want.append(row)
    one = model.log_probs(torch.tensor(prompt), torch.tensor(answers[0]), temperature)
    close(one.detach(), want[0], rtol=1e-10)
    several = model.log_probs(
        torch.tensor([prompt] * 3)[None], torch.tensor(answers)[None], temperature
    )
    assert several.shape == (1, 3, 3)
    close(several[0].detach(), want, rtol=1e-10)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    for rotary in (False, True):
        model = tiny(context=6, rotary=rotary)
        assert model.hidden(draw(6)).shape == (6, WIDTH)
        with pytest.raises(CourseError, match="tokens: got 7; allowed is at most 6 tokens"):
            model.hidden(draw(7))


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
        ({"layers": 2.5}, r"model\.layers: got 2\.5; allowed is a whole number > 0"),
        ({"heads": "8"}, r"model\.heads: got '8'"),
        ({"hidden": True}, r"model\.hidden: got True"),
        ({"width": None}, r"model\.width: got None"),
        ({"context": float("inf")}, r"model\.context: got inf"),
        ({"rotary": 1}, r"model\.rotary: got 1; allowed is True or False"),
        ({"value": "yes"}, r"model\.value: got 'yes'"),
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


def test_a_saved_model_with_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    settings = TrainSettings(
        digits=1, preset="nano", warm_target=0, rollouts=2, prompts=4, group=2, device="cpu"
    )
    training = Training(settings)
    with torch.no_grad():
        training.model.weights["0.up"][1, 2] = float("nan")
    path = training.save(tmp_path / "checkpoint.safetensors")
    says = rf"{path}: model\.0\.up: got nan at index \(1, 2\); allowed are finite numbers"
    with pytest.raises(CourseError, match=says):
        Training.load(path)
    with pytest.raises(CourseError, match=says):
        Training(settings).adopt(path)
