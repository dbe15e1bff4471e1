"""The warm start ends model by model, and a model's warm start does not depend on its company."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from course.errors import CourseError
from tinylm.curves import AblationBudget
from tinylm.warm_start import CHECK_EVERY, warm_accuracy, warm_learner, warm_start
from tinylm.wiring import Streams, copies

SMALL = AblationBudget(preset="nano", digits=1, warm_target=0.2, device="cpu")


@pytest.mark.slow
def test_each_model_stops_where_it_reaches_the_target_and_not_before() -> None:
    """Replayed one by one: the target is missed at every check but the last, and the weights are
    those of that moment.
    """
    start = warm_start(SMALL, 3)
    ended = []
    for number in range(3):
        streams = Streams(SMALL.seed, (1,), (number,))
        model = streams.transformer(start.model)
        learner = warm_learner(SMALL, model, start.task, streams)
        seen = 0.0
        while seen < SMALL.warm_target:
            for _ in range(CHECK_EVERY):
                learner.step()
            seen = float(warm_accuracy(SMALL, model, start.task, streams, learner.steps))
        ended.append(learner.steps)
        assert float(start.accuracy[number]) == pytest.approx(seen, abs=0.02)
        for name, weight in model.weights.items():
            torch.testing.assert_close(start.of([number])[name], weight.detach(), rtol=0, atol=1e-3)
    assert len(set(ended)) > 1  # else nothing was halted


def test_without_a_target_the_weights_are_the_random_ones() -> None:
    start = warm_start(dataclasses.replace(SMALL, warm_target=0.0), 2)
    fresh = Streams(SMALL.seed, (2,), range(2)).transformer(start.model)
    for name, weight in fresh.weights.items():
        assert torch.equal(start.weights[name], weight)
    assert float(start.accuracy.max()) < 0.05


def test_a_target_that_is_out_of_reach_is_refused_with_what_was_reached() -> None:
    with pytest.raises(CourseError, match=r"warm_target: got 0\.9; after 20 steps the accuracy is"):
        warm_start(dataclasses.replace(SMALL, warm_target=0.9, warm_limit=20), 1)


def test_copies_start_alike_and_get_a_value_head_of_zeros() -> None:
    start = warm_start(dataclasses.replace(SMALL, warm_target=0.0), 2)
    model = copies(start.weights, start.model, (3, 2), value=True)
    for name, weight in start.weights.items():
        assert torch.equal(model.weights[name], weight.expand(3, *weight.shape))
        assert model.weights[name].requires_grad
    assert float(model.weights["value"].detach().abs().max()) == 0
