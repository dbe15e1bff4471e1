"""What happens to the policy gradient as a Gaussian policy becomes deterministic: σ → 0 and a
reward −(a−c)².

The score of N(μ, σ²) is (a−μ)/σ², and grows as σ shrinks; the rewards of one policy's samples
become more and more alike. Without a baseline the product explodes: variance d⁴/σ² for a policy at
distance d from the optimum. With the baseline b = J the two cancel and 8d² remains, whatever σ; the
best constant baseline does not get below that either. Only a gradient that differentiates the
reward itself becomes exact as the policy does (4σ²). Right: what groups of G samples make of it.

The closed forms are compared with the estimators' own gradients: by Gauss–Hermite quadrature, which
is exact for polynomials, and by sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bandits.gaussian import group_gradients
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.parts import Value
from course.train.noise import Noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "as a Gaussian policy narrows, the gradient's noise explodes without a baseline and stays put"
    " with one"
)
EXPECTED_SECONDS = 2.0
SOURCE = "this course: derived"
NODES = (
    6  # of the quadrature: exact for polynomials up to degree 11; a squared gradient has degree 6
)


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
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.distance > 0, "distance", self.distance, "a number > 0")
        require(len(self.sigmas) > 0 and min(self.sigmas) > 0, "sigmas", self.sigmas, "numbers > 0")
        require(
            self.group > 1, "group", self.group, "at least 2: the samples of a group are compared"
        )
        for name in ("batches", "samples"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")


SETTINGS = Settings()


def reward(action: Tensor) -> Tensor:
    """−(a−c)² with c = 0."""
    return -(action**2)


# ---------------------------------------------------------------- the four gradients of one sample


Baseline = Callable[[float, Tensor], Tensor]  # d, σ [S] → b [S]
BASELINES: dict[str, Baseline] = {
    "no baseline": lambda d, sigma: torch.zeros_like(sigma),
    "b = J": lambda d, sigma: -(d**2 + sigma**2),
    "best b": lambda d, sigma: -(d**2 + 3 * sigma**2),
}
REPARAMETERISED = "differentiate the reward"
CLOSED_FORM: dict[str, Baseline] = {
    "no baseline": lambda d, sigma: d**4 / sigma**2 + 14 * d**2 + 15 * sigma**2,
    "b = J": lambda d, sigma: 8 * d**2 + 10 * sigma**2,
    "best b": lambda d, sigma: 8 * d**2 + 6 * sigma**2,
    REPARAMETERISED: lambda d, sigma: 4 * sigma**2,
}


def gradients(name: str, distance: float, sigma: Tensor, z: Tensor) -> Tensor:
    """The gradient by μ from one sample a = d + σz: σ [S], z [N] → [S, N]."""
    sigma, mean = sigma[:, None], torch.tensor(distance, dtype=torch.float64)
    if name == REPARAMETERISED:  # no estimator of the ladder: it needs the derivative of the reward
        leaf = mean.expand(len(sigma), len(z)).clone().requires_grad_()
        return torch.autograd.grad(reward(leaf + sigma * z).sum(), leaf)[0]
    action = (mean + sigma * z).unsqueeze(-1)
    estimator = replace(ladder.reinforce, baseline=Value())
    return group_gradients(
        estimator,
        mean,
        sigma.expand(action.shape[:-1]),
        action,
        reward,
        BASELINES[name](distance, sigma),
    )


def of_group(estimator: Estimator, distance: float, sigma: Tensor, z: Tensor) -> Tensor:
    """The gradient by μ from groups of samples: σ [S], z [..., G] → [S, ...]."""
    sigma, mean = sigma[:, *(None,) * (z.dim() - 1)], torch.tensor(distance, dtype=torch.float64)
    action = mean + sigma.unsqueeze(-1) * z
    return group_gradients(estimator, mean, sigma.expand(action.shape[:-1]), action, reward)


# ---------------------------------------------------------------- two ways to their moments


def quadrature(samples: int) -> tuple[Tensor, Tensor]:
    """Nodes [N, samples] and weights [N] for E over independent standard normals; N = NODES^samples
    (Gauss–Hermite).
    """
    nodes, weights = (
        torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(NODES)
    )
    z = torch.cartesian_prod(*[nodes] * samples).reshape(-1, samples)
    return z, torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * samples).reshape(
        -1, samples
    ).prod(-1)


def moments(gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the last axis: [S, N], [N] → [S], [S]."""
    mean = gradient @ weight
    return mean, (gradient - mean[:, None]) ** 2 @ weight


