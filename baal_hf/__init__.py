"""Bayesian active learning for transformers, datasets and accelerate."""

from typing import TYPE_CHECKING, Any

from baal_hf.arrays import masked
from baal_hf.dataset import ActiveLearningDataset
from baal_hf.heuristics import (
    BADGE,
    BAIT,
    BALD,
    CAL,
    CVIRS,
    EPIG,
    MNLP,
    AbstractHeuristic,
    ActiveLab,
    ActiveLabelCleaning,
    BatchBALD,
    BatchHeuristic,
    Certainty,
    ClassBalanced,
    CombineHeuristics,
    ConfidenceWeightedEntropy,
    CoreSet,
    Entropy,
    ExpectedKL,
    GaussianBALD,
    GibbsSampling,
    KMeans,
    Margin,
    MaxKL,
    MeanStd,
    MultiLabelBALD,
    MultiLabelEntropy,
    NormalizedMargin,
    PowerBALD,
    PowerEntropy,
    PowerSampling,
    Precomputed,
    Prefiltered,
    ProbCover,
    Random,
    RankBALD,
    RankBasedSampling,
    ReverseMutualInformation,
    SelfConfidence,
    SoftmaxBALD,
    TypiClust,
    Variance,
    VariationRatio,
    VoteEntropy,
    WithoutDuplicates,
    available_heuristics,
    get_heuristic,
    quantile,
    top_k,
)
from baal_hf.ledger import LabelEvent, LabelLedger
from baal_hf.loop import ActiveLearningLoop
from baal_hf.posterior import (
    BayesianModule,
    Deterministic,
    DropoutReport,
    DropoutSite,
    Ensemble,
    MCConsistentDropoutModule,
    MCDropConnect,
    MCDropout,
    MCDropoutConnectModule,
    MCDropoutModule,
    Posterior,
    dropout_report,
    patch_module,
    train_ensemble,
    unpatch_module,
)
from baal_hf.store import ArrayStore

if TYPE_CHECKING:
    from baal_hf.trainer import BaalTransformersTrainer

__version__ = "0.1.0"

__all__ = [
    "BADGE",
    "BAIT",
    "BALD",
    "CAL",
    "CVIRS",
    "EPIG",
    "MNLP",
    "AbstractHeuristic",
    "ActiveLab",
    "ActiveLabelCleaning",
    "ActiveLearningDataset",
    "ActiveLearningLoop",
    "ArrayStore",
    "BaalTransformersTrainer",
    "BatchBALD",
    "BatchHeuristic",
    "BayesianModule",
    "Certainty",
    "ClassBalanced",
    "CombineHeuristics",
    "ConfidenceWeightedEntropy",
    "CoreSet",
    "Deterministic",
    "DropoutReport",
    "DropoutSite",
    "Ensemble",
    "Entropy",
    "ExpectedKL",
    "GaussianBALD",
    "GibbsSampling",
    "KMeans",
    "LabelEvent",
    "LabelLedger",
    "MCConsistentDropoutModule",
    "MCDropConnect",
    "MCDropout",
    "MCDropoutConnectModule",
    "MCDropoutModule",
    "Margin",
    "MaxKL",
    "MeanStd",
    "MultiLabelBALD",
    "MultiLabelEntropy",
    "NormalizedMargin",
    "Posterior",
    "PowerBALD",
    "PowerEntropy",
    "PowerSampling",
    "Precomputed",
    "Prefiltered",
    "ProbCover",
    "Random",
    "RankBALD",
    "RankBasedSampling",
    "ReverseMutualInformation",
    "SelfConfidence",
    "SoftmaxBALD",
    "TypiClust",
    "Variance",
    "VariationRatio",
    "VoteEntropy",
    "WithoutDuplicates",
    "available_heuristics",
    "dropout_report",
    "get_heuristic",
    "masked",
    "patch_module",
    "quantile",
    "top_k",
    "train_ensemble",
    "unpatch_module",
]


def __getattr__(name: str) -> Any:
    # transformers' Trainer takes as long to import as all the rest: it comes when asked for.
    if name == "BaalTransformersTrainer":
        from baal_hf.trainer import BaalTransformersTrainer

        return BaalTransformersTrainer
    raise AttributeError(f"module 'baal_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
