"""Corrections for a sampler μ that is not π_old: weights by hand, exact bias by enumeration, and
what they leave alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace as with_fields

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, replace
from course.exact import Outcomes, gradient, microscope
from course.parts import (
    K3,
    Clip,
    Correction,
    GroupMean,
    ImportanceSampling,
    NoCorrection,
    RejectK3,
    ScoreFunction,
    SequenceMaskTIS,
    SequenceMIS,
    SequenceTIS,
    TokenMean,
    TokenMIS,
    TokenTIS,
)
from course.rollout import Policy, Rollout
from course.train.metrics import of_update
from tests.helpers import close, f64, make_rollout, slopes

EVERY = (
    TokenTIS(1.5),
    SequenceTIS(1.5),
    TokenMIS(0.7, 2.5),
    SequenceMIS(0.4, 2.5),
    SequenceMaskTIS(0.8, 1.3),
    RejectK3(0.2),
    RejectK3(0.2, largest=True),
)
every = pytest.mark.parametrize("correction", EVERY, ids=lambda part: part.short)

# three answers of up to three tokens: π_old and κ = π_old/μ of each
OLD = f64([[[0.5, 0.4, 0.3], [0.5, 0.2, 0.8], [0.6, 0.5, 0.4]]])
KAPPA = f64([[[2.0, 0.5, 3.0], [1.0, 1.2, 9.0], [0.5, 1.0, 1.0]]])
MASK = torch.tensor([[[True, True, True], [True, True, False], [True, False, True]]])
REWARD = f64([[[0.0, 0.0, 1.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.8]]])


def sampled(**changes: object) -> Rollout:
    return make_rollout(REWARD, OLD.log(), MASK, sampler_log_prob=(OLD / KAPPA).log(), **changes)


def k3(kappa: float) -> float:
    return kappa - 1 - math.log(kappa)


WEIGHTS = {
    TokenTIS(2.0): [[2, 0.5, 2], [1, 1.2, 0], [0.5, 0, 1]],
    TokenTIS(None): [[2, 0.5, 3], [1, 1.2, 0], [0.5, 0, 1]],
    SequenceTIS(2.0): [[2, 2, 2], [1.2, 1.2, 0], [0.5, 0, 0.5]],  # products 3, 1.2, .5
    SequenceTIS(None): [[3, 3, 3], [1.2, 1.2, 0], [0.5, 0, 0.5]],
    TokenMIS(0.6, 2.0): [[2, 0, 0], [1, 1.2, 0], [0, 0, 1]],  # bounds included
    TokenMIS(0.6, None): [[2, 0, 3], [1, 1.2, 0], [0, 0, 1]],
    SequenceMIS(0.5, 2.0): [[0, 0, 0], [1.2, 1.2, 0], [0.5, 0, 0.5]],
    # geometric means 3^⅓ = 1.442, 1.2^½ = 1.095, .5^½ = .707
    SequenceMaskTIS(0.8, 1.2): [[0, 0, 0], [1, 1.2, 0], [0, 0, 0]],
    SequenceMaskTIS(0.7, 1.45): [[2, 0.5, 3], [1, 1.2, 0], [0.5, 0, 1]],
    # k3: .307, .193, .901 (mean .467); 0, .018 (mean .009); .193, 0 (mean .097)
    RejectK3(0.1): [[0, 0, 0], [1, 1, 0], [1, 0, 1]],
    RejectK3(0.1, largest=True): [[0, 0, 0], [1, 1, 0], [0, 0, 0]],
    RejectK3(0.5): [[1, 1, 1], [1, 1, 0], [1, 0, 1]],
}


@pytest.mark.parametrize("correction", WEIGHTS, ids=lambda part: part.short)
def test_weights_by_hand(correction: Correction) -> None:
    """Also tokens that the policy did not choose: they neither count nor have a weight."""
    assert k3(2.0) == pytest.approx(0.307, abs=1e-3)
    assert k3(3.0) == pytest.approx(0.901, abs=1e-3)
    assert k3(0.5) == pytest.approx(0.193, abs=1e-3)
    found = Estimator(correction=correction).freeze(sampled()).correction
    assert found is not None
    close(found, [WEIGHTS[correction]])
    assert not found.requires_grad


@every
def test_without_a_samplers_log_prob_pi_old_is_the_sampler(correction: Correction) -> None:
    """κ = 1: every weight is 1, so the objective is the uncorrected one."""
    rollout, new = make_rollout(REWARD, OLD.log(), MASK), OLD.log() + 0.1
    plain = replace(ladder.clip, kl=K3(0.2, anchor=ladder.ppo_kl.kl.anchor))
    corrected = replace(plain, correction=correction)
    close(corrected.loss(Policy(new), rollout), plain.loss(Policy(new), rollout))
    close(slopes(corrected, rollout, new), slopes(plain, rollout, new))
    no_correction = Estimator().freeze(sampled()).correction
    assert no_correction is None


@every
def test_what_is_stored_at_other_tokens_changes_nothing(correction: Correction) -> None:
    estimator, new = replace(ladder.group_mean, correction=correction), OLD.log() - 0.2
    clean = sampled()
    for garbage in (torch.nan, torch.inf, -torch.inf, 700.0):
        dirty = with_fields(
            clean,
            sampler_log_prob=clean.sampler_log_prob.masked_fill(~MASK, garbage),  # type: ignore[union-attr]
            log_prob=clean.log_prob.masked_fill(~MASK, garbage),
        )
        close(slopes(estimator, dirty, new), slopes(estimator, clean, new))
    broken = clean.sampler_log_prob.clone()  # type: ignore[union-attr]
    broken[0, 1, 1] = torch.nan
    with pytest.raises(CourseError, match=r"sampler_log_prob: got nan at index \(0, 1, 1\)"):
        estimator.freeze(with_fields(clean, sampler_log_prob=broken))


def test_the_correction_weighs_the_surrogate_alone() -> None:
    """Everything is dropped: the KL, the bonus and the critic's error stay as they were."""
    log_dist = torch.tensor([[[[0.5, 0.5]]]], dtype=torch.float64).log()
    value = f64([[[0.3, 0.1, 0.2]] * 3])
    rollout = sampled(ref_log_prob=(OLD * 0.9).log(), value=value)
    estimator = replace(
        ladder.grpo, correction=TokenMIS(1e6, None), entropy_coef=0.3, value_coef=0.5
    )
    none_wins = with_fields(rollout, reward=torch.zeros_like(REWARD))
    policy = Policy(OLD.log() + 0.1, log_dist, value)
    without = replace(estimator, correction=NoCorrection())
    # without rewards every advantage is 0; the critic's targets are the returns, so its error is
    # compared apart
    quiet, dropped = replace(without, value_coef=0.0), replace(estimator, value_coef=0.0)
    close(dropped.loss(policy, rollout), quiet.loss(policy, none_wins))
    error = f64(0.0)
    for i, j in itertools.product(range(3), range(3)):
        if MASK[0, i, j]:
            total = float(REWARD[0, i].sum())
            error += (float(value[0, i, j]) - total) ** 2 / 2 / int(MASK[0, i].sum()) / 3
    close(estimator.loss(policy, rollout) - dropped.loss(policy, rollout), 0.5 * error)


