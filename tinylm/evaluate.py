"""Evaluation on held-out questions: greedy and sampled accuracy with an interval, pass@k, by difficulty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course.noise import Noise
from tinylm.model import Transformer
from tinylm.sampler import sample
from tinylm.tasks import ExactMatch, Task


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
    """Exact match of each question, [*runs, N]: greedy where `noise` is None, else the share of `samples` that are right.

    `questions` [N] are rows of the task (default: all held-out ones).
    """
    rows = task.held_out if questions is None else questions
    right = []
    for part in rows.split(batch):
        prompt = task.prompt[part].expand(*model.runs, *task.prompt[part].shape)
        made = sample(model, prompt, samples, task.limit, noise, temperature=temperature, top_k=top_k)
        reward = ExactMatch()(made.tokens, part.unsqueeze(-1).expand(made.tokens.shape[:-1]), task)
        right.append(reward.mean(-1))
    return torch.cat(right, -1)


def wilson(right: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which behaves at 0 and 1."""
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """The chance that at least one of k samples is right, from c right ones among n: 1 − C(n−c, k)/C(n, k), unbiased.

    right [...] counts → [...]. Chen et al. 2021 (Codex), eq. 1.
    """
    wrong = samples - right.double()
    log_ratio = torch.zeros_like(wrong)
    for i in range(k):
        log_ratio = log_ratio + torch.log(((wrong - i) / (samples - i)).clamp(min=0))
    return 1 - log_ratio.exp()
