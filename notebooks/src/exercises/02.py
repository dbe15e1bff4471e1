"""The exercises of lesson 02, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3
from course import exact, ladder
from course.estimator import replace
from course.lesson.exercise import Exercise
from course.parts import Constant

B3 = b3()


def test_best_constant(attempt):
    from bandits.exact import outcomes

    for policy, means in (
        (B3_POLICY, B3_MEANS),
        ((0.9, 0.1), (0.2, 0.7)),
        ((0.7, 0.1, 0.1, 0.1), (0.9, 0.1, 0.5, 0.3)),
    ):
        pi, mu = torch.tensor(policy, dtype=torch.float64), torch.tensor(means, dtype=torch.float64)
        listed = outcomes(Bernoulli(mu[None]), pi.log()[None])
        # a second way: the lowest point of the parabola through the enumerated variances at b = 0,
        # ½, 1
        low, middle, high = (
            exact.microscope(replace(ladder.reinforce, baseline=Constant(b)), listed, 1).variance
            for b in (0.0, 0.5, 1.0)
        )
        want = (3 * low - 4 * middle + high) / (4 * (low + high - 2 * middle))
        got = float(attempt(pi, mu))
        if abs(got - want) > 1e-8:
            return (
                f"for π = {policy} and means {means} it gives {got:.4g}; the enumerated variance is"
                f" least at {want:.4g}"
            )
    return None


def solution_best_constant(pi, mean):
    square = 1 - 2 * pi + (pi * pi).sum()  # ‖e_a − π‖² of each arm
    weight = pi * square
    return (weight * mean).sum() / weight.sum()


BEST_CONSTANT = Exercise(
    "best-constant",
    "Write b* of (2.5) for one question and a softmax over its own logits.",
    test=test_best_constant,
    solution=solution_best_constant,
    wrong=[
        lambda pi, mean: (pi * mean).sum(),
        lambda pi, mean: mean.mean(),
        lambda pi, mean: ((1 - pi) * mean).sum() / (1 - pi).sum(),
    ],
    hints=[
        (
            "You need the squared length of each arm's score. The score of arm a is 1 − π_a at its"
            " own place and −π_c at every other."
        ),
        "‖s_a‖² = (1 − π_a)² + Σ_{c≠a} π_c² = 1 − 2π_a + Σ_c π_c².",
        "Weigh each arm with w_a = π_a ‖s_a‖², then b* = Σ w_a r_a / Σ w_a.",
    ],
)


def test_leave_one_out(attempt):
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, -1.0]], dtype=torch.float64)
    got = torch.as_tensor(attempt(rewards))
    if got.shape != rewards.shape:
        return (
            f"for rewards of shape (2, 3) it gives the shape {tuple(got.shape)}; every sample has a"
            " baseline of its own"
        )
    for row in range(2):
        for i in range(3):
            want = sum(float(rewards[row, j]) for j in range(3) if j != i) / 2
            if abs(float(got[row, i]) - want) > 1e-9:
                shown = ", ".join(f"{x:g}" for x in rewards[row].tolist())
                return (
                    f"for rewards ({shown}) sample {i + 1} gets {float(got[row, i]):.3g}; the mean"
                    f" of the other two is {want:.3g}"
                )
    every = exact.every_group(ladder.reinforce, B3, 3)  # all groups of three, with their chances
    outcome = every.outcome[:, 0]
    reward, score = B3.total_reward[0][outcome], B3.total_score[0][outcome]
    average = torch.einsum("m,mg,mgd->d", every.chance, reward - attempt(reward), score) / 3
    if not torch.allclose(average, exact.gradient(B3), atol=1e-9):
        return (
            f"averaged over all groups of three on B3 the first logit gets {float(average[0]):.3g};"
            f" ∇J has {float(exact.gradient(B3)[0]):.3g}"
        )
    return None


def solution_leave_one_out(reward):
    others = reward.shape[-1] - 1
    return (reward.sum(-1, keepdim=True) - reward) / others


LEAVE_ONE_OUT = Exercise(
    "leave-one-out",
    "Give every sample of a group the mean reward of the others.",
    test=test_leave_one_out,
    solution=solution_leave_one_out,
    wrong=[
        lambda reward: reward.mean(-1, keepdim=True).expand(reward.shape),
        lambda reward: (reward.sum(-1, keepdim=True) - reward) / reward.shape[-1],
        lambda reward: (reward.sum() - reward) / (reward.numel() - 1),
    ],
    hints=[
        "The sum over the others is the sum over all, less the sample's own reward.",
        "reward.sum(-1, keepdim=True) keeps the axis, so that it broadcasts against reward.",
        "Divide by how many others there are: one less than the size of the last axis.",
    ],
)
