"""Is GRPO a good bandit algorithm? Against ε-greedy, UCB and Thompson sampling, pull for pull.

Ten arms pay 1 with a probability drawn from U(0, 1), else 0. The policy gradients get G pulls per
update, the others one; all get the same number of pulls, and the same meter writes down what each
pull cost: the best arm's mean less the pulled one's, summed up (the regret). Every setting is
swept, chosen on one half of the runs and judged on the other.

What to look for: tuned, the group methods lose half as much as ε-greedy, and a fraction of what UCB
loses with its textbook bonus. But Thompson sampling, with nothing to tune, and UCB with a tuned
bonus lose less still, and only theirs is close to a straight line over the logarithm of the pulls.
The last panel says why. In most runs a group method has found the best arm and pays next to
nothing, less than Thompson sampling, which never quite stops trying; in some it has committed to a
wrong arm, hardly pulls the others again, and those runs pay the bill. A group makes the gradient
quieter; it does not explore. GRPO's KL term, here to the uniform policy, does in its way: like
ε-greedy it pays in every run, and few runs are lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.agents import UCB, Agent, BetaThompson, EpsilonGreedy, Metered, play
from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import uses_critic
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error, share_error
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TITLE = (
    "GRPO against ε-greedy, UCB and Thompson sampling at equal pulls: tuned it does well, but it"
    " does not explore"
)
EXPECTED_SECONDS = 40.0
SOURCE = "this course: simulated; the question is Giovanidis 2025 (GRPO is just PPO for bandits)"
TEXTBOOK = math.sqrt(2)  # c of UCB1, Auer et al. 2002
COMMITTED = 0.05  # a run that still loses more than this per pull has not found the best arm
SYMBOLS = {"epsilon_greedy": "ε", "ucb": "c"}
LABELS = {"epsilon_greedy": "ε-greedy", "ucb": "UCB", "thompson": "Thompson"}


@dataclass(frozen=True)
class Settings(Checked):
    """What is run. Every run has arms of its own, and every algorithm sees the same ones."""

    # which policy gradients
    rungs: tuple[str, ...] = ("reinforce", "group_mean", "group_std", "grpo")
    pulls: int = 2048  # per run, whoever pulls
    group: int = 16  # pulls per update in the first two panels
    # pulls per update in the third panel; divisors of pulls
    groups: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    arms: int = 10  # arms per run
    # the sweep of each policy gradient
    learning_rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    # the sweep of ε-greedy
    epsilons: tuple[float, ...] = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
    bonuses: tuple[float, ...] = tuple(
        TEXTBOOK * 2.0**k for k in (-4, -3, -2, -1, 0)
    )  # the sweep of UCB; √2 is the textbook's
    runs: int = 600  # independent runs that are reported
    tuning_runs: int = 200  # other runs, which choose each algorithm's setting
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "tuning_runs", "arms"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(len(self.rungs) > 0, "rungs", self.rungs, "at least one name")
        sizes = (self.group, *self.groups)
        require(
            self.pulls >= 4 * self.group,
            "pulls",
            self.pulls,
            f"at least 4 rollouts of group = {self.group}",
        )
        require(
            all(g > 1 and self.pulls % g == 0 for g in sizes),
            "group, groups",
            sizes,
            f"divisors of pulls = {self.pulls} above 1",
        )
        for name in ("learning_rates", "epsilons", "bonuses"):
            values = getattr(self, name)
            require(len(values) > 0 and min(values) > 0, name, values, "at least one number > 0")
        require(max(self.epsilons) <= 1, "epsilons", self.epsilons, "probabilities")

    @property
    def is_default(self) -> bool:
        """Whether the claims were made for this experiment (other runs, seeds and rungs may be
        chosen).
        """
        return (
            dataclasses.replace(
                self,
                rungs=SETTINGS.rungs,
                runs=SETTINGS.runs,
                tuning_runs=SETTINGS.tuning_runs,
                seed=SETTINGS.seed,
            )
            == SETTINGS
        )


SETTINGS = Settings()
Bar = Callable[[Iterable[int]], Iterable[int]]


def ground(settings: Settings, values: int) -> tuple[Noise, Metered]:
    """Random streams for the run axes (values, R) and the metered arms: run n has its arms and
    stream under every value.
    """
    runs = settings.tuning_runs + settings.runs
    noise = Noise((values, runs), settings.seed, numbers=[*range(runs)] * values)
    return noise, Metered(Bernoulli(noise.uniform(1, settings.arms)), every=settings.group)


def gradient(settings: Settings, name: str, group: int, bar: Bar) -> Metered:
    """A policy gradient with `group` pulls per update (ReMax's greedy answer is a pull too), at
    every learning rate.
    """
    estimator = ladder.get(name).estimator
    noise, arms = ground(settings, len(settings.learning_rates))
    greedy = "rollout.greedy_reward" in estimator.needs
    policy = Softmax.uniform(noise, 1, settings.arms)
    bandit = Bandit(
        arms,
        policy,
        group - greedy,
        reference="start",
        critic=uses_critic(estimator),
        greedy=greedy,
    )
    optimizer = SGD(torch.tensor(settings.learning_rates).unsqueeze(-1).expand(noise.runs))
    updates = settings.pulls // group
    Learner(bandit, estimator, optimizer, noise, log_every=updates, halt_diverged=True).train(
        updates, bar
    )
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
    """The values that are swept; Thompson sampling has none: its prior is the truth, so one run is
    the sweep.
    """
    return {"epsilon_greedy": settings.epsilons, "ucb": settings.bonuses, "thompson": (1.0,)}.get(
        name, settings.learning_rates
    )


@dataclass(frozen=True)
class Judged:
    """An algorithm at its own best value, on the runs that did not choose it; all [runs].

    `regret` at the end, `tail` per pull of the second half, `last` the regret at the end of the
    sweep, at its largest value.
    """

    value: float
    regret: Tensor
    tail: Tensor
    last: Tensor
    series: Mapping[str, Any]


def judge(settings: Settings, name: str, arms: Metered) -> Judged:
    """Choose the value on the tuning runs, report on the others."""
    final, tune, rest = (
        arms.regret.double(),
        slice(0, settings.tuning_runs),
        slice(settings.tuning_runs, None),
    )
    best = int(final[:, tune].mean(-1).argmin())
    values, course = (
        settings_of(settings, name),
        arms.regrets[:, best, rest].double(),
    )  # [marks, runs]
    half = min(
        range(len(arms.marks)), key=lambda place: abs(arms.marks[place] - settings.pulls / 2)
    )
    tail = (course[-1] - course[half]) / (arms.marks[-1] - arms.marks[half])
    (mean, error), (sweep, sweep_error) = mean_error(course.T), mean_error(final[:, rest].T)
    series = {
        "value": values[best],
        "values": values,
        "pulls": arms.marks,
        "regret": mean,
        "regret_half": 1.96 * error,
        "sweep": sweep,
        "sweep_half": 1.96 * sweep_error,
        "tail": tail.quantile(torch.linspace(0, 1, 101, dtype=tail.dtype)),
    }
    return Judged(values[best], course[-1], tail, final[-1, rest], series)


def run(settings: Settings, progress: Progress) -> Result:
    """Every algorithm over its settings; then the policy gradients over the size of the group."""
    judged: dict[str, Judged] = {}
    by_group: dict[str, dict[str, list[float]]] = {
        name: {"regret": [], "regret_half": []} for name in settings.rungs
    }

    def bar(name: str) -> Bar:
        return lambda steps: progress(steps, name)

    for name in progress((*LABELS, *settings.rungs), "algorithms"):
        if name in LABELS:
            judged[name] = judge(settings, name, classical(settings, name, bar(name)))
            continue
        for group in sorted({settings.group, *settings.groups}):
            found = judge(
                settings, name, gradient(settings, name, group, bar(f"{name}, G = {group}"))
            )
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
    """E[max U] − E[U] of `arms` U(0, 1) numbers, K/(K+1) − ½: what a pull costs who
    learns nothing.
    """
    return arms / (arms + 1) - 0.5


def _facts(settings: Settings, judged: Mapping[str, Judged], never: float) -> list[Fact]:
    if not settings.is_default:
        return []
    facts = []
    test = f"{settings.pulls:,} pulls of {settings.arms} arms with chances from U(0, 1)"

    def less(better: str, worse: str, claim: str) -> None:
        if better in judged and worse in judged:
            mean, error = mean_error(judged[worse].regret - judged[better].regret)
            facts.append(
                Fact.above(f"{claim}, in {test} (difference of regrets)", SOURCE, mean, 0.0, error)
            )

    less("thompson", "grpo", "Thompson sampling, with nothing to tune, loses less than tuned GRPO")
    less(
        "thompson",
        "group_std",
        "Thompson sampling, with nothing to tune, loses less than the tuned group std",
    )
    less(
        "group_std",
        "grpo",
        "On reward alone GRPO's KL term only costs: without it (group std) the regret is smaller",
    )
    less("group_std", "epsilon_greedy", "The tuned group std loses less than tuned ε-greedy")
    less("group_mean", "reinforce", "A group baseline loses less than none")
    mean, error = mean_error(judged["ucb"].last - judged["ucb"].regret)
    claim = (
        f"UCB with the textbook's c = √2 loses more than with a tuned c, in {test} (difference of"
        " regrets)"
    )
    facts.append(Fact.above(claim, SOURCE, mean, 0.0, error))
    epsilon = judged["epsilon_greedy"]
    mean, error = mean_error(epsilon.tail)
    claim = (
        f"ε-greedy at ε = {epsilon.value:g} pays at least ε·(K/(K+1) − ½) per pull for exploring,"
        " for ever (per pull of the second half)"
    )
    facts.append(Fact.above(claim, "this course: derived", mean, epsilon.value * never, error))
    return facts + _committed(judged)


def _committed(judged: Mapping[str, Judged]) -> list[Fact]:
    """Who pays in the second half, run by run on the same arms: the group std against Thompson
    sampling and against GRPO.
    """
    if "group_std" not in judged:
        return []
    group, thompson = judged["group_std"].tail, judged["thompson"].tail
    cheaper, error = share_error(int((group < thompson).sum()), len(group))
    mean, mean_spread = mean_error(group - thompson)
    claim = (
        "In most runs a pull of the second half costs the group std less than Thompson sampling"
        " (share of runs)"
    )
    facts = [
        Fact.above(claim, SOURCE, cheaper, 0.5, error),
        Fact.above(
            "Yet on average it costs the group std more (difference per pull)",
            SOURCE,
            mean,
            0.0,
            mean_spread,
        ),
    ]
    for name, why in (
        ("thompson", "Thompson sampling"),
        ("grpo", "GRPO, whose KL term keeps the other arms alive"),
    ):
        if name in judged:
            lost, spread = mean_error(
                (group > COMMITTED).double() - (judged[name].tail > COMMITTED).double()
            )
            claim = (
                f"More runs lose over {COMMITTED:g} per pull in the second half with the group std"
                f" than with {why} (difference of shares)"
            )
            facts.append(Fact.above(claim, SOURCE, lost, 0.0, spread))
    return facts


CAPTION = (
    "Regret of policy gradients and classical bandit algorithms at equal pulls, 95 % intervals over"
    " runs: pull by pull at each one's best setting, over the settings, over the pulls per update,"
    " and what a pull of the second half costs, from the cheapest run to the dearest."
)


def plot(result: Result) -> Figure:
    """The regret pull by pull; over the settings; over the size of the group; and run by run in the
    second half.
    """
    figure, (course, sweep, sizes, runs) = figures.new_figure(2, 2, width=13.0, height=9.2)
    names = [*LABELS, *result.settings["rungs"]]
    pulls = result.settings["pulls"]

    def of(name: str, what: str) -> NDArray[np.float64]:
        return result.array("algorithms", name, what)

    for name in names:
        label, value = LABELS.get(name, name), float(of(name, "value"))
        tuned = "" if name == "thompson" else f" ({SYMBOLS.get(name, 'lr')} = {value:.2g})"
        figures.band(
            course,
            of(name, "pulls"),
            of(name, "regret"),
            of(name, "regret_half"),
            name,
            label + tuned,
        )
        figures.band(runs, np.linspace(0, 1, 101), of(name, "tail"), None, name, label)
        if name != "thompson":
            figures.band(
                sweep, of(name, "values"), of(name, "sweep"), of(name, "sweep_half"), name, label
            )
    for name in result.settings["rungs"]:
        regret, half = (result.array("by_group", name, what) for what in ("regret", "regret_half"))
        figures.band(sizes, result.array("groups"), regret, half, name)
    for ax in (sweep, sizes):
        level = float(of("thompson", "regret")[-1])
        ax.axhline(level, linewidth=2, label="Thompson", **figures.style_of("thompson"))
        ax.set_yscale("log")
        ax.set_yticks([20, 30, 50, 100, 200, 500], ["20", "30", "50", "100", "200", "500"])
        ax.minorticks_off()
        highest = max(
            float(np.max(np.asarray(line.get_ydata(), dtype=float))) for line in ax.get_lines()
        )
        ax.set_ylim(0.75 * level, 1.2 * highest)
    _label_starts(sweep, ("epsilon_greedy", "ucb"), of)
    top = 1.15 * max(float(of(name, "regret")[-1]) for name in names)
    marks = of("thompson", "pulls")
    figures.expectation(course, result.array("uniform") * marks / pulls, marks)
    course.annotate(
        "learns nothing",
        (0.45 * top / result.array("uniform") * pulls, 0.45 * top),
        (-8, 0),
        textcoords="offset points",
        ha="right",
    )
    course.set_ylim(0, top)
    for ax in (course, sweep, sizes):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(
            lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
        )
    runs.set_yscale("log")
    runs.set_ylim(1e-4, 1)
    figures.describe(
        course, "Each at its best setting: straight is logarithmic", "pulls", "regret so far"
    )
    figures.describe(
        sweep,
        f"How much the setting matters (G = {result.settings['group']})",
        "learning rate, ε or c",
        f"regret after {pulls:,} pulls",
    )
    figures.describe(
        sizes,
        "Larger groups, fewer updates",
        "G, pulls per update",
        f"regret after {pulls:,} pulls",
    )
    figures.describe(
        runs,
        "Who pays: the runs that committed to a wrong arm",
        "share of runs, the cheapest first",
        "cost per pull, second half",
    )
    for ax in (course, sizes, runs):
        figures.label_ends(ax)
    figures.label_ends(
        sweep, [line for line in sweep.get_lines() if line.get_label() not in ("ε-greedy", "UCB")]
    )
    return figure


def _label_starts(
    ax: Axes, names: Sequence[str], of: Callable[[str, str], NDArray[np.float64]]
) -> None:
    """Labels beside the left ends of curves whose right ends lie in the middle of the panel."""
    for name in names:
        start = (of(name, "values")[0], of(name, "sweep")[0])
        colour = figures.readable(figures.style_of(name)["color"])
        ax.annotate(LABELS[name], start, (5, 8), textcoords="offset points", color=colour)
