"""What each part of the ladder buys on a bandit: one replaced part, one stress, both arms paired.

Nine questions of different difficulty, ten answers each, one of them right. Every rung is trained
beside the rung below under the stress that its part is for, and under none. Both start alike and
draw from the same streams; each has its own best learning rate, chosen on other streams.
`python -m tinylm parts` does the same on the transformer, `course ladder` shows both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.flow import ascend
from bandits.policies import LinearSoftmax, Softmax
from bandits.problem import Bandit
from bandits.theory import stress as theory
from bandits.theory.length_bias import UNIFORM
from bandits.theory.rare_prize import REWARDS, start_of
from course import ladder
from course.errors import require
from course.estimator import Estimator, uses_critic
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.side_by_side import side_by_side
from course.lab.stress import Arm, Rated, Sweep, Trained, anchored, compare, forest
from course.lab.terminal import Progress
from course.learner import Learner
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "what each part of the ladder buys on a contextual bandit: one part, one stress, paired"
FIGURE = "bandit_parts"
EXPECTED_SECONDS = 30.0
WHERE = "contextual bandit"
# rows whose effect is that of a smaller variance
VARIANCE = ("reinforce", "baseline", "offset"), ("clip", "group_mean", "constants")


@dataclass(frozen=True)
class Settings(Checked):
    """The questions, the stresses and the streams."""

    rungs: tuple[str, ...] = tuple(rung.name for rung in ladder.select())[1:]  # each beside its own
    # rung below
    # success of each question at the start, from hard to easy
    success: tuple[float, ...] = (0.03, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    width: int = 16  # features that all questions share
    shared: float = 2.0  # their strength beside an answer's own weight
    arms: int = 10  # answers per question, one of them right
    group: int = 8  # samples per question and rollout
    rollouts: int = 60  # rollouts; the outcome is the mean along them
    offset: float = 1.0  # stress: added to every reward
    updates: int = 16  # stress: updates on each rollout
    constants: float = 2.0  # stress: standard deviation of a constant of each question's own
    lengths: tuple[int, int] = (2, 8)  # stress: tokens of short and of long answers …
    pays: tuple[float, float] = (0.8, 0.2)  # … and how often right and wrong ones then pay 1
    many: int = 16  # samples per question where difficulty differs, and from a random start
    skill: float = 0.9  # stress: success on every second question, which then pays nothing
    anchor: float = 0.1  # stress, and its control: β of the KL that holds on to them
    # stress: answers that pay 0, ½ and 1½, the last with this probability at the start, the second
    # with a hundred times as much; and how many times as long that training is
    rare: float = 1e-3
    longer: int = 8
    # the sweep of every arm
    rates: tuple[float, ...] = tuple(2.0**power for power in range(-2, 7))
    tuning: int = 64  # streams that choose the learning rate
    streams: int = 256  # streams that are judged
    seed: int = 0  # seed of the random streams
    device: str = "cpu"  # where to run
    workers: int | None = None  # processes side by side (none: one for each core)

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "at least 3 probabilities between 0 and 1"
        fits = len(self.success) >= 3 and min(self.success) > 0 and max(self.success) < 1
        require(fits, "success", self.success, allowed)
        require(self.group > 1, "group", self.group, "at least 2: group baselines compare samples")
        require(self.streams > 1, "streams", self.streams, "at least 2, for an interval")
        fits = 0 < self.rare < 1 / 101  # the answers that pay ½ and 1½ leave some for the third
        require(fits, "rare", self.rare, "a probability above 0 and below 1/101")
        short, long = self.lengths
        require(short < long, "lengths", self.lengths, "a short and a long answer")

    def samples(self, training: str) -> int:
        """Samples per question and rollout."""
        return self.many if training in ("difficulty", "alike", "random") else self.group


SETTINGS = Settings()
QUICK = dataclasses.replace(SETTINGS, streams=64, tuning=8, rates=(1.0, 4.0, 16.0, 64.0))
QUICK_SECONDS = 15.0


def problem(
    settings: Settings, training: str, estimator: Estimator, noise: Noise, streams: Noise
) -> Bandit:
    """The bandit under a stress; `streams` [S] draws what the stress leaves to chance."""
    s = settings
    if training in ("lengths", "one length"):
        lengths = s.lengths if training == "lengths" else (s.lengths[1], s.lengths[1])
        environment: Environment = theory.ragged(lengths, s.pays, noise.device)
        policy: Softmax | LinearSoftmax = Softmax.uniform(noise, 1, 4)
    elif training == "random":
        environment = Environment(torch.tensor([REWARDS], dtype=noise.dtype, device=noise.device))
        begin = start_of(100 * s.rare, s.rare).to(dtype=noise.dtype, device=noise.device)
        policy = Softmax(begin.expand(*noise.runs, 1, -1))
    else:
        success = torch.tensor(s.success, dtype=noise.dtype, device=noise.device)
        if training == "alike":  # the control of difficulty
            success[:] = success.mean()
        if training in ("unrewarded", "rewarded"):
            success[1::2] = s.skill
        policy = theory.shared_policy(theory.start(success, s.arms), noise.runs, s.width, s.shared)
        pays = torch.zeros(len(success), s.arms, dtype=noise.dtype, device=noise.device)
        pays[:, 0] = 1.0
        if training == "offset":
            pays = pays + s.offset
        elif training == "constants":
            pays = pays + s.constants * streams.normal(len(success), 1)
        elif training == "unrewarded":
            pays[1::2] = 0.0
        environment = Environment(pays)
    wired: dict[str, Any] = {"reference": "start", "critic": uses_critic(estimator), "greedy": True}
    return Bandit(environment, policy, s.samples(training), **wired)


def train(
    settings: Settings,
    rung: str,
    training: str,
    rates: Sequence[float],
    numbers: range,
) -> Trained:
    """Train a rung under a stress at L rates × S streams, by plain gradient ascent."""
    s, runs, device = settings, (len(rates), len(numbers)), torch.device(settings.device)
    estimator = ladder.get(rung).estimator
    if training in ("unrewarded", "rewarded"):
        estimator = anchored(estimator, s.anchor)
    rollouts = s.rollouts * (s.longer if training == "random" else 1)
    noise = Noise(runs, s.seed, numbers=[*numbers] * len(rates), device=device)
    streams = Noise((len(numbers),), s.seed + 1, numbers=numbers, device=device)
    bandit = problem(s, training, estimator, noise, streams)
    optimizer = SGD(torch.tensor(rates, device=device).unsqueeze(-1).expand(runs))
    epochs = s.updates if training == "stale" else 1
    learner = Learner(
        bandit, estimator, optimizer, noise, epochs=epochs, halt_diverged=True, log_every=rollouts
    )

    def look() -> dict[str, Tensor]:
        with torch.no_grad():
            return theory.outcomes(bandit.arm_policy.log_probs(), training, s.lengths)

    seen = [look()]
    for _ in range(rollouts):
        learner.step()
        seen.append(look())
    along = {name: torch.stack([each[name] for each in seen]).cpu() for name in seen[0]}
    return Trained(along, learner.diverged)


def expected(
    settings: Settings, below: str, rung: str, stress: str, arm: str, rate: float
) -> float | None:
    """What theory gives for an arm, the `rung` or the one `below`, at a rate; None if it does not.

    The outcome's mean along the run. What a baseline's smaller variance is worth comes from normal
    updates with the expectation and the covariance of sampled ones. The std's weight w_G(p) and the
    ragged bandit's lengths come from expected updates alone.
    """
    s, estimator = settings, ladder.get(arm).estimator
    if (below, rung, stress) in VARIANCE:
        return float(diffused(s, estimator, stress, rate).mean())
    if (below, rung) == ("group_mean", "group_std") and stress in ("hard", "easy"):
        log_prob = theory.start(torch.tensor(s.success, dtype=torch.float64), s.arms)
        policy = theory.shared_policy(log_prob, (), s.width, s.shared)
        path = theory.follow(estimator, policy, s.many, rate, s.rollouts)
        third = len(s.success) // 3
        return float(path[..., :third].mean() if stress == "hard" else path[..., -third:].mean())
    if (below, rung) == ("group_std", "length_mean") and stress == "lengths":
        environment = theory.ragged(s.lengths, s.pays, "cpu")
        path = ascend(estimator, environment, UNIFORM, s.group, rate=rate, steps=s.rollouts)
        return float(theory.outcomes(path.unsqueeze(-2), "lengths", s.lengths)["length"].mean())
    return None


def diffused(settings: Settings, estimator: Estimator, training: str, rate: float) -> Tensor:
    """The mean success [S] along normal updates under the stress, on streams of their own."""
    s = settings
    noise, streams = (Noise((s.streams,), s.seed + offset) for offset in (2, 3))
    bandit = problem(s, training, estimator, noise, streams)
    policy, reward = bandit.arm_policy, bandit.environment.mean
    assert isinstance(policy, LinearSoftmax)
    reward = reward.expand(s.streams, len(s.success), s.arms)
    return theory.diffuse(estimator, policy, reward, s.group, rate, s.rollouts, noise).mean((0, -1))


def run(settings: Settings, progress: Progress) -> Result:
    """Every part under its stress and without; then the facts."""
    s = settings

    sweep = Sweep(s.rates, s.tuning, s.streams)
    caption = (
        "Diamonds: predicted, from the expectation and the covariance of an update or from the"
        f" expectation alone. The KL that holds on to a skill has β = {s.anchor:g}."
    )
    with side_by_side(s.workers, progress, s.device) as spread:

        def trained(arms: Sequence[Arm]) -> list[Trained]:
            return spread(partial(train, s), arms, WHERE)

        def predicted(rows: Sequence[Rated]) -> list[float | None]:
            arms = [
                (below, rung, stress, arm, rate)
                for below, rung, stress, *rates in rows
                for arm, rate in zip((below, rung), rates, strict=True)
            ]
            found = spread(partial(expected, s), arms, "predictions")
            both = zip(found[::2], found[1::2], strict=True)
            return [None if low is None or high is None else high - low for low, high in both]

        return compare(s.rungs, trained, sweep, WHERE, predicted, caption)


def plot(result: Result) -> Figure:
    """The forest of effects."""
    return forest({WHERE: result})
