"""The microscope against loops written out by hand, closed forms, and the facts of the course."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, Frozen
from course.estimator import replace as swap
from course.exact import (
    Microscope,
    Outcomes,
    among_others,
    compositions,
    control_variate,
    covariance_at_baseline,
    every_group,
    gaussian_control_variate,
    gaussian_kl_moments,
    gradient,
    gradient_coefficient,
    group_mean_factor,
    group_std_weight,
    kl,
    kl_gradient,
    log_multinomial,
    microscope,
    objective,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    probability,
    rloo_covariance,
    rloo_crossover,
    sampling_probability,
    silent_probability,
    softmax_score,
    total_variance,
    variance_at_baseline,
)
from course.exact.counting import members
from course.exact.view import LARGEST, View
from course.parts import (
    K1,
    K2,
    K3,
    Aggregation,
    Baseline,
    BatchMean,
    BatchStd,
    Clip,
    Constant,
    ConstantLength,
    DropSilentGroups,
    DropTruncated,
    ExactKL,
    GroupMean,
    GroupStd,
    ImportanceSampling,
    InLoss,
    InLossTimesRatio,
    InReward,
    LeaveOneOut,
    OldPolicy,
    SampleFilter,
    Scale,
    ScoreFunction,
    SequenceMean,
    SequenceRatio,
    SequenceSum,
    Value,
)
from course.rollout import Policy, Rollout

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def f64(*values: object) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def close(got: Tensor | float, want: Tensor | float | list[float], **tolerance: float) -> None:
    tolerance = tolerance or EXACT
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(want, dtype=torch.float64),
        **tolerance,
    )


def bernoulli(
    pi: list[float], mean: list[float], shift: float = 0.0, **optional: Tensor
) -> Outcomes:
    """Arms with Bernoulli rewards, plus a constant."""
    mu = f64(mean)
    reward = f64([shift, 1.0 + shift]).expand(len(pi), 2)
    return Outcomes.of_arms(f64(pi).log(), reward, chance=torch.stack([1 - mu, mu], -1), **optional)


PI, MU = [0.5, 0.3, 0.2], [0.2, 0.5, 0.8]
B3 = bernoulli(PI, MU)
PI_LOGITS = f64(PI).log()  # the logits too, since they are normalised
REF = f64([0.2, 0.3, 0.5]).log()
OLD = f64([0.3, 0.3, 0.4]).log()


def first_then_second(theta: Tensor) -> tuple[Tensor, Tensor]:
    """A policy with answers of two lengths: stop at once (1 token), or go on and then say x, y or z
    (2 tokens).

    [5] logits → log-probabilities of the tokens of the four answers [4, 2], and the score of each
    token [4, 2, 5].
    """

    def table(parameters: Tensor) -> Tensor:
        first, second = parameters[:2].log_softmax(0), parameters[2:].log_softmax(0)
        zero = torch.zeros((), dtype=torch.float64)
        return torch.stack(
            [torch.stack([first[0], zero])] + [torch.stack([first[1], second[i]]) for i in range(3)]
        )

    return table(theta), torch.autograd.functional.jacobian(table, theta)


RAGGED_MASK = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
THETA, THETA_OLD, THETA_REF = (
    f64([0.3, -0.2, 0.5, -0.4, 0.1]),
    f64([0.0, 0.4, 0.1, -0.1, 0.3]),
    f64([-0.5, 0.1, 0.0, 0.6, -0.2]),
)


def ragged(off_policy: bool, prompts: int = 1) -> Outcomes:
    """Four answers of lengths 1, 2, 2, 2 with rewards on different tokens, and every optional field
    filled.
    """
    log_prob, score = first_then_second(THETA)

    def many(tensor: Tensor) -> Tensor:
        return tensor.expand(prompts, *tensor.shape).clone()

    reward = many(f64([[0.4, 0.0], [0.0, 1.0], [0.1, 0.0], [0.0, 0.4]]))
    reward[1:] = 1 - reward[1:]
    reward = reward * RAGGED_MASK
    return Outcomes.of_sequences(
        many(log_prob),
        reward,
        many(RAGGED_MASK),
        many(score),
        old_log_prob=many(first_then_second(THETA_OLD)[0]) if off_policy else None,
        ref_log_prob=many(first_then_second(THETA_REF)[0]),
        value=many(f64([[0.3, 0.0], [0.3, 0.6], [0.3, 0.2], [0.3, 0.6]])),
        bootstrap=many(f64([0.0, 0.2, 0.0, 0.1])),
        truncated=many(torch.tensor([False, True, False, False])),
        greedy_reward=f64([0.4] * prompts),
        log_dist=many(f64([[[0.6, 0.4]]]).log()),
        old_log_dist=many(f64([[[0.5, 0.5]]]).log()),
        ref_log_dist=many(f64([[[0.3, 0.7]]]).log()),
        log_dist_score=many(f64([[[[0.4, -0.4, 0.1, 0.0, 0.0], [-0.6, 0.6, 0.0, 0.2, 0.0]]]])),
        limit=5,
    )


def same(a: Microscope, b: Microscope) -> None:
    close(a.expected, b.expected)
    close(a.coefficient, b.coefficient)
    close(a.value, b.value)
    assert a.covariance is not None
    assert b.covariance is not None
    close(a.covariance, b.covariance)


# ---------------------------------------------------------------- against plain loops


def loop_moments(
    outcomes: Outcomes, group: int, sample_gradient
) -> tuple[list[float], list[list[float]]]:  # type: ignore[no-untyped-def]
    """Mean and covariance over all K^G ordered groups of one prompt, by loops;
    `sample_gradient(group of k) → list`, D long, or with more numbers behind.
    """
    p = sampling_probability(outcomes)[0].tolist()
    size = len(sample_gradient((0,) * group))
    mean, second = [0.0] * size, [[0.0] * size for _ in range(size)]
    for chosen in itertools.product(range(len(p)), repeat=group):
        weight = math.prod(p[k] for k in chosen)
        g = sample_gradient(chosen)
        for d in range(size):
            mean[d] += weight * g[d]
            for e in range(size):
                second[d][e] += weight * g[d] * g[e]
    return mean, [[second[d][e] - mean[d] * mean[e] for e in range(size)] for d in range(size)]


def grpo_by_hand(outcomes: Outcomes, group: int, epsilon: float, beta: float, eps: float):  # type: ignore[no-untyped-def]
    """GRPO's gradient for one group, written from Shao et al. 2024, eqs. 3, 4 and 20, and behind it
    the objective's value: scalars and loops only. [D + 1].
    """
    log_prob, old, reward = (
        outcomes.log_prob[0].tolist(),
        outcomes.old[0].tolist(),
        outcomes.reward[0].tolist(),
    )
    assert outcomes.ref_log_prob is not None
    ref, score, mask = (
        outcomes.ref_log_prob[0].tolist(),
        outcomes.score[0].tolist(),
        outcomes.mask[0].tolist(),
    )

    def gradient_of(chosen: tuple[int, ...]) -> list[float]:
        returns = [sum(reward[k]) for k in chosen]
        mean = sum(returns) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in returns) / group)
        total, value = [0.0] * len(score[0][0]), 0.0
        for k, r in zip(chosen, returns, strict=True):
            advantage = 0.0 if max(returns) == min(returns) else (r - mean) / (std + eps)
            length = sum(mask[k])
            for t in range(len(mask[k])):
                if not mask[k][t]:
                    continue
                rho = math.exp(log_prob[k][t] - old[k][t])
                flat = (advantage > 0 and rho > 1 + epsilon) or (
                    advantage < 0 and rho < 1 - epsilon
                )
                push = 0.0 if flat else rho * advantage
                pull = beta * (math.exp(ref[k][t] - log_prob[k][t]) - 1)  # −β ∂k3/∂log π
                clipped = min(max(rho, 1 - epsilon), 1 + epsilon)
                log_r = ref[k][t] - log_prob[k][t]
                gain = min(rho * advantage, clipped * advantage)
                value += (gain - beta * (math.exp(log_r) - log_r - 1)) / (length * group)
                for d in range(len(total)):
                    total[d] += (push + pull) * score[k][t][d] / (length * group)
        return [*total, value]

    return gradient_of


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("method", ["multisets", "lumped"])
def test_grpo_equals_a_loop_over_every_ordered_group(method: str, off_policy: bool) -> None:
    outcomes, group = ragged(off_policy), 3
    mean, covariance = loop_moments(
        outcomes, group, grpo_by_hand(outcomes, group, epsilon=0.2, beta=0.3, eps=1e-6)
    )
    seen = microscope(swap(ladder.grpo, kl=K3(beta=0.3)), outcomes, group, method)
    close(seen.expected, mean[:5])
    close(seen.value, mean[5])
    assert seen.covariance is not None
    close(seen.covariance, f64(covariance)[:5, :5])
    close(seen.std, math.sqrt(sum(covariance[d][d] for d in range(5))))


def test_random_rewards_equal_a_loop_over_every_ordered_group() -> None:
    outcomes = bernoulli(PI, MU, old_log_prob=OLD, ref_log_prob=REF)
    mean, covariance = loop_moments(
        outcomes, 4, grpo_by_hand(outcomes, 4, epsilon=0.2, beta=0.04, eps=1e-6)
    )
    seen = microscope(ladder.grpo, outcomes, 4)
    assert seen.method == "126 multisets"
    assert seen.covariance is not None
    close(seen.expected, mean[:3])
    close(seen.value, mean[3])
    close(seen.covariance, f64(covariance)[:3, :3])


ALL_RUNGS = list(ladder.RUNGS)
EXTRA = {
    "k1_in_reward": swap(ladder.group_std, kl=K1(beta=0.3, place=InReward())),
    "exact_in_reward": swap(
        ladder.group_std, kl=ExactKL(beta=0.3, place=InReward(), accept_bias=True)
    ),
    "exact_in_loss": swap(ladder.rloo, kl=ExactKL(beta=0.3), entropy_coef=0.2),
    "whitened_value": swap(ladder.whitened, baseline=Value()),
    "drop_truncated": swap(ladder.group_std, sample_filter=DropTruncated()),
    "drop_silent": swap(ladder.group_std, sample_filter=DropSilentGroups()),
    "batch_std": swap(ladder.group_mean, scale=BatchStd()),
}
# pairs of outcomes with the same reward that differ in one of the things a part may read
TWINS = bernoulli(
    PI,
    MU,
    old_log_prob=OLD,
    ref_log_prob=REF,
    value=f64([0.1, 0.7, 0.4]),
    bootstrap=f64([0.0, 0.9, 0.0]),
    truncated=torch.tensor([False, True, False]),
    greedy_reward=f64([0.2]),
    log_dist=f64(PI).log().view(1, 1, 1, 3),
    old_log_dist=OLD.view(1, 1, 1, 3),
    ref_log_dist=REF.view(1, 1, 1, 3),
    log_dist_score=softmax_score(f64(PI).log()).view(1, 1, 1, 3, 3),
)


@pytest.mark.parametrize(
    "outcomes", [ragged(False), ragged(True), TWINS], ids=["on policy", "off policy", "twins"]
)
@pytest.mark.parametrize("name", [*ALL_RUNGS, *EXTRA])
def test_lumping_changes_nothing(name: str, outcomes: Outcomes) -> None:
    estimator = EXTRA.get(name) or ladder.get(name).estimator
    same(
        microscope(estimator, outcomes, 3, "multisets"),
        microscope(estimator, outcomes, 3, "lumped"),
    )


@pytest.mark.parametrize(
    "name", ["reinforce", "clip", "group_std", "grpo", "rloo", "token_mean", "gspo", "dapo"]
)
@pytest.mark.parametrize("group", [2, 3, 5])
def test_total_variance_is_the_trace_of_the_covariance(name: str, group: int) -> None:
    """By the law of total variance over classes, and by every multiset of outcomes."""
    outcomes, estimator = ragged(True), ladder.get(name).estimator
    among, score = (
        among_others(estimator, outcomes, group),
        outcomes.score[0] * outcomes.mask[0].unsqueeze(-1),
    )

    def inner(rows: Tensor) -> Tensor:
        vectors = torch.einsum("rkt,ktd->rd", rows, score)
        return vectors @ vectors.T

    exact = microscope(estimator, outcomes, group, "multisets")
    close(
        total_variance(among, inner, torch.einsum("ktd,ksd->kts", score, score)),
        exact.variance,
        rtol=1e-10,
        atol=1e-13,
    )
    mean = group * torch.einsum("n,nmp,m->np", among.chance, among.coefficient, among.weight)
    close(mean, exact.coefficient[0, among.outcome], rtol=1e-10, atol=1e-13)


def test_lumping_counts_what_it_says() -> None:
    assert microscope(ladder.group_std, B3, 16).method == "20,349 multisets"
    assert (
        microscope(ladder.group_std, B3, 16, "lumped").method == "lumped: 96 compositions"
    )  # 6 outcomes × 16 numbers of successes
    same(
        microscope(ladder.group_std, B3, 16, "multisets"),
        microscope(ladder.group_std, B3, 16, "lumped"),
    )


@pytest.mark.parametrize("method", ["multisets", "lumped"])
def test_pieces_add_up(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = microscope(ladder.grpo, TWINS, 4, method)
    monkeypatch.setattr("course.exact.counting.CHUNK", 100)
    same(microscope(ladder.grpo, TWINS, 4, method), whole)


@dataclass(frozen=True)
class DivideByLikelihood(Scale):
    """A part from elsewhere, which reads what no part of the course reads of other samples: their
    log-probabilities.
    """

    def __call__(self, advantage: Tensor, returns: Tensor, rollout) -> Tensor:  # type: ignore[no-untyped-def]
        return advantage / (1 + rollout.log_prob.sum((-2, -1), keepdim=True).square())


def test_lumping_is_right_for_a_part_of_your_own() -> None:
    estimator = swap(ladder.group_mean, scale=DivideByLikelihood())
    same(microscope(estimator, B3, 3, "multisets"), microscope(estimator, B3, 3, "lumped"))


# ---------------------------------------------------------------- parts and estimators of your own
# (case 8)


@dataclass(frozen=True)
class BatchMedian(Baseline):
    """Looks across prompts, and does not say so."""

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        return returns.flatten(-2).median(-1).values[..., None, None, None]


@dataclass(frozen=True)
class MeanOfAll(GroupMean):
    """Derived from a part that looks at its group only, and looks further."""

    def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
        return returns.mean((-2, -1), keepdim=True).unsqueeze(-1)


@dataclass(frozen=True)
class DivideByMeanLength(Scale):
    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        return advantage / rollout.length.double().mean((-2, -1), keepdim=True).unsqueeze(-1)


@dataclass(frozen=True)
class AboveTheBatch(SampleFilter):
    """Keeps what earned at least the mean of all prompts."""

    def __call__(self, rollout: Rollout) -> Tensor:
        earned = rollout.total_reward
        return earned >= earned.mean((-2, -1), keepdim=True)


@dataclass(frozen=True)
class SumOfAll(Aggregation):
    """Looks at nothing but its token, and does not divide by the number of prompts."""

    scope = "token"

    def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
        return mask.to(dtype)


@dataclass(frozen=True)
class SpreadOfRewards(Scale):
    """Looks at its group only, and says so: prompts may be taken apart, outcomes lumped."""

    scope, reads = "group", ("total_reward",)

    def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
        earned = rollout.total_reward
        return advantage * (1 + earned.var(-1, correction=0))[..., None, None]


@dataclass(frozen=True)
class PushedByOthers(K2):
    """Weighed by how likely the batch is now: others' terms depend on one's own log π."""

    def penalty(
        self, policy: Policy, rollout: Rollout, log_ratio: Tensor, mask: Tensor
    ) -> Tensor | None:
        penalty = super().penalty(policy, rollout, log_ratio, mask)
        assert penalty is not None
        return penalty * log_ratio.sum((-3, -2, -1), keepdim=True).exp()


@dataclass(frozen=True)
class FreezeAcross(Estimator):
    def freeze(self, rollout: Rollout) -> Frozen:
        frozen = super().freeze(rollout)
        spread = rollout.total_reward.var((-2, -1), keepdim=True).unsqueeze(-1)
        return replace(frozen, advantage=frozen.advantage * (1 + spread))


@dataclass(frozen=True)
class SquaredObjective(Estimator):
    """Not linear in the weights: no sample has a share of its own."""

    def objective(self, policy: Policy, frozen: Frozen) -> Tensor:
        return super().objective(policy, frozen).square()


@dataclass(frozen=True)
class RatioOfTheBatch(Estimator):
    def log_ratio(self, policy: Policy, rollout: Rollout) -> Tensor:
        return (
            super()
            .log_ratio(policy, rollout)
            .mean((-3, -2, -1), keepdim=True)
            .expand(rollout.mask.shape)
        )


def derived(kind: type[Estimator], estimator: Estimator) -> Estimator:
    """The same parts in an estimator of one's own class."""
    return kind(**estimator.parts)  # type: ignore[arg-type]


