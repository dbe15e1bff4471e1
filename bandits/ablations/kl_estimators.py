"""k1, k2, k3: what each estimates, and what each pushes towards.

Values and gradients are different questions.

For KL(π‖ref) and a sample of π let r = ref/π; k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r
(Schulman 2020).

    values     Gaussians: k1 is unbiased and noisy, k2 biased and quiet, k3 unbiased and, near the
               reference, quiet.
               k3 is k1 plus the control variate λ(r − 1) with λ = 1, which keeps it positive;
               another λ is quieter.
    gradients  three arms, all exact, through the estimators that train, with every reward 0. The
               same letter in another
               place is another penalty: look where each point lands, and which points share a
               place.
    sequences  two tokens: penalties summed token by token drop what a token does to the tokens
               after it.
    the bug    the inverted ratio, log π − log ref where log ref − log π is meant: find it from the
    curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bandits.environments import Deterministic
from bandits.exact import B3_POLICY
from bandits.flow import ascend, expected_gradient
from course.errors import require
from course.estimator import Estimator
from course.exact import (
    Outcomes,
    gaussian_control_variate,
    gaussian_kl_moments,
    group_mean_factor,
    group_std_weight,
    kl_gradient,
    microscope,
)
from course.lab import figures
from course.lab.facts import Fact
from course.lab.result import Result
from course.lab.settings import Checked
from course.lab.statistics import mean_error
from course.lab.terminal import Progress
from course.parts import K1, K2, K3, ExactKL, GroupMean, GroupStd, InLossTimesRatio, InReward
from course.parts.kl import KL, Reference, exact_kl, k1, k2, k3
from course.rollout import Rollout
from course.train.noise import Noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = (
    "KL estimators k1, k2, k3: how noisy each is, and which divergence each one's gradient really"
    " descends"
)
EXPECTED_SECONDS = 4.0


@dataclass(frozen=True)
class Settings(Checked):
    """Gaussians for the values, three arms and two tokens for the gradients."""

    # μ of N(μ, 1); the true KL is μ²/2 nats
    means: tuple[float, ...] = (0.03, 0.06, 0.1, 0.2, 0.35, 0.6, 1.0, 1.4)
    runs: int = 100  # independent Monte Carlo runs, for the standard errors
    samples: int = 20_000  # samples in each of these runs, for each μ
    # probabilities of the reference, beside the policy (.5, .3, .2)
    reference: tuple[float, ...] = (0.25, 0.72, 0.03)
    group: int = 4  # samples per prompt, where a group's mean is taken
    rate: float = 0.2  # learning rate of the curves
    steps: int = 60  # updates of the curves
    seed: int = 0  # of the random streams

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("runs", 2), ("samples", 2), ("group", 2), ("steps", 1)):
            require(
                getattr(self, name) >= least, name, getattr(self, name), f"a whole number ≥ {least}"
            )
        require(
            len(self.means) > 0 and all(0 < mu <= 2 for mu in self.means),
            "means",
            self.means,
            "numbers above 0, at most 2",
        )
        require(
            len(self.reference) == 3 and min(self.reference) > 0,
            "reference",
            self.reference,
            "three probabilities > 0",
        )
        require(
            abs(sum(self.reference) - 1) < 1e-9,
            "reference",
            self.reference,
            "probabilities that sum to 1",
        )
        require(self.rate > 0, "rate", self.rate, "a number > 0")


SETTINGS = Settings()
SCHULMAN = "Schulman 2020, Approximating KL divergence"
TANG = "Tang & Munos 2025 (2506.09477)"
COMEDY = "A Comedy of Estimators 2025 (2512.21852)"
HERE = "derived here, checked by enumeration"
VALUES = {"k1": k1, "k2": k2, "k3": k3}
# true KL in nats → estimator → (bias, rounding of it, std, rounding of it), all over the true KL
PUBLISHED = {
    0.005: {
        "k1": (0.0, 0.0, 20.0, 0.5),
        "k2": (0.002, 0.0005, 1.42, 0.005),
        "k3": (0.0, 0.0, 1.42, 0.005),
    },
    0.5: {
        "k1": (0.0, 0.0, 2.0, 0.5),
        "k2": (0.25, 0.005, 1.73, 0.005),
        "k3": (0.0, 0.0, 1.7, 0.05),
    },
}


class InvertedReference(Reference):
    """The bug: log π − log π_ref where the estimators want log r = log π_ref − log π."""

    def log_r(self, log_prob: Tensor, rollout: Rollout) -> Tensor:
        return -super().log_r(log_prob, rollout)


# ---------------------------------------------------------------- values


def gaussian_values(settings: Settings, progress: Progress) -> dict[str, dict[str, Tensor]]:
    """Monte Carlo: bias and std over the true KL, with standard errors, [means] each, of each
    estimator on samples of N(0, 1).
    """
    noise = Noise((settings.runs,), settings.seed, dtype=torch.float64)
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in (*VALUES, "best")}
    for mu in progress(settings.means, "Gaussians"):
        log_r = mu * noise.normal(settings.samples) - mu**2 / 2  # log N(x; μ, 1) − log N(x; 0, 1)
        scale = float(gaussian_control_variate(mu))
        per_sample = {name: of(log_r) for name, of in VALUES.items()}
        per_sample["best"] = k1(log_r) + scale * torch.expm1(log_r)
        true = mu**2 / 2
        for name, values in per_sample.items():
            bias, bias_error = mean_error(values.mean(-1) / true - 1)
            variance, variance_error = mean_error(values.var(-1) / true**2)
            std = math.sqrt(variance)
            row = {
                "bias": bias,
                "bias_error": bias_error,
                "std": std,
                "std_error": variance_error / (2 * std),
            }
            for key, value in row.items():
                measured[name].setdefault(key, []).append(value)
    return {
        name: {key: torch.tensor(values, dtype=torch.float64) for key, values in row.items()}
        for name, row in measured.items()
    }


def quadrature(mu: float, nodes: int = 80) -> dict[str, tuple[float, float]]:
    """The same without sampling: name → (bias, std) over the true KL by Gauss–Hermite quadrature,
    and λ* under "variate".
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


