"""The bridge against brute force: probabilities, J, ∇J, mean and spread of sampled gradients, the
bandit at sequence level, refusals.

The model is tiny (width 8) and answers sums modulo 7 in at most two tokens: 307 completions, so
that every completion can be scored, differentiated and listed one by one.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator
from course.estimator import replace as swap
from course.exact import among_others, kl, microscope, probability, softmax_score, total_variance
from course.lab.result import Result
from course.lab.terminal import QUIET
from course.parts import (
    K1,
    K2,
    K3,
    Clip,
    DropTruncated,
    ExactKL,
    InReward,
    SequenceMean,
    SequenceRatio,
)
from course.train.noise import Noise
from tests.helpers import close
from tinylm.ablations import bridge as ablation
from tinylm.ablations.bridge import Settings
from tinylm.bridge import Bridge, completions, count
from tinylm.model import ModelSettings, Transformer
from tinylm.moved import from_hard_to_easy
from tinylm.problem import LanguageModel
from tinylm.rewards import REWARDS, DigitCredit, ExactMatch
from tinylm.sampling import sample
from tinylm.scoring import log_dists
from tinylm.tasks import CHARACTERS, END, PAD, VOCABULARY, Task, TaskSettings, make
from tinylm.token_level import AT_SEQUENCE_LEVEL, RATIO, SEQUENCE_RATIO, TOKEN_KL, from_arms

TASK = make(TaskSettings(name="modular", digits=1, modulus=7))
SHAPE = ModelSettings(width=8, layers=1, heads=1, hidden=8, context=8)
QUESTION = 25
RIGHT = TASK.target[QUESTION].tolist()


def model(seed: int, target: float = 0.0, **options: object) -> Transformer:
    """Random weights in float64, and gradient ascent on the right answer until its probability is
    at least `target`.
    """
    made = Transformer(replace(SHAPE, **options), (), seed, dtype=torch.float64)  # type: ignore[arg-type]
    answer = torch.tensor(RIGHT)
    while True:
        log_dist = log_dists(made, TASK.prompt[QUESTION][None], answer[None, None])
        log_prob = log_dist[0, 0].gather(-1, answer.unsqueeze(-1)).sum()
        if log_prob.detach().exp() >= target:
            return made
        for weight, slope in zip(
            made.parameters, torch.autograd.grad(log_prob, made.parameters), strict=True
        ):
            weight.data += 0.02 * slope


NOW, OLD, REF = model(1, 0.35), model(2, 0.25), model(3, 0.1)
ON = Bridge(NOW, TASK, QUESTION, reference=REF)
STALE = Bridge(NOW, TASK, QUESTION, old=OLD, reference=REF)
PARTIAL = Bridge(NOW, TASK, QUESTION, old=OLD, reference=REF, reward=DigitCredit())
NOTHING = Bridge(NOW, TASK, QUESTION, reference=REF, reward=ExactMatch(weight=0.0))


def one_by_one(bridge: Bridge) -> tuple[Tensor, list[Tensor]]:
    """[K, T] log-probabilities of every completion scored by itself (no shared prefixes), and the
    weights they depend on.
    """
    net = bridge.model
    rows = len(bridge.tokens)
    log_dist = log_dists(
        net,
        bridge.prompt.expand(rows, -1),
        bridge.tokens.unsqueeze(1),
        temperature=bridge.temperature,
    )
    chosen = (
        log_dist[:, 0]
        .gather(-1, torch.where(bridge.mask, bridge.tokens, 0).unsqueeze(-1))
        .squeeze(-1)
    )
    return torch.where(bridge.mask, chosen, 0.0), net.parameters


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def derivative(value: Tensor, weights: list[Tensor]) -> Tensor:
    return flat(torch.autograd.grad(value, weights, retain_graph=True))


def dense_scores(bridge: Bridge) -> Tensor:
    """[1, K, T, D] the score of every token, one backward pass each."""
    log_prob, weights = one_by_one(bridge)
    rows = [
        [derivative(log_prob[k, t], weights) for t in range(bridge.limit)]
        for k in range(len(log_prob))
    ]
    return torch.stack([torch.stack(row) for row in rows])[None] * bridge.mask[..., None]


@pytest.fixture(scope="module")
def scores() -> Tensor:
    return dense_scores(STALE)


# ---------------------------------------------------------------- completions and probabilities


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_every_completion_is_listed_once(limit: int) -> None:
    found = [tuple(row) for row in completions(limit).tolist()]
    letters = range(len(CHARACTERS))
    ended = [
        (*start, END, *[PAD] * (limit - n - 1))
        for n in range(limit)
        for start in itertools.product(letters, repeat=n)
    ]
    cut = list(itertools.product(letters, repeat=limit))
    assert len(found) == len(set(found)) == count(limit)
    assert set(found) == set(ended) | set(cut)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"limit": 1}])
@pytest.mark.parametrize("rotary", [False, True])
def test_probabilities_sum_to_one(options: dict[str, float], rotary: bool) -> None:
    bridge = Bridge(model(4, rotary=rotary), TASK, QUESTION, **options)  # type: ignore[arg-type]
    close(bridge.log_prob.exp().sum(), 1.0)
    close(probability(bridge.outcomes).sum(), 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_shared_prefixes_score_as_completions_do_one_by_one(temperature: float) -> None:
    bridge = Bridge(NOW, TASK, QUESTION, temperature=temperature)
    close(bridge.outcomes.log_prob[0], one_by_one(bridge)[0].detach())


def test_what_a_completion_is() -> None:
    right = (ON.tokens == torch.tensor(RIGHT)).all(-1).nonzero().item()
    assert ON.reward.nonzero().flatten().tolist() == [right]
    assert ON.truncated.sum() == len(CHARACTERS) ** 2
    assert ON.mask.sum(-1).tolist() == [1] + [2] * (count(2) - 1)
    best = sample(NOW, TASK.prompt[QUESTION][None], 1, 2, None)
    assert ON.outcomes.greedy_reward is not None
    assert bool(ON.outcomes.greedy_reward[0] == 1) == (best.tokens[0, 0].tolist() == RIGHT)


# ---------------------------------------------------------------- J, ∇J


@pytest.mark.parametrize("bridge", [ON, PARTIAL])
def test_objective_and_gradient_are_brute_force(bridge: Bridge) -> None:
    log_prob, weights = one_by_one(bridge)
    value = (log_prob.sum(-1).exp() * bridge.reward).sum()
    close(bridge.objective, value.item())
    close(bridge.gradient, derivative(value, weights), rtol=1e-10)
    assert 0.3 < bridge.objective < 0.7  # there is something to learn


@pytest.mark.parametrize("reward", ["exact", "digits"])
def test_exact_objective_is_the_mean_of_samples(reward: str) -> None:
    bridge = Bridge(NOW, TASK, QUESTION, reward=REWARDS[reward], temperature=0.9)
    noise = Noise((), 11, dtype=torch.float64)
    made = sample(NOW, TASK.prompt[QUESTION][None], 40_000, TASK.limit, noise, temperature=0.9)
    got = REWARDS[reward](made.tokens, torch.full(made.tokens.shape[:-1], QUESTION), TASK).double()
    error = float(got.std()) / len(got.flatten()) ** 0.5
    assert abs(float(got.mean()) - bridge.objective) < 4 * error
    assert error < 0.003


def test_samples_come_as_often_as_they_should() -> None:
    made = sample(
        NOW, TASK.prompt[QUESTION][None], 40_000, TASK.limit, Noise((), 12, dtype=torch.float64)
    )
    p = ON.log_prob.exp()
    index = {tuple(row): k for k, row in enumerate(ON.tokens.tolist())}
    counts = torch.bincount(
        torch.tensor([index[tuple(row)] for row in made.tokens[0].tolist()]), minlength=len(p)
    )
    often = p * 40_000 > 5
    chi_square = ((counts - 40_000 * p)[often] ** 2 / (40_000 * p)[often]).sum()
    freedom = int(often.sum())
    assert abs(float(chi_square) - freedom) < 4 * (2 * freedom) ** 0.5


# ---------------------------------------------------------------- the microscope


@pytest.mark.parametrize(
    "name",
    [
        "reinforce",
        "surrogate",
        "clip",
        "group_std",
        "grpo",
        "rloo",
        "remax",
        "token_mean",
        "gspo",
        "cispo",
        "dapo",
    ],
)
@pytest.mark.parametrize("group", [2, 3])
def test_mean_and_spread_are_those_of_the_scores_themselves(
    name: str, group: int, scores: Tensor
) -> None:
    """Off policy, with partial rewards: total variance by classes against the core's own covariance
    by pairs of outcomes.
    """
    estimator = ladder.get(name).estimator
    found = PARTIAL.microscope(estimator, group)
    dense = microscope(estimator, replace(PARTIAL.outcomes, score=scores), group)
    assert dense.covariance is not None
    close(found.expected, dense.expected, rtol=1e-9, atol=1e-12)
    close(found.gradient, dense.gradient, rtol=1e-9, atol=1e-12)
    close(found.std, dense.std, rtol=1e-9)
    assert found.std > 0


@pytest.mark.parametrize("name", ["reinforce", "group_std", "grpo"])
def test_the_bandits_mean_and_spread_are_those_of_a_softmax(name: str) -> None:
    p = PARTIAL.log_prob
    score_of = torch.zeros(*PARTIAL.arms.log_prob.shape, len(p), dtype=torch.float64)
    score_of[:, :, 0] = softmax_score(p)
    dense = microscope(ladder.get(name).estimator, replace(PARTIAL.arms, score=score_of), 2)
    found = PARTIAL.bandit_microscope(ladder.get(name).estimator, 2)
    assert dense.covariance is not None
    close(found.expected, dense.expected, rtol=1e-10, atol=1e-14)
    close(found.gradient, dense.gradient, rtol=1e-10, atol=1e-14)
    close(found.std, dense.std, rtol=1e-10)


@pytest.mark.parametrize("name", ["grpo", "surrogate"])
def test_mean_and_spread_of_many_sampled_gradients(name: str) -> None:
    """The path of training: `LanguageModel` samples with the old weights, `policy` scores with the
    new ones.

    ĝ of R prompts is the mean of R independent groups where no part looks across prompts, so R‖ḡ −
    E[ĝ]‖² has the mean Var.
    """
    estimator = swap(ladder.get(name).estimator, baseline=ladder.group_mean.baseline)
    blocks, prompts, group = 40, 250, 4
    only = Task(
        TASK.settings,
        TASK.prompt,
        TASK.target,
        TASK.answer,
        TASK.difficulty,
        torch.tensor([QUESTION]),
        TASK.held_out,
    )
    net, sampler = STALE.model, OLD.copy()
    problem = LanguageModel(
        sampler, only, prompts=prompts, group=group, reference=REF, reward=ExactMatch()
    )
    noise = Noise((), 5, dtype=torch.float64)
    gradients = []
    for _ in range(blocks):
        problem.model = sampler
        rollout = problem.sample(noise)
        problem.model = net
        frozen = estimator.freeze(replace(rollout, reward=rollout.reward.double()))
        gradients.append(
            flat(
                torch.autograd.grad(
                    estimator.objective(problem.policy(rollout), frozen).sum(), net.parameters
                )
            )
        )
    drawn, exact = torch.stack(gradients), STALE.microscope(estimator, group)
    deviation = prompts * (drawn - exact.expected).square().sum(-1)
    error = float(deviation.std()) / blocks**0.5
    assert abs(float(deviation.mean()) - exact.variance) < 4 * error
    assert error < 0.25 * exact.variance
    total = blocks * prompts / exact.variance
    assert (
        total * float((drawn.mean(0) - exact.expected).square().sum()) < 1 + 4 * 2**0.5
    )  # a weighted χ² of mean 1, std ≤ √2
    assert (
        total * float((drawn.mean(0) - exact.gradient).square().sum()) > 10
    )  # ∇J would have been told apart


def test_unbiased_rungs_and_the_sequences_ratio() -> None:
    close(ON.microscope(ladder.reinforce, 3).expected, ON.gradient, rtol=1e-10)
    close(ON.microscope(ladder.rloo, 3).expected, ON.gradient, rtol=1e-10)
    close(STALE.microscope(SEQUENCE_RATIO, 3).expected, STALE.gradient, rtol=1e-10)
    assert STALE.microscope(RATIO, 3).relative_bias > 0.01


def test_truncation_makes_classes_only_where_a_part_asks() -> None:
    cut = Estimator(sample_filter=DropTruncated())
    assert (
        among_others(cut, ON.outcomes, 2).others.shape[1]
        == among_others(ladder.reinforce, ON.outcomes, 2).others.shape[1] + 1
    )
    found = microscope(cut, ON.outcomes, 2, covariance=False).coefficient[0]
    assert bool((found[ON.truncated] == 0).all())


def test_infinite_groups_leave_no_bias_and_no_spread() -> None:
    for seen, truth in (
        (ON.microscope(ladder.group_mean, math.inf), ON.gradient),
        (ON.bandit_microscope(ladder.rloo, math.inf), None),
    ):
        close(seen.expected, seen.gradient if truth is None else truth, rtol=1e-9, atol=1e-13)
        assert seen.std == 0


def test_who_compares_nothing_has_one_class_of_others() -> None:
    """So a KL in the reward, which gives every completion a return of its own, can be listed in
    groups of any size where no baseline compares them.
    """
    alone = Estimator(kl=K1(1.0, place=InReward()))
    close(PARTIAL.microscope(alone, 6).expected, PARTIAL.microscope(alone, 1).expected, rtol=1e-10)


@dataclass(frozen=True)
class Own(Estimator):
    """An estimator of one's own class, which may compute anything: here the same as its parent."""


