"""What a baseline buys, exactly: the gradient's length and noise against the group size.

On B3 (π = (.5, .3, .2), Bernoulli means .2, .5, .8) every group that can be drawn is listed, so
nothing here is estimated.

Look for three things. A group mean shortens the gradient a little and dividing by the std lengthens
it; neither changes its direction. With two samples per prompt the leave-one-out baseline is noisier
than no baseline, because comparing with a single other sample costs more than it saves; the
crossing lies between two and three samples. And adding a constant to all rewards, which does not
change the best policy, makes plain REINFORCE tens of times noisier and leaves every centred rung
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from bandits.theory.baselines import (
    baselines,
    canonical,
    enumerated_variance,
    expected_curves,
    lowest_point,
)
from course import ladder
from course.errors import require
from course.exact import (
    every_group,
    gradient,
    group_mean_factor,
    microscope,
    pair_gradient,
    probability,
    rloo_covariance,
    rloo_crossover,
    sample_covariance,
    variance_at_baseline,
)
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "what a baseline buys: length and noise of the gradient against the group size, and the best"
    " baseline there is"
)
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """Which estimators, and how many samples they get; nothing is sampled, so there is no seed."""

    # which estimators; the critic knows J
    rungs: tuple[str, ...] = ("reinforce", "ppo_value", "group_mean", "rloo", "group_std")
    groups: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # samples per prompt
    listed: int = 5  # samples per prompt where an identity is checked group by group
    offset: float = 4.0  # added to every reward in the comparison of baselines

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.groups) > 1 and min(self.groups) >= 2,
            "groups",
            self.groups,
            "at least two group sizes, each ≥ 2",
        )
        require(
            tuple(sorted(set(self.groups))) == self.groups,
            "groups",
            self.groups,
            "group sizes in rising order",
        )
        require(
            2 <= self.listed <= 12, "listed", self.listed, "from 2 to 12: every group is listed"
        )
        require(self.offset >= 0, "offset", self.offset, "a number ≥ 0")


SETTINGS = Settings()
BASELINES = {
    "none": "none",
    "mean": "J, the mean",
    "scalar": "best constant b*",
    "coordinate": "best per logit",
}
COLOURS = {"none": "#000000", "mean": "#b8860b", "scalar": "#0057a3", "coordinate": "#00875f"}
SPAN = torch.linspace(-0.1, 1.05, 47, dtype=torch.float64)  # baselines whose variance is drawn


def run(settings: Settings, progress: Progress) -> Result:
    """Every rung at every group size, and the variance of one sample at every baseline."""
    here, there = canonical(), canonical(settings.offset)
    curves: dict[str, dict[str, list[float]]] = {}
    for name in progress(settings.rungs, "rungs"):
        seen = [microscope(ladder.get(name).estimator, here, group) for group in settings.groups]
        length = [float(one.expected.norm() / one.gradient.norm()) for one in seen]
        variance = [one.variance * group for one, group in zip(seen, settings.groups, strict=True)]
        curves[name] = {
            "length": length,
            "cosine": [one.cosine for one in seen],
            "variance": variance,
            "noise": [total / size**2 for total, size in zip(variance, length, strict=True)],
        }
    series = {
        "groups": settings.groups,
        "rungs": curves,
        "expected": expected_curves(here, settings.groups),
        "baseline": baselines(here),
        "variance": {name: enumerated_variance(here, b) for name, b in baselines(here).items()},
        "variance_shifted": {
            name: enumerated_variance(there, b) for name, b in baselines(there).items()
        },
        "parabola": {
            "b": SPAN,
            "variance": [float(variance_at_baseline(here, float(b))) for b in SPAN],
        },
        "crossover": rloo_crossover(here),
    }
    facts = [
        *_identity(settings.listed),
        *_best_baselines(settings.offset),
        *_crossover(settings.groups),
    ]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _identity(group: int) -> list[Fact]:
    """The covariance identity on every group that can be drawn."""
    outcomes = canonical()
    loo = every_group(ladder.rloo, outcomes, group)
    mean = every_group(ladder.group_mean, outcomes, group)
    drawn = loo.outcome[:, 0]
    reward, score = outcomes.total_reward[0][drawn], outcomes.total_score[0][drawn]
    average = torch.einsum("m,md->d", loo.chance, loo.gradient)
    of_all = f"largest difference of all {len(drawn)} groups of {group} on B3"
    off = {
        f"RLOO's gradient is Σ_{{i<j}} (r_i − r_j)(s_i − s_j)/(G(G−1)): {of_all}": (
            loo.gradient - pair_gradient(reward, score)
        ),
        f"RLOO's gradient is the sample covariance of reward and score: {of_all}": (
            loo.gradient - sample_covariance(reward, score)
        ),
        f"A group mean that includes the sample gives (G−1)/G of RLOO's gradient: {of_all}": (
            mean.gradient - group_mean_factor(group) * loo.gradient
        ),
        f"RLOO's gradient, averaged over them, is ∇J: largest difference, {group} samples on B3": (
            average - gradient(outcomes)
        ),
    }
    source = "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)"
    return [
        Fact.exact(claim, source, difference.abs().max(), 0.0, number=3)
        for claim, difference in off.items()
    ]


def _best_baselines(offset: float) -> list[Fact]:
    """Variances at the four baselines, by the microscope and by formula; then with every reward
    shifted.
    """
    here, there = canonical(), canonical(offset)
    p, reward = probability(here)[0], here.total_reward[0]
    square = here.total_score[0].square().sum(-1)
    greensmith = partial(Fact.exact, source="Weaver & Tao 2001; Greensmith et al. 2004", number=4)
    ours = partial(Fact.exact, source="this course", number=4)
    facts = [
        greensmith(
            "The constant baseline with the least variance on B3 is E[r‖s‖²]/E‖s‖² (from enumerated"
            " variances at three baselines)",
            measured=lowest_point(here),
            expected=(p * reward * square).sum() / (p * square).sum(),
        )
    ]
    before, after = baselines(here), baselines(there)
    for name, b in before.items():
        claim = (
            f"Variance of one sample's gradient on B3, baseline: {BASELINES[name]} (enumerated;"
            " expected: the formula)"
        )
        seen, formula = enumerated_variance(here, b), variance_at_baseline(here, b)
        facts.append(greensmith(claim, measured=seen, expected=formula))
    plain = enumerated_variance(here, before["none"])
    shifted = (p * (reward + offset) ** 2 * square).sum() - gradient(here).square().sum()
    facts.append(
        ours(
            f"Adding {offset:g} to every reward multiplies REINFORCE's variance on B3 (a ratio;"
            " expected: by the formula)",
            measured=enumerated_variance(there, after["none"]) / plain,
            expected=shifted / variance_at_baseline(here, 0.0),
        )
    )
    same = f"Adding {offset:g} to every reward leaves"
    for name in ("mean", "scalar", "coordinate"):
        change = enumerated_variance(there, after[name]) - enumerated_variance(here, before[name])
        claim = f"{same} the variance at {BASELINES[name]} as it was (difference)"
        facts.append(ours(claim, measured=change, expected=0.0))
    for name in ("rloo", "group_mean", "group_std"):
        estimator = ladder.get(name).estimator
        one, other = (microscope(estimator, listed, 4).covariance for listed in (here, there))
        assert one is not None
        assert other is not None
        claim = f"{same} {name}'s covariance on B3 as it was (G = 4, largest difference)"
        facts.append(ours(claim, measured=(one - other).abs().max(), expected=0.0))
    return facts


def _crossover(groups: tuple[int, ...]) -> list[Fact]:
    """RLOO's variance against its formula at every G, and the G at which it equals REINFORCE's."""
    outcomes = canonical()

    def listed(rung: str, group: int) -> float:
        return microscope(ladder.get(rung).estimator, outcomes, group).variance

    def formula(group: int) -> float:
        return float(rloo_covariance(outcomes, group)[0].trace())

    off = max(abs(listed("rloo", group) / formula(group) - 1) for group in groups)
    two, three, plain = 2 * listed("rloo", 2), 3 * listed("rloo", 3), 2 * listed("reinforce", 2)
    # G·Var = a + c/(G − 1) with c = 2·(two − three) and a = 2·three − two
    found = 1 + 2 * (two - three) / (plain - (2 * three - two))
    source, law = "this course", "Var = V_J/G + (σ_r² E‖s‖² + ‖∇J‖²)/(G(G−1))"
    return [
        Fact.exact(
            f"RLOO's variance on B3 is {law} (largest relative difference, G = {groups[0]} …"
            f" {groups[-1]})",
            source,
            off,
            0.0,
            number=5,
        ),
        Fact.above(
            "With 2 samples per prompt on B3, RLOO is noisier than REINFORCE without a baseline"
            " (total variance of a batch)",
            source,
            two / 2,
            plain / 2,
            number=5,
        ),
        Fact.below(
            "With 3 samples per prompt on B3, RLOO is quieter than REINFORCE",
            source,
            three / 3,
            plain / 3,
            number=5,
        ),
        Fact.exact(
            "RLOO and REINFORCE are equally noisy on B3 at G = 1 + c/(V_0 − V_J), c that numerator"
            " (from the enumerated variances at G = 2, 3)",
            source,
            found,
            rloo_crossover(outcomes)[0],
            number=5,
        ),
    ]


# ---------------------------------------------------------------- figure

CAPTION = (
    "Every group listed, nothing sampled. Diamonds and dashes: closed forms. The noise is that of"
    " gradients rescaled to the length of ∇J, since a learning rate undoes the length; so the two"
    " group means, with themselves and without, are one curve."
)


def plot(result: Result) -> Figure:
    """Length and noise against G; the variance at each baseline, before and after a shift of the
    rewards.
    """
    figure, (length, noise, parabola, shift) = figures.new_figure(2, 2, width=12.2, height=8.2)
    groups, rungs = result.array("groups"), result.settings["rungs"]
    for ax, what in ((length, "length"), (noise, "noise")):
        for name in rungs:
            figures.band(ax, groups, result.array("rungs", name, what), name=name)
        for name in rungs:
            if what in result.series["expected"].get(name, {}):
                formula = result.array("expected", name, what)
                figures.expectation(ax, formula, groups, "_closed form", marker="D")
        figures.log_axis(ax, "x", groups, base=2)
        ax.set_ylim(bottom=0)
    closed = [line for line in length.get_lines() if line.get_label() == "_closed form"]
    length.legend(closed[:1], ["closed form"], loc="lower right", frameon=False)
    samples = "samples per prompt, G"
    figures.describe(
        length, "Means shorten the gradient, the std lengthens it", samples, "‖E[ĝ]‖ / ‖∇J‖"
    )
    figures.describe(
        noise,
        "Two samples: leave-one-out is the noisier",
        samples,
        "G · variance, rescaled to ‖∇J‖",
    )
    place, level = float(result.array("crossover")[0]), float(result.array("variance", "none"))
    figures.expectation(noise, level, place, "_crossover", marker="o")
    figures.note(noise, f"equal at G = {place:.2f}", (place, level), (40, -30), line=True)
    _draw_parabola(parabola, result)
    _draw_shift(shift, result)
    for ax in (length, noise):
        figures.label_ends(ax)
    return figure


def _draw_parabola(ax: Axes, result: Result) -> None:
    figures.describe(
        ax,
        "On B3 the mean is nearly the best constant",
        "baseline b (in units of reward)",
        "variance of one sample's gradient",
    )
    figures.expectation(ax, x=result.array("parabola", "b"), y=result.array("parabola", "variance"))
    for name, shift in (("none", (10, 6)), ("mean", (-20, 50)), ("scalar", (14, -38))):
        b = float(result.array("baseline", name)[0])
        variance = float(result.array("variance", name))
        ax.plot(b, variance, "o", color=COLOURS[name], markersize=9)
        text = f"{BASELINES[name]}: b = {b:.3f}"
        joined = name != "none"
        figures.note(ax, text, (b, variance), shift, line=joined, color=COLOURS[name])
    level, colour = float(result.array("variance", "coordinate")), COLOURS["coordinate"]
    ax.axhline(level, color=colour, linewidth=1.6)
    figures.note(ax, "a constant for each logit", (-0.1, level), (0, -14), color=colour)
    ax.set_ylim(0.085, 0.34)


def _draw_shift(ax: Axes, result: Result) -> None:
    offset = result.settings["offset"]
    figures.describe(ax, f"Add {offset:g} to every reward", "", "variance of one sample's gradient")
    figures.log_axis(ax, "y")
    for place, name in enumerate(BASELINES):
        for side, key, alpha in ((-0.19, "variance", 1.0), (0.19, "variance_shifted", 0.45)):
            value = float(result.array(key, name))
            ax.bar(place + side, value, 0.36, color=COLOURS[name], alpha=alpha)
            figures.note(ax, f"{value:.3g}", (place + side, value), (0, 3), ha="center")
    labels = [text.replace(" ", "\n", 1) for text in BASELINES.values()]
    ax.set_xticks(range(len(BASELINES)), labels)
    ax.set_ylim(0.05, 60)
    text = f"left: rewards as they are, right: + {offset:g}"
    figures.note(ax, text, (0.98, 0.94), xycoords="axes fraction", ha="right")
