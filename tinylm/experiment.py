"""What the ablations on the tiny language model share: one warm start for all, and a training whose
learning rates and seeds are run axes of one program, judged on held-out questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab.settings import Checked
from course.lab.terminal import QUIET, Progress
from course.learner import Learner
from course.parts import AdaptiveBeta
from course.train.noise import Noise
from course.train.optim import Adam, LinearDecay, Optimizer
from tinylm import tasks
from tinylm.evaluate import accuracy
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import Reward
from tinylm.tasks import Task, TaskSettings
from tinylm.warm_start import LIKELIHOOD, Demonstrations


@dataclass(frozen=True)
class Budget(Checked):
    """What every estimator of an ablation gets alike."""

    digits: int = 2  # of the sums
    width: int = 64  # of the model's hidden states
    layers: int = 2  # blocks
    prompts: int = 32  # questions per rollout
    group: int = 8  # completions per question
    rollouts: int = 120  # of reinforcement learning
    epochs: int = 4  # updates per rollout
    lr_warmup: int = 20  # updates in which the learning rate rises to its height
    warm_target: float = 0.3  # sampled accuracy of the warm start
    judged: int = 250  # held-out questions
    log_every: int = 10  # rollouts
    seeds: int = 3  # models
    seed: int = 0  # of all streams
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "prompts",
            "group",
            "rollouts",
            "epochs",
            "judged",
            "log_every",
            "seeds",
            "width",
            "layers",
            "digits",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number > 0")
        require(
            0 <= self.warm_target < 1, "warm_target", self.warm_target, "a share from 0 to below 1"
        )


@dataclass(frozen=True)
class Start:
    """The task, and the weights that everything starts from: each [seeds, ...].

    `accuracy` [seeds] sampled, before training.
    """

    task: Task
    settings: ModelSettings
    weights: dict[str, Tensor]
    accuracy: Tensor


@dataclass(frozen=True)
class Curves:
    """A training of L learning rates × S seeds: `steps` (rollouts), `values[name]` [logs, L, S],
    seconds of training in all (CPU time, where it is on one), `peak` bytes a model.
    """

    steps: list[int]
    values: dict[str, Tensor]
    seconds: float
    halted: Tensor
    parameters: int
    peak: float
    model: Transformer = field(repr=False)
    critic: Transformer | None = field(default=None, repr=False)


def warm_start(
    budget: Budget, progress: Progress = QUIET, *, value: bool = False, task: Task | None = None
) -> Start:
    """Supervised training of `seeds` models until each answers a share `warm_target` of training
    questions (0: untrained).

    `task` None: sums of `digits` digits.
    """
    task = (tasks.make(TaskSettings(digits=budget.digits)) if task is None else task).to(
        budget.device
    )
    settings = ModelSettings(
        width=budget.width,
        layers=budget.layers,
        hidden=3 * budget.width,
        context=task.context,
        value=value,
    )
    runs = (budget.seeds,)
    model = Transformer(settings, runs, 7_000 + budget.seed, device=budget.device)
    noise = Noise(runs, 8_000 + budget.seed, device=budget.device)
    learner = Learner(
        Demonstrations(model, task, batch=256), LIKELIHOOD, Adam(3e-3), noise, max_grad_norm=1.0
    )
    questions = task.train[:: max(1, len(task.train) // 400)]
    with progress.bar(100, "warm start, % of the target") as bar:
        while True:
            check = Noise(runs, 9_000 + budget.seed, device=budget.device)
            right = accuracy(model, task, check, questions=questions).mean(-1)
            reached = right >= budget.warm_target
            bar.update(
                min(100, int(100 * float(right.min()) / max(budget.warm_target, 1e-9))) - bar.n
            )
            if bool(reached.all()):
                break
            learner.halted = reached if bool(reached.any()) else None
            require(
                learner.steps < 5_000,
                "warm_target",
                budget.warm_target,
                f"what 5,000 steps reach ({float(right.min()):.2f})",
            )
            for _ in range(20):
                learner.step()
    return Start(
        task,
        settings,
        {name: weight.detach().clone() for name, weight in model.weights.items()},
        right,
    )


def train(
    estimator: Estimator,
    budget: Budget,
    start: Start,
    rates: Sequence[float],
    progress: Progress = QUIET,
    *,
    critic: str = "own",
    optimizer: Callable[[Tensor], Optimizer] | None = None,
    reward: Reward | None = None,
    also: Mapping[str, Tensor] | None = None,
    asks: type[LanguageModel] = LanguageModel,
    text: str = "rollouts",
) -> Curves:
    """Reinforcement learning from the warm start, for all learning rates and seeds at once: run
    axes (L, S).

    Adam, as in `tinylm.training`, with the learning rate falling to 0 in a line, unless `optimizer`
    makes another from the rates [L, S]. A seed draws the same questions at every learning rate.
    `critic` "own" or "shared", where the estimator needs one; it starts from the weights of the
    warm start, with a value head of zeros. `reward` None: exact match. `also`: more questions of
    the task, name → rows, on which the greedy accuracy is measured, too, under that name. `asks`:
    the problem's class, one that measures more than its base class, say.
    """
    runs, device = (len(rates), budget.seeds), budget.device
    shared = uses_critic(estimator) and critic == "shared"
    model = _spread(start, runs, shared)
    value: Transformer | None = None
    if uses_critic(estimator):
        value = model if shared else _spread(start, runs, True)
    problem = asks.of(
        estimator,
        model,
        start.task,
        prompts=budget.prompts,
        group=budget.group,
        reward=reward,
        critic=value,
        distributions=optimizer is not None,
    )
    anchor = model.copy() if problem.reference is None else problem.reference
    peak = peak_bytes(estimator, problem, Noise(runs, 20_000 + budget.seed, device=device)) / (
        runs[0] * runs[1]
    )
    noise = Noise(
        runs,
        10_000 + budget.seed,
        numbers=[seed for _ in rates for seed in range(budget.seeds)],
        device=device,
    )
    lr = torch.tensor(rates, device=device).unsqueeze(-1).expand(runs)
    updates = budget.rollouts * budget.epochs
    schedule = LinearDecay(updates, warmup=min(budget.lr_warmup, updates - 1))
    adam = Adam(lr, schedule, betas=(0.9, 0.98)) if optimizer is None else optimizer(lr)
    epochs = budget.epochs if optimizer is None else 1
    learner = Learner(
        problem, estimator, adam, noise, epochs=epochs, max_grad_norm=1.0, halt_diverged=True
    )
    judged = start.task.held_out[:: max(1, len(start.task.held_out) // budget.judged)][
        : budget.judged
    ]
    sets = {"accuracy": judged, **(also or {})}

    def right() -> dict[str, Tensor]:
        return {
            name: accuracy(model, start.task, questions=questions).mean(-1)
            for name, questions in sets.items()
        }

    rows: list[dict[str, Tensor]] = [right()]
    steps, spent = [0], 0.0
    clock = (
        time.perf_counter if budget.device.startswith("cuda") else time.process_time
    )  # other programs' time does not count
    for step in progress(range(1, budget.rollouts + 1), text, total=budget.rollouts):
        log = step % budget.log_every == 0 or step == budget.rollouts
        began = clock()
        learner.step(log=log)
        spent += clock() - began
        if log:
            steps.append(step)
            rows.append(
                right()
                | {"kl_start": distance(model, anchor, start.task, judged)}
                | learner.history.rows[-1]
            )
    names = [name for name in rows[-1] if all(name in row for row in rows[1:])]
    values = {
        name: torch.stack([row.get(name, torch.zeros(runs)) for row in rows]).float().cpu()
        for name in names
    }
    halted = torch.zeros(runs, dtype=torch.bool) if learner.halted is None else learner.halted.cpu()
    size = sum(parameter.numel() for parameter in problem.parameters) // (runs[0] * runs[1])
    return Curves(steps, values, spent, halted, size, peak, model, value)


def peak_bytes(estimator: Estimator, problem: LanguageModel, noise: Noise) -> float:
    """Bytes held at the height of an update, of all runs: weights, gradients and Adam's two
    moments, the reference's weights, the rollout, and what the pass forwards keeps for the one
    backwards. The parameters stay as they are.
    """
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
    for tensor in (
        getattr(rollout, name)
        for name in (
            "reward",
            "log_prob",
            "mask",
            "ref_log_prob",
            "value",
            "old_log_dist",
            "ref_log_dist",
        )
    ):
        if tensor is not None:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    reference = [] if problem.reference is None else problem.reference.parameters
    own = [
        parameter
        for parameter in problem.parameters
        for _ in ("gradient", "first moment", "second moment")
    ]
    for parameter in problem.parameters:
        kept[parameter.untyped_storage().data_ptr()] = parameter.untyped_storage().nbytes()
    return float(
        sum(kept.values()) + sum(each.numel() * each.element_size() for each in [*own, *reference])
    )


@torch.no_grad()
def distance(model: Transformer, reference: Transformer, task: Task, questions: Tensor) -> Tensor:
    """KL(π‖reference) of whole answers in nats, [*runs]: mean over questions of Σ_t KL along the
    policy's own greedy answers.
    """
    from course.parts.kl import exact_kl
    from tinylm.sampling import sample
    from tinylm.scoring import log_dists

    prompt = task.prompt[questions].expand(*model.runs, len(questions), -1)
    made = sample(model, prompt, 1, task.limit, None)
    mine = log_dists(model, prompt, made.tokens)
    theirs = log_dists(reference, prompt, made.tokens)
    return (exact_kl(mine, theirs) * made.mask).sum(-1).mean((-2, -1))


def _spread(start: Start, runs: tuple[int, int], value: bool = False) -> Transformer:
    """A model with run axes (L, S) whose every learning rate starts from the same S weights;
    `value`: with a value head of zeros.
    """
    model = Transformer(
        replace(start.settings, value=value or start.settings.value),
        runs,
        0,
        device=start.task.prompt.device,
    )
    with torch.no_grad():
        for name, weight in start.weights.items():
            model.weights[name].copy_(weight.expand_as(model.weights[name]))
    return model


def interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the last axis (seeds) and half its 95 % interval by Student's t (few seeds)."""
    count = values.shape[-1]
    t = {
        1: float("nan"),
        2: 12.71,
        3: 4.303,
        4: 3.182,
        5: 2.776,
        6: 2.571,
        7: 2.447,
        8: 2.365,
        9: 2.306,
        10: 2.262,
    }.get(count, 1.96)
    spread = values.std(-1) if count > 1 else torch.full(values.shape[:-1], float("nan"))
    return values.mean(-1), t * spread / count**0.5
