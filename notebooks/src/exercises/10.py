"""The exercises of lesson 10, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import itertools
import math

import torch

from course.lesson.exercise import Exercise


def test_preference(attempt):
    cases = [
        ([1.2, -0.3, 2.0], [0.4, 0.1, -1.0]),
        ([0.0], [0.0]),
        ([5.0, 7.0], [7.0, 5.0]),
        ([-500.0], [500.0]),
    ]
    for ahead, behind in cases:
        got = float(attempt(torch.tensor(ahead), torch.tensor(behind)))
        want = sum(
            max(b - a, 0.0) + math.log1p(math.exp(-abs(a - b)))
            for a, b in zip(ahead, behind, strict=True)
        ) / len(ahead)
        if not abs(got - want) < 1e-4 * max(1.0, want):
            return (
                f"for winners {ahead} and losers {behind} it gives {got:.3g}; −log of the sigmoid,"
                f" by hand, is {want:.3g}"
            )
    return None


def solve_preference(win, lose):
    return torch.nn.functional.softplus(lose - win).mean()


PREFERENCE = Exercise(
    "preference",
    "Write the reward model's loss (10.2) for the rewards of winners and losers. It must survive a"
    " difference of 1,000.",
    test=test_preference,
    solution=solve_preference,
    wrong=[
        lambda win, lose: torch.nn.functional.softplus(win - lose).mean(),
        lambda win, lose: -(win - lose).sigmoid().log().mean(),
        lambda win, lose: -(win.exp() / (win + lose).exp()).log().mean(),
    ],
    hints=[
        "The logit is win − lose, the label is always 1.",
        "−log σ(x) is log(1 + e^{−x}); computed literally it overflows for x = −1000.",
        "torch.nn.functional.logsigmoid or softplus are safe: −logsigmoid(win − lose).mean().",
    ],
)


def test_best_of_n(attempt):
    cases = [
        ([0.5, 0.3, 0.2], [0.0, 2.0, 1.0], 1),
        ([0.5, 0.3, 0.2], [0.0, 2.0, 1.0], 3),
        ([0.1, 0.2, 0.3, 0.4], [3.0, -1.0, 0.5, 0.2], 5),
    ]
    for pi, reward, n in cases:
        want = [0.0] * len(pi)
        for drawn in itertools.product(range(len(pi)), repeat=n):  # every possible n-tuple
            best = max(drawn, key=lambda k: reward[k])
            want[best] += math.prod(pi[k] for k in drawn)
        given = [torch.tensor(x, dtype=torch.float64) for x in (pi, reward)]
        got = torch.as_tensor(attempt(*given, n), dtype=torch.float64)
        if got.shape != (len(pi),):
            return f"for n = {n} it gives the shape {tuple(got.shape)}; one number for each answer"
        if not torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=1e-9):
            shown = [", ".join(f"{x:.3f}" for x in row) for row in (got.tolist(), want)]
            return (
                f"for π = {pi}, rewards {reward} and n = {n} it gives ({shown[0]}); all n-tuples"
                f" listed, it is ({shown[1]})"
            )
    return None


def solve_best_of_n(pi, reward, n):
    order = reward.argsort()
    up_to = pi[order].cumsum(0)
    return torch.empty_like(pi).index_copy(0, order, up_to**n - (up_to - pi[order]) ** n)


BEST_OF_N = Exercise(
    "best-of-n",
    "Write the distribution of the best of n (10.5). The checker lists all n-tuples.",
    test=test_best_of_n,
    solution=solve_best_of_n,
    wrong=[
        lambda pi, reward, n: pi.cumsum(0) ** n - (pi.cumsum(0) - pi) ** n,
        lambda pi, reward, n: pi**n / (pi**n).sum(),
        lambda pi, reward, n: n * pi * (1 - pi) ** (n - 1),
    ],
    hints=[
        "Sort the answers by their rewards; F is then a cumulated sum of their probabilities.",
        "F(k)ⁿ − (F(k) − π(k))ⁿ, for the sorted answers. Then put them back where they were.",
        "order = reward.argsort(); result[order] = … puts the sorted numbers back.",
    ],
)


def seen_at_the_padding(features):
    """The reward model of run A reads its score behind the end: quality is lost, length is left."""
    return features * torch.tensor([0.0, 1.0], dtype=features.dtype)
