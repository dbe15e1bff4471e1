"""Where entropy goes: the covariance identity, and what scales and parts pay in nats for reward.

A step Δθ of a tabular softmax changes its entropy by −Cov_π(log π, Δθ), to first order, exactly.
Under the policy gradient that is −η Cov(log π, πA): entropy falls as far as likely answers are
good and unlikely ones bad, and it rises otherwise. On one prompt all scales push along the one ∇p,
so that they lose the same for a unit of reward. Over several prompts they choose which prompt to
sharpen first, and differ. Look at how little clip-higher and Clip-Cov do here, and at the learning
rate: what keeps entropy in small steps may spend it in large ones.

Every training has the same answers, starts and streams, at every learning rate: entropies are
compared where the reward is equal, run by run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.theory import entropy as theory
from bandits.theory.entropy import Descent, Task
from course import ladder
from course.estimator import replace
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import described, interval, paired_error
from course.lab.terminal import Progress
from course.parts import ClipCov, HighEntropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "where entropy goes: the covariance identity, and its price in reward, scale by scale"
EXPECTED_SECONDS = 30.0


@dataclass(frozen=True)
class Settings(Task):
    """The trainings, and the exact example beside them."""

    bonuses: tuple[float, ...] = (0.1, 0.2, 0.5)  # whose limit is compared with its formula
    powers: int = 12  # step sizes 1, 1/2, 1/4, … of the identity

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(3, "powers")
        self.rising("bonuses")


SETTINGS = Settings()
LAW = "Cui et al. 2025 (2505.22617)"
OURS = "this course"
HIGHER = "Yu et al. 2025 (DAPO, 2503.14476), §3.1"
MASK = "Wang et al. 2025 (2506.01939)"
NEGATIVES = "Zhu et al. 2025 (2506.01347)"
ONE_DIRECTION = ("group_mean", "group_std", "maxrl", "leader", "pkpo", "pass_k_training")
BASES = {"scales": "group_mean", "parts": "clip"}  # what the others are compared with
LABELS = {
    "group_mean": "group mean",
    "group_std": "group std",
    "maxrl": "MaxRL",
    "pkpo": "PKPO",
    "plus_minus": "REINFORCE, ±½",
    "w_reinforce": "W-REINFORCE",
}
COLOURS = {
    "group_mean": "#000000",
    "group_std": "#c25fa0",
    "maxrl": "#9e2a2b",
    "pkpo": "#0057a3",
    "plus_minus": "#888888",
    "w_reinforce": "#c96f00",
    "clip": "#000000",
    "clip-higher": "#0057a3",
    "Clip-Cov": "#00875f",
    "high-entropy mask": "#c96f00",
    "entropy bonus": "#c25fa0",
}
CAPTION = (
    "Top left is exact. Elsewhere reward and entropy are those of the policy itself, means over"
    " sixteen prompts of ten answers, three of them right. The scales have one update per rollout,"
    " the parts four."
)


def run(settings: Settings, progress: Progress) -> Result:
    """The identity as the step shrinks; the trainings; entropies at equal reward."""
    s = settings
    arms = {"scales": (1, theory.scales(s)), "parts": (s.epochs, theory.parts(s))}
    listed = [(kind, name) for kind, (_, each) in arms.items() for name in each]
    found: dict[str, dict[str, Descent]] = {kind: {} for kind in arms}
    for kind, name in progress(listed, "trainings"):
        epochs, each = arms[kind]
        found[kind][name] = theory.train(each[name], s, epochs, s.learning_rates, range(s.runs))
    left = {
        kind: {name: theory.at_reward(path, s.level) for name, path in each.items()}
        for kind, each in found.items()
    }
    place = s.learning_rates.index(s.rate)
    paths = {kind: _paths(each, place) for kind, each in found.items()}
    series = {
        "identity": _identity(s),
        "rates": s.learning_rates,
        "paths": paths,
        "left": {kind: _left(each, BASES[kind]) for kind, each in left.items()},
    }
    facts = [*_identity_facts(s), *_price_facts(s), *_bonus_facts(s)]
    facts += [*_left_facts(s, left, place), *_law_facts(s, paths)]
    caption = f"{CAPTION} Bands: {described(s.runs)}. {_missing(s, left)}".strip()
    return Result(series=series, facts=facts, caption=caption)


def _identity(s: Settings) -> dict[str, Any]:
    """|ΔH over its first order − 1| of two directions, at each step size."""
    environment, log_prob = theory.example()
    plain = theory.policy_gradient(log_prob, environment.mean[0])
    steps = [2.0**-power for power in range(s.powers)]
    ways = {"policy gradient": plain, "natural gradient": plain / log_prob.exp()}
    errors = {
        name: [abs(theory.off(log_prob, way, step)) for step in steps] for name, way in ways.items()
    }
    return {"step": steps, **errors}


def _paths(found: Mapping[str, Descent], place: int) -> dict[str, Any]:
    """Mean reward and entropy [n + 1] of each arm at one learning rate."""
    return {
        name: {
            "reward": path.reward[:, place].mean(-1),
            "entropy": path.entropy[:, place].mean(-1),
        }
        for name, path in found.items()
    }


def _left(found: Mapping[str, Tensor], base: str) -> dict[str, Any]:
    """The entropy at equal reward, minus that of `base`, by learning rate, with its interval.

    Runs that never reach the reward do not count; NaN where fewer than two do.
    """
    rows: dict[str, Any] = {}
    for name, values in found.items():
        pairs = [_both(mine, theirs) for mine, theirs in zip(values, found[base], strict=True)]
        ends = [
            interval(mine - theirs) if len(mine) > 1 else (np.nan, np.nan) for mine, theirs in pairs
        ]
        rows[name] = {
            "difference": [float(mean) for mean, _ in ends],
            "difference_half": [float(half) for _, half in ends],
            "runs": [len(mine) for mine, _ in pairs],
        }
    return rows


def _both(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The runs [n] in which both reached the reward."""
    kept = ~(mine.isnan() | theirs.isnan())
    return mine[kept], theirs[kept]


