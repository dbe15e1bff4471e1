"""A reward that is almost invisible, and why GRPO sees it: the std decides where a policy can start
from and where it ends.

A Gaussian policy N(θ, 1) looks for the target 0. The reward is (1−α)·1[|x| ≤ ½] + α·exp(−(x−δ)²/2):
a window that pays 1, and a bonus around δ that pays a thousandth. Left, with the group's std: the
bonus more than doubles the starting points from which the target is reached, and a bonus too far
from the target keeps what it attracted. Right, the same with other eps and without the std:
dividing by the std makes a bonus of any height α push as hard as the target does, down to where the
rewards' spread meets eps. Without the std the policy neither profits nor is caught: it sees the
bonus at its true size.

After M. Lelarge's notebook Gauss_GRPO (dataflowr), which sweeps α and δ with the std and eps = 1e-8
and draws the landscape; here policies are trained from every starting point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Continuous
from bandits.gaussian import group_gradients
from bandits.policies import GaussianPolicy
from bandits.problem import GaussianBandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, share_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "a reward of 0.001 doubles the basin of attraction, or becomes a trap: only because GRPO"
    " divides by the std"
)
EXPECTED_SECONDS = 25.0
SOURCE = "Lelarge (dataflowr, notebook Gauss_GRPO)"
LEFT_OUT = "this course: the ablation that Lelarge leaves out"
DERIVED = "this course: derived"
WINDOW = 0.5  # half the width of the window around the target 0 that pays 1 − α
SPACING = 0.5  # between starting points
QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)  # of the runs' ends: band and line


@dataclass(frozen=True)
class Settings(Checked):
    """What is run. The first design is the plain window, with which learning rates are chosen."""

    # which estimators; those that divide by the group's std run once per eps
    rungs: tuple[str, ...] = ("group_std", "group_mean")
    # what is added to the std; the first is the notebook's
    eps: tuple[float, ...] = (1e-8, 1e-4, 0.0)
    alphas: tuple[float, ...] = (0.0, 0.001, 0.01)  # height of the bonus, with the first δ
    deltas: tuple[float, ...] = (2.0, 3.0, 4.0)  # place of the bonus, with the second α
    group: int = 10  # samples per rollout
    steps: int = 300  # rollouts, one update each
    # starting points run from −far to far, 0.5 apart, in standard deviations of the policy
    far: float = 10.0
    runs: int = 50  # independent runs from each starting point
    # each estimator's own is chosen with α = 0, on other runs
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    drift_groups: int = 20_000  # groups for each expected gradient
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "runs", "drift_groups"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(
            self.group > 1, "group", self.group, "at least 2: the samples of a group are compared"
        )
        require(len(self.eps) > 0 and min(self.eps) >= 0, "eps", self.eps, "numbers ≥ 0")
        require(
            len(self.alphas) > 1 and self.alphas[0] == 0,
            "alphas",
            self.alphas,
            "0 and at least one more",
        )
        require(
            all(0 <= alpha < 1 for alpha in self.alphas),
            "alphas",
            self.alphas,
            "numbers from 0 to below 1",
        )
        require(len(self.deltas) > 0, "deltas", self.deltas, "at least one number")
        require(self.far >= 1, "far", self.far, "a number ≥ 1")
        require(
            len(self.learning_rates) > 0 and min(self.learning_rates) > 0,
            "learning_rates",
            self.learning_rates,
            "numbers > 0",
        )

    @property
    def designs(self) -> list[tuple[float, float]]:
        """The rewards (α, δ): the sweep of α at the first δ, then the further δ at the second α."""
        return [(alpha, self.deltas[0]) for alpha in self.alphas] + [
            (self.alphas[1], delta) for delta in self.deltas[1:]
        ]

    @property
    def starts(self) -> Tensor:
        """[S] the starting points."""
        half = math.floor(self.far / SPACING)
        return torch.arange(-half, half + 1, dtype=torch.float64) * SPACING


SETTINGS = Settings()


# ---------------------------------------------------------------- the reward and its gradient


def reward(x: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """(1−α)·1[|x| ≤ ½] + α·exp(−(x−δ)²/2)."""
    return (1 - alpha) * (x.abs() <= WINDOW) + alpha * torch.exp(-((x - delta) ** 2) / 2)


def true_gradient(theta: Tensor, alpha: float, delta: float) -> Tensor:
    """J'(θ) for x ~ N(θ, 1), in closed form: J = (1−α)(Φ(½−θ) − Φ(−½−θ)) + (α/√2) exp(−(θ−δ)²/4).

    [...] → [...].
    """

    def density(z: Tensor) -> Tensor:
        return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    window = (1 - alpha) * (density(theta + WINDOW) - density(theta - WINDOW))
    return window - alpha / math.sqrt(2) * (theta - delta) / 2 * torch.exp(
        -((theta - delta) ** 2) / 4
    )


def chance_of_a_hit(theta: Tensor, samples: int) -> Tensor:
    """The probability that one of `samples` draws from N(θ, 1) falls into the window.

    [...] → [...].
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    hit = normal.cdf(WINDOW - theta.abs()) - normal.cdf(-WINDOW - theta.abs())
    return -torch.expm1(samples * torch.log1p(-hit))


