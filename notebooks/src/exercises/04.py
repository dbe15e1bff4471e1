"""The exercises of lesson 04, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

from dataclasses import dataclass

import torch

import course
from course import ladder
from course.lesson.exercise import Exercise
from course.parts import Clip, Constant


def test_clip(attempt):
    for low, high in ((0.2, 0.2), (0.1, 0.4)):
        for advantage in (2.0, -2.0):
            for rho in (0.3, 0.85, 1.0, 1.15, 1.3, 3.0):
                place = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
                got = attempt(place, torch.tensor(advantage, dtype=torch.float64), low, high)
                exact = advantage * (min(rho, 1 + high) if advantage > 0 else max(rho, 1 - low))
                where = f"at ρ = {rho}, A = {advantage:g}, ε = ({low}, {high})"
                told = float(got.detach())
                if abs(told - exact) > 1e-9:
                    return f"{where} it gives {told:.3g}; (4.1) gives {exact:.3g}"
                slope = float(torch.autograd.grad(got, place)[0]) if got.requires_grad else 0.0
                want = (
                    0.0
                    if (advantage > 0 and rho > 1 + high) or (advantage < 0 and rho < 1 - low)
                    else advantage
                )
                if abs(slope - want) > 1e-9:
                    return f"{where} its slope is {slope:.3g}; (4.2) gives {want:.3g}"
    return None


def clip_solution(ratio, advantage, epsilon_low, epsilon_high):
    return torch.minimum(
        ratio * advantage, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantage
    )


CLIP = Exercise(
    "clip",
    "Write the clipped objective with two bounds. Checked in value and slope against (4.1) and"
    " (4.2), for both signs of A.",
    test=test_clip,
    solution=clip_solution,
    wrong=[
        lambda rho, a, low, high: rho.clamp(1 - low, 1 + high) * a,
        lambda rho, a, low, high: torch.maximum(rho * a, rho.clamp(1 - low, 1 + high) * a),
        lambda rho, a, low, high: torch.minimum(rho, rho.clamp(1 - low, 1 + high)) * a,
        lambda rho, a, low, high: torch.minimum(rho * a, rho.clamp(1 - high, 1 + low) * a),
    ],
    hints=[
        "Two candidates: one with ρ, one with a clamped ρ.",
        "Multiply both by A first, then choose.",
        "`torch.minimum(ratio * advantage, ratio.clamp(...) * advantage)`",
    ],
)


def test_limit(attempt):
    from bandits.environments import Deterministic
    from bandits.exact import outcomes
    from course.exact import microscope

    arms = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))

    def push(p, low, high, now):  # the clip's expected gradient of arm 1's logit, enumerated
        new, was = (torch.tensor([[x, 1 - x]], dtype=torch.float64).log() for x in (now, p))
        rung = course.replace(ladder.clip, baseline=Constant(p), surrogate=Clip(low, high))
        return float(
            microscope(rung, outcomes(arms, new, old=was), 1, covariance=False).expected[0]
        )

    for p, low, high in ((0.1, 0.2, 0.2), (0.02, 0.2, 0.28), (0.7, 0.2, 0.2), (0.3, 0.5, 0.1)):
        rho = float(attempt(p, low, high))
        who = f"for p = {p}, ε = ({low}, {high})"
        if not 1 < rho < 1 / p:
            return f"{who} it gives {rho:.3g}; a ratio is between 1 and 1/p = {1 / p:.3g} there"
        before, after = (push(p, low, high, p * rho * side) for side in (0.999, 1.001))
        if before <= 0:
            return f"{who} it gives {rho:.3g}, but just below that nothing pushes any more"
        if after > 0:
            return (
                f"{who} it gives {rho:.3g}, but just above that arm 1 is still pushed, by"
                f" {after:.2g}"
            )
    return None


def limit_solution(share, epsilon_low, epsilon_high):
    return max((1 - (1 - epsilon_low) * (1 - share)) / share, 1 + epsilon_high)


WHERE_IT_STOPS = Exercise(
    "where-it-stops",
    "Write where ρ₁ stops, for any old probability p of the good arm and two bounds (cases in which"
    " arm 1 stays below probability 1). The checker enumerates the push just below and just above your answer.",
    test=test_limit,
    solution=limit_solution,
    wrong=[
        lambda share, low, high: 1 + high,
        lambda share, low, high: (1 - (1 - low) * (1 - share)) / share,
        lambda share, low, high: max((1 - (1 - high) * (1 - share)) / share, 1 + high),
    ],
    hints=[
        "Two samples push: each stops at its own bound.",
        "The bad arm stops at ρ₂ = 1 − ε_low; write ρ₁ for that.",
        "The later of the two stops counts: a max.",
    ],
)


@dataclass(frozen=True)
class Suspect(Clip):
    """The surrogate of run B."""

    def __call__(self, log_ratio, log_prob, advantage):
        ratio = log_ratio.exp()
        return torch.maximum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
