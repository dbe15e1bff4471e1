"""Forecasts of an uncertain event: dividing by the group std makes a policy overconfident.

An event happens with probability .7. The policy answers with a forecast 0, .1, …, 1 and earns 1 −
(q − y)², the Brier score, which is best on average at q = .7. All samples of a group are scored on
the same event. Without the std the policy settles at .7. With it, each group's rewards are scaled
to the same spread whether the event happened or not, so what counts is which forecast was nearer,
not by how much: the 30 % of events that should punish overconfidence are large, and are scaled
down. Between any two forecasts the majority wins, and the policy goes towards 1.

Look also at how it depends on the group: with more samples it takes longer, and in the limit of
infinitely many, started from all forecasts alike, it settles at .8, still overconfident.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import SharedForecast
from bandits.flow import follow
from bandits.policies import Softmax
from bandits.problem import Bandit
from bandits.theory import overconfidence as theory
from course import ladder
from course.errors import require
from course.estimator import Estimator
from course.exact import group_mean_factor
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, student
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "forecasting an uncertain event: calibrated at .7 without the std, overconfident with it"
EXPECTED_SECONDS = 12.0


STRIDE = 5  # the exact flow takes one step where the runs take five, five times as long


@dataclass(frozen=True)
class Settings(Checked):
    """The event, the forecasts, and the runs."""

    rungs: tuple[str, ...] = ("group_mean", "rloo", "group_std")  # which estimators
    p: float = 0.7  # probability of the event
    forecasts: int = 11  # possible forecasts, evenly from 0 to 1
    group: int = 4  # samples per event, where one size is enough
    groups: tuple[int, ...] = (2, 4, 16, 64)  # samples per event, group_std alone
    runs: int = 100  # independent training runs
    steps: int = 1000  # updates of each
    learning_rate: float = 1.0  # of plain gradient ascent
    seed: int = 0  # seed of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "a probability between .5 and 1, so that overconfident means higher"
        require(0.5 < self.p < 1, "p", self.p, allowed)
        spot = self.p * (self.forecasts - 1)
        fits = 3 <= self.forecasts <= 21 and abs(spot - round(spot)) < 1e-9
        allowed = f"from 3 to 21 forecasts of which {self.p:g} is one"
        require(fits, "forecasts", self.forecasts, allowed)
        allowed = "from 2 to 6: every group is listed at every step"
        require(2 <= self.group <= 6, "group", self.group, allowed)
        require(min(self.groups) >= 2, "groups", self.groups, "group sizes ≥ 2")
        require(self.runs >= 2, "runs", self.runs, "at least 2")
        whole = self.steps >= 10 and self.steps % STRIDE == 0
        require(whole, "steps", self.steps, f"a multiple of {STRIDE}, at least 10")

    @property
    def step(self) -> float:
        """The distance between two neighbouring forecasts."""
        return 1 / (self.forecasts - 1)

    @property
    def event(self) -> SharedForecast:
        """The environment: all forecasts, evenly from 0 to 1."""
        return SharedForecast(torch.linspace(0, 1, self.forecasts, dtype=torch.float64), self.p)


SETTINGS = Settings()
SOURCE = "Bereket & Leskovec 2025 (2508.11800)"
CAPTION = (
    "Training runs: mean over runs and 95 % interval. Dashed in the first panel: the flow along the"
    " exact expected gradient; in the second: infinitely many samples; in the last: the closed"
    " forms. A committed run stays where it is, so the runs lag behind the flow."
)


class Forecaster(Bandit):
    """The bandit, logging also the mean forecast of each run's policy."""

    def metrics(self) -> dict[str, Tensor]:
        """… and `forecast` [...], Σ π(q) q."""
        assert isinstance(self.environment, SharedForecast)
        with torch.no_grad():
            forecast = (self.arm_policy.log_probs().exp() * self.environment.grid).sum(-1).mean(-1)
        return super().metrics() | {"forecast": forecast}


