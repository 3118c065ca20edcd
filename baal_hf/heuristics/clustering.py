"""Rows that stand for a cluster each: nearest to its centre (k-means), or in its densest place (TypiClust)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, as_numpy, as_tensor, row_names
from baal_hf.heuristics.base import AbstractHeuristic, Ranks, Seed, checked_size
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.clusters import clustered
from baal_hf.heuristics.distances import DISTANCES_AT_ONCE, checked_features, distances_to

NEIGHBOURS = 20  # whose mean distance says how typical a row is
SMALL = 5  # rows; smaller clusters are outliers more than groups


def kmeans(
    features: Array, query_size: int, rng: np.random.Generator, weights: Array | None = None
) -> tuple[Array, Array]:
    """The row nearest to the centre of each of K clusters, largest cluster first.

    min Σ_i w_i min_k ‖h(x_i) − c_k‖²    (Zhdanov, 2019, arXiv:1901.05954; Lloyd, 1982)

    From seeds by k-means++ (Arthur & Vassilvitskii, 2007) until the sum falls by less than 10⁻⁴ of itself. The row is
    one of the cluster's own. Where rows with a weight have fewer than K different features, there is a cluster for
    each, and the other picks are those that come next in the order of the scores.

    Args:
        features: A representation of each row, h, [N, d].
        query_size: Number of picks and clusters, K.
        rng: Of the seeds.
        weights: How much each row pulls a centre towards itself, such as its uncertainty, at least 0, [N]; None weighs
            all alike, as do weights that are all 0.

    Returns:
        The picks in their order, int64 [K], and scores float64 [N]: how many rows come after this one when clusters are
        in the order of their weight and rows of a cluster in that of their distance from its centre.

    Raises:
        ValueError: `features` are misshapen or not finite, `weights` are of another length, negative or not finite, or
            K is not in 1 .. N.
        TypeError: An array is none of floating-point numbers.
    """
    values = checked_features(features, "KMeans")  # [N, d]
    checked_size(query_size, len(values), "KMeans")
    worth = _checked_weights(weights, values)  # [N]
    values = values.double() - values.double().mean(0)
    clusters, squares = clustered(values, query_size, rng, worth)
    own = as_numpy(clusters)  # [N]
    sizes = np.bincount(own, as_numpy(worth))  # [k]
    order = np.lexsort((as_numpy(squares), own, -sizes[own]))  # [N]
    first = np.unique(own[order], return_index=True)[1]  # [k], places in order
    places = np.concatenate([np.sort(first), np.delete(np.arange(len(order)), first)])[:query_size]
    return _answer(features, order[places], order)


def typiclust(
    features: Array, labelled_features: Array, query_size: int, rng: np.random.Generator, max_clusters: int = 500
) -> tuple[Array, Array]:
    """The most typical row of the largest cluster without a label, K times.

    t(x) = (1/k Σ_i ‖h(x) − h(x_i)‖)⁻¹, x₁..x_k the k = 20 rows of x's cluster that are nearest to it    (Hacohen et
    al., 2022, arXiv:2202.02794)

    Labelled rows and the pool are clustered together by k-means. Each pick comes from the cluster that has fewest
    labelled rows and picks, of these the one with most rows; from clusters of fewer than 5 rows only when all others
    are used up. A cluster of k rows or fewer takes all its other rows as neighbours; a row that is alone in its cluster
    has typicality 0.

    Args:
        features: A representation of each row, h, [N, d].
        labelled_features: Those of the labelled rows, [L, d]; L may be 0.
        query_size: Number of picks, K.
        rng: Of the seeds of the clusters.
        max_clusters: Most clusters to make; below that there are L + K.

    Returns:
        The picks in their order, int64 [K], and scores float64 [N]: how many rows come after this one when clusters are
        in the order for the first pick and rows of a cluster in that of their typicality.

    Raises:
        ValueError: Features are misshapen, not finite, or of different width; K is not in 1 .. N; `max_clusters` < 1.
        TypeError: Features are no arrays of floating-point numbers.
    """
    values = checked_features(features, "TypiClust")  # [N, d]
    labelled = checked_features(labelled_features, "TypiClust", "labelled_features", 0, values.shape[1])  # [L, d]
    N = len(values)
    checked_size(query_size, N, "TypiClust")
    if max_clusters < 1:
        raise ValueError(f"TypiClust needs max_clusters >= 1, got {max_clusters}.")
    points = torch.cat([values.double(), labelled.to(values.device).double()])  # [N + L, d]
    points -= points.mean(0)
    clusters = clustered(points, min(len(labelled) + query_size, max_clusters), rng)[0]  # [N + L]
    density = as_numpy(typicality(points, clusters))[:N]  # [N]
    sizes = as_numpy(torch.bincount(clusters))  # [k]
    used = as_numpy(torch.bincount(clusters[N:], minlength=len(sizes)))  # [k]
    own = as_numpy(clusters[:N])  # [N]
    ranking = np.lexsort((-density, own, -sizes[own], used[own], sizes[own] < SMALL))  # [N]
    picks = _in_turn(ranking, own, sizes, used, query_size)
    return _answer(features, picks, ranking)


def typicality(points: Tensor, clusters: Tensor) -> Tensor:
    """One over the mean distance to the 20 nearest rows of the same cluster, [M, d] to float32 [M]; 0 for a lone row.

    A distance of 0 counts as the smallest number that float32 holds, so that typicality is at most about 10³⁸.
    """
    result = torch.zeros(len(points), device=points.device)
    order = clusters.argsort(stable=True)  # [M]
    for members in torch.split(order, torch.bincount(clusters).tolist()):
        k = min(NEIGHBOURS, len(members) - 1)
        if k < 1:
            continue
        distances = distances_to(points[members])
        for rows in torch.split(members, max(1, DISTANCES_AT_ONCE // len(members))):
            nearest = distances(points[rows]).topk(k + 1, largest=False).values  # [n, k + 1], its own 0 first
            result[rows] = (nearest.sum(1) / k).clamp(min=torch.finfo(torch.float32).tiny).reciprocal()
    return result


def _in_turn(ranking: Ranks, own: Ranks, sizes: Ranks, used: Ranks, query_size: int) -> Ranks:
    """The next row of the cluster that has fewest labelled rows and picks, K times; of these the largest cluster's."""
    queues: dict[int, list[int]] = {}
    for row in ranking[::-1].tolist():
        queues.setdefault(int(own[row]), []).append(row)  # the next at the end
    heap = [(bool(sizes[cluster] < SMALL), int(used[cluster]), -int(sizes[cluster]), cluster) for cluster in queues]
    heapq.heapify(heap)
    picks = []
    for _ in range(query_size):
        small, count, size, cluster = heapq.heappop(heap)
        picks.append(queues[cluster].pop())
        if queues[cluster]:
            heapq.heappush(heap, (small, count + 1, size, cluster))
    return np.array(picks)


