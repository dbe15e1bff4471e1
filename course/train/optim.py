"""Optimisers over runs: every parameter leads with the run axes, and no run sees another's numbers.

Learning rates are a number or a tensor [...], one per run. Each optimiser gets the gradients
(already clipped) and the closures, because some need more than a gradient: see `trust_region.py`
for the natural gradient and TRPO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

from course.errors import require

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Closures:
    """What one update may ask for, at the parameters as they are at the time of the call.

    `loss()` → [...] per run. `log_dist()` → log-probabilities [..., Q, G or 1, T or 1, V],
    differentiable. `mean_kl(q, p)` → [...] KL(q‖p) in nats, the mean over the rollout's chosen
    tokens. `old_log_dist` is π_old, the policy that sampled.
    """

    parameters: Sequence[Tensor]
    loss: Callable[[], Tensor]
    log_dist: Callable[[], Tensor]
    mean_kl: Callable[[Tensor, Tensor], Tensor]
    old_log_dist: Tensor | None


class Optimizer(Protocol):
    """Changes the parameters in place, once per call; may return metrics of its own,
    name → [...].
    """

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Constant:
    """The learning rate as it was given."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearDecay:
    """From the full learning rate to `final` of it over `steps` updates, after `warmup` updates of
    rise. eq:learning-rate-schedule
    """

    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        require(self.steps > 0, "LinearDecay.steps", self.steps, "a positive number of updates")
        require(
            0 <= self.warmup < self.steps,
            "LinearDecay.warmup",
            self.warmup,
            f"from 0 to below steps = {self.steps}",
        )
        require(
            0 <= self.final <= 1,
            "LinearDecay.final",
            self.final,
            "a share of the learning rate from 0 to 1",
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
    """A number per run [...], shaped to multiply a parameter [..., *rest]."""
    if not isinstance(per_run, Tensor) or per_run.dim() == 0:
        return per_run
    return per_run.reshape(*per_run.shape, *(1,) * (parameter.dim() - per_run.dim()))


def per_run_dot(a: Sequence[Tensor], b: Sequence[Tensor], runs: int) -> Tensor:
    """Σ a·b over everything but the run axes: two lists of [..., *rest] → [...]."""
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


class _FirstOrder:
    def __init__(self, lr: float | Tensor, schedule: Schedule | None = None) -> None:
        positive = (
            bool(((lr > 0) & (lr < torch.inf)).all())
            if isinstance(lr, Tensor)
            else 0 < lr < float("inf")
        )
        require(positive, "lr", lr, "a finite number > 0 (or a tensor of them, one per run)")
        self.lr, self.schedule, self.updates = lr, schedule or Constant(), 0

    def _rate(self) -> float | Tensor:
        share = self.schedule(self.updates)
        rate = self.lr if share == 1 else self.lr * share
        self.updates += 1
        return rate

    def state(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])


class SGD(_FirstOrder):
    """θ ← θ − lr·∇loss: plain gradient ascent on the objective. eq:gradient-ascent"""

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        rate = self._rate()
        with torch.no_grad():
            for parameter, gradient in zip(closures.parameters, gradients, strict=True):
                if isinstance(rate, Tensor):
                    parameter.addcmul_(gradient, over_runs(rate, parameter), value=-1)
                else:
                    parameter.sub_(gradient, alpha=rate)
        return {}


class Adam(_FirstOrder):
    """Adam (Kingma & Ba 2015, algorithm 1), elementwise and therefore per run; `weight_decay` is
    decoupled (AdamW).

    eq:adam-step
    """

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
        require(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
            "Adam.betas",
            betas,
            "two numbers from 0 to below 1",
        )
        for name, value in (("eps", eps), ("weight_decay", weight_decay)):
            require(0 <= value < float("inf"), f"Adam.{name}", value, "a number ≥ 0")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.mean: list[Tensor] = []
        self.square: list[Tensor] = []

    def step(self, gradients: Sequence[Tensor], closures: Closures) -> dict[str, Tensor]:
        if not self.mean:
            self.mean = [torch.zeros_like(p) for p in closures.parameters]
            self.square = [torch.zeros_like(p) for p in closures.parameters]
        rate = self._rate()
        beta1, beta2 = self.betas
        with torch.no_grad():
            for p, g, m, v in zip(
                closures.parameters, gradients, self.mean, self.square, strict=True
            ):
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                scale = (v / (1 - beta2**self.updates)).sqrt_().add_(self.eps)
                direction = m / (1 - beta1**self.updates) / scale
                if self.weight_decay:
                    direction += self.weight_decay * p
                p.sub_(over_runs(rate, p) * direction)
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
