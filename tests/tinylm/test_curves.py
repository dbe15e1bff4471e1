"""One wiring: what the ablations train is what the train command trains, arms are paired, and rates
are chosen on other models and questions than they are judged on.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from course import ladder
from course.errors import CourseError
from course.lab.terminal import QUIET
from tests.tinylm.helpers import sums
from tinylm.curves import (
    AblationBudget,
    SweptBudget,
    compared,
    held_out,
    peak_bytes,
    sweep_rates,
    train,
)
from tinylm.training import Training, TrainSettings
from tinylm.warm_start import warm_start
from tinylm.wiring import JUDGE, Streams

SHARED = {
    "preset": "nano",
    "digits": 1,
    "warm_target": 0.1,
    "rollouts": 3,
    "prompts": 8,
    "group": 4,
    "device": "cpu",
}
SMALL = AblationBudget(**SHARED, judged=5, log_every=1, seeds=2)


@pytest.mark.parametrize(
    ("rung", "critic"), [("grpo", "own"), ("ppo", "own"), ("ppo", "shared"), ("remax", "own")]
)
def test_an_ablation_trains_what_the_train_command_trains(rung: str, critic: str) -> None:
    """The same warm start, streams, critic, optimiser and schedule, whatever is logged."""
    budget = dataclasses.replace(SMALL, critic=critic)
    same = {"warm_lr": budget.warm_lr, "warm_batch": budget.warm_batch}
    settings = TrainSettings(
        **SHARED, **same, critic=critic, rung=rung, runs=2, lr=2e-3, eval_every=0
    )
    training = Training(settings)
    while not training.done:
        training.step()
    start = warm_start(budget, 2)
    found = train(budget, ladder.get(rung).estimator, start, (1e-9, 2e-3), range(2)).problem
    moved = 0.0
    for name, weight in training.model.weights.items():
        if name != "value":
            moved += float((start.weights[name] - weight).detach().abs().sum())
            torch.testing.assert_close(found.model.weights[name][1], weight, rtol=0, atol=2e-5)
    assert moved > 1


def test_a_model_alone_trains_as_among_others_and_at_every_rate_alike() -> None:
    start = warm_start(SMALL, 3)
    together = train(SMALL, ladder.grpo, start, (1e-3, 2e-3), (0, 2)).problem.model
    alone = train(SMALL, ladder.grpo, start, (2e-3,), (2,)).problem.model
    for name, weight in alone.weights.items():
        torch.testing.assert_close(together.weights[name][1, 1], weight[0, 0], rtol=0, atol=2e-5)


def test_arms_ask_the_same_questions_of_the_same_models() -> None:
    start = warm_start(SMALL, 2)
    asked = []
    for rung in ("reinforce", "grpo"):
        problem = train(SMALL, ladder.get(rung).estimator, start, (1e-3,), range(2)).problem
        asked.append(problem.sample(Streams(0, (1, 2), range(2)).noise(JUDGE)).data["question"])
    assert torch.equal(*asked)


def test_rates_are_chosen_and_judged_on_different_models_and_questions() -> None:
    budget = SweptBudget(
        **SHARED, judged=5, log_every=3, seeds=2, tuning=2, rates=(1e-5, 1e-3, 3e-3)
    )
    start = warm_start(budget, budget.models)
    found = sweep_rates(budget, ladder.grpo, start, QUIET)
    assert found.tried is not None
    assert found.tried.final.shape == (3, 2)
    assert found.judged.final.shape == (1, 2)
    best = found.tried.final.mean(-1)
    assert float(best[found.choice.index]) == float(best.max())
    judged = train(budget, ladder.grpo, start, (found.choice.rate,), (2, 3))
    assert torch.equal(found.judged.final, judged.final)
    task = start.task
    choosing, judging = (set(held_out(task, 5, choosing=c).tolist()) for c in (True, False))
    assert len(choosing) == len(judging) == 5
    assert not choosing & judging
    assert choosing | judging <= set(task.held_out.tolist())


def test_held_out_questions_are_spread_over_all_of_them() -> None:
    task = dataclasses.replace(sums(), held_out=torch.arange(40))
    assert held_out(task, 5).tolist() == [0, 8, 16, 24, 32]
    assert held_out(task, 5, choosing=True).tolist() == [1, 9, 17, 25, 33]
    assert len(held_out(task, 100)) == 20


def test_what_an_update_holds_is_at_least_weights_gradients_moments_and_reference() -> None:
    start = warm_start(dataclasses.replace(SMALL, warm_target=0.0), 2)
    grpo, bare = (
        train(SMALL, ladder.get(rung).estimator, start, (1e-3,), range(2))
        for rung in ("grpo", "clip")
    )
    size = 4 * grpo.parameters  # bytes
    noise = [Streams(0, (1, 2), range(2)).noise(JUDGE) for _ in range(2)]
    held = peak_bytes(grpo, noise[0])
    assert 5 * size < held < 40 * size
    # the same model and samples, less a frozen copy and what it says of 8 × 4 answers
    assert held - peak_bytes(bare, noise[1]) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value"), [("seeds", 1), ("rollouts", 0), ("preset", "huge"), ("judged", 0)]
)
def test_refused_budgets(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=field):
        AblationBudget(**{field: value})  # type: ignore[arg-type]


def test_a_comparison_is_paired_and_its_bound_is_students_for_one_in_a_hundred() -> None:
    fact = compared("so", torch.tensor([0.5, 0.3]), torch.tensor([0.1, 0.1]), 11)
    assert fact.measured == pytest.approx(0.3)  # the mean of .4 and .2
    assert fact.standard_error == pytest.approx(0.1)  # their standard deviation, .02^½, over 2^½
    # Student's t with one degree of freedom is Cauchy's: its 0.995 quantile is tan(0.495 π)
    assert fact.tolerance == pytest.approx(0.1 * math.tan(0.495 * math.pi))
    assert (fact.number, fact.runs, fact.relation, fact.holds) == (11, 2, "above", False)
