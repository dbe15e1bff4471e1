"""Builds a training of the transformer: its budget, its random streams, its learner.

`python -m tinylm train` and every ablation on the transformer use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_number
from course.estimator import Estimator, uses_critic
from course.lab.settings import Checked
from course.learner import Learner
from course.train.device import pick_device
from course.train.noise import Noise
from course.train.optim import Adam, LinearDecay, Optimizer
from tinylm.model import PRESETS, ModelSettings, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import REWARDS, Reward
from tinylm.sampling import check_sampling
from tinylm.tasks import Task, TaskSettings

INIT, WARM, TRAIN, CHECK, JUDGE = range(5)  # each use of random numbers has its own streams
SEED_STEP = 1_000_000  # distance between the streams of two consecutive seeds


@dataclass(frozen=True)
class Budget(Checked):
    """What a training may use: a task, a model, a warm start, rollouts and updates.

    Raises `CourseError` for a setting out of range.
    """

    task: str = "addition"  # addition, subtraction, multiplication, modular, terms
    digits: int = 2  # digits of each number
    terms: int = 3  # numbers per sum (task terms)
    modulus: int = 97  # modulus of the sum (task modular)
    scratchpad: bool = False  # write partial sums before the answer (task terms)
    held_out: float = 0.1  # share of the questions that are never trained on
    reward: str = "exact"  # exact, digits, exact+format, exact+digits, exact+digits+end
    preset: str = "small"  # nano, mini, small or gpu
    warm_target: float = 0.3  # sampled accuracy that ends the warm start; 0: no warm start
    warm_lr: float = 2e-3  # Adam's learning rate in the warm start
    warm_batch: int = 256  # demonstrations per step
    warm_limit: int = 3000  # steps after which the warm start gives up
    rollouts: int = 600  # rollouts of reinforcement learning; 0: warm start only
    prompts: int = 64  # questions per rollout
    group: int = 16  # completions per question
    epochs: int = 2  # passes over each rollout; each takes one update per minibatch
    minibatches: int = 1  # parts into which a rollout's questions are split
    # updates over which the learning rate rises from 0, because Adam's first steps are full-sized
    # but uncertain
    lr_warmup: int = 20
    # decay of Adam's squared gradients; 0.98 averages over about 50 updates
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0  # longer gradients are clipped to this norm, run by run
    # KL from the sampling policy, in nats per token, above which a rollout gets no further epoch
    kl_stop: float | None = None
    temperature: float = 1.0  # temperature of sampling and of scoring
    critic: str = "own"  # own (a separate network) or shared (trunk), if the rung has a critic
    seed: int = 0  # seed of all random numbers
    device: str = "auto"  # cpu, cuda, cuda:1 …; auto: the GPU if there is one

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "device", str(pick_device(self.device)))
        require(self.preset in PRESETS, "preset", self.preset, ", ".join(PRESETS))
        require(self.reward in REWARDS, "reward", self.reward, ", ".join(REWARDS))
        require(self.critic in ("own", "shared"), "critic", self.critic, "own or shared")
        for name in ("warm_target", "adam_beta2"):
            allowed = "a number from 0 to below 1"
            require_number(name, getattr(self, name), allowed, at_least=0, below=1)
        require_number("max_grad_norm", self.max_grad_norm, "a number > 0", above=0)
        require_number("kl_stop", self.kl_stop, "a number > 0, or none", above=0, optional=True)
        check_sampling(self.temperature)
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
        _ = self.questions  # raises now, and not in the middle of a training, if they are wrong

    @property
    def questions(self) -> TaskSettings:
        """The settings of the task."""
        shared = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(TaskSettings)
            if hasattr(self, f.name) and f.name != "seed"
        }
        return TaskSettings(name=self.task, **shared)

    def model(self, context: int, value: bool = False) -> ModelSettings:
        """The settings of the preset's model, with a context of at least `context` tokens."""
        preset = PRESETS[self.preset]
        return dataclasses.replace(preset, context=max(preset.context, context), value=value)


