"""Saved state: tensors and their description in one safetensors file, without pickle.

A file is written completely or not at all.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from course.errors import CourseError
from course.train.files import replace_files, settle

FORMAT = "pg-ladder state 2"


def write(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write tensors and a description for JSON to `path`; returns the path."""
    path = Path(path)
    replace_files({path: as_bytes(tensors, about)})
    return path


def as_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The bytes of the file of a state; equal states give equal bytes in every process.

    The format sorts its tensors, but not its metadata. So the metadata has a single entry, a JSON
    with sorted keys.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = json.dumps(dict(about), sort_keys=True)
    head = {"format": FORMAT, "about": described, "sum": _checksum(kept, described)}
    return save(kept, metadata={"head": json.dumps(head, sort_keys=True)})


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the description of a saved state.

    Raises `CourseError`, which names the file, if it is missing, damaged or of another format.
    """
    settle(Path(path).parent)
    try:
        with safe_open(str(path), framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("head", "{}"))
            if head.get("format") != FORMAT:
                raise CourseError(
                    f"{path}: got a file of format {head.get('format')!r}; allowed is {FORMAT!r}"
                )
            # cloned, since they are views of the file and would change if the file were rewritten
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if _checksum(tensors, head["about"]) != head["sum"]:
                raise CourseError(f"{path}: damaged: the checksum is not that of its contents")
            return tensors, dict(json.loads(head["about"]))
    except FileNotFoundError as error:
        raise CourseError(f"{path}: no such file") from error
    except CourseError:
        raise
    # all that the library, the disk and a foreign header may raise
    except (
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CourseError(f"{path}: damaged or not a saved state ({error})") from error


def _checksum(tensors: Mapping[str, Tensor], described: str) -> str:
    """CRC-32 over names, shapes, types and bytes.

    The format itself detects a file that was cut off, but not a flipped bit.
    """
    total = zlib.crc32(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    return f"{total:08x}"


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with "prefix." before their names, so that several states fit in one file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with "prefix.", under the rest of the name."""
    return {
        name[len(prefix) + 1 :]: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix + ".")
    }


def equal_states(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
