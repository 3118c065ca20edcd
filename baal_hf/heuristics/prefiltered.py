"""Two stages for large pools: rows scored one by one first, and only the best of them looked at together."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from baal_hf.arrays import NumpyArray
from baal_hf.heuristics.base import (
    ROW_ARRAYS,
    AbstractHeuristic,
    Ranks,
    Seed,
    checked_size,
    descending,
    in_batch,
    sliced,
    whole,
)
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.disagreement import BALD


class Prefiltered(BatchHeuristic):
    """The picks of a heuristic among the best rows by another, for pools too large to look at all rows together.

    Batch after batch is scored by `by`, and the predictions of the best rows so far are kept: of at most four times
    `candidates` rows, beside the batch. Then `base_heuristic` ranks the candidates, with the features and labels of
    those; what is not about the pool's rows it is given as it is. Scores are those of `by`, of all rows. Batches may
    come from anywhere, as from a folder of arrays: `(np.load(file, mmap_mode="r") for file in files)`.

    With `candidates` >= N the picks are those of `base_heuristic` on the whole pool. With fewer it is an approximation:
    a row that is left out is not picked, whatever it would have added. For BatchBALD by BALD it is exact at least where
    no row left out has a higher BALD score than the smallest gain that `batchbald` tells of the picks, for a gain never
    exceeds that score. Gains fall so fast that this seldom holds, and picks are the same long before: those that
    BatchBALD made of 10,000 and 50,000 rows of Bayesian linear classifiers were among the best 70 by BALD for K = 10,
    among the best 800 for K = 50.

    Args:
        base_heuristic: Ranks the candidates, or picks among them together.
        query_size: Number of picks, K, where the call does not say; at most `candidates`.
        candidates: Rows that are left to `base_heuristic`; of rows with equal scores the earlier ones.
        by: Scores each row by itself; None is `BALD()`. Only its scores count: neither noise nor shuffling.
        seed: As for every heuristic; nothing is drawn but by `base_heuristic`, which has its own.

    Raises:
        ValueError: `candidates` < 1, or K is more than those.
        TypeError: `base_heuristic` or `by` is no heuristic, `by` looks at rows together, or a number is no whole one.
    """

    def __init__(
        self,
        base_heuristic: AbstractHeuristic,
        query_size: int | None = None,
        candidates: int = 1_000,
        by: AbstractHeuristic | None = None,
        *,
        seed: Seed = 0,
    ) -> None:
        super().__init__(query_size, seed=seed)
        by = BALD() if by is None else by
        if not isinstance(base_heuristic, AbstractHeuristic):
            raise TypeError(f"Prefiltered needs a heuristic to rank by, got {type(base_heuristic).__name__}.")
        if not isinstance(by, AbstractHeuristic):
            raise TypeError(f"Prefiltered needs a heuristic to filter by, got {type(by).__name__}.")
        if by.rows_together:
            raise TypeError(f"Prefiltered needs a heuristic that scores single rows to filter by, got {by.name}.")
        if operator.index(candidates) < 1:
            raise ValueError(f"Prefiltered needs candidates >= 1, got {candidates}.")
        self.base_heuristic = base_heuristic
        self.by = by
        self.candidates = candidates
        self.needs = list(dict.fromkeys(("predictions", *base_heuristic.needs, *by.needs)))
        if query_size is not None:
            self._refuse_more(query_size)

    def get_ranks(
        self, predictions: Any = None, query_size: int | None = None, **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Pick K rows among the candidates.

        Args:
            predictions: Predictions [N, C, *S, T] as NumPy array or torch tensor, or an iterable of such batches, of
                which one is held at a time. They are of one shape if `base_heuristic` looks at rows together.
            query_size: Number of picks, K; None means the heuristic's own.
            **arrays: The other arrays that the two heuristics need, by name, about all rows.

        Returns:
            Positions of the K picks in the whole pool, first pick first, int64 [K], and the scores of all rows by `by`,
            [N].

        Raises:
            ValueError: K is not known, not in 1 .. N, or more than `candidates`; or as the two heuristics.
            TypeError: As the two heuristics.
        """
        size = self.query_size if query_size is None else query_size
        if size is None:
            raise ValueError("Prefiltered picks rows together: say how many, query_size=...")
        if isinstance(predictions, np.ndarray | Tensor):
            arrays = self._checked(predictions, arrays)
            checked_size(size, len(predictions), self.name)
        else:
            self._check_names(arrays)
            checked_size(size, None, self.name)
        self._refuse_more(size)  # before a large pool is predicted in vain
        return self.pick(predictions, size, **arrays)

    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Ranks, NumpyArray]:
        """Choose rows of an array [N, C, *S, T] or an iterable of batches: picks [K] and the scores by `by` [N]."""
        if isinstance(predictions, np.ndarray | Tensor):
            scores = self.compute_score(predictions, **arrays)  # [N]
            rows = np.sort(descending(scores, self.by.name)[: self.candidates])
            kept: Any = predictions if len(rows) == len(scores) else predictions[rows]
        else:
            rows, kept, scores = self._best_of_batches(predictions, arrays)
            checked_size(query_size, len(scores), self.name)
            self._check_lengths(len(scores), arrays)
        base = self.base_heuristic
        wanted = {name: _at(rows, name, array) for name, array in arrays.items() if name in base.needs}
        picks, _ = base.get_ranks(kept, query_size, **wanted)
        return rows[picks], scores

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> NumpyArray:
        """Score each row as `by` does, [N, C, *S, T] to [N].

        Raises:
            TypeError: `predictions` is no array.
        """
        if not isinstance(predictions, np.ndarray | Tensor):
            raise TypeError(f"Prefiltered needs a NumPy array or a torch tensor, got {type(predictions).__name__}.")
        return self.by.get_uncertainties(
            predictions, **{name: array for name, array in arrays.items() if name in self.by.needs}
        )

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches as `by` does, holding one batch at a time."""
        return AbstractHeuristic.get_uncertainties_generator(self, batches, **arrays)

    def _best_of_batches(self, batches: Any, arrays: dict[str, Any]) -> tuple[Ranks, Iterable[Any], NumpyArray]:
        """The candidates [n] in the order of rows, their predictions in parts, and the scores of all rows [N]."""
        if not isinstance(batches, Iterable):
            kind = type(batches).__name__
            raise TypeError(f"Prefiltered needs an array, a tensor or an iterable of such batches, got {kind}.")
        best = _Candidates(self.candidates)
        parts: list[NumpyArray] = []
        start = 0
        for batch in batches:
            try:
                parts.append(self._added(batch, start, best, arrays))
            except ValueError as error:
                raise in_batch(len(parts), start, error) from error
            start += len(parts[-1])
        if not parts:
            raise ValueError("Prefiltered needs at least one batch of predictions, got none. Is the pool empty?")
        best.prune()
        rows = np.concatenate([rows for rows, _, _ in best.parts])
        # An iterator, because a list is something else to CombineHeuristics.
        return rows, iter([kept for _, _, kept in best.parts]), np.concatenate(parts)

    def _added(self, batch: Any, start: int, best: _Candidates, arrays: dict[str, Any]) -> NumpyArray:
        """Scores of a batch [B] whose row 0 is row `start` of all, once its best rows are among the candidates."""
        here = sliced(arrays, start, len(batch)) if isinstance(batch, np.ndarray | Tensor) else {}
        scores = self.compute_score(batch, **here)  # [B], or it is refused
        if "predictions" not in self.base_heuristic.needs:
            batch = np.empty((len(scores), 0))  # nothing of it is kept
        elif isinstance(batch, Tensor):
            batch = batch.detach()  # what is kept does not hold a graph
        if best.parts and self.base_heuristic.rows_together:
            whole([best.parts[0][2][:0], batch[:0]], self.name)  # raises where these cannot be put together
        best.add(batch, descending(scores, self.by.name), scores, start)
        return scores

    def _refuse_more(self, query_size: int) -> None:
        if query_size > self.candidates:
            advice = f"Raise candidates to {query_size} or more."
            raise ValueError(
                f"Prefiltered needs a query_size in 1 .. {self.candidates}, the candidates, got {query_size}. {advice}"
            )


class _Candidates:
    """The rows of highest score so far, and what was predicted for them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[tuple[Ranks, NumpyArray, Any]] = []  # of a batch each: rows, scores, predictions
        self.count = 0  # of those rows
        self.floor = np.float64(-np.inf)  # of `size` rows; a later row needs more, so that few are copied

    def add(self, batch: Any, ranks: Ranks, scores: NumpyArray, start: int) -> None:
        """Keep copies of those rows of a batch that may be among the best; row 0 is row `start` of all."""
        here = ranks[: self.size]
        here = np.sort(here[scores[here] > self.floor])
        if len(here):
            self.parts.append((start + here, scores[here], batch[here]))
            self.count += len(here)
        if self.count > 2 * self.size:
            self.prune()
            self.floor = np.float64(min(own.min() for _, own, _ in self.parts))

    def prune(self) -> None:
        """Drop all but the best, of equal scores the later rows."""
        scores = np.concatenate([own for _, own, _ in self.parts])
        best = descending(scores, "Prefiltered")[: self.size]
        self.count = len(best)
        kept = np.zeros(len(scores), dtype=bool)
        kept[best] = True
        starts = np.cumsum([len(rows) for rows, _, _ in self.parts])[:-1]
        places = [np.flatnonzero(part) for part in np.split(kept, starts)]
        self.parts = [
            (rows[place], own[place], batch[place])
            for place, (rows, own, batch) in zip(places, self.parts, strict=True)
            if len(place)
        ]


def _at(rows: Ranks, name: str, array: Any) -> Any:
    """What belongs to these rows, of an array with an entry for each; another as it is."""
    if name not in ROW_ARRAYS:
        return array
    return array[rows] if isinstance(array, np.ndarray | Tensor) else [array[row] for row in rows]
