"""What each part of the ladder buys on a language model: one part, one stress, both arms paired.

A nano transformer, warm-started on one-digit sums. Every rung is trained beside the rung below
under the stress that its part is for, and under none. Both arms start from the same weights and
draw from the same streams; each has its own best learning rate, chosen on other streams. The
probability of a right answer is exact: only one completion is right. `python -m bandits parts` does
the same on a contextual bandit, `course ladder` shows both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as change
from functools import partial
from typing import TYPE_CHECKING

import torch

from course import ladder
from course.errors import require
from course.lab.result import Result
from course.lab.side_by_side import side_by_side
from course.lab.stress import (
    STRESSES,
    Arm,
    Sweep,
    Trained,
    anchored,
    compare,
    forest,
    rows_of,
)
from course.lab.terminal import Progress
from tinylm import tasks
from tinylm.curves import AblationBudget
from tinylm.rewards import REWARDS, Reward
from tinylm.stresses import PerQuestion, by_difficulty, outcomes, two_lengths, two_skills, uneven
from tinylm.tasks import Task
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams, copies, critic_of, needs_value_head, train_learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "what each part of the ladder buys on a language model: one part, one stress, paired"
FIGURE = "tinylm_parts"
EXPECTED_SECONDS = 120.0
WHERE = "transformer"
# from which warm start a training begins, where that is not the plain one
STARTS = {
    "lengths": "lengths",
    "unrewarded": "skills",
    "rewarded": "skills",
    "difficulty": "uneven",
    "random": "random",
}


@dataclass(frozen=True)
class Settings(AblationBudget):
    """The stresses, the streams, and the size of each training."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())[1:]  # each beside its own
    # rung below
    preset: str = "nano"  # nano, mini, small or gpu
    digits: int = 1  # digits of each number
    warm_target: float = 0.34  # sampled accuracy that ends the warm start
    epochs: int = 1  # updates per rollout without stress
    rollouts: int = 60  # rollouts; the outcome is the mean along them
    log_every: int = 5  # rollouts between two measurements
    offset: float = 1.0  # stress: added to every reward
    updates: int = 8  # stress: updates on each rollout
    constants: float = 2.0  # stress: standard deviation of a constant of each question's own
    # answers per question where difficulty differs and from a random start; half as many questions
    many: int = 32
    uneven: int = 10  # stress: how often sums that do not carry were shown, beside those that do
    terms: int = 3  # stress of answers of two lengths: numbers per sum
    # stress, and its control: β of the KL that holds on to the unrewarded skill …
    anchor: float = 1.0
    longer: int = 4  # … and how many times as long that training is, since forgetting is slow
    patience: int = 3  # stress of a random start: how many times as long that training is
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
    tuning: int = 3  # streams that choose the learning rate
    seeds: int = 16  # streams that are judged
    workers: int | None = None  # processes side by side (none: one for each core)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.task == "addition", "task", self.task, "addition: its right answers are single"
        )


SETTINGS = Settings()
QUICK = change(
    SETTINGS, rollouts=20, seeds=6, tuning=2, updates=4, many=16, longer=3, rates=(3e-4, 1e-3, 3e-3)
)
QUICK_SECONDS = 30.0


def reward_of(settings: Settings, training: str, task: Task) -> Reward:
    """The reward under a stress."""
    many, device = len(task.prompt), task.prompt.device
    times, add = torch.ones(many), torch.zeros(many)
    if training == "offset":
        add += settings.offset
    elif training == "constants":
        generator = torch.Generator().manual_seed(settings.seed)
        add = settings.constants * torch.randn(many, generator=generator)
    elif training == "unrewarded":
        times[many // 2 :] = 0.0
    elif training == "random":
        return REWARDS["exact+digits"]
    return PerQuestion(times=times.to(device), add=add.to(device))


def train(
    settings: Settings,
    starts: Mapping[str, Start],
    rung: str,
    training: str,
    rates: Sequence[float],
    numbers: range,
) -> Trained:
    """Train a rung under a stress at L rates × S streams, all from the same warm start."""
    s, runs, start = settings, (len(rates), len(numbers)), starts[start_of(training)]
    estimator = ladder.get(rung).estimator
    if training in ("unrewarded", "rewarded"):
        s = change(s, rollouts=s.longer * s.rollouts, log_every=s.longer * s.log_every)
        estimator = anchored(estimator, s.anchor)
    elif training == "stale":
        s = change(s, epochs=s.updates)
    elif training in ("difficulty", "alike", "random"):
        s = change(s, group=s.many, prompts=max(1, s.prompts // 2))
    if training == "random":
        s = change(s, rollouts=s.patience * s.rollouts, log_every=s.patience * s.log_every)
    weights = {name: weight[0] for name, weight in start.weights.items()}
    model = copies(weights, start.model, runs, value=needs_value_head(s, estimator))
    every = [number for _ in rates for number in numbers]
    streams = Streams(s.seed, runs, every, s.device)
    learner = train_learner(
        s,
        estimator,
        model,
        start.task,
        streams,
        torch.tensor(rates, device=s.device).unsqueeze(-1).expand(runs),
        critic=critic_of(s, estimator, model),
        reward=reward_of(s, training, start.task),
        halt_diverged=True,
    )
    order = by_difficulty(start)
    paid = training == "unrewarded"  # the first skill alone
    seen = [outcomes(model, start.task, order, streams.noise(JUDGE), paid)]
    for step in range(1, s.rollouts + 1):
        learner.step()
        if step % s.log_every == 0 or step == s.rollouts:
            noise = streams.noise(JUDGE + 10 * step)
            seen.append(outcomes(model, start.task, order, noise, paid))
    along = {name: torch.stack([each[name] for each in seen]).cpu() for name in seen[0]}
    return Trained(along, learner.diverged)


def start_of(training: str) -> str:
    """The warm start that a training begins from, a name for `made`."""
    return STARTS.get(training, "plain")


def made(settings: Settings, kind: str) -> Start:
    """The warm-started model of one kind, or one of random weights."""
    s, plain = settings, tasks.make(settings.questions)
    if kind == "lengths":
        return warm_start(s, 1, task=two_lengths(s.terms))
    if kind == "skills":
        return warm_start(s, 1, task=two_skills())
    if kind == "random":
        return warm_start(change(s, warm_target=0.0), 1, task=plain)
    if kind == "uneven":  # learned on an uneven diet, then asked every question alike
        start = warm_start(s, 1, task=uneven(plain, s.uneven))
        return change(start, task=plain.to(s.device))
    return warm_start(s, 1, task=plain)


def run(settings: Settings, progress: Progress) -> Result:
    """Every part under its stress and without; then the facts."""
    s = settings
    trainings = [
        training
        for *_, name in rows_of(s.rungs)
        for training in (STRESSES[name].training, STRESSES[name].control)
    ]
    kinds = list(dict.fromkeys(map(start_of, trainings)))
    caption = (
        f"The KL that holds on to a skill has β = {s.anchor:g}; groups are of {s.many} where"
        f" difficulty differs and from a random start, else of {s.group}."
    )
    with side_by_side(s.workers, progress, s.device) as spread:
        begin = spread(partial(made, s), [(kind,) for kind in kinds], "warm starts")
        starts = dict(zip(kinds, begin, strict=True))

        def trained(arms: Sequence[Arm]) -> list[Trained]:
            return spread(partial(train, s, starts), arms, WHERE)

        sweep = Sweep(s.rates, s.tuning, s.seeds)
        return compare(s.rungs, trained, sweep, WHERE, caption=caption)


def plot(result: Result) -> Figure:
    """The forest of effects."""
    return forest({WHERE: result})
