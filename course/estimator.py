"""The estimator: a policy-gradient objective put together from nine parts.

Every algorithm of the course is an estimator; neighbours on the ladder differ in one part.

objective = Σ w · (c · surrogate(ρ, log π, A) − β·kl + entropy_coef·H − value_coef·½(V − R)²)

The sum runs over the tokens [Q, G, T] of a rollout. c corrects for a sampler that is not π_old.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from course import equation
from course.errors import CourseError, require, require_number
from course.parts import (
    KL,
    AdaptiveEntropy,
    Aggregation,
    AllSamples,
    Baseline,
    Correction,
    Credit,
    NoBaseline,
    NoCorrection,
    NoKL,
    NoScale,
    RatioLevel,
    SampleFilter,
    Scale,
    ScoreFunction,
    SequenceSum,
    Surrogate,
    TokenFilter,
    TokenRatio,
    Tokens,
    TotalReturn,
)
from course.parts.base import Part, ask, ask_factor, ask_tensor, wrong_answer
from course.rollout import Policy, Rollout

PART_KINDS: dict[str, type[Part]] = {
    "credit": Credit,
    "baseline": Baseline,
    "scale": Scale,
    "correction": Correction,
    "ratio": RatioLevel,
    "surrogate": Surrogate,
    "kl": KL,
    "aggregation": Aggregation,
    "sample_filter": SampleFilter,
}
CHANGED = "#c45500"  # of what differs from the rung below; 4.5 : 1 on white


@dataclass(frozen=True)
class Frozen:
    """What an estimator computes once per rollout, constant during its updates.

    `advantage` A and `weight` w are [..., Q, G, T] and 0 where the mask is False. `target` [..., Q,
    G, T] is the return that a critic regresses on. A minibatch (`prompts`) keeps the weights of the
    full batch, so the minibatches' objectives add up to the batch's: eq:minibatches-add.
    `is_whole` says that every token is chosen and has a weight, so that nothing need be selected;
    False is never wrong. `correction` c [..., Q, G, T] weighs the surrogate, 0 where the mask is
    False; None means 1. `entropy_coef` [...] is the coefficient of an adaptive entropy bonus, which
    the learner writes; None means its initial one.
    """

    rollout: Rollout
    advantage: Tensor
    weight: Tensor
    target: Tensor
    is_whole: bool = False
    correction: Tensor | None = None
    entropy_coef: Tensor | None = None

    @cached_property
    def felt(self) -> Tensor:
        """[..., Q, G, T] bool: the chosen tokens with a weight; no other token is used."""
        mask = self.rollout.mask
        return mask if self.is_whole else mask & (self.weight != 0)

    @cached_property
    def samples(self) -> Tensor:
        """[..., Q, G, T] bool: the chosen tokens of the samples that have a token with a weight."""
        mask = self.rollout.mask
        return mask if self.is_whole else mask & (self.weight != 0).any(-1, keepdim=True)

    def prompts(self, index: Tensor) -> Frozen:
        """The minibatch of the prompts `index` [n]."""
        axis = len(self.rollout.runs)
        advantage, weight, target = (
            tensor.index_select(axis, index)
            for tensor in (self.advantage, self.weight, self.target)
        )
        correction = self.correction
        if correction is not None:
            correction = correction.index_select(axis, index)
        kept = self.is_whole, correction, self.entropy_coef
        return Frozen(self.rollout.prompts(index), advantage, weight, target, *kept)


@dataclass(frozen=True)
class Estimator:
    """A policy-gradient objective, made of nine swappable parts. The defaults are REINFORCE.

    `entropy_coef` adds an entropy bonus (needs `policy.log_dist`) and may be an `AdaptiveEntropy`.
    `value_coef` adds the critic's squared error (needs `policy.value`). `value_clip` c holds the
    critic near the values of the rollout (needs `rollout.value`): its error is then the larger of
    V's and that of V cut to V_old ± c, so that it is flat where V has moved further than c towards
    R. `below` is the estimator that `replace` made this one from; comparisons ignore it. Raises
    `CourseError` if a part or coefficient is of the wrong kind, and `Clash` if two parts cannot
    work together.
    """

    credit: Credit = TotalReturn()
    baseline: Baseline = NoBaseline()
    scale: Scale = NoScale()
    correction: Correction = NoCorrection()
    ratio: RatioLevel = TokenRatio()
    surrogate: Surrogate = ScoreFunction()
    kl: KL = NoKL()
    aggregation: Aggregation = SequenceSum()
    sample_filter: SampleFilter = AllSamples()
    entropy_coef: float | AdaptiveEntropy = 0.0
    value_coef: float = 0.0
    value_clip: float | None = None
    below: Estimator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, kind in PART_KINDS.items():
            part = getattr(self, name)
            require(
                isinstance(part, kind),
                f"estimator.{name}",
                part,
                f"a {kind.__name__} of course.parts, or your own subclass of it",
            )
        below = self.below
        fits = below is None or isinstance(below, Estimator)
        require(fits, "estimator.below", below, "an Estimator or None")
        adaptive = isinstance(self.entropy_coef, AdaptiveEntropy)
        for name in ("value_coef",) if adaptive else ("entropy_coef", "value_coef"):
            require_number(f"estimator.{name}", getattr(self, name), "a number ≥ 0", at_least=0)
        allowed = "None or a number > 0, in units of reward"
        require_number("estimator.value_clip", self.value_clip, allowed, above=0, optional=True)
        _check_needs(self.parts)
        for part in self.parts.values():
            part.check(self.parts)

    # ------------------------------------------------------------------ the mathematics

    def freeze(self, rollout: Rollout) -> Frozen:
        """Advantages (eq:advantage-of-parts), weights and returns of a rollout, computed once.

        Raises `CourseError` if the rollout lacks a field that a part needs, or has a NaN.
        """
        rollout = rollout.widened()
        self._check_rollout(rollout)
        mask, shape = rollout.mask, rollout.reward.shape
        reward = self._ask("kl", shape, self.kl.shape_reward, rollout)
        credit = self._ask("credit", shape, self.credit, reward, rollout)
        target = ask("credit", self.credit, self.credit.target, reward, rollout)
        if target is None:
            target = credit
        target = self._ask("credit", shape, lambda: target)
        returns = first_chosen(credit, mask)
        advantage = credit - self._baseline(returns, rollout)
        # eq:advantage-of-a-sample
        advantage = self._ask("scale", shape, self.scale, advantage, returns, rollout)
        # the filter sets weights to 0; advantages are computed from all samples
        counted = self._counted(rollout)
        limit = rollout.limit or shape[-1]
        weight = self._ask("aggregation", shape, self.aggregation, counted, limit, reward.dtype)
        return Frozen(
            rollout,
            rollout.select(mask, advantage).detach(),
            weight,
            target.detach(),
            is_whole=rollout.is_whole and float(weight.amin()) > 0,
            correction=self._correction(rollout),
        )

    def objective(self, policy: Policy, frozen: Frozen) -> Tensor:
        """The objective of each run [...], which gradient ascent maximises: eq:one-objective.

        It is differentiable with respect to the policy's tensors. The objectives of minibatches add
        up to that of the batch, unless a filter compares the tokens of a batch. If a ratio
        overflows its float type, the run's objective is ±inf or NaN; `Learner` then stops and
        `loss` raises.
        """
        rollout, weight = frozen.rollout, frozen.weight
        policy.check(rollout)
        policy = policy.widened()
        shape = rollout.reward.shape
        # tokens without a weight may hold anything, also NaN: replaced by 0 before any arithmetic
        felt = frozen.felt
        log_prob = rollout.select(felt, policy.log_prob)
        used = frozen.samples if self.surrogate.uses_mask else felt
        log_ratio = rollout.select(used, self.log_ratio(policy, rollout))
        kept = self._kept(policy, frozen, log_ratio, log_prob)
        gain = self._gain(log_ratio, log_prob, frozen, kept)
        penalty = ask("kl", self.kl, self.kl.penalty, policy, rollout, log_ratio, felt)
        if penalty is not None:
            gain = gain - self._ask("kl", shape, lambda: penalty)
        if self.entropy_coef:  # eq:entropy-bonus
            gain = gain + self._entropy_coefficient(frozen) * policy.entropy_where(felt)
        if self.value_coef:  # eq:critic-regression
            gain = gain - self.value_coef * 0.5 * self._critic_error(policy, frozen, felt)
        return (weight * rollout.select(felt, gain)).sum((-3, -2, -1))

    def _gain(
        self, log_ratio: Tensor, log_prob: Tensor, frozen: Frozen, kept: Tensor | None
    ) -> Tensor:
        """c · surrogate [..., Q, G, T], from log ρ and log π; 0 where `kept` is False."""
        shape, correction = log_ratio.shape, frozen.correction
        if correction is not None:
            kept = correction != 0 if kept is None else kept & (correction != 0)
        if kept is not None and self.surrogate.scope == "token":
            # what is dropped never enters an exp; a surrogate of whole samples needs every token
            log_ratio, log_prob = (
                frozen.rollout.select(kept, each) for each in (log_ratio, log_prob)
            )
        seen = [log_ratio, log_prob, frozen.advantage]
        seen += [frozen.samples] if self.surrogate.uses_mask else []
        gain = self._ask("surrogate", shape, self.surrogate, *seen)
        if correction is not None:
            gain = correction * gain
        return gain if kept is None else frozen.rollout.select(kept, gain)

    @torch.no_grad()
    def _kept(
        self, policy: Policy, frozen: Frozen, log_ratio: Tensor, log_prob: Tensor
    ) -> Tensor | None:
        """[..., Q, G, T] bool: the tokens that a filter on tokens keeps; None means all.

        `policy` is the current one, `log_ratio` the log ρ that enters the surrogate.
        """
        part, rollout, felt = self.sample_filter, frozen.rollout, frozen.felt
        if not isinstance(part, TokenFilter):
            return None
        shape, advantage = rollout.mask.shape, rollout.select(felt, frozen.advantage)
        sampler = rollout.sampler_log_prob
        moved, drift = (
            rollout.select(felt, policy.log_prob - old)
            for old in (rollout.log_prob, rollout.log_prob if sampler is None else sampler)
        )
        asked = self.surrogate.clipped, log_ratio, log_prob, advantage
        flat = ask_tensor("surrogate", self.surrogate, shape, *asked, flags=True)
        needed = "log_dist" in part.policy_needs
        entropy = policy.entropy_where(felt).expand(shape) if needed else None
        seen = Tokens(felt, advantage, log_prob, moved, drift, flat, entropy)
        return ask_tensor("sample_filter", part, shape, part.tokens, seen, flags=True)

    def loss(self, policy: Policy, rollout: Rollout) -> Tensor:
        """The loss of each run [...]: `freeze`, then minus the `objective`.

        Raises `CourseError` if it is NaN.
        """
        loss = -self.objective(policy, self.freeze(rollout))
        if bool(loss.isnan().any()):
            raise CourseError(
                "loss: got nan; allowed is a policy whose log-probabilities are numbers, and near"
                f" enough to the rollout's that ρ fits into {loss.dtype}"
            )
        return loss

    def log_ratio(self, policy: Policy, rollout: Rollout) -> Tensor:
        """log ρ [..., Q, G, T], 0 where the mask is False (`eq:importance-ratio`)."""
        difference = policy.log_prob - rollout.log_prob
        log_ratio = rollout.select(rollout.mask, difference)
        return self._ask("ratio", rollout.reward.shape, self.ratio, log_ratio, rollout.mask)

    def _entropy_coefficient(self, frozen: Frozen) -> Tensor | float:
        """The coefficient of the entropy bonus; an adaptive one as [..., 1, 1, 1]."""
        coefficient = self.entropy_coef
        if not isinstance(coefficient, AdaptiveEntropy):
            return coefficient
        if frozen.entropy_coef is None:
            return coefficient.initial
        return frozen.entropy_coef[..., None, None, None]

    def _critic_error(self, policy: Policy, frozen: Frozen, felt: Tensor) -> Tensor:
        """(V − R)² [..., Q, G, T], 0 where `felt` is False; clipped if there is a `value_clip`."""
        if policy.value is None:
            raise CourseError(
                "policy.value: got None; allowed is the critic's values, which value_coef > 0 needs"
            )
        rollout = frozen.rollout
        value, target = (rollout.select(felt, x) for x in (policy.value, frozen.target))
        error = (value - target) ** 2
        if self.value_clip is None:
            return error
        if rollout.value is None:
            raise CourseError(
                "rollout.value: got None; allowed is the critic's values, which value_clip needs"
            )
        old = rollout.select(felt, rollout.value)
        near = value.clamp(old - self.value_clip, old + self.value_clip)
        return torch.maximum(error, (near - target) ** 2)

    # ------------------------------------------------------------------ comparing and showing

    @property
    def parts(self) -> dict[str, Part]:
        """The nine parts: name of the place → part."""
        return {name: getattr(self, name) for name in PART_KINDS}

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields that its parts need, such as "rollout.value", "policy.log_dist"."""
        parts = self.parts.values()
        names = {f"rollout.{name}" for part in parts for name in part.needs}
        names |= {f"policy.{name}" for part in parts for name in part.policy_needs}
        names |= {"policy.log_dist"} if self.entropy_coef else set()
        names |= {"rollout.value"} if self.value_coef and self.value_clip else set()
        return frozenset(names | ({"policy.value"} if self.value_coef else set()))

    @property
    def uses_ratio(self) -> bool:
        """Whether ρ appears in the objective."""
        return self.surrogate.uses_ratio or self.kl.place.uses_ratio

    def diff(self, other: Estimator) -> dict[str, tuple[Any, Any]]:
        """The fields in which two estimators differ: name → (mine, theirs)."""
        names = [f.name for f in fields(self) if f.compare]
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in names
            if getattr(self, name) != getattr(other, name)
        }

    @property
    def changed(self) -> set[str]:
        """The fields replaced since the rung below; empty for the first rung."""
        return set() if self.below is None else set(self.diff(self.below))

    def latex(self, colour: str | None = CHANGED) -> str:
        """The objective in LaTeX, put together from the parts' own formulas.

        What differs from the rung below is in `colour` (None: no colour).
        """
        return equation.latex(self, self.changed, colour)

    def text(self) -> str:
        """The objective on one line, for a terminal."""
        return equation.text(self)

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        return self.text()

    # ------------------------------------------------------------------ checks

    def _check_rollout(self, rollout: Rollout) -> None:
        rollout.check_values()
        for name, part in self._needed:
            if getattr(rollout, name) is None:
                raise CourseError(
                    f"rollout.{name}: got None; allowed is a tensor, since {part.short} needs it"
                )

    @cached_property
    def _needed(self) -> list[tuple[str, Part]]:
        """The optional fields of the rollout, each with a part that needs it."""
        return [(name, part) for part in self.parts.values() for name in part.needs]

    def _ask(
        self, place: str, shape: torch.Size, how: Callable[..., object], *arguments: object
    ) -> Tensor:
        """What the part at `place` returns, checked to be a tensor of exactly this shape."""
        return ask_tensor(place, getattr(self, place), shape, how, *arguments)

    def _baseline(self, returns: Tensor, rollout: Rollout) -> Tensor | float:
        """b: a number, or a tensor whose axes are those of the credit or 1.

        Raises `CourseError` for anything else.
        """
        shape = rollout.reward.shape
        return ask_factor("baseline", self.baseline, shape, self.baseline, returns, rollout)

    def _correction(self, rollout: Rollout) -> Tensor | None:
        """c [..., Q, G, T], 0 where the mask is False; None where it is 1 everywhere."""
        weight = ask("correction", self.correction, self.correction, rollout)
        if weight is None:
            return None
        weight = self._ask("correction", rollout.reward.shape, lambda: weight)
        return rollout.select(rollout.mask, weight).detach()

    def _counted(self, rollout: Rollout) -> Tensor:
        """[..., Q, G, T] bool: the chosen tokens of the samples that the filter keeps."""
        kept = ask("sample_filter", self.sample_filter, self.sample_filter, rollout)
        if kept is None:
            return rollout.mask
        shape = rollout.mask.shape[:-1]
        if isinstance(kept, Tensor) and kept.dtype == torch.bool and kept.shape == shape:
            return rollout.mask & kept.unsqueeze(-1)
        allowed = f"None or a torch.bool tensor of shape {tuple(shape)}, True where it counts"
        raise wrong_answer("sample_filter", self.sample_filter, kept, allowed)