@pytest.mark.slow
def test_an_estimator_of_your_own_class_is_listed_completion_by_completion() -> None:
    own = Own(**ladder.group_mean.parts)  # type: ignore[arg-type]
    assert among_others(own, ON.outcomes, 2).others.shape[1] == len(ON.tokens)
    seen, lumped = ON.microscope(own, 2), ON.microscope(ladder.group_mean, 2)
    assert seen.method.endswith(f"{math.comb(len(ON.tokens) + 1, 2):,} multisets")
    close(seen.expected, lumped.expected, rtol=1e-9, atol=1e-14)
    close(seen.std, lumped.std, rtol=1e-9)


# ---------------------------------------------------------------- the bandit


@pytest.mark.parametrize("estimator", AT_SEQUENCE_LEVEL.values(), ids=AT_SEQUENCE_LEVEL)
def test_the_bandit_has_the_same_coefficients_at_sequence_level(estimator: Estimator) -> None:
    tokens = microscope(estimator, PARTIAL.outcomes, 3, covariance=False).coefficient
    arms = from_arms(PARTIAL, estimator, 3)
    close(arms, tokens)
    close(
        PARTIAL.microscope(estimator, 3, spread=False).expected,
        PARTIAL.pull_back(arms),
        rtol=1e-10,
        atol=1e-14,
    )