def _value_facts(settings: Settings, measured: Mapping[str, Mapping[str, Tensor]]) -> list[Fact]:
    facts = []
    for true, table in PUBLISHED.items():
        place = next(
            (i for i, mu in enumerate(settings.means) if math.isclose(mu**2 / 2, true)), None
        )
        if place is None:
            continue
        for name, (bias, bias_rounding, std, std_rounding) in table.items():
            row = {key: float(values[place]) for key, values in measured[name].items()}
            about = (
                f"on samples of N(0, 1) towards N({math.sqrt(2 * true):g}, 1), true KL {true:g}"
                " nats"
            )
            claim = f"bias of {name} over the true KL {about}"
            facts.append(
                Fact.published(
                    claim, SCHULMAN, row["bias"], row["bias_error"], bias, bias_rounding, number=19
                )
            )
            claim = f"standard deviation of {name} over the true KL {about}"
            facts.append(
                Fact.published(
                    claim, SCHULMAN, row["std"], row["std_error"], std, std_rounding, number=19
                )
            )
    exact, closed = quadrature(1.0), gaussian_kl_moments(1.0)
    forms = {
        "k1": "2/μ",
        "k2": "√(2 + μ²)",
        "k3": "2√(e^{μ²} − 1 − μ²)/μ²",
        "best": "2√(μ² − μ⁴/(e^{μ²} − 1))/μ²",
    }
    for name, form in forms.items():
        who = "k1 + λ*(r − 1)" if name == "best" else name
        claim = f"standard deviation of {who} over the true KL is {form} (by quadrature, μ = 1)"
        facts.append(Fact.exact(claim, HERE, exact[name][1], closed[name].std, number=19))
    facts += [
        Fact.exact(
            "bias of k2 over the true KL is μ²/4 (by quadrature, μ = 1)",
            HERE,
            exact["k2"][0],
            closed["k2"].bias,
            number=19,
        ),
        Fact.exact(
            "the least noisy coefficient of the control variate r − 1 is μ²/(e^{μ²} − 1), not k3's"
            " 1 (by regression, μ = 1)",
            HERE,
            exact["variate"][0],
            gaussian_control_variate(1.0),
            number=19,
        ),
        Fact.below(
            "with that coefficient the estimate can be negative, which k3 never is (least value of"
            " −log r + λ*(r − 1), μ = 1, nats)",
            SCHULMAN,
            min_value(float(gaussian_control_variate(1.0))),
            0.0,
            number=19,
        ),
    ]
    return facts


