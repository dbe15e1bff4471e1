"""Where the formulas break: numbers that are right on paper and not in the machine.

    equal rewards      the mean of seven 0.7s in float32 is not 0.7; divided by a std of the same
    size, nothing becomes +.86
    large rewards      near 1,000 what is left of nothing is 1e-4, as large as the eps that should
    have hidden it
    one sample         a group of one has no sample std: 0/0
    leave-one-out std  leaves the one sample that matters out of its own scale: (1, 0, 0, 0) gives
    1/eps
    k3                 holds e^{log r}: where the reference is far more likely than the policy,
                       float32 overflows

Each case runs through an estimator twice: with parts written as the formula stands, defined below
in a few lines, and with the course's own. Silence is found by max = min and not by a small spread,
and a group of one is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError, require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import K3, Baseline, GroupStd, NoScale, Scale
from course.rollout import Policy, Rollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "where the formulas break in float32: equal rewards, large rewards, one sample, leave-one-out"
    " std, k3"
)
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
        require(
            self.group >= 3,
            "group",
            self.group,
            "at least 3: of two equal numbers the mean is exact",
        )
        require(math.isfinite(self.reward), "reward", self.reward, "a finite number")
        require(self.large > 1, "large", self.large, "a number > 1")
        require(
            20 < self.log_r < 700,
            "log_r",
            self.log_r,
            "a number between 20 and 700, so that float64 does not overflow",
        )
        require(self.points > 1, "points", self.points, "at least 2")


SETTINGS = Settings()


# ---------------------------------------------------------------- the formulas as they stand


@dataclass(frozen=True)
class PlainMean(Baseline):
    """mean(R), added up one after another, whatever rounding does."""

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        return (plain_sum(returns) / returns.shape[-1]).unsqueeze(-1)


@dataclass(frozen=True)
class PlainStd(Scale):
    """Divide by √(Σ(R − mean)² / (G − ddof)) + eps, however small."""

    ddof: int = 0
    eps: float = 1e-8

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        group = returns.shape[-1]
        std = (plain_sum((returns - plain_sum(returns) / group) ** 2) / (group - self.ddof)).sqrt()
        return advantage / (std + self.eps).unsqueeze(-1)


@dataclass(frozen=True)
class LeaveOneOutStd(Scale):
    """Divide by the std of the OTHERS' returns, plus eps: the scale that matches a leave-one-out
    baseline, one might think.
    """

    eps: float = 1e-6

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        group = returns.shape[-1]
        others = returns.unsqueeze(-2).expand(*returns.shape, group)[
            ..., ~torch.eye(group, dtype=torch.bool)
        ]
        std = others.unflatten(-1, (group, group - 1)).std(-1, correction=0)
        return advantage / (std + self.eps).unsqueeze(-1)


def plain_sum(values: Tensor) -> Tensor:
    """[..., G] → [..., 1], in the order of the samples, so that every machine rounds alike."""
    total = values[..., :1]
    for sample in range(1, values.shape[-1]):
        total = total + values[..., sample : sample + 1]
    return total


# ---------------------------------------------------------------- measuring


def advantages(estimator: Estimator, rewards: Tensor) -> Tensor:
    """[..., G] the advantages of one-token samples with these rewards [..., G]."""
    reward = rewards.unsqueeze(-2).unsqueeze(-1)  # [..., Q = 1, G, T = 1]
    rollout = Rollout(reward, torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool))
    return estimator.freeze(rollout).advantage[..., 0, :, 0]


def plain(eps: float | None, ddof: int = 0) -> Estimator:
    """Group mean and std as the formula stands; `eps` None: no std."""
    return replace(
        ladder.reinforce,
        baseline=PlainMean(),
        scale=NoScale() if eps is None else PlainStd(ddof=ddof, eps=eps),
    )


def ours(eps: float | None, ddof: int = 0) -> Estimator:
    """The course's own parts in their place."""
    return replace(
        ladder.group_mean, scale=NoScale() if eps is None else GroupStd(ddof=ddof, eps=eps)
    )


