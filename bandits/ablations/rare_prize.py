"""Why reinforcement learning from random weights needs a KL: one arm pays half, a rare one all.

Three arms: wrong answers pay 0, an answer whose digits are right but that never ends pays ½, and
the rare arm, which also ends, pays 1½. A group's std makes the half-paying arm certain within a few
hundred updates. Then nearly every group is silent, and the rare arm has become rarer.

What to look for:

    the KL of GRPO (k3) pulls a rare arm up with β·ref, however rare it is. The entropy bonus and
      the reverse KL (k2) pull with β·π ln(1/π), which dies with the arm
    so k3 keeps groups of which some sample differs: the level is predicted by `anchored_error`
    how much of each it takes: β = .04 finds the rare arm sooner than a five times larger k2

Lines are exact: logits follow the enumerated expected gradient. Dots are sampled trainings by the
learner. `python -m tinylm zero` is the same on a transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bandits.theory import rare_prize as theory
from bandits.theory.rare_prize import ANCHORS, RARE, WRONG, Pull, found_after, start_of
from course.errors import require
from course.exact import anchored_error
from course.lab import figures
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, named_interval
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TITLE = "one arm pays half, a rare one all: which KL, or entropy bonus, keeps the rare one findable"
EXPECTED_SECONDS = 40.0
DERIVED = "derived, and enumerated here"


@dataclass(frozen=True)
class Settings(Checked):
    """The start, the anchors, and how long they are followed."""

    half: float = 0.1  # probability of the half-paying arm at the start
    rare: float = 1e-3  # probability of the arm that pays all
    group: int = 16  # samples per update
    rate: float = 1.0  # step size of the logits
    coef: float = 0.04  # β of k3 and k2, and the coefficient of the entropy bonus
    # coefficients whose time to the rare arm is followed
    coefs: tuple[float, ...] = (0.004, 0.01, 0.02, 0.04, 0.1, 0.2)
    updates: int = 2000  # updates that are drawn, and sampled
    most: int = 10_000  # updates after which the search for the rare arm ends
    runs: int = 100  # sampled trainings for each anchor
    log_every: int = 100  # updates between two dots
    seed: int = 0  # of the first run's random numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        start_of(self.half, self.rare)
        Pull("k3", self.coef, group=self.group)
        require(min(self.coefs, default=0) > 0, "coefs", self.coefs, "numbers > 0")
        self.at_least(2, "runs")  # for an interval


SETTINGS = Settings()
CAPTION = (
    "Logits of three arms under group mean, std and clip. Lines: exact, by the enumerated expected"
    " gradient; dots: means of sampled trainings with 95 % intervals."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Exact paths and sampled trainings for each anchor, and the time to the rare arm."""
    s, start, group = settings, start_of(settings.half, settings.rare), settings.group
    series: dict[str, Any] = {"anchors": {}, "found": {}}
    for kind in progress(ANCHORS, "anchors"):
        pull = Pull(kind, s.coef, group=group)
        path = theory.flow(pull, start, s.rate, s.updates).exp()
        how = {name: getattr(s, name) for name in ("rate", "updates", "runs", "log_every", "seed")}
        steps, rare = theory.sampled(pull, start, **how)
        series["anchors"][kind] = {
            "rare": path[:, RARE],
            "silent": (path**group).sum(-1),
            "steps": steps,
            **named_interval("sampled", rare),
            "found_share": (rare[-1] > 0.5).double(),
        }
    for kind in progress(ANCHORS[1:], "coefficients"):
        pulls = [Pull(kind, coef, group=group) for coef in s.coefs]
        series["found"][kind] = [found_after(pull, start, s.rate, s.most) for pull in pulls]
    series["found_without"] = found_after(Pull(group=group), start, s.rate, s.most)
    held = anchored_error(s.coef, group, 1, float(start[WRONG].exp()))
    series["silent_predicted"] = (1 - held) ** group
    return Result(series=series, facts=_facts(s, start, series, held), caption=CAPTION)


