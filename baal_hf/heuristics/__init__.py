"""Heuristics: posterior draws [N, C, *S, T] to scores [N], higher is more informative, to the order to label in."""

from typing import Any

from baal_hf.heuristics.base import AbstractHeuristic
from baal_hf.heuristics.disagreement import BALD, bald
from baal_hf.heuristics.random import Random
from baal_hf.heuristics.uncertainty import (
    Certainty,
    Entropy,
    Margin,
    Variance,
    certainty,
    entropy,
    margin,
    variance,
)

__all__ = [
    "BALD",
    "AbstractHeuristic",
    "Certainty",
    "Entropy",
    "Margin",
    "Random",
    "Variance",
    "available_heuristics",
    "bald",
    "certainty",
    "entropy",
    "get_heuristic",
    "margin",
    "variance",
]

_BY_NAME: dict[str, type[AbstractHeuristic]] = {
    heuristic.__name__.lower(): heuristic for heuristic in (BALD, Certainty, Entropy, Margin, Random, Variance)
}


def available_heuristics() -> list[str]:
    """The names that `get_heuristic` knows, in alphabetical order."""
    return sorted(_BY_NAME)


def get_heuristic(name: str, **kwargs: Any) -> AbstractHeuristic:
    """Make a heuristic by its name.

    Args:
        name: One of `available_heuristics`, in upper or lower case.
        **kwargs: Arguments of that heuristic, such as `shuffle_prop`, `reduction` and `seed`.

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
    return _BY_NAME[name.lower()](**kwargs)