def penalty(kl: K3, log_r: float, dtype: torch.dtype = torch.float32) -> float:
    """What the objective loses for one sample on which the reference is e^{log_r} times as likely
    as the policy.
    """
    zero = torch.zeros(1, 1, 1, dtype=dtype)
    rollout = Rollout(zero, zero - log_r, torch.ones(1, 1, 1, dtype=torch.bool), ref_log_prob=zero)
    estimator = replace(ladder.reinforce, kl=kl)
    return -float(estimator.objective(Policy(zero - log_r), estimator.freeze(rollout)))


def equal(reward: Tensor, group: int) -> Tensor:
    """[...] → [..., G] groups of equal float32 rewards."""
    return reward.float().unsqueeze(-1).expand(*reward.shape, group)


def near(large: float) -> Tensor:
    """The rewards that are tried near a large one: 2,001 of them, from one below to one above."""
    return torch.linspace(large - 1, large + 1, 2001, dtype=torch.float64)


def largest(estimator: Estimator, groups: Tensor) -> float:
    """The largest |advantage| of any sample in groups [..., G]."""
    return float(advantages(estimator, groups).abs().max())


def run(settings: Settings, progress: Progress) -> Result:
    """Every case with the formula as it stands and with the course's parts."""
    cases = measure(settings)
    rewards = torch.linspace(0, 1, settings.points + 1, dtype=torch.float64)[1:]
    residue = {
        f"{eps:g}": advantages(plain(eps), equal(rewards, settings.group))[:, 0]
        for eps in (1e-8, 1e-6, 1e-4)
    }
    series: dict[str, Any] = {"cases": cases, "rewards": rewards, "plain": residue}
    return Result(series=series, facts=_facts(settings, cases), caption=CAPTION)


def measure(settings: Settings) -> dict[str, dict[str, Any]]:
    """Each case: |advantage| (or the penalty) by the formula as it stands, and by the course's
    parts.
    """
    same, big = (
        equal(torch.tensor([settings.reward]), settings.group),
        equal(near(settings.large), settings.group),
    )
    rare = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    one = torch.tensor([[1.0]])
    left_out = replace(ladder.rloo, scale=LeaveOneOutStd(eps=1e-6))
    group = settings.group
    return {
        "equal": _case(
            f"{group} rewards of {settings.reward:g}, eps 1e-8",
            largest(plain(1e-8), same),
            largest(ours(1e-8), same),
        ),
        "large": _case(
            f"{group} equal rewards near {settings.large:g}, no std",
            largest(plain(None), big),
            largest(ours(None), big),
        ),
        "large_std": _case(
            "the same, std with eps 1e-4", largest(plain(1e-4), big), largest(ours(1e-4), big)
        ),
        "one": _case(
            "one sample, std with ddof 1",
            largest(plain(1e-4, ddof=1), one),
            refused(ours(1e-4, ddof=1), one),
        ),
        "left_out": _case(
            "(1, 0, 0, 0), leave-one-out std, eps 1e-6",
            largest(left_out, rare),
            largest(ours(1e-6), rare),
            "the group's std",
        ),
        "k3": _case(
            f"k3 where log π_ref/π = {settings.log_r:g}",
            penalty(K3(beta=1.0), settings.log_r),
            penalty(K3(beta=1.0, max_log_r=20.0), settings.log_r),
            "log r clamped at 20",
        ),
    }


def _case(label: str, as_it_stands: float, own: float | str, how: str = "") -> dict[str, Any]:
    return {"label": label, "plain": as_it_stands, "course": own, "how": how}


