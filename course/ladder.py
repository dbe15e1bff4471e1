"""The ladder: each rung is the rung below with ONE part replaced.

Read from top to bottom, it derives GRPO. Each rung is one call, which holds its name, estimator,
title, source, line style in figures, and the settings of its paper.
"""

# fmt: off
# isort: off
from course.estimator import Estimator, replace
from course.parts import (
    CISPO, GAE, K1, K2, K3, PKPO, AdaptiveBeta, BatchMean, BatchStd, BelowMean, Clip, ClipCov,
    Constant, ConstantLength, DivergenceKL, DivergenceTV, DropSilentGroups, EachReward, ExactKL,
    GammaWeight, GeometricMean, Greedy, GroupMean, GroupStd, GroupTokenMean, HighEntropy,
    ImportanceSampling, InReward,
    Leader, LeaveOneOut, LengthAdaptiveGAE, LengthWeighted, MaxRL, MirrorDescent,
    OffPolicySequences, OldPolicy, OptimalToken, PassKTraining, PositivesTimes, RewardToGo,
    SecondMoment, SequenceMean, SequenceMeanRatio, SequenceRatio, SequenceSum, SoftGate, Tapered,
    TeacherLogRatio, TokenMean, TokenTIS, TokenWhitening, Value,
)
from course.registry import DASH, DASHDOT, DOT, RUNGS, SOLID, LineStyle, Rung, entry, get
from course.registry import name_of, register, select
# isort: on

rung, descendant, branch = entry("rung"), entry("descendant"), entry("branch")

# papers that several rungs cite, and the settings they used
_PPO = "Schulman et al. 2017 (PPO, 1707.06347)"
_GRPO = "Shao et al. 2024 (DeepSeekMath, 2402.03300)"
_RPP = "Hu 2025 (REINFORCE++, 2501.03262 v9)"
_DAPO = "Yu et al. 2025 (DAPO, 2503.14476)"
_GSPO = "Zheng et al. 2025 (GSPO, 2507.18071)"
_SCALERL = "Khatri et al. 2025 (ScaleRL, 2510.13786)"
_PPO_USED = dict(epsilon=0.2, gamma=0.99, gae_lambda=0.95, lr=3e-4, epochs=10, minibatch=64)
_GRPO_USED = dict(G=64, beta=0.04, lr=1e-6, batch=1024, max_tokens=1024, updates_per_rollout=1)
_DAPO_USED = dict(
    G=16, prompts=512, lr=1e-6, epsilon_low=0.2, epsilon_high=0.28, beta=0.0,
    updates_per_rollout=16)
_GSPO_USED = dict(epsilon_low=3e-4, epsilon_high=4e-4, updates_per_rollout=4)

# ---------------------------------------------------------------- the eight rungs

reinforce = rung(
    "reinforce", Estimator(),                                           # Σ_t R log π_t
    "REINFORCE", "Williams 1992, theorem 1", LineStyle("#000000", SOLID))
baseline = rung(
    "baseline", replace(reinforce, baseline=BatchMean()),               # A = R − mean(batch)
    "Baseline", "Williams 1992; Greensmith et al. 2004", LineStyle("#b8860b", DASH))
surrogate = rung(
    "surrogate", replace(baseline, surrogate=ImportanceSampling()),     # ρ A: TRPO's surrogate
    "Importance ratio", "Kakade & Langford 2002; Schulman et al. 2015 (TRPO, 1502.05477), eq. 14",
    LineStyle("#4a98e0", SOLID), max_kl=0.01)
clip = rung(
    "clip", replace(surrogate, surrogate=Clip(0.2)),                    # min(ρA, clip(ρ)A): PPO's
    "PPO clip", f"{_PPO}, eq. 7", LineStyle("#0057a3", DASH), **_PPO_USED)
group_mean = rung(
    "group_mean", replace(clip, baseline=GroupMean()),                  # A = R − mean(group)
    "Group mean", f"{_GRPO}, §4.1", LineStyle("#00875f", SOLID), **_GRPO_USED)
group_std = rung(
    "group_std", replace(group_mean, scale=GroupStd()),                 # A = (R − mean) / std
    "Group std", f"{_GRPO}, §4.1.2", LineStyle("#c25fa0", SOLID), **_GRPO_USED)
