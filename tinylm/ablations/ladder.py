"""The ladder on a language model: every rung from one warm start, with equal samples.

A supervised warm start has taught a small transformer two-digit sums to about 30 %; reinforcement
learning continues from there. Each rung gets the same number of completions and several updates per
rollout. Its learning rate is chosen by a sweep on some models and questions, and it is judged on
other models and other held-out questions. `--rungs` takes any names, descendants included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course import ladder
from course.lab import figures
from course.lab.diverged import told
from course.lab.result import Result
from course.lab.statistics import described, interval, paired_interval
from course.lab.sweep import Choice, Swept, edges
from course.lab.terminal import Progress
from tinylm.curves import Curves, SweptBudget, peak_bytes, sweep_rates
from tinylm.warm_start import warm_start
from tinylm.wiring import JUDGE, Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "every rung from the same warm start on two-digit sums: accuracy, entropy, KL, clipping"
FIGURE = "tinylm_ladder"
EXPECTED_SECONDS = 280.0


@dataclass(frozen=True)
class Settings(SweptBudget):
    """What is compared, at which learning rates."""

    # which estimators
    rungs: tuple[str, ...] = (
        *(rung.name for rung in ladder.select()),
        "rloo",
        "dr_grpo",
        "dapo",
        "gspo",
    )
    epochs: int = 4  # updates per rollout
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (5e-5, 1.5e-4, 4.5e-4)


SETTINGS = Settings()
SHOWN = ("accuracy", "gain", "entropy", "kl_start", "clip_fraction", "silent_groups", "ratio_max")


def run(settings: Settings, progress: Progress) -> Result:
    """Warm start once; then every rung: its rate chosen on some models, judged on the others."""
    start = warm_start(settings, settings.models, progress)
    found = {
        name: sweep_rates(settings, ladder.get(name).estimator, start, progress, text=name)
        for name in progress(settings.rungs, "rungs on the tiny LM")
    }
    first = found[settings.rungs[0]].judged
    series = {name: summary(swept, first, settings) for name, swept in found.items()}
    choices: dict[str, Choice] = {name: swept.choice for name, swept in found.items()}
    caption = (
        f"Bands and bars: {described(settings.seeds)}. Each rung at its best learning rate, chosen"
        f" on {settings.tuning} other models and other questions. {edges(choices, settings.rates)}"
    )
    shown = {"rungs": series, "start": start.accuracy, "rates": settings.rates}
    result = Result(series=shown, caption=caption.strip())
    return told(result, {name: swept.judged.halted for name, swept in found.items()})


def summary(swept: Swept[Curves], first: Curves, settings: Settings) -> dict[str, Any]:
    """What is kept of a rung: its rate, the sweep's ends, and the judged curves.

    `over_first` is the final accuracy less the first rung's, model by model.
    """
    curves = swept.judged
    noise = Streams(settings.seed, tuple(curves.problem.runs), range(settings.seeds)).noise(JUDGE)
    kept: dict[str, Any] = {
        "samples": [step * settings.prompts * settings.group for step in curves.steps],
        "rate": swept.choice.rate,
        "interior": swept.choice.interior,
        "sweep": None if swept.tried is None else swept.tried.final.mean(-1),
        "final_seeds": curves.final[0],
        "halted": curves.halted[0].float().mean(),
        "seconds": curves.seconds / settings.seeds,
        "megabytes": peak_bytes(curves, noise) / 1e6,
        "parameters": curves.parameters,
    }
    over = paired_interval(curves.final[0], first.final[0])
    kept["over_first"], kept["over_first_half"] = over
    for name, values in ({"gain": curves.gain} | curves.values).items():
        if name in SHOWN:
            kept[name], kept[f"{name}_half"] = interval(values[:, 0])
    return kept


def plot(result: Result) -> Figure:
    """Above, curves of the ladder's rungs; below, for everything that ran: where it ended beside
    the first, how far it went for it, what it cost.
    """
    names = list(result.settings["rungs"])
    own = [name for name in names if getattr(ladder.RUNGS.get(name), "kind", "") != "descendant"]
    below = max(4.0, 0.28 * len(names))
    figure, panels = figures.new_figure(
        2, 3, width=17.0, height=4.6 + below, height_ratios=(4.6, below)
    )
    shown = (
        ("gain", "Held-out accuracy above the warm start's", "gain in greedy exact match"),
        ("entropy", "Entropy", "nats per token"),
        ("clip_fraction", "Tokens whose slope is 0", "share"),
    )
    for ax, (what, title, unit) in zip(panels, shown, strict=False):
        skip = 0 if what == "gain" else 1  # before the first rollout only the accuracy is known
        for name in own or names:
            x, y, half = (
                result.array("rungs", name, key)[skip:] for key in ("samples", what, f"{what}_half")
            )
            figures.band(ax, x, y, half if what == "gain" else None, name)
        figures.describe(ax, title, "completions", unit)
        figures.label_ends(ax)

    def ends(what: str) -> list[float]:
        return [float(result.array("rungs", name, what).reshape(-1)[-1]) for name in names]

    over, distance, cost = panels[3:]
    labels = [f"{name}  lr {rate:g}" for name, rate in zip(names, ends("rate"), strict=True)]
    figures.rows(over, names, ends("over_first"), ends("over_first_half"), labels=labels)
    figures.reference(over, x=0.0)
    figures.describe(
        over, f"Where it ended, less {names[0]}", "accuracy, paired, and its 95 % interval"
    )
    figures.rows(distance, names, ends("kl_start"), ends("kl_start_half"))
    figures.describe(distance, "How far it went for it", "KL(π‖start) of a greedy answer (nats)")
    figures.rows(cost, names, ends("seconds"))
    for row, (seconds, size) in enumerate(zip(ends("seconds"), ends("megabytes"), strict=True)):
        figures.note(cost, f"{size:.1f} MB", (seconds, row), (8, 0), va="center")
    cost.margins(x=0.25)
    figures.describe(cost, "What it cost; memory at its height", "seconds of training per model")
    return figure
