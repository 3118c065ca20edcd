"""Queries of another heuristic's ranking in which classes are in balance, or no two rows are near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_numpy, checked_probabilities
from baal_hf.heuristics.base import AbstractHeuristic, Ranks, Seed
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.distances import checked_features


def balanced(ranks: Ranks, classes: NumpyArray, counts: NumpyArray, query_size: int) -> Ranks:
    """Rows in the order of a ranking, each from the class that has fewest rows so far.

    Of classes with equally few, the one whose best row ranks higher comes first.

    Args:
        ranks: A ranking, most informative first, int64 [N].
        classes: Predicted class of each row, whole numbers in 0 .. C-1, [N].
        counts: Rows that each class has already, [C].
        query_size: Number of picks, K <= N.

    Returns:
        The picks, int64 [K].

    >>> balanced(np.array([2, 0, 1]), np.array([0, 1, 0]), np.array([0, 0]), 3).tolist()
    [2, 1, 0]
    """
    counts = counts.copy()
    queues = [ranks[classes[ranks] == c][::-1].tolist() for c in range(len(counts))]  # best last
    place = np.argsort(ranks)  # [N], of each row in the ranking
    picks: list[int] = []
    while len(picks) < query_size:
        waiting = [c for c, queue in enumerate(queues) if queue]
        fewest = min(waiting, key=lambda c: (counts[c], place[queues[c][-1]]))
        picks.append(queues[fewest].pop())
        counts[fewest] += 1
    return np.array(picks, dtype=np.int64)


def distinct(ranks: Ranks, features: Tensor, threshold: float, query_size: int) -> tuple[Ranks, Ranks]:
    """Rows in the order of a ranking, without those that are near-duplicates of one picked before.

    Args:
        ranks: A ranking, most informative first, int64 [R].
        features: A representation of each row, [N, d].
        threshold: Cosine similarity from which on two rows are near-duplicates.
        query_size: Number of picks, K.

    Returns:
        The picks, int64 [K] or fewer when there are no more, and the near-duplicates passed over on the way.
    """
    directions = F.normalize(features, dim=1)  # [N, d]
    picks: list[int] = []
    passed: list[int] = []
    kept = directions.new_empty(min(query_size, len(ranks)), directions.shape[1])  # [K, d]
    for row in ranks.tolist():
        if len(picks) == query_size:
            break
        if (kept[: len(picks)] @ directions[row] >= threshold).any():
            passed.append(row)
        else:
            kept[len(picks)] = directions[row]
            picks.append(row)
    return np.array(picks, dtype=np.int64), np.array(passed, dtype=np.int64)


class WrappedHeuristic(BatchHeuristic):
    """A query made of another heuristic's ranking; scores are those of the heuristic underneath.

    Raises:
        TypeError: `base_heuristic` is no heuristic.
    """

    also_needs: Sequence[str] = ()

    def __init__(self, base_heuristic: AbstractHeuristic, query_size: int | None = None, *, seed: Seed = 0) -> None:
        super().__init__(query_size, seed=seed)
        if not isinstance(base_heuristic, AbstractHeuristic):
            raise TypeError(f"{self.name} needs a heuristic to rank by, got {type(base_heuristic).__name__}.")
        self.base_heuristic = base_heuristic
        self.needs = list(dict.fromkeys((*base_heuristic.needs, *self.also_needs)))

    def base_ranks(self, predictions: Any, size: int | None, arrays: dict[str, Any]) -> tuple[Ranks, NumpyArray]:
        """The ranking underneath, [size], and its scores [N]."""
        wanted = {name: array for name, array in arrays.items() if name in self.base_heuristic.needs}
        return self.base_heuristic.get_ranks(predictions, size, **wanted)

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> NumpyArray:
        """Score each row as the heuristic underneath does."""
        wanted = {name: array for name, array in arrays.items() if name in self.base_heuristic.needs}
        return self.base_heuristic.get_uncertainties(predictions, **wanted)


class ClassBalanced(WrappedHeuristic):
    """The best rows of another heuristic's ranking, each of the class of which there are fewest.

    The class of a row is its most probable one; the labelled rows and the picks so far are counted, `balanced`.

    Args:
        base_heuristic: Ranks the rows.
        query_size: Number of picks, K, where the call does not say.
        seed: As for every heuristic.

    Raises:
        TypeError: `base_heuristic` is no heuristic, or picks rows together by itself.
    """

    also_needs = ("predictions", "labelled_labels")

    def __init__(self, base_heuristic: AbstractHeuristic, query_size: int | None = None, *, seed: Seed = 0) -> None:
        super().__init__(base_heuristic, query_size, seed=seed)
        if isinstance(base_heuristic, BatchHeuristic):
            raise TypeError(f"ClassBalanced needs a heuristic that ranks all rows, got {base_heuristic.name}.")

    def pick(
        self, predictions: Any, query_size: int, *args: Any, labelled_labels: Any = (), **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Choose rows, [N, C, T] to picks [K] and scores [N].

        Raises:
            ValueError: A label of a labelled row is no class of the predictions.
        """
        probs = checked_probabilities(predictions, self.name)  # [N, C, T]
        if probs.ndim != 3:
            raise ValueError(f"ClassBalanced needs one prediction a row [N, C, T], got {list(probs.shape)}.")
        C = probs.shape[1]
        labels = np.asarray(as_numpy(labelled_labels) if isinstance(labelled_labels, Tensor) else labelled_labels)
        if labels.size and not (
            labels.dtype.kind in "iu" and labels.ndim == 1 and 0 <= labels.min() <= labels.max() < C
        ):
            raise ValueError(
                f"ClassBalanced needs labels of labelled rows [L] in 0 .. {C - 1}, got {labels[:5].tolist()}."
            )
        counts = np.bincount(labels.astype(np.int64).ravel(), minlength=C)  # [C]
        classes = as_numpy(probs.mean(-1).argmax(1))  # [N]
        ranks, scores = self.base_ranks(predictions, len(probs), {**arrays, "labelled_labels": labelled_labels})
        return balanced(ranks, classes, counts, query_size), scores