def run(settings: Settings, progress: Progress) -> Result:
    """Exact flows and training runs for every rung; runs of the std for every group size; pairs of
    forecasts.
    """
    s, environment = settings, settings.event
    uniform = torch.full((s.forecasts,), 1 / s.forecasts, dtype=torch.float64).log()
    flows, trained, count = {}, {}, s.steps // STRIDE
    for name in s.rungs:
        estimator = ladder.get(name).estimator

        def bar(steps: Iterable[int], name: str = name) -> Iterable[int]:
            return progress(steps, f"{name}, exact")

        drift = partial(theory.pull, estimator, environment, group=s.group)
        rate = STRIDE * s.learning_rate
        path = follow(drift, uniform, rate=rate, steps=count, progress=bar).exp()
        flows[name] = {"forecast": path @ environment.grid, "policy": path[-1]}
        trained[name] = train(s, estimator, s.group, progress)
    endless = partial(theory.limit_gradient, environment)
    limit = follow(endless, uniform, rate=s.learning_rate, steps=20 * s.steps).exp()
    # forecasts to compare with the calibrated one
    above, std = torch.linspace(s.p, 1, 7).tolist()[1:], ladder.get("group_std").estimator
    pair = partial(theory.pair, p=s.p, share=0.5, group=s.group)
    by_score = partial(theory.pair_by_score, p=s.p, share=0.5, group=s.group)
    series: dict[str, Any] = {
        "grid": environment.grid,
        "flow_steps": torch.arange(count + 1) * STRIDE,
        "flow": flows,
        "runs": trained,
        "groups": {group: train(s, std, group, progress) for group in s.groups},
        "limit": {"forecast": limit[: s.steps + 1] @ environment.grid, "policy": limit[-1]},
        "pairs": {
            "q": above,
            "std": [pair(theory.STD, higher=q) for q in above],
            "mean": [pair(ladder.group_mean, higher=q) for q in above],
        },
        "pairs_expected": {
            "std": [theory.pair_by_majority(s.p, 0.5, s.group)] * len(above),
            "mean": [by_score(higher=q) for q in above],
        },
    }
    facts = [*_exact_facts(s, uniform), *_flow_facts(s, series), *_run_facts(s, series)]
    return Result(series=series, facts=facts, caption=CAPTION)


def train(
    settings: Settings, estimator: Estimator, group: int, progress: Progress
) -> dict[str, Any]:
    """Training runs from the uniform policy: the mean forecast over runs with its standard error,
    and the last mean policy.
    """
    noise = Noise((settings.runs,), settings.seed, dtype=torch.float64)
    policy = Softmax.uniform(noise, 1, settings.forecasts)
    bandit = Forecaster(settings.event, policy, group)
    learner = Learner(bandit, estimator, SGD(settings.learning_rate), noise, log_every=5)
    history = learner.train(
        settings.steps, lambda steps: progress(steps, f"G = {group}", total=settings.steps)
    )
    mean, error = mean_error(history["forecast"].T)
    return {
        "steps": [0, *history.steps],
        "forecast": [float(settings.event.grid.mean()), *mean],
        "error": [0.0, *error],
        "policy": policy.log_probs().detach().exp().mean(0)[0],
    }


# ---------------------------------------------------------------- facts


def _exact_facts(s: Settings, uniform: Tensor) -> list[Fact]:
    """What holds to rounding error: no bias without the std, and the pairs."""
    p, group, environment, here = s.p, s.group, s.event, "this course"
    pi, score = uniform.exp(), environment.mean[0]
    gradient = group_mean_factor(group) * pi * (score - pi @ score)
    off = (theory.pull(ladder.group_mean, environment, uniform, group) - gradient).abs().max()
    claim = "A shared event does not bias the group mean: E[ĝ] = (G−1)/G·∇J (largest difference,"
    facts = [Fact.exact(f"{claim} uniform policy, G = {group})", here, off, 0.0, number=15)]
    majority = "With the std only the majority counts: the gradient on 1's logit is (2p−1) w_G(π)"
    majority += " π(1−π)"
    lower = "Without the std the gradient on 1's logit is −(G−1)/G·π(1−π)(1−p)²: towards the"
    lower += " calibrated forecast"
    for share in (0.1, 0.5):
        where = f"(forecasts {p:g} and 1, the latter with probability {share:g}, G = {group})"
        found = theory.pair(theory.STD, p, 1.0, share, group)
        form = theory.pair_by_majority(p, share, group)
        facts.append(Fact.exact(f"{majority} {where}", here, found, form, number=15))
        found = theory.pair(ladder.group_mean, p, 1.0, share, group)
        form = theory.pair_by_score(p, 1.0, share, group)
        facts.append(Fact.exact(f"{lower} {where}", here, found, form, number=15))
    return facts


def _flow_facts(s: Settings, series: dict[str, Any]) -> list[Fact]:
    """Where the exact expected gradient leads."""
    grid, facts, likeliest = series["grid"], [], "the likeliest forecast becomes"
    for name, claim, expected in (
        ("group_mean", f"E[ĝ] without the std, {likeliest} the calibrated {s.p:g}", s.p),
        ("rloo", f"E[ĝ] of RLOO, {likeliest} the calibrated {s.p:g}", s.p),
        ("group_std", f"E[ĝ] with the std, {likeliest} 1", 1.0),
    ):
        if name in s.rungs:
            end = grid[series["flow"][name]["policy"].argmax()]
            claim = f"Following {claim} (G = {s.group})"
            facts.append(Fact.exact(claim, SOURCE, end, expected, number=15))
    if s.p == 0.7 and s.forecasts == 11:
        claim = "With the std and infinitely many samples, from all forecasts alike, the likeliest"
        claim += f" after {20 * s.steps} exact updates is .8: not .7, not 1"
        end = grid[series["limit"]["policy"].argmax()]
        facts.append(Fact.exact(claim, "this course", end, 0.8, number=15))
    return facts


