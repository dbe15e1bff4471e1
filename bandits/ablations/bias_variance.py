"""What a baseline buys, exactly: the length and the noise of the gradient against the size of the
group.

On B3 (π = (.5, .3, .2), Bernoulli means .2, .5, .8) every group that can be drawn is listed, so
nothing here is estimated.

Look for three things. Group means shorten the gradient a little, dividing by the std lengthens it,
and neither turns it. With two samples per prompt leave-one-out is noisier than no baseline at all:
comparing with one other sample costs more than it saves; the crossing lies between two and three
samples. And a shift of all rewards, which changes nothing about what is best, makes plain REINFORCE
tens of times noisier and leaves everything centred as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bandits.exact import b3
from course import ladder
from course.errors import require
from course.estimator import replace
from course.exact import (
    Outcomes,
    covariance_at_baseline,
    every_group,
    gradient,
    group_mean_factor,
    group_std_weight,
    microscope,
    objective,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    probability,
    rloo_covariance,
    rloo_crossover,
    variance_at_baseline,
)
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import Constant

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
SPAN = torch.linspace(-0.1, 1.05, 47, dtype=torch.float64)  # baselines whose variance is drawn


def canonical(offset: float = 0.0) -> Outcomes:
    """B3 with a critic that knows J and the policy itself as the reference, so that every rung can
    be asked.
    """
    plain = b3(offset=offset)
    return b3(
        reference=plain.log_prob.new_tensor([[0.5, 0.3, 0.2]]).log(),
        value=torch.tensor([objective(plain)]).double(),
        offset=offset,
    )


def baselines(outcomes: Outcomes) -> dict[str, Tensor]:
    """The four baselines of `BASELINES`: [1], or [1, D] one per logit."""
    mean = torch.tensor([objective(outcomes)], dtype=torch.float64)
    best = optimal_baseline(outcomes), optimal_baseline_per_coordinate(outcomes)
    return {"none": torch.zeros_like(mean), "mean": mean, "scalar": best[0], "coordinate": best[1]}


def enumerated_variance(outcomes: Outcomes, baseline: Tensor) -> float:
    """The variance of one sample at `baseline` [1] or [1, D]: the microscope on an estimator with
    that constant, logit by logit.
    """
    total = 0.0
    for d, b in enumerate(baseline.expand(1, outcomes.score.shape[-1])[0].tolist()):
        covariance = microscope(
            replace(ladder.reinforce, baseline=Constant(b)), outcomes, 2
        ).covariance
        assert covariance is not None
        total += 2 * float(covariance[d, d])
    return total


def run(settings: Settings, progress: Progress) -> Result:
    """Every rung at every group size, and the variance of one sample at every baseline."""
    outcomes = canonical()
    curves: dict[str, dict[str, list[float]]] = {}
    for name in progress(settings.rungs, "rungs"):
        seen = [
            microscope(ladder.get(name).estimator, outcomes, group) for group in settings.groups
        ]
        length = [float(one.expected.norm() / one.gradient.norm()) for one in seen]
        curves[name] = {
            "length": length,
            "cosine": [one.cosine for one in seen],
            "variance": [
                one.variance * group for one, group in zip(seen, settings.groups, strict=True)
            ],
            "noise": [
                one.variance * group / size**2
                for one, group, size in zip(seen, settings.groups, length, strict=True)
            ],
        }
    here, there = canonical(), canonical(settings.offset)
    series = {
        "groups": settings.groups,
        "rungs": curves,
        "expected": expected_curves(outcomes, settings.groups),
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
    return Result(series=series, facts=_facts(settings), caption=CAPTION)


def expected_curves(
    outcomes: Outcomes, groups: tuple[int, ...]
) -> dict[str, dict[str, list[float]]]:
    """Closed forms of "length" and "noise" for the estimators that have one."""
    none, mean = (float(variance_at_baseline(outcomes, b)) for b in (0.0, objective(outcomes)))
    pair = [group * float(rloo_covariance(outcomes, group)[0].trace()) for group in groups]
    one = [1.0] * len(groups)
    return {
        "reinforce": {"length": one, "noise": [none] * len(groups)},
        "ppo_value": {"length": one, "noise": [mean] * len(groups)},
        "rloo": {"length": one, "noise": pair},
        "group_mean": {"length": [group_mean_factor(group) for group in groups], "noise": pair},
        "group_std": {
            "length": [
                float(group_std_weight(objective(outcomes), group, eps=1e-6)) for group in groups
            ]
        },
    }


# ---------------------------------------------------------------- facts


def _facts(settings: Settings) -> list[Fact]:
    return [
        *_identity(settings.listed),
        *_best_baselines(settings.offset),
        *_crossover(settings.groups),
    ]


def pair_gradient(reward: Tensor, score: Tensor) -> Tensor:
    """Σ_{i<j} (r_i − r_j)(s_i − s_j) / (G(G−1)): rewards [M, G], scores [M, G, D] → [M, D].

    Every pair counts twice here, hence the 2.

    eq:pairs-of-samples
    """
    group = reward.shape[-1]
    difference = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    apart = score.unsqueeze(-2) - score.unsqueeze(-3)
    return torch.einsum("mij,mijd->md", difference, apart) / (2 * group * (group - 1))


def sample_covariance(reward: Tensor, score: Tensor) -> Tensor:
    """Σ_i (r_i − r̄)(s_i − s̄) / (G − 1): rewards [M, G], scores [M, G, D] → [M, D].

    eq:covariance-of-reward-and-score
    """
    centred = reward - reward.mean(-1, keepdim=True)
    return torch.einsum("mi,mid->md", centred, score - score.mean(-2, keepdim=True)) / (
        reward.shape[-1] - 1
    )


def _identity(group: int) -> list[Fact]:
    """The covariance identity on every group that can be drawn."""
    outcomes = canonical()
    loo, mean = (
        every_group(ladder.rloo, outcomes, group),
        every_group(ladder.group_mean, outcomes, group),
    )
    drawn = loo.outcome[:, 0]
    reward, score = outcomes.total_reward[0][drawn], outcomes.total_score[0][drawn]
    of_all = f"of all {len(drawn)} groups of {group} on B3"
    worst = {
        "pairs": (loo.gradient - pair_gradient(reward, score)).abs().max(),
        "covariance": (loo.gradient - sample_covariance(reward, score)).abs().max(),
        "shrunk": (mean.gradient - group_mean_factor(group) * loo.gradient).abs().max(),
    }
    average = torch.einsum("m,md->d", loo.chance, loo.gradient)
    source = "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)"
    pairs = "RLOO's gradient is Σ_{i<j} (r_i − r_j)(s_i − s_j)/(G(G−1))"
    covariance = "RLOO's gradient is the sample covariance of reward and score"
    shrunk = "A group mean that includes the sample gives (G−1)/G of RLOO's gradient"
    claims = {
        f"{pairs}: largest difference {of_all}": worst["pairs"],
        f"{covariance}: largest difference {of_all}": worst["covariance"],
        f"{shrunk}: largest difference {of_all}": worst["shrunk"],
        f"RLOO's gradient, averaged over them, is ∇J: largest difference, {group} samples on B3": (
            (average - gradient(outcomes)).abs().max()
        ),
    }
    return [
        Fact.exact(claim, source, difference, 0.0, number=3) for claim, difference in claims.items()
    ]


def _best_baselines(offset: float) -> list[Fact]:
    """Variances at the four baselines, by the microscope and by formula; then with every reward
    shifted.
    """
    here, there = canonical(), canonical(offset)
    p, reward, square = (
        probability(here)[0],
        here.total_reward[0],
        here.total_score[0].square().sum(-1),
    )
    source = "Weaver & Tao 2001; Greensmith et al. 2004"
    claim = (
        "The constant baseline with the least variance on B3 is E[r‖s‖²]/E‖s‖² (from enumerated"
        " variances at three baselines)"
    )
    facts = [
        Fact.exact(
            claim,
            source,
            lowest_point(here),
            (p * reward * square).sum() / (p * square).sum(),
            number=4,
        )
    ]
    before, after = baselines(here), baselines(there)
    for name, b in before.items():
        claim = (
            f"Variance of one sample's gradient on B3, baseline: {BASELINES[name]} (enumerated;"
            " expected: the formula)"
        )
        facts.append(
            Fact.exact(
                claim, source, enumerated_variance(here, b), variance_at_baseline(here, b), number=4
            )
        )
    order = [enumerated_variance(here, b) for b in before.values()]
    facts.append(
        Fact.exact(
            "These four stand in falling order",
            source,
            sorted(order, reverse=True) == order,
            True,
            number=4,
        )
    )
    ratio = enumerated_variance(there, after["none"]) / order[0]
    claim = (
        f"Adding {offset:g} to every reward multiplies REINFORCE's variance on B3 (a ratio;"
        " expected: by the formula)"
    )
    truth = (
        (p * (reward + offset) ** 2 * square).sum() - gradient(here).square().sum()
    ) / variance_at_baseline(here, 0.0)
    facts.append(Fact.exact(claim, "this course", ratio, truth, number=4))
    facts.append(
        Fact.above(
            f"… tens of times, for an offset of {offset:g}", "this course", ratio, 10.0, number=4
        )
    )
    for name in ("mean", "scalar", "coordinate"):
        change = enumerated_variance(there, after[name]) - enumerated_variance(here, before[name])
        claim = (
            f"Adding {offset:g} to every reward leaves the variance at {BASELINES[name]} as it was"
            " (difference)"
        )
        facts.append(Fact.exact(claim, "this course", change, 0.0, number=4))
    for name in ("rloo", "group_mean", "group_std"):
        one, other = (
            microscope(ladder.get(name).estimator, listed, 4).covariance for listed in (here, there)
        )
        assert one is not None
        assert other is not None
        claim = (
            f"Adding {offset:g} to every reward leaves {name}'s covariance on B3 as it was (G = 4,"
            " largest difference)"
        )
        facts.append(Fact.exact(claim, "this course", (one - other).abs().max(), 0.0, number=4))
    return facts


def lowest_point(outcomes: Outcomes) -> float:
    """Where the parabola through the enumerated variances at b = 0, ½ and 1 is lowest."""
    low, middle, high = (
        enumerated_variance(outcomes, torch.tensor([b], dtype=torch.float64))
        for b in (0.0, 0.5, 1.0)
    )
    bend, slope = 2 * (low + high - 2 * middle), 4 * middle - 3 * low - high
    return -slope / (2 * bend)


def _crossover(groups: tuple[int, ...]) -> list[Fact]:
    """RLOO's variance against its formula at every G, and the G at which it equals REINFORCE's."""
    outcomes = canonical()
    p, reward, score = probability(outcomes)[0], outcomes.total_reward[0], outcomes.total_score[0]
    mean = float((p * reward).sum())
    sigma, square = (
        float((p * (reward - mean) ** 2).sum()),
        float((p * score.square().sum(-1)).sum()),
    )
    own = float(covariance_at_baseline(outcomes, mean)[0].trace())
    pair = sigma * square + float(gradient(outcomes).square().sum())

    def listed(rung: str, group: int) -> float:
        return microscope(ladder.get(rung).estimator, outcomes, group).variance

    off = max(
        abs(listed("rloo", group) / (own / group + pair / (group * (group - 1))) - 1)
        for group in groups
    )
    formula = "Var = V_J/G + (σ_r² E‖s‖² + ‖∇J‖²)/(G(G−1))"
    two, three, plain = 2 * listed("rloo", 2), 3 * listed("rloo", 3), 2 * listed("reinforce", 2)
    found = 1 + 2 * (two - three) / (
        plain - (2 * three - two)
    )  # G·Var = a + c/(G−1): c = 2(two − three), a = 2·three − two
    crossing = 1 + pair / (variance_at_baseline(outcomes, 0.0) - own)
    many = f"(largest relative difference, G = {groups[0]} … {groups[-1]})"
    which = (
        "With 2 samples per prompt on B3, RLOO is noisier than REINFORCE without a baseline (total"
        " variance of a batch)"
    )
    where = (
        "RLOO and REINFORCE are equally noisy on B3 at G = 1 + c/(V_0 − V_J), c that numerator"
        " (from the enumerated variances at G = 2, 3)"
    )
    return [
        Fact.exact(f"RLOO's variance on B3 is {formula} {many}", "this course", off, 0.0, number=5),
        Fact.above(which, "this course", two / 2, plain / 2, number=5),
        Fact.below(
            "With 3 samples per prompt on B3, RLOO is quieter than REINFORCE",
            "this course",
            three / 3,
            plain / 3,
            number=5,
        ),
        Fact.exact(where, "this course", found, crossing, number=5),
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
    groups = result.array("groups")
    for ax, what in ((length, "length"), (noise, "noise")):
        for name in result.settings["rungs"]:
            figures.band(ax, groups, result.array("rungs", name, what), name=name)
        for name in result.settings["rungs"]:
            if what in result.series["expected"].get(name, {}):
                figures.expectation(
                    ax,
                    x=groups,
                    y=result.array("expected", name, what),
                    marker="D",
                    label="_closed form",
                )
        ax.set_xscale("log", base=2)
        ax.set_xticks(groups, [f"{group:g}" for group in groups])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
    closed = [line for line in length.get_lines() if line.get_label() == "_closed form"]
    length.legend(closed[:1], ["closed form"], loc="lower right", frameon=False)
    figures.describe(
        length,
        "Means shorten the gradient, the std lengthens it",
        "samples per prompt, G",
        "‖E[ĝ]‖ / ‖∇J‖",
    )
    figures.describe(
        noise,
        "Two samples: leave-one-out is the noisier",
        "samples per prompt, G",
        "G · variance, rescaled to ‖∇J‖",
    )
    _mark_crossover(noise, result)
    _draw_parabola(parabola, result)
    _draw_shift(shift, result)
    for ax in (length, noise):
        figures.label_ends(
            ax, [line for line in ax.get_lines() if line.get_label() in result.settings["rungs"]]
        )
    return figure


def _mark_crossover(ax: Axes, result: Result) -> None:
    place, level = float(result.array("crossover")[0]), float(result.array("variance", "none"))
    figures.expectation(ax, x=[place], y=[level], marker="o", label="_crossover")
    ax.annotate(
        f"equal at G = {place:.2f}",
        (place, level),
        xytext=(40, -30),
        textcoords="offset points",
        color=figures.INK,
        arrowprops={"arrowstyle": "-", "color": figures.INK, "linewidth": 0.8, "shrinkB": 5},
    )


def _draw_parabola(ax: Axes, result: Result) -> None:
    figures.describe(
        ax,
        "The mean is nearly the best constant",
        "baseline b (in units of reward)",
        "variance of one sample's gradient",
    )
    figures.expectation(ax, x=result.array("parabola", "b"), y=result.array("parabola", "variance"))
    for name, offset in (("none", (10, 6)), ("mean", (-20, 50)), ("scalar", (14, -38))):
        b, variance = (
            float(result.array("baseline", name)[0]),
            float(result.array("variance", name)),
        )
        ax.plot(b, variance, "o", color=COLOURS[name], markersize=9)
        ax.annotate(
            f"{BASELINES[name]}: b = {b:.3f}",
            (b, variance),
            xytext=offset,
            textcoords="offset points",
            color=COLOURS[name],
            arrowprops=None
            if name == "none"
            else {"arrowstyle": "-", "color": COLOURS[name], "linewidth": 0.8, "shrinkB": 6},
        )
    level = float(result.array("variance", "coordinate"))
    ax.axhline(level, color=COLOURS["coordinate"], linewidth=1.6)
    ax.annotate(
        "a constant for each logit",
        (-0.1, level),
        xytext=(0, -14),
        textcoords="offset points",
        color=COLOURS["coordinate"],
    )
    ax.set_ylim(0.085, 0.34)


def _draw_shift(ax: Axes, result: Result) -> None:
    offset = result.settings["offset"]
    figures.describe(ax, f"Add {offset:g} to every reward", "", "variance of one sample's gradient")
    ax.set_yscale("log")
    for place, name in enumerate(BASELINES):
        for side, key in ((-0.19, "variance"), (0.19, "variance_shifted")):
            value = float(result.array(key, name))
            ax.bar(
                place + side,
                value,
                0.36,
                color=COLOURS[name],
                alpha=1.0 if key == "variance" else 0.45,
            )
            ax.annotate(
                f"{value:.3g}",
                (place + side, value),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=figures.INK,
            )
    ax.set_xticks(
        range(len(BASELINES)), [text.replace(" ", "\n", 1) for text in BASELINES.values()]
    )
    ax.set_ylim(0.05, 60)
    ax.annotate(
        f"left: rewards as they are, right: + {offset:g}",
        (0.98, 0.94),
        xycoords="axes fraction",
        ha="right",
        color=figures.INK,
    )


COLOURS = {"none": "#000000", "mean": "#b8860b", "scalar": "#0057a3", "coordinate": "#00875f"}
