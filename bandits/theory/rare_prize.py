"""Three arms: wrong ones pay nothing, one pays half and is easy to find, a rare one pays all.

The half-paying arm is an answer whose digits are right and which never ends. Once the policy is
sure of it, every sample of a group pays the same, and the group is silent. Whether the rare arm is
still found then depends on what keeps its probability from dying.

On-policy, with G samples in a group and rewards divided by the group's std, one sample that differs
from all the others has the advantage ±√(G − 1). At π(half) → 1 this gives, with ε the probability
of the wrong arm and w = √(G − 1) (arm by arm, the pull on the logits)

    reward       wrong −w ε        rare +w π(rare)     both vanish with the arm itself
    k3 · β       + β (ref − π)     tends to β ref > 0: it does not vanish
    k2 · β       + β π ln(ref/π)   vanishes
    entropy · c  + c π ln(1/π)     vanishes; with a uniform reference it is k2 with β = c

So k3 holds the wrong arm at about ε = β ref/w, in proportion to β (`course.exact.anchored_error`),
and the entropy bonus at ε = exp(−2w/c), which is nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import expected_gradient
from bandits.policies import Softmax, log_softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require, require_number
from course.estimator import Estimator, replace
from course.exact.counting import compositions, log_multinomial
from course.learner import Learner
from course.parts import K2, K3, GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

REWARDS = (0.0, 0.5, 1.5)  # the reward “exact+digits” of the language model
WRONG, HALF, RARE = range(3)
EPS = GroupStd().eps
ANCHORS = ("none", "k3", "k2", "entropy")


@dataclass(frozen=True)
class Pull:
    """What moves the logits: groups of `group`, with the std or without, and what anchors them.

    `kind` is one of `ANCHORS` and `coef` its coefficient: β towards the policy at the start, or the
    coefficient of the entropy bonus. Raises `CourseError` for a wrong value.
    """

    kind: str = "none"
    coef: float = 0.04
    std: bool = True
    group: int = 16

    def __post_init__(self) -> None:
        require(self.kind in ANCHORS, "kind", self.kind, ", ".join(ANCHORS))
        require_number("coef", self.coef, "a number ≥ 0", at_least=0)
        require_number("group", self.group, "a whole number > 1", above=1, whole=True)

    @property
    def estimator(self) -> Estimator:
        """The rung below GRPO, with the std or without, anchored in the same way."""
        below = ladder.length_mean if self.std else ladder.group_mean
        if self.kind == "entropy":
            return replace(below, entropy_coef=self.coef)
        if self.kind == "none":
            return below
        return replace(below, kl=K3(self.coef) if self.kind == "k3" else K2(self.coef))

    @property
    def has_reference(self) -> bool:
        """Whether the anchor is a KL towards the policy at the start."""
        return self.kind in ("k3", "k2")

    def expected(self, log_prob: Tensor, reference: Tensor) -> Tensor:
        """E[ĝ] [..., K] on the logits at `log_prob` [..., K], on-policy, in closed form.

        It sums over the numbers of each arm in a group. `reference` is [K]. Without the std the
        advantage is r − mean(group).
        """
        log_ways, counts, credit = _groups(self.group, self.std)
        chance = (log_ways + log_prob @ counts.T).exp()  # [..., M]
        return chance @ credit + self._anchored(log_prob, reference)

    def _anchored(self, log_prob: Tensor, reference: Tensor) -> Tensor:
        pi = log_prob.exp()
        if self.kind == "k3":
            return self.coef * (reference.exp() - pi)  # −∇KL(ref‖π)
        if self.kind == "none":
            return torch.zeros_like(pi)
        value = -log_prob if self.kind == "entropy" else reference - log_prob
        return self.coef * pi * (value - (pi * value).sum(-1, keepdim=True))


@cache
def _groups(size: int, std: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Every group: log of its orderings [M], its counts of each arm [M, 3], and Σ A/G over the
    samples of each arm [M, 3], which adds up to 0.
    """
    counts = compositions(size, len(REWARDS))
    log_ways = log_multinomial(counts, torch.zeros(len(REWARDS), dtype=torch.float64))
    share, reward = counts.double() / size, torch.tensor(REWARDS, dtype=torch.float64)
    centred = reward - (share @ reward).unsqueeze(-1)
    if std:
        spread = (share * centred**2).sum(-1, keepdim=True).sqrt()
        centred = centred / (spread + EPS)  # silent groups: 0 / EPS = 0
    return log_ways, counts.double(), share * centred


