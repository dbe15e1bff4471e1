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


def length(completion: Tensor) -> Tensor:
    """The tokens of a completion, its end token among them: [..., T] → [...]."""
    return (completion != PAD).sum(-1)


@typed
@dataclass(frozen=True)
class SoftOverlong(Reward):
    """`weight` times 0 up to `longest` − `cache` tokens, then falling linearly to −1 at `longest`.

    Longer answers get −1. It punishes length before the limit cuts, and rewards no answer for being
    short. `longest` and `cache` are in tokens. Raises `CourseError` unless 0 < cache ≤ longest.
    Source: Yu et al. 2025 (DAPO), eq. 13.
    """

    longest: int = 8
    cache: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("reward.longest", self.longest, "a whole number > 0", above=0, whole=True)
        allowed = f"a whole number of tokens from 1 to longest = {self.longest}"
        most = self.longest
        require_number("reward.cache", self.cache, allowed, above=0, at_most=most, whole=True)

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        over = length(completion) - (self.longest - self.cache)
        return -self.weight * (over / self.cache).clamp(0, 1)


@typed
@dataclass(frozen=True)
class CosineLength(Reward):
    """`weight` times a reward that falls with length for right answers and rises for wrong ones.

    With u = min(|o|/longest, 1) it goes along a cosine, v₀ + ½(v₁ − v₀)(1 − cos πu), from v₀ at no
    token to v₁ at `longest` tokens: for right answers from `right` to `right_long`, for wrong ones
    from `wrong` to `wrong_long`. So a right answer should be short, and who is wrong should think
    longer. Raises `CourseError` for a wrong setting. Source: Yeo et al. 2025 (2502.03373).
    """

    longest: int = 8
    right: float = 1.0
    right_long: float = 0.5
    wrong: float = -1.0
    wrong_long: float = -0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("reward.longest", self.longest, "a whole number > 0", above=0, whole=True)
        for name in ("right", "right_long", "wrong", "wrong_long"):
            require_number(f"reward.{name}", getattr(self, name), "a finite number")

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        share = (length(completion) / self.longest).clamp(max=1)
        risen = 0.5 * (1 - torch.cos(torch.pi * share))
        right = ExactMatch()(completion, question, task) > 0
        start = torch.where(right, self.right, self.wrong)
        end = torch.where(right, self.right_long, self.wrong_long)
        return self.weight * (start + (end - start) * risen)


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
