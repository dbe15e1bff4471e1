"""Baselines for the natural policy gradient on three arms whose rewards are known.

The arms pay 1, .7 and 0, there is one pull per update, and the first policy prefers the worst arm.
The baseline b* has the least variance; b* − ½ and b* + ½ have the same variance as each other,
exactly. With the lower one a pull of the middle arm is good news (.7 > b), raises that arm, and is
soon the only thing that happens: the policy commits. With the higher one every pull is bad news
while the best arm is the rarest: what was pulled comes down, and the policy keeps looking. The
value of the policy as the baseline, V = Σ π r, is the noisiest of them at the start, and almost
never gets stuck. Not even b* + ½ is safe, because b* follows the rarest arm: where the worst arm
has become the rarest, b* = 0, so b* + ½ < .7, and the middle arm is good news again. A baseline
fixed above every reward never commits; with large steps it never settles either.

The factor 1/π(a) in the natural gradient makes single steps of hundreds of nats. Everything is
therefore computed from log-probabilities, and b* as a mean of rewards under softmax(−log π), so
that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as change

import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import outcomes
from bandits.natural import SoftmaxNaturalGradient, natural_direction
from bandits.policies import Softmax, log_softmax
from bandits.problem import Bandit
from course import ladder
from course.errors import require
from course.estimator import replace
from course.exact import microscope
from course.lab.settings import Checked
from course.lab.terminal import Progress
from course.learner import Learner
from course.parts import Constant, Value
from course.rollout import Rollout
from course.train.noise import Noise
from course.train.optim import Optimizer
from course.train.trust_region import NaturalGradient


@dataclass(frozen=True)
class ThreeArms(Checked):
    """Three arms that always pay `rewards`, the first one the most; raises `CourseError` otherwise.

    It is the setting of Chung et al. 2021 (2008.13773).
    """

    # reward of each of the three arms, always the same; the first is the best
    rewards: tuple[float, ...] = (1.0, 0.7, 0.0)
    start: tuple[float, ...] = (0.0, 3.0, 5.0)  # logits at the start, in nats
    shift: float = 0.5  # how far two baselines are from the variance-minimising one, in reward

    def __post_init__(self) -> None:
        super().__post_init__()
        three = len(self.rewards) == 3
        require(three, "rewards", self.rewards, "three numbers: the figure is a triangle")
        first = max(self.rewards) == self.rewards[0] > max(self.rewards[1:])
        require(first, "rewards", self.rewards, "the largest first, alone")
        require(len(self.start) == 3, "start", self.start, "three logits")
        require(self.shift > 0, "shift", self.shift, "a number > 0")

    @property
    def reward(self) -> Tensor:
        """The rewards [3]."""
        return torch.tensor(self.rewards, dtype=torch.float64)

    @property
    def logits(self) -> Tensor:
        """The initial logits [3]."""
        return torch.tensor(self.start, dtype=torch.float64)


# baseline → (share of b*, share of V, sign of the shift)
BASELINES = {
    "below": (1.0, 0.0, -1.0),
    "best": (1.0, 0.0, 0.0),
    "above": (1.0, 0.0, 1.0),
    "value": (0.0, 1.0, 0.0),
    "fixed": (0.0, 0.0, 1.0),
}


def least_variance_baseline(log_prob: Tensor, reward: Tensor) -> Tensor:
    """b* = Σ (r/π) / Σ (1/π), the constant that minimises the natural gradient's variance.

    [..., K] → [...], for one sample. E‖(r − b)/π(a)·(e_a − 1/K)‖² = (1 − 1/K) Σ (r_a − b)²/π_a is a
    parabola in b, and the mean of the natural gradient does not depend on b. The weights are
    computed as softmax(−log π), because 1/π overflows when a probability underflows.
    eq:natural-least-variance
    """
    return (torch.softmax(-log_prob, -1) * reward).sum(-1)


def natural_variance(log_prob: Tensor, reward: Tensor, baseline: float) -> Tensor:
    """The total variance of one sample's natural gradient: (1 − 1/K) Σ (r − b)²/π − ‖r − mean(r)‖².

    [..., K] → [...].
    """
    second = ((reward - baseline) ** 2 / log_prob.exp()).sum(-1) * (1 - 1 / reward.shape[-1])
    return second - ((reward - reward.mean(-1, keepdim=True)) ** 2).sum(-1)


class KnownBaseline(Bandit):
    """A bandit whose rollouts hold, as the value, the baseline `best`·b* + `value`·V + `shift`.

    The three coefficients are [...], one per run. The baseline is computed from the true rewards.
    """

    def __init__(
        self,
        environment: Deterministic,
        policy: Softmax,
        best: Tensor,
        value: Tensor,
        shift: Tensor,
    ) -> None:
        super().__init__(environment, policy, group=1)
        self.coefficients = [coefficient.unsqueeze(-1) for coefficient in (best, value, shift)]

    def sample(self, noise: Noise) -> Rollout:
        """One pull per prompt, with the baseline of the sampling policy."""
        rollout = super().sample(noise)
        assert rollout.old_log_dist is not None
        log_prob, reward = rollout.old_log_dist[..., 0, 0, :], self.environment.mean
        best, value, shift = self.coefficients
        # its second line is V = Σ π r: eq:value-of-a-question
        baseline = (
            best * least_variance_baseline(log_prob, reward)
            + value * (log_prob.exp() * reward).sum(-1)
            + shift
        )
        return change(rollout, value=baseline[..., None, None].expand(rollout.reward.shape))


def problem(arms: ThreeArms, kinds: Sequence[str], logits: Tensor) -> KnownBaseline:
    """The three arms with a baseline of `BASELINES` for each kind; `logits` are [kinds, ..., K]."""
    one, runs = (len(kinds), *(1,) * (logits.dim() - 2)), logits.shape[:-1]
    fixed = [max(arms.rewards) if kind == "fixed" else 0.0 for kind in kinds]
    best, value, sign = torch.tensor([BASELINES[kind] for kind in kinds], dtype=logits.dtype).T
    shift = sign * arms.shift + torch.tensor(fixed, dtype=logits.dtype)
    environment = Deterministic(torch.tensor([arms.rewards], dtype=logits.dtype))
    coefficients = [coefficient.reshape(one).expand(runs) for coefficient in (best, value, shift)]
    return KnownBaseline(environment, Softmax(logits.unsqueeze(-2)), *coefficients)


def learner(bandit: KnownBaseline, lr: Tensor | float, seed: int) -> Learner:
    """REINFORCE with the value as its baseline, and exact natural steps."""
    estimator = replace(ladder.reinforce, baseline=Value())
    noise = Noise(bandit.runs, seed, dtype=torch.float64)
    return Learner(bandit, estimator, SoftmaxNaturalGradient(lr), noise, log_every=10**9)


def one_step(arms: ThreeArms, optimizer: Optimizer, arm: int, baseline: float) -> Tensor:
    """The change of the logits [K] when `optimizer` takes one step after one pull of `arm`."""
    environment = Deterministic(arms.reward.unsqueeze(0))
    bandit = Bandit(environment, Softmax(arms.logits.unsqueeze(0)), group=1)
    noise = Noise((), dtype=torch.float64)
    drawn = bandit.sample(noise)
    log_prob = bandit.arm_policy.log_probs().detach()[..., arm].reshape(1, 1, 1)
    pulled = change(
        drawn,
        reward=environment.mean[:, [arm]].unsqueeze(-1),
        log_prob=log_prob,
        data={**drawn.data, "action": torch.tensor([[arm]])},
    )
    bandit.sample = lambda noise: pulled  # type: ignore[method-assign]
    estimator = replace(ladder.reinforce, baseline=Constant(baseline))
    Learner(bandit, estimator, optimizer, noise).train(1)
    return (bandit.parameters[0].detach()[0] - arms.logits).clone()


def measured_variance(arms: ThreeArms, baseline: float) -> float:
    """The total variance of one sample's natural gradient at the start, by the microscope.

    It is tr F⁺CF⁺, where C is the covariance of the gradient.
    """
    log_prob = log_softmax(arms.logits)
    listed = outcomes(Deterministic(arms.reward.unsqueeze(0)), log_prob.unsqueeze(0))
    seen = microscope(replace(ladder.reinforce, baseline=Constant(baseline)), listed, 1)
    assert seen.covariance is not None
    half = natural_direction(seen.covariance, log_prob)
    return float(natural_direction(half.T, log_prob).trace())


def direct_steps(arms: ThreeArms, baseline: float) -> list[Tensor]:
    """(r − b)/π(a)·(e_a − 1/K) [K] for a pull of each arm a: its natural gradient by formula."""
    probability, unit = log_softmax(arms.logits).exp(), torch.eye(3, dtype=torch.float64)
    return [(arms.reward[a] - baseline) / probability[a] * (unit[a] - 1 / 3) for a in range(3)]


def step_gaps(arms: ThreeArms, baseline: float) -> dict[str, float]:
    """Largest difference of two optimizers' natural-gradient steps from `direct_steps`.

    "fisher" is conjugate gradient on the Fisher matrix, "closed" the closed form. A number that is
    the same for all arms changes no probability, so it is subtracted first.
    """
    found = {}
    makers: dict[str, Callable[[], Optimizer]] = {
        "fisher": lambda: NaturalGradient(1.0, damping=0.0),
        "closed": lambda: SoftmaxNaturalGradient(1.0),
    }
    for name, make in makers.items():
        steps = [one_step(arms, make(), arm, baseline) for arm in range(3)]
        pairs = zip(steps, direct_steps(arms, baseline), strict=True)
        found[name] = max(float((step - step.mean() - want).abs().max()) for step, want in pairs)
    return found


def vertex(arms: ThreeArms) -> float:
    """The baseline of least variance without b*: the vertex of the parabola through b = 0, 1, 2."""
    zero, one, two = (measured_variance(arms, float(b)) for b in range(3))
    return 1 + (zero - two) / (2 * (zero - 2 * one + two))


def probabilities(bandit: Bandit) -> Tensor:
    """The policy's probabilities [..., K] for the only prompt."""
    with torch.no_grad():
        return bandit.arm_policy.log_probs()[..., 0, :].exp()


