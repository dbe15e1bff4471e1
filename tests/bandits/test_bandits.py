"""Bandits: what is sampled has the probabilities that are claimed, and rollouts say of it what is
true.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from bandits.environments import (
    Bernoulli,
    Continuous,
    Deterministic,
    Discrete,
    Environment,
    Gaussian,
    HeavyTailed,
    RandomWalk,
    SharedForecast,
    arms_first,
    contextual,
    pick,
)
from bandits.environments import testbed as make_testbed
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from bandits.policies import GaussianPolicy, LinearSoftmax, Softmax, draw, log_softmax
from bandits.problem import Bandit, GaussianBandit
from bandits.theory.mismatch import nucleus
from course import ladder
from course.errors import CourseError
from course.estimator import replace
from course.exact import gradient, microscope, objective, probability
from course.learner import Learner
from course.parts import GroupStd, TokenTIS
from course.train.optim import SGD
from tests.helpers import bernoulli_bandit, close, f64, stream

RUNS = 6_000


def frequencies_fit(counts: Tensor, chances: Tensor) -> bool:
    """Pearson's χ² of counts [K] below its 99.99 % quantile; what has no chance must not happen."""
    possible = chances > 0
    if bool((counts[~possible] > 0).any()):
        return False
    wanted = counts.sum() * chances[possible]
    return float(((counts[possible] - wanted) ** 2 / wanted).sum()) < stats.chi2.ppf(
        0.9999, max(1, int(possible.sum()) - 1)
    )


def counts_of(action: Tensor, arms: int) -> Tensor:
    return torch.bincount(action.flatten(), minlength=arms).double()


# ---------------------------------------------------------------- environments

