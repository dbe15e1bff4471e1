"""The surrogate is exact, and still one must not go far: what gives out is the number of samples.

Samples come from π, and the question is how good another policy π' is. With one token per answer
J(π') = J(π) + E_π[ρA], ρ = π'/π and A = r − J(π): an identity at any distance, not an
approximation. But an average over G samples weighted by ρ is worth only G/E_π[ρ²] samples of π',
and the spread of the estimate grows as π' moves away: that, and nothing else, is what a trust
region is for here. With several tokens per answer the product of their ratios, the sequence's
ratio, keeps the identity and pays with effective samples that fall exponentially in the number of
tokens; a ratio for each token on its own is cheap in samples, right in its gradient at π, and wrong
further out.

Everything is enumerated: each rung's objective is evaluated on every group that can occur. π' ∝
π·exp(λr) moves straight towards reward: the natural gradient's path, F⁺∇J = A − mean(A).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from dataclasses import replace as change
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.policies import Softmax
from bandits.population import every_arm
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import Outcomes, every_group, microscope, sampling_probability
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import Constant, LeaveOneOut, NoKL, NoScale, SequenceMean, SequenceRatio
from course.rollout import Policy, Rollout
from course.train.noise import Noise
from course.train.trust_region import NaturalGradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "the surrogate is exact at any distance; the effective number of samples is what falls"
EXPECTED_SECONDS = 2.0
Array = NDArray[np.float64]
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
    seed: int = 0  # unused: nothing is random here

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rungs) > 0, "rungs", self.rungs, "at least one name")
        require(
            2 <= self.group <= 12,
            "group",
            self.group,
            "from 2 to 12: all groups of 6 outcomes are listed",
        )
        require(2 <= self.tokens <= 5, "tokens", self.tokens, "from 2 to 5: all answers are listed")
        require(2 <= self.words <= 4, "words", self.words, "from 2 to 4: all answers are listed")
        require(0 < self.farthest <= 20, "farthest", self.farthest, "a number above 0, at most 20")
        require(self.points >= 3, "points", self.points, "a whole number ≥ 3")


SETTINGS = Settings()


# ---------------------------------------------------------------- policies over answers, listed


def tilted(log_prob: Tensor, reward: Tensor, strength: float) -> Tensor:
    """log π' of π' ∝ π·exp(λr), over answers: [K], [K] → [K]."""
    return torch.log_softmax(log_prob + strength * reward, -1)


def answers(settings: Settings) -> tuple[Tensor, Tensor]:
    """Every answer [K, T] (K = words^tokens) and its reward [K]: 1 if the tokens sum to the middle
    of what they can, else 0.
    """
    every = torch.tensor(list(itertools.product(range(settings.words), repeat=settings.tokens)))
    middle = settings.tokens * (settings.words - 1) // 2
    return every, (every.sum(-1) == middle).double()


def start(settings: Settings) -> Tensor:
    """log π of every answer [K]: token w with probability ∝ words − w, at each place alike."""
    word = torch.arange(settings.words, 0, -1, dtype=torch.float64)
    return (word / word.sum()).log()[answers(settings)[0]].sum(-1)


def prefix_rows(settings: Settings) -> Tensor:
    """[K, T] for each token of each answer, the number of the prefix before it: a policy has a row
    of logits for each.
    """
    every, _ = answers(settings)
    before = [
        sum(settings.words**s for s in range(t)) for t in range(settings.tokens)
    ]  # shorter prefixes come first
    number = [torch.zeros(len(every), dtype=torch.long)]
    for t in range(settings.tokens - 1):
        number.append(number[-1] * settings.words + every[:, t])
    return torch.stack(number, -1) + torch.tensor(before)


def logits_of(log_prob: Tensor, settings: Settings) -> Tensor:
    """The table of logits [prefixes, words] whose answers have the probabilities exp(log_prob) [K]:
    the mass that passes.
    """
    every, _ = answers(settings)
    rows = prefix_rows(settings)
    mass = torch.zeros(int(rows.max()) + 1, settings.words, dtype=log_prob.dtype)
    return mass.index_put(
        (rows, every), log_prob.exp().unsqueeze(-1).expand(rows.shape), accumulate=True
    ).log()


def token_log_probs(logits: Tensor, settings: Settings) -> Tensor:
    """log π(token | the tokens before it) of every answer: a table of logits [prefixes, words] →
    [K, T].
    """
    return torch.log_softmax(logits, -1)[prefix_rows(settings), answers(settings)[0]]


def sequences(settings: Settings, now: Tensor, old: Tensor) -> Outcomes:
    """All answers of several tokens, under a policy `now` [K] over answers, with samples from `old`
    [K].
    """
    every, reward = answers(settings)
    logits, last = logits_of(now, settings), torch.arange(settings.tokens) == settings.tokens - 1
    score = torch.autograd.functional.jacobian(
        lambda table: token_log_probs(table, settings), logits
    )
    return Outcomes.of_sequences(
        token_log_probs(logits, settings).unsqueeze(0),
        (reward.unsqueeze(-1) * last).unsqueeze(0),
        score=score.reshape(1, *every.shape, -1),
        old_log_prob=token_log_probs(logits_of(old, settings), settings).unsqueeze(0),
    )


def bernoulli_arms(now: Tensor, old: Tensor) -> Outcomes:
    """B3's three arms, each paying 1 or 0, under a policy `now` [3] with samples from `old` [3]."""
    chance = torch.tensor(B3_MEANS, dtype=torch.float64)
    paid = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(3, 2)
    return Outcomes.of_arms(
        now.unsqueeze(0),
        paid.unsqueeze(0),
        chance=torch.stack([chance, 1 - chance], -1).unsqueeze(0),
        old_log_prob=old.unsqueeze(0),
    )


