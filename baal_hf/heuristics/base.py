"""What every heuristic answers: arrays about N rows to a score for each, and to the order in which to label them."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_numpy, row_names
from baal_hf.heuristics.reductions import REDUCTIONS, Reduction, reduced

Ranks: TypeAlias = npt.NDArray[np.int64]
Seed: TypeAlias = int | np.random.Generator | None

ARRAYS = {
    "predictions": "predictions of the rows [N, C, *S, T]",
    "features": "a representation of each row [N, d], as trainer.predict_features gives it",
    "labels": "the label that each row has now [N], or each annotator's [N, A], -1 where there is none",
    "labelled_features": "representations of the labelled rows [L, d]",
    "labelled_predictions": "predictions of the labelled rows [L, C, T]",
    "labelled_labels": "labels of the labelled rows [L] or [L, C]",
    "target_predictions": "predictions of the rows to be predicted well [N*, C, T], under the same draws",
}
"""Names of the arrays that heuristics know."""

ROW_ARRAYS = ("features", "labels")  # one entry for each row that is scored, beside its predictions


class AbstractHeuristic(ABC):
    """A score for each row of the pool, and the order to label them in; a higher score is more informative.

    A subclass says how to score in `compute_score` and inherits the rest.

    Args:
        shuffle_prop: Share of the ranking in [0, 1] whose places are shuffled among themselves; 1 shuffles everything.
        reduction: Scores of a row's positions [N, *S] to one score [N], padding (NaN) left out: 'max', 'min', 'mean',
            'sum', `top_k(k)`, `quantile(q)`, a function of the NumPy array of scores, or 'none'. Scores without
            positions stay as they are.
        seed: Of the heuristic's own random generator, or that generator; None takes a fresh seed from the system.

    Attributes:
        needs: Names of the arrays that it is given, out of `ARRAYS`; all but predictions by keyword.
        rows_together: Whether the score of a row depends on the others, so that batches are put together first.

    Raises:
        ValueError: `shuffle_prop` lies outside [0, 1], or the reduction is unknown.
        TypeError: An argument is of another type.
    """

    needs: Sequence[str] = ("predictions",)
    rows_together: bool = False

    def __init__(self, shuffle_prop: float = 0.0, reduction: Reduction = "none", *, seed: Seed = 0) -> None:
        if not isinstance(shuffle_prop, int | float | np.number):
            raise TypeError(f"{self.name} needs a number as shuffle_prop, got {type(shuffle_prop).__name__}.")
        if not 0 <= shuffle_prop <= 1:
            raise ValueError(f"{self.name} needs shuffle_prop in [0, 1], got {shuffle_prop}. 1 shuffles all ranks.")
        if not isinstance(reduction, str) and not callable(reduction):
            raise TypeError(f"{self.name} needs a name or a function as reduction, got {type(reduction).__name__}.")
        if isinstance(reduction, str) and reduction not in (*REDUCTIONS, "none"):
            known = ", ".join((*REDUCTIONS, "none"))
            raise ValueError(f"{self.name} needs a reduction out of {known}, or a function, got {reduction!r}.")
        self.shuffle_prop = float(shuffle_prop)
        self.reduction = reduction
        self.rng = np.random.default_rng(seed)

    @property
    def name(self) -> str:
        """The heuristic's name in messages and records."""
        return type(self).__name__

    @abstractmethod
    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each position, [N, C, *S, T] to [N, *S], without reduction; the kind that came in comes out.

        `arrays` are the others that the heuristic needs, by name.
        """

    def get_uncertainties(self, predictions: Any = None, **arrays: Any) -> NumpyArray:
        """Score each row.

        Args:
            predictions: Predictions [N, C, *S, T] as NumPy array or torch tensor, or an iterable of such batches; not
                looked at by a heuristic that does not need them.
            **arrays: The other arrays that the heuristic needs, by name.

        Returns:
            Scores [N]; with reduction 'none' and positions [N, *S], NaN at padding.

        Raises:
            ValueError: Predictions are empty, misshapen, not finite, or no probabilities where those are needed, or
                arrays do not fit one another.
            TypeError: Predictions are neither arrays of floating-point numbers nor an iterable of those, or an array
                is missing.
        """
        if "predictions" in self.needs and not isinstance(predictions, np.ndarray | Tensor):
            if not isinstance(predictions, Iterable):
                kind = type(predictions).__name__
                raise TypeError(f"{self.name} needs an array, a tensor or an iterable of such batches, got {kind}.")
            return self.get_uncertainties_generator(predictions, **arrays)
        return self._row_scores(predictions, self._checked(predictions, arrays))

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches as `get_uncertainties` does, holding one batch at a time."""
        self._check_names(arrays)
        parts: list[NumpyArray] = []
        start = 0
        for batch in batches:
            here = sliced(arrays, start, len(batch) if isinstance(batch, Sized) else 0)  # if not, it is refused below
            try:
                parts.append(self._row_scores(batch, self._checked(batch, here)))
            except ValueError as error:
                raise in_batch(len(parts), start, error) from error
            start += len(parts[-1])
        if not parts:
            raise ValueError(f"{self.name} needs at least one batch of predictions, got none. Is the pool empty?")
        self._check_lengths(start, arrays)
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"{self.name} needs batches of one width with reduction 'none'. Choose another reduction.")
        return np.concatenate(parts)  # [N]

    def get_ranks(
        self, predictions: Any = None, query_size: int | None = None, **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Rank the rows, most informative first.

        Args:
            predictions: As in `get_uncertainties`.
            query_size: Number of ranks, K; None means all.
            **arrays: As in `get_uncertainties`.

        Returns:
            Positions in `predictions` in the order to label them, int64 [N] or [K], and the score of each row [N].

        Raises:
            ValueError: As `get_uncertainties` and `reorder_indices`, or K is not in 1 .. N.
            TypeError: As `get_uncertainties`.
        """
        scores = self.get_uncertainties(predictions, **arrays)  # [N]
        ranks = self.reorder_indices(scores)  # [N]
        return ranks[: checked_size(query_size, len(ranks), self.name)], scores

    def __call__(self, predictions: Any = None, query_size: int | None = None, **arrays: Any) -> Ranks:
        """Rank the rows, most informative first; `get_ranks` without the scores."""
        return self.get_ranks(predictions, query_size, **arrays)[0]

    def reorder_indices(self, scores: npt.ArrayLike | Tensor) -> Ranks:
        """Rank scores in descending order, ties in the order of the rows, then shuffle `shuffle_prop` of the places.

        Args:
            scores: One finite score a row, [N].

        Returns:
            A permutation of 0 .. N-1, int64 [N].

        Raises:
            ValueError: Scores still have positions, there are none, or some are NaN or infinite.
        """
        return self._shuffled(descending(scores, self.name))

    def _shuffled(self, ranks: Ranks) -> Ranks:
        places = self.rng.choice(len(ranks), round(self.shuffle_prop * len(ranks)), replace=False)
        ranks[places] = ranks[self.rng.permutation(places)]
        return ranks

    def _row_scores(self, predictions: Any, arrays: dict[str, Any]) -> NumpyArray:
        """One score a row, [N, C, *S, T] to [N]; to [N, *S] where the reduction is 'none'."""
        scores = self.compute_score(predictions, **arrays)  # [N, *S]
        return as_numpy(scores) if scores.ndim == 1 or self.reduction == "none" else as_numpy(self._reduced(scores))

    def _reduced(self, scores: Any) -> Any:
        """[N, *S] to [N]."""
        try:
            return reduced(scores, self.reduction)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def _checked(self, predictions: Any, arrays: dict[str, Any]) -> dict[str, Any]:
        """`arrays`, once all that are needed are there and have an entry for each row."""
        self._check_names(arrays)
        if "predictions" not in self.needs:
            self._check_lengths(None, arrays)
        elif isinstance(predictions, Sized):
            self._check_lengths(len(predictions), arrays)
        return arrays

    def _check_names(self, arrays: dict[str, Any]) -> None:
        for name in self.needs:
            if name != "predictions" and arrays.get(name) is None:
                raise TypeError(f"{self.name} needs {ARRAYS[name]}: pass {name}=...")
        for name in arrays:
            if name not in self.needs:
                known = ", ".join(self.needs) or "no arrays"
                raise TypeError(f"{self.name} takes {known}, got {name}.")

    def _check_lengths(self, rows: int | None, arrays: dict[str, Any]) -> None:
        """Raise unless arrays have an entry for each of so many rows of predictions; None means as many as another."""
        others = [name for name in ROW_ARRAYS if name in arrays]
        expected = len(arrays[others[0]]) if rows is None and others else rows
        for name in others:
            if len(arrays[name]) != expected:
                of = "predictions" if rows is not None else others[0]
                came = f"{len(arrays[name])} {name} for {expected} rows of {of}"
                raise ValueError(f"{self.name} needs {ARRAYS[name]}, got {came}.")


class FunctionHeuristic(AbstractHeuristic):
    """A heuristic that is one pure function of its arrays, `score`."""

    score: ClassVar[Callable[..., Any]]

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return type(self).score(predictions, **arrays)


def in_batch(number: int, start: int, error: ValueError) -> ValueError:
    """The error with the place of the batch whose rows it counts."""
    return ValueError(f"In batch {number}, whose row 0 is row {start} of all: {error}")


def whole(predictions: Any, who: str) -> Any:
    """Predictions in one array or tensor, [N, C, *S, T], where they come in batches.

    Raises:
        ValueError: There are no batches, or batches that differ in another axis than the first.
        TypeError: These are no predictions, or batches of two kinds.
    """
    if isinstance(predictions, np.ndarray | Tensor):
        return predictions
    if not isinstance(predictions, Iterable):
        kind = type(predictions).__name__
        raise TypeError(f"{who} needs an array, a tensor or an iterable of such batches, got {kind}.")
    batches = list(predictions)
    if not batches:
        raise ValueError(f"{who} needs at least one batch of predictions, got none. Is the pool empty?")
    numpy = all(isinstance(batch, np.ndarray) for batch in batches)
    if not numpy and not all(isinstance(batch, Tensor) for batch in batches):
        kinds = ", ".join(sorted({type(batch).__name__ for batch in batches}))
        raise TypeError(f"{who} needs batches that are all arrays or all tensors, got {kinds}.")
    shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(shapes) > 1:
        came = " and ".join(str(["n", *shape]).replace("'", "") for shape in shapes[:2])
        raise ValueError(f"{who} looks at all rows together and needs batches of one shape, got {came}.")
    return np.concatenate(batches) if numpy else torch.cat(batches)  # [N, C, *S, T]


def checked_size(query_size: int | None, rows: int | None, who: str) -> int:
    """`query_size`, K, once it is a whole number in 1 .. N; None means N. Where `rows` is None, N is not known yet.

    Raises:
        ValueError: It lies outside.
        TypeError: It is no whole number.
    """
    size = rows if query_size is None else operator.index(query_size)
    if rows is None and size is not None and size < 1:
        raise ValueError(f"{who} needs a query_size of 1 or more, got {size}.")
    if rows is not None and (size is None or not 1 <= size <= rows):
        raise ValueError(f"{who} needs a query_size in 1 .. {rows}, the number of rows, got {size}.")
    return size or 0


def sliced(arrays: dict[str, Any], start: int, rows: int) -> dict[str, Any]:
    """What belongs to these rows: of arrays with an entry for each row their part, the others as they are."""
    return {name: array[start : start + rows] if name in ROW_ARRAYS else array for name, array in arrays.items()}


def descending(scores: npt.ArrayLike | Tensor, who: str) -> Ranks:
    """Positions of finite scores [N] from the highest to the lowest, equal ones in the order of the rows.

    Raises:
        ValueError: Scores still have positions, there are none, or some are NaN or infinite.

    Example:
        >>> descending([1, 2, 2], "BALD").tolist()
        [1, 2, 0]
    """
    return np.argsort(-finite(scores, who), kind="stable").astype(np.int64)  # [N]


def finite(scores: npt.ArrayLike | Tensor, who: str) -> npt.NDArray[np.float64]:
    """One score a row [N], as float64.

    Raises:
        ValueError: Scores still have positions, there are none, or some are NaN or infinite.
    """
    values = np.asarray(as_numpy(scores) if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        advice = "Choose a reduction over positions: max, min, mean, sum or a function."
        raise ValueError(f"{who} ranks one score a row, got scores {list(values.shape)}. {advice}")
    broken = ~np.isfinite(values)
    if broken.any():
        rows = row_names(torch.from_numpy(broken))
        raise ValueError(f"{who} needs finite scores, got NaN or infinity in {rows}. Check the predictions.")
    return values
