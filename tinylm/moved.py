"""Policies for the bridge: a nano model, and how far updates on one rollout carry it.

The model learns one-digit sums: a warm start, some GRPO, and then one rollout that is used again
and again, with the importance ratio and Adam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from course import ladder
from course.lab.terminal import QUIET, Progress
from course.learner import Learner
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.optim import Adam
from tinylm.bridge import Bridge
from tinylm.model import Transformer
from tinylm.problem import LanguageModel
from tinylm.tasks import Task
from tinylm.training import Training, TrainSettings

# the training that leads to the policy that samples; its warm start ends with the reference
NANO = TrainSettings(preset="nano", digits=1, rung="grpo", warm_batch=256, eval_every=0)


class _Watched(LanguageModel):
    """The same problem, which keeps the weights as they are before each update."""

    seen: list[Transformer]

    def policy(self, rollout: Rollout) -> Policy:
        self.seen.append(self.model.copy())
        return super().policy(rollout)


@dataclass(frozen=True)
class Policies:
    """A task, the reference, the policy that samples, and that policy after n updates: `moved[n]`.

    The updates are all on one rollout.
    """

    task: Task
    reference: Transformer
    old: Transformer
    moved: dict[int, Transformer]


def moved_policies(
    updates: Sequence[int],
    lr: float,
    warm_target: float = 0.3,
    rollouts: int = 20,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = QUIET,
) -> Policies:
    """Train a nano model, then update it on one rollout of its own, `max(updates)` times.

    `warm_target` is the sampled accuracy of the reference, `rollouts` are of GRPO after it, and
    `lr` is Adam's learning rate on the rollout that grows stale.
    """
    given = {"warm_target": warm_target, "rollouts": rollouts, "seed": seed, "device": device}
    training = Training(replace(NANO, **given))  # type: ignore[arg-type]
    while training.phase == "warm":
        training.step()
    reference = training.model.copy()
    for _ in progress(range(rollouts), "training"):
        training.step()
    problem = _Watched(training.model, training.task, prompts=64, group=8)
    problem.seen = []
    noise = Noise((), seed + 77, device=device)
    ratio, epochs = ladder.get("surrogate").estimator, max(updates) + 1  # the last only looks
    Learner(problem, ratio, Adam(lr), noise, epochs=epochs, max_grad_norm=1.0).step()
    return Policies(
        training.task, reference, problem.seen[0], {n: problem.seen[n] for n in updates}
    )


def from_hard_to_easy(model: Transformer, task: Task, count: int) -> list[int]:
    """Up to `count` rows of the task, from the model's hardest prompt to its easiest, evenly."""
    p = torch.tensor([Bridge(model, task, row).objective for row in range(len(task.prompt))])
    wanted = torch.linspace(float(p.min()), float(p.max()), count)
    chosen = {int((p - level).abs().argmin()) for level in wanted}
    return sorted(chosen, key=lambda row: float(p[row]))


__all__ = ["NANO", "Policies", "from_hard_to_easy", "moved_policies"]
