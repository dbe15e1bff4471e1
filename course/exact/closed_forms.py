"""Closed forms: a second, independent way to the numbers of the microscope."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from course.arguments import require_type, typed
from course.errors import require, require_finite, require_floats, require_number
from course.exact.counting import check_group_size
from course.exact.outcomes import Outcomes, log_reference_ratio, probability


def group_std_weight(
    p: Tensor | float, group_size: float, ddof: int = 0, eps: float = 0.0
) -> Tensor:
    """The weight w_G(p) in E[ĝ] = w_G(p) ∇p, with group mean and std: p [...] → [...].

    Rewards are Bernoulli with success probability p, samples are on policy.

    w = E[v/(√(v·G/(G − ddof)) + eps)] / (p(1−p)) with v = M(G−M)/G² and M ~ Bin(G, p) right
    answers. Zero-variance groups contribute 0. For G = ∞, w = 1/(√(p(1−p)) + eps). `p` is from 0 to
    1; at both ends w is the limit. `group_size` is ≥ 2 or math.inf. Source: Davis & Recht 2025
    (2510.13651) for G = ∞; Mroueh 2025 (2503.06639); here for every G. `eq:group-std-weight`
    """
    p = _probability(p)
    check_group_size(group_size, 2, infinite=True)
    require_number("ddof", ddof, "0 or 1", at_least=0, at_most=1, whole=True)
    require_number("eps", eps, "a number ≥ 0", at_least=0)
    if group_size == math.inf:
        return 1 / ((p * (1 - p)).sqrt() + eps)
    size = int(group_size)
    n = torch.arange(1, size, dtype=torch.float64, device=p.device)
    v = n * (size - n) / size**2
    # P(M = n)/(p(1−p)) with the factors cancelled, so that p = 0 and p = 1 need no special case
    log_ways = math.lgamma(size + 1) - torch.lgamma(n + 1) - torch.lgamma(size - n + 1)
    q = p.unsqueeze(-1)
    weight = (log_ways + torch.xlogy(n - 1, q) + torch.xlogy(size - n - 1, 1 - q)).exp()
    return (weight * v / ((v * (size / (size - ddof))).sqrt() + eps)).sum(-1)


def group_mean_factor(group_size: float) -> float:
    """(G − 1)/G, the factor in E[ĝ] = (G−1)/G ∇J if the group mean includes the sample itself.

    `eq:group-mean-factor`
    """
    check_group_size(group_size, infinite=True)
    return 1 - 1 / group_size if group_size == math.inf else (group_size - 1) / group_size


def silent_probability(p: Tensor | float, group_size: float) -> Tensor:
    """p^G + (1−p)^G, the probability of a zero-variance group: p [...] → [...].

    All G Bernoulli(p) rewards of such a group are equal. `eq:silent-groups`
    """
    check_group_size(group_size, infinite=True)
    p = _probability(p)
    return p**group_size + (1 - p) ** group_size


def anchored_error(
    beta: float, group_size: float, tokens: int = 1, reference: float = 1.0
) -> float:
    """The share of wrong answers ε at which a k3 penalty holds a policy that knows the right one.

    An answer has `tokens` tokens that may be wrong, each with the same share ε/T, and the wrong
    tokens of a place have `reference` of the reference policy. With group mean and std the reward
    pulls on the log-probability of a wrong token with w_G(ε)(1 − ε)ε/T, the penalty against it with
    β(reference − ε/T); ε is where the two are equal. The group is silent with probability
    (1 − ε)^G. `group_size` is ≥ 2 or math.inf. Raises `CourseError` if they balance at no ε ≤ ½.
    Source: here.
    """
    check_group_size(group_size, 2, infinite=True)
    require_number("beta", beta, "a number ≥ 0", at_least=0)
    require_number("tokens", tokens, "a whole number > 0", above=0, whole=True)
    require_number("reference", reference, "a probability above 0", above=0, at_most=1)

    def held(share: float) -> bool:
        pull = float(group_std_weight(share, group_size)) * (1 - share) * share / tokens
        return pull >= beta * (reference - share / tokens)

    low, high = 0.0, 0.5
    require(held(high), "beta", beta, "a penalty that the reward balances below ε = ½")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if held(middle) else (middle, high)
    return high


@typed
def optimal_baseline(outcomes: Outcomes) -> Tensor:
    """b* = E[R‖s‖²] / E‖s‖² [Q], the constant baseline of least total variance.

    Source: Weaver & Tao 2001; Greensmith et al. 2004. `eq:best-constant-baseline`
    """
    p, square = on_policy_probability(outcomes), outcomes.total_score.square().sum(-1)
    return (p * outcomes.total_reward * square).sum(-1) / (p * square).sum(-1)


@typed
def optimal_baseline_per_coordinate(outcomes: Outcomes) -> Tensor:
    """b*_d = E[R s_d²] / E[s_d²] [Q, D], one baseline per parameter.

    NaN for a parameter that does not influence the policy. `eq:best-baseline-per-logit`
    """
    p, square = on_policy_probability(outcomes), outcomes.total_score.square()
    return torch.einsum("qk,qkd->qd", p * outcomes.total_reward, square) / torch.einsum(
        "qk,qkd->qd", p, square
    )


@typed
def covariance_at_baseline(outcomes: Outcomes, baseline: Tensor | float) -> Tensor:
    """Covariance [Q, D, D] of (R − b)·s for ONE sample of each prompt.

    `baseline` b is a number, one per prompt [Q], or one per parameter [Q, D]. The mean of G samples
    has 1/G of this covariance. With b = J(prompt) it is the C_J of `rloo_covariance`.
    `eq:variance-at-baseline`
    """
    p, score = on_policy_probability(outcomes), outcomes.total_score
    b = _float64(baseline)
    fits = b.shape in ((), score.shape[:1], score.shape[::2])
    require(fits, "baseline", tuple(b.shape), "a number, or a shape [Q] or [Q, D]")
    require_finite("baseline", b)
    # to broadcast against [Q, K, D]: one per prompt, one per parameter, or one number
    b = b[:, None, None] if b.dim() == 1 else b.unsqueeze(1) if b.dim() == 2 else b
    sample = (outcomes.total_reward.unsqueeze(-1) - b) * score
    centred = sample - torch.einsum("qk,qkd->qd", p, sample).unsqueeze(1)
    return torch.einsum("qk,qkd,qke->qde", p, centred, centred)


@typed
def variance_at_baseline(outcomes: Outcomes, baseline: Tensor | float) -> Tensor:
    """Total variance [Q] of one sample's gradient (R − b)·s: trace of `covariance_at_baseline`."""
    return covariance_at_baseline(outcomes, baseline).diagonal(dim1=-2, dim2=-1).sum(-1)


