"""The bandit on which each part is tried: its starts, its expected updates, its outcomes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bandits.ablations import parts
from bandits.theory import stress as theory
from course import ladder
from course.errors import CourseError
from course.exact import group_std_weight
from course.lab.ablation import run_ablation

SMALL = dataclasses.replace(
    parts.SETTINGS, rollouts=4, streams=6, tuning=2, rates=(1.0, 4.0, 16.0), updates=2, workers=1
)


def test_a_question_starts_at_its_success_probability() -> None:
    success = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    policy = theory.shared_policy(theory.start(success, 4), (2,), 5, 2.0)
    probs = policy.log_probs().exp()
    torch.testing.assert_close(probs[..., 0], success.expand(2, 3))
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(probs[..., 1], ((1 - success) / 3).expand(2, 3))


def test_the_first_expected_step_is_the_weight_times_the_gradient() -> None:
    """Without shared features a logit moves by η w(p) ∇p / Q: p(1−p) right, −pπ_a wrong."""
    p, arms, rate = torch.tensor([0.2, 0.7], dtype=torch.float64), 3, 0.5
    for name in ("group_mean", "group_std"):
        policy = theory.shared_policy(theory.start(p, arms), (), 1, 0.0)
        path = theory.follow(ladder.get(name).estimator, policy, 8, rate, 1)
        weight = (
            group_std_weight(p, 8, eps=1e-6) if name == "group_std" else torch.full_like(p, 7 / 8)
        )
        step = rate * weight * p * (1 - p) / 2
        # the log-odds grow by the right logit's step and by that of the two equal wrong ones
        odds = torch.logit(p) + step + step / (arms - 1)
        torch.testing.assert_close(path[1], torch.sigmoid(odds))


def test_sampled_updates_follow_the_expected_ones_where_steps_are_small() -> None:
    """2,000 runs, 10 steps of rate .5: the mean success is the expected path's, to its noise."""
    s = dataclasses.replace(parts.SETTINGS, rollouts=10)
    for name in ("group_mean", "group_std"):
        found = parts.train(s, name, "difficulty", (0.5,), range(2000))
        start = theory.start(torch.tensor(s.success, dtype=torch.float64), s.arms)
        policy = theory.shared_policy(start, (), s.width, s.shared)
        path = theory.follow(ladder.get(name).estimator, policy, s.many, 0.5, 10)
        for key, part in (("hard", path[:, :3]), ("easy", path[:, -3:])):
            seen = found.outcomes[key][-1, 0].double()
            error = float(seen.std() / 2000**0.5)
            assert abs(float(seen.mean() - part[-1].mean())) < 4 * error + 2e-3


class UnitVectors:
    """Noise whose draw of N numbers has N runs: run n has a 1 at number n, after the draws before.

    What is linear in these numbers then shows its own matrix.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0

    def normal(self, *shape: int) -> torch.Tensor:
        many = math.prod(shape)
        found = torch.zeros(self.total, many, dtype=torch.float64)
        found[self.used : self.used + many] = torch.eye(many, dtype=torch.float64)
        self.used += many
        return found.view(self.total, *shape)


@pytest.mark.parametrize("name", ["reinforce", "baseline", "group_mean"])
def test_a_normal_update_has_the_covariance_of_a_sampled_one(name: str) -> None:
    """Against all 3⁴ groups of four samples of one question, enumerated."""
    probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    reward, group = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64), 4
    estimator = ladder.get(name).estimator
    noise: Any = UnitVectors(12 if name == "group_mean" else 3)
    rows = theory.sampled_part(estimator, probs, reward, group, noise)[:, 0]
    seen = rows.T @ rows
    second, first = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=group):
        chance, paid = probs[0, list(arms)].prod(), reward[0, list(arms)]
        baseline = {
            "reinforce": 0.0,
            "baseline": float((probs * reward).sum()),
            "group_mean": float(paid.mean()),
        }[name]
        score = torch.eye(3, dtype=torch.float64)[list(arms)] - probs
        gradient = ((paid - baseline).unsqueeze(-1) * score).mean(0)
        first += chance * gradient
        second += chance * gradient.outer(gradient)
    torch.testing.assert_close(seen, second - first.outer(first))


def test_the_length_of_a_wrong_answer_is_read_off_the_policy() -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    seen = theory.outcomes(probs.log(), "lengths", (2, 8))
    assert float(seen["success"]) == pytest.approx(0.7)
    assert float(seen["length"]) == pytest.approx((2 * 0.2 + 8 * 0.1) / 0.3 / 8)


def test_what_is_not_paid_is_no_success() -> None:
    probs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    seen = theory.outcomes(probs.log(), "unrewarded", (2, 8))
    assert float(seen["success"]) == pytest.approx(0.2)
    assert float(seen["skill"]) == pytest.approx(0.8)


def test_every_part_runs_and_writes_its_figure(tmp_path: Path) -> None:
    result = run_ablation(parts, SMALL, tmp_path)
    assert len(result.series["rows"]) == 9
    assert (tmp_path / "bandit_parts.png").stat().st_size > 10_000
    for row in result.series["rows"].values():
        assert len(row["values_rung"]) == SMALL.streams
    predicted = {key for key, row in result.series["rows"].items() if row["predicted"] is not None}
    assert predicted == {
        "baseline, offset",
        "group_mean, constants",
        "group_std, hard",
        "group_std, easy",
        "length_mean, lengths",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": 1},
        {"success": (0.5, 1.0, 0.2)},
        {"lengths": (8, 2)},
        {"streams": 1},
        {"rare": 0.02},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))):
        parts.Settings(**wrong)
