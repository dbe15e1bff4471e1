"""A prompt of the language model IS a bandit whose arms are all its completions: exact results.

A nano model (8,280 weights) learns one-digit sums. A prompt such as 3+7= has 5,220 completions of
at most three tokens, and all of them are listed. Only the training of the policies is sampled.
Above, each rung on the transformer, beside a bandit with one logit per completion. Below, what
working token by token costs: a ratio per token is an approximation where the sequence's ratio gives
E[ĝ] = ∇J; KL penalties per token omit the effect of a token on later tokens, where k1 in the reward
does not; and with 1/|o| the std no longer gives E[ĝ] = w_G(p) ∇p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course import ladder
from course.errors import require
from course.exact import group_mean_factor
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.train.noise import Noise
from tinylm.bridge import Bridge
from tinylm.moved import from_hard_to_easy, moved_policies
from tinylm.tasks import decode
from tinylm.token_level import TOKEN_KL, beside_bandit, drift, identity_row, std_weight, weight_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "a prompt is a bandit: exact bias and spread of each rung on a transformer, and what token by"
    " token costs"
)
CAPTION = (
    "Every completion of a nano transformer is listed, nothing is sampled. Its bandit has a logit"
    " of its own for each completion. Below: points near 1e-15 are exact up to rounding, and what"
    " is exactly 0 stands at 1e-16. Stale: the sampling policy is older by"
)
EXPECTED_SECONDS = 30.0
# The error of working token by token is of second order in the policy's movement. A claim that it
# exists must exceed a bound that matters, not only rounding; a first run was at 4 to 9 times these.
RELATIVE, FORECAST, DEGREES = 0.01, 0.001, 1.0
CASES = ("on policy", "stale")
DERIVED, KOOL, WILLIAMS = "derived", "Kool et al. 2019", "Williams 1992, theorem 1"
KLS, STD = "Tang & Munos 2025; derived", "Davis & Recht 2025; Mroueh 2025; derived for every G"
FLOOR = 1e-16  # what is exactly 0 is drawn here
LEVELS = {  # of the ratio: label, colour, marker
    "token": ("a ratio per token", "#b8320f", "o"),
    "sequence": ("the sequence's ratio, as on the bandit", "#00875f", "^"),
}
PENALTIES = {
    "k3": ("k3 per token, for ∇KL(ref‖π)", "#5566aa", "s"),
    "k2": ("k2, ρ·k1, ρ·k3, exact KL per token", "#b8320f", "o"),
    "k2 of the sequence": ("k2 of the sequence, as on the bandit", "#00875f", "^"),
    "k1 in the reward": ("k1 in the reward", figures.INK, "v"),
}


@dataclass(frozen=True)
class Settings(Checked):
    """How the policies come about, and what is asked of them."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())  # which estimators
    group: int = 4  # samples per prompt
    groups: tuple[int, ...] = (2, 4, 8)  # sizes of the group for w_G(p)
    warm_target: float = 0.3  # sampled accuracy of the reference, which the warm start ends with
    rollouts: int = 20  # of GRPO between the reference and the policy that samples
    # on one rollout, after which the policy is looked at again
    updates: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    stale: int = 8  # updates of the stale case of each rung
    lr: float = 2e-3  # of these updates (Adam, importance ratio)
    prompts: int = 5  # looked at, from hard to easy
    seed: int = 0  # seed of the training
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = "from 2 to 8: every kind of group is listed"
        require(2 <= self.group <= 8, "group", self.group, listed)
        require(all(2 <= g <= 8 for g in self.groups), "groups", self.groups, listed)
        require(self.stale in self.updates, "stale", self.stale, f"one of updates {self.updates}")
        require(0 < self.warm_target < 0.9, "warm_target", self.warm_target, "between 0 and 0.9")
        require(self.rollouts > 0, "rollouts", self.rollouts, "a whole number > 0")
        require(2 <= self.prompts <= 100, "prompts", self.prompts, "from 2 to 100")


SETTINGS = Settings()


