"""The gradient bandit of Sutton & Barto 2018 (§2.8, figure 2.5): what a baseline buys, and which
baseline.

Ten arms whose means are near 4, one pull per update: REINFORCE with the running mean of the rewards
as baseline, or with none. Left, the book's four curves: without a baseline every pull, good or bad,
is praised, and the larger learning rate commits to whatever was pulled first. Right, three rules
for "the mean of the rewards so far" that are all in use. Whether the reward being judged is in the
mean, as in drafts of the book, matters little: it is exactly a warm-up of the learning rate, 1 −
1/t. Judging the first reward by 0 costs several points: the arm pulled first is praised for the
whole offset of 4.

The curves are exact probabilities of the best arm under the policy, averaged over runs. The book
counts how often the best arm was pulled: the same expectation, with more noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bandits.environments import Deterministic, testbed
from bandits.policies import Softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import replace
from course.lab import figures
from course.lab.facts import ERRORS, Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import QUIET, Progress
from course.learner import History, Learner
from course.parts import Value
from course.train.critic import RunningMean
from course.train.noise import Noise
from course.train.optim import SGD, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "the gradient bandit with and without a baseline, and three rules for the running mean"
EXPECTED_SECONDS = 18.0
BOOK = "Sutton & Barto 2018, fig. 2.5"
DERIVED = "this course: derived"
GRADIENT_BANDIT = replace(
    ladder.reinforce, baseline=Value()
)  # A = r − V; V is a running mean of the rewards
RULES = {  # what "the mean of the rewards so far" means
    # the book's: R̄₁ = R₁
    "rewards before this one": {"include_current": False, "first": "reward"},
    "this reward included": {"include_current": True},  # the widely run replication
    "before, from 0": {"include_current": False, "first": "zero"},  # R̄₁ = 0
}
OWN, INCLUDED, ZERO = RULES
PUBLISHED = {
    (0.1, True): 0.86,
    (0.4, True): 0.73,
    (0.1, False): 0.49,
    (0.4, False): 0.27,
}  # ends of the printed curves
PUBLISHED_RUNS = 2000  # behind each of them
READING = 0.005  # error of reading them off the figure: half a unit of the last digit
CHECK_RUNS, CHECK_STEPS = 50, 200  # of the identities, which hold in every single run


@dataclass(frozen=True)
class Settings(Checked):
    """What is run; the defaults are the book's, with more runs than its 2,000."""

    # α of the logits' updates; the last is used to compare the rules
    learning_rates: tuple[float, ...] = (0.1, 0.4)
    # independent runs, each with arms of its own; every curve sees the same ones
    runs: int = 16_000
    steps: int = 1000  # pulls, one update each
    arms: int = 10  # arms per run
    mean: float = 4.0  # the arms' means are drawn from N(mean, 1)
    log_every: int = 20  # pulls between two points of a curve
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "steps", "arms"):
            require(getattr(self, name) > 1, name, getattr(self, name), "a whole number > 1")
        require(self.log_every > 0, "log_every", self.log_every, "a whole number > 0")
        require(
            len(self.learning_rates) > 0 and min(self.learning_rates) > 0,
            "learning_rates",
            self.learning_rates,
            "numbers > 0",
        )
        require(math.isfinite(self.mean), "mean", self.mean, "a finite number")

    @property
    def as_published(self) -> bool:
        """Whether the book's numbers can be expected."""
        return (self.steps, self.arms, self.mean) == (1000, 10, 4.0) and {0.1, 0.4} <= set(
            self.learning_rates
        )


SETTINGS = Settings()


def train(
    settings: Settings,
    rule: str,
    rates: Sequence[float],
    shares: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    schedule: Schedule | None = None,
    progress: Progress = QUIET,
) -> History:
    """Train curves c = 1 … C with learning rates `rates` [C] and the baseline times `shares` [C]:
    run axes (C, runs).

    Run number n has the same arms and the same random numbers on every curve and under every rule,
    so that differences are quieter than the curves themselves.
    """
    runs = (len(rates), settings.runs)
    noise = Noise(runs, settings.seed, numbers=[*range(settings.runs)] * len(rates), dtype=dtype)
    environment = testbed(noise, settings.arms, mean=settings.mean)
    bandit = Bandit(environment, Softmax.uniform(noise, 1, settings.arms), group=1)
    share, rate = (
        torch.tensor(values, dtype=dtype).unsqueeze(-1).expand(runs) for values in (shares, rates)
    )
    critic = RunningMean(**RULES[rule], share=share)  # type: ignore[arg-type]
    learner = Learner(
        bandit,
        GRADIENT_BANDIT,
        SGD(rate, schedule),
        noise,
        critic=critic,
        log_every=settings.log_every,
    )
    return learner.train(settings.steps, lambda steps: progress(steps, rule, total=settings.steps))


