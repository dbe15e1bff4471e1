"""Verifiable rewards, which compare a completion with the expected answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from course.arguments import typed
from course.errors import require, require_flag, require_number
from tinylm.tasks import CHARACTERS, END, MARKER, PAD, Task


def final_answer(completion: Tensor, width: int, marked: bool) -> Tensor:
    """The final answer of a completion: [..., T] → [..., A] with A = `width`.

    It is the first A tokens or, if `marked`, the A tokens after the last marker. The answer is PAD
    if there is no marker.
    """
    if not marked:
        return torch.nn.functional.pad(
            completion, (0, max(0, width - completion.shape[-1])), value=PAD
        )[..., :width]
    limit = completion.shape[-1]
    place = torch.arange(limit, device=completion.device)
    last = torch.where(completion == MARKER, place, -1).amax(-1, keepdim=True)
    index = last + 1 + torch.arange(width, device=completion.device)
    found = completion.gather(-1, index.clamp(max=limit - 1))
    return torch.where((last >= 0) & (index < limit), found, PAD)


@typed
@dataclass(frozen=True)
class Reward:
    """A verifiable reward: completions [..., T] and their questions' row numbers [...] → [...]."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        require_number("reward.weight", self.weight, "a finite number")

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        raise NotImplementedError

    def components(self, completion: Tensor, question: Tensor, task: Task) -> Tensor | None:
        """The rewards that this one is the sum of, [..., C]; None if it is a single one."""
        return None


@dataclass(frozen=True)
class ExactMatch(Reward):
    """`weight` if the final answer is right to the last digit and ends there.

    eq:verifiable-reward
    """

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        answer = final_answer(completion, task.answer.shape[-1], task.marked)
        right = (answer == task.answer[question]).all(-1)  # the answer includes the end token
        return self.weight * right.float()


@dataclass(frozen=True)
class DigitCredit(Reward):
    """`weight` times the share of the answer's characters that are right.

    With `end`, the end token counts as one more character; without it, nothing asks the completion
    to end. Characters after the answer are ignored.
    """

    end: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("reward.end", self.end)

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        expected = task.answer[question]
        answer = final_answer(completion, expected.shape[-1], task.marked)
        counts = expected != PAD if self.end else expected < PAD  # END is above PAD
        return self.weight * ((answer == expected) & counts).sum(-1) / counts.sum(-1)


@dataclass(frozen=True)
class Format(Reward):
    """`weight` if the completion ends and its final answer is an integer, right or wrong.

    The completion must have an end token, and a marker before the answer if the task uses one. The
    answer must be digits, with an optional minus before them.
    """

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        width = completion.shape[-1]
        answer = final_answer(completion, width, task.marked)
        digit = answer < 10
        minus = torch.zeros_like(digit)
        minus[..., 0] = answer[..., 0] == CHARACTERS.index("-")
        wellformed = (digit | minus | (answer == PAD) | (answer == END)).all(-1)
        return self.weight * (wellformed & digit.any(-1) & (answer == END).any(-1)).float()


@typed
@dataclass(frozen=True)
class Sum(Reward):
    """`weight` times the sum of several rewards, each with its own weight."""

    parts: tuple[Reward, ...] = (ExactMatch(), Format(0.1))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.parts) > 0, "reward.parts", self.parts, "at least one reward")

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        total = torch.zeros(question.shape, device=completion.device)
        for part in self.parts:
            total = total + part(completion, question, task)
        return self.weight * total

    def components(self, completion: Tensor, question: Tensor, task: Task) -> Tensor | None:
        """Each part, with its weight and that of the sum, [..., C]."""
        return torch.stack(
            [self.weight * part(completion, question, task) for part in self.parts], -1
        )


REWARDS: dict[str, Reward] = {
    "exact": ExactMatch(),
    "digits": DigitCredit(),
    "exact+format": Sum(),
    "exact+digits": Sum(parts=(ExactMatch(), DigitCredit(0.5))),
    "exact+digits+end": Sum(parts=(ExactMatch(), DigitCredit(0.5, end=True))),
}
