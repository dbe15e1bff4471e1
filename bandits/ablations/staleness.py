"""Several updates on one rollout: where the rungs with a ratio and a clip part from plain policy
gradient.

After the first update the samples are stale: they come from π_old, and the policy has moved. Every
rung gets the same number of samples; only the updates per rollout differ. Sixteen prompts share one
linear softmax, so that pushing one answer down moves others, and only the right answer pays. Look
for:

    one update      baseline, surrogate and clip are one curve, exactly: at π_old they have one
    gradient
    several         policy gradient with centred rewards collapses, the bare ratio hardly gains, the
                    clip turns updates into reward
    why             centred, a stale batch pushes with a force that never fades, and part of it
                    pushes down, which has no
                    end (log π → −∞); with rewards in {0, 1} and no baseline it only pulls up,
                    towards the rewarded share of
                    what was sampled, and there it stops. It is the sign that matters: with rewards
                    in {−1, 0} it fails as well
    GRPO            its k3 contains r = π_ref/π of the sample, which no clip bounds: with large
                    steps it throws the policy away.
                    With |log r| bounded it learns like the rung below it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from bandits.flow import ascend, expected_gradient
from bandits.linear import linear_bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace, uses_critic
from course.exact import Outcomes, group_mean_factor, kl_gradient, microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import K3, ExactKL, NoKL, ScoreFunction
from course.parts.kl import exact_kl
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "several updates per rollout: policy gradient collapses, the ratio holds, the clip learns, and"
    " {0, 1} rewards do not mind"
)
EXPECTED_SECONDS = 48.0


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
    learning_rates: tuple[float, ...] = (4.0, 16.0, 64.0)  # the sweep of each rung
    # added to the rewards 0 and 1, for REINFORCE without baseline
    offsets: tuple[float, ...] = (0.0, -0.25, -0.5, -1.0)
    stale_updates: int = 300  # updates on one rollout, exactly, on three arms
    stale_rate: float = 0.5  # learning rate there
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("runs", 2),
            ("rollouts", 1),
            ("prompts", 1),
            ("arms", 2),
            ("features", 1),
            ("group", 2),
            ("stale_updates", 1),
        ):
            require(
                getattr(self, name) >= least, name, getattr(self, name), f"a whole number ≥ {least}"
            )
        require(
            len(self.epochs) > 1 and self.epochs[0] == 1,
            "epochs",
            self.epochs,
            "1 and then larger numbers of updates",
        )
        require(
            list(self.epochs) == sorted(set(self.epochs)),
            "epochs",
            self.epochs,
            "numbers in rising order",
        )
        require(
            len(self.learning_rates) > 0 and min(self.learning_rates) > 0,
            "learning_rates",
            self.learning_rates,
            "numbers > 0",
        )
        require(
            len(self.offsets) > 0 and self.offsets[0] == 0,
            "offsets",
            self.offsets,
            "0 and then others",
        )
        require(self.stale_rate > 0, "stale_rate", self.stale_rate, "a number > 0")


SETTINGS = Settings()
SEEN = "seen by users of language models; here on a bandit"
XU = "Xu 2025, eq. 6"
HERE = "derived here, checked by enumeration"
MAX_LOG_R, BOUNDED = 2.0, "grpo, |log r| ≤ 2"
ONE_CURVE = ("baseline", "surrogate", "clip")

# ---------------------------------------------------------------- at π_old all rungs agree (exact)


def ragged() -> Outcomes:
    """Two prompts with answers of 1, 2 and 4 tokens, on policy, with a reference."""
    environment = Bernoulli(
        torch.tensor([B3_MEANS, (0.6, 0.1, 0.3)], dtype=torch.float64),
        lengths=torch.tensor([1, 2, 4]),
    )
    policy = torch.tensor([B3_POLICY, (0.2, 0.2, 0.6)], dtype=torch.float64).log()
    reference = torch.tensor([(0.25, 0.72, 0.03), (0.5, 0.3, 0.2)], dtype=torch.float64).log()
    return outcomes(
        environment,
        policy,
        reference=reference,
        value=torch.tensor([0.4, 0.3], dtype=torch.float64),
    )


def ratio_rungs() -> list[str]:
    """The registered rungs whose surrogate uses ρ."""
    own = ("rung", "descendant", "branch")
    return [
        name
        for name, rung in ladder.RUNGS.items()
        if rung.kind in own and not isinstance(rung.estimator.surrogate, ScoreFunction)
    ]


def distance_to_policy_gradient(name: str, listed: Outcomes, group: int) -> float:
    """‖E[ĝ] − E[ĝ of A·log π]‖ / ‖the latter‖ for the rung and the same rung with the score
    function as its surrogate.

    0 on policy: `eq:surrogate-gradient-at-old`.
    """
    estimator = ladder.get(name).estimator
    twin = replace(estimator, surrogate=ScoreFunction())
    found, plain = (
        microscope(one, listed, group, covariance=False).expected for one in (estimator, twin)
    )
    return float((found - plain).norm() / plain.norm())


def _agreement_facts() -> list[Fact]:
    names, reference = ratio_rungs(), torch.tensor([(0.25, 0.72, 0.03)], dtype=torch.float64).log()
    on_b3 = b3(reference=reference, value=torch.tensor([0.4], dtype=torch.float64))
    group, lengths = 4, ragged()
    facts = [
        Fact.exact(
            f"At π_old the {len(names)} rungs with a ratio have E[ĝ] of A·log π with their own"
            f" advantage and aggregation ({where})",
            XU,
            max(distance_to_policy_gradient(name, listed, size) for name in names),
            0.0,
            number=9,
        )
        for where, listed, size in (
            (f"B3, G = {group}: largest relative distance", on_b3, group),
            (
                "two prompts, answers of 1, 2 and 4 tokens, G = 2: largest relative distance",
                lengths,
                2,
            ),
        )
    ]
    grpo, beta = ladder.grpo, 0.04
    without, direct = replace(grpo, kl=NoKL()), replace(grpo, kl=ExactKL(beta))
    push, plain, eq4 = (
        microscope(one, on_b3, group, covariance=False).expected for one in (grpo, without, direct)
    )
    anchor = push - plain
    log_r = (reference - torch.tensor([B3_POLICY], dtype=torch.float64).log())[0]
    policy = torch.tensor(B3_POLICY, dtype=torch.float64)
    formula = beta * ((policy * (log_r.exp() - 1)) @ (torch.eye(3, dtype=torch.float64) - policy))
    forward, reverse = kl_gradient(on_b3, "forward"), kl_gradient(on_b3, "reverse")

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm())

    where = "B3, G = 4, reference (.25, .72, .03), β = .04: relative distance"
    facts += [
        Fact.exact(
            f"GRPO's expected gradient is E[(A + β(π_ref/π − 1))∇log π] ({where} of its KL part)",
            XU,
            apart(anchor, formula),
            0.0,
            number=9,
        ),
        Fact.exact(
            f"that KL part is −β∇KL(π_ref‖π) ({where})",
            HERE,
            apart(anchor, -beta * forward),
            0.0,
            number=9,
        ),
        Fact.above(
            f"and not the −β∇KL(π‖π_ref) of the objective's own equation ({where})",
            "Xu 2025, eq. 4",
            apart(anchor, -beta * reverse),
            0.0,
            number=9,
        ),
        Fact.exact(
            f"with the exact KL in the loss it would be −β∇KL(π‖π_ref) ({where})",
            HERE,
            apart(eq4 - plain, -beta * reverse),
            0.0,
            number=9,
        ),
    ]
    return facts


# ---------------------------------------------------------------- one stale rollout (exact)

THREE_ARMS = Bernoulli(torch.tensor([B3_MEANS], dtype=torch.float64))


def stale_paths(settings: Settings, progress: Progress) -> dict[str, Tensor]:
    """Log-probabilities [updates + 1, 3] while the expected gradient of samples from B3's policy
    drives it on and on.
    """
    start = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    options: dict[str, Any] = {"rate": settings.stale_rate, "steps": settings.stale_updates}
    return {
        name: ascend(
            ladder.get(name).estimator, THREE_ARMS, start, settings.group, stale=True, **options
        )
        for name in progress(("reinforce", *ONE_CURVE), "one rollout")
    }


def stale_limit() -> tuple[Tensor, float, float]:
    """Where rewards in {0, 1} without baseline end (`eq:stale-limit`): π_old·μ/J [3]; its expected
    reward E[μ²]/J; and J before.
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    before = policy @ means
    return policy * means / before, float(policy @ means**2 / before), float(before)


