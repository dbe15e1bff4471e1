"""The exercises of lesson 11, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from course.lesson.exercise import Exercise
from course.parts import SequenceTIS

ADVANTAGES = {  # name → what a right and a wrong answer get where m of g are right
    "the group mean": (lambda m, g: 1 - m / g, lambda m, g: -m / g),
    "MaxRL": (lambda m, g: (g - m) / m if m else 0.0, lambda m, g: -1.0 if m else 0.0),
    "mean and std": (
        lambda m, g: math.sqrt((g - m) / m) if 0 < m < g else 0.0,
        lambda m, g: -math.sqrt(m / (g - m)) if 0 < m < g else 0.0,
    ),
    "blame alone": (lambda m, g: 0.0, lambda m, g: -1.0),
}


def enumerated_weight(right, wrong, p, group):
    """w(p) by every sequence of right and wrong: the push on the right answer's logit over ∂p."""
    total = 0.0
    for answers in itertools.product((1, 0), repeat=group):
        m = sum(answers)
        chance = math.prod(p if right_one else 1 - p for right_one in answers)
        # the score of a right answer on its own logit is 1 − p, that of a wrong one −p
        push = sum(right(m) * (1 - p) if each else wrong(m) * -p for each in answers)
        total += chance * push / group
    return total / (p * (1 - p))


def test_weight(attempt):
    for name, (right, wrong) in ADVANTAGES.items():
        for p, group in ((0.3, 4), (0.1, 3), (0.8, 5)):
            at = (lambda m, g=group, f=right: f(m, g)), (lambda m, g=group, f=wrong: f(m, g))
            want = enumerated_weight(*at, p, group)
            got = float(attempt(*at, p, group))
            if abs(got - want) > 1e-9:
                return (
                    f"for {name} at p = {p} and G = {group} it gives {got:.4g}; all groups listed"
                    f" give {want:.4g}"
                )
    return None


def solution_weight(right, wrong, p, group):
    total = 0.0
    for m in range(group + 1):
        chance = math.comb(group, m) * p**m * (1 - p) ** (group - m)
        total += chance * (m * right(m) / p - (group - m) * wrong(m) / (1 - p))
    return total / group


def _plus(right, wrong, p, group):
    total = 0.0
    for m in range(group + 1):
        chance = math.comb(group, m) * p**m * (1 - p) ** (group - m)
        total += chance * (m * right(m) / p + (group - m) * wrong(m) / (1 - p))
    return total / group


def _no_ways(right, wrong, p, group):
    total = 0.0
    for m in range(group + 1):
        chance = p**m * (1 - p) ** (group - m)
        total += chance * (m * right(m) / p - (group - m) * wrong(m) / (1 - p))
    return total / group


WEIGHT = Exercise(
    "weight",
    "Write (11.1): the weight of ∇p for any advantage that depends on the number of right answers."
    " Checked for four advantages against a list of all groups.",
    test=test_weight,
    solution=solution_weight,
    wrong=[_plus, _no_ways, lambda *given: solution_weight(*given) * given[3]],
    hints=[
        "Loop over m = 0 … G; each has its binomial probability.",
        "m right answers push by right(m)/p each, G − m wrong ones by −wrong(m)/(1−p) each.",
        "Sum chance · (m·right(m)/p − (G−m)·wrong(m)/(1−p)), then divide by G.",
    ],
)


def test_entropy(attempt):
    noise = torch.Generator().manual_seed(0)
    for size in (2, 3, 5):
        log_prob = torch.randn(size, generator=noise, dtype=torch.float64).log_softmax(-1)
        advantage = torch.randn(size, generator=noise, dtype=torch.float64)
        got = float(attempt(log_prob, advantage, 0.5))
        logits = log_prob.clone().requires_grad_()
        live = logits.log_softmax(-1)
        [slope] = torch.autograd.grad((live.exp() * advantage).sum(), logits, retain_graph=True)
        [cost] = torch.autograd.grad(-(live.exp() * live).sum(), logits)
        want = 0.5 * float(slope @ cost)
        if abs(got - want) > 1e-9:
            shown = ", ".join(f"{x:.2f}" for x in log_prob.exp().tolist())
            worth = ", ".join(f"{x:.2f}" for x in advantage.tolist())
            return (
                f"for π = ({shown}), A = ({worth}) and rate ½ it gives {got:.4g}; the slope of H"
                f" along the step is {want:.4g}"
            )
    return None


