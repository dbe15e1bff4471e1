"""The benchmarks' programs do the same work: their curves agree within the error of their
runs. Times are not asserted.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from course.train.noise import Noise
from tests.benchmarks.gradient_bandit import METRICS, numpy_by_hand, ours, python_loop, scalar_loop
from tests.benchmarks.grpo_training import REWARD, Plain
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.tasks import TaskSettings, make

RUNS, STEPS, ARMS = 1500, 60, 4


def test_ours_and_numpy_agree_metric_by_metric() -> None:
    mine, hand = (
        ours(RUNS, STEPS, ARMS, torch.float64),
        numpy_by_hand(RUNS, STEPS, ARMS, np.float64),
    )
    tolerance = dict(
        zip(METRICS, (0.25, 0.75, 1.3, 0.4, 3.0), strict=True)
    )  # standard deviation over runs, at the most
    for index, name in enumerate(METRICS):
        # ours logs the last step too, and two metrics after the update where NumPy has them before
        # it: compare where a step moves little
        later = slice(1 if name in ("optimal_action", "expected_reward") else 0, len(hand))
        difference = np.abs(mine[later, index] - hand[later, index])
        assert difference.max() < 5 * tolerance[name] * (2 / RUNS) ** 0.5 + 0.03, name


@pytest.mark.parametrize("body", [python_loop, scalar_loop])
def test_the_loops_agree_with_numpy(body: Callable[[int, int, int], np.ndarray]) -> None:
    few = 60
    loop, hand = body(few, STEPS, ARMS), numpy_by_hand(RUNS, STEPS, ARMS, np.float64)
    for index, spread in enumerate((0.35, 0.9, 1.4, 0.5, 3.5)):
        assert (
            np.abs(loop[:, index] - hand[:, index]).max() < 5 * spread * (1 / few + 1 / RUNS) ** 0.5
        ), METRICS[index]


def test_the_textbook_model_samples_and_learns_what_the_fast_one_does() -> None:
    task = make(TaskSettings())
    model = Transformer(PRESETS["nano"], (), 1)
    kinds = [
        kind(model, task, prompts=6, group=5, reward=REWARD["digits"])
        for kind in (LanguageModel, Plain)
    ]
    fast, plain = (kind.sample(Noise((), 3)) for kind in kinds)
    assert torch.equal(fast.data["tokens"], plain.data["tokens"])
    for name in ("reward", "mask", "truncated"):
        assert torch.equal(getattr(fast, name), getattr(plain, name)), name
    torch.testing.assert_close(fast.log_prob, plain.log_prob)
    scored = [kind.policy(fast).log_prob for kind in kinds]
    torch.testing.assert_close(*scored)
    for one, other in zip(
        *(torch.autograd.grad(each.sum(), model.parameters) for each in scored), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
