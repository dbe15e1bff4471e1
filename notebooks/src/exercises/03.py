"""The exercises of lesson 03, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import effective_samples as far
from course.lesson.exercise import Exercise

old = torch.tensor(B3_POLICY, dtype=torch.float64)
mean = torch.tensor(B3_MEANS, dtype=torch.float64)  # expected reward of each arm
J_old = float(old @ mean)


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
        "The direction is (3.11), the length (3.10).",
        "With F = diag(π) − ππᵀ, xᵀFx is the variance of x under π.",
        "Adding a constant to x changes no variance, so xᵀFx is `probability @ advantage**2`.",
    ],
)


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
