"""What each part of the ladder buys: one replaced part, one stress, both arms paired.

A rung cures a failure of the rung below it. So every rung is trained beside the rung below under
the stress that its part is for, and under none. Both arms have the same starts and random streams;
each has its own best learning rate, chosen on other streams. The effect is rung − rung below.

This module holds the stresses, the pairing, the figure and the table. A package says how it trains
under a stress (`Train`); it knows nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from course import ladder
from course.estimator import Estimator
from course.estimator import replace as swap
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact, Facts
from course.lab.result import Result
from course.lab.statistics import described, mean_error, paired_interval
from course.lab.sweep import Choice, choose, finished
from course.lab.terminal import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# what the numbers of `table` are
CELLS = (
    "effect of the part: rung − rung below, mean along the run, ± half the paired 95 % interval; of"
    " the success probability, or of what the stress names"
)
CHANCE = 0.05  # that a 95 % interval excludes 0 by chance
FINE = 0.05  # without its stress a part gains less than this


@dataclass(frozen=True)
class Stress:
    """A stress, and what it is compared by.

    `training` names the training: two stresses may look at different outcomes of one. `outcome` is
    what is compared, a name in `Trained.outcomes`. `sign` is the direction of the effect that
    theory gives, fixed before any run; 0 where it says only that the effect is smaller than that of
    the row before. `control` names the training without the stress.
    """

    training: str
    says: str
    outcome: str = "success"
    sign: Literal[1, 0] = 1
    control: str = "none"


STRESSES: dict[str, Stress] = {
    "offset": Stress("offset", "a constant added to every reward"),
    "stale": Stress("stale", "many updates on each rollout"),
    "constants": Stress("constants", "a constant of each question's own"),
    "hard": Stress("difficulty", "difficulty differs: the hardest third", "hard", control="alike"),
    "easy": Stress("difficulty", "difficulty differs: the easiest third", "easy", 0, "alike"),
    "lengths": Stress(
        "lengths", "answers of two lengths: how long wrong ones are", "length", control="one length"
    ),
    "unrewarded": Stress(
        "unrewarded", "a skill that is no longer rewarded", "skill", control="rewarded"
    ),
    "random": Stress("random", "a random start, where the full reward is rare"),
}
# what each part of the ladder is for, in one sentence; a rung that is not listed meets every stress
PURPOSE: dict[str, tuple[str, tuple[str, ...]]] = {
    "baseline": ("The baseline takes out what all rewards have in common.", ("offset",)),
    "surrogate": ("The ratio corrects for samples of an older policy.", ("stale",)),
    "clip": ("The clip stops pushing a sample once the policy has moved.", ("stale",)),
    "group_mean": ("The group's mean takes out what one question pays anyway.", ("constants",)),
    "group_std": ("The std moves weight from easy to hard questions.", ("hard", "easy")),
    "length_mean": ("1/|o| holds wrong answers back the less, the longer they are.", ("lengths",)),
    "grpo": (
        "The KL keeps what the reward has stopped paying for, or has not found yet.",
        ("unrewarded", "random"),
    ),
}
# what both packages call their trainings without a stress, as facts name them
WITHOUT: dict[str, str] = {
    "none": "no stress",
    "alike": "no stress (all questions alike)",
    "one length": "no stress (answers of one length)",
    "rewarded": "no stress (both skills rewarded)",
}


@dataclass(frozen=True)
class Trained:
    """A rung, trained: its outcomes along the way, name → [logs, L, S] (L rates, S streams).

    "success" is always there: the exact expected reward, which also chooses the rate. `halted`
    [L, S] are the runs that diverged.
    """

    outcomes: Mapping[str, Tensor]
    halted: Tensor

    def mean(self, outcome: str) -> Tensor:
        """The outcome's mean along the run, [L, S]; NaN for runs that diverged."""
        return torch.where(self.halted, torch.nan, self.outcomes[outcome].double().mean(0))


# what is trained: rung, training, learning rates, and the numbers of the streams
Arm = tuple[str, str, tuple[float, ...], range]
# arms → each trained at all its rates on all its streams
Train = Callable[[Sequence[Arm]], Sequence[Trained]]
# a row with its rates: rung below, rung, stress, and the best rate of each of the two
Rated = tuple[str, str, str, float, float]
# rows → the effect that theory gives for each, or None
Predict = Callable[[Sequence[Rated]], Sequence[float | None]]


