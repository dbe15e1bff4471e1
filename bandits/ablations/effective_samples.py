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
from dataclasses import replace as change
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.policies import Softmax
from bandits.population import every_arm
from bandits.theory.effective_samples import (
    Sums,
    answers,
    bernoulli_arms,
    centred,
    distance,
    logits_of,
    objective_moments,
    second_moment,
    sequences,
    start,
    tilted,
    token_log_probs,
)
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import microscope, sampling_probability
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import LeaveOneOut, SequenceMean, SequenceRatio
from course.train.noise import Noise
from course.train.trust_region import NaturalGradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "the surrogate is exact at any distance; the effective number of samples is what falls"
EXPECTED_SECONDS = 2.0
KAKADE = "Kakade & Langford 2002; derived"


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
        require(
            2 <= self.group <= 12,
            "group",
            self.group,
            "from 2 to 12: all groups of 6 outcomes are listed",
        )
        assert self.task  # refuses tokens and words that are too many
        require(0 < self.farthest <= 20, "farthest", self.farthest, "a number above 0, at most 20")
        require(self.points >= 3, "points", self.points, "a whole number ≥ 3")

    @property
    def task(self) -> Sums:
        """The answers of several tokens."""
        return Sums(self.tokens, self.words)


SETTINGS = Settings()
Array = NDArray[np.float64]
old, means = (torch.tensor(numbers, dtype=torch.float64) for numbers in (B3_POLICY, B3_MEANS))


def run(settings: Settings, progress: Progress) -> Result:
    """One token per answer, then several; then the facts."""
    strengths = torch.linspace(0, settings.farthest, settings.points, dtype=torch.float64).tolist()
    one = [_one_token(settings, strength) for strength in progress(strengths, "one token")]
    several = [
        _several_tokens(settings.task, strength)
        for strength in progress(strengths, "several tokens")
    ]
    series = {
        "one": {key: [point[key] for point in one] for key in one[0]},
        "several": {key: [point[key] for point in several] for key in several[0]},
    }
    facts = [*_one_facts(settings, one), *_several_facts(settings, several), _natural_fact()]
    return Result(series=series, facts=facts, caption=CAPTION)


def _one_token(settings: Settings, strength: float) -> dict[str, Any]:
    """What each rung's objective says of π' at λ = `strength`, on B3."""
    now, before = tilted(old.log(), means, strength), float(old @ means)
    listed = bernoulli_arms(now, old.log())
    moments = [
        objective_moments(centred(ladder.get(name).estimator, before), listed, settings.group)
        for name in settings.rungs
    ]
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ means) - before,
        "second": second_moment(listed),
        "mean": [mean for mean, _ in moments],
        "std": [std for _, std in moments],
    }


def _several_tokens(task: Sums, strength: float) -> dict[str, Any]:
    """The surrogate with token and with sequence ratios, its value and its gradient, at λ =
    `strength`.
    """
    (_, reward), before = answers(task), start(task)
    now, value = tilted(before, reward, strength), float(before.exp() @ reward)
    listed = sequences(task, now, before)
    token = centred(ladder.surrogate, value)
    whole = change(token, ratio=SequenceRatio())
    # a sequence's ratio stands on each of its T tokens, so the mean over them is ρA; the gradient
    # needs the sum
    mean = change(whole, aggregation=SequenceMean())
    by_token = microscope(token, listed, 1, covariance=False)
    by_answer = microscope(whole, listed, 1, covariance=False)
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ reward) - value,
        "second": second_moment(listed),
        "token": objective_moments(token, listed, 1)[0],
        "whole": objective_moments(mean, listed, 1)[0],
        "token_bias": by_token.relative_bias,
        "whole_bias": by_answer.relative_bias,
        "token_cosine": by_token.cosine,
        "whole_cosine": by_answer.cosine,
    }


# ---------------------------------------------------------------- facts


