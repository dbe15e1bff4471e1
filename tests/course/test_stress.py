"""What each part buys: pairs, rates that judged streams have no say in, intervals from the JSON."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy import stats

from course import ladder, replace
from course.lab.stress import (
    PURPOSE,
    STRESSES,
    WITHOUT,
    Arm,
    Sweep,
    Trained,
    anchored,
    compare,
    forest,
    rows_of,
    table,
)
from course.parts import K3, GroupStd

SWEEP = Sweep((0.1, 1.0, 10.0), tuning=2, streams=5)
NOISE = torch.linspace(-0.01, 0.01, 7, dtype=torch.float64)  # of streams 0 to 6
OUTCOMES = ("success", "hard", "easy", "length", "skill")


def train(arms: Sequence[Arm]) -> list[Trained]:
    """The made-up world of `one`, for every arm."""
    return [one(*arm) for arm in arms]


def one(rung: str, training: str, rates: Sequence[float], numbers: range) -> Trained:
    """A made-up world: an upper rung is .1 better under a stress; the rate 1 is best for all, and
    on the judging streams alone 10 would be.
    """
    rank = [each.name for each in ladder.select()].index(rung)
    level = torch.tensor([{0.1: 0.2, 1.0: 0.5, 10.0: 0.3}[rate] for rate in rates])
    own = NOISE[list(numbers)] * (1 + rank)
    better = 0.0 if training in WITHOUT else 0.1 * rank
    value = level.double().unsqueeze(-1) + better + own
    late = torch.tensor(rates).unsqueeze(-1) == 10
    value = torch.where(late & (torch.tensor(numbers) >= 2), value + 1, value)
    along = torch.stack([value - 0.3, value])
    return Trained(dict.fromkeys(OUTCOMES, along), torch.zeros(value.shape, dtype=torch.bool))


def test_every_interval_can_be_computed_again_from_the_values_of_the_streams() -> None:
    rows = compare(("baseline", "clip"), train, SWEEP, "nowhere").series["rows"]
    assert list(rows) == ["baseline, offset", "clip, stale"]
    for row in rows.values():
        for key, high, low in (
            ("effect", "values_rung", "values_below"),
            ("removed", "values_rung", "without_values"),
            ("control", "control_values_rung", "control_values_below"),
            ("final", "final_values_rung", "final_values_below"),
        ):
            apart = torch.tensor(row[high]) - torch.tensor(row[low])
            t = stats.t.interval(0.95, 4, loc=float(apart.mean()), scale=stats.sem(apart.numpy()))
            assert row[key] == pytest.approx(float(apart.mean()), abs=1e-6)
            assert row[key] + row[f"{key}_half"] == pytest.approx(t[1], abs=1e-6)
    assert rows["baseline, offset"]["effect"] == pytest.approx(0.1 + float(NOISE[2:].mean()))
    assert rows["baseline, offset"]["control"] == pytest.approx(float(NOISE[2:].mean()), abs=1e-7)


def test_the_rate_is_chosen_without_the_streams_that_are_judged() -> None:
    [row] = compare(("baseline",), train, SWEEP, "nowhere").series["rows"].values()
    assert row["rates"] == [1.0, 1.0]
    assert row["interior"]


def test_a_rate_at_an_end_of_the_sweep_is_said() -> None:
    result = compare(("baseline",), train, Sweep((0.1, 1.0), 2, 5), "nowhere")
    assert "at an end of the sweep: baseline, offset" in result.caption


def test_facts_hold_where_the_interval_is_on_the_side_of_theory() -> None:
    """In the made-up world a rung gains .1 on hard and easy questions alike: the second fact, that
    the easy ones gain less, does not hold.
    """
    facts = compare(("baseline", "group_std"), train, SWEEP, "nowhere").facts
    said = [fact.holds for fact in facts if "no stress" not in fact.claim]
    assert said == [True, True, False]
    assert all(fact.holds for fact in facts if "no stress" in fact.claim)


def test_the_stress_sets_the_coefficient_of_a_kl_that_has_one() -> None:
    assert anchored(ladder.grpo, 0.5) == replace(ladder.grpo, kl=K3(beta=0.5))
    assert anchored(ladder.reinforce_pp, 0.5).kl.beta == 0.5
    for estimator in (ladder.length_mean, ladder.ppo_kl_adaptive):
        assert anchored(estimator, 0.5) == estimator


def test_runs_that_diverged_are_told() -> None:
    def lost(rung: str, training: str, rates: Sequence[float], numbers: range) -> Trained:
        found = one(rung, training, rates, numbers)
        halted = found.halted.clone()
        if len(rates) == 1:
            halted[0, 0] = training == "offset"
        return Trained(found.outcomes, halted)

    result = compare(("baseline",), lambda arms: [lost(*arm) for arm in arms], SWEEP, "nowhere")
    assert "halted: " in result.caption
    assert not all(fact.holds for fact in result.facts)


def test_each_rung_meets_its_own_stress_and_an_own_estimator_meets_all() -> None:
    assert rows_of(["reinforce"]) == []
    assert [row[2] for row in rows_of(["group_std"])] == ["hard", "easy"]
    mine = ladder.register("mine", replace(ladder.group_mean, scale=GroupStd(ddof=1)))
    try:
        assert rows_of(["mine"]) == [("group_mean", "mine", stress) for stress in STRESSES]
    finally:
        del ladder.RUNGS[mine.name]
    assert list(PURPOSE) == [rung.name for rung in ladder.select()][1:]


def test_the_figure_and_the_table_show_every_row_of_every_problem() -> None:
    few = compare(("baseline",), train, SWEEP, "one")
    more = compare(("baseline", "grpo"), train, SWEEP, "two")
    figure = forest({"one": few, "two": more})
    assert len(figure.axes) == 2
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][1].startswith("grpo")
    lines = table({"one": few, "two": more}).splitlines()
    grpo = [line for line in lines if line.startswith("grpo")]
    assert len(grpo) == 2
    for line in grpo:
        assert line.split()[-3:] != ["–"]
        assert "–" in line
