"""Arrays of batches and chunks become one: of the widest of their shapes, with NaN where there is nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def concatenated(batches: Iterator[Tensor]) -> np.ndarray:
    """One array of all batches, [N, C, *S, T]; shorter *S are padded with NaN. Batches are freed as they are copied."""
    parts = [batch.numpy() for batch in batches]
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    end = sum(map(len, parts))
    whole = np.empty((end, *shape), dtype=parts[0].dtype)
    while parts:
        part = parts.pop()
        target = whole[end - len(part) : end]
        if part.shape[1:] != tuple(shape):
            target[...] = np.nan
        target[tuple(slice(size) for size in part.shape)] = part
        end -= len(part)
    return whole


def halved(values: Tensor) -> Tensor:
    """The values in float16.

    Raises:
        ValueError: Some are beyond its range, as regressed values may be.
    """
    half = values.half()
    if half.isinf().any():
        raise ValueError("Values beyond 65,504 do not fit in float16: predict with half=False.")
    return half


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of all parts, [n, ...]; those shorter on another axis are padded with NaN."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    return torch.from_numpy(concatenated(iter(parts)))