def _answer(features: Array, picks: Ranks, order: Ranks) -> tuple[Array, Array]:
    """Picks [K], and how many rows come after each in this order of all rows [N], of the kind of the features."""
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order))[::-1]
    if isinstance(features, Tensor):
        return torch.as_tensor(picks, device=features.device), torch.as_tensor(scores, device=features.device)
    return picks, scores


def _checked_weights(weights: Array | None, points: Tensor) -> Tensor:
    """Weights as float64 [N] that are not all 0.

    Raises:
        ValueError: They are of another length, negative or not finite.
        TypeError: They are no array of floating-point numbers.
    """
    if weights is None:
        return points.new_ones(len(points), dtype=torch.float64)
    values = as_tensor(weights, "KMeans (weights)").to(points.device).double()
    if values.shape != points.shape[:1]:
        raise ValueError(f"KMeans needs a weight of each row [{len(points)}], got {list(values.shape)}.")
    bad = ~values.isfinite() | (values < 0)  # [N]
    if bad.any():
        raise ValueError(f"KMeans needs weights >= 0, got others in {row_names(bad)}. Scores may be shifted to that.")
    return values if values.any() else torch.ones_like(values)


class KMeans(BatchHeuristic):
    """Rows nearest to the centres of K clusters, `kmeans`, as a heuristic.

    Args:
        query_size: Rows to pick, K, where the call does not say.
        shuffle_prop: As for every heuristic that picks rows together.
        base_heuristic: Its scores, at least 0, weigh the rows, and what it needs is needed; None weighs all alike.
        seed: Of the seeds of the clusters.
    """

    needs: Sequence[str] = ("features",)

    def __init__(
        self,
        query_size: int | None = None,
        shuffle_prop: float = 0.0,
        *,
        base_heuristic: AbstractHeuristic | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(query_size, shuffle_prop, seed=seed)
        if not isinstance(base_heuristic, AbstractHeuristic | None):
            raise TypeError(f"KMeans needs a heuristic as base_heuristic, got {type(base_heuristic).__name__}.")
        self.base_heuristic = base_heuristic
        if base_heuristic is not None:
            self.needs = tuple(dict.fromkeys([*base_heuristic.needs, "features"]))

    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together: picks [K] and the order of all rows as scores [N]."""
        weights = None
        if self.base_heuristic is not None:
            own = {name: array for name, array in arrays.items() if name in self.base_heuristic.needs}
            weights = self.base_heuristic.get_uncertainties(predictions, **own)  # [N]
        return kmeans(arrays["features"], query_size, self.rng, weights)


class TypiClust(BatchHeuristic):
    """Typical rows of clusters without a label, `typiclust`, as a heuristic.

    Args:
        query_size: Rows to pick, K, where the call does not say.
        shuffle_prop: As for every heuristic that picks rows together.
        max_clusters: Most clusters to make.
        seed: Of the seeds of the clusters.
    """

    needs = ("features", "labelled_features")

    def __init__(
        self, query_size: int | None = None, shuffle_prop: float = 0.0, *, max_clusters: int = 500, seed: Seed = 0
    ) -> None:
        super().__init__(query_size, shuffle_prop, seed=seed)
        if max_clusters < 1:
            raise ValueError(f"TypiClust needs max_clusters >= 1, got {max_clusters}.")
        self.max_clusters = max_clusters

    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together: picks [K] and the order of all rows as scores [N]."""
        return typiclust(arrays["features"], arrays["labelled_features"], query_size, self.rng, self.max_clusters)
