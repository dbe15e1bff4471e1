"""The policy gradient's variance as a Gaussian policy becomes deterministic, σ → 0.

The reward is −(a−c)².

The score of N(μ, σ²) is (a−μ)/σ², and grows as σ shrinks; the rewards of one policy's samples
become more and more alike. Without a baseline the product explodes: variance d⁴/σ² for a policy at
distance d from the optimum. With the baseline b = J the two cancel and 8d² remains, whatever σ; the
best constant baseline does not get below that either. Only a gradient that differentiates the
reward itself becomes exact as the policy does (4σ²). Right: what groups of G samples make of it.

The closed forms are compared with the estimators' own gradients: by Gauss–Hermite quadrature, which
is exact for polynomials, and by sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory import policy_variance as theory
from bandits.theory.policy_variance import BASELINES, CLOSED_FORM, REPARAMETERISED
from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, student
from course.lab.terminal import Progress
from course.train.noise import Noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "as a Gaussian policy narrows, the gradient's noise explodes without a baseline and stays put"
    " with one"
)
EXPECTED_SECONDS = 2.0


@dataclass(frozen=True)
class Settings(Checked):
    """What is measured. The optimum is at c = 0, the policy at μ = d."""

    # which estimators, with groups of G samples
    rungs: tuple[str, ...] = ("reinforce", "rloo", "group_std")
    distance: float = 1.0  # d, between the policy's mean and the optimum
    # σ, the policy's standard deviation
    sigmas: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
    group: int = 8  # G, samples of one gradient
    batches: int = 50  # independent batches of gradients, for standard errors
    samples: int = 1000  # gradients in each batch
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.distance > 0, "distance", self.distance, "a number > 0")
        require(min(self.sigmas) > 0, "sigmas", self.sigmas, "numbers > 0")
        self.at_least(2, "group", "batches", "samples")


SETTINGS = Settings()
SOURCE = "this course: derived"
FORMULAS = {
    "no baseline": "one sample, no baseline: d⁴/σ² + 14d² + 15σ²",
    "b = J": "one sample, b = J: 8d² + 10σ²",
    "best b": "one sample, the best constant b = −(d² + 3σ²): 8d² + 6σ²",
    REPARAMETERISED: "one sample, reparameterised: 4σ²",
}
CAPTION = (
    "The gradient of J = E[−a²] with respect to the mean μ of a ~ N(μ, σ²)."
    " Left: lines are closed forms,"
    " crosses quadrature through the estimators, dots sampled. Right: sampled, with 95 % intervals;"
    " closed forms dashed."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Quadrature and sampling for one sample; sampling for groups."""
    s, sigma = settings, torch.tensor(settings.sigmas, dtype=torch.float64)
    shape, d = (s.batches, s.samples), s.distance
    draws = Noise((s.batches,), s.seed, dtype=torch.float64)
    z = draws.normal(s.samples, s.group)  # [batches, samples, G]
    nodes, weight = theory.quadrature(1)
    single: dict[str, dict[str, Any]] = {}
    for name in progress([*BASELINES, REPARAMETERISED], "baselines"):
        exact = theory.gradients(name, d, sigma, nodes[:, 0])
        mean, variance = theory.moments(exact, weight)
        sampled = theory.gradients(name, d, sigma, z[..., 0].flatten()).unflatten(-1, shape)
        estimate, error = mean_error(sampled.var(-1).T)
        single[name] = {"mean": mean, "variance": variance, "sampled": estimate, "error": error}
    groups: dict[str, dict[str, Any]] = {}
    for name in progress(s.rungs, "rungs"):
        found = theory.of_group(ladder.get(name).estimator, d, sigma, z)  # [S, batches, samples]
        length = theory.expected_mean(name, s.group, d)
        estimate, error = mean_error(relative_noise(found, length).T)
        step, step_error = mean_error(found.mean(-1).T)
        groups[name] = {"noise": estimate, "error": error, "mean": step, "mean_error": step_error}
    facts = [*_facts(s, sigma, single), *_of_best_baseline(s), *_of_groups(s, sigma, groups)]
    return Result(series={"single": single, "groups": groups}, facts=facts, caption=CAPTION)


