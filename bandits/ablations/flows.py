"""How fast, without noise: the last stretch to the best arm, and the way out of a bad start, for
PG, natural PG and GRPO.

The best arm pays 1, the other 1 − Δ; p is the best arm's probability and u = log(p/(1 − p)). Each
estimator's expected gradient is enumerated exactly, and since its flow dθ/dt = E[ĝ] stays on one
line, the time from u₀ to u₁ is the integral of du over the speed du/dt: no sampling, no steps.
Closed forms, from p = ½ (t = 0):

    policy gradient    du/dt = 2Δ p(1−p)         t = (u + sinh u)/Δ        1 − p → 1/(2Δt)
    natural PG         du/dt = Δ                 t = u/Δ                   1 − p → e^(−Δt)
    GRPO, G = ∞        du/dt = 2 √(p(1−p))       t = 2 sinh(u/2)           1 − p → 1/t², whatever Δ
    GRPO, G finite     du/dt = 2 p(1−p) w_G(p)   w_G → √(G−1) at both ends: 1 − p → 1/(2√(G−1) t)

What to look for: dividing by the std makes the slope −2 in place of −1, and takes the gap out of
it; but only until nearly every group is silent, and then the slope is −1 again. Out of a bad start
it is the same story: 1/√p₀ in place of 1/p₀. The last panel takes real steps with the exact
gradient: t·(1 − p) settles at (K−1)/(Kη).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.natural import natural_direction
from bandits.policies import Softmax, log_softmax
from bandits.population import Population, every_arm
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import group_std_weight, microscope
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import Constant, GroupStd, NoBaseline, NoScale
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "rates without noise: the last stretch to the best arm, and escape times from a bad start"
EXPECTED_SECONDS = 10.0
MEI = "Mei et al. 2020 (2005.06392) for the order 1/t; constant derived"
WEIGHT = "derived from w_G: Mroueh 2025 (2503.06639), Davis & Recht 2025 (2510.13651)"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings(Checked):
    """Two arms for the flows; K arms and a learning rate for the exact steps."""

    rungs: tuple[str, ...] = ("reinforce", "group_std")  # which estimators
    # samples per group, for estimators that compare within one
    groups: tuple[int, ...] = (2, 8, 64)
    gap: float = 1.0  # reward of the best arm minus that of the other
    small_gap: float = 0.25  # the same, for the curve with a smaller gap
    span: float = 24.0  # log-odds, in nats: flows run from −span·¾ to span
    arms: tuple[int, ...] = (2, 5, 20)  # K of the exact steps; one arm pays 1, the others 0
    lr: float = 0.4  # learning rate η of the exact steps
    steps: int = 5000  # exact steps from the uniform policy
    seed: int = 0  # unused: nothing is random here

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rungs) > 0, "rungs", self.rungs, "at least one name")
        require(
            len(self.groups) > 0 and min(self.groups) >= 2,
            "groups",
            self.groups,
            "whole numbers ≥ 2",
        )
        for name in ("gap", "small_gap"):
            require(
                0 < getattr(self, name) <= 1,
                name,
                getattr(self, name),
                "a number above 0, at most 1",
            )
        require(
            4 <= self.span <= 30,
            "span",
            self.span,
            "from 4 to 30 nats: beyond, 1 − p is lost in rounding",
        )
        require(len(self.arms) > 0 and min(self.arms) >= 2, "arms", self.arms, "whole numbers ≥ 2")
        require(0 < self.lr <= 1, "lr", self.lr, "a number above 0, at most 1")
        require(self.steps >= 100, "steps", self.steps, "a whole number ≥ 100")


SETTINGS = Settings()
assert isinstance(ladder.group_std.scale, GroupStd)
GROUP_STD: GroupStd = ladder.group_std.scale
PANEL, NODES = (
    0.5,
    4,
)  # Gauss–Legendre: nodes per panel of that many nats of log-odds; the times are right to 1e-9


# ---------------------------------------------------------------- flows on a line


def one_against_the_rest(u: float, arms: int = 2) -> Tensor:
    """[1, K] log-probabilities: the first arm has log-odds u against the others together, which are
    alike.
    """
    rest = torch.full((1, arms), -math.log(arms - 1), dtype=torch.float64)
    rest[0, 0] = u
    return log_softmax(rest)


def speed(estimator: Estimator, group: int, u: float, gap: float, arms: int = 2) -> float:
    """du/dt of dθ/dt = E[ĝ]: the estimator's exact expected gradient, along the line of
    `one_against_the_rest`.

    g = E[ĝ] of the best arm's logit; the others get −g/(K−1) each, so the log-odds move by
    g·K/(K−1). The score 1 − p is computed from −u, and stays precise where p rounds to 1.
    """
    log_prob = one_against_the_rest(u, arms)
    mean = torch.full((1, arms), 1 - gap, dtype=torch.float64)
    mean[0, 0] = 1.0
    p = torch.sigmoid(torch.tensor([u, -u], dtype=torch.float64))
    score = torch.full((1, arms, 1), -float(p[0]), dtype=torch.float64)
    score[0, 0, 0] = p[1]
    seen = microscope(
        estimator, outcomes(Deterministic(mean), log_prob, score=score), group, covariance=False
    )
    return float(seen.expected[0]) * arms / (arms - 1)


def natural_speed(plain: float, u: float) -> float:
    """du/dt of dθ/dt = F⁺E[ĝ] on two arms, from the speed of the plain flow there."""
    direction = natural_direction(
        torch.tensor([plain, -plain], dtype=torch.float64) / 2, one_against_the_rest(u)[0]
    )
    return float(direction[0] - direction[1])


def nodes(low: float, high: float) -> tuple[Array, Array, Array]:
    """Panel edges [n + 1] from low to high, and the places and weights [n, NODES] of Gauss–Legendre
    on each panel.
    """
    count = max(1, round((high - low) / PANEL))
    edges = np.linspace(low, high, count + 1)
    places, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(edges)[:, None] / 2
    return edges, edges[:-1, None] + half * (places + 1), half * weights


def times(speeds: Array, weights: Array, edges: Array, start: float = 0.0) -> Array:
    """t [n + 1] at the panel edges, 0 at log-odds `start` (an edge): the running integral of
    1/speed.
    """
    passed = np.concatenate([[0.0], (weights / speeds).sum(-1).cumsum()])
    return np.asarray(passed - passed[int(np.abs(edges - start).argmin())])


@dataclass(frozen=True)
class Flow:
    """One curve: when (`t`) the log-odds are where (`u`), both [n], t = 0 at p = ½; `group` None
    where G does not matter.
    """

    rung: str
    group: int | None
    gap: float
    u: Array
    t: Array
    speeds: Array  # [n − 1, NODES]


def needs_group(estimator: Estimator) -> bool:
    """Whether E[ĝ] depends on G."""
    return not (
        isinstance(estimator.baseline, NoBaseline | Constant)
        and isinstance(estimator.scale, NoScale)
    )


def flow(
    settings: Settings,
    rung: str,
    group: int | None,
    gap: float,
    arms: int = 2,
    low: float | None = None,
) -> Flow:
    """The flow of a rung, from log-odds `low` (default −¾ span) to span."""
    edges, places, weights = nodes(-0.75 * settings.span if low is None else low, settings.span)
    estimator = ladder.get(rung).estimator
    speeds = np.array(
        [[speed(estimator, group or 1, float(u), gap, arms) for u in row] for row in places]
    )
    return Flow(
        rung, group, gap, edges, times(speeds, weights, edges, 0.0 if low is None else low), speeds
    )


def weight_times(settings: Settings, group: float, eps: float) -> Array:
    """t at the same edges from the closed form w_G(p), as the second way."""
    edges, places, weights = nodes(-0.75 * settings.span, settings.span)
    u = torch.from_numpy(places)
    p, rest = torch.sigmoid(u), torch.sigmoid(-u)
    rare = torch.minimum(p, rest)  # w_G(p) = w_G(1 − p), and this one of the two is precise
    weight = (
        1 / ((p * rest).sqrt() + eps)
        if group == math.inf
        else group_std_weight(rare, group, eps=eps)
    )
    return times((2 * p * rest * weight).numpy(), weights, edges)


# ---------------------------------------------------------------- running


def run(settings: Settings, progress: Progress) -> Result:
    """The flows of every rung, natural PG and G = ∞ in closed form, and exact steps on K arms."""
    names = list(settings.rungs)
    wanted = [
        (name, group)
        for name in names
        for group in (settings.groups if needs_group(ladder.get(name).estimator) else (None,))
    ]
    flows = [flow(settings, name, group, settings.gap) for name, group in progress(wanted, "flows")]
    small = flow(settings, "reinforce", None, settings.small_gap)
    found = [f for f in flows if f.rung == "reinforce"]
    plain = found[0] if found else flow(settings, "reinforce", None, settings.gap)
    natural = _natural(settings, plain)
    steps = {arms: exact_steps(settings, arms) for arms in progress(settings.arms, "exact steps")}
    infinite = weight_times(settings, math.inf, 0.0)
    series: dict[str, Any] = {
        "log_odds": plain.u,
        "flows": [{"rung": f.rung, "group": f.group or 0, "t": f.t} for f in flows],
        "small_gap": small.t,
        "natural": natural,
        "infinite": infinite,
        "steps": {
            str(arms): {"step": step, "missing": missing} for arms, (step, missing) in steps.items()
        },
    }
    facts = [
        *_policy_gradient_facts(settings, plain, small, natural),
        *_group_facts(settings, flows, infinite),
        *_step_facts(settings, steps),
    ]
    return Result(series=series, facts=facts, caption=CAPTION)


def _natural(settings: Settings, plain: Flow) -> Array:
    edges, places, weights = nodes(-0.75 * settings.span, settings.span)
    speeds = np.array(
        [
            natural_speed(v, float(u))
            for v, u in zip(plain.speeds.ravel(), places.ravel(), strict=True)
        ]
    )
    return times(speeds.reshape(places.shape), weights, edges)


def exact_steps(settings: Settings, arms: int) -> tuple[Array, Array]:
    """Step numbers and 1 − p, both [logs]: gradient ascent with the exact gradient, from uniform,
    one arm paying 1.
    """
    reward = torch.zeros(1, arms, dtype=torch.float64)
    reward[0, 0] = 1.0
    bandit = every_arm(Deterministic(reward), Softmax(torch.zeros(1, arms, dtype=torch.float64)))
    noise = Noise((), settings.seed, dtype=torch.float64)
    learner = Learner(bandit, ladder.surrogate, SGD(settings.lr), noise, log_every=10**9)
    logged: list[float] = []
    stops = sorted(
        {round(10 ** (place / 8)) for place in range(80)} | {settings.steps // 2, settings.steps}
    )
    stops = [stop for stop in stops if stop <= settings.steps]
    for stop in stops:
        learner.train(stop - learner.steps)
        with torch.no_grad():
            rest = bandit.arm_policy.log_probs()[0, 1:].exp().sum()
        logged.append(float(rest))
    return np.array(stops, dtype=float), np.array(logged)


# ---------------------------------------------------------------- facts


def _off(measured: Array, expected: Array) -> float:
    """Largest relative difference, where expected is not 0."""
    there = expected != 0
    return float(np.abs(measured[there] / expected[there] - 1).max())


def _odds(u: float) -> tuple[float, float]:
    """p and 1 − p."""
    return 1 / (1 + math.exp(-u)), 1 / (1 + math.exp(u))


def _policy_gradient_facts(
    settings: Settings, plain: Flow, small: Flow, natural: Array
) -> list[Fact]:
    low, high = plain.u[0], plain.u[-1]
    start, missing = _odds(low)[0], _odds(high)[1]
    facts = []
    for f in (plain, small):
        at = f"two arms, gap {f.gap:g}"
        way = (
            "Policy gradient's flow takes (u + sinh u)/Δ from p = ½ to log-odds u: largest"
            f" relative difference ({at})"
        )
        late = f"Policy gradient: 1 − p ~ 1/(2Δt), as 2Δt(1−p) at 1 − p = {missing:.1e} ({at})"
        early = (
            f"Policy gradient escapes from p₀ to ½ in 1/(2Δp₀), as time·2Δp₀ at p₀ = {start:.1e}"
            f" ({at})"
        )
        facts += [
            Fact.exact(way, "derived", _off(f.t, (f.u + np.sinh(f.u)) / f.gap), 0.0, 8, number=7),
            Fact.exact(late, MEI, 2 * f.gap * f.t[-1] * missing, 1.0, 6, number=7),
            Fact.exact(early, "derived", -2 * f.gap * f.t[0] * start, 1.0, 5, number=7),
        ]
    claim = (
        "Natural PG: 1 − p falls as e^(−Δt), as log-odds per unit of time (two arms, gap"
        f" {settings.gap:g})"
    )
    facts.append(
        Fact.exact(
            claim,
            "derived; linear rate: Mei et al. 2020 (2005.06392)",
            high / natural[-1],
            settings.gap,
            number=7,
        )
    )
    arms = max(settings.arms)
    many = flow(settings, "reinforce", None, 1.0, arms, -math.log(arms - 1))
    limit = many.t[-1] * missing * arms / (arms - 1)
    claim = (
        f"Policy gradient's flow from uniform on K = {arms} arms that pay 1, 0, …, 0:"
        f" t(1−p)·K/(K−1) → 1, at 1 − p = {missing:.1e}"
    )
    return [*facts, Fact.exact(claim, MEI, limit, 1.0, 6, number=7)]


def _group_facts(settings: Settings, flows: Sequence[Flow], infinite: Array) -> list[Fact]:
    edges = nodes(-0.75 * settings.span, settings.span)[0]
    start, missing = _odds(edges[0])[0], _odds(edges[-1])[1]
    eps = GROUP_STD.eps

    def exact(claim: str, measured: float, expected: float, digits: int = 9) -> Fact:
        return Fact.exact(claim, WEIGHT, measured, expected, digits, number=7)

    t = "GRPO at G = ∞"
    facts = [
        exact(
            f"{t} takes 2 sinh(u/2) from p = ½ to log-odds u: largest relative difference",
            _off(infinite, 2 * np.sinh(edges / 2)),
            0.0,
            8,
        ),
        exact(
            f"{t}: 1 − p ~ 1/t² whatever the gap, as t²(1−p) at 1 − p = {missing:.1e}",
            infinite[-1] ** 2 * missing,
            1.0,
            6,
        ),
        exact(
            f"{t} escapes from p₀ to ½ in 1/√p₀, as time·√p₀ at p₀ = {start:.1e}",
            -infinite[0] * math.sqrt(start),
            1.0,
            6,
        ),
        _population_fact(),
    ]
    for f in flows:
        if f.rung != "group_std" or f.group is None:
            continue
        root, at, second = (
            2 * math.sqrt(f.group - 1),
            f"G = {f.group}, eps {eps:g}",
            weight_times(settings, f.group, eps),
        )
        late = (
            f"GRPO at finite G: 1 − p → 1/(2√(G−1)t), as 2√(G−1)·t(1−p) at 1 − p = {missing:.1e}"
            f" ({at})"
        )
        early = (
            f"GRPO at finite G escapes in 1/(2√(G−1)p₀), as time·2√(G−1)p₀ at p₀ = {start:.1e}"
            f" ({at})"
        )
        facts += [
            exact(
                "GRPO's flow is that of the weight w_G(p): largest relative difference of the"
                f" times ({at})",
                _off(f.t, second),
                0.0,
            ),
            exact(
                late, root * f.t[-1] * missing, 1.0, 4
            ),  # eps of the std: eps·√G of the weight is left
            exact(early, -root * f.t[0] * start, 1.0, 4),
        ]
    group = max(settings.groups)
    fast, slow = (
        speed(ladder.group_std, group, 1.0, gap) for gap in (settings.gap, settings.small_gap)
    )
    ratio = (
        f"speed at gap {settings.small_gap:g} over speed at gap {settings.gap:g} (G = {group},"
        " log-odds 1)"
    )
    return [*facts, exact(f"GRPO's speed does not depend on the gap: {ratio}", slow / fast, 1.0, 4)]


def _population_fact() -> Fact:
    """The estimator itself on a rollout in exact proportion, which is G = ∞: E[ĝ] =
    ∇p/√(p(1−p)).
    """
    counts = torch.tensor([[3, 17]])
    policy = Softmax.of(counts.double() / 20)
    bandit = Population(
        Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64)), policy, counts
    )
    rollout = bandit.sample(Noise((), dtype=torch.float64))
    ladder.group_std.objective(bandit.policy(rollout), ladder.group_std.freeze(rollout)).backward()
    assert policy.logits.grad is not None
    p = 3 / 20
    expected = p * (1 - p) / (math.sqrt(p * (1 - p)) + GROUP_STD.eps)
    claim = (
        "GRPO on a rollout with right and wrong answers in exact proportion (p = .15) has the"
        " gradient p(1−p)/√(p(1−p)) of G = ∞"
    )
    return Fact.exact(claim, WEIGHT, policy.logits.grad[0, 0], expected, number=7)


def _step_facts(settings: Settings, steps: dict[int, tuple[Array, Array]]) -> list[Fact]:
    """Late slope of 1/(1−p), eq:softmax-gradient-rate: its remainder is of the order of 1 − p
    itself, 1e-3 here.
    """
    facts = []
    for arms, (step, missing) in steps.items():
        half = int(np.abs(step - settings.steps // 2).argmin())
        slope = (1 / missing[-1] - 1 / missing[half]) / (step[-1] - step[half])
        claim = (
            f"Exact gradient steps from uniform, K = {arms}, η = {settings.lr:g}: t·(1−p) →"
            " (K−1)/(Kη)"
        )
        claim += f", from the slope of 1/(1−p) over the last half of {settings.steps:,} steps"
        facts.append(
            Fact.exact(claim, MEI, 1 / slope, (arms - 1) / (arms * settings.lr), 2, number=7)
        )
    return facts


# ---------------------------------------------------------------- drawing

CAPTION = (
    "Flows of the exact expected gradient, two arms; thin dashed lines are the asymptotes derived"
    " in closed form. Right: gradient steps with the exact gradient on K arms, one of which pays 1."
)


def plot(result: Result) -> Figure:
    """1 − p against time; time from p₀ to ½ against 1/p₀; t·(1 − p) of exact steps on K arms."""
    figure, (late, early, steps) = figures.new_figure(1, 3, width=14.5, height=4.8)
    _late(late, result)
    _early(early, result)
    _steps(steps, result)
    return figure


def _curves(result: Result) -> list[tuple[Array, str, dict[str, Any]]]:
    """Times, label and line style of every flow."""
    gap, small, groups = (
        result.settings["gap"],
        result.settings["small_gap"],
        list(result.settings["groups"]),
    )
    plain = {**figures.style_of("reinforce"), "linewidth": 3.2}  # wide: GRPO at G = 2 lies on it
    drawn = [
        (result.array("small_gap"), f"REINFORCE, Δ = {small:g}", {**plain, "color": "#8a8a8a"})
    ]
    for entry in result.series["flows"]:
        style: dict[str, Any] = {"linewidth": 2.0, **figures.style_of(entry["rung"])}
        label = ladder.get(entry["rung"]).title
        if entry["rung"] == "reinforce":
            style, label = plain, f"{label}, Δ = {gap:g}"
        elif entry["group"]:
            share = (groups.index(entry["group"]) + 1) / len(groups)
            style |= {"linewidth": 1.2 + 1.4 * share}
            label = f"{label}, G = {entry['group']}"
        drawn.append((np.asarray(entry["t"], dtype=float), label, style))
    drawn.append(
        (
            result.array("infinite"),
            "Group std, G = ∞",
            {**figures.style_of("group_std"), "linestyle": figures.DOT, "linewidth": 2.4},
        )
    )
    drawn.append(
        (
            result.array("natural"),
            f"natural PG, Δ = {gap:g}",
            {**figures.style_of("natural_gradient"), "linewidth": 2.0},
        )
    )
    return drawn


def _asymptotes(result: Result) -> list[float]:
    """The constants c of 1 − p = 1/(ct) and of the escape time 1/(c·p₀)."""
    gaps = [2 * result.settings[name] for name in ("gap", "small_gap")]
    return gaps + [2 * math.sqrt(group - 1) for group in result.settings["groups"]]


def _late(ax: Axes, result: Result) -> None:
    missing = 1 / (1 + np.exp(result.array("log_odds")))
    lowest, longest = 1e-6, 3e6
    for t, label, style in _curves(result):
        shown = (t > 0.05) & (missing > lowest / 10)
        ax.plot(t[shown], missing[shown], label=label, **style)
    grid = np.geomspace(3, longest, 60)
    for c in _asymptotes(result):
        figures.expectation(ax, 1 / (c * grid), grid)
    figures.expectation(ax, 1 / grid**2, grid)
    figures.expectation(ax, np.exp(-result.settings["gap"] * grid[grid < 20]), grid[grid < 20])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(0.3, longest)
    ax.set_ylim(lowest, 1)
    _formulas(ax, 0.99, "right", ("1/(2Δt)", "1/(2√(G−1) t)", "1/t²", "exp(−Δt)"))
    figures.describe(
        ax, "The last stretch", "time t from p = ½", "1 − p, the other arm's probability"
    )


def _early(ax: Axes, result: Result) -> None:
    u = result.array("log_odds")
    inverse = 1 + np.exp(-u)
    shown = (u < -1) & (inverse < 1.2e7)
    lines = []
    for t, label, style in _curves(result):
        lines += ax.plot(inverse[shown], -t[shown], label=label, **style)
    grid = np.geomspace(30, 1e7, 60)
    for c in _asymptotes(result):
        figures.expectation(ax, grid / c, grid)
    figures.expectation(ax, np.sqrt(grid), grid)
    figures.expectation(ax, np.log(grid) / result.settings["gap"], grid)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(4, 1.3e7)
    ax.set_ylim(1, 1e8)
    _formulas(ax, 0.03, "left", ("1/(2Δp₀)", "1/(2√(G−1) p₀)", "1/√p₀", "log(1/p₀)/Δ"))
    figures.describe(
        ax,
        "Out of a bad start",
        "1/p₀, p₀ the best arm's probability at the start",
        "time until p = ½",
    )
    figures.label_ends(ax, lines)


def _formulas(ax: Axes, x: float, side: str, formulas: Sequence[str]) -> None:
    """What the dashed lines are, at the top of the panel."""
    names = ("REINFORCE", "group std", "G = ∞", "natural PG")
    lines = [
        "dashed: the limits",
        *(f"{name}:  {formula}" for name, formula in zip(names, formulas, strict=True)),
    ]
    style: dict[str, Any] = {
        "ha": side,
        "va": "top",
        "fontsize": 10,
        "color": figures.INK,
        "linespacing": 1.4,
    }
    ax.text(x, 0.98, "\n".join(lines), transform=ax.transAxes, **style)


def _steps(ax: Axes, result: Result) -> None:
    lr = result.settings["lr"]
    lines = []
    for arms, colour in zip(
        result.settings["arms"], figures.shades(len(result.settings["arms"])), strict=True
    ):
        step, missing = result.array("steps", arms, "step"), result.array("steps", arms, "missing")
        lines += ax.plot(
            step,
            step * missing,
            color=colour,
            linewidth=2.0,
            label=f"K = {arms}: {(arms - 1) / (arms * lr):.4g}",
        )
        figures.expectation(ax, (arms - 1) / (arms * lr))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    ax.minorticks_off()
    figures.describe(
        ax,
        f"Exact steps (η = {lr:g}): t(1−p) → (K−1)/(Kη)",
        "steps t from the uniform policy",
        "t · (1 − p)",
    )
    figures.label_ends(ax, lines)
