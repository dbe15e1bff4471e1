"""What each part of the ladder buys on a language model: one part, one stress, both arms paired.

A nano transformer, warm-started on one-digit sums. Every rung is trained beside the rung below
under the stress that its part is for, and under none. Both arms start from the same weights and
draw from the same streams; each has its own best learning rate, chosen on other streams. The
probability of a right answer is exact: only one completion is right. `python -m bandits parts` does
the same on a contextual bandit, `course ladder` shows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as change
from functools import cache, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course import ladder
from course.errors import require
from course.estimator import replace
from course.lab.result import Result
from course.lab.stress import Sweep, Trained, compare, forest
from course.lab.terminal import Progress
from course.parts import K3
from course.train.noise import Noise
from tinylm import tasks
from tinylm.curves import AblationBudget
from tinylm.evaluate import right_to_go
from tinylm.model import Transformer
from tinylm.rewards import ExactMatch, Reward
from tinylm.sampling import sample
from tinylm.tasks import Task
from tinylm.warm_start import Start, warm_start
from tinylm.wiring import JUDGE, Streams, copies, critic_of, needs_value_head, train_learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "what each part of the ladder buys on a language model: one part, one stress, paired"
FIGURE = "tinylm_parts"
EXPECTED_SECONDS = 220.0
WHERE = "transformer"
SKILLS = "addition", "subtraction"  # the second is no longer rewarded
OWN_START = "lengths", "unrewarded", "difficulty"  # trainings on other questions


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
    log_every: int = 3  # rollouts between two measurements
    offset: float = 1.0  # stress: added to every reward
    updates: int = 8  # stress: updates on each rollout
    constants: float = 2.0  # stress: standard deviation of a constant of each question's own
    many: int = 32  # answers per question under the stress of difficulty; half as many questions
    uneven: int = 10  # stress: how often sums that do not carry were shown, beside those that do
    terms: int = 4  # stress of answers of two lengths: numbers per sum
    anchor: float = 1.0  # stress: β of the KL that holds on to the unrewarded skill …
    longer: int = 2  # … and how many times as long that training is, since forgetting is slow
    # Adam's learning rates, each of which falls linearly to 0
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    tuning: int = 3  # streams that choose the learning rate
    seeds: int = 16  # streams that are judged

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.task == "addition", "task", self.task, "addition: its right answers are single"
        )


SETTINGS = Settings()
QUICK = change(
    SETTINGS, rollouts=20, seeds=6, tuning=2, updates=4, many=16, terms=3, rates=(3e-4, 1e-3, 3e-3)
)
QUICK_SECONDS = 30.0


def two_lengths(terms: int) -> Task:
    """Sums of `terms` one-digit numbers, each question once with partial sums and thrice without.

    Both answers follow the marker and pay alike, so the model learns to give either.
    """
    settings = tasks.TaskSettings(name="terms", digits=1, terms=terms, scratchpad=True)
    long = tasks.make(settings)
    direct = torch.full_like(long.target, tasks.PAD)
    direct[:, 0] = tasks.MARKER
    direct[:, 1 : 1 + long.answer.shape[1]] = long.answer
    return reduce(tasks.together, [change(long, target=direct)] * 3 + [long])


def two_skills() -> Task:
    """One-digit sums and differences; a row is a sum if it is in the first half."""
    sums, differences = (tasks.make(tasks.TaskSettings(name=name, digits=1)) for name in SKILLS)
    return tasks.together(sums, differences)


def uneven(task: Task, times: int) -> Task:
    """The task with sums that do not carry `times` times as often among its training questions."""
    easy = task.train[task.difficulty[task.train] == 0]
    return change(task, train=torch.cat([task.train, easy.repeat(times - 1)]))


@dataclass(frozen=True, eq=False)
class PerQuestion(Reward):
    """Exact match times `times` plus `add`, both [N]: one number for each question."""

    times: Tensor = field(default_factory=lambda: torch.ones(1))
    add: Tensor = field(default_factory=lambda: torch.zeros(1))

    def __call__(self, completion: Tensor, question: Tensor, task: Task) -> Tensor:
        right = ExactMatch(self.weight)(completion, question, task)
        return right * self.times[question] + self.add[question]


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
    return PerQuestion(times=times.to(device), add=add.to(device))


@torch.no_grad()
def outcomes(
    model: Transformer, task: Task, order: Tensor, training: str, noise: Noise
) -> dict[str, Tensor]:
    """What is looked at, each [*runs]; `order` [N] are the training questions, hard ones first."""
    if task.marked:  # many completions are right: sampled answers
        rows = order[:: max(1, len(order) // 512)]
        made = sample(model, task.prompt[rows].expand(*model.runs, -1, -1), 1, task.limit, noise)
        right = ExactMatch()(made.tokens, rows.unsqueeze(-1), task).squeeze(-1)  # [*runs, N]
        tokens = made.mask.sum((-2, -1)) * (1 - right)
        length = tokens.sum(-1) / (1 - right).sum(-1) / task.limit
        return {"success": right.mean(-1), "length": length}
    success = right_to_go(model, task, order)[..., 0]  # exact
    third, second_skill = len(order) // 3, order >= len(task.prompt) // 2
    paid = success[..., ~second_skill] if training == "unrewarded" else success
    return {
        "success": paid.mean(-1),
        "hard": success[..., :third].mean(-1),
        "easy": success[..., -third:].mean(-1),
        "skill": success[..., second_skill].mean(-1),
    }


def train(
    settings: Settings,
    start: Start,
    rung: str,
    training: str,
    rates: Sequence[float],
    numbers: range,
    progress: Progress,
) -> Trained:
    """Train a rung under a stress at L rates × S streams, all from the same warm start."""
    s, runs = settings, (len(rates), len(numbers))
    if training == "unrewarded":
        s = change(s, rollouts=s.longer * s.rollouts, log_every=s.longer * s.log_every)
    elif training == "stale":
        s = change(s, epochs=s.updates)
    elif training == "difficulty":
        s = change(s, group=s.many, prompts=max(1, s.prompts // 2))
    estimator = ladder.get(rung).estimator
    if training == "unrewarded" and rung == "grpo":
        estimator = replace(estimator, kl=K3(beta=s.anchor))
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
    seen = [outcomes(model, start.task, order, training, streams.noise(JUDGE))]
    for step in progress(range(1, s.rollouts + 1), f"{rung}, {training}", total=s.rollouts):
        learner.step()
        if step % s.log_every == 0 or step == s.rollouts:
            seen.append(
                outcomes(model, start.task, order, training, streams.noise(JUDGE + 10 * step))
            )
    along = {name: torch.stack([each[name] for each in seen]).cpu() for name in seen[0]}
    return Trained(along, learner.diverged)


def by_difficulty(start: Start) -> Tensor:
    """The training questions [N], each once, those that the warm start answers worst first."""
    task = start.task
    rows: Tensor = task.train.unique()
    if task.marked:
        return rows
    weights = {name: weight[0] for name, weight in start.weights.items()}
    model = copies(weights, start.model, ())
    return rows[right_to_go(model, task, rows)[:, 0].argsort()]


def starts(settings: Settings, progress: Progress) -> Callable[[str], Start]:
    """The warm-started model for each training; each is made when it is first asked for."""

    @cache
    def start(kind: str) -> Start:
        s, plain = settings, tasks.make(settings.questions)
        if kind == "lengths":
            return warm_start(s, 1, progress, task=two_lengths(s.terms))
        if kind == "unrewarded":
            return warm_start(s, 1, progress, task=two_skills())
        if kind == "difficulty":  # learned on an uneven diet, then asked every question alike
            uneven_start = warm_start(s, 1, progress, task=uneven(plain, s.uneven))
            return change(uneven_start, task=plain.to(s.device))
        return warm_start(s, 1, progress, task=plain)

    return lambda training: start(training if training in OWN_START else "plain")


def run(settings: Settings, progress: Progress) -> Result:
    """Every part under its stress and without; then the facts."""
    s, start = settings, starts(settings, progress)

    def trained(rung: str, training: str, rates: Sequence[float], numbers: range) -> Trained:
        return train(s, start(training), rung, training, rates, numbers, progress)

    sweep, own = Sweep(s.rates, s.tuning, s.seeds), f"{ladder.grpo.kl.beta:g}"
    caption = (
        f"The KL has β = {s.anchor:g} under its stress and the rung's own {own} without; groups"
        f" are of {s.many} where difficulty differs, else of {s.group}."
    )
    return compare(s.rungs, trained, sweep, WHERE, caption=caption)


def plot(result: Result) -> Figure:
    """The forest of effects."""
    return forest({WHERE: result})