# ---------------------------------------------------------------- facts


def _facts(s: Settings, start: Tensor, series: dict[str, Any], held: float) -> list[Fact]:
    """The closed form and the balance with k3; the updates to the rare arm, exact and sampled."""
    facts, seen = Facts(DERIVED), Facts("measured here", runs=s.runs)
    claim = "The closed form of the expected gradient is the estimators', with std and without,"
    gap = theory.closed_form_gap(s.coef, s.group, start)
    facts.exact(f"{claim} for every anchor: largest difference", gap, 0.0)
    drift = theory.balance(s.coef, s.group, start, held)
    claim = f"With k3 (β = {s.coef:g}) wrong answers stop getting rarer at `anchored_error`:"
    # four digits: the estimators add eps to the std
    facts.exact(f"{claim} expected gradient on their logit there", drift, 0.0, 4, scale=s.coef)
    found, without = series["found"], series["found_without"]
    place = min(range(len(s.coefs)), key=lambda i: abs(s.coefs[i] - s.coef))
    claim = f"k3 with β = {s.coefs[place]:g} finds the rare arm in less than a third of the updates"
    claim = f"{claim} that it takes without any anchor"
    facts.below(claim, found["k3"][place], without / 3)
    for kind in ("k2", "entropy"):
        claim = f"{kind} with the same coefficient needs more than half the updates that it takes"
        facts.above(f"{claim} without any anchor", found[kind][place], without / 2)
    ends = {kind: row["found_share"] for kind, row in series["anchors"].items()}
    for kind in ("none", "k2", "entropy"):
        claim = f"Sampled, {s.updates:,} updates: the share of runs that found the rare arm, k3"
        more = mean_error(ends["k3"] - ends[kind])
        seen.above(f"{claim} less {kind}, is above one half", more, 0.5)
    return [*facts, *seen]


# ---------------------------------------------------------------- figure

LABELS = {"none": "no anchor", "k3": "k3, GRPO's KL", "k2": "k2, reverse KL", "entropy": "entropy"}
STYLES = {
    "none": figures.style_of("length_mean"),
    "k3": figures.style_of("grpo"),
    "k2": {"color": "#00875f", "linestyle": figures.DASHDOT},
    "entropy": {"color": "#0057a3", "linestyle": figures.DASH},
}


def plot(result: Result) -> Figure:
    """The rare arm and the silent groups along the way; the time to the rare arm."""
    figure, (rare, silent, found) = figures.new_figure(1, 3, width=16.0, height=4.6)
    for kind, style in STYLES.items():
        exact = result.array("anchors", kind, "rare")
        rare.plot(exact, label=LABELS[kind], **style)
        steps = result.array("anchors", kind, "steps")
        mean, half = (result.array("anchors", kind, f"sampled{end}") for end in ("", "_half"))
        figures.points(rare, steps, mean, half, color=style["color"], markersize=3)
        silent.plot(result.array("anchors", kind, "silent"), label=LABELS[kind], **style)
    coef = f"coefficient {result.settings['coef']:g}"
    figures.describe(rare, "Only k3 keeps it findable", f"updates, {coef}", "π(rare arm)")
    figures.expectation(silent, float(result.array("silent_predicted")), label="k3, predicted")
    figures.describe(silent, "… because groups still differ", "updates", "silent groups (share)")
    coefs = result.settings["coefs"]
    for kind in ("k3", "k2", "entropy"):
        updates = result.array("found", kind)
        found.plot(coefs, updates, marker="o", label=LABELS[kind], **STYLES[kind])
    without = float(result.array("found_without"))
    if math.isfinite(without):
        figures.reference(found, y=without, label="no anchor")
    figures.describe(found, "How much of each it takes", "coefficient", "updates to π(rare) = ½")
    figures.log_axis(found, "x", coefs)
    figures.log_axis(found, "y", (300, 1000, 3000))
    for ax in (rare, silent, found):
        figures.label_ends(ax)
    return figure
