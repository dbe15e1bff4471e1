"""Filters on tokens: which are dropped, by loops; what a dropped token loses and what it keeps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from course import ladder
from course.errors import CourseError
from course.estimator import Estimator, Frozen, replace
from course.exact import Outcomes, microscope
from course.exact.lumps import among_others
from course.parts import (
    K3,
    Clip,
    ClipCov,
    GroupMean,
    HighEntropy,
    ImportanceSampling,
    OffPolicySequences,
    SecondMoment,
    SequenceMean,
    TokenFilter,
    TokenMean,
)
from course.rollout import Policy, Rollout
from tests.helpers import close, f64, make_rollout

EVERY: tuple[TokenFilter, ...] = (
    HighEntropy(0.3),
    HighEntropy(0.0),
    HighEntropy(1.0),
    ClipCov(0.2, -0.1, 1.0),
    ClipCov(0.0, 0.05, 9.0),
    SecondMoment(0.05),
    SecondMoment(1e-9),
    SecondMoment(9.0),
    OffPolicySequences(0.05),
    OffPolicySequences(0.0),
)
every = pytest.mark.parametrize("part", EVERY, ids=lambda part: part.short)
SHAPE = (2, 3, 4, 5)  # two runs, Q, G, T
Place = tuple[int, int, int]


def case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Rollout, Policy]:
    """Two ragged runs off policy, with a sampler of their own and holes in the mask; NaN wherever
    nothing was chosen.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.rand(SHAPE, generator=generator) < 0.7
    mask[..., 0, 0, 0] = True
    hidden = torch.where(mask, 0.0, math.nan).to(dtype)
    old = -0.3 - normal(*SHAPE).abs() + hidden
    rollout = Rollout(
        torch.where(mask, normal(*SHAPE), 0.0),
        old,
        mask,
        sampler_log_prob=old + 0.1 * normal(*SHAPE),
        ref_log_prob=old + 0.1 * normal(*SHAPE),
    )
    log_dist = normal(*SHAPE, 4).log_softmax(-1) + hidden.unsqueeze(-1)
    return rollout, Policy((old + 0.3 * normal(*SHAPE)).requires_grad_(), log_dist)


def estimator_with(part: TokenFilter) -> Estimator:
    return Estimator(
        baseline=GroupMean(),
        surrogate=Clip(0.2),
        kl=K3(0.1),
        aggregation=TokenMean(),
        sample_filter=part,
    )


def chosen(rollout: Rollout, run: int) -> list[Place]:
    return [tuple(place) for place in rollout.mask[run].nonzero().tolist()]


def kept_by_hand(
    part: TokenFilter, rollout: Rollout, policy: Policy, advantage: Tensor, run: int
) -> set[Place]:
    """The kept tokens of a run, from the papers' formulas, with plain numbers."""
    places = chosen(rollout, run)
    new = {place: float(policy.log_prob[run][place].detach()) for place in places}
    moved = {place: new[place] - float(rollout.log_prob[run][place]) for place in places}
    gain = {place: float(advantage[run][place]) for place in places}
    if isinstance(part, HighEntropy):
        assert policy.log_dist is not None
        entropy = {
            place: -sum(math.exp(x) * x for x in policy.log_dist[run][place].tolist())
            for place in places
        }
        ranked, at = sorted(entropy.values()), (1 - part.share) * (len(places) - 1)
        low, high = ranked[math.floor(at)], ranked[math.ceil(at)]
        threshold = low + (at - math.floor(at)) * (high - low)
        return {place for place in places if entropy[place] >= threshold - 1e-12}
    if isinstance(part, SecondMoment):
        ranked_places = sorted(places, key=lambda place: moved[place] ** 2, reverse=True)
        while ranked_places:
            left = [moved[place] ** 2 for place in ranked_places]
            if sum(left) / len(left) <= part.tau:
                break
            ranked_places.pop(0)
        return set(ranked_places)
    if isinstance(part, OffPolicySequences):
        kept = set()
        for place in places:
            mine = [other for other in places if other[:2] == place[:2]]
            sampler = rollout.sampler_log_prob
            assert sampler is not None
            left = sum(float(sampler[run][o]) - new[o] for o in mine) / len(mine)
            if gain[place] >= 0 or left <= part.threshold:
                kept.add(place)
        return kept
    assert isinstance(part, ClipCov)
    means = [sum(numbers.values()) / len(places) for numbers in (gain, new)]
    candidates = []
    for place in places:
        covariance = (gain[place] - means[0]) * (new[place] - means[1])
        ratio = math.exp(moved[place])
        flat = ratio > 1.2 if gain[place] > 0 else ratio < 0.8
        if part.low < covariance < part.high and not (flat and gain[place] != 0):
            candidates.append((covariance, place))
    number = max(int(part.share * len(places)), 1)
    return set(places) - {place for _, place in sorted(candidates, reverse=True)[:number]}