def relative_noise(gradient: Tensor, expected: float | None) -> Tensor:
    """Standard deviation over |E ĝ|, [S, batches, samples] → [S, batches].

    |E ĝ| is the measured mean if none is `expected`.
    """
    length = gradient.mean((-2, -1)).abs().unsqueeze(-1) if expected is None else abs(expected)
    return gradient.std(-1) / length


# ---------------------------------------------------------------- facts


def _facts(s: Settings, sigma: Tensor, single: Mapping[str, Mapping[str, Any]]) -> Facts:
    """The four formulas, by quadrature and by sampling."""
    d, narrow, facts, largest = s.distance, int(sigma.argmin()), Facts(SOURCE, 17, s.batches), 0.0
    at = f"(d = {d:g}, σ = {s.sigmas[narrow]:g}"
    for name, formula in FORMULAS.items():
        found, closed = single[name], CLOSED_FORM[name](d, sigma)
        claim = f"Variance of the gradient with respect to μ, {formula} {at};"
        facts.exact(f"{claim} quadrature)", found["variance"][narrow], closed[narrow])
        sampled = found["sampled"][narrow], found["error"][narrow]
        facts.simulated(f"{claim} sampled)", sampled, closed[narrow])
        largest = max(largest, float((found["variance"] / closed - 1).abs().max()))
    every = ", ".join(f"{value:g}" for value in s.sigmas)
    claim = f"The four formulas hold for every σ of {every} (largest relative error)"
    facts.exact(claim, largest, 0.0)
    # in units of the largest term that is added up, which grows as σ shrinks
    off, size = max(float((single[name]["mean"] + 2 * d).abs().max()) for name in FORMULAS), d**2
    claim = "No baseline changes the expected gradient, ∇J = −2d, nor does differentiating the"
    claim, scale = f"{claim} reward (largest difference over all σ)", size / s.sigmas[narrow]
    facts.exact(claim, off, 0.0, scale=scale, source="Williams 1992")
    return facts


def _of_best_baseline(s: Settings) -> Facts:
    """b* from its definition, and what RLOO with two samples is worth."""
    d, widest, facts = s.distance, max(s.sigmas), Facts(SOURCE, 17)
    sigma, where = torch.tensor([widest], dtype=torch.float64), f"(d = {d:g}, σ = {widest:g})"
    z, weight = theory.quadrature(1)
    square = weight * z[:, 0] ** 2  # the squared score, times σ²
    best = (square @ theory.reward(d + widest * z[:, 0])) / square.sum()
    claim = f"The best constant baseline E[r s²]/E[s²] is −(d² + 3σ²): below J, by 2σ² {where}"
    source = "Weaver & Tao 2001; Greensmith et al. 2004"
    facts.exact(claim, best, BASELINES["best b"](d, sigma)[0], source=source)
    pairs, weights = theory.quadrature(2)
    two = theory.of_group(ladder.get("rloo").estimator, d, sigma, pairs)
    claim = "RLOO with two samples is exactly as noisy as one sample with the best constant"
    variance, expected = theory.moments(two, weights)[1][0], CLOSED_FORM["best b"](d, sigma)[0]
    facts.exact(f"{claim} baseline: 8d² + 6σ² {where}", variance, expected)
    return facts


