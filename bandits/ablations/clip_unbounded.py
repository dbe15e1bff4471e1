"""The ratio that clipping does not bound: after many small steps on one rollout, ρ of the rare good
arm is far above 1 + ε.

Two arms; the first pays 1 and was sampled with a small probability π₁, the second pays 0. The
rollout holds both arms in exact proportion, as if it had infinitely many samples, and the policy
takes small gradient steps on it until nothing moves. Clipping takes a sample out of the gradient
when its own ratio has gone far enough in the direction its advantage pushes it. With centred
advantages both arms push: the first falls silent at ρ₁ = 1 + ε, the second only at ρ₂ = 1 − ε, and
the two probabilities sum to 1. So the second arm keeps pulling the first one's ratio up, to (1 −
(1−ε)(1−π₁))/π₁: for π₁ = .1 and ε = .2 to 2.8, and higher the rarer the arm was. With rewards as
they are (1 and 0, no baseline) the second arm has no advantage, pushes nothing, and ρ₁ stops at
1.2. The clip is a flat region of each sample's objective, not a bound on π.

What to look for: in the first panel, ρ₁ passing 1.2 without slowing to a halt; in the last, by how
much as π₁ → 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.policies import Softmax
from bandits.population import Population
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import Clip, Constant, NoBaseline
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "clipping does not bound the ratio: many small steps on one rollout take ρ to 2.8, not 1.2"
EXPECTED_SECONDS = 9.0
WANG = "Wang et al. 2019 (1903.07940); limit derived"
UNCENTRED = "clip, no baseline"


@dataclass(frozen=True)
class Settings(Checked):
    """Two arms that pay 1 and 0, and the size of the steps."""

    # which estimators, beside the clip without a baseline
    rungs: tuple[str, ...] = ("surrogate", "clip", "grpo")
    share: float = 0.1  # π₁, the good arm's probability in the rollout, for the first panels
    # the same, for the last panel
    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    group: int = 200  # arms in the rollout, in exact proportion: G·π₁ must be whole
    length: float = 0.001  # length of each small step, in nats of the logits
    steps: int = 4000  # small steps on the same rollout
    seed: int = 0  # unused: nothing is random here

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rungs) > 0, "rungs", self.rungs, "at least one name")
        require(self.group >= 2, "group", self.group, "a whole number ≥ 2")
        for share in (self.share, *self.shares):
            whole = abs(share * self.group - round(share * self.group)) < 1e-9
            require(
                0 < share < 1 and whole,
                "share",
                share,
                f"a multiple of 1/{self.group} above 0 and below 1",
            )
        require(
            0 < self.length <= 0.1, "length", self.length, "a number of nats above 0, at most 0.1"
        )
        require(self.steps >= 100, "steps", self.steps, "a whole number ≥ 100")

    @property
    def all_shares(self) -> tuple[float, ...]:
        """π₁ of every run, in order; `share` is one of them."""
        return tuple(sorted({self.share, *self.shares}))


SETTINGS = Settings()
SHORT = 1e-9  # a gradient length below all that occur, except 0
EVERY = 10  # steps between two points of a curve


def clip_bounds(estimator: Estimator) -> tuple[float, float] | None:
    """(1 − ε_low, 1 + ε_high), or None where nothing is clipped."""
    clip = estimator.surrogate
    return (1 - clip.epsilon_low, 1 + clip.high) if isinstance(clip, Clip) else None


def limit(share: Tensor, low: float, high: float) -> Tensor:
    """Where ρ₁ stops with centred advantages: both arms silent, and π₁ ≤ 1 (`eq:clip-limit`).

    [...] → [...].

    Arm 1 is silent above 1 + ε_high, arm 2 below 1 − ε_low, that is above ρ₁ = (1 −
    (1−ε_low)(1−π₁))/π₁.
    """
    return torch.maximum((1 - low * (1 - share)) / share, torch.full_like(share, high)).minimum(
        1 / share
    )


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Path:
    """What an estimator's small steps did: ρ₁ and ρ₂ [logs, runs] after `steps` [logs]; one row is
    a π₁.

    `before` and `after` [runs] are ρ₁ on both sides of the last step that moved it upwards,
    `clipped` [runs] the share of samples whose objective is flat at the end.
    """

    steps: Tensor
    good: Tensor
    bad: Tensor
    before: Tensor
    after: Tensor
    clipped: Tensor


def train(settings: Settings, estimator: Estimator) -> Path:
    """Small steps of equal length on the same rollout, for all π₁ at once."""
    share = torch.tensor(settings.all_shares, dtype=torch.float64)
    good = (share * settings.group).round().long()
    counts = torch.stack([good, settings.group - good], -1).unsqueeze(-2)
    policy = Softmax.of(counts.double() / settings.group)
    arms = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    bandit = Population(arms, policy, counts, reference="start")
    noise = Noise(bandit.runs, settings.seed, dtype=torch.float64)
    # clipping the gradient's length at next to nothing gives every step the same length
    learner = Learner(
        bandit,
        estimator,
        SGD(settings.length / SHORT),
        noise,
        max_grad_norm=SHORT,
        log_every=settings.steps,
    )
    old = torch.stack([share, 1 - share], -1)

    def ratios() -> Tensor:
        with torch.no_grad():
            return policy.log_probs()[..., 0, :].exp() / old

    seen, now, below, above = [ratios()], ratios(), torch.ones_like(share), torch.ones_like(share)
    for _ in range(settings.steps - 1):
        last = now
        learner.step()
        now = ratios()
        rose = now[:, 0] > last[:, 0]
        below, above = torch.where(rose, last[:, 0], below), torch.where(rose, now[:, 0], above)
        if learner.steps % EVERY == 0:
            seen.append(now)
    learner.step(log=True)
    ratio = torch.stack(seen)
    steps = torch.arange(len(seen)) * EVERY
    return Path(
        steps, ratio[..., 0], ratio[..., 1], below, above, learner.history["clip_fraction"][-1]
    )


def estimator_of(name: str) -> Estimator:
    """The rung of that name, or the clip without a baseline."""
    return (
        replace(ladder.clip, baseline=NoBaseline())
        if name == UNCENTRED
        else ladder.get(name).estimator
    )


def run(settings: Settings, progress: Progress) -> Result:
    """Every estimator on every π₁."""
    found = {
        name: train(settings, estimator_of(name))
        for name in progress([*settings.rungs, UNCENTRED], "estimators")
    }
    here = settings.all_shares.index(settings.share)
    series = {
        "share": settings.all_shares,
        "steps": next(iter(found.values())).steps,
        "good": {name: path.good[:, here] for name, path in found.items()},
        "bad": {name: path.bad[:, here] for name, path in found.items()},
        "end": {name: path.after for name, path in found.items()},
    }
    return Result(series=series, facts=_facts(settings, found), caption=CAPTION)


# ---------------------------------------------------------------- facts


def push(settings: Settings, ratio: float) -> float:
    """The clip's expected gradient of arm 1's logit at ρ₁ = `ratio`, under the microscope, with the
    advantage r − π₁ (`eq:clip-push`).
    """
    share = settings.share
    now, old = (
        torch.tensor([[p, 1 - p]], dtype=torch.float64).log() for p in (share * ratio, share)
    )
    arms = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    seen = microscope(
        replace(ladder.clip, baseline=Constant(share)),
        outcomes(arms, now, old=old),
        1,
        covariance=False,
    )
    return float(seen.expected[0])


def _facts(settings: Settings, found: dict[str, Path]) -> list[Fact]:
    share, here = (
        torch.tensor(settings.all_shares, dtype=torch.float64),
        settings.all_shares.index(settings.share),
    )
    facts = []

    def exact(claim: str, measured: Any, expected: Any, digits: int = 9) -> None:
        facts.append(
            Fact.exact(
                f"{claim} (π₁ = {settings.share:g}, rewards 1 and 0)",
                WANG,
                measured,
                expected,
                digits,
                number=10,
            )
        )

    for name, path in found.items():
        bounds = clip_bounds(estimator_of(name))
        if bounds is None:
            continue
        low, high = bounds
        centred = not isinstance(estimator_of(name).baseline, NoBaseline)
        stop = (
            limit(share, low, high) if centred else torch.full_like(share, high).minimum(1 / share)
        )
        formula = f"(1 − {low:g}(1−π₁))/π₁" if centred else f"{high:g}"
        within = bool(((path.before <= stop + 1e-12) & (stop <= path.after + 1e-12)).all())
        exact(
            f"{name}: many small steps on one rollout take ρ₁ to {formula}, and there it stops",
            path.after[here],
            stop[here],
            2,
        )
        claim = (
            f"{name}: that limit lies within the last small step, for every π₁ from {share[0]:g} to"
            f" {share[-1]:g}"
        )
        facts.append(Fact.exact(claim, WANG, within, True, number=10))
    if "clip" in found:
        path, stop = found["clip"], limit(share, 0.8, 1.2)
        end, rarest = float(stop[here]), float(stop[0])
        exact(
            "clip: when everything has stopped, ρ₂ is 1 − ε, and ρ₁ is what that leaves",
            path.bad[-1, here],
            0.8,
            2,
        )
        exact(
            f"clip: every sample is clipped then, and still ρ₁ is {end:g}: share of samples"
            " clipped",
            path.clipped[here],
            1.0,
        )
        claim = (
            f"clip: the rarer the good arm was, the further its ratio goes: ρ₁ at π₁ = {share[0]:g}"
        )
        facts.append(Fact.exact(claim, WANG, path.after[0], rarest, 2, number=10))
    middle = (1.2 + float(limit(share[here], 0.8, 1.2))) / 2
    now = middle * settings.share
    pushes = settings.share * now * (1 - now)
    exact(
        f"clip at ρ₁ = {middle:g}: only the bad arm pushes, with π₁·π(1)·π(2): expected gradient of"
        " arm 1's logit",
        push(settings, middle),
        pushes,
    )
    over = float(limit(share[here], 0.8, 1.2)) + 0.01
    exact(
        f"clip at ρ₁ = {over:g}: nothing pushes any more: expected gradient of arm 1's logit",
        push(settings, over),
        0.0,
    )
    return facts


# ---------------------------------------------------------------- drawing

CAPTION = (
    "Two arms that pay 1 and 0, small steps of equal length on one rollout in exact proportion."
    " Dashed: where both arms fall silent, (1 − (1−ε)(1−π₁))/π₁, and the 1 + ε that one might"
    " expect."
)


def plot(result: Result) -> Figure:
    """ρ of both arms against the number of small steps; where ρ of the good arm ends, against how
    rare that arm was.
    """
    figure, (good, bad, ends) = figures.new_figure(1, 3, width=15.0, height=4.7)
    for ax, which in ((good, "good"), (bad, "bad")):
        _paths(ax, result, which)
    _ends(ends, result)
    return figure


def _style(name: str) -> dict[str, Any]:
    return {
        "linewidth": 2.2,
        **(
            figures.style_of(name)
            if name != UNCENTRED
            else {"color": "#c96f00", "linestyle": figures.DASHDOT}
        ),
    }


def _title(name: str) -> str:
    return {"surrogate": "ρA, no clip", "clip": "clip", UNCENTRED: UNCENTRED}.get(
        name
    ) or ladder.get(name).title


def _paths(ax: Axes, result: Result, which: str) -> None:
    share, steps = result.settings["share"], result.array("steps")
    stop = float(limit(torch.tensor(share, dtype=torch.float64), 0.8, 1.2))
    reached = [steps[result.array("good", name) >= 0.99 * stop] for name in result.series["good"]]
    shown = steps <= 2 * min((at[0] for at in reached if len(at)), default=steps[-1])
    lines = []
    for name in result.series[which]:
        lines += ax.plot(
            steps[shown], result.array(which, name)[shown], label=_title(name), **_style(name)
        )
    levels = [(0.8, "1 − ε = 0.8")]
    if which == "good":
        ax.set_ylim(0.8, 1.6 * stop)
        levels = [(1.2, "1 + ε = 1.2"), (stop, f"(1 − 0.8·{1 - share:g})/{share:g} = {stop:.3g}")]
        figures.describe(
            ax,
            "The good arm runs past 1 + ε …",
            "small steps on one rollout",
            f"ρ₁ = π(arm 1)/{share:g}",
        )
    else:
        ax.set_ylim(0.55, 1.03)
        figures.describe(
            ax,
            "… until the bad arm is silent too",
            "small steps on one rollout",
            f"ρ₂ = π(arm 2)/{1 - share:g}",
        )
    for level, text in levels:
        figures.expectation(ax, level)
        place = (steps[shown][-1], level)
        below = which == "good" and level == stop  # above it, the curve without a clip passes
        ax.annotate(
            text,
            place,
            (-4, -13 if below else 4),
            textcoords="offset points",
            ha="right",
            fontsize=10,
            color=figures.INK,
        )
    figures.label_ends(ax, lines)


def _ends(ax: Axes, result: Result) -> None:
    share = result.array("share")
    names = [name for name in result.series["end"] if clip_bounds(estimator_of(name)) is not None]
    lines = []
    for name in names:
        style = {
            **_style(name),
            "linestyle": "none",
            "marker": "s" if name == UNCENTRED else "o",
            "markersize": 8 if name == "clip" else 5,
        }
        lines += ax.plot(share, result.array("end", name), label=_title(name), **style)
    grid = torch.logspace(-2.4, -0.05, 200, dtype=torch.float64)
    figures.expectation(ax, limit(grid, 0.8, 1.2).numpy(), grid.numpy())
    figures.expectation(ax, torch.full_like(grid, 1.2).numpy(), grid.numpy())
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_yticks([1.2, 2, 5, 10, 20, 50], ["1.2", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    figures.describe(
        ax,
        "The rarer the arm, the further it goes",
        "π₁, probability of the good arm in the rollout",
        "where ρ₁ ends",
    )
    ax.legend(handles=lines, frameon=False, fontsize=10)
