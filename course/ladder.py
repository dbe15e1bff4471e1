"""The ladder: each rung is the rung below with ONE part replaced.

Read top to bottom it is the derivation of GRPO.
"""

# fmt: off
# isort: off
from course.estimator import Estimator, replace
from course.parts import (
    CISPO, GAE, K1, K2, K3, AdaptiveBeta, BatchMean, Clip, ConstantLength, DropSilentGroups,
    ExactKL, Greedy, GroupMean, GroupStd, ImportanceSampling, InReward, LeaveOneOut,
    LengthWeighted, OldPolicy, RewardToGo, SequenceMean, SequenceMeanRatio, SequenceSum,
    SoftGate, TokenMean, TokenWhitening, Value,
)
from course.registry import RUNGS, Paper, Rung, get, name_of, register, select
# isort: on

# ---------------------------------------------------------------- the eight rungs

# Σ_t R log π_t             policy gradient
reinforce = Estimator()
baseline = replace(reinforce, baseline=BatchMean())                   # A = R − mean(batch)
# ρ A                       TRPO's surrogate
surrogate = replace(baseline, surrogate=ImportanceSampling())
# min(ρA, clip(ρ)A)         PPO, without critic
clip = replace(surrogate, surrogate=Clip(0.2))
group_mean = replace(clip, baseline=GroupMean())                      # A = R − mean(group)
group_std = replace(group_mean, scale=GroupStd())                     # A = (R − mean) / std
# 1/|o|; nothing changes at T = 1
length_mean = replace(group_std, aggregation=SequenceMean())
grpo = replace(length_mean, kl=K3(beta=0.04))                         # − β k3

# --------------------------------------------------- the descendants: one more replaced part each

# A = R − mean(others): unbiased
rloo = replace(baseline, baseline=LeaveOneOut())
remax = replace(baseline, baseline=Greedy())                          # A = R − R(greedy answer)
opo = replace(baseline, baseline=LengthWeighted())                    # A = R − Σ|o|R / Σ|o|
# A centred and scaled over all tokens
whitened = replace(clip, scale=TokenWhitening())
whitened_length = replace(whitened, aggregation=SequenceMean())       # 1/|o|
# a token answers for what follows it
whitened_to_go = replace(whitened_length, credit=RewardToGo())
# r ← r − β k1       REINFORCE++
reinforce_pp = replace(whitened_to_go, kl=K1(beta=0.01, place=InReward()))
dr_grpo = replace(group_mean, aggregation=ConstantLength())           # no std, a constant divisor
# every token of the batch weighs the same
token_mean = replace(group_std, aggregation=TokenMean())
clip_higher = replace(token_mean, surrogate=Clip(0.2, 0.28))          # more room upwards
# silent groups do not dilute the mean
dapo = replace(clip_higher, sample_filter=DropSilentGroups())
sequence_ratio = replace(length_mean, ratio=SequenceMeanRatio())      # one ρ per answer
gspo = replace(sequence_ratio, surrogate=Clip(3e-4, 4e-4))            # with bounds that fit it
# without 1/|o| (the paper also widens the clip)
luspo = replace(gspo, aggregation=SequenceSum())
# the weight is clipped, not the gradient
cispo = replace(token_mean, surrogate=CISPO(epsilon_high=0.28))
sapo = replace(length_mean, surrogate=SoftGate(1.0, 1.05))            # a soft gate for the clip

# ---------------------------------------------------------- the branches: PPO as it was published

# A = R − V: a critic in the batch's place
ppo_value = replace(clip, baseline=Value(), value_coef=0.5)
ppo = replace(ppo_value, credit=GAE(gamma=1.0, gae_lambda=0.95))      # the critic for every token
ppo_kl = replace(surrogate, kl=ExactKL(beta=1.0, anchor=OldPolicy()))  # a penalty for the clip
ppo_kl_adaptive = replace(ppo_kl, kl=ExactKL(beta=AdaptiveBeta(1.0, 0.01), anchor=OldPolicy()))
group_whitened = replace(group_mean, scale=TokenWhitening())
group_whitened_length = replace(group_whitened, aggregation=SequenceMean())
# REINFORCE++ with a group baseline
reinforce_pp_baseline = replace(group_whitened_length, kl=K2(beta=0.01))
# fmt: on

__all__ = ["RUNGS", "Rung", "get", "name_of", "register", "select"]

# ---------------------------------------------------------------- where they come from

_GRPO = "Shao et al. 2024 (DeepSeekMath, 2402.03300)"
_DAPO = "Yu et al. 2025 (DAPO, 2503.14476)"
_RPP = "Hu 2025 (REINFORCE++, 2501.03262 v9)"
_PPO = "Schulman et al. 2017 (PPO, 1707.06347)"
_GSPO = "Zheng et al. 2025 (GSPO, 2507.18071)"

