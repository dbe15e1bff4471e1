"""What k1, k2 and k3 estimate, and which divergence the gradient of each one decreases.

For KL(π‖ref) and a sample of π let r = ref/π; k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r
(Schulman 2020). The values are compared on Gaussians. The gradients are compared on three arms and
on answers of two tokens, by enumerating the same estimators that training uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.flow import ascend, expected_gradient
from course.estimator import Estimator
from course.exact import Outcomes, gaussian_control_variate, microscope
from course.lab.statistics import mean_error
from course.parts import K1, K2, K3, ExactKL, GroupMean, GroupStd, InLossTimesRatio, InReward
from course.parts.kl import KL, Reference, exact_kl, k1, k2, k3
from course.rollout import Rollout
from course.train.noise import Noise

VALUES = {"k1": k1, "k2": k2, "k3": k3}
# true KL in nats → estimator → (bias, its rounding, std, its rounding), all divided by the true KL;
# the source prints 20, 2 and 0 without decimals and means them exactly
PUBLISHED = {
    0.005: {
        "k1": (0.0, 1e-9, 20.0, 0.005),
        "k2": (0.002, 0.0005, 1.42, 0.005),
        "k3": (0.0, 1e-9, 1.42, 0.005),
    },
    0.5: {
        "k1": (0.0, 1e-9, 2.0, 0.005),
        "k2": (0.25, 0.005, 1.73, 0.005),
        "k3": (0.0, 1e-9, 1.7, 0.05),
    },
}


class InvertedReference(Reference):
    """The bug: it returns log π − log π_ref, but the estimators need log r = log π_ref − log π."""

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        return -super().log_r(log_prob, rollout)


def gaussian_values(
    means: Sequence[float],
    runs: int,
    samples: int,
    seed: int = 0,
    progress: Callable[[Iterable[float], str], Iterable[float]] = lambda means, _: means,
) -> dict[str, dict[str, Tensor]]:
    """Monte Carlo bias and std of each estimator of KL(N(0, 1)‖N(μ, 1)).

    They are divided by the true KL μ²/2 and come with standard errors, each [means]. There are
    `runs` independent runs of `samples` samples.
    """
    noise = Noise((runs,), seed, dtype=torch.float64)
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in (*VALUES, "best")}
    for mu in progress(means, "Gaussians"):
        log_r = mu * noise.normal(samples) - mu**2 / 2  # log N(x; μ, 1) − log N(x; 0, 1)
        scale = float(gaussian_control_variate(mu))
        per_sample = {name: of(log_r) for name, of in VALUES.items()}
        per_sample["best"] = k1(log_r) + scale * torch.expm1(log_r)
        true = mu**2 / 2
        for name, values in per_sample.items():
            bias, bias_error = mean_error(values.mean(-1) / true - 1)
            variance, variance_error = mean_error(values.var(-1) / true**2)
            std = math.sqrt(variance)
            row = {"bias": bias, "bias_error": bias_error, "std": std}
            row["std_error"] = variance_error / (2 * std)  # of a square root, to first order
            for key, value in row.items():
                measured[name].setdefault(key, []).append(value)
    return {
        name: {key: torch.tensor(values, dtype=torch.float64) for key, values in row.items()}
        for name, row in measured.items()
    }


def quadrature(mu: float, nodes: int = 80) -> dict[str, tuple[float, float]]:
    """The same by Gauss–Hermite quadrature: name → (bias, std), divided by the true KL.

    "variate" holds the best coefficient λ* of the control variate.
    """
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    log_r, p = torch.from_numpy(mu * x - mu**2 / 2), torch.from_numpy(weight / weight.sum())
    true, extra = mu**2 / 2, torch.expm1(log_r)
    best = float((p * log_r * extra).sum() / (p * extra**2).sum())
    values = {name: of(log_r) for name, of in VALUES.items()} | {"best": k1(log_r) + best * extra}

    def moments(value: Tensor) -> tuple[float, float]:
        mean = (p * value).sum()
        return float(mean / true - 1), float((p * (value - mean) ** 2).sum().sqrt() / true)

    return {name: moments(value) for name, value in values.items()} | {"variate": (best, 0.0)}


def penalty_gradient(
    penalty: KL, policy: Tensor, reference: Tensor, group: int = 1, **parts: object
) -> Tensor:
    """The penalty's expected gradient [K], times its β: −E[ĝ] with all rewards 0.

    It enumerates the same estimator that training uses.
    """
    estimator = Estimator(kl=penalty, **parts)  # type: ignore[arg-type]
    nothing = Deterministic(torch.zeros(1, len(policy), dtype=torch.float64))
    return -expected_gradient(estimator, nothing, policy, group, reference=reference)


def placements() -> dict[str, KL]:
    """Every KL estimator in every place, with β = 1, by name."""
    ratio, reward, wrong = InLossTimesRatio(), InReward(), InvertedReference()
    return {
        "k1 in the loss": K1(1.0),
        "k2 in the loss": K2(1.0),
        "k3 in the loss": K3(1.0),
        "exact KL in the loss": ExactKL(1.0),
        "ρ·k1 in the loss": K1(1.0, ratio),
        "ρ·k2 in the loss": K2(1.0, ratio),
        "ρ·k3 in the loss": K3(1.0, ratio),
        "k1 in the reward": K1(1.0, reward),
        "k2 in the reward": K2(1.0, reward, accept_bias=True),
        "k3 in the reward": K3(1.0, reward, accept_bias=True),
        "inverted k1 in the loss": K1(1.0, anchor=wrong),
        "inverted ρ·k1 in the loss": K1(1.0, ratio, wrong),
        "inverted k1 in the reward": K1(1.0, reward, wrong),
        "inverted k2 in the loss": K2(1.0, anchor=wrong),
        "inverted k3 in the loss": K3(1.0, anchor=wrong),
    }


def divergence_gradients(policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The gradients [K] of the divergences with respect to the logits, without any estimator.

    Automatic differentiation of the divergences themselves gives them.
    """
    logits = policy.clone().requires_grad_()
    pi, ref = torch.log_softmax(logits, 0), reference
    log_r = ref - pi
    functions = {
        "KL(π‖ref)": exact_kl(pi, ref),
        "KL(ref‖π)": exact_kl(ref, pi),
        "½χ²(π‖ref)": 0.5 * ((pi.exp() - ref.exp()) ** 2 / ref.exp()).sum(),
        "E k2": (pi.exp() * k2(log_r)).sum(),
    }
    return {
        name: torch.autograd.grad(value, logits, retain_graph=True)[0]
        for name, value in functions.items()
    }


