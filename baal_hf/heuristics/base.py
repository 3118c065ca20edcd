"""What every heuristic answers: predictions [N, C, *S, T] to scores [N], and scores to ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sized
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, as_numpy, row_names

Predictions: TypeAlias = Iterable[Any] | Sized
Reduction: TypeAlias = str | Callable[[NumpyArray], NumpyArray]
Ranks: TypeAlias = npt.NDArray[np.int64]
Seed: TypeAlias = int | np.random.Generator | None

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "max": np.nanmax,
    "min": np.nanmin,
    "mean": np.nanmean,
    "sum": np.nansum,
}


class AbstractHeuristic(ABC):
    """A score for each row of the pool, and the order to label them in; a higher score is more informative.

    A subclass says how to score in `compute_score` and inherits the rest.

    Args:
        shuffle_prop: Share of the ranking in [0, 1] whose places are shuffled among themselves; 1 shuffles everything.
        reduction: Scores of a row's positions [N, *S] to one score [N], padding (NaN) left out: 'max', 'min', 'mean',
            'sum', a function of the NumPy array of scores, or 'none'. Scores without positions stay as they are.
        seed: Of the heuristic's own random generator, or that generator; None takes a fresh seed from the system.

    Raises:
        ValueError: `shuffle_prop` lies outside [0, 1], or the reduction is unknown.
        TypeError: An argument is of another type.
    """

    needs_predictions: ClassVar[bool] = True

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
    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S], without reduction; the kind that came in comes out."""

    def get_uncertainties(self, predictions: Predictions) -> NumpyArray:
        """Score each row.

        Args:
            predictions: Predictions [N, C, *S, T] as NumPy array or torch tensor, or an iterable of such batches.

        Returns:
            Scores [N]; with reduction 'none' and positions [N, *S], NaN at padding.

        Raises:
            ValueError: Predictions are empty, misshapen, not finite, or no probabilities where those are needed.
            TypeError: Predictions are neither arrays of floating-point numbers nor an iterable of those.
        """
        if isinstance(predictions, np.ndarray | Tensor):
            return self._row_scores(predictions)
        if not isinstance(predictions, Iterable):
            kind = type(predictions).__name__
            raise TypeError(f"{self.name} needs an array, a tensor or an iterable of such batches, got {kind}.")
        return self.get_uncertainties_generator(predictions)

    def get_uncertainties_generator(self, batches: Iterable[Any]) -> NumpyArray:
        """Score each row of consecutive batches as `get_uncertainties` does, holding one batch at a time."""
        parts: list[NumpyArray] = []
        start = 0
        for batch in batches:
            try:
                parts.append(self._row_scores(batch))
            except ValueError as error:
                raise ValueError(f"In batch {len(parts)}, whose row 0 is row {start} of all: {error}") from error
            start += len(parts[-1])
        if not parts:
            raise ValueError(f"{self.name} needs at least one batch of predictions, got none. Is the pool empty?")
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"{self.name} needs batches of one width with reduction 'none'. Choose another reduction.")
        return np.concatenate(parts)  # [N]

    def get_ranks(self, predictions: Predictions) -> tuple[Ranks, NumpyArray]:
        """Rank the rows, most informative first.

        Args:
            predictions: As in `get_uncertainties`.

        Returns:
            Positions in `predictions` in the order to label them, int64 [N], and the score of each row [N].

        Raises:
            ValueError: As `get_uncertainties` and `reorder_indices`.
            TypeError: As `get_uncertainties`.
        """
        scores = self.get_uncertainties(predictions)  # [N]
        return self.reorder_indices(scores), scores

    def __call__(self, predictions: Predictions) -> Ranks:
        """Rank the rows, most informative first; `get_ranks` without the scores."""
        return self.get_ranks(predictions)[0]

    def reorder_indices(self, scores: npt.ArrayLike | Tensor) -> Ranks:
        """Rank scores in descending order, ties in the order of the rows, then shuffle `shuffle_prop` of the places.

        Args:
            scores: One finite score a row, [N].

        Returns:
            A permutation of 0 .. N-1, int64 [N].

        Raises:
            ValueError: Scores still have positions, there are none, or some are NaN or infinite.
        """
        values = np.asarray(as_numpy(scores) if isinstance(scores, Tensor) else scores, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            advice = "Choose a reduction over positions: max, min, mean, sum or a function."
            raise ValueError(f"{self.name} ranks one score a row, got scores {list(values.shape)}. {advice}")
        broken = ~np.isfinite(values)
        if broken.any():
            rows = row_names(torch.from_numpy(broken))
            raise ValueError(f"{self.name} needs finite scores, got NaN or infinity in {rows}. Check the predictions.")
        ranks = np.argsort(-values, kind="stable").astype(np.int64)  # [N]
        places = self.rng.choice(len(ranks), round(self.shuffle_prop * len(ranks)), replace=False)
        ranks[places] = ranks[self.rng.permutation(places)]
        return ranks

    def _row_scores(self, predictions: Any) -> NumpyArray:
        """One score a row, [N, C, *S, T] to [N]; to [N, *S] where the reduction is 'none'."""
        scores = as_numpy(self.compute_score(predictions))  # [N, *S]
        if scores.ndim == 1 or self.reduction == "none":
            return scores
        if isinstance(self.reduction, str):
            reduced = REDUCTIONS[self.reduction](scores.reshape(len(scores), -1), axis=1)  # [N]
        else:
            reduced = np.asarray(self.reduction(scores))  # [N]
        if reduced.shape != scores.shape[:1]:
            wanted, came = list(scores.shape[:1]), list(reduced.shape)
            raise ValueError(f"{self.name} needs a reduction of {list(scores.shape)} to {wanted}, got {came}.")
        return np.asarray(reduced)
