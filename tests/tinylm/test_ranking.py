"""Completions to a level, rankings and their facts, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from course.lab.statistics import student
from tinylm.ranking import AGAIN, crossing, facts_of, ranked

LOGGED = [0, 100, 200, 400]


def test_a_level_is_crossed_on_the_line_between_two_logged_points() -> None:
    accuracy = {
        "on the way": ([0.3, 0.5, 0.7, 0.6], 150.0, True),
        "first of two crossings": ([0.3, 0.7, 0.2, 0.9], 75.0, True),
        "at a logged point": ([0.3, 0.6, 0.7, 0.8], 100.0, True),
        "on a longer stretch": ([0.3, 0.3, 0.5, 0.7], 300.0, True),
        "there at the start": ([0.6, 0.2, 0.2, 0.2], 1.0, True),
        "at the very end": ([0.3, 0.4, 0.5, 0.6], 400.0, True),
        "never: the whole run": ([0.3, 0.59, 0.5, 0.4], 400.0, False),
    }
    curves = np.array([curve for curve, _, _ in accuracy.values()]).T
    completions, reached = crossing(LOGGED, curves, 0.6)
    np.testing.assert_allclose(completions, [at for _, at, _ in accuracy.values()])
    assert reached.tolist() == [there for _, _, there in accuracy.values()]


def row(*crossings: float, final: float = 1.0) -> dict[str, Any]:
    """A row whose models are at .5 after 100 to 200 completions, or never (400)."""
    curves = []
    for at in crossings:
        share = (at - 100) / 100  # of the way from the point at 100 to that at 200
        rise = [0.5 - 0.4 * share, 0.9 - 0.4 * share, final]
        curves.append([0.0, *(rise if at <= 200 else [0.1, 0.2, 0.4])])
    return {
        "completions": LOGGED,
        "accuracy": np.array(curves).T.tolist(),
        "halted": [False] * len(crossings),
        "alike": [],
    }


def test_the_ranking_is_sorted_and_paired_model_by_model() -> None:
    rows = {
        "late": row(400, 400, 400),  # never
        "first": row(100, 200, 100, final=0.9),
        "same": row(100, 200, 100, final=0.8),
        "twice": row(200, 400, 200),
    }
    table = ranked(rows, "first", (0.5,))
    assert list(table) == ["first", "same", "twice", "late"]
    # 0, .5, .9, .9 is .575; 0, .1, .5, .9 is .375
    np.testing.assert_allclose(table["first"]["along"], [0.575, 0.375, 0.575])
    np.testing.assert_allclose(table["first"]["to"]["50"], [100, 200, 100])
    assert (table["same"]["ahead"], table["same"]["ahead_half"]) == pytest.approx((-0.025, 0))
    assert (table["same"]["over"], table["same"]["over_half"]) == pytest.approx((-0.1, 0))
    # twice as many completions by every model: log2 is 1 without spread; then 4, 2 and 4 times
    later = [(table[n]["later"]["50"], table[n]["later_half"]["50"]) for n in ("twice", "late")]
    half = student(0.05, 3) * np.std([2, 1, 2], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(later, [(1, 0), (5 / 3, half)], atol=1e-12)
    assert [table[name]["never"]["50"] for name in table] == [0, 0, 1, 3]


def test_a_halted_model_has_no_accuracy_to_compare_and_keeps_what_it_reached() -> None:
    lost = row(100, 200) | {"halted": [True, False]}
    table = ranked({"first": row(100, 200), "lost": lost}, "first", (0.5,))
    for what in ("final", "along"):
        assert np.isnan(table["lost"][what]).tolist() == [True, False]
    assert table["lost"]["later"]["50"] == 0


def test_facts_are_written_whatever_they_say() -> None:
    rows = {
        "reinforce": row(100, 110, 120, 130),
        "baseline": row(190, 200, 195, 198) | {"alike": ["ppo_kl"]},  # behind, as expected
        "surrogate": row(190, 200, 195, 198),
        "clip": row(100, 110, 120, 131),
        "group_mean": row(101, 108, 121, 129),  # ahead of the baseline: not as expected
        AGAIN: row(110, 100, 130, 122),
    }
    once, many = (
        {fact.claim: fact for fact in facts_of(ranked(rows, "reinforce", (0.5,)),
                                               "reinforce", updates)}
        for updates in (1, 8)
    )  # fmt: skip

    def holds(facts: dict[str, Any], *words: str) -> bool:
        [fact] = [fact for claim, fact in facts.items() if all(word in claim for word in words)]
        assert isinstance(fact.holds, bool)
        return fact.holds

    assert holds(once, "reinforce above baseline")
    assert not holds(once, "baseline above group_mean")
    assert not holds(once, "do the same as baseline")  # clip and the surrogate have their own rows
    assert not any("the same as group_mean" in claim for claim in once)  # rloo was not trained
    assert holds(once, "reinforce with other streams")
    assert holds(once, "of 4 whose interval excludes 0")
    assert holds(many, "clip above baseline")
    assert not holds(many, "surrogate above baseline")  # equal
    assert not any("do the same as" in claim for claim in many)
    [noise] = [fact for claim, fact in many.items() if "other streams" in claim]
    assert noise.chance == pytest.approx(0.05)
    assert noise.runs == 4