length_mean = rung(
    "length_mean", replace(group_std, aggregation=SequenceMean()),      # 1/|o|: same at T = 1
    "Length mean 1/|o|", f"{_GRPO}, eq. 3", LineStyle("#7a1f5c", DOT), **_GRPO_USED)
grpo = rung(
    "grpo", replace(length_mean, kl=K3(beta=0.04)),                     # − β k3
    "GRPO", f"{_GRPO}, eqs. 3 and 4", LineStyle("#b8320f", DASH), **_GRPO_USED)

# --------------------------------------------------- the descendants: one more replaced part each
# intermediate steps share the colour of the method they lead to

rloo = descendant(
    "rloo", replace(baseline, baseline=LeaveOneOut()),                  # A = R − mean(others)
    "RLOO", "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)", LineStyle("#332288", DASH),
    G="2 and 4", beta=0.03, lr=1e-6)
remax = descendant(
    "remax", replace(baseline, baseline=Greedy()),                      # A = R − R(greedy answer)
    "ReMax", "Li et al. 2023 (2310.10505), algorithm 1", LineStyle("#8a6d3b", DASHDOT),
    G=1, lr=1e-6, beta=0.05)
opo = descendant(
    "opo", replace(baseline, baseline=LengthWeighted()),                # A = R − Σ|o|R / Σ|o|
    "OPO", "Hao et al. 2025 (2505.23585)", LineStyle("#7f7f1e", DASH),
    beta=0.0, updates_per_rollout=1)
optimal_token = descendant(                               # A_t = R − Σ W_t R / Σ W_t
    "optimal_token", replace(baseline, baseline=OptimalToken()),
    "Optimal token baseline", "Li et al. 2026 (2602.07078)", LineStyle("#5f5f1e", DASHDOT))
whitened = descendant(
    "whitened", replace(clip, scale=TokenWhitening()),                  # (A − mean) / std of tokens
    "Token whitening", f"{_RPP}, eq. 5", LineStyle("#aa4499", DOT), batch=1024)
whitened_length = descendant(
    "whitened_length", replace(whitened, aggregation=SequenceMean()),   # 1/|o|
    "Token whitening, 1/|o|", f"{_RPP}, eq. 1", LineStyle("#aa4499", DASH), batch=1024)
whitened_to_go = descendant(
    "whitened_to_go", replace(whitened_length, credit=RewardToGo()),    # r_t + r_{t+1} + …
    "Whitened reward-to-go", f"{_RPP}, eq. 4", LineStyle("#aa4499", SOLID), batch=1024)
reinforce_pp = descendant(                                              # r ← r − β k1
    "reinforce_pp", replace(whitened_to_go, kl=K1(beta=0.01, place=InReward())),
    "REINFORCE++", f"{_RPP}, eqs. 1, 4 and 5", LineStyle("#aa4499", DASHDOT), batch=1024)
dr_grpo = descendant(
    "dr_grpo", replace(group_mean, aggregation=ConstantLength()),       # no std, 1/constant
    "Dr. GRPO", "Liu et al. 2025 (2503.20783), listing 1", LineStyle("#117733", DASH),
    G=8, lr=1e-6, beta=0.0, max_tokens=3000, updates_per_rollout=1)
token_mean = descendant(
    "token_mean", replace(group_std, aggregation=TokenMean()),          # all tokens weigh the same
    "Token mean", f"{_DAPO}, eq. 12", LineStyle("#1f5f8b", DOT), **_DAPO_USED)
clip_higher = descendant(
    "clip_higher", replace(token_mean, surrogate=Clip(0.2, 0.28)),      # more room upwards
    "Clip-higher", f"{_DAPO}, eq. 10", LineStyle("#1f5f8b", DASHDOT), **_DAPO_USED)
dapo = descendant(                                        # zero-variance groups are dropped
    "dapo", replace(clip_higher, sample_filter=DropSilentGroups()),
    "DAPO", f"{_DAPO}, eqs. 8 to 12", LineStyle("#1f5f8b", SOLID), **_DAPO_USED)
