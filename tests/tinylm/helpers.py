"""What the tests of the tiny language model share: a very small model, and a transformer in plain
loops to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from course.learner import Learner
from course.train.optim import Adam
from tests.helpers import stream
from tinylm import tasks
from tinylm.model import ModelSettings, Transformer
from tinylm.tasks import CHARACTERS, END, PAD, Task, TaskSettings
from tinylm.warm_start import LIKELIHOOD, Demonstrations

WIDTH, LAYERS, HEADS, HIDDEN = 8, 2, 2, 12


def tiny(
    runs: Sequence[int] = (),
    *,
    seed: int = 0,
    context: int = 16,
    lively: float = 3.0,
    **options: object,
) -> Transformer:
    """A float64 model of a few hundred numbers.

    `lively` scales the output layer: a new model's answers are too even to test with.
    """
    dtype = options.pop("dtype", torch.float64)
    layers = options.pop("layers", LAYERS)
    settings = ModelSettings(WIDTH, layers, HEADS, HIDDEN, context, **options)  # type: ignore[arg-type]
    model = Transformer(settings, runs, seed, dtype=dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        model.weights["head"] *= lively / 0.3
        if settings.value:
            model.weights["value"] += torch.linspace(
                -1, 1, WIDTH, dtype=model.weights["value"].dtype
            ).unsqueeze(-1)
    return model


@cache
def sums(digits: int = 1, **settings: object) -> Task:
    """Sums of that many digits (a task is made of constants, so that tests can share it)."""
    return tasks.make(TaskSettings(digits=digits, **settings))  # type: ignore[arg-type]


@cache
def _school(runs: tuple[int, ...], seed: int, context: int, value: bool) -> dict[str, Tensor]:
    model = tiny(runs, seed=seed, context=context, value=value, lively=0.3)
    Learner(
        Demonstrations(model, sums(), batch=64), LIKELIHOOD, Adam(0.02), stream(runs, seed)
    ).train(25)
    return model.weights


def schooled(
    runs: tuple[int, ...] = (),
    *,
    seed: int = 0,
    context: int = 16,
    value: bool = False,
    dtype=torch.float64,
) -> Transformer:  # type: ignore[no-untyped-def]
    """A tiny model after a little school on one-digit sums: some of its answers are right, some are
    cut, some too short.
    """
    model = tiny(runs, seed=seed, context=context, value=value, dtype=dtype)
    learned = _school(runs, seed, context, value)
    with torch.no_grad():
        for name, weight in learned.items():
            model.weights[name].copy_(weight)
    return model


def tokens_of(text: str, width: int) -> list[int]:
    """«05⏎» → tokens, ⏎ the end, padded to `width`."""
    row = [END if character == "⏎" else CHARACTERS.index(character) for character in text]
    return row + [PAD] * (width - len(row))


def rows_of(model: Transformer, run: int | None = None) -> dict[str, list]:
    """The weights of one run as nested lists of Python floats."""
    return {
        name: (weight if run is None else weight[run]).tolist()
        for name, weight in model.weights.items()
    }


def reference_states(
    weights: dict[str, list], settings: ModelSettings, tokens: Sequence[int]
) -> list[list[float]]:
    """The transformer once more, in loops over positions, heads and numbers: tokens → the final
    state at every position.
    """
    width, heads = settings.width, settings.heads
    size = width // heads

    def times(x: list[float], matrix: list[list[float]]) -> list[float]:
        return [sum(x[i] * matrix[i][j] for i in range(len(x))) for j in range(len(matrix[0]))]

    def norm(x: list[float]) -> list[float]:
        root = math.sqrt(sum(value * value for value in x) / len(x) + 1e-6)
        return [value / root for value in x]

    def turn(x: list[float], position: int) -> list[float]:
        half = size // 2
        out = [0.0] * size
        for i in range(half):
            angle = position * 1000.0 ** (-i / half)
            out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
            out[half + i] = x[i] * math.sin(angle) + x[half + i] * math.cos(angle)
        return out

    stream = [list(weights["embedding"][token]) for token in tokens]
    if not settings.rotary:
        stream = [
            [a + b for a, b in zip(x, weights["positions"][t], strict=True)]
            for t, x in enumerate(stream)
        ]
    for layer in range(settings.layers):
        queries, keys, values = [], [], []
        for t, x in enumerate(stream):
            all_three = times(norm(x), weights[f"{layer}.qkv"])
            split = [
                [
                    all_three[part * width + h * size : part * width + (h + 1) * size]
                    for h in range(heads)
                ]
                for part in range(3)
            ]
            if settings.rotary:
                split[0], split[1] = [turn(q, t) for q in split[0]], [turn(k, t) for k in split[1]]
            queries.append(split[0])
            keys.append(split[1])
            values.append(split[2])
        after = []
        for t, x in enumerate(stream):
            mixed: list[float] = []
            for h in range(heads):
                scores = [
                    sum(a * b for a, b in zip(queries[t][h], keys[s][h], strict=True))
                    / math.sqrt(size)
                    for s in range(t + 1)
                ]
                shares = [math.exp(score - max(scores)) for score in scores]
                mixed += [
                    sum(share * values[s][h][i] for s, share in enumerate(shares)) / sum(shares)
                    for i in range(size)
                ]
            x = [a + b for a, b in zip(x, times(mixed, weights[f"{layer}.out"]), strict=True)]
            inner = [max(value, 0.0) for value in times(norm(x), weights[f"{layer}.up"])]
            after.append(
                [a + b for a, b in zip(x, times(inner, weights[f"{layer}.down"]), strict=True)]
            )
        stream = after
    return [norm(x) for x in stream]


def separate(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    """States before each token [*runs, Q, G, T, d] by the plain model, every completion a sequence
    of its own behind a prompt of its own.
    """
    whole = torch.cat([repeated(prompt, tokens), tokens[..., :-1]], -1)  # [*runs, Q, G, P + T − 1]
    return model.hidden(whole)[..., prompt.shape[-1] - 1 :, :]


def repeated(prompt: Tensor, tokens: Tensor) -> Tensor:
    """Prompts [*runs, Q, P], once for each completion [*runs, Q, G, T] → [*runs, Q, G, P]."""
    return prompt.unsqueeze(-2).expand(*tokens.shape[:-1], prompt.shape[-1])


def chosen(log_dist: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """log-probabilities of the tokens where the mask is True, else 0."""
    index = torch.where(mask, tokens, 0).unsqueeze(-1)
    return torch.where(mask, log_dist.gather(-1, index).squeeze(-1), 0.0)