def relative_noise(gradient: Tensor, expected: float | None) -> Tensor:
    """Standard deviation over |E ĝ|, [S, batches, samples] → [S, batches]; the measured mean where
    none is `expected`.
    """
    length = gradient.mean((-2, -1)).abs().unsqueeze(-1) if expected is None else abs(expected)
    return gradient.std(-1) / length


def expected_mean(name: str, group: int, distance: float) -> float | None:
    """E ĝ of a rung in closed form; None where there is none."""
    share = {"reinforce": 1.0, "rloo": 1.0, "group_mean": (group - 1) / group}.get(name)
    return None if share is None else -2 * distance * share


def mean_spread(group: int) -> float:
    """E of the population standard deviation of G standard normals: √(2/G) Γ(G/2) / Γ((G−1)/2)."""
    return math.sqrt(2 / group) * math.exp(math.lgamma(group / 2) - math.lgamma((group - 1) / 2))


def expected_noise(name: str, group: int, distance: float, sigma: Tensor) -> Tensor | None:
    """Standard deviation of a rung's gradient over |E[ĝ]|, in closed form, [S]; None where there is
    none.

    RLOO: Var = V_J/G + (σ_r² E s² + ‖∇J‖²)/(G(G−1)). Group mean: the same shrunk by (G−1)/G. Group
    std, as σ → 0: the rewards are linear in z, so ĝ → −sign(d)·std(z)/σ.
    """
    slope = 2 * distance
    if name == "reinforce":
        return (CLOSED_FORM["no baseline"](distance, sigma) / group).sqrt() / slope
    if name in ("rloo", "group_mean"):
        pairs = 8 * distance**2 + 2 * sigma**2
        return (
            CLOSED_FORM["b = J"](distance, sigma) / group + pairs / (group * (group - 1))
        ).sqrt() / slope
    if name == "group_std":
        return torch.full_like(sigma, math.sqrt((group - 1) / group / mean_spread(group) ** 2 - 1))
    return None


def run(settings: Settings, progress: Progress) -> Result:
    """Quadrature and sampling for one sample; sampling for groups."""
    sigma, d, group = (
        torch.tensor(settings.sigmas, dtype=torch.float64),
        settings.distance,
        settings.group,
    )
    shape = (settings.batches, settings.samples)
    draws = Noise((settings.batches,), settings.seed, dtype=torch.float64)
    z = draws.normal(settings.samples, group)  # [batches, samples, G]
    nodes, weight = quadrature(1)
    single: dict[str, dict[str, Tensor]] = {}
    for name in progress([*BASELINES, REPARAMETERISED], "baselines"):
        mean, variance = moments(gradients(name, d, sigma, nodes[:, 0]), weight)
        sampled = gradients(name, d, sigma, z[..., 0].flatten()).unflatten(-1, shape).var(-1)
        estimate, error = mean_error(sampled.T)
        single[name] = {
            "mean": mean,
            "variance": variance,
            "sampled": torch.tensor(estimate),
            "error": torch.tensor(error),
        }
    groups: dict[str, dict[str, Tensor]] = {}
    for name in progress(settings.rungs, "rungs"):
        found = of_group(ladder.get(name).estimator, d, sigma, z)  # [S, batches, samples]
        estimate, error = mean_error(relative_noise(found, expected_mean(name, group, d)).T)
        step, step_error = mean_error(found.mean(-1).T)
        groups[name] = {
            "noise": torch.tensor(estimate),
            "error": torch.tensor(error),
            "mean": torch.tensor(step),
        }
        groups[name]["mean_error"] = torch.tensor(step_error)
    return Result(
        series={"single": single, "groups": groups},
        facts=_facts(settings, single, groups),
        caption=CAPTION,
    )


