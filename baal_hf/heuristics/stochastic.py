"""Sampling a query instead of taking the top of a ranking, so that rows alike do not all enter it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from baal_hf.arrays import NumpyArray, row_names
from baal_hf.heuristics.base import AbstractHeuristic, Ranks, Seed, checked_size, descending, finite
from baal_hf.heuristics.disagreement import BALD
from baal_hf.heuristics.reductions import Reduction
from baal_hf.heuristics.uncertainty import Entropy


class StochasticHeuristic(AbstractHeuristic):
    """A heuristic whose ranks are drawn without replacement, informative rows first with higher probability.

    The first rank is row i with probability ∝ exp(log-weight_i / temperature), the second likewise among the others,
    and so on: a full-length ranking by log-weight / temperature plus Gumbel noise (Kirsch et al., 2023,
    arXiv:2106.12059, with coldness β = 1 / temperature). Scores are those of the heuristic underneath.

    Args:
        base_heuristic: Scores the rows.
        query_size: Number of ranks where the call does not say; None means all.
        temperature: > 0; towards 0 the ranking becomes the base's own, towards infinity random.
        seed: Of the noise.

    Raises:
        ValueError: The temperature is not above 0.
        TypeError: `base_heuristic` is no heuristic.
    """

    def __init__(
        self,
        base_heuristic: AbstractHeuristic,
        query_size: int | None = None,
        temperature: float = 1.0,
        *,
        seed: Seed = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not isinstance(base_heuristic, AbstractHeuristic):
            raise TypeError(f"{self.name} needs a heuristic to sample by, got {type(base_heuristic).__name__}.")
        if not isinstance(temperature, int | float | np.number):
            raise TypeError(f"{self.name} needs a number as temperature, got {type(temperature).__name__}.")
        if not (np.isfinite(temperature) and temperature > 0):
            advice = f"For the ranking without noise use {base_heuristic.name} itself."
            raise ValueError(f"{self.name} needs a finite temperature above 0, got {temperature}. {advice}")
        self.base_heuristic = base_heuristic
        self.needs = base_heuristic.needs
        self.rows_together = base_heuristic.rows_together
        if query_size is not None:
            checked_size(query_size, None, self.name)
        self.query_size = query_size
        self.temperature = float(temperature)

    @abstractmethod
    def log_weights(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Logarithm of how likely a row is to be drawn first at temperature 1, up to a constant; [N] to [N]."""

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each position as the heuristic underneath does."""
        return self.base_heuristic.compute_score(predictions, **arrays)

    def get_uncertainties(self, predictions: Any = None, **arrays: Any) -> NumpyArray:
        """Score each row as the heuristic underneath does."""
        return self.base_heuristic.get_uncertainties(predictions, **arrays)

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches as the heuristic underneath does."""
        return self.base_heuristic.get_uncertainties_generator(batches, **arrays)

    def get_ranks(
        self, predictions: Any = None, query_size: int | None = None, **arrays: Any
    ) -> tuple[Ranks, NumpyArray]:
        """Draw a ranking; `query_size` is by default the heuristic's own."""
        return super().get_ranks(predictions, self.query_size if query_size is None else query_size, **arrays)

    def reorder_indices(self, scores: npt.ArrayLike | Tensor) -> Ranks:
        """Draw a ranking of finite scores [N]: a permutation of 0 .. N-1, int64 [N]; rows of weight 0 come last."""
        weights = self.log_weights(finite(scores, self.name)) / self.temperature  # [N]
        noisy = weights + self.rng.gumbel(size=len(weights))  # [N]
        return descending(np.maximum(noisy, np.finfo(np.float64).min), self.name)


class PowerSampling(StochasticHeuristic):
    """Draws rows with probability ∝ score^(1 / temperature); scores must not be negative."""

    def log_weights(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The logarithm of each score."""
        negative = scores < 0
        if negative.any():
            rows = row_names(Tensor(negative).bool())
            advice = "Sample by GibbsSampling or RankBasedSampling."
            raise ValueError(f"{self.name} needs scores of 0 or more, got others in {rows}. {advice}")
        with np.errstate(divide="ignore"):
            return np.log(scores)


class GibbsSampling(StochasticHeuristic):
    """Draws rows with probability ∝ exp(score / temperature): the softmax of the scores."""

    def log_weights(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The scores."""
        return scores


class RankBasedSampling(StochasticHeuristic):
    """Draws rows with probability ∝ rank^(-1 / temperature), whatever the scores; rank 1 is the highest score."""

    def log_weights(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Minus the logarithm of each rank."""
        weights = np.empty(len(scores))
        weights[descending(scores, self.name)] = -np.log(np.arange(1, len(scores) + 1))
        return weights


class PowerBALD(PowerSampling):
    """`PowerSampling` by BALD."""

    def __init__(
        self, query_size: int | None = None, temperature: float = 1.0, reduction: Reduction = "none", *, seed: Seed = 0
    ) -> None:
        super().__init__(BALD(reduction=reduction), query_size, temperature, seed=seed)


class PowerEntropy(PowerSampling):
    """`PowerSampling` by entropy."""

    def __init__(
        self, query_size: int | None = None, temperature: float = 1.0, reduction: Reduction = "none", *, seed: Seed = 0
    ) -> None:
        super().__init__(Entropy(reduction=reduction), query_size, temperature, seed=seed)


class SoftmaxBALD(GibbsSampling):
    """`GibbsSampling` by BALD."""

    def __init__(
        self, query_size: int | None = None, temperature: float = 1.0, reduction: Reduction = "none", *, seed: Seed = 0
    ) -> None:
        super().__init__(BALD(reduction=reduction), query_size, temperature, seed=seed)


class RankBALD(RankBasedSampling):
    """`RankBasedSampling` by BALD."""

    def __init__(
        self, query_size: int | None = None, temperature: float = 1.0, reduction: Reduction = "none", *, seed: Seed = 0
    ) -> None:
        super().__init__(BALD(reduction=reduction), query_size, temperature, seed=seed)