# ---------------------------------------------------------------- exact moments of an objective


def objective_moments(estimator: Estimator, outcomes: Outcomes, group: int) -> tuple[float, float]:
    """Mean and standard deviation of the estimator's objective over every group of samples of one
    prompt.

    For ρA with b = J(π) and the ratio of whole answers the mean is J(π') − J(π):
    `eq:surrogate-identity`.
    """
    groups = every_group(estimator, outcomes, group)
    index, weight = groups.outcome[:, 0], groups.chance
    rollout = Rollout(
        reward=outcomes.reward[0][index].unsqueeze(1),
        log_prob=outcomes.old[0][index].unsqueeze(1),
        mask=outcomes.mask[0][index].unsqueeze(1),
    )
    value = estimator.objective(
        Policy(outcomes.log_prob[0][index].unsqueeze(1)), estimator.freeze(rollout)
    )
    mean = (weight * value).sum()
    return float(mean), float((weight * (value - mean) ** 2).sum().sqrt())


def second_moment(outcomes: Outcomes) -> float:
    """E_π[ρ²], ρ of whole answers: G samples are worth G/E[ρ²] (Kish 1965).

    At least exp KL(π'‖π), by Jensen's inequality.

    `eq:effective-samples`.
    """
    log_ratio = (outcomes.log_prob - outcomes.old).sum(-1)
    return float((sampling_probability(outcomes) * (2 * log_ratio).exp()).sum())


def distance(outcomes: Outcomes) -> float:
    """KL(π'‖π) of whole answers, in nats."""
    log_ratio = (outcomes.log_prob - outcomes.old).sum(-1)
    return float((sampling_probability(outcomes) * log_ratio.exp() * log_ratio).sum())


def centred(estimator: Estimator, value: float) -> Estimator:
    """The estimator with b = J(π), no scale and no KL: what the identity E[ρA] = J(π') − J(π)
    speaks of.
    """
    return change(estimator, baseline=Constant(value), scale=NoScale(), kl=NoKL())


# ---------------------------------------------------------------- running


def run(settings: Settings, progress: Progress) -> Result:
    """One token per answer, then several; then the facts."""
    strengths = torch.linspace(0, settings.farthest, settings.points, dtype=torch.float64)
    one = [_one_token(settings, float(s)) for s in progress(strengths.tolist(), "one token")]
    several = [
        _several_tokens(settings, float(s)) for s in progress(strengths.tolist(), "several tokens")
    ]
    series = {
        "one": {key: [point[key] for point in one] for key in one[0]},
        "several": {key: [point[key] for point in several] for key in several[0]},
    }
    facts = [*_one_facts(settings, one), *_several_facts(settings, several), _natural_fact()]
    return Result(series=series, facts=facts, caption=CAPTION)


def _one_token(settings: Settings, strength: float) -> dict[str, Any]:
    """What each rung's objective says of π' at λ = `strength`, on B3."""
    old, means = (torch.tensor(numbers, dtype=torch.float64) for numbers in (B3_POLICY, B3_MEANS))
    now = tilted(old.log(), means, strength)
    listed, before = bernoulli_arms(now, old.log()), float(old @ means)
    moments = {
        name: objective_moments(centred(ladder.get(name).estimator, before), listed, settings.group)
        for name in settings.rungs
    }
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ means) - before,
        "second": second_moment(listed),
        "mean": [mean for mean, _ in moments.values()],
        "std": [std for _, std in moments.values()],
    }


