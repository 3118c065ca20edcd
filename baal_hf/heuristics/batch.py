"""What heuristics that choose rows together answer beside the others: K picks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_numpy
from baal_hf.heuristics.base import AbstractHeuristic, Ranks, Seed, checked_size, descending, whole


class BatchHeuristic(AbstractHeuristic):
    """A heuristic that chooses K rows together, each in the light of those before it.

    A subclass says how in `pick` and inherits the rest. Ranks are the K picks, first pick first; scores say for each
    row what it is worth as the first pick.

    Args:
        query_size: Rows to pick, K, where the call does not say.
        shuffle_prop: Share of the ranking (the picks, then the other rows by score) whose places are shuffled among
            themselves.
        seed: As for every heuristic.
    """

    rows_together = True

    def __init__(self, query_size: int | None = None, shuffle_prop: float = 0.0, *, seed: Seed = 0) -> None:
        super().__init__(shuffle_prop, seed=seed)
        if query_size is not None:
            checked_size(query_size, None, self.name)
        self.query_size = query_size

    @abstractmethod
    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Any, Any]:
        """Choose rows together.

        Returns:
            The picks in their order, whole numbers [K], and what each row is worth as the first pick [N].
        """

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """What each row is worth as the first pick, [N].

        Raises:
            ValueError: The heuristic's own K is not in 1 .. N.
        """
        size = 1 if self.query_size is None else self.query_size
        return self.pick(predictions, checked_size(size, self._rows(predictions, arrays), self.name), **arrays)[1]

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches, which are put together first: rows are chosen together."""
        return self.get_uncertainties(whole(batches, self.name), **arrays)

    def get_ranks(
        self, predictions: Any = None, query_size: int | None = None, **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Pick K rows together.

        Args:
            predictions: As in `get_uncertainties`; batches are put together.
            query_size: Number of picks, K; None means the heuristic's own.
            **arrays: As in `get_uncertainties`.

        Returns:
            Positions of the K picks, first pick first, int64 [K], and what each row is worth as the first pick [N].

        Raises:
            ValueError: K is not in 1 .. N or not known, or as `get_uncertainties`.
            TypeError: As `get_uncertainties`.
        """
        if "predictions" in self.needs:
            predictions = whole(predictions, self.name)
        arrays = self._checked(predictions, arrays)
        size = query_size if query_size is not None else self.query_size
        if size is None:
            raise ValueError(f"{self.name} picks rows together: say how many, query_size=...")
        size = checked_size(size, self._rows(predictions, arrays), self.name)
        picks, scores = self.pick(predictions, size, **arrays)
        picks, scores = as_numpy(picks).astype(np.int64), as_numpy(scores)
        if self.shuffle_prop:
            ranks = descending(scores, self.name)  # [N]
            picks = self._shuffled(np.concatenate([picks, ranks[~np.isin(ranks, picks)]]))[:size]
        return picks, scores

    def _rows(self, predictions: Any, arrays: dict[str, Any]) -> int:
        return len(predictions if "predictions" in self.needs else arrays["features"])

    def reorder_indices(self, scores: npt.ArrayLike | Tensor) -> Ranks:
        """Refuse: scores of single rows do not say which rows go together.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"{self.name} picks rows together, which scores do not tell: call get_ranks.")
