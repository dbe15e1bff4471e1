"""The exercises of lesson 03, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

from dataclasses import dataclass

import torch

from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import effective_samples as far
from course import ladder
from course.estimator import replace
from course.lesson.exercise import Exercise
from course.parts import TokenRatio

old = torch.tensor(B3_POLICY, dtype=torch.float64)
mean = torch.tensor(B3_MEANS, dtype=torch.float64)  # expected reward of each arm
J_old = float(old @ mean)


def test_surrogate(attempt):
    for strength in (0.0, 1.0, 4.0):
        where = (old.log() + strength * mean).clone().requires_grad_()
        now = torch.log_softmax(where, -1)
        # every arm once, weighed with π_old: an expectation
        value = (old * attempt(now, old.log(), mean - J_old)).sum()
        got = torch.autograd.grad(value, where)[0] if value.requires_grad else torch.zeros(3)
        p = now.detach().exp()
        gain, exact = float(p @ mean) - J_old, p * (mean - p @ mean)
        told = float(value.detach())
        if not abs(told - gain) < 1e-9:
            return (
                f"on B3 moved by λ = {strength:g} its expectation is {told:.3g}; J(π_θ) − J(π_old)"
                f" is {gain:.3g}"
            )
        if not bool((got - exact).abs().max() < 1e-9):
            said, true = ([f"{x:.3g}" for x in each.tolist()] for each in (got, exact))
            return f"on B3 moved by λ = {strength:g} its gradient is {said}; ∇J(π_θ) is {true}"
    return None


def surrogate_solution(log_prob, old_log_prob, advantage):
    return (log_prob - old_log_prob).exp() * advantage


SURROGATE = Exercise(
    "surrogate",
    "Write ρA. The checker takes its expectation under π_old on B3 and compares value and gradient"
    " with J(π_θ) − J(π_old) and ∇J(π_θ), at π_old and away from it.",
    test=test_surrogate,
    solution=surrogate_solution,
    wrong=[
        lambda log_prob, old_log_prob, advantage: advantage * log_prob,
        lambda log_prob, old_log_prob, advantage: (log_prob - log_prob.detach()).exp() * advantage,
        lambda log_prob, old_log_prob, advantage: (
            (log_prob - old_log_prob).detach().exp() * advantage
        ),
        lambda log_prob, old_log_prob, advantage: (old_log_prob - log_prob).exp() * advantage,
    ],
    hints=[
        "ρ is the exponential of a difference of log-probabilities.",
        (
            "Which of the two is differentiated? Both may stay as they are: old_log_prob is a"
            " constant already."
        ),
        "`(log_prob - old_log_prob).exp()` is ρ. Nothing is detached.",
    ],
)


def test_effective(attempt):
    for strength, samples in ((0.5, 8), (2.0, 100), (5.0, 64)):
        total = [float((old * (k * strength * mean).exp()).sum()) for k in (1, 2)]
        exact = samples * total[0] ** 2 / total[1]  # closed form for π_θ ∝ π_old·exp(λμ)
        got = float(attempt(old.log(), far.tilted(old.log(), mean, strength), samples))
        if not abs(got - exact) < 1e-9 * exact:
            return (
                f"for λ = {strength} and {samples} samples it gives {got:.4g}; exact is {exact:.4g}"
            )
    return None


def effective_solution(log_old, log_new, samples):
    ratio = (log_new - log_old).exp()
    return samples / (log_old.exp() * ratio**2).sum()


EFFECTIVE_SAMPLES = Exercise(
    "effective-samples",
    "Write `G_eff` of (3.5) for two policies given as log-probabilities over all answers. Checked"
    " against a closed form.",
    test=test_effective,
    solution=effective_solution,
    wrong=[
        lambda log_old, log_new, samples: (
            samples / (log_new.exp() * (log_new - log_old).exp() ** 2).sum()
        ),
        lambda log_old, log_new, samples: (
            samples * (-(log_new.exp() * (log_new - log_old)).sum()).exp()
        ),
        lambda log_old, log_new, samples: (
            samples / (log_old.exp() * (log_new - log_old).exp()).sum() ** 2
        ),
    ],
    hints=[
        "The expectation is over the policy that sampled.",
        "`E_old[f]` for all answers listed is `(log_old.exp() * f).sum()`.",
        "`f` is `(log_new - log_old).exp() ** 2`; divide `samples` by its expectation.",
    ],
)


@dataclass(frozen=True)
class Suspect(TokenRatio):
    """The ratio of run A."""

    def __call__(self, log_ratio, mask):
        return log_ratio - log_ratio.detach()


def faulty():
    """The estimator of run A."""
    return replace(ladder.surrogate, ratio=Suspect())
