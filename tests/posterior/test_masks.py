"""Masks are pure functions of a key."""

from __future__ import annotations

import torch

from baal_hf.posterior import masks
from baal_hf.posterior.masks import attention_mask, feature_mask

CPU = torch.device("cpu")


def test_feature_mask_is_a_function_of_its_key() -> None:
    """The same key gives the same mask, another key another one."""
    mask = feature_mask("a", 300, 0.4, CPU)
    masks._kept_features.cache_clear()
    assert torch.equal(feature_mask("a", 300, 0.4, CPU), mask)
    assert not torch.equal(feature_mask("b", 300, 0.4, CPU), mask)
    assert set(mask.tolist()) == {0.0, torch.tensor(1 / 0.6).item()}


def test_attention_mask_depends_on_head_and_distance() -> None:
    """Entries of one distance are equal within a head; heads and distances, both ways, differ."""
    mask = attention_mask("a", 40, 30, 50, 0.5, CPU)
    assert mask.shape == (40, 30, 50)
    assert torch.equal(mask[:, 1:, 1:], mask[:, :-1, :-1])
    assert mask[:, 0].float().std(0).min() > 0
    assert not torch.equal(mask[0, 0], mask[1, 0])
    assert not torch.equal(mask[:, 0, 1:30], mask[:, 1:, 0])


def test_longer_rows_extend_the_mask() -> None:
    """The mask of a longer row begins with that of a shorter one, across the sizes in which masks are drawn."""
    long, short = attention_mask("a", 3, 200, 150, 0.5, CPU), attention_mask("a", 3, 5, 7, 0.5, CPU)
    assert torch.equal(long[:, :5, :7], short)
    assert torch.equal(attention_mask("a", 9, 5, 7, 0.5, CPU)[:3], short)  # and so do more heads


def test_known_masks() -> None:
    """Masks do not change with the version: stored scores and killed runs depend on it."""
    assert (feature_mask("0/0/layer/1", 12, 0.5, CPU) > 0).int().tolist() == KNOWN_FEATURES
    assert (attention_mask("0/0/layer/1", 2, 3, 3, 0.5, CPU) > 0).int().tolist() == KNOWN_ATTENTION


KNOWN_FEATURES = [0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0]
KNOWN_ATTENTION = [[[1, 1, 1], [1, 1, 1], [0, 1, 1]], [[0, 0, 0], [0, 0, 0], [1, 0, 0]]]
