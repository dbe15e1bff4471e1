"""A decoder-only transformer, written to be read in one sitting. Its weights can carry run axes: several models in one program.

Pre-norm, RMSNorm, rotary or learned positions, softmax attention written out, a ReLU network, no dropout, no biases.
Hidden states are [*runs, N, d] with all tokens of all rows in one axis N, so that a linear layer is one (batched) product.
Deviations from the usual: attention is explicit, since the fused kernel is slower at this size and has no second
derivative on the CPU, which TRPO needs; the output layer is not tied to the embedding; tables are read by a product with
one-hot rows, whose gradient adds up in one fixed order (that of a look-up does not, with several threads or on a GPU); norms
have no gain; ReLU in place of GELU, which at this size costs a tenth of the time, and learns as well here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from course.errors import require
from course.noise import Noise
from tinylm.tasks import VOCABULARY


@dataclass(frozen=True)
class ModelSettings:
    """The shape of a model. `context` is in tokens; `value` adds a value head (a critic on the policy's own trunk)."""

    width: int = 128  # d, the size of a hidden state
    layers: int = 2  # blocks
    heads: int = 4  # of attention
    hidden: int = 384  # inside the feed-forward network
    context: int = 32  # longest sequence, in tokens
    vocabulary: int = VOCABULARY  # tokens
    rotary: bool = False  # rotary positions; False: learned ones
    value: bool = False  # a value head

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden", "context", "vocabulary"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a whole number > 0")
        require(self.width % (2 * self.heads) == 0, "model.width", self.width, f"a multiple of 2·heads = {2 * self.heads}")


PRESETS = {
    "nano": ModelSettings(width=24, layers=1, heads=2, hidden=128, context=16),
    "small": ModelSettings(width=128, layers=2, heads=4, hidden=384, context=48),
    "gpu": ModelSettings(width=384, layers=6, heads=6, hidden=1536, context=96),
}


