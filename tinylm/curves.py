"""Trainings for the ablations, with curves: several learning rates from one warm start.

They are built like those of `python -m tinylm train` and evaluated on held-out questions as they
train.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from course.errors import require
from course.estimator import Estimator
from course.lab.facts import Fact
from course.lab.statistics import paired_error
from course.lab.sweep import Swept, sweep
from course.lab.terminal import QUIET, Progress
from course.learner import Learner
from course.parts import AdaptiveBeta
from course.parts.kl import exact_kl
from course.train.noise import Noise
from course.train.optim import Optimizer
from tinylm.evaluate import accuracy
from tinylm.model import Transformer
from tinylm.problem import LanguageModel
from tinylm.sampling import sample
from tinylm.scoring import log_dists
from tinylm.tasks import Task
from tinylm.warm_start import Start
from tinylm.wiring import Budget, Streams, copies, critic_of, needs_value_head, train_learner

# The probability that chance alone makes a fact about a few models fail. With six models, the usual
# 1 in 16,000 would need a margin of 12 standard errors.
CHANCE = 0.01


@dataclass(frozen=True)
class AblationBudget(Budget):
    """A budget small enough for many trainings, and how they are judged."""

    preset: str = "mini"  # nano, mini, small or gpu
    warm_lr: float = 5e-3  # Adam's learning rate in the warm start
    warm_batch: int = 64  # demonstrations per step
    rollouts: int = 40  # rollouts of reinforcement learning
    prompts: int = 16  # questions per rollout
    group: int = 8  # completions per question
    device: str = "cpu"  # where to run
    judged: int = 250  # held-out questions that measure the accuracy
    log_every: int = 10  # rollouts between two points of a curve
    seeds: int = 6  # models that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rollouts > 0, "rollouts", self.rollouts, "a whole number > 0")
        require(self.seeds > 1, "seeds", self.seeds, "at least 2, for an interval")


@dataclass(frozen=True)
class SweptBudget(AblationBudget):
    """The same with a sweep of learning rates, so that every estimator gets its best one.

    The rate is chosen on other models and other questions than those that judge it.
    """

    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (1e-4, 3e-4, 9e-4)
    tuning: int = 2  # models that choose the rate

    @property
    def models(self) -> int:
        """How many models are warm-started: the first choose the rate, the others are judged."""
        return self.tuning + self.seeds


@dataclass(frozen=True)
class Curves:
    """The curves of a training with L learning rates × S models.

    `steps` are in rollouts; `values[name]` is [logs, L, S]. `seconds` is the total training time,
    as CPU time if it ran on a CPU.
    """

    steps: list[int]
    values: dict[str, Tensor]
    seconds: float
    learner: Learner = field(repr=False)

    @property
    def problem(self) -> LanguageModel:
        """The problem that was trained on."""
        assert isinstance(self.learner.problem, LanguageModel)
        return self.learner.problem

    @property
    def halted(self) -> Tensor:
        """Which runs diverged and were stopped, [L, S] (bool)."""
        return self.learner.diverged

    @property
    def final(self) -> Tensor:
        """The final accuracy [L, S], NaN for runs that diverged."""
        return torch.where(self.halted, torch.nan, self.values["accuracy"][-1].double())

    @property
    def start(self) -> Tensor:
        """The greedy accuracy [L, S] of the same models after the warm start."""
        return self.values["accuracy"][0].double()

    @property
    def gain(self) -> Tensor:
        """The accuracy less that of the same model after the warm start, [logs, L, S]."""
        return self.values["accuracy"] - self.values["accuracy"][0]

    @property
    def parameters(self) -> int:
        """The number of weights of one model and its critic."""
        return sum(each.numel() for each in self.problem.parameters) // self.halted.numel()


def train(
    budget: AblationBudget,
    estimator: Estimator,
    start: Start,
    rates: Sequence[float],
    numbers: Sequence[int],
    progress: Progress = QUIET,
    *,
    questions: Tensor | None = None,
    also: Mapping[str, Tensor] | None = None,
    optimizer: Callable[[Tensor], Optimizer] | None = None,
    asks: type[LanguageModel] = LanguageModel,
    text: str = "rollouts",
    seen: Callable[[int, dict[str, Tensor]], None] = lambda step, row: None,
) -> Curves:
    """Train the models `numbers` of a warm start at all learning rates at once: run axes (L, S).

    A model draws from the same random streams at every rate and with every estimator, so
    comparisons are paired. The greedy accuracy is measured on `questions` [N], rows of the task
    (default: those for judging). `also` names further sets of rows to measure. `optimizer` makes
    what replaces Adam from the rates [L, S], which are bounds of the KL for TRPO. `seen` is told of
    each logged row.
    """
    runs, device = (len(rates), len(numbers)), budget.device
    value = needs_value_head(budget, estimator)
    model = copies(start.of(numbers), start.model, runs, value=value)
    every = [number for _ in rates for number in numbers]
    each = torch.tensor(rates, device=device).unsqueeze(-1).expand(runs)
    learner = train_learner(
        budget,
        estimator,
        model,
        start.task,
        Streams(budget.seed, runs, every, device),
        each,
        critic=critic_of(budget, estimator, model),
        optimizer=None if optimizer is None else optimizer(each),
        asks=asks,
        halt_diverged=True,
    )
    before = model.copy()
    judged = held_out(start.task, budget.judged) if questions is None else questions
    sets = {"accuracy": judged, **(also or {})}

    def right() -> dict[str, Tensor]:
        return {
            name: accuracy(model, start.task, questions=rows).mean(-1)
            for name, rows in sets.items()
        }

    rows: list[dict[str, Tensor]] = [right()]
    steps, spent = [0], 0.0
    # on a CPU, count only the time of this process
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    for step in progress(range(1, budget.rollouts + 1), text, total=budget.rollouts):
        log = step % budget.log_every == 0 or step == budget.rollouts
        began = clock()
        learner.step(log=log)
        spent += clock() - began
        if log:
            steps.append(step)
            far = {"kl_start": distance(model, before, start.task, judged)}
            rows.append(right() | far | learner.history.rows[-1])
            seen(step, rows[-1])
    names = [name for name in rows[-1] if all(name in row for row in rows[1:])]
    nothing = torch.zeros(runs, device=device)
    values = {
        name: torch.stack([row.get(name, nothing) for row in rows]).float().cpu() for name in names
    }
    return Curves(steps, values, spent, learner)


def sweep_rates(
    budget: SweptBudget,
    estimator: Estimator,
    start: Start,
    progress: Progress = QUIET,
    *,
    optimizer: Callable[[Tensor], Optimizer] | None = None,
    asks: type[LanguageModel] = LanguageModel,
    also: Mapping[str, Tensor] | None = None,
    value: Callable[[Curves], Tensor] | None = None,
    judged_with: SweptBudget | None = None,
    wider: int = 0,
    text: str = "",
) -> Swept[Curves]:
    """Train the tuning models at every rate, then the judging models at the best rate.

    `start` holds both. The held-out questions that choose the rate are not those that judge it.
    `optimizer`, `asks` and `also` are those of `train`; only the judging models measure `also`.
    `value` is what chooses the rate, [L, S] (default: the final accuracy); `judged_with` is another
    budget for the judging models, such as one with another seed. `wider` is that of `sweep`.
    """
    tuning, judging = range(budget.tuning), range(budget.tuning, budget.models)
    # the final accuracy alone needs no curve
    quick = replace(budget, log_every=budget.rollouts) if value is None else budget

    def trained(rates: Sequence[float], numbers: Sequence[int]) -> Curves:
        choosing = numbers == tuning
        rows = held_out(start.task, budget.judged, choosing=choosing)
        return train(
            quick if choosing else judged_with or budget,
            estimator,
            start,
            rates,
            numbers,
            progress,
            questions=rows,
            also=None if choosing else also,
            optimizer=optimizer,
            asks=asks,
            text=f"{text}: choosing the rate" if choosing else text,
        )

    best = value or (lambda curves: curves.final)
    return sweep(trained, best, budget.rates, tuning, judging, wider)


def mean_along(curves: Curves) -> Tensor:
    """The mean accuracy along the run [L, S], NaN for runs that diverged: fast and high is best."""
    return torch.where(curves.halted.cpu(), torch.nan, curves.values["accuracy"].double().mean(0))


def compared(claim: str, more: Any, less: Any, number: int | None = None) -> Fact:
    """The fact that `more` is above `less` (both [S]), model by model; it may not hold."""
    mean, error = paired_error(more, less)
    text, runs = f"{claim} (difference, model by model)", len(more)
    return Fact.above(
        text, "this course", mean, 0.0, error, number=number, runs=runs, chance=CHANCE
    )


def held_out(task: Task, count: int, *, choosing: bool = False) -> Tensor:
    """Up to `count` held-out questions [N], evenly spread over every second one.

    With `choosing`, they come from the other half, which is used for choosing a learning rate.
    """
    rows = task.held_out[int(choosing) :: 2] if len(task.held_out) > 1 else task.held_out
    return rows[:: max(1, len(rows) // count)][:count]


@torch.no_grad()
def distance(model: Transformer, reference: Transformer, task: Task, questions: Tensor) -> Tensor:
    """KL(π‖reference) of answers in nats, [*runs], estimated along the policy's greedy answers.

    It is the mean over questions of Σ_t KL of the next-token distributions.
    """
    prompt = task.prompt[questions].expand(*model.runs, len(questions), -1)
    made = sample(model, prompt, 1, task.limit, None)
    mine = log_dists(model, prompt, made.tokens)
    theirs = log_dists(reference, prompt, made.tokens)
    return (exact_kl(mine, theirs) * made.mask).sum(-1).mean((-2, -1))


def peak_bytes(curves: Curves, noise: Noise) -> float:
    """The peak memory of one model during an update, in bytes.

    It counts weights, gradients, Adam's two moments, the reference's weights, the rollout, and the
    tensors that the forward pass keeps for the backward pass.
    """
    problem, estimator = curves.problem, curves.learner.estimator
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rollout = problem.sample(noise)
    if isinstance(estimator.kl.beta, AdaptiveBeta):
        rollout = replace(rollout, kl_coef=torch.zeros(problem.runs, device=rollout.reward.device))
    frozen = estimator.freeze(rollout)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = estimator.objective(problem.policy(frozen.rollout), frozen)
    held = ("reward", "log_prob", "mask", "ref_log_prob", "value", "old_log_dist", "ref_log_dist")
    for tensor in (getattr(rollout, name) for name in held):
        if tensor is not None:
            keep(tensor)
    for parameter in problem.parameters:
        keep(parameter)
    # each parameter has a gradient and two moments
    more = 3 * list(problem.parameters)
    more += [] if problem.reference is None else problem.reference.parameters
    total = sum(kept.values()) + sum(each.numel() * each.element_size() for each in more)
    return total / curves.halted.numel()


__all__ = [
    "CHANCE",
    "AblationBudget",
    "Curves",
    "SweptBudget",
    "compared",
    "distance",
    "held_out",
    "mean_along",
    "peak_bytes",
    "sweep_rates",
    "train",
]
