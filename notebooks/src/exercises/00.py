"""The exercises of lesson 00, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import torch

import course.estimator
from course import ladder
from course.estimator import replace
from course.lesson.exercise import Exercise
from course.parts import K3, GroupMean, GroupStd, LeaveOneOut, SequenceMean
from course.rollout import Policy, Rollout
from course.train.noise import Noise

LENGTHS = torch.tensor([[2, 3, 5, 6], [1, 4, 4, 6]])
MASK = torch.arange(6) < LENGTHS[..., None]
LAST = torch.nn.functional.one_hot(LENGTHS - 1, 6).double()


def test_totals(attempt):
    reward = torch.zeros(2, 3, 4, dtype=torch.float64)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    lengths = [[1, 4, 2], [3, 3, 1]]
    worth = [[1.0, 0.0, 2.5], [0.0, 1.0, -1.0]]
    for q in range(2):
        for g in range(3):
            mask[q, g, : lengths[q][g]] = True
            reward[q, g, lengths[q][g] - 1] = worth[q][g]
    reward[0, 1, 0] = 0.5  # a reward on the way
    worth[0][1] += 0.5
    got = attempt(reward, mask)
    if not isinstance(got, tuple) or len(got) != 2:
        return (
            f"for rewards of shape (2, 3, 4) it gives {type(got).__name__}; two tensors are asked"
            " for, R and |o|"
        )
    for name, value, want in (("R", got[0], worth), ("|o|", got[1], lengths)):
        value = torch.as_tensor(value)
        if tuple(value.shape) != (2, 3):
            return (
                f"for rewards of shape (2, 3, 4) its {name} has the shape {tuple(value.shape)}; one"
                " number per answer is (2, 3)"
            )
        for q in range(2):
            for g in range(3):
                if abs(float(value[q, g]) - want[q][g]) > 1e-9:
                    return (
                        f"for prompt {q + 1}, answer {g + 1} it gives {name} ="
                        f" {float(value[q, g]):.3g}; counted by hand it is {want[q][g]:.3g}"
                    )
    return None


def solution_totals(reward, mask):
    return reward.sum(-1), mask.sum(-1)


REWARD_AND_LENGTH = Exercise(
    "reward-and-length",
    "From token rewards and the mask to each answer's reward R and length |o|.",
    test=test_totals,
    solution=solution_totals,
    wrong=[
        lambda reward, mask: (reward.sum(-2), mask.sum(-2)),
        lambda reward, mask: (reward[..., -1], mask.sum(-1)),
        lambda reward, mask: (reward.sum(-1), torch.full(mask.shape[:-1], mask.shape[-1])),
    ],
    hints=[
        "Which axis are the tokens?",
        "The last one; R keeps Q and G.",
        "Two sums over the last axis: of the rewards, and of the mask.",
    ],
)


def by_hand(reward, old, now, ref):
    """DeepSeekMath eq. 3 with its k3 (eq. 4), token by token; the group's std divides by G."""
    total = 0.0
    for q in range(2):
        A = (reward[q] - reward[q].mean()) / (reward[q].std(correction=0) + 1e-6)
        for g in range(4):
            n = int(LENGTHS[q, g])
            for t in range(n):
                rho = float((now[q, g, t] - old[q, g, t]).exp())
                log_r = float(ref[q, g, t] - now[q, g, t])
                k3 = float(torch.tensor(log_r).exp()) - 1 - log_r
                total += (
                    (min(rho * float(A[g]), min(max(rho, 0.8), 1.2) * float(A[g])) - 0.04 * k3)
                    / n
                    / 8
                )
    return total


def test_climb(attempt):
    made = attempt(ladder.reinforce)
    if not isinstance(made, course.estimator.Estimator):
        return (
            f"from reinforce it makes {type(made).__name__}; an estimator is asked for, which"
            " replace(...) returns"
        )
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    generator = Noise((), 3, dtype=torch.float64)
    old, now, ref = ((-1 + 0.6 * generator.normal(2, 4, 6)) * MASK for _ in range(3))
    value = float(
        made.objective(
            Policy(now), made.freeze(Rollout(reward[..., None] * LAST, old, MASK, ref_log_prob=ref))
        )
    )
    want = by_hand(reward, old, now, ref)
    return (
        None
        if abs(value - want) < 1e-6
        else (
            f"on rewards (1, 0, 0, 1) and (0, 1, 0, 0) its objective is {value:.4g}; the formula"
            f" gives {want:.4g}"
        )
    )


def solution_climb(rung):
    return replace(
        rung,
        baseline=GroupMean(),
        scale=GroupStd(),
        surrogate=ladder.clip.surrogate,
        aggregation=SequenceMean(),
        kl=K3(beta=0.04),
    )


CLIMB_TO_GRPO = Exercise(
    "climb-to-grpo",
    "Make GRPO (β = .04, ε = .2) out of the rung that you are given, by replacing parts.",
    test=test_climb,
    solution=solution_climb,
    wrong=[
        lambda rung: replace(
            rung,
            baseline=GroupMean(),
            scale=GroupStd(),
            surrogate=ladder.clip.surrogate,
            kl=K3(beta=0.04),
        ),
        lambda rung: replace(
            rung,
            baseline=LeaveOneOut(),
            scale=GroupStd(),
            surrogate=ladder.clip.surrogate,
            aggregation=SequenceMean(),
            kl=K3(beta=0.04),
        ),
        lambda rung: replace(
            rung,
            baseline=GroupMean(),
            scale=GroupStd(),
            aggregation=SequenceMean(),
            kl=K3(beta=0.04),
        ),
    ],
    hints=[
        "The list of what differs is further up: `ladder.grpo.diff(ladder.reinforce)`.",
        "Five parts: baseline, scale, surrogate, aggregation, kl.",
        (
            "replace(rung, baseline=GroupMean(), scale=GroupStd(), surrogate=ladder.clip.surrogate,"
            " …): two are left."
        ),
    ],
)
