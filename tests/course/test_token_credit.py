"""What each token is credited with: λ by length, a teacher, the optimal token baseline.

Every number is computed again here by loops over samples and tokens.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from bandits.environments import Environment
from bandits.exact import outcomes
from course import ladder
from course.errors import Clash, CourseError
from course.estimator import Estimator, replace
from course.exact import Outcomes, kl_gradient, microscope, relative_distance
from course.parts import (
    GAE,
    GroupMean,
    GroupStd,
    LengthAdaptiveGAE,
    OptimalToken,
    RewardToGo,
    TeacherLogRatio,
    TokenMean,
    TokenWhitening,
    Value,
)
from course.rollout import Policy, Rollout
from tests.helpers import close, f64

GAPS = [[True, True, True, True], [True, False, True, False], [False, True, False, False]]


def ragged(seed: int = 0) -> Rollout:
    """One prompt, three samples of 4, 2 and 1 chosen tokens, gaps among them; NaN in the gaps."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*more: int) -> Tensor:
        return torch.rand(1, 3, 4, *more, generator=generator, dtype=torch.float64)

    mask = torch.tensor([GAPS])
    nan = torch.tensor(math.nan, dtype=torch.float64)
    dist = (3 * draw(5)).log_softmax(-1)
    return Rollout(
        reward=draw(),
        log_prob=torch.where(mask, dist[..., 2], nan),
        mask=mask,
        ref_log_prob=torch.where(mask, -draw(), nan),
        value=torch.where(mask, draw(), nan),
        truncated=torch.tensor([[True, False, False]]),
        bootstrap=f64([[0.4, 9.0, 9.0]]),
        old_log_dist=torch.where(mask.unsqueeze(-1), dist, nan),
    )


# ---------------------------------------------------------------- λ that grows with the answer


def returns_by_hand(rollout: Rollout, sample: int, gamma: float, lam: float) -> list[float]:
    """V_t + Σ_l (γλ)^l δ_{t+l} over the chosen tokens of one sample."""
    at = [t for t in range(4) if GAPS[sample][t]]
    ends = [*at[1:], 4]
    reward = [float(rollout.reward[0, sample, a:b].sum()) for a, b in zip(at, ends, strict=True)]
    assert rollout.value is not None
    assert rollout.truncated is not None
    assert rollout.bootstrap is not None
    value = [float(rollout.value[0, sample, t]) for t in at]
    last = float(rollout.bootstrap[0, sample]) if rollout.truncated[0, sample] else 0.0
    value.append(last)
    delta = [reward[i] + gamma * value[i + 1] - value[i] for i in range(len(at))]
    return [
        value[i] + sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(at)))
        for i in range(len(at))
    ]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_each_answer_has_a_lambda_of_its_own_and_the_critic_another(gamma: float) -> None:
    """α = .7: λ = 1 − 1/2.8, 1 − 1/1.4, and max(0, 1 − 1/.7) = 0; the critic's is .8."""
    rollout = ragged()
    part = LengthAdaptiveGAE(gamma=gamma, gae_lambda=0.8, alpha=0.7)
    frozen = Estimator(credit=part, baseline=Value(), value_coef=1.0).freeze(rollout)
    for sample, lam in enumerate((1 - 1 / 2.8, 1 - 1 / 1.4, 0.0)):
        chosen = rollout.mask[0, sample]
        want = returns_by_hand(rollout, sample, gamma, lam)
        assert rollout.value is not None
        close(frozen.advantage[0, sample, chosen], f64(want) - rollout.value[0, sample, chosen])
        target = returns_by_hand(rollout, sample, gamma, 0.8)
        close(frozen.target[0, sample, chosen], target)


def test_the_critics_target_is_monte_carlo_unless_told() -> None:
    """λ = 1: the reward to go, which no guess of the critic enters."""
    rollout = ragged()
    found = Estimator(credit=LengthAdaptiveGAE(), baseline=Value()).freeze(rollout).target
    plain = Estimator(credit=GAE(gae_lambda=1.0), baseline=Value()).freeze(rollout).target
    close(found[rollout.mask], plain[rollout.mask])
    own = Estimator(credit=GAE(), baseline=Value()).freeze(rollout)
    assert own.target is not None
    close((own.advantage + rollout.value)[rollout.mask], own.target[rollout.mask])


