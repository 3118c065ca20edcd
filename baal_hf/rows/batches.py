"""Batches of any dataset, as a loader makes them: what goes into a model, and what is to come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from baal_hf.rows.base import LABELS, ROW_ID
from baal_hf.rows.mapstyle import RowView


def has_targets(dataset: Any) -> bool:
    """Whether rows that are tuples end with their target: all but those of a pool do."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return not (isinstance(dataset, RowView) and dataset.is_pool)


def inputs_and_target(batch: Any, with_target: bool = True) -> tuple[Any, Any]:
    """A batch in two.

    Args:
        batch: A dictionary, whose target is called `label`, `labels`, `label_ids`, `target` or `targets`; a tuple or
            list, whose last element is the target if it has two or more; or a tensor, which has none.
        with_target: Whether the last element of a tuple is the target.

    Returns:
        The inputs, a dictionary (without the row ids of a pool) or a tuple, and the target, None if there is none.

    Raises:
        TypeError: The batch is something else.
    """
    if isinstance(batch, Mapping):
        target = next((batch[name] for name in LABELS if name in batch), None)
        return {name: value for name, value in batch.items() if name not in (*LABELS, ROW_ID)}, target
    if isinstance(batch, tuple | list):
        if with_target and len(batch) > 1:
            return tuple(batch[:-1]), batch[-1]
        return tuple(batch), None
    if hasattr(batch, "shape"):
        return (batch,), None
    raise TypeError(f"A batch is a dictionary, a tuple or a tensor, got {type(batch).__name__}: pass collate_fn=...")