sequence_ratio = descendant(                                            # one ρ per answer
    "sequence_ratio", replace(length_mean, ratio=SequenceMeanRatio()),
    "Sequence ratio", f"{_GSPO}, eq. 7", LineStyle("#1a8a80", DOT), **_GSPO_USED)
gspo = descendant(                                                      # with bounds that fit it
    "gspo", replace(sequence_ratio, surrogate=Clip(3e-4, 4e-4)),
    "GSPO", f"{_GSPO}, eq. 5", LineStyle("#1a8a80", DASHDOT), **_GSPO_USED)
luspo = descendant(                                       # Σ_t; the paper also widens the clip
    "luspo", replace(gspo, aggregation=SequenceSum()),
    "LUSPO", "Liu et al. 2026 (LUSPO, 2602.05261), eq. 7", LineStyle("#1a8a80", DASH),
    G=8, epsilon_low=2e-3, epsilon_high=2.5e-3, lr=1e-6)
cispo = descendant(                                       # the weight is clipped, not the gradient
    "cispo", replace(token_mean, surrogate=CISPO(epsilon_high=0.28)),
    "CISPO", "MiniMax 2025 (MiniMax-M1, 2506.13585), eqs. 4 and 5", LineStyle("#ee3377", DASH),
    epsilon_low="open", epsilon_high="not published", updates_per_rollout=16)
lite_ppo = descendant(                                    # one std for all prompts
    "lite_ppo", replace(token_mean, scale=BatchStd()),
    "Lite PPO", "Liu et al. 2025 (Lite PPO, 2508.08221)", LineStyle("#00778f", DOT))
lite_cispo = descendant(                                  # the weight is clipped, not the gradient
    "lite_cispo", replace(lite_ppo, surrogate=CISPO(epsilon_high=0.28)),
    "Batch std, CISPO", _SCALERL, LineStyle("#00778f", DASHDOT))
prompt_mean = descendant(                                 # all prompts weigh the same
    "prompt_mean", replace(lite_cispo, aggregation=GroupTokenMean()),
    "Prompt mean", _SCALERL, LineStyle("#00778f", DASH))
scale_rl = descendant(                                    # silent groups are left out of the mean
    "scale_rl", replace(prompt_mean, sample_filter=DropSilentGroups()),
    "ScaleRL", _SCALERL, LineStyle("#00778f", SOLID))
sapo = descendant(                                                      # a soft gate for the clip
    "sapo", replace(length_mean, surrogate=SoftGate(1.0, 1.05)),
    "SAPO", "Gao et al. 2025 (2511.20347), eqs. 5 and 6", LineStyle("#c96f00", DASHDOT),
    tau_positive=1.0, tau_negative=1.05, updates_per_rollout=4)
tis_grpo = descendant(                                    # μ sampled, not π_old: times min(κ, 2)
    "tis_grpo", replace(grpo, correction=TokenTIS(cap=2.0)),
    "GRPO with TIS", "Yao et al. 2025; Ionides 2008", LineStyle("#b8320f", DOT), cap=2.0)
answer_ratio = descendant(                                # ρ = Π_t ρ_t, one per answer
    "answer_ratio", replace(token_mean, ratio=SequenceRatio()),
    "Answer ratio", "Shen et al. 2026 (VESPO, 2602.10693)", LineStyle("#6a51a3", DOT))
vespo = descendant(                                       # φ(ρ): far samples fade out
    "vespo", replace(answer_ratio, surrogate=GammaWeight()),
    "VESPO", "Shen et al. 2026 (VESPO, 2602.10693)", LineStyle("#6a51a3", DASHDOT),
    k_positive=2, lambda_positive=3, k_negative=3, lambda_negative=2)
maxrl = descendant(                                       # A = (R − mean) / mean: towards log p
    "maxrl", replace(group_mean, scale=MaxRL()),
    "MaxRL", "Tajwar et al. 2026 (MaxRL, 2602.02710)", LineStyle("#9e2a2b", DASHDOT))
gdpo = descendant(                                        # each reward normalised, then added
    "gdpo", replace(length_mean, scale=EachReward()),
    "GDPO", "GDPO 2026 (2601.05242)", LineStyle("#00695c", DASHDOT))
