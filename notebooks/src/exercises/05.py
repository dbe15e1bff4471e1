"""The exercises of lesson 05, which `lesson.exercise(NAME)` makes.

A test returns None for a right attempt, else a counter-example; what it takes behind the `*` comes
from the lesson.
"""

import itertools
from dataclasses import dataclass

import torch

from course.lesson.exercise import Exercise
from course.parts import Value


def test_values(attempt, *, one, right):
    generator = torch.Generator().manual_seed(5)
    for chance in (one, torch.rand(7, generator=generator, dtype=torch.float64)):
        for pay in (right, torch.rand(8, generator=generator, dtype=torch.float64)):
            got = attempt(chance, pay)
            if not isinstance(got, torch.Tensor) or got.shape != (7,):
                return f"it gives {got!r}; a tensor of 7 values is wanted, one for each state"
            prefixes = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
            for state, prefix in enumerate(prefixes):
                want = 0.0
                for rest in itertools.product((0, 1), repeat=3 - len(prefix)):
                    answer, weight = prefix + rest, 1.0
                    for t in range(len(prefix), 3):
                        at = prefixes.index(answer[:t])
                        weight *= float(chance[at]) if answer[t] else 1 - float(chance[at])
                    want += weight * float(pay[4 * answer[0] + 2 * answer[1] + answer[2]])
                if abs(float(got[state]) - want) > 1e-9:
                    name = "".join(map(str, prefix)) or "nothing yet"
                    return (
                        f"with «{name}» written it gives {float(got[state]):.3g}; listing all"
                        f" answers gives {want:.3g}"
                    )
    return None


def solve_values(one, pay):
    last = torch.stack(
        [(1 - one[3 + n]) * pay[2 * n] + one[3 + n] * pay[2 * n + 1] for n in range(4)]
    )
    middle = torch.stack(
        [(1 - one[1 + n]) * last[2 * n] + one[1 + n] * last[2 * n + 1] for n in range(2)]
    )
    first = (1 - one[0]) * middle[0] + one[0] * middle[1]
    return torch.cat([first[None], middle, last])


def greedy_values(one, pay):
    last = torch.stack([pay[2 * n : 2 * n + 2].max() for n in range(4)])
    middle = torch.stack([last[2 * n : 2 * n + 2].max() for n in range(2)])
    return torch.cat([middle.max()[None], middle, last])


def even_values(one, pay):
    return solve_values(torch.full_like(one, 0.5), pay)


VALUES = Exercise(
    "values",
    "Compute the value of all 7 states by going **backwards**: the last states first, then those"
    " before them. States are numbered as in `node`: nothing, 0, 1, 00, 01, 10, 11.",
    test=test_values,
    solution=solve_values,
    wrong=[greedy_values, even_values],
    hints=[
        (
            "In the states 00, 01, 10, 11 the next token ends the answer, so V is the mean of two"
            " entries of `pay`."
        ),
        (
            "The mean is the policy's: (1 − one[state]) times what follows a 0 plus one[state]"
            " times what follows a 1."
        ),
        (
            "V of 10 is (1 − one[5])·pay[4] + one[5]·pay[5]; V of 1 is (1 − one[2])·V of 10 +"
            " one[2]·V of 11."
        ),
    ],
)


def brute_gae(reward, value, gamma, lam):
    count = len(reward)
    ahead = [*value, 0.0]
    found = []
    for t in range(count):
        left = count - t
        returns = [
            sum(gamma**l * reward[t + l] for l in range(n))
            + (gamma**n * ahead[t + n] if n < left else 0.0)
            for n in range(1, left + 1)
        ]
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, left)] + [lam ** (left - 1)]
        found.append(sum(w * r for w, r in zip(weights, returns, strict=True)) - value[t])
    return found


def test_gae(attempt):
    cases = [
        ([0.0, 0.0, 1.0], [0.14, 0.28, 0.7], 1.0, 0.0),
        ([0.0, 0.0, 1.0], [0.4, 0.1, 0.9], 1.0, 0.95),
        ([0.5, 0.0, 1.0, 0.0], [0.2, 0.6, 0.1, 0.3], 0.9, 0.5),
        ([1.0], [0.3], 1.0, 1.0),
    ]
    for pay, guess, gamma, lam in cases:
        got = attempt(
            torch.tensor(pay, dtype=torch.float64),
            torch.tensor(guess, dtype=torch.float64),
            gamma,
            lam,
        )
        want = brute_gae(pay, guess, gamma, lam)
        shown = [f"{float(x):.3g}" for x in got]
        if len(got) != len(want) or any(
            abs(float(a) - b) > 1e-9 for a, b in zip(got, want, strict=True)
        ):
            return (
                f"for rewards {pay}, values {guess}, γ = {gamma:g}, λ = {lam:g} it gives"
                f" {', '.join(shown)}; the weighted average of all n-step returns is"
                f" {', '.join(f'{x:.3g}' for x in want)}"
            )
    return None


def solve_gae(reward, value, gamma, gae_lambda):
    ahead = torch.cat([value[1:], torch.zeros_like(value[:1])])
    delta = reward + gamma * ahead - value
    advantage, carried = torch.zeros_like(value), 0.0
    for t in range(len(reward) - 1, -1, -1):
        carried = delta[t] + gamma * gae_lambda * carried
        advantage[t] = carried
    return advantage


def shifted_gae(reward, value, gamma, gae_lambda):
    found = solve_gae(reward, value, gamma, gae_lambda)
    # the sum begins at l = 1
    return gamma * gae_lambda * torch.cat([found[1:], torch.zeros_like(found[:1])])


def endless_gae(reward, value, gamma, gae_lambda):
    ahead = torch.cat([value[1:], value[-1:]])  # the last value again, behind the end
    delta = reward + gamma * ahead - value
    return torch.stack(
        [
            sum((gamma * gae_lambda) ** l * delta[t + l] for l in range(len(delta) - t))
            for t in range(len(delta))
        ]
    )


GAE = Exercise(
    "gae",
    "Write GAE: rewards and values of one answer in, one advantage per token out. The answer really"
    " ended: nothing follows the last token.",
    test=test_gae,
    solution=solve_gae,
    wrong=[shifted_gae, endless_gae],
    hints=[
        "First compute δ for all tokens at once; the value behind the last token is 0.",
        (
            "Then go backwards: the advantage of a token is its δ plus γλ times the advantage of"
            " the next one."
        ),
        (
            "carried = delta[t] + gamma * gae_lambda * carried, for t from the last token to the"
            " first."
        ),
    ],
)


@dataclass(frozen=True)
class Suspect(Value):
    """The baseline of run B."""

    def __call__(self, returns, rollout):
        return torch.nn.functional.pad(rollout.value[..., 1:], (0, 1))
