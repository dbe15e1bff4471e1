"""Correction: a weight for samples that another policy drew than the one that scores them.

μ is the policy that really sampled (another engine, another precision, weights some updates old,
top-p), π_old the learner's own policy on the same tokens. Their ratio κ = π_old/μ is computed once
per rollout and has no gradient; ρ = π/π_old stays the ratio that the updates move and clip. Every
correction is a function of κ that trades bias for variance.

With `TokenTIS(cap=None)`, the clip becomes decoupled PPO, κ·min(ρA, clip(ρ)A) (Hilton et al. 2021):
the behaviour policy μ and the proximal policy π_old are two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from course.errors import require, require_flag, require_number
from course.parts.base import Part
from course.parts.kl import k3
from course.rollout import Rollout


@dataclass(frozen=True)
class Correction(Part):
    """Rollout → the weight c [..., Q, G, T] of each token's surrogate; None means 1 everywhere.

    It sees the rollout alone, so c is constant during the updates. It multiplies the surrogate, not
    the KL penalty, the entropy bonus or the critic's error: so do TRL and verl. The divisors of the
    aggregation stay as they are, also where c is 0. `defines` says what κ or another symbol of the
    formula means, in LaTeX; `says` the same for a terminal.
    """

    defines: ClassVar[str] = r"\kappa_{i,t}=\frac{\pi_{\text{old}}(o_{i,t})}{\mu(o_{i,t})}"
    says: ClassVar[str] = "κ = π_old/μ"

    def __call__(self, rollout: Rollout) -> Tensor | None:
        raise NotImplementedError


def log_kappa(rollout: Rollout) -> Tensor:
    """log κ = log π_old − log μ of each token [..., Q, G, T], in nats; 0 where the mask is False.

    It is 0 everywhere if the rollout has no `sampler_log_prob`, for then π_old sampled.
    """
    if rollout.sampler_log_prob is None:
        return torch.zeros_like(rollout.log_prob)
    return rollout.select(rollout.mask, rollout.log_prob - rollout.sampler_log_prob)


@dataclass(frozen=True)
class NoCorrection(Correction):
    """Weight 1: whoever sampled is taken for π_old."""

    scope, implied = "token", True
    symbol = "1"
    plain = "1"
    defines, says = "", ""

    def __call__(self, rollout: Rollout) -> None:
        return None


# ---------------------------------------------------------------- truncated


@dataclass(frozen=True)
class _Truncated(Correction):
    cap: float | None = 2.0

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}.cap"
        require_number(name, self.cap, "a number > 0 or None", above=0, optional=True)

    def _cut(self, kappa: Tensor) -> Tensor:
        return kappa if self.cap is None else kappa.clamp(max=self.cap)

    def _show(self, latex: str) -> str:
        return latex if self.cap is None else rf"\min({latex},{self.cap:g})"

    def _say(self, text: str) -> str:
        return text if self.cap is None else f"min({text}, {self.cap:g})"


@dataclass(frozen=True)
class TokenTIS(_Truncated):
    """min(κ, C) of each token: truncated importance sampling (Yao et al. 2025; Ionides 2008).

    `cap` None leaves κ as it is. Each token is reweighted by its own κ alone. With several tokens
    that is biased even without a cap, since the tokens before it came from μ, too.
    """

    scope = "token"

    @property
    def latex(self) -> str:
        return self._show(r"\kappa_{i,t}")

    @property
    def text(self) -> str:
        return self._say("κ")

    def __call__(self, rollout: Rollout) -> Tensor:
        return self._cut(log_kappa(rollout).exp())


@dataclass(frozen=True)
class SequenceTIS(_Truncated):
    """min(Π_t κ_t, C), one weight for all tokens of a sample.

    `cap` None gives the importance weight of the whole answer, which is unbiased wherever μ > 0;
    its variance grows exponentially with the length (`eq:answer-weight`). verl
    calls it rollout_is="sequence", TRL "sequence_truncate".
    """

    scope = "sample"
    defines = r"\kappa_i=\prod_t\frac{\pi_{\text{old}}(o_{i,t})}{\mu(o_{i,t})}"
    says = "κ = Π π_old/μ"

    @property
    def latex(self) -> str:
        return self._show(r"\kappa_i")

    @property
    def text(self) -> str:
        return self._say("κ")

    def __call__(self, rollout: Rollout) -> Tensor:
        return self._cut(_whole(log_kappa(rollout)).exp())


def _whole(log_weight: Tensor) -> Tensor:
    """The sum over the tokens of a sample, on each of them: [..., T] → the same shape."""
    return log_weight.sum(-1, keepdim=True).expand_as(log_weight)


def _typical(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over a sample's chosen tokens, on each token; `values` are 0 outside the mask."""
    mean = values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(values)


# ---------------------------------------------------------------- masked