SOURCES = {  # kind → (name, estimator, title, source)
    "rung": (
        ("reinforce", reinforce, "REINFORCE", "Williams 1992, theorem 1"),
        ("baseline", baseline, "Baseline", "Williams 1992; Greensmith et al. 2004"),
        (
            "surrogate",
            surrogate,
            "Importance ratio",
            "Kakade & Langford 2002; Schulman et al. 2015 (TRPO, 1502.05477), eq. 14",
        ),
        ("clip", clip, "PPO clip", f"{_PPO}, eq. 7"),
        ("group_mean", group_mean, "Group mean", f"{_GRPO}, §4.1"),
        ("group_std", group_std, "Group std", f"{_GRPO}, §4.1.2"),
        ("length_mean", length_mean, "Length mean 1/|o|", f"{_GRPO}, eq. 3"),
        ("grpo", grpo, "GRPO", f"{_GRPO}, eqs. 3 and 4"),
    ),
    "descendant": (
        ("rloo", rloo, "RLOO", "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)"),
        ("remax", remax, "ReMax", "Li et al. 2023 (2310.10505), algorithm 1"),
        ("opo", opo, "OPO", "Hao et al. 2025 (2505.23585)"),
        ("whitened", whitened, "Token whitening", f"{_RPP}, eq. 5"),
        ("whitened_length", whitened_length, "Token whitening, 1/|o|", f"{_RPP}, eq. 1"),
        ("whitened_to_go", whitened_to_go, "Whitened reward-to-go", f"{_RPP}, eq. 4"),
        ("reinforce_pp", reinforce_pp, "REINFORCE++", f"{_RPP}, eqs. 1, 4 and 5"),
        ("dr_grpo", dr_grpo, "Dr. GRPO", "Liu et al. 2025 (2503.20783), listing 1"),
        ("token_mean", token_mean, "Token mean", f"{_DAPO}, eq. 12"),
        ("clip_higher", clip_higher, "Clip-higher", f"{_DAPO}, eq. 10"),
        ("dapo", dapo, "DAPO", f"{_DAPO}, eqs. 8 to 12"),
        ("sequence_ratio", sequence_ratio, "Sequence ratio", f"{_GSPO}, eq. 7"),
        ("gspo", gspo, "GSPO", f"{_GSPO}, eq. 5"),
        ("luspo", luspo, "LUSPO", "Liu et al. 2026 (LUSPO, 2602.05261), eq. 7"),
        ("cispo", cispo, "CISPO", "MiniMax 2025 (MiniMax-M1, 2506.13585), eqs. 4 and 5"),
        ("sapo", sapo, "SAPO", "Gao et al. 2025 (2511.20347), eqs. 5 and 6"),
    ),
    "branch": (
        ("ppo_value", ppo_value, "PPO, value baseline", f"{_PPO}, eq. 9"),
        (
            "ppo",
            ppo,
            "PPO with critic and GAE",
            f"Schulman et al. 2016 (GAE, 1506.02438), eq. 16; {_PPO}, eq. 9",
        ),
        ("ppo_kl", ppo_kl, "PPO, KL penalty", f"{_PPO}, eq. 8"),
        ("ppo_kl_adaptive", ppo_kl_adaptive, "PPO, adaptive KL", f"{_PPO}, eq. 8 and §4"),
        ("group_whitened", group_whitened, "Group mean, whitened", f"{_RPP}, eqs. 6 and 7"),
        (
            "group_whitened_length",
            group_whitened_length,
            "Group mean, whitened, 1/|o|",
            f"{_RPP}, eqs. 1, 6 and 7",
        ),
        (
            "reinforce_pp_baseline",
            reinforce_pp_baseline,
            "REINFORCE++-baseline",
            f"{_RPP}, eqs. 6 to 8",
        ),
    ),
}

# What the papers used. Several rungs may share one paper's row.
_GRPO_USED: Paper = {
    "G": 64,
    "beta": 0.04,
    "lr": 1e-6,
    "batch": 1024,
    "max_tokens": 1024,
    "updates_per_rollout": 1,
}
_DAPO_USED: Paper = {
    "G": 16,
    "prompts": 512,
    "lr": 1e-6,
    "epsilon_low": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "updates_per_rollout": 16,
}
_PPO_USED: Paper = {
    "epsilon": 0.2,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "lr": 3e-4,
    "epochs": 10,
    "minibatch": 64,
}
_RPP_USED: Paper = {"batch": 1024}
_GSPO_USED: Paper = {"epsilon_low": 3e-4, "epsilon_high": 4e-4, "updates_per_rollout": 4}

PAPERS: dict[str, Paper] = {
    "surrogate": {"max_kl": 0.01},
    **dict.fromkeys(("clip", "ppo_value", "ppo"), _PPO_USED),
    **dict.fromkeys(("group_mean", "group_std", "length_mean", "grpo"), _GRPO_USED),
    **dict.fromkeys(("token_mean", "clip_higher", "dapo"), _DAPO_USED),
    **dict.fromkeys(("sequence_ratio", "gspo"), _GSPO_USED),
    "rloo": {"G": "2 and 4", "beta": 0.03, "lr": 1e-6},
    "remax": {"G": 1, "lr": 1e-6, "beta": 0.05},
    "opo": {"beta": 0.0, "updates_per_rollout": 1},
    **dict.fromkeys(("whitened", "whitened_length", "whitened_to_go", "reinforce_pp"), _RPP_USED),
    "dr_grpo": {"G": 8, "lr": 1e-6, "beta": 0.0, "max_tokens": 3000, "updates_per_rollout": 1},
    "luspo": {"G": 8, "epsilon_low": 2e-3, "epsilon_high": 2.5e-3, "lr": 1e-6},
    "cispo": {"epsilon_low": "open", "epsilon_high": "not published", "updates_per_rollout": 16},
    "sapo": {"tau_positive": 1.0, "tau_negative": 1.05, "updates_per_rollout": 4},
    "ppo_kl": {"beta": "0.3, 1, 3 and 10"},
    "ppo_kl_adaptive": {"beta": 1.0, "target": "0.003, 0.01 and 0.03"},
}

for _kind, _rows in SOURCES.items():
    for _name, _estimator, _title, _source in _rows:
        register(_name, _estimator, _title, _source, _kind, PAPERS.get(_name))