@dataclass(frozen=True)
class Sweep:
    """The learning rates, the streams that choose one, and the streams that are judged at it."""

    rates: Sequence[float]
    tuning: int
    streams: int


@dataclass(frozen=True)
class Pair:
    """Two rungs under one training, judged on the same streams.

    `low` and `high` are the rung below and the rung, each at its own best rate (`rates`), which is
    chosen by the mean success along the run, on the tuning streams.
    """

    rates: tuple[Choice, Choice]
    low: Trained
    high: Trained


class Arms:
    """Trains every arm that the rows (below, rung, stress) need, each once: first on the tuning
    streams at all rates, then on the judged ones at the best.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]], train: Train, sweep: Sweep) -> None:
        trainings = [
            (below, rung, training)
            for below, rung, name in rows
            for training in (STRESSES[name].training, STRESSES[name].control)
        ]
        trainings.reverse()  # the last ones are the longest: begun first, all cores end together
        rates, tuning = tuple(sweep.rates), range(sweep.tuning)
        judging = range(sweep.tuning, sweep.tuning + sweep.streams)
        tried = dict.fromkeys((rung, training) for *both, training in trainings for rung in both)
        found = train([(rung, training, rates, tuning) for rung, training in tried])
        self.best = {
            arm: choose(finished(each.outcomes["success"].double().mean(0), each.halted), rates)
            for arm, each in zip(tried, found, strict=True)
        }
        stressed = {STRESSES[name].training for *_, name in rows}
        judged = dict.fromkeys(
            (arm, training, self.best[of, training].rate)
            for below, rung, training in trainings
            for arm, of in ((below, below), (rung, rung), (below, rung))
            if arm == of or training in stressed  # no row takes the part away without its stress
        )
        ends = train([(rung, training, (rate,), judging) for rung, training, rate in judged])
        self.judged = dict(zip(judged, ends, strict=True))

    @property
    def halted(self) -> dict[str, Tensor]:
        """The judged runs that diverged, [1, S] for each arm."""
        return {
            f"{rung}, {training}, rate {rate:g}": each.halted
            for (rung, training, rate), each in self.judged.items()
        }

    def pair(self, below: str, rung: str, training: str) -> Pair:
        """Both rungs, trained under one training."""
        low, high = self.best[below, training], self.best[rung, training]
        return Pair(
            (low, high),
            self.judged[below, training, low.rate],
            self.judged[rung, training, high.rate],
        )

    def without(self, below: str, rung: str, training: str) -> Trained:
        """The rung below at the rung's rate: the part is taken away, and nothing else changes."""
        return self.judged[below, training, self.best[rung, training].rate]


def anchored(estimator: Estimator, beta: float) -> Estimator:
    """The estimator with the coefficient `beta` if it has a KL whose coefficient is a number."""
    kl = estimator.kl
    held = isinstance(kl.beta, float) and kl.beta > 0
    return swap(estimator, kl=replace(kl, beta=beta)) if held else estimator


def rows_of(rungs: Sequence[str]) -> list[tuple[str, str, str]]:
    """The rows (rung below, rung, stress), in the order of the ladder.

    A rung of the ladder meets the stress that its part is for, any other meets all of them.
    """
    found = []
    for name in rungs:
        below = ladder.get(name).on
        if below:
            _, stresses = PURPOSE.get(name, ("", tuple(STRESSES)))
            found += [(below, name, stress) for stress in stresses]
    return found


