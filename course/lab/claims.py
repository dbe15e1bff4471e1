"""The numbered list of claims of the course, each with its source."""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """A claim that the course checks: its name, what is claimed, and its source."""

    title: str
    text: str
    source: str


CLAIMS: dict[int, Claim] = {
    1: Claim(
        "gradient bandit",
        "Ten arms, rewards around 4: with the average reward as baseline the gradient bandit "
        "ends near 86 % (α = .1) and 73 % (α = .4) optimal actions, without it near 49 % and 27 "
        "%. Three rules for the running mean differ at α = .4.",
        "Sutton & Barto 2018, fig. 2.5",
    ),
    2: Claim(
        "parameter study",
        "ε-greedy, gradient bandit, UCB and optimistic initial values, each over its parameter: "
        "mean reward of 1,000 steps.",
        "Sutton & Barto 2018, fig. 2.6",
    ),
    3: Claim(
        "covariance identity",
        "The leave-one-out gradient is the unbiased sample covariance of reward and score; a "
        "group mean that includes the sample gives (G−1)/G of it, sample by sample.",
        "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)",
    ),
    4: Claim(
        "optimal baseline",
        "b* = E[R‖s‖²]/E‖s‖² has the least variance, per coordinate likewise. Adding 4 to every "
        "reward makes REINFORCE tens of times noisier and leaves centred estimators as they "
        "are.",
        "Weaver & Tao 2001; Greensmith et al. 2004",
    ),
    5: Claim(
        "leave-one-out can cost",
        "Var = V_J/G + (σ²E‖s‖² + ‖∇J‖²)/(G(G−1)): at G = 2 on B3 leave-one-out is noisier than "
        "no baseline at all. The group size at which they cross has a closed form.",
        "derived here",
    ),
    6: Claim(
        "baselines beyond variance",
        "Baselines equally far below and above the variance-minimising one have one variance "
        "and two fates: too low a baseline commits early. It depends on the step size.",
        "Chung et al. 2021 (2008.13773); Mei et al. 2022 (2301.06276)",
    ),
    7: Claim(
        "rates",
        "Exact softmax policy gradient learns like 1/t, natural policy gradient exponentially; "
        "dividing by the group's std gives 1/t² at G = ∞, and 1/t again at any finite G.",
        "Mei et al. 2020 (2005.06392); the rest derived here",
    ),
    8: Claim(
        "when the surrogate is exact",
        "With one token, or with the sequence's ratio, J(π') = J(π) + E[ρA] is an identity; "
        "token ratios on longer answers are an approximation away from π_old. F⁺∇J = A − "
        "mean(A).",
        "Kakade & Langford 2002; derived here",
    ),
    9: Claim(
        "at π_old all rungs agree",
        "On policy every ratio rung has the policy gradient of its advantage and aggregation; "
        "GRPO's KL term adds the gradient of KL(ref‖π).",
        "Xu 2025, eq. 6; derived here",
    ),
    10: Claim(
        "the clip does not bound the ratio",
        "Two arms, π₁ = .1, ε = .2, centred advantages: ρ₁ goes to 2.8. The smaller π₁, the "
        "further. With uncentred rewards it stops at 1.2.",
        "Wang et al. 2019 (1903.07940); derived here",
    ),
    11: Claim(
        "stale samples",
        "With one update per rollout policy gradient, ratio and clip are one curve; with more, "
        "the centred policy gradient collapses, the bare ratio decays, and the clip learns.",
        "seen on the tiny LM; explained on the bandit",
    ),
    12: Claim(
        "what dividing by the std optimises",
        "For rewards of 0 and 1, E[ĝ] = w_G(p) ∇p with w_G(p) = E[√(N(G−N))]/(G p(1−p)): 1 at G "
        "= 2, 1/√(p(1−p)) at G = ∞. The mean alone weighs every question by (G−1)/G.",
        "Davis & Recht 2025 (2510.13651); Mroueh 2025 (2503.06639); here for every G",
    ),
    13: Claim(
        "silent groups",
        "A group is silent with probability p^G + (1−p)^G. Refilling rescales E[ĝ] of one "
        "question and keeps its direction.",
        "derived here",
    ),
    14: Claim(
        "the std can turn the direction",
        "An arm that pays .5 surely against one that pays 10 with probability .1: the "
        "normalised gradient prefers the worse arm until G is in the tens.",
        "derived here",
    ),
    15: Claim(
        "overconfidence",
        "Forecasts under the Brier reward settle at the calibrated .7 without the std, and go "
        "towards 1 with it at finite G.",
        "Bereket & Leskovec 2025 (2508.11800)",
    ),
    16: Claim(
        "reward design",
        "A nearly invisible second reward widens the basin of attraction of a Gaussian policy, "
        "and a far one traps it; both come from dividing by the std, and the first depends on "
        "eps.",
        "Lelarge, Gauss_GRPO",
    ),
    17: Claim(
        "variance of a Gaussian policy's gradient",
        "Closed forms for no baseline, the mean, the best baseline and reparameterisation.",
        "derived here",
    ),
    18: Claim(
        "length bias",
        "1/|o| makes long wrong answers more likely than short wrong ones from the first step; "
        "a constant divisor does not.",
        "Liu et al. 2025 (2503.20783)",
    ),
    19: Claim(
        "KL estimators: values",
        "Bias and standard deviation of k1, k2, k3, in closed form; the coefficient 1 in k3 is "
        "chosen for its sign, not for the least variance.",
        "Schulman 2020, Approximating KL divergence",
    ),
    20: Claim(
        "KL estimators: gradients",
        "Which of k1, k2, k3, in the loss, times ρ, or in the reward, has the gradient of "
        "KL(π‖ref), of KL(ref‖π), or of neither; and what summing token by token leaves out.",
        "Tang & Munos 2025 (2506.09477); A Comedy of Estimators (2512.21852)",
    ),
    21: Claim(
        "the inverted ratio",
        "Inverted k1 pushes away from the reference, k2 does not change, inverted k3 is an "
        "anchor of another strength.",
        "reported by users; derived here",
    ),
    22: Claim(
        "fixed points under a KL",
        "Where std and KL balance, in closed form for the reverse KL and for k3, at finite and "
        "infinite G; a recursion (the cobweb) is not the gradient flow.",
        "Mroueh 2025 (2503.06639); Vojnovic & Yun 2025 (2502.18548)",
    ),
    23: Claim(
        "edge cases",
        "Equal rewards in float32, one sample, leave-one-out with its own std, an overflowing "
        "k3: what a plain formula gives there, and what this course gives.",
        "reported by users; derived here",
    ),
    25: Claim(
        "one curve w(p)",
        "For rewards of 0 or 1 every scale is a weight w(p) on ∇p: 1, (G−1)/G, w_G(p), MaxRL's sum "
        "of G − 1 powers of 1−p, pass@k's k(1−p)^{k−1}; the likelihood is all pass@k together.",
        "Tajwar et al. 2026 (2602.02710); derived here",
    ),
    26: Claim(
        "pass@k",
        "The leader, summed over its group, is ∇E[max of G] for any rewards, ties included, and "
        "PKPO ∇E[max of k] at any G; the advantages of Pass@k training sum to 0 in every group.",
        "Tang et al. 2025 (2503.19595); Walder & Karkhanis 2025 (2505.15201); derived here",
    ),
    27: Claim(
        "entropy",
        "ΔH = −η Cov(log π, πA) to first order; on one prompt every scale loses the same entropy "
        "per unit of reward; over several prompts which scale, part or bonus keeps more, paired.",
        "Cui et al. 2025 (2505.22617); derived here",
    ),
    28: Claim(
        "sampler mismatch",
        "Exact bias of no correction, truncated and masked weights under four kinds of drift; the "
        "whole answer's weight is unbiased as C → ∞, a weight per token is not for T > 1.",
        "Yao et al. 2025; derived here",
    ),
    30: Claim(
        "several rewards",
        "Added first, groups with rewards (0, 1) and (0, 2) have one advantage, ±.707; normalised "
        "first ±.548 and ±1.095. Normalised first a rare reward is heard louder than a common one, "
        "by √(p₂(1−p₂)/(p₁(1−p₁))) in large groups, whatever their units.",
        "GDPO 2026 (2601.05242); derived here",
    ),
    34: Claim(
        "over-optimisation",
        "Gold turns around while the learned reward still rises: against d = √KL best-of-n gains "
        "d(α − βd) and RL d(α − β log d). The KL of best-of-n is at most log n − (n−1)/n.",
        "Gao et al. 2023 (2210.10760); Beirami et al. 2024 (2401.01879)",
    ),
    41: Claim(
        "what each part buys",
        "Each part of the ladder has a stress under which the rung is better than the rung below, "
        "with a paired 95 % interval that excludes 0, on a bandit and on a transformer; without "
        "the stress it gains little.",
        "this course",
    ),
    42: Claim(
        "from random weights",
        "Reinforcement learning alone takes random weights to nearly all held-out two-digit sums "
        "with GRPO's KL, and to none without it.",
        "this course",
    ),
}


def page(measured: dict[int, list[str]]) -> str:
    """CLAIMS.md: the list, with the ablations that measure each claim (number → names)."""
    lines = [
        "# What the course claims, and where it is measured",
        "",
        "`course facts` prints every single comparison, in the order of these numbers.",
        "",
        "| | claim | source | measured by |",
        "| --- | --- | --- | --- |",
    ]
    for number, claim in CLAIMS.items():
        places = ", ".join(
            f"[{name}](../figures/{name}.json)" for name in sorted(set(measured.get(number, [])))
        )
        text = claim.text.replace("|", "\\|")
        lines.append(f"| {number} | **{claim.title}.** {text} | {claim.source} | {places or '–'} |")
    return "\n".join(lines) + "\n"