class WithoutDuplicates(WrappedHeuristic):
    """The best rows of another heuristic's ranking, no two of them near-duplicates by their features, `distinct`.

    When there are fewer than K distinct rows, the best of the near-duplicates fill the query.

    Args:
        base_heuristic: Ranks the rows, or picks rows together.
        query_size: Number of picks, K, where the call does not say.
        threshold: Cosine similarity of features, from which on two rows are near-duplicates.
        seed: As for every heuristic.

    Raises:
        ValueError: The threshold is not in (-1, 1].
        TypeError: `base_heuristic` is no heuristic.
    """

    also_needs = ("features",)

    def __init__(
        self,
        base_heuristic: AbstractHeuristic,
        query_size: int | None = None,
        threshold: float = 0.95,
        *,
        seed: Seed = 0,
    ) -> None:
        super().__init__(base_heuristic, query_size, seed=seed)
        if not -1 < threshold <= 1:
            raise ValueError(f"WithoutDuplicates needs a threshold in (-1, 1], got {threshold}.")
        self.threshold = threshold

    def pick(
        self, predictions: Any, query_size: int, *args: Any, features: Any = None, **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Choose rows, features [N, d] to picks [K] and scores [N]."""
        values = checked_features(features, self.name)  # [N, d]
        most = min(len(values), getattr(self.base_heuristic, "candidates", len(values)))  # that the base can rank
        size = max(query_size, min(most, 4 * query_size))
        while True:
            ranks, scores = self.base_ranks(predictions, size, {**arrays, "features": features})
            picks, passed = distinct(ranks, values, self.threshold - torch.finfo(values.dtype).eps * 8, query_size)
            if len(picks) == query_size or size >= most:
                return np.concatenate([picks, passed])[:query_size], scores
            size = min(most, 2 * size)
