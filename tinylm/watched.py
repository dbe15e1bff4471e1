"""Problems that compare what was sampled with exact values while a policy learns.

Only one answer to a question is right, so the value of a prompt is the probability p of that answer
under the policy that samples, and the value of a prefix is the probability of the rest of it, or 0
after a wrong token. Both come from one forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course.exact import silent_probability
from course.rollout import Rollout
from course.train.metrics import of_rollout
from course.train.noise import Noise
from tinylm.evaluate import exact_values, group_mean_error, right_to_go, value_errors
from tinylm.model import Transformer
from tinylm.problem import LanguageModel
from tinylm.sampling import sample
from tinylm.scoring import values
from tinylm.tasks import PAD, Task


class WatchedGroups(LanguageModel):
    """The same problem, which also counts silent groups and computes each question's exact p."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # silent share [*runs] and p [*runs, Q] of each rollout since the last log
        self.seen: list[tuple[Tensor, Tensor]] = []

    def sample(self, noise: Noise) -> Rollout:
        """Sample completions, and compute p under the policy that sampled them."""
        rollout = super().sample(noise)
        p = right_to_go(
            self.model, self.task, rollout.data["question"], temperature=self.temperature
        )[..., 0]
        self.seen.append((of_rollout(rollout)["silent_groups"].double(), p.double()))
        return rollout

    def metrics(self) -> dict[str, Tensor]:
        """The share of silent groups since the last log, its expectation, and its variance."""
        measured, p = (torch.stack(each) for each in zip(*self.seen, strict=True))
        self.seen = []
        silent = silent_probability(p, self.group)
        variance = (silent * (1 - silent)).sum((0, -1)) / (silent.shape[0] * silent.shape[-1]) ** 2
        return {
            "silent_measured": measured.mean(0),
            "silent_expected": silent.mean((0, -1)),
            "silent_variance": variance,
        }


class WatchedValues(LanguageModel):
    """The same problem, which also compares its critic with the exact values in every rollout."""

    found: dict[str, Tensor]

    def sample(self, noise: Noise) -> Rollout:
        """Sample completions; compare the critic's values with the exact values of this policy."""
        rollout = super().sample(noise)
        exact = exact_values(
            self.model, self.task, rollout.data["question"], rollout.data["tokens"]
        )
        p = exact[..., 0, 0].double()  # every answer of a group starts from the same state
        self.found = {"p_variance": p.var(-1), "sampling_variance": (p * (1 - p)).mean(-1)}
        if rollout.value is not None:
            self.found["prompt_error"], self.found["token_error"] = value_errors(
                rollout.value, exact, rollout.mask
            )
        return rollout

    def metrics(self) -> dict[str, Tensor]:
        """Of the last rollout: p's variance over prompts and the mean of p(1 − p); with a critic
        the mean squared errors of its values, of prompts and of later tokens.
        """
        return self.found


@torch.no_grad()
def critic_errors(
    model: Transformer, critic: Transformer, task: Task, questions: Tensor, group: int, noise: Noise
) -> dict[str, Tensor]:
    """Root mean squared errors [*runs] of a critic's values, on `group` sampled answers to each.

    "prompt" and "token" are those of prompts and of later tokens. Beside them stands "group", what
    the mean of `group` answers would be off by (`group_mean_error`).
    """
    prompt = task.prompt[questions].expand(*model.runs, len(questions), -1)
    made = sample(model, prompt, group, task.limit, noise)
    exact = exact_values(model, task, questions, made.tokens)
    value = values(critic, prompt, made.tokens)
    first, later = value_errors(value, exact, made.tokens != PAD)
    wanted = group_mean_error(exact[..., 0, 0].double(), group)
    return {"prompt": first.sqrt(), "token": later.sqrt(), "group": wanted}


__all__ = ["WatchedGroups", "WatchedValues", "critic_errors"]
