"""The exercises of lesson 01, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.exact import B3_MEANS, B3_POLICY
from course.lesson.exercise import Exercise


def test_closed_form(attempt):
    cases = (
        (B3_POLICY, B3_MEANS),
        ((0.9, 0.1), (0.0, 1.0)),
        ((0.25, 0.25, 0.4, 0.1), (1.0, -2.0, 0.5, 3.0)),
    )
    for policy, means in cases:
        theta = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
        rewards = torch.tensor(means, dtype=torch.float64)
        [want] = torch.autograd.grad((theta.softmax(0) * rewards).sum(), theta)
        got = torch.as_tensor(attempt(theta.detach().softmax(0), rewards), dtype=torch.float64)
        if got.shape != want.shape:
            return (
                f"for {len(policy)} arms it gives the shape {tuple(got.shape)}; the gradient has"
                " one number per logit"
            )
        if not torch.allclose(got, want, atol=1e-9):
            shown = [
                ", ".join(f"{x:.3g}" for x in numbers) for numbers in (got.tolist(), want.tolist())
            ]
            return (
                f"for π = {policy} and means {means} it gives ({shown[0]}); differentiating J gives"
                f" ({shown[1]})"
            )
    return None


def solution_closed_form(pi, mean):
    J = (pi * mean).sum()
    return pi * (mean - J)


CLOSED_FORM = Exercise(
    "closed-form",
    "Write ∇J of one question with respect to the logits of a softmax: no samples, no automatic"
    " differentiation.",
    test=test_closed_form,
    solution=solution_closed_form,
    wrong=[
        lambda pi, mean: pi * mean,
        lambda pi, mean: mean - (pi * mean).sum(),
        lambda pi, mean: pi * (mean - mean.mean()),
    ],
    hints=[
        "Σ_a π_a r_a (1[a = b] − π_b): split it into two sums.",
        (
            "The first sum has one term left, π_b r_b. The second is π_b times something that you"
            " know."
        ),
        "That something is J = Σ_a π_a r_a. So it is π_b r_b − π_b J.",
    ],
)


def test_loss(attempt, *, tokens, earned, scores, whole):
    total = torch.zeros(6, dtype=torch.float64)
    chances = tokens[0].sum(-1).exp()
    for i in range(4):
        for j in range(4):
            leaf = tokens[0, [i, j]].clone().requires_grad_()
            loss = attempt(leaf, earned[0, [i, j]])
            if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                return (
                    f"for log_prob of shape (2, 2) it gives {type(loss).__name__}; a loss is a"
                    " tensor with one number"
                )
            if not loss.requires_grad:
                return (
                    f"for walks {i + 1} and {j + 1} it gives a loss that does not depend on"
                    " log_prob: something is detached"
                )
            [by_token] = torch.autograd.grad(loss, leaf)
            total += (
                chances[i] * chances[j] * torch.einsum("gt,gtd->d", by_token, scores[0, [i, j]])
            )
    for choice, part in (("first", slice(0, 2)), ("second", slice(2, 6))):
        if not torch.allclose(total[part], -whole[part], atol=1e-9):
            got, want = (
                ", ".join(f"{x:.3g}" for x in numbers[part].tolist()) for numbers in (total, -whole)
            )
            return (
                f"for the {choice} choice's logits the loss's gradient is ({got}) on average; −∇J"
                f" is ({want})"
            )
    return None


def solution_loss(log_prob, reward):
    R = reward.sum(-1)
    return -(R * log_prob.sum(-1)).mean()


REINFORCE_LOSS = Exercise(
    "reinforce-loss",
    "Write the loss whose gradient is minus (1.6).",
    test=test_loss,
    solution=solution_loss,
    wrong=[
        lambda log_prob, reward: (reward.sum(-1) * log_prob.sum(-1)).mean(),
        lambda log_prob, reward: -(reward * log_prob).sum(-1).mean(),
        lambda log_prob, reward: -(reward.sum(-1, keepdim=True) * log_prob).mean(),
    ],
    hints=[
        "Which of the two tokens does the reward sit on, and which tokens shall learn from it?",
        (
            "Sum the rewards over an answer's tokens, and the log-probabilities too. Then the mean"
            " over answers."
        ),
        "A product of two sums over the last axis, its mean over the first, and a minus sign.",
    ],
)