def rloo_covariance(outcomes: Outcomes, group_size: float) -> Tensor:
    """Covariance [Q, D, D] of one group's leave-one-out gradient: C_J/G + (σ²F + ∇J∇Jᵀ)/(G(G−1)).

    C_J is one sample's covariance with b = J, σ² = Var R and F = E[ssᵀ]. The formula follows from
    ĝ = (1/G) Σ (R_i − J) s_i − Σ_{i≠j} (R_i − J) s_j / (G(G−1)), whose two sums are uncorrelated.
    `eq:leave-one-out-variance`
    """
    check_group_size(group_size, 2, infinite=True)  # leave-one-out needs another sample
    p, score, reward = on_policy_probability(outcomes), outcomes.total_score, outcomes.total_reward
    mean = (p * reward).sum(-1)
    return covariance_at_baseline(outcomes, mean) / group_size + _exchange(p, score, reward) / (
        group_size * (group_size - 1)
    )


@typed
def rloo_crossover(outcomes: Outcomes) -> Tensor:
    """The G [Q] at which leave-one-out has the same total variance as no baseline.

    For larger G leave-one-out has less variance; inf means that it never has.
    V_0/G = V_J/G + c/(G(G−1)) ⇔ G = 1 + c/(V_0 − V_J), with c = σ²E‖s‖² + ‖∇J‖².
    `eq:leave-one-out-crossover`
    """
    p, score, reward = on_policy_probability(outcomes), outcomes.total_score, outcomes.total_reward
    gain = variance_at_baseline(outcomes, 0.0) - variance_at_baseline(
        outcomes, (p * reward).sum(-1)
    )
    cost = _exchange(p, score, reward).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.where(gain > 0, 1 + cost / gain, torch.inf)


def _exchange(p: Tensor, score: Tensor, reward: Tensor) -> Tensor:
    """σ²F + ∇J∇Jᵀ [Q, D, D], which the noise of the baseline adds to the covariance."""
    centred = reward - (p * reward).sum(-1, keepdim=True)
    gradient = torch.einsum("qk,qkd->qd", p * centred, score)
    fisher = torch.einsum("qk,qkd,qke->qde", p, score, score)
    return (p * centred**2).sum(-1)[:, None, None] * fisher + gradient.unsqueeze(
        -1
    ) * gradient.unsqueeze(-2)


def on_policy_probability(outcomes: Outcomes) -> Tensor:
    require(isinstance(outcomes, Outcomes), "outcomes", outcomes, "an Outcomes")
    require(
        outcomes.old_log_prob is None,
        "outcomes.old_log_prob",
        "a tensor",
        "None: this closed form is for samples of the policy itself",
    )
    return probability(outcomes)


