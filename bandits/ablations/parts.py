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

from bandits.environments import Discrete, Environment
from bandits.flow import ascend
from bandits.policies import LinearSoftmax, Softmax
from bandits.problem import Bandit
from bandits.theory import stress as theory
from bandits.theory.length_bias import UNIFORM
from course import ladder
from course.errors import require
from course.estimator import Estimator, replace, uses_critic
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.stress import Sweep, Trained, compare, forest
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import K3
from course.train.noise import Noise
from course.train.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "what each part of the ladder buys on a contextual bandit: one part, one stress, paired"
FIGURE = "bandit_parts"
EXPECTED_SECONDS = 45.0
WHERE = "contextual bandit"


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
    many: int = 16  # samples per question under the stress of difficulty, where noise is no matter
    skill: float = 0.9  # stress: success on every second question, which then pays nothing
    anchor: float = 0.1  # stress: β of the KL that holds on to them
    # the sweep of every arm
    rates: tuple[float, ...] = tuple(2.0**power for power in range(-2, 10))
    tuning: int = 64  # streams that choose the learning rate
    streams: int = 256  # streams that are judged
    seed: int = 0  # seed of the random streams
    device: str = "cpu"  # where to run

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "at least 3 probabilities between 0 and 1"
        fits = len(self.success) >= 3 and min(self.success) > 0 and max(self.success) < 1
        require(fits, "success", self.success, allowed)
        require(self.group > 1, "group", self.group, "at least 2: group baselines compare samples")
        require(self.streams > 1, "streams", self.streams, "at least 2, for an interval")
        short, long = self.lengths
        require(short < long, "lengths", self.lengths, "a short and a long answer")

    def samples(self, training: str) -> int:
        """Samples per question and rollout."""
        return self.many if training in ("difficulty", "alike") else self.group


SETTINGS = Settings()
QUICK = dataclasses.replace(SETTINGS, streams=64, tuning=8, rates=(1.0, 4.0, 16.0, 64.0))
QUICK_SECONDS = 25.0


def estimator_of(rung: str, training: str, settings: Settings) -> Estimator:
    """The rung, with the stress's own β where it has a KL."""
    estimator = ladder.get(rung).estimator
    if training == "unrewarded" and rung == "grpo":
        return replace(estimator, kl=K3(beta=settings.anchor))
    return estimator


def ragged(
    lengths: tuple[int, int], pays: tuple[float, float], device: torch.device | str
) -> Discrete:
    """Four answers: right and short, right and long, wrong and short, wrong and long.

    A right answer pays 1 with probability `pays[0]`, a wrong one with `pays[1]`, else 0.
    """
    right, wrong = pays
    chance = torch.tensor([[right, right, wrong, wrong]], device=device)
    values = torch.tensor([1.0, 0.0], device=device).expand(1, 4, 2)
    tokens = torch.tensor([*lengths, *lengths], device=device)
    return Discrete(values, torch.stack([chance, 1 - chance], -1), lengths=tokens)


def problem(
    settings: Settings, training: str, estimator: Estimator, noise: Noise, streams: Noise
) -> Bandit:
    """The bandit under a stress; `streams` [S] draws what the stress leaves to chance."""
    s = settings
    if training in ("lengths", "one length"):
        lengths = s.lengths if training == "lengths" else (s.lengths[1], s.lengths[1])
        environment: Environment = ragged(lengths, s.pays, noise.device)
        policy: Softmax | LinearSoftmax = Softmax.uniform(noise, 1, 4)
    else:
        success = torch.tensor(s.success, dtype=noise.dtype, device=noise.device)
        if training == "alike":  # the control of difficulty
            success[:] = success.mean()
        if training == "unrewarded":
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


def outcomes(log_prob: Tensor, training: str, lengths: tuple[int, int]) -> dict[str, Tensor]:
    """What is looked at, of policies [..., Q, K]: each [...]."""
    if training in ("lengths", "one length"):
        log_prob = log_prob[..., 0, :]
        short, long = lengths
        share = torch.sigmoid(log_prob[..., 3] - log_prob[..., 2])  # of long among wrong answers
        length = (short + share * (long - short)) / long
        return {"success": log_prob[..., :2].exp().sum(-1), "length": length}
    success = log_prob[..., 0].exp()  # [..., Q], from hard to easy
    third = success.shape[-1] // 3
    paid = success[..., ::2] if training == "unrewarded" else success
    return {
        "success": paid.mean(-1),
        "hard": success[..., :third].mean(-1),
        "easy": success[..., -third:].mean(-1),
        "skill": success[..., 1::2].mean(-1),
    }


