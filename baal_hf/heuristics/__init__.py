"""Heuristics: arrays about the rows to scores [N], higher is more informative, and to the order to label them in."""

from typing import Any

from baal_hf.heuristics.base import ARRAYS, AbstractHeuristic, BatchHeuristic, whole
from baal_hf.heuristics.batchbald import BatchBALD, batchbald
from baal_hf.heuristics.combination import CombineHeuristics, Precomputed
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
from baal_hf.heuristics.random import Random
from baal_hf.heuristics.reductions import quantile, reduced, top_k
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
    "BALD",
    "EPIG",
    "AbstractHeuristic",
    "BatchBALD",
    "BatchHeuristic",
    "Certainty",
    "ClassBalanced",
    "CombineHeuristics",
    "Entropy",
    "ExpectedKL",
    "GibbsSampling",
    "Margin",
    "MaxKL",
    "MeanStd",
    "PowerBALD",
    "PowerEntropy",
    "PowerSampling",
    "Precomputed",
    "Random",
    "RankBALD",
    "RankBasedSampling",
    "ReverseMutualInformation",
    "SoftmaxBALD",
    "Variance",
    "VariationRatio",
    "VoteEntropy",
    "WithoutDuplicates",
    "available_heuristics",
    "bald",
    "batchbald",
    "certainty",
    "entropy",
    "epig",
    "expected_kl",
    "get_heuristic",
    "margin",
    "max_kl",
    "mean_std",
    "quantile",
    "reduced",
    "reverse_mutual_information",
    "top_k",
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


def get_heuristic(name: str, **kwargs: Any) -> AbstractHeuristic:
    """Make a heuristic by its name.

    Args:
        name: One of `available_heuristics`, in upper or lower case.
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
    if isinstance(kwargs.get("base_heuristic"), str):
        kwargs["base_heuristic"] = get_heuristic(kwargs["base_heuristic"])
    if "heuristics" in kwargs:
        kwargs["heuristics"] = [get_heuristic(one) if isinstance(one, str) else one for one in kwargs["heuristics"]]
    return _BY_NAME[name.lower()](**kwargs)