class KLMoments(NamedTuple):
    """Bias and standard deviation of one sample's KL estimate, both divided by the true KL."""

    bias: Tensor
    std: Tensor


@typed
def gaussian_kl_moments(mu: Tensor | float) -> dict[str, KLMoments]:
    """Bias and std of k1, k2, k3 for q = N(0, 1), p = N(μ, 1), sampled from q: μ [...] → [...].

    Here KL(q‖p) = μ²/2. "best" is k1 + λ*(r − 1), the one of least variance. The setting is that of
    Schulman 2020, "Approximating KL divergence", whose table rounds these closed forms.
    `eq:kl-gaussian-moments`
    """
    mu = _float64(mu)
    require_finite("mu", mu)
    square, zero = mu**2, torch.zeros_like(mu)
    rest = torch.expm1(square)
    return {
        "k1": KLMoments(zero, 2 / mu.abs()),
        "k2": KLMoments(square / 4, (2 + square).sqrt()),
        "k3": KLMoments(zero, 2 * (rest - square).sqrt() / square),
        "best": KLMoments(zero, 2 * (square - square**2 / rest).sqrt() / square),
    }


@typed
def gaussian_control_variate(mu: Tensor | float) -> Tensor:
    """λ* = μ²/(e^{μ²} − 1), which gives −log r + λ(r − 1) its least variance: μ [...] → [...].

    k3 uses λ = 1 instead, which makes it nonnegative.
    """
    square = _float64(mu) ** 2
    return square / torch.expm1(square)


@typed
def control_variate(outcomes: Outcomes) -> Tensor:
    """λ* = Cov(log r, r)/Var(r) [Q] for any outcomes, on policy. `eq:kl-control-variate`

    r = π_ref/π of whole answers; λ* gives −log r + λ(r − 1) its least variance.
    """
    log_r, p, _ = log_reference_ratio(outcomes, "reverse")
    centred = log_r.exp() - (p * log_r.exp()).sum(-1, keepdim=True)
    return (p * log_r * centred).sum(-1) / (p * centred**2).sum(-1)


@typed
def control_variate_minimum(coefficient: float) -> float:
    """log λ + 1 − λ, the minimum of −log r + λ(r − 1) over r > 0, reached at r = 1/λ.

    It is 0 only for λ = 1, which is k3, and negative otherwise.
    """
    require_number("coefficient", coefficient, "a number > 0", above=0)
    return math.log(coefficient) + 1 - coefficient


@typed
def relative_distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; ‖a‖ if b = 0."""
    require(a.shape == b.shape, "a", tuple(a.shape), f"the shape of b, {tuple(b.shape)}")
    for name, tensor in (("a", a), ("b", b)):
        require_floats(name, tensor)
        require_finite(name, tensor)
    return float((a - b).norm() / (b.norm() if bool(b.any()) else 1.0))


@typed
def pair_gradient(reward: Tensor, score: Tensor) -> Tensor:
    """Σ_{i<j} (r_i − r_j)(s_i − s_j) / (G(G−1)): rewards [M, G], scores [M, G, D] → [M, D].

    The code sums over ordered pairs, so every pair counts twice: hence its factor 2.

    eq:pairs-of-samples
    """
    group = reward.shape[-1]
    # all ordered pairs (i, j): [M, G, G] and [M, G, G, D]
    difference = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    apart = score.unsqueeze(-2) - score.unsqueeze(-3)
    return torch.einsum("mij,mijd->md", difference, apart) / (2 * group * (group - 1))


@typed
def sample_covariance(reward: Tensor, score: Tensor) -> Tensor:
    """Σ_i (r_i − r̄)(s_i − s̄) / (G − 1): rewards [M, G], scores [M, G, D] → [M, D].

    eq:covariance-of-reward-and-score
    """
    centred = reward - reward.mean(-1, keepdim=True)
    return torch.einsum("mi,mid->md", centred, score - score.mean(-2, keepdim=True)) / (
        reward.shape[-1] - 1
    )


def _probability(p: Tensor | float) -> Tensor:
    """`p` in float64; raises `CourseError` unless it is from 0 to 1."""
    found = _float64(p)
    require(bool(((found >= 0) & (found <= 1)).all()), "p", p, "probabilities from 0 to 1")
    return found


def _float64(number: Tensor | float) -> Tensor:
    """A number or a tensor in float64, a tensor on its own device."""
    require_type("number", number, Tensor | float)
    if isinstance(number, Tensor):
        return number.double()
    return torch.tensor(number, dtype=torch.float64, device="cpu")
