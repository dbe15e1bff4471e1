"""Where training ends: the anchor's estimator and the group's std decide it, not β alone.

One replaced part, another limit.

One prompt, a right answer (reward 1) and a wrong one (reward 0), success probability p, reference
p_ref, and w = w_G(p) the weight that the group's std gives (1/√(p(1−p)) at G = ∞). The expected
gradient, enumerated, is followed until it stops:

    std, k2 in the loss      logit p = logit p_ref + w/β           (KL(π‖ref); Mroueh 2025)
    std, k3 in the loss      p − w·p(1−p)/β = p_ref                (KL(ref‖π): GRPO)
    no std, k2 in the loss   logit p = logit p_ref + (G−1)/(Gβ)    (exponential tilting)

The first equation has none or two roots at G = ∞ (a stable one and a repelling one), and one or
three at finite G, since w_G never exceeds √(G−1): then a stable root always waits near 1. Mroueh's
recursion puts the old p into w and solves for the new one. It is the same natural-gradient ascent
with the large step 1/β, and it can leave where small steps stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import ascend, expected_gradient
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.parts import K2, K3, ExactKL, GroupStd, ImportanceSampling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = (
    "where GRPO's success probability settles: k2 or k3, with or without the std, and when it does"
    " not settle at all"
)
EXPECTED_SECONDS = 16.0


@dataclass(frozen=True)
class Settings(Checked):
    """One prompt with a right and a wrong answer; everything is enumerated."""

    group: int = 8  # samples per prompt
    reference: float = 0.3  # success probability of the reference, and where training starts
    # KL coefficients of the sweep
    betas: tuple[float, ...] = (0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0)
    beta: float = 0.5  # coefficient of the curves, one of `betas`
    step: float = 0.15  # step of the flow, in units of 1/β (the natural gradient's own scale)
    steps: int = 200  # updates of the flow
    cobweb_group: int = 256  # samples per prompt where the recursion is compared with the flow
    cobweb_reference: float = 0.001  # success probability of the reference there
    cobweb_beta: float = 0.7  # KL coefficient there
    seed: int = 0  # unused: nothing is sampled

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "cobweb_group"):
            require(
                2 <= getattr(self, name) <= 1024,
                name,
                getattr(self, name),
                "a whole number from 2 to 1024",
            )
        for name in ("reference", "cobweb_reference"):
            require(
                0 < getattr(self, name) < 1,
                name,
                getattr(self, name),
                "a probability between 0 and 1",
            )
        require(len(self.betas) > 0 and min(self.betas) > 0, "betas", self.betas, "numbers > 0")
        require(self.beta in self.betas, "beta", self.beta, f"one of betas {self.betas}")
        require(self.cobweb_beta > 0, "cobweb_beta", self.cobweb_beta, "a number > 0")
        require(0 < self.step <= 1, "step", self.step, "a number above 0, at most 1")
        require(self.steps > 0, "steps", self.steps, "a number > 0")


SETTINGS = Settings()
MROUEH = "Mroueh 2025 (2503.06639)"
VOJNOVIC = "Vojnovic & Yun 2025 (2502.18548)"
HERE = "derived here, checked by enumeration"
RIGHT_AND_WRONG = Deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
KINDS = ("std, k2", "std, k3", "no std, k2")
EDGE = 45.0  # |logit p| within which roots are looked for: 1 − p down to 3e-20


# ------------------------------------ the estimators, and the equations their limits should solve


def estimators(beta: float) -> dict[str, Estimator]:
    """The three, by `KINDS`: rungs of the ladder with one part replaced.

    eps = 0, as in the formulas.
    """
    std = replace(ladder.length_mean, scale=GroupStd(eps=0.0))
    return {
        "std, k2": replace(std, kl=K2(beta)),
        "std, k3": replace(std, kl=K3(beta)),
        "no std, k2": replace(ladder.group_mean, kl=K2(beta)),
    }


def weight(x: Tensor, group: float) -> Tensor:
    """w_G(p) at x = logit p, [...]; 2 cosh(x/2) at G = ∞, which no rounding of 1 − p spoils."""
    if group == math.inf:
        return 2 * torch.cosh(x / 2)
    return torch.where(
        x < 0, group_std_weight(torch.sigmoid(x), group), group_std_weight(torch.sigmoid(-x), group)
    )  # w(p) = w(1 − p)


def drift(kind: str, x: Tensor, reference: float, beta: float, group: float) -> Tensor:
    """d logit p/dt of the natural gradient at x = logit p, [...]: E[ĝ]/(p(1−p)) in closed form.

    Its zeros are the limits.

    `eq:kl-fixed-points`
    """
    centred = 1.0 if group == math.inf else group_mean_factor(int(group))
    gain = torch.full_like(x, centred) if kind == "no std, k2" else weight(x, group)
    if kind == "std, k3":
        return gain + beta * (
            reference * (1 + torch.exp(-x)) - (1 - reference) * (1 + torch.exp(x))
        )  # ref/p − (1 − ref)/(1 − p)
    return gain - beta * (x - logit(reference))


def logit(p: float) -> float:
    """log p/(1 − p)."""
    return math.log(p / (1 - p))


def roots(of: Callable[[Tensor], Tensor], points: int = 3601) -> list[tuple[float, bool]]:
    """The zeros of a drift in logit p, by scanning and bisection: (logit p, whether it is stable),
    in order.
    """
    x = torch.linspace(-EDGE, EDGE, points, dtype=torch.float64)
    sign = of(x) > 0
    turns = (sign[1:] != sign[:-1]).nonzero().squeeze(-1)
    found = []
    for turn in turns.tolist():
        low, high, falling = x[turn], x[turn + 1], bool(sign[turn])
        for _ in range(60):
            middle = (low + high) / 2
            if bool(of(middle) > 0) == falling:
                low = middle
            else:
                high = middle
        found.append((float((low + high) / 2), falling))
    return found


def limits(kind: str, reference: float, beta: float, group: float) -> list[tuple[float, bool]]:
    """The roots of the closed-form equation: (logit p, whether it is stable)."""
    return roots(lambda x: drift(kind, x, reference, beta, group))


def fold(reference: float) -> tuple[float, float]:
    """(β, logit p) where the two roots of the first equation meet at G = ∞ and vanish below.

    x − x_ref = (2/β) cosh(x/2) and its derivative 1 = sinh(x/2)/β give x − x_ref = 2 coth(x/2), β =
    sinh(x/2).
    """
    low, high = 1e-6, EDGE
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if middle - logit(reference) < 2 / math.tanh(middle / 2)
            else (low, middle)
        )
    return math.sinh(low / 2), low


def recursion(x: float, reference: float, beta: float, group: float) -> float:
    """Mroueh's next logit p: logit p_ref + w(old p)/β."""
    return logit(reference) + float(weight(torch.tensor(x, dtype=torch.float64), group)) / beta