def _several_tokens(settings: Settings, strength: float) -> dict[str, Any]:
    """The surrogate with token and with sequence ratios, its value and its gradient, at λ =
    `strength`.
    """
    (_, reward), old = answers(settings), start(settings)
    now = tilted(old, reward, strength)
    listed, before = sequences(settings, now, old), float(old.exp() @ reward)
    token = centred(ladder.surrogate, before)
    whole = change(token, ratio=SequenceRatio())
    # a sequence's ratio stands on each of its T tokens, so the mean over them is ρA; the gradient
    # needs the sum
    value = change(whole, aggregation=SequenceMean())
    bias = {
        name: microscope(estimator, listed, 1, covariance=False)
        for name, estimator in (("token", token), ("whole", whole))
    }
    return {
        "strength": strength,
        "kl": distance(listed),
        "gain": float(now.exp() @ reward) - before,
        "second": second_moment(listed),
        "token": objective_moments(token, listed, 1)[0],
        "whole": objective_moments(value, listed, 1)[0],
        "token_bias": bias["token"].relative_bias,
        "whole_bias": bias["whole"].relative_bias,
        "token_cosine": bias["token"].cosine,
        "whole_cosine": bias["whole"].cosine,
    }


# ---------------------------------------------------------------- facts


def _one_facts(settings: Settings, points: list[dict[str, Any]]) -> list[Fact]:
    old, means = (torch.tensor(numbers, dtype=torch.float64) for numbers in (B3_POLICY, B3_MEANS))
    group, before, last = settings.group, float(old @ means), points[-1]
    last_policy = tilted(old.log(), means, settings.farthest)
    listed = bernoulli_arms(last_policy, old.log())
    at = f"B3, λ up to {settings.farthest:g}, G = {group}"
    end = f"B3, λ = {settings.farthest:g}, G = {group}"

    def mean(estimator: Estimator, point: dict[str, Any]) -> float:
        outcomes = bernoulli_arms(tilted(old.log(), means, point["strength"]), old.log())
        return objective_moments(estimator, outcomes, group)[0]

    def largest(estimator: Estimator, factor: float) -> float:
        return max(abs(mean(estimator, point) - factor * point["gain"]) for point in points)

    surrogate = centred(ladder.surrogate, before)
    ratio, advantage = listed.log_prob.exp() / listed.old.exp(), listed.reward - before
    square = float((sampling_probability(listed).unsqueeze(-1) * (ratio * advantage) ** 2).sum())
    spread = math.sqrt((square - last["gain"] ** 2) / group)
    total = [
        float((old * (strength * means).exp()).sum())
        for strength in (settings.farthest, 2 * settings.farthest)
    ]
    clip = centred(ladder.clip, before)
    over = max(mean(clip, point) - point["gain"] for point in points)
    facts = [
        (
            (
                "One token: E[ρA] with b = J(π) is J(π') − J(π) at any distance: largest"
                f" difference ({at})"
            ),
            largest(surrogate, 1.0),
            0.0,
        ),
        (
            (
                "One token: so is it with the mean of the others as the baseline: largest"
                f" difference ({at})"
            ),
            largest(change(surrogate, baseline=LeaveOneOut()), 1.0),
            0.0,
        ),
        (
            (
                "One token: a mean that includes the sample leaves (G−1)/G of it: largest"
                f" difference ({at})"
            ),
            largest(ladder.surrogate, (group - 1) / group),
            0.0,
        ),
        (
            f"Standard deviation of one group's estimate is √((E[ρ²A²] − (J'−J)²)/G) ({end})",
            objective_moments(surrogate, listed, group)[1],
            spread,
        ),
        (
            (
                "G samples are worth G/E[ρ²]; for π' ∝ π·exp(λr), E[ρ²] = Z(2λ)/Z(λ)², Z(λ) = Σπ"
                f" exp(λr) ({end})"
            ),
            last["second"],
            total[1] / total[0] ** 2,
        ),
        (
            f"The effective share 1/E[ρ²] is never above exp(−KL(π'‖π)) ({at})",
            all(1 / p["second"] <= math.exp(-p["kl"]) + 1e-12 for p in points),
            True,
        ),
        (
            f"The clip's objective is nowhere above the true improvement, on average ({at})",
            over <= 1e-12,
            True,
        ),
    ]
    return [
        Fact.exact(
            claim,
            KAKADE if claim.startswith("One token: E[ρA]") else "derived",
            measured,
            expected,
            number=8,
        )
        for claim, measured, expected in facts
    ]


