"""Several updates on one rollout: how ratio and clip differ from plain policy gradient.

After the first update the samples are stale: they come from π_old, and the policy has changed.
Every rung gets the same number of samples; only the updates per rollout differ. Sixteen prompts
share one linear softmax, and only the right answer pays. Look for:

- one update: baseline, surrogate and clip are exactly one curve, since at π_old they have the same
  gradient;
- several: policy gradient with centred rewards collapses, the bare ratio hardly gains, and the clip
  turns more updates into more reward. With centred rewards a stale batch pushes with a constant
  force, and nothing limits how far it pushes down (log π → −∞). With rewards in {0, 1} and no
  baseline it only pulls up, and stops; with rewards in {−1, 0} it fails as well;
- GRPO: its k3 contains r = π_ref/π of the sample, which no clip bounds, so large steps ruin the
  policy. With |log r| bounded it learns like the rung below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bandits.exact import B3_MEANS, B3_POLICY
from bandits.linear import SharedTask
from bandits.theory import staleness as theory
from bandits.theory.staleness import Rung, sweep, train
from course import ladder
from course.errors import require
from course.estimator import replace
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Facts
from course.lab.result import Result
from course.lab.statistics import described, named_interval, paired_error
from course.lab.sweep import edges
from course.lab.terminal import Progress
from course.parts import K3
from course.parts.kl import exact_kl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "several updates per rollout: policy gradient collapses, the ratio holds, the clip learns"
EXPECTED_SECONDS = 90.0
RUNGS = ("reinforce", "baseline", "surrogate", "clip", "group_mean", "group_std", "grpo")


@dataclass(frozen=True)
class Settings(SharedTask):
    """A contextual bandit with shared parameters; only the updates per rollout change."""

    rungs: tuple[str, ...] = RUNGS  # estimators (length_mean is group_std at T = 1)
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16)  # updates per rollout, starting at 1
    learning_rates: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0)  # the sweep of each rung
    # added to the rewards 0 and 1, for REINFORCE without baseline
    offsets: tuple[float, ...] = (0.0, -0.25, -0.5, -1.0)
    stale_updates: int = 300  # updates on one rollout, exactly, on three arms
    stale_rate: float = 0.5  # learning rate there

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising("epochs", "learning_rates")
        several = len(self.epochs) > 1 and self.epochs[0] == 1
        require(several, "epochs", self.epochs, "1 and then larger numbers of updates")
        require(self.offsets[0] == 0, "offsets", self.offsets, "0 and then others")


SETTINGS = Settings()
SEEN = "seen by users of language models; here on a bandit"
XU = "Xu 2025, eq. 6"
HERE = "derived here, checked by enumeration"
MAX_LOG_R, BOUNDED = 2.0, "grpo, |log r| ≤ 2"
ONE_CURVE = ("baseline", "surrogate", "clip")
CAPTION = (
    "Equal samples everywhere. Left: at the learning rate that is best with one update per rollout,"
    " chosen on other runs. The last panel is exact; dashed: closed forms."
)


def run(settings: Settings, progress: Progress) -> Result:
    """Exact agreement and exact staleness first, then the training runs."""
    s, judging = settings, range(settings.runs, 2 * settings.runs)
    start = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    exact = s.group, s.stale_rate, s.stale_updates
    centred = theory.centred_path(*exact)
    paths = theory.stale_paths(progress(("reinforce", *ONE_CURVE), "one rollout"), *exact)
    rungs = {name: ladder.get(name).estimator for name in s.rungs}
    found = sweep(s, rungs, s.epochs, s.learning_rates, progress)
    kept = {name: rung.kept for name, rung in found.items()}
    if "grpo" in found:  # with |log r| of its k3 bounded, at the learning rate of GRPO itself
        capped = replace(ladder.grpo, kl=K3(beta=0.04, max_log_r=MAX_LOG_R))
        own_rate = [found["grpo"].rate]
        each = [train(capped, s, epochs, own_rate, judging)[0][0] for epochs in s.epochs]
        kept[BOUNDED] = torch.stack(each)
    rate = found["reinforce"].rate if "reinforce" in found else s.learning_rates[-1]
    shifted = theory.shifted_reinforce(s, progress(s.epochs, "signs"), s.offsets, rate, judging)
    series = {
        "rungs": {name: rung.as_series() for name, rung in found.items()},
        "signs": {
            f"{offset:g}": named_interval("final", shifted[:, place])
            for place, offset in enumerate(s.offsets)
        },
        "signs_rate": rate,
        "bounded": named_interval("final", kept[BOUNDED]) if BOUNDED in kept else {},
        "stale": {name: exact_kl(start, path) for name, path in paths.items()},
        "stale_limit": exact_kl(start, theory.stale_limit()[0].log()),
        "stale_centred": exact_kl(start, centred),
    }
    own, halted = theory.choices_and_halted(found, s.epochs)
    caption = f"{CAPTION} Bands: {described(s.runs)}. {edges(own, s.learning_rates)}".strip()
    facts = [*_agreement_facts(), *_stale_facts(s, paths, centred)]
    facts += _training_facts(s, found, kept, shifted)
    return told(Result(series=series, facts=facts, caption=caption), halted)


# ---------------------------------------------------------------- facts


def _agreement_facts() -> Facts:
    """At π_old all rungs agree, exactly; and what GRPO's KL part is."""
    names, group, beta = theory.ratio_rungs(), 4, 0.04
    facts, alike = Facts(XU, 9), f"At π_old E[ĝ] of the {len(names)} ratio rungs is policy gradient"
    for where, listed, size in (
        (f"B3, G = {group}", theory.anchored_b3(), group),
        ("two prompts, answers of 1, 2 and 4 tokens, G = 2", theory.ragged(), 2),
    ):
        worst = max(theory.distance_to_policy_gradient(name, listed, size) for name in names)
        facts.exact(f"{alike} ({where}: largest relative distance)", worst, 0.0)
    part = theory.kl_part(beta)
    where = f"(B3, π_ref (.25, .72, .03), β = {beta}: relative distance)"
    facts.exact(f"GRPO's KL part is E[β(π_ref/π − 1)∇log π] {where}", part["sampled"], 0.0)
    facts.exact(f"that is −β∇KL(π_ref‖π) {where}", part["forward"], 0.0, source=HERE)
    claim = f"and not −β∇KL(π‖π_ref), by more than a tenth {where}"
    facts.above(claim, part["reverse"], 0.1, source="Xu 2025, eq. 4")
    claim = f"which the exact KL in the loss has {where}"
    facts.exact(claim, part["exact_kl"], 0.0, source=HERE)
    return facts