# ---------------------------------------------------------------- the real thing, exactly


def policy_at(x: float) -> Tensor:
    """[2] log-probabilities of the right and the wrong answer at x = logit p."""
    both = torch.tensor([x, -x], dtype=torch.float64)
    return torch.nn.functional.logsigmoid(both)


def logits_of(path: Tensor) -> Tensor:
    """Policies [..., 2] → logit p [...]."""
    return path[..., 0] - path[..., 1]


def measured_drift(estimator: Estimator, x: float, reference: float, group: int) -> float:
    """E[ĝ]/π of the right answer less that of the wrong one: d logit p/dt of the natural gradient,
    by enumeration.
    """
    policy = policy_at(x)
    rate = (
        expected_gradient(
            estimator, RIGHT_AND_WRONG, policy, group, reference=policy_at(logit(reference))
        )
        / policy.exp()
    )
    return float(rate[0] - rate[1])


def settle(
    estimator: Estimator,
    start: float,
    reference: float,
    beta: float,
    group: int,
    step: float,
    steps: int,
) -> Tensor:
    """logit p [steps + 1] along natural-gradient ascent with rate step/β, from the success
    probability `start`.
    """
    anchor = policy_at(logit(reference))
    path = ascend(
        estimator,
        RIGHT_AND_WRONG,
        policy_at(logit(start)),
        group,
        rate=step / beta,
        steps=steps,
        reference=anchor,
        natural=True,
    )
    return logits_of(path)