def train(
    settings: Settings,
    rung: str,
    training: str,
    rates: Sequence[float],
    numbers: range,
    progress: Progress,
) -> Trained:
    """Train a rung under a stress at L rates × S streams, by plain gradient ascent."""
    s, runs, device = settings, (len(rates), len(numbers)), torch.device(settings.device)
    estimator = estimator_of(rung, training, s)
    noise = Noise(runs, s.seed, numbers=[*numbers] * len(rates), device=device)
    streams = Noise((len(numbers),), s.seed + 1, numbers=numbers, device=device)
    bandit = problem(s, training, estimator, noise, streams)
    optimizer = SGD(torch.tensor(rates, device=device).unsqueeze(-1).expand(runs))
    epochs = s.updates if training == "stale" else 1
    learner = Learner(
        bandit, estimator, optimizer, noise, epochs=epochs, halt_diverged=True, log_every=s.rollouts
    )

    def look() -> dict[str, Tensor]:
        with torch.no_grad():
            return outcomes(bandit.arm_policy.log_probs(), training, s.lengths)

    seen = [look()]
    for _ in progress(range(s.rollouts), f"{rung}, {training}", total=s.rollouts):
        learner.step()
        seen.append(look())
    along = {name: torch.stack([each[name] for each in seen]).cpu() for name in seen[0]}
    return Trained(along, learner.diverged)


def predicted(
    settings: Settings, below: str, rung: str, stress: str, rates: tuple[float, float]
) -> float | None:
    """The effect along expected updates, without noise: for the std's weight w_G(p), and for the
    ragged bandit. None for other rows: there the noise of the samples is the effect.
    """
    s, first, second = settings, ladder.get(below).estimator, ladder.get(rung).estimator
    if (below, rung) == ("group_mean", "group_std") and stress in ("hard", "easy"):
        log_prob = theory.start(torch.tensor(s.success, dtype=torch.float64), s.arms)
        paths = [
            theory.follow(
                estimator,
                theory.shared_policy(log_prob, (), s.width, s.shared),
                s.many,
                rate,
                s.rollouts,
            )
            for estimator, rate in zip((first, second), rates, strict=True)
        ]
        third = len(s.success) // 3
        hard, easy = (slice(None), slice(third)), (slice(None), slice(-third, None))
        low, high = (float(path[hard if stress == "hard" else easy].mean()) for path in paths)
    elif (below, rung) == ("group_std", "length_mean") and stress == "lengths":
        environment = ragged(s.lengths, s.pays, "cpu")
        walk = partial(
            ascend, environment=environment, start=UNIFORM, group=s.group, steps=s.rollouts
        )
        paths = [walk(each, rate=rate) for each, rate in zip((first, second), rates, strict=True)]
        low, high = (
            float(outcomes(path.unsqueeze(-2), "lengths", s.lengths)["length"].mean())
            for path in paths
        )
    else:
        return None
    return high - low


def run(settings: Settings, progress: Progress) -> Result:
    """Every part under its stress and without; then the facts."""
    s = settings

    def trained(rung: str, training: str, rates: Sequence[float], numbers: range) -> Trained:
        return train(s, rung, training, rates, numbers, progress)

    def theory_of(below: str, rung: str, stress: str, rates: tuple[float, float]) -> float | None:
        return predicted(s, below, rung, stress, rates)

    sweep = Sweep(s.rates, s.tuning, s.streams)
    caption = (
        f"Diamonds: expected updates, without noise. The KL has β = {s.anchor:g} under its stress"
        f" and the rung's own {ladder.grpo.kl.beta:g} without."
    )
    return compare(s.rungs, trained, sweep, WHERE, theory_of, caption)


def plot(result: Result) -> Figure:
    """The forest of effects."""
    return forest({WHERE: result})
