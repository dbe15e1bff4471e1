"""Natural gradient and TRPO: optimisers whose step length is measured in KL.

They use conjugate gradients on Fisher-vector products. The Fisher matrix is the Hessian of
KL(sg[π]‖π) at π itself, so its product with a vector takes two backward passes (Schulman et al.
2015, TRPO, appendix C). All runs are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course.errors import CourseError, require_number
from course.train.optim import (
    Closures,
    Schedule,
    _FirstOrder,
    over_runs,
    per_run_dot,
    require_per_run,
)

Vector = list[Tensor]


def fisher_product(closures: Closures, damping: float) -> Callable[[Sequence[Tensor]], Vector]:
    """The function v → (F + damping·1) v, per run; vectors are lists of [..., *rest].

    F = E[s sᵀ] is the Hessian of the KL at the policy itself (`eq:fisher-kl`). The function raises
    `CourseError` if v has a gradient of parameters that the policy does not depend on (a critic's).
    """
    log_dist = closures.log_dist()
    kl = closures.mean_kl(log_dist.detach(), log_dist).sum()
    first = torch.autograd.grad(kl, closures.parameters, create_graph=True, allow_unused=True)
    used = [(g, p) for g, p in zip(first, closures.parameters, strict=True) if g is not None]

    def product(vector: Sequence[Tensor]) -> Vector:
        if any(g is None and bool(v.any()) for g, v in zip(first, vector, strict=True)):
            raise CourseError(
                "parameters: got one with a gradient that does not move the policy (a critic);"
                " allowed are the policy's own"
            )
        dot = sum((g * v).sum() for g, v in zip(first, vector, strict=True) if g is not None)
        assert isinstance(dot, Tensor)
        second = iter(torch.autograd.grad(dot, [p for _, p in used], retain_graph=True))
        return [
            damping * v if g is None else next(second) + damping * v
            for g, v in zip(first, vector, strict=True)
        ]

    return product


def conjugate_gradient(
    product: Callable[[Sequence[Tensor]], Vector], b: Sequence[Tensor], runs: int, iterations: int
) -> Vector:
    """Solve A x = b from x = 0 for each run separately; a run that has converged does not change.

    `b` and x are lists of [..., *rest] with `runs` run axes. The iteration is
    `eq:conjugate-gradient` (Hestenes & Stiefel 1952).
    """
    x = [torch.zeros_like(part) for part in b]
    residual, direction = [part.clone() for part in b], [part.clone() for part in b]
    size = start = per_run_dot(residual, residual, runs)
    # a smaller residual is rounding error, which 1/damping would amplify where F is singular; runs
    # alone and together would then differ
    tiny = (100 * torch.finfo(start.dtype).eps) ** 2
    for _ in range(iterations):
        image = product(direction)
        curvature = per_run_dot(direction, image, runs)  # [...] dᵀAd of each run
        going = (size > tiny * start) & (curvature > 0)
        # step length along the direction; 0 for runs that have converged
        alpha = torch.where(
            going,
            size / torch.where(going, curvature, torch.ones_like(curvature)),
            torch.zeros_like(size),
        )
        x = [a + over_runs(alpha, a) * d for a, d in zip(x, direction, strict=True)]
        residual = [r - over_runs(alpha, r) * i for r, i in zip(residual, image, strict=True)]
        new = per_run_dot(residual, residual, runs)
        beta = torch.where(
            going, new / torch.where(going, size, torch.ones_like(size)), torch.zeros_like(size)
        )
        direction = [r + over_runs(beta, r) * d for r, d in zip(residual, direction, strict=True)]
        size = torch.where(going, new, size)
    return x


class NaturalGradient(_FirstOrder):
    """θ ← θ + lr·F⁻¹g, with the Fisher matrix F of the current policy (Kakade 2001).

    To first order the step does not depend on how the policy is parametrised. Raises `CourseError`
    if a setting is out of range.
    """

    made_with = (*_FirstOrder.made_with, "iterations", "damping")

    def __init__(
        self,
        lr: float | Tensor,
        schedule: Schedule | None = None,
        *,
        iterations: int = 10,
        damping: float = 1e-8,
    ) -> None:
        super().__init__(lr, schedule)
        _require_solver("NaturalGradient", iterations, damping)
        self.iterations, self.damping = iterations, damping

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        runs = closures.loss().dim()
        direction = conjugate_gradient(
            fisher_product(closures, self.damping), gradients, runs, self.iterations
        )
        rate = self._rate(closures)
        with torch.no_grad():
            for parameter, part in zip(closures.parameters, direction, strict=True):
                parameter.sub_(over_runs(rate, parameter) * part)
        return {}


class TRPO:
    """TRPO: the natural gradient direction, with a step length that keeps KL(π_old‖π) ≤ max_kl.

    It solves `eq:trust-region-problem`. The first length has KL = max_kl to second order. Then
    backtracking shrinks it until the surrogate rises and the true KL is at most max_kl. A run
    without such a step keeps its parameters. `max_kl`, in nats, is a number or a tensor [...], one
    per run. Raises `CourseError` if a setting is out of range. Source: Schulman et al. 2015, §6 and
    appendix C.
    """

    made_with = ("max_kl", "iterations", "damping", "backtracks", "shrink")

    def __init__(
        self,
        max_kl: float | Tensor = 0.01,
        *,
        iterations: int = 10,
        damping: float = 1e-6,
        backtracks: int = 10,
        shrink: float = 0.5,
    ) -> None:
        require_per_run("TRPO.max_kl", max_kl, "a finite number of nats")
        _require_solver("TRPO", iterations, damping)
        require_number("TRPO.backtracks", backtracks, "a whole number > 0", above=0, whole=True)
        require_number("TRPO.shrink", shrink, "a number between 0 and 1", above=0, below=1)
        self.max_kl, self.iterations, self.damping, self.backtracks, self.shrink = (
            max_kl,
            iterations,
            damping,
            backtracks,
            shrink,
        )

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        with torch.no_grad():
            before = closures.loss()
        runs = before.dim()
        old = (
            closures.log_dist().detach() if closures.old_log_dist is None else closures.old_log_dist
        )
        product = fisher_product(closures, self.damping)
        direction = conjugate_gradient(product, gradients, runs, self.iterations)
        curvature = per_run_dot(direction, product(direction), runs)
        # `eq:trust-region-length`
        length = torch.where(
            curvature > 0,
            (2 * self.max_kl / curvature.clamp(min=1e-30)).sqrt(),
            torch.zeros_like(curvature),
        )
        start = [parameter.detach().clone() for parameter in closures.parameters]
        fraction = torch.ones_like(before)
        accepted = torch.zeros_like(before, dtype=torch.bool)
        kl = torch.zeros_like(before)
        with torch.no_grad():
            for _ in range(self.backtracks):
                self._place(closures.parameters, start, direction, length * fraction)
                new_kl = closures.mean_kl(old, closures.log_dist())
                good = ~accepted & (closures.loss() < before) & (new_kl <= self.max_kl)
                kl = torch.where(good, new_kl, kl)
                accepted = accepted | good
                if bool(accepted.all()):
                    break
                fraction = torch.where(accepted, fraction, fraction * self.shrink)
            fraction = torch.where(accepted, fraction, torch.zeros_like(fraction))
            self._place(closures.parameters, start, direction, length * fraction)
        return {"trust_region_kl": kl, "step_fraction": fraction}

    @staticmethod
    def _place(
        parameters: Sequence[Tensor], start: Vector, direction: Vector, length: Tensor
    ) -> None:
        for parameter, origin, part in zip(parameters, start, direction, strict=True):
            parameter.copy_(origin - over_runs(length, part) * part)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        pass


def _require_solver(name: str, iterations: int, damping: float) -> None:
    """Raise `CourseError` unless `iterations` is a whole number > 0 and `damping` is ≥ 0."""
    require_number(f"{name}.iterations", iterations, "a whole number > 0", above=0, whole=True)
    require_number(f"{name}.damping", damping, "a number ≥ 0", at_least=0)
