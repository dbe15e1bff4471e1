"""Runs that diverged, and rungs whose numbers are none, are no result, and the result says so."""

from __future__ import annotations

import math

import pytest
import torch

from course.lab.diverged import told, without_numbers
from course.lab.facts import Fact
from course.lab.result import Result


def test_a_result_of_runs_that_diverged_says_so_and_does_not_hold() -> None:
    fact = Fact.exact("one is one", "arithmetic", 1, 1)
    result = Result(name="r", title="t", facts=[fact], caption="Before.")
    fine, some, every = (torch.tensor(each) for each in ([False] * 3, [False, True, True], [True]))
    assert told(result, {"clip": fine}) is result
    found = told(result, {"clip": fine, "grpo": some, "mine": every})
    assert found.caption == (
        "Before. Diverged and were halted: grpo 2 of 3; mine 1 of 1, so no result."
    )
    assert [each.holds for each in found.facts] == [True, False]
    assert found.facts[1].measured == 3


@pytest.mark.parametrize(
    "lost", [{"bias": math.nan}, {"curve": [math.nan] * 2}, {"on": {"a": [[math.nan], [math.nan]]}}]
)
def test_a_rung_that_is_nan_throughout_is_no_result(lost: dict[str, object]) -> None:
    result = Result(series={"rungs": {"clip": {"bias": 0.1}, "mine": {"rate": 1.0, **lost}}})
    found = without_numbers(result, ("clip", "mine"))
    assert found.caption == "NaN, so no result: mine."
    assert [(fact.measured, fact.holds) for fact in found.facts] == [(1, False)]


def test_an_interval_of_one_run_and_a_value_missing_at_first_are_no_fault() -> None:
    series = {"clip": {"mean": 0.5, "mean_half": math.nan, "curve": [math.nan, 1.0]}}
    result = Result(series={"rungs": series, "plain": math.nan})
    assert without_numbers(result, ("clip",)) is result