@typed
@dataclass(frozen=True)
class Streams:
    """The random streams of a training's runs.

    Run `numbers[i]` has its own stream for each use. A stream depends only on `seed`, the run's
    number and the use. A run therefore gives the same result alone as among others, and two
    trainings with the same numbers are paired.
    """

    seed: int
    runs: tuple[int, ...] = ()
    numbers: Sequence[int] = range(1)
    device: str = "cpu"

    def noise(self, use: int) -> Noise:
        """The random streams of one use, such as `TRAIN`."""
        seed = self.seed * SEED_STEP + use
        return Noise(self.runs, seed, numbers=self.numbers, device=self.device)

    def transformer(self, settings: ModelSettings) -> Transformer:
        """A model with random weights, different ones for each run."""
        seed = self.seed * SEED_STEP + INIT
        return Transformer(settings, self.runs, seed, numbers=self.numbers, device=self.device)


@typed
def copies(
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    runs: tuple[int, ...],
    *,
    value: bool = False,
) -> Transformer:
    """A trainable model that starts from `weights`, each [*runs, ...] or broadcast to that shape.

    `value` adds a value head of zeros if the weights have none.
    """
    device = next(iter(weights.values())).device
    shape = dataclasses.replace(settings, value=value or settings.value)
    model = Transformer(shape, runs, device=device)
    with torch.no_grad():
        for name, weight in weights.items():
            model.weights[name].copy_(weight.expand_as(model.weights[name]))
    return model


@typed
def critic_of(budget: Budget, estimator: Estimator, model: Transformer) -> Transformer | None:
    """The critic the estimator needs, or None.

    It is a copy of the model with a value head of zeros or, with a shared trunk, the model itself.
    """
    if not uses_critic(estimator):
        return None
    if budget.critic == "shared":
        return model
    return copies(model.weights, model.settings, tuple(model.runs), value=True)


def needs_value_head(budget: Budget, estimator: Estimator) -> bool:
    """Whether the model itself is the critic (shared trunk)."""
    return budget.critic == "shared" and uses_critic(estimator)


@typed
def train_learner(
    budget: Budget,
    estimator: Estimator,
    model: Transformer,
    task: Task,
    streams: Streams,
    lr: float | Tensor,
    *,
    critic: Transformer | None = None,
    optimizer: Optimizer | None = None,
    asks: type[LanguageModel] = LanguageModel,
    reward: Reward | None = None,
    halt_diverged: bool = False,
) -> Learner:
    """The learner for reinforcement learning: Adam with a linear warm-up and a linear decay to 0.

    `lr` is one learning rate or one per run [*runs]. `critic` comes from `critic_of`. `optimizer`
    replaces Adam (as for TRPO); the rollouts then hold full distributions. `asks` is the class of
    the problem, for example one that measures more than its base class. `reward` replaces the
    budget's. With `halt_diverged`, a run
    that diverges stops and the others continue.
    """
    problem = asks.of(
        estimator,
        model,
        task,
        prompts=budget.prompts,
        group=budget.group,
        reward=REWARDS[budget.reward] if reward is None else reward,
        temperature=budget.temperature,
        critic=critic,
        distributions=optimizer is not None,
    )
    updates = budget.rollouts * budget.epochs * budget.minibatches
    schedule = LinearDecay(updates, warmup=min(budget.lr_warmup, updates - 1))
    adam = Adam(lr, schedule, betas=(0.9, budget.adam_beta2))
    return Learner(
        problem,
        estimator,
        adam if optimizer is None else optimizer,
        streams.noise(TRAIN),
        epochs=budget.epochs,
        minibatches=budget.minibatches,
        max_grad_norm=budget.max_grad_norm,
        kl_stop=budget.kl_stop,
        shuffle_seed=budget.seed,
        halt_diverged=halt_diverged,
    )


__all__ = [
    "CHECK",
    "INIT",
    "JUDGE",
    "SEED_STEP",
    "TRAIN",
    "WARM",
    "Budget",
    "Streams",
    "copies",
    "critic_of",
    "needs_value_head",
    "train_learner",
]
