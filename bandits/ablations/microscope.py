"""Every rung under the microscope: the exact bias and spread of its gradient.

Nothing is sampled: every batch that can occur is listed and weighed by its probability. Four cases,
because on the simplest one (one prompt, one token, samples of the current policy) several rungs are
the same estimator:

    on policy     B3: π = (.5, .3, .2), Bernoulli means (.2, .5, .8)
    off policy    B3's samples, but the current policy is (.4, .3, .3)
    two prompts   B3 and a second prompt with lower rewards, so the batch mean fits neither
    ragged        B3 with answers of 1, 2 and 4 tokens, so the aggregation over tokens matters
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bandits.theory.cases import cases
from course import ladder
from course.errors import require
from course.exact import group_mean_factor, microscope
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
    shrinks = "A group mean that includes the sample shrinks the gradient by 1/G (relative bias on"
    shrunk = 1 - group_mean_factor(group)
    # fmt: off
    for name, claim, source, expected, number in (
        ("reinforce", "REINFORCE is unbiased on policy (relative bias on B3)",
         "Williams 1992, theorem 1", 0.0, None),
        ("rloo", "RLOO is unbiased on policy (relative bias on B3)", "Kool et al. 2019", 0.0, 3),
        ("group_mean", f"{shrinks} B3, G = {group})", "Kool et al. 2019", shrunk, 3),
    ):
        if name in series:
            bias = series[name]["on policy"]["bias"]
            facts.append(Fact.exact(claim, source, bias, expected, number=number))
    # fmt: on
    for name in ("surrogate", "clip"):
        if name in series and "baseline" in series:
            here, plain = series[name]["on policy"], series["baseline"]["on policy"]
            for what in ("bias", "spread"):
                claim = f"On policy, {name} has the {what} of the policy gradient with the same"
                claim += f" baseline (relative {what} on B3)"
                facts.append(Fact.exact(claim, "Xu 2025, eq. 6", here[what], plain[what], number=9))
    return facts


CAPTION = (
    "Enumerated, not sampled. Hollow diamonds: the closed form 1/G of a mean that includes the"
    " sample itself."
)
INCLUDES_ITSELF = ("baseline", "surrogate", "group_mean")  # of the means that are subtracted
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
    for shift, (case, marker) in enumerate(MARKERS.items()):
        for ax, what in ((bias, "bias"), (spread, "spread")):
            found = [float(result.array(name, case, what)) for name in names]
            look: dict[str, Any] = {"marker": marker, "markersize": 8}
            figures.rows(ax, names, found, aside=0.17 * (shift - 1.5), **look)
    includes = [row for row, name in enumerate(names) if name in INCLUDES_ITSELF]
    form: dict[str, Any] = {"marker": "D", "label": "closed form, 1/G"}
    hollow = figures.expectation(
        bias, [row - 0.255 for row in includes], [1 / group] * len(includes), **form
    )
    figures.describe(bias, "How far off it is on average", "‖E[ĝ] − ∇J‖ / ‖∇J‖", "")
    figures.describe(
        spread, f"How noisy one batch is (G = {group})", "standard deviation of ĝ / ‖∇J‖", ""
    )
    grey = [
        Line2D([], [], linestyle="none", marker=marker, color="#444444", markersize=8, label=case)
        for case, marker in MARKERS.items()
    ]
    figure.legend(
        handles=[*grey, hollow],
        loc="outside lower center",
        ncols=len(grey) + 1,
        frameon=False,
    )
    return figure
