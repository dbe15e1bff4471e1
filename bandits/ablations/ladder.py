"""The ladder on a contextual bandit: every rung at equal samples, several updates per rollout, its
own best learning rate.

Eight prompts of different difficulty, ten arms each. Each rung gets the same number of samples and
four updates per rollout; its learning rate is chosen on one half of the runs and judged on the
other. Then the same runs again with every reward shifted, and with every reward scaled, at the
learning rate that was chosen before: what survives that does not need to be told the units of the
reward. What the KL term buys is its distance from the start, so that is measured too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bandits.environments import contextual
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = (
    "every rung from REINFORCE to GRPO at equal samples, and what happens when rewards are shifted"
    " or scaled"
)
EXPECTED_SECONDS = 30.0


@dataclass(frozen=True)
class Settings(Checked):
    """What is run; rewards are shifted by `shift` and multiplied by `stretch` in the second and
    third part.
    """

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    runs: int = 100  # independent runs that are reported (as many again choose the learning rate)
    steps: int = 40  # rollouts
    epochs: int = 4  # updates per rollout
    group: int = 8  # samples per prompt and rollout
    arms: int = 10  # arms per prompt
    # one per prompt: how well wrong arms pay
    difficulty: tuple[float, ...] = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    # the sweep of each rung
    learning_rates: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    offset: float = 0.0  # added to every reward, always
    scale: float = 1.0  # multiplies every reward, always
    shift: float = 4.0  # added in the second part
    stretch: float = 10.0  # multiplies in the third part
    seed: int = 0  # of the random streams
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "steps", "epochs", "group", "arms"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number > 0")
        require(self.group > 1, "group", self.group, "at least 2: group baselines compare samples")
        require(
            len(self.learning_rates) > 0 and min(self.learning_rates) > 0,
            "learning_rates",
            self.learning_rates,
            "numbers > 0",
        )
        require(
            self.scale > 0 and self.stretch > 0,
            "scale, stretch",
            (self.scale, self.stretch),
            "numbers > 0",
        )


SETTINGS = Settings()


@dataclass(frozen=True)
class Climb:
    """One rung, trained: `reward` and `kl_ref` [logs, *runs]; reward as a share of what is to be
    won (0 to 1), KL in nats.
    """

    steps: list[int]
    reward: Tensor
    kl_ref: Tensor
    halted: Tensor


def train(
    estimator: Estimator,
    settings: Settings,
    chosen: list[int],
    numbers: range,
    offset: float,
    scale: float,
    progress: Progress,
) -> Climb:
    """Train one estimator at the learning rates `chosen` (L of them, by place) for all run
    `numbers` (R): run axes (L, R).

    A run number stands for the same arms at every learning rate; its draws depend on both, and on
    nothing else.
    """
    runs, device = (len(chosen), len(numbers)), torch.device(settings.device)
    arms = Noise((len(numbers),), settings.seed, numbers=numbers, device=device)
    environment = contextual(arms, settings.difficulty, settings.arms, offset=offset, scale=scale)
    streams = [place * 2 * settings.runs + number for place in chosen for number in numbers]
    noise = Noise(runs, settings.seed + 1, numbers=streams, device=device)
    policy = Softmax.uniform(noise, environment.prompts, environment.arms)
    bandit = Bandit(
        environment,
        policy,
        settings.group,
        reference="start",
        critic=uses_critic(estimator),
        greedy=True,
    )
    rates = torch.tensor([settings.learning_rates[place] for place in chosen], device=device)
    optimizer = SGD(rates.unsqueeze(-1).expand(runs))
    learner = Learner(
        bandit, estimator, optimizer, noise, epochs=settings.epochs, log_every=2, halt_diverged=True
    )
    history = learner.train(
        settings.steps, lambda steps: progress(steps, "rollouts", total=settings.steps)
    )
    halted = torch.zeros(runs, dtype=torch.bool) if learner.halted is None else learner.halted.cpu()
    reward = (history["expected_reward"].cpu() - offset) / scale
    return Climb(history.steps, reward, history["kl_ref"].cpu(), halted)


def run(settings: Settings, progress: Progress) -> Result:
    """Sweep, choose, report; then the same with shifted and with scaled rewards."""
    tune, judge = range(settings.runs), range(settings.runs, 2 * settings.runs)
    everyone = list(range(len(settings.learning_rates)))
    series: dict[str, dict[str, object]] = {}
    for name in progress(settings.rungs, "rungs"):
        estimator, start = ladder.get(name).estimator, time.perf_counter()
        swept = train(
            estimator,
            settings,
            everyone,
            range(2 * settings.runs),
            settings.offset,
            settings.scale,
            progress,
        )
        final = swept.reward[-1]
        best = int(final[:, tune].mean(-1).argmax())
        shifted = train(
            estimator,
            settings,
            [best],
            judge,
            settings.offset + settings.shift,
            settings.scale,
            progress,
        )
        scaled = train(
            estimator,
            settings,
            [best],
            judge,
            settings.offset,
            settings.scale * settings.stretch,
            progress,
        )
        series[name] = {
            "samples": [step * settings.group * len(settings.difficulty) for step in swept.steps],
            "learning_rate": settings.learning_rates[best],
            **_interval("reward", swept.reward[:, best][:, judge]),
            **_interval("final", final[best, judge]),
            **_interval("sweep", final[:, judge].T, dim=0),
            **_interval("shifted", shifted.reward[-1, 0]),
            **_interval("stretched", scaled.reward[-1, 0]),
            **_interval("kl_ref", swept.kl_ref[-1, best, judge]),
            "halted": float(swept.halted[best, judge].float().mean()),
            "seconds": time.perf_counter() - start,
        }
    return Result(
        series={"learning_rates": settings.learning_rates, "rungs": series},
        facts=_facts(settings, series),
        caption=CAPTION,
    )


def _interval(name: str, values: Tensor, dim: int = -1) -> dict[str, Tensor]:
    """The mean over runs and half the width of its 95 % interval."""
    error = values.std(dim) / values.shape[dim] ** 0.5
    return {name: values.mean(dim), f"{name}_half": 1.96 * error}


def _facts(settings: Settings, series: Mapping[str, Mapping[str, object]]) -> list[Fact]:
    facts = []

    def compare(claim: str, source: str, better: tuple[str, str], worse: tuple[str, str]) -> None:
        if better[0] in series and worse[0] in series:
            (high, high_error), (low, low_error) = (
                _mean_error(series[name], what) for name, what in (better, worse)
            )
            facts.append(
                Fact.above(claim, source, high - low, 0.0, math.hypot(high_error, low_error))
            )

    if settings.epochs > 1 and settings.offset == 0:
        text = (
            f"Adding {settings.shift:g} to every reward costs REINFORCE part of its final reward"
            " (difference; 1 is all there is to win)"
        )
        compare(text, "this course", ("reinforce", "final"), ("reinforce", "shifted"))
        text = (
            f"With rewards shifted by {settings.shift:g}, subtracting the mean (baseline) ends"
            " above REINFORCE"
        )
        compare(
            text,
            "Williams 1992; Greensmith et al. 2004",
            ("baseline", "shifted"),
            ("reinforce", "shifted"),
        )
        text = (
            f"With rewards times {settings.stretch:g} and the old learning rate, the group's std"
            " ends above the group mean alone"
        )
        compare(
            text,
            "Shao et al. 2024 (2402.03300)",
            ("group_std", "stretched"),
            ("group_mean", "stretched"),
        )
        text = (
            "The KL term keeps GRPO nearer to where it started (KL to the reference, nats, less"
            " than without the term)"
        )
        compare(
            text, "Shao et al. 2024 (2402.03300)", ("length_mean", "kl_ref"), ("grpo", "kl_ref")
        )
    return facts


def _mean_error(values: Mapping[str, object], name: str) -> tuple[float, float]:
    return float(values[name]), float(values[f"{name}_half"]) / 1.96  # type: ignore[arg-type]


CAPTION = (
    "Every rung at equal samples and its own best learning rate, chosen on other runs than those"
    " shown; bands are 95 % intervals."
)


def plot(result: Result) -> Figure:
    """What is still missing along the way; the sweep; what shifted and scaled rewards do; what the
    KL term costs and buys.
    """
    figure, (curves, sweep, units, anchor) = figures.new_figure(2, 2, width=12.0, height=8.6)
    names = list(result.settings["rungs"])
    missing = "expected reward still missing"
    points: dict[tuple[float, float], list[str]] = {}

    def of(name: str, what: str) -> NDArray[np.float64]:
        return result.array("rungs", name, what)

    for place, name in enumerate(names):
        colour = figures.style_of(name)["color"]
        figures.band(
            curves, of(name, "samples"), 1 - of(name, "reward"), of(name, "reward_half"), name
        )
        figures.band(
            sweep,
            result.array("learning_rates"),
            1 - of(name, "sweep"),
            of(name, "sweep_half"),
            name,
        )
        for marker, what in (("o", "final"), ("s", "shifted"), ("^", "stretched")):
            units.errorbar(
                1 - of(name, what),
                place,
                xerr=of(name, f"{what}_half"),
                marker=marker,
                color=colour,
                markersize=7,
                alpha=0.85,
            )
        at = (float(of(name, "kl_ref")), 1 - float(of(name, "final")))
        anchor.errorbar(*at, of(name, "final_half"), of(name, "kl_ref_half"), "o", color=colour)
        points.setdefault((round(at[0], 3), round(at[1], 4)), []).append(name)
    for rank, (at, there) in enumerate(sorted(points.items(), key=lambda point: point[0][1])):
        side, align = ((7, "left"), (-7, "right"))[
            rank % 2
        ]  # alternate, so that neighbours do not share a place
        colour = figures.readable(figures.style_of(there[0])["color"])
        anchor.annotate(
            " = ".join(there),
            at,
            (side, 0),
            textcoords="offset points",
            color=colour,
            ha=align,
            va="center",
        )
    for ax in (curves, sweep, anchor):
        ax.set_yscale("log")
    units.set_xscale("log")
    sweep.set_xscale("log", base=2)
    anchor.margins(x=0.3, y=0.1)
    figures.describe(curves, "At its own best learning rate", "samples", missing)
    figures.describe(
        sweep, "How much the learning rate matters", "learning rate", f"{missing} at the end"
    )
    units.set_yticks(range(len(names)), names)
    units.invert_yaxis()
    shift, stretch = result.settings["shift"], result.settings["stretch"]
    figures.describe(
        units,
        f"●  as tuned    ■  rewards + {shift:g}    ▲  rewards × {stretch:g}",
        f"{missing} at the end",
        "",
    )
    figures.describe(
        anchor,
        "What the KL term costs, and buys",
        "KL to the starting policy (nats)",
        f"{missing} at the end",
    )
    figures.label_ends(curves)
    figures.label_ends(sweep)
    return figure