leader = descendant(                                      # the best gets R₁ − R₂: E[max of G]
    "leader", replace(reinforce, scale=Leader()),
    "Pass@k leader", "Tang et al. 2025 (2503.19595)", LineStyle("#0b7285", SOLID))
pkpo = descendant(                                        # E[max of k], for any k ≤ G
    "pkpo", replace(leader, scale=PKPO(k=2)),
    "PKPO", "Walder & Karkhanis 2025 (2505.15201), eq. 33", LineStyle("#0b7285", DASH), k="2 to 8")
pass_k_training = descendant(                             # k-subsets of the group, whitened
    "pass_k_training", replace(leader, scale=PassKTraining(k=2)),
    "Pass@k training", "Chen et al. 2025 (2508.10751)", LineStyle("#0b7285", DOT), k=4)
plus_minus = descendant(                                  # rewards 0, 1 → −½, ½
    "plus_minus", replace(reinforce, baseline=Constant(0.5)),
    "REINFORCE, ±½", "Zhu et al. 2025 (2506.01347)", LineStyle("#495057", DOT))
w_reinforce = descendant(                                 # right answers count a tenth
    "w_reinforce", replace(plus_minus, scale=PositivesTimes(0.1)),
    "W-REINFORCE", "Zhu et al. 2025 (2506.01347)", LineStyle("#495057", DASHDOT), factor=0.1)
high_entropy = descendant(                                # the fifth of the tokens with most H
    "high_entropy", replace(clip_higher, sample_filter=HighEntropy(0.2)),
    "High-entropy tokens", "Wang et al. 2025 (2506.01939)", LineStyle("#4d7a1f", DASH), share=0.2)
clip_cov = descendant(                                    # less of what costs entropy
    "clip_cov", replace(token_mean, sample_filter=ClipCov()),
    "Clip-Cov", "Cui et al. 2025 (2505.22617)", LineStyle("#4d7a1f", DASHDOT),
    share=2e-4, low=1, high=5)
no_clip = descendant(                                     # ρA with a token mean: nothing is bounded
    "no_clip", replace(token_mean, surrogate=ImportanceSampling()),
    "Token mean, no clip", "Zheng, Zhao & Chen 2025 (M2PO, 2510.01161)", LineStyle("#8c510a", DOT))
m2po = descendant(                                        # mean (log ρ)² ≤ τ over what is kept
    "m2po", replace(no_clip, sample_filter=SecondMoment(0.04)),
    "M2PO", "Zheng, Zhao & Chen 2025 (M2PO, 2510.01161)", LineStyle("#8c510a", DASH), tau=0.04)
opsm = descendant(                                        # blame for what π has left is dropped
    "opsm", replace(length_mean, sample_filter=OffPolicySequences()),
    "Off-policy mask", "DeepSeek-V3.2 2025 (2512.02556), eq. 9",
    LineStyle("#7a1f5c", DASHDOT), threshold="not published")
dppo_tv = descendant(                                     # silent where |π − π_old| > δ
    "dppo_tv", replace(token_mean, surrogate=DivergenceTV(0.15, 0.15)),
    "DPPO-TV", "Qi et al. 2026 (DPPO, 2602.04879)", LineStyle("#c1121f", DASH), delta=0.15)
dppo_kl = descendant(                                     # the same, in KL of one token
    "dppo_kl", replace(token_mean, surrogate=DivergenceKL(0.05, 0.05)),
    "DPPO-KL", "Qi et al. 2026 (DPPO, 2602.04879)", LineStyle("#c1121f", DASHDOT), delta=0.05)
gmpo = descendant(                                        # geometric mean of clipped ratios
    "gmpo", replace(length_mean, surrogate=GeometricMean(0.4)),
    "GMPO", "Zhao et al. 2025 (GMPO, 2507.20673)", LineStyle("#b5179e", DASHDOT), epsilon=0.4)
mirror_descent = descendant(                              # a spring on log ρ for the clip
    "mirror_descent", replace(group_mean, surrogate=MirrorDescent(1e-3)),
    "Mirror descent", "Richemond et al. 2024 (DRO, 2405.19107)", LineStyle("#556b2f", DASH))
