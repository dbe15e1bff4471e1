"""The exercises of lesson 03b, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.exact import B3_MEANS, B3_POLICY
from course.lesson.exercise import Exercise

old = torch.tensor(B3_POLICY, dtype=torch.float64)
mean = torch.tensor(B3_MEANS, dtype=torch.float64)  # expected reward of each arm


def test_product(attempt):
    for policy in (old, torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=torch.float64)):

        def kl(logits, policy=policy):
            return (policy * (policy.log() - torch.log_softmax(logits, -1))).sum()

        hessian = torch.autograd.functional.hessian(kl, policy.log())
        for vector in (policy.flip(0) * 3, torch.ones_like(policy), policy.log()):
            got, exact = attempt(policy, vector), hessian @ vector
            if not isinstance(got, torch.Tensor) or got.shape != exact.shape:
                return f"it gives {got!r}; a tensor of {len(exact)} numbers is wanted"
            if not bool((got - exact).abs().max() < 1e-9):
                said, true = ([f"{x:.3g}" for x in each.tolist()] for each in (got, exact + 0.0))
                asked = [f"{x:.3g}" for x in vector.tolist()]
                return (
                    f"for π = {policy.tolist()} and v = {asked} it gives {said}; the second"
                    f" derivative of the KL times v is {true}"
                )
    return None


def product_solution(probability, vector):
    return probability * (vector - probability @ vector)


FISHER_PRODUCT = Exercise(
    "fisher-product",
    "Write F times a vector for a softmax over its own logits, without writing down the matrix F."
    " The checker differentiates the KL twice.",
    test=test_product,
    solution=product_solution,
    wrong=[
        lambda p, v: p * v,
        lambda p, v: v - p @ v,
        lambda p, v: p * (v - v.mean()),
        lambda p, v: p @ (v - p @ v) * torch.ones_like(v),
    ],
    hints=[
        "F = E[s sᵀ], and the score of arm a is s = e_a − π.",
        "Multiplied out, F = diag(π) − ππᵀ: two terms, each easy to multiply with v.",
        "diag(π) v is `probability * vector`; ππᵀ v is π times the number `probability @ vector`.",
    ],
)


def test_step(attempt):
    cases = (
        (old, mean, 1e-4),
        (
            torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=torch.float64),
            torch.tensor([0.0, 0.3, 1.0, 0.5], dtype=torch.float64),
            1e-5,
        ),
    )
    for policy, reward, delta in cases:
        change_of_logits = attempt(policy, reward, delta)
        after = torch.log_softmax(policy.log() + change_of_logits, -1)
        kl = float((policy * (policy.log() - after)).sum())
        gain = float(after.exp() @ reward - policy @ reward)
        # the best first-order gain there is
        most = float((2 * delta * (policy @ (reward - policy @ reward) ** 2)).sqrt())
        who = f"for π = {policy.tolist()}, rewards {reward.tolist()}, δ = {delta:g}"
        if not abs(kl / delta - 1) < 0.05:
            return (
                f"{who} the new policy has KL {kl:.3g}; it should be {delta:.3g} to a few percent"
            )
        if not gain > 0.95 * most:
            return f"{who} the reward rises by {gain:.3g}; a step of that KL can gain {most:.3g}"
    return None


def step_solution(probability, reward, delta):
    advantage = reward - probability @ reward
    x = advantage - advantage.mean()
    curvature = probability @ advantage**2  # xᵀFx is the variance of x under π
    return (2 * delta / curvature).sqrt() * x


TRUST_REGION_STEP = Exercise(
    "trust-region-step",
    "Take TRPO's full step on a softmax over its own logits, in closed form: no autograd, no"
    " conjugate gradient. The checker measures the true KL and the true gain.",
    test=test_step,
    solution=step_solution,
    wrong=[
        lambda p, r, d: p * (r - p @ r) * (2 * d / (p @ (r - p @ r) ** 2)).sqrt(),
        lambda p, r, d: (d / (p @ (r - p @ r) ** 2)).sqrt() * (r - p @ r),
        lambda p, r, d: (2 * d / ((r - r.mean()) ** 2).sum()).sqrt() * (r - r.mean()),
    ],
    hints=[
        "The direction is (3b.4), the length (3b.3).",
        "With F = diag(π) − ππᵀ, xᵀFx is the variance of x under π.",
        "Adding a constant to x changes no variance, so xᵀFx is `probability @ advantage**2`.",
    ],
)