def run(settings: Settings, progress: Progress) -> Result:
    """The four curves with the book's rule; the other two rules with a baseline; the identities
    behind the difference.
    """
    rates, count = list(settings.learning_rates), len(settings.learning_rates)
    curves: dict[
        tuple[str, float], Tensor
    ] = {}  # (rule or "none", α) → probability of the best arm [logs, runs]
    for rule in RULES:
        shares = [1.0] * count + [0.0] * (count if rule == OWN else 0)
        history = train(settings, rule, (rates * 2)[: len(shares)], shares, progress=progress)
        best = history["optimal_action"]
        for place, share in enumerate(shares):
            curves[rule if share else "none", rates[place % count]] = best[:, place]
    steps = [0, *history.steps]
    series = {
        name: {str(rate): _curve(curves[name, rate], 1 / settings.arms) for rate in rates}
        for name in (*RULES, "none")
    }
    ends = {key: values[-1].double() for key, values in curves.items()}
    published = (
        [(end, printed_error(end)) for end in PUBLISHED.values()] if settings.as_published else []
    )
    facts = [*_published(settings, ends), *_rules(settings, ends), *identities(settings)]
    return Result(
        series={"steps": steps, "curves": series, "published": published},
        facts=facts,
        caption=CAPTION,
    )


def _curve(values: Tensor, start: float) -> dict[str, Tensor]:
    """Mean over runs of [logs, runs] and half the width of its 95 % interval, from the start on."""
    mean, error = mean_error(values.T)
    return {"mean": torch.tensor([start, *mean]), "half": 1.96 * torch.tensor([0.0, *error])}


def printed_error(end: float) -> float:
    """Standard error of a printed end: 2,000 runs, each of which pulls the best arm or does not,
    and the reading.
    """
    return math.hypot(math.sqrt(end * (1 - end) / PUBLISHED_RUNS), READING)


def _published(settings: Settings, ends: dict[tuple[str, float], Tensor]) -> list[Fact]:
    """The ends of the printed curves."""
    if not settings.as_published:
        return []
    facts = []
    for (rate, baseline), end in PUBLISHED.items():
        with_it = "with the running mean as baseline" if baseline else "without a baseline"
        claim = (
            f"The gradient bandit with α = {rate}, {with_it}, gives the best of 10 arms a"
            f" probability near {end} after 1,000 pulls (the printed curve has an error of its own:"
            " 2,000 runs, read off a figure)"
        )
        facts.append(
            Fact.simulated(
                claim,
                BOOK,
                *mean_error(ends[OWN if baseline else "none", rate]),
                end,
                printed_error(end),
                number=1,
            )
        )
    mean, error = mean_error(ends[ZERO, 0.4])
    claim = (
        "With α = 0.4 and the first reward judged by 0, the gradient bandit ends below the printed"
        " .73: the book did not use that rule"
    )
    return [
        *facts,
        Fact.below(claim, BOOK, mean, 0.73, math.hypot(error, printed_error(0.73)), number=1),
    ]


def _rules(settings: Settings, ends: dict[tuple[str, float], Tensor]) -> list[Fact]:
    """The order of the three rules at the larger learning rate, run by run."""
    if not settings.as_published:
        return []
    source = "this course: simulated, same arms and noise for every rule"
    one, two = ends[OWN, 0.4], ends[INCLUDED, 0.4]
    difference, error = mean_error(two - one)
    third, third_error = mean_error(one - ends[ZERO, 0.4])
    per_run = math.sqrt(
        float(one.var() + two.var()) / PUBLISHED_RUNS
    )  # error of the difference, were it 2,000 other runs
    ahead = (
        "With α = 0.4, the running mean that includes the reward it judges ends ahead of the book's"
        " mean of earlier rewards"
    )
    return [
        Fact.above(
            f"{ahead} (difference of the best arm's probability)",
            source,
            difference,
            0.0,
            error,
            number=1,
        ),
        Fact.published(
            f"{ahead} by a point or two of a hundred",
            source,
            difference,
            error,
            0.015,
            0.005,
            number=1,
        ),
        Fact.below(
            "Two independent curves of 2,000 runs each show that difference with fewer than 4"
            " standard errors: it takes several thousand",
            source,
            difference / per_run,
            ERRORS,
            error / per_run,
            number=1,
        ),
        Fact.above(
            "With α = 0.4, the book's rule (first reward judged by itself) ends ahead of judging"
            " the first reward by 0 (difference)",
            source,
            third,
            0.0,
            third_error,
            number=1,
        ),
    ]