def test_alpha_and_the_critic_are_asked_for() -> None:
    with pytest.raises(CourseError, match=r"LengthAdaptiveGAE\.alpha"):
        LengthAdaptiveGAE(alpha=0.0)
    with pytest.raises(CourseError, match=r"LengthAdaptiveGAE\.gae_lambda"):
        LengthAdaptiveGAE(gae_lambda=1.5)
    with pytest.raises(Clash, match=r"LengthAdaptiveGAE\(\) clashes with GroupMean"):
        Estimator(credit=LengthAdaptiveGAE(), baseline=GroupMean())


# ---------------------------------------------------------------- a critic that is held


def test_a_clipped_critic_is_flat_where_it_has_moved_far_towards_its_target() -> None:
    """V_old = 0, c = .5: V moved to .4, past the clip towards R, away from R, and past R."""
    value = f64([[[0.4, 0.9, -0.9, 3.0]]]).requires_grad_()
    rollout = Rollout(
        reward=f64([[[0.0, 0.0, 0.0, 1.0]]]),
        log_prob=f64([[[-1.0] * 4]]),
        mask=torch.ones(1, 1, 4, dtype=torch.bool),
        value=f64([[[0.0] * 4]]),
    )
    estimator = Estimator(value_coef=2.0, value_clip=0.5, aggregation=TokenMean())
    policy = Policy(rollout.log_prob, None, value)
    objective = estimator.objective(policy, estimator.freeze(rollout))
    # the surrogate A·log π is −1; errors: .6², (.5 − 1)² for .9, 1.9², 2²
    close(objective.detach(), -1 - (0.6**2 + 0.5**2 + 1.9**2 + 2.0**2) / 4)
    (slope,) = torch.autograd.grad(objective, value)
    close(slope, f64([[[1.2, 0.0, 3.8, -4.0]]]) / 4)


def test_a_wide_clip_of_the_critic_is_none_and_a_clip_says_so() -> None:
    rollout = ragged()
    held = replace(ladder.ppo, value_clip=0.1)
    assert "clip(V, V_old ± 0.1)" in held.text()
    assert r"\pm 0.1" in held.latex()
    assert "rollout.value" in Estimator(value_coef=1.0, value_clip=0.1).needs
    value = rollout.value
    assert value is not None
    policy = Policy(rollout.log_prob, None, value + 0.3)
    wide = replace(held, value_clip=9.0).loss(policy, rollout)
    close(wide, ladder.ppo.loss(policy, rollout))
    assert float(held.loss(policy, rollout)) >= float(wide)
    bare = dataclasses.replace(rollout, value=None)
    with pytest.raises(CourseError, match=r"rollout\.value: got None"):
        Estimator(value_coef=1.0, value_clip=0.1).loss(policy, bare)


# ---------------------------------------------------------------- the optimal token baseline


def test_the_optimal_baseline_by_loops_over_tokens() -> None:
    """‖∇log π‖² by the logits is Σ_v (1[v chosen] − π_v)², written out."""
    rollout, paid = ragged(), [2.0, -1.0, 0.5]
    assert rollout.old_log_dist is not None
    weight = {}
    for i in range(3):
        total = 0.0
        for t in range(4):
            if GAPS[i][t]:
                policy = rollout.old_log_dist[0, i, t].exp().tolist()
                total += sum((float(v == 2) - policy[v]) ** 2 for v in range(5))
                weight[i, t] = total
    found = OptimalToken()(f64([paid]), rollout)
    for t in range(4):
        here = [i for i in range(3) if GAPS[i][t]]
        want = sum(weight[i, t] * paid[i] for i in here) / sum(weight[i, t] for i in here)
        for i in here:
            assert float(found[0, i, t]) == pytest.approx(want, rel=1e-12)


def test_at_one_token_it_is_the_textbooks_baseline_of_least_variance() -> None:
    """E[‖s‖²R]/E[‖s‖²], in the limit of many samples."""
    environment = Environment(f64([[1.0, 0.0, 3.0]]))
    listed = outcomes(environment, f64([[0.6, 0.3, 0.1]]).log())
    score, reward = listed.score[0, :, 0], environment.mean[0]
    norm = score.square().sum(-1) * f64([0.6, 0.3, 0.1])
    best = float((norm * reward).sum() / norm.sum())
    limit = replace(ladder.baseline, baseline=OptimalToken())
    seen = microscope(limit, listed, math.inf).coefficient[0, :, 0]
    # the coefficient of each arm is its share times its advantage
    close(seen.flatten() / f64([0.6, 0.3, 0.1]), reward - best)


