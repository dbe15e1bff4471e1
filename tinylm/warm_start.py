"""The warm start (SFT): maximum likelihood is a policy gradient on demonstrations, each worth 1,
and goes on until each run answers a given share of its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import CourseError, require
from course.estimator import Estimator
from course.lab.terminal import QUIET, Progress
from course.learner import Learner
from course.parts import TokenMean
from course.rollout import Policy, Rollout, on_last_token
from course.train.metrics import chosen_mean
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm import tasks
from tinylm.evaluate import accuracy
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import ask, require_room
from tinylm.scoring import chosen_log_probs, log_dists
from tinylm.tasks import PAD, Task
from tinylm.wiring import CHECK, WARM, Budget, Streams

CHECK_EVERY = 10  # steps between measurements of the accuracy
LIKELIHOOD = Estimator(
    aggregation=TokenMean()
)  # eq:likelihood-is-reward-one: the mean log-likelihood per token


class Demonstrations:
    """The task's own answers as a rollout that is worth 1 per sample.

    Train it with `LIKELIHOOD`.

    eq:sft-log-likelihood
    """

    def __init__(self, model: Transformer, task: Task, *, batch: int = 512) -> None:
        require(batch > 0, "batch", batch, "a whole number > 0")
        require_room(model, task)
        self.model, self.task, self.batch, self.runs = model, task, batch, model.runs
        self.parameters: Sequence[Tensor] = model.parameters

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """`batch` training questions with their targets, one each."""
        question = ask(self.task, noise, self.batch)
        tokens = self.task.target[question].unsqueeze(-2)  # [*runs, Q, 1, T]
        mask = tokens != PAD
        sure = torch.ones(tokens.shape[:-1], dtype=self.parameters[0].dtype, device=mask.device)
        reward = on_last_token(sure, mask)
        data = {"prompt": self.task.prompt[question], "tokens": tokens, "question": question}
        return Rollout(reward, torch.zeros_like(reward), mask, limit=self.task.limit, data=data)

    def policy(self, rollout: Rollout) -> Policy:
        """log π of the demonstrations."""
        log_dist = log_dists(self.model, rollout.data["prompt"], rollout.data["tokens"])
        log_prob = chosen_log_probs(log_dist, rollout.data["tokens"], rollout.mask)
        return Policy(log_prob, log_dist)

    def metrics(self) -> dict[str, Tensor]:
        """None of its own after an update."""
        return {}

    def metrics_of_update(self, policy: Policy, rollout: Rollout) -> dict[str, Tensor]:
        """The cross-entropy of the demonstrations, in nats per token, before the update."""
        return {"cross_entropy": -chosen_mean(policy.log_prob.detach(), rollout.mask)}


def warm_learner(budget: Budget, model: Transformer, task: Task, streams: Streams) -> Learner:
    """The learner of the warm start: Adam on demonstrations of the training questions."""
    return Learner(
        Demonstrations(model, task, batch=budget.warm_batch),
        LIKELIHOOD,
        Adam(budget.warm_lr),
        streams.noise(WARM),
        max_grad_norm=budget.max_grad_norm,
    )


def warm_accuracy(
    budget: Budget, model: Transformer, task: Task, streams: Streams, steps: int
) -> Tensor:
    """[*runs] sampled accuracy after that many steps, on up to 512 training questions, from streams
    that no training step uses.
    """
    train = task.train
    some = train[
        torch.linspace(0, len(train) - 1, min(512, len(train)), device=train.device).long()
    ]
    noise = streams.noise(CHECK + 10 * (1 + steps))
    return accuracy(model, task, noise, questions=some, temperature=budget.temperature).mean(-1)


def halt_reached(budget: Budget, learner: Learner, now: Tensor) -> bool:
    """Halt the runs whose accuracy `now` [*runs] has reached the target, run by run; True if that
    is all of them.

    Raises `CourseError` where a run has not got there within the budget's limit.
    """
    reached = now >= budget.warm_target
    if learner.halted is not None:
        reached = reached | learner.halted
    learner.halted = reached if bool(reached.any()) else None
    if bool(reached.all()):
        return True
    if learner.steps >= budget.warm_limit:
        raise CourseError(
            f"warm_target: got {budget.warm_target}; after {learner.steps} steps"
            f" the accuracy is {float(now.min()):.2f}"
        )
    return False


@dataclass(frozen=True)
class Start:
    """The task, and the weights that trainings start from: each [S, ...], number n its n-th.

    `accuracy` [S] sampled, when the warm start ended.
    """

    task: Task
    model: ModelSettings
    weights: dict[str, Tensor]
    accuracy: Tensor

    def of(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The weights of those numbers, each [len(numbers), ...]."""
        return {name: weight[list(numbers)] for name, weight in self.weights.items()}


def warm_start(
    budget: Budget, numbers: int, progress: Progress = QUIET, *, task: Task | None = None
) -> Start:
    """Warm-start that many models, each until it answers a share `warm_target` (0: random weights).

    `task` None: the budget's own.
    """
    task = (tasks.make(budget.questions) if task is None else task).to(budget.device)
    streams = Streams(budget.seed, (numbers,), range(numbers), budget.device)
    model = streams.transformer(budget.model(task.context))
    now = warm_accuracy(budget, model, task, streams, 0)
    if budget.warm_target > 0:
        learner = warm_learner(budget, model, task, streams)
        with progress.bar(100, "warm start, % of the target") as bar:
            done = False
            while not done:
                learner.step()
                if learner.steps % CHECK_EVERY == 0:
                    seen = warm_accuracy(budget, model, task, streams, learner.steps)
                    stopped = learner.halted  # these were measured when they stopped
                    now = seen if stopped is None else torch.where(stopped, now, seen)
                    done = halt_reached(budget, learner, seen)
                    share = min(1.0, float(now.min()) / budget.warm_target)
                    bar.update(int(100 * share) - bar.n)
    weights = {name: weight.detach().clone() for name, weight in model.weights.items()}
    return Start(task, model.settings, weights, now.cpu())


__all__ = [
    "CHECK_EVERY",
    "LIKELIHOOD",
    "Demonstrations",
    "Start",
    "halt_reached",
    "warm_accuracy",
    "warm_learner",
    "warm_start",
]
