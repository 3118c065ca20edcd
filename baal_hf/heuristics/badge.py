"""BADGE: rows whose gradients in the last layer are large and far from one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, as_numpy, like
from baal_hf.heuristics.base import checked_size, descending
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.distances import checked_features
from baal_hf.heuristics.draws import mean_probs


def badge(probs: Array, features: Array, query_size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Rows spread over the gradients that the last layer would have, were the predicted classes true, by k-means++.

    g(x) = (p̄(·|x) − e_ŷ) ⊗ h(x), p̄ = E_t[p_t], ŷ = argmax_c p̄(c|x)    (Ash et al., 2020, arXiv:1906.03671)
    P(x_k = x) ∝ min_{j<k} ‖g(x) − g(x_j)‖², x₁ = argmax_x ‖g(x)‖    (Arthur & Vassilvitskii, 2007)

    Gradients are never built: with u = p̄ − e_ŷ, g·g' = (u·u')(h·h'). In double; rows whose gradients differ by less
    than 10⁻⁶ of their size are one point. If there are fewer points than picks, the other picks are those of largest
    gradient, in the order of rows where these are equal.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, T].
        features: What the last layer is given for each row, h, [N, d].
        query_size: Number of picks, K.
        rng: Of the draws; one for each pick after the first.

    Returns:
        The picks in their order, int64 [K], and the size of each row's gradient ‖g‖ = ‖u‖ ‖h‖ >= 0, float32 [N], whose
        largest is the first pick.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes; `features` are
            misshapen, not finite, or of another length; K is not in 1 .. N.
        TypeError: An array is none of floating-point numbers.
    """
    values = checked_features(features, "BADGE")  # [N, d]
    mean = mean_probs(probs, "BADGE", rows=len(values))  # [N, C]
    checked_size(query_size, len(values), "BADGE")
    mean = mean.double()
    residuals = mean - torch.zeros_like(mean).scatter_(1, mean.argmax(1, keepdim=True), 1)  # [N, C], u
    values = values.to(mean)
    squares = residuals.square().sum(1) * values.square().sum(1)  # [N], ‖g‖²
    scores = squares.sqrt().float()  # [N], so rounded that equal rows are equal
    picks = _spread(residuals, values, squares, int(scores.argmax()), query_size, rng)
    if len(picks) < query_size:
        order = descending(scores, "BADGE")  # [N]
        picks += order[~np.isin(order, picks)][: query_size - len(picks)].tolist()
    return like(probs, torch.tensor(picks, device=scores.device)), like(probs, scores)


def _spread(
    residuals: Tensor, features: Tensor, squares: Tensor, first: int, query_size: int, rng: np.random.Generator
) -> list[int]:
    """Up to K distinct points u ⊗ h, each after the first drawn by its squared distance to the nearest before it."""
    picks = [first]
    nearest = torch.full_like(squares, torch.inf)  # [N], squared distances
    while len(picks) < query_size:
        pick = picks[-1]
        both = squares + squares[pick]  # [N]
        products = (residuals @ residuals[pick]).mul_(features @ features[pick])  # [N], g·g'
        distances = both - 2 * products  # [N]
        # What cancels leaves rounding, positive or negative; with 0 a row that was drawn is not drawn again.
        distances.masked_fill_(distances <= 1e-12 * both, 0)
        distances[pick] = 0
        nearest = torch.minimum(nearest, distances)
        weights = as_numpy(nearest)  # [N]
        if not weights.any():
            break
        picks.append(int(rng.choice(len(weights), p=weights / weights.sum())))
    return picks


class BADGE(BatchHeuristic):
    """Rows spread over the last layer's gradients, `badge`, as a heuristic."""

    needs = ("predictions", "features")

    def pick(self, predictions: Array, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together, [N, C, T] to picks [K] and the sizes of their gradients [N]."""
        return badge(predictions, arrays["features"], query_size, self.rng)

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """The size of each row's gradient, [N, C, T] to [N]."""
        return badge(predictions, arrays["features"], 1, self.rng)[1]
