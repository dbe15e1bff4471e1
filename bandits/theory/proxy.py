"""What a policy does with a reward that is not quite the one that is meant, exactly.

The gold reward is what is meant, the proxy what is paid: a reward model's score, say. Answers are
listed [K], under log-probabilities in nats.
"""

from __future__ import annotations

from torch import Tensor

from bandits.theory.overoptimisation import expected


def covariance(log_prob: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The covariance of two functions of the answer under a policy.

    It is the slope of E[first] over 1/β where the policy is `tilted` by `second`.

    eq:tilt-slope · derived; a covariance as in Mroueh 2025 and Cui et al. 2025
    """
    return expected(log_prob, first * second) - expected(log_prob, first) * expected(
        log_prob, second
    )


def speed(log_prob: Tensor, gold: Tensor, proxy: Tensor) -> Tensor:
    """dE[gold]/dt along θ' = ∇E[proxy] for a softmax over answers: Σ π²(g − E g)(r − E r).

    With gold = proxy it is ‖∇E[r]‖², at most max π · Var r.

    eq:flat-landscape · derived; the bound after Razin et al. 2025
    """
    centred = [values - expected(log_prob, values) for values in (gold, proxy)]
    return (log_prob.exp().square() * centred[0] * centred[1]).sum()


def random_reward_push(
    log_prob: Tensor, old: Tensor, size: float, low: float = 0.2, high: float = 0.2
) -> Tensor:
    """E[ĝ] [K] of the clip on the logits, where advantages are ±`size`-distributed by chance alone.

    `size` is E|A|; A is as often above as below 0, whatever the answer. A sample above the range
    is silent where A > 0, one below it where A < 0, so what is left pulls back to `old`.

    eq:random-reward-clip · derived; cf. Shao et al. 2025 (Spurious Rewards)
    """
    ratio = (log_prob - old).exp()
    side = (ratio < 1 - low).double() - (ratio > 1 + high).double()
    pi = log_prob.exp()
    push = size / 2 * pi * side  # on each answer's log π
    return push - pi * push.sum()  # through the softmax
