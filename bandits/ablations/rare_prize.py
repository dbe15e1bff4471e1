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

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import expected_gradient
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory.rare_prize import (
    ANCHORS,
    RARE,
    REWARDS,
    WRONG,
    Pull,
    flow,
    found_after,
    start_of,
)
from course import ladder
from course.errors import require, require_number
from course.exact import anchored_error
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import interval, mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        require_number("rate", self.rate, "a number > 0", above=0)
        require(min(self.coefs, default=0) > 0, "coefs", self.coefs, "numbers > 0")
        require(self.runs > 1, "runs", self.runs, "at least 2, for an interval")
        for name in ("updates", "most", "log_every"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number > 0")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Exact paths and sampled trainings for each anchor, and the time to the rare arm."""
    start, every = start_of(settings.half, settings.rare), range(len(ANCHORS))
    series: dict[str, Any] = {"anchors": {}, "found": {}}
    for place in progress(every, "anchors"):
        kind = ANCHORS[place]
        pull = Pull(kind, settings.coef, group=settings.group)
        path = flow(pull, start, settings.rate, settings.updates).exp()
        series["anchors"][kind] = {
            "rare": path[:, RARE],
            "silent": (path**settings.group).sum(-1),
            **sampled(settings, pull, start),
        }
    for place in progress(range(1, len(ANCHORS)), "coefficients"):
        pulls = [Pull(ANCHORS[place], coef, group=settings.group) for coef in settings.coefs]
        series["found"][ANCHORS[place]] = [
            found_after(pull, start, settings.rate, settings.most) for pull in pulls
        ]
    plain = Pull(group=settings.group)
    series["found_without"] = found_after(plain, start, settings.rate, settings.most)
    held = anchored_error(settings.coef, settings.group, 1, float(start[WRONG].exp()))
    series["silent_predicted"] = (1 - held) ** settings.group
    return Result(series=series, facts=_facts(settings, start, series, held), caption=CAPTION)


def sampled(settings: Settings, pull: Pull, start: Tensor) -> dict[str, Any]:
    """Sampled trainings by the learner: the rare arm's probability [logs, runs] and its mean."""
    policy = Softmax(start.expand(settings.runs, 1, -1))
    bandit = Bandit(
        Deterministic(torch.tensor([REWARDS], dtype=torch.float64)),
        policy,
        settings.group,
        reference="start" if pull.kind in ("k3", "k2") else None,
    )
    learner = Learner(
        bandit,
        pull.of(ladder.length_mean),
        SGD(settings.rate),
        Noise(bandit.runs, settings.seed, dtype=torch.float64),
        log_every=settings.log_every,
    )
    rows = learner.train(settings.updates).rows
    rare = torch.stack([row["optimal_action"] for row in rows])
    mean, half = interval(rare)
    return {
        "steps": learner.history.steps,
        "sampled": mean,
        "sampled_half": half,
        "found_share": (rare[-1] > 0.5).double(),
    }


def _facts(s: Settings, start: Tensor, series: dict[str, Any], held: float) -> list[Fact]:
    environment = Deterministic(torch.tensor([REWARDS], dtype=torch.float64))
    at = torch.tensor([0.2, 0.79, 0.01], dtype=torch.float64).log()
    gap = 0.0
    for kind in ANCHORS:
        for std in (True, False):
            pull = Pull(kind, s.coef, std, s.group)
            below = ladder.length_mean if std else ladder.group_mean
            reference = start if kind in ("k3", "k2") else None
            enumerated = expected_gradient(
                pull.of(below), environment, at, s.group, reference=reference
            )
            gap = max(gap, float((enumerated - pull.expected(at, start)).abs().max()))
    # the rare arm has probability 0 here, so that only the balance of the other two remains
    two = torch.tensor([held, 1 - held, 0.0], dtype=torch.float64).log()
    balance = Pull("k3", s.coef, group=s.group).expected(two.clamp(min=-700.0), start)
    found, without = series["found"], series["found_without"]
    place = min(range(len(s.coefs)), key=lambda i: abs(s.coefs[i] - s.coef))
    facts = [
        Fact.exact(
            "The closed form of the expected gradient is the estimators', with std and without,"
            " for every anchor: largest difference",
            DERIVED,
            gap,
            0.0,
            scale=1.0,
        ),
        Fact.exact(
            f"With k3 (β = {s.coef:g}) wrong answers stop getting rarer at `anchored_error`:"
            " expected gradient on their logit there",
            DERIVED,
            balance[WRONG],
            0.0,
            4,  # the estimators add eps to the std
            scale=s.coef,
        ),
        Fact.below(
            f"k3 with β = {s.coefs[place]:g} finds the rare arm in less than a third of the updates"
            " that it takes without any anchor",
            DERIVED,
            found["k3"][place],
            without / 3,
        ),
    ]
    for kind in ("k2", "entropy"):
        claim = (
            f"{kind} with the same coefficient needs more than half the updates that it takes"
            " without any anchor"
        )
        facts.append(Fact.above(claim, DERIVED, found[kind][place], without / 2))
    ends = {kind: series["anchors"][kind]["found_share"] for kind in ANCHORS}
    for kind in ("none", "k2", "entropy"):
        mean, error = mean_error(ends["k3"] - ends[kind])
        claim = (
            f"Sampled, {s.updates:,} updates: the share of runs that found the rare arm, k3 less"
            f" {kind}, is above one half"
        )
        facts.append(Fact.above(claim, "measured here", mean, 0.5, error, runs=s.runs))
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Logits of three arms under group mean, std and clip. Lines: exact, by the enumerated expected"
    " gradient; dots: means of sampled trainings with 95 % intervals."
)
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


__all__ = ["EXPECTED_SECONDS", "SETTINGS", "TITLE", "Settings", "plot", "run", "sampled"]
