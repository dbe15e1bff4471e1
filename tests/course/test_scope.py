"""What parts declare of themselves, `scope` and `reads`, derived by changing what they should not
see: every part that `course.parts` exports is found here by itself.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from course import parts
from course.estimator import PART_KINDS
from course.parts import (
    K1,
    K3,
    Aggregation,
    Baseline,
    ClipCov,
    Correction,
    Credit,
    GroupMean,
    GroupStd,
    InLoss,
    InReward,
    OffPolicySequences,
    RatioLevel,
    Reference,
    RejectK3,
    SampleFilter,
    Scale,
    SequenceMaskTIS,
    SequenceMean,
    SequenceRatio,
    SequenceSum,
    Surrogate,
    TokenFilter,
    TokenMean,
    Tokens,
)
from course.parts.base import Declares, Part
from course.parts.kl import KL, Anchor, Place
from course.rollout import Policy, Rollout

Q, G, T, V = 2, 3, 3, 2
TRIALS = 24
SCOPES = ("token", "sample", "group", "batch")


# ---------------------------------------------------------------- random inputs of every part


@dataclass(frozen=True)
class Inputs:
    """All that a part can be given, [Q, G, T] but where it says otherwise. The first token of the
    first sample of the first prompt is the one whose result is watched; it is always chosen.
    """

    mask: Tensor
    reward: Tensor
    returns: Tensor  # [Q, G], as if a credit had made them
    advantage: Tensor
    log_ratio: Tensor
    log_prob: Tensor
    old_log_prob: Tensor
    ref_log_prob: Tensor
    sampler_log_prob: Tensor
    value: Tensor
    bootstrap: Tensor  # [Q, G]
    truncated: Tensor  # [Q, G]
    greedy_reward: Tensor  # [Q]
    log_dist: Tensor  # [Q, G, T, V]
    old_log_dist: Tensor  # [Q, G, T, V]
    ref_log_dist: Tensor  # [Q, G, T, V]
    log_drift: Tensor
    entropy: Tensor
    flat: Tensor
    components: Tensor  # [Q, G, 2]
    several: bool  # whether the rollout has these components; else its reward is the only one

    @property
    def rollout(self) -> Rollout:
        return Rollout(
            self.reward,
            self.old_log_prob,
            self.mask,
            ref_log_prob=self.ref_log_prob,
            sampler_log_prob=self.sampler_log_prob,
            value=self.value,
            bootstrap=self.bootstrap,
            truncated=self.truncated,
            greedy_reward=self.greedy_reward,
            old_log_dist=self.old_log_dist,
            ref_log_dist=self.ref_log_dist,
            components=self.components if self.several else None,
            limit=7,
        )

    @property
    def tokens(self) -> Tokens:
        """Without what is not chosen, as `Estimator.objective` hands it over."""
        numbers = [
            torch.where(self.mask, each, 0.0)
            for each in (self.advantage, self.log_prob, self.log_ratio, self.log_drift)
        ]
        entropy = torch.where(self.mask, self.entropy, 0.0)
        return Tokens(self.mask, *numbers, flat=self.flat & self.mask, entropy=entropy)

    @property
    def policy(self) -> Policy:
        return Policy(self.log_prob, self.log_dist, self.value)


def draw(generator: torch.Generator) -> Inputs:
    """Small whole numbers, so that equal rewards and samples without tokens are frequent."""

    def few(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator).double()

    def some(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    everywhere = (Q, G, T)
    mask = (few(*everywhere) > 0) & (torch.rand(Q, G, 1, generator=generator) < 0.8)
    mask[0, 0, 0] = True
    # a stream of its own, so that the numbers above do not depend on whether it is read
    apart = torch.Generator().manual_seed(int(mask.flatten().long() @ 2 ** torch.arange(Q * G * T)))
    return Inputs(
        mask=mask,
        reward=few(*everywhere),
        returns=few(Q, G),
        advantage=few(*everywhere) - 0.5,
        log_ratio=some(*everywhere) - 0.5,
        log_prob=-some(*everywhere),
        old_log_prob=-some(*everywhere),
        ref_log_prob=-some(*everywhere),
        sampler_log_prob=-some(*everywhere),
        value=some(*everywhere),
        bootstrap=some(Q, G),
        truncated=few(Q, G) > 0,
        greedy_reward=some(Q),
        log_dist=some(*everywhere, V).log_softmax(-1),
        old_log_dist=some(*everywhere, V).log_softmax(-1),
        ref_log_dist=some(*everywhere, V).log_softmax(-1),
        log_drift=some(*everywhere) - 0.5,
        entropy=some(*everywhere),
        flat=few(*everywhere) > 0,
        components=torch.randint(0, 2, (Q, G, 2), generator=apart).double(),
        several=bool(torch.randint(0, 2, (1,), generator=apart)),
    )


def result(part: Declares, given: Inputs) -> Tensor:
    """What the part makes of the watched token."""
    rollout, mask = given.rollout, given.mask
    made: Any
    if isinstance(part, Credit):
        made = part(given.reward, rollout)
    elif isinstance(part, Baseline):
        made = part(given.returns, rollout)
    elif isinstance(part, Scale):
        made = part(given.advantage, given.returns, rollout)
    elif isinstance(part, Correction):
        made = part(rollout)
        made = True if made is None else made
    elif isinstance(part, RatioLevel):
        made = part(torch.where(mask, given.log_ratio, 0.0), mask)
    elif isinstance(part, Surrogate):
        made = part(given.log_ratio, given.log_prob, given.advantage)
    elif isinstance(part, KL):
        penalty = part.penalty(given.policy, rollout, given.log_ratio, mask)
        made = part.shape_reward(rollout)
        made = made if penalty is None else torch.stack([made, penalty], -1)
    elif isinstance(part, Aggregation):
        made = part(mask, 7, torch.float64)
    elif isinstance(part, TokenFilter):
        assert part(rollout) is None
        made = part.tokens(given.tokens)
    elif isinstance(part, SampleFilter):
        keep = part(rollout)
        made = True if keep is None else keep.unsqueeze(-1)
    elif isinstance(part, Place):
        made = True  # a mark that says where the penalty stands: it computes nothing
    else:
        assert isinstance(part, Anchor)
        exact = part.exact(given.log_dist, rollout, mask).expand(Q, G, T)
        made = torch.stack([part.log_r(given.log_prob, rollout), exact], -1)
    made = torch.as_tensor(made, dtype=torch.float64)
    extra = made.dim() - 3 if made.dim() > 3 else 0
    return made.expand(Q, G, T, *made.shape[made.dim() - extra :])[0, 0, 0]


# ---------------------------------------------------------------- changing one thing, somewhere

# word of `reads` → the inputs that are drawn anew for it
WORDS = {
    "returns": "returns",
    "advantage": "advantage",
    "total_reward": "reward",
    "reward": "reward",
    "mask": "mask",
    "length": "mask",
    "empty": "mask",
    **{f.name: f.name for f in fields(Inputs) if f.name != "several"},
}
# the rollout's log_prob is π_old's; a part that is given a rollout alone sees no other
OF_ROLLOUT = {"old_log_prob": "log_prob"}
# of one input, the word that says least and suffices
LEAST = {"mask": ("empty", "length", "mask"), "reward": ("total_reward", "reward")}


def told_apart(word: str, old: Tensor, new: Tensor) -> bool:
    """Whether a sample's new mask or reward [T] differs from the old one in `word`, and in no
    lesser word of the same input.
    """
    if word == "empty":
        return bool(old.any() != new.any())
    if word == "length":
        return bool(old.any() and new.any() and old.sum() != new.sum())
    if word == "mask":
        return bool(old.sum() == new.sum() and (old != new).any())
    if word == "total_reward":
        return bool(old.sum() != new.sum())
    return word != "reward" or bool(old.sum() == new.sum() and (old != new).any())


def places(distance: str) -> Tensor:
    """[Q, G, T] bool: the tokens at that distance from the watched one."""
    where = torch.zeros(Q, G, T, dtype=torch.bool)
    if distance == "sample":
        where[0, 0, 1:] = True
    elif distance == "group":
        where[0, 1:] = True
    else:
        where[1:] = True
    return where


def change(given: Inputs, fresh: Inputs, word: str, distance: str) -> Inputs | None:
    """`given` with `word` of all that is at that distance as in `fresh`; None where that changes
    something else, too.
    """
    name = WORDS[word]
    old, new, where = getattr(given, name), getattr(fresh, name), places(distance)
    if old.dim() == 1:  # one number per prompt: no chance in it, but for other prompts' answers
        where = where[:, 0, 0]
    elif old.dim() == 2 or name == "components":  # a sample's own number belongs to the sample
        where = where.any(-1)
    changed = torch.where(where.reshape(where.shape + (1,) * (old.dim() - where.dim())), new, old)
    if name in LEAST:
        keep = torch.ones(Q, G, dtype=torch.bool)
        for q, g in itertools.product(range(Q), range(G)):
            same = torch.equal(old[q, g], changed[q, g])
            keep[q, g] = same or told_apart(word, old[q, g], changed[q, g])
        changed = torch.where(keep.unsqueeze(-1), changed, old)
    return None if torch.equal(changed, old) else replace(given, **{name: changed})


def seen(part: Declares, distance: str) -> set[str]:
    """The words whose change at that distance changes what the part makes of the watched token."""
    generator = torch.Generator().manual_seed(0)
    found: set[str] = set()
    # whether a token is dropped says less than a number, and a whole group is seldom empty: it
    # takes more trials to see that change
    rare = isinstance(part, TokenFilter | Aggregation)
    for _ in range(8 * TRIALS if rare else TRIALS):
        given, fresh = draw(generator), draw(generator)
        before = result(part, given)
        for word in WORDS:
            if word not in found:
                changed = change(given, fresh, word, distance)
                if changed is not None and not torch.equal(result(part, changed), before):
                    found.add(word)
    return found


def longest(found: set[str]) -> set[str]:
    """Of the words of one input the one that says most, which contains the others."""
    for words in LEAST.values():
        most = [word for word in words if word in found]
        found = found - set(most[:-1])
    return found


def derived(part: Declares) -> tuple[str, set[str]]:
    """Scope and reads, by experiment."""
    at = {distance: seen(part, distance) for distance in SCOPES[1:]}
    scope = max((distance for distance in at if at[distance]), key=SCOPES.index, default="token")
    return scope, longest(at["group"] | at["batch"])


# ---------------------------------------------------------------- every part


# of tests on a whole sample: bounds that the random inputs here lie on both sides of
BOUNDS: dict[type[Declares], dict[str, float]] = {
    SequenceMaskTIS: {"low": 0.8, "high": 1.2},
    RejectK3: {"threshold": 0.05},
    ClipCov: {"share": 0.3, "low": -0.02, "high": 1.0},
    OffPolicySequences: {"threshold": 0.0},
}


def every_part() -> Iterator[Declares]:
    """Every part, place and anchor that course.parts exports, with each setting of its flags."""
    abstract = {Part, KL, TokenFilter, *PART_KINDS.values()}
    for name in parts.__all__:
        made = getattr(parts, name)
        if not (inspect.isclass(made) and issubclass(made, Declares)) or made in abstract:
            continue
        flags = [f.name for f in fields(made) if isinstance(f.default, bool)]  # type: ignore[arg-type]
        for values in itertools.product((False, True), repeat=len(flags)):
            yield made(**BOUNDS.get(made, {}), **dict(zip(flags, values, strict=True)))
    yield K1(place=InReward())


ALL = list(every_part())


def test_all_parts_are_found() -> None:
    assert len({type(part) for part in ALL}) >= 38
    assert {kind for kind in PART_KINDS.values() for part in ALL if isinstance(part, kind)} == {
        *PART_KINDS.values()
    }


@pytest.mark.parametrize("part", ALL, ids=lambda part: getattr(part, "short", repr(part)))
def test_a_part_looks_exactly_as_far_as_it_says(part: Declares) -> None:
    scope, reads = derived(part)
    assert part.scope == scope
    if scope in ("group", "batch"):
        assert part.reads is not None
        if isinstance(part, Baseline):
            reads = {OF_ROLLOUT.get(word, word) for word in reads}
        assert set(part.reads) == reads


@pytest.mark.parametrize(
    "part",
    [part for part in ALL if isinstance(part, Baseline | SampleFilter)],
    ids=lambda part: part.short,
)
def test_what_a_comparing_part_makes_of_a_sample_follows_from_what_it_reads(part: Part) -> None:
    """So that the advantage of another sample, or whether it was dropped, is known by the class."""
    if part.scope in ("group", "batch"):
        assert part.reads is not None
        told = {  # who reads the mask reads its length
            less
            for words in LEAST.values()
            for most in set(words) & set(part.reads)
            for less in words[: words.index(most)]
        }
        assert longest(seen(part, "sample")) <= told | set(part.reads)


@pytest.mark.parametrize("part", ALL, ids=lambda part: getattr(part, "short", repr(part)))
def test_a_sample_without_a_token_is_seen_by_nobody(part: Declares) -> None:
    """Whatever is written where the second sample would be."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(TRIALS):
        given, fresh = draw(generator), draw(generator)
        given.mask[0, 1] = False
        before = result(part, given)
        for name in {*WORDS.values()} - {"mask", "greedy_reward"}:
            there = getattr(given, name).clone()
            there[0, 1] = getattr(fresh, name)[0, 1] if there.dtype == torch.bool else 1e9
            assert torch.equal(result(part, replace(given, **{name: there})), before), name