kimi = descendant(                                        # the spring of whole answers
    "kimi", replace(mirror_descent, ratio=SequenceRatio()),
    "Kimi k1.5", "Kimi Team 2025 (Kimi k1.5, 2501.12599), §2.3.2",
    LineStyle("#556b2f", DASHDOT), beta="not published")
tapered = descendant(                                     # blame times min(ρ, 1)
    "tapered", replace(baseline, surrogate=Tapered()),
    "Tapered blame", "Le Roux et al. 2025 (TOPR, 2503.14286)", LineStyle("#b5651d", DOT))
topr = descendant(                                        # one ρ per answer
    "topr", replace(tapered, ratio=SequenceRatio()),
    "TOPR", "Le Roux et al. 2025 (TOPR, 2503.14286)", LineStyle("#b5651d", DASHDOT),
    rewards="1 and −1")
asymre = descendant(                                      # A = R − (mean(group) − δ): more praise
    "asymre", replace(baseline, baseline=BelowMean(0.1)),
    "AsymRE", "Arnal et al. 2025 (AsymRE, 2506.20520)", LineStyle("#b8860b", DASHDOT))

# ---------------------------------------------------------- the branches: PPO as it was published

ppo_value = branch(                                       # A = R − V: a critic for the batch mean
    "ppo_value", replace(clip, baseline=Value(), value_coef=0.5),
    "PPO, value baseline", f"{_PPO}, eq. 9", LineStyle("#661100", DOT), **_PPO_USED)
ppo = branch(                                                           # V for every token
    "ppo", replace(ppo_value, credit=GAE(gamma=1.0, gae_lambda=0.95)),
    "PPO with critic and GAE",
    f"Schulman et al. 2016 (GAE, 1506.02438), eq. 16; {_PPO}, eq. 9",
    LineStyle("#661100", SOLID), **_PPO_USED)
ppo_long = branch(                                                      # λ grows with the answer
    "ppo_long", replace(ppo, credit=LengthAdaptiveGAE(alpha=0.05)),
    "PPO, length-adaptive λ", "Yue et al. 2025 (VAPO, 2504.05118)", LineStyle("#661100", DASHDOT),
    alpha=0.05)
distillation = branch(                                                  # a teacher for the reward
    "distillation", replace(reinforce, credit=TeacherLogRatio()),
    "On-policy distillation", "Gu et al. 2024 (MiniLLM, 2306.08543); Agarwal et al. 2024",
    LineStyle("#3b5b3b", DASH))
ppo_kl = branch(                                                        # a penalty for the clip
    "ppo_kl", replace(surrogate, kl=ExactKL(beta=1.0, anchor=OldPolicy())),
    "PPO, KL penalty", f"{_PPO}, eq. 8", LineStyle("#5566aa", DOT), beta="0.3, 1, 3 and 10")
ppo_kl_adaptive = branch(                                               # β follows the KL
    "ppo_kl_adaptive",
    replace(ppo_kl, kl=ExactKL(beta=AdaptiveBeta(1.0, 0.01), anchor=OldPolicy())),
    "PPO, adaptive KL", f"{_PPO}, eq. 8 and §4", LineStyle("#5566aa", DASHDOT),
    beta=1.0, target="0.003, 0.01 and 0.03")
group_whitened = branch(                                                # REINFORCE++, by group
    "group_whitened", replace(group_mean, scale=TokenWhitening()),
    "Group mean, whitened", f"{_RPP}, eqs. 6 and 7", LineStyle("#884488", DOT))
group_whitened_length = branch(                                         # 1/|o|
    "group_whitened_length", replace(group_whitened, aggregation=SequenceMean()),
    "Group mean, whitened, 1/|o|", f"{_RPP}, eqs. 1, 6 and 7", LineStyle("#884488", DASH))
reinforce_pp_baseline = branch(                                         # − β k2
    "reinforce_pp_baseline", replace(group_whitened_length, kl=K2(beta=0.01)),
    "REINFORCE++-baseline", f"{_RPP}, eqs. 6 to 8", LineStyle("#884488", DASHDOT))
# fmt: on

__all__ = ["RUNGS", "Rung", "get", "name_of", "register", "select"]
