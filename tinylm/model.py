"""A decoder-only transformer, written to be read in one sitting: from tokens to `log_probs`.

The architecture is pre-norm with RMSNorm, learned or rotary positions, explicit causal attention
and a ReLU feed-forward network. It has no dropout and no biases. It departs from the usual choices
in three ways. The output layer is not tied to the embedding. The norms have no gain, because the
linear layer after each norm can learn the scale. ReLU replaces GELU, because at this size ReLU
takes a tenth of GELU's time and learns as well.

Shapes: L tokens in a sequence, d numbers in a hidden state, H heads, V tokens in the vocabulary.
Weights may have leading run axes [*runs, ...], so that one program trains several models. In other
tensors `...` stands for the run axes and any axes after them, such as prompts and samples.

This file defines the model. Training uses `tinylm.fast`, which computes the same numbers from the
same weights but computes shared prefixes only once. Tests check that the two agree.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import CourseError, require, require_flag, require_number
from course.train.noise import Noise
from tinylm.tasks import PAD, VOCABULARY


@dataclass(frozen=True)
class ModelSettings:
    """The sizes of a model and its optional parts; raises `CourseError` for a wrong size.

    `context` is in tokens. `value` adds a value head, a critic that shares the policy's trunk.
    """

    width: int = 128  # d, the size of a hidden state
    layers: int = 2  # number of blocks
    heads: int = 4  # attention heads in each block
    hidden: int = 384  # hidden units of the feed-forward network
    context: int = 32  # longest sequence, in tokens
    rotary: bool = False  # True: rotary positions; False: learned positions
    value: bool = False  # True: add a value head

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden", "context"):
            value, allowed = getattr(self, name), "a whole number > 0"
            require_number(f"model.{name}", value, allowed, above=0, whole=True)
        for name in ("rotary", "value"):
            require_flag(f"model.{name}", getattr(self, name))
        require(
            self.width % (2 * self.heads) == 0,
            "model.width",
            self.width,
            f"a multiple of 2·heads = {2 * self.heads}",
        )


PRESETS = {
    "nano": ModelSettings(width=24, layers=1, heads=2, hidden=128, context=16),
    "mini": ModelSettings(width=64, layers=2, heads=4, hidden=192, context=16),
    "small": ModelSettings(width=128, layers=2, heads=4, hidden=384, context=48),
    "gpu": ModelSettings(width=384, layers=6, heads=6, hidden=1536, context=96),
}


def beside(weight: Tensor, x: Tensor) -> Tensor:
    """Reshape a weight [*runs, n, m] so that it broadcasts against x [*runs, ..., ·, ·].

    The weight gets an axis of length 1 for each axis of x between the run axes and the last two:
    the prompts and samples of a run share its weights. A weight without run axes is returned as is.
    """
    if weight.dim() == 2:
        return weight
    return weight[(..., *(None,) * (x.dim() - weight.dim()), slice(None), slice(None))]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [*runs, ..., L, n] by each run's matrix [*runs, n, m] → [*runs, ..., L, m]."""
    return x @ beside(weight, x)


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain: x [..., d] / √(mean x² + ε) (Zhang & Sennrich 2019, eq. 4)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + n/2}) of x [..., L, n] by angles that grow with the position.

    `cos` and `sin` are [L, n/2]. The inner product of two rotated vectors depends on their
    positions only through the distance between them (Su et al. 2021, eq. 34).
    """
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@dataclass(frozen=True)
class Attention:
    """Causal attention: every token attends to itself and to the tokens before it.

    Vaswani et al. 2017, eq. 1. The weights are `qkv` [*runs, d, 3d] and `out` [*runs, d, d].
    `angles` holds (cos, sin) for rotary positions, each [at least L, d/2H], or None.
    """

    qkv: Tensor
    out: Tensor
    heads: int
    angles: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → what attention adds to them, in the same shape."""
        length = x.shape[-2]
        split = linear(x, self.qkv).unflatten(-1, (3, self.heads, -1))  # [..., L, 3, H, d/H]
        query, key, value = split.transpose(-4, -2).unbind(-3)  # each [..., H, L, d/H]
        if self.angles is not None:
            cos, sin = (table[:length] for table in self.angles)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        # scores [..., H, L, L]: row i is the token that attends, column j the token it attends to
        scores = query @ key.mT / sqrt(query.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        shares = torch.softmax(scores.masked_fill(future, -torch.inf), -1)  # rows sum to 1
        mixed = shares @ value  # [..., H, L, d/H]
        concatenated = mixed.transpose(-3, -2).flatten(-2)  # the heads side by side [..., L, d]
        return linear(concatenated, self.out)


@dataclass(frozen=True)
class MLP:
    """The feed-forward network, applied to each token: weights [*runs, d, h] and [*runs, h, d]."""

    up: Tensor
    down: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → what the network adds to them, in the same shape."""
        return linear(torch.relu(linear(x, self.up)), self.down)


@dataclass(frozen=True)
class Block:
    """Attention, then the feed-forward network: each adds its output to the hidden states."""

    attention: Attention
    mlp: MLP

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → the hidden states after this block, same shape."""
        x = x + self.attention(norm(x))
        return x + self.mlp(norm(x))


@typed
class Transformer:
    """A transformer language model: its named weights, and the functions they define.

    `runs` are the run axes. `seed` and `numbers` choose the random initial weights of each run.
    """

    def __init__(
        self,
        settings: ModelSettings,
        runs: Sequence[int] = (),
        seed: int = 0,
        *,
        numbers: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.runs = settings, torch.Size(runs)
        d, h, v = settings.width, settings.hidden, VOCABULARY
        noise = Noise(runs, seed, numbers=numbers, dtype=dtype, device=device)

        def normal(*shape: int, std: float) -> Tensor:
            return (noise.normal(*shape) * std).contiguous().requires_grad_()

        w = self.weights = {"embedding": normal(v, d, std=1.0)}
        if not settings.rotary:
            w["positions"] = normal(settings.context, d, std=0.3)
        for i in range(settings.layers):
            w[f"{i}.qkv"] = normal(d, 3 * d, std=d**-0.5)
            w[f"{i}.out"] = normal(d, d, std=(2 * settings.layers * d) ** -0.5)
            w[f"{i}.up"] = normal(d, h, std=d**-0.5)
            w[f"{i}.down"] = normal(h, d, std=(2 * settings.layers * h) ** -0.5)
        w["head"] = normal(d, v, std=0.3 * d**-0.5)
        if settings.value:
            w["value"] = torch.zeros(*self.runs, d, 1, dtype=dtype, device=device).requires_grad_()
        self.angles = _angles(settings, device, dtype)
        self.compiled = False

    # ------------------------------------------------------------------ from tokens to log π

    def hidden(self, tokens: Tensor) -> Tensor:
        """Whole sequences [*runs, ..., L] → each token's final hidden state [*runs, ..., L, d]."""
        w, length, most = self.weights, tokens.shape[-1], self.settings.context
        require(length <= most, "tokens", length, f"at most {most} tokens, the model's context")
        one_hot = torch.nn.functional.one_hot(tokens, VOCABULARY).to(w["embedding"].dtype)
        x = linear(one_hot, w["embedding"])  # each token's row of the embedding [*runs, ..., L, d]
        if not self.settings.rotary:
            x = x + beside(w["positions"][..., :length, :], x)
        for block in self.blocks:
            x = block(x)
        return norm(x)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order, built from the current weights."""
        w, settings = self.weights, self.settings
        angles = self.angles if settings.rotary else None
        return [
            Block(
                Attention(w[f"{i}.qkv"], w[f"{i}.out"], settings.heads, angles),
                MLP(w[f"{i}.up"], w[f"{i}.down"]),
            )
            for i in range(settings.layers)
        ]

    def logits(self, states: Tensor) -> Tensor:
        """Final hidden states [*runs, ..., d] → next-token logits [*runs, ..., V]."""
        return linear(states, self.weights["head"])

    def values(self, states: Tensor) -> Tensor:
        """Final hidden states [*runs, ..., d] → the critic's values [*runs, ...]."""
        weight = self.weights["value"]
        return linear(states, weight).squeeze(-1).to(weight.dtype)

    def log_probs(self, prompt: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """log π of each token given the prompt and the tokens before it, in nats; 0 at padding.

        prompt [*runs, ..., P] and tokens [*runs, ..., T], with the same axes in between →
        [*runs, ..., T].
        """
        states = self.hidden(torch.cat([prompt, tokens], -1))  # [*runs, ..., P + T, d]
        # the state that predicts each of the T tokens belongs to the token before it
        before = states[..., prompt.shape[-1] - 1 : -1, :]  # [*runs, ..., T, d]
        log_dist = next_token_log_dist(self.logits(before), temperature)  # [*runs, ..., T, V]
        log_prob = log_dist.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return torch.where(tokens == PAD, 0.0, log_prob)

    # ------------------------------------------------------------------ its weights

    @property
    def parameters(self) -> list[Tensor]:
        """The weights in a fixed order, each [*runs, ...]."""
        return list(self.weights.values())

    @property
    def size(self) -> int:
        """The number of weights of one run's model."""
        return sum(weight.numel() for weight in self.parameters) // prod(self.runs)

    def copy(self) -> Transformer:
        """A frozen snapshot: the same weights, without gradients."""
        twin = copy.copy(self)
        twin.weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        twin.compiled = False
        return twin

    def compile(self) -> None:
        """Compile the forward pass of `tinylm.fast`, where training spends most of its time.

        Compiling needs a C compiler, and the first call is slow. It pays on a GPU. A compiled pass
        needs fixed shapes, so completions no longer share their common prefixes, which makes it
        slower on a CPU. It has no second derivatives, so it cannot be used with TRPO.
        """
        self.compiled = True

    def check_finite(self, called: str = "model") -> None:
        """Raise `CourseError` naming the first weight that holds a NaN or an infinity."""
        total = torch.stack([weight.detach().sum() for weight in self.parameters]).sum()
        if bool(torch.isfinite(total)):  # a single transfer from the device: runs every rollout
            return
        for name, weight in self.weights.items():
            bad = (~torch.isfinite(weight)).nonzero()
            if len(bad):
                where = tuple(bad[0].tolist())
                raise CourseError(
                    f"{called}.{name}: got {weight[where].item()} at index {where}; allowed are"
                    " finite numbers"
                )


def next_token_log_dist(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """The sampling distribution of the next token: logits [..., V] → log-probabilities [..., V].

    Padding has probability 0. With `top_k`, so has every token less likely than the k-th most
    likely one; tokens tied with the k-th are kept. The result is float32 or float64.
    eq:sampling-temperature
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    padding = torch.arange(logits.shape[-1], device=logits.device) == PAD
    logits = logits.masked_fill(padding, -torch.inf)
    if temperature != 1:
        # subtract the maximum first: dividing by a low temperature could overflow
        logits = (logits - logits.detach().amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        lowest = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return torch.log_softmax(logits, -1)


def _angles(
    settings: ModelSettings, device: torch.device | str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles of every position, each [context, d/2H].

    The base is 1,000 rather than the usual 10,000, because contexts here are short.
    """
    half = settings.width // settings.heads // 2
    rate = 1000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angle = torch.arange(settings.context, dtype=torch.float64, device="cpu").unsqueeze(-1) * rate
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


__all__ = [
    "MLP",
    "PRESETS",
    "Attention",
    "Block",
    "ModelSettings",
    "Transformer",
    "linear",
    "next_token_log_dist",
    "norm",
    "rotate",
]