@dataclass(frozen=True)
class _Masked(Correction):
    low: float = 0.5
    high: float | None = 5.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_number(f"{name}.low", self.low, "a number ≥ 0", at_least=0)
        require_number(f"{name}.high", self.high, "a number > 0 or None", above=0, optional=True)
        fits = self.high is None or self.low <= self.high
        require(fits, f"{name}.low", self.low, f"a number up to {name}.high = {self.high}")

    def _inside(self, kappa: Tensor) -> Tensor:
        """Whether low ≤ κ ≤ high."""
        above = kappa >= self.low
        return above if self.high is None else above & (kappa <= self.high)

    def _keep(self, inside: Tensor, kappa: Tensor) -> Tensor:
        return torch.where(inside, kappa, torch.zeros_like(kappa))

    def _show(self, weight: str, tested: str) -> str:
        upper = "" if self.high is None else rf"\le{self.high:g}"
        return rf"{weight}\,\mathbb 1[{self.low:g}\le {tested}{upper}]"

    def _say(self, weight: str, tested: str) -> str:
        upper = "" if self.high is None else f" ≤ {self.high:g}"
        return f"{weight}·1[{self.low:g} ≤ {tested}{upper}]"


@dataclass(frozen=True)
class TokenMIS(_Masked):
    """κ·1[low ≤ κ ≤ high] of each token: masked importance sampling, IcePop.

    Tokens outside are dropped, where truncation would keep them with a smaller weight. `high` None
    is no upper bound. TRL calls it "token_mask". Source: Ling Team 2025 (Ring-1T, 2510.18855).
    """

    scope = "token"

    @property
    def latex(self) -> str:
        return self._show(r"\kappa_{i,t}", r"\kappa_{i,t}")

    @property
    def text(self) -> str:
        return self._say("κ", "κ")

    def __call__(self, rollout: Rollout) -> Tensor:
        kappa = log_kappa(rollout).exp()
        return self._keep(self._inside(kappa), kappa)


@dataclass(frozen=True)
class SequenceMIS(_Masked):
    """κ·1[low ≤ κ ≤ high] with κ = Π_t κ_t: a whole sample is dropped, or weighted by it.

    TRL calls it "sequence_mask"; its defaults, no lower bound and 3, are those here.
    """

    scope = "sample"
    low: float = 0.0
    high: float | None = 3.0
    defines = SequenceTIS.defines
    says = SequenceTIS.says

    @property
    def latex(self) -> str:
        return self._show(r"\kappa_i", r"\kappa_i")

    @property
    def text(self) -> str:
        return self._say("κ", "κ")

    def __call__(self, rollout: Rollout) -> Tensor:
        kappa = _whole(log_kappa(rollout)).exp()
        return self._keep(self._inside(kappa), kappa)


@dataclass(frozen=True)
class SequenceMaskTIS(_Masked):
    """κ_t·1[low ≤ exp(mean_t log κ_t) ≤ high]: samples that drifted are dropped, tokens weighted.

    The test is on the geometric mean of a sample's κ, so it does not depend on its length; hence
    the narrow bounds. NeMo-RL calls it seq-mask-tis.
    """

    scope = "sample"
    low: float = 0.999
    high: float | None = 1.002

    @property
    def latex(self) -> str:
        return self._show(r"\kappa_{i,t}", r"(\textstyle\prod_t\kappa_{i,t})^{1/|o_i|}")

    @property
    def text(self) -> str:
        return self._say("κ", "(Π κ)^(1/|o|)")

    def __call__(self, rollout: Rollout) -> Tensor:
        log_weight = log_kappa(rollout)
        typical = _typical(log_weight, rollout.mask).exp()
        return self._keep(self._inside(typical), log_weight.exp())


@dataclass(frozen=True)
class RejectK3(Correction):
    """1[mean_t k3(κ_t) ≤ threshold]: a sample is dropped where it drifted, and not reweighted.

    k3 = κ − 1 − log κ estimates KL(μ‖π_old) in nats and is never negative, so opposite drifts do
    not cancel as in the geometric mean. `largest` tests the largest k3 of the sample instead of
    the mean. Source: Li et al. 2025 (Trust Region Masking, 2512.23075); verl's
    seq_mean_k3 and seq_max_k3.
    """

    scope = "sample"
    threshold: float = 0.01
    largest: bool = False

    def __post_init__(self) -> None:
        require_number("RejectK3.threshold", self.threshold, "a number ≥ 0, in nats", at_least=0)
        require_flag("RejectK3.largest", self.largest)

    @property
    def latex(self) -> str:
        over = r"\max" if self.largest else r"\operatorname{mean}"
        return rf"\mathbb 1[{over}_t(\kappa_{{i,t}}-1-\log\kappa_{{i,t}})\le {self.threshold:g}]"

    @property
    def text(self) -> str:
        return f"1[{'max' if self.largest else 'mean'} k3(κ) ≤ {self.threshold:g}]"

    def __call__(self, rollout: Rollout) -> Tensor:
        drift = k3(log_kappa(rollout))  # 0 outside the mask
        if self.largest:
            found = drift.amax(-1, keepdim=True).expand_as(drift)
        else:
            found = _typical(drift, rollout.mask)
        return (found <= self.threshold).to(drift.dtype)
