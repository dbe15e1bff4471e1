"""Forecasts of something uncertain: where dividing by the group's std makes a calibrated policy
overconfident.

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

from bandits.environments import Deterministic, SharedForecast
from bandits.flow import expected_gradient, follow
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace
from course.exact import group_mean_factor, group_std_weight
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import GroupStd
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "forecasting an uncertain event: calibrated at .7 without the std, overconfident with it"
EXPECTED_SECONDS = 12.0


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
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.5 < self.p < 1,
            "p",
            self.p,
            "a probability between .5 and 1, so that overconfident means higher",
        )
        require(3 <= self.forecasts <= 21, "forecasts", self.forecasts, "from 3 to 21")
        spot = self.p * (self.forecasts - 1)
        require(
            abs(spot - round(spot)) < 1e-9,
            "forecasts",
            self.forecasts,
            f"a number of forecasts of which {self.p:g} is one",
        )
        require(
            2 <= self.group <= 6,
            "group",
            self.group,
            "from 2 to 6: every group is listed at every step",
        )
        require(
            len(self.groups) > 0 and min(self.groups) >= 2, "groups", self.groups, "group sizes ≥ 2"
        )
        require(self.runs >= 2, "runs", self.runs, "at least 2")
        require(
            self.steps >= 10 and self.steps % STRIDE == 0,
            "steps",
            self.steps,
            f"a multiple of {STRIDE}, at least 10",
        )
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")

    @property
    def step(self) -> float:
        """The distance between two neighbouring forecasts."""
        return 1 / (self.forecasts - 1)


STRIDE = 5  # the exact flow takes one step where the runs take five, five times as long
SETTINGS = Settings()
STD = replace(ladder.group_mean, scale=GroupStd(eps=0.0))


def event(settings: Settings, forecasts: Tensor | None = None) -> SharedForecast:
    """The environment, with all forecasts or with those given."""
    grid = (
        torch.linspace(0, 1, settings.forecasts, dtype=torch.float64)
        if forecasts is None
        else forecasts
    )
    return SharedForecast(grid, settings.p)


def even(settings: Settings) -> Tensor:
    """[K] log-probabilities of the uniform policy."""
    return torch.full((settings.forecasts,), 1 / settings.forecasts, dtype=torch.float64).log()


def pull(estimator: Estimator, environment: SharedForecast, log_prob: Tensor, group: int) -> Tensor:
    """[K] E[ĝ] at `log_prob` [K]: the samples share the event, so enumerate given that event, then
    average over it.
    """
    given = [Deterministic(reward.unsqueeze(0)) for reward in environment.given]
    no, yes = (expected_gradient(estimator, fixed, log_prob, group) for fixed in given)
    return (1 - environment.p) * no + environment.p * yes


def limit_gradient(environment: SharedForecast, log_prob: Tensor) -> Tensor:
    """[K] the same for group mean and std of infinitely many samples: Σ_y P(y) π (r_y − E
    r_y)/σ(r_y).
    """
    pi, total = log_prob.exp(), torch.zeros(log_prob.shape[-1], dtype=torch.float64)
    for happened, chance in ((0, 1 - environment.p), (1, environment.p)):
        reward = environment.given[happened]
        centred = reward - pi @ reward
        total += chance * pi * centred / (pi @ centred**2).sqrt()
    return total


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
    environment, uniform = event(settings), even(settings)
    flows, trained = {}, {}
    for name in settings.rungs:
        estimator = ladder.get(name).estimator

        def bar(steps: Iterable[int], name: str = name) -> Iterable[int]:
            return progress(steps, f"{name}, exact")

        drift = partial(pull, estimator, environment, group=settings.group)
        path = follow(
            drift,
            uniform,
            rate=STRIDE * settings.learning_rate,
            steps=settings.steps // STRIDE,
            progress=bar,
        ).exp()
        flows[name] = {"forecast": path @ environment.grid, "policy": path[-1]}
        trained[name] = train(settings, estimator, settings.group, progress)
    endless = follow(
        partial(limit_gradient, environment),
        uniform,
        rate=settings.learning_rate,
        steps=20 * settings.steps,
    ).exp()
    above = torch.linspace(settings.p, 1, 7).tolist()[
        1:
    ]  # forecasts to compare with the calibrated one
    series: dict[str, Any] = {
        "grid": environment.grid,
        "flow_steps": torch.arange(settings.steps // STRIDE + 1) * STRIDE,
        "flow": flows,
        "runs": trained,
        "groups": {
            group: train(settings, ladder.get("group_std").estimator, group, progress)
            for group in settings.groups
        },
        "limit": {
            "forecast": endless[: settings.steps + 1] @ environment.grid,
            "policy": endless[-1],
        },
        "pairs": {
            "q": above,
            "std": [pair(settings, STD, q) for q in above],
            "mean": [pair(settings, ladder.group_mean, q) for q in above],
        },
        "pairs_expected": {
            "std": [pair_by_majority(settings, 0.5)] * len(above),
            "mean": [pair_by_score(settings, q, 0.5) for q in above],
        },
    }
    return Result(series=series, facts=_facts(settings, series), caption=CAPTION)


def train(
    settings: Settings, estimator: Estimator, group: int, progress: Progress
) -> dict[str, Any]:
    """Training runs from the uniform policy: the mean forecast over runs with its standard error,
    and the last mean policy.
    """
    noise = Noise((settings.runs,), settings.seed, dtype=torch.float64)
    policy = Softmax.uniform(noise, 1, settings.forecasts)
    learner = Learner(
        Forecaster(event(settings), policy, group),
        estimator,
        SGD(settings.learning_rate),
        noise,
        log_every=5,
    )
    history = learner.train(
        settings.steps, lambda steps: progress(steps, f"G = {group}", total=settings.steps)
    )
    mean, error = mean_error(history["forecast"].T)
    start = float(event(settings).grid.mean())
    last = policy.log_probs().detach().exp().mean(0)[0]
    return {
        "steps": [0, *history.steps],
        "forecast": [start, *mean],
        "error": [0.0, *error],
        "policy": last,
    }


def pair(settings: Settings, estimator: Estimator, higher: float, share: float = 0.5) -> float:
    """The expected gradient on the logit of a `higher` forecast, of probability `share`, beside the
    calibrated one.
    """
    environment = event(settings, torch.tensor([settings.p, higher], dtype=torch.float64))
    log_prob = torch.tensor([1 - share, share], dtype=torch.float64).log()
    return float(pull(estimator, environment, log_prob, settings.group)[1])


def pair_by_majority(settings: Settings, share: float) -> float:
    """`pair` with the std: (2p − 1) w_G(π) π(1 − π), whatever the forecasts: rewards of two
    forecasts are two-valued given y.
    """
    return (
        (2 * settings.p - 1) * float(group_std_weight(share, settings.group)) * share * (1 - share)
    )


def pair_by_score(settings: Settings, higher: float, share: float) -> float:
    """`pair` with the mean alone: −(G−1)/G π(1 − π)(q − p)², the difference of the two expected
    Brier scores.
    """
    return -group_mean_factor(settings.group) * share * (1 - share) * (higher - settings.p) ** 2


# ---------------------------------------------------------------- facts

SOURCE = "Bereket & Leskovec 2025 (2508.11800)"


def _facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    return [*_exact_facts(settings), *_flow_facts(settings, series), *_run_facts(settings, series)]


def _exact_facts(settings: Settings) -> list[Fact]:
    """What holds to rounding error: no bias without the std, and the pairs."""
    p, group, environment = settings.p, settings.group, event(settings)
    uniform = even(settings)
    pi, score = uniform.exp(), environment.mean[0]
    gradient = pi * (score - pi @ score)
    found = pull(ladder.group_mean, environment, uniform, group)
    off = (found - group_mean_factor(group) * gradient).abs().max()
    claim = (
        "A shared event does not bias the group mean: E[ĝ] = (G−1)/G·∇J (largest difference,"
        f" uniform policy, G = {group})"
    )
    facts = [Fact.exact(claim, "this course", off, 0.0, number=15)]
    for share in (0.1, 0.5):
        where = f"forecasts {p:g} and 1, the latter with probability {share:g}, G = {group}"
        claim = (
            "With the std only the majority counts: the gradient on 1's logit is (2p−1) w_G(π)"
            f" π(1−π) ({where})"
        )
        facts.append(
            Fact.exact(
                claim,
                "this course",
                pair(settings, STD, 1.0, share),
                pair_by_majority(settings, share),
                number=15,
            )
        )
        claim = (
            "Without the std the gradient on 1's logit is −(G−1)/G·π(1−π)(1−p)²: towards the"
            f" calibrated forecast ({where})"
        )
        measured, expected = (
            pair(settings, ladder.group_mean, 1.0, share),
            pair_by_score(settings, 1.0, share),
        )
        facts.append(Fact.exact(claim, "this course", measured, expected, number=15))
    return facts


def _flow_facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    """Where the exact expected gradient leads."""
    grid, facts = series["grid"], []
    for name, claim, expected in (
        (
            "group_mean",
            (
                "Following E[ĝ] without the std, the likeliest forecast becomes the calibrated"
                f" {settings.p:g}"
            ),
            settings.p,
        ),
        (
            "rloo",
            f"Following E[ĝ] of RLOO, the likeliest forecast becomes the calibrated {settings.p:g}",
            settings.p,
        ),
        ("group_std", "Following E[ĝ] with the std, the likeliest forecast becomes 1", 1.0),
    ):
        if name in settings.rungs:
            likeliest = grid[series["flow"][name]["policy"].argmax()]
            facts.append(
                Fact.exact(
                    f"{claim} (G = {settings.group})", SOURCE, likeliest, expected, number=15
                )
            )
    far = 20 * settings.steps
    claim = (
        "With the std and infinitely many samples, from all forecasts alike, the likeliest after"
        f" {far} exact updates is .8: not .7, not 1"
    )
    if settings.p == 0.7 and settings.forecasts == 11:
        facts.append(
            Fact.exact(
                claim, "this course", grid[series["limit"]["policy"].argmax()], 0.8, number=15
            )
        )
    return facts


def _run_facts(settings: Settings, series: dict[str, Any]) -> list[Fact]:
    """Where the training runs end."""
    facts, half = [], settings.step / 2
    how = f"{settings.runs} runs, mean forecast after {settings.steps} updates"
    for name in ("group_mean", "rloo"):
        if name in settings.rungs:
            end = series["runs"][name]
            claim = (
                f"{name} ends within half a step of the grid of the calibrated {settings.p:g} (G ="
                f" {settings.group}, {how})"
            )
            facts.append(
                Fact.published(
                    claim,
                    SOURCE,
                    end["forecast"][-1],
                    end["error"][-1],
                    settings.p,
                    half,
                    number=15,
                )
            )
    for group in settings.groups:
        end = series["groups"][group]
        claim = (
            f"group_std ends more than a step of the grid above the calibrated {settings.p:g} (G ="
            f" {group}, {how})"
        )
        facts.append(
            Fact.above(
                claim,
                SOURCE,
                end["forecast"][-1],
                settings.p + settings.step,
                end["error"][-1],
                number=15,
            )
        )
    return facts


# ---------------------------------------------------------------- figure

CAPTION = (
    "Training runs: mean over runs and 95 % interval. Dashed in the first panel: the flow along the"
    " exact expected gradient; in the second: infinitely many samples; in the last: the closed"
    " forms. A committed run stays where it is, so the runs lag behind the flow."
)


def plot(result: Result) -> Figure:
    """Mean forecast by rung and by group size; the final policies; the pull between
    two forecasts.
    """
    figure, (rungs, groups, policies, pairs) = figures.new_figure(2, 2, width=12.6, height=8.6)
    p, group = result.settings["p"], result.settings["group"]
    for name in result.settings["rungs"]:
        _draw_run(rungs, result, ("runs", name), name, name, figures.style_of(name))
        figures.expectation(
            rungs, x=result.array("flow_steps")[1:], y=result.array("flow", name, "forecast")[1:]
        )
    figures.describe(
        rungs, f"Only the std is overconfident (G = {group})", "updates", "mean forecast"
    )
    sizes = list(result.series["groups"])
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        _draw_run(
            groups,
            result,
            ("groups", size),
            size,
            f"G = {size}",
            {"color": colour, "linestyle": "-"},
        )
    limit = result.array("limit", "forecast")
    figures.expectation(groups, x=range(1, len(limit)), y=limit[1:], label="G = ∞")
    figures.describe(groups, "… at every group size", "updates", "mean forecast, group_std")
    for ax in (rungs, groups):
        ax.axhline(p, color="#777777", linewidth=1.0)
        ax.annotate(
            f"calibrated: {p:g}",
            (1.3, p),
            xytext=(0, 4),
            textcoords="offset points",
            color=figures.INK,
        )
        ax.set_xscale("log")
        ax.set_ylim(0.45, 1.02)
        figures.label_ends(
            ax, [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        )
    _draw_policies(policies, result)
    _draw_pairs(pairs, result)
    return figure


def _draw_run(
    ax: Axes, result: Result, place: tuple[str, str], name: str, label: str, style: dict[str, Any]
) -> None:
    steps, mean, error = (result.array(*place, key)[1:] for key in ("steps", "forecast", "error"))
    figures.band(ax, steps, mean, 1.96 * error, name, label, **style)


def _draw_policies(ax: Axes, result: Result) -> None:
    grid, names = result.array("grid"), list(result.settings["rungs"])
    width = 0.8 * (grid[1] - grid[0]) / len(names)
    for place, name in enumerate(names):
        shift = (place - (len(names) - 1) / 2) * width
        ax.bar(
            grid + shift,
            result.array("runs", name, "policy"),
            width,
            color=figures.style_of(name)["color"],
            label=name,
        )
    figures.expectation(ax, x=result.settings["p"])
    ax.set_xticks(grid, [f"{q:.2g}" for q in grid])
    ax.legend(frameon=False, loc="upper left")
    steps, group = result.settings["steps"], result.settings["group"]
    figures.describe(
        ax,
        f"What is forecast after {steps} updates (G = {group})",
        "forecast",
        "probability, mean over runs",
    )


def _draw_pairs(ax: Axes, result: Result) -> None:
    q = result.array("pairs", "q")
    for name, key in (("group_std", "std"), ("group_mean", "mean")):
        colour = figures.style_of(name)["color"]
        ax.plot(q, result.array("pairs", key), "o", color=colour, label="_" + name)
        figures.expectation(ax, x=q, y=result.array("pairs_expected", key))
    ax.axhline(0, color="#777777", linewidth=1.0)
    p = result.settings["p"]
    ax.annotate(
        "with the std: the majority decides, always up",
        (q[0], 0.145),
        color=figures.readable(figures.style_of("group_std")["color"]),
    )
    ax.annotate(
        "mean alone: down, the more the further off",
        (q[0], 0.016),
        color=figures.readable(figures.style_of("group_mean")["color"]),
    )
    figures.describe(
        ax,
        f"Why: a forecast above {p:g} against {p:g} itself",
        "the higher forecast",
        "expected gradient on its logit",
    )
    ax.set_ylim(-0.05, 0.18)