def start_of(half: float, rare: float) -> Tensor:
    """log π [3] at the start; the wrong arms have the rest."""
    for name, value in (("half", half), ("rare", rare)):
        require_number(name, value, "a probability above 0", above=0, below=1)
    require(half + rare < 1, "rare", rare, f"less than 1 − half = {1 - half:g}")
    return torch.tensor([1 - half - rare, half, rare], dtype=torch.float64).log()


def flow(pull: Pull, start: Tensor, rate: float, steps: int) -> Tensor:
    """log π [steps + 1, K] along θ ← θ + rate · E[ĝ] from `start` [K], which is the reference."""
    path = [start]
    for _ in range(steps):
        path.append(log_softmax(path[-1] + rate * pull.expected(path[-1], start)))
    return torch.stack(path)


def found_after(pull: Pull, start: Tensor, rate: float, most: int) -> float:
    """Updates until the rare arm has probability ½; inf if that takes more than `most`.

    Once it has, nothing takes it away, so the path is followed no further.
    """
    log_prob = start
    for step in range(1, most + 1):
        log_prob = log_softmax(log_prob + rate * pull.expected(log_prob, start))
        if float(log_prob[RARE]) > math.log(0.5):
            return float(step)
    return math.inf


def sampled(
    pull: Pull, start: Tensor, *, rate: float, updates: int, runs: int, log_every: int, seed: int
) -> tuple[list[int], Tensor]:
    """Trainings on samples, by the learner: the logged updates and π(rare) [logs, runs] there."""
    bandit = Bandit(
        Deterministic(torch.tensor([REWARDS], dtype=torch.float64)),
        Softmax(start.expand(runs, 1, -1)),
        pull.group,
        reference="start" if pull.has_reference else None,
    )
    noise = Noise(bandit.runs, seed, dtype=torch.float64)
    learner = Learner(bandit, pull.estimator, SGD(rate), noise, log_every=log_every)
    rows = learner.train(updates).rows
    return learner.history.steps, torch.stack([row["optimal_action"] for row in rows])


def closed_form_gap(coef: float, group: int, start: Tensor) -> float:
    """The largest difference of `Pull.expected` from the estimators' own E[ĝ], by enumeration.

    It is over all anchors, with the std and without, at the policy (.2, .79, .01).
    """
    environment = Deterministic(torch.tensor([REWARDS], dtype=torch.float64))
    at, gap = torch.tensor([0.2, 0.79, 0.01], dtype=torch.float64).log(), 0.0
    for pull in (Pull(kind, coef, std, group) for kind in ANCHORS for std in (True, False)):
        reference = start if pull.has_reference else None
        listed = expected_gradient(pull.estimator, environment, at, group, reference=reference)
        gap = max(gap, float((listed - pull.expected(at, start)).abs().max()))
    return gap


def balance(coef: float, group: int, start: Tensor, wrong: float) -> float:
    """E[ĝ] under k3 on the wrong arm's logit where it has probability `wrong`.

    The rare arm has probability 0 there, so that only the balance of the other two remains.
    """
    two = torch.tensor([wrong, 1 - wrong, 0.0], dtype=torch.float64).log()
    return float(Pull("k3", coef, group=group).expected(two.clamp(min=-700.0), start)[WRONG])


__all__ = [
    "ANCHORS",
    "HALF",
    "RARE",
    "REWARDS",
    "WRONG",
    "Pull",
    "balance",
    "closed_form_gap",
    "flow",
    "found_after",
    "sampled",
    "start_of",
]
