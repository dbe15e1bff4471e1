"""Settings are refused when they are made, in the same words everywhere."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from course.errors import CourseError
from course.lab.ablation import discover
from course.lab.settings import LARGEST_SEED, Checked, check, read


@dataclass(frozen=True)
class Everything(Checked):
    """One field of each kind."""

    runs: int = 10  # independent runs
    # rises at first
    lr_warmup: int = 0
    learning_rate: float = 0.1
    offset: float = -1.0
    deep: bool = False
    word: str = "a"
    rates: tuple[float, ...] = (0.1, 0.4)
    pair: tuple[int, str] = (1, "a")
    limit: int | None = None
    maybe: bool | None = None
    rule: Literal["mean", "none"] = "mean"
    rungs: tuple[str, ...] = ("clip", "grpo")
    table: dict[str, int] | None = None
    seed: int = 0


WRONG: list[tuple[str, Any, str]] = [
    ("runs", 0, "runs: got 0; allowed is a whole number ≥ 1"),
    ("runs", 2.5, "runs: got 2.5; allowed is a whole number ≥ 1"),
    ("runs", True, "runs: got True"),
    ("runs", "3", "runs: got '3'"),
    ("runs", None, "runs: got None"),
    ("lr_warmup", -1, "lr_warmup: got -1; allowed is a whole number ≥ 0"),
    ("learning_rate", 0.0, "learning_rate: got 0.0; allowed is a finite number > 0"),
    ("learning_rate", math.inf, "learning_rate: got inf"),
    ("offset", math.nan, "offset: got nan; allowed is a finite number"),
    ("offset", -math.inf, "offset: got -inf"),
    ("deep", 1, "deep: got 1; allowed is True or False"),
    ("word", "", "word: got ''; allowed is a text"),
    ("rates", (), r"rates: got \(\); allowed is at least one value"),
    ("rates", 0.1, "rates: got 0.1"),
    ("rates", [0.1], r"rates: got \[0.1\]"),
    ("rates", (0.1, -0.4), "rates: got -0.4; allowed is a finite number > 0"),
    ("pair", (1,), r"pair: got \(1,\); allowed is 2 values"),
    ("pair", (1, 2), "pair: got 2; allowed is a text"),
    ("limit", 0, "limit: got 0"),
    ("rule", "median", "rule: got 'median'; allowed is one of mean, none"),
    ("rungs", ("grop",), r"^rungs: got unknown rung 'grop': did you mean 'grpo'\?"),
    ("seed", -1, "seed: got -1; allowed is a whole number from 0 to 4294967295"),
    ("seed", LARGEST_SEED + 1, "seed: got 4294967296"),
]


@pytest.mark.parametrize(("field", "value", "says"), WRONG)
def test_a_wrong_setting_is_refused_when_it_is_made(field: str, value: Any, says: str) -> None:
    with pytest.raises(CourseError, match=says) as caught:
        Everything(**{field: value})
    assert "\n" not in str(caught.value)


def test_what_the_types_and_names_allow_is_taken() -> None:
    made = Everything(learning_rate=1, offset=-3, limit=2, rule="none", table={}, seed=LARGEST_SEED)
    assert made.limit == 2


ABLATIONS = {
    f"{package}: {name}": module
    for package in ("bandits", "tinylm")
    for name, module in discover(f"{package}.ablations").items()
}
BROKEN = {int: 2.5, float: math.nan, str: "", bool: "yes", type(None): math.nan}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_setting_of_every_ablation_is_checked(name: str) -> None:
    """A seed of -1, half a run, a rate that is no number, an empty list: of each field by its
    default's type.
    """
    settings = ABLATIONS[name].SETTINGS
    check(settings)
    for field in dataclasses.fields(settings):
        default = getattr(settings, field.name)
        wrong = () if isinstance(default, tuple) else BROKEN[type(default)]
        bad = object.__new__(type(settings))
        for other in dataclasses.fields(settings):
            object.__setattr__(bad, other.name, getattr(settings, other.name))
        object.__setattr__(bad, field.name, wrong)
        with pytest.raises(CourseError, match=field.name):
            check(bad)
        with pytest.raises(CourseError, match=field.name):
            dataclasses.replace(settings, **{field.name: wrong})
    if hasattr(settings, "seed"):
        with pytest.raises(CourseError, match="seed: got -1"):
            dataclasses.replace(settings, seed=-1)


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        ("--runs 2_000", "runs", 2000),
        ("--runs=1e3", "runs", 1000),
        ("--learning-rate 1e-3", "learning_rate", 0.001),
        ("--offset -.5", "offset", -0.5),
        ("--deep", "deep", True),
        ("--rates 1,2.5", "rates", (1.0, 2.5)),
        ("--rates 1 2.5", "rates", (1.0, 2.5)),
        ("--pair 3,b", "pair", (3, "b")),
        ("--limit none", "limit", None),
        ("--limit 7", "limit", 7),
        ("--rule none", "rule", "none"),
        ("--maybe", "maybe", True),
        ("--maybe false", "maybe", False),
        ("--maybe none", "maybe", None),
    ],
)
def test_settings_are_options_read_by_type(argv: str, field: str, value: object) -> None:
    found = getattr(read(Everything, argv.split(), "x"), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--run 3", "unknown option '--run': did you mean '--runs'?"),
        ("--runs many", "--runs: got 'many'; allowed is a whole number"),
        ("--runs 0", "--runs: got 0; allowed is a whole number ≥ 1"),
        ("--learning-rate inf", "--learning-rate: got inf; allowed is a finite number > 0"),
        ("--rates 1,x", "--rates: got 'x'; allowed is a number"),
        ("--pair 1", "--pair: got '1'; allowed is 2 values"),
        ("--rule median", "invalid choice 'median' for argument '--rule'"),
        ("--set runs=3", "--set: got 'runs=3'; allowed is --runs 3"),
    ],
)
def test_what_is_wrong_names_the_option(argv: str, says: str) -> None:
    with pytest.raises(CourseError) as caught:
        read(Everything, argv.split(), "x")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
