"""The exercises of lesson 01, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.exact import B3_MEANS, B3_POLICY
from course import exact
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


def test_loss(attempt, *, chain, whole):
    loss = attempt(chain.log_prob[0, :2].clone().requires_grad_(), chain.reward[0, :2])
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        return (
            f"for log_prob of shape (2, 2) it gives {type(loss).__name__}; a loss is a tensor with"
            " one number"
        )
    if not loss.requires_grad:
        return "its loss does not depend on log_prob: something is detached"
    found = exact.expected_gradient(attempt, chain, 2)
    for token, part in (("first", slice(0, 2)), ("second", slice(2, 6))):
        if not torch.allclose(found[part], whole[part], atol=1e-9):
            got, want = (
                ", ".join(f"{x:.3g}" for x in (-numbers[part]).tolist())
                for numbers in (found, whole)
            )
            return (
                f"for the {token} token's logits the loss's gradient is ({got}) on average; −∇J is"
                f" ({want})"
            )
    return None


def solution_loss(log_prob, reward):
    R = reward.sum(-1)
    return -(R * log_prob.sum(-1)).mean()


REINFORCE_LOSS = Exercise(
    "reinforce-loss",
    "Write the loss whose gradient is minus (1.7).",
    test=test_loss,
    solution=solution_loss,
    wrong=[
        lambda log_prob, reward: (reward.sum(-1) * log_prob.sum(-1)).mean(),
        lambda log_prob, reward: -(reward * log_prob).sum(-1).mean(),
        lambda log_prob, reward: -(reward.sum(-1, keepdim=True) * log_prob).mean(),
    ],
    hints=[
        "Which of the two tokens does the reward sit on, and which tokens should learn from it?",
        (
            "Sum the rewards over an answer's tokens, and the log-probabilities too. Then the mean"
            " over answers."
        ),
        "A product of two sums over the last axis, its mean over the first, and a minus sign.",
    ],
)


LOSSES = (  # somebody's loss, and its fault
    ("none", solution_loss),
    ("sign", lambda log_prob, reward: -solution_loss(log_prob, reward)),
    ("zero", lambda log_prob, reward: solution_loss(log_prob.detach(), reward)),
    ("zero", lambda log_prob, reward: solution_loss(log_prob, reward.roll(1, 0))),
    ("scaled", lambda log_prob, reward: solution_loss(log_prob / 2, reward)),
    ("scaled", lambda log_prob, reward: 2 * solution_loss(log_prob, reward)),
    ("first token", lambda log_prob, reward: -(reward * log_prob).sum(-1).mean()),
)


def test_fault(attempt, *, chain, whole):
    for fault, loss in LOSSES:
        found = exact.expected_gradient(loss, chain, 2)
        said = attempt(found.clone(), whole.clone())
        if said != fault:
            shown, true = (
                ", ".join(f"{x + 0.0:.3g}" for x in numbers.round(decimals=9).tolist())
                for numbers in (found, whole)
            )
            return f"of E[ĝ] = ({shown}) with ∇J = ({true}) it says {said!r}; it is {fault!r}"
    return None


def solution_fault(found, right):
    def is_near(a, b):
        return bool(torch.allclose(a, b, atol=1e-9))

    if is_near(found, right):
        return "none"
    if is_near(found, 0 * found):
        return "zero"
    if is_near(found[:2], 0 * found[:2]):
        return "first token"
    factor = (found @ right) / (right @ right)
    return "sign" if factor < 0 else "scaled"


FIND_THE_FAULT = Exercise(
    "find-the-fault",
    "Name the fault of a loss from its expected gradient alone.",
    test=test_fault,
    solution=solution_fault,
    wrong=[
        lambda found, right: "none" if bool((found * right > 0).all()) else "sign",
        lambda found, right: "none" if torch.allclose(found, right) else "scaled",
        lambda found, right: (
            "first token" if float(found[0]) == 0 else solution_fault(found, right)
        ),
    ],
    hints=[
        "Five cases, told apart by comparing vectors: equal, 0, 0 in two places, along ∇J, against.",
        "torch.allclose(found, right) for the first; the first token's logits are found[:2].",
        "The sign of found @ right tells `sign` from `scaled`, once the other three are ruled out.",
    ],
)