def solution_entropy(log_prob, advantage, rate):
    p = log_prob.exp()
    step = rate * p * (advantage - p @ advantage)
    return -(p * (log_prob - p @ log_prob) * step).sum()


ENTROPY_CHANGE = Exercise(
    "entropy-change",
    "Write what one expected update costs in entropy, to first order, for any advantages: their mean"
    " under π need not be 0. Checked against automatic differentiation.",
    test=test_entropy,
    solution=solution_entropy,
    wrong=[
        lambda log_prob, advantage, rate: -solution_entropy(log_prob, advantage, rate),
        # the covariance of log π and A, as with the natural gradient
        lambda log_prob, advantage, rate: (
            -rate * (log_prob.exp() * (log_prob - log_prob.exp() @ log_prob) * advantage).sum()
        ),
        # the mean of A left in
        lambda log_prob, advantage, rate: (
            -rate
            * (
                log_prob.exp() * (log_prob - log_prob.exp() @ log_prob) * log_prob.exp() * advantage
            ).sum()
        ),
    ],
    hints=[
        "First the step: the gradient of Σ π A with respect to the logits is π (A − E[A]).",
        "Then (11.6): minus the mean under π of (log π − E[log π]) times the step.",
        "`-(p * (log_prob - p @ log_prob) * rate * p * (advantage - p @ advantage)).sum()`",
    ],
)


def test_answer_weight(attempt):
    now = torch.tensor([[0.5, 0.5, 0.2], [0.9, 0.1, 0.5]], dtype=torch.float64).log()
    drawn = torch.tensor([[0.25, 0.4, 0.5], [0.6, 0.2, 0.1]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    drawn[1, 2] = float("nan")  # undefined after the end
    for cap in (1000.0, 0.9):
        got = torch.as_tensor(attempt(now, drawn, mask, cap), dtype=torch.float64)
        if got.shape != mask.shape:
            return f"it gives the shape {tuple(got.shape)}; each token has a weight"
        for row, ratios in enumerate(((2.0, 1.25, 0.4), (1.5, 0.5))):
            want = min(math.prod(ratios), cap)
            for t in range(len(ratios)):
                told = float(got[row, t])
                if not abs(told - want) < 1e-9:
                    return (
                        f"for an answer with κ_t = {ratios} and the cap {cap:g}, token {t + 1} gets"
                        f" {told:.4g}; the whole answer's weight is {want:.4g}"
                    )
    return None


def solution_answer_weight(log_prob, sampler_log_prob, mask, cap):
    log_kappa = torch.where(mask, log_prob - sampler_log_prob, 0.0)
    return log_kappa.sum(-1, keepdim=True).exp().clamp(max=cap).expand(mask.shape)


ANSWER_WEIGHT = Exercise(
    "answer-weight",
    "Write the weight of a whole answer, with a cap, on each of its tokens. What is masked may be"
    " NaN.",
    test=test_answer_weight,
    solution=solution_answer_weight,
    wrong=[
        lambda now, drawn, mask, cap: (now - drawn).exp().clamp(max=cap),
        lambda now, drawn, mask, cap: (
            torch.where(mask, drawn - now, 0.0)
            .sum(-1, keepdim=True)
            .exp()
            .clamp(max=cap)
            .expand(mask.shape)
        ),
        lambda now, drawn, mask, cap: (
            ((now - drawn) * mask).sum(-1, keepdim=True).exp().clamp(max=cap).expand(mask.shape)
        ),
        # each token capped, then multiplied
        lambda now, drawn, mask, cap: (
            torch.where(mask, now - drawn, 0.0)
            .exp()
            .clamp(max=cap)
            .prod(-1, keepdim=True)
            .expand(mask.shape)
        ),
    ],
    hints=[
        "A product of ratios is the exponential of a sum of differences of logs.",
        "torch.where takes masked places out before the sum; NaN times 0 is NaN.",
        "Sum with keepdim=True, exp, clamp(max=cap), then expand to the shape of the mask.",
    ],
)


@dataclass(frozen=True)
class Suspect(SequenceTIS):
    """The weight of the faulty program."""

    cap: float | None = None

    def __call__(self, rollout):
        log_weight = rollout.sampler_log_prob - rollout.log_prob
        return log_weight.sum(-1, keepdim=True).exp().expand_as(log_weight)
