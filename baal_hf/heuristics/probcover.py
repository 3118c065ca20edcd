"""ProbCover: rows whose neighbourhoods together cover as many rows as possible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, like
from baal_hf.heuristics.base import Seed, checked_size
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.clusters import clustered
from baal_hf.heuristics.distances import DISTANCES_AT_ONCE, checked_features, distances_to
from baal_hf.heuristics.greedy import lazy_greedy


def probcover(features: Array, labelled_features: Array, query_size: int, delta: float) -> tuple[Array, Array]:
    """The row with most rows around it that none of the labelled and picked ones covers yet, K times.

    x_k = argmax_x |B(x) ∖ ⋃_{c ∈ L ∪ {x_j : j<k}} B(c)|, B(x) = {x' : ‖h(x) − h(x')‖ ≤ δ}    (Yehuda et al., 2022,
    arXiv:2205.11320)

    Once all rows are covered, the next picks are those furthest from the labelled and picked ones, which is what
    covers with smaller balls.

    Args:
        features: A representation of each row, h, [N, d].
        labelled_features: Those of the labelled rows, [L, d]; L may be 0.
        query_size: Number of picks, K.
        delta: Radius of the balls, δ >= 0, in the units of the features; `pure_radius` estimates one.

    Returns:
        The picks in their order, int64 [K], and how many rows each would cover as the first pick, 0 .. N, float64 [N];
        where labelled rows cover all from the start, its distance to the nearest of them.

    Raises:
        ValueError: Features are misshapen, not finite, or of different width; K is not in 1 .. N; `delta` is negative
            or not finite.
        TypeError: Features are no arrays of floating-point numbers.
    """
    values = checked_features(features, "ProbCover")  # [N, d]
    labelled = checked_features(labelled_features, "ProbCover", "labelled_features", 0, values.shape[1])  # [L, d]
    checked_size(query_size, len(values), "ProbCover")
    if not 0 <= delta < math.inf:
        raise ValueError(f"ProbCover needs a finite delta >= 0, got {delta}. pure_radius estimates one.")
    cover = _Cover(values, labelled, delta)
    scores = cover.counts.clone() if cover.counts.any() else cover.nearest.double()  # [N]
    picks, gains = lazy_greedy(cover.counts, lambda rows: cover.counts[rows], cover.accept, query_size, len(values))
    rows = cover.spread(picks[gains > 0].tolist(), query_size)
    return like(features, torch.tensor(rows, device=values.device)), like(features, scores)


def pure_radius(features: Array, classes: int, rng: np.random.Generator, purity: float = 0.95) -> float:
    """The largest radius at which that share of the rows have no row of another pseudo-class around them.

    δ = max {δ : 1/N Σ_i [all of B(x_i) is of the class of x_i] ≥ purity}    (Yehuda et al., 2022, arXiv:2205.11320)

    Pseudo-classes are clusters by k-means. The paper tries a grid of radii; this δ is exact to float32's last digit.

    Args:
        features: Representations of labelled and pool rows together, [N, d].
        classes: Number of clusters, that of classes, at least 2.
        rng: Of the seeds of the clusters.
        purity: Share of the rows, in (0, 1].

    Returns:
        Radius >= 0, in the units of the features; 0 where all rows are one point.

    Raises:
        ValueError: `features` are misshapen or not finite, `classes` < 2, or `purity` lies outside (0, 1].
        TypeError: `features` is no array of floating-point numbers.
    """
    values = checked_features(features, "ProbCover")  # [N, d]
    if classes < 2:
        raise ValueError(f"ProbCover needs classes >= 2, got {classes}.")
    if not 0 < purity <= 1:
        raise ValueError(f"ProbCover needs a purity in (0, 1], got {purity}.")
    points = values.double() - values.double().mean(0)  # [N, d]
    clusters, distances = clustered(points, classes, rng)[0], distances_to(values)
    size = max(1, DISTANCES_AT_ONCE // len(values))
    other = torch.cat(  # [N], distance to the nearest row of another cluster
        [
            distances(part).masked_fill_(own[:, None] == clusters, torch.inf).amin(1)
            for part, own in zip(torch.split(values, size), torch.split(clusters, size), strict=True)
        ]
    )
    impure = min(math.floor((1 - purity) * len(values) + 1e-9), len(values) - 1)  # rows that may have one so near
    limit = other.sort().values[impure]  # the first radius that is too large
    return float(limit.nextafter(torch.zeros_like(limit))) if limit.isfinite() else 0.0


class _Cover:
    """Which rows are covered, how many more each would cover, and how far each is from labelled and picked ones."""

    def __init__(self, features: Tensor, labelled: Tensor, delta: float) -> None:
        self.features = features  # [N, d]
        self.delta = delta
        self.distances = distances_to(features)
        self.at_once = max(1, DISTANCES_AT_ONCE // len(features))
        self.nearest = torch.full((len(features),), torch.inf, device=features.device)  # [N]
        if len(labelled):
            for part in torch.split(labelled, self.at_once):
                self.nearest = torch.minimum(self.nearest, self.distances(part).amin(0))
        self.covered = self.nearest <= delta  # [N]
        self.counts = self._around(~self.covered)  # [N]

    def _around(self, rows: Tensor) -> Tensor:
        """How many of these rows, bool [N], lie around each row, [N]."""
        counts = torch.zeros(len(self.features), dtype=torch.float64, device=self.features.device)
        for part in torch.split(self.features[rows], self.at_once):
            counts += (self.distances(part) <= self.delta).sum(0)
        return counts

    def accept(self, pick: int) -> bool:
        """Cover what lies around a pick; is anything left? Each row is covered once, so all picks cost one N x N."""
        if self.covered.all():
            return False
        self._approach(pick)
        fresh = (self.nearest <= self.delta) & ~self.covered  # [N]
        self.covered |= fresh
        self.counts -= self._around(fresh)
        return not bool(self.covered.all())

    def _approach(self, pick: int) -> None:
        self.nearest = torch.minimum(self.nearest, self.distances(self.features[[pick]])[0])

    def spread(self, picks: list[int], query_size: int) -> list[int]:
        """The picks, and the rows furthest from all labelled and picked ones until there are K."""
        while len(picks) < query_size:
            self.nearest[picks] = -1  # below all others, so that no row is picked again
            picks.append(int(self.nearest.argmax()))
            self._approach(picks[-1])
        return picks


class ProbCover(BatchHeuristic):
    """Rows that cover most of the others, `probcover`, as a heuristic.

    Args:
        query_size: Rows to pick, K, where the call does not say.
        shuffle_prop: As for every heuristic that picks rows together.
        delta: Radius of the balls, in the units of the features; None estimates one by `pure_radius`.
        classes: Number of classes, needed for the estimate.
        seed: Of the estimate.
    """

    needs = ("features", "labelled_features")

    def __init__(
        self,
        query_size: int | None = None,
        shuffle_prop: float = 0.0,
        *,
        delta: float | None = None,
        classes: int | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(query_size, shuffle_prop, seed=seed)
        if delta is None and classes is None:
            raise ValueError("ProbCover needs delta, or classes to estimate it, got neither. Say classes=...")
        if delta is not None and not 0 <= delta < math.inf:
            raise ValueError(f"ProbCover needs a finite delta >= 0, got {delta}. pure_radius estimates one.")
        self.delta = delta
        self.classes = classes

    def pick(self, predictions: Any, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together: picks [K] and how many rows each would cover as the first [N]."""
        features, labelled = arrays["features"], arrays["labelled_features"]
        return probcover(features, labelled, query_size, self._radius(features, labelled))

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """How many rows each row would cover as the first pick, [N]."""
        return self.pick(predictions, 1, **arrays)[1]

    def _radius(self, features: Array, labelled_features: Array) -> float:
        if self.delta is not None:
            return self.delta
        if self.classes is None:
            raise RuntimeError("ProbCover has lost both delta and classes.")
        pool = checked_features(features, "ProbCover")  # [N, d]
        labelled = checked_features(labelled_features, "ProbCover", "labelled_features", 0, pool.shape[1])  # [L, d]
        return pure_radius(torch.cat([pool, labelled.to(pool)]), self.classes, self.rng)
