"""Evaluation on held-out questions: greedy and sampled accuracy with an interval, pass@k, by
difficulty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course.errors import require
from course.train.noise import Noise
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch
from tinylm.sampling import sample, score
from tinylm.tasks import PAD, Task


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
    rows = questions.expand(*model.runs, questions.shape[-1])
    target = task.target[rows]
    log_dist, _ = score(model, task.prompt[rows], target.unsqueeze(-2), temperature=temperature)
    counts = target != PAD
    chosen = (
        log_dist.squeeze(-3).gather(-1, torch.where(counts, target, 0).unsqueeze(-1)).squeeze(-1)
    )
    chosen = torch.where(counts, chosen, 0.0)
    return chosen.flip(-1).cumsum(-1).flip(-1).exp()


def wilson(right: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `total` (Wilson 1927), which behaves at 0 and 1."""
    require(
        0 <= right <= total and total > 0, "wilson", (right, total), "0 ≤ right ≤ total, total > 0"
    )
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = (
        z
        * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        / (1 + z * z / total)
    )
    low = 0.0 if right == 0 else centre - half  # what rounding leaves of 0 would be no 0
    return max(0.0, low), 1.0 if right == total else min(1.0, centre + half)


def interval(shares: Tensor, samples: int = 1) -> tuple[float, float]:
    """The 95 % interval of the mean of shares [N], one per question, each out of `samples` draws.

    Wilson's for as many independent draws as would scatter as much as the questions' mean does:
    N·p(1 − p)/s², between N and N·samples. Questions are the units, so it says what other questions
    would give, too.
    """
    count, mean = len(shares), float(shares.double().mean())
    spread = float(shares.double().var()) if count > 1 else 0.0
    effective = count * mean * (1 - mean) / spread if spread > 0 else count
    effective = min(max(effective, count), count * samples)
    return wilson(min(mean, 1.0) * effective, effective)


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


__all__ = ["accuracy", "interval", "pass_at_k", "right_to_go", "wilson"]
