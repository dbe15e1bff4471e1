"""Training a tiny language model: a supervised warm start to a target accuracy, then reinforcement
learning with any rung.

Everything the next step depends on is in one checkpoint, written whole or not at all: a run that
was killed and resumed gives the numbers of one that was not, to the bit (on the same machine, with
the same number of threads).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError, require
from course.estimator import Estimator, uses_critic
from course.lab.settings import Checked
from course.learner import Learner
from course.rollout import Rollout
from course.train import checkpoint
from course.train.device import pick_device
from course.train.files import replace_files
from course.train.noise import Noise
from course.train.optim import Adam, LinearDecay
from tinylm import tasks
from tinylm.evaluate import accuracy
from tinylm.model import PRESETS, ModelSettings, Transformer
from tinylm.problem import LIKELIHOOD, Demonstrations, LanguageModel
from tinylm.rewards import REWARDS
from tinylm.sampling import check_sampling
from tinylm.tasks import Task, TaskSettings

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
PHASES = ("warm", "train", "done")
INIT, WARM, TRAIN, CHECK, CRITIC = range(5)  # every use of chance has streams of its own
SEED_STEP = 1_000_000  # between the streams of one seed and the next
CHECK_EVERY = 10  # steps of the warm start between measurements of its accuracy
IN_WARM_START = (
    "length",
    "entropy",
    "gradient_norm",
    "cross_entropy",
)  # the metrics that mean something there


@dataclass(frozen=True)
class TrainSettings(Checked):
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
    warm_batch: int = 256  # demonstrations per step
    warm_limit: int = 3000  # steps after which the warm start gives up
    rollouts: int = 600  # of reinforcement learning; 0: warm start only
    prompts: int = 64  # questions per rollout
    group: int = 16  # completions per question; what they have in common costs nothing
    epochs: int = 2  # updates per rollout (times minibatches)
    minibatches: int = 1  # along the questions
    lr: float = 2e-3  # Adam's learning rate, falling to 0 in a line
    # updates in which it rises to that first: Adam's first steps are as long as its surest
    lr_warmup: int = 20
    # Adam's memory of squared gradients: some 50 updates, so that the first large ones are
    # forgotten
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0  # of each run
    temperature: float = 1.0  # of sampling, and of scoring
    critic: str = "own"  # own network or shared trunk, where the rung has a critic
    sync_reference: int = 0  # rollouts between copies of the policy into the reference; 0: never
    seed: int = 0  # of everything
    runs: int = 1  # models trained side by side
    device: str = "auto"  # cpu, cuda, cuda:1 …; auto: the GPU where there is one
    compile: bool | None = (
        # torch.compile the model (needs a C compiler; slower on a CPU); none: the gpu preset on a
        # GPU
        None
    )
    bf16: bool | None = None  # matrix products in bfloat16; none: the gpu preset on a GPU
    log_every: int = 10  # steps
    eval_every: int = 50  # rollouts between greedy evaluations on held-out questions; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "device", str(pick_device(self.device)))
        require(self.preset in PRESETS, "preset", self.preset, ", ".join(PRESETS))
        for name in ("compile", "bf16"):
            if getattr(self, name) is None:
                object.__setattr__(
                    self, name, self.preset == "gpu" and self.device.startswith("cuda")
                )
        require(self.reward in REWARDS, "reward", self.reward, ", ".join(REWARDS))
        require(self.critic in ("own", "shared"), "critic", self.critic, "own or shared")
        require(
            0 <= self.warm_target < 1, "warm_target", self.warm_target, "a share from 0 to below 1"
        )
        check_sampling(self.temperature)
        require(
            0 <= self.adam_beta2 < 1, "adam_beta2", self.adam_beta2, "a number from 0 to below 1"
        )
        for name in ("warm_lr", "lr", "max_grad_norm"):
            require(
                0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number > 0"
            )
        for name in (
            "warm_batch",
            "warm_limit",
            "prompts",
            "group",
            "epochs",
            "minibatches",
            "log_every",
            "runs",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number > 0")
        for name in ("rollouts", "sync_reference", "seed", "eval_every", "lr_warmup"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a whole number ≥ 0")
        require(
            self.rollouts > 0 or self.warm_target > 0,
            "rollouts",
            0,
            "more than 0 where there is no warm start",
        )
        require(
            self.warm_limit < SEED_STEP // 10 - 10,
            "warm_limit",
            self.warm_limit,
            f"less than {SEED_STEP // 10 - 10}",
        )
        require(
            self.minibatches <= self.prompts,
            "minibatches",
            self.minibatches,
            f"at most the {self.prompts} prompts of a rollout",
        )
        _try(self.estimator, self.prompts, self.group)
        _ = self.questions  # what cannot be is refused here, and not in the middle

    @property
    def estimator(self) -> Estimator:
        """The rung's estimator."""
        return ladder.get(self.rung).estimator

    @property
    def questions(self) -> TaskSettings:
        """The task's own settings."""
        shared = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(TaskSettings)
            if hasattr(self, f.name) and f.name != "seed"
        }
        return TaskSettings(name=self.task, **shared)

    def model(self, context: int, value: bool) -> ModelSettings:
        """The preset's model, with room for the task's sequences."""
        preset = PRESETS[self.preset]
        return dataclasses.replace(preset, context=max(preset.context, context), value=value)


