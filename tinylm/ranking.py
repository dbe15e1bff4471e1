"""Rungs ranked by their accuracy along the run, the completions they need to reach a level, and
what is expected of the ranking.

`python -m tinylm ladder` measures the rows. A row has at least `completions` [logs], the held-out
`accuracy` [logs][S] there, `halted` [S], and the names of the rungs that do the same, `alike`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from course.lab.facts import Fact
from course.lab.statistics import LEVEL, paired_error, paired_interval
from tinylm.curves import compared

Row = Mapping[str, Any]
AGAIN = "again"  # the first rung once more, with other random streams: the noise floor
SEEN = "this course"

# Rungs that should do the same with one update per rollout, where ρ = 1 and π is π_old, but for a
# constant factor, which a clipped gradient and Adam do not notice; and the number of the claim.
ALIKE: tuple[tuple[int, tuple[str, ...]], ...] = (
    (9, ("baseline", "surrogate", "clip", "ppo_kl", "ppo_kl_adaptive")),
    (3, ("group_mean", "rloo", "dr_grpo")),
    (9, ("group_std", "luspo")),
    (9, ("length_mean", "sequence_ratio", "gspo", "sapo")),
    (9, ("token_mean", "clip_higher", "cispo")),
)
# (number of the claim, the rung expected ahead, the one behind), with one update and with several
AHEAD = {
    False: (
        (41, "reinforce", "baseline"),
        (41, "baseline", "group_mean"),
        (41, "length_mean", "grpo"),
    ),
    True: (
        (11, "clip", "baseline"),
        (11, "surrogate", "baseline"),
        (11, "clip", "surrogate"),
        (11, "reinforce", "baseline"),
    ),
}


def crossing(
    completions: Sequence[int], accuracy: Any, level: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Completions [S] until `accuracy` [logs, S] is first at `level`, and whether it ever is [S].

    Between two logged points the accuracy is taken as a straight line. Where it never is, the
    number is that of the whole run; where it is from the start, it is 1, which has a logarithm.
    """
    x, y = np.array(completions, float), np.array(accuracy, float)
    there: NDArray[np.bool_] = np.asarray(y >= level)
    after = there.argmax(0)  # the first logged point there; 0 also where there is none
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(y, at[None], 0)[0] for at in (before, after))
    rise = np.where(high > low, high - low, 1.0)
    found = x[before] + (x[after] - x[before]) * (level - low) / rise
    reached = np.asarray(there.any(0))
    return np.maximum(np.where(reached, found, x[-1]), 1.0), reached


def ranked(
    rows: Mapping[str, Row], first: str, levels: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """The rows with what is measured of them, the highest mean accuracy along the run first.

    `along` [S] is that mean and `final` [S] the last accuracy, NaN where a model halted; `ahead`
    and `over` are both less those of the rung `first`. `to` percent → completions [S]; `never`
    percent → how many models do not get there; `later` percent → log2 of the completions less those
    of `first` (1: twice as many). Differences are paired model by model, with half an interval.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        there = {
            percent(level): crossing(row["completions"], row["accuracy"], level) for level in levels
        }
        curves, halted = np.array(row["accuracy"], float), np.array(row["halted"])
        table[name] = {
            **row,
            "along": np.where(halted, np.nan, curves.mean(0)),
            "final": np.where(halted, np.nan, curves[-1]),
            "to": {level: count for level, (count, _) in there.items()},
            "never": {level: int((~reached).sum()) for level, (_, reached) in there.items()},
        }
    reference = table[first]
    for row in table.values():
        for what, of in (("ahead", "along"), ("over", "final")):
            row[what], row[f"{what}_half"] = paired_interval(row[of], reference[of])
        later = {
            level: paired_interval(np.log2(count), np.log2(reference["to"][level]))
            for level, count in row["to"].items()
        }
        row["later"] = {level: mean for level, (mean, _) in later.items()}
        row["later_half"] = {level: half for level, (_, half) in later.items()}
    order = sorted(table, key=lambda name: (-table[name]["ahead"], -table[name]["over"], name))
    return {name: table[name] for name in order}


def percent(level: float) -> str:
    """A share as it is named: .95 is "95"."""
    return f"{100 * level:g}"


def said(updates: int) -> str:
    """The number of updates in words."""
    return f"{updates} update{'s' if updates > 1 else ''} per rollout"


def facts_of(table: Mapping[str, Row], first: str, updates: int) -> list[Fact]:
    """What was expected before the run, of the rungs that are there; and the noise floor."""
    at, runs = f"{said(updates)}, mean accuracy along the run", len(table[first]["final"])

    def gap(one: str, other: str) -> tuple[float, float]:
        return paired_error(table[one]["along"], table[other]["along"])

    facts = [
        compared(
            f"{at}: {ahead} above {behind}", table[ahead]["along"], table[behind]["along"], number
        )
        for number, ahead, behind in AHEAD[updates > 1]
        if {ahead, behind} <= table.keys()
    ]
    there = {name for head, row in table.items() for name in (head, *row["alike"])}
    for number, (head, *others) in ALIKE if updates == 1 else ():
        others = [name for name in others if name in there]
        if head in table and others:
            found = sorted(table[head]["alike"])
            claim = f"{said(updates)}: the rungs that do the same as {head}"
            facts.append(
                Fact.exact(claim, SEEN, ", ".join(found), ", ".join(sorted(others)), number=number)
            )
    if AGAIN in table:
        chance = 1 - LEVEL
        claim = f"{at}: {first} with other streams as high as before (by chance alone this fails in"
        claim += f" {100 * chance:.0f} % of runs)"
        facts.append(Fact.simulated(claim, SEEN, *gap(AGAIN, first), 0.0, runs=runs, chance=chance))
    rest = [row for name, row in table.items() if name not in (first, AGAIN)]
    if rest:
        apart = sum(abs(row["ahead"]) > row["ahead_half"] for row in rest)
        claim = f"{at}: rungs of {len(rest)} whose interval excludes 0, against chance alone"
        facts.append(Fact.above(claim, SEEN, apart, (1 - LEVEL) * len(rest)))
    return facts


__all__ = ["AGAIN", "AHEAD", "ALIKE", "crossing", "facts_of", "percent", "ranked", "said"]
