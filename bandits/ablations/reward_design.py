"""A tiny bonus that GRPO still sees: the std decides which starting points reach the target.

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
from bandits.policies import GaussianPolicy
from bandits.problem import GaussianBandit
from bandits.theory.reward_design import WINDOW, chance_of_a_hit, drift, reward, true_gradient
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, share_error, share_interval
from course.lab.sweep import choose, edges
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
SPACING = 0.5  # between starting points
QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)  # of the runs' ends: band and line
CAPTION = (
    "A Gaussian policy in search of the window |x| ≤ ½. Left: with the std (eps 1e-8), as"
    " published. Right: other eps, and no std. Each at its best learning rate for the plain window,"
    " chosen on other runs; bands above are 95 % intervals, below from the 10 % to the 90 %"
    " quantile."
)


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
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "runs", "drift_groups", "group"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(min(self.eps) >= 0, "eps", self.eps, "numbers ≥ 0")
        further = len(self.alphas) > 1 and self.alphas[0] == 0
        require(further, "alphas", self.alphas, "0 and at least one more")
        within = all(0 <= alpha < 1 for alpha in self.alphas)
        require(within, "alphas", self.alphas, "numbers from 0 to below 1")
        require(self.far >= 1, "far", self.far, "a number ≥ 1")
        rates, rising = self.learning_rates, sorted(set(self.learning_rates))
        require(list(rates) == rising, "learning_rates", rates, "numbers > 0 in rising order")

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
    # actions are [D, L, S, R, Q, G], with one prompt
    alpha, delta = (
        torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1, 1, 1)
        for values in zip(*designs, strict=True)
    )
    policy = GaussianPolicy(starts[:, None].expand(shape).unsqueeze(-1))
    scored = Continuous(lambda x: reward(x, alpha, delta))
    bandit = GaussianBandit(scored, policy, settings.group)
    optimizer = SGD(torch.tensor(rates, dtype=torch.float64)[:, None, None].expand(shape))
    learner = Learner(bandit, estimator, optimizer, noise, log_every=settings.steps)
    learner.train(settings.steps, lambda steps: progress(steps, "rollouts", total=settings.steps))
    return bandit.action_policy.mean.detach().squeeze(-1)


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
    s, ends, choices = settings, {}, {}
    every = variants(s)
    for name, estimator in progress(every.items(), "estimators", total=len(every)):
        plain = train(estimator, s, s.designs[:1], s.learning_rates, s.seed + 1, progress)[0]
        choices[name] = choose(reached(plain).double().flatten(1), s.learning_rates)
        rate = [choices[name].rate]
        ends[name] = train(estimator, s, s.designs, rate, s.seed, progress)[:, 0]
    series = {
        "designs": s.designs,
        "starts": s.starts,
        "rates": {name: choice.rate for name, choice in choices.items()},
        "share": {name: reached(final).double().mean(-1) for name, final in ends.items()},
        "ends": {name: final.quantile(QUANTILES, -1).movedim(0, 1) for name, final in ends.items()},
        "chance_of_a_hit": chance_of_a_hit(s.starts, s.steps * s.group),
    }
    caption = f"{CAPTION} {edges(choices, s.learning_rates)}".strip()
    return Result(series=series, facts=_facts(s, ends), caption=caption)


# ---------------------------------------------------------------- facts


def _facts(settings: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    same = {name: getattr(SETTINGS, name) for name in ("rungs", "runs", "seed", "drift_groups")}
    facts = _of_the_gradient(settings)
    if dataclasses.replace(settings, **same) == SETTINGS:
        # what was seen from these starting points, with these learning rates to choose from
        facts += _of_the_basin(settings, ends) + _of_the_trap(settings, ends)
    return facts


def _of_the_gradient(s: Settings) -> list[Fact]:
    """What holds whatever the budget: of closed forms, and of expected gradients."""
    std, mean_only = (ladder.get(name).estimator for name in ("group_std", "group_mean"))
    bare, published = (replace(std, scale=GroupStd(eps=eps)) for eps in (0.0, 1e-8))
    seed, facts = s.seed + 2, []

    def push(
        estimator: Estimator, delta: float, places: Sequence[float], group: int = 10
    ) -> tuple[Any, Any]:
        return mean_error(drift(estimator, (0.001, delta), places, group, s.drift_groups, seed))

    more: dict[str, Any] = {"number": 16, "runs": s.drift_groups}
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    for delta in (2.0, 3.0, 4.0):
        slope = true_gradient(grid, 0.001, delta)
        summits = int(((slope[:-1] > 0) & (slope[1:] <= 0)).sum())
        claim = "The mean reward itself has one maximum on [−10, 10] for a bonus of .001 at δ ="
        claim += f" {delta:g}: there is no trap in it"
        facts.append(Fact.exact(claim, DERIVED, summits, 1, number=16))
    [mean], [error] = push(mean_only, 2.0, [-1.0])
    claim = "Without the std, E[ĝ] = (G−1)/G times the true gradient (G = 10, θ = −1, α = .001, δ"
    expected = float(0.9 * true_gradient(torch.tensor(-1.0), 0.001, 2.0))
    facts.append(Fact.simulated(f"{claim} = 2)", DERIVED, mean, error, expected, **more))
    low, high = (drift(bare, (alpha, 2.0), [-10.0], 10, 1000, seed) for alpha in (0.001, 0.01))
    claim = "With eps = 0 the height of the bonus does not matter: the same samples give the same"
    claim += " gradient for α = .001 and .01 (θ = −10)"
    facts.append(Fact.exact(claim, DERIVED, (low - high).abs().max(), 0.0, number=16))
    [mean], [error] = push(bare, 2.0, [-10.0], 2)
    claim = "With eps = 0 and G = 2 even a bonus of 10⁻³⁵ pushes with 1/√π: half the mean distance"
    claim, expected = f"{claim} of two samples (θ = −10)", 1 / math.sqrt(math.pi)
    facts.append(Fact.simulated(claim, DERIVED, mean, error, expected, **more))
    means, errors = push(published, 2.0, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0])
    worst = int(np.argmax(means))
    claim = "With the std and δ = 2 there is no trap: E[ĝ] points to the target from every θ = 1 …"
    claim += " 6 (the largest, eps = 1e-8)"
    facts.append(Fact.below(claim, SOURCE, means[worst], 0.0, errors[worst], **more))
    for delta in (3.0, 4.0):
        means, errors = push(published, delta, [delta - 0.5, delta + 0.5])
        how = f"With the std and δ = {delta:g}, E[ĝ] points"
        claim = f"{how} up to the bonus from θ = {delta - 0.5:g} (eps = 1e-8)"
        facts.append(Fact.above(claim, SOURCE, means[0], 0.0, errors[0], **more))
        claim = f"{how} down to the bonus from θ = {delta + 0.5:g}: a second stable point (eps ="
        facts.append(Fact.below(f"{claim} 1e-8)", SOURCE, means[1], 0.0, errors[1], **more))
    return facts


def _of_the_basin(s: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    """Sweep 1: how wide the basin is, with α and without."""
    names = [label("group_std", eps) for eps in (1e-8, 1e-4, 0.0)]
    if not {*names, "group_mean"} <= ends.keys():
        return []
    widths = {name: [width(final) for final in finals[:2]] for name, finals in ends.items()}
    (plain, plain_error), (bonus, bonus_error) = widths[names[0]]
    (bare, bare_error), (bare_bonus, bare_bonus_error) = widths["group_mean"]
    narrow, narrow_error = widths[names[1]][1]
    gain, more = bonus - plain, {"number": 16, "runs": s.runs}
    wider = "With the std (eps = 1e-8) a bonus of .001 at δ = 2 widens the basin by more than a"
    wider += " half: its width over that without a bonus (300 rollouts)"
    less = "With eps = 1e-4 the same bonus leaves the basin narrower than with eps = 1e-8 (width,"
    none = "Without the std the same bonus gains less than a tenth of that width (gain without over"
    ratio = bonus / plain * math.hypot(plain_error / plain, bonus_error / bonus)
    both, apart = math.hypot(narrow_error, bonus_error), math.hypot(bare_error, bare_bonus_error)
    share = (bare_bonus - bare) / gain
    facts = [
        Fact.above(wider, SOURCE, bonus / plain, 1.5, ratio, **more),
        Fact.below(f"{less} standard deviations of π)", LEFT_OUT, narrow, bonus, both, **more),
        Fact.below(f"{none} gain with the std)", LEFT_OUT, share, 0.1, apart / gain, **more),
    ]
    for eps, start, most, source in (
        (1e-8, -5.0, True, SOURCE),
        (1e-4, -5.0, False, LEFT_OUT),
        (0.0, -10.0, True, LEFT_OUT),
    ):
        hits = reached(ends[label("group_std", eps)][1][s.starts.tolist().index(start)])
        claim = f"with a bonus of .001 and eps = {written(eps)}, θ = {start:g} leads to the target"
        facts.append(_share_of_runs(claim, hits, most, source))
    return facts


def _of_the_trap(s: Settings, ends: Mapping[str, Tensor]) -> list[Fact]:
    """Sweep 2: where policies end that start between the target and a bonus at δ = 4."""
    place, start = s.designs.index((0.001, 4.0)), s.starts.tolist().index(3.0)
    final, facts = {name: finals[place][start] for name, finals in ends.items()}, []
    for eps, source in ((1e-8, SOURCE), (1e-4, LEFT_OUT)):
        if (name := label("group_std", eps)) in final:
            claim = f"with the std (eps = {written(eps)}), θ = 3 leads to a bonus of .001 at δ = 4"
            there = (final[name] - 4.0).abs() <= WINDOW
            facts.append(_share_of_runs(f"{claim} and stays there", there, True, source))
    if "group_mean" in final:
        claim = "without the std, θ = 3 leads past a bonus of .001 at δ = 4 to the target"
        facts.append(_share_of_runs(claim, reached(final["group_mean"]), True, LEFT_OUT))
    return facts


def _share_of_runs(claim: str, hits: Tensor, most: bool, source: str) -> Fact:
    """More than half of the runs, or fewer."""
    share, error = share_error(int(hits.sum()), hits.numel())
    judge, how = (Fact.above, "Most") if most else (Fact.below, "Few")
    claim = f"{how} runs: {claim} (share)"
    return judge(claim, source, share, 0.5, error, number=16, runs=hits.numel())


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Above: who reaches the target, by α and by estimator.

    Below: where policies end, by δ and by estimator.
    """
    options: dict[str, Any] = {"width": 12.6, "height": 9.0, "sharex": True, "sharey": "row"}
    figure, (basin, basin_by, ends, ends_by) = figures.new_figure(2, 2, **options)
    alphas, deltas = result.settings["alphas"], result.settings["deltas"]
    names, starts = list(result.series["rates"]), result.array("starts")
    last = len(alphas) + len(deltas) - 2  # the design with the farthest bonus
    for place, (alpha, colour) in enumerate(zip(alphas, figures.shades(len(alphas)), strict=True)):
        look = {"label": f"bonus α = {alpha:g}", "color": colour, "linestyle": "-"}
        _share(basin, result, names[0], place, **look)
    for name in names:
        look = {"label": _short(name), **_style(name, names)}
        _share(basin_by, result, name, 1, **look)
        _end(ends_by, result, name, last, **look)
    for order, (delta, colour) in enumerate(zip(deltas, figures.shades(len(deltas)), strict=True)):
        place = 1 if order == 0 else len(alphas) + order - 1
        look = {"label": f"bonus at δ = {delta:g}", "color": colour, "linestyle": "-"}
        _end(ends, result, names[0], place, **look)
    legend: dict[str, Any] = {"loc": "upper center", "ncols": 2, "frameon": False, "fontsize": 10}
    for ax in (basin, basin_by):
        hit = result.array("chance_of_a_hit")
        figures.expectation(ax, hit, starts, "window ever sampled (θ fixed)")
        ax.set_ylim(-0.03, 1.42)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
        ax.legend(handlelength=1.8, columnspacing=1.2, **legend)
    for ax in (ends, ends_by):
        figures.expectation(ax, starts, starts)
        figures.note(ax, "not moved", (-7.4, -7.4), (10, -10), va="center")
        ax.set_ylim(float(starts[0]), float(starts[-1]))
    reach, where = "share of runs that reach the target", "where the mean θ ends (median of runs)"
    only = f"… but only through the std (α = {alphas[1]:g}, δ ="
    x = "where θ starts; the target is 0"
    opens, trap = f"A bonus of {alphas[1]:g} opens the way to the target …", "becomes a trap"
    figures.describe(basin, opens, "", reach)
    figures.describe(basin_by, f"{only} {deltas[0]:g})", "", "")
    figures.describe(ends, f"Too far away it {trap} (α = {alphas[1]:g}) …", x, where)
    figures.describe(ends_by, f"{only} {deltas[-1]:g})", x, "")
    figures.label_ends(ends)
    figures.label_ends(ends_by)
    return figure