def _try(estimator: Estimator, prompts: int, group: int) -> None:
    """Refuse an estimator that cannot use rollouts of this size, such as one that compares groups
    with G = 1.
    """
    zero = torch.zeros(prompts, group, 1)
    full = torch.zeros(prompts, group, 1, 1)
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
        kl_coef=torch.tensor(1.0),
    )
    estimator.freeze(rollout)


class Training:
    """A training in progress.

    `step` takes it one rollout (or one warm-up step) further; `done` says when it is over.
    """

    def __init__(self, settings: TrainSettings, *, numbers: range | None = None) -> None:
        self.settings = settings
        self.numbers = range(settings.runs) if numbers is None else numbers
        self.runs = () if settings.runs == 1 else (settings.runs,)
        self.task: Task = tasks.make(settings.questions).to(settings.device)
        self.critic: Transformer | None = None
        self.reference: Transformer | None = None
        self.phase = PHASES[0] if settings.warm_target > 0 else PHASES[1]
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
        """One more step; returns a row for the log where one is due.

        With run axes its numbers are lists, one for each run.
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
        """End the warm start run by run, where the sampled accuracy on training questions has
        reached the target.
        """
        now = self.warm_accuracy()
        reached = now >= self.settings.warm_target
        if self.learner.halted is not None:
            reached = reached | self.learner.halted
        self.learner.halted = reached if bool(reached.any()) else None
        if bool(reached.all()):
            self.phase = "train" if self.settings.rollouts else "done"
            if self.phase == "train":
                self.learner = self._train_learner()
        elif self.learner.steps >= self.settings.warm_limit:
            worst = float(now.min())
            raise CourseError(
                f"warm_target: got {self.settings.warm_target}; after {self.learner.steps} steps"
                f" the accuracy is {worst:.2f}"
            )
        return now

    def warm_accuracy(self) -> Tensor:
        """[*runs] sampled accuracy on up to 512 training questions, from streams that no training
        step uses.
        """
        train = self.task.train
        some = train[
            torch.linspace(0, len(train) - 1, min(512, len(train)), device=train.device).long()
        ]
        noise = self._noise(CHECK + 10 * (1 + self.learner.steps))
        return accuracy(
            self.model, self.task, noise, questions=some, temperature=self.settings.temperature
        ).mean(-1)

    def _logged(self) -> dict[str, Tensor]:
        last = self.learner.history.rows[-1]
        self.learner.history.rows.clear()  # the log has them
        self.learner.history.steps.clear()
        return {
            name: value.float()
            for name, value in last.items()
            if self.phase != "warm" or name in IN_WARM_START
        }

    # ------------------------------------------------------------------ making

    def _noise(self, use: int) -> Noise:
        return Noise(
            self.runs,
            self.settings.seed * SEED_STEP + use,
            numbers=self.numbers,
            device=self.settings.device,
        )

    def _transformer(self, use: int, value: bool) -> Transformer:
        settings = self.settings.model(self.task.context, value)
        seed = self.settings.seed * SEED_STEP + use
        return Transformer(
            settings, self.runs, seed, numbers=self.numbers, device=self.settings.device
        )

    def _warm_learner(self) -> Learner:
        settings = self.settings
        problem = Demonstrations(self.model, self.task, batch=settings.warm_batch)
        noise = self._noise(WARM)
        return Learner(
            problem, LIKELIHOOD, Adam(settings.warm_lr), noise, max_grad_norm=settings.max_grad_norm
        )

    def _train_learner(self) -> Learner:
        settings, estimator = self.settings, self.settings.estimator
        if uses_critic(estimator):
            self.critic = (
                self.model if settings.critic == "shared" else self._transformer(CRITIC, True)
            )
        problem = LanguageModel.of(
            estimator,
            self.model,
            self.task,
            prompts=settings.prompts,
            group=settings.group,
            reward=REWARDS[settings.reward],
            temperature=settings.temperature,
            critic=self.critic,
        )
        self.reference = problem.reference
        updates = settings.rollouts * settings.epochs * settings.minibatches
        return Learner(
            problem,
            estimator,
            Adam(
                settings.lr,
                LinearDecay(updates, warmup=min(settings.lr_warmup, updates - 1)),
                betas=(0.9, settings.adam_beta2),
            ),
            self._noise(TRAIN),
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            max_grad_norm=settings.max_grad_norm,
            shuffle_seed=settings.seed,
        )

    # ------------------------------------------------------------------ keeping

    def adopt(self, path: str | Path) -> None:
        """Begin with the model of another training in place of random weights, as `warm_target` = 0
        leaves them.

        Refuses by name a checkpoint that is none or holds a model of another shape.
        """
        weights = checkpoint.under("model", _read(path)[0])
        with torch.no_grad():
            for name, mine in self.model.weights.items():
                if name == "value" and name not in weights:
                    continue  # a critic's head, which the other had no use for
                shape = tuple(weights[name].shape) if name in weights else None
                require(
                    shape == tuple(mine.shape),
                    f"{path}: model.{name}",
                    shape,
                    str(tuple(mine.shape)),
                )
                mine.copy_(weights[name])
        if self.reference is not None:
            self.reference.weights.update(self.model.copy().weights)

    def save(self, path: str | Path) -> Path:
        """Write everything the next step depends on, whole or not at all; beside it, for people, a
        JSON that says what it is.
        """
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
        written = checkpoint.write(path, tensors, about | {"learner": self.learner.about()})
        _write_text(
            written.with_suffix(".json"),
            json.dumps(about | {"step": self.learner.steps}, indent=2) + "\n",
        )
        return written

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Training:
        """A training as it was saved, ready for its next step, on its device or another one.

        Refuses by name what is damaged or no training's checkpoint.
        """
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
        except CourseError as error:
            raise error if str(path) in str(error) else CourseError(f"{path}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CourseError(
                f"{path}: damaged, or written by another version ({type(error).__name__}: {error})"
            ) from error
        return training

    def _networks(self) -> dict[str, Transformer]:
        """What a checkpoint holds the weights of; the learner's parameters are those of model and
        critic, in this order.
        """
        found = {"model": self.model, "critic": self.critic, "reference": self.reference}
        return {
            name: network
            for name, network in found.items()
            if network is not None and (name == "model" or network is not self.model)
        }


def _read(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    tensors, about = checkpoint.read(path)
    if about.get("kind") != "tinylm":
        raise CourseError(f"{path}: got a saved state that is no training of a tiny language model")
    return tensors, about


def run(
    training: Training,
    folder: Path,
    *,
    save_every: int = 25,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
    tick: Callable[[Training], None] = lambda training: None,
) -> float:
    """Take a training to its end in `folder`: checkpoint.safetensors, and metrics.jsonl with a row
    for every log.

    Returns the seconds spent training. A row that a killed run wrote beyond its last checkpoint is
    written again. Raises `CourseError` where the disk is full; the checkpoint before stays whole.
    """
    path, log = folder / CHECKPOINT, folder / METRICS
    folder.mkdir(parents=True, exist_ok=True)
    training.save(path)  # from here on there is something to resume
    _write_text(log, "".join(_rows_before(log, training)))
    spent, since = 0.0, 0
    while not training.done:
        start = time.perf_counter()
        row = training.step()
        spent += time.perf_counter() - start
        if row is not None:
            _append(log, row)
            show(row)
        tick(training)
        since += 1
        if since >= save_every or training.done:
            training.save(path)
            since = 0
    return spent


def _rows_before(log: Path, training: Training) -> list[str]:
    """The rows that the checkpoint has seen."""
    kept = []
    here = PHASES.index(training.phase), training.learner.steps
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []:
        try:
            row = json.loads(line)
            place = PHASES.index(row["phase"]), row["step"]
        except (ValueError, KeyError, TypeError):
            break  # the last line of a killed run
        if place <= here:
            kept.append(line)
    return kept


def _append(log: Path, row: dict[str, Any]) -> None:
    try:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise CourseError(
            f"{log}: cannot be written ({error.strerror}); allowed is a folder with room, open for"
            " writing"
        ) from error


def _write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    replace_files({path: text.encode("utf-8")})


__all__ = ["CHECKPOINT", "METRICS", "TrainSettings", "Training", "run"]