def test_token_ratios_have_other_coefficients() -> None:
    tokens = microscope(RATIO, PARTIAL.outcomes, 3, covariance=False).coefficient
    assert float((from_arms(PARTIAL, RATIO, 3) - tokens).norm() / tokens.norm()) > 0.01


@pytest.mark.parametrize(
    "estimator",
    [
        *AT_SEQUENCE_LEVEL.values(),
        swap(
            swap(swap(ladder.group_std, surrogate=Clip(0.2)), ratio=SequenceRatio()),
            aggregation=SequenceMean(),
        ),
    ],
)
def test_one_sampled_group_has_the_same_gradient_through_the_bandit(estimator: Estimator) -> None:
    bandit = STALE.bandit(64)
    close(
        bandit.metrics()["expected_reward"],
        float(STALE.outcomes.old[0].sum(-1).exp() @ STALE.reward),
    )
    rollout = bandit.sample(Noise((), 3, dtype=torch.float64))
    with torch.no_grad():
        bandit.parameters[0].copy_(STALE.log_prob[None])
    close(bandit.metrics()["expected_reward"], STALE.objective)
    objective = estimator.objective(bandit.policy(rollout), estimator.freeze(rollout))
    by_logit = torch.autograd.grad(objective.sum(), bandit.parameters)[0][0]
    log_prob, weights = one_by_one(STALE)
    through = derivative(log_prob.sum(-1) @ by_logit, weights)
    same = STALE.rollout(rollout.data["action"][0])
    direct = flat(
        torch.autograd.grad(
            estimator.objective(STALE.policy(same), estimator.freeze(same)).sum(),
            STALE.model.parameters,
        )
    )
    assert float(direct.norm()) > 0
    close(through, direct, rtol=1e-10, atol=1e-13)