def _bandit(designs: Sequence[tuple[float, float]], means: Tensor, group: int) -> GaussianBandit:
    """Designs [D] on the first run axis; `means` [D, ..., Q] are where the policies stand."""
    shape = (len(designs), *(1,) * means.dim())  # actions are [D, ..., Q, G]
    alpha, delta = (
        torch.tensor(values, dtype=torch.float64).reshape(shape)
        for values in zip(*designs, strict=True)
    )
    return GaussianBandit(
        Continuous(lambda x: reward(x, alpha, delta)), GaussianPolicy(means), group
    )


# ---------------------------------------------------------------- measuring


def variants(settings: Settings) -> dict[str, Estimator]:
    """The estimators to compare by name: those with a group std once for each eps."""
    found = {}
    for name in settings.rungs:
        estimator = ladder.get(name).estimator
        if isinstance(estimator.scale, GroupStd):
            for eps in settings.eps:
                found[label(name, eps)] = replace(
                    estimator, scale=GroupStd(estimator.scale.ddof, eps)
                )
        else:
            found[name] = estimator
    return found


def label(rung: str, eps: float) -> str:
    """The name of a rung with this eps."""
    return f"{rung}, eps = {written(eps)}"


def written(eps: float) -> str:
    """1e-8 and not 1e-08."""
    return f"{eps:g}".replace("e-0", "e-")


def train(
    estimator: Estimator,
    settings: Settings,
    designs: Sequence[tuple[float, float]],
    rates: Sequence[float],
    seed: int,
    progress: Progress,
) -> Tensor:
    """Where the policies end: [D, L, S, R] for designs, learning rates, starting points and
    independent runs.
    """
    starts = settings.starts
    shape = (len(designs), len(rates), len(starts), settings.runs)
    noise = Noise(shape, seed, dtype=torch.float64)
    bandit = _bandit(designs, starts[:, None].expand(shape).unsqueeze(-1), settings.group)
    optimizer = SGD(torch.tensor(rates, dtype=torch.float64)[:, None, None].expand(shape))
    learner = Learner(bandit, estimator, optimizer, noise, log_every=settings.steps)
    learner.train(settings.steps, lambda steps: progress(steps, "rollouts", total=settings.steps))
    return bandit.action_policy.mean.detach().squeeze(-1)


def drift(
    estimator: Estimator,
    design: tuple[float, float],
    theta: Sequence[float],
    group: int,
    groups: int,
    seed: int,
) -> Tensor:
    """[groups, N] the gradient of each of `groups` independent groups, at each of the N places θ:
    its mean is E[ĝ].
    """
    places = torch.tensor(theta, dtype=torch.float64)
    alpha, delta = torch.tensor(design, dtype=torch.float64)
    action = places[:, None] + Noise((), seed, dtype=torch.float64).normal(
        groups, len(places), group
    )
    return group_gradients(estimator, places, 1.0, action, lambda x: reward(x, alpha, delta))


def reached(final: Tensor) -> Tensor:
    """Whether a policy's mean ended inside the window."""
    return final.abs() <= WINDOW


def width(final: Tensor) -> tuple[float, float]:
    """Width of the basin, [S, R] → number ± standard error: how much of the line of starting points
    reaches the target.
    """
    return mean_error(reached(final).double().sum(0) * SPACING)


