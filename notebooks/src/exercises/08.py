"""The exercises of lesson 08, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import math

import torch

from course.lesson.exercise import Exercise
from tinylm.tasks import decode


def test_ratio(attempt, *, stale, truth):
    generator = torch.Generator().manual_seed(8)
    # what stands behind the end is nobody's business
    junk = torch.randn(2, *stale.mask.shape, generator=generator, dtype=torch.float64)
    now = torch.where(stale.mask, stale.outcomes.log_prob[0], junk[0])
    then = torch.where(stale.mask, stale.outcomes.old[0], junk[1])
    got = attempt(now, then, stale.mask)
    if not isinstance(got, torch.Tensor) or got.shape != truth.shape:
        return (
            f"for log-probabilities [5220, 3] it gives {tuple(getattr(got, 'shape', ()))}; one"
            " number per answer is wanted, [5220]"
        )
    worst = int((got - truth).abs().argmax())
    if abs(float(got[worst] - truth[worst])) > 1e-9 * float(truth[worst]):
        shown = decode(stale.tokens[worst].tolist()) or "(nothing)"
        return (
            f"for the answer «{shown}» it gives {float(got[worst]):.3g}; its probability has"
            f" changed by the factor {float(truth[worst]):.3g}"
        )
    total = float((stale.outcomes.old[0].sum(-1).exp() * got).sum())
    return (
        None
        if abs(total - 1) < 1e-9
        else f"under π_old the ratios average to {total:.3g}; they must to 1"
    )


def solve_ratio(now, old, mask):
    return torch.where(mask, now - old, 0.0).sum(-1).exp()


RATIO = Exercise(
    "ratio",
    "Write the ratio of whole answers from the tokens' log-probabilities. Behind the end of an"
    " answer (mask False) anything may stand.",
    test=test_ratio,
    solution=solve_ratio,
    wrong=[
        lambda now, old, mask: (now - old).sum(-1).exp(),
        lambda now, old, mask: (torch.where(mask, now - old, 0.0).sum(-1) / mask.sum(-1)).exp(),
        lambda now, old, mask: torch.where(mask, (now - old).exp(), 0.0).sum(-1) / mask.sum(-1),
    ],
    hints=[
        "A product of ratios is a sum of differences of logarithms.",
        "Take out what stands behind the end before you sum: torch.where(mask, …, 0.0).",
        "exp of the sum over the last axis of where(mask, now − old, 0).",
    ],
)


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
    "Write the reward model's loss (8.12) for the scores of winners and losers. It must survive a"
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
