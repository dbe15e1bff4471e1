"""Several rewards: normalised each in its group and then added, against loops and by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import Clash, CourseError
from course.estimator import Estimator, replace
from course.exact import Outcomes, microscope
from course.parts import (
    K1,
    DropSilentGroups,
    EachReward,
    GroupStd,
    InReward,
    LeaveOneOut,
    RewardToGo,
)
from course.rollout import Rollout
from tests.helpers import close, f64, make_rollout, slopes


def given(components: Any, weights: tuple[float, ...] | None = None, **optional: Any) -> Rollout:
    """Answers of one token with rewards [..., Q, G, C]; their weighted sum is the reward."""
    each = f64(components)
    weight = torch.ones(each.shape[-1]) if weights is None else torch.tensor(weights)
    reward = (each * weight).sum(-1).unsqueeze(-1)
    return dataclasses.replace(make_rollout(reward, **optional), components=each)


def advantages(estimator: Estimator, rollout: Rollout) -> Tensor:
    """[..., Q, G]"""
    return estimator.freeze(rollout).advantage[..., 0]


def gdpo(weights: tuple[float, ...] | None = None, ddof: int = 0, eps: float = 1e-11) -> Estimator:
    return replace(ladder.length_mean, scale=EachReward(weights, ddof, eps))


# two groups of two: one reward tells the answers of the first apart, both those of the second
TOY = [[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]]


def test_the_toy_to_the_digit() -> None:
    """Sums (0, 1) and (0, 2): one advantage when added first, two when normalised first."""
    first = replace(ladder.length_mean, scale=GroupStd(1, 0.0))
    close(advantages(first, given(TOY)), [[-(0.5**0.5), 0.5**0.5]] * 2)
    found = advantages(gdpo(ddof=1), given(TOY))
    close(found, f64([[-0.5477225575], [-1.0954451150]]) * f64([[1.0, -1.0]]), atol=1e-9)
    assert found.round(decimals=3).tolist() == [[-0.548, 0.548], [-1.095, 1.095]]


def by_loops(
    each: list[list[list[float]]], weights: list[float], ddof: int, eps: float
) -> list[list[float]]:
    """The formula, reward by reward and group by group; a group without spread gives 0."""
    totals = [[0.0] * len(group) for group in each]
    for k, weight in enumerate(weights):
        for q, group in enumerate(each):
            values = [rewards[k] for rewards in group]
            mean = sum(values) / len(values)
            std = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - ddof))
            if max(values) > min(values):
                for i, x in enumerate(values):
                    totals[q][i] += weight * (x - mean) / (std + eps)
    every = [x for group in totals for x in group]
    mean = sum(every) / len(every)
    std = math.sqrt(sum((x - mean) ** 2 for x in every) / (len(every) - ddof))
    return [[(x - mean) / (std + eps) for x in group] for group in totals]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("ddof", "eps"), [(0, 1e-9), (1, 1e-4)])
def test_the_formula_by_loops(seed: int, ddof: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    each = torch.randint(0, 3, (3, 4, 3), generator=generator).double()
    each[0, :, 1] = 0.7  # a reward that does not vary in its group
    weights = (1.0, -0.5, 2.0)
    close(
        advantages(gdpo(weights, ddof, eps), given(each)),
        by_loops(each.tolist(), list(weights), ddof, eps),
    )


def test_without_components_the_reward_is_the_only_one() -> None:
    """Then it is GRPO's advantage, divided by its std over the batch."""
    reward = f64([[1.0, 0.0, 0.0], [1.0, 0.0, 0.5]]).unsqueeze(-1)
    one = advantages(gdpo(eps=1e-9), make_rollout(reward))
    close(one, advantages(gdpo(eps=1e-9), given(reward)))
    grpo = advantages(replace(ladder.length_mean, scale=GroupStd(0, 1e-9)), make_rollout(reward))
    close(one, grpo / grpo.std(correction=0), rtol=1e-8)