def compare(
    rungs: Sequence[str],
    train: Train,
    sweep: Sweep,
    where: str,
    predicted: Predict = lambda rows: [None] * len(rows),
    caption: str = "",
) -> Result:
    """Every row with its control, its facts, and a caption: the result of an ablation.

    `series["rows"]` maps "rung, stress" to what `row` says.
    """
    found: dict[str, dict[str, Any]] = {}
    every = rows_of(rungs)
    arms = Arms(every, train, sweep)
    pairs = [arms.pair(below, rung, STRESSES[name].training) for below, rung, name in every]
    both = [(low.rate, high.rate) for low, high in (pair.rates for pair in pairs)]
    theory = predicted([(*named, *rates) for named, rates in zip(every, both, strict=True)])
    for (below, rung, name), pair, expected in zip(every, pairs, theory, strict=True):
        stress = STRESSES[name]
        without = arms.without(below, rung, stress.training)
        control = arms.pair(below, rung, stress.control)
        found[f"{rung}, {name}"] = row(below, rung, name, pair, without, control, expected)
    outer = ", ".join(key for key, each in found.items() if not each["interior"])
    said = (
        "Effects are means along the run, paired stream by stream. Filled: each arm at its own best"
        f" rate, chosen on {sweep.tuning} other streams; hollow: the rung below at the rung's rate."
        f" Each: {described(sweep.streams)}. Grey: without stress."
        f" {caption}{f' Best rate at an end of the sweep: {outer}.' if outer else ''}"
    )
    facts = facts_of(found, where, sweep.streams)
    return told(Result(series={"rows": found}, facts=facts, caption=said.strip()), arms.halted)


def row(
    below: str,
    rung: str,
    name: str,
    pair: Pair,
    without: Trained,
    control: Pair,
    predicted: float | None,
) -> dict[str, Any]:
    """One comparison: the values of both arms on every stream, their paired effects and intervals.

    "effect" is the difference of the outcome's means along the run with each arm at its own best
    rate, "final" that of its last values, "removed" the first with both at the rung's rate,
    "control" that of the success without stress. `earlier` is by how many logs the rung is earlier
    at the level `level`, halfway from the start to the better arm's end; an arm that never gets
    there counts as one log after the last. eq:paired-effect
    """
    outcome = STRESSES[name].outcome
    low, high, taken = (each.mean(outcome)[0] for each in (pair.low, pair.high, without))
    plain_low, plain_high = (each.mean("success")[0] for each in (control.low, control.high))
    low_path, high_path = (each.outcomes[outcome][:, 0].double() for each in (pair.low, pair.high))
    begin = low_path[0].mean()
    found: dict[str, Any] = {
        "below": below,
        "rung": rung,
        "stress": name,
        "rates": [each.rate for each in pair.rates],
        "interior": all(each.interior for each in pair.rates),
        "start": begin,
        "values_below": low,
        "values_rung": high,
        "without_values": taken,
        "control_values_below": plain_low,
        "control_values_rung": plain_high,
        "final_values_below": low_path[-1],
        "final_values_rung": high_path[-1],
        "predicted": predicted,
    }
    for key, first, second in (
        ("effect", high, low),
        ("final", high_path[-1], low_path[-1]),
        ("removed", high, taken),
        ("control", plain_high, plain_low),
    ):
        found[key], found[f"{key}_half"] = paired_interval(first, second)
    level = float(begin + (max(low_path[-1].mean(), high_path[-1].mean()) - begin) / 2)
    found["level"] = level
    earlier = paired_interval(_first(low_path, level), _first(high_path, level))
    found["earlier"], found["earlier_half"] = earlier
    return found


def _first(path: Tensor, level: float) -> Tensor:
    """The first log [S] of `path` [logs, S] that reaches `level`; the number of logs if none."""
    there = path >= level
    return torch.where(there.any(0), there.int().argmax(0), len(path)).double()


def facts_of(found: Mapping[str, Mapping[str, Any]], where: str, streams: int) -> list[Fact]:
    """Every row's interval excludes 0 on the side that theory gives; no control gains as much."""
    facts, before = Facts("this course", 41, streams, CHANCE), None
    for each in found.values():
        stress = STRESSES[each["stress"]]
        pair = f"{where}, {each['below']} → {each['rung']}"
        high, low = (torch.as_tensor(each[f"values_{arm}"]).numpy() for arm in ("rung", "below"))
        if stress.sign:
            facts.above(
                f"{pair}, {stress.says}: the effect is above 0", mean_error(high - low), 0.0
            )
        elif before is not None:
            claim = f"{pair}, {stress.says}: gains less than the row before"
            facts.below(claim, mean_error(high - low - before))
        before = high - low
        if stress.sign:  # the other rows of a pair share its control
            bound = each["control"] + each["control_half"]
            facts.below(f"{pair}, {WITHOUT[stress.control]}: gains less than {FINE:g}", bound, FINE)
    return facts


# ---------------------------------------------------------------- the figure and the table