@dataclass(frozen=True)
class Cobweb:
    """The recursion and the flow from one start, both by enumeration: logit p [n + 1] each."""

    flow: Tensor
    recursion: Tensor


def cobweb(settings: Settings) -> Cobweb:
    """Natural-gradient ascent with a small step, and with the step 1/β."""
    s, estimator = settings, estimators(settings.cobweb_beta)["std, k2"]
    start = s.cobweb_reference, s.cobweb_reference, s.cobweb_beta, s.cobweb_group
    return Cobweb(
        settle(estimator, *start, s.step, s.steps // 2), settle(estimator, *start, 1.0, 4)
    )


def run(settings: Settings, progress: Progress) -> Result:
    """Flows for every β and estimator, drifts on a grid, the recursion against the flow."""
    s = settings
    flows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for beta in progress(s.betas, "flows"):
        for kind, estimator in estimators(beta).items():
            flows[kind].append(
                settle(estimator, s.reference, s.reference, beta, s.group, s.step, s.steps)
            )
    ends = {kind: [float(path[-1]) for path in paths] for kind, paths in flows.items()}
    grid = torch.linspace(-4, 8, 25, dtype=torch.float64)
    field = {f"{beta:g}": _field(s, beta, grid, progress) for beta in (0.5, 2.0)}
    web = cobweb(s)
    fine = torch.linspace(-8, 20, 141, dtype=torch.float64)
    sweep = torch.logspace(
        math.log10(min(s.betas)), math.log10(max(s.betas)), 61, dtype=torch.float64
    ).tolist()
    sweep = sorted(
        [*sweep, *(fold(s.reference)[0] * near for near in (1.0002, 1.004, 1.015, 1.03))]
    )
    closed = {
        kind: [
            [_stable(limits(kind, s.reference, beta, group)) for beta in sweep]
            for group in (s.group, math.inf)
        ]
        for kind in KINDS
    }
    series = {
        "curves": {
            kind: torch.sigmoid(paths[s.betas.index(s.beta)]) for kind, paths in flows.items()
        },
        "targets": {
            kind: _probability(limits(kind, s.reference, s.beta, s.group)[0][0]) for kind in KINDS
        },
        "betas": s.betas,
        "ends": {kind: [_probability(x) for x in values] for kind, values in ends.items()},
        "sweep": sweep,
        "closed": {
            kind: {"finite": finite, "infinite": infinite}
            for kind, (finite, infinite) in closed.items()
        },
        "repelling": [_repelling(limits("std, k2", s.reference, beta, math.inf)) for beta in sweep],
        "fold": [fold(s.reference)[0], _probability(fold(s.reference)[1])],
        "grid": grid,
        "smooth": SMOOTH,
        "field": field,
        "fine": fine,
        "recursion": {
            "finite": [
                recursion(float(x), s.cobweb_reference, s.cobweb_beta, s.cobweb_group) for x in fine
            ],
            "infinite": [
                recursion(float(x), s.cobweb_reference, s.cobweb_beta, math.inf) for x in fine
            ],
        },
        "cobweb": {"flow": web.flow, "recursion": web.recursion},
        "cobweb_roots": [
            x for x, _ in limits("std, k2", s.cobweb_reference, s.cobweb_beta, s.cobweb_group)
        ],
    }
    facts = [*_drift_facts(s), *_limit_facts(s, ends), *_root_facts(s), *_cobweb_facts(s, web)]
    return Result(series=series, facts=facts, caption=CAPTION)


SMOOTH = torch.linspace(-4, 8, 241, dtype=torch.float64)


def _field(s: Settings, beta: float, grid: Tensor, progress: Progress) -> dict[str, object]:
    """The drift over β of «std, k2»: enumerated on the grid, in closed form at the group's size and
    at ∞, and its zeros.
    """
    estimator, found = estimators(beta)["std, k2"], {}
    for name, group in (("finite", float(s.group)), ("infinite", math.inf)):
        zeros = limits("std, k2", s.reference, beta, group)
        found[name] = {
            "closed": drift("std, k2", SMOOTH, s.reference, beta, group) / beta,
            "stable": [x for x, stable in zeros if stable],
            "repelling": [x for x, stable in zeros if not stable],
        }
    return {
        **found,
        "measured": [
            measured_drift(estimator, x, s.reference, s.group) / beta
            for x in progress(grid.tolist(), "drift")
        ],
    }


def _probability(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _stable(found: Sequence[tuple[float, bool]]) -> float:
    return next((_probability(x) for x, stable in found if stable), math.nan)


def _repelling(found: Sequence[tuple[float, bool]]) -> float:
    return next((_probability(x) for x, stable in found if not stable), math.nan)


# ---------------------------------------------------------------- facts


def _drift_facts(s: Settings) -> list[Fact]:
    """The expected gradient against its closed form, at nine policies."""
    facts, places = [], torch.linspace(-6, 6, 9, dtype=torch.float64)
    forms = {
        "std, k2": "p(1−p)·(w_G(p) − β·log(odds/reference odds))",
        "std, k3": "p(1−p)·w_G(p) − β·(p − p_ref)",
        "no std, k2": "p(1−p)·((G−1)/G − β·log(odds/reference odds))",
    }
    for kind, estimator in estimators(s.beta).items():
        closed = drift(kind, places, s.reference, s.beta, s.group)
        measured = torch.tensor(
            [measured_drift(estimator, x, s.reference, s.group) for x in places.tolist()],
            dtype=torch.float64,
        )
        claim = (
            f"{kind} in the loss: E[ĝ] on the right answer's logit is {forms[kind]} (G = {s.group},"
            f" p_ref = {s.reference:g}, β = {s.beta:g}; largest relative difference at 9 policies)"
        )
        worst = float(((measured - closed).abs() / closed.abs().clamp(min=1)).max())
        facts.append(
            Fact.exact(
                claim, HERE if kind == "std, k3" else f"{MROUEH}; {VOJNOVIC}", worst, 0.0, number=22
            )
        )
    return facts


def _limit_facts(s: Settings, ends: Mapping[str, Sequence[float]]) -> list[Fact]:
    """Where the flow stopped against the root of the equation."""
    equations = {
        "std, k2": ("logit p = logit p_ref + w_G(p)/β", f"{MROUEH}, at finite G"),
        "std, k3": ("p − w_G(p)·p(1−p)/β = p_ref", f"{VOJNOVIC}, at finite G"),
        "no std, k2": ("exponential tilting, logit p = logit p_ref + (G−1)/(Gβ)", VOJNOVIC),
    }
    facts = []
    for kind, (equation, source) in equations.items():
        where = f"(G = {s.group}, p_ref = {s.reference:g}, β = {s.beta:g}: final p)"
        end = _probability(ends[kind][s.betas.index(s.beta)])
        expected = _probability(limits(kind, s.reference, s.beta, s.group)[0][0])
        facts.append(
            Fact.exact(
                f"{kind} in the loss: training ends where {equation} {where}",
                source,
                end,
                expected,
                7,
                number=22,
            )
        )
        gaps = [
            abs(x - limits(kind, s.reference, beta, s.group)[0][0])
            for x, beta in zip(ends[kind], s.betas, strict=True)
        ]
        claim = (
            f"{kind} in the loss: the same at every β from {min(s.betas):g} to {max(s.betas):g}"
            " (largest difference in logit p)"
        )
        facts.append(Fact.exact(claim, source, max(gaps), 0.0, 7, number=22))
    return facts


def _root_facts(s: Settings) -> list[Fact]:
    """None or two roots at G = ∞, one or three at finite G."""
    p_ref = 0.3
    none, two = (limits("std, k2", p_ref, beta, math.inf) for beta in (0.5, 2.0))
    x = torch.linspace(logit(p_ref) + 0.5, 12, 1_000_001, dtype=torch.float64)
    least = float(
        (weight(x, math.inf) / (x - logit(p_ref))).min()
    )  # each x is a fixed point of one β: the smallest of them
    many, large = limits("std, k2", p_ref, 2.0, 1024), estimators(2.0)["std, k2"]
    repelling = many[1][0] if len(many) == 3 else math.nan
    below, above = (measured_drift(large, repelling + shift, p_ref, 1024) for shift in (-0.3, 0.3))
    escaped = settle(estimators(0.5)["std, k2"], p_ref, p_ref, 0.5, 8, 0.2, 150)
    where = "with the std at G = ∞ and k2 in the loss, p_ref = .3"
    return [
        Fact.exact(f"{where}, β = .5: number of fixed points", MROUEH, len(none), 0, number=22),
        Fact.exact(f"{where}, β = 2: number of fixed points", MROUEH, len(two), 2, number=22),
        Fact.exact(
            f"the lower of the two, p = {_stable(two):.4f}, is stable",
            HERE,
            two[0][1],
            True,
            number=22,
        ),
        Fact.exact(
            f"the upper of the two, p = {_repelling(two):.4f}, repels",
            HERE,
            two[1][1],
            False,
            number=22,
        ),
        Fact.exact(
            f"{where}: the two are born at β = sinh(x/2), x − logit p_ref = 2 coth(x/2) (β)",
            HERE,
            least,
            fold(p_ref)[0],
            9,
            number=22,
        ),
        Fact.exact(
            "at finite G a fixed point always remains, because w_G ≤ √(G − 1): p_ref = .3, β = .5,"
            " G = 8 ends at p where G = ∞ has none",
            HERE,
            _probability(float(escaped[-1])),
            _probability(limits("std, k2", p_ref, 0.5, 8)[-1][0]),
            7,
            number=22,
        ),
        Fact.exact(
            "p_ref = .3, β = 2, G = 1024: number of fixed points (the third lies beyond the"
            " repelling one)",
            HERE,
            len(many),
            3,
            number=22,
        ),
        Fact.below(
            "there, just below the repelling point, E[ĝ] leads down (d logit p/dt, nats per unit of"
            " time)",
            HERE,
            below,
            0.0,
            number=22,
        ),
        Fact.above("and just above it, up", HERE, above, 0.0, number=22),
    ]


def _cobweb_facts(s: Settings, web: Cobweb) -> list[Fact]:
    """Mroueh's recursion is not the gradient flow."""
    p_ref, beta, group = s.cobweb_reference, s.cobweb_beta, s.cobweb_group
    where = f"p_ref = {p_ref:g}, β = {beta:g}"
    infinite, finite = (
        limits("std, k2", p_ref, beta, math.inf),
        limits("std, k2", p_ref, beta, group),
    )
    facts = []
    formula = [logit(p_ref)]
    for _ in range(len(web.recursion) - 1):
        formula.append(recursion(formula[-1], p_ref, beta, group))
    worst = max(
        abs(a - b) / max(1.0, abs(b)) for a, b in zip(web.recursion.tolist(), formula, strict=True)
    )
    claim = (
        f"the recursion is natural-gradient ascent with rate 1/β ({where}, G = {group}; largest"
        " relative difference in logit p)"
    )
    facts.append(Fact.exact(claim, HERE, worst, 0.0, number=22))
    solved, stale = 2.0, estimators(2.0)["std, k2"]
    old = policy_at(logit(0.3))
    new = policy_at(recursion(logit(0.3), 0.3, solved, 8))
    frozen = replace(replace(stale, surrogate=ImportanceSampling()), kl=ExactKL(solved))
    left = float(expected_gradient(frozen, RIGHT_AND_WRONG, new, 8, old=old, reference=old).norm())
    claim = (
        "one step of it is where the frozen objective E_old[ρA] − β·KL(π‖ref) is stationary (p_ref"
        " = .3, β = 2, G = 8; gradient left)"
    )
    facts.append(Fact.exact(claim, MROUEH, left, 0.0, number=22))
    near, last = finite[0][0], finite[-1][0]
    claim = (
        f"the flow from p_ref converges to the lowest fixed point ({where}, G = {group}: final p)"
    )
    facts.append(
        Fact.exact(claim, HERE, _probability(float(web.flow[-1])), _probability(near), 6, number=22)
    )
    if (p_ref, beta) != (0.001, 0.7):  # whether the recursion leaves depends on both
        return facts
    slope = (
        math.sinh(infinite[0][0] / 2) / beta
    )  # of the recursion in logit p: d/dx of (2/β) cosh(x/2)
    far = logit(p_ref)
    for _ in range(3):
        far = min(recursion(far, p_ref, beta, math.inf), 700.0)  # cosh overflows further out
    measured, expected = (
        math.log10(1 / (1 + math.exp(x))) for x in (float(web.recursion[-1]), last)
    )
    return [
        *facts,
        Fact.exact(
            f"at G = ∞ ({where}) the recursion escapes to 1: p after 3 steps",
            MROUEH,
            _probability(far),
            1.0,
            number=22,
        ),
        Fact.below(
            f"although its fixed point p = {_stable(infinite):.4f} is stable for the flow: slope of"
            " the recursion there, below −1",
            HERE,
            slope,
            -1.0,
            number=22,
        ),
        Fact.exact(
            f"at finite G it ends beside 1 ({where}, G = {group}: log10 of 1 − p, against the"
            " highest fixed point)",
            MROUEH,
            measured,
            expected,
            6,
            number=22,
        ),
    ]


# ---------------------------------------------------------------- the figure

CAPTION = "Exact: every group is enumerated. Dashed: roots of the closed-form equations."
STYLES = {
    "std, k2": figures.style_of("group_std"),
    "std, k3": figures.style_of("grpo"),
    "no std, k2": figures.style_of("group_mean"),
}
NAMES = {
    "std, k2": "std, k2: KL(π‖ref)",
    "std, k3": "std, k3: KL(ref‖π)",
    "no std, k2": "no std, k2",
}
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
NEAR_ONE = (1 - 1e-5, 1 - 1e-7)


def plot(result: Result) -> Figure:
    """Three limits; the limits against β; the drift that has no zero; the recursion that leaves."""
    figure, (curves, sweep, field, web) = figures.new_figure(2, 2, width=13.2, height=9.4)
    _plot_curves(curves, result)
    _plot_sweep(sweep, result)
    _plot_field(field, result)
    _plot_web(web, result)
    return figure


def _plot_curves(ax: Axes, result: Result) -> None:
    for kind in KINDS:
        curve = result.array("curves", kind)[:41]
        figures.band(
            ax,
            np.arange(len(curve)),
            curve,
            label=NAMES[kind],
            **{**STYLES[kind], "linestyle": "-"},
        )
        figures.expectation(ax, float(result.array("targets", kind)))
    beta, group = result.settings["beta"], result.settings["group"]
    figures.expectation(ax, result.settings["reference"])
    ax.text(40, result.settings["reference"] + 0.015, "reference", ha="right", color=figures.INK)
    ax.set_ylim(0.2, 1.02)
    figures.describe(
        ax,
        "One replaced part, another limit",
        "updates (natural gradient, exact)",
        f"success probability p (β = {beta:g}, G = {group})",
    )
    figures.label_ends(ax)


def _plot_sweep(ax: Axes, result: Result) -> None:
    x, betas = result.array("sweep"), result.array("betas")
    for kind in KINDS:
        colour = STYLES[kind]["color"]
        ax.plot(betas, result.array("ends", kind), "o", color=colour, markersize=6, label="_")
        figures.expectation(ax, result.array("closed", kind, "finite"), x)
    figures.band(
        ax,
        x,
        result.array("closed", "std, k2", "infinite"),
        color=STYLES["std, k2"]["color"],
        linestyle="-",
        linewidth=1.6,
        label="_",
    )
    repelling = result.array("repelling")
    figures.band(
        ax, x, repelling, color=STYLES["std, k2"]["color"], linestyle=":", linewidth=1.6, label="_"
    )
    at, height = result.array("fold")
    ax.plot(at, height, "D", color=STYLES["std, k2"]["color"], markersize=6)
    ax.annotate(
        f"std, k2 at G = ∞: no limit\nbelow β = {at:.2f}, above it one\nthat holds (line) and"
        " one\nthat repels (dotted)",
        (at, height),
        (2.4, 0.70),
        color=figures.readable(STYLES["std, k2"]["color"]),
        arrowprops={"arrowstyle": "-", "color": STYLES["std, k2"]["color"], "linewidth": 0.8},
    )
    ax.set_xscale("log")
    ax.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    ax.minorticks_off()
    ax.set_ylim(0.28, 1.02)
    group = result.settings["group"]
    figures.describe(
        ax,
        "Where each ends, and the equations (dashed)",
        "β",
        f"limit of the success probability p (dots: G = {group})",
    )


def _plot_field(ax: Axes, result: Result) -> None:
    for beta, colour in (("0.5", "#7a1f5c"), ("2", "#c25fa0")):
        ax.plot(
            result.array("grid"),
            result.array("field", beta, "measured"),
            "o",
            color=colour,
            markersize=4.5,
            label="_",
        )
        for size, dashes in (("finite", (0, (4, 2))), ("infinite", "-")):
            name = f"β = {beta}, G = {'∞' if size == 'infinite' else result.settings['group']}"
            closed = result.array("field", beta, size, "closed")
            figures.band(
                ax,
                result.array("smooth"),
                closed,
                color=colour,
                linestyle=dashes,
                label=name,
                linewidth=1.8,
            )
            for kind, fill in (("stable", colour), ("repelling", "white")):
                zeros = result.array("field", beta, size, kind)
                zeros = zeros[zeros < 8]
                style: dict[str, Any] = {
                    "markersize": 9,
                    "markerfacecolor": fill,
                    "markeredgewidth": 1.8,
                    "zorder": 4,
                    "label": "_",
                }
                ax.plot(zeros, 0 * zeros, "o", color=colour, **style)
    ax.axhline(0, color=figures.INK, linewidth=1)
    ax.set_ylim(-6, 9)
    _probability_axis(ax, (-4, 8), TICKS)
    figures.describe(
        ax,
        "std, k2: at G = ∞ it may never stop (● holds, ○ repels)",
        "success probability p (logit scale)",
        "drift of logit p, over β",
    )
    ax.legend(loc="lower left", frameon=False, fontsize=10)


def _probability_axis(
    ax: Axes, span: tuple[float, float], x: Sequence[float], y: Sequence[float] = ()
) -> None:
    """Name places on logit axes by their probabilities; `span` limits the first axis."""
    names = {
        p: f"{p:g}" if p <= 0.999 else f"1−10$^{{{round(math.log10(1 - p))}}}$" for p in (*x, *y)
    }
    shown = [p for p in x if span[0] <= logit(p) <= span[1]]
    ax.set_xlim(*span)
    ax.set_xticks([logit(p) for p in shown], [names[p] for p in shown])
    if y:
        ax.set_yticks([logit(p) for p in y], [names[p] for p in y])


def _plot_web(ax: Axes, result: Result) -> None:
    fine: NDArray[np.float64] = result.array("fine")
    shape, path, flow = (
        result.array("recursion", "finite"),
        result.array("cobweb", "recursion"),
        result.array("cobweb", "flow"),
    )
    group = result.settings["cobweb_group"]
    colour = STYLES["std, k2"]["color"]
    figures.expectation(ax, fine, fine)
    ax.plot(fine, shape, color=colour, linewidth=2)
    infinite = result.array("recursion", "infinite")
    ax.plot(
        fine[infinite < 19], infinite[infinite < 19], color=colour, linewidth=1.2, linestyle=":"
    )
    corners = np.repeat(path, 2)
    ax.plot(
        corners[:-1], np.concatenate([corners[:1], corners[2:]]), color="#0057a3", linewidth=1.8
    )  # from the diagonal up, then across
    ax.plot(flow, flow, "o-", color="#00875f", markersize=5, linewidth=1)
    ax.text(
        0.11,
        0.80,
        "the recursion (step 1/β)\nleaves at once",
        transform=ax.transAxes,
        color="#0057a3",
        va="top",
    )
    ax.text(
        0.10,
        0.05,
        "the flow (small steps) stays at the first",
        transform=ax.transAxes,
        color=figures.readable("#00875f"),
        va="center",
    )
    told = "logit p_ref + w(old p)/β\n(dotted: G = ∞)\n○  its fixed points"
    ax.text(0.56, 0.42, told, transform=ax.transAxes, color=figures.readable(colour), va="center")
    for root in result.array("cobweb_roots"):
        ax.plot(
            root,
            root,
            "o",
            color=figures.INK,
            markersize=8,
            markerfacecolor="none",
            markeredgewidth=1.5,
        )
    ax.set_ylim(-8, 19)
    _probability_axis(ax, (-8, 19), TICKS[::2] + NEAR_ONE, TICKS + NEAR_ONE)
    figures.describe(
        ax, f"The recursion is not the flow (G = {group})", "old p (logit scale)", "next p"
    )