def identities(settings: Settings) -> list[Fact]:
    """What the rules do to each other and to the offset, exactly, in float64."""
    small = Settings(
        (settings.learning_rates[-1],),
        CHECK_RUNS,
        CHECK_STEPS,
        settings.arms,
        settings.mean,
        CHECK_STEPS,
        settings.seed,
    )

    def end(rule: str, mean: float = small.mean, schedule: Schedule | None = None) -> Tensor:
        moved = Settings(
            small.learning_rates,
            small.runs,
            small.steps,
            small.arms,
            mean,
            small.log_every,
            small.seed,
        )
        return train(
            moved, rule, moved.learning_rates, [1.0], dtype=torch.float64, schedule=schedule
        )["optimal_action"][-1]

    def largest(difference: Tensor) -> float:
        return float(difference.abs().max())

    own, included, rate, arms = end(OWN), end(INCLUDED), settings.learning_rates[-1], settings.arms
    warm_up = end(OWN, schedule=lambda step: step / (step + 1))
    praised = math.exp(rate * settings.mean) / (math.exp(rate * settings.mean) + arms - 1)
    return [
        Fact.exact(
            "Including the reward being judged in the running mean is the book's rule with the"
            " learning rate α(1 − 1/t): not one run differs (largest difference of the best arm's"
            " probability)",
            DERIVED,
            largest(included - warm_up),
            0.0,
            number=1,
        ),
        Fact.exact(
            f"With the book's running mean, adding {settings.mean:g} to every reward changes"
            " nothing in any run (largest difference)",
            DERIVED,
            largest(own - end(OWN, 0.0)),
            0.0,
            number=1,
        ),
        Fact.exact(
            f"Judged by 0, a first reward R = {settings.mean:g} at α = {rate:g} lifts the arm"
            f" pulled first from 1/{arms} to e^(αR)/(e^(αR) + {arms - 1}), whichever it is",
            DERIVED,
            first_pull(ZERO, rate, settings.mean, arms),
            praised,
            number=1,
        ),
        Fact.exact(
            "Judged by itself, the first reward moves nothing: the arm pulled first keeps its"
            " probability",
            DERIVED,
            first_pull(OWN, rate, settings.mean, arms),
            1 / arms,
            number=1,
        ),
    ]


def first_pull(rule: str, rate: float, reward: float, arms: int) -> float:
    """The probability of the arm pulled first after one update, where every arm pays `reward`."""
    noise = Noise((), dtype=torch.float64)
    policy = Softmax.uniform(noise, 1, arms)
    bandit = Bandit(
        Deterministic(torch.full((1, arms), reward, dtype=torch.float64)), policy, group=1
    )
    Learner(bandit, GRADIENT_BANDIT, SGD(rate), noise, critic=RunningMean(**RULES[rule])).train(1)  # type: ignore[arg-type]
    probability = policy.log_probs().detach().exp().flatten()
    return float(
        probability[(probability - 1 / arms).abs().argmax()]
    )  # the others moved together, and less


LOOKS: dict[str, tuple[str, str, figures.Dashes]] = {
    OWN: ("earlier rewards (the book)", "#b8860b", figures.DASH),
    INCLUDED: ("this reward too", "#0057a3", figures.SOLID),
    ZERO: ("earlier, first judged by 0", "#b8320f", figures.DASHDOT),
}
CAPTION = (
    "Probability of the best of ten arms, mean over runs with 95 % intervals; hollow diamonds are"
    " the ends of the printed curves. Left: the book's four settings. Right: three rules for the"
    " running mean, with error bars of ± 2 standard errors of the printed end."
)


def plot(result: Result) -> Figure:
    """Left the four curves beside the printed ends; right the three rules at the larger learning
    rate.
    """
    figure, (four, three) = figures.new_figure(1, 2, width=12.6, height=4.8)
    steps, rates = result.array("steps"), list(result.settings["learning_rates"])
    published = result.array("published")  # [4, (end, its error)], or nothing

    def draw(
        ax: Axes, name: str, rate: float, label: str, colour: str, dashes: figures.Dashes
    ) -> None:
        mean, half = (result.array("curves", name, str(rate), what) for what in ("mean", "half"))
        figures.band(ax, steps, mean, half, label=label, color=colour, linestyle=dashes)

    for name, rung, text in ((OWN, "baseline", "with baseline"), ("none", "reinforce", "without")):
        for rate in rates:
            dashes = figures.SOLID if rate == rates[0] else figures.DASH
            draw(four, name, rate, f"α = {rate:g}, {text}", figures.style_of(rung)["color"], dashes)
    for rule, (label, colour, dashes) in LOOKS.items():
        draw(three, rule, rates[-1], label, colour, dashes)
    for end, _ in published:
        figures.expectation(four, end, steps[-1], marker="D")
    for end, error in published[1:2]:
        three.errorbar(steps[-1], end, 2 * error, color=figures.INK, capsize=3, linewidth=1.1)
        figures.expectation(three, end, steps[-1], marker="D")
        three.annotate(
            "the book's end\n± 2 standard errors",
            (steps[-1], end + 0.02),
            (-8, 6),
            textcoords="offset points",
            ha="right",
        )
    figures.describe(
        four,
        "What a baseline buys (◇ the book's ends)",
        "pulls, one update each",
        "probability of the best arm",
    )
    figures.describe(
        three,
        f"Which running mean, at α = {rates[-1]:g}",
        "pulls, one update each",
        "probability of the best arm",
    )
    four.set_ylim(0, 1)
    three.set_ylim(*((0.45, 0.8) if len(published) else (0, 1)))
    figures.label_ends(four)
    figures.label_ends(three)
    return figure