@pytest.mark.parametrize(
    "part",
    [part for part in ALL if isinstance(part, Baseline) and part.scope in ("group", "batch")],
    ids=lambda part: part.short,
)
@pytest.mark.parametrize("group", [2, 3, 7])
def test_equal_returns_compare_as_exactly_equal(part: Baseline, group: int) -> None:
    """b is that very number (less `BelowMean.by`), also in float32, where seven 0.7s do not have
    the mean 0.7.
    """
    returns = torch.full((2, group), 0.7)
    mask = torch.arange(4) <= torch.arange(group).unsqueeze(-1) % 3
    zero = torch.zeros(2, group, 4)
    dist = zero.unsqueeze(-1).expand(*zero.shape, 2)
    rollout = Rollout(zero, zero - 1, mask.expand(2, -1, -1), old_log_dist=dist - 1)
    want = (returns - getattr(part, "by", 0.0)).unsqueeze(-1)
    assert bool(
        (returns.unsqueeze(-1) - part(returns, rollout) == returns.unsqueeze(-1) - want).all()
    )


# ---------------------------------------------------------------- the experiment itself


def by_returns(look: Callable[[Tensor], Tensor]) -> type[Baseline]:
    @dataclass(frozen=True)
    class Made(Baseline):
        def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
            return look(returns)

    return Made


