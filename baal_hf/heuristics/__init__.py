"""Heuristics: arrays about the rows to scores [N], higher is more informative, and to the order to label them in."""

from typing import Any

from baal_hf.heuristics.activelab import ActiveLab, activelab
from baal_hf.heuristics.badge import BADGE, badge
from baal_hf.heuristics.bait import BAIT, bait
from baal_hf.heuristics.base import ARRAYS, AbstractHeuristic, whole
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.batchbald import BatchBALD, batchbald
from baal_hf.heuristics.cal import CAL, cal
from baal_hf.heuristics.clustering import KMeans, TypiClust, kmeans, typiclust
from baal_hf.heuristics.combination import CombineHeuristics, Precomputed
from baal_hf.heuristics.coreset import CoreSet, coreset
from baal_hf.heuristics.disagreement import (
    BALD,
    ExpectedKL,
    MaxKL,
    ReverseMutualInformation,
    VoteEntropy,
    bald,
    expected_kl,
    max_kl,
    reverse_mutual_information,
    vote_entropy,
)
from baal_hf.heuristics.epig import EPIG, epig
from baal_hf.heuristics.multilabel import (
    CVIRS,
    MultiLabelBALD,
    MultiLabelEntropy,
    cvirs,
    multi_label_bald,
    multi_label_entropy,
)
from baal_hf.heuristics.prefiltered import Prefiltered
from baal_hf.heuristics.probcover import ProbCover, probcover
from baal_hf.heuristics.random import Random
from baal_hf.heuristics.reductions import quantile, reduced, top_k
from baal_hf.heuristics.regression import GaussianBALD, gaussian_bald
from baal_hf.heuristics.relabelling import (
    ActiveLabelCleaning,
    ConfidenceWeightedEntropy,
    NormalizedMargin,
    SelfConfidence,
    active_label_cleaning,
    adjusted_probs,
    confidence_weighted_entropy,
    normalized_margin,
    self_confidence,
)
from baal_hf.heuristics.sequences import MNLP, mnlp
from baal_hf.heuristics.stochastic import (
    GibbsSampling,
    PowerBALD,
    PowerEntropy,
    PowerSampling,
    RankBALD,
    RankBasedSampling,
    SoftmaxBALD,
)
from baal_hf.heuristics.uncertainty import (
    Certainty,
    Entropy,
    Margin,
    MeanStd,
    Variance,
    VariationRatio,
    certainty,
    entropy,
    margin,
    mean_std,
    variance,
    variation_ratio,
)
from baal_hf.heuristics.wrappers import ClassBalanced, WithoutDuplicates

__all__ = [
    "ARRAYS",
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
    "BatchBALD",
    "BatchHeuristic",
    "Certainty",
    "ClassBalanced",
    "CombineHeuristics",
    "ConfidenceWeightedEntropy",
    "CoreSet",
    "Entropy",
    "ExpectedKL",
    "GaussianBALD",
    "GibbsSampling",
    "KMeans",
    "Margin",
    "MaxKL",
    "MeanStd",
    "MultiLabelBALD",
    "MultiLabelEntropy",
    "NormalizedMargin",
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
    "active_label_cleaning",
    "activelab",
    "adjusted_probs",
    "available_heuristics",
    "badge",
    "bait",
    "bald",
    "batchbald",
    "cal",
    "certainty",
    "confidence_weighted_entropy",
    "coreset",
    "cvirs",
    "entropy",
    "epig",
    "expected_kl",
    "gaussian_bald",
    "get_heuristic",
    "kmeans",
    "margin",
    "max_kl",
    "mean_std",
    "mnlp",
    "multi_label_bald",
    "multi_label_entropy",
    "normalized_margin",
    "probcover",
    "quantile",
    "reduced",
    "reverse_mutual_information",
    "self_confidence",
    "top_k",
    "typiclust",
    "variance",
    "variation_ratio",
    "vote_entropy",
    "whole",
]

_BY_NAME: dict[str, type[AbstractHeuristic]] = {
    name.lower(): value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, AbstractHeuristic) and not value.__abstractmethods__
}


def available_heuristics() -> list[str]:
    """The names that `get_heuristic` knows, in alphabetical order."""
    return sorted(_BY_NAME)


def get_heuristic(name: str, *args: Any, **kwargs: Any) -> AbstractHeuristic:
    """Make a heuristic by its name.

    Args:
        name: One of `available_heuristics`, in upper or lower case.
        *args: Arguments of that heuristic; of most the first are `shuffle_prop` and `reduction`, as in Baal.
        **kwargs: Arguments of that heuristic, such as `shuffle_prop`, `reduction` and `seed`. Heuristics that are made
            of others take names for these, too: `get_heuristic("powersampling", base_heuristic="margin")`.

    Returns:
        A new heuristic.

    Raises:
        ValueError: No heuristic has that name.
        TypeError: `name` is no string, or the heuristic does not know an argument.
    """
    if not isinstance(name, str):
        raise TypeError(f"get_heuristic needs a name, got {type(name).__name__}.")
    if name.lower() not in _BY_NAME:
        raise ValueError(f"get_heuristic needs a name out of {', '.join(available_heuristics())}, got {name!r}.")
    for argument in ("base_heuristic", "by"):
        if isinstance(kwargs.get(argument), str):
            kwargs[argument] = get_heuristic(kwargs[argument])
    if "heuristics" in kwargs:
        kwargs["heuristics"] = [get_heuristic(one) if isinstance(one, str) else one for one in kwargs["heuristics"]]
    return _BY_NAME[name.lower()](*args, **kwargs)
