"""A critic or a group? PPO with a learned value of every token, against the group mean.

The critic shares the policy's trunk or is a separate network. Both methods estimate how well the
policy does on a prompt: the critic from what it has learned, the group from the other answers to
the same prompt. Everything else is equal: clip, samples, updates, warm start. On these sums the
exact value is known. Only one answer is right, so the value of a prefix is the probability of the
rest of that answer, or 0 if the prefix is wrong. The critic starts from the weights of the warm
start, with a value head of zeros.

    accuracy   held-out, by GAE's λ: with λ = 1 the critic is only a baseline; with a smaller λ the
               policy learns from the critic's estimates
    values     root mean squared error of the critic's values, next to the error of a mean of G
               answers, √(E[p(1−p)]/G)
    price      parameters, memory for weights, gradients and Adam's two moments, and the time of a
               step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import estimator as parts_of
from course import ladder
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, interval, paired_error
from course.lab.sweep import Swept, edges
from course.lab.terminal import QUIET, Progress
from course.parts import GAE
from course.rollout import Rollout
from course.train.noise import Noise
from tinylm.curves import CHANCE, Curves, SweptBudget, held_out, sweep_rates, train
from tinylm.evaluate import accuracy, exact_values, group_mean_error, right_to_go, value_errors
from tinylm.problem import LanguageModel
from tinylm.sampling import sample
from tinylm.scoring import values
from tinylm.tasks import PAD
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "PPO's critic against the group mean: accuracy by λ, how good the values are, and what they"
    " cost"
)
FIGURE = "tinylm_critic"
EXPECTED_SECONDS = 200.0
PLACES = ("own", "shared")
PER_PARAMETER = 16  # bytes in float32: the weight, its gradient, and Adam's two moments
COLOURS = {"own": "#661100", "shared": "#c96f00"}
WORDS = {"own": "own network", "shared": "shared trunk"}


@dataclass(frozen=True)
class Settings(SweptBudget):
    """The critics, and the group they are compared with; both see the same number of completions.

    `critic` of the budget is replaced by both places.
    """

    lambdas: tuple[float, ...] = (0.0, 0.95, 1.0)  # of GAE
    rung: str = "group_mean"  # what the critic is compared with
    samples: int = 256  # of each held-out question, which check the exact values
    timed: int = 4  # rounds of timing

    def __post_init__(self) -> None:
        super().__post_init__()
        for number in self.lambdas:
            require(0 <= number <= 1, "lambdas", number, "numbers from 0 to 1")
        require(
            not uses_critic(ladder.get(self.rung).estimator),
            "rung",
            self.rung,
            "one without a critic",
        )
        require(self.group > 1, "group", self.group, "at least 2")
        require(self.samples > 1, "samples", self.samples, "at least 2")


SETTINGS = Settings()


class Watched(LanguageModel):
    """The same problem, which also compares its critic with the exact values in every rollout."""

    found: dict[str, Tensor]

    def sample(self, noise: Noise) -> Rollout:
        """Sample completions; compare the critic's values with the exact values of this policy."""
        rollout = super().sample(noise)
        exact = exact_values(
            self.model, self.task, rollout.data["question"], rollout.data["tokens"]
        )
        p = exact[..., 0, 0].double()  # every answer of a group starts from the same state
        self.found = {
            "p": p.mean(-1),
            "p_variance": p.var(-1),
            "sampling_variance": (p * (1 - p)).mean(-1),
        }
        if rollout.value is not None:
            self.found["prompt_error"], self.found["token_error"] = value_errors(
                rollout.value, exact, rollout.mask
            )
        return rollout

    def metrics(self) -> dict[str, Tensor]:
        """Mean squared errors of the last rollout's values; and p's mean, its variance over
        prompts, and the mean of p(1 − p).
        """
        return self.found


