"""The ladder on a language model: every rung from the same warm start, at equal samples, judged on
held-out questions.

A small transformer has learned two-digit sums to about 30 % by supervision; reinforcement learning
takes it from there. Each rung gets the same number of completions and several updates per rollout,
at every learning rate of the sweep; what is shown is its best one. Seeds and learning rates are run
axes of one program. `--rungs` takes any names, descendants included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.result import Result
from course.lab.terminal import Progress
from tinylm.experiment import Budget, Curves, interval, train, warm_start

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = "every rung from the same warm start on two-digit sums: accuracy, entropy, KL, clipping"
FIGURE = "tinylm_ladder"
EXPECTED_SECONDS = 900.0


@dataclass(frozen=True)
class Settings(Budget):
    """What is compared, at which learning rates."""

    rungs: tuple[str, ...] = tuple(
        rung.name for rung in ladder.RUNGS.values() if rung.kind in ("rung", "descendant")
    )  # which estimators
    prompts: int = 16  # questions per rollout
    rollouts: int = 100  # of reinforcement learning
    seeds: int = 4  # models
    # Adam's learning rates, each falling to 0 in a line
    rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rates) > 0 and min(self.rates) > 0, "rates", self.rates, "numbers > 0")


SETTINGS = Settings()
SHOWN = (
    "accuracy",
    "entropy",
    "kl_start",
    "clip_fraction",
    "gradient_norm",
    "silent_groups",
    "ratio_max",
    "reward",
    "length",
)


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every rung at every learning rate and seed."""
    start = warm_start(settings, progress)
    series: dict[str, dict[str, Any]] = {}
    for name in progress(settings.rungs, "rungs on the tiny LM"):
        series[name] = summary(
            train(ladder.get(name).estimator, settings, start, settings.rates, progress, text=name),
            settings,
        )
    everything = {"rungs": series, "start": start.accuracy, "rates": settings.rates}
    return Result(
        series=everything,
        caption=(
            "Mean of the seeds and its 95 % interval (Student's t); each rung at its best rate."
        ),
    )


def summary(curves: Curves, settings: Settings) -> dict[str, Any]:
    """What is kept of a training: the best learning rate by final accuracy, its curves, and the
    whole sweep's ends.
    """
    final = curves.values["accuracy"][-1]  # [L, S]
    best = int(final.mean(-1).argmax())
    kept: dict[str, Any] = {
        "samples": [step * settings.prompts * settings.group for step in curves.steps],
        "rate": settings.rates[best],
        "sweep": final.mean(-1),
        "final_seeds": final[best],
        "halted": curves.halted[best].float().mean(),
        "seconds": curves.seconds / final.numel(),
        "megabytes": curves.peak / 1e6,
        "parameters": curves.parameters,
    }
    gain = (
        curves.values["accuracy"][:, best] - curves.values["accuracy"][0, best]
    )  # [logs, S]: seeds start from different warm starts
    kept["gain"], kept["gain_half"] = interval(gain)
    for name in SHOWN:
        if name in curves.values:
            kept[name], kept[f"{name}_half"] = interval(curves.values[name][:, best])
    return kept


def plot(result: Result) -> Figure:
    """Above, curves of the ladder's rungs; below, for everything that ran: what it gained, how far
    it went for it, what it cost.
    """
    names = list(result.settings["rungs"])
    own = [
        name
        for name in names
        if ladder.RUNGS.get(name) is None or ladder.RUNGS[name].kind != "descendant"
    ] or names
    figure, panels = figures.new_figure(
        2,
        3,
        width=17.0,
        height=4.6 + max(4.0, 0.28 * len(names)),
        height_ratios=(4.6, max(4.0, 0.28 * len(names))),
    )

    def of(name: str, what: str) -> NDArray[np.float64]:
        return result.array("rungs", name, what)

    shown = (
        ("gain", "Held-out accuracy above the warm start's", "gain in greedy exact match"),
        ("entropy", "Entropy", "nats per token"),
        ("clip_fraction", "Tokens whose slope is 0", "share"),
    )
    for ax, (what, title, unit) in zip(panels, shown, strict=False):
        skip = 0 if what == "gain" else 1  # before the first rollout only the accuracy is known
        for name in own:
            figures.band(
                ax,
                of(name, "samples")[skip:],
                of(name, what)[skip:],
                of(name, f"{what}_half")[skip:] if what == "gain" else None,
                name,
            )
        figures.describe(ax, title, "completions", unit)
        figures.label_ends(ax)
    gain, distance, cost = panels[3:]
    for place, name in enumerate(names):
        colour = figures.style_of(name)["color"]
        gain.errorbar(
            float(of(name, "gain")[-1]),
            place,
            xerr=float(of(name, "gain_half")[-1]),
            marker="o",
            color=colour,
            capsize=3,
        )
        gain.text(
            1.0,
            place,
            f" lr {float(of(name, 'rate')):g}",
            transform=gain.get_yaxis_transform(),
            va="center",
        )
        distance.plot(float(of(name, "kl_start")[-1]), place, marker="o", color=colour)
        cost.barh(place, float(of(name, "seconds")), color=colour)
        cost.text(
            float(of(name, "seconds")),
            place,
            f" {float(of(name, 'megabytes')):.1f} MB",
            va="center",
        )
    for ax in panels[3:]:
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
    cost.margins(x=0.2)
    figures.describe(
        gain,
        "Final gain at its best learning rate",
        "gain in greedy exact match, and its 95 % interval",
    )
    figures.describe(distance, "How far it went for it", "KL(π‖start) of a greedy answer (nats)")
    figures.describe(cost, "What it cost; memory at its height", "seconds of training per model")
    return figure