def min_value(coefficient: float) -> float:
    """The least value over r > 0 of −log r + λ(r − 1), at r = 1/λ: log λ + 1 − λ, which is 0 at λ =
    1 alone.
    """
    log_r = torch.tensor(-math.log(coefficient), dtype=torch.float64)
    return float(k1(log_r) + coefficient * torch.expm1(log_r))


def _sampling_facts(policy: Tensor, reference: Tensor) -> list[Fact]:
    """Unbiased only on samples of the policy itself, and where the reference has no mass elsewhere.
    Both [K] log-probabilities.
    """
    true, log_r = float(exact_kl(policy, reference)), reference - policy
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    bias = float((old.exp() * k3(log_r)).sum()) - true
    corrected = float((old.exp() * (policy - old).exp() * k3(log_r)).sum())
    half = torch.tensor(
        [0.6, 0.4], dtype=torch.float64
    ).log()  # plays two of the reference's three arms
    outside = float(reference[2].exp())
    value = float((half.exp() * k3(reference[:2] - half)).sum())
    missed = value - float(exact_kl(half, reference[:2]))
    return [
        Fact.above(
            "k3 averaged over samples of another policy is not KL(π‖ref): distance from it on three"
            " arms, nats",
            HERE,
            abs(bias),
            0.0,
            number=19,
        ),
        Fact.exact(
            "times ρ = π/π_old, k3 on the same samples is KL(π‖ref) again (nats)",
            HERE,
            corrected,
            true,
            number=19,
        ),
        Fact.exact(
            "where the policy never plays an arm of the reference, k3 is short by that arm's"
            " probability under the reference",
            HERE,
            missed,
            -outside,
            number=19,
        ),
    ]


# ---------------------------------------------------------------- gradients on three arms


def penalty_gradient(
    penalty: KL, policy: Tensor, reference: Tensor, group: int = 1, **parts: object
) -> Tensor:
    """[K] what the penalty, times its β, is the gradient of: −E[ĝ] with all rewards 0, by
    enumeration through the estimator itself.
    """
    estimator = Estimator(kl=penalty, **parts)  # type: ignore[arg-type]
    nothing = Deterministic(torch.zeros(1, len(policy), dtype=torch.float64))
    return -expected_gradient(estimator, nothing, policy, group, reference=reference)


def placements() -> dict[str, KL]:
    """Every estimator in every place, β = 1, by name."""
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
    """[K] gradients in the logits, by differentiating the divergences themselves: no estimator and
    no score in sight.
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


def _distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖, or ‖a‖ where b = 0."""
    return float((a - b).norm() / (b.norm() if bool(b.any()) else 1.0))


