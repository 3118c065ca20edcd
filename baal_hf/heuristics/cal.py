"""CAL: rows that the model predicts otherwise than the labelled rows like them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baal_hf.arrays import Array, like
from baal_hf.heuristics.base import AbstractHeuristic, Seed
from baal_hf.heuristics.distances import DISTANCES_AT_ONCE, checked_features, distances_to
from baal_hf.heuristics.draws import mean_probs
from baal_hf.heuristics.reductions import Reduction

SMALLEST = torch.finfo(torch.float32).tiny


def cal(
    probs: Array, features: Array, labelled_features: Array, labelled_predictions: Array, neighbours: int = 10
) -> Array:
    """Mean Kullback-Leibler divergence in nats from the predictions of the nearest labelled rows to a row's own.

    s(x) = 1/k Σ_i KL(p̄(·|x_i) ‖ p̄(·|x)), p̄ = E_t[p_t], x₁..x_k the labelled rows nearest to x    (Margatina et al.,
    2021, arXiv:2109.03764)

    Nearest by the Euclidean distance of features; of equally near ones the first. A probability of 0 counts as the
    smallest that float32 holds, 10⁻³⁸, so that a row that excludes what its neighbours expect scores high and finite.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, T].
        features: A representation of each row, [N, d].
        labelled_features: Those of the labelled rows, [L, d], L > 0.
        labelled_predictions: Class probabilities of the labelled rows, [L, C, T'].
        neighbours: Number of labelled rows to compare a row with, k; all if there are fewer.

    Returns:
        Scores >= 0, about 88 at most, [N]; higher is more informative, 0 where the neighbours are predicted alike.

    Raises:
        ValueError: Predictions are no probabilities of the same two or more classes, features are misshapen, not finite
            or of different width, lengths differ, nothing is labelled, or `neighbours` < 1.
        TypeError: An array is none of floating-point numbers.
    """
    if neighbours < 1:
        raise ValueError(f"CAL needs neighbours >= 1, got {neighbours}.")
    values = checked_features(features, "CAL")  # [N, d]
    labelled = checked_features(labelled_features, "CAL", "labelled_features", 1, values.shape[1])  # [L, d]
    mean = mean_probs(probs, "CAL", rows=len(values))  # [N, C]
    labelled_mean = mean_probs(labelled_predictions, "CAL", "labelled_predictions", len(labelled)).to(mean)  # [L, C]
    if labelled_mean.shape[1] != mean.shape[1]:
        shapes = f"{list(labelled_predictions.shape)} for {list(probs.shape)}"
        raise ValueError(f"CAL needs labelled_predictions of the same classes, got {shapes}.")
    negative_entropy = torch.xlogy(labelled_mean, labelled_mean).sum(1)  # [L]
    distances, L = distances_to(labelled.to(mean.device)), len(labelled)
    rows_at_once = max(1, DISTANCES_AT_ONCE // L)
    scores = []
    for part, own in zip(torch.split(values, rows_at_once), torch.split(mean, rows_at_once), strict=True):
        near = _nearest(distances(part), min(neighbours, L))  # [n, k]
        cross = (labelled_mean[near].mean(1) * own.clamp(min=SMALLEST).log()).sum(1)  # [n], Σ_c p̄(c|x_i) log p̄(c|x)
        scores.append((negative_entropy[near].mean(1) - cross).clamp(min=0))  # [n]
    return like(probs, torch.cat(scores))


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Columns of the k smallest distances, of equal ones the first, [n, L] to [n, k]."""
    # Bits of floats that are not negative have the order of the floats: with the column below them no two are equal.
    keys = (distances.view(torch.int32).long() << 32) + torch.arange(distances.shape[1], device=distances.device)
    return keys.topk(k, dim=1, largest=False).indices


class CAL(AbstractHeuristic):
    """Contrast with the nearest labelled rows, `cal`, as a heuristic.

    Args:
        shuffle_prop: As for every heuristic.
        reduction: As for every heuristic; there are no positions to reduce.
        neighbours: Number of labelled rows to compare a row with.
        seed: As for every heuristic.
    """

    needs = ("predictions", "features", "labelled_features", "labelled_predictions")

    def __init__(
        self, shuffle_prop: float = 0.0, reduction: Reduction = "none", *, neighbours: int = 10, seed: Seed = 0
    ) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)
        if neighbours < 1:
            raise ValueError(f"CAL needs neighbours >= 1, got {neighbours}.")
        self.neighbours = neighbours

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each row, [N, C, T] to [N]."""
        return cal(predictions, neighbours=self.neighbours, **arrays)
