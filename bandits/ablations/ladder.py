"""The ladder on a contextual bandit: every rung with equal samples and its own best learning rate.

Eight prompts of different difficulty, ten arms each. Each rung gets the same number of samples and
four updates per rollout; its learning rate is chosen on one half of the runs and judged on the
other. Then the same runs again with every reward shifted, and with every reward scaled, at the
learning rate that was chosen before: what survives that does not need to be told the units of the
reward. What the KL term buys is its distance from the start, so that is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from bandits.theory.contextual import Contextual, pick, train
from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import described, named_interval, paired_error
from course.lab.sweep import Choice, edges
from course.lab.terminal import Progress

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = (
    "every rung from REINFORCE to GRPO at equal samples, and what happens when rewards are shifted"
    " or scaled"
)
EXPECTED_SECONDS = 30.0


@dataclass(frozen=True)
class Settings(Contextual):
    """What is run; the second part shifts all rewards, the third multiplies them."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    offset: float = 0.0  # added to every reward, always
    scale: float = 1.0  # multiplies every reward, always
    shift: float = 4.0  # added in the second part
    stretch: float = 10.0  # multiplies in the third part

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.scale, self.stretch
        require(min(both) > 0, "scale, stretch", both, "numbers > 0")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Sweep, choose, report; then the same with shifted and with scaled rewards."""
    s = settings
    judging = range(s.runs, 2 * s.runs)
    series: dict[str, dict[str, object]] = {}
    choices: dict[str, Choice] = {}
    halted = 0
    ends: dict[str, dict[str, Tensor]] = {}  # of the judging runs, by rung and part
    for name in progress(s.rungs, "rungs"):
        estimator, start = ladder.get(name).estimator, time.perf_counter()
        everyone = range(2 * s.runs)
        swept = train(estimator, s, s.learning_rates, everyone, s.offset, s.scale, progress)
        best = choices[name] = pick(swept, s)
        assert best.judged is not None
        shift, stretch = s.offset + s.shift, s.scale * s.stretch
        shifted = train(estimator, s, [best.rate], judging, shift, s.scale, progress)
        scaled = train(estimator, s, [best.rate], judging, s.offset, stretch, progress)
        curve, kl_ref = (each[:, best.index, s.runs :] for each in (swept.reward, swept.kl_ref))
        ends[name] = {
            "final": best.judged,
            "shifted": shifted.reward[-1, 0],
            "stretched": scaled.reward[-1, 0],
            "kl_ref": kl_ref[-1],
        }
        lost = swept.halted[best.index, s.runs :]
        halted += int(lost.sum())
        series[name] = {
            "samples": [step * s.group * len(s.difficulty) for step in swept.steps],
            "learning_rate": best.rate,
            **named_interval("reward", curve),
            **named_interval("sweep", swept.reward[-1, :, s.runs :]),
            "halted": lost.double().mean(),
            "seconds": time.perf_counter() - start,
        }
        for what, values in ends[name].items():
            series[name] |= named_interval(what, values)
    caption = f"{CAPTION} Each line: {described(s.runs)}. {edges(choices, s.learning_rates)}"
    shown = {"learning_rates": s.learning_rates, "rungs": series}
    return Result(series=shown, facts=_facts(s, ends, halted), caption=caption.strip())


def _facts(s: Settings, ends: Mapping[str, Mapping[str, Tensor]], halted: int) -> Facts:
    facts, shao = Facts("this course", runs=s.runs), "Shao et al. 2024 (2402.03300)"
    claim = f"No run that is reported diverged and was halted (of {s.runs * len(ends)})"
    facts.exact(claim, halted, 0)
    if s.epochs == 1 or s.offset != 0:  # what follows was said of several updates on rewards 0 to 1
        return facts

    def ahead(claim: str, better: str, worse: str, source: str = "") -> None:
        """`better` and `worse` are "rung, part"."""
        (one, part), (other, of) = better.split(", "), worse.split(", ")
        if one in ends and other in ends:
            facts.above(claim, paired_error(ends[one][part], ends[other][of]), source=source)

    claim = f"Adding {s.shift:g} to every reward costs REINFORCE part of its final reward"
    claim = f"{claim} (difference; 1 is all there is to win)"
    ahead(claim, "reinforce, final", "reinforce, shifted")
    claim = f"With rewards shifted by {s.shift:g}, subtracting the mean (baseline) ends above"
    source = "Williams 1992; Greensmith et al. 2004"
    ahead(f"{claim} REINFORCE", "baseline, shifted", "reinforce, shifted", source)
    claim = (
        f"With rewards times {s.stretch:g} and the old learning rate, the group's std ends above"
    )
    ahead(f"{claim} the group mean alone", "group_std, stretched", "group_mean, stretched", shao)
    claim = (
        "The KL term keeps GRPO nearer to where it started (KL to the reference, nats, less than"
    )
    claim = f"{claim} without the term; each at its best learning rate)"
    ahead(claim, "length_mean, kl_ref", "grpo, kl_ref", shao)
    return facts


CAPTION = (
    "Every rung at equal samples and its own best learning rate, chosen on other runs than those"
    " shown."
)
MISSING = "expected reward still missing"


def plot(result: Result) -> Figure:
    """What is missing along the way; the sweep; other units of reward; what the KL term costs."""
    figure, (curves, sweep, units, anchor) = figures.new_figure(2, 2, width=12.0, height=8.6)
    names, rates = list(result.settings["rungs"]), result.array("learning_rates")

    def of(name: str, what: str) -> NDArray[np.float64]:
        return result.array("rungs", name, what)

    for name in names:
        missing, half = 1 - of(name, "reward"), of(name, "reward_half")
        figures.band(curves, of(name, "samples"), missing, half, name)
        figures.band(sweep, rates, 1 - of(name, "sweep"), of(name, "sweep_half"), name)
    for marker, what, aside in (
        ("o", "final", -0.22),
        ("s", "shifted", 0.0),
        ("^", "stretched", 0.22),
    ):
        lost = [1 - of(name, what) for name in names]
        widths = [of(name, f"{what}_half") for name in names]
        figures.rows(units, names, lost, widths, aside=aside, marker=marker, markersize=6)
    for ax in (curves, sweep, anchor):
        figures.log_axis(ax, "y")
    figures.log_axis(units, "x")
    figures.log_axis(sweep, "x", base=2)
    end, shift, stretch = (
        f"{MISSING} at the end",
        result.settings["shift"],
        result.settings["stretch"],
    )
    _plot_anchor(anchor, result)
    title = f"●  as tuned    ■  rewards + {shift:g}    ▲  rewards × {stretch:g}"
    figures.describe(units, title, end)
    figures.describe(curves, "At its own best learning rate", "samples", MISSING, ends=True)
    title = "How much the learning rate matters"
    figures.describe(sweep, title, "learning rate", end, ends=True)
    return figure


def _plot_anchor(ax: Axes, result: Result) -> None:
    """Distance from the start against what is missing; rungs at one place share a label."""
    points: dict[tuple[float, float], list[str]] = {}
    for name in result.settings["rungs"]:
        final, half, kl, kl_half = (
            float(result.array("rungs", name, what))
            for what in ("final", "final_half", "kl_ref", "kl_ref_half")
        )
        colour = figures.style_of(name)["color"]
        ax.errorbar(kl, 1 - final, half, kl_half, "o", color=colour)
        points.setdefault((round(kl, 3), round(1 - final, 4)), []).append(name)
    for rank, (at, there) in enumerate(sorted(points.items(), key=lambda point: point[0][1])):
        # alternate, so that neighbours do not share a place
        side, align = ((7, "left"), (-7, "right"))[rank % 2]
        colour = figures.readable(figures.style_of(there[0])["color"])
        figures.note(ax, " = ".join(there), at, (side, 0), color=colour, ha=align, va="center")
    ax.margins(x=0.3, y=0.1)
    x, y = "KL to the starting policy (nats)", f"{MISSING} at the end"
    figures.describe(ax, "What the KL term costs, and buys", x, y)