def test_the_experiment_finds_what_is_looked_at() -> None:
    """Parts with known answers, and none of ours among them."""

    @dataclass(frozen=True)
    class ByOthersValues(Scale):
        def __call__(self, advantage: Tensor, returns: Tensor, rollout: Rollout) -> Tensor:
            assert rollout.value is not None
            return advantage * rollout.value.sum((-2, -1), keepdim=True)

    @dataclass(frozen=True)
    class LongestOfTheBatch(Aggregation):
        def __call__(self, mask: Tensor, limit: int, dtype: torch.dtype) -> Tensor:
            return mask.to(dtype) / mask.sum(-1, keepdim=True).amax((-3, -2), keepdim=True)

    @dataclass(frozen=True)
    class NextToken(Credit):
        def __call__(self, reward: Tensor, rollout: Rollout) -> Tensor:
            return reward.roll(-1, -1)

    assert derived(by_returns(lambda returns: returns.amax(-1, keepdim=True).unsqueeze(-1))()) == (
        "group",
        {"returns"},
    )
    assert derived(by_returns(lambda returns: returns.unsqueeze(-1))()) == ("sample", set())
    assert derived(by_returns(lambda returns: returns.roll(1, -2).unsqueeze(-1))()) == (
        "batch",
        {"returns"},
    )
    assert derived(ByOthersValues()) == ("group", {"value"})
    assert derived(LongestOfTheBatch()) == ("batch", {"length"})
    assert derived(NextToken()) == ("sample", set())