def _one_facts(settings: Settings, points: list[dict[str, Any]]) -> list[Fact]:
    group, before, last = settings.group, float(old @ means), points[-1]
    listed = bernoulli_arms(tilted(old.log(), means, settings.farthest), old.log())
    at = f"(B3, λ up to {settings.farthest:g}, G = {group})"
    end = f"(B3, λ = {settings.farthest:g}, G = {group})"

    def mean(estimator: Estimator, point: dict[str, Any]) -> float:
        outcomes = bernoulli_arms(tilted(old.log(), means, point["strength"]), old.log())
        return objective_moments(estimator, outcomes, group)[0]

    def largest(estimator: Estimator, factor: float) -> float:
        return max(abs(mean(estimator, point) - factor * point["gain"]) for point in points)

    surrogate, clip = centred(ladder.surrogate, before), centred(ladder.clip, before)
    ratio, advantage = listed.log_prob.exp() / listed.old.exp(), listed.reward - before
    square = float((sampling_probability(listed).unsqueeze(-1) * (ratio * advantage) ** 2).sum())
    one, two = (
        float((old * (strength * means).exp()).sum())
        for strength in (settings.farthest, 2 * settings.farthest)
    )
    kakade = partial(Fact.exact, source=KAKADE, number=8)
    exact = partial(Fact.exact, source="derived", number=8)
    return [
        kakade(
            "One token: E[ρA] with b = J(π) is J(π') − J(π) at any distance: largest difference"
            f" {at}",
            measured=largest(surrogate, 1.0),
            expected=0.0,
        ),
        exact(
            "One token: so is it with the mean of the others as the baseline: largest difference"
            f" {at}",
            measured=largest(change(surrogate, baseline=LeaveOneOut()), 1.0),
            expected=0.0,
        ),
        exact(
            "One token: a mean that includes the sample leaves (G−1)/G of it: largest difference"
            f" {at}",
            measured=largest(ladder.surrogate, (group - 1) / group),
            expected=0.0,
        ),
        exact(
            f"Standard deviation of one group's estimate is √((E[ρ²A²] − (J'−J)²)/G) {end}",
            measured=objective_moments(surrogate, listed, group)[1],
            expected=math.sqrt((square - last["gain"] ** 2) / group),
        ),
        exact(
            "G samples are worth G/E[ρ²]; for π' ∝ π·exp(λr), E[ρ²] = Z(2λ)/Z(λ)², Z(λ) = Σπ"
            f" exp(λr) {end}",
            measured=last["second"],
            expected=two / one**2,
        ),
        exact(
            f"The effective share 1/E[ρ²] is never above exp(−KL(π'‖π)) {at}",
            measured=all(1 / p["second"] <= math.exp(-p["kl"]) + 1e-12 for p in points),
            expected=True,
        ),
        exact(
            f"The clip's objective is nowhere above the true improvement, on average {at}",
            measured=max(mean(clip, point) - point["gain"] for point in points) <= 1e-12,
            expected=True,
        ),
    ]


def by_hand(task: Sums, strength: float) -> tuple[float, float]:
    """E[Σ_t ρ_t A] of token ratios at λ = `strength`, added up over all answers; and the cosine of
    its gradient and ∇J(π'), both by automatic differentiation.
    """
    (_, reward), before = answers(task), start(task)
    old_tokens = token_log_probs(logits_of(before, task), task)
    logits = logits_of(tilted(before, reward, strength), task).requires_grad_()
    now = token_log_probs(logits, task)
    advantage = reward - before.exp() @ reward
    surrogate = (before.exp() * (now - old_tokens).exp().sum(-1) * advantage).sum()
    value = (now.sum(-1).exp() * reward).sum()
    one, other = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (surrogate, value))
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0)
    return surrogate.item(), cosine.item()


def _several_facts(settings: Settings, points: list[dict[str, Any]]) -> list[Fact]:
    task, last, count = settings.task, points[-1], settings.tokens
    surrogate, cosine = by_hand(task, settings.farthest)
    near = [_several_tokens(task, strength) for strength in (1e-3, 2e-3)]
    error = [point["gain"] - point["token"] for point in near]
    tokens, power = _independent_tokens(settings)
    at = f"({count} tokens, λ up to {settings.farthest:g})"
    end = f"({count} tokens, λ = {settings.farthest:g}, KL(π'‖π) = {last['kl']:.2f})"
    kakade = partial(Fact.exact, source=KAKADE, number=8)
    exact = partial(Fact.exact, source="derived", number=8)
    return [
        kakade(
            f"With the sequence's ratio E[ρA] is J(π') − J(π): largest difference {at}",
            measured=max(abs(p["whole"] - p["gain"]) for p in points),
            expected=0.0,
        ),
        kakade(
            "With the sequence's ratio the expected gradient is ∇J(π'): largest relative bias"
            f" {at}",
            measured=max(p["whole_bias"] for p in points),
            expected=0.0,
        ),
        kakade(
            f"With token ratios it is so at π itself: relative bias at λ = 0 ({count} tokens)",
            measured=points[0]["token_bias"],
            expected=0.0,
        ),
        exact(
            "With token ratios the value is off in second order: exponent of λ in its error as λ →"
            f" 0 ({count} tokens)",
            measured=math.log2(error[1] / error[0]),
            expected=2.0,
            digits=3,  # the next order is λ itself, 1e-3 here
        ),
        exact(
            f"With token ratios the surrogate is E[Σ_t ρ_t A], added up by hand {end}",
            measured=last["token"],
            expected=surrogate,
        ),
        exact(
            "With token ratios the surrogate is off: |error| as a share of J(π') − J(π), added up"
            f" by hand {end}",
            measured=abs(1 - last["token"] / last["gain"]),
            expected=abs(1 - surrogate / last["gain"]),
        ),
        exact(
            "With token ratios the expected gradient points elsewhere: 1 − cosine with ∇J(π'), by"
            f" automatic differentiation of the sum {end}",
            measured=1 - last["token_cosine"],
            expected=1 - cosine,
        ),
        exact(
            f"The same move on each of {count} tokens: E[ρ²] is that of one token to the power"
            f" {count} (λ = {settings.farthest:g})",
            measured=tokens,
            expected=power,
        ),
    ]