def centred_path(settings: Settings) -> Tensor:
    """[updates + 1, 3] closed form for the centred score function: logits grow by the constant
    (G−1)/G·π_old(μ − J).
    """
    policy, means = (torch.tensor(values, dtype=torch.float64) for values in (B3_POLICY, B3_MEANS))
    push = group_mean_factor(settings.group) * policy * (means - policy @ means)
    updates = torch.arange(settings.stale_updates + 1, dtype=torch.float64).unsqueeze(-1)
    return torch.log_softmax(policy.log() + settings.stale_rate * updates * push, -1)


def _stale_facts(settings: Settings, paths: Mapping[str, Tensor]) -> list[Fact]:
    group, updates = settings.group, settings.stale_updates
    limit, reward, before = stale_limit()
    start = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    fixed = expected_gradient(ladder.reinforce, THREE_ARMS, limit.log(), group, old=start)
    rising = float(
        (paths["reinforce"].exp() @ torch.tensor(B3_MEANS, dtype=torch.float64)).diff().min()
    )
    first, last = (
        expected_gradient(ladder.baseline, THREE_ARMS, paths["baseline"][place], group, old=start)
        for place in (0, -1)
    )
    closed = centred_path(settings)
    return [
        Fact.exact(
            "Rewards in {0, 1} without baseline, samples of π_old: the expected gradient is 0 at"
            " π_old·μ/J (B3; its norm there)",
            HERE,
            fixed.norm(),
            0.0,
            number=11,
        ),
        Fact.exact(
            f"and there the expected reward is E[μ²]/E[μ], never below the old E[μ] = {before:.2f}"
            f" (B3, after {updates} stale updates)",
            "Dayan & Hinton 1997; " + HERE,
            paths["reinforce"][-1].exp() @ torch.tensor(B3_MEANS, dtype=torch.float64),
            reward,
            6,
            number=11,
        ),
        Fact.above(
            "on the way no stale update lowers it (B3: least change of the expected reward in one"
            " update, above −1e-12)",
            HERE,
            rising,
            -1e-12,
            number=11,
        ),
        Fact.exact(
            "Centred rewards in the score function push with one force for ever (B3: ‖E[ĝ]‖ after"
            f" {updates} stale updates over the first)",
            HERE,
            last.norm() / first.norm(),
            1.0,
            number=11,
        ),
        Fact.exact(
            "so E updates on one rollout are one update with E times the learning rate (B3: largest"
            " difference of a log π)",
            HERE,
            (paths["baseline"] - closed).abs().max(),
            0.0,
            number=11,
        ),
    ]


