"""Statistics of independent runs: means, paired differences and shares, with intervals.

Intervals are Student's t and Wilson's, for the actual number of runs; quantiles come from SciPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_number

LEVEL = 0.95  # of every interval that is drawn or printed


@typed
def student(chance: float, runs: int | None) -> float:
    """The two-sided quantile t of Student's distribution for `runs` normal values.

    With probability `chance` their mean is off by more than t standard errors, in either direction.
    `runs` None means that the standard error is known, and gives the normal quantile. One run has
    no standard error, and gives inf. Source: Student 1908.
    """
    from scipy.special import ndtri, stdtrit

    require(0 < chance < 1, "chance", chance, "between 0 and 1")
    require(
        runs is None or (isinstance(runs, int) and runs >= 1),
        "runs",
        runs,
        "a whole number ≥ 1, or None where the standard error is known",
    )
    if runs == 1:
        return math.inf
    return -float(ndtri(chance / 2) if runs is None else stdtrit(runs - 1, chance / 2))


def mean_error(samples: Any) -> tuple[Any, Any]:
    """Mean and standard error over the first axis (independent runs): [n, …] → floats or [...].

    Raises `CourseError` if n < 2. eq:seed-standard-error
    """
    values = _array(samples)
    require(
        values.ndim > 0 and len(values) > 1,
        "samples",
        values.shape,
        "at least 2 independent runs on the first axis",
    )
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
    return (float(mean), float(error)) if values.ndim == 1 else (mean, error)


def interval(values: Any, level: float = LEVEL) -> tuple[Any, Any]:
    """Mean over the last axis (independent runs) and half the width of its 95 % interval.

    `values` [..., n] → floats or arrays [...]. The interval is Student's t with n − 1 degrees of
    freedom. One run has no interval: half is NaN, and `described` says so.
    """
    _require_level(level)
    array = _array(values)
    require(
        array.ndim > 0 and array.shape[-1] > 0,
        "values",
        array.shape,
        "at least 1 independent run on the last axis",
    )
    runs = array.shape[-1]
    if runs == 1:
        mean, half = array[..., 0], np.full(array.shape[:-1], np.nan)
    else:
        mean, error = array.mean(-1), array.std(-1, ddof=1) / math.sqrt(runs)
        half = student(1 - level, runs) * error
    return (float(mean), float(half)) if array.ndim == 1 else (mean, half)


@typed
def named_interval(name: str, values: Any) -> dict[str, Any]:
    """`interval` as two series of a result, `name` and `name`_half."""
    mean, half = interval(values)
    return {name: mean, f"{name}_half": half}


@typed
def described(runs: int) -> str:
    """The words of a caption for an `interval` over this many runs."""
    if runs == 1:
        return "one run, so no interval"
    return f"mean of {runs} runs and its 95 % interval (Student's t)"


def paired_error(first: Any, second: Any) -> tuple[Any, Any]:
    """Mean and standard error of first − second over the first axis, run by run.

    Both are [n, …]. Run i of both has the same start and random streams, so shared noise cancels.
    """
    return mean_error(_differences(first, second))


def paired_interval(first: Any, second: Any, level: float = LEVEL) -> tuple[Any, Any]:
    """`interval` of first − second, run by run along the last axis; both [..., n] and paired."""
    return interval(_differences(first, second), level)


@typed
def share_error(hits: int, total: int) -> tuple[float, float]:
    """A share and its standard error, which is never 0.

    Two hits and two misses are added before it is computed (Agresti & Coull 1998).
    """
    require(0 <= hits <= total and total > 0, "hits", hits, f"0 … {total}")
    adjusted = (hits + 2) / (total + 4)
    return hits / total, math.sqrt(adjusted * (1 - adjusted) / (total + 4))


@typed
def share_interval(hits: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """The 95 % interval of a share, `hits` of `total` independent tries (Wilson 1927).

    It is also valid for shares of 0 and 1.
    """
    from scipy.stats import binomtest

    _require_level(level)
    require(total > 0, "total", total, "a whole number > 0")
    require(0 <= hits <= total, "hits", hits, f"0 … {total}")
    found = binomtest(hits, total).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


@typed
def mean_share_interval(shares: Any, samples: int = 1, level: float = LEVEL) -> tuple[float, float]:
    """The 95 % interval of the mean of shares [N], one per question, each out of `samples` draws.

    It is Wilson's interval for an effective number of independent draws, N·p(1 − p)/s², rounded
    down to a whole number between N and N·samples. With that number the mean of independent draws
    has the same variance as the mean over questions. Questions are the units, so the interval also
    covers the choice of questions.
    """
    values = _array(shares)
    require(
        values.ndim == 1 and len(values) > 0,
        "shares",
        values.shape,
        "[N] shares, one for each question",
    )
    require(bool(((values >= 0) & (values <= 1)).all()), "shares", shares, "numbers from 0 to 1")
    require(samples > 0, "samples", samples, "a whole number > 0")
    count, mean = len(values), float(values.mean())
    spread = float(values.var(ddof=1)) if count > 1 else 0.0
    # if all shares are equal, count each question as one draw
    draws = count * mean * (1 - mean) / spread if spread > 0 else count
    draws = math.floor(min(max(draws, count), count * samples) + 1e-9)
    return share_interval(round(mean * draws), draws, level)


def _require_level(level: float) -> None:
    require_number("level", level, "a number between 0 and 1", above=0, below=1)


def _array(values: Any) -> np.ndarray:
    """Numbers as an array; NaN stands for a run that was halted."""
    held = values.detach().cpu() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(held)
        real = found if np.iscomplexobj(found) else found.astype(np.float64)
        usable = not (np.iscomplexobj(real) or np.isinf(real).any())
    except (TypeError, ValueError, OverflowError):
        usable = False
    require(usable, "values", values, "real numbers, none infinite")
    return real


def _differences(first: Any, second: Any) -> np.ndarray:
    one, other = _array(first), _array(second)
    require(
        one.shape == other.shape,
        "second",
        other.shape,
        f"{one.shape}, the shape of the first: runs are compared one by one",
    )
    difference: np.ndarray = one - other
    return difference


__all__ = [
    "LEVEL",
    "described",
    "interval",
    "mean_error",
    "mean_share_interval",
    "paired_error",
    "paired_interval",
    "share_error",
    "share_interval",
    "student",
]
