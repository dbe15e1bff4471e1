"""Several updates on one rollout: how ratio and clip differ from plain policy gradient.

After the first update the samples are stale: they come from π_old, and the policy has changed.
Every rung gets the same number of samples; only the updates per rollout differ. Sixteen prompts
share one linear softmax, so pushing one answer down changes others, and only the right answer pays.
Look for:

    one update      baseline, surrogate and clip are exactly one curve, because at π_old they have
                    the same gradient
    several         policy gradient with centred rewards collapses, the bare ratio hardly gains, and
                    the clip turns more updates into more reward
    why             with centred rewards a stale batch pushes with a constant force, and the part
                    that pushes down has no limit (log π → −∞). With rewards in {0, 1} and no
                    baseline the batch only pulls up, towards the rewarded share of the samples, and
                    stops there. The sign decides: with rewards in {−1, 0} it fails as well
    GRPO            its k3 contains r = π_ref/π of the sample, which no clip bounds, so large steps
                    ruin the policy. With |log r| bounded it learns like the rung below it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.exact import B3_MEANS, B3_POLICY, b3
from bandits.flow import ascend, expected_gradient
from bandits.linear import linear_bandit
from bandits.theory import staleness as theory
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace, uses_critic
from course.exact import kl_gradient, microscope, relative_distance
from course.lab import figures
from course.lab.diverged import told
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import described, named_interval, paired_error
from course.lab.sweep import Choice, choose, edges, finished
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import K3, ExactKL, NoKL
from course.parts.kl import exact_kl
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "several updates per rollout: policy gradient collapses, the ratio holds, the clip learns, and"
    " {0, 1} rewards do not mind"
)
EXPECTED_SECONDS = 90.0


@dataclass(frozen=True)
class Settings(Checked):
    """A contextual bandit with shared parameters; only the number of updates per
    rollout changes.
    """

    # estimators (length_mean is group_std at T = 1)
    rungs: tuple[str, ...] = (
        "reinforce",
        "baseline",
        "surrogate",
        "clip",
        "group_mean",
        "group_std",
        "grpo",
    )
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16)  # updates per rollout, starting at 1
    runs: int = 40  # independent runs that are reported (as many again choose the learning rate)
    rollouts: int = 80  # rollouts of each run
    prompts: int = 16  # prompts, each with one right answer that pays 1; the others pay 0
    arms: int = 10  # answers of each prompt
    features: int = 48  # parameters, shared by all prompts (each answer has random features)
    group: int = 8  # samples per prompt and rollout
    learning_rates: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0)  # the sweep of each rung
    # added to the rewards 0 and 1, for REINFORCE without baseline
    offsets: tuple[float, ...] = (0.0, -0.25, -0.5, -1.0)
    stale_updates: int = 300  # updates on one rollout, exactly, on three arms
    stale_rate: float = 0.5  # learning rate there
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "arms", "group", "stale_updates"):
            least = 1 if name == "stale_updates" else 2
            value = getattr(self, name)
            require(value >= least, name, value, f"a whole number ≥ {least}")
        for name in ("epochs", "learning_rates"):
            values = getattr(self, name)
            require(list(values) == sorted(set(values)), name, values, "numbers in rising order")
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


def train(
    estimator: Estimator,
    settings: Settings,
    epochs: int,
    rates: Sequence[float],
    numbers: range,
    offsets: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Expected reward after training [L, R], at L learning rates and for the R run `numbers`, all
    rewards shifted by `offsets` [L] while training (default: none); and which runs diverged, bool.
    """
    sizes = settings.prompts, settings.arms, settings.features
    offset = torch.tensor([0.0] * len(rates) if offsets is None else offsets, dtype=torch.float64)
    wired: dict[str, Any] = {"reference": "start", "greedy": True}
    wired["critic"] = uses_critic(estimator)
    bandit, noise = linear_bandit(sizes, offset, numbers, settings.group, settings.seed, **wired)
    rate = torch.tensor(rates, dtype=torch.float64).unsqueeze(-1).expand(bandit.runs)
    loop: dict[str, Any] = {"log_every": settings.rollouts, "halt_diverged": True}
    learner = Learner(bandit, estimator, SGD(rate), noise, epochs=epochs, **loop)
    learner.train(settings.rollouts)
    return bandit.metrics()["expected_reward"] - offset.unsqueeze(-1), learner.diverged


@dataclass(frozen=True)
class Rung:
    """One rung's judging runs, [epochs, runs]: at the rate `fixed` that is best with one update per
    rollout, and at each number of updates' own best rate; and at every rate, [epochs, rates, runs].
    `halted` [epochs, runs] bool: diverged at `fixed`.
    """

    fixed: Choice
    own: list[Choice]
    kept: Tensor
    every: Tensor
    halted: Tensor


