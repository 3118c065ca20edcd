"""Bayesian active learning for transformers, datasets and accelerate."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from baal_hf.arrays import masked
from baal_hf.calibration import DirichletCalibrator, DirichletScaling, TemperatureScaling, VectorScaling
from baal_hf.dataset import ActiveLearningDataset
from baal_hf.files import FileDataset
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
from baal_hf.semisupervised import AlternateIterator, MeanTeacher, PiModel, PseudoLabels, SemiSupervisedIterator
from baal_hf.stopping import (
    ClassificationChange,
    CostBudget,
    DeltaF,
    EarlyStoppingCriterion,
    KappaAverage,
    LabellingBudgetStoppingCriterion,
    LowAverageUncertaintyStoppingCriterion,
    OverallUncertainty,
    StoppingCriterion,
    TimeBudget,
)
from baal_hf.store import ArrayStore

if TYPE_CHECKING:
    from baal_hf.checkpoints import ActiveLearningCallback
    from baal_hf.ensemble import EnsembleModelWrapper
    from baal_hf.experiment import ActiveLearningExperiment
    from baal_hf.modelwrapper import ModelWrapper
    from baal_hf.semisupervised.modelwrapper import SemiSupervisedModelWrapper
    from baal_hf.semisupervised.trainer import SemiSupervisedTrainer
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
    "ActiveLearningCallback",
    "ActiveLearningDataset",
    "ActiveLearningExperiment",
    "ActiveLearningLoop",
    "AlternateIterator",
    "ArrayStore",
    "BaalTransformersTrainer",
    "BatchBALD",
    "BatchHeuristic",
    "BayesianModule",
    "Certainty",
    "ClassBalanced",
    "ClassificationChange",
    "CombineHeuristics",
    "ConfidenceWeightedEntropy",
    "CoreSet",
    "CostBudget",
    "DeltaF",
    "Deterministic",
    "DirichletCalibrator",
    "DirichletScaling",
    "DropoutReport",
    "DropoutSite",
    "EarlyStoppingCriterion",
    "Ensemble",
    "EnsembleModelWrapper",
    "Entropy",
    "ExpectedKL",
    "FileDataset",
    "GaussianBALD",
    "GibbsSampling",
    "KMeans",
    "KappaAverage",
    "LabelEvent",
    "LabelLedger",
    "LabellingBudgetStoppingCriterion",
    "LowAverageUncertaintyStoppingCriterion",
    "MCConsistentDropoutModule",
    "MCDropConnect",
    "MCDropout",
    "MCDropoutConnectModule",
    "MCDropoutModule",
    "Margin",
    "MaxKL",
    "MeanStd",
    "MeanTeacher",
    "ModelWrapper",
    "MultiLabelBALD",
    "MultiLabelEntropy",
    "NormalizedMargin",
    "OverallUncertainty",
    "PiModel",
    "Posterior",
    "PowerBALD",
    "PowerEntropy",
    "PowerSampling",
    "Precomputed",
    "Prefiltered",
    "ProbCover",
    "PseudoLabels",
    "Random",
    "RankBALD",
    "RankBasedSampling",
    "ReverseMutualInformation",
    "SelfConfidence",
    "SemiSupervisedIterator",
    "SemiSupervisedModelWrapper",
    "SemiSupervisedTrainer",
    "SoftmaxBALD",
    "StoppingCriterion",
    "TemperatureScaling",
    "TimeBudget",
    "TypiClust",
    "Variance",
    "VariationRatio",
    "VectorScaling",
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


# They import transformers' Trainer, which takes as long as all the rest: they come when asked for.
_LATER = {
    "ActiveLearningCallback": "baal_hf.checkpoints",
    "ActiveLearningExperiment": "baal_hf.experiment",
    "BaalTransformersTrainer": "baal_hf.trainer",
    "EnsembleModelWrapper": "baal_hf.ensemble",
    "ModelWrapper": "baal_hf.modelwrapper",
    "SemiSupervisedModelWrapper": "baal_hf.semisupervised.modelwrapper",
    "SemiSupervisedTrainer": "baal_hf.semisupervised.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'baal_hf' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return __all__
