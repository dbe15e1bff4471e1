"""The KL ablation: two skills in one table, and penalties that cannot be felt where the policy
still is its reference.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from course.errors import CourseError
from course.lab.statistics import interval
from course.lab.terminal import QUIET
from course.parts import K1, K3, InLossTimesRatio, InReward
from tests.tinylm.helpers import tiny
from tinylm.ablations import kl
from tinylm.ablations.kl import PENALTIES, Settings, at, run, two_skills
from tinylm.curves import distance
from tinylm.rewards import ExactMatch
from tinylm.tasks import decode

SMALL: dict = {
    "digits": 1,
    "preset": "nano",
    "prompts": 16,
    "warm_target": 0.1,
    "judged": 20,
    "seeds": 2,
    "tuning": 1,
    "rates": (3e-3,),
}


def test_the_two_skills_share_a_table_and_only_one_is_trained() -> None:
    both, sums, others = two_skills(1)
    text = [decode(row) for row in both.prompt.tolist()]
    assert len(set(text)) == len(text) == 200
    assert all("+" in text[row] for row in [*sums.train, *sums.held_out])
    assert all("-" in text[row] for row in others)
    assert set(sums.held_out.tolist()) | set(others.tolist()) == set(range(200))  # all are judged
    assert not set(both.held_out.tolist()) & set(both.train.tolist())
    assert set(both.train.tolist()) > set(sums.train.tolist())
    assert {text[row][1] for row in both.train} == {"+", "-"}


def test_the_merged_table_keeps_each_questions_answer() -> None:
    both, _, others = two_skills(2)
    for row in [int(both.train[0]), int(others[0]), int(others[-1])]:
        left, right = decode(both.prompt[row].tolist())[:2], decode(both.prompt[row].tolist())[3:5]
        value = (
            int(left) + int(right)
            if "+" in decode(both.prompt[row].tolist())
            else int(left) - int(right)
        )
        assert int(decode(both.target[row].tolist())) == value
    rows = torch.arange(len(both.prompt))
    assert bool((ExactMatch()(both.target, rows, both) == 1).all())


def test_one_update_from_the_reference_feels_no_penalty_but_k1s_noise() -> None:
    settings = Settings(**SMALL, rollouts=1, epochs=1, log_every=1, betas=(1e-6, 10.0))
    found = run(settings, QUIET)
    none = found.array("none", "kl_start")
    assert (none > 0).all()
    for name in PENALTIES:
        small, large = found.array("penalties", name, "kl_start")
        measured = (
            small if name == "k1 in the reward" else large
        )  # there the std would blow rounding errors times β up
        if name == "k1 in the loss":
            assert not np.allclose(measured, none, rtol=0.01)
        else:
            np.testing.assert_allclose(measured, none, rtol=2e-3, err_msg=name)


def test_an_exact_penalty_holds_as_firmly_as_its_beta_says() -> None:
    name = "exact in the loss"
    settings = Settings(
        **SMALL, rollouts=6, epochs=4, log_every=6, betas=(1e-9, 10.0), penalties=(name,)
    )
    found = run(settings, QUIET)
    none, (without, firm) = (
        found.array("none", "kl_start"),
        found.array("penalties", name, "kl_start"),
    )
    np.testing.assert_allclose(without, none, rtol=0.05)
    assert (firm < 0.5 * none).all()
    gain, half = interval(
        found.array("penalties", name, "accuracy")[1] - found.array("none", "accuracy")
    )
    said = (found.array("penalties", name, f"over_accuracy{end}")[1] for end in ("", "_half"))
    assert tuple(map(float, said)) == pytest.approx((gain, half), abs=1e-6)
    kl.plot(dataclasses.replace(found, settings=settings))


def test_distance_is_zero_to_itself_and_positive_to_another() -> None:
    both, sums, _ = two_skills(1)
    model, other = tiny((2,)), tiny((2,), seed=1)
    torch.testing.assert_close(
        distance(model, model.copy(), both, sums.held_out), torch.zeros(2, dtype=torch.float64)
    )
    assert bool((distance(model, other, both, sums.held_out) > 0).all())


def test_penalties_stand_where_they_say() -> None:
    assert at("k1 in the reward", 0.1) == K1(0.1, place=InReward())
    assert at("ρ·k3 in the loss", 0.1) == K3(0.1, place=InLossTimesRatio())


@pytest.mark.parametrize(
    "wrong",
    [
        {"penalties": ("k4",)},
        {"penalties": ()},
        {"betas": (0.0,)},
        {"betas": ()},
        {"rates": (0.0,)},
        {"seeds": 1},
    ],
)
def test_settings_are_refused_at_the_door(wrong: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(wrong))[:4]):
        Settings(**wrong)


def test_the_names_of_what_is_drawn_are_the_modules_own() -> None:
    assert kl.FIGURE == "tinylm_kl"
    assert Settings().penalties == tuple(PENALTIES)