def run(settings: Settings, progress: Progress) -> Result:
    """Choose each estimator's learning rate on the plain window; then every design from every
    starting point.
    """
    ends: dict[str, Tensor] = {}
    rates: dict[str, float] = {}
    for name, estimator in progress(
        variants(settings).items(), "estimators", total=len(variants(settings))
    ):
        plain = train(
            estimator,
            settings,
            settings.designs[:1],
            settings.learning_rates,
            settings.seed + 1,
            progress,
        )
        rates[name] = settings.learning_rates[int(reached(plain).double().mean((0, 2, 3)).argmax())]
        ends[name] = train(
            estimator, settings, settings.designs, [rates[name]], settings.seed, progress
        )[:, 0]
    series = {
        "designs": settings.designs,
        "starts": settings.starts,
        "rates": rates,
        "share": {name: reached(final).double().mean(-1) for name, final in ends.items()},
        "ends": {name: final.quantile(QUANTILES, -1).movedim(0, 1) for name, final in ends.items()},
        "chance_of_a_hit": chance_of_a_hit(settings.starts, settings.steps * settings.group),
    }
    return Result(series=series, facts=_facts(settings, ends), caption=CAPTION)


CAPTION = (
    "A Gaussian policy in search of the window |x| ≤ ½. Left: with the std (eps 1e-8), as"
    " published. Right: other eps, and no std. Each at its best learning rate for the plain window;"
    " bands are 95 % intervals."
)


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    same = {name: getattr(SETTINGS, name) for name in ("rungs", "runs", "seed", "drift_groups")}
    published = dataclasses.replace(settings, **same) == SETTINGS
    facts = _of_the_gradient(settings)
    if (
        published
    ):  # what was seen from these starting points, with these learning rates to choose from
        facts += _of_the_basin(settings, ends) + _of_the_trap(settings, ends)
    return facts


def _of_the_gradient(settings: Settings) -> list[Fact]:
    """What holds whatever the budget: of closed forms, and of expected gradients."""
    std, mean_only = (ladder.get(name).estimator for name in ("group_std", "group_mean"))
    groups, seed = settings.drift_groups, settings.seed + 2
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    facts = []

    for delta in (2.0, 3.0, 4.0):
        slope = true_gradient(grid, 0.001, delta)
        summits = int(((slope[:-1] > 0) & (slope[1:] <= 0)).sum())
        claim = (
            "The mean reward itself has one maximum on [−10, 10] for a bonus of .001 at δ ="
            f" {delta:g}: there is no trap in it"
        )
        facts.append(Fact.exact(claim, DERIVED, summits, 1, number=16))

    measured = mean_error(drift(mean_only, (0.001, 2.0), [-1.0], 10, groups, seed).squeeze(-1))
    claim = (
        "Without the std, E[ĝ] = (G−1)/G times the true gradient (G = 10, θ = −1, α = .001, δ = 2)"
    )
    facts.append(
        Fact.simulated(
            claim,
            DERIVED,
            *measured,
            0.9 * true_gradient(torch.tensor(-1.0), 0.001, 2.0),
            number=16,
        )
    )

    bare = replace(std, scale=GroupStd(eps=0.0))
    low, high = (drift(bare, (alpha, 2.0), [-10.0], 10, 1000, seed) for alpha in (0.001, 0.01))
    claim = (
        "With eps = 0 the height of the bonus does not matter: the same samples give the same"
        " gradient for α = .001 and .01 (θ = −10)"
    )
    facts.append(Fact.exact(claim, DERIVED, float((low - high).abs().max()), 0.0, number=16))

    measured = mean_error(drift(bare, (0.001, 2.0), [-10.0], 2, groups, seed).squeeze(-1))
    claim = (
        "With eps = 0 and G = 2 even a bonus of 10⁻³⁵ pushes with 1/√π: half the mean distance of"
        " two samples (θ = −10)"
    )
    facts.append(Fact.simulated(claim, DERIVED, *measured, 1 / math.sqrt(math.pi), number=16))

    published = replace(std, scale=GroupStd(eps=1e-8))
    places = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    mean, error = mean_error(drift(published, (0.001, 2.0), places, 10, groups, seed))
    worst = int(np.argmax(mean))
    claim = (
        "With the std and δ = 2 there is no trap: E[ĝ] points to the target from every θ = 1 … 6"
        " (the largest, eps = 1e-8)"
    )
    facts.append(Fact.below(claim, SOURCE, mean[worst], 0.0, error[worst], number=16))
    for delta in (3.0, 4.0):
        mean, error = mean_error(
            drift(published, (0.001, delta), [delta - 0.5, delta + 0.5], 10, groups, seed)
        )
        claim = (
            f"With the std and δ = {delta:g}, E[ĝ] points up to the bonus from θ = {delta - 0.5:g}"
            " (eps = 1e-8)"
        )
        facts.append(Fact.above(claim, SOURCE, mean[0], 0.0, error[0], number=16))
        claim = (
            f"With the std and δ = {delta:g}, E[ĝ] points down to the bonus from θ ="
            f" {delta + 0.5:g}: a second stable point (eps = 1e-8)"
        )
        facts.append(Fact.below(claim, SOURCE, mean[1], 0.0, error[1], number=16))
    return facts


