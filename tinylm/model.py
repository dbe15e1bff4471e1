"""A decoder-only transformer, written to be read in one sitting: from tokens to `log_probs`.

Pre-norm, RMSNorm, learned or rotary positions, causal attention written out, a ReLU network, no
dropout, no biases. Deviations from the usual: the output layer is not tied to the embedding; norms
have no gain, since the linear layer after each can scale for itself; ReLU in place of GELU, which
at this size costs a tenth of the time and learns no better.

Shapes: L tokens of a sequence, d numbers of a hidden state, H heads, V tokens of the vocabulary.
Weights may lead with run axes [*runs, ...], several models in one program; `...` stands for these
and any others between them and the last ones, such as prompts and samples.

This is the definition. Training goes through `tinylm.fast`, which computes the same numbers from
the same weights and leaves out what is computed twice; tests hold the two together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.train.noise import Noise
from tinylm.tasks import PAD, VOCABULARY


@dataclass(frozen=True)
class ModelSettings:
    """The shape of a model.

    `context` is in tokens; `value` adds a value head (a critic on the policy's own trunk).
    """

    width: int = 128  # d, the size of a hidden state
    layers: int = 2  # blocks
    heads: int = 4  # of attention
    hidden: int = 384  # inside the feed-forward network
    context: int = 32  # longest sequence, in tokens
    rotary: bool = False  # rotary positions; False: learned ones
    value: bool = False  # a value head

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden", "context"):
            require(
                getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a whole number > 0"
            )
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
    """A weight [*runs, n, m] with an axis of length 1 for every other axis of x [*runs, ..., ·, ·]:
    prompts and samples of one run share its weights. (One model's fits beside anything.)
    """
    if weight.dim() == 2:
        return weight
    return weight[(..., *(None,) * (x.dim() - weight.dim()), slice(None), slice(None))]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [*runs, ..., L, n] times each run's matrix [*runs, n, m] → [*runs, ..., L, m]."""
    return x @ beside(weight, x)


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain: x [..., d] / √(mean x² + ε) (Zhang & Sennrich 2019, eq. 4)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + n/2}) of x [..., L, n] by angles that grow with their position.

    cos, sin [L, n/2]. A product of two such vectors then depends on how far apart they are (Su et
    al. 2021, eq. 34).
    """
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@dataclass(frozen=True)
class Attention:
    """Causal attention: every token collects from itself and those before it (Vaswani et al. 2017,
    eq. 1).

    `qkv` [*runs, d, 3d] and `out` [*runs, d, d] are its weights; `angles` (cos, sin), each [at
    least L, d/2H], those of rotary positions, or None.
    """

    qkv: Tensor
    out: Tensor
    heads: int
    angles: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → what attention adds to them, the same shape."""
        length = x.shape[-2]
        split = linear(x, self.qkv).unflatten(-1, (3, self.heads, -1))  # [..., L, 3, H, d/H]
        query, key, value = split.transpose(-4, -2).unbind(-3)  # each [..., H, L, d/H]
        if self.angles is not None:
            cos, sin = (table[:length] for table in self.angles)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        scores = query @ key.mT / sqrt(query.shape[-1])  # [..., H, L, L]: row i asks, column j has
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        shares = torch.softmax(scores.masked_fill(future, -torch.inf), -1)  # rows sum to 1
        mixed = shares @ value  # [..., H, L, d/H]
        return linear(mixed.transpose(-3, -2).flatten(-2), self.out)  # heads side by side again


@dataclass(frozen=True)
class MLP:
    """The feed-forward network, of each token by itself: weights [*runs, d, h], [*runs, h, d]."""

    up: Tensor
    down: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → what it adds to them, the same shape."""
        return linear(torch.relu(linear(x, self.up)), self.down)


@dataclass(frozen=True)
class Block:
    """Attention, then the network; each reads the normed stream and adds to it."""

    attention: Attention
    mlp: MLP

    def __call__(self, x: Tensor) -> Tensor:
        """Hidden states [*runs, ..., L, d] → the next ones, the same shape."""
        x = x + self.attention(norm(x))
        return x + self.mlp(norm(x))


class Transformer:
    """A model's weights by name, and what they compute."""

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
        x = linear(one_hot, w["embedding"])  # each token's row of the table: [*runs, ..., L, d]
        if not self.settings.rotary:
            x = x + beside(w["positions"][..., :length, :], x)
        for block in self.blocks:
            x = block(x)
        return norm(x)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, in order, made of the weights as they are now."""
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
        """log π of each token, given the prompt and the tokens before it, in nats.

        prompt [*runs, ..., P], tokens [*runs, ..., T], the axes between alike → [*runs, ..., T]; 0
        at padding.
        """
        states = self.hidden(torch.cat([prompt, tokens], -1))  # [*runs, ..., P + T, d]
        before = states[..., prompt.shape[-1] - 1 : -1, :]  # of the token before each of the T
        log_dist = next_token_log_dist(self.logits(before), temperature)  # [*runs, ..., T, V]
        log_prob = log_dist.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return torch.where(tokens == PAD, 0.0, log_prob)

    # ------------------------------------------------------------------ its weights

    @property
    def parameters(self) -> list[Tensor]:
        """The weights, each [*runs, ...], in a fixed order."""
        return list(self.weights.values())

    @property
    def size(self) -> int:
        """How many numbers one run's model has."""
        return sum(weight.numel() for weight in self.parameters) // prod(self.runs)

    def copy(self) -> Transformer:
        """A frozen snapshot: the same weights, without gradients."""
        twin = copy.copy(self)
        twin.weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        twin.compiled = False
        return twin

    def compile(self) -> None:
        """Have `tinylm.fast` compile its pass over completions, which training spends its time in
        (needs a C compiler; slow at first).

        For a GPU: shapes must not change then, so beginnings that completions share are no longer
        merged, and on a CPU that is slower. What is compiled has no second derivative, which TRPO
        needs.
        """
        self.compiled = True

    def check_finite(self, called: str = "model") -> None:
        """Raise `CourseError` naming the first weight that holds a NaN or an infinity."""
        total = torch.stack([weight.detach().sum() for weight in self.parameters]).sum()
        if bool(torch.isfinite(total)):  # one number to wait for: this runs at every rollout
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
    """The distribution that is sampled from: logits [..., V] → log-probabilities [..., V].

    Padding is never produced; with `top_k` only the k likeliest tokens are (and ties of the last).
    In float32 at least. eq:sampling-temperature
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    padding = torch.arange(logits.shape[-1], device=logits.device) == PAD
    logits = logits.masked_fill(padding, -torch.inf)
    if temperature != 1:
        # shifted first: a low temperature would overflow
        logits = (logits - logits.detach().amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        lowest = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return torch.log_softmax(logits, -1)


def _angles(
    settings: ModelSettings, device: torch.device | str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [context, d/2H] of every position's angles; base 1000 where long contexts take
    10,000.
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
