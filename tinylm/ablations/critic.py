"""A critic or a group? PPO with a learned value of every token, against the group mean.

Both estimate how well the policy does on a prompt: the critic (a network of its own, or a head on
the policy's trunk) from what it has learned, the group from the other answers to the same prompt.
Everything else is equal: clip, samples, updates, warm start, random streams. The critic starts from
the weights of the warm start, with a value head of zeros. With λ = 1 of GAE it is only a baseline;
with a smaller λ the policy learns from its estimates. Its values are compared with the exact ones,
next to the error of a mean of G answers, √(E[p(1−p)]/G).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from course import estimator as parts_of
from course import ladder
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, named_interval
from course.lab.sweep import Swept, edges
from course.lab.terminal import QUIET, Progress
from course.parts import GAE
from tinylm.curves import Curves, SweptBudget, compared, held_out, sweep_rates, train
from tinylm.warm_start import Start, warm_start
from tinylm.watched import WatchedValues, critic_errors
from tinylm.wiring import JUDGE, Streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "PPO's critic against the group mean: accuracy by λ, how good the values are, the price"
FIGURE = "tinylm_critic"
EXPECTED_SECONDS = 250.0
PLACES = {"own": "own network", "shared": "shared trunk"}
COLOURS = {"own": "#661100", "shared": "#c96f00"}
PER_PARAMETER = 16  # bytes in float32: the weight, its gradient, and Adam's two moments


@dataclass(frozen=True)
class Settings(SweptBudget):
    """The critics (`critic` of the budget is replaced by both places), and their opponent."""

    lambdas: tuple[float, ...] = (0.0, 0.95, 1.0)  # of GAE
    rung: str = "group_mean"  # what the critic is compared with
    timed: int = 4  # rounds of timing
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 9e-4)
    tuning: int = 2  # models that choose the rate
    seeds: int = 10  # models that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        for number in self.lambdas:
            require(0 <= number <= 1, "lambdas", number, "numbers from 0 to 1")
        critic = uses_critic(ladder.get(self.rung).estimator)
        require(not critic, "rung", self.rung, "one without a critic")
        require(self.group > 1, "group", self.group, "at least 2")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """The group, and each critic at each λ, from one warm start; then what each costs."""
    s, start = settings, warm_start(settings, settings.models, progress)
    choices, halted = {}, {}

    def arm(name: str, estimator: Estimator, place: str = "own") -> Swept[Curves]:
        budget = replace(s, critic=place)
        found = sweep_rates(budget, estimator, start, progress, asks=WatchedValues, text=name)
        choices[name], halted[name] = found.choice, found.judged.halted
        return found

    group = arm(s.rung, ladder.get(s.rung).estimator)
    before = group.judged.start[0]
    series: dict[str, Any] = {
        "sampled": start.accuracy,
        "start": before,
        "start_over_group": named_interval("mean", before - group.judged.final[0]),
        "group": summary(group, group.judged, s),
    }
    for place, words in PLACES.items():
        series[place] = {}
        for number in progress(s.lambdas, f"λ, {words}"):
            ppo = parts_of.replace(ladder.ppo, credit=GAE(gamma=1.0, gae_lambda=number))
            found = arm(f"λ = {number:g}, {words}", ppo, place)
            series[place][f"{number:g}"] = summary(found, group.judged, s)
    series["price"] = price(s, start, progress)
    caption = (
        f"{s.prompts} prompts × {s.group} completions per rollout for all, {s.epochs} updates, each"
        f" at its best learning rate, chosen on {s.tuning} other models and other questions."
        f" Differences model by model: {described(s.seeds)}. Times are ratios within one run."
        f" {edges(choices, s.rates)}"
    )
    result = Result(series=series, facts=_facts(s, series), caption=caption.strip())
    return told(result, halted)


def summary(swept: Swept[Curves], group: Curves, settings: Settings) -> dict[str, Any]:
    """Of the judged models: gain and errors of the values along the way, and the final accuracy,
    also less the group's; "values" are the trained critic's errors on held-out prompts, per model.
    """
    curves = swept.judged
    seen = {name: found[1:, 0].mean(-1) for name, found in curves.values.items()}  # [logs]
    kept: dict[str, Any] = {
        "samples": [step * settings.prompts * settings.group for step in curves.steps],
        "rate": swept.choice.rate,
        "interior": swept.choice.interior,
        "sweep": None if swept.tried is None else swept.tried.final.mean(-1),
        "final_seeds": curves.final[0],
        "spread": seen["p_variance"].sqrt(),
        "group_error": (seen["sampling_variance"] / settings.group).sqrt(),
        **named_interval("gain", curves.gain[:, 0]),
        **named_interval("over_group", curves.final[0] - group.final[0]),
    }
    problem = curves.problem
    if problem.critic is None:
        return kept
    kept |= {name: seen[name].sqrt() for name in ("prompt_error", "token_error")}
    numbers, runs = range(settings.tuning, settings.models), tuple(problem.runs)
    noise = Streams(settings.seed, runs, numbers, settings.device).noise(JUDGE)
    rows = held_out(problem.task, settings.judged)
    made = critic_errors(problem.model, problem.critic, problem.task, rows, settings.group, noise)
    return kept | {"values": {name: found[0].cpu() for name, found in made.items()}}


def price(settings: Settings, start: Start, progress: Progress) -> dict[str, Any]:
    """Parameters, their memory in bytes, and seconds of a step (the best of several, in turn)."""
    cases = {place: (ladder.ppo, place) for place in PLACES}
    cases = {"group": (ladder.get(settings.rung).estimator, "own"), **cases}
    found: dict[str, Any] = {"parameters": {}, "bytes": {}, "seconds": {}}
    for _ in progress(range(settings.timed), "timing"):
        for name, (estimator, place) in cases.items():
            budget = replace(settings, rollouts=3, log_every=3, judged=1, critic=place)
            curves = train(budget, estimator, start, settings.rates[:1], range(2), QUIET)
            found["parameters"][name] = curves.parameters
            found["bytes"][name] = PER_PARAMETER * curves.parameters
            seconds = curves.seconds / budget.rollouts
            found["seconds"][name] = min(found["seconds"].get(name, seconds), seconds)
    return found


def _facts(s: Settings, series: Mapping[str, Any]) -> list[Fact]:
    """Critics against the group, model by model, each written whether it holds or not; an earlier
    run with other models fixed the directions.
    """
    last, first = f"{max(s.lambdas):g}", f"{min(s.lambdas):g}"
    group, facts = series["group"]["final_seeds"], []
    own, shared = (series[place][last]["values"]["prompt"] for place in PLACES)
    claim = f"On held-out prompts a shared trunk's values (λ = {last}) are further off than an own"
    facts.append(compared(f"{claim} network's (RMS error)", shared, own))
    for place, words in PLACES.items():
        found, by = series[place][last], f"PPO with λ = {last} ({words}) ends above"
        if first != last:
            less = series[place][first]["final_seeds"]
            claim = f"{by} λ = {first} in held-out accuracy, each at its best rate"
            facts.append(compared(claim, found["final_seeds"], less))
        claim = f"{by} the group mean in held-out accuracy, each at its best rate"
        facts.append(compared(claim, found["final_seeds"], group))
        claim = (
            f"On held-out prompts the critic's values ({words}, λ = {last}) are further off (RMS"
            f" error) than a mean of {s.group} answers"
        )
        facts.append(compared(claim, found["values"]["prompt"], found["values"]["group"]))
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """A critic less the group, by λ; how good the values are; and what they cost."""
    figure, (end, values, costs) = figures.new_figure(1, 3, width=17.0, height=4.8)
    _draw_end(end, result)
    _draw_values(values, result, f"{max(result.settings['lambdas']):g}")
    _draw_price(costs, result)
    return figure


def _draw_end(ax: Axes, result: Result) -> None:
    names = [f"{number:g}" for number in result.settings["lambdas"]]
    for aside, (place, words) in zip((-0.06, 0.06), PLACES.items(), strict=True):
        over, half = (
            [float(result.array(place, name, what)) for name in names]
            for what in ("over_group", "over_group_half")
        )
        places, colour = np.arange(len(names)) + aside, COLOURS[place]
        figures.points(ax, places, over, half, color=colour, linestyle="-", label=words)
    figures.reference(ax, 0.0, label="group mean")
    begun = float(result.array("start_over_group", "mean"))
    figures.reference(ax, begun, label="warm start", linestyle=":")
    ax.set_xticks(range(len(names)), names)
    ax.margins(x=0.1)
    x, y = "λ of GAE (0: one token ahead, 1: the outcome)", "final accuracy less the group mean's"
    figures.describe(ax, "A critic in place of the group, paired", x, y)
    ax.legend(frameon=False, loc="center right")


def _draw_values(ax: Axes, result: Result, last: str) -> None:
    group, mean = figures.style_of(result.settings["rung"])["color"], result.settings["group"]
    lines: list[tuple[tuple[str, ...], str, str, str, Any]] = [
        (("group",), "group_error", f"mean of {mean} answers", group, "-"),
        (("group",), "spread", "one number for all", "#777777", figures.DASH),
    ]
    for place, words in PLACES.items():
        at, colour = (place, last), COLOURS[place]
        lines.append((at, "prompt_error", f"{words}, prompt", colour, "-"))
        lines.append((at, "token_error", f"{words}, later tokens", colour, figures.DOT))
    for keys, name, label, colour, dashes in lines:
        x, y = result.array(*keys, "samples")[1:], result.array(*keys, name)
        figures.band(ax, x, y, label=label, color=colour, linestyle=dashes)
    ax.set_ylim(bottom=0)
    title, unit = f"How far the values are off (λ = {last})", "RMS error against the exact value"
    figures.describe(ax, title, "completions", unit)
    figures.label_ends(ax)


def _draw_price(ax: Axes, result: Result) -> None:
    group = figures.style_of(result.settings["rung"])["color"]
    kinds = {"parameters": "parameters (and memory)", "seconds": "time of a step"}
    for i, (case, colour) in enumerate({"group": group, **COLOURS}.items()):
        cost = [result.series["price"][kind] for kind in kinds]
        ratios = [each[case] / each["group"] for each in cost]
        places, label = np.arange(len(kinds)) + 0.26 * (i - 1), PLACES.get(case, "group mean")
        bars = ax.bar(places, ratios, 0.24, color=colour, label=label)
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=10)
    ax.set_xticks(range(len(kinds)), list(kinds.values()))
    ax.set_ylim(0, 2.8)
    figures.describe(ax, "What it costs", "", "relative to the group mean")
    ax.legend(frameon=False, loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.2)