def slopes_of(estimator: Estimator, rollout: Rollout, policy: Policy) -> Tensor:
    found = estimator.objective(policy, estimator.freeze(rollout))
    return torch.autograd.grad(found.sum(), policy.log_prob)[0]


@pytest.mark.parametrize("seed", range(4))
@every
def test_kept_are_the_tokens_of_the_formula(part: TokenFilter, seed: int) -> None:
    """By the objective and its slope: a kept token has those of no filter, a dropped one those of
    its KL alone, with the divisor of all tokens; no NaN from where nothing was chosen.
    """
    rollout, policy = case(seed)
    with_filter = estimator_with(part)
    without = Estimator(
        baseline=GroupMean(), surrogate=Clip(0.2), kl=K3(0.1), aggregation=TokenMean()
    )
    frozen = without.freeze(rollout)
    alone = torch.zeros_like(frozen.advantage)
    whole = slopes_of(without, rollout, policy)
    held = torch.autograd.grad(
        without.objective(policy, Frozen(rollout, alone, frozen.weight, alone)).sum(),
        policy.log_prob,
    )[0]
    found = slopes_of(with_filter, rollout, policy)
    for run in range(2):
        kept = kept_by_hand(part, rollout, policy, frozen.advantage, run)
        for place in itertools.product(*map(range, SHAPE[1:])):
            want = whole[run][place] if place in kept else held[run][place]
            close(found[run][place], want if rollout.mask[run][place] else f64(0.0))
    dropped = sum(
        len(chosen(rollout, run)) - len(kept_by_hand(part, rollout, policy, frozen.advantage, run))
        for run in range(2)
    )
    nothing_to_do = part in (HighEntropy(1.0), SecondMoment(9.0))
    assert (dropped == 0) == nothing_to_do


@every
def test_a_run_alone_keeps_what_it_keeps_among_others(part: TokenFilter) -> None:
    rollout, policy = case(7)
    together = slopes_of(estimator_with(part), rollout, policy)
    assert policy.log_dist is not None
    for run in range(2):
        assert rollout.sampler_log_prob is not None
        assert rollout.ref_log_prob is not None
        alone = Rollout(
            rollout.reward[run],
            rollout.log_prob[run],
            rollout.mask[run],
            sampler_log_prob=rollout.sampler_log_prob[run],
            ref_log_prob=rollout.ref_log_prob[run],
        )
        mine = Policy(policy.log_prob[run].detach().requires_grad_(), policy.log_dist[run])
        close(slopes_of(estimator_with(part), alone, mine), together[run])


@every
def test_in_float32_the_same_tokens_are_kept(part: TokenFilter) -> None:
    wide, narrow = (
        slopes_of(estimator_with(part), *case(3, d)) for d in (torch.float64, torch.float32)
    )
    assert narrow.dtype == torch.float32
    close(narrow.double(), wide, rtol=1e-4, atol=1e-6)


@every
def test_the_order_of_prompts_and_samples_does_not_matter(part: TokenFilter) -> None:
    """So that the microscope may list multisets, not orders."""
    rollout, policy = case(5)
    assert policy.log_dist is not None
    before = slopes_of(estimator_with(part), rollout, policy)
    back = [tensor.flip(1, 2) for tensor in (rollout.reward, rollout.log_prob, rollout.mask)]
    assert rollout.sampler_log_prob is not None
    assert rollout.ref_log_prob is not None
    turned = Rollout(
        *back,
        sampler_log_prob=rollout.sampler_log_prob.flip(1, 2),
        ref_log_prob=rollout.ref_log_prob.flip(1, 2),
    )
    mine = Policy(policy.log_prob.detach().flip(1, 2).requires_grad_(), policy.log_dist.flip(1, 2))
    close(slopes_of(estimator_with(part), turned, mine).flip(1, 2), before)