# ---------------------------------------------------------------- training


def train(
    estimator: Estimator,
    settings: Settings,
    epochs: int,
    rates: Tensor,
    offset: Tensor,
    numbers: range,
) -> Tensor:
    """Expected reward less `offset` after training [S, R]: `rates` and `offset` are [S] settings,
    `numbers` the R runs.
    """
    sizes = settings.prompts, settings.arms, settings.features
    options: dict[str, Any] = {
        "reference": "start",
        "critic": uses_critic(estimator),
        "greedy": True,
    }
    bandit, noise = linear_bandit(sizes, offset, numbers, settings.group, settings.seed, **options)
    optimizer = SGD(rates.unsqueeze(-1).expand(bandit.runs))
    learner = Learner(
        bandit,
        estimator,
        optimizer,
        noise,
        epochs=epochs,
        log_every=settings.rollouts,
        halt_diverged=True,
    )
    learner.train(settings.rollouts)
    return bandit.metrics()["expected_reward"] - offset.unsqueeze(-1)


def sweep(settings: Settings, progress: Progress) -> dict[str, Tensor]:
    """name → [epochs, rates, 2·runs] final reward."""
    rates = torch.tensor(settings.learning_rates, dtype=torch.float64)
    found = {}
    for name in progress(settings.rungs, "rungs"):
        estimator, none = ladder.get(name).estimator, torch.zeros_like(rates)
        numbers = range(2 * settings.runs)
        found[name] = torch.stack(
            [
                train(estimator, settings, epochs, rates, none, numbers)
                for epochs in progress(settings.epochs, name)
            ]
        )
    return found