# ---------------------------------------------------------------- KL


def penalty(estimator: Estimator) -> Tensor:
    return -NOTHING.microscope(estimator, 1, spread=False).expected


def sequence_kl() -> tuple[Tensor, Tensor]:
    """∇KL(π‖ref) and ∇KL(ref‖π) of whole answers, by autograd of the sums."""
    log_prob, weights = one_by_one(ON)
    whole = log_prob.sum(-1)
    assert ON.outcomes.ref_log_prob is not None
    ref = ON.outcomes.ref_log_prob[0].sum(-1)
    reverse, forward = (whole.exp() * (whole - ref)).sum(), (ref.exp() * (ref - whole)).sum()
    close(kl(ON.outcomes), reverse.item())
    return derivative(reverse, weights), derivative(forward, weights)


def test_only_k1_in_the_reward_has_the_gradient_of_the_answers_kl() -> None:
    reverse, forward = sequence_kl()
    close(penalty(Estimator(kl=K1(1.0, place=InReward()))), reverse, rtol=1e-9, atol=1e-12)
    for estimator in TOKEN_KL.values():
        assert float((penalty(estimator) - reverse).norm() / reverse.norm()) > 0.005
    close(
        -NOTHING.pull_back(from_arms(NOTHING, Estimator(kl=K2(1.0)), 1)),
        reverse,
        rtol=1e-9,
        atol=1e-12,
    )
    close(
        -NOTHING.pull_back(from_arms(NOTHING, Estimator(kl=K3(1.0)), 1)),
        forward,
        rtol=1e-9,
        atol=1e-12,
    )


