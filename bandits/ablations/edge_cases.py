"""Where textbook formulas break: right on paper, wrong in floating-point arithmetic.

    equal rewards      the mean of seven 0.7s in float32 is not 0.7; divided by a std that is also
                       only rounding error, an advantage of 0 becomes +.86
    large rewards      near 1,000 the rounding error is 1e-4, as large as the eps meant to hide it
    one sample         a group of one has no sample std: 0/0
    leave-one-out std  the one sample that differs is not in its own scale: (1, 0, 0, 0) gives 1/eps
    k3                 contains e^{log r}, which overflows in float32 if the reference is far more
                       likely than the policy

Each case runs through an estimator twice: with parts written as in the textbook, and with the
course's parts. The course's parts detect zero-variance groups by max = min and not by a small
spread, and they raise an error for a group of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bandits.theory.edge_cases import (
    advantages,
    equal,
    measure,
    overflow_point,
    penalty,
    plain,
    spacing,
)
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import K3

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "where the formulas break in float32: equal or large rewards, one sample, the std, k3"
EXPECTED_SECONDS = 0.5


@dataclass(frozen=True)
class Settings(Checked):
    """The numbers of the cases; nothing is sampled, so there is no seed."""

    group: int = 7  # equal rewards in a group
    reward: float = 0.7  # each of them
    large: float = 1000.0  # rewards near it are tried, one every .001, one unit to either side
    log_r: float = 100.0  # log π_ref/π of the k3 case, in nats
    points: int = 200  # rewards from 0 to 1 in the second panel

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(3, "group")  # of two equal numbers the mean is exact
        self.at_least(2, "points")
        require(self.large > 1, "large", self.large, "a number > 1")
        allowed = "a number between 20 and 700, so that float64 does not overflow"
        require(20 < self.log_r < 700, "log_r", self.log_r, allowed)


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Every case with the formula as it stands and with the course's parts."""
    cases = measure(settings.group, settings.reward, settings.large, settings.log_r)
    rewards = torch.linspace(0, 1, settings.points + 1, dtype=torch.float64)[1:]
    residue = {
        f"{eps:g}": advantages(plain(eps), equal(rewards, settings.group))[:, 0]
        for eps in (1e-8, 1e-6, 1e-4)
    }
    series: dict[str, Any] = {"cases": cases, "rewards": rewards, "plain": residue}
    facts = [*_reward_facts(settings, cases), *_k3_facts(settings, cases)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _reward_facts(settings: Settings, cases: dict[str, dict[str, Any]]) -> Facts:
    """Rewards that are equal, large, alone, or left out of their own scale."""
    facts, reported, group = Facts("this course", 23), "users' reports", settings.group
    rows = f"{group} equal rewards of {settings.reward:g} in float32"
    where = f"{group} equal rewards near {settings.large:g} in float32, 2,001 of them tried"
    claim = f"{rows}, found by max = min: the advantage of every sample"
    facts.exact(claim, cases["equal"]["course"], 0.0)
    if group == 7 and settings.reward == 0.7:
        step, same = spacing(settings.reward), equal(torch.tensor([settings.reward]), group)
        least = float(advantages(plain(1e-8), same).min())
        claim = f"{rows}, by the formula with eps = 1e-8: the least advantage of the seven is near"
        facts.published(f"{claim} +.86", (least, 0.0), 0.86, 0.005)
        claim = f"{rows}: that is u/(u + eps), the mean being one float32 step u = 2⁻²⁴ below the"
        facts.exact(f"{claim} reward", cases["equal"]["plain"], step / (step + 1e-8), 6)
    left = cases["large"]["plain"]
    if group == 7 and settings.large == 1000:
        steps = left / spacing(settings.large * (1 - 1e-9))
        claim = f"{where}: the largest residue is a whole number of float32 steps, 2 of 2⁻¹⁴"
        facts.exact(claim, steps, 2.0, source=reported)
    claim = f"{where}: divided by the std, an eps of 1e-4 turns the residue into this advantage,"
    claim, expected = f"{claim} residue/(residue + eps)", left / (left + 1e-4)
    facts.exact(claim, cases["large_std"]["plain"], expected, 6)
    both = max(cases["large"]["course"], cases["large_std"]["course"])
    claim = f"{where}, found by max = min: the largest advantage, with and without the std"
    facts.exact(claim, both, 0.0)
    claim = "A group of one with ddof = 1 gives NaN by the formula (a truth value)"
    facts.exact(claim, math.isnan(cases["one"]["plain"]), True, source=f"{reported} (trl#5773)")
    facts.exact("A group of one is refused here, with a reason", cases["one"]["course"], "refused")
    claim = "Leave-one-out baseline and leave-one-out std on (1, 0, 0, 0), eps = 1e-6: the"
    facts.exact(
        f"{claim} advantage of the 1 is 1/eps", cases["left_out"]["plain"], 1e6, source=reported
    )
    claim = "The group's own std on (1, 0, 0, 0), eps = 1e-6: the advantage of the 1 is .75/(√3/4 +"
    expected = 0.75 / (math.sqrt(3) / 4 + 1e-6)
    facts.exact(f"{claim} eps), at most √(G−1)", cases["left_out"]["course"], expected)
    return facts


def _k3_facts(settings: Settings, cases: dict[str, dict[str, Any]]) -> Facts:
    """The overflow, where it begins, and what clamping leaves."""
    nats, start = f"log π_ref/π = {settings.log_r:g}", overflow_point()
    facts = Facts("this course", 23)
    if settings.log_r > start:
        claim, infinite = f"k3 in float32 at {nats} is infinite", math.isinf(cases["k3"]["plain"])
        source = "users' reports (trl#6550)"
        facts.exact(f"{claim} (a truth value)", infinite, True, source=source)
    claim = "k3 overflows float32 from log π_ref/π = log of the largest float32 number (nats, found"
    largest_log = math.log(torch.finfo(torch.float32).max)
    # a float32 step of log r is 8e-6 there
    facts.exact(f"{claim} by bisection)", start, largest_log, 7)
    # in float64: float32 cannot tell e²⁰ − 21 from e²⁰
    clamped = penalty(K3(beta=1.0, max_log_r=20.0), settings.log_r, torch.float64)
    claim = f"With log r clamped at 20, as verl does, k3 at {nats} is e²⁰ − 21"
    facts.exact(claim, clamped, math.exp(20) - 21, 11)
    full = penalty(K3(beta=1.0), settings.log_r, torch.float64)
    expected = math.expm1(settings.log_r) - settings.log_r
    facts.exact(f"In float64 k3 at {nats} is e^{{log r}} − 1 − log r", full, expected)
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Left: the largest |advantage| in the group (last row: the penalty), float32 but for (1, 0, 0,"
    " 0). Right: a group of equal rewards, which should get nothing, whatever the reward."
)
NOTHING, ENDLESS = 1e-7, 3e10  # where 0 and what is no finite number are drawn
BAD, GOOD = "#b8320f", "#0057a3"


def plot(result: Result) -> Figure:
    """Formula and course in each case; what the formula makes of equal rewards."""
    options: dict[str, Any] = {"width": 14.5, "height": 4.9, "width_ratios": (1.5, 1)}
    figure, (chart, scatter) = figures.new_figure(1, 2, **options)
    cases = result.series["cases"]
    labels = [case["label"] for case in cases.values()]
    for which, marker, colour, aside, words in (
        ("plain", "X", BAD, -0.14, "the formula as it stands"),
        ("course", "o", GOOD, 0.14, "here"),
    ):
        placed = [_place(case[which]) for case in cases.values()]
        look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 9}
        places = [place for place, _ in placed]
        figures.rows(chart, list(cases), places, labels=labels, aside=aside, **look)
        chart.plot([], [], marker, color=colour, markersize=9, label=words)
        for row, (case, (place, text)) in enumerate(zip(cases.values(), placed, strict=True)):
            text += f", {case['how']}" if which == "course" and case["how"] else ""
            # no room to the right of the largest
            shift, side = (-9, "right") if place > 1e7 else (9, "left")
            at = (place, row + aside)
            figures.note(chart, text, at, (shift, 0), ha=side, va="center", color=colour)
    ticks = [1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6, 1e8]
    powers = [f"$10^{{{round(math.log10(tick))}}}$" for tick in ticks]
    figures.log_axis(chart, "x", [NOTHING, *ticks, ENDLESS], ["0", *powers, "no number"])
    title, span = "What a sample is credited with", (NOTHING / 3, ENDLESS * 3)
    figures.describe(chart, title, "|advantage|, or penalty", xlim=span, legend="upper right")
    for (eps, colour), marker in zip(
        figures.shaded(list(result.series["plain"])), "ox^", strict=True
    ):
        look = {"color": colour, "markersize": 4, "label": f"formula, eps = {float(eps):.0e}"}
        scatter.plot(result.array("rewards"), result.array("plain", eps), marker, **look)
    scatter.axhline(0, color=GOOD, linewidth=2.0, label="here: exactly 0")
    title, corner = f"{result.settings['group']} equal rewards in float32", "lower left"
    y = "advantage of each"
    figures.describe(scatter, title, "the reward", y, ylim=(-2.2, 1.2), legend=corner)
    return figure


def _place(value: float | str) -> tuple[float, str]:
    """Where a value is drawn and what is written beside it."""
    if isinstance(value, str):
        return ENDLESS, value
    if not math.isfinite(value):
        return ENDLESS, "NaN" if math.isnan(value) else "infinite"
    if value == 0:
        return NOTHING, "0"
    return value, f"{value:.2g}" if value < 1e4 else f"{value:.1e}"