def _of_the_basin(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    """Sweep 1: how wide the basin is, with α and without."""
    names = [label("group_std", eps) for eps in (1e-8, 1e-4, 0.0)]
    if not {*names, "group_mean"} <= ends.keys():
        return []
    widths = {name: [width(final) for final in finals[:2]] for name, finals in ends.items()}
    (plain, plain_error), (bonus, bonus_error) = widths[names[0]]
    error = bonus / plain * math.hypot(plain_error / plain, bonus_error / bonus)
    claim = (
        "With the std (eps = 1e-8) a bonus of .001 at δ = 2 widens the basin: its width over that"
        " without a bonus (300 rollouts)"
    )
    facts = [Fact.above(claim, SOURCE, bonus / plain, 1.0, error, number=16)]
    other = widths[names[1]][1]
    claim = (
        "With eps = 1e-4 the same bonus leaves the basin narrower than with eps = 1e-8 (width,"
        " standard deviations of π)"
    )
    facts.append(
        Fact.below(claim, LEFT_OUT, other[0], bonus, math.hypot(other[1], bonus_error), number=16)
    )
    (bare, bare_error), (bare_bonus, bare_bonus_error) = widths["group_mean"]
    gain, error = (
        (bare_bonus - bare) / (bonus - plain),
        math.hypot(bare_error, bare_bonus_error) / (bonus - plain),
    )
    claim = (
        "Without the std the same bonus gains less than a tenth of that width (gain without over"
        " gain with the std)"
    )
    facts.append(Fact.below(claim, LEFT_OUT, gain, 0.1, error, number=16))
    for eps, start, most, source in (
        (1e-8, -5.0, True, SOURCE),
        (1e-4, -5.0, False, LEFT_OUT),
        (0.0, -10.0, True, LEFT_OUT),
    ):
        hits = reached(ends[label("group_std", eps)][1][settings.starts.tolist().index(start)])
        facts.append(
            _share_of_runs(
                f"with a bonus of .001 and eps = {written(eps)}, θ = {start:g} leads to the target",
                hits,
                most,
                source,
            )
        )
    return facts


def _of_the_trap(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    """Sweep 2: where policies end that start between the target and a bonus at δ = 4."""
    place, start = settings.designs.index((0.001, 4.0)), settings.starts.tolist().index(3.0)
    final = {name: finals[place][start] for name, finals in ends.items()}
    facts = []
    for eps, source in ((1e-8, SOURCE), (1e-4, LEFT_OUT)):
        if (name := label("group_std", eps)) in final:
            claim = (
                f"with the std (eps = {written(eps)}), θ = 3 leads to a bonus of .001 at δ = 4 and"
                " stays there"
            )
            facts.append(_share_of_runs(claim, (final[name] - 4.0).abs() <= WINDOW, True, source))
    if "group_mean" in final:
        claim = "without the std, θ = 3 leads past a bonus of .001 at δ = 4 to the target"
        facts.append(_share_of_runs(claim, reached(final["group_mean"]), True, LEFT_OUT))
    return facts


def _share_of_runs(claim: str, hits: Tensor, most: bool, source: str) -> Fact:
    """More than half of the runs, or fewer."""
    share, error = share_error(int(hits.sum()), hits.numel())
    judge = Fact.above if most else Fact.below
    return judge(
        f"{'Most' if most else 'Few'} runs: {claim} (share)", source, share, 0.5, error, number=16
    )


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Above: who reaches the target, by α and by estimator.

    Below: where policies end, by δ and by estimator.
    """
    figure, (basin, basin_by, ends, ends_by) = figures.new_figure(
        2, 2, width=12.6, height=9.0, sharex=True, sharey="row"
    )
    alphas, deltas = result.settings["alphas"], result.settings["deltas"]
    names = list(result.series["rates"])
    first, starts = names[0], result.array("starts")
    last = len(alphas) + len(deltas) - 2  # the design with the farthest bonus

    for place, (alpha, colour) in enumerate(zip(alphas, figures.shades(len(alphas)), strict=True)):
        _share(basin, result, first, place, f"bonus α = {alpha:g}", color=colour, linestyle="-")
    for name in names:
        _share(basin_by, result, name, 1, _short(name), **_style(name, names))
        _end(ends_by, result, name, last, _short(name), **_style(name, names))
    for order, (delta, colour) in enumerate(zip(deltas, figures.shades(len(deltas)), strict=True)):
        _end(
            ends,
            result,
            first,
            1 if order == 0 else len(alphas) + order - 1,
            f"bonus at δ = {delta:g}",
            color=colour,
            linestyle="-",
        )

    for ax in (basin, basin_by):
        figures.expectation(
            ax, result.array("chance_of_a_hit"), starts, "window ever sampled (θ fixed)"
        )
        ax.set_ylim(-0.03, 1.42)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
        ax.legend(
            loc="upper center",
            ncols=2,
            frameon=False,
            fontsize=10,
            handlelength=1.8,
            columnspacing=1.2,
        )
    for ax in (ends, ends_by):
        figures.expectation(ax, starts, starts)
        ax.annotate(
            "not moved",
            (-7.4, -7.4),
            (10, -10),
            textcoords="offset points",
            color=figures.INK,
            va="center",
        )
        ax.set_ylim(float(starts[0]), float(starts[-1]))
    titles = (
        f"A bonus of {alphas[1]:g} opens the way to the target …",
        f"… but only through the std (α = {alphas[1]:g}, δ = {deltas[0]:g})",
        f"Too far away it becomes a trap (α = {alphas[1]:g}) …",
        f"… but only through the std (α = {alphas[1]:g}, δ = {deltas[-1]:g})",
    )
    reach, where = "share of runs that reach the target", "where the mean θ ends (median of runs)"
    for ax, title, y in zip(
        (basin, basin_by, ends, ends_by), titles, (reach, "", where, ""), strict=True
    ):
        figures.describe(
            ax, title, "" if ax in (basin, basin_by) else "where θ starts; the target is 0", y
        )
    figures.label_ends(ends)
    figures.label_ends(ends_by)
    return figure


def _share(ax: Axes, result: Result, name: str, design: int, text: str, **style: Any) -> None:
    mean = result.array("share", name)[design]
    figures.band(
        ax,
        result.array("starts"),
        mean,
        1.96 * np.sqrt(mean * (1 - mean) / result.settings["runs"]),
        name,
        text,
        **style,
    )


def _end(ax: Axes, result: Result, name: str, design: int, text: str, **style: Any) -> None:
    starts, (low, middle, high) = result.array("starts"), result.array("ends", name)[design]
    line = figures.band(ax, starts, middle, None, name, text, **style)
    ax.fill_between(starts, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def _short(name: str) -> str:
    """«÷ (std + 1e-8)» for the rungs of the ladder; a name of your own as it is."""
    rung, _, eps = name.partition(", ")
    return {"group_std": f"÷ (std + {eps.removeprefix('eps = ')})", "group_mean": "no std"}.get(
        rung, name
    )


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """The rung's colour, and for its further eps another line."""
    style = figures.style_of(name.partition(", ")[0])
    same = [other for other in names if other.partition(", ")[0] == name.partition(", ")[0]]
    return style | {
        "linestyle": (style["linestyle"], figures.DASH, figures.DOT, figures.DASHDOT)[
            same.index(name) % 4
        ]
    }
