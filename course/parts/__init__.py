"""The eight parts of an estimator, one module each, in the order in which the algorithm runs."""

from course.parts.aggregation import Aggregation, ConstantLength, SequenceMean, SequenceSum, TokenMean
from course.parts.base import Part
from course.parts.baseline import (
    Baseline,
    BatchMean,
    Constant,
    Greedy,
    GroupMean,
    LeaveOneOut,
    LengthWeighted,
    NoBaseline,
    Value,
)
from course.parts.credit import GAE, TD, Credit, RewardToGo, TotalReturn
from course.parts.kl import (
    K1,
    K2,
    K3,
    KL,
    AdaptiveBeta,
    ExactKL,
    InLoss,
    InLossTimesRatio,
    InReward,
    NoKL,
    OldPolicy,
    Reference,
)
from course.parts.ratio import RatioLevel, SequenceMeanRatio, SequenceRatio, TokenRatio
from course.parts.sample_filter import AllSamples, DropSilentGroups, DropTruncated, SampleFilter
from course.parts.scale import BatchStd, GroupStd, NoScale, Scale, TokenWhitening
from course.parts.surrogate import CISPO, Clip, Ratio, ScoreFunction, SoftGate, Surrogate

__all__ = [
    "CISPO", "GAE", "K1", "K2", "K3", "KL", "TD", "AdaptiveBeta", "Aggregation", "AllSamples", "Baseline", "BatchMean",
    "BatchStd", "Clip", "Constant", "ConstantLength", "Credit", "DropSilentGroups", "DropTruncated", "ExactKL", "Greedy",
    "GroupMean", "GroupStd", "InLoss", "InLossTimesRatio", "InReward", "K1", "LeaveOneOut", "LengthWeighted", "NoBaseline",
    "NoKL", "NoScale", "OldPolicy", "Part", "Ratio", "RatioLevel", "Reference", "RewardToGo", "SampleFilter", "Scale",
    "ScoreFunction", "SequenceMean", "SequenceMeanRatio", "SequenceRatio", "SequenceSum", "SoftGate", "Surrogate", "TokenMean",
    "TokenRatio", "TokenWhitening", "TotalReturn", "Value",
]  # fmt: skip
