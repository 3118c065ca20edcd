"""Several heuristics as one, and scores that are there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from baal_hf.arrays import NumpyArray
from baal_hf.heuristics.base import AbstractHeuristic, Seed, finite, in_batch, sliced, whole
from baal_hf.heuristics.reductions import Reduction

Scores = npt.NDArray[np.float64]


def ranked(scores: Scores) -> Scores:
    """Ranks from the lowest score up, scaled to (0, 1): (rank - ½) / N, ties sharing their mean rank, [N] to [N].

    >>> ranked(np.array([3.0, 1.0, 3.0, 7.0])).tolist()
    [0.5, 0.125, 0.5, 0.875]
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts  # of each distinct score
    return np.asarray((below + counts / 2)[places] / len(scores))


def gaussian_quantiles(scores: Scores) -> Scores:
    """The quantile of the standard normal distribution at each row's rank, so that the ends of a ranking weigh most.

    Φ⁻¹((rank - ½) / N)    (Hazen, 1914; a rank-based inverse normal transformation)
    """
    return np.array([NormalDist().inv_cdf(share) for share in ranked(scores)])


NORMALISATIONS: dict[str, Callable[[Scores], Scores]] = {
    "none": lambda scores: scores,
    "rank": ranked,
    "quantile": gaussian_quantiles,
}


class CombineHeuristics(AbstractHeuristic):
    """Several heuristics' scores, weighted and put together.

    All look at the same predictions, or each at its own output of a model: then predictions are a list or tuple of
    arrays, one for each heuristic, as in Baal; batches come in a generator, which may yield such lists. `Precomputed()`
    takes scores in place of predictions.

    Args:
        heuristics: What to combine.
        weights: One number for each; None means 1 each. A negative one prefers rows that its heuristic does not.
        reduction: Weighted scores of the heuristics [N, H] to one [N]: 'mean', 'sum', 'max', 'min', or a function.
            Positions are reduced before, by each heuristic's own reduction.
        normalisation: What is done to each heuristic's scores [N] before they are weighted: 'none'; 'rank', their ranks
            in (0, 1); 'quantile', the normal quantiles of their ranks, in which the ends weigh more.
        shuffle_prop: As for every heuristic.
        seed: As for every heuristic.

    Raises:
        ValueError: No heuristics, weights of another number, or an unknown normalisation.
        TypeError: One of them is no heuristic.
    """

    def __init__(
        self,
        heuristics: Sequence[AbstractHeuristic],
        weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        shuffle_prop: float = 0.0,
        *,
        normalisation: str = "none",
        seed: Seed = 0,
    ) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)
        self.heuristics = list(heuristics)
        self.weights = np.asarray([1.0] * len(self.heuristics) if weights is None else weights, dtype=np.float64)
        if not self.heuristics:
            raise ValueError("CombineHeuristics needs at least one heuristic, got none.")
        for heuristic in self.heuristics:
            if not isinstance(heuristic, AbstractHeuristic):
                raise TypeError(f"CombineHeuristics needs heuristics, got {type(heuristic).__name__}.")
        if self.weights.shape != (len(self.heuristics),):
            came = f"{self.weights.size} for {len(self.heuristics)} heuristics"
            raise ValueError(f"CombineHeuristics needs a weight for each heuristic, got {came}.")
        if not np.isfinite(self.weights).all():
            raise ValueError(f"CombineHeuristics needs finite weights, got {self.weights.tolist()}.")
        if normalisation not in NORMALISATIONS:
            known = ", ".join(NORMALISATIONS)
            raise ValueError(f"CombineHeuristics needs a normalisation out of {known}, got {normalisation!r}.")
        self.normalisation = normalisation
        self.rows_together = normalisation != "none" or any(each.rows_together for each in self.heuristics)
        self.needs = list(dict.fromkeys(name for heuristic in self.heuristics for name in heuristic.needs))

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> NumpyArray:
        """The heuristics' scores put together, [N]."""
        return self._combined(self._scores(predictions, arrays))

    def get_uncertainties(self, predictions: Any = None, **arrays: Any) -> NumpyArray:
        """Score each row of an array, of a list with an array for each heuristic, or of a generator of such batches."""
        if "predictions" in self.needs and not isinstance(predictions, np.ndarray | Tensor | list | tuple):
            return super().get_uncertainties(predictions, **arrays)
        self._check_names(arrays)
        return self.compute_score(predictions, **arrays)

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches; normalised among all rows.

        Batches are put together first where one of the heuristics needs that.
        """
        self._check_names(arrays)
        if any(heuristic.rows_together for heuristic in self.heuristics):
            return self.get_uncertainties(self._whole(list(batches)), **arrays)
        parts: list[list[Scores]] = []
        start = 0
        for batch in batches:
            rows = len(batch[0] if isinstance(batch, list | tuple) else batch)
            try:
                parts.append(self._scores(batch, sliced(arrays, start, rows)))
            except ValueError as error:
                raise in_batch(len(parts), start, error) from error
            start += rows
        if not parts:
            raise ValueError("CombineHeuristics needs at least one batch of predictions, got none. Is the pool empty?")
        self._check_lengths(start, arrays)
        return self._combined([np.concatenate(scores) for scores in zip(*parts, strict=True)])

    def _whole(self, batches: list[Any]) -> Any:
        """All rows of each output, where a batch is a list with one for each heuristic."""
        if not batches or not isinstance(batches[0], list | tuple):
            return whole(batches, self.name)
        return [whole(output, self.name) for output in zip(*batches, strict=True)]

    def _scores(self, predictions: Any, arrays: dict[str, Any]) -> list[Scores]:
        """Each heuristic's scores, [N] each."""
        outputs = predictions if isinstance(predictions, list | tuple) else [predictions] * len(self.heuristics)
        if len(outputs) != len(self.heuristics):
            came = f"{len(outputs)} for {len(self.heuristics)} heuristics"
            advice = "Batches come in a generator: (batch for batch in batches)."
            raise ValueError(f"CombineHeuristics needs a list of predictions for each heuristic, got {came}. {advice}")
        scores = []
        for heuristic, output in zip(self.heuristics, outputs, strict=True):
            wanted = {name: array for name, array in arrays.items() if name in heuristic.needs}
            own = heuristic.get_uncertainties(output, **wanted)  # [N, *S]
            scores.append(finite(own, heuristic.name))  # [N]
        if len({len(own) for own in scores}) > 1:
            lengths = ", ".join(f"{len(own)} of {one.name}" for own, one in zip(scores, self.heuristics, strict=True))
            raise ValueError(f"CombineHeuristics needs scores of the same rows, got {lengths}.")
        return scores

    def _combined(self, scores: list[Scores]) -> NumpyArray:
        normalise = NORMALISATIONS[self.normalisation]
        return np.asarray(self._reduced(self.weights * np.stack([normalise(own) for own in scores], axis=1)))  # [N]


class Precomputed(AbstractHeuristic):
    """Scores that are there already: predictions are scores [N], or of positions [N, *S]; a higher one comes first."""

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """The scores that were given, [N, *S].

        Raises:
            TypeError: They are no array.
        """
        if not isinstance(predictions, np.ndarray | Tensor):
            raise TypeError(f"Precomputed needs scores as array or tensor, got {type(predictions).__name__}.")
        return predictions