def test_token_penalties_share_one_expected_gradient_that_drops_the_later_tokens() -> None:
    """Σ_k p_k Σ_t KL(π(·|prefix)‖ref(·|prefix)) with p held fixed, by autograd; the exact KL goes
    through `log_dist`.
    """
    net, rows = ON.model, len(ON.tokens)
    prompt, tokens = ON.prompt.expand(rows, -1), ON.tokens.unsqueeze(1)
    real = [token for token in range(VOCABULARY) if token != PAD]
    log_dist, ref = (log_dists(each, prompt, tokens)[:, 0, :, real] for each in (net, REF.copy()))
    by_token = (log_dist.exp() * (log_dist - ref)).sum(-1) * ON.mask
    wanted = derivative((ON.log_prob.exp() * by_token.sum(-1)).sum(), net.parameters)
    for estimator in TOKEN_KL.values():
        close(penalty(estimator), wanted, rtol=1e-9, atol=1e-12)


def test_the_spread_of_an_exact_kl_is_not_known() -> None:
    assert math.isnan(ON.microscope(swap(ladder.group_mean, kl=ExactKL(0.1)), 2).std)
    assert math.isnan(ON.microscope(ladder.group_mean, 2, spread=False).std)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: Bridge(NOW, TASK, len(TASK.prompt)), "question: got 100"),
        (lambda: Bridge(Transformer(SHAPE, (2,)), TASK, 0), "model.runs"),
        (lambda: Bridge(NOW, TASK, 0, old=Transformer(SHAPE, (2,))), "old.runs"),
        (lambda: Bridge(lost(math.nan), TASK, 0), "model.head: got nan at index (0, 0)"),
        (lambda: Bridge(NOW, TASK, 0, old=lost(math.inf)), "old.head: got inf"),
        (lambda: Bridge(NOW, TASK, 0, reference=lost(-math.inf)), "reference.head: got -inf"),
        (lambda: Bridge(NOW, TASK, 0, limit=3), "limit: got 3; allowed is at most 2"),
        (lambda: Bridge(NOW, TASK, 0, limit=5), "completions"),
        (lambda: Bridge(NOW, TASK, 0, limit=0), "limit: got 0"),
        (lambda: Bridge(NOW, TASK, 0, temperature=0.0), "temperature"),
        (lambda: ON.microscope(ladder.get("ppo").estimator, 2), "value"),
        (lambda: ON.microscope(ladder.group_std, 300), "compositions of 300 samples"),
        (
            lambda: PARTIAL.microscope(swap(ladder.group_mean, kl=K1(1.0, place=InReward())), 6),
            "compositions of 6 samples",
        ),
    ],
)
def test_refusals(refused, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=re.escape(message)):
        refused()