def descended(true: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """What each penalty of `placements` descends on policy, in words and as a gradient [K].

    `true` are the `divergence_gradients`. An estimator in the reward is a score-function estimate
    of ∇E[k] less what differentiating k itself would add; one in the loss has only the latter.
    """
    reverse, forward, chi = (true[name] for name in ("KL(π‖ref)", "KL(ref‖π)", "½χ²(π‖ref)"))
    kl, zero, neither = "∇KL(π‖ref)", torch.zeros_like(reverse), "neither KL's gradient, but"
    away = "−∇KL(π‖ref): it pushes away from the reference"
    return {
        "k1 in the loss": ("no gradient at all", zero),
        "k2 in the loss": (kl, reverse),
        "k3 in the loss": ("∇KL(ref‖π), the other divergence", forward),
        "exact KL in the loss": (kl, reverse),
        "ρ·k1 in the loss": (kl, reverse),
        "ρ·k3 in the loss": (kl, reverse),
        "k1 in the reward": (kl, reverse),
        "k2 in the reward": (f"{neither} ∇E[k2] − {kl}", true["E k2"] - reverse),
        "k3 in the reward": (f"{neither} {kl} − ∇KL(ref‖π)", reverse - forward),
        "inverted k1 in the loss": ("no gradient, as the right one", zero),
        "inverted k1 in the reward": (away, -reverse),
        "inverted ρ·k1 in the loss": (away, -reverse),
        "inverted k2 in the loss": (f"{kl}, as the right one", reverse),
        "inverted k3 in the loss": ("½∇χ²(π‖ref), another anchor", chi),
    }


# where k1 takes two values, so that its group std is a Bernoulli's times their difference
TWO_ARMS = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
TWO_ARMS_REFERENCE = torch.tensor([0.6, 0.4], dtype=torch.float64).log()


def gradient_under_std(group: int, beta: float = 1.0) -> Tensor:
    """The gradient [2] of k1 in the reward, and of no other reward, under a group's mean and std.

    The policy is `TWO_ARMS`; the std has eps = 0.
    """
    parts = {"baseline": GroupMean(), "scale": GroupStd(eps=0.0)}
    k1_in_reward = K1(beta, InReward())
    return penalty_gradient(k1_in_reward, TWO_ARMS, TWO_ARMS_REFERENCE, group, **parts)


def scale_under_std(group: int) -> float:
    """The length of `gradient_under_std` over that of ∇KL(π‖ref)."""
    true = divergence_gradients(TWO_ARMS, TWO_ARMS_REFERENCE)["KL(π‖ref)"]
    return float(gradient_under_std(group).norm() / true.norm())


def two_arms_gap() -> float:
    """The difference of the two values of k1 on `TWO_ARMS`, in nats."""
    values = TWO_ARMS - TWO_ARMS_REFERENCE
    return float((values[0] - values[1]).abs())


def in_plane(gradient: Tensor) -> Tensor:
    """A gradient [3] in three arms' logits, whose sum is 0 → its coordinates [2] in their plane.

    The first is that of the first arm against the second, the other of both against the third.
    """
    basis = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    return torch.nn.functional.normalize(basis, dim=-1) @ gradient


def two_tokens() -> Outcomes:
    """All 9 answers of a tabular policy of two tokens over three words, with a reference policy.

    Every reward is 0. There are D = 3 + 9 logits.
    """
    # policy, reference
    first = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=torch.float64).log()
    second = torch.tensor(
        [
            [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]],
            [[0.5, 0.4, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]],
        ],
        dtype=torch.float64,
    ).log()
    a, b = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T

    def tokens(which: int) -> Tensor:
        return torch.stack([first[which, a], second[which, a, b]], -1).unsqueeze(0)

    def dists(which: int) -> Tensor:
        return torch.stack([first[which].expand(9, -1), second[which, a]], 1).unsqueeze(0)

    log_dist = dists(0)
    # [1, 9, 2, 3, 3] ∂ log π_v / ∂ its own logits
    own = torch.eye(3, dtype=torch.float64) - log_dist.exp().unsqueeze(-2)
    # the same with respect to the logits of all four softmaxes: that of the first word, and that of
    # the second word after each first word; only the softmax that drew a token has a gradient
    log_dist_score = torch.zeros(1, 9, 2, 3, 4, 3, dtype=torch.float64)
    log_dist_score[:, :, 0, :, 0] = own[:, :, 0]
    log_dist_score[:, torch.arange(9), 1, :, a + 1] = own[0, :, 1].unsqueeze(1)
    log_dist_score = log_dist_score.flatten(-2)
    chosen = torch.stack([a, b], -1)[None, :, :, None, None].expand(1, 9, 2, 1, 12)
    score = log_dist_score.gather(3, chosen).squeeze(3)  # of the tokens that were chosen
    zero = torch.zeros(1, 9, 2, dtype=torch.float64)
    more = {
        "ref_log_prob": tokens(1),
        "log_dist": log_dist,
        "old_log_dist": log_dist,
        "ref_log_dist": dists(1),
        "log_dist_score": log_dist_score,
    }
    return Outcomes.of_sequences(tokens(0), zero, score=score, **more)


