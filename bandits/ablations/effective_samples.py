"""The surrogate is exact at any distance, but the effective sample size limits how far one can go.

The samples come from π, and the question is how good another policy π' is. With one token per
answer J(π') = J(π) + E_π[ρA], where ρ = π'/π and A = r − J(π). This is an identity at any distance,
not an approximation. But an average over G samples weighted by ρ is worth only G/E_π[ρ²] samples of
π', and the spread of the estimate grows as π' moves away. That is the only reason for a trust
region here. With several tokens per answer the sequence ratio, the product of the token ratios,
keeps the identity, but its effective sample size falls exponentially with the number of tokens.
Token ratios need fewer samples and have the right gradient at π, but they are wrong further away.

Everything is enumerated: each rung's objective is evaluated on every group that can occur. π' ∝
π·exp(λr) moves straight towards reward: the natural gradient's path, F⁺∇J = A − mean(A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import effective_samples as theory
from bandits.theory.effective_samples import Sums, bernoulli_arms, centred, tilted
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import LeaveOneOut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = "the surrogate is exact at any distance; the effective number of samples is what falls"
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """A bandit with one token per answer, and answers of several tokens."""

    # which estimators; their baseline becomes b = J(π), without a scale
    rungs: tuple[str, ...] = ("surrogate", "clip")
    group: int = 8  # samples per group
    tokens: int = 3  # tokens of the longer answers
    words: int = 3  # tokens to choose from at each place
    farthest: float = 5.0  # largest λ of π' ∝ π·exp(λr), per unit of reward
    points: int = 26  # policies π' on the way

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "from 2 to 12: all groups of 6 outcomes are listed"
        require(2 <= self.group <= 12, "group", self.group, allowed)
        assert self.task  # refuses tokens and words that are too many
        require(0 < self.farthest <= 20, "farthest", self.farthest, "a number above 0, at most 20")
        self.at_least(3, "points")

    @property
    def task(self) -> Sums:
        """The answers of several tokens."""
        return Sums(self.tokens, self.words)


SETTINGS = Settings()
KAKADE, NATURAL = "Kakade & Langford 2002; derived", "Kakade 2001; derived"
CAPTION = (
    "Enumerated, not sampled. Top: B3, one token per answer, G samples per group; bands are ± 1"
    " standard deviation of one group's estimate. Bottom: answers of several tokens, right if the"
    " tokens have a given sum."
)
old, means = (torch.tensor(numbers, dtype=torch.float64) for numbers in (B3_POLICY, B3_MEANS))


def run(settings: Settings, progress: Progress) -> Result:
    """One token per answer, then several; then the facts."""
    strengths = torch.linspace(0, settings.farthest, settings.points, dtype=torch.float64).tolist()
    one = [
        theory.one_token(settings.rungs, settings.group, strength)
        for strength in progress(strengths, "one token")
    ]
    several = [
        theory.by_token_and_by_answer(settings.task, strength)
        for strength in progress(strengths, "several tokens")
    ]
    series = {
        "one": {key: [point[key] for point in one] for key in one[0]},
        "several": {key: [point[key] for point in several] for key in several[0]},
    }
    facts = [*_one_facts(settings, one), *_several_facts(settings, several)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _one_facts(settings: Settings, points: list[dict[str, Any]]) -> Facts:
    """One token per answer: what each baseline leaves, the spread, and the effective samples."""
    group, before, last = settings.group, float(old @ means), points[-1]
    listed = bernoulli_arms(tilted(old.log(), means, settings.farthest), old.log())
    at = f"(B3, λ up to {settings.farthest:g}, G = {group})"
    end, facts = f"(B3, λ = {settings.farthest:g}, G = {group})", Facts("derived", 8)

    def gaps(estimator: Estimator, factor: float = 1.0) -> list[float]:
        """The mean objective less factor·(J' − J), at each π'."""
        return [theory.gain_gap(estimator, group, p["strength"], factor) for p in points]

    surrogate, clip = centred(ladder.surrogate, before), centred(ladder.clip, before)
    claim = "One token: E[ρA] with b = J(π) is J(π') − J(π) at any distance: largest difference"
    facts.exact(f"{claim} {at}", max(map(abs, gaps(surrogate))), 0.0, source=KAKADE)
    claim = "One token: so is it with the mean of the others as the baseline: largest difference"
    others = gaps(replace(surrogate, baseline=LeaveOneOut()))
    facts.exact(f"{claim} {at}", max(map(abs, others)), 0.0)
    claim = "One token: a mean that includes the sample leaves (G−1)/G of it: largest difference"
    included = gaps(ladder.surrogate, (group - 1) / group)
    facts.exact(f"{claim} {at}", max(map(abs, included)), 0.0)
    claim = f"Standard deviation of one group's estimate is √((E[ρ²A²] − (J'−J)²)/G) {end}"
    spread = theory.objective_moments(surrogate, listed, group)[1]
    facts.exact(claim, spread, theory.ratio_spread(listed, group))
    claim = "G samples are worth G/E[ρ²]; for π' ∝ π·exp(λr), E[ρ²] = Z(2λ)/Z(λ)², Z(λ) = Σπ"
    expected = theory.tilted_moment(old.log(), means, settings.farthest)
    facts.exact(f"{claim} exp(λr) {end}", last["second"], expected)
    bounded = all(1 / p["second"] <= math.exp(-p["kl"]) + 1e-12 for p in points)
    facts.exact(f"The effective share 1/E[ρ²] is never above exp(−KL(π'‖π)) {at}", bounded, True)
    claim = f"The clip's objective is nowhere above the true improvement, on average {at}"
    facts.exact(claim, max(gaps(clip)) <= 1e-12, True)
    claim = "F⁺∇J = A − (unweighted mean of A): largest difference from conjugate gradient on the"
    facts.exact(f"{claim} Fisher matrix (B3)", theory.natural_gap(), 0.0, source=NATURAL)
    return facts


def _several_facts(settings: Settings, points: list[dict[str, Any]]) -> Facts:
    """Several tokens per answer: what the sequence's ratio keeps and token ratios lose."""
    task, last, count, facts = settings.task, points[-1], settings.tokens, Facts("derived", 8)
    surrogate, cosine = theory.by_hand(task, settings.farthest)
    at = f"({count} tokens, λ up to {settings.farthest:g})"
    end = f"({count} tokens, λ = {settings.farthest:g}, KL(π'‖π) = {last['kl']:.2f})"
    claim = f"With the sequence's ratio E[ρA] is J(π') − J(π): largest difference {at}"
    facts.exact(claim, max(abs(p["whole"] - p["gain"]) for p in points), 0.0, source=KAKADE)
    claim = "With the sequence's ratio the expected gradient is ∇J(π'): largest relative bias"
    facts.exact(f"{claim} {at}", max(p["whole_bias"] for p in points), 0.0, source=KAKADE)
    claim = f"With token ratios it is so at π itself: relative bias at λ = 0 ({count} tokens)"
    facts.exact(claim, points[0]["token_bias"], 0.0, source=KAKADE)
    near = [theory.by_token_and_by_answer(task, strength) for strength in (1e-3, 2e-3)]
    one, two = (point["gain"] - point["token"] for point in near)
    claim = "With token ratios the value is off in second order: exponent of λ in its error as λ →"
    # three digits: the next order is λ itself, 1e-3 here
    facts.exact(f"{claim} 0 ({count} tokens)", math.log2(two / one), 2.0, 3)
    claim = f"With token ratios the surrogate is E[Σ_t ρ_t A], added up by hand {end}"
    facts.exact(claim, last["token"], surrogate)
    claim = "With token ratios the expected gradient points elsewhere: 1 − cosine with ∇J(π'), by"
    claim = f"{claim} automatic differentiation of the sum {end}"
    facts.exact(claim, 1 - last["token_cosine"], 1 - cosine)
    claim = f"The same move on each of {count} tokens: E[ρ²] is that of one token to the power"
    claim = f"{claim} {count} (λ = {settings.farthest:g})"
    facts.exact(claim, *theory.independent_tokens(settings.farthest, count))
    return facts


# ---------------------------------------------------------------- figure

TOKEN: dict[str, Any] = {"color": "#b8320f", "linestyle": figures.SOLID, "label": "token ratios"}
WHOLE: dict[str, Any] = {"color": "#0057a3", "linestyle": figures.SOLID, "label": "sequence ratio"}
SHOWN_TOKENS = (1, 2, 4, 16)


def plot(result: Result) -> Figure:
    """Improvement and surrogates; effective samples; token and sequence ratios."""
    figure, (value, samples, tokens, gradient) = figures.new_figure(2, 2, width=11.5, height=8.0)
    kl, answer = result.array("one", "kl"), result.array("several", "kl")
    mean, std = result.array("one", "mean"), result.array("one", "std")
    truth = "J(π') − J(π)"
    for i, name in enumerate(result.settings["rungs"]):
        title = {"surrogate": "ρA"}.get(name) or ladder.get(name).title
        figures.band(value, kl, mean[:, i], std[:, i], name, label=title)
    figures.expectation(value, result.array("one", "gain"), kl, label=truth)
    second = result.array("one", "second")
    for count, colour in figures.shaded(SHOWN_TOKENS):
        label = "1 token" if count == 1 else f"{count} tokens"
        samples.plot(kl, 100 * second**-count, color=colour, linewidth=2.0, label=label)
        figures.expectation(samples, 100 * np.exp(-count * kl), kl)
    figures.log_axis(samples, "y", [0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
    most = "dashed: exp(−KL),\nthe most that is possible"
    figures.note(samples, most, (0.03, 0.04), xycoords="axes fraction")
    for look, name in ((WHOLE, "whole"), (TOKEN, "token")):
        figures.band(tokens, answer, result.array("several", name), **look)
        figures.band(gradient, answer, result.array("several", f"{name}_cosine"), **look)
    figures.expectation(tokens, result.array("several", "gain"), answer, label=truth)
    figures.expectation(gradient, 1.0)
    group, count = result.settings["group"], result.settings["tokens"]
    for ax, axis in ((value, kl), (samples, kl), (tokens, answer), (gradient, answer)):
        _kl_axis(ax, axis)
    title, y = "One token: the surrogate is exact, and noisy", f"improvement (groups of {group})"
    figures.describe(value, title, "KL(π'‖π), nats", y, ends=True)
    title, x = "What falls is the effective sample size", "KL(π'‖π) per token, nats"
    y = "effective share 1/E[ρ²]"
    figures.describe(samples, title, x, y, ylim=(0.1, 120), ends=True)
    title, x = f"{count} tokens: token ratios fall short", "KL(π'‖π) of the answer, nats"
    figures.describe(tokens, title, x, "improvement", ends=True)
    title, y = "… and further out they turn away from ∇J", "cosine of E[ĝ] and ∇J(π')"
    figures.describe(gradient, title, x, y, ylim=(0, 1.08), ends=True)
    figures.reference(value, x=0.01, label="TRPO's usual KL", color="#999999")
    return figure


def _kl_axis(ax: Axes, kl: NDArray[np.float64]) -> None:
    """KL on a square-root scale, on which a steady move is a steady distance."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    places = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4, 2.0)
    ticks = [tick for tick in places if tick <= 1.02 * kl[-1]]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(0, 1.01 * kl[-1])
