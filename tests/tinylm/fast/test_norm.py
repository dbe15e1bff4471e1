"""RMSNorm with its own gradient, against torch's."""

from __future__ import annotations

import torch

from tests.helpers import close
from tinylm import model
from tinylm.fast.norm import norm


def torchs_norm(x: torch.Tensor) -> torch.Tensor:
    """The same by torch."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def test_the_norm_and_its_first_two_derivatives_are_torchs() -> None:
    x = torch.randn(
        5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    weigh = torch.linspace(-1, 2, 30, dtype=torch.float64).view(5, 6)
    found = []
    for each in (norm, model.norm, torchs_norm):
        y = each(x)
        (first,) = torch.autograd.grad((y.sin() * weigh).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first.square() * weigh).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad((second * weigh).sum(), x)
        found.append((y, first, second, third))
    for mine, plain, torchs in zip(*found, strict=True):
        close(mine.detach(), torchs.detach(), rtol=1e-11, atol=1e-12)
        close(plain.detach(), torchs.detach(), rtol=1e-11, atol=1e-12)


def test_the_norm_is_computed_in_float32_where_products_are_not() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weigh = torch.linspace(-1, 1, x.numel()).view_as(x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, torchs = norm(x), torchs_norm(x)
        slopes = [torch.autograd.grad((y * weigh).sum(), x)[0] for y in (mine, torchs)]
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)