OWN = {
    "median of the batch": swap(ladder.reinforce, baseline=BatchMedian()),
    "a group mean that looks further": swap(ladder.group_mean, baseline=MeanOfAll()),
    "scaled by the batch's length": swap(ladder.group_mean, scale=DivideByMeanLength()),
    "filter across prompts": swap(
        swap(ladder.reinforce, aggregation=SequenceSum(count_empty=True)),
        sample_filter=AboveTheBatch(),
    ),
    "a sum over all samples": swap(ladder.rloo, aggregation=SumOfAll()),
    "a scale that says how far": swap(ladder.rloo, scale=SpreadOfRewards()),
    "a penalty pushed by others": swap(ladder.surrogate, kl=PushedByOthers(beta=0.3)),
    "freeze": derived(FreezeAcross, ladder.group_mean),
    "objective": derived(SquaredObjective, ladder.rloo),
    "log_ratio": derived(RatioOfTheBatch, ladder.clip),
}


@pytest.mark.parametrize("name", OWN)
def test_an_estimator_of_your_own_is_the_same_listed_and_by_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, G = 4 (case 8): "auto" must not take them apart where something looks across."""
    outcomes = ragged(off_policy=True, prompts=2)
    listed = microscope(OWN[name], outcomes, 4, "multisets")
    monkeypatch.setattr("course.exact.moments.SMALL", 0)
    found = microscope(OWN[name], outcomes, 4)
    same(found, listed)
    apart = name in ("a sum over all samples", "a scale that says how far")
    assert found.method.startswith("prompt by prompt") == apart


@pytest.mark.parametrize("name", OWN)
def test_an_estimator_of_your_own_is_the_same_lumped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = ragged(off_policy=True)
    listed = microscope(OWN[name], outcomes, 3, "multisets")
    monkeypatch.setattr("course.exact.moments.SMALL", 0)
    same(microscope(OWN[name], outcomes, 3), listed)
    if type(OWN[name]) is Estimator:
        same(microscope(OWN[name], outcomes, 3, "lumped"), listed)
        return
    assert microscope(OWN[name], outcomes, 3).method == "20 multisets"
    with pytest.raises(CourseError, match="a class derived from Estimator may compute anything"):
        microscope(OWN[name], outcomes, 3, "lumped")
    among = among_others(OWN[name], outcomes, 3)
    assert among.label.tolist() == [0, 1, 2, 3]  # nothing is lumped there, either
    mean = 3 * torch.einsum("n,nmp,m->np", among.chance, among.coefficient, among.weight)
    close(mean, listed.coefficient[0])


@pytest.mark.parametrize("kind", [FreezeAcross, SquaredObjective, RatioOfTheBatch])
def test_an_estimator_of_your_own_equals_a_loop_over_every_ordered_group(
    kind: type[Estimator],
) -> None:
    """Each group goes through the estimator by itself, as a batch of training would."""
    estimator, outcomes = derived(kind, ladder.clip), ragged(off_policy=True)

    def by_itself(chosen: tuple[int, ...]) -> list[float]:
        pick = torch.tensor(chosen)
        log_prob = outcomes.log_prob[:, pick].clone().requires_grad_()
        rollout = Rollout(outcomes.reward[:, pick], outcomes.old[:, pick], outcomes.mask[:, pick])
        value = estimator.objective(Policy(log_prob), estimator.freeze(rollout))
        (slope,) = torch.autograd.grad(value, log_prob)
        score = outcomes.score[:, pick] * outcomes.mask[:, pick, :, None]
        return [*torch.einsum("qgt,qgtd->d", slope, score).tolist(), value.item()]

    mean, covariance = loop_moments(outcomes, 3, by_itself)
    seen = microscope(estimator, outcomes, 3)
    close(seen.expected, mean[:5])
    close(seen.value, mean[5])
    assert seen.covariance is not None
    close(seen.covariance, f64(covariance)[:5, :5])


@pytest.mark.parametrize("name", [*ALL_RUNGS, *EXTRA])
def test_auto_equals_multisets_on_two_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = EXTRA.get(name) or ladder.get(name).estimator
    outcomes = ragged(off_policy=True, prompts=2)
    listed = microscope(estimator, outcomes, 2, "multisets")
    monkeypatch.setattr("course.exact.moments.SMALL", 0)
    same(microscope(estimator, outcomes, 2), listed)


def test_what_a_part_claims_to_read_must_be_known() -> None:
    @dataclass(frozen=True)
    class Misspelt(GroupMean):
        scope, reads = "group", ("lenght",)

    with pytest.raises(CourseError, match=r"Misspelt\(\)\.reads: got 'lenght'; allowed is returns"):
        microscope(swap(ladder.rloo, baseline=Misspelt()), B3, 3, "lumped")


@pytest.mark.parametrize("size", [0, -1, 2.5, math.nan, -math.inf, "4", None, True, [4]])
@pytest.mark.parametrize("ask", [microscope, every_group, among_others])
def test_a_group_size_that_is_none_is_refused(ask, size: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=r"group_size: got .*allowed is a whole number"):
        ask(ladder.rloo, B3, size)


@pytest.mark.parametrize("size", [0, -1, 2.5, math.nan, -math.inf, "4", None, True])
@pytest.mark.parametrize(
    "ask",
    [
        group_mean_factor,
        lambda size: group_std_weight(0.5, size),
        lambda size: silent_probability(0.5, size),
        lambda size: rloo_covariance(B3, size),
    ],
)
def test_closed_forms_refuse_the_same_group_sizes(ask, size: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=r"group_size: got .*allowed is a whole number"):
        ask(size)


def test_closed_forms_have_their_limits() -> None:
    assert group_mean_factor(math.inf) == 1
    close(silent_probability(f64([0.0, 0.4, 1.0]), math.inf), [1.0, 0.0, 1.0])
    assert rloo_covariance(B3, math.inf).abs().max() == 0


def test_one_sample_needs_no_others() -> None:
    same(
        microscope(ladder.reinforce, B3, 1, "multisets"),
        microscope(ladder.reinforce, B3, 1, "lumped"),
    )
    close(microscope(ladder.reinforce, B3, 1).variance, variance_at_baseline(B3, 0.0)[0])


def test_a_row_that_never_happens_changes_nothing() -> None:
    padded = Outcomes(
        *(
            torch.cat([getattr(B3, name), torch.full_like(getattr(B3, name)[:, :2], fill)], 1)
            for name, fill in (
                ("log_prob", -1.0),
                ("score", 7.0),
                ("reward", 9.0),
                ("mask", 1),
                ("chance", 0.0),
            )
        )
    )
    for method in ("multisets", "lumped"):
        seen = microscope(ladder.group_std, padded, 3, method)
        plain = microscope(ladder.group_std, B3, 3, method)
        close(seen.expected, plain.expected)
        assert seen.method == plain.method
        assert seen.coefficient[0, 6:].abs().max() == 0


def test_coefficients_stand_in_for_scores() -> None:
    """A caller with too many parameters to store leaves the scores out and contracts the
    coefficients itself.
    """
    outcomes = ragged(off_policy=True)
    estimator = swap(ladder.grpo, entropy_coef=0.1)
    full = microscope(estimator, outcomes, 3)
    bare = Outcomes.of_sequences(
        outcomes.log_prob,
        outcomes.reward,
        outcomes.mask,
        old_log_prob=outcomes.old,
        ref_log_prob=outcomes.ref_log_prob,
        log_dist=outcomes.log_dist,
    )
    seen = microscope(estimator, bare, 3)
    assert seen.expected.shape == (0,)
    assert seen.covariance is None
    assert seen.dist_coefficient is not None
    assert outcomes.log_dist_score is not None
    pulled = torch.einsum("qkt,qktd->d", seen.coefficient, outcomes.score)
    pulled += torch.einsum(
        "qktv,qktvd->d", seen.dist_coefficient, outcomes.log_dist_score.expand(-1, 4, 2, -1, -1)
    )
    close(pulled, full.expected)
    close(
        torch.einsum("qkt,qktd->d", gradient_coefficient(outcomes), outcomes.score), full.gradient
    )


# ---------------------------------------------------------------- J and ∇J


def test_objective_and_gradient_of_b3_by_hand() -> None:
    assert objective(B3) == pytest.approx(0.5 * 0.2 + 0.3 * 0.5 + 0.2 * 0.8, abs=1e-15)
    close(
        gradient(B3), [0.5 * (0.2 - 0.41), 0.3 * (0.5 - 0.41), 0.2 * (0.8 - 0.41)]
    )  # π_a (μ_a − J)


def test_gradient_is_the_derivative_of_the_objective() -> None:
    theta = THETA.clone().requires_grad_()
    reward = f64([0.4, 1.0, 0.1, 0.4])
    first, second = theta[:2].softmax(0), theta[2:].softmax(0)
    j = (torch.cat([first[:1], first[1] * second]) * reward).sum()
    close(objective(ragged(False)), j.item())
    close(gradient(ragged(False)), torch.autograd.grad(j, theta)[0])


def test_two_prompts_average_and_have_logits_of_their_own() -> None:
    pair = Outcomes.of_arms(f64([[0.5, 0.5], [0.2, 0.8]]).log(), f64([[1.0, 0.0], [0.0, 1.0]]))
    close(objective(pair), (0.5 + 0.8) / 2)
    close(gradient(pair), [0.125, -0.125, -0.08, 0.08])  # ± p(1 − p)/2


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_kl_gradient_is_the_derivative_of_kl(direction: str) -> None:
    theta = PI_LOGITS.clone().requires_grad_()
    p, q = theta.log_softmax(0), REF
    value = (p.exp() * (p - q)).sum() if direction == "reverse" else (q.exp() * (q - p)).sum()
    outcomes = bernoulli(PI, MU, ref_log_prob=REF)
    close(kl(outcomes, direction), value.item())
    close(kl_gradient(outcomes, direction), torch.autograd.grad(value, theta)[0])


# ---------------------------------------------------------------- unbiased where it is claimed


@pytest.mark.parametrize(
    "surrogate", [ScoreFunction(), ImportanceSampling(), Clip(0.2), Clip(0.2, 0.28, dual_clip=3.0)]
)
@pytest.mark.parametrize("base", [None, Constant(0.7), LeaveOneOut()])
@pytest.mark.parametrize(
    "outcomes", [B3, ragged(False), ragged(False, prompts=2)], ids=["B3", "ragged", "two prompts"]
)
def test_unbiased_on_policy(surrogate, base, outcomes: Outcomes) -> None:  # type: ignore[no-untyped-def]
    estimator = swap(ladder.reinforce, surrogate=surrogate)
    estimator = estimator if base is None else swap(estimator, baseline=base)
    seen = microscope(estimator, outcomes, 3)
    close(seen.expected, gradient(outcomes))
    assert seen.relative_bias < 1e-12
    assert seen.cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("group", [2, 3, 5])
@pytest.mark.parametrize("outcomes", [B3, ragged(False)], ids=["B3", "ragged"])
def test_group_mean_including_self_shrinks_by_g_minus_1_over_g(
    outcomes: Outcomes, group: int
) -> None:
    seen, loo = (
        microscope(ladder.group_mean, outcomes, group),
        microscope(ladder.rloo, outcomes, group),
    )
    close(seen.expected, (group - 1) / group * gradient(outcomes))
    assert seen.covariance is not None
    assert loo.covariance is not None
    close(
        seen.covariance, group_mean_factor(group) ** 2 * loo.covariance
    )  # sample by sample, so in spread too
    assert seen.relative_bias == pytest.approx(1 / group, rel=1e-12)


def test_sequence_ratio_is_unbiased_off_policy_and_token_ratio_is_not() -> None:
    outcomes = ragged(off_policy=True)
    token = swap(ladder.rloo, surrogate=ImportanceSampling())
    sequence = swap(token, ratio=SequenceRatio())
    # ρ·(R − R̄_others) s: the others come from π_old, so their mean estimates J(π_old), a constant
    # for the sample
    close(microscope(sequence, outcomes, 3).expected, gradient(outcomes))
    assert microscope(token, outcomes, 3).relative_bias > 0.05
    assert microscope(ladder.rloo, outcomes, 3).relative_bias > 0.05


def test_off_policy_the_rungs_come_apart() -> None:
    """π_old = (.3, .3, .4), π = (.5, .3, .2), no baseline, ε = .2, rewards ≥ 0: ρ =
    (5/3, 1, 1/2).
    """
    outcomes = bernoulli(PI, MU, old_log_prob=OLD)
    score = softmax_score(f64(PI).log())
    plain = microscope(ladder.reinforce, outcomes, 2)
    ratio = microscope(swap(ladder.reinforce, surrogate=ImportanceSampling()), outcomes, 2)
    clip = microscope(swap(ladder.reinforce, surrogate=Clip(0.2)), outcomes, 2)
    close(
        plain.expected, 0.3 * 0.2 * score[0] + 0.3 * 0.5 * score[1] + 0.4 * 0.8 * score[2]
    )  # Σ π_old μ s
    close(ratio.expected, gradient(outcomes))
    close(
        clip.expected, 0.3 * 0.5 * score[1] + 0.2 * 0.8 * score[2]
    )  # arm 0: A > 0 and ρ > 1.2, so it is silent
    assert ratio.cosine == pytest.approx(1, abs=1e-12)
    assert plain.cosine < 0.995
    assert clip.cosine < 0.995
    assert plain.relative_bias > 0.1
    assert clip.relative_bias > 0.1


# ---------------------------------------------------------------- dividing by the std (claims 12,
# 13, 14)


@pytest.mark.parametrize("group", [2, 3, 5, 16])
@pytest.mark.parametrize(("ddof", "eps"), [(0, 0.0), (1, 0.0), (0, 0.1), (1, 1e-4)])
def test_group_std_weighs_the_gradient_by_w(group: int, ddof: int, eps: float) -> None:
    seen = microscope(swap(ladder.group_mean, scale=GroupStd(ddof=ddof, eps=eps)), B3, group)
    close(seen.expected, group_std_weight(objective(B3), group, ddof, eps) * gradient(B3))
    close(seen.cosine, 1.0)


def test_group_std_weight_by_binomials() -> None:
    """w_G(p) = E[√(N(G−N))]/(G p(1−p)), term by term with math.comb."""
    for group, p in ((2, 0.41), (5, 0.1), (8, 0.93)):
        mean = sum(
            math.comb(group, n) * p**n * (1 - p) ** (group - n) * math.sqrt(n * (group - n))
            for n in range(group + 1)
        )
        close(group_std_weight(p, group), mean / (group * p * (1 - p)))
        close(
            group_std_weight(p, group, ddof=1),
            math.sqrt((group - 1) / group) * mean / (group * p * (1 - p)),
        )


def test_group_std_weight_limits() -> None:
    p = f64([0.0, 0.2, 0.5, 0.9, 1.0])
    close(group_std_weight(p, 2), torch.ones(5))
    for group in (2, 4, 16):
        close(group_std_weight(f64([0.0, 1.0]), group), [math.sqrt(group - 1)] * 2)
    close(group_std_weight(p[1:4], math.inf), 1 / (p[1:4] * (1 - p[1:4])).sqrt())
    close(
        group_std_weight(p[1:4], 100_000), group_std_weight(p[1:4], math.inf), rtol=1e-4, atol=0.0
    )
    # the gradient of 2·arcsin √p
    q = p[1:4].clone().requires_grad_()
    close(
        group_std_weight(p[1:4], math.inf), torch.autograd.grad((2 * q.sqrt().arcsin()).sum(), q)[0]
    )


def test_one_thousand_samples() -> None:
    seen = microscope(swap(ladder.group_mean, scale=GroupStd(eps=0.0)), B3, 1000, covariance=False)
    assert seen.method == "lumped: 6,000 compositions"
    close(seen.expected, group_std_weight(objective(B3), 1000) * gradient(B3), rtol=1e-9, atol=0.0)
    assert seen.covariance is None
    assert math.isnan(seen.std)


@pytest.mark.parametrize("name", ["group_mean", "group_std", "rloo", "dapo", "whitened"])
def test_equal_rewards_give_exactly_nothing(name: str) -> None:
    outcomes = Outcomes.of_arms(f64(PI).log(), f64([0.7, 0.7, 0.7]), old_log_prob=OLD)
    seen = microscope(ladder.get(name).estimator, outcomes, 7)
    assert seen.coefficient.abs().max() == 0
    assert seen.std == 0


def test_equal_rewards_still_feel_the_kl() -> None:
    outcomes = Outcomes.of_arms(f64(PI).log(), f64([0.7, 0.7, 0.7]), ref_log_prob=REF)
    close(
        microscope(swap(ladder.grpo, kl=K3(beta=0.5)), outcomes, 7).expected,
        -0.5 * kl_gradient(outcomes, "forward"),
    )


def test_silent_groups() -> None:
    """The share of silent groups, by enumeration; and dropping them from two prompts' mean without
    refilling them.
    """
    for group in (2, 5):
        counts = compositions(group, 2)
        weight = log_multinomial(counts, f64([0.41, 0.59]).log()).exp()
        close(silent_probability(0.41, group), weight[(counts == 0).any(-1)].sum())
    # a refilled batch is a batch given that it is not silent, so silent groups, which add nothing,
    # only dilute
    half = Outcomes.of_arms(f64([0.4, 0.6]).log(), f64([1.0, 0.0]))
    pair = Outcomes.of_arms(
        f64([[0.4, 0.6]] * 2).log(),
        f64([[1.0, 0.0]] * 2),
        score=half.score[:, :, 0].expand(2, 2, 2),
    )
    one = microscope(ladder.group_std, half, 3).expected
    kept = microscope(swap(ladder.group_std, sample_filter=DropSilentGroups()), pair, 3).expected
    silent = float(silent_probability(0.4, 3))
    # both kept: mean of two; one kept: that one alone; none: 0. E = E[·|kept]·P(at least one kept)
    close(kept, one / (1 - silent) * (1 - silent**2))


HEAVY = Outcomes.of_arms(
    f64([0.5, 0.5]).log(), f64([[0.5, 0.5], [10.0, 0.0]]), chance=f64([[1.0, 0.0], [0.1, 0.9]])
)


def heavy_tail_by_hand(group: int) -> float:
    """E of the group-normalised gradient on arm B's logit (claim 14), from counts of (A .5, B 10, B
    0) with math.comb.
    """
    total = 0.0
    for a in range(group + 1):
        for ten in range(group - a + 1):
            zero = group - a - ten
            weight = (
                math.comb(group, a) * math.comb(group - a, ten) * 0.5**a * 0.05**ten * 0.45**zero
            )
            mean = (0.5 * a + 10 * ten) / group
            variance = (a * (0.5 - mean) ** 2 + ten * (10 - mean) ** 2 + zero * mean**2) / group
            if max(a, ten, zero) == group:
                continue
            total += (
                weight
                * (0.5 * (ten * (10 - mean) - zero * mean) - 0.5 * a * (0.5 - mean))
                / (group * math.sqrt(variance))
            )
    return total


def test_heavy_tail_flips_the_direction_until_44_samples() -> None:
    estimator = swap(ladder.group_mean, scale=GroupStd(eps=0.0))
    on_b = {
        group: microscope(estimator, HEAVY, group, covariance=False).expected[1].item()
        for group in (2, 8, 43, 44, 64)
    }
    assert on_b == pytest.approx({group: heavy_tail_by_hand(group) for group in on_b}, rel=1e-11)
    assert all(heavy_tail_by_hand(group) < 0 for group in range(2, 44))
    assert on_b[43] < 0 < on_b[44]
    assert all(
        microscope(ladder.group_mean, HEAVY, group, covariance=False).expected[1] > 0
        for group in (2, 8, 44)
    )


# ---------------------------------------------------------------- the limit of large groups


@pytest.mark.parametrize("outcomes", [B3, ragged(False), ragged(False, prompts=2)])
@pytest.mark.parametrize("name", ["reinforce", "baseline", "group_mean", "rloo"])
def test_infinite_groups_leave_no_bias_of_the_mean(name: str, outcomes: Outcomes) -> None:
    seen = microscope(ladder.get(name).estimator, outcomes, math.inf)
    close(seen.expected, gradient(outcomes))
    assert seen.std == 0


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_infinite_groups_weigh_the_gradient_by_w(eps: float) -> None:
    seen = microscope(swap(ladder.group_mean, scale=GroupStd(eps=eps)), B3, math.inf)
    close(seen.expected, group_std_weight(objective(B3), math.inf, eps=eps) * gradient(B3))


def test_infinite_groups_are_unbiased_off_policy_with_the_ratio_of_the_answer() -> None:
    estimator = swap(swap(ladder.rloo, surrogate=ImportanceSampling()), ratio=SequenceRatio())
    close(microscope(estimator, ragged(True), math.inf).expected, gradient(ragged(True)))


# rewards of 0 and 1 only: near the mean a clip would turn with the sign of A, which is no series
ONE_RIGHT = replace(ragged(True), reward=(ragged(True).reward > 0.5).double())
PAIR = Outcomes.of_arms(
    f64([0.4, 0.6]).log(),
    f64([1.0, 0.0]),
    old_log_prob=f64([0.55, 0.45]).log(),
    ref_log_prob=f64([0.3, 0.7]).log(),
    value=f64([0.5, 0.5]),
    truncated=torch.tensor([False, True]),
    bootstrap=f64([0.0, 0.2]),
    greedy_reward=f64([0.0]),
    log_dist=f64([[[[0.4, 0.6]]]]).log(),
    old_log_dist=f64([[[[0.55, 0.45]]]]).log(),
    log_dist_score=softmax_score(f64([0.4, 0.6]).log()).view(1, 1, 1, 2, 2),
)


# no limit: filters that compare the tokens of a batch (test_token_filters), and the leader
LIMITED = [n for n in ALL_RUNGS if n not in ("high_entropy", "clip_cov", "m2po", "leader")]


@pytest.mark.parametrize("outcomes", [PAIR, ONE_RIGHT], ids=["two arms", "ragged"])
@pytest.mark.parametrize("name", [*LIMITED, "batch_std", "drop_truncated", "drop_silent"])
def test_every_rung_approaches_its_limit(name: str, outcomes: Outcomes) -> None:
    """E[ĝ] and the value are series in 1/G: three sizes leave an error of order 1/G³."""
    if name == "reinforce_pp" and outcomes is ONE_RIGHT:
        return  # every answer has a return of its own: too many kinds of large groups to list
    estimator = EXTRA.get(name) or ladder.get(name).estimator
    limit = microscope(estimator, outcomes, math.inf)
    # 1/mean is no series where all may be wrong, and (1−p)^G dies out later than the others' terms
    start = 40 if name == "maxrl" else 16
    sizes = (start, 2 * start, 4 * start)
    found = [microscope(estimator, outcomes, g, covariance=False) for g in sizes]
    once, twice, four_times = (torch.cat([x.expected, f64([x.value])]) for x in found)
    ahead = (8 * four_times - 6 * twice + once) / 3
    want = torch.cat([limit.expected, f64([limit.value])])
    scale = float(want.abs().max())
    close(ahead, want, rtol=0.0, atol=2e-3 * scale)
    assert (four_times - want).norm() <= 0.3 * (once - want).norm() + 1e-12 * scale


@pytest.mark.parametrize("name", ["group_std", "grpo", "dr_grpo", "gspo"])
def test_in_the_limit_prompts_add_up(name: str) -> None:
    pair = ragged(True, prompts=2)
    each = [microscope(ladder.get(name).estimator, pair.prompt(q), math.inf) for q in (0, 1)]
    close(
        microscope(ladder.get(name).estimator, pair, math.inf).expected,
        (each[0].expected + each[1].expected) / 2,
    )


def test_in_the_limit_a_prompt_that_earns_the_same_is_silent() -> None:
    outcomes = Outcomes.of_arms(f64(PI).log(), f64([0.7, 0.7, 0.7]), old_log_prob=OLD)
    for name in ("group_mean", "group_std", "dapo", "whitened"):
        found = microscope(ladder.get(name).estimator, outcomes, math.inf)
        assert found.coefficient.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("median of the batch", "the limit of BatchMedian"),
        ("a group mean that looks further", "the limit of MeanOfAll"),
        ("a sum over all samples", "the limit of SumOfAll"),
        ("a scale that says how far", "the limit of SpreadOfRewards"),
        ("a penalty pushed by others", "the limit of PushedByOthers"),
        ("freeze", "a FreezeAcross"),
    ],
)
def test_a_limit_that_is_not_known_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(CourseError, match=f"group_size: got .?inf.*{says}"):
        microscope(OWN[name], ragged(True), math.inf)


@pytest.mark.parametrize("ask", [every_group, among_others])
def test_infinite_groups_cannot_be_listed(ask) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match="group_size: got inf"):
        ask(ladder.rloo, B3, math.inf)
    with pytest.raises(CourseError, match="nothing is listed"):
        microscope(ladder.rloo, B3, math.inf, "multisets")


# ---------------------------------------------------------------- several prompts, several lengths


def test_batch_mean_and_group_mean_part_on_two_prompts() -> None:
    """An easy and a hard prompt.

    Including itself, a mean over n samples leaves (n − 1)/n of ∇J: n = G or Q·G.
    """
    pair = Outcomes.of_arms(f64([[0.5, 0.5], [0.3, 0.7]]).log(), f64([[1.0, 0.9], [0.1, 0.0]]))
    batch, group = (
        microscope(swap(ladder.reinforce, baseline=BatchMean()), pair, 3),
        microscope(ladder.group_mean, pair, 3),
    )
    close(batch.expected, 5 / 6 * gradient(pair))
    close(group.expected, 2 / 3 * gradient(pair))
    assert (
        batch.std / batch.expected.norm() > 3 * group.std / group.expected.norm()
    )  # difficulty is noise to the batch's mean
    assert batch.method == group.method == "16 multisets"


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "dr_grpo", "gspo", "remax"])
def test_prompts_apart_equal_prompts_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, outcomes = ladder.get(name).estimator, ragged(off_policy=True, prompts=2)
    together = microscope(estimator, outcomes, 3)
    assert together.method == "400 multisets"
    monkeypatch.setattr("course.exact.moments.SMALL", 500)
    apart = microscope(estimator, outcomes, 3)
    assert apart.method == "prompt by prompt: 20 multisets"
    same(apart, together)


@pytest.mark.parametrize(
    "name",
    ["baseline", "token_mean", "group_whitened", "batch_std", "drop_silent", "drop_truncated"],
)
def test_prompts_stay_together_where_a_part_looks_across(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator, outcomes = (
        EXTRA.get(name) or ladder.get(name).estimator,
        ragged(off_policy=True, prompts=2),
    )
    together = microscope(estimator, outcomes, 3)
    monkeypatch.setattr("course.exact.moments.SMALL", 500)
    same(microscope(estimator, outcomes, 3), together)
    assert microscope(estimator, outcomes, 3).method == "400 multisets"


def test_mean_per_sequence_prefers_short_answers_by_an_eighth() -> None:
    """All answers earn 1, so ∇J = 0. Stop (1 token) or go on (2 tokens, the second forced), ½ each.

    Under 1/|o|: ½·s_stop + ½·½·s_go with s_stop = (½, −½) = −s_go: (1/8, −1/8). A constant divisor:
    0.
    """
    log_prob = f64([[[math.log(0.5), 0.0], [math.log(0.5), 0.0]]])
    score = f64([[[[0.5, -0.5], [0.0, 0.0]], [[-0.5, 0.5], [0.0, 0.0]]]])
    mask = torch.tensor([[[True, False], [True, True]]])
    outcomes = Outcomes.of_sequences(log_prob, f64([[[1.0, 0.0], [0.0, 1.0]]]), mask, score)
    assert gradient(outcomes).abs().max() == 0
    close(
        microscope(swap(ladder.reinforce, aggregation=SequenceMean()), outcomes, 3).expected,
        [0.125, -0.125],
    )
    close(
        microscope(swap(ladder.reinforce, aggregation=ConstantLength(4)), outcomes, 3).expected,
        [0.0, 0.0],
    )


def test_mean_per_sequence_is_biased_in_direction_on_answers_of_two_lengths() -> None:
    """E[ĝ] = Σ p (R − b)/|o| Σ_t s_t with b the others' mean, J on average; a constant divisor only
    rescales.
    """
    outcomes = ragged(off_policy=False)
    seen = microscope(swap(ladder.rloo, aggregation=SequenceMean()), outcomes, 4)
    p, length = probability(outcomes), outcomes.mask.sum(-1)
    close(
        seen.expected,
        torch.einsum(
            "qk,qkd->d",
            p * (outcomes.total_reward - objective(outcomes)) / length,
            outcomes.total_score,
        ),
    )
    assert seen.cosine < 0.999
    close(
        microscope(swap(ladder.rloo, aggregation=ConstantLength()), outcomes, 4).expected,
        gradient(outcomes) / 5,
    )


# ---------------------------------------------------------------- variance (claims 4, 5)


@pytest.mark.parametrize("group", [2, 3, 8])
@pytest.mark.parametrize("outcomes", [B3, ragged(False)], ids=["B3", "ragged"])
def test_rloo_covariance(outcomes: Outcomes, group: int) -> None:
    seen = microscope(ladder.rloo, outcomes, group).covariance
    assert seen is not None
    close(seen, rloo_covariance(outcomes, group)[0])


def test_rloo_is_noisier_than_reinforce_at_two_samples_and_quieter_at_three() -> None:
    """By hand on B3: J = .41, σ² = .41·.59 = .2419, ‖s_a‖² = (.38, .78, .98), E‖s‖² = .62, E[R‖s‖²]
    = .3118, ‖∇J‖² = .017838.

    V_0 − V_J = 2J E[R‖s‖²] − J² E‖s‖² and c = σ²E‖s‖² + ‖∇J‖².
    """
    crossover = 1 + (0.2419 * 0.62 + 0.017838) / (2 * 0.41 * 0.3118 - 0.41**2 * 0.62)
    assert crossover == pytest.approx(2.108, abs=5e-4)
    close(rloo_crossover(B3), [crossover])
    variance = {
        group: (
            microscope(ladder.rloo, B3, group).variance,
            microscope(ladder.reinforce, B3, group).variance,
        )
        for group in (2, 3)
    }
    assert variance[2][0] > variance[2][1]
    assert variance[3][0] < variance[3][1]
    constant = Outcomes.of_arms(
        f64([0.5, 0.5]).log(), f64([1.0, -1.0])
    )  # J = 0: the mean has nothing to remove
    assert rloo_crossover(constant).item() == math.inf


def test_the_optimal_baseline_has_the_least_variance() -> None:
    best = optimal_baseline(B3)
    p, square = probability(B3)[0], B3.total_score[0].square().sum(-1)
    close(
        best[0],
        sum(float(w * r * s) for w, r, s in zip(p, B3.total_reward[0], square, strict=True))
        / float((p * square).sum()),
    )
    at_best = variance_at_baseline(B3, best)[0]
    for step in (-0.1, 0.1):  # a parabola with its foot at b*: E‖s‖²·(b − b*)²
        close(variance_at_baseline(B3, best + step)[0] - at_best, 0.01 * float((p * square).sum()))
    each = variance_at_baseline(B3, optimal_baseline_per_coordinate(B3))[0]
    value = variance_at_baseline(B3, objective(B3))[0]
    assert each < at_best < value < variance_at_baseline(B3, 0.0)[0]
    close(
        microscope(swap(ladder.reinforce, baseline=Constant(float(best[0]))), B3, 3).variance,
        at_best / 3,
    )
    whole = microscope(swap(ladder.reinforce, baseline=Constant(0.3)), B3, 4).covariance
    assert whole is not None
    close(whole, covariance_at_baseline(B3, 0.3)[0] / 4)


def test_four_more_for_every_reward_hurts_only_reinforce() -> None:
    raised = bernoulli(PI, MU, shift=4.0)
    close(optimal_baseline(raised), optimal_baseline(B3) + 4)
    close(variance_at_baseline(raised, objective(raised)), variance_at_baseline(B3, objective(B3)))
    for name in ("rloo", "group_mean", "group_std"):
        close(
            microscope(ladder.get(name).estimator, raised, 4).std,
            microscope(ladder.get(name).estimator, B3, 4).std,
        )
    assert variance_at_baseline(raised, 0.0)[0] / variance_at_baseline(B3, 0.0)[0] > 40


# ---------------------------------------------------------------- KL (claims 19, 20)

NOTHING_TO_EARN = Outcomes.of_arms(f64(PI).log(), f64([0.0, 0.0, 0.0]), ref_log_prob=REF)


@pytest.mark.parametrize(
    ("penalty", "direction"),
    [
        (K1(beta=1.0), None),
        (K2(beta=1.0), "reverse"),
        (K3(beta=1.0), "forward"),
        (K1(beta=1.0, place=InLossTimesRatio()), "reverse"),
        (K3(beta=1.0, place=InLossTimesRatio()), "reverse"),
        (K1(beta=1.0, place=InReward()), "reverse"),
    ],
    ids=lambda value: getattr(value, "short", value),
)
@pytest.mark.parametrize("group", [1, 4])
def test_which_kl_a_penalty_descends(penalty, direction: str | None, group: int) -> None:  # type: ignore[no-untyped-def]
    """On policy, T = 1: what each estimator's gradient is on average.

    The two directions are 14° apart here.
    """
    seen = microscope(swap(ladder.reinforce, kl=penalty), NOTHING_TO_EARN, group).expected
    close(seen, torch.zeros(3) if direction is None else -kl_gradient(NOTHING_TO_EARN, direction))


def test_the_two_directions_differ_here() -> None:
    reverse, forward = (
        kl_gradient(NOTHING_TO_EARN, "reverse"),
        kl_gradient(NOTHING_TO_EARN, "forward"),
    )
    close(reverse.sum(), 0.0)
    close(forward, f64(PI) - REF.exp())  # −Σ ref (e_a − π)
    angle = math.degrees(math.acos(float(reverse @ forward / (reverse.norm() * forward.norm()))))
    assert angle == pytest.approx(14.3, abs=0.05)


@pytest.mark.parametrize("penalty", [K2, K3])
def test_k2_and_k3_in_the_reward_descend_neither(penalty) -> None:  # type: ignore[no-untyped-def]
    kl_in_reward = penalty(beta=1.0, place=InReward(), accept_bias=True)
    seen = microscope(swap(ladder.reinforce, kl=kl_in_reward), NOTHING_TO_EARN, 2).expected
    for direction in ("reverse", "forward"):
        assert (seen + kl_gradient(NOTHING_TO_EARN, direction)).norm() > 0.05


def test_k1_in_the_reward_is_scaled_by_a_self_including_mean() -> None:
    seen = microscope(
        swap(ladder.group_mean, kl=K1(beta=1.0, place=InReward())), NOTHING_TO_EARN, 4
    )
    close(seen.expected, -0.75 * kl_gradient(NOTHING_TO_EARN))


def test_exact_kl_is_no_sample() -> None:
    """At T = 1 the KL over the full distribution has its gradient in every batch: no variance."""
    outcomes = replace(
        NOTHING_TO_EARN,
        log_dist=f64(PI).log().view(1, 1, 1, 3),
        ref_log_dist=REF.view(1, 1, 1, 3),
        log_dist_score=softmax_score(f64(PI).log()).view(1, 1, 1, 3, 3),
    )
    seen = microscope(swap(ladder.reinforce, kl=ExactKL(beta=2.0, place=InLoss())), outcomes, 3)
    close(seen.expected, -2 * kl_gradient(outcomes))
    assert seen.std < 1e-15
    theta = PI_LOGITS.clone().requires_grad_()
    entropy = -(theta.log_softmax(0) * theta.softmax(0)).sum()
    close(
        microscope(swap(ladder.reinforce, entropy_coef=0.5), outcomes, 3).expected,
        0.5 * torch.autograd.grad(entropy, theta)[0],
    )


def test_exact_kl_where_a_token_is_forced() -> None:
    """A second token that the first one forces (probability 0 elsewhere) adds nothing,
    and no NaN.
    """
    impossible = f64([0.0, -torch.inf, -torch.inf])
    outcomes = Outcomes.of_sequences(
        torch.stack([f64(PI).log(), torch.zeros(3)], -1).unsqueeze(0),
        torch.zeros(1, 3, 2),
        score=torch.stack([softmax_score(f64(PI).log()), torch.zeros(3, 3)], 1).unsqueeze(0),
        ref_log_prob=torch.stack([REF, torch.zeros(3)], -1).unsqueeze(0),
        log_dist=torch.stack([f64(PI).log(), impossible]).view(1, 1, 2, 3),
        ref_log_dist=torch.stack([REF, impossible]).view(1, 1, 2, 3),
        log_dist_score=torch.stack([softmax_score(f64(PI).log()), torch.zeros(3, 3)]).view(
            1, 1, 2, 3, 3
        ),
    )
    close(
        microscope(swap(ladder.reinforce, kl=ExactKL(beta=1.0)), outcomes, 2).expected,
        -kl_gradient(NOTHING_TO_EARN),
    )


def test_token_by_token_only_k1_in_the_reward_has_the_gradient_of_the_sequences_kl() -> None:
    outcomes = replace(ragged(off_policy=False), reward=torch.zeros(1, 4, 2))
    truth = kl_gradient(outcomes)
    in_reward = microscope(swap(ladder.reinforce, kl=K1(beta=1.0, place=InReward())), outcomes, 2)
    close(in_reward.expected, -truth)
    for penalty in (
        K2(beta=1.0),
        K1(beta=1.0, place=InLossTimesRatio()),
        K3(beta=1.0, place=InLossTimesRatio()),
    ):
        missed = microscope(swap(ladder.reinforce, kl=penalty), outcomes, 2).expected + truth
        assert missed.norm() > 0.03 * truth.norm()


def test_gaussian_kl_moments_by_quadrature() -> None:
    """Σ over a fine grid of q = N(0, 1), an integral that converges to rounding error."""
    x = torch.linspace(-14, 14, 28001, dtype=torch.float64)
    weight = (-(x**2) / 2).exp()
    weight = weight / weight.sum()
    for mu in (0.1, 1.0):
        log_r = mu * x - mu**2 / 2
        true, moments = mu**2 / 2, gaussian_kl_moments(mu)
        best = float(gaussian_control_variate(mu))
        samples = {
            "k1": -log_r,
            "k2": log_r**2 / 2,
            "k3": log_r.exp() - 1 - log_r,
            "best": best * (log_r.exp() - 1) - log_r,
        }
        assert set(samples) == set(moments)
        for name, k in samples.items():
            mean = (weight * k).sum()
            std = (weight * (k - mean) ** 2).sum().sqrt()
            close(moments[name].bias, float(mean / true - 1), rtol=1e-9, atol=1e-9)
            close(moments[name].std, float(std / true), rtol=1e-9, atol=1e-9)
        r = log_r.exp()
        slope = (weight * log_r * (r - 1)).sum() / (weight * (r - 1) ** 2).sum()  # E r = 1
        close(best, float(slope), rtol=1e-9, atol=0.0)


def test_gaussian_kl_moments_are_the_published_table() -> None:
    """Schulman 2020: (bias, std) over the true KL, for true KL .005 and .5."""
    small, large = gaussian_kl_moments(0.1), gaussian_kl_moments(1.0)
    table = {"k1": (0, 20, 0, 2), "k2": (0.002, 1.42, 0.25, 1.73), "k3": (0, 1.42, 0, 1.7)}
    for name, (bias_small, std_small, bias_large, std_large) in table.items():
        assert float(small[name].bias) == pytest.approx(bias_small, abs=6e-4)
        assert float(small[name].std) == pytest.approx(std_small, abs=6e-3)
        assert float(large[name].bias) == pytest.approx(bias_large, abs=1e-12)
        assert float(large[name].std) == pytest.approx(std_large, abs=6e-3)
    assert large["best"].std < large["k3"].std


def test_control_variate_has_the_least_variance() -> None:
    log_r, p = REF - f64(PI).log(), f64(PI)

    def variance(coefficient: float) -> float:
        k = coefficient * (log_r.exp() - 1) - log_r
        return float((p * (k - (p * k).sum()) ** 2).sum())

    best = float(control_variate(NOTHING_TO_EARN))
    spread = float((p * (log_r.exp() - 1) ** 2).sum())
    for step in (-0.2, 0.2):
        assert variance(best + step) - variance(best) == pytest.approx(spread * 0.04, rel=1e-12)


# ---------------------------------------------------------------- counting, and refusals


def test_compositions_and_members() -> None:
    assert compositions(2, 3).tolist() == [
        [0, 0, 2],
        [0, 1, 1],
        [0, 2, 0],
        [1, 0, 1],
        [1, 1, 0],
        [2, 0, 0],
    ]
    assert members(compositions(2, 3), 2).tolist() == [
        [2, 2],
        [1, 2],
        [1, 1],
        [0, 2],
        [0, 1],
        [0, 0],
    ]
    assert compositions(0, 3).tolist() == [[0, 0, 0]]
    assert members(compositions(0, 3), 0).shape == (1, 0)
    assert len(compositions(16, 6)) == math.comb(21, 16)
    close(
        log_multinomial(compositions(16, 6), f64([0.4, 0.1, 0.15, 0.15, 0.04, 0.16]).log())
        .exp()
        .sum(),
        1.0,
    )


def test_too_much_to_list_is_refused_with_numbers() -> None:
    many = Outcomes.of_arms(
        torch.full((40,), 1 / 40, dtype=torch.float64).log(), torch.arange(40, dtype=torch.float64)
    )
    with pytest.raises(
        CourseError, match=rf"compositions of 16 samples in 40 classes.*allowed is {LARGEST:,}"
    ):
        microscope(ladder.group_std, many, 16, "lumped")
    with pytest.raises(CourseError, match="multisets of 16 outcomes"):
        microscope(ladder.group_std, many, 16)
    with pytest.raises(CourseError, match="a part looks across prompts"):
        microscope(ladder.baseline, ragged(False, prompts=4), 16)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: microscope(ladder.rloo, ragged(False, prompts=2), 3, "lumped"),
            "allowed is one prompt",
        ),
        (lambda: microscope(ladder.rloo, B3, 1), "G ≥ 2"),
        (lambda: microscope(ladder.rloo, B3, 2, "sampling"), "method: got 'sampling'"),
        (lambda: microscope(ladder.grpo, B3, 2), "rollout.ref_log_prob: got None"),
        (
            lambda: Outcomes.of_arms(f64([0.5, 0.4]).log(), f64([1.0, 0.0])),
            "log_prob: got .*sum to 1",
        ),
        (
            lambda: Outcomes.of_arms(
                f64([0.5, 0.5]).log(), f64([1.0, 0.0]), old_log_prob=f64([0.5, 0.6]).log()
            ),
            "old_log_prob: got",
        ),
        (
            lambda: Outcomes.of_arms(f64([0.5, 0.5]).log(), f64([[1.0, 0.0], [1.0, 0.0]])),
            "chance: got None",
        ),
        (lambda: replace(B3, reward=B3.reward[:, :3]), "the shape"),
        (lambda: replace(B3, log_dist=torch.zeros(1, 1, 1, 3)), "log_dist_score"),
        (lambda: kl_gradient(B3), "ref_log_prob"),
        (lambda: kl_gradient(NOTHING_TO_EARN, "sideways"), "direction: got 'sideways'"),
        (lambda: rloo_covariance(replace(B3, old_log_prob=B3.log_prob), 2), "old_log_prob"),
        (lambda: rloo_covariance(B3, 1), "group_size: got 1"),
        (lambda: group_std_weight(0.5, 1), "group_size: got 1"),
    ],
)
def test_refusals_say_what_is_wrong(refused, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=message):
        refused()


def test_old_policy_equal_to_the_policy_is_on_policy() -> None:
    same(
        microscope(ladder.grpo, replace(ragged(False), old_log_prob=ragged(False).log_prob), 3),
        microscope(ladder.grpo, ragged(False), 3),
    )


def test_a_part_with_a_method_put_into_the_instance_may_look_at_anything() -> None:
    """Its class declares what the class computes."""
    half = f64([[[0.5], [0.5]]] * 2).log()
    arms = Outcomes.of_sequences(half, f64([[[1.0], [0.0]], [[0.0], [1.0]]]))
    plain = swap(ladder.group_mean, kl=K3(0.3, anchor=OldPolicy()))
    assert not View(plain, arms).looks_across_prompts()
    altered = K3(0.3, anchor=OldPolicy())
    object.__setattr__(altered, "estimate", lambda log_r: log_r.mean((-3, -2, -1), keepdim=True))
    assert View(swap(ladder.group_mean, kl=altered), arms).looks_across_prompts()


def test_a_whole_number_beside_infinity_may_be_written_as_a_float() -> None:
    p = torch.tensor([0.1, 0.5], dtype=torch.float64)
    close(group_std_weight(p, 4.0), group_std_weight(p, 4))
    with pytest.raises(CourseError, match=r"group_size: got 2\.5"):
        group_std_weight(p, 2.5)
