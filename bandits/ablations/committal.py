"""Two baselines with the same variance and different fates: a baseline does more than reduce
variance.

Natural policy gradient on three arms that pay 1, .7 and 0, one pull per update, starting at a
policy that prefers the worst arm. The baseline b* has the least variance; b* − ½ and b* + ½ have
the same variance as each other, exactly. With the lower one a pull of the middle arm is good news
(.7 > b), raises that arm, and is soon the only thing that happens: the policy commits. With the
higher one every pull is bad news while the best arm is the rarest: what was pulled comes down, and
the policy keeps looking. The value of the policy as the baseline, V = Σ π r, is the noisiest of
them at the start, and almost never gets stuck.

What to look for: on the simplex, where paths end; in the last panel, how the share of runs that
miss the best arm grows with the step size. Not even b* + ½ is safe, because b* follows the rarest
arm: where the worst arm has become the rarest, b* = 0, so b* + ½ < .7, and the middle arm is good
news again. A baseline fixed above every reward never commits; with large steps it never settles
either.

1/π(a) in the natural gradient makes single steps of hundreds of nats: all of it is computed from
log-probabilities, and b* as a mean of rewards under softmax(−log π), so that nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as change
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.natural import SoftmaxNaturalGradient, natural_direction
from bandits.policies import Softmax, log_softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import replace
from course.exact import microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import share_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import Constant, Value
from course.rollout import Rollout
from course.train.noise import Noise
from course.train.optim import Optimizer
from course.train.trust_region import NaturalGradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "baselines of equal variance, one too low and one too high: one gets stuck at a wrong arm, the"
    " other does not"
)
EXPECTED_SECONDS = 20.0
CHUNG = "Chung et al. 2021 (2008.13773)"
MEI = "Mei et al. 2022 (2301.06276)"
HERE = "measured here; not published"


@dataclass(frozen=True)
class Settings(Checked):
    """The published setting, and the step sizes to compare it with."""

    # reward of each of the three arms, always the same; the first is the best
    rewards: tuple[float, ...] = (1.0, 0.7, 0.0)
    start: tuple[float, ...] = (0.0, 3.0, 5.0)  # logits at the start, in nats
    shift: float = 0.5  # how far the two baselines are from the variance-minimising one, in reward
    lr: float = 0.025  # step size of the published figure
    lrs: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # step sizes to compare
    steps: int = 4000  # updates, one pull each
    longer: int = 3  # how many times as many updates to give the runs of the published step size
    runs: int = 400  # independent runs per baseline and step size
    shown: int = 30  # paths that are drawn, per baseline
    seed: int = 0  # of the first run's random numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.rewards) == 3,
            "rewards",
            self.rewards,
            "three numbers: the figure is a triangle",
        )
        require(
            max(self.rewards) == self.rewards[0] > max(self.rewards[1:]),
            "rewards",
            self.rewards,
            "the largest first, alone",
        )
        require(len(self.start) == 3, "start", self.start, "three logits")
        require(0 < self.shift < float("inf"), "shift", self.shift, "a number > 0")
        for rate in (self.lr, *self.lrs):
            require(0 < rate < float("inf"), "lr", rate, "a number > 0")
        for name, least in (("steps", 10), ("longer", 1), ("runs", 2), ("shown", 1)):
            require(
                getattr(self, name) >= least, name, getattr(self, name), f"a whole number ≥ {least}"
            )
        require(self.shown <= self.runs, "shown", self.shown, f"at most runs = {self.runs}")

    @property
    def rates(self) -> tuple[float, ...]:
        """The step sizes that are run, in order; `lr` is one of them."""
        return tuple(sorted({self.lr, *self.lrs}))


SETTINGS = Settings()
# baseline → (share of b*, share of V, sign of the shift)
BASELINES = {
    "below": (1.0, 0.0, -1.0),
    "best": (1.0, 0.0, 0.0),
    "above": (1.0, 0.0, 1.0),
    "value": (0.0, 1.0, 0.0),
    "fixed": (0.0, 0.0, 1.0),
}
DRAWN = ("below", "above", "value")


def label(kind: str, settings: Mapping[str, Any]) -> str:
    """How the figure and the facts call a baseline."""
    shift = settings["shift"]
    return {
        "below": f"b* − {shift:g}",
        "best": "b*",
        "above": f"b* + {shift:g}",
        "value": "V",
        "fixed": f"fixed, {max(settings['rewards']) + shift:g}",
    }[kind]


# ---------------------------------------------------------------- the baselines, known exactly


def least_variance_baseline(log_prob: Tensor, reward: Tensor) -> Tensor:
    """b* = Σ (r/π) / Σ (1/π), the constant for which one sample's natural gradient has the least
    variance. [..., K] → [...].

    E‖(r − b)/π(a)·(e_a − 1/K)‖² = (1 − 1/K) Σ (r_a − b)²/π_a, a parabola in b, and its mean does
    not depend on b. The weights are softmax(−log π): 1/π itself overflows when a probability
    underflows. eq:natural-least-variance
    """
    return (torch.softmax(-log_prob, -1) * reward).sum(-1)


def natural_variance(log_prob: Tensor, reward: Tensor, baseline: float) -> Tensor:
    """Total variance of one sample's natural gradient: (1 − 1/K) Σ (r − b)²/π − ‖r − mean(r)‖².

    [..., K] → [...].
    """
    second = ((reward - baseline) ** 2 / log_prob.exp()).sum(-1) * (1 - 1 / reward.shape[-1])
    return second - ((reward - reward.mean(-1, keepdim=True)) ** 2).sum(-1)


class KnownBaseline(Bandit):
    """A bandit that writes a baseline which knows the rewards into the rollout's value: `best`·b* +
    `value`·V + `shift`.

    The three coefficients are numbers per run, [...].
    """

    def __init__(
        self,
        environment: Deterministic,
        policy: Softmax,
        best: Tensor,
        value: Tensor,
        shift: Tensor,
    ) -> None:
        super().__init__(environment, policy, group=1)
        self.coefficients = [coefficient.unsqueeze(-1) for coefficient in (best, value, shift)]

    def sample(self, noise: Noise) -> Rollout:
        """One pull per prompt, with the baseline of the policy that pulled."""
        rollout = super().sample(noise)
        assert rollout.old_log_dist is not None
        log_prob, reward = rollout.old_log_dist[..., 0, 0, :], self.environment.mean
        best, value, shift = (
            self.coefficients
        )  # V = Σ π r stands in the next line: eq:value-of-a-question
        baseline = (
            best * least_variance_baseline(log_prob, reward)
            + value * (log_prob.exp() * reward).sum(-1)
            + shift
        )
        return change(rollout, value=baseline[..., None, None].expand(rollout.reward.shape))


# ---------------------------------------------------------------- running


def problem(settings: Settings, kinds: Sequence[str], logits: Tensor) -> KnownBaseline:
    """The three arms for runs [kinds, ...], from logits [kinds, ..., K]."""
    one, runs = (len(kinds), *(1,) * (logits.dim() - 2)), logits.shape[:-1]
    fixed = [max(settings.rewards) if kind == "fixed" else 0.0 for kind in kinds]
    best, value, sign = torch.tensor([BASELINES[kind] for kind in kinds], dtype=logits.dtype).T
    shift = sign * settings.shift + torch.tensor(fixed, dtype=logits.dtype)
    environment = Deterministic(torch.tensor([settings.rewards], dtype=logits.dtype))
    coefficients = [coefficient.reshape(one).expand(runs) for coefficient in (best, value, shift)]
    return KnownBaseline(environment, Softmax(logits.unsqueeze(-2)), *coefficients)


def learner(settings: Settings, bandit: KnownBaseline, lr: Tensor | float, seed: int) -> Learner:
    """REINFORCE with the value as its baseline, and exact natural steps."""
    estimator = replace(ladder.reinforce, baseline=Value())
    noise = Noise(bandit.runs, seed, dtype=torch.float64)
    return Learner(bandit, estimator, SoftmaxNaturalGradient(lr), noise, log_every=10**9)


def run(settings: Settings, progress: Progress) -> Result:
    """All baselines and step sizes at once, then the published step size on for longer."""
    rates, here = settings.rates, settings.rates.index(settings.lr)
    shape = (len(BASELINES), len(rates), settings.runs)
    start = torch.tensor(settings.start, dtype=torch.float64)
    bandit = problem(settings, tuple(BASELINES), start.expand(*shape, -1))
    teacher = learner(
        settings,
        bandit,
        torch.tensor(rates, dtype=torch.float64)[:, None].expand(shape).contiguous(),
        settings.seed,
    )
    stops = [
        *sorted({round(10 ** (place / 16)) for place in range(160)} & set(range(settings.steps))),
        settings.steps,
    ]
    drawn = [log_softmax(start).exp().expand(len(BASELINES), settings.shown, -1)]
    with progress.bar(settings.steps, "updates") as bar:
        for stop in stops:
            bar.update(stop - teacher.steps)
            teacher.train(stop - teacher.steps)
            drawn.append(_probabilities(bandit)[:, here, : settings.shown])
    end = _probabilities(bandit)
    kinds = list(BASELINES)
    logits = bandit.parameters[0].detach()[..., 0, :]
    seen = Seen(
        lost=end[..., 0] < 0.5,
        worst_is_rarest=log_softmax(logits[kinds.index("above"), here]).argmin(-1)
        == settings.rewards.index(min(settings.rewards)),
        later=_longer(
            settings, logits[[kinds.index("below"), kinds.index("above")], here], progress
        ),
        finite=bool(torch.isfinite(logits).all()),
    )
    paths = torch.stack(drawn, 2)[..., :2]
    series = {
        "rates": rates,
        "updates": [0, *stops],
        "paths": {kind: paths[kinds.index(kind)] for kind in DRAWN},
        "lost": {kind: seen.lost[i].double().mean(-1) for i, kind in enumerate(kinds)},
        "lost_error": {
            kind: [share_error(int(row.sum()), settings.runs)[1] for row in seen.lost[i]]
            for i, kind in enumerate(kinds)
        },
        "lost_later": {
            kind: share
            for kind, share in zip(("below", "above"), seen.later.double().mean(-1), strict=True)
        },
        "underflow": {
            kind: (end[i] == 0).any(-1).double().mean(-1) for i, kind in enumerate(kinds)
        },
    }
    return Result(
        series=series,
        facts=[*_exact_facts(settings), *_simulated_facts(settings, seen)],
        caption=CAPTION,
    )


@dataclass(frozen=True)
class Seen:
    """What the facts are made of: `lost` [baselines, rates, runs] off the best arm at the end; of
    the runs with b* + shift [runs], whether the worst arm is the rarest; `later` [2, runs] lost
    after longer (b* − shift, b* + shift); all logits finite.
    """

    lost: Tensor
    worst_is_rarest: Tensor
    later: Tensor
    finite: bool


def _probabilities(bandit: Bandit) -> Tensor:
    """[..., K] of the only prompt."""
    with torch.no_grad():
        return bandit.arm_policy.log_probs()[..., 0, :].exp()


def _longer(settings: Settings, logits: Tensor, progress: Progress) -> Tensor:
    """[2, runs] which runs with b* − shift and b* + shift are off the best arm after `longer` times
    the updates.
    """
    bandit = problem(settings, ("below", "above"), logits)
    if settings.longer > 1:
        teacher = learner(settings, bandit, settings.lr, settings.seed + 1)
        teacher.train(
            settings.steps * (settings.longer - 1), lambda steps: progress(steps, "further updates")
        )
    return _probabilities(bandit)[..., 0] < 0.5


# ---------------------------------------------------------------- facts


def one_step(settings: Settings, optimizer: Optimizer, arm: int, baseline: float) -> Tensor:
    """[K] change of the logits, from the start, when `arm` is pulled once and `optimizer` takes its
    step.
    """
    start = torch.tensor(settings.start, dtype=torch.float64)
    environment = Deterministic(torch.tensor([settings.rewards], dtype=torch.float64))
    bandit = Bandit(environment, Softmax(start.unsqueeze(0)), group=1)
    pulled = bandit.sample(Noise((), settings.seed, dtype=torch.float64))
    action = torch.tensor([[arm]])
    log_prob = bandit.arm_policy.log_probs().detach()[..., arm].reshape(1, 1, 1)
    pulled = change(
        pulled,
        reward=environment.mean[:, [arm]].unsqueeze(-1),
        log_prob=log_prob,
        data={**pulled.data, "action": action},
    )
    bandit.sample = lambda noise: pulled  # type: ignore[method-assign]
    estimator = replace(ladder.reinforce, baseline=Constant(baseline))
    Learner(bandit, estimator, optimizer, Noise((), settings.seed, dtype=torch.float64)).train(1)
    return (bandit.parameters[0].detach()[0] - start).clone()


def measured_variance(settings: Settings, baseline: float) -> float:
    """Total variance of one sample's natural gradient at the start, under the microscope: tr F⁺CF⁺,
    C the gradient's covariance.
    """
    environment = Deterministic(torch.tensor([settings.rewards], dtype=torch.float64))
    log_prob = log_softmax(torch.tensor(settings.start, dtype=torch.float64))
    seen = microscope(
        replace(ladder.reinforce, baseline=Constant(baseline)),
        outcomes(environment, log_prob.unsqueeze(0)),
        1,
    )
    assert seen.covariance is not None
    half = natural_direction(seen.covariance, log_prob)
    return float(natural_direction(half.T, log_prob).trace())


def _exact_facts(settings: Settings) -> list[Fact]:
    reward = torch.tensor(settings.rewards, dtype=torch.float64)
    log_prob = log_softmax(torch.tensor(settings.start, dtype=torch.float64))
    best = float(least_variance_baseline(log_prob, reward))
    low, middle, high = (
        measured_variance(settings, best + sign * settings.shift) for sign in (-1, 0, 1)
    )
    # the vertex of the parabola through three points that are known without b*: b = 0, 1, 2
    zero, one, two = (measured_variance(settings, float(b)) for b in range(3))
    vertex = 1 + (zero - two) / (2 * (zero - 2 * one + two))
    direct = [
        (reward[a] - best) / log_prob[a].exp() * (torch.eye(3, dtype=torch.float64)[a] - 1 / 3)
        for a in range(3)
    ]
    size = max(float(step.abs().max()) for step in direct)

    def gap(
        make: Callable[[], Optimizer],
    ) -> float:  # up to the same number for all arms, which changes no probability
        steps = [one_step(settings, make(), a, best) for a in range(3)]
        return max(
            float((step - step.mean() - want).abs().max())
            for step, want in zip(steps, direct, strict=True)
        )

    value = float((log_prob.exp() * reward).sum())
    at = f"rewards {settings.rewards}, logits {settings.start}"
    return [
        Fact.exact(
            "One pull's natural gradient is (r − b)/π(a)·(e_a − 1/K): largest difference from"
            " conjugate gradient on the Fisher matrix",
            CHUNG,
            gap(lambda: NaturalGradient(1.0, damping=0.0)),
            0.0,
            scale=size,
            number=6,
        ),
        Fact.exact(
            "The same step from F = diag(π) − ππᵀ in closed form: largest difference",
            CHUNG,
            gap(lambda: SoftmaxNaturalGradient(1.0)),
            0.0,
            scale=size,
            number=6,
        ),
        Fact.exact(
            f"The baseline of least variance is b* = Σ(r/π)/Σ(1/π) ({at}); measured: the vertex of"
            " the parabola through three variances",
            "derived",
            vertex,
            best,
            number=6,
        ),
        Fact.exact(
            f"b* + {settings.shift:g} has the variance of b* − {settings.shift:g} (total variance"
            f" of one pull's natural gradient; {at})",
            CHUNG,
            high,
            low,
            number=6,
        ),
        Fact.exact(
            f"At b* the variance is (1 − 1/K) Σ(r − b)²/π − ‖r − mean(r)‖² ({at})",
            "derived",
            middle,
            natural_variance(log_prob, reward, best),
            number=6,
        ),
        Fact.above(
            f"At the start the value V is noisier than b* − {settings.shift:g}: total variance of"
            f" one pull's natural gradient ({at})",
            "derived",
            measured_variance(settings, value),
            low,
            number=6,
        ),
    ]


def _simulated_facts(settings: Settings, seen: Seen) -> list[Fact]:
    here, runs, kinds = settings.rates.index(settings.lr), settings.runs, list(BASELINES)
    share = {kind: share_error(int(seen.lost[i, here].sum()), runs) for i, kind in enumerate(kinds)}
    still = share_error(
        int((seen.lost[0, here] & seen.later[0]).sum()), max(1, int(seen.lost[0, here].sum()))
    )
    after = [share_error(int(row.sum()), runs) for row in seen.later]
    first, last = (share_error(int(seen.lost[0, i].sum()), runs) for i in (0, -1))
    name = {kind: label(kind, asdict(settings)) for kind in kinds}
    at, total = (
        f"step {settings.lr:g}, {settings.steps:,} updates, {runs} runs",
        settings.steps * settings.longer,
    )

    def more(
        claim: str, one: tuple[float, float], other: tuple[float, float], source: str = HERE
    ) -> Fact:
        return Fact.above(
            f"{claim}: difference of the shares",
            source,
            one[0] - other[0],
            0.0,
            math.hypot(one[1], other[1]),
            number=6,
        )

    def rare(kind: str, source: str) -> Fact:
        claim = (
            f"With the baseline {name[kind]} fewer than one run in twenty misses the best arm"
            f" ({at})"
        )
        return Fact.below(claim, source, share[kind][0], 0.05, share[kind][1], number=6)

    return [
        more(
            f"{name['below']} loses more runs than {name['above']}, of the same variance ({at})",
            share["below"],
            share["above"],
            CHUNG,
        ),
        more(
            f"{name['below']} loses more runs than the value V, which is the noisier ({at})",
            share["below"],
            share["value"],
        ),
        rare("value", MEI),
        rare("fixed", HERE),
        more(
            f"After {total:,} updates {name['below']} still has lost more runs than {name['above']}"
            f" (step {settings.lr:g})",
            after[0],
            after[1],
        ),
        Fact.above(
            f"Most runs lost by {name['below']} after {settings.steps:,} updates are still lost"
            f" after {total:,} (step {settings.lr:g})",
            HERE,
            still[0],
            0.5,
            still[1],
            number=6,
        ),
        Fact.exact(
            f"In every run that {name['above']} loses the worst arm has become the rarest, so that"
            " b* is near that arm's reward",
            "derived",
            bool(seen.worst_is_rarest[seen.lost[kinds.index("above"), here]].all()),
            True,
            number=6,
        ),
        more(
            f"Larger steps commit sooner: {name['below']} loses more runs at step"
            f" {settings.rates[-1]:g} than at {settings.rates[0]:g}",
            last,
            first,
        ),
        Fact.exact(
            "Computed from log-probabilities, steps of (r − b)/π(a) never overflow: every logit of"
            " every run is finite",
            "derived",
            seen.finite,
            True,
            number=6,
        ),
    ]


# ---------------------------------------------------------------- drawing

CAPTION = (
    "Natural policy gradient on three arms, one pull per update; paths that end off the best arm"
    " are red. Shares are means over runs, bands are ± 2 standard errors."
)
FOUND, LOST = "#0057a3", "#c0391b"
COLOURS = {
    "below": "#c0391b",
    "best": "#b8860b",
    "above": "#0057a3",
    "value": "#00875f",
    "fixed": "#666666",
}
DASHES = {
    "below": figures.SOLID,
    "best": figures.DASHDOT,
    "above": figures.DASH,
    "value": figures.SOLID,
    "fixed": figures.DOT,
}
CORNERS = torch.tensor(
    [[0.5, 0.75**0.5], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64
).numpy()  # of the best, middle and worst arm


def plot(result: Result) -> Figure:
    """Paths on the simplex for three baselines; the share of runs that end off the best arm against
    the step size.
    """
    figure, panels = figures.new_figure(2, 2, width=10.4, height=8.6)
    for ax, kind in zip(panels, DRAWN, strict=False):
        _triangle(ax, result, kind)
    _by_step_size(panels[3], result)
    return figure


def _triangle(ax: Axes, result: Result, kind: str) -> None:
    rewards = result.settings["rewards"]
    here = list(result.array("rates")).index(result.settings["lr"])
    paths = result.array("paths", kind)  # [shown, updates, 2]
    third = 1 - paths.sum(-1, keepdims=True)
    points = torch.cat([torch.from_numpy(paths), torch.from_numpy(third)], -1).numpy() @ CORNERS
    ax.fill(*CORNERS.T, facecolor="#f6f6f6", edgecolor="#777777", linewidth=1.0, zorder=0)
    for path, missed in zip(points, paths[:, -1, 0] < 0.5, strict=True):
        colour = LOST if missed else FOUND
        ax.plot(*path.T, color=colour, linewidth=0.9, alpha=0.65)
        ax.plot(*path[-1], "o", color=colour, markersize=7, zorder=4, clip_on=False)
    ax.plot(*points[0, 0], "s", color=figures.INK, markersize=8, zorder=5)
    text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "color": figures.INK}
    ax.annotate("start", points[0, 0], (6, 8), ha="left", va="bottom", **text)
    for corner, name, align, place in (
        (CORNERS[0], f"best arm, r = {rewards[0]:g}", "center", (0, 8)),
        (CORNERS[1], f"r = {rewards[1]:g}", "left", (-4, -12)),
        (CORNERS[2], f"r = {rewards[2]:g}", "right", (6, -12)),
    ):
        up = "bottom" if place[1] > 0 else "top"
        ax.annotate(name, corner, place, ha=align, va=up, **text)
    lost = round(float(result.array("lost", kind)[here]) * result.settings["runs"])
    count = f"{lost or 'none'} of {result.settings['runs']} runs\nmiss the best arm"
    ax.text(
        0.02,
        0.86,
        count,
        transform=ax.transAxes,
        fontsize=11,
        color=LOST if lost else FOUND,
        va="top",
    )
    what = {
        "below": "too low, it commits",
        "above": "too high, it keeps looking",
        "value": "the value, noisiest at the start",
    }[kind]
    figures.describe(ax, f"{label(kind, result.settings)}: {what}")
    ax.set_aspect("equal")
    ax.set_xlim(-0.06, 1.06)
    ax.set_ylim(-0.12, 1.0)
    ax.axis("off")
    ax.set_title(
        ax.get_title(loc="left"), loc="left", fontsize=12, fontweight="bold", color=figures.INK
    )


def _by_step_size(ax: Axes, result: Result) -> None:
    rates = result.array("rates")
    for kind in BASELINES:
        share, error = 100 * result.array("lost", kind), 200 * result.array("lost_error", kind)
        name = label(kind, result.settings)
        figures.band(
            ax,
            rates,
            share,
            error,
            label=name,
            color=COLOURS[kind],
            linestyle=DASHES[kind],
            marker="o",
            markersize=4,
        )
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.set_ylim(-3, 100)
    figures.expectation(ax, x=result.settings["lr"])
    here = (result.settings["lr"], 96)
    ax.annotate(
        "the other panels",
        here,
        (5, 0),
        textcoords="offset points",
        fontsize=10,
        color=figures.INK,
        va="top",
    )
    figures.describe(
        ax,
        f"Larger steps commit more: after {result.settings['steps']:,} updates",
        "step size",
        "runs that miss the best arm, %",
    )
    figures.label_ends(ax, ax.get_lines()[: len(BASELINES)])