def test_the_unit_of_a_reward_does_not_matter_but_its_weight_does() -> None:
    each = f64([[[0.0, 1.0], [1.0, 0.0], [1.0, 3.0]], [[0.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])
    plain = advantages(gdpo(), given(each))
    close(
        advantages(gdpo(), given(each * f64([1.0, 100.0]) + f64([7.0, -2.0]))),
        plain,
        rtol=1e-6,
        atol=1e-9,
    )
    assert float((advantages(gdpo((1.0, 100.0)), given(each)) - plain).abs().max()) > 0.1


def test_rewards_that_add_up_to_a_constant_cancel() -> None:
    each = f64([[[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]])
    first = replace(ladder.length_mean, scale=GroupStd())
    assert advantages(first, given(each)).abs().max() == 0
    close(advantages(gdpo(eps=1e-6), given(each)), torch.zeros(1, 3), atol=1e-9)


def test_a_filter_on_the_sum_drops_groups_that_still_have_a_signal() -> None:
    """Added with weights 1 and ½ the rewards are 1 for every answer; normalised, with the same
    weights, the first one is heard twice as loud.
    """
    each, weights = f64([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 0.0]]]), (1.0, 0.5)
    rollout = given(each, weights)
    heard = advantages(gdpo(weights), rollout)
    assert float(heard[0, 0]) > 0.1 > 1e-9 > abs(float(heard.sum()))
    kept = replace(gdpo(weights), sample_filter=DropSilentGroups()).freeze(rollout).weight
    assert kept[0].abs().max() == 0 < kept[1].abs().max()


def test_equal_rewards_give_exactly_nothing() -> None:
    """Also in float32, where the mean of seven 0.7s is not 0.7."""
    each = torch.full((2, 7, 3), 0.7)
    rollout = Rollout(
        each.sum(-1, keepdim=True),
        torch.zeros(2, 7, 1),
        torch.ones(2, 7, 1, dtype=torch.bool),
        components=each,
    )
    assert advantages(ladder.gdpo, rollout).abs().max() == 0


def test_runs_do_not_see_each_other_and_minibatches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    each = torch.rand(2, 3, 4, 2, generator=generator, dtype=torch.float64)
    together = advantages(gdpo(), given(each))
    for run in range(2):
        close(advantages(gdpo(), given(each[run])), together[run])
    rollout = given(each)
    log_prob = rollout.log_prob + 0.3
    whole = slopes(gdpo(), rollout, log_prob)
    frozen = gdpo().freeze(rollout)
    for part in (torch.tensor([0, 2]), torch.tensor([1])):
        close(frozen.prompts(part).advantage, frozen.advantage[:, part])
        assert frozen.prompts(part).rollout.components is not None
    assert whole.shape == log_prob.shape


def test_what_stands_at_a_missing_sample_changes_nothing() -> None:
    each = f64([[[0.0, 1.0], [1.0, 0.0], [1.0, 3.0]], [[0.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])
    mask = torch.ones(2, 3, 1, dtype=torch.bool)
    mask[0, 2] = False
    found = []
    for there in (0.0, 1e9, math.nan):
        each[0, 2] = there
        reward = torch.nan_to_num(each.sum(-1, keepdim=True))
        rollout = dataclasses.replace(make_rollout(reward, mask=mask), components=each)
        found.append(advantages(gdpo(), rollout))
    close(found[1], found[0], atol=1e-5)
    close(found[2], found[0], atol=1e-5)
    close(found[0][0, :2], [0.0, 0.0], atol=1e-5)  # (0, 1) and (1, 0): the two rewards cancel


def test_the_exact_expectation_lists_batches_of_all_prompts() -> None:
    """Two prompts with two answers each, groups of two: 2⁴ batches, by loops."""
    p = f64([[0.3, 0.7], [0.6, 0.4]])
    each = f64([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]])
    outcomes = Outcomes.of_arms(p.log(), each.sum(-1), components=each)
    found = microscope(gdpo(eps=0.1), outcomes, 2).expected
    want = torch.zeros(4, dtype=torch.float64)
    for code in range(16):
        arms = [[code & 1, code >> 1 & 1], [code >> 2 & 1, code >> 3 & 1]]
        chance = math.prod(float(p[q, a]) for q in range(2) for a in arms[q])
        batch = [[each[q, a].tolist() for a in arms[q]] for q in range(2)]
        for q, group in enumerate(_safely(batch)):
            for i, advantage in enumerate(group):
                score = -p[q].clone()
                score[arms[q][i]] += 1
                want[2 * q : 2 * q + 2] += chance * advantage * score / 4
    close(found, want, atol=1e-12)


def _safely(batch: list[list[list[float]]]) -> list[list[float]]:
    """`by_loops` with eps = .1."""
    return by_loops(batch, [1.0, 1.0], 0, 0.1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"baseline": LeaveOneOut()}, "each reward's mean in its group"),
        ({"credit": RewardToGo()}, "whole returns"),
        ({"kl": K1(place=InReward())}, "none of the rewards"),
    ],
)
def test_parts_that_it_cannot_work_with_are_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Clash, match=why):
        replace(ladder.gdpo, **change)


def test_wrong_weights_and_components_are_refused() -> None:
    for weights in ((), (math.nan,), [1.0], (None,)):
        with pytest.raises(CourseError, match=r"EachReward.weights: got"):
            EachReward(weights)  # type: ignore[arg-type]
    with pytest.raises(CourseError, match=r"EachReward.eps: got 0.0; allowed is a number > 0"):
        EachReward(eps=0.0)
    with pytest.raises(CourseError, match=r"EachReward.weights: got .*rewards, 2"):
        advantages(gdpo((1.0, 2.0, 3.0)), given(TOY))
    for wrong in (torch.zeros(2, 2), torch.zeros(2, 3, 2), torch.zeros(2, 2, 0)):
        with pytest.raises(CourseError, match=r"rollout.components: got"):
            make_rollout([[[0.0], [1.0]]] * 2, components=wrong)
    components = f64([[[0.0, math.nan], [0.0, 1.0]]])
    lost = make_rollout([[[0.0], [1.0]]], components=components)
    with pytest.raises(CourseError, match=r"rollout.components: got nan"):
        advantages(gdpo(), lost)