def _gradient_facts(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> list[Fact]:
    reverse, forward, zero = (
        true["KL(π‖ref)"],
        true["KL(ref‖π)"],
        torch.zeros_like(true["KL(π‖ref)"]),
    )
    both = f"{TANG}; {COMEDY}"
    expected = [
        ("k1 in the loss", "no gradient at all", zero, both, 20),
        ("k2 in the loss", "∇KL(π‖ref)", reverse, both, 20),
        ("k3 in the loss", "∇KL(ref‖π), the other divergence", forward, both, 20),
        ("exact KL in the loss", "∇KL(π‖ref)", reverse, HERE, 20),
        ("ρ·k1 in the loss", "∇KL(π‖ref)", reverse, both, 20),
        ("ρ·k3 in the loss", "∇KL(π‖ref)", reverse, both, 20),
        ("k1 in the reward", "∇KL(π‖ref)", reverse, both, 20),
        (
            "k2 in the reward",
            "neither KL's gradient, but ∇E[k2] − ∇KL(π‖ref)",
            true["E k2"] - reverse,
            HERE,
            20,
        ),
        (
            "k3 in the reward",
            "neither KL's gradient, but ∇KL(π‖ref) − ∇KL(ref‖π)",
            reverse - forward,
            HERE,
            20,
        ),
        ("inverted k1 in the loss", "no gradient, as the right one", zero, HERE, 21),
        (
            "inverted k1 in the reward",
            "−∇KL(π‖ref): it pushes away from the reference",
            -reverse,
            HERE,
            21,
        ),
        (
            "inverted ρ·k1 in the loss",
            "−∇KL(π‖ref): it pushes away from the reference",
            -reverse,
            HERE,
            21,
        ),
        ("inverted k2 in the loss", "∇KL(π‖ref), as the right one", reverse, HERE, 21),
        (
            "inverted k3 in the loss",
            "½∇χ²(π‖ref): an anchor still, of another strength",
            true["½χ²(π‖ref)"],
            HERE,
            21,
        ),
    ]
    facts = [
        Fact.exact(
            f"{name} descends {what} (relative distance of the two, three arms, on policy)",
            source,
            _distance(found[name], target),
            0.0,
            number=number,
        )
        for name, what, target, source, number in expected
    ]
    for name in ("k2 in the reward", "k3 in the reward"):
        nearest = min(_distance(found[name], target) for target in (reverse, forward))
        facts.append(
            Fact.above(
                f"{name}: relative distance to the nearer of the two KL gradients is far from 0",
                both,
                nearest,
                0.0,
                number=20,
            )
        )
    return facts


def _scaling_facts(
    settings: Settings, policy: Tensor, reference: Tensor, found: Mapping[str, Tensor]
) -> list[Fact]:
    """k1 in the reward under a group's mean, and under its std."""
    group, reward = settings.group, InReward()
    centred = penalty_gradient(K1(1.0, reward), policy, reference, group, baseline=GroupMean())
    full = found["k1 in the reward"]
    two, ref = (
        torch.tensor([0.3, 0.7], dtype=torch.float64).log(),
        torch.tensor([0.6, 0.4], dtype=torch.float64).log(),
    )
    std = {"baseline": GroupMean(), "scale": GroupStd(eps=0.0)}
    scaled = penalty_gradient(K1(1.0, reward), two, ref, 8, **std)
    weak = -expected_gradient(  # β = .01, and not divided by it
        Estimator(kl=K1(0.01, reward), **std),  # type: ignore[arg-type]
        Deterministic(torch.zeros(1, 2, dtype=torch.float64)),
        two,
        8,
        reference=ref,
    )
    true = divergence_gradients(two, ref)["KL(π‖ref)"]
    gap = float(
        ((two - ref)[0] - (two - ref)[1]).abs()
    )  # k1 takes two values, so its group std is that of a Bernoulli times the gap
    large, many = penalty_gradient(K1(1.0, reward), two, ref, 512, **std), 512
    return [
        Fact.exact(
            "under a group mean that includes the sample, k1 in the reward is scaled by (G − 1)/G"
            f" (G = {group})",
            HERE,
            centred @ full / (full @ full),
            group_mean_factor(group),
            number=20,
        ),
        Fact.exact(
            "under the group's std, with no other reward, it is scaled by w_G(p)/|difference of the"
            " two k1|, w_G as for a Bernoulli reward (two arms, .3 and .7 against .6 and .4, G"
            " = 8)",
            HERE,
            scaled.norm() / true.norm(),
            group_std_weight(0.3, 8) / gap,
            number=20,
        ),
        Fact.simulated(
            f"for large groups that is 1/std(k1): scale times std(k1) (G = {many}, error: the"
            " expansion's next term, 1/(8Gp(1 − p)))",
            HERE,
            large.norm() / true.norm() * gap * math.sqrt(0.21),
            1 / (8 * many * 0.21),
            1.0,
            number=20,
        ),
        Fact.exact(
            "and β cancels: with no other reward, β = .01 has the gradient of β = 1 (relative"
            " distance)",
            HERE,
            _distance(weak, scaled),
            0.0,
            number=20,
        ),
    ]


# ---------------------------------------------------------------- two tokens


def two_tokens() -> Outcomes:
    """A tabular policy of two tokens over three words, its reference, all 9 answers, every reward
    0. D = 3 + 9 logits.
    """
    first = torch.tensor(
        [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=torch.float64
    ).log()  # policy, reference
    second = torch.tensor(
        [
            [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]],
            [[0.5, 0.4, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]],
        ],
        dtype=torch.float64,
    ).log()
    a, b = (
        index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    )

    def tokens(which: int) -> Tensor:
        return torch.stack([first[which, a], second[which, a, b]], -1).unsqueeze(0)

    def dists(which: int) -> Tensor:
        return torch.stack([first[which].expand(9, -1), second[which, a]], 1).unsqueeze(0)

    log_dist = dists(0)
    own = torch.eye(3, dtype=torch.float64) - log_dist.exp().unsqueeze(
        -2
    )  # [1, 9, 2, 3, 3] ∂ log π_v / ∂ its own logits
    log_dist_score = torch.zeros(
        1, 9, 2, 3, 4, 3, dtype=torch.float64
    )  # four softmaxes: the first word, the second after each
    log_dist_score[:, :, 0, :, 0] = own[:, :, 0]
    log_dist_score[:, torch.arange(9), 1, :, a + 1] = own[0, :, 1].unsqueeze(1)
    log_dist_score = log_dist_score.flatten(-2)
    index = torch.stack([a, b], -1)
    score = log_dist_score.gather(3, index[None, :, :, None, None].expand(1, 9, 2, 1, 12)).squeeze(
        3
    )
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
    """[D] what a token-by-token sum drops: E[KL of the second token given the first · ∇log π(first
    token)]. `eq:kl-later-tokens`
    """
    assert listed.log_dist is not None
    assert listed.ref_log_dist is not None
    after = exact_kl(listed.log_dist[:, :, 1], listed.ref_log_dist[:, :, 1])
    weight = listed.log_prob.sum(-1).exp() * after
    return torch.einsum("qk,qkd->d", weight, listed.score[:, :, 0])


def sequence_gradients(listed: Outcomes) -> dict[str, Tensor]:
    """[D] −E[ĝ] of each penalty on two tokens, by enumeration of all answers."""
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


def _sequence_facts(listed: Outcomes, found: Mapping[str, Tensor]) -> list[Fact]:
    true, dropped = kl_gradient(listed), later_tokens(listed)
    name = "k1 in the reward"
    where = "(two tokens of three words, 9 answers listed; relative distance)"
    facts = [
        Fact.exact(
            f"{name} has the gradient of the whole answer's KL {where}",
            COMEDY,
            _distance(found[name], true),
            0.0,
            number=20,
        )
    ]
    for name, gradient in found.items():
        if name != "k1 in the reward":
            claim = (
                f"{name}, has that gradient less E[KL(second token) ∇log π(first token)], what the"
                f" first does to the second {where}"
            )
            facts.append(
                Fact.exact(claim, HERE, _distance(gradient, true - dropped), 0.0, number=20)
            )
    missed = float(dropped.norm() / true.norm())
    facts.append(
        Fact.above(
            "and that is no small part of it (share of its length, the policy and reference here)",
            HERE,
            missed,
            0.1,
            number=20,
        )
    )
    return facts


# ---------------------------------------------------------------- the bug, from its curves

CURVES = (
    "k1 in the reward",
    "inverted k1 in the reward",
    "k2 in the loss",
    "inverted k2 in the loss",
    "k3 in the loss",
    "inverted k3 in the loss",
)


def curves(
    settings: Settings, policy: Tensor, reference: Tensor, progress: Progress
) -> dict[str, Tensor]:
    """KL(π‖ref) in nats [steps + 1] while each penalty alone (β = 1, no reward) drives the policy,
    exactly.
    """
    nothing, penalties = (
        Deterministic(torch.zeros(1, len(policy), dtype=torch.float64)),
        placements(),
    )
    found = {}
    for name in progress(CURVES, "curves"):
        path = ascend(
            Estimator(kl=penalties[name]),
            nothing,
            policy,
            1,
            rate=settings.rate,
            steps=settings.steps,
            reference=reference,
        )
        found[name] = exact_kl(path, reference)
    return found


def _curve_facts(found: Mapping[str, Tensor]) -> list[Fact]:
    same = float((found[CURVES[2]] - found[CURVES[3]]).abs().max())

    def falling(name: str) -> float:
        return float((found[name].diff() < 0).double().mean())

    return [
        Fact.exact(
            "k1 in the reward, alone: share of updates at which KL(π‖ref) falls",
            HERE,
            falling("k1 in the reward"),
            1.0,
            number=21,
        ),
        Fact.exact(
            "inverted k1 in the reward, alone: share of updates at which it falls",
            HERE,
            falling("inverted k1 in the reward"),
            0.0,
            number=21,
        ),
        Fact.exact(
            "inverted k3 in the loss, alone, is an anchor: share of updates at which it falls",
            HERE,
            falling("inverted k3 in the loss"),
            1.0,
            number=21,
        ),
        Fact.exact(
            "k2 and inverted k2 in the loss have one curve (largest difference, nats)",
            HERE,
            same,
            0.0,
            number=21,
        ),
    ]


# ---------------------------------------------------------------- all of it


def run(settings: Settings, progress: Progress) -> Result:
    """Monte Carlo for the values; everything else is enumerated."""
    policy = torch.tensor(B3_POLICY, dtype=torch.float64).log()
    reference = torch.tensor(settings.reference, dtype=torch.float64).log()
    values = gaussian_values(settings, progress)
    found = {
        name: penalty_gradient(penalty, policy, reference) for name, penalty in placements().items()
    }
    true = divergence_gradients(policy, reference)
    centred = penalty_gradient(
        K1(1.0, InReward()), policy, reference, settings.group, baseline=GroupMean()
    )
    tokens = two_tokens()
    sequences = sequence_gradients(tokens)
    trained = curves(settings, policy, reference, progress)
    closed = gaussian_kl_moments(torch.tensor(settings.means, dtype=torch.float64))
    facts = [
        *_value_facts(settings, values),
        *_sampling_facts(policy, reference),
        *_gradient_facts(found, true),
        *_scaling_facts(settings, policy, reference, found),
        *_sequence_facts(tokens, sequences),
        *_curve_facts(trained),
    ]
    series = {
        "kl": [mu**2 / 2 for mu in settings.means],
        "values": {
            name: {**row, "closed": closed[name].std, "closed_bias": closed[name].bias}
            for name, row in values.items()
        },
        "gradients": (
            {name: _plane(gradient) for name, gradient in found.items()}
            | {"centred": _plane(centred)}
        ),
        "true": {name: _plane(gradient) for name, gradient in true.items()},
        "sequences": {
            name: _distance(gradient, kl_gradient(tokens)) for name, gradient in sequences.items()
        },
        "dropped": later_tokens(tokens).norm() / kl_gradient(tokens).norm(),
        "curves": trained,
    }
    return Result(series=series, facts=facts, caption=CAPTION)


def _plane(gradient: Tensor) -> Tensor:
    """[3] logit gradients, which sum to 0 → [2] coordinates in their plane."""
    basis = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    return (basis / basis.norm(dim=-1, keepdim=True)) @ gradient


CAPTION = (
    "Values by Monte Carlo against closed forms (dashed) and the published table (diamonds);"
    " gradients and curves are exact. β = 1, all rewards 0, policy (.5, .3, .2)."
)

COLOURS = {"k1": "#0057a3", "k2": "#b8860b", "k3": "#b8320f", "best": "#00875f"}


def plot(result: Result) -> Figure:
    """Noise against distance; where each gradient points; what a token-by-token sum misses; the bug
    from its curves.
    """
    figure, (values, plane, tokens, bug) = figures.new_figure(2, 2, width=13.4, height=9.2)
    _plot_values(values, result)
    _plot_plane(plane, result)
    _plot_tokens(tokens, result)
    _plot_curves(bug, result)
    return figure


def _plot_values(ax: Axes, result: Result) -> None:
    true = result.array("kl")
    labels = {
        "k1": "k1, unbiased",
        "k2": "k2, biased",
        "k3": "k3, unbiased",
        "best": "best control variate",
    }
    for name, label in labels.items():
        std, error = result.array("values", name, "std"), result.array("values", name, "std_error")
        figures.band(
            ax,
            true,
            std,
            1.96 * error,
            color=COLOURS[name],
            linestyle="-",
            label=label,
            marker="o",
            markersize=4,
        )
        figures.expectation(ax, result.array("values", name, "closed"), true)
    bias = np.abs(result.array("values", "k2", "closed_bias"))
    shown = bias > 0.02
    figures.band(
        ax, true[shown], bias[shown], color=COLOURS["k2"], linestyle=":", label="bias of k2"
    )
    for kl, table in PUBLISHED.items():
        figures.expectation(ax, [row[2] for row in table.values()], [kl] * len(table), marker="D")
    ax.set_xscale("log")
    ax.set_yscale("log")
    figures.describe(
        ax,
        "Noise of one sample: k1 drowns near the reference",
        "true KL (nats)",
        "standard deviation (and bias) / true KL",
    )
    ax.text(
        0.40,
        0.93,
        "- -  closed form    ◇  Schulman 2020",
        transform=ax.transAxes,
        color=figures.INK,
    )
    figures.label_ends(ax)


def _plot_plane(ax: Axes, result: Result) -> None:
    for name, colour in (
        ("KL(π‖ref)", "#0057a3"),
        ("KL(ref‖π)", "#b8320f"),
        ("½χ²(π‖ref)", "#7a1f5c"),
    ):
        ax.annotate(
            "",
            tuple(result.array("true", name)),
            (0, 0),
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 2.0},
        )
    # a name among the gradients, its sign in the picture, where the sign stands, what lands there
    key = (
        ("k1 in the loss", "a", (-9, 8), "#444444", "0: k1 in the loss, inverted or not"),
        (
            "k1 in the reward",
            "b",
            (10, -8),
            "#0057a3",
            (
                "∇KL(π‖ref): k1 in the reward;\nk2, ρ·k1, ρ·k3, exact KL in the loss;\ninverted k2"
                " in the loss"
            ),
        ),
        (
            "centred",
            "c",
            (-10, -7),
            "#00875f",
            "(G − 1)/G of b: k1 in the reward,\nless the group's mean",
        ),
        ("k3 in the loss", "d", (10, 5), "#b8320f", "∇KL(ref‖π): k3 in the loss (GRPO)"),
        (
            "inverted k3 in the loss",
            "e",
            (11, 0),
            "#7a1f5c",
            "½∇χ²(π‖ref): inverted k3 in the loss",
        ),
        (
            "inverted k1 in the reward",
            "f",
            (-11, 0),
            "#0057a3",
            "−∇KL(π‖ref), away from it: inverted k1\nin the reward, inverted ρ·k1 in the loss",
        ),
        ("k2 in the reward", "g", (-11, 0), "#8a6d3b", "neither: k2 in the reward"),
        ("k3 in the reward", "h", (-11, 0), "#8a6d3b", "neither: k3 in the reward"),
    )
    line = 0.97
    for name, sign, offset, colour, text in key:
        ink = figures.readable(colour)
        ax.plot(*result.array("gradients", name), "o", color=colour, markersize=8)
        place: dict[str, Any] = {
            "textcoords": "offset points",
            "ha": "center",
            "va": "center",
            "fontsize": 11,
            "fontweight": "bold",
        }
        ax.annotate(sign, tuple(result.array("gradients", name)), offset, color=ink, **place)
        ax.annotate(
            sign,
            (1.04, line),
            xycoords="axes fraction",
            color=ink,
            va="top",
            fontsize=11,
            fontweight="bold",
        )
        ax.annotate(text, (1.10, line), xycoords="axes fraction", color=ink, va="top", fontsize=10)
        line -= 0.055 * (text.count("\n") + 1) + 0.025
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.12)
    figures.describe(
        ax,
        "Where each penalty pushes (three arms, exact)",
        "gradient in the logits: first arm against second",
        "both against third",
    )


