"""Evaluation on held-out questions: greedy and sampled accuracy, exact success rates, pass@k."""

from __future__ import annotations

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_number
from course.train.noise import Noise
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch
from tinylm.sampling import sample
from tinylm.scoring import log_probs
from tinylm.tasks import Task


@typed
@torch.no_grad()
def accuracy(
    model: Transformer,
    task: Task,
    noise: Noise | None = None,
    *,
    questions: Tensor | None = None,
    samples: int = 1,
    batch: int = 1024,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """The share of right answers (exact match) to each question, [*runs, N].

    With `noise` None it is the greedy answer, 0 or 1; otherwise the share of `samples` sampled
    answers. `questions` [N] are rows of the task (default: all held-out ones).
    """
    require_number("batch", batch, "a whole number > 0", above=0, whole=True)
    rows = task.held_out if questions is None else questions
    require_rows(rows, task, 1)
    right = []
    for part in rows.split(batch):
        prompt = task.prompt[part].expand(*model.runs, *task.prompt[part].shape)
        made = sample(
            model, prompt, samples, task.limit, noise, temperature=temperature, top_k=top_k
        )
        reward = ExactMatch()(made.tokens, part.unsqueeze(-1).expand(made.tokens.shape[:-1]), task)
        right.append(reward.mean(-1))
    return torch.cat(right, -1)


@typed
@torch.no_grad()
def right_to_go(
    model: Transformer, task: Task, questions: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The exact probability of a right answer, given that its first t tokens are right.

    Returns [*runs, N, T] for t = 0 … T − 1. It is Π_{s≥t} π(target_s | prompt, target_<s), because
    without a marker only the target itself is right. This is the exact value function of exact
    match on right prefixes (eq:value-of-right-prefix); on wrong prefixes the value is 0.
    `questions` are [N], or [*runs, N] if each run has its own. Raises `CourseError` for a task with
    a marker. eq:exact-success-rate
    """
    require(
        not task.marked, "task.scratchpad", True, "False: with a marker many completions are right"
    )
    require_rows(questions, task, 1 + len(model.runs))
    model.check_finite()
    rows = questions.expand(*model.runs, questions.shape[-1])
    target = task.target[rows]
    chosen = log_probs(
        model, task.prompt[rows], target.unsqueeze(-2), temperature=temperature
    ).squeeze(-2)
    return chosen.flip(-1).cumsum(-1).flip(-1).exp()


@typed
def exact_values(model: Transformer, task: Task, question: Tensor, tokens: Tensor) -> Tensor:
    """The exact value of the state before each token: the probability of a right answer.

    question [*runs, Q] or [Q] and tokens [*runs, Q, G, T] → [*runs, Q, G, T], 0 after a wrong
    token.
    """
    right = (tokens == task.target[question].unsqueeze(-2)).long().cumprod(-1)
    so_far = torch.nn.functional.pad(right[..., :-1], (1, 0), value=1)
    return right_to_go(model, task, question).unsqueeze(-2) * so_far


@typed
def value_errors(value: Tensor, exact: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors [...] of values [..., Q, G, T], for the first token and for later tokens.

    The value before the first token is the value of the prompt.
    """
    square = torch.where(mask, value - exact, 0.0).double().square()
    later = mask[..., 1:].sum((-3, -2, -1)).clamp(min=1)
    return square[..., 0].mean((-2, -1)), square[..., 1:].sum((-3, -2, -1)) / later


@typed
def group_mean_error(p: Tensor, group: int) -> Tensor:
    """The root mean squared error [...] of the mean of `group` answers as an estimate of p.

    The mean is over questions with success probabilities p [..., Q]. eq:group-mean-error
    """
    return ((p * (1 - p)).mean(-1) / group).sqrt()


@typed
def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """An unbiased estimate of the probability that at least one of k samples is right.

    With c right answers among n samples it is 1 − C(n−c, k)/C(n, k). `right` [...] are the counts c
    → [...]. Raises `CourseError` if k > n. Chen et al. 2021 (Codex), eq. 1.
    """
    most = f"counts from 0 to {samples}"
    require(bool(((right >= 0) & (right <= samples)).all()), "right", right, most)
    require(1 <= k <= samples, "k", k, f"1 to {samples}, the samples there are")
    wrong = samples - right.double()
    none = torch.ones_like(wrong)
    for i in range(k):
        none = none * ((wrong - i) / (samples - i)).clamp(min=0)
    return 1 - none


def require_rows(questions: Tensor, task: Task, most: int) -> None:
    """Raise `CourseError` unless these are row numbers of the task, on 1 to `most` axes."""
    fits = questions.dtype == torch.long and 1 <= questions.dim() <= most
    allowed = f"row numbers (torch.int64) on {'one axis' if most == 1 else f'1 to {most} axes'}"
    require(fits, "questions", (tuple(questions.shape), questions.dtype), allowed)
    rows = len(task.prompt)
    inside = bool(((questions >= 0) & (questions < rows)).all())
    require(inside, "questions", questions, f"row numbers from 0 to {rows - 1}")


__all__ = [
    "accuracy",
    "exact_values",
    "group_mean_error",
    "pass_at_k",
    "require_rows",
    "right_to_go",
    "value_errors",
]
