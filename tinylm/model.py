"""A decoder-only transformer, written to be read in one sitting.

Its weights can carry run axes: several models in one program.

Pre-norm, RMSNorm, rotary or learned positions, softmax attention written out, a ReLU network, no
dropout, no biases. Hidden states are [*runs, N, d], one row for every token that differs from the
others or stands behind other ones (see `packing.py`), so that a linear layer is one (batched)
product; attention lays them out as [*runs, B, H, L, d/H], B sequences of L places. Deviations from
the usual: attention is explicit, since the fused kernel is slower at this size and has no second
derivative on the CPU, which TRPO needs; the output layer is not tied to the embedding; norms have
no gain; ReLU in place of GELU, which at this size costs a tenth of the time, and learns as well
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from course.errors import require
from course.train.noise import Noise
from tinylm.fast.packing import Packed, look_up, sequences
from tinylm.tasks import VOCABULARY


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


@dataclass(frozen=True)
class Cache:
    """Keys and values of the prompts, one pair per layer: each [*runs, B, H, L, d/H]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Transformer:
    """Weights and the two ways to use them: packed sequences in one pass, and one more token behind
    a cache.
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
        self._angles = _angles(settings, device, dtype)
        self.compiled = False

    def compile(self) -> None:
        """Compile the pass over packed sequences, which training spends its time in (needs a C
        compiler; slow at first).

        For a GPU: shapes must not change then, so beginnings that completions share are no longer
        merged, and on a CPU that is slower. What is compiled has no second derivative, which TRPO
        needs.
        """
        self.compiled = True
        self.hidden = torch.compile(self.hidden, dynamic=False)  # type: ignore[method-assign]

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
        twin = object.__new__(Transformer)
        twin.settings, twin.runs, twin._angles, twin.compiled = (
            self.settings,
            self.runs,
            self._angles,
            False,
        )
        twin.weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return twin

    # ------------------------------------------------------------------ whole sequences

    def hidden(self, packed: Packed) -> Tensor:
        """Final states [*runs, n, d] of the n rows that are read."""
        return self._blocks(packed)[0]

    def logits(self, states: Tensor) -> Tensor:
        """Final states [*runs, ..., d] → next-token logits [*runs, ..., V]."""
        return self._linear("head", states)

    def values(self, states: Tensor) -> Tensor:
        """Final states [*runs, ..., d] → the critic's values [*runs, ...]."""
        return self._linear("value", states).squeeze(-1).to(self.weights["value"].dtype)

    # ------------------------------------------------------------------ with a cache

    def prefill(self, prompt: Tensor) -> tuple[Tensor, Cache]:
        """Prompts [*runs, Q, P] → the state of their last token [*runs, Q, d], and the cache of all
        of them.
        """
        return self._blocks(sequences(prompt, 1))

    def extend(
        self, token: Tensor, path: Tensor, first: Tensor, prompt: Cache, own: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """One more token of every completion: it sees its prompt and its own tokens before it.

        Distinct ones are computed once.

        `token` [*runs, N]; `path` [*runs, Q, M, t] are the rows on the way to the M last tokens of
        each prompt's completions, counted over all steps so far, and `first` [*runs, N] says which
        of these each new row is, counted q·M + m. Returns the new rows' states [*runs, N, d], and
        for each layer keys and values of all rows so far, [*runs, rows, 2d], the next step's `own`.
        """
        settings = self.settings
        heads, size, before = (
            settings.heads,
            settings.width // settings.heads,
            own[0].shape[-2] if own else 0,
        )
        position = torch.full(
            (1,), prompt.keys[0].shape[-2] + path.shape[-1] - 1, device=token.device
        )
        x = self._embed(token, position)
        kept = []
        for i in range(settings.layers):
            q, k, v = self._heads(
                self._linear(f"{i}.qkv", _norm(x)).unsqueeze(-2), position
            )  # each [*runs, N, H, 1, d/H]
            rows = torch.cat([k, v], -3).flatten(-3)
            kept.append(torch.cat([own[i], rows], -2) if own else rows)
            k, v = (
                look_up(kept[-1], path).unflatten(-1, (2, heads, size)).unbind(-3)
            )  # [*runs, Q, M, t, H, d/H]
            q = look_up(q.flatten(-3), path[..., -1] - before).unflatten(
                -1, (heads, size)
            )  # [*runs, Q, M, H, d/H]
            shared = prompt.keys[i] @ q.movedim(-3, -1)  # [*runs, Q, H, P, M]
            private = (
                (k * q.unsqueeze(-3)).sum(-1).movedim(-3, -1).transpose(-2, -3)
            )  # [*runs, Q, H, t, M]
            trunk, branch = torch.softmax(torch.cat([shared, private], -2), -2).tensor_split(
                [shared.shape[-2]], -2
            )
            mixed = _joined(trunk.mT @ prompt.values[i])  # [*runs, Q, M, d]
            mixed = mixed + (branch.transpose(-2, -3).movedim(-1, -3).unsqueeze(-1) * v).sum(
                -3
            ).flatten(-2)
            x = self._block_end(i, x, look_up(mixed.flatten(-3, -2), first))
        return _norm(x), kept

    # ------------------------------------------------------------------ the pieces

    def _blocks(self, packed: Packed) -> tuple[Tensor, Cache]:
        """Final states [*runs, n, d] of the rows that are read, keys and values of all places."""
        x = self._embed(packed.tokens, packed.positions)
        hide = torch.zeros(packed.mask.shape, dtype=x.dtype, device=x.device).masked_fill(
            ~packed.mask, -torch.inf
        )
        hide = hide.unsqueeze(-3)  # for all heads
        keys, values = [], []
        for i in range(self.settings.layers):
            q, k, v = self._heads(packed.spread(self._linear(f"{i}.qkv", _norm(x))), packed.places)
            keys.append(k)
            values.append(v)
            mixed = torch.softmax(q @ k.transpose(-1, -2) + hide, -1) @ v  # [*runs, B, H, L, d/H]
            start = (
                packed.unread if i == self.settings.layers - 1 else 0
            )  # behind the last attention nobody looks at the others
            x = self._block_end(i, x[..., start:, :], packed.collect(_joined(mixed), start))
        return _norm(x), Cache(tuple(keys), tuple(values))

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [*runs, N] at positions [N] or [*runs, N] → [*runs, N, d]."""
        x = look_up(self.weights["embedding"], tokens)
        return (
            x
            if self.settings.rotary
            else x + look_up(self.weights["positions"], positions.expand_as(tokens))
        )

    def _heads(self, parts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [*runs, B, L, 3d] at positions [L] or [*runs, B, L] → each
        [*runs, B, H, L, d/H], queries scaled.
        """
        heads, size = self.settings.heads, self.settings.width // self.settings.heads
        q, k, v = (
            part.unflatten(-1, (heads, size)).transpose(-2, -3) for part in parts.chunk(3, -1)
        )
        if self.settings.rotary:
            q, k = self._rotate(q, positions), self._rotate(k, positions)
        return q * size**-0.5, k, v

    def _block_end(self, layer: int, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self._linear(f"{layer}.out", mixed)
        inner = torch.relu_(self._linear(f"{layer}.up", _norm(x)))
        return x + self._linear(f"{layer}.down", inner)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[name]
        if not self.runs:
            return x @ weight
        flat = x.flatten(len(self.runs), -2)
        return (flat @ weight).unflatten(-2, x.shape[len(self.runs) : -1])

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn pairs of x [..., H, L, d/H] by their positions' angles (Su et al. 2021, eq. 34)."""
        cos, sin = (
            self._angles[0][positions].unsqueeze(-3),
            self._angles[1][positions].unsqueeze(-3),
        )
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _joined(mixed: Tensor) -> Tensor:
    """The heads side by side: [*runs, B, H, L, d/H] → [*runs, B, L, d]."""
    return mixed.transpose(-2, -3).flatten(-2)


def _norm(x: Tensor) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) without a gain: the linear layer behind each norm can
    scale for itself.
    """
    return _RMSNorm.apply(x)[0]  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """y = s·x with s = 1/√(mean x² + ε); backwards s·(g − y·mean(g·y)): forwards and backwards in
    half the time of torch's own on a CPU.

    s is an output, too, so that the gradient has a gradient (TRPO's products with the Fisher
    matrix).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = (x * x).sum(-1, keepdim=True).div_(x.shape[-1]).add_(1e-6).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y, scale

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_scale: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (g * y).sum(
            -1, keepdim=True
        ) + g_scale * scale  # g_scale is 0 but where a gradient is differentiated: ds/dx = −s²·y/d
        return torch.addcmul(g, y, along, value=-1 / y.shape[-1]).mul_(scale)


def _angles(
    settings: ModelSettings, device: torch.device | str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [context, d/2H] of every position's angles; base 1000 where long contexts take
    10,000.
    """
    half = settings.width // settings.heads // 2
    rate = 1000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(settings.context, dtype=torch.float64).unsqueeze(-1) * rate
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def flops_per_token(settings: ModelSettings, length: int, *, read: bool = True) -> float:
    """Multiply-adds × 2 of one token's forward pass in a sequence of `length`: matrices, and
    attention to what it sees.

    `read` False: of one whose final state nobody reads, which ends at the last block's keys and
    values.
    """
    d, h = settings.width, settings.hidden
    matrices = settings.layers * (4 * d * d + 2 * d * h) + d * VOCABULARY
    if not read:
        matrices -= d * d + 2 * d * h + d * VOCABULARY
    return 2.0 * (matrices + settings.layers * 2 * d * length)


__all__ = ["PRESETS", "Cache", "ModelSettings", "Transformer", "flops_per_token"]