def signs(settings: Settings, rate: float, progress: Progress) -> Tensor:
    """[epochs, offsets, runs] final reward of REINFORCE, no baseline, with rewards shifted by each
    offset.
    """
    offset = torch.tensor(settings.offsets, dtype=torch.float64)
    rates, numbers = torch.full_like(offset, rate), range(settings.runs, 2 * settings.runs)
    every = [
        train(ladder.reinforce, settings, epochs, rates, offset, numbers)
        for epochs in progress(settings.epochs, "signs")
    ]
    return torch.stack(every)


def capped(settings: Settings, rate: float, progress: Progress) -> Tensor:
    """[epochs, runs] final reward of GRPO with |log r| of its k3 bounded, at the learning rate of
    GRPO itself.
    """
    estimator, one = (
        replace(ladder.grpo, kl=K3(beta=0.04, max_log_r=MAX_LOG_R)),
        torch.tensor([rate], dtype=torch.float64),
    )
    numbers, none = range(settings.runs, 2 * settings.runs), torch.zeros(1, dtype=torch.float64)
    every = [
        train(estimator, settings, epochs, one, none, numbers)
        for epochs in progress(settings.epochs, "k3 bounded")
    ]
    return torch.stack(every)[:, 0]


def run(settings: Settings, progress: Progress) -> Result:
    """Exact agreement and exact staleness first, then the training runs."""
    s = settings
    paths = stale_paths(s, progress)
    found = sweep(s, progress)
    tune, judge = slice(None, s.runs), slice(s.runs, None)
    rungs: dict[str, dict[str, object]] = {}
    kept: dict[
        str, Tensor
    ] = {}  # [epochs, runs] at the rate that is best with one update per rollout
    for name, final in found.items():
        means = final[..., tune].mean(-1)  # [epochs, rates]
        one, each = int(means[0].argmax()), means.argmax(-1)
        kept[name] = final[:, one, judge]
        retuned = final[torch.arange(len(each)), each][:, judge]
        rungs[name] = {
            "rate": s.learning_rates[one],
            "rates": [s.learning_rates[place] for place in each.tolist()],
            **_interval("fixed", kept[name]),
            **_interval("retuned", retuned),
        }
    if "grpo" in rungs:
        kept[BOUNDED] = capped(s, float(str(rungs["grpo"]["rate"])), progress)
    rate = (
        s.learning_rates[-1] if "reinforce" not in rungs else float(str(rungs["reinforce"]["rate"]))
    )
    shifted = signs(s, rate, progress)
    start, limit = torch.tensor(B3_POLICY, dtype=torch.float64).log(), stale_limit()[0].log()
    series = {
        "rungs": rungs,
        "signs": {
            f"{offset:g}": _interval("final", shifted[:, place])
            for place, offset in enumerate(s.offsets)
        },
        "signs_rate": rate,
        "bounded": _interval("final", kept[BOUNDED]) if BOUNDED in kept else {},
        "stale": {name: exact_kl(start, path) for name, path in paths.items()},
        "stale_limit": exact_kl(start, limit),
        "stale_centred": exact_kl(start, centred_path(s)),
    }
    facts = [
        *_agreement_facts(),
        *_stale_facts(s, paths),
        *_training_facts(s, found, kept, shifted),
    ]
    return Result(series=series, facts=facts, caption=CAPTION)


def _interval(name: str, values: Tensor) -> dict[str, Tensor]:
    """Mean over runs (the last axis) and half of its 95 % interval."""
    return {name: values.mean(-1), f"{name}_half": 1.96 * values.std(-1) / values.shape[-1] ** 0.5}