def test_a_sample_that_is_alone_at_a_token_has_no_advantage_there() -> None:
    rollout = ragged()
    frozen = replace(ladder.baseline, baseline=OptimalToken()).freeze(rollout)
    assert float(frozen.advantage[0, 0, 3]) == 0.0
    assert float(frozen.advantage[0, 0, 0]) != 0.0
    assert bool(torch.isfinite(frozen.advantage).all())


def test_the_optimal_baseline_weighs_whole_returns() -> None:
    with pytest.raises(Clash, match=r"OptimalToken\(\) clashes with RewardToGo"):
        Estimator(credit=RewardToGo(), baseline=OptimalToken())


# ---------------------------------------------------------------- distillation


def test_a_teacher_on_answers_of_one_token_is_the_gradient_of_the_reverse_kl() -> None:
    listed = one_token()
    found = microscope(ladder.distillation, listed, 3, covariance=False).expected
    close(found, -kl_gradient(listed, "reverse"))
    assert float(found.norm()) > 0.1


def one_token() -> Outcomes:
    environment = Environment(f64([[5.0, -2.0, 0.0]]))  # rewards that nobody looks at
    policy, teacher = (f64([x]).log() for x in ((0.6, 0.3, 0.1), (0.2, 0.3, 0.5)))
    return outcomes(environment, policy, reference=teacher)


def test_on_longer_answers_the_effect_on_later_tokens_is_left_out() -> None:
    """Two tokens, one set of logits for the first and one after each: −∇KL of the answers has, at
    the first token, the teacher's log-ratio of the second as well.
    """
    first = torch.tensor([0.4, -0.2], dtype=torch.float64, requires_grad=True)
    second = f64([[0.3, 0.1], [-0.8, 0.5]])
    teacher_first, teacher_second = f64([0.0, 0.6]).log_softmax(-1), f64([[3.0, 0.0], [0.0, 0.2]])
    teacher_second = teacher_second.log_softmax(-1)
    log_second = second.log_softmax(-1)
    log_first = first.log_softmax(-1)
    joint = log_first[:, None] + log_second
    kl = (joint.exp() * (joint - teacher_first[:, None] - teacher_second)).sum()
    (whole,) = torch.autograd.grad(-kl, first, retain_graph=True)
    arms = [(a, b) for a in range(2) for b in range(2)]
    mine, theirs = (
        torch.stack([torch.stack([x[a], y[a, b]]) for a, b in arms])[:, None, None]
        for x, y in ((log_first.detach(), log_second), (teacher_first, teacher_second))
    )
    mask = torch.ones(4, 1, 1, 2, dtype=torch.bool)
    frozen = ladder.distillation.freeze(
        Rollout(torch.zeros(4, 1, 1, 2).double(), mine, mask, ref_log_prob=theirs)
    )
    close(frozen.advantage, theirs - mine)
    chance = mine.sum((-3, -2, -1)).exp()
    pull = (chance * frozen.advantage[:, 0, 0, 0] * log_first[[a for a, _ in arms]]).sum()
    (found,) = torch.autograd.grad(pull, first, retain_graph=True)
    own = -(log_first.exp() * (log_first - teacher_first)).sum()
    (alone,) = torch.autograd.grad(own, first)
    close(found, alone)  # −∇KL of the first token's distribution
    assert relative_distance(found, whole) > 0.1


def test_a_teacher_is_neither_compared_nor_spread() -> None:
    with pytest.raises(Clash, match=r"TeacherLogRatio\(\) clashes with GroupMean"):
        Estimator(credit=TeacherLogRatio(), baseline=GroupMean())
    with pytest.raises(Clash, match=r"TeacherLogRatio\(\) clashes with GroupStd"):
        Estimator(credit=TeacherLogRatio(), scale=GroupStd())
    Estimator(credit=TeacherLogRatio(), scale=TokenWhitening())


def test_a_rollout_without_a_teacher_is_refused() -> None:
    reward = torch.zeros(1, 2, 1)
    with pytest.raises(CourseError, match="ref_log_prob"):
        ladder.distillation.freeze(Rollout(reward, reward, reward == 0))
