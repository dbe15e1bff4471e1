"""What dividing by the group std optimises: prompts are weighted by their difficulty.

With rewards 0 or 1 and success probability p, the expected group-normalised gradient is exactly
w_G(p)·∇p. Look at the ends: a prompt that is almost always failed, or almost always solved, has up
to √(G−1) times the weight it has at G = 2. With many samples the exact.objective is no longer p but
2·arcsin √p. At the same ends most groups have zero variance, with all samples right or all wrong.
Sampling again until they do not makes the gradient longer and does not turn it. The law requires
that all answers have the same weight: under 1/|o| the gradient is not even parallel to ∇p.

Everything is enumerated: each marker is the estimator itself, averaged over all possible groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.exact import b3
from bandits.theory import difficulty as theory
from bandits.theory.difficulty import LENGTH_MEAN, MANY, STD, right_or_wrong, weight, weights
from course import exact, ladder
from course.errors import require
from course.estimator import replace
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import DropSilentGroups, GroupStd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "how the group's std weighs easy and hard prompts: w_G(p), silent groups, and 1/|o|"
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
LAW = "Davis & Recht 2025 (2510.13651); Mroueh 2025 (2503.06639)"
DAPO = "Yu et al. 2025 (DAPO, 2503.14476), eq. 11"
LENGTHS = "this course; the bias of 1/|o|: Liu et al. 2025 (Dr. GRPO, 2503.20783)"
LENGTH_COLOURS = ("#555555", "#b8320f", "#0057a3", "#888888")
CAPTION = (
    "Markers and coloured lines: the estimators themselves, averaged over every group that can be"
    " drawn. Thin dashed: the closed forms. Rewards are 0 or 1, p is the probability of a 1."
)


def run(settings: Settings, progress: Progress) -> Result:
    """The weight over p by group size, rung, variant and length; and the silent groups."""
    p = torch.linspace(0.02, 0.98, settings.points, dtype=torch.float64)
    group, pairs = settings.group, theory.length_pairs(settings.short, settings.long)
    rungs, sizes = progress(settings.rungs, "rungs"), progress(settings.groups, "group sizes")
    eps, four = settings.eps, theory.four_answers(0.5, settings.short, settings.long)
    series: dict[str, Any] = {
        "p": p,
        "rungs": {name: weights(ladder.get(name).estimator, p, group) for name in rungs},
        "weight": {size: weights(STD, p, size) for size in sizes},
        "variants": {
            "ddof = 1": weights(replace(STD, scale=GroupStd(ddof=1, eps=0.0)), p, group),
            f"eps = {eps:g}": weights(replace(STD, scale=GroupStd(eps=eps)), p, group),
        },
        "silent": {size: theory.silent_shares(p, size) for size in settings.groups},
        "lengths": {_answers(*pair): weights(LENGTH_MEAN, p, group, pair) for pair in pairs},
        "angle": theory.angle(LENGTH_MEAN, four, group),
    }
    facts = [*_weights(settings, series), *_limits()]
    facts += [*_silence(settings, series), *_lengths(settings, series)]
    return Result(series=series, facts=facts, caption=CAPTION)


def _answers(right: int, wrong: int) -> str:
    """The name of a pair of lengths."""
    return f"right {right}, wrong {wrong}"


# ---------------------------------------------------------------- facts


def _worst(measured: Tensor, expected: Tensor | float) -> float:
    """The largest relative difference."""
    return float((measured / expected - 1).abs().max())


def _weights(settings: Settings, series: dict[str, Any]) -> Facts:
    """The law at every group size, on B3, and in its variants."""
    p, group, facts = series["p"], settings.group, Facts(LAW, 12)
    off = max(_worst(series["weight"][g], exact.group_std_weight(p, g)) for g in settings.groups)
    claim = "The std turns ∇p into w_G(p)·∇p, w_G = E[√(N(G−N))]/(G p(1−p)) (largest relative"
    facts.exact(f"{claim} difference over p and G)", off, 0.0)
    claim = "With two samples the std changes nothing: w_2(p) = 1 for every p (largest difference)"
    facts.exact(claim, _worst(weights(STD, p, 2), 1.0), 0.0)
    seen = exact.microscope(STD, b3(), 16, covariance=False)
    whole = float(exact.group_std_weight(exact.objective(b3()), 16)) * seen.gradient
    claim = "On B3, three arms with Bernoulli rewards, E[ĝ] is w_16(J)·∇J (relative distance)"
    facts.exact(claim, exact.relative_distance(seen.expected, whole), 0.0)
    end = f"(largest relative difference over p, G = {group})"
    unbiased = exact.group_std_weight(p, group) * math.sqrt((group - 1) / group)
    with_eps = exact.group_std_weight(p, group, 0, settings.eps)
    for name, words, formula in (
        ("ddof = 1", "√((G−1)/G) times it", unbiased),
        (f"eps = {settings.eps:g}", "E[v/(√v + eps)]/(p(1−p)), v = N(G−N)/G²", with_eps),
    ):
        off, claim = _worst(series["variants"][name], formula), f"With {name} the weight is {words}"
        facts.exact(f"{claim} {end}", off, 0.0, source="this course")
    off = _worst(weights(ladder.group_mean, p, group), exact.group_mean_factor(group))
    facts.exact(f"Without the std the weight is (G−1)/G, whatever p {end}", off, 0.0)
    return facts


def _limits() -> Facts:
    """The ends: p → 0, and G → ∞."""
    facts, limit = Facts(LAW, 12), theory.arcsine_gradient()
    for group in (8, 64):
        claim = f"The weight of a prompt that is almost never solved is √(G−1): w_{group} at p ="
        seen = weight(STD, right_or_wrong(NEVER), group)
        facts.exact(f"{claim} {NEVER:g}", seen, math.sqrt(group - 1))
    # the next term is of the order of 1/G of what is expected, hence two digits
    apart = exact.microscope(STD, b3(), MANY, covariance=False).expected - limit
    off, expected = apart.norm() / limit.norm(), theory.shortfall(exact.objective(b3()), MANY)
    claim = f"With many samples E[ĝ] tends to the gradient of 2·arcsin √J: on B3 at G = {MANY} it"
    facts.exact(f"{claim} is 1/(8GJ(1−J)) away (relative)", off, expected, 2)
    return facts


def _silence(settings: Settings, series: dict[str, Any]) -> Facts:
    """How many groups are silent, and what asking again does."""
    p, group, facts = series["p"], settings.group, Facts(DAPO, 13)
    shares = series["silent"].items()
    off = max(float((each - exact.silent_probability(p, g)).abs().max()) for g, each in shares)
    claim = "p^G + (1−p)^G of the groups give no gradient at all (largest difference over p and G)"
    facts.exact(claim, off, 0.0)
    plain = exact.microscope(STD, b3(), group, covariance=False).expected
    longer = plain / (1 - exact.silent_probability(exact.objective(b3()), group))
    claim = "Asking again until no group is silent makes E[ĝ] 1/P(not silent) times as long, and"
    off = exact.relative_distance(theory.asked_again(b3(), group), longer)
    facts.exact(f"{claim} does not turn it (B3, G = {group}: relative distance)", off, 0.0)
    share, twins = float(exact.silent_probability(0.1, group)), theory.twins(0.1)
    dropped = weight(replace(STD, sample_filter=DropSilentGroups()), twins, group)
    claim = "Dropping silent groups without asking again, two prompts with p = .1: 1 + s times as"
    claim = f"{claim} long, s silent (G = {group})"
    facts.exact(claim, dropped / weight(STD, twins, group), 1 + share)
    return facts


def _lengths(settings: Settings, series: dict[str, Any]) -> Facts:
    """What 1/|o| does to the law."""
    p, group, short, long = series["p"], settings.group, settings.short, settings.long
    facts, listed = Facts(LENGTHS, 12), theory.four_answers(0.5, short, long)
    off = max(
        _worst(series["lengths"][_answers(*pair)], theory.length_weight(p, group, *pair))
        for pair in theory.length_pairs(short, long)
    )
    claim = "Under 1/|o|, right answers of s tokens and wrong ones of t: the weight is w_G(p)·"
    claim = f"{claim}((1−p)/s + p/t) (largest relative difference over p, s and t, G = {group})"
    facts.exact(claim, off, 0.0)
    both = f"right and wrong answers of {short} and of {long} tokens"
    expected = exact.microscope(LENGTH_MEAN, listed, group, covariance=False).expected
    claim = f"Under 1/|o|, {both}: E[ĝ] is w_G(p) Σ_a π_a (1[a right] − p) s_a/|o_a| (largest"
    off = float((expected - theory.length_law(listed, group)).abs().max())
    facts.exact(f"{claim} difference, p = .5, G = {group})", off, 0.0)
    formula = f"arccos of (1/{short} + 1/{long})/√(2(1/{short}² + 1/{long}²))"
    claim = f"Under 1/|o|, {both}: E[ĝ] points this many degrees away from ∇p, {formula}, p = .5"
    facts.exact(claim, series["angle"], theory.length_angle(short, long))
    cosine = exact.microscope(STD, listed, group, covariance=False).cosine
    facts.exact(f"Summed over tokens, {both} keep the direction of ∇p (cosine)", cosine, 1.0)
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """The weight by group size; by rung and variant; silent groups; the weight under 1/|o|."""
    figure, (sizes, rungs, quiet, lengths) = figures.new_figure(2, 2, width=12.2, height=8.4)
    p, fine = result.array("p"), torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    group, short, long = (result.settings[name] for name in ("group", "short", "long"))
    for size, colour in figures.shaded(list(result.series["weight"])):
        for ax, what, law in (
            (sizes, "weight", exact.group_std_weight),
            (quiet, "silent", exact.silent_probability),
        ):
            line = fine, law(fine, int(size)), colour, f"G = {size}"
            figures.dots_on_curve(ax, p, result.array(what, size), *line)
    figures.expectation(sizes, exact.group_std_weight(fine, math.inf), fine, "1/√(p(1−p))")
    for name in result.settings["rungs"]:
        figures.band(rungs, p, result.array("rungs", name), name=name)
    for name, dashes in zip(result.series["variants"], (figures.DOT, figures.DASHDOT), strict=True):
        values = result.array("variants", name)
        figures.band(rungs, p, values, label=f"std, {name}", color="#8c4a72", linestyle=dashes)
    figures.expectation(rungs, exact.group_std_weight(fine, group), fine)
    for pair, colour in zip(theory.length_pairs(short, long), LENGTH_COLOURS, strict=True):
        name, formula = _answers(*pair), theory.length_weight(fine, group, *pair)
        dots = result.array("lengths", name)
        figures.dots_on_curve(lengths, p, dots, fine, formula, colour, name)
    y, upwards, wider = "weight of ∇p in E[ĝ]", (0, None), (0, 1.28 * lengths.get_ylim()[1])
    for ax, title, unit, span in (
        (sizes, "Dividing by the std: hard and easy prompts weigh more", y, upwards),
        (rungs, f"Only the std weighs by difficulty (G = {group})", y, upwards),
        (quiet, "… and the same ends fall silent", "groups without any gradient (share)", None),
        (lengths, f"Under 1/|o| length counts too (G = {group})", y, wider),
    ):
        figures.describe(ax, title, "success probability p", unit, xlim=(0, 1), ylim=span)
        figures.label_ends(ax)
    text = f"right and wrong answers of {short} and {long} tokens:\nE[ĝ] is"
    text = f"{text} {float(result.array('angle')):.0f}° off ∇p"
    figures.note(lengths, text, (0.5, 0.97), xycoords="axes fraction", ha="center", va="top")
    return figure