def test_what_is_dropped_stays_in_the_divisor() -> None:
    """A token mean over seven tokens, of which the first sample's three have weight 0."""
    estimator = Estimator(aggregation=TokenMean(), correction=SequenceMIS(0.0, 2.0))
    found = slopes(estimator, sampled(), OLD.log())
    close(found, [[[0, 0, 0], [1.2 * 0.3 / 7] * 2 + [0], [0.5 * 0.8 / 7, 0, 0.5 * 0.8 / 7]]])


def test_a_dropped_token_cannot_overflow() -> None:
    """ρ = e^900 would be ∞, and 0·∞ NaN, in the value or in the gradient."""
    estimator = replace(ladder.surrogate, correction=SequenceMIS(0.0, 2.0))
    new = OLD.log().clone()
    new[0, 0] += 900
    assert bool(torch.isfinite(estimator.loss(Policy(new), sampled())))
    found = slopes(estimator, sampled(), new)
    assert bool((found[0, 0] == 0).all())
    assert float(found[0, 1, 0]) != 0
    # and an infinite κ is no weight at all
    apart = with_fields(sampled(), sampler_log_prob=OLD.log() - 1e4)
    capped = replace(ladder.surrogate, correction=TokenTIS(2.0)).freeze(apart).correction
    close(capped, 2.0 * MASK)
    masked = replace(ladder.surrogate, correction=TokenMIS()).freeze(apart).correction
    close(masked, 0.0 * MASK)


