"""The invariants of the design, one test each, under the invariant's own name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bandits.environments import Discrete, RandomWalk
from bandits.policies import LinearSoftmax, Softmax
from bandits.problem import Bandit
from course import ladder
from course.estimator import PART_KINDS, Estimator, replace
from course.exact import group_std_weight
from course.learner import Learner
from course.parts import (
    K1,
    K2,
    K3,
    KL,
    BatchMean,
    BelowMean,
    Clip,
    Constant,
    ConstantLength,
    DivergenceKL,
    DivergenceTV,
    ExactKL,
    GammaWeight,
    Greedy,
    GroupStd,
    ImportanceSampling,
    InLossTimesRatio,
    InReward,
    MirrorDescent,
    NoBaseline,
    ScoreFunction,
    SequenceMean,
    SequenceMeanRatio,
    SequenceRatio,
    SequenceSum,
    SoftGate,
    Tapered,
    TokenFilter,
    TokenMean,
    TokenRatio,
    Value,
)
from course.rollout import Policy, Rollout
from course.train.critic import RunningMean
from course.train.optim import SGD, Adam, LinearDecay, Optimizer
from course.train.trust_region import TRPO, NaturalGradient
from tests.helpers import bernoulli_bandit, close, f64, few_ulp, make_rollout, slopes, stream

# ------------------------------------------------- a policy with answers of two lengths, by loops

ANSWERS = ((0,), (1, 0), (1, 1), (1, 2))  # stop at once, or go on and then say x, y or z
LENGTHS = [len(answer) for answer in ANSWERS]
MASK = torch.tensor([[t < length for t in range(2)] for length in LENGTHS])
THETA = f64([0.3, -0.2, 0.5, -0.4, 0.1])  # logits: two for the first token, three for the second
REWARDS = f64(
    [[0.4, 0.0], [0.2, 0.8], [0.2, -0.1], [0.2, 0.2]]
)  # on tokens, the first one's for the first choice; in all .4, 1, .1, .4
BINARY = f64([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
GREEDY = 0.4


def answer_log_probs(theta: Tensor) -> Tensor:
    """[4, 2] log-probability of each token of each answer; 0 where there is none."""
    first, second = theta[:2].log_softmax(0), theta[2:].log_softmax(0)
    nothing = torch.zeros((), dtype=theta.dtype)
    return torch.stack(
        [torch.stack([first[a[0]], second[a[1]] if len(a) > 1 else nothing]) for a in ANSWERS]
    )


def expected_gradient(estimator: Estimator, rewards: Tensor, group: int) -> Tensor:
    """E[ĝ] on policy: every ordered group of answers is a run, weighed with its probability.

    Backpropagation does the rest.
    """
    theta = THETA.clone().requires_grad_()
    log_probs = answer_log_probs(theta)
    groups = torch.tensor(list(itertools.product(range(4), repeat=group)))  # [4^G, G]
    chosen = log_probs[groups].unsqueeze(1)  # [4^G, Q = 1, G, T]
    rollout = Rollout(
        reward=rewards[groups].unsqueeze(1),
        log_prob=chosen.detach(),
        mask=MASK[groups].unsqueeze(1),
        greedy_reward=f64([GREEDY]).expand(len(groups), 1),
        ref_log_prob=chosen.detach(),
    )
    weight = log_probs.detach().sum(-1).exp()[groups].prod(-1)
    return torch.autograd.grad(
        (weight * estimator.objective(Policy(chosen), estimator.freeze(rollout))).sum(), theta
    )[0]


def true_gradient(rewards: Tensor) -> Tensor:
    """∇J, J = Σ p(answer) R(answer), by backpropagation through the four probabilities."""
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(
        (answer_log_probs(theta).sum(-1).exp() * rewards.sum(-1)).sum(), theta
    )[0]


# ---------------------------------------------------------------- the invariants


def test_one_replaced_part_between_neighbouring_rungs() -> None:
    """Compared place by place, not by `diff`; a critic may bring its coefficient along, since it
    must be trained.
    """
    by_name = {name: rung.estimator for name, rung in ladder.RUNGS.items() if rung.kind != "own"}
    for name, estimator in by_name.items():
        on = ladder.get(name).on
        if name == "reinforce":
            assert on is None
            continue
        assert on is not None
        below = by_name[on]
        assert (
            len(
                [
                    place
                    for place in PART_KINDS
                    if getattr(estimator, place) != getattr(below, place)
                ]
            )
            == 1
        ), name
        brings_critic = isinstance(estimator.baseline, Value) and not isinstance(
            below.baseline, Value
        )
        assert (estimator.value_coef != below.value_coef) == brings_critic, name
        assert estimator.entropy_coef == below.entropy_coef == 0
    neighbours = [
        "reinforce",
        "baseline",
        "surrogate",
        "clip",
        "group_mean",
        "group_std",
        "length_mean",
        "grpo",
    ]
    assert [rung.name for rung in ladder.select()] == neighbours
    assert [rung.on for rung in ladder.select()] == [None, *neighbours[:-1]]


RATIO_RUNGS = {
    "ratio": ImportanceSampling(),
    "clip": Clip(0.2),
    "clip-higher": Clip(0.2, 0.28, ratio_cap=5.0, dual_clip=3.0),
    "gate": SoftGate(),
    "cispo": ladder.cispo.surrogate,
    "gamma": GammaWeight(),
    "spring": MirrorDescent(0.3),
    "taper": Tapered(),
    "total variation": DivergenceTV(),
    "binary KL": DivergenceKL(),
}


@pytest.mark.parametrize("surrogate", RATIO_RUNGS)
@pytest.mark.parametrize(
    "level",
    [TokenRatio(), SequenceRatio(), SequenceMeanRatio()],
    ids=lambda part: type(part).__name__,
)
@pytest.mark.parametrize(
    "weighing",
    [SequenceSum(), SequenceMean(), TokenMean(), ConstantLength(7)],
    ids=lambda part: type(part).__name__,
)
def test_at_pi_old_every_ratio_rung_has_the_gradient_of_policy_gradient(
    surrogate: str, level, weighing
) -> None:  # type: ignore[no-untyped-def]
    """Same advantage, same aggregation: ∂/∂log π is w·A for every token, written out
    here in loops.
    """
    if surrogate in ("total variation", "binary KL") and not isinstance(level, TokenRatio):
        return  # refused: see test_trust_regions
    reward = [[[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]], [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]]
    mask = [[[True, True, True], [True, False, False]], [[True, True, False], [True, False, True]]]
    rollout = make_rollout(reward, mask=mask)
    estimator = replace(
        ladder.group_mean, surrogate=RATIO_RUNGS[surrogate], ratio=level, aggregation=weighing
    )
    lengths = [[sum(sample) for sample in group] for group in mask]
    tokens = sum(map(sum, lengths))
    want = torch.zeros(2, 2, 3, dtype=torch.float64)
    for q, i, t in itertools.product(range(2), range(2), range(3)):
        own, other = sum(reward[q][i]), sum(reward[q][1 - i])
        per_token = {
            "SequenceSum": 1 / 4,
            "SequenceMean": 1 / (4 * lengths[q][i]),
            "TokenMean": 1 / tokens,
            "ConstantLength": 1 / 28,
        }
        want[q, i, t] = mask[q][i][t] * per_token[type(weighing).__name__] * (own - other) / 2
    close(slopes(estimator, rollout, rollout.log_prob), want)
    close(slopes(replace(estimator, surrogate=ScoreFunction()), rollout, rollout.log_prob), want)


UNBIASED = {
    "reinforce": ladder.reinforce,
    "constant": replace(ladder.reinforce, baseline=Constant(0.7)),
    "reward to go": replace(ladder.reinforce, credit=ladder.whitened_to_go.credit),
    "leave one out": ladder.rloo,
    "leave one out, ratio": replace(ladder.rloo, surrogate=ImportanceSampling()),
    "leave one out, clip": replace(ladder.rloo, surrogate=Clip(0.2)),
    "leave one out, sequence ratio": replace(
        replace(ladder.rloo, surrogate=ImportanceSampling()), ratio=SequenceRatio()
    ),
    "remax": ladder.remax,
}


@pytest.mark.parametrize("name", UNBIASED)
def test_expected_gradient_is_the_gradient_of_j_where_unbiasedness_is_claimed(name: str) -> None:
    """To 1e-12 by enumeration.

    Where a part biases, the closed form: (G−1)/G for a mean with the sample in it, w_G(p) for a
    std.
    """
    truth = true_gradient(REWARDS)
    for group in (2, 4):
        close(expected_gradient(UNBIASED[name], REWARDS, group), truth, rtol=1e-12, atol=1e-14)
    for surrogate in (ScoreFunction(), ImportanceSampling(), Clip(0.2)):
        shrunk = replace(ladder.group_mean, surrogate=surrogate)
        close(expected_gradient(shrunk, REWARDS, 4), 3 / 4 * truth)
        close(
            expected_gradient(replace(shrunk, baseline=BatchMean()), REWARDS, 4), 3 / 4 * truth
        )  # one prompt: the same mean
    p = float(answer_log_probs(THETA).sum(-1).exp()[:2].sum())
    by_hand = sum(
        math.comb(4, n) * p**n * (1 - p) ** (4 - n) * math.sqrt(n * (4 - n)) for n in range(5)
    ) / (4 * p * (1 - p))
    close(group_std_weight(p, 4), by_hand)
    whole = replace(ladder.group_mean, scale=GroupStd(eps=0.0))
    close(expected_gradient(whole, BINARY, 4), by_hand * true_gradient(BINARY))


def test_grpos_length_mean_is_biased_and_by_how_much() -> None:
    """Uniform over right (1 token), wrong (1 token), wrong (4 tokens, three of them forced); G = 2,
    so A = ±1 and w_2(p) = 1.

    Coefficients p·P(the other differs)·A/|o|: 2/9, −1/9, −1/36; times e_k − ⅓: E[ĝ] = (7, −5,
    −2)/36, and ∇J = (8, −4, −4)/36.
    """
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, False, False], [True, False, False, False], [True] * 4])
    groups = torch.tensor(list(itertools.product(range(3), repeat=2)))
    first = theta.log_softmax(0)
    chosen = torch.nn.functional.pad(first[groups].unsqueeze(-1), (0, 3)).unsqueeze(1)
    reward = torch.nn.functional.pad(f64([1.0, 0.0, 0.0])[groups].unsqueeze(-1), (0, 3)).unsqueeze(
        1
    )
    rollout = Rollout(
        reward, chosen.detach(), mask[groups].unsqueeze(1), ref_log_prob=chosen.detach()
    )

    def expected(estimator: Estimator) -> Tensor:
        objective = estimator.objective(Policy(chosen), estimator.freeze(rollout))
        return torch.autograd.grad(objective.sum() / 9, theta, retain_graph=True)[0]

    grpo = replace(ladder.grpo, scale=GroupStd(eps=0.0))
    close(expected(grpo), f64([7.0, -5.0, -2.0]) / 36)
    close(
        expected(replace(grpo, aggregation=SequenceSum())), f64([8.0, -4.0, -4.0]) / 36
    )  # without 1/|o| nothing is lost
    close(
        expected(replace(grpo, aggregation=ConstantLength(4))), f64([8.0, -4.0, -4.0]) / 144
    )  # or only a constant


@pytest.mark.parametrize("group", [2, 3, 8])
def test_group_mean_including_self_is_g_minus_1_over_g_times_leave_one_out_sample_by_sample(
    group: int,
) -> None:
    reward = torch.randn(
        50, 3, group, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    rollout = make_rollout(reward)
    including, others = (
        estimator.freeze(rollout).advantage for estimator in (ladder.group_mean, ladder.rloo)
    )
    close(including, (group - 1) / group * others)
    for run, prompt in ((0, 0), (49, 2)):  # and both are what they are called
        row = reward[run, prompt, :, 0].tolist()
        close(others[run, prompt, :, 0], [r - (sum(row) - r) / (group - 1) for r in row])


COMPARES = [
    name
    for name, rung in ladder.RUNGS.items()
    if not isinstance(rung.estimator.baseline, NoBaseline | BelowMean | Constant | Greedy | Value)
    and rung.kind != "own"
    and "ppo_kl" not in name
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMPARES)
def test_equal_rewards_give_exactly_zero_policy_gradient_and_the_kl_is_still_felt(
    name: str, dtype: torch.dtype
) -> None:
    """Seven samples of .7 (whose float32 mean is not .7), ragged, off policy, with the reference at
    π_old.
    """
    lengths = [1, 2, 3, 3, 2, 1, 3]
    mask = torch.tensor([[t < n for t in range(3)] for n in lengths]).expand(2, 7, 3)
    reward = torch.tensor(
        [[0.7 * (t == n - 1) for t in range(3)] for n in lengths], dtype=dtype
    ).expand(2, 7, 3)
    generator = torch.Generator().manual_seed(1)
    old, new = (-torch.rand(2, 7, 3, generator=generator, dtype=dtype) - 0.1 for _ in range(2))
    dist = torch.zeros(2, 7, 3, 4, dtype=dtype).log_softmax(-1)
    rollout = Rollout(reward, old, mask, ref_log_prob=old, old_log_dist=dist)
    estimator = ladder.get(name).estimator
    frozen = estimator.freeze(rollout)
    assert bool((frozen.advantage == 0).all())
    log_dist = torch.rand(2, 7, 3, 4, generator=generator, dtype=dtype).log_softmax(-1)
    found = slopes(estimator, rollout, new, log_dist=log_dist)
    want = torch.zeros(2, 7, 3, dtype=torch.float64)
    if isinstance(
        estimator.kl, K2 | K3
    ):  # −w ∂(β k)/∂log π: β·log r for k2, β(r − 1) for k3; w = 1/(N|o|)
        assert isinstance(estimator.aggregation, SequenceMean)
        for q, i, t in itertools.product(range(2), range(7), range(3)):
            log_r = float(old[q, i, t]) - float(new[q, i, t])
            felt = log_r if isinstance(estimator.kl, K2) else math.expm1(log_r)
            want[q, i, t] = (
                bool(mask[q, i, t]) * float(estimator.kl.beta) * felt / (14 * lengths[i])
            )
        assert want.abs().max() > 0
        close(
            found,
            want,
            rtol=1e-5 if dtype == torch.float32 else 1e-12,
            atol=1e-9 if dtype == torch.float32 else 1e-14,
        )
    elif isinstance(estimator.surrogate, MirrorDescent):
        # −w β log ρ, of the token or, with `SequenceRatio`, of the answer; w = 1/N
        moved = torch.where(mask, (new - old).double(), 0.0)
        whole = isinstance(estimator.ratio, SequenceRatio)
        moved = moved.sum(-1, keepdim=True).expand_as(moved) if whole else moved
        want = torch.where(mask, -estimator.surrogate.beta * moved / 14, 0.0)
        close(found, want, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-10)
        assert want.abs().max() > 0
    else:
        assert bool((found == 0).all())
    assert bool(torch.isfinite(found).all())


# whose filter compares the tokens of a minibatch with each other, after the policy has moved
BY_MINIBATCH = {
    name
    for name, rung in ladder.RUNGS.items()
    if isinstance(rung.estimator.sample_filter, TokenFilter)
    and rung.estimator.sample_filter.scope == "batch"
}


@pytest.mark.parametrize(
    "name",
    [n for n, rung in ladder.RUNGS.items() if rung.kind != "own" and n not in BY_MINIBATCH],
)
def test_minibatches_add_up_to_the_full_batch(name: str) -> None:
    """Five prompts, one of them silent and one with truncated samples, in three unequal
    minibatches; two runs.
    """
    estimator = replace(ladder.get(name).estimator, entropy_coef=0.1)
    generator = torch.Generator().manual_seed(2)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(2, 5, *shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(3) < torch.randint(1, 4, (2, 5, 4, 1), generator=generator)
    reward = uniform(4, 3) * mask
    reward[:, 1] = 0.0
    log_dist = uniform(1, 3, 6).log_softmax(-1)
    rollout = Rollout(
        reward=reward,
        log_prob=-uniform(4, 3),
        mask=mask,
        ref_log_prob=-uniform(4, 3),
        value=uniform(4, 3),
        bootstrap=uniform(4),
        greedy_reward=uniform(),
        truncated=uniform(4) < 0.3,
        old_log_dist=uniform(1, 3, 6).log_softmax(-1),
        ref_log_dist=uniform(1, 3, 6).log_softmax(-1),
        kl_coef=f64([0.5, 2.0]),
        limit=9,
    )
    log_prob, value = (-uniform(4, 3)).requires_grad_(), uniform(4, 3).requires_grad_()
    frozen = estimator.freeze(rollout)
    whole = estimator.objective(Policy(log_prob, log_dist, value), frozen)
    parts = []
    for index in (torch.tensor([3, 0]), torch.tensor([4]), torch.tensor([1, 2])):
        policy = Policy(log_prob[:, index], log_dist[:, index], value[:, index])
        parts.append(estimator.objective(policy, frozen.prompts(index)))
    close(torch.stack(parts).sum(0).detach(), whole.detach())
    leaves = [log_prob, value] if estimator.value_coef else [log_prob]
    for got, want in zip(
        torch.autograd.grad(sum(parts).sum(), leaves),
        torch.autograd.grad(whole.sum(), leaves),
        strict=True,
    ):  # type: ignore[union-attr]
        close(got, want)


RATES = f64([0.3, 0.1, 0.5, 0.2, 0.4])  # settings are a run axis too
OPTIMIZERS: dict[str, Callable[[Tensor], Optimizer]] = {
    "SGD": lambda rate: SGD(rate, LinearDecay(30)),
    "Adam": lambda rate: Adam(rate / 10),
    "NaturalGradient": lambda rate: NaturalGradient(rate / 3),
    "TRPO": lambda rate: TRPO(max_kl=0.02),
}


def trained(optimizer: str, estimator: Estimator, numbers: list[int], linear: bool) -> Learner:
    """The runs with these numbers, trained together: prompts in shuffled minibatches, several
    epochs, clipped gradients.
    """
    runs, means = (len(numbers),), f64([[0.2, 0.5, 0.8], [0.9, 0.4, 0.1], [0.5, 0.6, 0.4]])
    values = torch.stack([torch.ones_like(means), torch.zeros_like(means)], -1)
    environment = Discrete(values, torch.stack([means, 1 - means], -1))
    features = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = torch.zeros(*runs, 4, dtype=torch.float64)
    policy = (
        LinearSoftmax(features, start)
        if linear
        else Softmax(torch.zeros(*runs, 3, 3, dtype=torch.float64))
    )
    problem = Bandit(environment, policy, 4, reference="start")
    noise = stream(runs, 11, numbers=numbers)
    step = OPTIMIZERS[optimizer](RATES[numbers])
    learner = Learner(problem, estimator, step, noise, epochs=2, minibatches=2, max_grad_norm=0.6)
    learner.train(6)
    return learner


@pytest.mark.parametrize("linear", [False, True], ids=["softmax", "linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_run_gives_the_same_numbers_alone_as_together(optimizer: str, linear: bool) -> None:
    estimator = replace(ladder.grpo, kl=K3(beta=0.1))
    together = trained(optimizer, estimator, [0, 1, 2, 3, 4], linear)
    for number in (0, 3):
        alone = trained(optimizer, estimator, [number], linear)
        few_ulp(alone.problem.parameters[0][0], together.problem.parameters[0][number], count=64)
        for name in alone.history.names:
            few_ulp(alone.history[name][:, 0], together.history[name][:, number], count=64)
    assert not torch.equal(together.problem.parameters[0][0], together.problem.parameters[0][3])


def adaptive_adam() -> Learner:
    estimator = replace(ladder.ppo_kl_adaptive, baseline=Value())
    return Learner(
        bernoulli_bandit((3,)),
        estimator,
        Adam(0.2, LinearDecay(30)),
        stream((3,), 5),
        epochs=2,
        minibatches=2,
        critic=RunningMean(),
        shuffle_seed=7,
    )


def walking_sgd() -> Learner:
    walk = RandomWalk(f64([[0.2, 0.5, 0.8]]).expand(2, 1, 3), std=0.5, drift=0.3)
    policy = Softmax(torch.zeros(2, 1, 3, dtype=torch.float64))
    return Learner(Bandit(walk, policy, 3, greedy=True), ladder.remax, SGD(0.1), stream((2,), 6))


def halting_sgd() -> Learner:
    """The first run's rate sends k3 over the edge of float32 in the second epoch: it stops, and the
    other goes on.
    """
    problem = bernoulli_bandit((2,), dtype=torch.float32, reference="start")
    rate = torch.tensor([1e5, 0.1])
    return Learner(
        problem,
        ladder.grpo,
        SGD(rate),
        stream((2,), 8, dtype=torch.float32),
        epochs=2,
        halt_diverged=True,
    )


def critic_trpo() -> Learner:
    return Learner(bernoulli_bandit((3,)), ladder.rloo, TRPO(), stream((3,), 9))


@pytest.mark.parametrize(
    "make", [adaptive_adam, walking_sgd, halting_sgd, critic_trpo], ids=lambda make: make.__name__
)
def test_the_same_program_gives_the_same_bits_also_across_save_and_resume(
    make: Callable[[], Learner], tmp_path: Path
) -> None:
    """Ten steps in one go, twice; and four steps, saved, loaded by a new learner, six more."""

    def bits(learner: Learner) -> dict[str, Tensor]:
        return learner.state() | {
            f"logged.{name}": learner.history[name][-6:] for name in learner.history.names
        }

    whole, again, first, second = make(), make(), make(), make()
    whole.train(10)
    again.train(10)
    first.train(4)
    second.load(first.save(tmp_path / "saved"))
    second.train(6)
    want = bits(whole)
    assert make is not halting_sgd or (
        whole.halted is not None and whole.halted.tolist() == [True, False]
    )
    for got in (bits(again), bits(second)):
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(
                got[name], want[name], rtol=0, atol=0, equal_nan=True, msg=name
            )
    assert second.steps == 10
    assert second.history.steps == [5, 6, 7, 8, 9, 10]


PI, REF = f64([0.5, 0.3, 0.2]), f64([0.6, 0.1, 0.3])


def kl_and_gradient(direction: str) -> tuple[float, Tensor]:
    """KL and its gradient by the logits of π, from the definition."""
    logits = PI.log().requires_grad_()
    p = logits.softmax(0)
    value = (p * (p / REF).log()).sum() if direction == "reverse" else (REF * (REF / p).log()).sum()
    return value.item(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize(
    ("penalty", "mean", "descends"),
    [
        (K1(beta=1.0), "exact", None),
        (K2(beta=1.0), "½ E (log r)²", "reverse"),
        (K3(beta=1.0), "exact", "forward"),
        (K1(beta=1.0, place=InLossTimesRatio()), "exact", "reverse"),
        (K3(beta=1.0, place=InLossTimesRatio()), "exact", "reverse"),
        (K1(beta=1.0, place=InReward()), None, "reverse"),
        (ExactKL(beta=1.0), "exact", "reverse"),
    ],
    ids=lambda value: getattr(value, "short", None),
)
def test_k1_k2_k3_estimate_kl_of_pi_from_ref_with_r_ref_over_pi(
    penalty: KL, mean: str | None, descends: str | None
) -> None:
    """Every arm once, weighed with π: mean value and mean gradient, against KL written out and
    differentiated.
    """
    assert kl_and_gradient("reverse")[0] == pytest.approx(
        0.5 * math.log(5 / 6) + 0.3 * math.log(3) + 0.2 * math.log(2 / 3), rel=1e-14
    )
    assert (
        abs(kl_and_gradient("reverse")[0] - kl_and_gradient("forward")[0]) > 0.01
    )  # so the direction can be told
    logits = PI.log().requires_grad_()
    log_dist = logits.log_softmax(0)
    arms = [
        tensor.view(3, 1, 1, 1) for tensor in (log_dist, PI.log(), REF.log())
    ]  # each arm is a run with Q = G = T = 1
    spread = [tensor.expand(3, 1, 1, 1, 3) for tensor in (log_dist, PI.log(), REF.log())]
    rollout = Rollout(
        torch.zeros(3, 1, 1, 1, dtype=torch.float64),
        arms[1],
        torch.ones(3, 1, 1, 1, dtype=torch.bool),
        ref_log_prob=arms[2],
        old_log_dist=spread[1],
        ref_log_dist=spread[2],
    )
    estimator = replace(ladder.reinforce, kl=penalty)
    objective = (
        PI * estimator.objective(Policy(arms[0], spread[0]), estimator.freeze(rollout))
    ).sum()
    if mean is not None:
        want = (
            kl_and_gradient("reverse")[0]
            if mean == "exact"
            else 0.5 * float((PI * (REF / PI).log() ** 2).sum())
        )
        assert -objective.item() == pytest.approx(want, rel=1e-13)
    want_gradient = torch.zeros(3) if descends is None else kl_and_gradient(descends)[1]
    close(-torch.autograd.grad(objective, logits)[0], want_gradient)


def test_runs_never_mix() -> None:
    """The gradient of one run's loss by another run's parameters is exactly 0, for every rung of
    the ladder.
    """
    for rung in ladder.select():
        problem = bernoulli_bandit((3,), reference="start")
        rollout = problem.sample(stream((3,), 4))
        loss = rung.estimator.loss(problem.policy(rollout), rollout)
        assert loss.shape == (3,)
        gradient = torch.autograd.grad(loss[1], problem.parameters)[0]
        assert bool((gradient[[0, 2]] == 0).all())
        assert gradient[1].abs().sum() > 0
