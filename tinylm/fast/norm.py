"""RMSNorm with an explicit gradient, which takes half the time of autograd's on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    """The same numbers as `tinylm.model.norm`: x [..., d] / √(mean x² + ε)."""
    normed: Tensor = _RMSNorm.apply(x)[0]  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    """y = s·x with s = 1/√(mean x² + ε); its gradient is s·(g − y·mean(g·y)).

    s is a second output so that the gradient can itself be differentiated, which TRPO needs for its
    products with the Fisher matrix.
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
        # g_scale is not 0 only when a gradient is differentiated: ds/dx = −s²·y/d
        along = (g * y).sum(-1, keepdim=True) + g_scale * scale
        return torch.addcmul(g, y, along, value=-1 / y.shape[-1]).mul_(scale)


__all__ = ["norm"]
