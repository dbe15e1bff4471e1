"""What puts the parts of an estimator to the test: tasks, rewards and outcomes of the stresses.

The tasks have answers of two lengths, two skills, or an uneven diet of questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from course.train.noise import Noise
from tinylm import tasks
from tinylm.evaluate import right_to_go
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch, Reward
from tinylm.sampling import sample
from tinylm.tasks import Task
from tinylm.warm_start import Start
from tinylm.wiring import copies

SKILLS = "addition", "subtraction"


def two_lengths(terms: int) -> Task:
    """Sums of `terms` one-digit numbers, each question once with partial sums and thrice without.

    Both answers follow the marker and pay alike, so the model learns to give either.
    """
    settings = tasks.TaskSettings(name="terms", digits=1, terms=terms, scratchpad=True)
    long = tasks.make(settings)
    direct = torch.full_like(long.target, tasks.PAD)
    direct[:, 0] = tasks.MARKER
    direct[:, 1 : 1 + long.answer.shape[1]] = long.answer
    return reduce(tasks.together, [replace(long, target=direct)] * 3 + [long])


def two_skills() -> Task:
    """One-digit sums and differences; a row is a sum if it is in the first half."""
    sums, differences = (tasks.make(tasks.TaskSettings(name=name, digits=1)) for name in SKILLS)
    return tasks.together(sums, differences)


def uneven(task: Task, times: int) -> Task:
    """The task with sums that do not carry `times` times as often among its training questions."""
    easy = task.train[task.difficulty[task.train] == 0]
    return replace(task, train=torch.cat([task.train, easy.repeat(times - 1)]))


@dataclass(frozen=True, eq=False)
class PerQuestion(Reward):
    """Exact match times `times` plus `add`, both [N]: one number for each question."""

    times: Tensor = field(default_factory=lambda: torch.ones(1))
    add: Tensor = field(default_factory=lambda: torch.zeros(1))

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        right = ExactMatch(self.weight)(completion, question, task)
        return right * self.times[question] + self.add[question]


@torch.no_grad()
def outcomes(
    model: Transformer, task: Task, order: Tensor, noise: Noise, first_only: bool
) -> dict[str, Tensor]:
    """What is looked at, each [*runs]; `order` [N] are the training questions, hard ones first.

    The success is that of all questions or, with `first_only`, of those in the first half of the
    table, which are the first skill.
    """
    if task.marked:  # many completions are right: sampled answers
        rows = order[:: max(1, len(order) // 512)]
        made = sample(model, task.prompt[rows].expand(*model.runs, -1, -1), 1, task.limit, noise)
        right = ExactMatch()(made.tokens, rows.unsqueeze(-1), task).squeeze(-1)  # [*runs, N]
        tokens = made.mask.sum((-2, -1)) * (1 - right)
        length = tokens.sum(-1) / (1 - right).sum(-1) / task.limit
        return {"success": right.mean(-1), "length": length}
    success = right_to_go(model, task, order)[..., 0]  # exact
    third, second_skill = len(order) // 3, order >= len(task.prompt) // 2
    counted = success[..., ~second_skill] if first_only else success
    return {
        "success": counted.mean(-1),
        "hard": success[..., :third].mean(-1),
        "easy": success[..., -third:].mean(-1),
        "skill": success[..., second_skill].mean(-1),
    }


def by_difficulty(start: Start) -> Tensor:
    """The training questions [N], each once, those that the warm start answers worst first."""
    task = start.task
    rows: Tensor = task.train.unique()
    if task.marked:
        return rows
    weights = {name: weight[0] for name, weight in start.weights.items()}
    model = copies(weights, start.model, ())
    return rows[right_to_go(model, task, rows)[:, 0].argsort()]


__all__ = [
    "SKILLS",
    "PerQuestion",
    "by_difficulty",
    "outcomes",
    "two_lengths",
    "two_skills",
    "uneven",
]
