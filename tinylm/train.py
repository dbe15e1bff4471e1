"""Training a tiny language model: a supervised warm start to a target accuracy, then reinforcement learning with any rung.

Everything the next step depends on is in one checkpoint, written whole or not at all: a run that was killed and resumed gives
the numbers of one that was not, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course import checkpoint, ladder
from course.errors import CourseError, require
from course.estimator import Estimator, uses_critic
from course.learner import Learner
from course.noise import Noise
from course.optim import Adam, LinearDecay
from course.parts import NoKL, OldPolicy
from course.parts.baseline import Greedy
from course.parts.kl import ExactKL
from tinylm import tasks
from tinylm.evaluate import accuracy
from tinylm.model import PRESETS, ModelSettings, Transformer
from tinylm.problem import LIKELIHOOD, Demonstrations, LanguageModel
from tinylm.tasks import REWARDS, Task, TaskSettings

INIT, WARM, TRAIN, CHECK, CRITIC = range(5)  # every use of chance has streams of its own


@dataclass(frozen=True)
class TrainSettings:
    """One training, from nothing to a trained model. Times of updates are counted in rollouts."""

    task: str = "addition"  # addition, subtraction, multiplication, modular, terms
    digits: int = 2  # per number
    terms: int = 3  # numbers per sum (task terms)
    modulus: int = 97  # of the modular sum
    scratchpad: bool = False  # partial sums before the answer (task terms)
    held_out: float = 0.1  # share of the questions never trained on
    reward: str = "exact"  # exact, digits, exact+format, exact+digits
    preset: str = "small"  # nano, small or gpu
    rung: str = "grpo"  # any name of `course rungs`
    warm_target: float = 0.3  # sampled accuracy that ends the warm start; 0: no warm start
    warm_lr: float = 2e-3  # Adam's learning rate in the warm start
    warm_batch: int = 512  # demonstrations per step
    warm_limit: int = 3000  # steps after which the warm start gives up
    rollouts: int = 250  # of reinforcement learning; 0: warm start only
    prompts: int = 64  # questions per rollout
    group: int = 8  # completions per question
    epochs: int = 2  # updates per rollout (times minibatches)
    minibatches: int = 1  # along the questions
    lr: float = 5e-4  # Adam's learning rate, falling to 0 in a line
    max_grad_norm: float = 1.0  # of each run
    temperature: float = 1.0  # of sampling, and of scoring
    critic: str = "own"  # own network or shared trunk, where the rung has a critic
    sync_reference: int = 0  # rollouts between copies of the policy into the reference; 0: never
    seed: int = 0  # of everything
    runs: int = 1  # models trained side by side
    device: str = "cpu"  # where to run
    compile: bool = False  # torch.compile the model (needs a C compiler; 9 to 27 s to warm up)
    bf16: bool = False  # matrix products in bfloat16
    log_every: int = 10  # rollouts

    def __post_init__(self) -> None:
        require(self.preset in PRESETS, "preset", self.preset, ", ".join(PRESETS))
        require(self.reward in REWARDS, "reward", self.reward, ", ".join(REWARDS))
        require(self.critic in ("own", "shared"), "critic", self.critic, "own or shared")
        require(0 <= self.warm_target < 1, "warm_target", self.warm_target, "a share from 0 to below 1")
        require(self.rollouts >= 0, "rollouts", self.rollouts, "a whole number ≥ 0")
        require(self.runs >= 1, "runs", self.runs, "a whole number ≥ 1")
        require(self.rollouts > 0 or self.warm_target > 0, "rollouts", 0, "more than 0 where there is no warm start")
        for name in (
            "warm_lr",
            "lr",
            "max_grad_norm",
            "warm_batch",
            "warm_limit",
            "prompts",
            "group",
            "epochs",
            "minibatches",
            "log_every",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        _ = self.estimator, self.questions  # refused here and not in the middle

    @property
    def estimator(self) -> Estimator:
        """The rung's estimator."""
        return ladder.get(self.rung).estimator

    @property
    def questions(self) -> TaskSettings:
        """The task's own settings."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(TaskSettings) if hasattr(self, f.name) and f.name != "seed"}
        return TaskSettings(name=self.task, **shared)

    def model(self, context: int, value: bool) -> ModelSettings:
        """The preset's model, with room for the task's sequences."""
        preset = PRESETS[self.preset]
        return dataclasses.replace(preset, context=max(preset.context, context), value=value)


class Training:
    """A training in progress. `step` takes it one rollout (or one warm-up step) further; `done` says when it is over."""

    def __init__(self, settings: TrainSettings, *, numbers: range | None = None) -> None:
        self.settings = settings
        self.numbers = range(settings.runs) if numbers is None else numbers
        self.runs = () if settings.runs == 1 else (settings.runs,)
        self.task: Task = tasks.make(settings.questions).to(settings.device)
        self.critic: Transformer | None = None
        self.reference: Transformer | None = None
        self.phase = "warm" if settings.warm_target > 0 else "train"
        shared = uses_critic(settings.estimator) and settings.critic == "shared"
        self.model = self._transformer(INIT, shared)
        if settings.compile:
            self.model.compile()
        self.learner = self._warm_learner() if self.phase == "warm" else self._train_learner()

    # ------------------------------------------------------------------ going

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase == "done"

    def step(self) -> dict[str, Any] | None:
        """One more step; returns a row for the log at every `log_every`-th."""
        learner, settings = self.learner, self.settings
        log = learner.steps % settings.log_every == 0
        with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.bf16):
            learner.step(log=log)
        if (
            self.phase == "train"
            and settings.sync_reference
            and learner.steps % settings.sync_reference == 0
            and self.reference is not None
        ):
            self.reference.weights.update(self.model.copy().weights)
        row = self._row() if log else None
        if self.phase == "warm":
            if learner.steps % 20 == 0:
                self._check_warm()
        elif learner.steps >= settings.rollouts:
            self.phase = "done"
        return row

    def _check_warm(self) -> None:
        """End the warm start run by run, where the sampled accuracy on training questions has reached the target."""
        reached = self.warm_accuracy() >= self.settings.warm_target
        if self.learner.halted is not None:
            reached = reached | self.learner.halted
        self.learner.halted = reached if bool(reached.any()) else None
        if bool(reached.all()):
            self.phase = "train" if self.settings.rollouts else "done"
            if self.phase == "train":
                self.learner = self._train_learner()
        elif self.learner.steps >= self.settings.warm_limit:
            worst = float(self.warm_accuracy().min())
            raise CourseError(f"warm_target: got {self.settings.warm_target}; after {self.learner.steps} steps the accuracy is {worst:.2f}")

    def warm_accuracy(self) -> Tensor:
        """[*runs] sampled accuracy on 512 training questions, from streams that no training step uses."""
        noise = self._noise(CHECK + 10 * (1 + self.learner.steps))
        return accuracy(self.model, self.task, noise, questions=self.task.train[:: max(1, len(self.task.train) // 512)]).mean(-1)

    def _row(self) -> dict[str, Any]:
        last = self.learner.history.rows[-1]
        self.learner.history.rows.clear()  # the log has them
        self.learner.history.steps.clear()
        values = {name: value.float().mean().item() for name, value in last.items()}
        return {"phase": self.phase, "step": self.learner.steps, **values}

    # ------------------------------------------------------------------ making

    def _noise(self, use: int) -> Noise:
        return Noise(self.runs, self.settings.seed * 1_000_000 + use, numbers=self.numbers, device=self.settings.device)

    def _transformer(self, use: int, value: bool) -> Transformer:
        settings = self.settings.model(self.task.context, value)
        seed = self.settings.seed * 1_000_000 + use
        return Transformer(settings, self.runs, seed, numbers=self.numbers, device=self.settings.device)

    def _warm_learner(self) -> Learner:
        settings = self.settings
        problem = Demonstrations(self.model, self.task, batch=settings.warm_batch)
        noise = self._noise(WARM)
        return Learner(problem, LIKELIHOOD, Adam(settings.warm_lr), noise, max_grad_norm=settings.max_grad_norm)

    def _train_learner(self) -> Learner:
        settings, estimator = self.settings, self.settings.estimator
        if uses_critic(estimator):
            self.critic = self.model if settings.critic == "shared" else self._transformer(CRITIC, True)
        if not isinstance(estimator.kl, NoKL) and not isinstance(estimator.kl.anchor, OldPolicy):
            self.reference = self.model.copy()
        problem = LanguageModel(
            self.model,
            self.task,
            prompts=settings.prompts,
            group=settings.group,
            reward=REWARDS[settings.reward],
            temperature=settings.temperature,
            reference=self.reference,
            critic=self.critic,
            distributions=isinstance(estimator.kl, ExactKL),
            greedy=isinstance(estimator.baseline, Greedy),
        )
        updates = settings.rollouts * settings.epochs * settings.minibatches
        return Learner(
            problem,
            estimator,
            Adam(settings.lr, LinearDecay(updates)),
            self._noise(TRAIN),
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            max_grad_norm=settings.max_grad_norm,
        )

    # ------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> Path:
        """Write everything the next step depends on, whole or not at all."""
        tensors = checkpoint.prefixed("learner", self.learner.state())
        if self.phase == "done" or self.phase == "train":
            tensors |= checkpoint.prefixed("model", {name: weight.detach() for name, weight in self.model.weights.items()})
        if self.reference is not None:
            tensors |= checkpoint.prefixed("reference", self.reference.weights)
        about = {"kind": "tinylm", "phase": self.phase, "settings": dataclasses.asdict(self.settings), "learner": self.learner.about()}
        return checkpoint.write(path, tensors, about | {"numbers": list(self.numbers)})

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Training:
        """A training as it was saved, ready for its next step. Refuses by name what is damaged or no training's checkpoint."""
        tensors, about = checkpoint.read(path)
        if about.get("kind") != "tinylm":
            raise CourseError(f"{path}: got a saved state that is no training of a tiny language model")
        settings = TrainSettings(**about["settings"] | ({"device": device} if device else {}))
        numbers = about["numbers"]
        training = cls(settings, numbers=range(numbers[0], numbers[-1] + 1))
        training.phase = about["phase"]
        if training.phase != "warm" and isinstance(training.learner.problem, Demonstrations):
            training.learner = training._train_learner() if settings.rollouts else training.learner
        if training.reference is not None:
            for name, weight in checkpoint.under("reference", tensors).items():
                training.reference.weights[name] = weight.to(settings.device)
        training.learner.restore(checkpoint.under("learner", tensors), about["learner"], str(path))
        return training


def run(
    training: Training,
    folder: Path,
    *,
    save_every: int = 25,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
    tick: Callable[[Training], None] = lambda training: None,
) -> float:
    """Take a training to its end in `folder`: checkpoint.safetensors, and metrics.jsonl with a row for every log.

    Returns the seconds spent training. A row that a killed run wrote beyond its last checkpoint is written again.
    """
    path, log = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows_before(log, training)
    _write_rows(log, rows)
    spent, since = 0.0, 0
    while not training.done:
        start = time.perf_counter()
        row = training.step()
        spent += time.perf_counter() - start
        if row is not None:
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            show(row)
        tick(training)
        since += 1
        if since >= save_every or training.done:
            training.save(path)
            since = 0
    return spent


def _rows_before(log: Path, training: Training) -> list[str]:
    """The rows that the checkpoint has seen."""
    if not log.exists():
        return []
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a killed run
        order = ("warm", "train", "done")
        if (order.index(row["phase"]), row["step"]) <= (order.index(training.phase), training.learner.steps):
            kept.append(line)
    return kept


def _write_rows(log: Path, rows: list[str]) -> None:
    temporary = log.with_name(f".{log.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, log)


__all__ = ["TrainSettings", "Training", "run"]