@every
def test_minibatches_add_up(correction: Correction) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 4, 3, 5)
    old, sampler, new = (-torch.rand(shape, generator=generator).double() for _ in range(3))
    rollout = Rollout(
        torch.rand(shape, generator=generator).double(),
        old,
        torch.rand(shape, generator=generator) < 0.7,
        sampler_log_prob=sampler,
    )
    estimator = replace(ladder.token_mean, correction=correction)
    frozen = estimator.freeze(rollout)
    parts = [torch.tensor([2]), torch.tensor([0, 3]), torch.tensor([1])]
    added = sum(
        estimator.objective(Policy(new.index_select(1, part)), frozen.prompts(part))
        for part in parts
    )
    close(added, estimator.objective(Policy(new), frozen))


def test_metrics_by_hand() -> None:
    """Seven tokens: weights 0, 0, 0, 1.2, 1.2, .5, .5, and the k3 of each κ."""
    estimator = replace(ladder.clip, correction=SequenceMIS(0.5, 2.0))
    logged = of_update(estimator, Policy(OLD.log()), estimator.freeze(sampled()))
    close(logged["correction_mean"], (2 * 1.2 + 2 * 0.5) / 7)
    close(logged["correction_dropped"], 3 / 7)
    close(logged["sampler_kl"], sum(k3(x) for x in (2, 0.5, 3, 1, 1.2, 0.5, 1)) / 7)
    plain = of_update(ladder.clip, Policy(OLD.log()), ladder.clip.freeze(sampled()))
    assert "correction_mean" not in plain
    close(plain["sampler_kl"], logged["sampler_kl"])


# ---------------------------------------------------------------- decoupled PPO


def test_decoupled_ppo_is_a_combination() -> None:
    """κ·min(ρA, clip(ρ, .8, 1.2)A) with ρ = π/π_prox and κ = π_prox/μ (Hilton et al. 2021), each
    token by hand; π_prox is what a rollout calls π_old.
    """
    new = f64([[[0.7, 0.35, 0.3], [0.3, 0.25, 0.8], [0.45, 0.5, 0.7]]])
    estimator = Estimator(baseline=GroupMean(), surrogate=Clip(0.2), correction=TokenTIS(cap=None))
    total, mean = 0.0, (1.0 + 0.3 + 0.8) / 3
    for i, (reward, row) in enumerate(zip((1.0, 0.3, 0.8), MASK[0].tolist(), strict=True)):
        for t in (t for t in range(3) if row[t]):
            ratio, advantage = float(new[0, i, t] / OLD[0, i, t]), reward - mean
            clipped = min(max(ratio, 0.8), 1.2)
            total += float(KAPPA[0, i, t]) * min(ratio * advantage, clipped * advantage) / 3
    close(-estimator.loss(Policy(new.log()), sampled()), total)
    # without the clip it is importance sampling from μ itself
    plain = replace(estimator, surrogate=ImportanceSampling())
    from_mu = make_rollout(REWARD, (OLD / KAPPA).log(), MASK)
    direct = Estimator(baseline=GroupMean(), surrogate=ImportanceSampling())
    close(slopes(plain, sampled(), new.log()), slopes(direct, from_mu, new.log()))


# ---------------------------------------------------------------- exact bias, by enumeration

# answers "token a, then token b | a": the logits of the first and of the two second choices
THETA = f64([0.3, -0.2, 0.5])
DRIFTED = f64([-0.4, 0.4, -0.1])
PAYS = f64([1.0, 0.2, 0.0, 0.7])


