"""The microscope: exact J, ∇J, E[ĝ], bias and covariance of any estimator, by enumeration.

`Outcomes` lists all outcomes of a policy; an outcome is an answer with its reward. `microscope`
makes every possible group a run on the leading axis and passes it through the `freeze` and
`objective` that training uses. Nothing is sampled. `closed_forms` gives the same numbers in a
second way. Everything is in float64; log-probabilities and KL are in nats.
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

# "auto" lists every multiset up to this number of cells (runs × prompts × samples × columns), which
# takes less than a second
SMALL = 2_000_000


@dataclass(frozen=True)
class Microscope:
    """The exact mean and covariance of an estimator's gradient, next to the true gradient.

    - `objective` J and `gradient` ∇J [D] of the current policy;
    - `expected` E[ĝ] [D] and `covariance` [D, D] of the gradient of one batch, which has Q prompts
      with G samples each, drawn from the sampling policy. `covariance` is None if it was not
      requested or is too large;
    - `coefficient` [Q, K, T]: the expected coefficient of each token's score, and
      `dist_coefficient` [Q, K, T, V] that of each entry of `log_dist` (None if the estimator does
      not use it). E[ĝ] = Σ coefficient·score + Σ dist_coefficient·log_dist_score;
    - `value`: the expected value of the estimator's own objective on a batch. ĝ is the derivative
      of that objective, which need not be J: the value of a surrogate is not;
    - `method`: what was enumerated;
    - `trace`: the trace of the covariance if `covariance` is None and `total_variance` gave it;
      else NaN, and then `std` is NaN too.
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
        """E[ĝ] − ∇J [D]. eq:gradient-bias"""
        return self.expected - self.gradient

    @property
    def variance(self) -> float:
        """E‖ĝ − E[ĝ]‖², the trace of the covariance."""
        return self.trace if self.covariance is None else float(self.covariance.trace())

    @property
    def std(self) -> float:
        """√(trace of the covariance): the typical distance of one batch's gradient from E[ĝ]."""
        return math.sqrt(max(self.variance, 0.0)) if not math.isnan(self.variance) else math.nan

    @property
    def relative_bias(self) -> float:
        """‖E[ĝ] − ∇J‖ / ‖∇J‖; NaN or inf if ∇J = 0."""
        return float(self.bias.norm() / self.gradient.norm())

    @property
    def cosine(self) -> float:
        """Cosine of the angle between E[ĝ] and ∇J; NaN if one of them is 0."""
        return float(self.expected @ self.gradient / (self.expected.norm() * self.gradient.norm()))


def microscope(
    estimator: Estimator,
    outcomes: Outcomes,
    group_size: float,
    method: str = "auto",
    covariance: bool = True,
) -> Microscope:
    """Exact moments of the estimator's gradient on batches of Q prompts × `group_size` samples.

    `method` "multisets" lists every multiset of G outcomes of each prompt, and their product over
    prompts. "lumped" (for one prompt) lists the outcome of one sample together with the classes of
    the OTHER samples of its group: E[ĝ] = G·E[own coefficient × score]. Outcomes that no part can
    tell apart form one class, and the covariance comes from pairs of samples. "auto" uses multisets
    if they are few and lumps otherwise; it treats prompts separately if no part looks across
    prompts. Parts declare what they look at (`course.parts.base.Declares`). For a subclass of
    `Estimator`, which may compute anything, all multisets are listed.

    `group_size` math.inf gives the limit of large groups in closed form. There the group's mean is
    J, its std is that of all outcomes, and the covariance is 0.

    The estimator must not depend on the order of the samples. An adaptive β has its initial value.
    Raises `CourseError` if there is too much to list, or the limit of a part is not known.
    """
    require(
        method in ("auto", "multisets", "lumped"),
        "method",
        method,
        '"auto", "multisets" or "lumped"',
    )
    group = check_group_size(group_size, infinite=True)
    require(isinstance(estimator, Estimator), "estimator", estimator, "an Estimator")
    require(isinstance(outcomes, Outcomes), "outcomes", outcomes, "an Outcomes")
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
    """The moments of one view, and a description of what was listed."""
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
    """Combine the views: one of all prompts, or one per prompt, whose gradients are independent."""
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