@dataclass(frozen=True)
class Cache:
    """Keys and values of a prefix, one pair per layer: each [*runs, B, H, L, d/H]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Transformer:
    """Weights and the two ways to use them: whole sequences under a mask, and one more token behind a cache."""

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
        d, h, v = settings.width, settings.hidden, settings.vocabulary
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

    def compile(self) -> None:
        """Compile the pass over whole sequences, which training spends its time in (needs a C compiler; slow at first)."""
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
        twin.settings, twin.runs, twin._angles = self.settings, self.runs, self._angles
        twin.weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return twin

    # ------------------------------------------------------------------ whole sequences

    def hidden(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """tokens [*runs, B, L], their positions [L], who may see whom [L, L] (bool) → final states [*runs, B, L, d]."""
        shape, rows = tokens.shape, tokens.shape[-2]
        x = self._embed(tokens, positions)
        hide = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -torch.inf)
        for i in range(self.settings.layers):
            q, k, v = self._queries(i, x, rows, positions)
            scores = q @ k.transpose(-1, -2) + hide
            mixed = torch.softmax(scores, -1) @ v  # [*runs, B, H, L, d/H]
            x = self._block_end(i, x, mixed.transpose(-2, -3).flatten(-2).flatten(-3, -2))
        return _norm(x).unflatten(-2, shape[-2:])

    def logits(self, states: Tensor) -> Tensor:
        """Final states [*runs, ..., d] → next-token logits [*runs, ..., V]."""
        return self._linear("head", states)

    def values(self, states: Tensor) -> Tensor:
        """Final states [*runs, ..., d] → the critic's values [*runs, ...]."""
        return self._linear("value", states).squeeze(-1).to(self.weights["value"].dtype)

    # ------------------------------------------------------------------ with a cache

    def prefill(self, prompt: Tensor) -> tuple[Tensor, Cache]:
        """Prompts [*runs, Q, P] → the state of their last token [*runs, Q, d], and the cache of all of them."""
        length, rows = prompt.shape[-1], prompt.shape[-2]
        positions = torch.arange(length, device=prompt.device)
        x = self._embed(prompt, positions)
        hide = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        keys, values = [], []
        for i in range(self.settings.layers):
            q, k, v = self._queries(i, x, rows, positions)
            keys.append(k)
            values.append(v)
            mixed = torch.softmax(q @ k.transpose(-1, -2) + hide, -1) @ v
            x = self._block_end(i, x, mixed.transpose(-2, -3).flatten(-2).flatten(-3, -2))
        last = x.unflatten(-2, (rows, length))[..., -1, :]
        return _norm(last), Cache(tuple(keys), tuple(values))

    def extend(self, token: Tensor, position: int, prompt: Cache, own: Cache | None) -> tuple[Tensor, Cache]:
        """One more token of every completion, [*runs, Q, G]: it sees its prompt and its own tokens before it.

        Returns its state [*runs, Q, G, d] and the completions' own cache, each entry [*runs, Q, H, G, t, d/H].
        """
        rows, group = token.shape[-2:]
        heads, size = self.settings.heads, self.settings.width // self.settings.heads
        place = torch.full((1,), position, device=token.device)
        x = self._embed(token.unsqueeze(-1).flatten(-3, -2), place)
        keys, values = [], []
        for i in range(self.settings.layers):
            parts = self._linear(f"{i}.qkv", _norm(x)).unflatten(-1, (3, heads, size))
            q, k, v = parts.unflatten(-4, (rows, group)).movedim(-3, 0).transpose(-2, -3)  # each [*runs, Q, H, G, d/H]
            if self.settings.rotary:
                q, k = self._rotate(q, place), self._rotate(k, place)
            q = q * size**-0.5
            k, v = k.unsqueeze(-2), v.unsqueeze(-2)
            if own is not None:
                k, v = torch.cat([own.keys[i], k], -2), torch.cat([own.values[i], v], -2)
            keys.append(k)
            values.append(v)
            shared = q @ prompt.keys[i].transpose(-1, -2)  # [*runs, Q, H, G, P]
            private = (k @ q.unsqueeze(-1)).squeeze(-1)  # [*runs, Q, H, G, t]
            weight = torch.softmax(torch.cat([shared, private], -1), -1)
            length = shared.shape[-1]
            mixed = weight[..., :length] @ prompt.values[i] + (weight[..., None, length:] @ v).squeeze(-2)
            x = self._block_end(i, x, mixed.transpose(-2, -3).flatten(-2).flatten(-3, -2))
        return _norm(x).unflatten(-2, (rows, group)), Cache(tuple(keys), tuple(values))

    # ------------------------------------------------------------------ the pieces

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [*runs, B, L] at positions [L] → [*runs, B·L, d]."""
        x = self._rows("embedding", tokens.flatten(-2))
        if self.settings.rotary:
            return x
        return (x.unflatten(-2, tokens.shape[-2:]) + self._rows("positions", positions).unsqueeze(-3)).flatten(-3, -2)

    def _rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a table [*runs, V, d] by their numbers [*runs, N] or [N] → [*runs, N, d]."""
        table = self.weights[name]
        chosen = index.unsqueeze(-1) == torch.arange(table.shape[-2], device=index.device)
        with torch.autocast(index.device.type, enabled=False):  # a look-up rounds nothing
            return chosen.to(table.dtype) @ table

    def _queries(self, layer: int, x: Tensor, rows: int, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, size = self.settings.heads, self.settings.width // self.settings.heads
        parts = self._linear(f"{layer}.qkv", _norm(x))
        q, k, v = parts.unflatten(-1, (3, heads, size)).unflatten(-4, (rows, -1)).movedim(-3, 0).transpose(-2, -3)
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
        """Turn pairs of x [..., L, d/H] by their positions' angles (Su et al. 2021, eq. 34)."""
        cos, sin = self._angles[0][positions], self._angles[1][positions]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _norm(x: Tensor) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) without a gain: the linear layer behind each norm can scale for itself."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), eps=1e-6)


def _angles(settings: ModelSettings, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [context, d/2H] of every position's angles; base 1000 where long contexts take 10,000."""
    half = settings.width // settings.heads // 2
    rate = 1000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(settings.context, dtype=torch.float64).unsqueeze(-1) * rate
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def tree(prompt: int, group: int, tokens: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Positions [L] and mask [L, L] of one prompt and G completions packed as one sequence, L = prompt + G·tokens.

    Every completion sees the prompt and itself, and its positions count on from the prompt's end, as if it stood alone.
    """
    row = torch.arange(prompt + group * tokens, device=device)
    behind = row >= prompt
    step = torch.where(behind, (row - prompt) % max(tokens, 1), row)
    branch = torch.where(behind, (row - prompt) // max(tokens, 1), -1)
    positions = torch.where(behind, prompt + step, row)
    same = branch.unsqueeze(-1) == branch
    mask = (~behind & (row <= row.unsqueeze(-1))) | (behind & same & (step <= step.unsqueeze(-1)))
    return positions, mask


def flops_per_token(settings: ModelSettings, length: int) -> float:
    """Multiply-adds × 2 of one token's forward pass in a sequence of `length`: matrices, and attention to what it sees."""
    d, h = settings.width, settings.hidden
    matrices = settings.layers * (4 * d * d + 2 * d * h) + d * settings.vocabulary
    return 2.0 * (matrices + settings.layers * 2 * d * length)


__all__ = ["PRESETS", "Cache", "ModelSettings", "Transformer", "flops_per_token", "tree"]
