"""A rate is chosen on some runs and judged on others, and one at the end of the sweep is named."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from course.errors import CourseError
from course.lab.sweep import choose, edges, finished, sweep

RATES = (0.1, 0.2, 0.4)


def test_the_best_mean_is_chosen_and_other_runs_judge_it() -> None:
    tuning = torch.tensor([[0.0, 1.0], [2.0, 3.0], [9.0, -9.0]])
    judged = torch.tensor([[7.0], [5.0], [6.0]])
    choice = choose(tuning, RATES, judged)
    assert (choice.rate, choice.index, choice.interior) == (0.2, 1, True)
    assert choice.judged is not None
    assert choice.judged.tolist() == [5.0]  # not 7, which the judges would have chosen


def test_a_best_rate_at_an_end_is_no_summit_and_the_caption_names_it() -> None:
    rising = torch.tensor([[0.0], [1.0], [2.0]])
    choices = {"a": choose(rising, RATES), "b": choose(-rising, RATES)}
    assert [choice.interior for choice in choices.values()] == [False, False]
    assert "a (0.4), b (0.1)" in edges(choices, RATES)
    summit = choose(torch.tensor([[0.0], [1.0], [0.0]]), RATES)
    assert edges({"a": summit}, RATES) == ""
    assert "none was swept" in edges({"a": choose(torch.ones(1, 2), (0.1,))}, (0.1,))


def test_a_rate_at_which_a_run_diverged_is_not_chosen() -> None:
    values = torch.tensor([[0.0, 0.0], [9.0, math.nan], [1.0, 1.0]])
    assert choose(values, RATES).rate == 0.4
    with pytest.raises(CourseError, match="diverged"):
        choose(values * math.nan, RATES)


@pytest.mark.parametrize("rates", [(0.1, 0.2), (0.1, 0.1, 0.2), (0.4, 0.2, 0.1)])
def test_rates_that_do_not_fit_are_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(CourseError, match="rates"):
        choose(torch.zeros(3, 2), rates)


def test_luck_that_chooses_does_not_judge() -> None:
    """Ten rates that do not matter: the best looks better on its own runs, not on others."""
    rates = [float(rate) for rate in range(1, 11)]

    def train(rates: Sequence[float], numbers: range) -> Tensor:
        streams = [torch.Generator().manual_seed(number) for number in numbers]
        return torch.stack(
            [torch.randn(10, generator=stream)[: len(rates)] for stream in streams], dim=1
        )

    lucky, fair = [], []
    for block in range(0, 4000, 8):
        found = sweep(
            train,
            lambda values: values,
            rates,
            range(block, block + 4),
            range(block + 4, block + 8),
        )
        assert found.tried is not None
        lucky.append(float(found.tried[found.choice.index].mean()))
        fair.append(float(found.judged.mean()))
        assert found.judged.shape == (1, 4)
    # the largest of ten N(0, 1) has mean 1.5388; means of four have half the spread
    assert torch.tensor(lucky).mean() == pytest.approx(1.5388 / 2, abs=0.07)
    assert torch.tensor(fair).mean() == pytest.approx(0.0, abs=0.1)


def test_no_run_both_chooses_and_judges() -> None:
    with pytest.raises(CourseError, match="judging"):
        sweep(
            lambda rates, numbers: torch.zeros(len(rates), len(numbers)),
            lambda values: values,
            RATES,
            range(3),
            range(2, 5),
        )


def test_one_rate_is_not_swept() -> None:
    seen: list[range] = []

    def train(rates: Sequence[float], numbers: range) -> Tensor:
        seen.append(numbers)
        return torch.zeros(len(rates), len(numbers))

    found = sweep(train, lambda values: values, (0.1,), range(2), range(2, 5))
    assert seen == [range(2, 5)]
    assert found.tried is None
    assert (found.choice.rate, found.choice.interior) == (0.1, False)


def test_a_rate_at_which_a_run_diverged_is_chosen_only_where_none_is_without() -> None:
    values = torch.tensor([[0.1, 0.2], [0.9, 0.8]])
    second = torch.tensor([[False, False], [False, True]])
    assert choose(finished(values, second), (1.0, 2.0)).rate == 1.0
    both = torch.tensor([[True, False], [False, True]])
    assert choose(finished(values, both), (1.0, 2.0)).rate == 2.0


@pytest.mark.parametrize(
    ("best", "wider", "tried", "interior"),
    [
        (0.05, 3, [0.025, 0.05, 0.1, 0.2, 0.4], True),
        (0.2, 3, [0.1, 0.2, 0.4], True),
        (1.6, 2, [0.1, 0.2, 0.4, 0.8, 1.6], False),
        (1.6, 0, [0.1, 0.2, 0.4], False),
    ],
)
def test_a_sweep_whose_best_rate_is_at_an_end_goes_on_beyond_it(
    best: float, wider: int, tried: list[float], interior: bool
) -> None:
    """The value falls with the distance from `best`, in logarithms."""
    asked: list[float] = []

    def train(rates: Sequence[float], runs: range) -> Tensor:
        if runs == range(2):
            asked.extend(rates)
        at = torch.tensor(list(rates), dtype=torch.float64)
        return -(at / best).log().abs().unsqueeze(-1).expand(-1, len(runs))

    found = sweep(train, lambda values: values, (0.1, 0.2, 0.4), range(2), range(2, 5), wider)
    assert sorted(asked) == list(found.values) == pytest.approx(tried)
    assert found.choice.interior is interior
    assert found.choice.rate == pytest.approx(min(best, tried[-1]))
    assert found.judged.shape == (1, 3)