def test_equal_tokens_share_one_fate() -> None:
    """The second moments are 1, 1 and 1/4: at τ = ½ the two largest go together, though the mean of
    the two smallest would be 5/8. So do candidates of Clip-Cov with one covariance.
    """
    reward = f64([[[1.0], [1.0], [-2.0]]])
    rollout = make_rollout(reward)
    policy = Policy((rollout.log_prob + f64([[[1.0], [-1.0], [0.5]]])).requires_grad_())
    estimator = Estimator(surrogate=ImportanceSampling(), sample_filter=SecondMoment(0.5))
    found = slopes_of(estimator, rollout, policy).flatten().tolist()
    assert found[:2] == [0.0, 0.0]
    close(found[2], -2 * math.exp(0.5) / 3)
    level = Policy(f64([[[-1.0], [-1.0], [-4.0]]]).requires_grad_())
    # covariances: (1 − 0)(−1 + 2) = 1, twice, and (−2 − 0)(−4 + 2) = 4
    for share, low, high, dropped in ((0.0, 0.5, 2.0, (0, 1)), (0.0, 0.5, 9.0, (2,))):
        estimator = Estimator(sample_filter=ClipCov(share, low, high))
        slope = slopes_of(estimator, rollout, level).flatten().tolist()
        assert [i for i, x in enumerate(slope) if x == 0] == list(dropped)


def test_what_is_dropped_never_enters_an_exp() -> None:
    """A token whose ρ overflows is dropped by the second moment: nothing is infinite or NaN."""
    rollout = make_rollout(f64([[[1.0], [-1.0]]]))
    policy = Policy((rollout.log_prob + f64([[[2000.0], [0.1]]])).requires_grad_())
    estimator = Estimator(surrogate=ImportanceSampling(), sample_filter=SecondMoment(0.04))
    close(slopes_of(estimator, rollout, policy).flatten(), [0.0, -math.exp(0.1) / 2])


def test_the_share_is_of_the_minibatch_and_the_sequences_add_up() -> None:
    """Each minibatch has a top token of its own; a filter on one sample alone adds up."""
    rollout, policy = case(2)
    assert policy.log_dist is not None
    halves = [torch.tensor([0]), torch.tensor([1, 2])]
    for part in (HighEntropy(0.0), OffPolicySequences(0.05)):
        estimator = replace(estimator_with(part), kl=ladder.clip.kl)
        frozen = estimator.freeze(rollout)
        whole = slopes_of(estimator, rollout, policy)
        pieces = torch.zeros_like(whole)
        for index in halves:
            cut = Policy(policy.log_prob[:, index], policy.log_dist[:, index])
            objective = estimator.objective(cut, frozen.prompts(index))
            pieces += torch.autograd.grad(objective.sum(), policy.log_prob)[0]
        if isinstance(part, HighEntropy):
            felt = [(pieces[:, index] != 0).flatten(1).sum(-1).amax() for index in halves]
            assert int((whole != 0).flatten(1).sum(-1).amax()) <= 1
            assert all(int(number) <= 1 for number in felt)
            assert not torch.allclose(pieces, whole)
        else:
            close(pieces, whole)


# ---------------------------------------------------------------- exact bias


