"""Dropout masks as pure functions of a key: no generator state, so the same on every process and after a restart."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Lengths are rounded up to this many positions before a mask is drawn, so that a pool of many lengths shares few masks.
_POSITIONS = 64


def generator(key: str) -> np.random.Generator:
    """Counter-based random numbers named by `key`: the same key, the same numbers, everywhere (Salmon et al., 2011)."""
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "big"))
    )


@lru_cache(maxsize=4096)
def feature_mask(key: str, size: int, p: float, device: torch.device) -> Tensor:
    """Scaled keep mask of `size` features: 1/(1 − p) with probability 1 − p, else 0.

    Returns:
        float32 on `device`, [size].
    """
    return _tensor((generator(key).random(size) >= p) / (1 - p), device)


def attention_mask(key: str, heads: int, queries: int, keys: int, p: float, device: torch.device) -> Tensor:
    """Scaled keep mask of attention weights that depends on the head and on the distance from query to key alone.

    Padding on either side moves query and key by the same number of places and leaves their distance, and so the mask,
    as it was. A longer row extends the mask of a shorter one.

    Returns:
        float32 on `device`, [heads, queries, keys].
    """
    length = -(-max(queries, keys) // _POSITIONS) * _POSITIONS
    by_distance = _distance_mask(key, heads, length, p, device)  # [heads, 2·length − 1], centre is distance 0
    band = by_distance[:, length - queries : length + keys - 1]  # [heads, queries + keys − 1]
    return band.unfold(1, keys, 1).flip(1)  # [heads, queries, keys]


@lru_cache(maxsize=4096)
def _distance_mask(key: str, heads: int, length: int, p: float, device: torch.device) -> Tensor:
    # Drawn in the order of distances 0, 1, −1, 2, −2, ...: the numbers of a shorter mask begin those of a longer one.
    keep = generator(key).random((2 * length - 1, heads)) >= p
    outward = np.concatenate([np.arange(2 * length - 2, 0, -2), np.arange(0, 1), np.arange(1, 2 * length - 2, 2)])
    return _tensor(keep[outward].T / (1 - p), device)  # [heads, 2·length − 1]


def _tensor(mask: NDArray[np.float64], device: torch.device) -> Tensor:
    # Cached for passes of every kind: a tensor made in inference mode could not take part in a backward pass.
    with torch.inference_mode(False):
        return torch.from_numpy(mask).to(device, torch.float32)
