"""Statistics of independent runs: means and shares with their standard errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from course.errors import require


def mean_error(samples: Any) -> tuple[Any, Any]:
    """Mean and standard error over the first axis (independent runs) of `samples` [n, …], n ≥ 2:
    floats, or arrays [...].

    eq:seed-standard-error
    """
    values = np.asarray(
        samples.detach().cpu() if isinstance(samples, Tensor) else samples, dtype=np.float64
    )
    require(
        values.ndim > 0 and len(values) > 1,
        "samples",
        values.shape,
        "at least 2 independent runs on the first axis",
    )
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
    return (float(mean), float(error)) if values.ndim == 1 else (mean, error)


def share_error(hits: int, total: int) -> tuple[float, float]:
    """A share and its standard error after Agresti & Coull 1998 (two hits and two misses added),
    which is never 0.
    """
    require(0 <= hits <= total and total > 0, "hits", hits, f"0 … {total}")
    adjusted = (hits + 2) / (total + 4)
    return hits / total, math.sqrt(adjusted * (1 - adjusted) / (total + 4))
