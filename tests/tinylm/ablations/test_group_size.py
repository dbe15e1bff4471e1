"""Group sizes: the exact success probability against sampling, silent groups against a binomial
written out, refusals.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from course.errors import CourseError
from course.lab.terminal import QUIET
from course.train.noise import Noise
from tests.tinylm.helpers import sums, tiny
from tinylm.ablations import group_size as ablation
from tinylm.ablations.group_size import Settings
from tinylm.evaluate import accuracy, right_to_go
from tinylm.watched import WatchedGroups

SMALL = Settings(
    digits=1,
    preset="nano",
    groups=(2, 4),
    completions=16,
    rollouts=4,
    epochs=1,
    log_every=1,
    judged=5,
    seeds=2,
    tuning=1,
    rates=(1e-4, 1e-3, 5e-3),
    warm_target=0.05,
)


def test_the_chance_of_the_right_answer_is_what_sampling_finds() -> None:
    task, count = sums(), 3000
    model = tiny((2,), context=task.context)
    with torch.no_grad():
        model.weights["head"] *= 0.2  # an even policy, which is right at times
    exact = right_to_go(model, task, task.held_out[:5])
    found = accuracy(
        model, task, Noise((2,), 1, dtype=torch.float64), questions=task.held_out[:5], samples=count
    )
    p = exact[..., 0]
    assert p.shape == (2, 5)
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / count).sqrt() + 1e-12).all()
    assert ((found > 0).any(-1)).all()
    assert (exact[..., 1:] >= exact[..., :-1]).all()  # the further, the surer


def test_silent_groups_are_what_p_says_over_all_rollouts_since_the_last_log() -> None:
    task, group = sums(), 3
    problem = WatchedGroups(tiny((2,), context=task.context), task, prompts=4, group=group)
    p = torch.tensor([[0.0, 1.0, 0.5, 0.25]] * 2, dtype=torch.float64)
    problem.seen = [
        (torch.tensor([0.5, 0.25]), p),
        (torch.tensor([1.0, 0.25]), torch.zeros_like(p)),
    ]
    metrics = problem.metrics()
    silent = [1.0, 1.0, 0.5**3 + 0.5**3, 0.25**3 + 0.75**3]
    assert metrics["silent_measured"].tolist() == [0.75, 0.25]
    assert metrics["silent_expected"].tolist() == pytest.approx(
        [(sum(silent) + 4) / 8] * 2, abs=1e-12
    )
    assert metrics["silent_variance"].tolist() == pytest.approx(
        [sum(s * (1 - s) for s in silent) / 64] * 2, abs=1e-12
    )
    problem.sample(Noise((2,), 3, dtype=torch.float64))
    assert len(problem.seen) == 1


def test_measured_silent_groups_scatter_as_the_variance_says() -> None:
    task = sums()
    model = tiny((400,), context=task.context)
    with torch.no_grad():
        model.weights["head"] *= 0.2
    problem = WatchedGroups(model, task, prompts=8, group=16)
    problem.sample(Noise((400,), 5, dtype=torch.float64))
    metrics = problem.metrics()
    z = (metrics["silent_measured"] - metrics["silent_expected"]) / metrics[
        "silent_variance"
    ].sqrt()
    assert abs(float(z.mean())) < 4.5 / math.sqrt(400)
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)


def test_every_size_sees_as_many_completions_and_silence_is_what_p_says() -> None:
    result = ablation.run(SMALL, QUIET)
    assert [fact.holds for fact in result.facts[:2]] == [True, True]
    assert "G = 2 ends above G = 4" in result.facts[2].claim
    assert result.facts[2].runs == 2
    assert result.array("sizes", "2", "samples").tolist() == [0, 16, 32, 48, 64]
    assert (
        result.array("sizes", "2", "samples").tolist()
        == result.array("sizes", "4", "samples").tolist()
    )
    assert (result.array("sizes", "2", "silent") >= 0).all()
    ablation.plot(dataclasses.replace(result, settings=SMALL))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("groups", (1, 2)),
        ("groups", ()),
        ("completions", 100),
        ("rates", (0.0,)),
        ("rung", "no such"),
        ("rollouts", 0),
    ],
)
def test_refused_settings(field: str, value: object) -> None:
    with pytest.raises(CourseError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]