def _stale_facts(s: Settings, paths: Mapping[str, Tensor], centred: Tensor) -> Facts:
    """One rollout used again and again, exactly."""
    (_, reward, before), facts = theory.stale_limit(), Facts(HERE, 11)
    claim = "Rewards in {0, 1}, no baseline, stale samples: E[ĝ] is 0 at π_old·μ/J (B3)"
    facts.exact(claim, theory.pull_at_stale_limit(s.group), 0.0)
    rewards = paths["reinforce"].exp() @ torch.tensor(B3_MEANS, dtype=torch.float64)
    claim = f"where the expected reward is E[μ²]/E[μ] (was {before:.2f}; B3,"
    claim, both = f"{claim} {s.stale_updates} updates)", f"Dayan & Hinton 1997; {HERE}"
    facts.exact(claim, rewards[-1], reward, 6, source=both)
    lowered = int((rewards.diff() < -1e-12).sum())  # rounding aside
    facts.exact("no stale update on the way lowers it (B3: updates that do)", lowered, 0)
    claim = "Centred rewards push with one force: E updates are one of E times the rate (B3:"
    apart = (paths["baseline"] - centred).abs().max()
    facts.exact(f"{claim} largest difference of log π)", apart, 0.0)
    return facts


def _training_facts(
    s: Settings, found: Mapping[str, Rung], kept: Mapping[str, Tensor], shifted: Tensor
) -> Facts:
    """What the training runs did: paired differences of final rewards, directions from theory."""
    facts, many = Facts(SEEN, 11, runs=s.runs), f"With {s.epochs[-1]} updates per rollout"
    if all(name in found for name in ONE_CURVE):
        curves = torch.stack([found[name].every[0] for name in ONE_CURVE])
        claim = "With one update policy gradient, ratio and clip are one curve (largest difference"
        facts.exact(f"{claim} of a run)", (curves - curves[0]).abs().max(), 0.0, source=XU)
        plain, ratio, clip = (kept[name] for name in ONE_CURVE)
        claim = f"{many} centred policy gradient has collapsed: reward less that with one"
        facts.below(claim, paired_error(plain[-1], plain[0]))
        claim = f"{many} the clip has learned more than with one"
        facts.above(claim, paired_error(clip[-1], clip[0]))
        facts.above(f"{many} the bare ratio beats it", paired_error(ratio[-1], plain[-1]))
        facts.below(f"{many} the ratio lies below the clip", paired_error(ratio[-1], clip[-1]))
    if "reinforce" in kept and "baseline" in kept:
        claim = f"{many} rewards in {{0, 1}} without baseline beat centred ones"
        facts.above(claim, paired_error(kept["reinforce"][-1], kept["baseline"][-1]))
    if BOUNDED in kept:
        claim = f"{many} GRPO lies below itself with |log r| of its k3 ≤ {MAX_LOG_R:g}"
        facts.below(claim, paired_error(kept["grpo"][-1], kept[BOUNDED][-1]))
    if s.offsets[-1] == -1:
        claim = f"{many} REINFORCE with rewards in {{−1, 0}} lies below that with {{0, 1}}"
        facts.below(claim, paired_error(shifted[-1, -1], shifted[-1, 0]))
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Reward against updates per rollout; the sign of the rewards; one rollout, exactly."""
    figure, (fixed, retuned, sign, stale) = figures.new_figure(2, 2, width=13.0, height=9.2)
    epochs, dots = result.settings["epochs"], {"marker": "o", "markersize": 4}
    for name in result.settings["rungs"]:
        figures.curve(fixed, epochs, result, "rungs", name, "fixed", name=name, **dots)
        figures.curve(retuned, epochs, result, "rungs", name, "retuned", name=name, **dots)
    if result.series["bounded"]:
        look = {**figures.style_of("grpo"), "linestyle": ":", "label": BOUNDED}
        figures.curve(fixed, epochs, result, "bounded", "final", **look)
    for offset, colour in figures.shaded(result.settings["offsets"]):
        label = f"rewards {offset:g} and {1 + offset:g}".replace("-", "−")
        look = {"color": colour, "linestyle": "-", "label": label, **dots}
        figures.curve(sign, epochs, result, "signs", f"{offset:g}", "final", **look)
    low = min(0.0, *(ax.get_ylim()[0] for ax in (fixed, retuned, sign)))
    for ax, title in (
        (fixed, "Learning rate tuned for one update per rollout"),
        (retuned, "Learning rate tuned again for each"),
        (sign, "REINFORCE without baseline: the sign decides"),
    ):
        figures.log_axis(ax, "x", epochs, base=2)
        x, y = "updates per rollout", "final expected reward"
        figures.describe(ax, title, x, y, ylim=(low, 1), ends=True)
    updates = np.arange(1, result.settings["stale_updates"] + 1)
    for name in ("reinforce", *ONE_CURVE):
        figures.band(stale, updates, result.array("stale", name)[1:], name=name)
    figures.expectation(stale, float(result.array("stale_limit")))
    figures.expectation(stale, result.array("stale_centred")[1:], updates)
    for axis in "xy":
        figures.log_axis(stale, axis)
    title = "One rollout, used again and again (three arms, exact)"
    y = "KL(π_old‖π) (nats)"
    figures.describe(stale, title, "updates on it", y, ylim=(1e-4, None), ends=True)
    return figure