def judge(curves: Curves, settings: Settings) -> dict[str, Tensor]:
    """The values of the trained critic on held-out questions, per model: root mean squared errors,
    and p's own spread.

    Beside them "group", what the mean of G answers would be off by.
    """
    problem = curves.problem
    model, task, critic = problem.model, problem.task, problem.critic
    assert critic is not None
    rows = held_out(task, settings.judged)
    prompt = task.prompt[rows].expand(*model.runs, len(rows), -1)
    with torch.no_grad():
        made = sample(model, prompt, settings.group, task.limit, _judging(curves, settings))
        value = values(critic, prompt, made.tokens)
        exact = exact_values(model, task, rows, made.tokens)
    first, later = value_errors(value, exact, made.tokens != PAD)
    p = exact[..., 0, 0].double()
    found = {
        "prompt": first.sqrt(),
        "token": later.sqrt(),
        "spread": p.std(-1),
        "group": group_mean_error(p, settings.group),
    }
    return {name: tensor[0].cpu() for name, tensor in found.items()}


def check(curves: Curves, settings: Settings) -> dict[str, float]:
    """Exact values against many samples of each held-out question: both means, and the samples'
    standard error given the values.
    """
    model, task = curves.problem.model, curves.problem.task
    rows, noise = held_out(task, settings.judged), _judging(curves, settings)
    sampled = accuracy(model, task, noise, questions=rows, samples=settings.samples, batch=64)
    p = right_to_go(model, task, rows)[..., 0].double()
    error = (p * (1 - p) / settings.samples).sum().sqrt() / p.numel()
    return {"sampled": float(sampled.mean()), "exact": float(p.mean()), "error": float(error)}


def _judging(curves: Curves, settings: Settings) -> Noise:
    numbers = range(settings.tuning, settings.models)
    runs = tuple(curves.problem.runs)
    return Streams(settings.seed, runs, numbers, settings.device).noise(JUDGE)


# ---------------------------------------------------------------- run


def with_lambda(number: float) -> Estimator:
    """PPO with that λ."""
    return parts_of.replace(ladder.ppo, credit=GAE(gamma=1.0, gae_lambda=number))


def run(settings: Settings, progress: Progress) -> Result:
    """The group, and each critic at each λ, from one warm start; then what each costs."""
    start = warm_start(settings, settings.models, progress)
    choices, halted = {}, {}

    def arm(name: str, estimator: Estimator, place: str = "own") -> Swept[Curves]:
        budget = replace(settings, critic=place)
        found = sweep_rates(budget, estimator, start, progress, asks=Watched, text=name)
        choices[name], halted[name] = found.choice, found.judged.halted
        return found

    group = arm(settings.rung, ladder.get(settings.rung).estimator)
    series: dict[str, Any] = {
        "start": start.accuracy,
        "group": summary(group, settings),
        "check": check(group.judged, settings),
    }
    for place in PLACES:
        series[place] = {}
        for number in progress(settings.lambdas, f"λ, {WORDS[place]}"):
            found = arm(f"λ = {number:g}, {WORDS[place]}", with_lambda(number), place)
            kept = summary(found, settings)
            series[place][f"{number:g}"] = kept | {"values": judge(found.judged, settings)}
    series["price"] = price(settings, start, progress)
    caption = (
        f"{settings.prompts} prompts × {settings.group} completions per rollout for all,"
        f" {settings.epochs} updates, each at its best learning rate, chosen on {settings.tuning}"
        " other models and other questions. Gain of each model over its own warm start:"
        f" {described(settings.seeds)}. Times are ratios within one run."
        f" {edges(choices, settings.rates)}"
    )
    result = Result(series=series, facts=_facts(settings, series), caption=caption.strip())
    return told(result, halted)


def summary(swept: Swept[Curves], settings: Settings) -> dict[str, Any]:
    """Of the judged models: accuracy and errors of the values along the way, models [S] last where
    they are kept apart.
    """
    curves = swept.judged
    seen = {name: found[:, 0] for name, found in curves.values.items()}  # [logs, S]
    way, half = interval(curves.gain[:, 0])
    kept: dict[str, Any] = {
        "samples": [step * settings.prompts * settings.group for step in curves.steps],
        "rate": swept.choice.rate,
        "interior": swept.choice.interior,
        "sweep": None if swept.tried is None else swept.tried.final.mean(-1),
        "final_seeds": curves.final[0],
        "accuracy": seen["accuracy"].mean(-1),
        "gain": way,
        "gain_half": half,
        "spread": seen["p_variance"][1:].mean(-1).sqrt(),
        "group_error": (seen["sampling_variance"][1:].mean(-1) / settings.group).sqrt(),
    }
    for name in ("prompt_error", "token_error"):
        if name in seen:
            kept[name] = seen[name][1:].mean(-1).sqrt()
    return kept


