"""k1, k2, k3: how far off and how noisy each estimate of KL(π‖ref) is.

For KL(π‖ref) and a sample of π let r = ref/π; k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r
(Schulman 2020). On two Gaussians k1 is unbiased and noisy, k2 biased and quiet, k3 unbiased and,
near the reference, quiet. k3 is k1 plus the control variate λ(r − 1) with λ = 1, which keeps it
positive; another λ is quieter. What each pushes towards is another question: see `kl_gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.exact import B3_POLICY
from bandits.theory import kl_estimators as theory
from course.errors import require
from course.exact import control_variate_minimum, gaussian_control_variate, gaussian_kl_moments
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import student
from course.lab.terminal import Progress
from course.parts.kl import exact_kl, k3

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "KL estimators k1, k2, k3: how biased and how noisy each is, against the distance itself"
EXPECTED_SECONDS = 4.0


@dataclass(frozen=True)
class Settings(Checked):
    """Gaussians at several distances; three arms for samples of another policy."""

    # μ of N(μ, 1); the true KL is μ²/2 nats
    means: tuple[float, ...] = (0.03, 0.06, 0.1, 0.2, 0.35, 0.6, 1.0, 1.4)
    runs: int = 100  # independent Monte Carlo runs, for the standard errors
    samples: int = 20_000  # samples in each of these runs, for each μ
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "samples"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number ≥ 2")
        fits = all(0 < mu <= 2 for mu in self.means)
        require(fits, "means", self.means, "numbers above 0, at most 2")


SETTINGS = Settings()
SCHULMAN = "Schulman 2020, Approximating KL divergence"
HERE = "derived here, checked by enumeration"
REFERENCE = (0.25, 0.72, 0.03)  # on three arms, beside the policy (.5, .3, .2)
CAPTION = "Values by Monte Carlo against closed forms (dashed) and the published table (diamonds)."


def run(settings: Settings, progress: Progress) -> Result:
    """Monte Carlo on the Gaussians, with closed forms and quadrature beside it."""
    s = settings
    values = theory.gaussian_values(s.means, s.runs, s.samples, s.seed, progress)
    closed = gaussian_kl_moments(torch.tensor(s.means, dtype=torch.float64))
    series = {
        "kl": [mu**2 / 2 for mu in s.means],
        "values": {
            name: {**row, "closed": closed[name].std, "closed_bias": closed[name].bias}
            for name, row in values.items()
        },
    }
    return Result(
        series=series, facts=[*_value_facts(s, values), *_sampling_facts()], caption=CAPTION
    )


# ---------------------------------------------------------------- facts


def _value_facts(s: Settings, measured: Mapping[str, Mapping[str, Tensor]]) -> list[Fact]:
    facts, worst = [], 0.0
    for true, table in theory.PUBLISHED.items():
        mu = math.sqrt(2 * true)
        exact, closed = theory.quadrature(mu), gaussian_kl_moments(mu)
        for name, printed in table.items():
            for which, what in enumerate(("bias", "std")):
                value, rounding = printed[2 * which : 2 * which + 2]
                worst = max(worst, abs(exact[name][which] - value) / rounding)
                place = [i for i, one in enumerate(s.means) if math.isclose(one, mu)]
                # its bias of .0025 is within the noise of these samples: by quadrature alone
                if not place or (name, what, true) == ("k2", "bias", 0.005):
                    continue
                long = {"bias": "bias", "std": "standard deviation"}[what]
                claim = f"{long} of {name} over the true KL on samples of N(0, 1) towards "
                claim += f"N({mu:g}, 1), true KL {true:g} nats"
                mean, error = (measured[name][key][place[0]] for key in (what, f"{what}_error"))
                expected = getattr(closed[name], what)
                facts.append(
                    Fact.simulated(claim, SCHULMAN, mean, error, expected, number=19, runs=s.runs)
                )
    exact, closed, best = (
        theory.quadrature(1.0),
        gaussian_kl_moments(1.0),
        float(gaussian_control_variate(1.0)),
    )
    claim = "The published table is what quadrature gives, rounded (largest difference over half a"
    claim += " unit of the last printed digit: at most 1)"
    facts.append(Fact.below(claim, SCHULMAN, worst, 1 + 1e-6, number=19))
    # fmt: off
    forms = {
        "k1": ("k1", "2/μ"),
        "k2": ("k2", "√(2 + μ²)"),
        "k3": ("k3", "2√(e^{μ²} − 1 − μ²)/μ²"),
        "best": ("k1 + λ*(r − 1)", "2√(μ² − μ⁴/(e^{μ²} − 1))/μ²"),
    }
    # fmt: on
    for name, (who, formula) in forms.items():
        claim = f"standard deviation of {who} over the true KL is {formula} (by quadrature, μ = 1)"
        facts.append(Fact.exact(claim, HERE, exact[name][1], closed[name].std, number=19))
    claim = "bias of k2 over the true KL is μ²/4 (by quadrature, μ = 1)"
    facts.append(Fact.exact(claim, HERE, exact["k2"][0], closed["k2"].bias, number=19))
    claim = "the least noisy coefficient of the control variate r − 1 is μ²/(e^{μ²} − 1), not k3's"
    claim += " 1 (by regression, μ = 1)"
    facts.append(Fact.exact(claim, HERE, exact["variate"][0], best, number=19))
    log_r = torch.linspace(-5, 5, 1_000_001, dtype=torch.float64)
    least = (-log_r + best * torch.expm1(log_r)).min()
    claim = "with that coefficient the estimate can be negative, down to log λ* + 1 − λ*, which k3"
    claim += " never is (least value of −log r + λ*(r − 1), μ = 1, nats)"
    form = control_variate_minimum(best)
    return [*facts, Fact.exact(claim, SCHULMAN, least, form, number=19)]


def _sampling_facts() -> list[Fact]:
    """Unbiased only on samples of the policy, and where the reference has no mass elsewhere."""
    policy, reference = (
        torch.tensor(each, dtype=torch.float64).log() for each in (B3_POLICY, REFERENCE)
    )
    true, log_r = float(exact_kl(policy, reference)), reference - policy
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    bias = float((old.exp() * k3(log_r)).sum()) - true
    corrected = float((old.exp() * (policy - old).exp() * k3(log_r)).sum())
    # plays two of the reference's three arms
    half = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    missed = (half.exp() * k3(reference[:2] - half)).sum() - exact_kl(half, reference[:2])
    other = "k3 averaged over samples of another policy is not KL(π‖ref): distance from it on three"
    other += " arms, nats, more than a tenth of it"
    again = "times ρ = π/π_old, k3 on the same samples is KL(π‖ref) again (nats)"
    unplayed = "where the policy never plays an arm of the reference, k3 is short by that arm's"
    unplayed += " probability under the reference"
    return [
        Fact.above(other, HERE, abs(bias), 0.1 * true, number=19),
        Fact.exact(again, HERE, corrected, true, number=19),
        Fact.exact(unplayed, HERE, missed, -reference[2].exp(), number=19),
    ]


# ---------------------------------------------------------------- the figure

COLOURS = {"k1": "#0057a3", "k2": "#b8860b", "k3": "#b8320f", "best": "#00875f"}


def plot(result: Result) -> Figure:
    """Noise of one sample against the distance."""
    figure, [ax] = figures.new_figure(width=8.2, height=4.8)
    true, of, t = result.array("kl"), result.array, student(0.05, result.settings["runs"])
    labels = ("k1, unbiased", "k2, biased", "k3, unbiased", "best control variate")
    for (name, colour), label in zip(COLOURS.items(), labels, strict=True):
        std, half = of("values", name, "std"), t * of("values", name, "std_error")
        look: dict[str, Any] = {"color": colour, "linestyle": "-", "marker": "o", "markersize": 4}
        figures.band(ax, true, std, half, label=label, **look)
        figures.expectation(ax, of("values", name, "closed"), true)
    bias = np.abs(of("values", "k2", "closed_bias"))
    shown, dotted = bias > 0.02, {"color": COLOURS["k2"], "linestyle": ":"}
    figures.band(ax, true[shown], bias[shown], label="bias of k2", **dotted)
    for kl, table in theory.PUBLISHED.items():
        figures.expectation(ax, [row[2] for row in table.values()], [kl] * len(table), marker="D")
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y")
    title, y = "Noise of one sample: k1 drowns near the reference", "standard deviation (and bias)"
    figures.describe(ax, title, "true KL (nats)", f"{y} / true KL")
    key, place = "- -  closed form    ◇  Schulman 2020", (0.40, 0.93)
    ax.text(*place, key, transform=ax.transAxes, color=figures.INK)
    figures.label_ends(ax)
    return figure
