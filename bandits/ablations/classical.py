"""Is GRPO a good bandit algorithm? Against ε-greedy, UCB and Thompson sampling, pull for pull.

Ten arms pay 1 with a probability drawn from U(0, 1), else 0. The policy gradients get G pulls per update, the others one;
all get the same number of pulls, and the same meter writes down what each pull cost: the best arm's mean less the pulled
one's, summed up (the regret). Every setting is swept, chosen on one half of the runs and judged on the other.

What to look for: tuned, the group methods lose less than ε-greedy and than UCB with its textbook bonus. But Thompson
sampling, with nothing to tune, loses half as much; and where its regret flattens, theirs goes on rising: a softmax that has
committed to a wrong arm hardly pulls the others again, so some runs never find the best. Baselines and groups make the
gradient quieter. None of them explores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.agents import UCB, Agent, BetaThompson, EpsilonGreedy, Metered, play
from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import figures, ladder
from course.errors import require
from course.estimator import uses_critic
from course.learner import Learner
from course.noise import Noise
from course.optim import SGD
from course.results import Fact, Result, mean_error
from course.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "GRPO against ε-greedy, UCB and Thompson sampling at equal pulls: tuned it does well, but it does not explore"
EXPECTED_SECONDS = 40.0
SOURCE = "this course: simulated; the question is Giovanidis 2025 (GRPO is just PPO for bandits)"
TEXTBOOK = math.sqrt(2)  # c of UCB1, Auer et al. 2002
SYMBOLS = {"epsilon_greedy": "ε", "ucb": "c"}
LABELS = {"epsilon_greedy": "ε-greedy", "ucb": "UCB", "thompson": "Thompson"}


@dataclass(frozen=True)
class Settings:
    """What is run. Every run has arms of its own, and every algorithm sees the same ones."""

    rungs: tuple[str, ...] = ("reinforce", "group_mean", "group_std", "grpo")  # which policy gradients
    pulls: int = 2048  # per run, whoever pulls
    group: int = 16  # pulls per update in the first two panels
    groups: tuple[int, ...] = (2, 4, 8, 16, 32, 64)  # pulls per update in the third panel; divisors of pulls
    arms: int = 10  # arms per run
    learning_rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # the sweep of each policy gradient
    epsilons: tuple[float, ...] = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # the sweep of ε-greedy
    bonuses: tuple[float, ...] = tuple(TEXTBOOK * 2.0**k for k in (-4, -3, -2, -1, 0))  # the sweep of UCB; √2 is the textbook's
    runs: int = 400  # independent runs that are reported (as many again choose the settings)
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        for name in ("runs", "arms"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(len(self.rungs) > 0, "rungs", self.rungs, "at least one name")
        sizes = (self.group, *self.groups)
        require(self.pulls >= 4 * self.group, "pulls", self.pulls, f"at least 4 rollouts of group = {self.group}")
        require(all(g > 1 and self.pulls % g == 0 for g in sizes), "group, groups", sizes, f"divisors of pulls = {self.pulls} above 1")
        for name in ("learning_rates", "epsilons", "bonuses"):
            values = getattr(self, name)
            require(len(values) > 0 and min(values) > 0, name, values, "at least one number > 0")
        require(max(self.epsilons) <= 1, "epsilons", self.epsilons, "probabilities")

    @property
    def is_default(self) -> bool:
        """Whether the claims were made for this experiment (other runs, seeds and rungs may be chosen)."""
        return dataclasses.replace(self, rungs=SETTINGS.rungs, runs=SETTINGS.runs, seed=SETTINGS.seed) == SETTINGS


SETTINGS = Settings()
Bar = Callable[[Iterable[int]], Iterable[int]]


def ground(settings: Settings, values: int) -> tuple[Noise, Metered]:
    """Random streams for the run axes (values, 2·runs) and the metered arms: run n has its arms and stream under every value."""
    runs = 2 * settings.runs
    noise = Noise((values, runs), settings.seed, numbers=[*range(runs)] * values)
    return noise, Metered(Bernoulli(noise.uniform(1, settings.arms)), every=settings.group)


def gradient(settings: Settings, name: str, group: int, bar: Bar) -> Metered:
    """A policy gradient with `group` pulls per update (ReMax's greedy answer is a pull too), at every learning rate."""
    estimator = ladder.get(name).estimator
    noise, arms = ground(settings, len(settings.learning_rates))
    greedy = "greedy_reward" in estimator.baseline.needs
    policy = Softmax.uniform(noise, 1, settings.arms)
    bandit = Bandit(arms, policy, group - greedy, reference="start", critic=uses_critic(estimator), greedy=greedy)
    optimizer = SGD(torch.tensor(settings.learning_rates).unsqueeze(-1).expand(noise.runs))
    updates = settings.pulls // group
    Learner(bandit, estimator, optimizer, noise, log_every=updates, halt_diverged=True).train(updates, bar)
    return arms


def classical(settings: Settings, name: str, bar: Bar) -> Metered:
    """ε-greedy, UCB or Thompson sampling, one pull at a time, at every value of its setting."""
    values = settings_of(settings, name)
    noise, arms = ground(settings, len(values))
    value = torch.tensor(values).unsqueeze(-1).expand(noise.runs)
    make: dict[str, Callable[[], Agent]] = {
        "epsilon_greedy": lambda: EpsilonGreedy(noise, 1, settings.arms, value),
        "ucb": lambda: UCB(noise, 1, settings.arms, value),
        "thompson": lambda: BetaThompson(noise, 1, settings.arms),
    }
    play(make[name](), arms, settings.pulls, noise, bar)
    return arms


def settings_of(settings: Settings, name: str) -> tuple[float, ...]:
    """The values that are swept; Thompson sampling has none: its prior is the truth, so one run is the sweep."""
    return {"epsilon_greedy": settings.epsilons, "ucb": settings.bonuses, "thompson": (1.0,)}.get(name, settings.learning_rates)


@dataclass(frozen=True)
class Judged:
    """An algorithm at its own best value: `regret` [runs] at the end, `tail` [runs] per pull of the second half."""

    value: float
    regret: Tensor
    tail: Tensor
    series: Mapping[str, Any]
    textbook: Tensor  # [runs] regret at the largest value of the sweep


def judge(settings: Settings, name: str, arms: Metered) -> Judged:
    """Choose the value on the first half of the runs, report on the second."""
    tune, rest = slice(0, settings.runs), slice(settings.runs, None)
    final = arms.regret.double()  # [values, 2·runs]
    best = int(final[:, tune].mean(-1).argmin())
    course = arms.regrets[:, best, rest].double()  # [marks, runs]
    half = arms.marks.index(min(arms.marks, key=lambda mark: abs(mark - settings.pulls / 2)))
    values = settings_of(settings, name)
    (mean, error), (sweep, sweep_error) = mean_error(course.T), mean_error(final[:, rest].T)
    series = {
        "value": values[best],
        "values": values,
        "pulls": arms.marks,
        "regret": mean,
        "regret_half": 1.96 * error,
        "sweep": sweep,
        "sweep_half": 1.96 * sweep_error,
    }
    tail = (course[-1] - course[half]) / (arms.marks[-1] - arms.marks[half])
    return Judged(values[best], course[-1], tail, series, final[-1, rest])


def run(settings: Settings, progress: Progress) -> Result:
    """Every algorithm over its settings; then the policy gradients over the size of the group."""
    judged: dict[str, Judged] = {}
    by_group: dict[str, dict[str, list[float]]] = {name: {"regret": [], "regret_half": []} for name in settings.rungs}

    def bar(name: str) -> Bar:
        return lambda steps: progress(steps, name)

    for name in progress((*LABELS, *settings.rungs), "algorithms"):
        if name in LABELS:
            judged[name] = judge(settings, name, classical(settings, name, bar(name)))
            continue
        for group in sorted({settings.group, *settings.groups}):
            found = judge(settings, name, gradient(settings, name, group, bar(f"{name}, G = {group}")))
            if group == settings.group:
                judged[name] = found
            if group in settings.groups:
                mean, error = mean_error(found.regret)
                by_group[name]["regret"].append(mean)
                by_group[name]["regret_half"].append(1.96 * error)
    never = uniform_cost(settings.arms)
    series = {
        "uniform": never * settings.pulls,
        "algorithms": {name: one.series for name, one in judged.items()},
        "groups": settings.groups,
        "by_group": by_group,
    }
    return Result(series=series, facts=_facts(settings, judged, never), caption=CAPTION)


def uniform_cost(arms: int) -> float:
    """E[max U] − E[U] of `arms` U(0, 1) numbers, K/(K+1) − ½: what a pull costs who learns nothing."""
    return arms / (arms + 1) - 0.5


def _facts(settings: Settings, judged: Mapping[str, Judged], never: float) -> list[Fact]:
    if not settings.is_default:
        return []
    facts = []
    test = f"{settings.pulls:,} pulls of {settings.arms} arms with chances from U(0, 1)"

    def less(better: str, worse: str, claim: str) -> None:
        if better in judged and worse in judged:
            mean, error = mean_error(judged[worse].regret - judged[better].regret)
            facts.append(Fact.above(f"{claim}, in {test} (difference of regrets)", SOURCE, mean, 0.0, error))

    less("thompson", "group_std", "Thompson sampling, with nothing to tune, loses less than tuned group normalisation")
    less("thompson", "grpo", "Thompson sampling, with nothing to tune, loses less than tuned GRPO")
    less("group_std", "epsilon_greedy", "Tuned group normalisation loses less than tuned ε-greedy")
    less("group_mean", "reinforce", "A group baseline loses less than none")
    epsilon = judged["epsilon_greedy"]
    mean, error = mean_error(epsilon.tail)
    claim = f"ε-greedy (ε = {epsilon.value:g}) never stops paying ε·(K/(K+1) − ½) for exploring: its pulls of the second half cost more than that"
    facts.append(Fact.above(claim, "this course: derived", mean, epsilon.value * never, error))
    if "group_std" in judged:
        group_std = judged["group_std"]
        mean, error = mean_error(judged["ucb"].textbook - group_std.regret)
        claim = f"UCB with the textbook's c = √2 loses more than tuned group normalisation, in {test} (difference of regrets)"
        facts.append(Fact.above(claim, SOURCE, mean, 0.0, error))
        mean, error = mean_error(group_std.tail - judged["thompson"].tail)
        claim = "In the second half of the pulls, tuned group normalisation still loses more per pull than Thompson sampling (difference)"
        facts.append(Fact.above(claim, SOURCE, mean, 0.0, error))
    return facts


CAPTION = "x"


def plot(result: Result) -> Figure:
    """The regret pull by pull, each algorithm at its own best setting; over the settings; over the size of the group."""
    figure, (course, sweep, sizes) = figures.new_figure(1, 3, width=16.0, height=5.0)
    rungs = list(result.settings["rungs"])
    for name in (*LABELS, *rungs):

        def of(what: str) -> Any:
            return result.array("algorithms", name, what)

        value = float(of("value"))
        label = LABELS.get(name, name)
        if name != "thompson":
            label += f" ({SYMBOLS.get(name, 'lr')} = {value:.2g})"
        figures.band(course, of("pulls"), of("regret"), of("regret_half"), name, label)
        if name == "thompson":
            figures.expectation
            sweep.axhline(float(of("sweep")[0]), **figures.style_of(name), linewidth=2)
            sizes.axhline(float(of("sweep")[0]), **figures.style_of(name), linewidth=2)
        else:
            figures.band(sweep, of("values"), of("sweep"), of("sweep_half"), name, LABELS.get(name, name))
    for name in rungs:
        figures.band(
            sizes, result.array("groups"), result.array("by_group", name, "regret"), result.array("by_group", name, "regret_half"), name
        )
    sweep.set_xscale("log", base=2)
    sizes.set_xscale("log", base=2)
    sweep.set_yscale("log")
    sizes.set_yscale("log")
    course.set_xscale("log", base=2)
    for ax in (course, sweep, sizes):
        figures.label_ends(ax)
    return figure
