"""The divergence guard: a NaN or an infinity never reaches the parameters. It ends training, or
halts the runs that met it while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course.errors import Diverged
from course.train.optim import over_runs, put_back


class Guard:
    """Checks what goes into an update and what comes out of it.

    `halted` [...] bool (None: no run) are the runs that stand still for good. With `halts`, a run
    that meets a number that is not finite joins them; without, `ended` makes the error that ends
    training from what happened. `undoes` also checks parameters after the update, and puts back
    those that overflowed; it costs a copy of all parameters.
    """

    def __init__(self, *, halts: bool, undoes: bool, ended: Callable[[str], Diverged]) -> None:
        self.halts, self.undoes, self.ended = halts, undoes, ended
        self.halted: Tensor | None = None

    def gradients(self, loss: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients [..., *rest], if they and the loss [...] are finite; those of halted runs
        are zeros.

        Raises `Diverged` where a number is not finite and runs are not halted for it.
        """
        loss = loss.detach()
        # one number, so one wait for the device: sums are finite wherever all their terms are,
        # unless they overflow
        if torch.isfinite(loss.sum() + sum(gradient.sum() for gradient in gradients)):
            return gradients
        named = [("loss", loss)]
        named += [(f"gradient of parameter {i}", g) for i, g in enumerate(gradients)]
        bad = [(name, tensor[~torch.isfinite(tensor)]) for name, tensor in named]
        first = next(((name, values[0].item()) for name, values in bad if len(values)), None)
        if first is None:  # finite numbers whose sum overflowed
            return gradients
        if not self.halts:
            raise self.ended(f"{first[0]} became {first[1]}")
        halted = self._halt(not_finite([loss, *gradients], loss.dim()))
        return [torch.where(over_runs(halted, g), torch.zeros_like(g), g) for g in gradients]

    def update(
        self,
        parameters: Sequence[Tensor],
        runs: int,
        step: Callable[[], dict[str, Tensor]],
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Take `step`, which changes the parameters [..., *rest] in place; returns what it logs.

        Halted runs, and those that are not `active` [...] (None: all are), keep their parameters;
        so do runs in which the step overflowed. Raises `Diverged` for these, or halts them.
        """
        if not self.undoes and self.halted is None and active is None:
            return step()
        before = [parameter.detach().clone() for parameter in parameters]
        logged = step()
        with torch.no_grad():
            standing = self.halted
            if active is not None:
                standing = ~active if standing is None else standing | ~active
            if standing is not None:
                put_back(parameters, before, standing)
            if bool(torch.isfinite(torch.stack([p.sum() for p in parameters]).sum())):
                return logged
            lost = not_finite(parameters, runs)
            if bool(lost.any()):  # else finite numbers whose sum overflowed
                put_back(parameters, before, lost)
                if not self.halts:
                    raise self.ended("a parameter became infinite or NaN in the update")
                self._halt(lost)
        return logged

    def _halt(self, runs: Tensor) -> Tensor:
        self.halted = runs if self.halted is None else self.halted | runs
        return self.halted


def not_finite(tensors: Sequence[Tensor], runs: int) -> Tensor:
    """[...] bool: the runs in which one of the tensors [..., *rest], with `runs` run axes, holds a
    NaN or an infinity.
    """
    finite = [torch.isfinite(tensor) for tensor in tensors]
    return ~torch.stack(
        [each.flatten(runs).all(-1) if each.dim() > runs else each for each in finite]
    ).all(0)