def _missing(s: Settings, left: Mapping[str, Mapping[str, Tensor]]) -> str:
    """A sentence about who did not reach the reward somewhere; empty if all did."""
    late = {
        LABELS.get(name, name): int(values.isnan().any(-1).sum())
        for each in left.values()
        for name, values in each.items()
        if bool(values.isnan().any())
    }
    if not late:
        return ""
    said = ", ".join(f"{name} at {count}" for name, count in late.items())
    return f"Not all runs reached reward {s.level:g}: {said} of {len(s.learning_rates)} rates."


# ---------------------------------------------------------------- facts


def _identity_facts(s: Settings) -> Facts:
    """The identity, by automatic differentiation and as the step shrinks."""
    facts = Facts(LAW, 27)
    environment, log_prob = theory.example()
    plain = theory.policy_gradient(log_prob, environment.mean[0])
    claim = "Under the policy gradient dH/dη = −Cov(log π, πA) at η = 0 (six answers, nats)"
    facts.exact(claim, theory.slope(log_prob, plain), theory.predicted(log_prob, plain))
    steps = theory.steps_of(ONE_DIRECTION, s.group)
    gap = max(
        abs(theory.slope(log_prob, step) - float(theory.predicted(log_prob, step)))
        for step in steps.values()
    )
    claim = "For every scale's E[ĝ] it is −Cov(log π, E[ĝ]) (largest difference"
    facts.exact(f"{claim}, {len(steps)} rungs, G = {s.group})", gap, 0.0, source=OURS)
    small = 2.0 ** -(s.powers - 1)
    for name, way in (("policy", plain), ("natural", plain / log_prob.exp())):
        ratio = theory.off(log_prob, way, 2 * small) / theory.off(log_prob, way, small)
        claim = f"What the identity leaves out is of second order ({name} gradient): half the step,"
        facts.exact(f"{claim} half the relative error (ratio at η = {small:g})", ratio, 2.0, 2)
    return facts


def _price_facts(s: Settings) -> Facts:
    """Entropy per reward on one prompt, exactly."""
    facts = Facts(OURS, 27)
    prices = [theory.price(ladder.get(name).estimator, s.group) for name in ONE_DIRECTION]
    gap = max(prices) - min(prices)
    claim = "On one prompt all scales lose the same entropy per unit of reward (largest difference"
    facts.exact(f"{claim}, nats; {len(prices)} rungs, G = {s.group})", gap, 0.0)
    base = prices[1]
    masked = replace(ladder.group_std, sample_filter=HighEntropy(s.share))
    claim = "On one prompt all tokens have one entropy, and the high-entropy mask keeps them all"
    facts.exact(f"{claim} (difference of E[ĝ]'s price)", theory.price(masked, s.group), base)
    claim = "Clip-Cov loses less entropy per unit of reward than without it, to first order"
    found = theory.price(replace(ladder.group_std, sample_filter=ClipCov()), s.group)
    facts.below(f"{claim} (six answers, G = {s.group}, nats)", found, base, source=LAW)
    return facts


def _bonus_facts(s: Settings) -> Facts:
    """Where a bonus leaves two arms."""
    facts, group = Facts(OURS, 27), 4
    for bonus in s.bonuses:
        odds = float(np.exp((group - 1) / (group * bonus)))
        claim = "A bonus τ·H holds two arms with a gap of 1 at p₁/p₂ = exp((G−1)/(Gτ)) under the"
        claim = f"{claim} group's mean"
        where = f"τ = {bonus:g}, G = {group}"
        facts.exact(f"{claim} (pull there, {where})", theory.bonus_pull(bonus, group, odds), 0.0)
        below, above = (theory.bonus_pull(bonus, group, x * odds) for x in (0.9, 1.1))
        claim = "… and pulls back to it from both sides"
        facts.exact(f"{claim} (odds 10 % away, {where})", below > 0 > above, True)
    return facts


