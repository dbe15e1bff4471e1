"""What each surrogate does to one sample, to a rollout that is used again, and in training.

One idea in eleven forms: a sample that has moved far is felt less. The first row looks at one
token: its slope over ρ, and the ρ at which it falls silent. The second takes small steps on one
rollout of two arms (as `clip_unbounded`), then of more arms, and at last trains a shared policy
with several updates on each rollout. All arms differ in the surrogate alone. Look for

- slopes that are cut (clip, GMPO, DPPO), that fade (SAPO, VESPO), that keep a floor (CISPO, TOPR's
  taper), and the one that changes its sign: a spring;
- trust regions of a token that are none of the policy: whoever is silent is still moved by others;
- in training, how little the form of the region matters once there is one: what sets them apart is
  small beside the noise of forty paired runs, and five predictions do not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.linear import SharedTask
from bandits.theory import clip_unbounded, staleness
from bandits.theory import trust_regions as theory
from bandits.theory.clip_unbounded import Path
from bandits.theory.staleness import Rung
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.statistics import described, paired_error, paired_interval
from course.lab.sweep import edges
from course.lab.terminal import Progress
from course.parts import MirrorDescent, SecondMoment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "eleven trust regions: slopes, small steps on one rollout, and training on stale samples"
EXPECTED_SECONDS = 150.0
BARE = "surrogate"  # ρA, which has no trust region
RUNGS = (
    *(BARE, "clip", "gmpo", "dppo_tv", "dppo_kl", "m2po"),
    *("sapo", "vespo", "cispo", "tapered", "mirror_descent"),
)
MOVED = (0.1, 0.2, 0.4, 0.7, 0.9, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0)  # ρ at which slopes are compared


@dataclass(frozen=True)
class Settings(SharedTask):
    """One rollout used again and again, exactly; then a shared policy, as in `staleness`."""

    rungs: tuple[str, ...] = RUNGS  # whose surrogate and filter are compared
    beta: float = 0.3  # mirror descent's spring (the rung's .001 is far weaker than these rewards)
    share: float = 0.1  # π₁, the good arm's probability in the rollout
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # the same, where it varies
    others: tuple[int, ...] = (1, 2, 5, 9)  # arms that pay nothing, at π₁ = `share`
    counts: int = 200  # arms in the exact rollout
    length: float = 0.004  # length of each small step, in nats of the logits
    steps: int = 1250  # small steps
    epochs: tuple[int, ...] = (1, 4, 16)  # updates per rollout in training
    learning_rates: tuple[float, ...] = (4.0, 16.0, 64.0, 256.0)  # the sweep of each rung

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising("epochs", "learning_rates", "shares", "others")
        several = len(self.epochs) > 1 and self.epochs[0] == 1
        require(several, "epochs", self.epochs, "1 and then larger numbers of updates")
        require(BARE in self.rungs, "rungs", self.rungs, f"names with {BARE} among them")
        require(self.share in self.shares, "share", self.share, "one of the shares")
        require(self.others[0] == 1, "others", self.others, "1 and then larger numbers")
        require(self.beta > 0, "beta", self.beta, "a number > 0")
        require(0 < self.length <= 0.1, "length", self.length, "above 0, at most 0.1")
        self.at_least(100, "steps")

    @property
    def estimators(self) -> dict[str, Estimator]:
        """Name → the rung's surrogate and filter on one base."""
        return {name: theory.on_one_base(name, self.beta) for name in self.rungs}