def sweep(settings: Settings, progress: Progress) -> dict[str, Rung]:
    """Train every rung at every rate, with every number of updates per rollout."""
    found, half = {}, settings.runs
    for name in progress(settings.rungs, "rungs"):
        estimator, rates = ladder.get(name).estimator, settings.learning_rates
        trained = [
            train(estimator, settings, epochs, rates, range(2 * half))
            for epochs in progress(settings.epochs, name)
        ]
        final, lost = (torch.stack(each) for each in zip(*trained, strict=True))
        own = [
            choose(finished(each, gone)[:, :half], rates, each[:, half:])
            for each, gone in zip(final, lost, strict=True)
        ]
        at = own[0].index
        found[name] = Rung(own[0], own, final[:, at, half:], final[:, :, half:], lost[:, at, half:])
    return found


def run(settings: Settings, progress: Progress) -> Result:
    """Exact agreement and exact staleness first, then the training runs."""
    s, judging = settings, range(settings.runs, 2 * settings.runs)
    start, path_of = torch.tensor(B3_POLICY, dtype=torch.float64).log(), {}
    exact: dict[str, Any] = {"rate": s.stale_rate, "steps": s.stale_updates, "stale": True}
    for name in progress(("reinforce", *ONE_CURVE), "one rollout"):
        one = ladder.get(name).estimator
        path_of[name] = ascend(one, theory.THREE_ARMS, start, s.group, **exact)
    found = sweep(s, progress)
    kept = {name: rung.kept for name, rung in found.items()}
    if "grpo" in found:
        # GRPO with |log r| of its k3 bounded, at the learning rate of GRPO itself
        capped = replace(ladder.grpo, kl=K3(beta=0.04, max_log_r=MAX_LOG_R))
        rate = found["grpo"].fixed.rate
        each = [train(capped, s, epochs, [rate], judging)[0][0] for epochs in s.epochs]
        kept[BOUNDED] = torch.stack(each)
    rate = found["reinforce"].fixed.rate if "reinforce" in found else s.learning_rates[-1]
    rates = [rate] * len(s.offsets)
    shifted = torch.stack(  # [epochs, offsets, runs]: REINFORCE, its rewards shifted
        [
            train(ladder.reinforce, s, epochs, rates, judging, s.offsets)[0]
            for epochs in progress(s.epochs, "signs")
        ]
    )
    centred = theory.centred_path(s.group, s.stale_rate, s.stale_updates)
    series = {
        "rungs": {
            name: {
                "rate": rung.fixed.rate,
                "rates": [one.rate for one in rung.own],
                **named_interval("fixed", rung.kept),
                **named_interval("retuned", torch.stack([_judged(one) for one in rung.own])),
            }
            for name, rung in found.items()
        },
        "signs": {
            f"{offset:g}": named_interval("final", shifted[:, place])
            for place, offset in enumerate(s.offsets)
        },
        "signs_rate": rate,
        "bounded": named_interval("final", kept[BOUNDED]) if BOUNDED in kept else {},
        "stale": {name: exact_kl(start, path) for name, path in path_of.items()},
        "stale_limit": exact_kl(start, theory.stale_limit()[0].log()),
        "stale_centred": exact_kl(start, centred),
    }
    own = {
        f"{name} with {epochs} updates": one
        for name, rung in found.items()
        for epochs, one in zip(s.epochs, rung.own, strict=True)
    }
    caption = f"{CAPTION} Bands: {described(s.runs)}. {edges(own, s.learning_rates)}".strip()
    facts = [*_agreement_facts(), *_stale_facts(s, path_of, centred)]
    facts += _training_facts(s, found, kept, shifted)
    halted = {
        f"{name} with {epochs} updates": gone
        for name, rung in found.items()
        for epochs, gone in zip(s.epochs, rung.halted, strict=True)
    }
    return told(Result(series=series, facts=facts, caption=caption), halted)


def _judged(choice: Choice) -> Tensor:
    assert choice.judged is not None
    return choice.judged


# ---------------------------------------------------------------- facts


