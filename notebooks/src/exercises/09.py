"""The exercises of lesson 09, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from course.lesson.exercise import Exercise


def test_paired(attempt):
    generator = torch.Generator().manual_seed(0)
    for count in (3, 12):
        start_of_seed = torch.randn(count, generator=generator, dtype=torch.float64)
        first = start_of_seed + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)
        second = start_of_seed - 0.3
        found = [float(each) for each in attempt(first, second, STUDENT[count])]
        differences = [a - b for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        mean = sum(differences) / count
        scatter = sum((each - mean) ** 2 for each in differences) / (count - 1)
        half = STUDENT[count] * (scatter / count) ** 0.5
        if abs(found[0] - mean) > 1e-9 or abs(found[1] - half) > 1e-9:
            return (
                f"for {count} seeds that differ much but move alike it gives"
                f" {found[0]:+.3f} ± {found[1]:.3f}; by hand it is {mean:+.3f} ± {half:.3f}"
            )
    return None


STUDENT = {3: 4.303, 12: 2.201}  # t of (9.2): two-sided, 95 %


def paired_solution(first, second, t):
    difference = first - second
    return difference.mean(), t * difference.std() / len(difference) ** 0.5


PAIRED_INTERVAL = Exercise(
    "paired-interval",
    "Compute (9.2) from two rows of numbers: the mean of the differences and half their interval.",
    test=test_paired,
    solution=paired_solution,
    wrong=[
        lambda a, b, t: (
            a.mean() - b.mean(),
            t * ((a.var() + b.var()) / len(a)).sqrt(),
        ),
        lambda a, b, t: ((a - b).mean(), t * (a - b).std()),
        lambda a, b, t: ((a - b).mean(), 1.96 * (a - b).std() / len(a) ** 0.5),
    ],
    hints=[
        "Subtract first, then look at the scatter: what two arms share at a seed cancels.",
        (
            "(9.3) of the differences: their standard deviation (with n − 1, as `.std()` does)"
            " over √n."
        ),
        "d = first - second; return d.mean(), t * d.std() / len(d) ** 0.5",
    ],
)


def test_clip_fraction(attempt):
    ratio = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.5]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    for mask in (
        torch.ones(2, 3, dtype=torch.bool),
        torch.tensor([[True, True, True], [True, False, False]]),
    ):
        for epsilon in (0.2, 0.6):
            leaf = ratio.clone().requires_grad_()
            term = torch.minimum(leaf * advantage, leaf.clamp(1 - epsilon, 1 + epsilon) * advantage)
            slope = torch.autograd.grad(term.sum(), leaf)[0]
            exact_share = float(((slope == 0) & mask).sum() / mask.sum())
            found = float(attempt(ratio, advantage, mask, epsilon))
            if abs(found - exact_share) > 1e-9:
                return (
                    f"for ρ = {ratio.tolist()}, A = {advantage.tolist()}, mask = {mask.tolist()}, ε"
                    f" = {epsilon} it gives {found:.3g}; the share of chosen tokens whose slope is"
                    f" 0 is {exact_share:.3g}"
                )
    return None


def clip_fraction_solution(ratio, advantage, mask, epsilon):
    flat = ((advantage > 0) & (ratio > 1 + epsilon)) | ((advantage < 0) & (ratio < 1 - epsilon))
    return (flat & mask).sum() / mask.sum()


CLIP_FRACTION = Exercise(
    "clip-fraction",
    "Write (9.7), the curve that people misread most: the commonest wrong version counts every ρ"
    " outside of 1 ± ε.",
    test=test_clip_fraction,
    solution=clip_fraction_solution,
    wrong=[
        lambda ratio, advantage, mask, epsilon: (
            (((ratio - 1).abs() > epsilon) & mask).sum() / mask.sum()
        ),
        lambda ratio, advantage, mask, epsilon: clip_fraction_solution(
            ratio, advantage, torch.ones_like(mask), epsilon
        ),
        lambda ratio, advantage, mask, epsilon: clip_fraction_solution(
            ratio, -advantage, mask, epsilon
        ),
    ],
    hints=[
        "Which side is flat depends on the sign of A.",
        (
            "A > 0 is flat above 1 + ε, A < 0 is flat below 1 − ε; the other two corners keep their"
            " slope."
        ),
        (
            "flat = ((A > 0) & (ρ > 1 + ε)) | ((A < 0) & (ρ < 1 − ε)); then (flat & mask).sum() /"
            " mask.sum()."
        ),
    ],
)
