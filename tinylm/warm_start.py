"""The warm start (SFT): supervised training until each run reaches a target accuracy.

Maximum likelihood is a policy gradient on demonstrations with reward 1, so it uses the same
learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course.arguments import typed
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
# eq:likelihood-is-reward-one: the mean log-likelihood per token
LIKELIHOOD = Estimator(aggregation=TokenMean())


@typed
class Demonstrations:
    """A problem whose rollouts are the task's own answers, each with reward 1.

    Train it with `LIKELIHOOD`. eq:sft-log-likelihood
    """

    def __init__(self, model: Transformer, task: Task, *, batch: int = 512) -> None:
        require(batch > 0, "batch", batch, "a whole number > 0")
        require_room(model, task)
        self.model, self.task, self.batch, self.runs = model, task, batch, model.runs
        self.parameters: Sequence[Tensor] = model.parameters

    @torch.no_grad()
    def sample(self, noise: Noise) -> Rollout:
        """`batch` training questions, each with its target as the only completion."""
        question = ask(self.task, noise, self.batch)
        tokens = self.task.target[question].unsqueeze(-2)  # [*runs, Q, 1, T]
        mask = tokens != PAD
        sure = torch.ones(tokens.shape[:-1], dtype=self.parameters[0].dtype, device=mask.device)
        reward = on_last_token(sure, mask)
        data = {"prompt": self.task.prompt[question], "tokens": tokens, "question": question}
        return Rollout(reward, torch.zeros_like(reward), mask, limit=self.task.limit, data=data)

    def policy(self, rollout: Rollout) -> Policy:
        """log π of the demonstrations' tokens, with gradients attached."""
        log_dist = log_dists(self.model, rollout.data["prompt"], rollout.data["tokens"])
        log_prob = chosen_log_probs(log_dist, rollout.data["tokens"], rollout.mask)
        return Policy(log_prob, log_dist)

    def metrics(self) -> dict[str, Tensor]:
        """No metrics after an update."""
        return {}

    def metrics_of_update(self, policy: Policy, rollout: Rollout) -> dict[str, Tensor]:
        """The cross-entropy of the demonstrations before the update, in nats per token."""
        return {"cross_entropy": -chosen_mean(policy.log_prob.detach(), rollout.mask)}


@typed
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
    """The sampled accuracy [*runs] after `steps` steps, on up to 512 training questions.

    It draws from streams that no training step uses.
    """
    train = task.train
    some = train[
        torch.linspace(0, len(train) - 1, min(512, len(train)), device=train.device).long()
    ]
    noise = streams.noise(CHECK + 10 * (1 + steps))
    return accuracy(model, task, noise, questions=some, temperature=budget.temperature).mean(-1)


def halt_reached(budget: Budget, learner: Learner, now: Tensor) -> bool:
    """Halt each run whose accuracy `now` [*runs] has reached the target; True once all have.

    Raises `CourseError` if a run has not reached it within the budget's `warm_limit` steps.
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
    """A task and the weights that trainings on it start from.

    Each weight is [S, ...] for S warm-started models. `accuracy` [S] is their sampled accuracy at
    the end of the warm start.
    """

    task: Task
    model: ModelSettings
    weights: dict[str, Tensor]
    accuracy: Tensor

    def of(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The weights of the models with these numbers, each [len(numbers), ...]."""
        return {name: weight[list(numbers)] for name, weight in self.weights.items()}


@typed
def warm_start(
    budget: Budget, numbers: int, progress: Progress = QUIET, *, task: Task | None = None
) -> Start:
    """Warm-start `numbers` models, each until its accuracy reaches `warm_target`.

    A target of 0 leaves the random weights. `task` None takes the budget's task. Raises
    `CourseError` if a model does not reach the target within `warm_limit` steps.
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
                    stopped = learner.halted  # runs that stopped keep the accuracy measured then
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