VALUES = f64(
    [
        [[0.0, 1.0, 5.0], [2.0, 2.0, 3.0], [-1.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0], [1.0, 2.0, 3.0], [4.0, 0.0, 0.0]],
    ]
)
CHANCES = f64(
    [
        [[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]],
        [[1.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]],
    ]
)
MEANS = f64([[0.2, 0.5, 0.8], [0.9, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("environment", "means", "variances"),
    [
        (Deterministic(MEANS), MEANS, 0 * MEANS),
        (Bernoulli(MEANS), MEANS, MEANS * (1 - MEANS)),
        (Gaussian(MEANS, std=1.5), MEANS, 0 * MEANS + 2.25),
        (HeavyTailed(MEANS, freedom=5), MEANS, 0 * MEANS + 5 / 3),  # Student's t: ν/(ν − 2)
        (
            Discrete(VALUES, CHANCES),
            f64([[1.2, 2.0, 0.0], [0.0, 2.7, 1.0]]),
            f64([[1.76, 0, 0.6], [0, 0.41, 3.0]]),
        ),
        # forecasts 0, ½, 1 of y ~ Bernoulli(.7): 1 − q² or 1 − (1 − q)²
        (
            SharedForecast(f64([0.0, 0.5, 1.0]), 0.7, prompts=2),
            f64([[0.3, 0.75, 0.7]] * 2),
            f64([[0.21, 0, 0.21]] * 2),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Environment) else None,
)
def test_rewards_have_the_mean_that_the_environment_claims(
    environment: Environment, means: Tensor, variances: Tensor
) -> None:
    """Every arm of every prompt, 6,000 times; means and variances worked by hand, within four
    standard errors.
    """
    assert environment.mean.shape[-2:] == (2, 3)
    close(environment.mean.expand(2, 3), means)
    action = torch.arange(3).expand(RUNS, 2, 3)
    reward = environment.reward(action, stream((RUNS,), 0))
    assert reward.shape == (RUNS, 2, 3)
    error = (variances / RUNS).sqrt()
    assert bool(((reward.mean(0) - means).abs() <= 4 * error + 1e-12).all())
    if not isinstance(
        environment, HeavyTailed
    ):  # fourth moments are all below 9σ⁴, of a two-valued reward below its range⁴/4
        fourth = ((reward - means) ** 4).mean(0)
        assert bool(
            (
                (reward.var(0, correction=0) - variances).abs()
                <= 5 * (fourth / RUNS).sqrt() + 1e-12
            ).all()
        )


def test_every_listed_reward_comes_as_often_as_it_is_said_to() -> None:
    """Counted, for environments that list their outcomes."""
    for environment in (Discrete(VALUES, CHANCES), Bernoulli(MEANS), Deterministic(MEANS)):
        values, chances = environment.outcomes()
        close(chances.sum(-1), torch.ones(2, 3))
        close((values * chances).sum(-1), environment.mean)
        reward = environment.reward(torch.arange(3).expand(RUNS, 2, 3), stream((RUNS,), 1))
        for q in range(2):
            for arm in range(3):
                kinds, where = values[q, arm].unique(return_inverse=True)
                wanted = torch.zeros(len(kinds), dtype=torch.float64).index_add_(
                    0, where, chances[q, arm]
                )
                counts = torch.stack([(reward[:, q, arm] == kind).sum() for kind in kinds]).double()
                assert counts.sum() == RUNS  # nothing else is ever paid
                assert frequencies_fit(counts, wanted)


def test_gaussian_rewards_are_the_mean_and_the_streams_own_normal_numbers() -> None:
    action = torch.tensor([2, 0, 1, 2]).expand(50, 2, 4)
    reward = Gaussian(MEANS, std=1.5).reward(action, stream((50,), 3))
    close(reward, MEANS[:, [2, 0, 1, 2]] + 1.5 * stream((50,), 3).normal(2, 4))


def test_two_degrees_of_freedom_are_students_t() -> None:
    """Infinite variance, so the distribution function is compared: F(x) = ½ + x/(2√(2 + x²));
    Kolmogorov–Smirnov, p ≈ .001.
    """
    noise = (
        HeavyTailed(f64([[3.0]]), freedom=2)
        .reward(torch.zeros(RUNS, 1, 1, dtype=torch.long), stream((RUNS,), 2))
        .flatten()
        - 3
    )
    ordered = noise.sort().values
    cdf = 0.5 + ordered / (2 * (2 + ordered**2).sqrt())
    steps = torch.arange(RUNS, dtype=torch.float64) / RUNS
    assert float((cdf - steps).abs().max()) < 1.95 / math.sqrt(RUNS) + 1 / RUNS
    with pytest.raises(CourseError, match="continuous"):
        HeavyTailed(f64([[3.0]])).outcomes()


def test_a_group_shares_its_forecasts_outcome_and_prompts_do_not() -> None:
    environment = SharedForecast(f64([0.0, 1.0]), 0.5, prompts=2)
    reward = environment.reward(torch.tensor([0, 1, 0, 1]).expand(4000, 2, 4), stream((4000,), 3))
    happened = 1 - reward[..., 0]  # forecast 0 earns 1 − y, forecast 1 earns y
    assert {*reward.unique().tolist()} == {0.0, 1.0}
    assert torch.equal(reward, torch.stack([1 - happened, happened, 1 - happened, happened], -1))
    correlation = float(((happened[:, 0] - 0.5) * (happened[:, 1] - 0.5)).mean() * 4)
    assert abs(correlation) < 4 / math.sqrt(4000)
    assert SharedForecast(torch.linspace(0, 1, 11), 0.7).best.item() == 7  # the calibrated forecast
    with pytest.raises(CourseError, match="shares"):
        environment.outcomes()


def test_a_random_walk_takes_steps_of_its_drift() -> None:
    """After n steps each mean is N(μ₀, n·drift²), every run its own; rewards follow the mean of the
    moment, and so does `best`.
    """
    walk = RandomWalk(torch.zeros(RUNS, 1, 2, dtype=torch.float64), std=0.0, drift=0.3)
    noise = stream((RUNS,), 4)
    first = walk.best.clone()
    for _ in range(4):
        walk.advance(noise)
    moved = walk.mean
    assert abs(float(moved.mean())) < 4 * 0.6 / math.sqrt(2 * RUNS)
    assert abs(float(moved.var()) / 0.36 - 1) < 4 * math.sqrt(2 / (2 * RUNS))
    assert torch.equal(
        walk.reward(torch.ones(RUNS, 1, 1, dtype=torch.long), noise)[..., 0], moved[..., 1]
    )
    assert torch.equal(walk.best.squeeze(-1), (moved[..., 1] > moved[..., 0]).long())
    assert not torch.equal(walk.best, first)


def test_the_testbed_draws_its_arms_for_every_run() -> None:
    environment = make_testbed(stream((RUNS,), 5), arms=3, mean=4.0, spread=2.0, std=0.5)
    assert environment.mean.shape == (RUNS, 1, 3)
    assert environment.std == 0.5
    assert abs(float(environment.mean.mean()) - 4) < 4 * 2 / math.sqrt(3 * RUNS)
    assert abs(float(environment.mean.var()) / 4 - 1) < 4 * math.sqrt(2 / (3 * RUNS))


def test_contextual_prompts_have_one_right_arm_and_their_difficulty() -> None:
    """Right arm surely pays offset + scale; a wrong one with probability difficulty·U(0, 1), half
    the difficulty on average.
    """
    difficulty, runs = (0.0, 0.5, 1.0), 4000
    environment = contextual(stream((runs,), 6), difficulty, arms=4, offset=-1.0, scale=2.0)
    assert environment.mean.shape == (runs, 3, 4)
    chance = (environment.mean + 1) / 2
    assert {*environment.values.unique().tolist()} == {-1.0, 1.0}
    assert bool(((chance == 1).sum(-1) == 1).all())
    right = environment.best.squeeze(-1)
    assert torch.equal(chance.argmax(-1), right)
    for q, level in enumerate(difficulty):
        assert frequencies_fit(counts_of(right[:, q], 4), torch.full((4,), 0.25))
        wrong = chance[:, q][chance[:, q] < 1]
        assert 0 <= wrong.min() <= wrong.max() <= level
        assert abs(float(wrong.mean()) - level / 2) <= 4 * level / math.sqrt(12 * len(wrong))
    assert abs(float(((right[:, 0] == right[:, 1]).double()).mean()) - 0.25) < 4 * math.sqrt(
        3 / 16 / runs
    )  # each prompt for itself


def test_listing_what_has_infinitely_many_outcomes_is_refused() -> None:
    with pytest.raises(CourseError, match="infinitely many"):
        Gaussian(MEANS).outcomes()
    assert Gaussian(MEANS, std=0.0).outcomes()[0].shape == (2, 3, 1)


def test_arms_first_changes_the_memory_and_nothing_else() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    turned = arms_first(tensor)
    assert torch.equal(turned, tensor)
    assert turned.movedim(-1, 0).is_contiguous()
    action = torch.tensor([[[3], [0], [2]], [[1], [1], [0]]])
    for many in (
        action,
        action.expand(2, 3, 5),
    ):  # the path for one sample, and the path for several
        want = [
            [[tensor[r, q, a].item() for a in row] for q, row in enumerate(rows)]
            for r, rows in enumerate(many.tolist())
        ]
        assert pick(turned, many).tolist() == want
    assert pick(tensor[0], action).tolist() == [
        [[3.0], [4.0], [10.0]],
        [[1.0], [5.0], [8.0]],
    ]  # runs share what has no run axis


# ---------------------------------------------------------------- policies

PI = f64([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.1, 0.8]])


@pytest.mark.parametrize("group", [1, 5])
def test_arms_are_drawn_with_their_probabilities(group: int) -> None:
    action = draw(PI.log().expand(RUNS, 2, 4), stream((RUNS,), 7), group)
    assert action.shape == (RUNS, 2, group)
    for q in range(2):
        for i in range(group):
            assert frequencies_fit(counts_of(action[:, q, i], 4), PI[q])
    if group > 1:  # samples of a group are independent: pairs too have their probabilities
        pairs = action[:, 0, 0] * 4 + action[:, 0, 3]
        assert frequencies_fit(counts_of(pairs, 16), torch.outer(PI[0], PI[0]).flatten())


@pytest.mark.parametrize("group", [1, 3])
def test_drawing_inverts_the_distribution_function(group: int) -> None:
    """By loops over the very same uniform numbers: the first arm whose cumulative probability
    exceeds u.
    """
    uniform = stream((300,), 8).uniform(2, group)
    action = draw(PI.log().expand(300, 2, 4), stream((300,), 8), group)
    for run in range(300):
        for q in range(2):
            for i in range(group):
                below, arm = float(PI[q, 0]), 0
                while below <= float(uniform[run, q, i]):
                    arm += 1
                    below += float(PI[q, arm])
                assert int(action[run, q, i]) == arm


def test_a_softmax_owns_its_logits() -> None:
    """Two policies made of one tensor do not train each other, nor that tensor."""
    for start in (torch.zeros(1, 3), torch.zeros(2, 1, 3), torch.zeros(4, 3)):
        first, second = Softmax(start), Softmax(start)
        with torch.no_grad():
            first.logits.add_(1.0)
        assert bool((start == 0).all())
        assert bool((second.logits == 0).all())
    close(Softmax.of(PI[:1, :3]).log_probs().detach().exp(), PI[:1, :3])
    close(
        Softmax.uniform(stream((2,)), 3, 4).log_probs().detach().exp(), torch.full((2, 3, 4), 0.25)
    )


def test_log_softmax_by_loops() -> None:
    logits = f64([[[1.0, 2.0, -3.0], [700.0, -700.0, 0.0]]])
    found = log_softmax(logits)
    for q, row in enumerate(logits[0].tolist()):
        top = max(row)
        normaliser = top + math.log(sum(math.exp(x - top) for x in row))
        close(found[0, q], [x - normaliser for x in row])


def test_a_linear_softmax_shares_its_weights_between_prompts() -> None:
    features = f64([[[1.0, 0.0], [0.0, 1.0]], [[2.0, -1.0], [1.0, 1.0]]])
    policy = LinearSoftmax(features, f64([[0.5, -0.5], [0.0, 0.0]]))
    assert policy.log_probs().shape == (2, 2, 2)
    scores = [[0.5, -0.5], [1.5, 0.0]]  # x·θ of the first run
    for q, row in enumerate(scores):
        total = sum(math.exp(x) for x in row)
        close(policy.log_probs()[0, q].detach().exp(), [math.exp(x) / total for x in row])
    close(policy.log_probs()[1].detach().exp(), torch.full((2, 2), 0.5))


def test_a_gaussian_policys_density_and_samples() -> None:
    mean, std = f64([[1.0, -2.0]]), 0.5
    policy = GaussianPolicy(mean, std, learn_std=True)
    action = f64([[[0.0, 1.0, 1.5], [-2.0, 3.0, -2.5]]])
    for q in range(2):
        want = [
            -0.5 * ((a - float(mean[0, q])) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
            for a in action[0, q].tolist()
        ]
        close(policy.log_prob(action)[0, q].detach(), want)
    close(
        policy.log_prob(action[:, 1:], torch.tensor([1])).detach(),
        policy.log_prob(action)[:, 1:].detach(),
    )
    many = GaussianPolicy(mean.expand(RUNS, 2), std).draw(stream((RUNS,), 9), 3)
    assert many.shape == (RUNS, 2, 3)
    assert bool(((many.mean(0) - mean[0, :, None]).abs() < 4 * std / math.sqrt(RUNS)).all())
    assert bool(((many.var(0) / std**2 - 1).abs() < 4 * math.sqrt(2 / RUNS)).all())
    assert len(GaussianPolicy(mean).parameters) == 1
    assert len(policy.parameters) == 2


# ---------------------------------------------------------------- rollouts


def test_ragged_arms_are_answers_whose_first_token_is_the_choice() -> None:
    """log π on the first token, forced ones after it, the reward on the last, nothing on the
    padding; by loops.
    """
    lengths = [1, 3, 2]
    environment = Bernoulli(f64([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), lengths=torch.tensor(lengths))
    probabilities = f64([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    bandit = Bandit(environment, Softmax(probabilities.log().expand(3, 2, 3)), 4, reference="start")
    rollout = bandit.sample(stream((3,), 10))
    policy = bandit.policy(rollout)
    assert rollout.reward.shape == (3, 2, 4, 3)
    assert rollout.old_log_dist is not None
    assert rollout.ref_log_prob is not None
    for run in range(3):
        for q in range(2):
            for i, arm in enumerate(rollout.data["action"][run, q].tolist()):
                n, paid = lengths[arm], float(environment.mean[q, arm])
                assert rollout.mask[run, q, i].tolist() == [t < n for t in range(3)]
                assert rollout.reward[run, q, i].tolist() == [
                    paid if t == n - 1 else 0.0 for t in range(3)
                ]
                first = [math.log(float(probabilities[q, arm])), 0.0, 0.0]
                for tensor in (rollout.log_prob, policy.log_prob.detach(), rollout.ref_log_prob):
                    close(tensor[run, q, i], first)
            for log_dist in (rollout.old_log_dist, policy.log_dist, rollout.ref_log_dist):
                assert log_dist is not None
                close(
                    log_dist[run, q, 0].detach().exp(),
                    torch.stack([probabilities[q], f64([1, 0, 0]), f64([1, 0, 0])]),
                )
    close(policy.entropy[0, :, 0, 1:].detach(), torch.zeros(2, 2))  # forced: no choice, no entropy
    assert torch.equal(rollout.length, torch.tensor(lengths)[rollout.data["action"]])


def test_a_rollout_of_one_token_by_loops() -> None:
    bandit = bernoulli_bandit(
        (5,),
        logits=PI[:, [0, 2, 3]].clamp(min=0.1).log(),
        reference="start",
        critic=True,
        greedy=True,
        group=6,
    )
    start = bandit.arm_policy.log_probs().detach().clone()
    with torch.no_grad():
        bandit.parameters[0][:, 0, 0] += 1.0
        bandit.parameters[1] += 0.25
    rollout = bandit.sample(stream((5,), 11))
    now = bandit.arm_policy.log_probs().detach()
    assert rollout.reward.shape == (5, 2, 6, 1)
    action = rollout.data["action"]
    for run in range(5):
        for q in range(2):
            for i, arm in enumerate(action[run, q].tolist()):
                assert float(rollout.log_prob[run, q, i, 0]) == float(now[run, q, arm])
                assert float(rollout.ref_log_prob[run, q, i, 0]) == float(start[run, q, arm])  # type: ignore[index]
    assert {*rollout.reward.unique().tolist()} <= {0.0, 1.0}
    assert bool((rollout.value == 0.25).all())
    assert rollout.greedy_reward is not None
    assert rollout.greedy_reward.shape == (5, 2)


def test_the_greedy_reward_is_that_of_the_most_probable_arm() -> None:
    means = f64([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    bandit = Bandit(
        Bernoulli(means),
        Softmax(f64([[0.0, 0.0, 0.1], [0.0, 0.2, 0.1]]).expand(7, 2, 3)),
        2,
        greedy=True,
    )
    assert torch.equal(bandit.sample(stream((7,))).greedy_reward, f64([1.0, 0.0]).expand(7, 2))


def test_what_was_sampled_does_not_change_when_the_policy_does() -> None:
    bandit = bernoulli_bandit((3,), critic=True, reference="start")
    rollout = bandit.sample(stream((3,)))
    kept = {
        name: getattr(rollout, name)
        for name in ("reward", "log_prob", "ref_log_prob", "value", "old_log_dist", "ref_log_dist")
    }
    before = {name: tensor.clone() for name, tensor in kept.items()}
    with torch.no_grad():
        for parameter in bandit.parameters:
            parameter.add_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    later = bandit.policy(rollout)
    want = bandit.arm_policy.log_probs().gather(-1, rollout.data["action"]).unsqueeze(-1)
    assert torch.equal(later.log_prob, want)  # the forward pass of sampling is not used again
    assert not torch.equal(later.log_prob, rollout.log_prob)


def test_the_forward_pass_of_sampling_serves_one_update_and_has_the_gradient_of_a_fresh_one() -> (
    None
):
    bandit = bernoulli_bandit((3,), critic=True)
    rollout = bandit.sample(stream((3,)))
    for _ in range(2):  # first the pass kept from sampling, then a fresh one
        policy = bandit.policy(rollout)
        assert policy.value is not None
        total = (
            policy.log_prob * torch.arange(24.0).reshape(3, 2, 4, 1)
        ).sum() + policy.value.sum()
        gradients = torch.autograd.grad(total, bandit.parameters)
        want = torch.zeros(3, 2, 3, dtype=torch.float64)
        for run, q, i in ((r, q, i) for r in range(3) for q in range(2) for i in range(4)):
            arm, weight = int(rollout.data["action"][run, q, i]), 8 * run + 4 * q + i
            want[run, q] += weight * (torch.eye(3, dtype=torch.float64)[arm] - 1 / 3)
        close(gradients[0], want)
        close(gradients[1], torch.full((3, 2), 4.0))
    with torch.no_grad():
        rollout = bandit.sample(stream((3,)))
        assert not bandit.policy(rollout).log_prob.requires_grad


@pytest.mark.parametrize("runs", [(), (3,), (2, 2)])
def test_a_minibatch_of_prompts_is_scored_as_in_the_whole(runs: tuple[int, ...]) -> None:
    """Also without run axes, with shared weights, with a critic, and for continuous actions."""
    index = torch.tensor([2, 0])
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means, axis = (
        torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        len(runs),
    )
    tabular = Bandit(
        Bernoulli(means), Softmax(torch.rand(*runs, 3, 4, dtype=torch.float64)), 2, critic=True
    )
    linear = Bandit(
        Bernoulli(means), LinearSoftmax(features, torch.ones(*runs, 5, dtype=torch.float64)), 2
    )
    gaussian = GaussianBandit(
        Continuous(torch.sin, prompts=3),
        GaussianPolicy(torch.arange(3.0).double().expand(*runs, 3)),
        2,
    )
    assert tabular.value is not None
    with torch.no_grad():
        tabular.value.add_(torch.arange(3.0))
    for bandit in (tabular, linear, gaussian):
        rollout = bandit.sample(stream(runs))
        whole, part = bandit.policy(rollout), bandit.policy(rollout.prompts(index))
        close(part.log_prob.detach(), whole.log_prob.index_select(axis, index).detach())
        if whole.log_dist is not None and part.log_dist is not None:
            close(part.log_dist.detach(), whole.log_dist.index_select(axis, index).detach())
        if whole.value is not None and part.value is not None:
            close(part.value.detach(), whole.value.index_select(axis, index).detach())


def test_a_gaussian_bandit_scores_the_actions_it_drew() -> None:
    bandit = GaussianBandit(
        Continuous(lambda a: -((a - 3) ** 2), prompts=2),
        GaussianPolicy(f64([[0.0, 1.0]]).expand(4, 2), 2.0),
        3,
    )
    rollout = bandit.sample(stream((4,), 12))
    action = rollout.data["action"]
    close(rollout.reward[..., 0], -((action - 3) ** 2))
    close(bandit.policy(rollout).log_prob.detach(), rollout.log_prob)
    close(
        rollout.log_prob[..., 0],
        -((action - f64([0.0, 1.0])[:, None]) ** 2) / 8 - math.log(2 * math.sqrt(2 * math.pi)),
    )


# ---------------------------------------------------------------- under the microscope


def test_b3_is_the_canonical_bandit() -> None:
    listed = b3()
    pi, mu = B3_POLICY, B3_MEANS
    assert objective(listed) == pytest.approx(0.41, abs=1e-15)
    close(gradient(listed), [p * (m - 0.41) for p, m in zip(pi, mu, strict=True)])
    raised = b3(offset=4.0)
    assert objective(raised) == pytest.approx(4.41, abs=1e-14)
    close(gradient(raised), gradient(listed))


@pytest.mark.parametrize("lengths", [None, [1, 3, 2]])
def test_listed_outcomes_are_what_is_sampled(lengths: list[int] | None) -> None:
    """Every sampled answer is one of the listed rows, and comes as often as its
    probability says.
    """
    environment = Discrete(VALUES, CHANCES, None if lengths is None else torch.tensor(lengths))
    probabilities = f64([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    bandit = Bandit(
        environment, Softmax(probabilities.log().expand(RUNS, 2, 3)), 2, reference="start"
    )
    listed = outcomes(
        environment, probabilities.log(), reference=probabilities.log(), value=f64([0.5, -1.0])
    )
    rollout = bandit.sample(stream((RUNS,), 13))
    assert listed.value is not None
    close(listed.value[:, :, 0], f64([0.5, -1.0]).unsqueeze(-1).expand(2, 9))
    close(probability(listed).sum(-1), [1.0, 1.0])
    for q in range(2):
        arm_of = torch.arange(3).repeat_interleave(3)
        score = listed.reward[q].sum(-1)
        row = torch.full((RUNS,), -1)
        for k in range(9):
            met = (
                (rollout.data["action"][:, q, 0] == arm_of[k])
                & (rollout.total_reward[:, q, 0] == score[k])
                & (row < 0)
            )
            row[met] = k
        assert int(row.min()) >= 0
        for name in ("reward", "mask", "log_prob", "ref_log_prob"):
            close(getattr(rollout, name)[:, q, 0], getattr(listed, name)[q][row])
        # rows of one arm that pay the same were counted in the first of them
        chances = torch.zeros(9, dtype=torch.float64)
        for k in range(9):
            first = next(j for j in range(9) if arm_of[j] == arm_of[k] and score[j] == score[k])
            chances[first] += probability(listed)[q, k]
        assert frequencies_fit(counts_of(row, 9), chances)
    assert listed.greedy_reward is not None
    close(listed.greedy_reward, [1.2, 1.0])  # the means of the most probable arms, first and third


@pytest.mark.parametrize("name", ["reinforce", "rloo", "group_std", "grpo", "dr_grpo"])
def test_the_microscopes_mean_and_covariance_are_those_of_sampled_gradients(name: str) -> None:
    """6,000 sampled batches of ragged answers, off nothing but the sampler: every entry within four
    or five standard errors.
    """
    environment = Bernoulli(f64([B3_MEANS]), lengths=torch.tensor([1, 3, 2]))
    pi, reference = f64([B3_POLICY]), f64([[0.3, 0.3, 0.4]])
    estimator = ladder.get(name).estimator
    estimator = (
        replace(estimator, scale=GroupStd(eps=0.1))
        if isinstance(estimator.scale, GroupStd)
        else estimator
    )
    bandit = Bandit(
        environment,
        Softmax(pi.log().expand(RUNS, 1, 3)),
        3,
        reference=reference.log().expand(RUNS, 1, 3),
    )
    rollout = bandit.sample(stream((RUNS,), 14))
    loss = estimator.loss(bandit.policy(rollout), rollout)
    sampled = -torch.autograd.grad(loss.sum(), bandit.parameters)[0][:, 0]
    seen = microscope(estimator, outcomes(environment, pi.log(), reference=reference.log()), 3)
    assert seen.covariance is not None
    error = (seen.covariance.diagonal() / RUNS).sqrt()
    assert bool(((sampled.mean(0) - seen.expected).abs() < 4 * error).all())
    centred = sampled - seen.expected
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    assert bool(
        ((products.mean(0) - seen.covariance).abs() < 5 * products.std(0) / math.sqrt(RUNS)).all()
    )


# ---------------------------------------------------------------- another policy draws


def test_another_sampler_draws_and_both_log_probabilities_are_kept() -> None:
    """μ ∝ √π: log_prob is π's, sampler_log_prob μ's, and the arms come as often as μ says."""
    logits = [[1.0, 0.0, -1.0], [0.0, 0.5, 2.0]]
    bandit = bernoulli_bandit(group=4000, logits=logits, sampler=lambda log_prob: log_prob / 2)
    rollout = bandit.sample(stream())
    arms = rollout.data["action"]
    now = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    drawn = torch.log_softmax(now / 2, -1)
    close(rollout.log_prob[..., 0], now.gather(-1, arms))
    assert rollout.sampler_log_prob is not None
    close(rollout.sampler_log_prob[..., 0], drawn.gather(-1, arms))
    share = torch.stack([(arms == arm).double().mean(-1) for arm in range(3)], -1)
    assert float((share - drawn.exp()).abs().max()) < 0.03  # four standard errors
    assert float((share - now.exp()).abs().max()) > 0.1
    close(bandit.policy(rollout).log_prob.detach(), rollout.log_prob)
    assert bernoulli_bandit().sample(stream()).sampler_log_prob is None


def test_what_a_sampler_rules_out_is_never_drawn() -> None:
    cut = bernoulli_bandit(
        group=500, logits=[[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], sampler=lambda x: nucleus(x, 0.9)
    )
    rollout = cut.sample(stream())
    assert sorted(set(rollout.data["action"][0].tolist())) == [0, 1]
    assert sorted(set(rollout.data["action"][1].tolist())) == [1, 2]
    learner = Learner(
        cut, replace(ladder.group_mean, correction=TokenTIS()), SGD(0.1), stream(), log_every=1
    )
    row = learner.train(1).rows[0]
    # κ is the probability of the two arms that are left, 1/(1 + e⁻¹ + e⁻²)·(1 + e⁻¹) = .910
    assert float(row["correction_mean"]) == pytest.approx(0.910, abs=0.01)


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (lambda x: x[..., :2], r"sampler: got \(2, 2\); allowed is one that returns logits"),
        (lambda x: None, "sampler: got None; allowed is one that returns logits"),
        (lambda x: x.log(), "sampler: got 'nan'; allowed is one whose logits are numbers"),
        (lambda x: x - torch.inf, "sampler: got 'nan'; allowed is one whose logits are numbers"),
    ],
)
def test_a_sampler_that_is_none_is_refused(sampler: object, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        bernoulli_bandit(sampler=sampler).sample(stream())
