"""The exercises of lesson 06, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.theory import difficulty
from course import exact
from course.lesson.exercise import Exercise


def test_advantages(attempt):
    groups = {
        "(1, 0, 0, 0)": ([[1.0, 0, 0, 0]], [[3**0.5, *[-(3**-0.5)] * 3]]),
        "(1, 1, 0, 0)": ([[1.0, 1, 0, 0]], [[1.0, 1, -1, -1]]),
        "(1, 0) and (5, 3)": ([[1.0, 0], [5, 3]], [[1.0, -1], [1, -1]]),
        "seven times .7": ([[0.7] * 7], [[0.0] * 7]),
    }
    for label, (given, want) in groups.items():
        got = torch.as_tensor(
            attempt(torch.tensor(given, dtype=torch.float32)), dtype=torch.float64
        )
        want = torch.tensor(want, dtype=torch.float64)
        if got.shape != want.shape:
            return (
                f"for {label} it gives the shape {tuple(got.shape)}; every answer has one advantage"
            )
        if not torch.allclose(got, want, atol=1e-4):
            shown = [
                ", ".join(f"{x:.3g}" for x in numbers.flatten().tolist()) for numbers in (got, want)
            ]
            return f"for rewards {label} it gives ({shown[0]}), exact is ({shown[1]})"
    return None


def solution_advantages(reward):
    silent = reward.amax(-1, keepdim=True) == reward.amin(-1, keepdim=True)
    centred = reward - reward.mean(-1, keepdim=True)
    std = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(silent, 0.0, centred / torch.where(silent, 1.0, std))


GROUP_ADVANTAGES = Exercise(
    "group-advantages",
    "Write GRPO's advantages, without any eps: (R − mean)/std per group, and exactly 0 for silent"
    " groups.",
    test=test_advantages,
    solution=solution_advantages,
    wrong=[
        lambda reward: (
            (reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + 1e-8)
        ),
        lambda reward: (
            (reward - reward.mean(-1, keepdim=True))
            / (reward.std(-1, correction=0, keepdim=True) + 1e-8)
        ),
        lambda reward: (reward - reward.mean()) / (reward.std(correction=0) + 1e-6),
    ],
    hints=[
        (
            "torch.std divides by G − 1 unless told otherwise. And 'all equal' is better asked of"
            " the rewards than of their std."
        ),
        (
            "A group is silent where its largest reward is its smallest: amax == amin along the"
            " last axis."
        ),
        (
            "torch.where(silent, 0, centred / torch.where(silent, 1, std)): the inner where keeps"
            " 0/0 out."
        ),
    ],
)


def test_refill(attempt):
    for p, group in ((0.1, 8), (0.5, 2), (0.03, 4)):
        every = exact.every_group(difficulty.STD, difficulty.right_or_wrong(p), group)
        votes = (every.outcome[:, 0] != every.outcome[:, 0, :1]).any(-1)  # not all answers alike
        mean = (
            torch.einsum("m,md->d", every.chance[votes], every.gradient[votes])
            / every.chance[votes].sum()
        )
        slope = exact.gradient(difficulty.right_or_wrong(p))
        want = float(mean @ slope / slope.square().sum())
        got = float(attempt(p, group))
        if abs(got - want) > 1e-6 * abs(want):
            return (
                f"for p = {p} and G = {group} it gives {got:.4g}; the mean over all groups that are"
                f" not silent is {want:.4g}"
            )
    return None


def solution_refill(p, group):
    silent = p**group + (1 - p) ** group
    return exact.group_std_weight(p, group) / (1 - silent)


REFILL = Exercise(
    "refill",
    "Write the weight w of E[ĝ] = w·∇p when a question is asked again until its group is not silent.",
    test=test_refill,
    solution=solution_refill,
    wrong=[
        lambda p, group: exact.group_std_weight(p, group),
        lambda p, group: exact.group_std_weight(p, group) * (1 - p**group - (1 - p) ** group),
        lambda p, group: exact.group_std_weight(p, group) / (1 - (1 - p) ** group),
    ],
    hints=[
        "The average over all groups is P(silent)·0 + P(not silent)·(average over the others).",
        "You know the left side, w_G(p). Solve for the average over the others.",
        "Divide w_G(p) by 1 − p^G − (1−p)^G.",
    ],
)