def forest(results: Mapping[str, Result]) -> Figure:
    """One row per part and stress, one panel per problem: effect, control and prediction.

    `results` has the problem's words → its result, whose series "rows" come from `run_rows`.
    """
    every = {key: each for found in results.values() for key, each in found.series["rows"].items()}
    figure, panels = figures.new_figure(
        1, len(results), width=4.4 + 4.4 * len(results), height=1.6 + 0.62 * len(every)
    )
    for ax, (problem, found) in zip(panels, results.items(), strict=True):
        _forest(ax, found, list(every), every)
        figures.describe(ax, problem, "effect of the part: rung − rung below, paired")
        if ax is not panels[0]:
            ax.set_yticklabels([])
    _legend(figure)
    return figure


MARKS: dict[str, dict[str, Any]] = {
    "control": {"aside": 0.24, "markersize": 4, "color": "#999999"},
    "removed": {"aside": -0.24, "markersize": 6, "markerfacecolor": "white"},
    "effect": {"markersize": 8},
}
DIAMOND: dict[str, Any] = {"marker": "d", "markersize": 11, "markerfacecolor": "none"}
MEANING = {
    "removed": "the part taken away, the rate kept",
    "effect": "each arm at its own best rate",
    "control": "without the stress",
}


def _legend(figure: Figure) -> None:
    """What the marks mean, below the panels."""
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"color": figures.INK, "marker": "o", "linestyle": "none"}
    looks = {text: plain | MARKS[what] for what, text in MEANING.items()}
    looks["predicted"] = plain | DIAMOND
    handles = [
        Line2D([], [], label=text, **{key: look[key] for key in look if key != "aside"})
        for text, look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _forest(
    ax: Axes, found: Result, keys: Sequence[str], every: Mapping[str, Mapping[str, Any]]
) -> None:
    rows = found.series["rows"]

    def values(what: str) -> list[float]:
        return [
            math.nan if rows.get(key, {}).get(what) is None else float(rows[key][what])
            for key in keys
        ]

    names = [every[key]["rung"] for key in keys]
    labels = [f"{every[key]['rung']}\n{STRESSES[every[key]['stress']].says}" for key in keys]
    for what, style in MARKS.items():
        figures.rows(ax, names, values(what), values(f"{what}_half"), labels=labels, **style)
    ax.plot(values("predicted"), range(len(keys)), color=figures.INK, linestyle="none", **DIAMOND)
    figures.reference(ax, x=0.0)


def table(results: Mapping[str, Result]) -> str:
    """The table part · stress · effect on each problem · control on each."""
    keys = list(dict.fromkeys(key for found in results.values() for key in found.series["rows"]))
    header = ["part", "stress", *results, *(f"{problem}, no stress" for problem in results)]
    lines = []
    for key in keys:
        rung, stress = key.split(", ")
        cells = [
            _cell(found.series["rows"].get(key), what)
            for what in ("effect", "control")
            for found in results.values()
        ]
        lines.append((rung, STRESSES[stress].says, *cells))
    return text_table(header, lines)


def _cell(each: Mapping[str, Any] | None, what: str) -> str:
    return "–" if each is None else f"{each[what]:+.3f} ± {each[f'{what}_half']:.3f}"


def together(results: Mapping[str, Result]) -> Result:
    """The rows of all problems in one result, named `parts`: the course's first figure."""
    first = next(iter(results.values()))
    return Result(
        name="parts",
        title="what each part of the ladder buys, " + " and ".join(results),
        settings={problem: dict(found.settings) for problem, found in results.items()},
        series={problem: dict(found.series) for problem, found in results.items()},
        environment=first.environment,
        seconds=sum(found.seconds for found in results.values()),
        caption=" ".join(f"{problem}: {found.caption}" for problem, found in results.items()),
    )


def purposes(rungs: Sequence[str]) -> str:
    """One sentence per rung: what its part is for."""
    return "\n".join(f"{name}: {PURPOSE[name][0]}" for name in rungs if name in PURPOSE)


__all__ = [
    "CELLS",
    "PURPOSE",
    "STRESSES",
    "Arm",
    "Arms",
    "Pair",
    "Rated",
    "Stress",
    "Sweep",
    "Trained",
    "anchored",
    "compare",
    "facts_of",
    "forest",
    "purposes",
    "row",
    "rows_of",
    "table",
    "together",
]
