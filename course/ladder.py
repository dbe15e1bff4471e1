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
reinforce_pp = replace(whitened, kl=K1(beta=0.01, place=InReward()))  # r ← r − β k1             REINFORCE++
dr_grpo = replace(group_mean, aggregation=ConstantLength())           # no std, a constant divisor
token_mean = replace(group_std, aggregation=TokenMean())              # every token of the batch weighs the same
clip_higher = replace(token_mean, surrogate=Clip(0.2, 0.28))          # more room upwards
dapo = replace(clip_higher, sample_filter=DropSilentGroups())         # silent groups do not dilute the mean
sequence_ratio = replace(length_mean, ratio=SequenceMeanRatio())      # one ρ per answer
gspo = replace(sequence_ratio, surrogate=Clip(3e-4, 4e-4))            # with bounds that fit it
luspo = replace(gspo, aggregation=SequenceSum())                      # without 1/|o|
cispo = replace(token_mean, surrogate=CISPO(epsilon_high=0.28))       # the weight is clipped, not the gradient
sapo = replace(length_mean, surrogate=SoftGate(1.0, 1.05))            # a soft gate for the clip

# ---------------------------------------------------------------- the branches: PPO as it was published

ppo_value = replace(clip, baseline=Value(), value_coef=0.5)           # A = R − V: a critic in the batch's place
ppo = replace(ppo_value, credit=GAE(gamma=1.0, gae_lambda=0.95))      # the critic for every token
ppo_kl = replace(surrogate, kl=ExactKL(beta=1.0, anchor=OldPolicy()))  # a penalty for the clip
ppo_kl_adaptive = replace(ppo_kl, kl=ExactKL(beta=AdaptiveBeta(1.0, 0.01), anchor=OldPolicy()))
group_whitened = replace(group_mean, scale=TokenWhitening())
reinforce_pp_baseline = replace(group_whitened, kl=K2(beta=0.01))     # REINFORCE++ with a group baseline
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


_GROUP_PAPER = "Shao et al. 2024, DeepSeekMath (2402.03300), eqs. 3, 4 and 21"
for _name, _estimator, _title, _source, _kind, _paper in (
    ("reinforce", reinforce, "REINFORCE", "Williams 1992, theorem 1", "rung", {}),
    ("baseline", baseline, "REINFORCE with baseline", "Williams 1992, §4; Greensmith et al. 2004", "rung", {}),
    ("surrogate", surrogate, "Importance ratio", "Kakade & Langford 2002; Schulman et al. 2015 (TRPO), eq. 14", "rung", {"max_kl": 0.01}),
    ("clip", clip, "PPO clip", "Schulman et al. 2017 (PPO), eq. 7", "rung", {"epsilon": 0.2, "epochs": "3–15"}),
    ("group_mean", group_mean, "Group mean", _GROUP_PAPER, "rung", {"G": 64}),
    ("group_std", group_std, "Group std", _GROUP_PAPER, "rung", {"G": 64}),
    ("length_mean", length_mean, "Length mean 1/|o|", _GROUP_PAPER, "rung", {"G": 64}),
    ("grpo", grpo, "GRPO", _GROUP_PAPER, "rung", {"G": 64, "beta": 0.04, "lr": 1e-6, "batch": 1024, "epochs": 1}),
    ("rloo", rloo, "RLOO", "Kool et al. 2019; Ahmadian et al. 2024 (2402.14740)", "descendant", {"G": "2 or 4"}),
    ("remax", remax, "ReMax", "Li et al. 2023 (2310.10505), algorithm 1", "descendant", {"G": 1}),
    ("opo", opo, "OPO", "Hao et al. 2025 (2505.23585)", "descendant", {}),
    ("whitened", whitened, "Token whitening", "Hu et al. 2025 (2501.03262)", "descendant", {}),
    ("reinforce_pp", reinforce_pp, "REINFORCE++", "Hu et al. 2025 (2501.03262)", "descendant", {}),
    ("dr_grpo", dr_grpo, "Dr. GRPO", "Liu et al. 2025 (2503.20783)", "descendant", {"beta": 0.0}),
    ("token_mean", token_mean, "Token mean", "Yu et al. 2025, DAPO (2503.14476), eq. 12", "descendant", {}),
    ("clip_higher", clip_higher, "Clip-higher", "Yu et al. 2025, DAPO (2503.14476), eq. 10", "descendant", {}),
    ("dapo", dapo, "DAPO", "Yu et al. 2025 (2503.14476), eqs. 8 and 11", "descendant", {"G": 16}),
    ("sequence_ratio", sequence_ratio, "Sequence ratio", "Zheng et al. 2025, GSPO (2507.18071), eq. 7", "descendant", {}),
    ("gspo", gspo, "GSPO", "Zheng et al. 2025 (2507.18071), eq. 5", "descendant", {}),
    ("luspo", luspo, "LUSPO", "", "descendant", {}),
    ("cispo", cispo, "CISPO", "MiniMax 2025, MiniMax-M1 (2506.13585), eqs. 4 and 5", "descendant", {}),
    ("sapo", sapo, "SAPO", "Gao et al. 2025 (2511.20347)", "descendant", {}),
    ("ppo_value", ppo_value, "PPO, value baseline", "Schulman et al. 2017 (PPO), eq. 9", "branch", {}),
    ("ppo", ppo, "PPO with critic and GAE", "Schulman et al. 2016 (GAE), eq. 16; 2017 (PPO), eq. 9", "branch", {}),
    ("ppo_kl", ppo_kl, "PPO, KL penalty", "Schulman et al. 2017 (PPO), eq. 8", "branch", {}),
    ("ppo_kl_adaptive", ppo_kl_adaptive, "PPO, adaptive KL", "Schulman et al. 2017 (PPO), eq. 8 and §4", "branch", {}),
    ("group_whitened", group_whitened, "Group mean, whitened", "Hu et al. 2025 (2501.03262)", "branch", {}),
    ("reinforce_pp_baseline", reinforce_pp_baseline, "REINFORCE++-baseline", "Hu et al. 2025 (2501.03262)", "branch", {}),
):
    register(_name, _estimator, _title, _source, _kind, _paper)