def off_best(logits: Tensor) -> Tensor:
    """Whether a policy with logits [..., K] prefers other arms to the best one, [...]."""
    return log_softmax(logits)[..., 0].exp() < 0.5


def train(
    arms: ThreeArms,
    rates: Sequence[float],
    runs: int,
    steps: int,
    seed: int,
    progress: Progress,
    drawn: tuple[int, int] = (0, 0),
) -> tuple[Tensor, list[int], Tensor]:
    """Train with every baseline of `BASELINES` at every step size.

    Returns the final logits [baselines, rates, runs, K]; the numbers of updates after which
    policies were noted; and the policies [baselines, shown, noted, K] of the first runs at one step
    size, where `drawn` is (the index of that step size, shown).
    """
    here, shown = drawn
    shape = (len(BASELINES), len(rates), runs)
    bandit = problem(arms, list(BASELINES), arms.logits.expand(*shape, -1))
    each = torch.tensor(rates, dtype=torch.float64)[:, None].expand(shape).contiguous()
    teacher = learner(bandit, each, seed)
    spaced = {round(10 ** (place / 16)) for place in range(160)} & set(range(steps))
    stops = [*sorted(spaced), steps]
    noted = [probabilities(bandit)[:, here, :shown]]
    with progress.bar(steps, "updates") as bar:
        for stop in stops:
            bar.update(stop - teacher.steps)
            teacher.train(stop - teacher.steps)
            noted.append(probabilities(bandit)[:, here, :shown])
    logits = bandit.parameters[0].detach()[..., 0, :]
    return logits, [0, *stops], torch.stack(noted, 2)


def longer(
    arms: ThreeArms, logits: Tensor, rate: float, seed: int, steps: int, progress: Progress
) -> Tensor:
    """Which runs [2, runs] are off the best arm after `steps` further updates from `logits`.

    The first row has the baseline b* − shift, the second b* + shift.
    """
    bandit = problem(arms, ("below", "above"), logits)
    if steps > 0:
        teacher = learner(bandit, rate, seed)
        teacher.train(steps, lambda each: progress(each, "further updates"))
    return off_best(bandit.parameters[0].detach()[..., 0, :])