def later_tokens(listed: Outcomes) -> Tensor:
    """The part [D] of the gradient that a token-by-token sum omits.

    It is E[KL of the second token given the first · ∇log π(first token)]. `eq:kl-later-tokens`
    """
    assert listed.log_dist is not None
    assert listed.ref_log_dist is not None
    after = exact_kl(listed.log_dist[:, :, 1], listed.ref_log_dist[:, :, 1])
    weight = listed.log_prob.sum(-1).exp() * after
    return torch.einsum("qk,qkd->d", weight, listed.score[:, :, 0])


def sequence_gradients(listed: Outcomes) -> dict[str, Tensor]:
    """−E[ĝ] [D] of each penalty on answers of two tokens, by enumerating all answers."""
    ratio = InLossTimesRatio()
    summed: dict[str, KL] = {
        "k1 in the reward": K1(1.0, InReward()),
        "k2, summed over tokens": K2(1.0),
        "ρ·k1, summed over tokens": K1(1.0, ratio),
        "ρ·k3, summed over tokens": K3(1.0, ratio),
        "exact KL, summed over tokens": ExactKL(1.0),
    }
    return {
        name: -microscope(Estimator(kl=penalty), listed, 1, covariance=False).expected
        for name, penalty in summed.items()
    }


def penalty_curve(
    name: str, log_prob: Tensor, reference: Tensor, rate: float, steps: int
) -> Tensor:
    """KL(π‖ref) [1 + steps], in nats, while the penalty `name` of `placements` alone drives π.

    The ascent follows the exact expected gradient from `log_prob` [K]; every reward is 0.
    """
    nothing = Deterministic(torch.zeros(1, len(log_prob), dtype=torch.float64))
    alone = Estimator(kl=placements()[name])
    path = ascend(alone, nothing, log_prob, 1, rate=rate, steps=steps, reference=reference)
    return exact_kl(path, reference)
