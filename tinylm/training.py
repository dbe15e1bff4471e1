"""Training a tiny language model: a supervised warm start, then reinforcement learning.

One checkpoint holds everything the next step depends on, and it is written whole or not at all. A
run that was killed and resumed therefore gives bit for bit the same numbers as an uninterrupted one
(on the same machine, with the same number of threads).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course import ladder
from course.arguments import typed
from course.errors import CourseError, require
from course.estimator import Estimator
from course.learner import History, Learner
from course.rollout import Rollout
from course.train import checkpoint
from course.train.files import replace_files, settle
from tinylm import tasks
from tinylm.evaluate import accuracy
from tinylm.model import Transformer
from tinylm.problem import LanguageModel
from tinylm.tasks import Task
from tinylm.warm_start import (
    CHECK_EVERY,
    Demonstrations,
    halt_reached,
    warm_accuracy,
    warm_learner,
)
from tinylm.wiring import Budget, Streams, critic_of, needs_value_head, train_learner

PHASES = ("warm", "train", "done")
FileId = tuple[str, int, int]  # path, inode, time of the last change in nanoseconds
# the metrics that are meaningful during the warm start
IN_WARM_START = ("length", "entropy", "gradient_norm", "cross_entropy")


@dataclass(frozen=True)
class TrainSettings(Budget):
    """The settings of one training, from random weights to a trained model.

    Intervals between events, such as evaluations, are counted in rollouts.
    """

    rung: str = "grpo"  # any name that `course rungs` lists
    # Adam's learning rate, which falls linearly to 0. At 2e-3 the first rollouts undo a third of
    # what the warm start has taught, since their steps are mostly noise (`tinylm.ablations.seeds`)
    lr: float = 1e-3
    lr_warmup: int = 100  # updates over which the learning rate rises from 0
    sync_reference: int = 0  # rollouts between copies of the policy into the reference; 0: never
    runs: int = 1  # models trained in parallel
    # torch.compile the model (needs a C compiler; slower on a CPU); none: the gpu preset on a GPU
    compile: bool | None = None
    bf16: bool | None = None  # matrix products in bfloat16; none: the gpu preset on a GPU
    log_every: int = 10  # steps
    eval_every: int = 50  # rollouts between greedy evaluations on held-out questions; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("compile", "bf16"):
            if getattr(self, name) is None:
                object.__setattr__(
                    self, name, self.preset == "gpu" and self.device.startswith("cuda")
                )
        _try(self.estimator, self.prompts, self.group)

    @property
    def estimator(self) -> Estimator:
        """The rung's estimator."""
        return ladder.get(self.rung).estimator


def _try(estimator: Estimator, prompts: int, group: int) -> None:
    """Raise `CourseError` if the estimator cannot use rollouts of this size.

    A group baseline, for example, cannot use groups of one sample.
    """
    zero = torch.zeros(prompts, group, 1, device="cpu")
    full = zero.unsqueeze(-1)
    sure = torch.ones_like(zero, dtype=torch.bool)
    rollout = Rollout(
        reward=zero,
        log_prob=zero,
        mask=sure,
        ref_log_prob=zero,
        value=zero,
        bootstrap=zero[..., 0],
        greedy_reward=zero[:, 0, 0],
        truncated=~sure[..., 0],
        old_log_dist=full,
        ref_log_dist=full,
        kl_coef=torch.tensor(1.0, device="cpu"),
    )
    estimator.freeze(rollout)


