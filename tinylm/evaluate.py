"""Evaluation on held-out questions: greedy and sampled accuracy, exact success rates, pass@k."""

from __future__ import annotations

import torch
from torch import Tensor

from course.errors import require
from course.train.noise import Noise
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch
from tinylm.sampling import sample
from tinylm.scoring import log_probs
from tinylm.tasks import Task


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
    """Exact match of each question, [*runs, N]: greedy where `noise` is None, else the share of
    `samples` that are right.

    `questions` [N] are rows of the task (default: all held-out ones).
    """
    rows = task.held_out if questions is None else questions
    right = []
    for part in rows.split(batch):
        prompt = task.prompt[part].expand(*model.runs, *task.prompt[part].shape)
        made = sample(
            model, prompt, samples, task.limit, noise, temperature=temperature, top_k=top_k
        )
        reward = ExactMatch()(made.tokens, part.unsqueeze(-1).expand(made.tokens.shape[:-1]), task)
        right.append(reward.mean(-1))
    return torch.cat(right, -1)


@torch.no_grad()
def right_to_go(
    model: Transformer, task: Task, questions: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The exact chance that a sampled answer whose first t tokens are right goes on to be right,
    [*runs, N, T] for t = 0 … T − 1.

    It is Π_{s≥t} π(target_s | prompt, target_<s): of all completions only the target is right (no
    marker), so this is the exact value function of exact match on right prefixes
    (eq:value-of-right-prefix), and on wrong ones that is 0. `questions` [N], or [*runs, N]: each
    run its own. eq:exact-success-rate
    """
    require(
        not task.marked, "task.scratchpad", True, "False: with a marker many completions are right"
    )
    model.check_finite()
    rows = questions.expand(*model.runs, questions.shape[-1])
    target = task.target[rows]
    chosen = log_probs(
        model, task.prompt[rows], target.unsqueeze(-2), temperature=temperature
    ).squeeze(-2)
    return chosen.flip(-1).cumsum(-1).flip(-1).exp()


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """The chance that at least one of k samples is right, from c right ones among n: 1 − C(n−c,
    k)/C(n, k), unbiased.

    right [...] counts → [...]. Chen et al. 2021 (Codex), eq. 1.
    """
    require(1 <= k <= samples, "k", k, f"1 to {samples}, the samples there are")
    wrong = samples - right.double()
    none = torch.ones_like(wrong)
    for i in range(k):
        none = none * ((wrong - i) / (samples - i)).clamp(min=0)
    return 1 - none


__all__ = ["accuracy", "pass_at_k", "right_to_go"]
