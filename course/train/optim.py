"""Optimisers for many independent runs: the first axes of every parameter are the run axes.

A learning rate is a number or a tensor [...], one per run. Each optimiser gets the gradients
(already clipped) and closures, since some need more than a gradient: see `trust_region.py` for the
natural gradient and TRPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

from course.arguments import require_type
from course.errors import require, require_number

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Closures:
    """What an optimiser may compute in one update, at the current parameters.

    `loss()` → the loss [...] of each run. `log_dist()` → log-probabilities [..., Q, G or 1, T or 1,
    V], differentiable. `mean_kl(q, p)` → KL(q‖p) [...] in nats, the mean over the rollout's chosen
    tokens. `old_log_dist` belongs to π_old, the policy that sampled. `active` [...] bool marks the
    runs that take this update; None means all. The learner restores the parameters of the other
    runs, and an optimiser should leave their state unchanged.
    """

    parameters: Sequence[Tensor]
    loss: Callable[[], Tensor]
    log_dist: Callable[[], Tensor]
    mean_kl: Callable[[Tensor, Tensor], Tensor]
    old_log_dist: Tensor | None
    active: Tensor | None = None


class Optimizer(Protocol):
    """`step` changes the parameters in place, and may return metrics, name → [...].

    `state` returns what the optimiser remembers; a saved learner keeps it. The class variable
    `made_with` may name settings; a saved learner goes on only if they are equal.
    """

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Constant:
    """A constant learning rate."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up, then linear decay of the learning rate. eq:learning-rate-schedule

    The rate rises for `warmup` updates to its full value, then falls to the share `final` of it at
    update `steps`. Raises `CourseError` if a setting is out of range.
    """

    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        require_number(
            "LinearDecay.steps", self.steps, "a whole number of updates > 0", above=0, whole=True
        )
        require_number(
            "LinearDecay.warmup",
            self.warmup,
            f"a whole number of updates from 0 to below steps = {self.steps}",
            at_least=0,
            below=self.steps,
            whole=True,
        )
        require_number(
            "LinearDecay.final",
            self.final,
            "a share of the learning rate from 0 to 1",
            at_least=0,
            at_most=1,
        )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = max(0.0, 1 - (step - self.warmup) / (self.steps - self.warmup))
        return self.final + (1 - self.final) * left


@overload
def over_runs(per_run: Tensor, parameter: Tensor) -> Tensor: ...


@overload
def over_runs(per_run: float, parameter: Tensor) -> float: ...


def over_runs(per_run: Tensor | float, parameter: Tensor) -> Tensor | float:
    """One number per run [...], reshaped to multiply a parameter [..., *rest]."""
    if not isinstance(per_run, Tensor) or per_run.dim() == 0:
        return per_run
    return per_run.reshape(*per_run.shape, *(1,) * (parameter.dim() - per_run.dim()))


def put_back(tensors: Sequence[Tensor], before: Sequence[Tensor], which: Tensor) -> None:
    """Restore the tensors [..., *rest] to `before`, in place, for the runs in `which` [...]."""
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(over_runs(which, tensor), old, tensor))


def per_run_dot(a: Sequence[Tensor], b: Sequence[Tensor], runs: int) -> Tensor:
    """Σ a·b over all axes except the run axes: two lists of [..., *rest] → [...]."""
    total: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        product = x * y
        dot = product.sum(tuple(range(runs, product.dim()))) if product.dim() > runs else product
        total = dot if total is None else total + dot
    assert total is not None
    return total


def clip_gradients(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> list[Tensor]:
    """Scale each run's gradient to at most `max_norm`; `norm` [...] is its length.

    eq:gradient-norm-clip
    """
    factor = (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
    return [gradient * over_runs(factor, gradient) for gradient in gradients]


def require_per_run(field: str, value: object, unit: str) -> None:
    """Raise `CourseError` unless `value` is a finite number > 0, or a tensor of such numbers."""
    allowed = f"{unit} > 0 (or a tensor of them, one per run)"
    if not isinstance(value, Tensor):
        require_number(field, value, allowed, above=0)
        return
    require_type(field, value, Tensor)
    whole_or_real = value.dtype != torch.bool and not value.is_complex()
    require(whole_or_real, field, value.dtype, allowed)
    bad = ~((value > 0) & (value < torch.inf))
    if bool(bad.any()):
        require(False, field, value[bad][0].item(), allowed)


class _FirstOrder:
    """What optimisers with a learning rate share: the rate, its schedule and a count of updates.

    A run that stops early (`Closures.active`) has taken fewer updates than others, so the schedule
    gives it its own rate.
    """

    made_with: tuple[str, ...] = ("lr", "schedule")

    def __init__(self, lr: float | Tensor, schedule: Schedule | None = None) -> None:
        require_per_run("lr", lr, "a finite number")
        require(
            schedule is None or (callable(schedule) and not isinstance(schedule, type)),
            "schedule",
            schedule,
            "None or a function of the number of updates, such as LinearDecay(1000)",
        )
        self.lr, self.schedule = lr, schedule or Constant()
        self.updates = 0  # calls of `step`
        self.taken: Tensor | None = None  # [...] updates of each run; None if all took the same

    def _rate(self, closures: Closures) -> float | Tensor:
        """The learning rate of this update: a number, or one per run. It also counts the update."""
        if closures.active is not None and self.taken is None:
            self.taken = torch.full(closures.active.shape, self.updates, device="cpu")
        share = self._after_updates(self._share, closures.parameters[0])
        self.updates += 1
        if self.taken is not None:
            self.taken = self.taken + (
                1 if closures.active is None else closures.active.to("cpu", torch.int64)
            )
        return self.lr if not isinstance(share, Tensor) and share == 1 else self.lr * share

    def _after_updates(self, value: Callable[[int], float], like: Tensor) -> float | Tensor:
        """`value(n)` for the number n of updates so far: one number, or one per run [...]."""
        if self.taken is None:
            return value(self.updates)
        per_run = [value(n) for n in self.taken.flatten().tolist()]
        return torch.tensor(per_run, dtype=like.dtype, device=like.device).reshape(self.taken.shape)

    def _share(self, update: int) -> float:
        share = self.schedule(update)
        if type(share) is float and 0 <= share < math.inf:
            return share
        require_number(f"schedule({update})", share, "a finite number ≥ 0", at_least=0)
        return share

    def state(self) -> dict[str, Tensor]:
        counts = {"updates": torch.tensor(self.updates, device="cpu")}
        return counts if self.taken is None else counts | {"taken": self.taken.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        self.taken = state["taken"].to("cpu") if "taken" in state else None


class SGD(_FirstOrder):
    """θ ← θ − lr·∇loss: plain gradient ascent on the objective. eq:gradient-ascent"""

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        rate = self._rate(closures)
        with torch.no_grad():
            for parameter, gradient in zip(closures.parameters, gradients, strict=True):
                if isinstance(rate, Tensor):
                    parameter.addcmul_(gradient, over_runs(rate, parameter), value=-1)
                else:
                    parameter.sub_(gradient, alpha=rate)
        return {}


class Adam(_FirstOrder):
    """Adam (Kingma & Ba 2015, algorithm 1); `weight_decay` is decoupled (AdamW). eq:adam-step

    Adam works elementwise, so runs do not influence each other. Raises `CourseError` if a setting
    is out of range.
    """

    made_with = (*_FirstOrder.made_with, "betas", "eps", "weight_decay")

    def __init__(
        self,
        lr: float | Tensor,
        schedule: Schedule | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, schedule)
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        require(pair, "Adam.betas", betas, "two numbers from 0 to below 1")
        for beta in betas:
            require_number("Adam.betas", beta, "two numbers from 0 to below 1", at_least=0, below=1)
        for name, value in (("eps", eps), ("weight_decay", weight_decay)):
            require_number(f"Adam.{name}", value, "a number ≥ 0", at_least=0)
        self.betas, self.eps, self.weight_decay = (betas[0], betas[1]), eps, weight_decay
        self.mean: list[Tensor] = []
        self.square: list[Tensor] = []

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        if not self.mean:
            self.mean = [torch.zeros_like(p) for p in closures.parameters]
            self.square = [torch.zeros_like(p) for p in closures.parameters]
        moments = [*self.mean, *self.square]
        before = [] if closures.active is None else [moment.clone() for moment in moments]
        rate = self._rate(closures)
        first = closures.parameters[0]
        beta1, beta2 = self.betas
        # both moments start at 0, so they are too small by these factors
        of_mean = self._after_updates(lambda n: 1 - beta1**n, first)
        of_square = self._after_updates(lambda n: 1 - beta2**n, first)
        with torch.no_grad():
            for p, g, m, v in zip(
                closures.parameters, gradients, self.mean, self.square, strict=True
            ):
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                scale = (v / over_runs(of_square, p)).sqrt_().add_(self.eps)
                direction = (m / over_runs(of_mean, p)).div_(scale)
                if self.weight_decay:
                    direction += self.weight_decay * p
                p.sub_(over_runs(rate, p) * direction)
            if closures.active is not None:
                put_back(moments, before, ~closures.active)
        return {}

    def state(self) -> dict[str, Tensor]:
        moments = {f"mean.{i}": m for i, m in enumerate(self.mean)} | {
            f"square.{i}": v for i, v in enumerate(self.square)
        }
        return super().state() | {name: tensor.clone() for name, tensor in moments.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        count = sum(name.startswith("mean.") for name in state)
        self.mean = [state[f"mean.{i}"].clone() for i in range(count)]
        self.square = [state[f"square.{i}"].clone() for i in range(count)]