def answers(theta: Tensor) -> tuple[Tensor, Tensor]:
    """log π of both tokens [4, 2] of the four answers, and their scores [4, 2, 3]."""
    log_prob, score = [], []
    for a, b in itertools.product((0, 1), (0, 1)):
        leaf = theta.clone().requires_grad_()
        tokens = torch.stack(
            [
                torch.nn.functional.logsigmoid(leaf[0] * (1 - 2 * a)),
                torch.nn.functional.logsigmoid(leaf[1 + a] * (1 - 2 * b)),
            ]
        )
        log_prob.append(tokens.detach())
        score.append(
            torch.stack(
                [torch.autograd.grad(token, leaf, retain_graph=True)[0] for token in tokens]
            )
        )
    return torch.stack(log_prob), torch.stack(score)


def outcomes(theta: Tensor = THETA, sampler: Tensor = DRIFTED) -> Outcomes:
    (log_prob, score), (drawn, _) = answers(theta), answers(sampler)
    reward = torch.stack([torch.zeros(4, dtype=torch.float64), PAYS], -1)
    return Outcomes.of_sequences(
        log_prob[None], reward[None], score=score[None], sampler_log_prob=drawn[None]
    )


def expected(correction: Correction) -> Tensor:
    """E_μ[Σ_t c_t R ∇log π_t], answer by answer, with the weights of VARIANTS' formulas."""
    (log_prob, score), (drawn, _) = answers(THETA), answers(DRIFTED)
    total = torch.zeros(3, dtype=torch.float64)
    for k in range(4):
        kappa = [math.exp(log_prob[k, t] - drawn[k, t]) for t in range(2)]
        product = kappa[0] * kappa[1]
        if isinstance(correction, TokenTIS):
            weight = [min(x, correction.cap or math.inf) for x in kappa]
        elif isinstance(correction, SequenceTIS):
            weight = [min(product, correction.cap or math.inf)] * 2
        elif isinstance(correction, TokenMIS):
            assert correction.high is not None
            weight = [x if correction.low <= x <= correction.high else 0.0 for x in kappa]
        elif isinstance(correction, SequenceMIS):
            assert correction.high is not None
            weight = [product if correction.low <= product <= correction.high else 0.0] * 2
        elif isinstance(correction, SequenceMaskTIS):
            assert correction.high is not None
            weight = kappa if correction.low <= math.sqrt(product) <= correction.high else [0.0] * 2
        elif isinstance(correction, RejectK3):
            both = [k3(x) for x in kappa]
            size = max(both) if correction.largest else sum(both) / 2
            weight = [float(size <= correction.threshold)] * 2
        else:
            weight = [1.0, 1.0]
        for t in range(2):
            total += math.exp(drawn[k].sum()) * float(PAYS[k]) * weight[t] * score[k, t]
    return total


@pytest.mark.parametrize(
    "correction",
    [NoCorrection(), TokenTIS(None), SequenceTIS(None), *EVERY],
    ids=lambda part: part.short,
)
@pytest.mark.parametrize("surrogate", [ScoreFunction(), ImportanceSampling(), Clip(0.2)])
def test_the_expected_gradient_is_that_of_the_formula(
    correction: Correction, surrogate: ScoreFunction | ImportanceSampling | Clip
) -> None:
    """At π = π_old every surrogate has one gradient; the microscope lists what μ draws."""
    estimator = Estimator(surrogate=surrogate, correction=correction)
    for group in (1, 2, math.inf):
        close(microscope(estimator, outcomes(), group).expected, expected(correction))