def _of_groups(s: Settings, sigma: Tensor, groups: Mapping[str, Mapping[str, Any]]) -> Facts:
    """What groups of G samples make of it at the smallest σ."""
    facts, narrow = Facts(SOURCE, 17, s.batches), int(sigma.argmin())
    at = f"(d = {s.distance:g}, σ = {s.sigmas[narrow]:g}, G = {s.group}"
    titles = {"reinforce": "REINFORCE", "rloo": "RLOO", "group_std": "GRPO's mean and std"}
    for name, title in titles.items():
        expected = theory.expected_noise(name, s.group, s.distance, sigma)
        if name in groups and expected is not None:
            found = groups[name]["noise"][narrow], groups[name]["error"][narrow]
            claim = f"{title}: standard deviation of ĝ over |E ĝ| {at})"
            facts.simulated(claim, found, expected[narrow])
    if "group_std" in groups:
        found = groups["group_std"]["mean"][narrow], groups["group_std"]["mean_error"][narrow]
        claim = "Dividing by the std makes the step itself grow as 1/σ: E ĝ → −E[std of G"
        spread = theory.mean_spread(s.group)
        facts.simulated(f"{claim} normals]/σ {at}; ∇J = −2d)", found, -spread / sigma[narrow])
    return facts


# ---------------------------------------------------------------- the figure

SIGMA = "σ, the policy's standard deviation"
COLOURS = dict(zip(FORMULAS, ("#000000", "#b8860b", "#00875f", "#0057a3"), strict=True))


def plot(result: Result) -> Figure:
    """Variance of one sample's gradient; noise of a group's gradient relative to its length."""
    figure, (one, many) = figures.new_figure(1, 2, width=12.6, height=5.0)
    sigma = np.array(result.settings["sigmas"])
    fine = torch.from_numpy(np.geomspace(sigma.min(), sigma.max(), 200))
    t = student(0.05, result.settings["batches"])
    for ax in (one, many):
        figures.log_axis(ax, "x")
        figures.log_axis(ax, "y")
    _plot_single(one, result, sigma, fine, t)
    _plot_groups(many, result, sigma, fine, t)
    return figure


def _plot_single(ax: Axes, result: Result, sigma: Any, fine: Tensor, t: float) -> None:
    d = result.settings["distance"]
    for name, colour in COLOURS.items():
        of = {what: result.array("single", name, what) for what in ("variance", "sampled", "error")}
        dashes = figures.DASH if name == "best b" else figures.SOLID
        look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.6}
        figures.band(ax, fine, CLOSED_FORM[name](d, fine), label=name, **look)
        figures.points(ax, sigma, of["sampled"], t * of["error"], color=colour, capsize=0)
        cross: dict[str, Any] = {"markersize": 5, "markeredgewidth": 1.2, "zorder": 4}
        ax.plot(sigma, of["variance"], "x", color="white", **cross)
    place = 2.5 * sigma.min()
    for text, level, offset in (
        ("d⁴/σ²", d**4 / place**2, (7, 7)),
        ("8d²", 8 * d**2, (7, 7)),
        ("4σ²", 4 * place**2, (-20, 10)),
    ):
        figures.note(ax, text, (place, level), offset, fontsize=12)
    title = f"One sample, at distance {d:g} from the optimum"
    figures.describe(ax, title, SIGMA, "variance of the gradient with respect to μ", ends=True)


def _plot_groups(ax: Axes, result: Result, sigma: Any, fine: Tensor, t: float) -> None:
    d, group, lines = result.settings["distance"], result.settings["group"], []
    for name in result.settings["rungs"]:
        noise, error = (result.array("groups", name, what) for what in ("noise", "error"))
        lines.append(figures.band(ax, sigma, noise, t * error, name))
        ax.plot(sigma, noise, "o", color=lines[-1].get_color(), markersize=6)
        expected = theory.expected_noise(name, group, d, fine)
        if expected is not None:
            figures.expectation(ax, expected, fine)
            if name == "group_std":
                figures.note(ax, "limit σ → 0", (float(fine[-60]), float(expected[0])), (0, -12))
    title = f"Groups of {group} samples: noise per unit of signal"
    figures.describe(ax, title, SIGMA, "standard deviation of ĝ / |E ĝ|")
    figures.label_ends(ax, lines)