def _training_facts(
    s: Settings, found: Mapping[str, Tensor], kept: Mapping[str, Tensor], shifted: Tensor
) -> list[Fact]:
    facts: list[Fact] = []
    most = s.epochs[-1]

    def differ(claim: str, one: Tensor, other: Tensor, above: bool, source: str = SEEN) -> None:
        make = Fact.above if above else Fact.below
        mean, error = mean_error(one - other)
        facts.append(make(claim, source, mean, 0.0, error, number=11))

    if all(name in found for name in ONE_CURVE):
        curves = torch.stack([found[name][0] for name in ONE_CURVE])
        claim = (
            "With one update per rollout policy gradient, ratio and clip are one curve (final"
            " reward of every run: largest difference)"
        )
        facts.append(Fact.exact(claim, XU, (curves - curves[0]).abs().max(), 0.0, number=11))
        plain, ratio, clipped = (kept[name][-1] for name in ONE_CURVE)
        differ(
            f"With {most}, policy gradient with centred rewards has collapsed: its final reward"
            " less that with one",
            plain,
            kept["baseline"][0],
            False,
        )
        differ(
            f"With {most}, the clip has learned more than with one (difference of final reward)",
            clipped,
            kept["clip"][0],
            True,
        )
        differ(
            f"With {most}, the bare ratio lies above policy gradient (difference)",
            ratio,
            plain,
            True,
        )
        differ("and below the clip (difference)", ratio, clipped, False)
    if "reinforce" in kept and "baseline" in kept:
        claim = (
            f"With {most}, rewards in {{0, 1}} without baseline lie above the centred ones"
            " (difference)"
        )
        differ(claim, kept["reinforce"][-1], kept["baseline"][-1], True)
    if BOUNDED in kept:
        claim = (
            f"With {most}, GRPO lies below itself with |log r| of its k3 bounded by {MAX_LOG_R:g}:"
            " r = π_ref/π explodes, no clip bounds it"
        )
        differ(f"{claim} (difference)", kept["grpo"][-1], kept[BOUNDED][-1], False)
    if s.offsets[-1] == -1:
        differ(
            f"The same REINFORCE with rewards in {{−1, 0}} loses by {most} updates what {{0, 1}}"
            " keeps (difference of final reward)",
            shifted[-1, -1],
            shifted[-1, 0],
            False,
        )
    return facts


# ---------------------------------------------------------------- the figure

CAPTION = (
    "Equal samples everywhere; bands are 95 % intervals over runs. Left: at the learning rate that"
    " is best with one update per rollout, chosen on other runs. The last panel is exact; dashed:"
    " closed forms."
)


def plot(result: Result) -> Figure:
    """Reward against updates per rollout, untuned and retuned; what the sign of the rewards does;
    one rollout, exactly.
    """
    figure, (fixed, retuned, sign, stale) = figures.new_figure(2, 2, width=13.0, height=9.2)
    epochs = np.array(result.settings["epochs"], dtype=float)
    for name in result.settings["rungs"]:
        for ax, what in ((fixed, "fixed"), (retuned, "retuned")):
            mean, half = (
                result.array("rungs", name, what),
                result.array("rungs", name, f"{what}_half"),
            )
            figures.band(ax, epochs, mean, half, name, marker="o", markersize=4)
    for colour, offset in zip(
        figures.shades(len(result.settings["offsets"])), result.settings["offsets"], strict=True
    ):
        key = f"{offset:g}"
        label = f"rewards {offset:g} and {1 + offset:g}".replace("-", "−")
        mean, half = result.array("signs", key, "final"), result.array("signs", key, "final_half")
        figures.band(
            sign,
            epochs,
            mean,
            half,
            color=colour,
            linestyle="-",
            label=label,
            marker="o",
            markersize=4,
        )
    if result.series["bounded"]:
        style = {**figures.style_of("grpo"), "linestyle": ":"}
        mean, half = result.array("bounded", "final"), result.array("bounded", "final_half")
        figures.band(fixed, epochs, mean, half, label=BOUNDED, **style)
    low = min(ax.get_ylim()[0] for ax in (fixed, retuned, sign))
    for ax, title in (
        (fixed, "Learning rate tuned for one update per rollout"),
        (retuned, "Learning rate tuned again for each"),
        (sign, "REINFORCE without baseline: the sign decides"),
    ):
        ax.set_xscale("log", base=2)
        ax.set_xticks(epochs, [f"{int(count)}" for count in epochs])
        ax.set_ylim(min(low, 0), 1)
        figures.describe(ax, title, "updates per rollout", "final expected reward")
        figures.label_ends(ax)
    _plot_stale(stale, result)
    return figure


def _plot_stale(ax: Axes, result: Result) -> None:
    """How far one rollout carries the policy."""
    for name in ("reinforce", *ONE_CURVE):
        curve = result.array("stale", name)
        figures.band(ax, np.arange(1, len(curve)), curve[1:], name=name)
    figures.expectation(ax, float(result.array("stale_limit")))
    figures.expectation(
        ax, result.array("stale_centred")[1:], np.arange(1, result.settings["stale_updates"] + 1)
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-4, None)
    figures.describe(
        ax,
        "One rollout, used again and again (three arms, exact)",
        "updates on it",
        "KL(π_old‖π) (nats)",
    )
    figures.label_ends(ax)