CAPTION = (
    "The gradient of J = E[−a²] by the mean μ of a ~ N(μ, σ²). Left: lines are closed forms,"
    " crosses quadrature through the estimators, dots sampled. Right: sampled, with 95 % intervals;"
    " closed forms dashed."
)


# ---------------------------------------------------------------- facts


FORMULAS = {
    "no baseline": "one sample, no baseline: d⁴/σ² + 14d² + 15σ²",
    "b = J": "one sample, b = J: 8d² + 10σ²",
    "best b": "one sample, the best constant b = −(d² + 3σ²): 8d² + 6σ²",
    REPARAMETERISED: "one sample, reparameterised: 4σ²",
}


def _facts(
    settings: Settings,
    single: Mapping[str, Mapping[str, Tensor]],
    groups: Mapping[str, Mapping[str, Tensor]],
) -> list[Fact]:
    d, sigma, group = (
        settings.distance,
        torch.tensor(settings.sigmas, dtype=torch.float64),
        settings.group,
    )
    narrow = int(sigma.argmin())
    at = f"(d = {d:g}, σ = {settings.sigmas[narrow]:g}"
    facts = []
    for name, formula in FORMULAS.items():
        found, expected = single[name], CLOSED_FORM[name](d, sigma)
        claim = f"Variance of the gradient by μ, {formula}"
        facts.append(
            Fact.exact(
                f"{claim} {at}; quadrature)",
                SOURCE,
                found["variance"][narrow],
                expected[narrow],
                number=17,
            )
        )
        facts.append(
            Fact.simulated(
                f"{claim} {at}; sampled)",
                SOURCE,
                found["sampled"][narrow],
                found["error"][narrow],
                expected[narrow],
                number=17,
            )
        )
    largest = max(
        float((single[name]["variance"] / CLOSED_FORM[name](d, sigma) - 1).abs().max())
        for name in FORMULAS
    )
    claim = (
        "The four formulas hold for every σ of"
        f" {', '.join(f'{value:g}' for value in settings.sigmas)} (largest relative error)"
    )
    facts.append(Fact.exact(claim, SOURCE, largest, 0.0, number=17))
    apart = max(float((single[name]["mean"] + 2 * d).abs().max()) for name in FORMULAS)
    claim = (
        "No baseline changes the expected gradient, ∇J = −2d, nor does differentiating the reward"
        " (largest difference over all σ)"
    )
    facts.append(
        Fact.exact(
            claim, "Williams 1992", apart, 0.0, scale=d**2 / settings.sigmas[narrow], number=17
        )
    )
    return facts + _of_best_baseline(settings) + _of_groups(settings, narrow, groups, group, at)


def _of_best_baseline(settings: Settings) -> list[Fact]:
    """b* from its definition, and what RLOO with two samples is worth."""
    d, widest = settings.distance, max(settings.sigmas)
    sigma = torch.tensor([widest], dtype=torch.float64)
    z, weight = quadrature(1)
    square = weight * z[:, 0] ** 2  # the squared score, times σ²
    best = (square @ reward(d + widest * z[:, 0])) / square.sum()
    claim = (
        f"The best constant baseline E[r s²]/E[s²] is −(d² + 3σ²): below J, by 2σ² (d = {d:g}, σ ="
        f" {widest:g})"
    )
    source = "Weaver & Tao 2001; Greensmith et al. 2004"
    facts = [Fact.exact(claim, source, best, BASELINES["best b"](d, sigma)[0], number=17)]
    pairs, weights = quadrature(2)
    variance = moments(of_group(ladder.get("rloo").estimator, d, sigma, pairs), weights)[1][0]
    claim = (
        "RLOO with two samples is exactly as noisy as one sample with the best constant baseline:"
        f" 8d² + 6σ² (d = {d:g}, σ = {widest:g})"
    )
    return [
        *facts,
        Fact.exact(claim, SOURCE, variance, CLOSED_FORM["best b"](d, sigma)[0], number=17),
    ]


