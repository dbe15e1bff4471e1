"""What is maximised: every scale is one curve w(p) on ∇p, exactly.

With rewards of 0 or 1 and success probability p, E[ĝ] = w(p)·∇p for every scale, so that the curve
says all there is to say of its expectation: which prompts count, and what is maximised, ∫w. Look at
the left end, where prompts are hard: the mean weighs all alike, the std as √(G−1), MaxRL as G − 1,
PKPO as k. At the right end pass@k no longer cares. The last panel says what that costs: an answer
that counts only if it is the single right one is seldom heard.

Everything is enumerated: each dot is the estimator itself, averaged over all possible groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.theory import objectives as theory
from bandits.theory.difficulty import STD, right_or_wrong, weight, weights
from bandits.theory.objectives import SCALES
from course import ladder
from course.errors import require
from course.estimator import replace
from course.lab import figures
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import PKPO, PassKTraining

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "what each scale maximises: mean, likelihood, pass@k, each as one curve w(p) on ∇p"
EXPECTED_SECONDS = 10.0


@dataclass(frozen=True)
class Settings(Checked):
    """Group sizes, tries and success probabilities; nothing is sampled, so there is no seed."""

    groups: tuple[int, ...] = (4, 8, 16)  # samples per prompt
    group: int = 8  # samples per prompt where one size is drawn
    k: int = 4  # tries of pass@k
    points: int = 25  # success probabilities, evenly from .02 to .98
    rewards: tuple[float, ...] = (0.0, 1.0, 1.0, 3.0)  # of four answers, two of them tied
    policy: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)  # their probabilities

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = min(self.groups) >= 2 and max(self.groups) <= 32
        require(sizes, "groups", self.groups, "group sizes from 2 to 32")
        self.rising("groups")
        require(self.group in self.groups, "group", self.group, f"one of {self.groups}")
        least = min(self.groups)
        require(2 <= self.k <= least, "k", self.k, f"from 2 to the smallest group, {least}")
        self.at_least(3, "points")
        require(2 <= len(self.rewards) <= 6, "rewards", self.rewards, "two to six numbers")
        fits = len(self.policy) == len(self.rewards) and min(self.policy) > 0
        fits = fits and abs(sum(self.policy) - 1) < 1e-9
        allowed = f"{len(self.rewards)} probabilities above 0 that sum to 1"
        require(fits, "policy", self.policy, allowed)


SETTINGS = Settings()
MAXRL = "Tajwar et al. 2026 (MaxRL, 2602.02710)"
LEADER = "Tang et al. 2025 (2503.19595)"
BEST = "Walder & Karkhanis 2025 (2505.15201)"
TRAINING = "Chen et al. 2025 (2508.10751)"
NEGATIVES = "Zhu et al. 2025 (2506.01347); this course"
OURS = "this course"
CAPTION = (
    "Dots: the estimators themselves, averaged over every group that can be drawn. Lines: the"
    " formulas. Rewards are 0 or 1, p is the probability of a 1; PKPO and Pass@k training with"
    " k = 4. Signal to noise is ‖E[ĝ]‖ over the root of the trace of its covariance, for one prompt"
    " with two right and two wrong answers."
)
COLOURS = {
    "mean, leave-one-out": "#000000",
    "mean, group": "#8a8a8a",
    "group std": "#c25fa0",
    "MaxRL": "#9e2a2b",
    "PKPO": "#0057a3",
    "Pass@k training": "#00875f",
    "leader": "#c96f00",
    "W-REINFORCE": "#7a6fd0",
}


def run(settings: Settings, progress: Progress) -> Result:
    """The weight over p of every scale at every group size, and the signal to noise."""
    s = settings
    p = torch.linspace(0.02, 0.98, s.points, dtype=torch.float64)
    made = {name: curve.estimator(s.k) for name, curve in SCALES.items()}
    series: dict[str, Any] = {
        "p": p,
        "weight": {
            name: {size: weights(estimator, p, size) for size in s.groups}
            for name, estimator in progress(list(made.items()), "scales")
        },
        "signal": {
            name: [theory.signal_to_noise(estimator, x, s.group) for x in p.tolist()]
            for name, estimator in made.items()
        },
    }
    facts = [*_curves(s, series), *_maxrl(s, p), *_best_of_k(s), *_ends(s), *_halves(s)]
    return Result(series=series, facts=facts, caption=CAPTION)


# ---------------------------------------------------------------- facts


def _worst(measured: Tensor, expected: Tensor) -> float:
    """The largest difference, relative where the expected number exceeds 1."""
    return float(((measured - expected).abs() / expected.abs().clamp(min=1)).max())


FORMULAS = {
    "mean, leave-one-out": ("1", "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)"),
    "mean, group": ("(G−1)/G", OURS),
    "group std": (
        "w_G(p) = E[√(N(G−N))]/(G p(1−p))",
        "Davis & Recht 2025 (2510.13651); Mroueh 2025 (2503.06639)",
    ),
    "MaxRL": ("Σ_{k=1}^{G−1} (1−p)^{k−1}", MAXRL),
    "PKPO": ("k(1−p)^{k−1}", BEST),
    "Pass@k training": ("E[N √(F/(1−F))]/(G p(1−p)), F = C(G−N, k)/C(G, k)", TRAINING),
    "leader": ("(1−p)^{G−1}, 1/G of the derivative of pass@G", LEADER),
    "W-REINFORCE": (".55, on rewards of ±½", NEGATIVES),
}


def _curves(s: Settings, series: dict[str, Any]) -> Facts:
    """Every curve against its formula, at every group size."""
    facts, p = Facts(OURS, 25), series["p"]
    for name, curve in SCALES.items():
        formula, source = FORMULAS[name]
        found = series["weight"][name]
        off = max(_worst(found[g], curve.formula(p, g, s.k)) for g in s.groups)
        claim = f"{name}: E[ĝ] = w(p)·∇p with w(p) = {formula}"
        where = f"k = {s.k}, " if name in ("PKPO", "Pass@k training") else ""
        sizes = ", ".join(str(g) for g in s.groups)
        facts.exact(f"{claim} ({where}largest difference, G = {sizes})", off, 0.0, source=source)
    return facts


def _maxrl(s: Settings, p: Tensor) -> Facts:
    """The order of MaxRL, and the likelihood as a sum of all pass@k."""
    facts, case = Facts(MAXRL, 25), right_or_wrong(0.3)
    claim = "MaxRL as shipped, with the group's mean as baseline, is of order G − 1: w(.3) at G = 4"
    facts.exact(claim, weight(ladder.maxrl, case, 4), 2.19)
    claim = "Without the baseline it is of order G: w(.3) at G = 4"
    facts.exact(claim, weight(theory.UNCENTRED_MAXRL, case, 4), 2.533)
    size = s.group
    total = weights(ladder.rloo, p, size)
    for k in range(2, size + 1):
        total = total + weights(replace(ladder.leader, scale=PKPO(k)), p, size) / k
    off = _worst(total, weights(theory.UNCENTRED_MAXRL, p, size))
    claim = "The likelihood is all pass@k together: Σ_{k≤G} of PKPO's curve over k is MaxRL's of"
    facts.exact(f"{claim} order G (largest difference over p, G = {size})", off, 0.0)
    return facts


def _best_of_k(s: Settings) -> Facts:
    """Any rewards: the gradient of the expected best; and sums over a group."""
    facts = Facts(LEADER, 26)
    listed = theory.several_rewards(s.rewards, s.policy)
    worth = ", ".join(f"{x:g}" for x in s.rewards)
    for group in s.groups[:2]:
        true = theory.expected_best(s.rewards, s.policy, group)
        off = theory.best_of_k_error(ladder.leader, group, group, group, listed, true)
        claim = "Summed over the group, the leader is ∇E[max of G] for any rewards, ties included"
        facts.exact(f"{claim} (rewards {worth}; G = {group}: relative distance)", off, 0.0)
    best = replace(ladder.leader, scale=PKPO(s.k))
    for group in s.groups[:2]:
        true = theory.expected_best(s.rewards, s.policy, s.k)
        off = theory.best_of_k_error(best, group, s.k, 1, listed, true)
        claim = f"PKPO is ∇E[max of {s.k}] for any rewards, ties included, at any G ≥ k"
        claim = f"{claim} (rewards {worth}; G = {group}: relative distance)"
        facts.exact(claim, off, 0.0, source=BEST)
    training = replace(ladder.leader, scale=PassKTraining(s.k))
    off = theory.largest_sum(training, s.rewards, s.group)
    claim = "Pass@k training's advantages sum to 0 in every group, for any rewards"
    claim = f"{claim} (rewards {worth}, G = {s.group}, k = {s.k}: largest |sum|)"
    facts.exact(claim, off, 0.0, source=TRAINING)
    claim = "The leader is heard in groups with one right answer only, G p(1−p)^{G−1} of them"
    want = s.group * 0.5**s.group
    facts.exact(f"{claim} (p = .5, G = {s.group})", theory.heard(ladder.leader, 0.5, s.group), want)
    return facts


def _ends(s: Settings) -> Facts:
    """Which prompts count: hard against middling, and nearly solved ones; written before the run.

    Directions only: what the formulas give is above.
    """
    facts, group = Facts(TRAINING, 25), s.group
    training = replace(ladder.leader, scale=PassKTraining(s.k))
    hard, middle, easy = (right_or_wrong(x) for x in (0.05, 0.5, 0.9))

    def lean(estimator: Any) -> float:
        return weight(estimator, hard, group) / weight(estimator, middle, group)

    claim = "Pass@k training leans more to hard prompts than the std: w(.05)/w(.5)"
    facts.above(f"{claim} (G = {group}, k = {s.k})", lean(training), lean(STD))
    claim = "MaxRL leans more to hard prompts than Pass@k training: w(.05)/w(.5)"
    facts.above(f"{claim} (G = {group}, k = {s.k})", lean(ladder.maxrl), lean(training))
    claim = "A nearly solved prompt counts less under Pass@k training than under the std: w(.9)"
    found, other = weight(training, easy, group), weight(STD, easy, group)
    facts.below(f"{claim} (G = {group}, k = {s.k})", found, other)
    best = replace(ladder.leader, scale=PKPO(s.k))
    claim = (
        "Smaller subsets are quieter: PKPO has more signal to noise than the leader of the group"
    )
    noise = theory.signal_to_noise(ladder.leader, 0.5, group)
    found = theory.signal_to_noise(best, 0.5, group)
    facts.above(f"{claim} (p = .5, G = {group}, k = {s.k})", found, noise, source=BEST)
    claim = "On a hard prompt MaxRL has more signal to noise than the group's mean"
    found = theory.signal_to_noise(ladder.maxrl, 0.05, group)
    other = theory.signal_to_noise(ladder.group_mean, 0.05, group)
    facts.above(f"{claim} (p = .05, G = {group})", found, other, source=MAXRL)
    return facts


def _halves(s: Settings) -> Facts:
    """Right and wrong answers alone: one expectation, two noises."""
    facts, p = Facts(NEGATIVES, 25), 0.1
    for name, estimator in (("Right", theory.PSR), ("Wrong", theory.NSR)):
        claim = f"{name} answers alone, on rewards of ±½, have half of ∇p in expectation"
        facts.exact(
            f"{claim} (p = .1, G = {s.group})", weight(estimator, right_or_wrong(p), 8), 0.5
        )
    ratio = theory.second_moment(theory.PSR, p) / theory.second_moment(theory.NSR, p)
    claim = "They differ in noise: E‖ĝ‖² of right answers over that of wrong ones is (1−p)/p"
    facts.exact(f"{claim} (p = .1, one sample)", ratio, (1 - p) / p)
    return facts


# ---------------------------------------------------------------- figure


def plot(result: Result) -> Figure:
    """Every curve at one G; the curves that change with G; what is maximised; signal to noise."""
    figure, (one, sizes, whole, signal) = figures.new_figure(2, 2, width=12.4, height=9.0)
    settings, p = result.settings, result.array("p")
    group, k = int(settings["group"]), int(settings["k"])
    fine = torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    tiny = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.float64)
    for name, curve in SCALES.items():
        colour = COLOURS[name]
        measured = result.array("weight", name, str(group))
        line = curve.formula(fine, group, k)
        figures.dots_on_curve(one, p, measured, fine, line, colour, name)
        goal = theory.objective_of(curve.formula(tiny, group, k), tiny)
        if name not in ("mean, group", "W-REINFORCE"):  # straight lines, as the first
            whole.plot(tiny, goal, color=colour, linewidth=1.8, label="_goal")
        signal.plot(p, result.array("signal", name), color=colour, linewidth=1.8, label="_signal")
    _sizes(sizes, result, fine, k)
    _words(one, sizes, whole, signal, group, k)
    figures.legend_above([one], 4)
    return figure


def _sizes(ax: Axes, result: Result, fine: Tensor, k: int) -> None:
    """The two curves whose left end rises with G, and one that does not."""
    p = result.array("p")
    listed = list(result.series["weight"]["MaxRL"])
    for size, colour in reversed(figures.shaded(listed)):
        line = SCALES["MaxRL"].formula(fine, int(size), k)
        dots = result.array("weight", "MaxRL", size)
        figures.dots_on_curve(ax, p, dots, fine, line, colour, f"MaxRL, G = {size}")
    line = SCALES["PKPO"].formula(fine, 0, k)
    for number, size in enumerate(listed):
        dots = result.array("weight", "PKPO", size)
        label = "_same" if number else f"PKPO, k = {k}, G = {', '.join(listed)}"
        figures.dots_on_curve(ax, p, dots, fine, line, COLOURS["PKPO"], label)
    ax.legend(frameon=False, loc="upper right")


def _words(one: Axes, sizes: Axes, whole: Axes, signal: Axes, group: int, k: int) -> None:
    """Titles, axes and limits of the four panels."""
    figures.log_axis(one, "y")
    figures.log_axis(sizes, "y")
    one.set_ylim(0.01, 12)
    sizes.set_ylim(0.01, 20)
    x, y = "success probability p", "w(p): weight of ∇p in E[ĝ]"
    figures.log_axis(signal, "y")
    goal, price = "objective, 0 at p = 0 and 1 at p = 1", "signal to noise of one group"
    prompts = f"Which prompts each scale listens to (G = {group}, k = {k})"
    for ax, title, unit, span in (
        (one, prompts, y, None),
        (sizes, "With more samples MaxRL leans further, PKPO does not", y, None),
        (whole, f"So this is maximised: ∫w, as a share (G = {group})", goal, (0, 1.02)),
        (signal, f"… at this price (G = {group})", price, (0.02, 4)),
    ):
        figures.describe(ax, title, x, unit, xlim=(0, 1), ylim=span)
