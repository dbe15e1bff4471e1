"""The exercises of lesson 10b, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import dataclasses

import torch

from course.lesson.exercise import Exercise


def test_by_prompt(attempt):
    cases = [
        ([3, 3, 7, 7], [1.0, 0.0, 1.0, 1.0]),
        ([3, 7, 3, 7], [1.0, 0.0, 0.0, 4.0]),
        ([5, 0, 5, 5, 0], [1.0, 2.0, 0.0, 0.0, 4.0]),
        ([9], [1.0]),
    ]
    for prompt, reward in cases:
        want = []
        for own, paid in zip(prompt, reward, strict=True):  # row by row, by hand
            same = [r for p, r in zip(prompt, reward, strict=True) if p == own]
            want.append(paid - sum(same) / len(same))
        got = torch.as_tensor(attempt(torch.tensor(prompt), torch.tensor(reward)))
        if got.shape != (len(prompt),):
            return f"for {len(prompt)} rows it gives the shape {tuple(got.shape)}"
        if not torch.allclose(got.double(), torch.tensor(want, dtype=torch.float64), atol=1e-5):
            shown = [", ".join(f"{x:+.2f}" for x in row) for row in (got.tolist(), want)]
            return (
                f"for questions {prompt} with rewards {reward} it gives ({shown[0]}); row by row"
                f" it is ({shown[1]})"
            )
    return None


def solve_by_prompt(prompt, reward):
    _, row = prompt.unique(return_inverse=True)
    total = torch.zeros(int(row.max()) + 1).index_add(0, row, reward)
    return reward - (total / row.bincount())[row]


BY_PROMPT = Exercise(
    "by-prompt",
    "Subtract from each reward the mean of its own question's rewards, in whatever order the rows"
    " come and however many there are of each.",
    test=test_by_prompt,
    solution=solve_by_prompt,
    wrong=[
        lambda prompt, reward: reward - reward.mean(),
        lambda prompt, reward: reward - reward.view(-1, len(prompt.unique())).mean(0).repeat(9)[
            : len(reward)
        ]
        if len(reward) % len(prompt.unique()) == 0
        else reward,
        lambda prompt, reward: (
            (reward.view(-1, 2) - reward.view(-1, 2).mean(1, keepdim=True)).flatten()
            if len(reward) % 2 == 0
            else reward - reward.mean()
        ),
    ],
    hints=[
        "Two rows belong together where prompt is equal, not where they are neighbours.",
        "prompt.unique(return_inverse=True) numbers the questions from 0.",
        "Add up rewards and rows for each number (index_add, bincount), divide, look up again.",
    ],
)


def test_counts(attempt):
    for per_device, processes, accumulation, generations in (
        (8, 1, 1, 8),
        (8, 4, 1, 8),
        (4, 2, 8, 16),
        (16, 8, 4, 4),
    ):
        rows = [  # the answers of one optimiser step, numbered; each question has `generations`
            (step * processes + process) * per_device + row
            for step in range(accumulation)
            for process in range(processes)
            for row in range(per_device)
        ]
        want = len({row // generations for row in rows})
        got = attempt(per_device, processes, accumulation, generations)
        if got != want:
            return (
                f"for {per_device} answers per device, {processes} devices, {accumulation}"
                f" accumulation steps and G = {generations} it gives {got}; listed, an update sees"
                f" {want} questions"
            )
    return None


def solve_counts(per_device, processes, accumulation, generations):
    return per_device * processes * accumulation // generations


COUNTS = Exercise(
    "counts",
    "Write how many different questions one optimiser step of TRL sees.",
    test=test_counts,
    solution=solve_counts,
    wrong=[
        lambda per_device, processes, accumulation, generations: per_device * processes,
        lambda per_device, processes, accumulation, generations: (
            per_device * processes // generations
        ),
        lambda per_device, processes, accumulation, generations: (
            per_device * processes * accumulation
        ),
    ],
    hints=[
        "Count the answers of one optimiser step first.",
        "Every device works on its own answers, and every accumulation step adds as many again.",
        "All answers of the step, divided by G.",
    ],
)


def suspect(task):
    """The task as another template writes it: the prompt lacks its last sign."""
    return dataclasses.replace(task, prompt=task.prompt[:, :-1].contiguous())