def _of_groups(
    settings: Settings, narrow: int, groups: Mapping[str, Mapping[str, Tensor]], group: int, at: str
) -> list[Fact]:
    """What groups of G samples make of it at the smallest σ."""
    facts = []
    sigma = torch.tensor(settings.sigmas, dtype=torch.float64)
    for name, title in (
        ("reinforce", "REINFORCE"),
        ("rloo", "RLOO"),
        ("group_std", "GRPO's mean and std"),
    ):
        expected = expected_noise(name, group, settings.distance, sigma)
        if name in groups and expected is not None:
            found = groups[name]["noise"][narrow], groups[name]["error"][narrow]
            claim = f"{title}: standard deviation of ĝ over |E ĝ| {at}, G = {group})"
            facts.append(Fact.simulated(claim, SOURCE, *found, expected[narrow], number=17))
    if "group_std" in groups:
        found = groups["group_std"]["mean"][narrow], groups["group_std"]["mean_error"][narrow]
        claim = (
            "Dividing by the std makes the step itself grow as 1/σ: E ĝ → −E[std of G normals]/σ"
            f" {at}, G = {group}; ∇J = −2d)"
        )
        facts.append(
            Fact.simulated(claim, SOURCE, *found, -mean_spread(group) / sigma[narrow], number=17)
        )
    return facts


# ---------------------------------------------------------------- the figure


COLOURS = {
    "no baseline": "#000000",
    "b = J": "#b8860b",
    "best b": "#00875f",
    REPARAMETERISED: "#0057a3",
}
DASHES = {
    "no baseline": figures.SOLID,
    "b = J": figures.SOLID,
    "best b": figures.DASH,
    REPARAMETERISED: figures.SOLID,
}


def plot(result: Result) -> Figure:
    """Left: variance of one sample's gradient.

    Right: noise of a group's gradient relative to its length.
    """
    figure, (one, many) = figures.new_figure(1, 2, width=12.6, height=5.0)
    sigma, d, group = (
        np.array(result.settings["sigmas"]),
        result.settings["distance"],
        result.settings["group"],
    )
    fine = np.geomspace(sigma.min(), sigma.max(), 200)
    for name, colour in COLOURS.items():
        exact, sampled, error = (
            result.array("single", name, what) for what in ("variance", "sampled", "error")
        )
        formula = CLOSED_FORM[name](d, torch.from_numpy(fine)).numpy()
        one.plot(fine, formula, color=colour, linestyle=DASHES[name], linewidth=1.6, label=name)
        one.errorbar(sigma, sampled, 1.96 * error, fmt="o", color=colour, markersize=6)
        one.plot(sigma, exact, "x", color="white", markersize=5, markeredgewidth=1.2, zorder=4)
    place = 2.5 * sigma.min()
    for text, level, offset in (
        ("d⁴/σ²", d**4 / place**2, (7, 7)),
        ("8d²", 8 * d**2, (7, 7)),
        ("4σ²", 4 * place**2, (-20, 10)),
    ):
        one.annotate(
            text, (place, level), offset, textcoords="offset points", color=figures.INK, fontsize=12
        )
    lines = []
    for name in result.settings["rungs"]:
        noise, error = result.array("groups", name, "noise"), result.array("groups", name, "error")
        lines.append(figures.band(many, sigma, noise, 1.96 * error, name))
        many.plot(sigma, noise, "o", color=lines[-1].get_color(), markersize=6)
        expected = expected_noise(name, group, d, torch.from_numpy(fine))
        if expected is not None:
            figures.expectation(many, expected.numpy(), fine)
        if name == "group_std" and expected is not None:
            many.annotate(
                "limit σ → 0",
                (fine[-60], float(expected[0])),
                (0, -12),
                textcoords="offset points",
                color=figures.INK,
            )
    for ax in (one, many):
        ax.set_xscale("log")
        ax.set_yscale("log")
    x = "σ, the policy's standard deviation"
    figures.describe(
        one, f"One sample, at distance {d:g} from the optimum", x, "variance of the gradient by μ"
    )
    figures.describe(
        many,
        f"Groups of {group} samples: noise per unit of signal",
        x,
        "standard deviation of ĝ / |E ĝ|",
    )
    figures.label_ends(one)
    figures.label_ends(many, lines)
    return figure
