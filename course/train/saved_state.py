"""The state of a learner: what is saved, which settings must match, and how training goes on."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course.errors import require
from course.parts.base import Part
from course.train import checkpoint

if TYPE_CHECKING:
    from course.learner import Learner

SHOWN = 16  # tensors of at most this many numbers are written out; longer ones get a checksum


def state(learner: Learner) -> dict[str, Tensor]:
    """All tensors that the next step depends on, by name."""
    tensors = {f"parameters.{i}": p.detach() for i, p in enumerate(learner.problem.parameters)}
    tensors |= checkpoint.prefixed("optimizer", learner.optimizer.state())
    tensors |= checkpoint.prefixed("noise", learner.noise.state())
    if learner.critic is not None:
        tensors |= checkpoint.prefixed("critic", learner.critic.state())
    coefficients = ("kl_coef", learner.kl_coef), ("entropy_coef", learner.entropy_coef)
    for name, tensor in (*coefficients, ("halted", learner.halted)):
        if tensor is not None:
            tensors[name] = tensor
    if hasattr(learner.problem, "state"):
        tensors |= checkpoint.prefixed("problem", learner.problem.state())
    return tensors


def about(learner: Learner) -> dict[str, Any]:
    """A description of the state for JSON: steps, the shuffling generator and the settings."""
    shuffle = learner.shuffle.bit_generator.state
    return {"steps": learner.steps, "shuffle": shuffle, **made_of(learner)}


def made_of(learner: Learner) -> dict[str, str]:
    """The settings that a learner must share with the saved one to go on: name → description.

    Initial parameters, seeds and random streams are not settings: the saved state replaces them.
    """
    estimator, problem = learner.estimator, learner.problem
    described = {"estimator": type(estimator).__name__}
    for each in dataclasses.fields(estimator):
        if each.compare:
            described[f"estimator.{each.name}"] = _text(getattr(estimator, each.name))
    for name, thing in (
        ("optimizer", learner.optimizer),
        ("critic", learner.critic),
        ("problem", problem),
    ):
        if thing is not problem:
            described[name] = "none" if thing is None else type(thing).__name__
        for setting in getattr(thing, "made_with", ()):
            described[f"{name}.{setting}"] = _text(getattr(thing, setting))
    for name in ("epochs", "minibatches", "max_grad_norm", "kl_stop"):
        described[name] = _text(getattr(learner, name))
    for i, parameter in enumerate(problem.parameters):
        described[f"parameter {i}"] = f"{tuple(parameter.shape)} {parameter.dtype}"
    described["parameters"] = str(len(problem.parameters))
    described["runs"] = str(tuple(learner.noise.runs))
    return described


def restore(
    learner: Learner,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    path: str,
) -> None:
    """Go on from the `state` and `about` of a learner with the same settings.

    Raises `CourseError`, which names `path`, if the settings differ.
    """
    for name, mine in made_of(learner).items():
        require(about.get(name) == mine, f"{path}: {name}", about.get(name), mine)
    device = learner.problem.parameters[0].device
    with torch.no_grad():
        for i, parameter in enumerate(learner.problem.parameters):
            parameter.copy_(tensors[f"parameters.{i}"])
    remembered = checkpoint.under("optimizer", tensors)
    learner.optimizer.load({name: tensor.to(device) for name, tensor in remembered.items()})
    learner.noise.load(checkpoint.under("noise", tensors))
    if learner.critic is not None:
        learner.critic.load(checkpoint.under("critic", tensors))
    if learner.kl_coef is not None:
        learner.kl_coef = tensors["kl_coef"].to(learner.kl_coef)
    if learner.entropy_coef is not None:
        learner.entropy_coef = tensors["entropy_coef"].to(learner.entropy_coef)
    learner.halted = tensors["halted"].to(device) if "halted" in tensors else None
    if hasattr(learner.problem, "load"):
        learner.problem.load(checkpoint.under("problem", tensors))
    learner.steps = int(about["steps"])
    learner.shuffle.bit_generator.state = about["shuffle"]


def _text(value: object) -> str:
    """A setting as text; equal settings give equal text in every process."""
    if isinstance(value, Part):
        return value.short
    if isinstance(value, Tensor):
        if value.numel() <= SHOWN:
            return str(value.tolist())
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{tuple(value.shape)} numbers, checksum {zlib.crc32(numbers.tobytes()):08x}"
    if callable(value) and not dataclasses.is_dataclass(value):  # its repr holds an address
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)
