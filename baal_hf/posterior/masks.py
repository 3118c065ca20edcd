"""Dropout masks as pure functions of a key: no generator state, so the same on every process and after a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

# Lengths are rounded up to this many positions before a mask is drawn, so that a pool of many lengths shares few masks.
_POSITIONS = 64


def kept(key: str, size: int, p: float) -> np.ndarray:
    """Coins named by `key`, true with probability 1 − p to within 2⁻³²; those of a shorter row begin a longer one.

    The numbers are counter-based: the same key, the same coins, everywhere (Salmon et al., 2011).

    Returns:
        bool, [size].
    """
    digest = blake2b(key.encode(), digest_size=16).digest()
    numbers = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(-(-size // 2))  # 64 bits each
    return np.asarray(numbers.astype("<u8", copy=False).view("<u4")[:size] >= round(p * 2**32))


def feature_mask(key: str, size: int, p: float, device: torch.device) -> Tensor:
    """Scaled keep mask of `size` features: 1/(1 − p) with probability 1 − p, else 0.

    Returns:
        float32 on `device`, [size].
    """
    return _scaled(_kept_features(key, size, p), p, device)


def attention_mask(key: str, heads: int, queries: int, keys: int, p: float, device: torch.device) -> Tensor:
    """Scaled keep mask of attention weights that depends on the head and on the distance from query to key alone.

    Padding on either side moves query and key by the same number of places and leaves their distance, and so the mask,
    as it was. A longer row extends the mask of a shorter one; more heads extend that of fewer.

    Returns:
        float32 on `device`, [heads, queries, keys].
    """
    by_distance, length = _by_distance(key, heads, max(queries, keys), p, device)
    band = by_distance[:, length - queries : length + keys - 1]  # [heads, queries + keys − 1]
    return band.unfold(1, keys, 1).flip(1)  # [heads, queries, keys]


def placed_attention_mask(key: str, heads: int, queries: Tensor, keys: Tensor, p: float) -> Tensor:
    """`attention_mask` for rows whose queries and keys stand at places [B, L] and [B, S] of their own.

    Returns:
        float32, [B, heads, L, S].
    """
    furthest = max(int(queries.max()), int(keys.max())) + 1
    by_distance, length = _by_distance(key, heads, furthest, p, keys.device)
    distances = keys[:, None, :] - queries[:, :, None]  # [B, L, S]
    return by_distance[:, distances + length - 1].movedim(0, 1)  # [B, heads, L, S]


def _by_distance(key: str, heads: int, positions: int, p: float, device: torch.device) -> tuple[Tensor, int]:
    """The mask by distance, [heads, 2·length − 1] with 0 in the middle, and the length."""
    length = -(-positions // _POSITIONS) * _POSITIONS
    return _scaled(_kept_distances(key, heads, length, p), p, device), length


def fresh_mask(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    """Scaled keep mask with a coin of the generator for each unit, whose rate is `p` to within 2⁻¹⁷.

    Returns:
        float32 on the generator's device, of `shape`.
    """
    if p == 1:
        return torch.zeros(tuple(shape), device=generator.device)
    # Whole words, four coins each: `bernoulli_` is many times slower on a processor.
    units = math.prod(shape)
    words = torch.empty(-(-units // 4), dtype=torch.int64, device=generator.device)
    coins = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:units]
    dropped = min(round(p * 2**16), 2**16 - 1)  # of the 2¹⁶ faces of a coin
    return _scaled((coins >= dropped - 2**15).view(tuple(shape)), dropped / 2**16, generator.device)


# What is cached is the coins, a byte each, in main memory; an accelerator holds a mask only while it is used.
@lru_cache(maxsize=2**14)
def _kept_features(key: str, size: int, p: float) -> Tensor:
    return _coins(kept(key, size, p))


@lru_cache(maxsize=2**12)
def _kept_distances(key: str, heads: int, length: int, p: float) -> Tensor:
    # Drawn in the order of distances 0, 1, −1, 2, −2, ...: the numbers of a shorter mask begin those of a longer one.
    outward = np.concatenate([np.arange(2 * length - 2, 0, -2), np.arange(0, 1), np.arange(1, 2 * length - 2, 2)])
    by_head = [kept(f"{key}/{head}", 2 * length - 1, p)[outward] for head in range(heads)]
    return _coins(np.stack(by_head))  # [heads, 2·length − 1]


def _coins(coins: np.ndarray) -> Tensor:
    # Used by passes of every kind: a tensor made in inference mode could not take part in a backward pass.
    with torch.inference_mode(False):
        return torch.from_numpy(coins)


def _scaled(coins: Tensor, p: float, device: torch.device) -> Tensor:
    return coins.to(device).float().mul_(1 / (1 - p)) if p < 1 else torch.zeros(coins.shape, device=device)
