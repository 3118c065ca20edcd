"""Rows at random: the baseline that every other heuristic has to beat; needs no predictions."""

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_numpy
from baal_hf.heuristics.base import AbstractHeuristic


class Random(AbstractHeuristic):
    """Scores uniform in [0, 1), a new one for each row and call, from the heuristic's own generator."""

    needs = ()

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each row of anything with a length, the pool itself for one; [N], a tensor for a tensor.

        Raises:
            ValueError: There are no rows.
            TypeError: `predictions` has no length.
        """
        if not isinstance(predictions, Sized):
            raise TypeError(f"Random needs rows with a length, got {type(predictions).__name__}. Pass the pool.")
        if not len(predictions):
            raise ValueError("Random needs at least one row, got none. Is the pool empty?")
        scores = self.rng.random(len(predictions))  # [N]
        return torch.from_numpy(scores).to(predictions.device) if isinstance(predictions, Tensor) else scores

    def get_uncertainties(self, predictions: Any = None, **arrays: Any) -> NumpyArray:
        """Score each row of anything with a length, or of an iterator of such batches.

        Raises:
            ValueError: There are no rows.
            TypeError: `predictions` is a list of arrays, rows or batches alike, or neither sized nor iterable.
        """
        self._check_names(arrays)
        if isinstance(predictions, list | tuple) and predictions and isinstance(predictions[0], np.ndarray | Tensor):
            raise TypeError(
                "Random needs to know whether a list of arrays holds rows or batches. "
                "Pass range(len(rows)), or batches to get_uncertainties_generator."
            )
        if isinstance(predictions, Sized):
            return as_numpy(self.compute_score(predictions))  # [N]
        if not isinstance(predictions, Iterable):
            raise TypeError(f"Random needs rows with a length, got {type(predictions).__name__}. Pass the pool.")
        return self.get_uncertainties_generator(predictions, **arrays)
