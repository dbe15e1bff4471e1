"""The microscope: exact J, ∇J, E[ĝ], bias and covariance of any estimator, by listing everything
that can happen.

List the outcomes of a policy (an answer and the reward it met) once, as `Outcomes`; `microscope`
then asks the estimator itself: every possible group becomes one run on the leading axis and goes
through the very same `freeze` and `objective` that training uses. Nothing is sampled.
`closed_forms` is the second way to the same numbers. All of it is in float64; log-probabilities and
KL are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course.errors import require
from course.estimator import Estimator
from course.exact import multisets
from course.exact.counting import check_group_size
from course.exact.limit import in_the_limit
from course.exact.lumps import Lumps, by_lumps
from course.exact.outcomes import Outcomes, gradient, objective
from course.exact.view import Moments, View, refuse_above_largest

# cells (runs × prompts × samples × columns) up to which "auto" lists every multiset: within a
# second
SMALL = 2_000_000


@dataclass(frozen=True)
class Microscope:
    """What an estimator does on average, exactly, beside what it should do.

    `objective` J and `gradient` ∇J [D] are the current policy's; `expected` E[ĝ] and `covariance`
    [D, D] are of the gradient of one batch (Q prompts, G samples each) drawn from the sampling
    policy. `coefficient` [Q, K, T] is the expected coefficient of each token's score, and
    `dist_coefficient` [Q, K, T, V] that of each entry of `log_dist` (None where the estimator does
    not use it): E[ĝ] = Σ coefficient·score + Σ dist_coefficient·log_dist_score. `covariance` is
    None where it was not asked for or is too large to list; then `trace` is its trace where that is
    known (`total_variance`), else NaN, and so is `std`. `value` is the expected value of the
    estimator's own objective for a batch, of which ĝ is the derivative; it need not be J, and a
    surrogate's is not. `method` says what was listed.
    """

    objective: float
    gradient: Tensor
    expected: Tensor
    covariance: Tensor | None
    coefficient: Tensor
    dist_coefficient: Tensor | None
    method: str
    value: float
    trace: float = math.nan

    @property
    def bias(self) -> Tensor:
        """[D] E[ĝ] − ∇J. eq:gradient-bias"""
        return self.expected - self.gradient

    @property
    def variance(self) -> float:
        """E‖ĝ − E[ĝ]‖², the trace of the covariance."""
        return self.trace if self.covariance is None else float(self.covariance.trace())

    @property
    def std(self) -> float:
        """Root of the trace of the covariance: how far one batch's gradient is from E[ĝ]."""
        return math.sqrt(max(self.variance, 0.0)) if not math.isnan(self.variance) else math.nan

    @property
    def relative_bias(self) -> float:
        """‖E[ĝ] − ∇J‖ / ‖∇J‖; NaN or inf where ∇J = 0."""
        return float(self.bias.norm() / self.gradient.norm())

    @property
    def cosine(self) -> float:
        """Cosine between E[ĝ] and ∇J; NaN where one of them is 0."""
        return float(self.expected @ self.gradient / (self.expected.norm() * self.gradient.norm()))


def microscope(
    estimator: Estimator,
    outcomes: Outcomes,
    group_size: float,
    method: str = "auto",
    covariance: bool = True,
) -> Microscope:
    """Exact moments of the estimator's gradient for batches of Q prompts with `group_size` samples
    each.

    "multisets" lists every multiset of G outcomes of each prompt, and their product over prompts.
    "lumped" (one prompt) lists the sample's own outcome and what the OTHERS of its group look like
    to it: E[ĝ] = G·E[own coefficient × score], with outcomes that no part can tell apart counted as
    one class; covariance from pairs. "auto" takes the multisets where they are few, else lumps, and
    takes prompts apart where no part looks across them. What a part looks at, it declares itself
    (`course.parts.base.Declares`). An estimator of a class derived from `Estimator`, which may
    compute anything, is always listed.

    `group_size` math.inf is the limit of large groups, in closed form: the group's mean is J then,
    its std that of all outcomes, and a batch has no spread. Parts whose limit is not known are
    refused by name.

    The order of the samples must not matter to the estimator; an adaptive β stands at its initial
    value. Raises `CourseError` where there is too much to list, with numbers.
    """
    require(
        method in ("auto", "multisets", "lumped"),
        "method",
        method,
        '"auto", "multisets" or "lumped"',
    )
    group = check_group_size(group_size, infinite=True)
    if group == math.inf:
        require(method == "auto", "method", method, '"auto" where G is infinite: nothing is listed')
        view, moments = in_the_limit(estimator, outcomes)
        return _finish([view], [(moments, "the limit of large groups")])
    covariance = covariance and outcomes.score.shape[-1] > 0
    view = View(estimator, outcomes)
    if method == "lumped":
        require(
            view.prompts == 1,
            "method",
            f"'lumped' for {view.prompts} prompts",
            "one prompt, since parts may look across prompts",
        )
        require(
            not view.listed_only,
            "method",
            f"'lumped' for a {type(estimator).__name__}",
            '"multisets" or "auto", since a class derived from Estimator may compute anything',
        )
    cells, what = multisets.cells(view, int(group))
    apart = view.prompts > 1 and method == "auto" and cells > SMALL
    if apart and not view.looks_across_prompts():
        alone = [View(estimator, outcomes, q) for q in range(view.prompts)]
        return _finish(alone, [_moments(each, int(group), method, covariance) for each in alone])
    if apart:
        refuse_above_largest(cells, f"{what} per prompt, and a part looks across prompts")
    return _finish([view], [_moments(view, int(group), method, covariance)])


def _moments(view: View, group: int, method: str, covariance: bool) -> tuple[Moments, str]:
    """The moments of what one view looks at, and what was listed."""
    cells, what = multisets.cells(view, group)
    lumps = None
    if method == "lumped" or (method == "auto" and cells > SMALL and view.may_lump):
        lumps = Lumps.of(view)
        if method == "lumped" or lumps.cells(group) < cells:
            lumps.refuse_too_many(group)
            listed = f"lumped: {lumps.runs(group):,} compositions"
            return by_lumps(view, lumps, group, covariance), listed
    refuse_above_largest(cells, what)
    listed = f"{multisets.count(view, group):,} multisets"
    return multisets.by_multisets(view, group, covariance), listed


def _finish(views: list[View], found: list[tuple[Moments, str]]) -> Microscope:
    """All prompts at once, or each by itself: then gradients are independent and add up."""
    each, listed = [moments for moments, _ in found], sorted({what for _, what in found})
    outcomes, tokens = views[0].outcomes, views[0].tokens
    coefficient = torch.cat([one.coefficient for one in each])
    covariances = [one.covariance for one in each if one.covariance is not None]
    expected = [
        torch.einsum("qkp,qkpd->d", one.coefficient, view.scores())
        for view, one in zip(views, each, strict=True)
    ]
    by_dist = coefficient[..., tokens:].unflatten(-1, (tokens, -1)) if views[0].uses_dist else None
    return Microscope(
        objective=objective(outcomes),
        gradient=gradient(outcomes),
        expected=torch.stack(expected).sum(0),
        covariance=torch.stack(covariances).sum(0) if len(covariances) == len(each) else None,
        coefficient=coefficient[..., :tokens],
        dist_coefficient=by_dist,
        method=("prompt by prompt: " if len(views) > 1 else "") + " + ".join(listed),
        value=sum(one.value for one in each),
    )