SETTINGS = Settings()
WANG = "Wang et al. 2019 (1903.07940); limits derived here"
QI = "Qi et al. 2026 (DPPO, 2602.04879); derived here"
HERE = "derived here"
CAPTION = (
    "All arms: group mean, no std, Σ_t; only the surrogate (M2PO: the filter) differs. Slopes at"
    " π_old = .1, in units of A. Small steps of equal length on one rollout in exact proportion;"
    " markers measured, lines computed. Training: learning rate chosen on other runs."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Slopes and limits, which are exact; small steps; and training."""
    s, estimators = settings, settings.estimators
    ratio = torch.logspace(-1, 1, 201, dtype=torch.float64)
    old = torch.full_like(ratio, s.share)
    reach = torch.linspace(1.0, 1 / s.share - 0.05, 180, dtype=torch.float64)
    one_token = {
        n: e for n, e in estimators.items() if not isinstance(e.sample_filter, SecondMoment)
    }
    slopes = {
        side: {n: theory.slope(e.surrogate, ratio, old, a) for n, e in one_token.items()}
        for side, a in (("praised", 1.0), ("blamed", -1.0))
    }
    chances = torch.logspace(-3, -0.02, 120, dtype=torch.float64)
    bounded = {n: e for n, e in estimators.items() if theory.silent(e, s.share) is not None}
    silent = {
        n: torch.tensor([theory.silent(e, float(p)) for p in chances], dtype=torch.float64)
        for n, e in bounded.items()
        if n in one_token
    }
    steps = (s.counts, s.length, s.steps)
    paths = {
        name: clip_unbounded.small_steps(estimators[name], s.shares, *steps)
        for name in progress(s.rungs, "small steps")
    }
    crowd = {
        name: torch.stack([_after(bounded[name], s, k) for k in s.others])
        for name in progress(tuple(silent), "more arms")
    }
    found = staleness.sweep(s, estimators, s.epochs, s.learning_rates, progress)
    own, halted = staleness.choices_and_halted(found, s.epochs)
    series = {
        "ratio": ratio,
        "slopes": slopes,
        "chances": chances,
        "silent": {n: {"low": both[:, 0], "high": both[:, 1]} for n, both in silent.items()},
        "reach": reach,
        "push": {n: theory.push(e.surrogate, s.share, reach) for n, e in one_token.items()},
        "end": {name: path.after for name, path in paths.items()},
        "crowd": crowd,
        "training": {name: rung.as_series() for name, rung in found.items()},
        "gain": {name: _gain(rung, found[BARE]) for name, rung in found.items() if name != BARE},
    }
    facts = [
        *_slope_facts(s, one_token),
        *_end_facts(s, estimators, paths, crowd),
        *_training_facts(s, found),
    ]
    caption = f"{CAPTION} Bands: {described(s.runs)}. {edges(own, s.learning_rates)}".strip()
    return told(Result(series=series, facts=facts, caption=caption), halted)


def _gain(rung: Rung, bare: Rung) -> dict[str, Any]:
    """What it learns more than the bare ratio with most updates per rollout, paired by run."""
    pairs = {"fixed": (rung.kept, bare.kept), "retuned": (rung.retuned, bare.retuned)}
    gain: dict[str, Any] = {}
    for which, (own, other) in pairs.items():
        gain[which], gain[f"{which}_half"] = paired_interval(own[-1], other[-1])
    return gain


def _after(estimator: Estimator, s: Settings, others: int) -> Tensor:
    """Where ρ₁ ends at π₁ = `share` with that many other arms."""
    path = clip_unbounded.small_steps(
        estimator, (s.share,), s.counts, s.length, s.steps, others=others
    )
    return path.after[0]


# ---------------------------------------------------------------- facts


def _slope_facts(s: Settings, estimators: dict[str, Estimator]) -> Facts:
    """The slope at ρ = 1, and at which ρ each surrogate is silent."""
    facts = Facts(HERE, 10)
    one, at = torch.ones(1, dtype=torch.float64), torch.tensor([s.share], dtype=torch.float64)
    apart = max(
        abs(float(theory.slope(e.surrogate, one, at, a)) - 1)
        for e in estimators.values()
        for a in (1.0, -1.0)
    )
    claim = f"At ρ = 1 all {len(estimators)} surrogates have policy gradient's slope"
    facts.exact(f"{claim} (largest difference, both signs of A)", apart, 0.0)
    moved = torch.tensor(MOVED, dtype=torch.float64)
    for name, estimator in estimators.items():
        bounds = theory.silent(estimator, s.share)
        wrong = 0
        for advantage in (1.0, -1.0):
            old = torch.full_like(moved, s.share)
            flat = theory.slope(estimator.surrogate, moved, old, advantage) == 0
            low, high = bounds or (0.0, float("inf"))
            wrong += int((flat != (moved > high if advantage > 0 else moved < low)).sum())
        if bounds is None:
            claim = f"{name}: no ρ from {MOVED[0]:g} to {MOVED[-1]:g} silences a token"
        else:
            claim = f"{name}: a token of π_old = {s.share:g} is silent above ρ = {bounds[1]:.3g} if"
            claim += f" praised, below {bounds[0]:.3g} if blamed, and nowhere else"
        facts.exact(f"{claim} (ρ and signs of {2 * len(MOVED)} at which not)", wrong, 0)
    return facts


def _end_facts(
    s: Settings,
    estimators: dict[str, Estimator],
    paths: dict[str, Path],
    crowd: dict[str, Tensor],
) -> Facts:
    """Where small steps end: with two arms for every π₁, and with more arms."""
    facts, here = Facts(WANG, 10), s.shares.index(s.share)
    at = f"(π₁ = {s.share:g}, rewards 1 and 0)"

    def stopped(claim: str, measured: Tensor, expected: float, source: str) -> None:
        # one step of that length changes a log-probability by less than √2 times it
        near = 2**0.5 * s.length * expected
        facts.append(Fact(claim, source, measured.item(), 0.0, expected, near, number=10))

    for name, path in paths.items():
        estimator = estimators[name]
        limit = theory.end(estimator, s.share)
        source = QI if name.startswith("dppo") else WANG
        if isinstance(estimator.surrogate, MirrorDescent):
            claim = f"{name}: the springs stop small steps at ρ₁ = {limit:.3g}, β = {s.beta:g}"
            stopped(f"{claim} {at}", path.after[here], limit, HERE)
        elif theory.silent(estimator, s.share) is not None:
            claim = (
                f"{name}: small steps on one rollout take ρ₁ to {limit:.3g}, where both arms are"
            )
            stopped(f"{claim} silent {at}", path.after[here], limit, source)
            expected = theory.ends(estimator, s.shares)
            off = ((path.after / expected).log().abs() > 2**0.5 * s.length).sum()
            claim = f"{name}: the same for every π₁ from {s.shares[0]:g} to {s.shares[-1]:g}"
            facts.exact(f"{claim} (π₁ at which not)", int(off), 0, source=source)
        else:
            claim = f"{name}: never silent, so small steps take ρ₁ past .9/π₁"
            facts.above(f"{claim} {at}", path.after[here], 0.9 / s.share)
    many = s.others[-1]
    for name, ended in crowd.items():
        limit = theory.end(estimators[name], s.share, many)
        claim = f"{name}: with {many} arms that pay 0, ρ₁ ends at {limit:.3g}"
        if limit >= 1 / s.share - 1e-9:
            facts.above(f"{claim}, as without a bound: past .9/π₁ {at}", ended[-1], 0.9 / s.share)
        else:
            stopped(f"{claim} {at}", ended[-1], limit, QI if name.startswith("dppo") else WANG)
    return facts


def _training_facts(s: Settings, found: dict[str, Rung]) -> Facts:
    """Paired differences of final rewards, their directions written down before the runs."""
    facts, many = Facts(HERE, 11, runs=s.runs), f"With {s.epochs[-1]} updates per rollout"
    curves = torch.stack([found[name].every[0] for name in s.rungs])
    claim = f"With one update the {len(s.rungs)} surrogates are one curve (largest difference of a"
    facts.exact(f"{claim} run)", (curves - curves[0]).abs().max(), 0.0)
    kept = {name: rung.kept[-1] for name, rung in found.items()}
    for name in s.rungs:
        if name != BARE:
            claim = f"{many} {name} has learned more than the bare ratio"
            facts.above(claim, paired_error(kept[name], kept[BARE]))
    if "clip" in kept:
        for name in ("dppo_tv", "cispo", "tapered"):
            if name in kept:
                claim = (
                    f"{many} {name}, which silences little or no blame here, lies below the clip"
                )
                facts.below(claim, paired_error(kept[name], kept["clip"]))
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """One token above: slopes and silence; below one rollout, more arms, and training."""
    figure, panels = figures.new_figure(2, 4, width=19.0, height=9.6)
    praised, blamed, silent, push, ends, crowd, fixed, retuned = panels
    ratio, share = result.array("ratio"), result.settings["share"]
    for ax, side in ((praised, "praised"), (blamed, "blamed")):
        for name in result.series["slopes"][side]:
            figures.band(
                ax, ratio, result.array("slopes", side, name), name=name, **_look(name, result)
            )
        figures.log_axis(ax, "x", [0.1, 0.3, 1, 3, 10])
        ax.set_ylim(-0.2, 3.2)
    x, y = "ρ", "slope of a sample, in units of A"
    figures.describe(praised, "A > 0: cut, faded, kept, or a spring", x, y)
    figures.describe(blamed, "A < 0: the same for blame", x, y)
    _draw_silent(silent, result)
    for name in result.series["push"]:
        values = result.array("push", name)
        figures.band(
            push, result.array("reach"), values / values[0], name=name, **_look(name, result)
        )
    push.set_ylim(-1.2, 2.2)
    push.axhline(0, color="#888888", linewidth=0.8)
    x, y = f"ρ₁ = π(good arm)/{share:g}", "push on the good arm, 1 at ρ₁ = 1"
    figures.describe(push, "Two arms: the exact push", x, y)
    _draw_ends(ends, crowd, result)
    names, most = list(result.series["gain"]), result.settings["epochs"][-1]
    labels = [ladder.get(name).title for name in names]
    for ax, which, rate in (
        (fixed, "fixed", "rate of one"),
        (retuned, "retuned", "best rates"),
    ):
        gain, half = (
            [float(result.array("gain", name, f"{which}{end}")) for name in names]
            for end in ("", "_half")
        )
        figures.rows(ax, names, gain, half, labels=labels)
        figures.reference(ax, x=0.0, label="ρA")
        x = "final expected reward more than ρA's"
        figures.describe(ax, f"{most} updates, {rate}", x, "")
    figures.legend_above(panels[:6], 6)
    return figure


def _look(name: str, result: Result) -> dict[str, Any]:
    label = "ρA" if name == BARE else ladder.get(name).title
    if name in ("mirror_descent", "kimi"):
        label += f", β = {result.settings['beta']:g}"
    return {"label": label, "linewidth": 1.8}


def _draw_silent(ax: Axes, result: Result) -> None:
    """The ρ at which a token falls silent, over its π_old: praised above 1, blamed below."""
    chances = result.array("chances")
    for name in result.series["silent"]:
        for side, within in (("high", 1 / chances), ("low", 1e-9)):
            bound = result.array("silent", name, side)
            inside = bound < within if side == "high" else bound > within
            look = _look(name, result) | ({} if side == "high" else {"label": "_low"})
            figures.band(ax, chances, np.where(inside, bound, np.nan), name=name, **look)
    figures.expectation(ax, 1 / chances, chances)
    figures.note(ax, "π = 1", (0.03, 1 / 0.03), (4, 4))
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y", [0.1, 0.3, 1, 3, 10, 30, 100])
    ax.set_ylim(0.1, 150)
    figures.describe(ax, "Where one token falls silent", "π_old of the token", "ρ")


def _draw_ends(ends: Axes, crowd: Axes, result: Result) -> None:
    """Where ρ₁ ends: over π₁ with two arms; with more arms at one π₁."""
    s, shares = result.settings, np.asarray(result.settings["shares"])
    fine = np.geomspace(0.02, 0.95, 100)
    for name in result.series["end"]:
        estimator = theory.on_one_base(name, s["beta"])
        colour = figures.style_of(name)["color"]
        ends.plot(shares, result.array("end", name), "o", color=colour, markersize=5)
        if theory.end(estimator, s["share"]) < 1 / s["share"] - 1e-6:
            limit = theory.ends(estimator, fine.tolist()).numpy()
            figures.band(ends, fine, limit, name=name, **_look(name, result))
    figures.expectation(ends, 1 / fine, fine)
    figures.note(ends, "1/π₁: never silent", (0.06, 1 / 0.06), (6, 4))
    figures.log_axis(ends, "x", [0.02, 0.05, 0.1, 0.2, 0.5])
    figures.log_axis(ends, "y", [1, 2, 5, 10, 20, 50])
    x, y = "π₁, probability of the good arm in the rollout", "where ρ₁ ends"
    figures.describe(ends, "Two arms: only DPPO keeps its bound", x, y)
    others = np.asarray(s["others"])
    for name in result.series["crowd"]:
        values = result.array("crowd", name)
        figures.band(
            crowd, others, values, name=name, marker="o", markersize=4, **_look(name, result)
        )
    figures.expectation(crowd, float(1 / s["share"]))
    x = f"arms that pay 0 (π₁ = {s['share']:g})"
    figures.describe(crowd, "More arms: DPPO-TV is no bound", x, y, ylim=(0, 10.5), ends=True)