def refused(estimator: Estimator, groups: Tensor) -> str:
    """ "refused" if the estimator will not take these groups, else what it makes of them."""
    try:
        return f"{largest(estimator, groups):g}"
    except CourseError:
        return "refused"


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, cases: dict[str, dict[str, Any]]) -> list[Fact]:
    known, ulp = "this course", spacing(settings.reward)
    reported = "users' reports"
    same = equal(torch.tensor([settings.reward]), settings.group)
    rows = f"{settings.group} equal rewards of {settings.reward:g} in float32"
    facts = [
        Fact.exact(
            f"{rows}, found by max = min: the advantage of every sample",
            known,
            cases["equal"]["course"],
            0.0,
            number=23,
        )
    ]
    if settings.group == 7 and settings.reward == 0.7:
        lowest = float(advantages(plain(1e-8), same).min())
        claim = (
            f"{rows}, by the formula with eps = 1e-8: the least advantage of the seven is near +.86"
        )
        facts.append(Fact.published(claim, known, lowest, 0.0, 0.86, 0.005, number=23))
        claim = (
            f"{rows}: that is u/(u + eps), the mean being one float32 step u = 2⁻²⁴ below the"
            " reward"
        )
        facts.append(
            Fact.exact(
                claim, known, cases["equal"]["plain"], ulp / (ulp + 1e-8), digits=6, number=23
            )
        )
    step = spacing(settings.large * (1 - 1e-9))
    where = (
        f"{settings.group} equal rewards near {settings.large:g} in float32, 2,001 of them tried"
    )
    left = cases["large"]["plain"]
    if settings.group == 7 and settings.large == 1000:
        claim = (
            f"{where}: r − mean(r), which should be 0, is of the order of 1e-4 (its largest, in"
            " powers of ten)"
        )
        facts.append(Fact.exact(claim, reported, round(math.log10(left)), -4, number=23))
        claim = f"{where}: the largest residue is a whole number of float32 steps, 2 of 2⁻¹⁴"
        facts.append(Fact.exact(claim, known, left / step, 2.0, number=23))
    claim = (
        f"{where}: divided by the std, an eps of 1e-4 turns the residue into this advantage,"
        " residue/(residue + eps)"
    )
    facts.append(
        Fact.exact(
            claim, known, cases["large_std"]["plain"], left / (left + 1e-4), digits=6, number=23
        )
    )
    claim = f"{where}, found by max = min: the largest advantage, with and without the std"
    facts.append(
        Fact.exact(
            claim,
            known,
            max(cases["large"]["course"], cases["large_std"]["course"]),
            0.0,
            number=23,
        )
    )
    claim = "A group of one with ddof = 1 gives NaN by the formula (a truth value)"
    facts.append(
        Fact.exact(
            claim, "users' reports (trl#5773)", math.isnan(cases["one"]["plain"]), True, number=23
        )
    )
    facts.append(
        Fact.exact(
            "A group of one is refused here, with a reason",
            known,
            cases["one"]["course"],
            "refused",
            number=23,
        )
    )
    claim = (
        "Leave-one-out baseline and leave-one-out std on (1, 0, 0, 0), eps = 1e-6: the advantage of"
        " the 1 is 1/eps"
    )
    facts.append(Fact.exact(claim, reported, cases["left_out"]["plain"], 1e6, number=23))
    claim = (
        "The group's own std on (1, 0, 0, 0), eps = 1e-6: the advantage of the 1 is .75/(√3/4 +"
        " eps), at most √(G−1)"
    )
    facts.append(
        Fact.exact(
            claim, known, cases["left_out"]["course"], 0.75 / (math.sqrt(3) / 4 + 1e-6), number=23
        )
    )
    return facts + _k3_facts(settings, cases)


def _k3_facts(settings: Settings, cases: dict[str, dict[str, Any]]) -> list[Fact]:
    """The overflow, where it begins, and what clamping leaves."""
    nats = f"log π_ref/π = {settings.log_r:g}"
    facts = []
    if settings.log_r > overflow_point():
        claim = f"k3 in float32 at {nats} is infinite (a truth value)"
        facts.append(
            Fact.exact(
                claim,
                "users' reports (trl#6550)",
                math.isinf(cases["k3"]["plain"]),
                True,
                number=23,
            )
        )
    claim = (
        "k3 overflows float32 from log π_ref/π = log of the largest float32 number (nats, found by"
        " bisection)"
    )
    facts.append(
        Fact.exact(
            claim,
            "this course",
            overflow_point(),
            math.log(torch.finfo(torch.float32).max),
            digits=6,
            number=23,
        )
    )
    claim = f"With log r clamped at 20, as verl does, k3 at {nats} is e²⁰ − 21"
    facts.append(
        Fact.exact(
            claim, "this course", cases["k3"]["course"], math.exp(20) - 21, digits=6, number=23
        )
    )
    claim = f"In float64 k3 at {nats} is e^{{log r}} − 1 − log r"
    expected = math.expm1(settings.log_r) - settings.log_r
    facts.append(
        Fact.exact(
            claim,
            "this course",
            penalty(K3(beta=1.0), settings.log_r, torch.float64),
            expected,
            number=23,
        )
    )
    return facts


