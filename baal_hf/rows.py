"""The rows of a dataset seen without their labels (pool) or with given ones (labelled), never copied or rewritten.

Two kinds of rows answer the same questions: Arrow tables (`datasets.Dataset`) and any map-style torch dataset.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features
from torch.utils.data import Dataset, Subset

ROW_ID = "__row_id__"
"""Column of every Arrow view that holds the row id; it stays with the row through select, filter, sort and shuffle."""


class Rows(Protocol):
    """What `ActiveLearningDataset` asks of the data it stands on. `row_ids` are positions in the original dataset."""

    def __len__(self) -> int:
        """Number of rows, M."""

    def raw(self, row_id: int) -> Any:
        """The row as it is in the original dataset."""

    def pool(self, row_ids: np.ndarray) -> Any:
        """View of these rows with their labels hidden."""

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> Any:
        """View of these rows with these labels."""

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        """Labels as they are stored; None asks for the dataset's own."""


class ArrowRows:
    """Rows of a `datasets.Dataset`.

    Args:
        dataset: Any number of columns. One that is itself a selection (`select`, `shuffle`) is written out once by
            `datasets`, because row ids are attached as a column; the table of any other is shared.
        label_column: Where labels are found and put; need not exist yet.
        label_feature: Type of the labels, when the dataset does not say.

    Raises:
        ValueError: The dataset has no rows, or a column called `__row_id__`.
    """

    def __init__(
        self, dataset: datasets.Dataset, label_column: str, label_feature: Any = None, specifics: Mapping[str, Any] = {}
    ) -> None:
        if ROW_ID in dataset.column_names:
            raise ValueError(f"ActiveLearningDataset needs the column name {ROW_ID!r} for itself: rename that column.")
        self._original = dataset
        self._column = label_column
        self._feature = dataset.features.get(label_column) or label_feature
        inputs = dataset.remove_columns(label_column) if label_column in dataset.column_names else dataset
        self._inputs = _with_column(inputs, ROW_ID, np.arange(len(dataset)), None)
        self._pool_format = dict(specifics)

    def __len__(self) -> int:
        return len(self._original)

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def pool(self, row_ids: np.ndarray) -> datasets.Dataset:
        view = self._inputs.select(row_ids)
        if "transform" in self._pool_format:
            return view.with_transform(self._pool_format["transform"])
        return view

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> datasets.Dataset:
        column = [None] * len(self)
        for row_id in row_ids.tolist():
            column[row_id] = labels[row_id]
        return _with_column(self._inputs, self._column, column, self._feature).select(row_ids)

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        if labels is None:
            labels = self._own_labels(row_ids)
        elif isinstance(self._feature, ClassLabel):
            labels = [_class_index(label, self._feature) for label in labels]
        elif self._feature is not None:
            _check_arrow(labels, Features({self._column: self._feature}).arrow_schema.field(0).type)
        return [label.item() if isinstance(label, np.generic) else label for label in labels]

    def _own_labels(self, row_ids: Sequence[int]) -> list[Any]:
        if self._column not in self._original.column_names:
            raise ValueError(
                f"label() needs a value: the dataset has no column {self._column!r}, only "
                f"{self._original.column_names}. Pass value=..., or label_column=... to ActiveLearningDataset."
            )
        own = self._original.with_format(None).select(row_ids).select_columns([self._column])[self._column][:]
        for row_id, label in zip(row_ids, own, strict=True):
            if label is None or (isinstance(self._feature, ClassLabel) and label < 0):
                raise ValueError(f"label() needs a value for row {row_id}: its own label in the dataset is {label}.")
        return list(own)


def _with_column(dataset: datasets.Dataset, name: str, values: Any, feature: Any) -> datasets.Dataset:
    """`dataset` and one more column; tables are joined without copying, the format stays."""
    form = dataset.format
    joined = dataset.with_format(None).add_column(name, values, feature=feature)
    columns = None if form["columns"] == dataset.column_names else [*form["columns"], name]
    return joined.with_format(
        form["type"], columns=columns, output_all_columns=form["output_all_columns"], **form["format_kwargs"]
    )


def _class_index(label: Any, feature: ClassLabel) -> int:
    if isinstance(label, str) and label in feature.names:
        return int(feature.str2int(label))
    if isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label < feature.num_classes:
        return int(label)
    raise ValueError(f"Unknown label {label!r}. The classes are {dict(enumerate(feature.names))}.")


def _check_arrow(labels: Sequence[Any], kind: pa.DataType) -> None:
    try:
        pa.array(labels, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"The dataset's labels are of type {kind}, which {list(labels)[:5]} are not: {error}"
        ) from error


class TorchRows:
    """Rows of any map-style torch dataset: dictionaries, or sequences whose last element is the label.

    Args:
        dataset: Has `__len__` and `__getitem__`.
        label_column: Key of the label in rows that are dictionaries.
        make_unlabelled: Hides the label of a row; by default drops that key, or the last element of a sequence.
        specifics: Attributes set on the pool's shallow copy of the dataset, for example another transform.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        label_column: str,
        make_unlabelled: Callable[[Any], Any] | None = None,
        specifics: Mapping[str, Any] = {},
    ) -> None:
        self._original = dataset
        self._column = label_column
        self._unlabelled = make_unlabelled or self._without_label
        self._pool_dataset = copy.copy(dataset) if specifics else dataset
        for name, value in specifics.items():
            setattr(self._pool_dataset, name, value)

    def __len__(self) -> int:
        return len(self._original)  # type: ignore[arg-type]

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def pool(self, row_ids: np.ndarray) -> RowView:
        return RowView(self._pool_dataset, row_ids, lambda _, row: self._unlabelled(row))

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> RowView:
        given = {row_id: label for row_id, label in labels.items() if label is not None}
        return RowView(self._original, row_ids, lambda i, row: self._with_label(row, given[i]) if i in given else row)

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        return [None] * len(row_ids) if labels is None else list(labels)

    def _without_label(self, row: Any) -> Any:
        if isinstance(row, Mapping):
            return {name: value for name, value in row.items() if name != self._column}
        return tuple(row[:-1]) if isinstance(row, tuple | list) and len(row) > 1 else row

    def _with_label(self, row: Any, label: Any) -> Any:
        if isinstance(row, Mapping):
            return {**row, self._column: label}
        return (*row[:-1], label) if isinstance(row, tuple | list) and len(row) > 1 else (row, label)


class RowView(Dataset[Any]):
    """Some rows of a torch dataset, each shown through `show(row_id, row)`.

    Attributes:
        row_ids: int64, position of each row in the original dataset.
    """

    def __init__(self, dataset: Dataset[Any], row_ids: np.ndarray, show: Callable[[int, Any], Any]) -> None:
        self._dataset = dataset
        self._show = show
        self.row_ids = row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, position: int) -> Any:
        row_id = int(self.row_ids[position])
        return self._show(row_id, self._dataset[row_id])


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
        return np.asarray(view.with_format("numpy", columns=[ROW_ID])[ROW_ID][:], dtype=np.int64)
    if isinstance(view, Subset):
        return row_ids_of(view.dataset)[np.asarray(view.indices, dtype=np.int64)]
    if isinstance(view, RowView):
        return view.row_ids
    raise TypeError(
        f"A part of the pool that knows its row ids is needed, got {type(view).__name__}. Take it from `dataset.pool` "
        "with select, filter, shuffle or torch.utils.data.Subset."
    )