def _check_needs(parts: Mapping[str, Part]) -> None:
    """Raise `CourseError` if a part needs a field that no rollout or policy has."""
    for place, part in parts.items():
        for names, kind in ((part.needs, Rollout), (part.policy_needs, Policy)):
            known = [f.name for f in fields(kind)]
            for name in names:
                allowed = f"one of the fields of a {kind.__name__}: {', '.join(known)}"
                require(name in known, f"estimator.{place}: needs of {part.short}", name, allowed)


def replace(estimator: Estimator, **parts: Any) -> Estimator:
    """A copy of `estimator` with the given parts swapped: one step up the ladder.

    The copy remembers the original as `below`. Raises `CourseError` for an unknown field.
    """
    known = [f.name for f in fields(Estimator)]
    for name in parts:
        require(name in known, "replace", name, f"one of {', '.join(known[:-1])}")
    return dataclasses.replace(estimator, **parts, below=estimator)


def first_chosen(credit: Tensor, mask: Tensor) -> Tensor:
    """The return of each sample [..., Q, G]: the credit of its first chosen token."""
    if credit.shape[-1] == 1:
        return credit[..., 0]
    first = mask.to(torch.int8).argmax(-1, keepdim=True)
    return credit.gather(-1, first).squeeze(-1)


def uses_reference(estimator: Estimator) -> bool:
    """Whether this estimator has a KL to a reference policy, which the problem must then keep."""
    return any(name.startswith("rollout.ref_") for name in estimator.needs)


def uses_critic(estimator: Estimator) -> bool:
    """Whether this estimator needs a critic."""
    return bool(estimator.needs & {"rollout.value", "policy.value"})