def _several_facts(settings: Settings, points: list[dict[str, Any]]) -> list[Fact]:
    (_, reward), old, last = answers(settings), start(settings), points[-1]
    now = tilted(old, reward, settings.farthest)
    ratio = (
        token_log_probs(logits_of(now, settings), settings)
        - token_log_probs(logits_of(old, settings), settings)
    ).exp()
    by_hand = float((old.exp() * ratio.sum(-1) * (reward - old.exp() @ reward)).sum())
    near = [_several_tokens(settings, strength) for strength in (1e-3, 2e-3)]
    order = math.log2((near[1]["gain"] - near[1]["token"]) / (near[0]["gain"] - near[0]["token"]))
    count, worth = settings.tokens, _independent_tokens(settings)
    at, end = (
        f"{count} tokens, λ up to {settings.farthest:g}",
        f"{count} tokens, λ = {settings.farthest:g}, KL(π'‖π) = {last['kl']:.2f}",
    )

    def exact(
        claim: str, measured: float, expected: float, digits: int = 9, source: str = KAKADE
    ) -> Fact:
        return Fact.exact(claim, source, measured, expected, digits, number=8)

    def above(claim: str, measured: float) -> Fact:
        return Fact.above(f"{claim} ({end})", "enumerated", measured, 0.0, number=8)

    off = max(abs(p["whole"] - p["gain"]) for p in points)
    return [
        exact(
            f"With the sequence's ratio E[ρA] is J(π') − J(π): largest difference ({at})", off, 0.0
        ),
        exact(
            "With the sequence's ratio the expected gradient is ∇J(π'): largest relative bias"
            f" ({at})",
            max(p["whole_bias"] for p in points),
            0.0,
        ),
        exact(
            f"With token ratios it is so at π itself: relative bias at λ = 0 ({count} tokens)",
            points[0]["token_bias"],
            0.0,
        ),
        exact(
            "With token ratios the value is off in second order: exponent of λ in its error as λ →"
            f" 0 ({count} tokens)",
            order,
            2.0,
            2,
            "derived",
        ),
        exact(
            f"With token ratios the surrogate is E[Σ_t ρ_t A], added up by hand ({end})",
            last["token"],
            by_hand,
            source="derived",
        ),
        above(
            "With token ratios the surrogate is off: |error| as a share of J(π') − J(π)",
            abs(1 - last["token"] / last["gain"]),
        ),
        above(
            "With token ratios the expected gradient points elsewhere: 1 − cosine with ∇J(π')",
            1 - last["token_cosine"],
        ),
        exact(
            f"The same move on each of {count} tokens: E[ρ²] is that of one token to the power"
            f" {count} (λ = {settings.farthest:g})",
            *worth,
            source="derived",
        ),
    ]


def _independent_tokens(settings: Settings) -> tuple[float, float]:
    """E[ρ²] of answers whose tokens are each drawn and tilted alike, listed; and that of one token
    to the power T.
    """
    sized = change(settings, words=len(B3_POLICY))
    old = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    now = tilted(old, torch.tensor(B3_MEANS, dtype=torch.float64), settings.farthest)
    every, _ = answers(sized)
    single = float((2 * now - old).exp().sum())
    return (
        second_moment(sequences(sized, now[every].sum(-1), old[every].sum(-1))),
        single**settings.tokens,
    )


def _natural_fact() -> Fact:
    """One natural step of length 1 with the exact gradient, by conjugate gradient, on B3."""
    means = torch.tensor([B3_MEANS], dtype=torch.float64)
    old = torch.tensor([B3_POLICY], dtype=torch.float64)
    policy = Softmax.of(old)
    learner = Learner(
        every_arm(Deterministic(means), policy),
        ladder.surrogate,
        NaturalGradient(1.0, damping=0.0),
        Noise((), dtype=torch.float64),
    )
    learner.train(1)
    step = (policy.logits.detach() - old.log())[0]
    advantage = means[0] - (old * means).sum()
    gap = (step - step.mean() - (advantage - advantage.mean())).abs().max()
    claim = (
        "F⁺∇J = A − (unweighted mean of A): largest difference from conjugate gradient on the"
        " Fisher matrix (B3)"
    )
    return Fact.exact(claim, "Kakade 2001; derived", gap, 0.0, number=8)


# ---------------------------------------------------------------- drawing

CAPTION = (
    "Enumerated, not sampled. Top: B3, one token per answer, G samples per group; bands are ± 1"
    " standard deviation of one group's estimate. Bottom: answers of several tokens, right if the"
    " tokens have a given sum."
)
TOKEN, WHOLE = "#b8320f", "#0057a3"
SHOWN_TOKENS = (1, 2, 4, 16)