def _share(ax: Axes, result: Result, name: str, design: int, **look: Any) -> None:
    """The share of runs that reach the target, with Wilson's 95 % interval."""
    share, runs = result.array("share", name)[design], result.settings["runs"]
    bounds = np.array([share_interval(round(one * runs), runs) for one in share])
    line = figures.band(ax, result.array("starts"), share, None, name, **look)
    shade: dict[str, Any] = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
    ax.fill_between(result.array("starts"), *bounds.T, **shade)


def _end(ax: Axes, result: Result, name: str, design: int, **look: Any) -> None:
    starts, (low, middle, high) = result.array("starts"), result.array("ends", name)[design]
    line = figures.band(ax, starts, middle, None, name, **look)
    ax.fill_between(starts, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def _short(name: str) -> str:
    """«÷ (std + 1e-8)» for the rungs of the ladder; a name of your own as it is."""
    rung, _, eps = name.partition(", ")
    divided = f"÷ (std + {eps.removeprefix('eps = ')})"
    return {"group_std": divided, "group_mean": "no std"}.get(rung, name)


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """The rung's colour, and for its further eps another line."""
    rung = name.partition(", ")[0]
    style, same = figures.style_of(rung), [one for one in names if one.partition(", ")[0] == rung]
    lines = (style["linestyle"], figures.DASH, figures.DOT, figures.DASHDOT)
    return style | {"linestyle": lines[same.index(name) % 4]}