def _independent_tokens(settings: Settings) -> tuple[float, float]:
    """E[ρ²] of answers whose tokens are each drawn and tilted alike, listed; and that of one token
    to the power T.
    """
    task = Sums(settings.tokens, len(B3_POLICY))
    now, every = tilted(old.log(), means, settings.farthest), answers(task)[0]
    listed = sequences(task, now[every].sum(-1), old.log()[every].sum(-1))
    return second_moment(listed), float((2 * now - old.log()).exp().sum()) ** settings.tokens


def _natural_fact() -> Fact:
    """One natural step of length 1 with the exact gradient, by conjugate gradient, on B3."""
    policy = Softmax.of(old.unsqueeze(0))
    bandit = every_arm(Deterministic(means.unsqueeze(0)), policy)
    optimizer, noise = NaturalGradient(1.0, damping=0.0), Noise((), dtype=torch.float64)
    Learner(bandit, ladder.surrogate, optimizer, noise).train(1)
    step = (policy.logits.detach() - old.log())[0]
    advantage = means - old @ means
    gap = (step - step.mean() - (advantage - advantage.mean())).abs().max()
    claim = (
        "F⁺∇J = A − (unweighted mean of A): largest difference from conjugate gradient on the"
        " Fisher matrix (B3)"
    )
    return Fact.exact(claim, "Kakade 2001; derived", gap, 0.0, number=8)


# ---------------------------------------------------------------- figure

CAPTION = (
    "Enumerated, not sampled. Top: B3, one token per answer, G samples per group; bands are ± 1"
    " standard deviation of one group's estimate. Bottom: answers of several tokens, right if the"
    " tokens have a given sum."
)
TOKEN: dict[str, Any] = {"color": "#b8320f", "linestyle": figures.SOLID, "label": "token ratios"}
WHOLE: dict[str, Any] = {"color": "#0057a3", "linestyle": figures.SOLID, "label": "sequence ratio"}
SHOWN_TOKENS = (1, 2, 4, 16)


def plot(result: Result) -> Figure:
    """True improvement and surrogates; effective samples; token against sequence ratios, in value
    and in gradient.
    """
    figure, (value, samples, tokens, gradient) = figures.new_figure(2, 2, width=11.5, height=8.0)
    kl, answer = result.array("one", "kl"), result.array("several", "kl")
    mean, std = result.array("one", "mean"), result.array("one", "std")
    truth = "J(π') − J(π)"
    for i, name in enumerate(result.settings["rungs"]):
        title = {"surrogate": "ρA"}.get(name) or ladder.get(name).title
        figures.band(value, kl, mean[:, i], std[:, i], name, label=title)
    figures.expectation(value, result.array("one", "gain"), kl, label=truth)
    second = result.array("one", "second")
    for count, colour in zip(SHOWN_TOKENS, figures.shades(len(SHOWN_TOKENS)), strict=True):
        label = "1 token" if count == 1 else f"{count} tokens"
        samples.plot(kl, 100 * second**-count, color=colour, linewidth=2.0, label=label)
        figures.expectation(samples, 100 * np.exp(-count * kl), kl)
    figures.log_axis(samples, "y", [0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
    samples.set_ylim(0.1, 120)
    most = "dashed: exp(−KL),\nthe most that is possible"
    figures.note(samples, most, (0.03, 0.04), xycoords="axes fraction")
    figures.band(tokens, answer, result.array("several", "whole"), **WHOLE)
    figures.band(tokens, answer, result.array("several", "token"), **TOKEN)
    figures.expectation(tokens, result.array("several", "gain"), answer, label=truth)
    figures.band(gradient, answer, result.array("several", "whole_cosine"), **WHOLE)
    figures.band(gradient, answer, result.array("several", "token_cosine"), **TOKEN)
    figures.expectation(gradient, 1.0)
    gradient.set_ylim(0, 1.08)
    group, count = result.settings["group"], result.settings["tokens"]
    whole_kl = "KL(π'‖π) of the answer, nats"
    for ax, axis, title, x, y in (
        (
            value,
            kl,
            "One token: the surrogate is exact, and noisy",
            "KL(π'‖π), nats",
            f"improvement (groups of {group})",
        ),
        (
            samples,
            kl,
            "What falls is the effective sample size",
            "KL(π'‖π) per token, nats",
            "effective share 1/E[ρ²]",
        ),
        (tokens, answer, f"{count} tokens: token ratios fall short", whole_kl, "improvement"),
        (
            gradient,
            answer,
            "… and further out they turn away from ∇J",
            whole_kl,
            "cosine of E[ĝ] and ∇J(π')",
        ),
    ):
        _kl_axis(ax, axis)
        figures.describe(ax, title, x, y)
        figures.label_ends(ax)
    figures.reference(value, x=0.01, label="TRPO's usual KL", color="#999999")
    return figure


def _kl_axis(ax: Axes, kl: Array) -> None:
    """KL on a square-root scale, on which a steady move is a steady distance."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    places = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4, 2.0)
    ticks = [tick for tick in places if tick <= 1.02 * kl[-1]]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(0, 1.01 * kl[-1])