def test_whole_answers_reweighted_are_unbiased_and_tokens_are_not() -> None:
    """FACTS 28: at C → ∞ the bias of sequence TIS vanishes; of token TIS it does not (T > 1)."""
    true = gradient(outcomes())

    def bias(correction: Correction) -> float:
        return float((expected(correction) - true).norm() / true.norm())

    by_cap = [bias(SequenceTIS(cap)) for cap in (0.5, 1.0, 2.0, 3.0)]
    assert by_cap == sorted(by_cap, reverse=True)
    close(microscope(Estimator(correction=SequenceTIS(None)), outcomes(), 2).bias, torch.zeros(3))
    assert bias(SequenceTIS(1e3)) < 1e-12
    assert bias(TokenTIS(None)) == bias(TokenTIS(1e3)) > 0.1
    # the last token's weight lacks the first token's κ: what is left is their covariance
    (log_prob, score), (drawn, _) = answers(THETA), answers(DRIFTED)
    kappa, chance = (log_prob - drawn).exp(), drawn.sum(-1).exp()
    lacking = sum(
        chance[k] * PAYS[k] * (1 - kappa[k, 1 - t]) * kappa[k, t] * score[k, t]
        for k in range(4)
        for t in range(2)
    )
    close(expected(TokenTIS(None)) - true, lacking)


def test_on_a_bandit_token_and_sequence_are_one() -> None:
    """T = 1: κ alone is exact, and both truncations agree."""
    policy, drawn = f64([0.5, 0.3, 0.2]), f64([0.2, 0.3, 0.5])
    arms = Outcomes.of_arms(policy.log(), f64([0.2, 0.5, 0.8]), sampler_log_prob=drawn.log())
    for cap in (None, 1.5):
        token, whole = (
            microscope(replace(ladder.surrogate, correction=made), arms, 2)
            for made in (TokenTIS(cap), SequenceTIS(cap))
        )
        close(token.expected, whole.expected)
        close(token.covariance, whole.covariance)
    exact = microscope(Estimator(correction=TokenTIS(None)), arms, 3)
    close(exact.bias, torch.zeros(3))
    ignored = microscope(Estimator(), arms, 3)
    close(ignored.expected[0], 0.2 * 0.2 - 0.5 * (0.2 * 0.2 + 0.3 * 0.5 + 0.5 * 0.8))


# ---------------------------------------------------------------- arguments and equations


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TokenTIS(0), "TokenTIS.cap: got 0; allowed is a number > 0 or None"),
        (lambda: SequenceTIS("2"), "SequenceTIS.cap: got '2'; allowed is a number > 0 or None"),
        (lambda: TokenMIS(-0.1), "TokenMIS.low: got -0.1; allowed is a number ≥ 0"),
        (
            lambda: TokenMIS(0.5, math.inf),
            "TokenMIS.high: got inf; allowed is a number > 0",
        ),
        (
            lambda: SequenceMIS(4.0),
            "SequenceMIS.low: got 4.0; allowed is a number up to SequenceMIS.high = 3.0",
        ),
        (lambda: SequenceMaskTIS(None), "SequenceMaskTIS.low: got None; allowed is a number ≥ 0"),
        (lambda: RejectK3(-1), "RejectK3.threshold: got -1; allowed is a number ≥ 0, in nats"),
        (lambda: RejectK3(1, largest=1), "RejectK3.largest: got 1; allowed is True or False"),
        (lambda: Estimator(correction=Clip()), "estimator.correction: got "),
        (
            lambda: make_rollout([[[1.0]]], sampler_log_prob=[[1.0]]),
            r"rollout.sampler_log_prob: got \(1, 1\); allowed is the shape \(1, 1, 1\)",
        ),
    ],
)
def test_bad_arguments_get_a_clear_line(make: object, says: str) -> None:
    with pytest.raises(CourseError, match=says):
        make()  # type: ignore[operator]


@every
def test_a_correction_prints_as_a_line_of_its_own(correction: Correction) -> None:
    estimator = replace(ladder.grpo, correction=correction)
    assert "c·min(ρ·A" in estimator.text()
    assert f",  c = {correction.text}, κ" in estimator.text()
    plain = estimator.latex(None)
    assert r"\left[c_{i,t}\,\min" in plain
    assert rf"c_{{i,t}}&={correction.latex},\qquad \kappa" in plain
    assert estimator.latex().count("color") == 1
    assert "kappa" not in ladder.grpo.latex()
    assert "c·" not in ladder.grpo.text()
    back = replace(estimator, correction=NoCorrection()).latex()
    assert "c_{i,t}&=" in back  # what was taken out is shown, in colour
    assert back.count("color") == 1