def _agreement_facts() -> list[Fact]:
    """At π_old all rungs agree, exactly; and what GRPO's KL part is."""
    names, group = theory.ratio_rungs(), 4
    reference = torch.tensor([(0.25, 0.72, 0.03)], dtype=torch.float64).log()
    on_b3 = b3(reference=reference, value=torch.tensor([0.4], dtype=torch.float64))
    facts = []
    for where, listed, size in (
        (f"B3, G = {group}: largest relative distance", on_b3, group),
        ("two prompts, answers of 1, 2 and 4 tokens, G = 2: largest relative distance",
         theory.ragged(), 2),
    ):  # fmt: skip
        claim = f"At π_old the {len(names)} rungs with a ratio have E[ĝ] of A·log π with their own"
        claim += f" advantage and aggregation ({where})"
        worst = max(theory.distance_to_policy_gradient(name, listed, size) for name in names)
        facts.append(Fact.exact(claim, XU, worst, 0.0, number=9))
    beta, grpo = 0.04, ladder.grpo
    push, plain, direct = (
        microscope(one, on_b3, group, covariance=False).expected
        for one in (grpo, replace(grpo, kl=NoKL()), replace(grpo, kl=ExactKL(beta)))
    )
    policy, eye = torch.tensor(B3_POLICY, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    formula = beta * (policy * (reference[0].exp() / policy - 1)) @ (eye - policy)
    forward, reverse = (-beta * kl_gradient(on_b3, way) for way in ("forward", "reverse"))
    where = f"B3, G = {group}, reference (.25, .72, .03), β = .04: relative distance"
    says = "GRPO's expected gradient is E[(A + β(π_ref/π − 1))∇log π]"
    other = "and not the −β∇KL(π‖π_ref) of the objective's own equation, by more than a tenth"
    with_exact = "with the exact KL in the loss it would be −β∇KL(π‖π_ref)"
    apart = relative_distance
    return [
        *facts,
        Fact.exact(
            f"{says} ({where} of its KL part)", XU, apart(push - plain, formula), 0.0, number=9
        ),
        Fact.exact(
            f"that KL part is −β∇KL(π_ref‖π) ({where})",
            HERE,
            apart(push - plain, forward),
            0.0,
            number=9,
        ),
        Fact.above(
            f"{other} ({where})", "Xu 2025, eq. 4", apart(push - plain, reverse), 0.1, number=9
        ),
        Fact.exact(f"{with_exact} ({where})", HERE, apart(direct - plain, reverse), 0.0, number=9),
    ]


def _stale_facts(s: Settings, paths: Mapping[str, Tensor], centred: Tensor) -> list[Fact]:
    """One rollout used again and again, exactly."""
    updates, means = s.stale_updates, torch.tensor(B3_MEANS, dtype=torch.float64)
    limit, reward, before = theory.stale_limit()
    start, arms = torch.tensor(B3_POLICY, dtype=torch.float64).log(), theory.THREE_ARMS
    fixed = expected_gradient(ladder.reinforce, arms, limit.log(), s.group, old=start).norm()
    rewards = paths["reinforce"].exp() @ means
    first, last = (
        expected_gradient(
            ladder.baseline, arms, paths["baseline"][place], s.group, old=start
        ).norm()
        for place in (0, -1)
    )
    apart = (paths["baseline"] - centred).abs().max()
    stops = "Rewards in {0, 1} without baseline, samples of π_old: the expected gradient is 0 at"
    earns = "and there the expected reward is E[μ²]/E[μ], never below the old E[μ] ="
    rises = "on the way no stale update lowers it (B3: updates after which it is lower)"
    lowered = int((rewards.diff() < -1e-12).sum())  # rounding aside
    force = "Centred rewards in the score function push with one force for ever (B3: ‖E[ĝ]‖ after"
    alike = "so E updates on one rollout are one update with E times the learning rate (B3: largest"
    both = f"Dayan & Hinton 1997; {HERE}"
    # fmt: off
    exact = (
        (f"{stops} π_old·μ/J (B3; its norm there)", HERE, fixed, 0.0, 9),
        (f"{earns} {before:.2f} (B3, after {updates} stale updates)", both, rewards[-1], reward, 6),
        (rises, HERE, lowered, 0, 9),
        (f"{force} {updates} stale updates over the first)", HERE, last / first, 1.0, 9),
        (f"{alike} difference of a log π)", HERE, apart, 0.0, 9),
    )
    # fmt: on
    return [Fact.exact(*each, number=11) for each in exact]


def _training_facts(
    s: Settings, found: Mapping[str, Rung], kept: Mapping[str, Tensor], shifted: Tensor
) -> list[Fact]:
    """What the training runs did: paired differences of final rewards, directions from theory."""
    facts, most = [], s.epochs[-1]

    def differ(claim: str, one: Tensor, other: Tensor, above: bool) -> None:
        make, (mean, error) = Fact.above if above else Fact.below, paired_error(one, other)
        facts.append(make(claim, SEEN, mean, 0.0, error, number=11, runs=s.runs))

    if all(name in found for name in ONE_CURVE):
        curves = torch.stack([found[name].every[0] for name in ONE_CURVE])
        claim = "With one update per rollout policy gradient, ratio and clip are one curve (final"
        claim += " reward of every run: largest difference)"
        facts.append(Fact.exact(claim, XU, (curves - curves[0]).abs().max(), 0.0, number=11))
        plain, ratio, clipped = (kept[name][-1] for name in ONE_CURVE)
        claim = f"With {most}, policy gradient with centred rewards has collapsed: its final reward"
        differ(f"{claim} less that with one", plain, kept["baseline"][0], False)
        claim = f"With {most}, the clip has learned more than with one (difference of final reward)"
        differ(claim, clipped, kept["clip"][0], True)
        claim = f"With {most}, the bare ratio lies above policy gradient (difference)"
        differ(claim, ratio, plain, True)
        differ("and below the clip (difference)", ratio, clipped, False)
    if "reinforce" in kept and "baseline" in kept:
        claim = f"With {most}, rewards in {{0, 1}} without baseline lie above the centred ones"
        differ(f"{claim} (difference)", kept["reinforce"][-1], kept["baseline"][-1], True)
    if BOUNDED in kept:
        claim = f"With {most}, GRPO lies below itself with |log r| of its k3 bounded by"
        claim = f"{claim} {MAX_LOG_R:g}: r = π_ref/π explodes, no clip bounds it (difference)"
        differ(claim, kept["grpo"][-1], kept[BOUNDED][-1], False)
    if s.offsets[-1] == -1:
        claim = (
            f"The same REINFORCE with rewards in {{−1, 0}} loses by {most} updates what {{0, 1}}"
        )
        claim += " keeps (difference of final reward)"
        differ(claim, shifted[-1, -1], shifted[-1, 0], False)
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Reward against updates per rollout, untuned and retuned; what the sign of the rewards does;
    one rollout, exactly.
    """
    figure, (fixed, retuned, sign, stale) = figures.new_figure(2, 2, width=13.0, height=9.2)
    epochs, offsets = result.settings["epochs"], result.settings["offsets"]
    dots: dict[str, Any] = {"marker": "o", "markersize": 4}

    def draw(ax: Axes, keys: tuple[str, ...], name: str = "", **look: Any) -> None:
        mean, half = result.array(*keys), result.array(*keys[:-1], f"{keys[-1]}_half")
        figures.band(ax, epochs, mean, half, name, **look)

    for name in result.settings["rungs"]:
        draw(fixed, ("rungs", name, "fixed"), name, **dots)
        draw(retuned, ("rungs", name, "retuned"), name, **dots)
    for colour, offset in zip(figures.shades(len(offsets)), offsets, strict=True):
        label = f"rewards {offset:g} and {1 + offset:g}".replace("-", "−")
        look = {"color": colour, "linestyle": "-", "label": label, **dots}
        draw(sign, ("signs", f"{offset:g}", "final"), **look)
    if result.series["bounded"]:
        look = {**figures.style_of("grpo"), "linestyle": ":", "label": BOUNDED}
        draw(fixed, ("bounded", "final"), **look)
    low = min(ax.get_ylim()[0] for ax in (fixed, retuned, sign))
    for ax, title in (
        (fixed, "Learning rate tuned for one update per rollout"),
        (retuned, "Learning rate tuned again for each"),
        (sign, "REINFORCE without baseline: the sign decides"),
    ):
        figures.log_axis(ax, "x", epochs, base=2)
        ax.set_ylim(min(low, 0), 1)
        figures.describe(ax, title, "updates per rollout", "final expected reward")
        figures.label_ends(ax)
    _plot_stale(stale, result)
    return figure


def _plot_stale(ax: Axes, result: Result) -> None:
    """How far one rollout carries the policy."""
    updates = np.arange(1, result.settings["stale_updates"] + 1)
    for name in ("reinforce", *ONE_CURVE):
        figures.band(ax, updates, result.array("stale", name)[1:], name=name)
    figures.expectation(ax, float(result.array("stale_limit")))
    figures.expectation(ax, result.array("stale_centred")[1:], updates)
    figures.log_axis(ax, "x")
    figures.log_axis(ax, "y")
    ax.set_ylim(1e-4, None)
    title = "One rollout, used again and again (three arms, exact)"
    figures.describe(ax, title, "updates on it", "KL(π_old‖π) (nats)")
    figures.label_ends(ax)
