"""The rows of a dataset seen without their labels (pool) or with given ones (labelled), never copied or rewritten.

Two kinds of rows answer the same questions: Arrow tables (`datasets.Dataset`) and any map-style torch dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
from torch.utils.data import IterableDataset, Subset

from baal_hf.rows.arrow import ArrowRows, table_positions
from baal_hf.rows.base import ROW_ID, Rows, identifying
from baal_hf.rows.batches import has_targets, inputs_and_target
from baal_hf.rows.mapstyle import RowView, TorchRows, rows_at

__all__ = [
    "ROW_ID",
    "ArrowRows",
    "RowView",
    "Rows",
    "TorchRows",
    "has_targets",
    "identifying",
    "inputs_and_target",
    "row_ids_of",
    "rows_at",
    "rows_of",
]


def rows_of(
    dataset: Any,
    label_column: str | None,
    label_feature: Any,
    make_unlabelled: Callable[[Any], Any] | None,
    specifics: Mapping[str, Any],
) -> Rows:
    """The rows of a dataset, for `ActiveLearningDataset`, whose arguments and errors these are."""
    if isinstance(dataset, Mapping):
        raise TypeError(f"ActiveLearningDataset needs one dataset, got several: pass one of {list(dataset)}.")
    indexable = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not indexable or isinstance(dataset, IterableDataset | str | bytes):
        raise TypeError(f"ActiveLearningDataset needs rows it can index, got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError("ActiveLearningDataset needs at least one row, got an empty dataset.")
    if not isinstance(dataset, datasets.Dataset):
        if label_feature is not None:
            raise ValueError("label_feature is for a datasets.Dataset: a torch dataset shows labels as they are given.")
        return TorchRows(dataset, label_column, make_unlabelled, specifics)
    if make_unlabelled is not None:
        raise ValueError("make_unlabelled is for torch datasets: the label column of a datasets.Dataset is left out.")
    if not set(dataset.column_names) - {"label", "labels", label_column}:
        raise ValueError(f"ActiveLearningDataset needs inputs beside labels, got the columns {dataset.column_names}.")
    if label_column is None:
        columns = [name for name in ("label", "labels") if name in dataset.column_names]
        if len(columns) == 2:
            raise ValueError(
                "The dataset has the columns 'label' and 'labels', and one of them would show in the pool. "
                "Remove one, or say label_column=..."
            )
        label_column = columns[0] if columns else "label"
    elif label_column not in dataset.column_names and label_feature is None:
        raise ValueError(
            f"The dataset has no column {label_column!r}, only {dataset.column_names}. To label rows that have no "
            "label yet, pass label_feature, for example datasets.ClassLabel(names=[...])."
        )
    return ArrowRows(dataset, label_column, label_feature, specifics)


def row_ids_of(view: Any) -> np.ndarray:
    """Row ids of a pool or of any part of it.

    Args:
        view: `ActiveLearningDataset.pool`, what `select`, `filter`, `sort` or `shuffle` made of it, or a
            `torch.utils.data.Subset` of it.

    Returns:
        int64, [N].

    Raises:
        TypeError: The view does not know its row ids.
    """
    if isinstance(view, datasets.Dataset) and ROW_ID in view.column_names:
        return np.asarray(view.data.column(ROW_ID).to_numpy()[table_positions(view)], dtype=np.int64)
    if isinstance(view, Subset):
        return row_ids_of(view.dataset)[np.asarray(view.indices, dtype=np.int64)]
    if isinstance(view, RowView):
        return view.row_ids
    raise TypeError(
        f"A part of the pool that knows its row ids is needed, got {type(view).__name__}. Take it from `dataset.pool` "
        f"with select, filter, sort, shuffle (which keep the column {ROW_ID!r}) or torch.utils.data.Subset."
    )
