"""The ladder: each rung is the rung below with ONE part replaced. Read top to bottom it is the derivation of GRPO."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from course.errors import CourseError, require, unknown
from course.estimator import PART_KINDS, Estimator, replace
from course.parts import (
    CISPO,
    GAE,
    K1,
    K2,
    K3,
    AdaptiveBeta,
    BatchMean,
    Clip,
    ConstantLength,
    DropSilentGroups,
    ExactKL,
    Greedy,
    GroupMean,
    GroupStd,
    InReward,
    LeaveOneOut,
    LengthWeighted,
    OldPolicy,
    Ratio,
    RewardToGo,
    SequenceMean,
    SequenceMeanRatio,
    SequenceSum,
    SoftGate,
    TokenMean,
    TokenWhitening,
    Value,
)

# fmt: off
# ---------------------------------------------------------------- the eight rungs

reinforce = Estimator()                                               # Σ_t R log π_t             policy gradient
baseline = replace(reinforce, baseline=BatchMean())                   # A = R − mean(batch)
surrogate = replace(baseline, surrogate=Ratio())                      # ρ A                       TRPO's surrogate
clip = replace(surrogate, surrogate=Clip(0.2))                        # min(ρA, clip(ρ)A)         PPO, without critic
group_mean = replace(clip, baseline=GroupMean())                      # A = R − mean(group)
group_std = replace(group_mean, scale=GroupStd())                     # A = (R − mean) / std
length_mean = replace(group_std, aggregation=SequenceMean())          # 1/|o|; nothing changes at T = 1
grpo = replace(length_mean, kl=K3(beta=0.04))                         # − β k3

# ---------------------------------------------------------------- the descendants: one more replaced part each

rloo = replace(baseline, baseline=LeaveOneOut())                      # A = R − mean(others): unbiased
remax = replace(baseline, baseline=Greedy())                          # A = R − R(greedy answer)
opo = replace(baseline, baseline=LengthWeighted())                    # A = R − Σ|o|R / Σ|o|
whitened = replace(clip, scale=TokenWhitening())                      # A centred and scaled over all tokens
whitened_length = replace(whitened, aggregation=SequenceMean())       # 1/|o|
whitened_to_go = replace(whitened_length, credit=RewardToGo())        # a token answers for what follows it
reinforce_pp = replace(whitened_to_go, kl=K1(beta=0.01, place=InReward()))  # r ← r − β k1       REINFORCE++
dr_grpo = replace(group_mean, aggregation=ConstantLength())           # no std, a constant divisor
token_mean = replace(group_std, aggregation=TokenMean())              # every token of the batch weighs the same
clip_higher = replace(token_mean, surrogate=Clip(0.2, 0.28))          # more room upwards
dapo = replace(clip_higher, sample_filter=DropSilentGroups())         # silent groups do not dilute the mean
sequence_ratio = replace(length_mean, ratio=SequenceMeanRatio())      # one ρ per answer
gspo = replace(sequence_ratio, surrogate=Clip(3e-4, 4e-4))            # with bounds that fit it
luspo = replace(gspo, aggregation=SequenceSum())                      # without 1/|o| (the paper also widens the clip)
cispo = replace(token_mean, surrogate=CISPO(epsilon_high=0.28))       # the weight is clipped, not the gradient
sapo = replace(length_mean, surrogate=SoftGate(1.0, 1.05))            # a soft gate for the clip

# ---------------------------------------------------------------- the branches: PPO as it was published

ppo_value = replace(clip, baseline=Value(), value_coef=0.5)           # A = R − V: a critic in the batch's place
ppo = replace(ppo_value, credit=GAE(gamma=1.0, gae_lambda=0.95))      # the critic for every token
ppo_kl = replace(surrogate, kl=ExactKL(beta=1.0, anchor=OldPolicy()))  # a penalty for the clip
ppo_kl_adaptive = replace(ppo_kl, kl=ExactKL(beta=AdaptiveBeta(1.0, 0.01), anchor=OldPolicy()))
group_whitened = replace(group_mean, scale=TokenWhitening())
group_whitened_length = replace(group_whitened, aggregation=SequenceMean())
reinforce_pp_baseline = replace(group_whitened_length, kl=K2(beta=0.01))  # REINFORCE++ with a group baseline
# fmt: on


@dataclass(frozen=True)
class Rung:
    """An estimator with its name, where it comes from, the rung it stands on, and the settings its paper uses."""

    name: str
    estimator: Estimator
    title: str
    source: str
    kind: str = "own"
    paper: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.kind in ("rung", "descendant", "branch", "own"), "rung.kind", self.kind, "rung, descendant, branch or own")
        object.__setattr__(self, "paper", MappingProxyType(dict(self.paper)))

    @property
    def on(self) -> str | None:
        """The name of the rung it stands on."""
        below = self.estimator.below
        return None if below is None else name_of(below)

    @property
    def replaced(self) -> str:
        """What was replaced, for a table: «baseline: GroupMean()»."""
        changed = sorted(self.estimator.changed, key=list(self.estimator.__dataclass_fields__).index)
        parts = [name for name in changed if name in PART_KINDS]
        return ", ".join(f"{name}: {getattr(self.estimator, name).short}" for name in parts) or "—"


RUNGS: dict[str, Rung] = {}


def register(
    name: str, estimator: Estimator, title: str = "", source: str = "", kind: str = "own", paper: Mapping[str, str | float] | None = None
) -> Rung:
    """Enter an estimator under a name, so that every ablation, figure and lesson widget takes it. Raises if the name is taken."""
    require(name.isidentifier(), "rung name", name, "a Python identifier")
    if name in RUNGS and RUNGS[name].estimator != estimator:
        raise CourseError(f"rung name: got {name!r}, which stands for another estimator already; allowed is a new name")
    RUNGS[name] = Rung(name, estimator, title or name, source or "your own", kind, paper or {})
    return RUNGS[name]


def get(name: str) -> Rung:
    """The rung of that name; «file.py:name» loads an estimator of your own from a Python file."""
    if ".py:" in name:
        return _load(*name.rsplit(":", 1))
    if name not in RUNGS:
        raise unknown("rung", name, RUNGS)
    return RUNGS[name]


def select(names: Iterable[str] | None = None) -> list[Rung]:
    """The rungs of those names, in that order; None gives the eight of the ladder."""
    if names is None:
        return [rung for rung in RUNGS.values() if rung.kind == "rung"]
    chosen = [get(name.strip()) for name in names]
    require(len(chosen) > 0, "rungs", "", "at least one name")
    return chosen


def name_of(estimator: Estimator) -> str | None:
    """The name under which an estimator is registered, or None."""
    return next((rung.name for rung in RUNGS.values() if rung.estimator == estimator), None)


def _load(path: str, attribute: str) -> Rung:
    if not Path(path).is_file():
        raise CourseError(f"rungs: got {path!r}, which is no file; allowed is a registered name or FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    estimator = getattr(module, attribute, None)
    require(isinstance(estimator, Estimator), f"{path}:{attribute}", estimator, "an Estimator")
    return register(attribute, estimator)


_GRPO = "Shao et al. 2024 (DeepSeekMath, 2402.03300)"
_DAPO = "Yu et al. 2025 (DAPO, 2503.14476)"
_RPP = "Hu 2025 (REINFORCE++, 2501.03262 v9)"
_PPO = "Schulman et al. 2017 (PPO, 1707.06347)"
_GRPO_PAPER = {"G": 64, "beta": 0.04, "lr": 1e-6, "batch": 1024, "max_tokens": 1024, "updates_per_rollout": 1}
_DAPO_PAPER = {"G": 16, "prompts": 512, "lr": 1e-6, "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0, "updates_per_rollout": 16}
_PPO_PAPER = {"epsilon": 0.2, "gamma": 0.99, "gae_lambda": 0.95, "lr": 3e-4, "epochs": 10, "minibatch": 64}
_RPP_PAPER = {"batch": 1024}
for _name, _estimator, _title, _source, _kind, _paper in (
    ("reinforce", reinforce, "REINFORCE", "Williams 1992, theorem 1", "rung", {}),
    ("baseline", baseline, "Baseline", "Williams 1992; Greensmith et al. 2004", "rung", {}),
    ("surrogate", surrogate, "Importance ratio", "Kakade & Langford 2002; Schulman et al. 2015 (TRPO, 1502.05477), eq. 14", "rung", {"max_kl": 0.01}),
    ("clip", clip, "PPO clip", f"{_PPO}, eq. 7", "rung", _PPO_PAPER),
    ("group_mean", group_mean, "Group mean", f"{_GRPO}, §4.1", "rung", _GRPO_PAPER),
    ("group_std", group_std, "Group std", f"{_GRPO}, §4.1.2", "rung", _GRPO_PAPER),
    ("length_mean", length_mean, "Length mean 1/|o|", f"{_GRPO}, eq. 3", "rung", _GRPO_PAPER),
    ("grpo", grpo, "GRPO", f"{_GRPO}, eqs. 3 and 4", "rung", _GRPO_PAPER),
    ("rloo", rloo, "RLOO", "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)", "descendant", {"G": "2 and 4", "beta": 0.03, "lr": 1e-6}),
    ("remax", remax, "ReMax", "Li et al. 2023 (2310.10505), algorithm 1", "descendant", {"G": 1, "lr": 1e-6, "beta": 0.05}),
    ("opo", opo, "OPO", "Hao et al. 2025 (2505.23585)", "descendant", {"beta": 0.0, "updates_per_rollout": 1}),
    ("whitened", whitened, "Token whitening", f"{_RPP}, eq. 5", "descendant", _RPP_PAPER),
    ("whitened_length", whitened_length, "Token whitening, 1/|o|", f"{_RPP}, eq. 1", "descendant", _RPP_PAPER),
    ("whitened_to_go", whitened_to_go, "Whitened reward-to-go", f"{_RPP}, eq. 4", "descendant", _RPP_PAPER),
    ("reinforce_pp", reinforce_pp, "REINFORCE++", f"{_RPP}, eqs. 1, 4 and 5", "descendant", _RPP_PAPER),
    ("dr_grpo", dr_grpo, "Dr. GRPO", "Liu et al. 2025 (2503.20783), listing 1", "descendant", {"G": 8, "lr": 1e-6, "beta": 0.0, "max_tokens": 3000, "updates_per_rollout": 1}),
    ("token_mean", token_mean, "Token mean", f"{_DAPO}, eq. 12", "descendant", _DAPO_PAPER),
    ("clip_higher", clip_higher, "Clip-higher", f"{_DAPO}, eq. 10", "descendant", _DAPO_PAPER),
    ("dapo", dapo, "DAPO", f"{_DAPO}, eqs. 8 to 12", "descendant", _DAPO_PAPER),
    ("sequence_ratio", sequence_ratio, "Sequence ratio", "Zheng et al. 2025 (GSPO, 2507.18071), eq. 7", "descendant", {}),
    ("gspo", gspo, "GSPO", "Zheng et al. 2025 (GSPO, 2507.18071), eq. 5", "descendant", {"epsilon_low": 3e-4, "epsilon_high": 4e-4, "updates_per_rollout": 4}),
    ("luspo", luspo, "LUSPO", "Liu et al. 2026 (LUSPO, 2602.05261), eq. 7", "descendant", {"G": 8, "epsilon_low": 2e-3, "epsilon_high": 2.5e-3, "lr": 1e-6}),
    ("cispo", cispo, "CISPO", "MiniMax 2025 (MiniMax-M1, 2506.13585), eqs. 4 and 5", "descendant", {"epsilon_low": "open", "epsilon_high": "not published", "updates_per_rollout": 16}),
    ("sapo", sapo, "SAPO", "Gao et al. 2025 (2511.20347), eqs. 5 and 6", "descendant", {"tau_positive": 1.0, "tau_negative": 1.05, "updates_per_rollout": 4}),
    ("ppo_value", ppo_value, "PPO, value baseline", f"{_PPO}, eq. 9", "branch", _PPO_PAPER),
    ("ppo", ppo, "PPO with critic and GAE", f"Schulman et al. 2016 (GAE, 1506.02438), eq. 16; {_PPO}, eq. 9", "branch", _PPO_PAPER),
    ("ppo_kl", ppo_kl, "PPO, KL penalty", f"{_PPO}, eq. 8", "branch", {"beta": "0.3, 1, 3, 10"}),
    ("ppo_kl_adaptive", ppo_kl_adaptive, "PPO, adaptive KL", f"{_PPO}, eq. 8 and §4", "branch", {"beta": 1.0, "target": "0.003, 0.01, 0.03"}),
    ("group_whitened", group_whitened, "Group mean, whitened", f"{_RPP}, eqs. 6 and 7", "branch", _RPP_PAPER),
    ("group_whitened_length", group_whitened_length, "Group mean, whitened, 1/|o|", f"{_RPP}, eqs. 1, 6 and 7", "branch", _RPP_PAPER),
    ("reinforce_pp_baseline", reinforce_pp_baseline, "REINFORCE++-baseline", f"{_RPP}, eqs. 6 to 8", "branch", _RPP_PAPER),
):  # fmt: skip
    register(_name, _estimator, _title, _source, _kind, _paper)
