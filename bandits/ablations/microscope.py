"""Every rung under the microscope: how far its expected gradient is from the true one, and how far
one batch is from that.

Nothing is sampled: every batch that can occur is listed and weighed by its probability. Four cases,
because on the simplest one (one prompt, one token, samples of the current policy) several rungs are
the same estimator:

    on policy     B3: π = (.5, .3, .2), Bernoulli means (.2, .5, .8)
    off policy    the samples are B3's, the policy has moved on to (.4, .3, .3)
    two prompts   B3 beside a prompt on which every arm pays less: the batch's mean is neither's
    ragged        B3 with answers of 1, 2 and 4 tokens: how tokens are weighed begins to matter
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from course import ladder
from course.errors import require
from course.exact import Outcomes, group_mean_factor, microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "how far each rung's gradient is from the true one: bias and spread, exactly, on and off policy"
)
EXPECTED_SECONDS = 3.0


@dataclass(frozen=True)
class Settings(Checked):
    """Which estimators, and the size of the group."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    group: int = 4  # samples per prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            2 <= self.group <= 8,
            "group",
            self.group,
            "from 2 to 8: all batches of two prompts are listed",
        )


SETTINGS = Settings()
MOVED = (0.4, 0.3, 0.3)
REFERENCE = (0.2, 0.3, 0.5)
OTHER_POLICY, OTHER_MEANS = (0.6, 0.3, 0.1), (0.05, 0.1, 0.2)
LENGTHS = (1, 2, 4)


def cases() -> dict[str, Outcomes]:
    """The four cases, each with a reference policy and the exact value as its critic's."""

    def logs(*policies: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(policies, dtype=torch.float64).log()

    def value(policy: tuple[float, ...], means: tuple[float, ...]) -> float:
        return sum(p * m for p, m in zip(policy, means, strict=True))

    one, reference = (
        torch.tensor([value(B3_POLICY, B3_MEANS)], dtype=torch.float64),
        logs(REFERENCE),
    )
    bernoulli = torch.tensor([B3_MEANS], dtype=torch.float64)
    pair = Bernoulli(torch.tensor([B3_MEANS, OTHER_MEANS], dtype=torch.float64))
    both = torch.tensor(
        [value(B3_POLICY, B3_MEANS), value(OTHER_POLICY, OTHER_MEANS)], dtype=torch.float64
    )
    ragged = Bernoulli(bernoulli, lengths=torch.tensor(LENGTHS))
    return {
        "on policy": b3(reference=reference, value=one),
        "off policy": outcomes(
            Bernoulli(bernoulli), logs(MOVED), old=logs(B3_POLICY), reference=reference, value=one
        ),
        "two prompts": outcomes(
            pair, logs(B3_POLICY, OTHER_POLICY), reference=logs(REFERENCE, REFERENCE), value=both
        ),
        "ragged": outcomes(ragged, logs(B3_POLICY), reference=reference, value=one),
    }


def run(settings: Settings, progress: Progress) -> Result:
    """List every batch of every case for every rung."""
    series: dict[str, dict[str, dict[str, float | str]]] = {name: {} for name in settings.rungs}
    for case, listed in progress(cases().items(), "cases"):
        for name in progress(settings.rungs, case):
            seen = microscope(ladder.get(name).estimator, listed, settings.group)
            size = float(seen.gradient.norm())
            series[name][case] = {
                "bias": seen.relative_bias,
                "spread": seen.std / size,
                "cosine": seen.cosine,
                "bias_norm": float(seen.bias.norm()),
                "std": seen.std,
                "method": seen.method,
            }
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def _facts(settings: Settings, series: dict[str, dict[str, dict[str, float | str]]]) -> list[Fact]:
    facts, group = [], settings.group
    for name, claim, source, expected in (
        (
            "reinforce",
            "REINFORCE is unbiased on policy (relative bias on B3)",
            "Williams 1992, theorem 1",
            0.0,
        ),
        ("rloo", "RLOO is unbiased on policy (relative bias on B3)", "Kool et al. 2019", 0.0),
        (
            "group_mean",
            (
                "A group mean that includes the sample shrinks the gradient by 1/G (relative bias"
                f" on B3, G = {group})"
            ),
            "Kool et al. 2019",
            1 - group_mean_factor(group),
        ),
    ):
        if name in series:
            facts.append(
                Fact.exact(
                    claim,
                    source,
                    series[name]["on policy"]["bias"],
                    expected,
                    number=3 if name != "reinforce" else None,
                )
            )
    ratio_rungs = [
        name for name in ("surrogate", "clip") if name in series and "baseline" in series
    ]
    for name in ratio_rungs:
        text = (
            f"On policy, {name} has the bias and the spread of the policy gradient with the same"
            " baseline (relative spread on B3)"
        )
        spread = series[name]["on policy"]["spread"], series["baseline"]["on policy"]["spread"]
        facts.append(Fact.exact(text, "Xu 2025, eq. 6", *spread, number=9))
    return facts


CAPTION = (
    "Enumerated, not sampled. Hollow diamonds: the closed form 1/G of a mean that includes the"
    " sample itself."
)
MARKERS = {"on policy": "o", "off policy": "X", "two prompts": "s", "ragged": "^"}


def plot(result: Result) -> Figure:
    """Bias and spread, both as a share of the true gradient's length, a row for each rung and a
    marker for each case.
    """
    from matplotlib.lines import Line2D

    names, group = list(result.settings["rungs"]), result.settings["group"]
    figure, (bias, spread) = figures.new_figure(
        1, 2, width=12.0, height=1.6 + 0.52 * len(names), sharey=True
    )
    for row, name in enumerate(names):
        for shift, (case, marker) in enumerate(MARKERS.items()):
            place = row + 0.17 * (shift - 1.5)
            for ax, what in ((bias, "bias"), (spread, "spread")):
                colour = figures.style_of(name)["color"]
                ax.plot(
                    float(result.array(name, case, what)), place, marker, color=colour, markersize=8
                )
        if name in ("baseline", "group_mean", "surrogate"):
            figures.expectation(
                bias,
                row - 0.255,
                1 / group,
                marker="D",
                label="closed form, 1/G" if name == "baseline" else None,
            )
    bias.set_yticks(range(len(names)), names)
    bias.set_ylim(len(names) - 0.4, -0.6)
    figures.describe(bias, "How far off it is on average", "‖E[ĝ] − ∇J‖ / ‖∇J‖", "")
    figures.describe(
        spread, f"How noisy one batch is (G = {group})", "standard deviation of ĝ / ‖∇J‖", ""
    )
    grey = [
        Line2D([], [], linestyle="none", marker=marker, color="#444444", markersize=8, label=case)
        for case, marker in MARKERS.items()
    ]
    hollow = [line for line in bias.get_lines() if line.get_label() == "closed form, 1/G"]
    figure.legend(
        handles=[*grey, *hollow],
        loc="outside lower center",
        ncols=len(grey) + len(hollow),
        frameon=False,
    )
    return figure
