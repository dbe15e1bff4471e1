"""Random numbers: one stream per run, so that a run gives the same result alone and in a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

from course.arguments import require_type
from course.errors import CourseError, require, require_number

# numbers drawn ahead per run. It must not change: it decides how uniform and normal numbers share
# the stream of a run
BLOCK = 512
TILE = 128  # runs whose numbers are drawn before they are copied: as many as the cache holds


class Noise:
    """Uniform and normal numbers for runs [...]; each run has its own generator.

    The generator of a run is seeded by (seed, number of the run). `numbers` says which runs of a
    larger experiment these are (default 0, 1, 2 …): `Noise((1,), seed, numbers=[7])` repeats the
    numbers of the eighth run. Numbers are drawn in float64 and converted, so all dtypes see the
    same stream. Raises `CourseError` if an argument is out of range.
    """

    def __init__(
        self,
        runs: Sequence[int] = (),
        seed: int = 0,
        *,
        numbers: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        require_number("seed", seed, "a whole number ≥ 0", at_least=0, whole=True)
        require(isinstance(runs, Sequence), "noise.runs", runs, "a shape, such as (8,)")
        for size in runs:
            require_number("noise.runs", size, "whole numbers ≥ 0", at_least=0, whole=True)
        self.runs = torch.Size(runs)
        self.count = prod(self.runs)
        numbers = range(self.count) if numbers is None else numbers
        allowed = f"one number for each of the {self.count} runs"
        is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str)
        require(is_list, "noise.numbers", numbers, allowed)
        require_type("noise.device", device, torch.device | str)
        require(
            len(numbers) == self.count,
            "noise.numbers",
            len(numbers),
            allowed,
        )
        for number in (
            () if isinstance(numbers, range) and min(numbers, default=0) >= 0 else numbers
        ):
            require_number("noise.numbers", number, "whole numbers ≥ 0", at_least=0, whole=True)
        require(
            isinstance(dtype, torch.dtype) and dtype.is_floating_point,
            "noise.dtype",
            dtype,
            "a floating-point type, such as torch.float32",
        )
        self.dtype, self.device = dtype, torch.device(device)
        master = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
        words = master.integers(2**64, size=(max(numbers, default=-1) + 1, 3), dtype=np.uint64)
        self.generators = [
            np.random.Generator(np.random.SFC64(cast(Any, _Words(words[run])))) for run in numbers
        ]
        empty = torch.empty(0, self.count, dtype=torch.float64, device="cpu")
        self._ahead = {"uniform": empty, "normal": empty}  # drawn ahead, [n, runs]
        self._used = {"uniform": 0, "normal": 0}  # how many of these n

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers on [0, 1], [..., *shape] (float32 may round up to 1)."""
        return self._draw("uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, [..., *shape]."""
        return self._draw("normal", shape)

    def _draw(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        need, used = prod(shape), self._used[kind]
        left = self._ahead[kind].shape[0] - used
        if left < need:
            self._refill(kind, max(BLOCK, need - left))
            used = 0
        self._used[kind] = used + need
        taken = self._ahead[kind][used : used + need].view(*shape, *self.runs)
        return taken.permute(
            *range(len(shape), taken.dim()), *range(len(shape))
        )  # the runs are the first axes, but the fastest in memory

    def _refill(self, kind: str, size: int) -> None:
        block = torch.empty(size, self.count, dtype=self.dtype, device="cpu")
        fresh = np.empty((TILE, size))
        for first in range(0, self.count, TILE):
            some = self.generators[first : first + TILE]
            for row, generator in zip(fresh, some, strict=False):
                if kind == "uniform":
                    generator.random(out=row)
                else:
                    generator.standard_normal(out=row)
            # converted and turned around, so that the runs are the fastest axis in memory
            block[:, first : first + TILE] = torch.from_numpy(fresh[: len(some)]).t()
        block, left = block.to(self.device), self._left(kind)
        self._ahead[kind] = torch.cat([left.to(block), block]) if len(left) else block
        self._used[kind] = 0

    def _left(self, kind: str) -> Tensor:
        """The numbers that are drawn and not used yet, [n, runs]."""
        return self._ahead[kind][self._used[kind] :]

    def state(self) -> dict[str, Tensor]:
        """Everything that the next numbers depend on, as tensors."""
        words = (
            np.stack([_state_words(generator) for generator in self.generators])
            if self.generators
            else np.empty((0, 6), np.uint64)
        )
        return {
            "generators": torch.from_numpy(words.view(np.int64)),
            **{kind: self._left(kind).cpu().clone() for kind in self._ahead},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved `state`, bit for bit."""
        words = state["generators"].numpy().view(np.uint64)
        if len(words) != self.count:
            raise CourseError(f"noise state: got {len(words)} runs; allowed is {self.count}")
        for generator, row in zip(self.generators, words, strict=True):
            full: Any = generator.bit_generator.state
            full["state"]["state"][:] = row[:4]
            full["has_uint32"], full["uinteger"] = int(row[4]), int(row[5])
            generator.bit_generator.state = full
        self._ahead = {kind: state[kind].to(self.device) for kind in self._ahead}
        self._used = dict.fromkeys(self._ahead, 0)


class _Words(ISeedSequence):
    """Three seed words, used unchanged, since they come from the stream of the master generator."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return self.words


def _state_words(generator: np.random.Generator) -> np.ndarray:
    full = generator.bit_generator.state
    return np.array(
        [*full["state"]["state"], full["has_uint32"], full["uinteger"]], dtype=np.uint64
    )
