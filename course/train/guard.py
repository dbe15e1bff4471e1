"""The divergence guard: it keeps NaN and infinity out of the parameters.

Such a number ends training, or stops the affected runs while the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course.errors import Diverged
from course.train.optim import over_runs, put_back


class Guard:
    """Checks the gradients before an update and the parameters after it.

    `halted` [...] bool marks the runs that have stopped for good; None means none. With `halts`, a
    run that meets a NaN or infinity is added to them. Without it, `ended` turns a description into
    the error that ends training. `undoes` also checks the parameters after the update and restores
    those that overflowed, which costs a copy of all parameters.
    """

    def __init__(self, *, halts: bool, undoes: bool, ended: Callable[[str], Diverged]) -> None:
        self.halts, self.undoes, self.ended = halts, undoes, ended
        self.halted: Tensor | None = None

    def gradients(self, loss: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients [..., *rest], with zeros for halted runs.

        If a gradient or the loss [...] is not finite, its run is halted; raises `Diverged` instead
        if runs are not halted.
        """
        loss = loss.detach()
        # checking one sum means one wait for the device; it is finite if all terms are, unless the
        # sum itself overflows
        total = loss.sum()
        for gradient in gradients:
            total = total + gradient.sum()
        if math.isfinite(float(total)):
            return gradients
        named = [("loss", loss)]
        named += [(f"gradient of parameter {i}", g) for i, g in enumerate(gradients)]
        bad = [(name, tensor[~torch.isfinite(tensor)]) for name, tensor in named]
        first = next(((name, values[0].item()) for name, values in bad if len(values)), None)
        if first is None:  # finite numbers whose sum overflowed
            return gradients
        if not self.halts:
            raise self.ended(f"{first[0]} became {first[1]}")
        halted = self.halt(not_finite([loss, *gradients], loss.dim()))
        return [torch.where(over_runs(halted, g), torch.zeros_like(g), g) for g in gradients]

    def update(
        self,
        parameters: Sequence[Tensor],
        runs: int,
        step: Callable[[], dict[str, Tensor]],
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Call `step`, which changes the parameters [..., *rest] in place; returns what it logs.

        Runs that are halted or not `active` [...] (None: all are active) keep their parameters. So
        do runs in which the step overflowed; these are halted, or `Diverged` is raised.
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
            if math.isfinite(float(torch.stack([p.sum() for p in parameters]).sum())):
                return logged
            lost = not_finite(parameters, runs)
            if bool(lost.any()):  # else all numbers are finite and only their sum overflowed
                put_back(parameters, before, lost)
                if not self.halts:
                    raise self.ended("a parameter became infinite or NaN in the update")
                self.halt(lost)
        return logged

    def halt(self, runs: Tensor) -> Tensor:
        """These runs [...] bool stand still from now on; returns all that do."""
        self.halted = runs if self.halted is None else self.halted | runs
        return self.halted


def not_finite(tensors: Sequence[Tensor], runs: int) -> Tensor:
    """[...] bool: True for runs in which one of the tensors holds a NaN or an infinity.

    The tensors are [..., *rest] with `runs` run axes.
    """
    finite = [torch.isfinite(tensor) for tensor in tensors]
    return ~torch.stack(
        [each.flatten(runs).all(-1) if each.dim() > runs else each for each in finite]
    ).all(0)
