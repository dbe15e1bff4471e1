"""What dividing by the group std optimises: prompts are weighted by their difficulty.

With rewards 0 or 1 and success probability p, the expected group-normalised gradient is exactly
w_G(p)·∇p. Look at the ends: a prompt that is almost always failed, or almost always solved, has up
to √(G−1) times the weight it has at G = 2. With many samples the objective is no longer p but
2·arcsin √p. At the same ends most groups have zero variance, with all samples right or all wrong.
Sampling again until they do not rescales the gradient but does not change its direction. The law
requires that all answers have the same weight: under 1/|o|, with answers of different lengths, the
gradient is not even parallel to ∇p.

Everything is enumerated: each marker is the estimator itself, averaged over all possible groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.exact import b3
from bandits.theory.difficulty import (
    LENGTH_MEAN,
    MANY,
    STD,
    angle,
    arcsine_gradient,
    four_answers,
    length_law,
    right_or_wrong,
    shortfall,
    silent_share,
    twins,
    weight,
)
from course import ladder
from course.errors import require
from course.estimator import replace
from course.exact import (
    every_group,
    group_mean_factor,
    group_std_weight,
    microscope,
    objective,
    silent_probability,
)
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import DropSilentGroups, GroupStd
from course.parts.baseline import silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "what the group's std does to easy and hard prompts: the weight w_G(p), silent groups, and what"
    " 1/|o| breaks"
)
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """Success probabilities, group sizes and lengths; nothing is sampled, so there is no seed."""

    # whose weight is drawn, at `group` samples
    rungs: tuple[str, ...] = ("group_mean", "rloo", "group_std")
    groups: tuple[int, ...] = (2, 4, 8, 16, 64)  # samples per prompt
    group: int = 8  # samples per prompt where one size is enough
    points: int = 25  # success probabilities, evenly from .02 to .98
    eps: float = 0.1  # a large one, to be seen: what is added to the std, in units of reward
    short: int = 2  # tokens of a short answer
    long: int = 8  # tokens of a long answer

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = min(self.groups) >= 2 and max(self.groups) <= 256
        require(sizes, "groups", self.groups, "group sizes from 2 to 256")
        require(2 <= self.group <= 32, "group", self.group, "from 2 to 32")
        self.at_least(3, "points")
        require(self.eps > 0, "eps", self.eps, "a number > 0")
        allowed = f"a length above the short one, {self.short}, up to 64"
        require(0 < self.short < self.long <= 64, "long", self.long, allowed)


SETTINGS = Settings()
NEVER = 1e-12  # a success probability that is as good as 0


def run(settings: Settings, progress: Progress) -> Result:
    """The weight over p by group size, rung, variant and length; and the silent groups."""
    p = torch.linspace(0.02, 0.98, settings.points, dtype=torch.float64)
    group, short, long = settings.group, settings.short, settings.long
    pair = [right_or_wrong(x) for x in p.tolist()]
    variants = {
        "ddof = 1": replace(STD, scale=GroupStd(ddof=1, eps=0.0)),
        f"eps = {settings.eps:g}": replace(STD, scale=GroupStd(eps=settings.eps)),
    }
    series: dict[str, Any] = {
        "p": p,
        "rungs": {
            name: [weight(ladder.get(name).estimator, one, group) for one in pair]
            for name in progress(settings.rungs, "rungs")
        },
        "weight": {
            size: [weight(STD, one, size) for one in pair]
            for size in progress(settings.groups, "group sizes")
        },
        "variants": {
            name: [weight(estimator, one, group) for one in pair]
            for name, estimator in variants.items()
        },
        "silent": {size: [silent_share(one, size) for one in pair] for size in settings.groups},
        "lengths": {
            f"right {right}, wrong {wrong}": [
                weight(LENGTH_MEAN, right_or_wrong(x, (right, wrong)), group) for x in p.tolist()
            ]
            for right in (short, long)
            for wrong in (short, long)
        },
        "angle": angle(LENGTH_MEAN, four_answers(0.5, short, long), group),
    }
    facts = [*_weights(settings, series), *_limits()]
    facts += [*_silence(settings, series), *_lengths(settings)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts

LAW = "Davis & Recht 2025 (2510.13651); Mroueh 2025 (2503.06639)"


def _worst(measured: list[float], expected: Tensor | float) -> float:
    """The largest relative difference."""
    return float((torch.tensor(measured, dtype=torch.float64) / expected - 1).abs().max())


def _weights(settings: Settings, series: dict[str, Any]) -> Facts:
    """The law at every group size, on B3, and in its variants."""
    p, group, facts = series["p"], settings.group, Facts(LAW, 12)
    for size in settings.groups:
        claim = (
            f"G = {size}: the std turns ∇p into w_G(p)·∇p, w_G = E[√(N(G−N))]/(G p(1−p)) (largest"
        )
        off = _worst(series["weight"][size], group_std_weight(p, size))
        facts.exact(f"{claim} relative difference over p)", off, 0.0)
    flat = max(abs(weight(STD, right_or_wrong(x), 2) - 1) for x in p.tolist())
    claim = "With two samples the std changes nothing: w_2(p) = 1 for every p (largest difference)"
    facts.exact(claim, flat, 0.0)
    seen = microscope(STD, b3(), 16, covariance=False)
    claim = "On B3, three arms with Bernoulli rewards, dividing by the std does not turn the"
    facts.exact(f"{claim} gradient (cosine to ∇J, G = 16)", seen.cosine, 1.0)
    claim = "On B3 dividing by the std makes the gradient w_16(.41) times as long as ∇J (G = 16, J"
    length, expected = seen.expected.norm() / seen.gradient.norm(), objective(b3())
    facts.exact(f"{claim} = .41)", length, group_std_weight(expected, 16))
    unbiased = group_std_weight(p, group) * math.sqrt((group - 1) / group)
    with_eps = group_std_weight(p, group, 0, settings.eps)
    for name, words, formula in (
        ("ddof = 1", "√((G−1)/G) times it", unbiased),
        (f"eps = {settings.eps:g}", "E[v/(√v + eps)]/(p(1−p)), v = N(G−N)/G²", with_eps),
    ):
        claim = (
            f"With {name} the weight is {words} (largest relative difference over p, G = {group})"
        )
        facts.exact(claim, _worst(series["variants"][name], formula), 0.0, source="this course")
    mean_only = [weight(ladder.group_mean, right_or_wrong(x), group) for x in p.tolist()]
    claim = "Without the std the weight is (G−1)/G, whatever p (largest relative difference, G ="
    claim = f"{claim} {group})"
    facts.exact(claim, _worst(mean_only, group_mean_factor(group)), 0.0)
    return facts


def _limits() -> Facts:
    """The ends: p → 0, and G → ∞."""
    facts, p, limit = Facts(LAW, 12), 0.3, arcsine_gradient()
    for group in (8, 64):
        claim = f"The weight of a prompt that is almost never solved is √(G−1): w_{group} at p ="
        seen = weight(STD, right_or_wrong(NEVER), group)
        facts.exact(f"{claim} {NEVER:g}", seen, math.sqrt(group - 1))
    # the next term of both limits is of the order of 1/G of what is expected, hence two digits
    gap = 1 - weight(STD, right_or_wrong(p), MANY) * math.sqrt(p * (1 - p))
    claim = f"With many samples w tends to 1/√(p(1−p)): at p = {p}, G = {MANY} it is short of it by"
    facts.exact(f"{claim} 1/(8Gp(1−p)) of it", gap, shortfall(p, MANY), 2)
    apart = microscope(STD, b3(), MANY, covariance=False).expected - limit
    claim = (
        f"With many samples E[ĝ] tends to the gradient of 2·arcsin √J: on B3 at G = {MANY} it is"
    )
    expected = shortfall(objective(b3()), MANY)
    facts.exact(f"{claim} 1/(8GJ(1−J)) away (relative)", apart.norm() / limit.norm(), expected, 2)
    return facts


def _silence(settings: Settings, series: dict[str, Any]) -> Facts:
    """How many groups are silent, and what asking again does."""
    p, group, groups = series["p"], settings.group, settings.groups
    facts = Facts("Yu et al. 2025 (DAPO, 2503.14476), eq. 11", 13)
    silent_shares = {size: p.new_tensor(series["silent"][size]) for size in groups}
    off = max(float((silent_shares[g] - silent_probability(p, g)).abs().max()) for g in groups)
    claim = "p^G + (1−p)^G of the groups give no gradient at all (largest difference over p, G ="
    facts.exact(f"{claim} {', '.join(map(str, groups))})", off, 0.0)
    claim = "At p = .1, 43 % of the groups of 8 are silent (a share)"
    facts.exact(claim, silent_share(right_or_wrong(0.1), 8), 0.9**8 + 0.1**8)
    every = every_group(STD, b3(), group)
    loud = ~silent(b3().total_reward[0][every.outcome[:, 0]])[:, 0]
    chance, gradient = every.chance[loud], every.gradient[loud]
    refilled = torch.einsum("m,md->d", chance, gradient) / chance.sum()
    plain = microscope(STD, b3(), group, covariance=False).expected
    again = "Asking again until no group is silent"
    longer = 1 / (1 - silent_probability(objective(b3()), group))
    claim = f"{again} makes E[ĝ] 1/P(not silent) times as long (B3, G = {group})"
    facts.exact(claim, refilled.norm() / plain.norm(), longer)
    cosine = torch.nn.functional.cosine_similarity(refilled, plain, 0)
    facts.exact(f"{again} does not turn E[ĝ] (cosine, B3, G = {group})", cosine, 1.0)
    share = float(silent_probability(0.1, group))
    dropped = weight(replace(STD, sample_filter=DropSilentGroups()), twins(0.1), group)
    claim = "Dropping silent groups without asking again, two prompts with p = .1: (1 − s²)/(1 − s)"
    ratio = dropped / weight(STD, twins(0.1), group)
    facts.exact(
        f"{claim} times as long, s silent (G = {group})", ratio, (1 - share**2) / (1 - share)
    )
    return facts


def _lengths(settings: Settings) -> Facts:
    """What 1/|o| does to the law."""
    group, short, long = settings.group, settings.short, settings.long
    facts = Facts("this course; the bias of 1/|o|: Liu et al. 2025 (Dr. GRPO, 2503.20783)", 12)
    for p in (0.1, 0.5):
        claim = (
            f"Under 1/|o|, right answers of {short} tokens and wrong ones of {long}: the weight is"
        )
        claim += f" w_G(p)·((1−p)/{short} + p/{long}), at p = {p}, G = {group}"
        seen = weight(LENGTH_MEAN, right_or_wrong(p, (short, long)), group)
        facts.exact(claim, seen, group_std_weight(p, group) * ((1 - p) / short + p / long))
    listed = four_answers(0.5, short, long)
    both = f"right and wrong answers of {short} and of {long} tokens"
    expected = microscope(LENGTH_MEAN, listed, group, covariance=False).expected
    claim = f"Under 1/|o|, {both}: E[ĝ] is w_G(p) Σ_a π_a (1[a right] − p) s_a/|o_a| (largest"
    off = (expected - length_law(listed, group)).abs().max()
    facts.exact(f"{claim} difference, p = .5, G = {group})", off, 0.0)
    ratio = (1 / short + 1 / long) / math.sqrt(2 * (1 / short**2 + 1 / long**2))
    formula = f"arccos of (1/{short} + 1/{long})/√(2(1/{short}² + 1/{long}²))"
    claim = f"Under 1/|o|, {both}: E[ĝ] points this many degrees away from ∇p, {formula}, p = .5"
    facts.exact(claim, angle(LENGTH_MEAN, listed, group), math.degrees(math.acos(ratio)))
    cosine = microscope(STD, listed, group, covariance=False).cosine
    facts.exact(f"Summed over tokens, {both} keep the direction of ∇p (cosine)", cosine, 1.0)
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Markers and coloured lines: the estimators themselves, averaged over every group that can be"
    " drawn. Thin dashed: the closed forms. Rewards are 0 or 1, p is the probability of a 1."
)
LENGTH_COLOURS = ("#555555", "#b8320f", "#0057a3", "#888888")


def plot(result: Result) -> Figure:
    """The weight by group size; by rung and variant; silent groups; the weight under 1/|o|."""
    figure, panels = figures.new_figure(2, 2, width=12.2, height=8.4)
    sizes, rungs, quiet, lengths = panels
    p, fine = result.array("p"), torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    group, short, long = (result.settings[name] for name in ("group", "short", "long"))
    groups = list(result.series["weight"])
    for size, colour in figures.shaded(groups):
        for ax, what, formula in (
            (sizes, "weight", group_std_weight(fine, int(size))),
            (quiet, "silent", silent_probability(fine, int(size))),
        ):
            dots = result.array(what, size)
            figures.dots_on_curve(ax, p, dots, fine, formula, colour, f"G = {size}")
    figures.expectation(sizes, group_std_weight(fine, math.inf), fine, "1/√(p(1−p))")
    for name in result.settings["rungs"]:
        figures.band(rungs, p, result.array("rungs", name), name=name)
    for name, dashes in zip(result.series["variants"], (figures.DOT, figures.DASHDOT), strict=True):
        values = result.array("variants", name)
        figures.band(rungs, p, values, label=f"std, {name}", color="#8c4a72", linestyle=dashes)
    figures.expectation(rungs, group_std_weight(fine, group), fine)
    for (name, values), colour in zip(
        result.series["lengths"].items(), LENGTH_COLOURS, strict=True
    ):
        right, wrong = (int(word.split()[1]) for word in name.split(", "))
        formula = group_std_weight(fine, group) * ((1 - fine) / right + fine / wrong)
        figures.dots_on_curve(lengths, p, values, fine, formula, colour, name)
    for ax, title, y in (
        (sizes, "Dividing by the std: hard and easy prompts weigh more", "weight w_G(p) of ∇p"),
        (rungs, f"Only the std weighs by difficulty (G = {group})", "weight of ∇p"),
        (quiet, "… and the same ends fall silent", "groups without any gradient (share)"),
        (lengths, f"Under 1/|o| length counts too (G = {group})", "weight of ∇p"),
    ):
        unit = y if ax is quiet else f"{y} in E[ĝ]"
        figures.describe(ax, title, "success probability p", unit)
        ax.set_xlim(0, 1)
        if ax is not quiet:
            ax.set_ylim(0, (1.28 if ax is lengths else 1.0) * ax.get_ylim()[1])
        figures.label_ends(ax)
    text = (
        f"right and wrong answers of {short} and {long} tokens:\nE[ĝ] is"
        f" {float(result.array('angle')):.0f}° off ∇p"
    )
    figures.note(lengths, text, (0.5, 0.97), xycoords="axes fraction", ha="center", va="top")
    return figure