def lost(number: float) -> Transformer:
    """A model one of whose weights is this number."""
    made = Transformer(SHAPE)
    with torch.no_grad():
        made.weights["head"][0, 0] = number
    return made


@pytest.mark.parametrize("name", ["reinforce", "group_std", "rloo", "dr_grpo"])
def test_a_question_without_a_right_completion_has_no_gradient_and_no_spread(name: str) -> None:
    seen = NOTHING.microscope(ladder.get(name).estimator, 2)
    close(seen.expected, torch.zeros(NOW.size))
    close(seen.gradient, torch.zeros(NOW.size))
    assert seen.std == 0.0
    arms = NOTHING.bandit_microscope(ladder.get(name).estimator, 2)
    assert arms.std == 0.0


def test_a_bridge_is_a_snapshot() -> None:
    net = model(1, 0.35)
    bridge = Bridge(net, TASK, QUESTION)
    with torch.no_grad():
        net.weights["head"].zero_()
    close(bridge.objective, ON.objective)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_cuda() -> None:
    weights = {name: weight.detach().cuda() for name, weight in NOW.weights.items()}
    net = Transformer(SHAPE, (), 1, device="cuda", dtype=torch.float64)
    net.weights.update(weights)
    found = Bridge(net, TASK.to("cuda"), QUESTION).microscope(ladder.group_std, 2)
    want = Bridge(NOW, TASK, QUESTION).microscope(ladder.group_std, 2)
    close(found.expected.cpu(), want.expected, rtol=1e-9, atol=1e-12)
    close(found.std, want.std, rtol=1e-9)


# ---------------------------------------------------------------- the ablation


@pytest.fixture(scope="module")
def small() -> Result:
    settings = Settings(
        rungs=("reinforce", "grpo"),
        group=2,
        groups=(2,),
        warm_target=0.2,
        rollouts=2,
        updates=(2, 12),
        stale=2,
        prompts=2,
        lr=3e-3,
    )
    return replace(ablation.run(settings, QUIET), settings=settings)


@pytest.mark.slow
def test_facts_hold_on_a_short_run(small: Result) -> None:
    assert [fact.claim for fact in small.facts if not fact.holds] == []
    assert {fact.number for fact in small.facts} == {None, 3, 8, 9, 12, 20}


def test_prompts_from_hard_to_easy_hold_both_ends() -> None:
    p = torch.tensor([Bridge(NOW, TASK, row).objective for row in range(len(TASK.prompt))])
    chosen = from_hard_to_easy(NOW, TASK, 4)
    assert 2 <= len(chosen) <= 4
    found = p[chosen]
    assert (float(found[0]), float(found[-1])) == (float(p.min()), float(p.max()))
    assert bool((found.diff() > 0).all())


def test_the_figure_is_drawn_from_the_json(small: Result) -> None:
    figure = ablation.plot(small)
    assert figure.axes[0].get_title(loc="left").startswith(small.series["question"])
    hollow = [line for line in figure.axes[0].get_lines() if line.get_fillstyle() == "none"]
    assert len(hollow) == 2 * 2  # a bandit for every rung and case


@pytest.mark.parametrize(
    "change",
    [
        {"group": 1},
        {"groups": (9,)},
        {"stale": 3},
        {"prompts": 1},
        {"warm_target": 0.0},
        {"lr": 0.0},
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, object]) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        Settings(**change)  # type: ignore[arg-type]


def test_total_variance_needs_no_scores() -> None:
    """Inner products alone: for one outcome in a class of its own nothing is left within, and the
    rest is by hand.
    """
    among = among_others(ladder.reinforce, ON.outcomes, 1)
    own = torch.zeros(len(ON.tokens), ON.limit, ON.limit, dtype=torch.float64)
    own[:, 0, 0] = 1.0  # every completion's first token: a direction of its own; the second: none

    def inner(rows: Tensor) -> Tensor:
        return rows[..., 0] @ rows[..., 0].T

    p = ON.objective  # ĝ = R e_k: one completion pays 1
    assert total_variance(among, inner, own) == pytest.approx(p - p**2)
