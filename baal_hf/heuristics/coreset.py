"""CoreSet: the labelled rows and the picks leave no row far from all of them."""

from __future__ import annotations

from typing import Any

import torch

from baal_hf.arrays import Array, like
from baal_hf.heuristics.base import checked_size
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.distances import DISTANCES_AT_ONCE, checked_features, distances_to


def coreset(features: Array, labelled_features: Array, query_size: int) -> tuple[Array, Array]:
    """The row that is furthest from all labelled and picked ones, K times: k-center, greedily.

    x_k = argmax_x min_{c ∈ L ∪ {x_j : j<k}} ‖h(x) − h(c)‖    (Sener & Savarese, 2018, arXiv:1708.00489)

    Where nothing is labelled, the first pick is the row nearest to the mean of all. Rows at distance 0 from all of
    those come last, in the order of rows.

    Args:
        features: A representation of each row, h, [N, d].
        labelled_features: Those of the labelled rows, [L, d]; L may be 0.
        query_size: Number of picks, K.

    Returns:
        The picks in their order, int64 [K], and each row's distance to the nearest labelled one, float32 [N], at least
        0; where nothing is labelled, by how much it is nearer to the mean than the row furthest from that.

    Raises:
        ValueError: Features are misshapen, not finite, or of different width; K is not in 1 .. N.
        TypeError: Features are no arrays of floating-point numbers.
    """
    values = checked_features(features, "CoreSet")  # [N, d]
    labelled = checked_features(labelled_features, "CoreSet", "labelled_features", 0, values.shape[1])  # [L, d]
    checked_size(query_size, len(values), "CoreSet")
    distances = distances_to(values)
    nearest = torch.full((len(values),), torch.inf, device=values.device)  # [N]
    if len(labelled):
        for part in torch.split(labelled, max(1, DISTANCES_AT_ONCE // len(values))):
            nearest = torch.minimum(nearest, distances(part).amin(0))
        scores = nearest
    else:
        off_centre = distances(values.double().mean(0, keepdim=True))[0]  # [N]
        scores = off_centre.max() - off_centre
    picks = [int(scores.argmax())]  # the first of equal ones
    while len(picks) < query_size:
        pick = picks[-1]
        nearest = torch.minimum(nearest, distances(values[[pick]])[0])  # [N]
        nearest[pick] = -1  # below all others, so that no row is picked again
        picks.append(int(nearest.argmax()))
    return like(features, torch.tensor(picks, device=values.device)), like(features, scores)


class CoreSet(BatchHeuristic):
    """Rows far from all labelled and picked ones, `coreset`, as a heuristic."""

    needs = ("features", "labelled_features")

    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together: picks [K] and the distance of each row to the nearest labelled one [N]."""
        return coreset(arrays["features"], arrays["labelled_features"], query_size)

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """The distance of each row to the nearest labelled one, [N]."""
        return coreset(arrays["features"], arrays["labelled_features"], 1)[1]