def _plot_tokens(ax: Axes, result: Result) -> None:
    names = list(result.series["sequences"])
    missed = [float(result.array("sequences", name)) for name in names]
    ax.barh(
        range(len(names)), missed, color=["#0057a3", *["#b8860b"] * (len(names) - 1)], height=0.55
    )
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    dropped = float(result.array("dropped"))
    figures.expectation(ax, x=dropped)
    ax.set_xlim(0, dropped * 1.75)
    ax.text(
        dropped * 1.04,
        2.5,
        "what they drop:\nE[KL(2nd token)\n· ∇log π(1st)]",
        color=figures.INK,
        va="center",
    )
    ax.text(0.003, 0, "0: nothing missed", color=figures.readable("#0057a3"), va="center")
    ax.grid(False, axis="y")
    figures.describe(
        ax, "Two tokens: what each misses of the answer's KL", "‖E[ĝ] − ∇KL‖ / ‖∇KL‖", ""
    )


def _plot_curves(ax: Axes, result: Result) -> None:
    styles = {
        "k1 in the reward": ("k1", "k1 in the reward =\nk2 in the loss =\ninverted k2", 4.0),
        "k2 in the loss": ("k2", "_", 2.0),
        "k3 in the loss": ("k3", "k3 in the loss", 2.0),
    }
    for name, (colour, label, width) in styles.items():
        for which, dashes in ((name, "-"), (f"inverted {name}", (0, (4, 2)))):
            curve = result.array("curves", which)
            text = label if which == name else "_" if colour == "k2" else which
            thick = width if which == name else 2.0
            figures.band(
                ax,
                np.arange(len(curve)),
                curve,
                color=COLOURS[colour],
                linestyle=dashes,
                label=text,
                linewidth=thick,
            )
    ax.set_yscale("log")
    figures.describe(
        ax,
        "The inverted ratio, seen from its curves",
        "updates with the penalty alone",
        "KL(π‖ref) (nats)",
    )
    figures.label_ends(ax)