def price(settings: Settings, start: Start, progress: Progress) -> dict[str, Any]:
    """Of the group and both critics: parameters and their memory per model, seconds of a step (the
    best of several rounds, taken in turn), and on a GPU the peak memory of a step of all models, in
    bytes.
    """
    cases = {"group": (ladder.get(settings.rung).estimator, "own")} | {
        place: (ladder.ppo, place) for place in PLACES
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    found: dict[str, Any] = {"parameters": {}, "bytes": {}, "peak": {}}
    on_gpu = settings.device.startswith("cuda")
    for _ in progress(range(settings.timed), "timing"):
        for name, (estimator, place) in cases.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(settings.device)
            budget = replace(settings, rollouts=3, log_every=3, judged=1, critic=place)
            curves = train(budget, estimator, start, settings.rates[:1], range(2), QUIET)
            seconds[name].append(curves.seconds / budget.rollouts)
            found["parameters"][name] = curves.parameters
            found["bytes"][name] = PER_PARAMETER * curves.parameters
            if on_gpu:
                found["peak"][name] = torch.cuda.max_memory_allocated(settings.device)
    return found | {"seconds": {name: min(times) for name, times in seconds.items()}}


def _facts(settings: Settings, series: Mapping[str, Any]) -> list[Fact]:
    """The exact values against samples; the price; and critics against the group, model by model,
    each written whether it holds or not.

    The directions were fixed before this run, by an earlier one with other models: a guess that is
    learned along the way is worse than eight answers, what is learned from guesses alone (λ = 0) is
    worse than what is learned from outcomes, and a critic does no worse than the group.
    """
    checked, cost = series["check"], series["price"]["parameters"]
    width = settings.model(1).width
    facts = [
        Fact.simulated(
            "The probability of the one right answer is a prompt's value: its mean over held-out"
            f" sums against the share of {settings.samples} sampled answers each that are right",
            "this course",
            checked["sampled"],
            checked["error"],
            checked["exact"],
        ),
        Fact.exact(
            "A critic of its own doubles the parameters: twice the policy's and a value head, one"
            " number per hidden state's entry",
            "Shao et al. 2024 (DeepSeekMath, 2402.03300), §4.1.1",
            cost["own"],
            2 * cost["group"] + width,
        ),
    ]
    last, first = f"{max(settings.lambdas):g}", f"{min(settings.lambdas):g}"

    def compare(claim: str, more: Any, less: Any) -> None:
        mean, error = paired_error(more, less)
        text = f"{claim} (difference, model by model)"
        facts.append(
            Fact.above(text, "this course", mean, 0.0, error, runs=settings.seeds, chance=CHANCE)
        )

    shared, own = (series[place][last]["values"]["prompt"] for place in PLACES[::-1])
    compare(
        "On held-out prompts the values' root mean squared error of a shared trunk is above that of"
        f" an own network (λ = {last})",
        shared,
        own,
    )
    for place in PLACES:
        found, by = series[place][last], f"{WORDS[place]}, λ = {last}"
        if first != last:
            compare(
                f"PPO with λ = {last} ({WORDS[place]}) ends above λ = {first} in held-out accuracy,"
                " each at its best rate",
                found["final_seeds"],
                series[place][first]["final_seeds"],
            )
        compare(
            f"PPO with a critic ({by}) ends above the group mean in held-out accuracy, each at its"
            " best rate",
            found["final_seeds"],
            series["group"]["final_seeds"],
        )
        compare(
            f"On held-out prompts the critic's root mean squared error ({by}) is above that of a"
            f" mean of {settings.group} answers",
            found["values"]["prompt"],
            found["values"]["group"],
        )
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """Accuracy along the way and by λ, how good the values are, and what they cost."""
    figure, (way, end, values, costs) = figures.new_figure(2, 2, width=12.4, height=8.6)
    last = f"{max(result.settings['lambdas']):g}"
    _draw_way(way, result, last)
    _draw_end(end, result)
    _draw_values(values, result, last)
    _draw_price(costs, result)
    return figure


def _draw_way(ax: Axes, result: Result, last: str) -> None:
    cases = {"group mean": ("group",)} | {
        f"{WORDS[place]}, λ = {last}": (place, last) for place in PLACES
    }
    for label, keys in cases.items():
        x, y, half = (result.array(*keys, name) for name in ("samples", "gain", "gain_half"))
        line = (
            {"color": COLOURS[keys[0]], "linestyle": "-"}
            if keys[0] in COLOURS
            else figures.style_of(result.settings["rung"])
        )
        figures.band(ax, x, y, half, label=label, **line)
    figures.describe(
        ax,
        "The same samples: a critic or a group",
        "completions",
        "held-out accuracy, above the warm start",
    )
    figures.label_ends(ax)


def _draw_end(ax: Axes, result: Result) -> None:
    names = [f"{number:g}" for number in result.settings["lambdas"]]
    group = result.array("group", "final_seeds")
    figures.reference(ax, 0.0)
    for aside, place in zip((-0.06, 0.06), PLACES, strict=True):
        finals = np.stack([result.array(place, name, "final_seeds") for name in names])
        over, half = interval(finals - group)  # model by model
        x, colour = np.arange(len(names)) + aside, COLOURS[place]
        figures.points(ax, x, over, half, label=WORDS[place], color=colour, linestyle="-")
    ax.set_xticks(range(len(names)), names)
    ax.margins(x=0.1)
    figures.describe(
        ax,
        "How far to trust the critic's guesses",
        "λ of GAE (0: one token ahead, 1: the outcome)",
        "final accuracy less the group mean's, paired",
    )
    ax.legend(frameon=False, loc="lower right")


def _draw_values(ax: Axes, result: Result, last: str) -> None:
    group = figures.style_of(result.settings["rung"])["color"]
    lines: list[tuple[tuple[str, ...], str, str, str, Any]] = [
        (("group",), "group_error", f"mean of {result.settings['group']} answers", group, "-"),
        (("group",), "spread", "one number for all", "#777777", figures.DASH),
    ]
    for place in PLACES:
        words, colour = WORDS[place], COLOURS[place]
        lines += [
            ((place, last), "prompt_error", f"{words}, prompt", colour, "-"),
            ((place, last), "token_error", f"{words}, later tokens", colour, figures.DOT),
        ]
    for keys, name, label, colour, dashes in lines:
        x, y = result.array(*keys, "samples")[1:], result.array(*keys, name)
        figures.band(ax, x, y, label=label, color=colour, linestyle=dashes)
    ax.set_ylim(bottom=0)
    figures.describe(
        ax,
        f"How far the values are off (λ = {last})",
        "completions",
        "RMS error against the exact value",
    )
    figures.label_ends(ax)


def _draw_price(ax: Axes, result: Result) -> None:
    units = {"parameters": (1e-3, "{:.0f}"), "bytes": (1e-6, "{:.1f}"), "seconds": (0.0, "")}
    colours = {"group": figures.style_of(result.settings["rung"])["color"], **COLOURS}
    for i, (case, colour) in enumerate(colours.items()):
        cost = {kind: float(result.array("price", kind, case)) for kind in units}
        ratios = {kind: cost[kind] / float(result.array("price", kind, "group")) for kind in units}
        bars = ax.bar(
            [k + 0.26 * (i - 1) for k in range(len(units))],
            list(ratios.values()),
            0.24,
            color=colour,
        )
        words = [
            word.format(scale * cost[kind]) if word else f"{ratios[kind]:.2f}"
            for kind, (scale, word) in units.items()
        ]
        ax.bar_label(bars, words, padding=2, fontsize=10)
        bars.set_label(WORDS.get(case, "group mean"))
    ax.set_xticks(
        range(len(units)),
        ["parameters,\nthousands", "weights, gradients,\nAdam, in MB", "time of a step,\nratio"],
    )
    ax.set_ylim(0, 2.8)
    figures.describe(ax, "What it costs", "", "relative to the group mean")
    ax.legend(frameon=False, loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.2)
