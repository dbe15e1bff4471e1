"""What dividing by the group's std optimises: every prompt's gradient, weighed by how hard the
prompt is.

With rewards 0 or 1 and success probability p, the group-normalised gradient is w_G(p)·∇p on
average, exactly. Look at the ends: a prompt that is almost always missed, or almost always solved,
weighs up to √(G−1) times one at G = 2, and with many samples what is climbed is no longer p but
2·arcsin √p. The same ends are where groups are silent, all samples right or all wrong: asking again
until they are not rescales the gradient and does not turn it. And the law needs answers that are
weighed alike: under 1/|o|, with answers of different length, the gradient is not even parallel to
∇p any more.

Everything is enumerated: each marker is the estimator itself, averaged over every group that can be
drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import (
    Outcomes,
    every_group,
    group_mean_factor,
    group_std_weight,
    microscope,
    objective,
    silent_probability,
)
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import DropSilentGroups, GroupStd, SequenceMean
from course.parts.baseline import silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
        require(
            len(self.groups) > 0 and min(self.groups) >= 2, "groups", self.groups, "group sizes ≥ 2"
        )
        require(max(self.groups) <= 256, "groups", self.groups, "group sizes up to 256")
        require(2 <= self.group <= 32, "group", self.group, "from 2 to 32")
        require(self.points >= 3, "points", self.points, "at least 3")
        require(self.eps > 0, "eps", self.eps, "a number > 0")
        require(
            0 < self.short < self.long <= 64,
            "long",
            self.long,
            f"a length above the short one, {self.short}, up to 64",
        )


SETTINGS = Settings()
STD = replace(
    ladder.group_mean, scale=GroupStd(eps=0.0)
)  # the group_std rung without its eps, for the exact law
LENGTH_MEAN = replace(STD, aggregation=SequenceMean())  # … and 1/|o|
NEVER = 1e-12  # a success probability that is as good as 0
MANY = 1024  # samples, as good as infinitely many


def right_or_wrong(p: float, lengths: tuple[int, int] | None = None) -> Outcomes:
    """Two answers: right with probability `p`, or wrong; of `lengths` (right, wrong) tokens."""
    length = None if lengths is None else torch.tensor(lengths)
    environment = Environment(torch.tensor([[1.0, 0.0]], dtype=torch.float64), lengths=length)
    return outcomes(environment, torch.tensor([[p, 1 - p]], dtype=torch.float64).log())


def four_answers(p: float, short: int, long: int) -> Outcomes:
    """Right-and-short, right-and-long, wrong-and-short, wrong-and-long: right with probability `p`,
    short with ½.
    """
    lengths = torch.tensor([short, long, short, long])
    environment = Environment(
        torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), lengths=lengths
    )
    return outcomes(
        environment,
        torch.tensor([[p / 2, p / 2, (1 - p) / 2, (1 - p) / 2]], dtype=torch.float64).log(),
    )


def weight(estimator: Estimator, listed: Outcomes, group: int) -> float:
    """E[ĝ]·∇p / ‖∇p‖²: how much of ∇p there is in the expected gradient."""
    seen = microscope(estimator, listed, group, covariance=False)
    return float(seen.expected @ seen.gradient / seen.gradient.square().sum())


def angle(estimator: Estimator, listed: Outcomes, group: int) -> float:
    """Between E[ĝ] and ∇p, in degrees."""
    return math.degrees(
        math.acos(min(1.0, microscope(estimator, listed, group, covariance=False).cosine))
    )


def length_law(listed: Outcomes, group: int) -> Tensor:
    """[D] E[ĝ] under 1/|o| with eps = 0: w_G(p) Σ_a π_a (1[a right] − p) s_a / |o_a|.

    It follows from E[A_i | i right] = w_G(p)(1 − p) and E[A_i | i wrong] = −w_G(p) p.
    eq:length-mean-law
    """
    p, length = objective(listed), listed.mask.sum(-1)
    own = listed.log_prob.sum(-1).exp() * (listed.total_reward - p) / length
    return group_std_weight(p, group) * torch.einsum("qk,qkd->d", own, listed.total_score)


def run(settings: Settings, progress: Progress) -> Result:
    """The weight over p for every group size, rung and variant; silent groups; the weight under
    1/|o|.
    """
    p = torch.linspace(0.02, 0.98, settings.points, dtype=torch.float64)
    grid = p.tolist()
    variants = {
        "ddof = 1": replace(STD, scale=GroupStd(ddof=1, eps=0.0)),
        f"eps = {settings.eps:g}": replace(STD, scale=GroupStd(eps=settings.eps)),
    }
    group = settings.group
    pair = [right_or_wrong(x) for x in grid]
    by_rung = {
        name: [weight(ladder.get(name).estimator, one, group) for one in pair]
        for name in progress(settings.rungs, "rungs")
    }
    series: dict[str, Any] = {
        "p": p,
        "weight": {
            size: [weight(STD, one, size) for one in pair]
            for size in progress(settings.groups, "group sizes")
        },
        "rungs": by_rung,
        "variants": {
            name: [weight(estimator, one, group) for one in pair]
            for name, estimator in variants.items()
        },
        "silent": {size: [silent_share(one, size) for one in pair] for size in settings.groups},
        "lengths": {
            name: [weight(LENGTH_MEAN, right_or_wrong(x, each), group) for x in grid]
            for name, each in pairs(settings).items()
        },
        "angle": angle(LENGTH_MEAN, four_answers(0.5, settings.short, settings.long), group),
    }
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def silent_share(listed: Outcomes, group: int) -> float:
    """The probability of a group of which the estimator makes a gradient that is exactly zero."""
    every = every_group(STD, listed, group)
    return float(every.chance[(every.gradient == 0).all(-1)].sum())


def pairs(settings: Settings) -> dict[str, tuple[int, int]]:
    """Lengths (right, wrong) in tokens, by name."""
    short, long = settings.short, settings.long
    each = [(short, short), (short, long), (long, short), (long, long)]
    return {f"right {right}, wrong {wrong}": (right, wrong) for right, wrong in each}


# ---------------------------------------------------------------- facts

WEIGHT = "Davis & Recht 2025 (2510.13651); Mroueh 2025 (2503.06639)"


def _facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    return [
        *_weights(settings, series),
        *_limits(),
        *_variants(settings, series),
        *_silence(settings, series),
        *_lengths(settings),
    ]


def _worst(measured: list[float], expected: Tensor) -> float:
    """The largest relative difference."""
    return float((torch.tensor(measured, dtype=torch.float64) / expected - 1).abs().max())


def _weights(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    """The law itself, at every group size."""
    p, facts = series["p"], []
    for group in settings.groups:
        claim = (
            f"G = {group}: the std turns ∇p into w_G(p)·∇p, w_G = E[√(N(G−N))]/(G p(1−p)) (largest"
            " relative difference over p)"
        )
        facts.append(
            Fact.exact(
                claim,
                WEIGHT,
                _worst(series["weight"][group], group_std_weight(p, group)),
                0.0,
                number=12,
            )
        )
    flat = "With two samples the std changes nothing: w_2(p) = 1 for every p (largest difference)"
    facts.append(
        Fact.exact(
            flat,
            WEIGHT,
            max(abs(weight(STD, right_or_wrong(x), 2) - 1) for x in p.tolist()),
            0.0,
            number=12,
        )
    )
    seen = microscope(STD, b3(), 16, covariance=False)
    turned = (
        "On B3, three arms with Bernoulli rewards, dividing by the std does not turn the gradient"
        " (cosine to ∇J, G = 16)"
    )
    facts.append(Fact.exact(turned, WEIGHT, seen.cosine, 1.0, number=12))
    length = (
        "On B3 dividing by the std makes the gradient w_16(.41) times as long as ∇J (G = 16, J ="
        " .41)"
    )
    facts.append(
        Fact.exact(
            length,
            WEIGHT,
            seen.expected.norm() / seen.gradient.norm(),
            group_std_weight(objective(b3()), 16),
            number=12,
        )
    )
    return facts


def _limits() -> list[Fact]:
    """The ends: p → 0, and G → ∞."""
    facts = []
    for group in (8, 64):
        claim = (
            f"The weight of a prompt that is almost never solved is √(G−1): w_{group} at p ="
            f" {NEVER:g}"
        )
        facts.append(
            Fact.exact(
                claim,
                WEIGHT,
                weight(STD, right_or_wrong(NEVER), group),
                math.sqrt(group - 1),
                number=12,
            )
        )
    p = 0.3
    gap = 1 - weight(STD, right_or_wrong(p), MANY) * math.sqrt(p * (1 - p))
    bound = 1 / (4 * MANY * p * (1 - p))
    claim = (
        f"With many samples w tends to 1/√(p(1−p)): at p = {p}, G = {MANY} it is short of it by"
        " less than 1/(4Gp(1−p)) of it"
    )
    facts.append(Fact.below(claim, WEIGHT, gap, bound, number=12))
    apart = microscope(STD, b3(), MANY, covariance=False).expected - arcsine_gradient()
    claim = (
        f"With many samples E[ĝ] tends to the gradient of 2·arcsin √J: on B3 at G = {MANY} one in a"
        " thousand apart at most (relative)"
    )
    facts.append(
        Fact.below(claim, WEIGHT, apart.norm() / arcsine_gradient().norm(), 1e-3, number=12)
    )
    return facts


def arcsine_gradient() -> Tensor:
    """[D] ∇ 2·arcsin √J on B3 by automatic differentiation, J = Σ softmax(θ)·μ.

    eq:arcsine-objective
    """
    theta = torch.tensor(B3_POLICY, dtype=torch.float64).log().requires_grad_()
    j = (theta.softmax(0) * torch.tensor(B3_MEANS, dtype=torch.float64)).sum()
    return torch.autograd.grad(2 * j.sqrt().arcsin(), theta)[0]


def _variants(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    p, group, facts = series["p"], settings.group, []
    for (name, measured), (ddof, eps) in zip(
        series["variants"].items(), ((1, 0.0), (0, settings.eps)), strict=True
    ):
        law = "√((G−1)/G) times it" if ddof else "E[v/(√v + eps)]/(p(1−p)), v = N(G−N)/G²"
        expected = (
            group_std_weight(p, group) * math.sqrt((group - 1) / group)
            if ddof
            else group_std_weight(p, group, 0, eps)
        )
        claim = f"With {name} the weight is {law} (largest relative difference over p, G = {group})"
        facts.append(Fact.exact(claim, "this course", _worst(measured, expected), 0.0, number=12))
    flat = [weight(ladder.group_mean, right_or_wrong(x), group) for x in p.tolist()]
    claim = (
        "Without the std the weight is (G−1)/G, whatever p (largest relative difference, G ="
        f" {group})"
    )
    facts.append(
        Fact.exact(
            claim,
            WEIGHT,
            _worst(flat, torch.tensor(group_mean_factor(group), dtype=torch.float64)),
            0.0,
            number=12,
        )
    )
    return facts


def _silence(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    """How many groups are silent, and what asking again does."""
    p, group, source = series["p"], settings.group, "Yu et al. 2025 (DAPO, 2503.14476), eq. 11"
    off = max(
        float(
            (torch.tensor(series["silent"][g], dtype=torch.float64) - silent_probability(p, g))
            .abs()
            .max()
        )
        for g in settings.groups
    )
    sizes = f"G = {', '.join(map(str, settings.groups))}"
    facts = [
        Fact.exact(
            "p^G + (1−p)^G of the groups give no gradient at all (largest difference over p,"
            f" {sizes})",
            source,
            off,
            0.0,
            number=13,
        )
    ]
    share = silent_share(right_or_wrong(0.1), 8)
    facts.append(
        Fact.exact(
            "At p = .1, 43 % of the groups of 8 are silent (a share)",
            source,
            share,
            0.9**8 + 0.1**8,
            number=13,
        )
    )
    every = every_group(STD, b3(), group)
    quiet = silent(b3().total_reward[0][every.outcome[:, 0]])[:, 0]
    refilled = (
        torch.einsum("m,md->d", every.chance[~quiet], every.gradient[~quiet])
        / every.chance[~quiet].sum()
    )
    plain = microscope(STD, b3(), group, covariance=False).expected
    factor = 1 / (1 - silent_probability(objective(b3()), group))
    claim = (
        "Asking again until no group is silent makes E[ĝ] 1/P(not silent) times as long (B3, G ="
        f" {group})"
    )
    facts.append(Fact.exact(claim, source, refilled.norm() / plain.norm(), factor, number=13))
    cosine = torch.nn.functional.cosine_similarity(refilled, plain, 0)
    facts.append(
        Fact.exact(
            f"Asking again until no group is silent does not turn E[ĝ] (cosine, B3, G = {group})",
            source,
            cosine,
            1.0,
            number=13,
        )
    )
    share = float(silent_probability(0.1, group))
    kept = weight(replace(STD, sample_filter=DropSilentGroups()), twins(0.1), group) / weight(
        STD, twins(0.1), group
    )
    claim = (
        "Dropping silent groups without asking again, two prompts with p = .1: (1 − s²)/(1 − s)"
        f" times as long, s silent (G = {group})"
    )
    facts.append(Fact.exact(claim, source, kept, (1 - share**2) / (1 - share), number=13))
    return facts


def twins(p: float) -> Outcomes:
    """Two prompts of the same difficulty that share their logits: right with probability `p`, or
    wrong.
    """
    log_prob = torch.tensor([[p, 1 - p]] * 2, dtype=torch.float64).log()
    score = right_or_wrong(p).score[:, :, 0].expand(2, 2, 2)
    return outcomes(
        Environment(torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)), log_prob, score=score
    )


def _lengths(settings: Settings) -> list[Fact]:
    """What 1/|o| does to the law."""
    group, short, long = settings.group, settings.short, settings.long
    source, facts = "this course; the bias of 1/|o|: Liu et al. 2025 (Dr. GRPO, 2503.20783)", []
    for p in (0.1, 0.5):
        law = f"w_G(p)·((1−p)/{short} + p/{long})"
        claim = (
            f"Under 1/|o|, right answers of {short} tokens and wrong ones of {long}: the weight is"
            f" {law}, at p = {p}, G = {group}"
        )
        expected = group_std_weight(p, group) * ((1 - p) / short + p / long)
        facts.append(
            Fact.exact(
                claim,
                source,
                weight(LENGTH_MEAN, right_or_wrong(p, (short, long)), group),
                expected,
                number=12,
            )
        )
    listed, both = (
        four_answers(0.5, short, long),
        f"right and wrong answers of {short} and of {long} tokens",
    )
    off = (
        (
            microscope(LENGTH_MEAN, listed, group, covariance=False).expected
            - length_law(listed, group)
        )
        .abs()
        .max()
    )
    claim = (
        f"Under 1/|o|, {both}: E[ĝ] is w_G(p) Σ_a π_a (1[a right] − p) s_a/|o_a| (largest"
        f" difference, p = .5, G = {group})"
    )
    facts.append(Fact.exact(claim, source, off, 0.0, number=12))
    ratio = (1 / short + 1 / long) / math.sqrt(2 * (1 / short**2 + 1 / long**2))
    law = f"arccos of (1/{short} + 1/{long})/√(2(1/{short}² + 1/{long}²))"
    claim = f"Under 1/|o|, {both}: E[ĝ] points this many degrees away from ∇p, {law}, p = .5"
    facts.append(
        Fact.exact(
            claim,
            source,
            angle(LENGTH_MEAN, listed, group),
            math.degrees(math.acos(ratio)),
            number=12,
        )
    )
    summed = microscope(STD, listed, group, covariance=False).cosine
    facts.append(
        Fact.exact(
            f"Summed over tokens, {both} keep the direction of ∇p (cosine)",
            source,
            summed,
            1.0,
            number=12,
        )
    )
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Markers and coloured lines: the estimators themselves, averaged over every group that can be"
    " drawn. Thin dashed: the closed forms. Rewards are 0 or 1, p is the probability of a 1."
)


def plot(result: Result) -> Figure:
    """The weight by group size; by rung and variant; silent groups; the weight under 1/|o|."""
    figure, (sizes, rungs, quiet, lengths) = figures.new_figure(2, 2, width=12.2, height=8.4)
    p = result.array("p")
    fine = torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    _draw_sizes(sizes, result, fine)
    group = result.settings["group"]
    for name in result.settings["rungs"]:
        figures.band(rungs, p, result.array("rungs", name), name=name)
    for (name, values), dashes in zip(
        result.series["variants"].items(), (figures.DOT, figures.DASHDOT), strict=True
    ):
        figures.band(rungs, p, values, label=f"std, {name}", color="#8c4a72", linestyle=dashes)
    figures.expectation(rungs, x=fine, y=group_std_weight(fine, group))
    figures.describe(
        rungs,
        f"Only the std weighs by difficulty (G = {group})",
        "success probability p",
        "weight of ∇p in E[ĝ]",
    )
    rungs.set_ylim(bottom=0)
    _draw_silent(quiet, result, fine)
    _draw_lengths(lengths, result, fine)
    for ax in (sizes, rungs, quiet, lengths):
        ax.set_xlim(0, 1)
        figures.label_ends(
            ax, [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        )
    return figure


def _draw_sizes(ax: Axes, result: Result, fine: Tensor) -> None:
    sizes = list(result.series["weight"])
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        ax.plot(
            result.array("p"),
            result.array("weight", size),
            "o",
            color=colour,
            markersize=4.5,
            label="_measured",
        )
        ax.plot(
            fine,
            group_std_weight(fine, int(size)),
            color=colour,
            linewidth=1.2,
            label=f"G = {size}",
        )
    figures.expectation(ax, x=fine, y=group_std_weight(fine, math.inf), label="1/√(p(1−p))")
    figures.describe(
        ax,
        "Dividing by the std: hard and easy prompts weigh more",
        "success probability p",
        "weight w_G(p) of ∇p in E[ĝ]",
    )
    ax.set_ylim(bottom=0)


def _draw_silent(ax: Axes, result: Result, fine: Tensor) -> None:
    sizes = list(result.series["silent"])
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        ax.plot(
            result.array("p"),
            result.array("silent", size),
            "o",
            color=colour,
            markersize=4.5,
            label="_measured",
        )
        ax.plot(
            fine,
            silent_probability(fine, int(size)),
            color=colour,
            linewidth=1.2,
            label=f"G = {size}",
        )
    figures.describe(
        ax,
        "… and the same ends fall silent",
        "success probability p",
        "groups without any gradient (share)",
    )


def _draw_lengths(ax: Axes, result: Result, fine: Tensor) -> None:
    group, short, long = (result.settings[name] for name in ("group", "short", "long"))
    for (name, values), colour in zip(
        result.series["lengths"].items(), LENGTH_COLOURS, strict=True
    ):
        ax.plot(result.array("p"), values, "o", color=colour, markersize=4.5, label="_measured")
        right, wrong = (int(word.split()[1]) for word in name.split(", "))
        ax.plot(
            fine,
            group_std_weight(fine, group) * ((1 - fine) / right + fine / wrong),
            color=colour,
            linewidth=1.2,
            label=name,
        )
    figures.describe(
        ax,
        f"Under 1/|o| length counts too (G = {group})",
        "success probability p",
        "weight of ∇p in E[ĝ]",
    )
    ax.set_ylim(0, 1.28 * ax.get_ylim()[1])
    text = (
        f"right and wrong answers of {short} and {long} tokens:\nE[ĝ] is"
        f" {float(result.array('angle')):.0f}° off ∇p"
    )
    ax.annotate(
        text, (0.5, 0.97), xycoords="axes fraction", ha="center", va="top", color=figures.INK
    )


LENGTH_COLOURS = ("#555555", "#b8320f", "#0057a3", "#888888")