def spacing(value: float) -> float:
    """The distance from a float32 number to the next one above it."""
    here = torch.tensor(value, dtype=torch.float32)
    return float(torch.nextafter(here, torch.tensor(math.inf)) - here)


def overflow_point() -> float:
    """The log ratio from which k3 in float32 is infinite, by bisection."""
    low, high = 50.0, 200.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if math.isinf(penalty(K3(beta=1.0), middle)) else (middle, high)
    return high


# ---------------------------------------------------------------- figure

CAPTION = (
    "Left: the largest |advantage| in the group (last row: the penalty), float32 but for (1, 0, 0,"
    " 0). Right: a group of equal rewards, which should get nothing, whatever the reward."
)
NOTHING, ENDLESS = 1e-7, 3e10  # where 0 and what is no finite number are drawn
BAD, GOOD = "#b8320f", "#0057a3"


def plot(result: Result) -> Figure:
    """What the formula gives in each case, beside what the course's parts give; equal rewards over
    the reward.
    """
    figure, (chart, scatter) = figures.new_figure(
        1, 2, width=14.5, height=4.9, width_ratios=(1.5, 1)
    )
    _draw_cases(chart, result)
    group = result.settings["group"]
    for (eps, values), marker, colour in zip(
        result.series["plain"].items(), "ox^", figures.shades(3), strict=True
    ):
        scatter.plot(
            result.array("rewards"),
            values,
            marker,
            color=colour,
            markersize=4,
            label=f"formula, eps = {float(eps):.0e}",
        )
    scatter.axhline(0, color=GOOD, linewidth=2.0, label="here: exactly 0")
    scatter.legend(frameon=False, loc="lower left", ncols=1)
    scatter.set_ylim(-2.2, 1.2)
    figures.describe(
        scatter, f"{group} equal rewards in float32", "the reward", "advantage of each"
    )
    return figure


def _draw_cases(ax: Axes, result: Result) -> None:
    cases = list(result.series["cases"].values())
    for row, case in enumerate(cases):
        for which, marker, colour, shift in (
            ("plain", "X", BAD, -0.14),
            ("course", "o", GOOD, 0.14),
        ):
            place, text = _place(case[which])
            text += f", {case['how']}" if which == "course" and case["how"] else ""
            ax.plot(place, row + shift, marker, color=colour, markersize=9)
            left = place > 1e7  # no room to the right
            ax.annotate(
                text,
                (place, row + shift),
                xytext=(-9 if left else 9, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=colour,
            )
    ax.plot([], [], "X", color=BAD, markersize=9, label="the formula as it stands")
    ax.plot([], [], "o", color=GOOD, markersize=9, label="here")
    ax.set_xscale("log")
    ax.set_xlim(NOTHING / 3, ENDLESS * 3)
    ticks = [1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6, 1e8]
    ax.set_xticks(
        [NOTHING, *ticks, ENDLESS],
        ["0", *(f"$10^{{{round(math.log10(tick))}}}$" for tick in ticks), "no number"],
    )
    ax.minorticks_off()
    ax.set_yticks(range(len(cases)), [case["label"] for case in cases])
    ax.set_ylim(len(cases) - 0.4, -0.6)
    ax.legend(frameon=False, loc="upper right")
    figures.describe(ax, "What a sample is credited with", "|advantage|, or penalty", "")


def _place(value: float | str) -> tuple[float, str]:
    """Where a value is drawn and what is written beside it."""
    if isinstance(value, str):
        return ENDLESS, value
    if not math.isfinite(value):
        return ENDLESS, "NaN" if math.isnan(value) else "infinite"
    if value == 0:
        return NOTHING, "0"
    return value, f"{value:.2g}" if value < 1e4 else f"{value:.1e}"