def _run_facts(s: Settings, series: dict[str, Any]) -> list[Fact]:
    """Where the training runs end."""
    facts, how = [], f"{s.runs} runs, mean forecast after {s.steps} updates)"
    for name in ("group_mean", "rloo"):
        if name in s.rungs:
            mean, error = (series["runs"][name][what][-1] for what in ("forecast", "error"))
            claim = f"{name} ends within half a step of the grid of the calibrated {s.p:g} (G ="
            judge = partial(Fact.published, rounding=s.step / 2, number=15, runs=s.runs)
            facts.append(judge(f"{claim} {s.group}, {how}", SOURCE, mean, error, s.p))
    for group in s.groups:
        mean, error = (series["groups"][group][what][-1] for what in ("forecast", "error"))
        claim = f"group_std ends more than a step of the grid above the calibrated {s.p:g} (G ="
        claim, least = f"{claim} {group}, {how}", s.p + s.step
        facts.append(Fact.above(claim, SOURCE, mean, least, error, number=15, runs=s.runs))
    return facts


# ---------------------------------------------------------------- the figure


def plot(result: Result) -> Figure:
    """Mean forecast by rung and by group size; the final policies; the pull between
    two forecasts.
    """
    figure, (rungs, groups, policies, pairs) = figures.new_figure(2, 2, width=12.6, height=8.6)
    p, group = result.settings["p"], result.settings["group"]
    after, sizes = result.array("flow_steps")[1:], list(result.series["groups"])
    for name in result.settings["rungs"]:
        _draw_run(rungs, result, ("runs", name), name, figures.style_of(name))
        figures.expectation(rungs, result.array("flow", name, "forecast")[1:], after)
    title = f"Only the std is overconfident (G = {group})"
    figures.describe(rungs, title, "updates", "mean forecast")
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        look = {"color": colour, "linestyle": "-"}
        _draw_run(groups, result, ("groups", size), f"G = {size}", look)
    limit = result.array("limit", "forecast")
    figures.expectation(groups, limit[1:], range(1, len(limit)), label="G = ∞")
    figures.describe(groups, "… at every group size", "updates", "mean forecast, group_std")
    for ax in (rungs, groups):
        ax.axhline(p, color="#777777", linewidth=1.0, label="_calibrated")
        figures.note(ax, f"calibrated: {p:g}", (1.3, p), (0, 4))
        figures.log_axis(ax, "x")
        ax.set_ylim(0.45, 1.02)
        figures.label_ends(ax)
    _draw_policies(policies, result)
    _draw_pairs(pairs, result)
    return figure


def _draw_run(
    ax: Axes, result: Result, place: tuple[str, str], label: str, style: dict[str, Any]
) -> None:
    steps, mean, error = (result.array(*place, key)[1:] for key in ("steps", "forecast", "error"))
    half = student(0.05, result.settings["runs"]) * error
    figures.band(ax, steps, mean, half, label=label, **style)


def _draw_policies(ax: Axes, result: Result) -> None:
    grid, names = result.array("grid"), list(result.settings["rungs"])
    width = 0.8 * (grid[1] - grid[0]) / len(names)
    for place, name in enumerate(names):
        x = grid + (place - (len(names) - 1) / 2) * width
        height, colour = result.array("runs", name, "policy"), figures.style_of(name)["color"]
        ax.bar(x, height, width, color=colour, label=name)
    figures.expectation(ax, x=result.settings["p"])
    ax.set_xticks(grid, [f"{q:.2g}" for q in grid])
    ax.legend(frameon=False, loc="upper left")
    steps, group = result.settings["steps"], result.settings["group"]
    title = f"What is forecast after {steps} updates (G = {group})"
    figures.describe(ax, title, "forecast", "probability, mean over runs")


def _draw_pairs(ax: Axes, result: Result) -> None:
    q, p = result.array("pairs", "q"), result.settings["p"]
    for name, key, text, height in (
        ("group_std", "std", "with the std: the majority decides, always up", 0.145),
        ("group_mean", "mean", "mean alone: down, the more the further off", 0.016),
    ):
        colour = figures.style_of(name)["color"]
        ax.plot(q, result.array("pairs", key), "o", color=colour)
        figures.expectation(ax, result.array("pairs_expected", key), q)
        figures.note(ax, text, (q[0], height), color=figures.readable(colour), fontsize=11)
    ax.axhline(0, color="#777777", linewidth=1.0)
    ax.set_ylim(-0.05, 0.18)
    title = f"Why: a forecast above {p:g} against {p:g} itself"
    figures.describe(ax, title, "the higher forecast", "expected gradient on its logit")
