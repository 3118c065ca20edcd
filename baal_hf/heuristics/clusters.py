"""Clusters of features, by k-means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import as_numpy
from baal_hf.heuristics.distances import DISTANCES_AT_ONCE, distances_to

ITERATIONS = 100  # at most; it takes a dozen or two


def clustered(
    points: Tensor, k: int, rng: np.random.Generator, weights: Tensor | None = None, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """K-means of points [M, d] around 0 in double: the cluster of each, [M], and its squared distance to the centre.

    There are k clusters, fewer if there are fewer different points.
    """
    weights = points.new_ones(len(points)) if weights is None else weights  # [M]
    centres = _seeds(points, k, weights, rng)  # [k, d]
    norms, before = points.square().sum(1), torch.inf  # [M]
    for _ in range(ITERATIONS):
        clusters, squares = _nearest(points, norms, centres)  # [M], [M]
        total = float(weights @ squares)
        if before - total <= tolerance * total and bool(torch.bincount(clusters, minlength=len(centres)).all()):
            break
        centres, before = _centres(points, clusters, squares, weights, len(centres)), total
    return clusters, (points - centres[clusters]).square_().sum(1)


def _seeds(points: Tensor, k: int, weights: Tensor, rng: np.random.Generator) -> Tensor:
    """Up to k different points, drawn by weight times squared distance to the nearest before, [k, d]."""
    seeds: list[int] = []
    chances = weights  # [M]
    nearest = torch.full_like(weights, torch.inf)  # [M], squared distances
    distances = distances_to(points)
    while len(seeds) < k and bool(chances.any()):
        chance = as_numpy(chances)
        seeds.append(int(rng.choice(len(chance), p=chance / chance.sum())))
        nearest = torch.minimum(nearest, distances(points[seeds[-1:]])[0].double().square_())
        chances = weights * nearest
    return points[seeds]


def _nearest(points: Tensor, norms: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, the first of equally near ones, and its squared distance, [M] each."""
    sizes = centres.square().sum(1)  # [k]
    parts = torch.split(points, max(1, DISTANCES_AT_ONCE // len(centres)))
    found = [torch.addmm(sizes, part, centres.T, alpha=-2).min(1) for part in parts]
    return torch.cat([each.indices for each in found]), (norms + torch.cat([each.values for each in found])).clamp_(0)


def _centres(points: Tensor, clusters: Tensor, squares: Tensor, weights: Tensor, k: int) -> Tensor:
    """Weighted means of the clusters; one without weight starts anew at the point that costs most, [k, d]."""
    # Summed cluster by cluster, as index_add_ has no fixed order on an accelerator.
    order, counts = clusters.argsort(stable=True), torch.bincount(clusters, minlength=k).tolist()
    pieces = zip(torch.split(points[order], counts), torch.split(weights[order], counts), strict=True)
    centres = torch.stack([weight @ piece / weight.sum() for piece, weight in pieces])  # [k, d], NaN without weight
    costs = weights * squares  # [M]
    for cluster in centres[:, 0].isnan().nonzero()[:, 0].tolist():
        far = points[costs.argmax()]  # [d]
        centres[cluster] = far
        costs = costs.masked_fill((points == far).all(1), 0)
    return centres
