"""The exercises of lesson 07, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from course.lesson.exercise import Exercise
from course.parts.kl import k3

PAIRS = (
    ((0.5, 0.3, 0.2), (0.25, 0.72, 0.03)),
    ((0.9, 0.05, 0.05), (0.3, 0.3, 0.4)),
    ((0.4, 0.6), (0.41, 0.59)),
)


def test_k3(attempt):
    for mine, theirs in PAIRS:
        pi, ref = (torch.tensor(each, dtype=torch.float64) for each in (mine, theirs))
        found = attempt(pi.log(), ref.log())
        exact = sum(
            q * float(torch.log(torch.tensor(q / p, dtype=torch.float64)))
            for q, p in zip(mine, theirs, strict=True)
        )
        mean = float((pi * found).sum())
        if abs(mean - exact) > 1e-9:
            return (
                f"for π = {mine} and π_ref = {theirs} its mean over π is {mean:.3g}; KL(π‖ref) is"
                f" {exact:.3g}"
            )
        if float(found.min()) < -1e-12:
            return (
                f"for π = {mine} and π_ref = {theirs} one value is {float(found.min()):.3g}; k3 is"
                " never negative"
            )
    return None


def k3_solution(log_prob, ref_log_prob):
    log_r = ref_log_prob - log_prob
    return torch.expm1(log_r) - log_r


WRITE_K3 = Exercise(
    "write-k3",
    "Write k3 from the two log-probabilities of each sample.",
    test=test_k3,
    solution=k3_solution,
    wrong=[
        lambda log_prob, ref_log_prob: (
            torch.expm1(log_prob - ref_log_prob) - (log_prob - ref_log_prob)
        ),
        lambda log_prob, ref_log_prob: log_prob - ref_log_prob,
        lambda log_prob, ref_log_prob: 0.5 * (ref_log_prob - log_prob) ** 2,
    ],
    hints=[
        "Start with r = π_ref/π. Which of the two log-probabilities gets the minus?",
        "log r = ref_log_prob − log_prob, and k3 = r − 1 − log r.",
        "torch.expm1(x) is exp(x) − 1 without rounding trouble near 0: torch.expm1(log_r) − log_r.",
    ],
)


def test_coefficient(attempt):
    for mine, theirs in PAIRS[:2]:
        for beta in (0.0, 0.5, 2.0):
            logits = torch.tensor(mine, dtype=torch.float64).log().requires_grad_()
            log_prob, ref = (
                torch.log_softmax(logits, 0),
                torch.tensor(theirs, dtype=torch.float64).log(),
            )
            advantage = torch.tensor([1.0, -0.5, 0.25][: len(mine)], dtype=torch.float64)
            pi = log_prob.exp()
            # −KL(ref‖π), less what does not depend on π
            wanted = (pi * advantage).sum() + beta * (ref.exp() * log_prob).sum()
            exact = torch.autograd.grad(wanted, logits)[0]
            coefficient = attempt(advantage, log_prob.detach(), ref, beta)
            score = torch.eye(len(mine), dtype=torch.float64) - pi.detach()
            found = (pi.detach() * coefficient) @ score
            if not torch.allclose(found, exact, atol=1e-9):
                return (
                    f"for π = {mine}, π_ref = {theirs}, A ="
                    f" {[round(a, 2) for a in advantage.tolist()]}, β = {beta} the gradient on"
                    f" logit 1 is {float(found[0]):.3g}; that of E[A] − β·KL(ref‖π) is"
                    f" {float(exact[0]):.3g}"
                )
    return None


def coefficient_solution(advantage, log_prob, ref_log_prob, beta):
    return advantage + beta * torch.expm1(ref_log_prob - log_prob)


GRPO_COEFFICIENT = Exercise(
    "grpo-coefficient",
    "GRPO's gradient on policy is E[c·∇log π]. Return c for each sample, with k3 in the loss.",
    test=test_coefficient,
    solution=coefficient_solution,
    wrong=[
        lambda advantage, log_prob, ref_log_prob, beta: (
            advantage - beta * k3(ref_log_prob - log_prob)
        ),
        lambda advantage, log_prob, ref_log_prob, beta: (
            advantage - beta * (log_prob - ref_log_prob)
        ),
        lambda advantage, log_prob, ref_log_prob, beta: (
            advantage + beta * torch.expm1(log_prob - ref_log_prob)
        ),
    ],
    hints=[
        "Differentiate A·log π − β·k3 on one sample, with A held fixed.",
        "∇r = −r·s and ∇log r = −s, so ∇k3 = (1 − r)·s.",
        "c = A + β(r − 1), with r = π_ref/π = exp(ref_log_prob − log_prob).",
    ],
)


def test_tilt(attempt):
    for ref, reward, beta in (
        ((0.7, 0.3), (0.0, 1.0), 0.5),
        ((0.25, 0.72, 0.03), (0.2, 0.5, 0.8), 0.1),
        ((0.2, 0.3, 0.5), (1.0, 0.0, 0.5), 2.0),
    ):
        ref_t, reward_t = (
            torch.tensor(ref, dtype=torch.float64),
            torch.tensor(reward, dtype=torch.float64),
        )
        found = torch.as_tensor(attempt(ref_t, reward_t, beta), dtype=torch.float64)
        if abs(float(found.sum()) - 1) > 1e-9:
            return (
                f"for π_ref = {ref}, rewards {reward}, β = {beta} it sums to"
                f" {float(found.sum()):.3g}, not to 1"
            )
        logits = found.clamp(min=1e-300).log().requires_grad_()
        log_pi = torch.log_softmax(logits, 0)
        goal = (log_pi.exp() * (reward_t - beta * (log_pi - ref_t.log()))).sum()
        slope = torch.autograd.grad(goal, logits)[0]
        if float(slope.abs().max()) > 1e-8:
            return (
                f"for π_ref = {ref}, rewards {reward}, β = {beta} it gives"
                f" {[round(v, 3) for v in found.tolist()]}, where E[R] − β·KL(π‖ref) still has the"
                f" slope {[round(v, 3) for v in slope.tolist()]} in the logits"
            )
    return None


def tilt_solution(ref, reward, beta):
    weight = ref * torch.exp(reward / beta)
    return weight / weight.sum()


TILTING = Exercise(
    "tilting",
    "Return the policy that maximises E[R] − β·KL(π‖ref) over all policies.",
    test=test_tilt,
    solution=tilt_solution,
    wrong=[
        lambda ref, reward, beta: torch.softmax(reward / beta, 0),
        lambda ref, reward, beta: torch.softmax(ref.log() + beta * reward, 0),
        lambda ref, reward, beta: torch.softmax(ref + reward / beta, 0),
    ],
    hints=[
        "At the maximum the slope is 0: R − β·log(π/π_ref) is then the same number for every arm.",
        "So log π = log π_ref + R/β + a constant, and the constant makes the sum 1.",
        "weight = ref * torch.exp(reward / beta); return weight / weight.sum()",
    ],
)