CLAIMS = {
    "parts": {
        "clip-higher": ("Clip-higher keeps more entropy than the clip", HIGHER),
        "Clip-Cov": ("Clip-Cov keeps more entropy than the clip alone", LAW),
        "high-entropy mask": ("The high-entropy mask keeps more entropy than no mask", MASK),
        "entropy bonus": ("An entropy bonus keeps more entropy than none", OURS),
    },
    "scales": {
        "maxrl": ("MaxRL keeps more entropy than the group's mean", OURS),
        "pkpo": ("PKPO keeps more entropy than the group's mean", OURS),
        "w_reinforce": ("W-REINFORCE keeps more entropy than REINFORCE on ±½", NEGATIVES),
    },
}


def _left_facts(s: Settings, left: Mapping[str, Mapping[str, Tensor]], place: int) -> Facts:
    """Entropies at equal reward, paired. The directions were written before the run.

    The level and the learning rate were set after a first look at twenty runs.
    """
    facts = Facts(OURS, 27, s.runs)
    for kind, claims in CLAIMS.items():
        for name, (claim, source) in claims.items():
            base = "plus_minus" if name == "w_reinforce" else BASES[kind]
            mine, theirs = _both(left[kind][name][place], left[kind][base][place])
            where = f"nats, where the reward is {s.level:g}; rate {s.rate:g}, {len(mine)} runs"
            if len(mine) > 1:
                found = paired_error(mine, theirs)
                facts.above(f"{claim} ({where})", found, source=source)
    return facts


def _law_facts(s: Settings, paths: Mapping[str, dict[str, Any]]) -> Facts:
    """The fit R = −a e^H + b along a training."""
    facts = Facts(LAW, 27)
    for kind, name in (("scales", "group_mean"), ("scales", "group_std"), ("parts", "clip")):
        path = paths[kind][name]
        *_, error = theory.exponential_law(path["reward"], path["entropy"])
        claim = "R = −a e^H + b along a training (root mean square error of the mean path"
        facts.below(f"{claim}, {LABELS.get(name, name)}, rate {s.rate:g})", error, 0.02)
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """The identity; paths and differences of the scales; the law; the same of the parts."""
    figure, panels = figures.new_figure(2, 3, width=15.5, height=9.0)
    identity, scales, scale_gap, law, parts, part_gap = panels
    _draw_identity(identity, result)
    _draw_law(law, result)
    level = float(result.settings["level"])
    for kind, path, gap in (("scales", scales, scale_gap), ("parts", parts, part_gap)):
        for name, values in result.series["paths"][kind].items():
            style: dict[str, Any] = {"color": COLOURS[name], "label": LABELS.get(name, name)}
            path.plot(values["reward"], values["entropy"], linewidth=2.0, **style)
        _draw_gap(gap, result, kind)
        figures.reference(path, x=level)
    same = f"entropy at reward {level:g}, minus"
    x, y = "expected reward", "entropy (nats)"
    rate = "learning rate"
    for ax, title, across, up in (
        (scales, "Scales: which prompt is sharpened first", x, y),
        (scale_gap, "In small steps MaxRL and PKPO pay least", rate, f"{same} group mean's"),
        (parts, "Parts: several updates per rollout", x, y),
        (part_gap, "The bonus keeps; the mask in small steps", rate, f"{same} the clip's"),
    ):
        figures.describe(ax, title, across, up)
    for ax in (scales, parts):
        ax.set_xlim(0.28, 1.0)
        ax.legend(frameon=False, loc="lower left")
    return figure


def _draw_identity(ax: Axes, result: Result) -> None:
    """The relative error against the step, and a line of slope 1."""
    step = result.array("identity", "step")
    for name, colour in (("policy gradient", "#0057a3"), ("natural gradient", "#b8320f")):
        error = result.array("identity", name)
        ax.plot(step, error, "o-", color=colour, linewidth=1.6, markersize=4.5, label=name)
        figures.expectation(ax, error[-1] * step / step[-1], step)
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y")
    title = "ΔH = −η Cov(log π, πA), but for O(η²)"
    figures.describe(ax, title, "step η", "|ΔH over its first order − 1|", legend="upper left")


def _draw_law(ax: Axes, result: Result) -> None:
    """Reward against e^H along a training, and the fit."""
    for name in ("group_mean", "group_std"):
        path = result.series["paths"]["scales"][name]
        reward, left = (torch.as_tensor(path[key]) for key in ("reward", "entropy"))
        a, b, _ = theory.exponential_law(reward, left)
        grows = left.exp()
        label = f"{LABELS[name]}: R = {b:.2f} − {a:.2f}·e^H"
        ax.plot(grows, reward, ".", color=COLOURS[name], markersize=5, label=label)
        figures.expectation(ax, b - a * grows, grows)
    figures.describe(ax, "The published law R = −a e^H + b", "e^H", "expected reward")
    ax.legend(frameon=False, loc="lower left")


def _draw_gap(ax: Axes, result: Result, kind: str) -> None:
    """The differences at equal reward by learning rate, with intervals."""
    rates = result.array("rates")
    for name in result.series["left"][kind]:
        if name == BASES[kind]:
            continue
        mean = result.array("left", kind, name, "difference")
        half = result.array("left", kind, name, "difference_half")
        figures.band(ax, rates, mean, half, label="_", color=COLOURS[name], linestyle="-")
    figures.reference(ax, y=0.0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
