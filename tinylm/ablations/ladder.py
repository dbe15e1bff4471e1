"""The ladder on a language model: every rung from the same warm start, at equal samples, judged on held-out questions.

A small transformer has learned two-digit sums to about 30 % by supervision; reinforcement learning takes it from there. Each
rung gets the same number of completions and several updates per rollout, at every learning rate of the sweep; what is shown
is its best one. Seeds and learning rates are run axes of one program. `--rungs` takes any names, descendants included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course import figures, ladder
from course.errors import require
from course.results import Result
from course.terminal import Progress
from tinylm.experiment import Budget, Curves, interval, train, warm_start

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = "every rung from the same warm start on two-digit sums: accuracy, entropy, KL, clipping"
FIGURE = "tinylm_ladder"
EXPECTED_SECONDS = 400.0


@dataclass(frozen=True)
class Settings(Budget):
    """What is compared, at which learning rates."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    rates: tuple[float, ...] = (2e-4, 4e-4, 8e-4)  # Adam's learning rates, each falling to 0 in a line

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rates) > 0 and min(self.rates) > 0, "rates", self.rates, "numbers > 0")


SETTINGS = Settings()
SHOWN = ("accuracy", "entropy", "kl_start", "clip_fraction", "gradient_norm", "silent_groups", "ratio_max", "reward", "length")


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every rung at every learning rate and seed."""
    start = warm_start(settings, progress)
    series: dict[str, dict[str, Any]] = {}
    for name in progress(settings.rungs, "rungs on the tiny LM"):
        series[name] = summary(train(ladder.get(name).estimator, settings, start, settings.rates, progress, text=name), settings)
    everything = {"rungs": series, "start": start.accuracy, "rates": settings.rates}
    return Result(series=everything, caption="Mean of the seeds and its 95 % interval (Student's t); each rung at its best rate.")


def summary(curves: Curves, settings: Settings) -> dict[str, Any]:
    """What is kept of a training: the best learning rate by final accuracy, its curves, and the whole sweep's ends."""
    final = curves.values["accuracy"][-1]  # [L, S]
    best = int(final.mean(-1).argmax())
    kept: dict[str, Any] = {
        "samples": [step * settings.prompts * settings.group for step in curves.steps],
        "rate": settings.rates[best],
        "sweep": final.mean(-1),
        "final_seeds": final[best],
        "halted": curves.halted[best].float().mean(),
        "seconds": curves.seconds / final.numel(),
        "parameters": curves.parameters,
    }
    for name in SHOWN:
        if name in curves.values:
            kept[name], kept[f"{name}_half"] = interval(curves.values[name][:, best])
    return kept


def plot(result: Result) -> Figure:
    """Accuracy along the way, the sweep, entropy, and distance from the start."""
    figure, panels = figures.new_figure(2, 2, width=12.0, height=8.6)
    names = list(result.settings["rungs"])

    def of(name: str, what: str) -> NDArray[np.float64]:
        return result.array("rungs", name, what)

    shown = (("accuracy", "Held-out accuracy", "greedy exact match"), ("entropy", "Entropy", "nats per token"))
    for ax, (what, title, unit) in zip(panels, shown, strict=False):
        skip = 0 if what == "accuracy" else 1  # before the first rollout only the accuracy is known
        for name in names:
            figures.band(ax, of(name, "samples")[skip:], of(name, what)[skip:], of(name, f"{what}_half")[skip:], name)
        figures.describe(ax, title, "completions", unit)
    panels[0].set_ylim(0, 1.02)
    for name in names:
        style = figures.style_of(name)
        panels[2].plot(result.array("rates"), of(name, "sweep"), marker="o", label=name, **style)
        panels[3].errorbar(
            of(name, "kl_start")[-1], of(name, "accuracy")[-1], of(name, "accuracy_half")[-1], marker="o", color=style["color"]
        )
        at = (of(name, "kl_start")[-1], of(name, "accuracy")[-1])
        panels[3].annotate(name, at, (6, 4), textcoords="offset points", color=figures.readable(style["color"]))
    panels[2].set_xscale("log", base=2)
    panels[2].set_xticks(result.array("rates"), [f"{rate:g}" for rate in result.array("rates")])
    figures.describe(panels[2], "How much the learning rate matters", "Adam's learning rate", "final accuracy")
    figures.describe(panels[3], "How far it went for it", "KL(π‖start) of a greedy answer (nats)", "final accuracy")
    panels[3].margins(x=0.25)
    for ax in panels[:3]:
        figures.label_ends(ax)
    return figure
