"""How many updates can one rollout bear?

Policy gradient, bare ratio and clip, and TRPO beside them, all on the same number of rollouts. With
one update per rollout, policy gradient, ratio and clip are one curve. With many, the policy
gradient keeps pushing along advantages that were measured on an old policy. All use one learning
rate: the best with one update per rollout, chosen on other models and questions. Whether a smaller
one would help with many updates is another question. TRPO takes one step per rollout; its bound on
the KL is chosen in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.statistics import described, named_interval
from course.lab.sweep import edges
from course.lab.terminal import Progress
from course.train.trust_region import TRPO
from tinylm.curves import Curves, SweptBudget, compared, sweep_rates, train
from tinylm.warm_start import warm_start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = (
    "updates per rollout: who collapses on stale samples, and what the ratio, the clip and a trust"
    " region do about it"
)
FIGURE = "tinylm_staleness"
EXPECTED_SECONDS = 600.0
SAME = ("baseline", "surrogate", "clip")  # one curve with one update per rollout
# what a part buys: the first estimator less the second
EFFECTS = (("clip", "surrogate"), ("surrogate", "baseline"), ("reinforce", "baseline"))


@dataclass(frozen=True)
class Settings(SweptBudget):
    """Which estimators, and how many updates; `epochs` of the budget is replaced by these."""

    rungs: tuple[str, ...] = ("reinforce", *SAME)  # which estimators
    updates: tuple[int, ...] = (1, 4, 8, 16, 32)  # on every rollout
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (1e-4, 3e-4, 9e-4, 2.7e-3)
    max_kls: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01)  # TRPO's bounds, nats per token
    log_every: int = 40  # rollouts; the last one is logged, too
    tuning: int = 2  # models that choose the rate
    seeds: int = 10  # models that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.max_kls) > 0, "max_kls", self.max_kls, "numbers > 0")


SETTINGS = Settings()


def run(settings: Settings, progress: Progress) -> Result:
    """Choose the rate; then every estimator with every number of updates, from one warm start."""
    s, start = settings, warm_start(settings, settings.models, progress)
    ratio, once = ladder.get("surrogate").estimator, replace(settings, epochs=1)
    swept = sweep_rates(once, ratio, start, progress, text="one update")
    found: dict[str, list[Curves]] = {name: [] for name in s.rungs}
    for name in progress(s.rungs, "estimators"):
        for updates in s.updates:
            budget, rate = replace(s, epochs=updates), (swept.choice.rate,)
            judged = range(s.tuning, s.models)
            estimator, text = ladder.get(name).estimator, f"{name}, {updates} updates"
            found[name].append(train(budget, estimator, start, rate, judged, progress, text=text))
    bounded = replace(once, rates=s.max_kls)
    trpo = sweep_rates(bounded, ratio, start, progress, optimizer=TRPO, text="TRPO")
    final = {name: torch.stack([each.final[0] for each in rows]) for name, rows in found.items()}
    before, step = swept.judged.start[0], trpo.judged.final[0]  # greedy, as all the others
    series: dict[str, Any] = {
        "estimators": {
            name: named_interval("accuracy_mean", final[name])
            | named_interval("gain", final[name] - before)
            | {"accuracy": final[name], "kl_start": _last(rows, "kl_start")}
            for name, rows in found.items()
        },
        "effects": {
            f"{more} − {less}": named_interval("mean", final[more] - final[less])
            for more, less in EFFECTS
            if more in final and less in final
        },
        "updates": s.updates,
        "rate": swept.choice.rate,
        "start": before,
        "sampled": start.accuracy,
        "trpo": {"accuracy": step, "max_kl": trpo.choice.rate}
        | named_interval("gain", step - before),
    }
    caption = (
        f"Differences model by model: {described(s.seeds)}; the warm start's greedy accuracy is"
        f" {before.mean():.2f}. One learning rate ({swept.choice.rate:g}), the best with one"
        f" update, and TRPO's bound ({trpo.choice.rate:g} nats), both chosen on {s.tuning} other"
        " models and other questions."
        f" {edges({'one update': swept.choice}, s.rates)}"
        f" {edges({'TRPO': trpo.choice}, s.max_kls, 'bound')}"
    )
    halted = {
        f"{name}, {updates} updates": each.halted
        for name, rows in found.items()
        for updates, each in zip(s.updates, rows, strict=True)
    }
    facts = _facts(s, series, final)
    result = Result(series=series, facts=facts, caption=" ".join(caption.split()))
    return told(result, halted | {"TRPO": trpo.judged.halted})


def _last(rows: list[Curves], name: str) -> Tensor:
    """The last value of a measurement, [updates, S]."""
    return torch.stack([each.values[name][-1, 0] for each in rows])


def _facts(s: Settings, series: Mapping[str, Any], final: Mapping[str, Tensor]) -> list[Fact]:
    """One curve with one update; who loses with many, model by model.

    The directions are fixed, from theory and an earlier run with other models: centred advantages
    push down what a stale sample did wrong, and nothing bounds that.
    """
    facts, many = [], max(s.updates)
    few, at = s.updates.index(min(s.updates)), s.updates.index(many)
    if s.updates[few] == 1 and set(SAME) <= set(final):
        far = torch.stack([series["estimators"][name]["kl_start"][few] for name in SAME])
        apart = float(((far.max(0).values - far.min(0).values) / far.mean(0)).max())
        claim = (
            "With one update per rollout, policy gradient, ratio and clip go the same way: largest"
            " difference of their KL to the start, as a share of it"
        )
        facts.append(Fact(claim, "this course", apart, 0.0, 0.0, 1e-3, number=11))
    claims = (
        f"The bare ratio bears {many} updates per rollout worse than the clip",
        f"The policy gradient bears {many} updates per rollout worse than the ratio",
        f"The policy gradient with centred advantages bears {many} updates per rollout worse than"
        " the one without a baseline (rewards 0 and 1 push nothing down)",
    )
    for claim, (more, less) in zip(claims, EFFECTS, strict=True):
        if more in final and less in final:
            facts.append(compared(claim, final[more][at], final[less][at], 11))
    if "clip" in final:
        claim = f"The clip bears {many} updates per rollout worse than {min(s.updates)}"
        facts.append(compared(claim, final["clip"][few], final["clip"][at], 11))
    claim = "TRPO, one step per rollout, ends above its start"
    return [*facts, compared(claim, series["trpo"]["accuracy"], series["start"], 11)]


def plot(result: Result) -> Figure:
    """Final accuracy above the start, what each part buys, and how far the policy went."""
    figure, (gain, effects, far) = figures.new_figure(1, 3, width=15.5, height=4.8)
    updates = result.array("updates")
    for name in result.settings["rungs"]:
        mean, half = (result.array("estimators", name, what) for what in ("gain", "gain_half"))
        figures.band(gain, updates, mean, half, name)
        kl = result.array("estimators", name, "kl_start").mean(-1)
        figures.band(far, updates, kl, None, name)
    step, half = (result.array("trpo", what) for what in ("gain", "gain_half"))
    figures.points(gain, updates[0] * 0.93, step, half, "trpo", marker="D")
    colour = figures.style_of("trpo")["color"]
    figures.note(gain, "TRPO, one step", (float(updates[0]), float(step)), (4, -4), color=colour)
    for label, aside in zip(result.series["effects"], (0.95, 1.0, 1.05), strict=False):
        mean, half = (result.array("effects", label, what) for what in ("mean", "mean_half"))
        look = figures.style_of(label.split(" − ")[0])
        figures.band(effects, updates * aside, mean, None, label=label, **look)
        figures.points(effects, updates * aside, mean, half, color=look["color"])
    for ax, word in ((gain, "warm start, greedy"), (effects, "no difference")):
        figures.reference(ax, 0.0)
        figures.note(ax, word, (float(updates[0]), 0.0), (12, -13), color="#777777")
    for ax in (gain, effects, far):
        figures.log_axis(ax, "x", list(updates), base=2)
    figures.log_axis(far, "y")
    x, y = "updates per rollout", "held-out greedy accuracy, paired"
    figures.describe(gain, "Above or below its own start", x, y)
    figures.describe(effects, "What each part buys on stale samples", x, y)
    figures.describe(far, "Distance travelled", x, "KL(π‖start) of an answer (nats)")
    for ax in (gain, effects, far):
        lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        figures.label_ends(ax, lines)
    return figure