@typed
class Training:
    """A training in progress.

    `step` runs one rollout with its updates (or one warm-start step); `done` says when it is over.
    """

    def __init__(self, settings: TrainSettings, *, numbers: range | None = None) -> None:
        self.settings = settings
        self.numbers = range(settings.runs) if numbers is None else numbers
        self.saved: FileId | None = None
        self.streams = Streams(
            settings.seed,
            () if settings.runs == 1 else (settings.runs,),
            self.numbers,
            settings.device,
        )
        self.task: Task = tasks.make(settings.questions).to(settings.device)
        self.critic: Transformer | None = None
        self.reference: Transformer | None = None
        self.phase = PHASES[0] if settings.warm_target > 0 else PHASES[1]
        shape = settings.model(
            self.task.context, value=needs_value_head(settings, settings.estimator)
        )
        self.model = self.streams.transformer(shape)
        if settings.compile:
            self.model.compile()
        self.learner = self._warm_learner() if self.phase == "warm" else self._train_learner()

    # ------------------------------------------------------------------ going

    @property
    def done(self) -> bool:
        """Whether the training is finished."""
        return self.phase == "done"

    def step(self) -> dict[str, Any] | None:
        """Run one more step; returns a row for the log if one is due, else None.

        With run axes every number in the row is a list with one entry per run.
        """
        learner, settings, phase = self.learner, self.settings, self.phase
        number = learner.steps + 1
        last = phase == "train" and number == settings.rollouts
        log = number == 1 or number % settings.log_every == 0 or last
        kind = torch.device(settings.device).type
        with torch.autocast(
            kind, torch.bfloat16, enabled=bool(settings.bf16), cache_enabled=False
        ):  # the weights change inside
            learner.step(log=log)
        row = self._logged() if log else {}
        if phase == "warm":
            if number % CHECK_EVERY == 0:
                row["warm_accuracy"] = self._check_warm()
        else:
            if (
                self.reference is not None
                and settings.sync_reference
                and number % settings.sync_reference == 0
            ):
                self.reference.weights.update(self.model.copy().weights)
            if settings.eval_every and (number % settings.eval_every == 0 or last):
                row["accuracy"] = accuracy(self.model, self.task).mean(-1)
            if last:
                self.phase = "done"
        return (
            {
                "phase": phase,
                "step": number,
                **{name: value.tolist() for name, value in row.items()},
            }
            if row
            else None
        )

    def _check_warm(self) -> Tensor:
        """End the warm start of each run that has reached the target accuracy.

        Once all runs have reached it, reinforcement learning begins.
        """
        now = self.warm_accuracy()
        if halt_reached(self.settings, self.learner, now):
            self.phase = "train" if self.settings.rollouts else "done"
            if self.phase == "train":
                self.learner = self._train_learner()
        return now

    def warm_accuracy(self) -> Tensor:
        """The sampled accuracy [*runs] on training questions, as the warm start measures it."""
        return warm_accuracy(self.settings, self.model, self.task, self.streams, self.learner.steps)

    def _logged(self) -> dict[str, Tensor]:
        last = self.learner.history.rows[-1]
        self.learner.history = History()  # the log keeps the rows
        return {
            name: value.float()
            for name, value in last.items()
            if self.phase != "warm" or name in IN_WARM_START
        }

    # ------------------------------------------------------------------ making

    def _warm_learner(self) -> Learner:
        return warm_learner(self.settings, self.model, self.task, self.streams)

    def _train_learner(self) -> Learner:
        settings, estimator = self.settings, self.settings.estimator
        self.critic = critic_of(settings, estimator, self.model)
        made = train_learner(
            settings,
            estimator,
            self.model,
            self.task,
            self.streams,
            settings.lr,
            critic=self.critic,
        )
        assert isinstance(made.problem, LanguageModel)
        self.reference = made.problem.reference
        return made

    # ------------------------------------------------------------------ keeping

    def adopt(self, path: str | Path) -> None:
        """Start from the model of another training's checkpoint instead of random weights.

        Use it with `warm_target` = 0. Raises `CourseError` if the file is not a checkpoint or holds
        a model of another shape.
        """
        weights = checkpoint.under("model", _read(path)[0])
        with torch.no_grad():
            for name, mine in self.model.weights.items():
                if name == "value" and name not in weights:
                    continue  # this training has a critic's value head, the other one had none
                shape = tuple(weights[name].shape) if name in weights else None
                require(
                    shape == tuple(mine.shape),
                    f"{path}: model.{name}",
                    shape,
                    str(tuple(mine.shape)),
                )
                mine.copy_(weights[name])
                if self.critic is not None and self.critic is not self.model:
                    self.critic.weights[name].copy_(mine)
        self.model.check_finite(f"{path}: model")
        if self.reference is not None:
            self.reference.weights.update(self.model.copy().weights)

    def save(self, path: str | Path) -> Path:
        """Write everything the next step depends on, whole or not at all.

        A JSON file next to the checkpoint describes it for human readers.
        """
        path = Path(path)
        replace_files(self.files(path))
        self.was_saved_in(path)
        return path

    def files(self, path: Path) -> dict[Path, bytes]:
        """The files that `save` writes: path → content."""
        learner = {
            name: tensor
            for name, tensor in self.learner.state().items()
            if not name.startswith("parameters.")
        }
        tensors = checkpoint.prefixed("learner", learner)
        for name, network in self._networks().items():
            tensors |= checkpoint.prefixed(name, network.weights)
        about = {
            "kind": "tinylm",
            "phase": self.phase,
            "settings": dataclasses.asdict(self.settings),
            "numbers": list(self.numbers),
        }
        described = json.dumps(about | {"step": self.learner.steps}, indent=2) + "\n"
        state = checkpoint.as_bytes(tensors, about | {"learner": self.learner.about()})
        return {path: state, path.with_suffix(".json"): described.encode("utf-8")}

    def was_saved_in(self, path: Path) -> None:
        """Record that the file at `path` now holds this training."""
        self.saved = _file_id(path)

    def is_saved_in(self, path: Path) -> bool:
        """Whether the file at `path` holds this training.

        True if this training was loaded from it or saved to it, and nobody has changed it since.
        """
        return self.saved is not None and self.saved == _file_id(path)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Training:
        """Load a saved training, ready for its next step, on its own device or on another one.

        Raises `CourseError` naming the file if it is damaged or not the checkpoint of a training.
        """
        settle(Path(path).parent)
        here = _file_id(Path(path))
        tensors, about = _read(path)
        try:
            settings = TrainSettings(**about["settings"] | ({"device": device} if device else {}))
            numbers = about["numbers"]
            training = cls(settings, numbers=range(numbers[0], numbers[-1] + 1))
            training.phase = PHASES[PHASES.index(about["phase"])]
            if (
                training.phase != "warm"
                and isinstance(training.learner.problem, Demonstrations)
                and settings.rollouts
            ):
                training.learner = training._train_learner()
            networks = training._networks()
            if training.reference is not None:
                weights = {
                    name: tensors[f"reference.{name}"].to(settings.device)
                    for name in training.reference.weights
                }
                training.reference.weights.update(weights)
            saved = [
                tensors[f"{name}.{weight}"]
                for name in networks
                if name != "reference"
                for weight in networks[name].weights
            ]
            state = checkpoint.under("learner", tensors) | {
                f"parameters.{i}": tensor for i, tensor in enumerate(saved)
            }
            training.learner.restore(state, about["learner"], str(path))
            for name, network in networks.items():
                network.check_finite(name)
        except CourseError as error:
            raise error if str(path) in str(error) else CourseError(f"{path}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CourseError(
                f"{path}: damaged, or written by another version ({type(error).__name__}: {error})"
            ) from error
        training.saved = here
        return training

    def _networks(self) -> dict[str, Transformer]:
        """The networks whose weights a checkpoint holds, by name.

        The learner's parameters are those of the model and then those of the critic.
        """
        found = {"model": self.model, "critic": self.critic, "reference": self.reference}
        return {
            name: network
            for name, network in found.items()
            if network is not None and (name == "model" or network is not self.model)
        }


def _file_id(path: Path) -> FileId | None:
    """Identifies a file and its last change; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return os.path.realpath(path), found.st_ino, found.st_mtime_ns


def _read(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    tensors, about = checkpoint.read(path)
    if about.get("kind") != "tinylm":
        raise CourseError(f"{path}: got a saved state that is no training of a tiny language model")
    return tensors, about
