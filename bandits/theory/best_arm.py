"""The expected reward of always pulling the best of several random arms, and its standard error."""

from __future__ import annotations

import math

import torch


def expected_maximum(arms: int) -> float:
    """E[max] of `arms` N(0, 1) numbers: the reward per pull of always pulling the best arm."""
    return _moment(arms, 1)


def maximum_error(arms: int, draws: int) -> float:
    """The standard error of the mean maximum of `arms` N(0, 1) numbers over `draws` sets."""
    return math.sqrt((_moment(arms, 2) - _moment(arms, 1) ** 2) / draws)


def _moment(arms: int, power: int) -> float:
    """E[max^power] = ∫ x^power dΦ(x)^arms, by the trapezoid rule."""
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    density = (
        arms * torch.special.ndtr(x) ** (arms - 1) * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    )
    return float(torch.trapezoid(x**power * density, x))