def plot(result: Result) -> Figure:
    """True improvement and surrogates; effective samples; token against sequence ratios, in value
    and in gradient.
    """
    figure, (value, samples, tokens, gradient) = figures.new_figure(2, 2, width=11.5, height=8.0)
    _values(value, result)
    _samples(samples, result)
    _tokens(tokens, result)
    _gradients(gradient, result)
    return figure


def _kl_axis(ax: Axes, kl: Array) -> None:
    """KL on a square-root scale, on which a steady move is a steady distance; TRPO's usual one,
    0.01, is marked.
    """
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = [
        tick for tick in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4, 2.0) if tick <= 1.02 * kl[-1]
    ]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(0, 1.01 * kl[-1])
    ax.axvline(0.01, color="#999999", linewidth=1.0, zorder=1)


def _values(ax: Axes, result: Result) -> None:
    kl, names = result.array("one", "kl"), result.settings["rungs"]
    mean, std = result.array("one", "mean"), result.array("one", "std")
    lines = []
    for i, name in enumerate(names):
        title = {"surrogate": "ρA"}.get(name) or ladder.get(name).title
        lines.append(figures.band(ax, kl, mean[:, i], std[:, i], name, label=title))
    lines.append(figures.expectation(ax, result.array("one", "gain"), kl, label="J(π') − J(π)"))
    _kl_axis(ax, kl)
    ax.text(
        0.0115,
        0.98,
        "TRPO's usual KL",
        transform=ax.get_xaxis_transform(),
        fontsize=10,
        color="#666666",
        va="top",
    )
    figures.describe(
        ax,
        "One token: the surrogate is exact, and noisy",
        "KL(π'‖π), nats",
        f"improvement (groups of {result.settings['group']})",
    )
    figures.label_ends(ax, lines)


def _samples(ax: Axes, result: Result) -> None:
    kl, second = result.array("one", "kl"), result.array("one", "second")
    lines = []
    for tokens, colour in zip(SHOWN_TOKENS, figures.shades(len(SHOWN_TOKENS)), strict=True):
        label = "1 token" if tokens == 1 else f"{tokens} tokens"
        lines += ax.plot(kl, 100 * second**-tokens, color=colour, linewidth=2.0, label=label)
        figures.expectation(ax, 100 * np.exp(-tokens * kl), kl)
    _kl_axis(ax, kl)
    ax.set_yscale("log")
    ax.set_ylim(0.1, 120)
    ax.set_yticks([0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
    figures.describe(
        ax,
        "What falls is the effective sample size",
        "KL(π'‖π) per token, nats",
        "effective share 1/E[ρ²]",
    )
    ax.text(
        0.03,
        0.04,
        "dashed: exp(−KL),\nthe most that is possible",
        transform=ax.transAxes,
        fontsize=10,
        color=figures.INK,
    )
    figures.label_ends(ax, lines)


def _tokens(ax: Axes, result: Result) -> None:
    kl = result.array("several", "kl")
    lines = [
        figures.band(
            ax,
            kl,
            result.array("several", "whole"),
            label="sequence ratio",
            color=WHOLE,
            linestyle=figures.SOLID,
        ),
        figures.band(
            ax,
            kl,
            result.array("several", "token"),
            label="token ratios",
            color=TOKEN,
            linestyle=figures.SOLID,
        ),
        figures.expectation(ax, result.array("several", "gain"), kl, label="J(π') − J(π)"),
    ]
    _kl_axis(ax, kl)
    figures.describe(
        ax,
        f"{result.settings['tokens']} tokens: token ratios fall short",
        "KL(π'‖π) of the answer, nats",
        "improvement",
    )
    figures.label_ends(ax, lines)


def _gradients(ax: Axes, result: Result) -> None:
    kl = result.array("several", "kl")
    lines = [
        figures.band(
            ax,
            kl,
            result.array("several", "whole_cosine"),
            label="sequence ratio",
            color=WHOLE,
            linestyle=figures.SOLID,
        ),
        figures.band(
            ax,
            kl,
            result.array("several", "token_cosine"),
            label="token ratios",
            color=TOKEN,
            linestyle=figures.SOLID,
        ),
    ]
    figures.expectation(ax, 1.0)
    _kl_axis(ax, kl)
    ax.set_ylim(0, 1.08)
    figures.describe(
        ax,
        "… and further out they turn away from ∇J",
        "KL(π'‖π) of the answer, nats",
        "cosine of E[ĝ] and ∇J(π')",
    )
    figures.label_ends(ax, lines)
