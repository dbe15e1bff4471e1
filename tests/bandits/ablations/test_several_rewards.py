"""Two rewards of one answer: weights by loops over groups, the toy, and which facts hold."""

from __future__ import annotations

import itertools
import math

import pytest

from bandits.ablations import several_rewards as ablation
from bandits.ablations.several_rewards import Settings
from bandits.theory import several_rewards as theory
from course.errors import CourseError
from course.lab.terminal import QUIET
from tests.helpers import close


def std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))


def normal(values: list[float]) -> list[float]:
    """(x − mean) / (std + eps), 0 where all are equal. The eps is the scheme's: where two rewards
    cancel, it decides what the whitening of one group makes of the rest.
    """
    mean, spread = sum(values) / len(values), std(values)
    return [
        (x - mean) / (spread + theory.EPS) if max(values) > min(values) else 0.0 for x in values
    ]


@pytest.mark.parametrize("unit", [1.0, 3.0])
def test_the_weights_by_loops_over_all_groups(unit: float) -> None:
    """4³ groups of three answers; the gradient of each logit over p(1−p)."""
    p, kinds = (0.2, 0.6), theory.KINDS.tolist()
    want = {name: [0.0, 0.0] for name in theory.SCHEMES}
    for group in itertools.product(kinds, repeat=3):
        chance = math.prod(p[k] if r[k] else 1 - p[k] for r in group for k in range(2))
        total = [r[0] + unit * r[1] for r in group]
        mean = sum(total) / 3
        apart = [normal([r[0] for r in group]), normal([unit * r[1] for r in group])]
        advantages = {
            "added, no std": [x - mean for x in total],
            "added, then std": normal(total),
            "each std, then added": normal([a + b for a, b in zip(*apart, strict=True)]),
        }
        for name, values in advantages.items():
            for k in range(2):
                slope = sum(a * (r[k] - p[k]) for a, r in zip(values, group, strict=True)) / 3
                want[name][k] += chance * slope / (p[k] * (1 - p[k]))
    for name, estimator in theory.SCHEMES.items():
        close(theory.weights(estimator, p, 3, unit), want[name], rtol=1e-6)


def test_in_a_large_batch_each_reward_has_its_own_weight() -> None:
    """E[Σ normal(r)·(r − p)] of one reward alone, by loops over 2³ groups."""
    weight = []
    for p in (0.2, 0.6):
        found = 0.0
        for group in itertools.product((0.0, 1.0), repeat=3):
            chance = math.prod(p if r else 1 - p for r in group)
            pairs = zip(normal(list(group)), group, strict=True)
            found += chance * sum(a * (r - p) for a, r in pairs) / 3 / (p * (1 - p))
        weight.append(found)
    close(theory.louder_in_a_large_batch((0.2, 0.6), 3), weight[0] / weight[1], rtol=1e-9)
    close(theory.louder_in_the_limit((0.2, 0.5)), 0.5 / 0.4)


def test_the_toy_to_the_digit() -> None:
    found = {name: each.round(decimals=3).tolist() for name, each in theory.toy().items()}
    assert found["added first"] == [[-0.707, 0.707]] * 2
    assert found["normalised first"] == [[-0.548, 0.548], [-1.095, 1.095]]


FAILED = [
    "Paying the common reward 10 times as much does not change w₁/w₂ (each std, then added)",
    "Normalised first points further from ∇(p₁ + p₂) than added first (cosine, p = 0.01 and 0.5)",
]


def test_which_facts_hold_and_which_do_not() -> None:
    """With one prompt the whitening is the group's own. Where both rewards cancel in the group, it
    scales up what eps has left of them, which depends on the unit.
    """
    result = ablation.run(ablation.SETTINGS, QUIET)
    assert [fact.claim for fact in result.facts if not fact.holds] == FAILED
    assert {fact.number for fact in result.facts} == {30}
    assert len(result.facts) == 13


@pytest.mark.parametrize(
    "change",
    [{"group": 1}, {"common": 1.0}, {"rare": (0.5, 0.1)}, {"units": (0.0,)}, {"rare": (0.1, 1.0)}],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]
