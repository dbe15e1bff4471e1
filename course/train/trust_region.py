"""Natural gradient and TRPO: steps measured in KL, not in parameters.

Optimisers, and not losses; all runs in lockstep.

Conjugate gradient on Fisher-vector products: the Fisher matrix is the Hessian of KL(sg[π]‖π) at π
itself, so its product with a vector is two backward passes (Schulman et al. 2015, TRPO, appendix
C).
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
    """v → (F + damping·1) v, per run: lists of [..., *rest] → the same.

    Refuses what F says nothing of: a critic's gradient.

    F = E[s sᵀ] is the Hessian of the KL at the policy itself (`eq:fisher-kl`).
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
    """Solve A x = b from x = 0, every run for itself (Hestenes & Stiefel 1952); a run that has
    converged stands still.

    The iteration is `eq:conjugate-gradient`.
    """
    x = [torch.zeros_like(part) for part in b]
    residual, direction = [part.clone() for part in b], [part.clone() for part in b]
    size = start = per_run_dot(residual, residual, runs)
    # below this the residual is rounding, and where F is singular 1/damping would blow it up: runs
    # alone and together would part
    tiny = (100 * torch.finfo(start.dtype).eps) ** 2
    for _ in range(iterations):
        image = product(direction)
        curvature = per_run_dot(direction, image, runs)
        going = (size > tiny * start) & (curvature > 0)
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
    """θ ← θ + lr·F⁻¹g with F of the current policy (Kakade 2001): the same step whatever the
    parametrisation.
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
    """One step of TRPO: the natural direction at the length where KL = max_kl, then backtracking
    until both hold: the surrogate rises and KL(π_old‖π) ≤ max_kl (Schulman et al. 2015, §6 and
    appendix C). A run that finds no such step stays. It solves `eq:trust-region-problem`, to second
    order in the step and then by the true KL. `max_kl` is a number or a tensor [...], one per run.
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
    """Refuse settings that the conjugate gradient cannot use."""
    require_number(f"{name}.iterations", iterations, "a whole number > 0", above=0, whole=True)
    require_number(f"{name}.damping", damping, "a number ≥ 0", at_least=0)