def run(s: Settings, progress: Progress) -> Result:
    """Train, list all completions of some prompts, and ask."""
    policies = moved_policies(
        s.updates, s.lr, s.warm_target, s.rollouts, seed=s.seed, device=s.device, progress=progress
    )
    task, old, reference = policies.task, policies.old, policies.reference
    rows = from_hard_to_easy(old, task, s.prompts)
    middle = rows[len(rows) // 2]
    here = Bridge(old, task, middle, reference=reference)
    stale = Bridge(policies.moved[s.stale], task, middle, old=old, reference=reference)
    rungs = {
        name: {
            case: beside_bandit(bridge, ladder.get(name).estimator, s.group)
            for case, bridge in zip(CASES, (here, stale), strict=True)
        }
        for name in progress(s.rungs, "rungs")
    }
    weight = [
        weight_row(Bridge(reference, task, row), s.groups, s.group)
        for row in progress(from_hard_to_easy(reference, task, s.prompts), "w_G(p)")
    ]
    noise = Noise((), s.seed + 78, dtype=torch.float64, device=s.device)
    series: dict[str, Any] = {
        "question": decode(task.prompt[middle].tolist()),
        "p": here.objective,
        "rungs": rungs,
        "rloo": beside_bandit(here, ladder.rloo, s.group)["transformer"],
        "identity": identity_row(stale, s.group, noise),
        "distance": drift(policies, rows, progress),
        "weight": {key: [row[key] for row in weight] for key in weight[0]},
    }
    return Result(series=series, facts=_facts(s, series), caption=f"{CAPTION} {s.stale} updates.")


def _facts(s: Settings, series: Mapping[str, Any]) -> list[Fact]:
    """Identities, exact up to rounding; and what token by token misses, above a bound."""
    p, same, rungs = series["p"], series["identity"], series["rungs"]
    far = {name: np.array(values) for name, values in series["distance"].items()}
    weight = {name: np.array(values) for name, values in series["weight"].items()}
    wrong = {level: np.abs(far[f"forecast_{level}"] - far["J"]) for level in ("sequence", "token")}
    last, final = int(np.argmax(s.updates)), f"after {max(s.updates)} updates"
    apart = max(np.abs(far[name] - far["k2"]).max() for name in TOKEN_KL)
    here = {name: rung["on policy"]["transformer"] for name, rung in rungs.items()}
    facts = [
        Fact.exact(f"{claim} (largest relative difference)", source, found, 0.0, 10, number=number)
        for number, source, claim, found in (
            (3, KOOL, "RLOO is unbiased on the transformer", series["rloo"]["bias"]),
            (None, DERIVED, "A prompt and its bandit of completions have one J", same["J"]),
            (None, DERIVED, "At sequence level both have one coefficient", same["coefficient"]),
            (None, DERIVED, "At sequence level a sample has one gradient", same["batch"]),
            (8, DERIVED, "The sequence's ratio: E[ĝ] = ∇J, however stale", far["sequence"].max()),
            (8, DERIVED, "The sequence's ratio: J = J_old + E[ρA]", wrong["sequence"].max()),
            (20, KLS, "k2, ρ·k1, ρ·k3, exact KL per token: equally far off", apart),
            (20, KLS, "k1 in the reward: the gradient is ∇KL", far["k1 in the reward"].max()),
            (20, KLS, "k2 of the sequence: it is ∇KL(π‖ref)", far["k2 of the sequence"].max()),
            (20, KLS, "k3 of the sequence: it is ∇KL(ref‖π)", far["k3 of the sequence"].max()),
        )
    ]
    if "reinforce" in here:
        claim = "One completion alone pays, so REINFORCE's relative spread is √((1−p)/(pG))"
        known = math.sqrt((1 - p) / (p * s.group))
        facts.append(Fact.exact(claim, DERIVED, here["reinforce"]["spread"], known))
        claim = "REINFORCE is unbiased on policy (relative bias)"
        facts.append(Fact.exact(claim, WILLIAMS, here["reinforce"]["bias"], 0.0, number=9))
    for name in [name for name in ("baseline", "clip", "group_mean") if name in here]:
        claim = f"{name}: a mean that includes the sample shrinks the gradient by 1/G = 1/{s.group}"
        shrunk = 1 - group_mean_factor(s.group)
        facts.append(Fact.exact(claim, KOOL, here[name]["bias"], shrunk, number=3))
    for i, g in enumerate(s.groups):
        claim = f"Sum, group std, G = {g}: E[ĝ] = w_G(p) ∇p for every prompt (largest difference)"
        off = np.abs(weight["sum"][:, i] / std_weight(weight["p"], g) - 1) + weight["rest"][:, i]
        facts.append(Fact.exact(claim, STD, off.max(), 0.0, number=12))
    return facts + [
        Fact.above(f"{claim}, by more than {bound:g}", source, found.mean(), bound, number=number)
        for number, source, claim, found, bound in (
            (8, DERIVED, f"Token ratios: E[ĝ] misses ∇J {final}", far["token"][:, last], RELATIVE),
            (8, DERIVED, f"Token ratios miss J {final}", wrong["token"][:, last], FORECAST),
            (20, KLS, "k2 token by token misses ∇KL(π‖ref) of answers", far["k2"], RELATIVE),
            (20, KLS, "k3 token by token misses ∇KL(ref‖π) of answers", far["k3"], RELATIVE),
            (12, DERIVED, "With 1/|o| E[ĝ] is turned off ∇p, degrees", weight["angle"], DEGREES),
        )
    ]


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """Above, a row per rung; below, token against sequence for the ratio and the KL, and w_G(p)."""
    names, group, p = list(result.settings["rungs"]), result.settings["group"], result.series["p"]
    size: dict[str, Any] = {"height": 7 + 0.42 * len(names), "height_ratios": [len(names), 10]}
    figure, (bias, turned, spread, ratio, kl, std) = figures.new_figure(2, 3, width=14.5, **size)
    for ax, what in ((bias, "bias"), (turned, "angle"), (spread, "spread")):
        for row, (case, who) in enumerate(product(CASES, ("transformer", "bandit"))):
            at = [float(result.array("rungs", name, case, who, what)) for name in names]
            look = {"marker": "os"[row // 2], "fillstyle": ("full", "none")[row % 2]}
            label, aside = f"{who}, {case}", 0.2 * row - 0.3
            figures.rows(ax, names, at, aside=aside, label=label, markersize=8, **look)
    figures.describe(bias, f"{result.series['question']} how far off", "‖E[ĝ] − ∇J‖ / ‖∇J‖")
    figures.describe(turned, "which way", "angle between E[ĝ] and ∇J, degrees")
    figures.describe(spread, f"how noisy (G = {group})", "standard deviation of ĝ / ‖∇J‖")
    figures.expectation(bias, x=1 / group, label=f"closed form 1/G = 1/{group}")
    if "reinforce" in names:
        place, known = names.index("reinforce") - 0.3, math.sqrt((1 - p) / (p * group))
        figures.expectation(spread, place, known, "closed form √((1−p)/(pG))", marker="D")
    figures.legend_above([bias, spread], columns=3)
    _errors(ratio, result, LEVELS)
    _errors(kl, result, PENALTIES)
    x = "KL of whole answers from π_old, the reference, in nats"
    figures.describe(ratio, "the ratio, as samples grow stale", x, "‖E[ĝ] − ∇J‖ / ‖∇J‖")
    figures.describe(kl, "the KL, away from the reference", x, "‖E[gradient] − ∇KL‖ / ‖∇KL‖")
    _weight(std, result)
    return figure


def _errors(ax: Axes, result: Result, looks: Mapping[str, tuple[str, str, str]]) -> None:
    """A point for each prompt and number of updates, against the distance travelled."""
    far = result.array("distance", "kl").ravel()
    for name, (label, colour, marker) in looks.items():
        error = np.maximum(result.array("distance", name), FLOOR).ravel()
        ax.plot(far, error, marker, color=colour, markersize=5.5, label=label)
    ax.set(xscale="log", yscale="log", ylim=(FLOOR / 8, 20))
    ax.legend(frameon=False, loc="center")


def _weight(ax: Axes, result: Result) -> None:
    p, fine = result.array("weight", "p"), np.linspace(0.0, 1.0, 201)
    groups, group = result.settings["groups"], result.settings["group"]
    dots = zip(groups, result.array("weight", "sum").T, figures.shades(len(groups)), strict=True)
    curves = [
        figures.dots_on_curve(ax, p, found, fine, std_weight(fine, g), colour, f"G = {g}")
        for g, found, colour in dots
    ]
    angle, right = (result.array("weight", name) for name in ("angle", "right"))
    label = f"1/|o|, × {right[0]:g}, G = {group}: {angle.min():.1f}° to {angle.max():.1f}° off ∇p"
    crosses = ax.plot(p, result.array("weight", "mean"), "x", color="#b8320f", label=label)
    ax.set_ylim(top=3.0)
    ax.legend(handles=crosses, frameon=False, loc="upper center")
    title, unit = "dividing by the std: E[ĝ] = w_G(p) ∇p", "E[ĝ]·∇p / ‖∇p‖²"
    figures.describe(ax, title, "success probability p of the prompt", unit)
    figures.label_ends(ax, curves)