# ---------------------------------------------------------------- a part of your own


def test_a_part_that_says_nothing_looks_at_everything() -> None:
    for kind in PART_KINDS.values():
        made = dataclass(frozen=True)(type("Mine", (kind,), {"__call__": lambda self, *_: None}))
        assert (made().scope, made().reads) == ("batch", None)
    assert (Declares().scope, Declares().reads) == ("batch", None)


class _Doubled:
    """A mixin that is no part."""

    def __call__(self, *given: Any) -> Any:
        return 2 * super().__call__(*given)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("parent", "method"),
    [
        (GroupMean, "__call__"),
        (GroupStd, "__call__"),
        (TokenMean, "__call__"),
        (SequenceSum, "samples"),
        (SequenceMean, "of_mine"),  # who calls it is not known
        (SequenceRatio, "log_sequence"),
        (K3, "estimate"),
        (K1, "shape_reward"),
        (InLoss, "weigh"),
        (Reference, "log_r"),
    ],
)
def test_who_overrides_what_is_computed_inherits_no_promise(
    parent: type[Declares], method: str
) -> None:
    mine = type("Mine", (parent,), {method: lambda self, *given: None})
    assert (mine().scope, mine().reads) == ("batch", None)
    assert type("Below", (mine,), {})().scope == "batch"
    again = type("Again", (mine,), {method: lambda self, *given: None, "scope": "group"})
    assert (again().scope, again().reads) == ("group", None)


def test_a_mixin_counts_as_overriding() -> None:
    doubled = type("Doubled", (_Doubled, GroupMean), {})
    assert (doubled().scope, doubled().reads) == ("batch", None)
    promised = type("Promised", (_Doubled, GroupMean), {"scope": "group", "reads": ("returns",)})
    assert (promised().scope, promised().reads) == ("group", ("returns",))


def test_who_only_shows_itself_differently_keeps_the_promise() -> None:
    shown = type("Shown", (GroupMean,), {"latex": property(lambda self: "b"), "__doc__": "Mine."})
    assert (shown().scope, shown().reads) == ("group", GroupMean().reads)

    @dataclass(frozen=True)
    class Wider(GroupStd):
        eps: float = 0.1

    assert (Wider().scope, Wider().reads, Wider().eps) == ("group", GroupStd().reads, 0.1)


def test_a_scope_may_depend_on_the_fields() -> None:
    assert SequenceSum().scope == "batch"
    assert SequenceSum(count_empty=True).scope == "token"
    assert SequenceMean(count_empty=True).scope == "sample"
