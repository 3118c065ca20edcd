"""Scores of a row's positions [N, *S], tokens or pixels, to one score a row [N]; padding (NaN) does not count."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, as_numpy, as_tensor, checked_mask, like, row_names

Reduction: TypeAlias = str | Callable[[NumpyArray], NumpyArray]


def reduced(scores: Array, reduction: Reduction, mask: NumpyArray | Tensor | None = None) -> Array:
    """One score a row, of those of its positions.

    Args:
        scores: Scores of positions, [N, *S]; NaN is padding.
        reduction: 'max', 'min', 'mean', 'sum', `top_k(k)`, `quantile(q)`, or a function of the NumPy array [N, *S].
            Scores without positions [N] stay as they are.
        mask: Positions that count, padding apart, bool [N, *S]; None means all.

    Returns:
        [N], of the kind of `scores`.

    Raises:
        ValueError: The reduction is unknown, the mask has another shape, a row has no position that counts, or the
            function does not return one score a row.
        TypeError: `scores` are no array of floating-point numbers, or the mask is no boolean array.

    Example:
        >>> reduced(torch.tensor([[1.0, 3.0, torch.nan]]), "mean")
        tensor([2.])
    """
    if isinstance(reduction, str) and reduction not in REDUCTIONS:
        raise ValueError(
            f"A reduction is one of {', '.join(REDUCTIONS)}, top_k(k), quantile(q) or a function, got {reduction!r}."
        )
    values = as_tensor(scores, "A reduction")  # [N, *S]
    if mask is not None:
        seen = checked_mask(mask, values.shape, "A reduction").to(values.device)  # [N, *S]
        values = values.masked_fill(~seen, torch.nan)
    if values.ndim == 1:
        return scores
    empty = values.isnan().flatten(1).all(1)  # [N]
    if empty.any():
        raise ValueError(f"A reduction needs a position of each row, got only padding in {row_names(empty)}.")
    if isinstance(reduction, str):
        return like(scores, REDUCTIONS[reduction](values.flatten(1)))  # [N]
    result = np.asarray(reduction(as_numpy(values)))
    if result.shape != values.shape[:1]:
        wanted, came = list(values.shape[:1]), list(result.shape)
        raise ValueError(f"A reduction of {list(values.shape)} needs to give {wanted}, got {came}.")
    return like(scores, torch.from_numpy(np.array(result)).to(values.device))


def top_k(k: int) -> Callable[[NumpyArray], NumpyArray]:
    """Reduction to the mean of the `k` highest scores of a row, of all where it has fewer.

    Raises:
        ValueError: `k` < 1.
        TypeError: `k` is no whole number.
    """
    if operator.index(k) < 1:
        raise ValueError(f"top_k needs k >= 1, got {k}.")

    def mean_of_highest(scores: NumpyArray) -> NumpyArray:
        negative = -scores.reshape(len(scores), -1)  # [N, S]
        highest = np.partition(negative, k - 1)[:, :k] if k < negative.shape[1] else negative  # [N, k], NaN last
        return np.asarray(-np.nanmean(highest, axis=1))

    return mean_of_highest


def quantile(q: float) -> Callable[[NumpyArray], NumpyArray]:
    """Reduction to the score below which a share `q` of a row's positions lies, interpolated between two of them.

    Raises:
        ValueError: `q` outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"quantile needs q in [0, 1], got {q}.")

    def quantile_of_positions(scores: NumpyArray) -> NumpyArray:
        ascending = np.sort(scores.reshape(len(scores), -1), axis=1)  # [N, S], NaN last
        place = q * ((~np.isnan(ascending)).sum(1) - 1)  # [N]; np.nanquantile is a loop over rows
        below, above = np.floor(place).astype(int), np.ceil(place).astype(int)  # [N] each
        rows = np.arange(len(scores))
        low, high = ascending[rows, below], ascending[rows, above]  # [N] each
        return np.asarray(low + (place - below).astype(low.dtype) * (high - low))

    return quantile_of_positions


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.masked_fill(scores.isnan(), -torch.inf).amax(1),
    "min": lambda scores: scores.masked_fill(scores.isnan(), torch.inf).amin(1),
    "mean": lambda scores: scores.nanmean(1),
    "sum": lambda scores: scores.nansum(1),
}