def two_tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Four answers of two tokens: log π and log π_old [4, 2], log π of all tokens [4, 2, 2]."""
    new, old = (
        torch.stack([f64([[a, 0.0], [b, 0.0], [c, 0.0]]).log_softmax(-1)])[0]
        for a, b, c in ((0.3, -1.0, 0.8), (0.0, -0.2, 0.1))
    )
    answers = list(itertools.product(range(2), repeat=2))
    full = torch.stack([torch.stack([new[0], new[1 + first]]) for first, _ in answers])
    pick = [[(0, a), (1 + a, b)] for a, b in answers]
    mine, before = (
        torch.stack([torch.stack([table[row] for row in rows]) for rows in pick])
        for table in (new, old)
    )
    return mine, before, full


def outcomes() -> Outcomes:
    mine, before, full = two_tokens()
    reward = torch.zeros(1, 4, 2, dtype=torch.float64)
    reward[0, :, 1] = f64([1.0, 0.0, 0.25, 0.5])
    return Outcomes.of_sequences(mine[None], reward, old_log_prob=before[None], log_dist=full[None])


@every
def test_the_microscope_lists_what_the_filter_sees(part: TokenFilter) -> None:
    """The expected coefficient of every token, against every ordered pair of answers, one by one;
    lumped and as multisets the same.
    """
    estimator = Estimator(
        baseline=GroupMean(),
        surrogate=ImportanceSampling(),
        aggregation=SequenceMean(),
        sample_filter=part,
    )
    seen, (mine, before, full) = outcomes(), two_tokens()
    expected = torch.zeros(4, 2, dtype=torch.float64)
    for pair in itertools.product(range(4), repeat=2):
        index = list(pair)
        rollout = Rollout(
            seen.reward[:, index], before[index][None], torch.ones(1, 2, 2, dtype=torch.bool)
        )
        policy = Policy(mine[index][None].clone().requires_grad_(), full[index][None])
        slope = slopes_of(estimator, rollout, policy)[0]
        chance = before[index].sum().exp()
        for i, k in enumerate(pair):
            expected[k] += chance * slope[i]
    found = microscope(estimator, seen, 2)
    close(found.coefficient[0], expected)
    among = among_others(estimator, seen, 2)
    lumped = 2 * torch.einsum("n,m,nmp->np", among.chance, among.weight, among.coefficient)
    close(lumped[:, :2], expected[among.outcome])


@pytest.mark.parametrize("name", ["high_entropy", "clip_cov", "m2po"])
def test_the_limit_of_large_groups_is_refused_where_tokens_are_compared(name: str) -> None:
    with pytest.raises(CourseError, match="group_size: got inf"):
        microscope(ladder.get(name).estimator, outcomes(), math.inf)


def test_the_second_moment_holds_what_the_clip_does_not() -> None:
    """Over the kept tokens mean (log ρ)² ≤ τ; with τ large it is the rung below."""
    rollout, policy = case(1)
    below = slopes_of(ladder.no_clip, rollout, policy)
    close(
        slopes_of(replace(ladder.no_clip, sample_filter=SecondMoment(1e3)), rollout, policy), below
    )
    found = slopes_of(ladder.m2po, rollout, policy) != 0
    log_ratio = torch.where(rollout.mask, policy.log_prob - rollout.log_prob, 0.0).detach()
    for run in range(2):
        assert 0 < float((log_ratio[run][found[run]] ** 2).mean()) <= 0.04
        assert float((log_ratio[run][rollout.mask[run]] ** 2).mean()) > 0.04


# ---------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HighEntropy(1.1), "HighEntropy.share: got 1.1"),
        (lambda: HighEntropy(True), "HighEntropy.share: got True"),
        (lambda: ClipCov(-0.1), "ClipCov.share: got -0.1"),
        (lambda: ClipCov(low=math.nan), "ClipCov.low: got nan"),
        (lambda: ClipCov(low=2, high=1), "ClipCov.high: got 1; allowed is a number above low = 2"),
        (lambda: SecondMoment(0), "SecondMoment.tau: got 0"),
        (lambda: OffPolicySequences(-1), "OffPolicySequences.threshold: got -1"),
    ],
)
def test_a_setting_out_of_range_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CourseError, match=message):
        make()


def test_high_entropy_asks_for_the_distribution() -> None:
    assert "policy.log_dist" in ladder.high_entropy.needs
    rollout, policy = case(0)
    frozen = ladder.high_entropy.freeze(rollout)
    with pytest.raises(CourseError, match=r"policy\.log_dist: got None"):
        ladder.high_entropy.objective(Policy(policy.log_prob), frozen)


def test_a_filter_of_your_own_must_answer_with_bools() -> None:
    class Numbers(TokenFilter):
        def tokens(self, seen):  # type: ignore[no-untyped-def]
            return seen.advantage

    rollout, policy = case(0)
    with pytest.raises(CourseError, match=r"estimator\.sample_filter: got shape"):
        slopes_of(replace(ladder.clip, sample_filter=Numbers()), rollout, policy)
