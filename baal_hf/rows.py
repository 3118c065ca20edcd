"""The rows of a dataset seen without their labels (pool) or with given ones (labelled), never copied or rewritten.

Two kinds of rows answer the same questions: Arrow tables (`datasets.Dataset`) and any map-style torch dataset.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Features
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable, Table, concat_tables
from torch import Tensor
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
        dataset: Any number of columns, in any format; also one that is itself a selection (`select`, `shuffle`, a split
            by `train_test_split`). Its table is shared. Only one that has a row more than once is written out anew.
        label_column: Where labels are found and put; need not exist yet.
        label_feature: Type of the labels, when the dataset does not say or says it wrongly.
        specifics: `{"transform": f}` shows the pool through `f`.

    Raises:
        ValueError: The dataset has a column called `__row_id__`, or `specifics` names something else.
    """

    def __init__(
        self, dataset: datasets.Dataset, label_column: str, label_feature: Any = None, specifics: Mapping[str, Any] = {}
    ) -> None:
        if ROW_ID in dataset.column_names:
            raise ValueError(f"ActiveLearningDataset needs the column name {ROW_ID!r} for itself: rename that column.")
        if set(specifics) - {"transform"}:
            raise ValueError(f"The pool of a datasets.Dataset can have its own transform only, got {list(specifics)}.")
        positions = _positions(dataset)
        if np.bincount(positions, minlength=1).max() > 1:
            dataset = dataset.with_format(None).flatten_indices().with_format(**dataset.format)
            positions = _positions(dataset)
        self._original = dataset
        self._column = label_column
        self._feature = label_feature or dataset.features.get(label_column)
        self._inputs = dataset.remove_columns(label_column) if label_column in dataset.column_names else dataset
        self._positions = positions  # [M], row of the table that each row id is
        self._row_ids = np.full(len(dataset.data), -1)  # [rows of the table], the other way; -1 is not in the dataset
        self._row_ids[positions] = np.arange(len(dataset))
        self._table = _joined(self._inputs.data, ROW_ID, pa.array(self._row_ids))
        self._pool_format = dict(specifics)

    def __len__(self) -> int:
        return len(self._original)

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def pool(self, row_ids: np.ndarray) -> datasets.Dataset:
        view = self._view(self._table, {}, row_ids)
        return view.with_transform(self._pool_format["transform"]) if self._pool_format else view

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> datasets.Dataset:
        if self._feature is None:  # then nothing can be labelled
            return self._view(self._table, {}, row_ids)
        values = [labels[row_id] for row_id in row_ids.tolist()]
        place = np.full(len(self) + 1, -1)
        place[row_ids] = np.arange(len(row_ids))
        place = place[self._row_ids]  # [rows of the table], place in `values`
        column = pa.array(values, type=self._type).take(pa.array(place, mask=place < 0))
        return self._view(_joined(self._table, self._column, column), {self._column: self._feature}, row_ids, values)

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        if self._feature is None:
            raise ValueError(
                f"Labelling needs to know where labels are: the dataset has no column {self._column!r}, only "
                f"{self._original.column_names}. Pass label_column=... to ActiveLearningDataset, or for labels "
                "that are to come label_feature=..., for example datasets.ClassLabel(names=[...])."
            )
        labels = self._own_labels(row_ids) if labels is None else [_plain(label) for label in labels]
        labels = [_with_classes(label, self._feature) for label in labels]
        try:
            array = pa.array(labels, type=self._type)  # takes no other type, but cuts 1.5 to 1
            if not isinstance(self._type, pa.ExtensionType):
                pa.array(labels).cast(self._type)  # takes other types, but cuts nothing
        except (ValueError, TypeError) as error:  # Arrow's own errors are of these
            raise ValueError(f"The labels are {self._feature}, which {labels[:5]} are not: {error}") from error
        return list(array.to_pylist())

    @property
    def _type(self) -> pa.DataType:
        return Features({self._column: self._feature}).arrow_schema.field(0).type

    def _own_labels(self, row_ids: Sequence[int]) -> list[Any]:
        if self._column not in self._original.column_names:
            raise ValueError(
                f"Labelling needs the labels: the dataset has no column {self._column!r} to take them from, only "
                f"{self._original.column_names}. Pass them, or label_column=... to ActiveLearningDataset."
            )
        own = self._original.data.column(self._column).take(pa.array(self._positions[row_ids])).to_pylist()
        for row_id, label in zip(row_ids, own, strict=True):
            if label is None or label != label or (isinstance(self._feature, ClassLabel) and label == -1):
                raise ValueError(f"Row {row_id} needs a label: its own in the dataset is {label}. Pass one.")
        return list(own)

    def _view(
        self, table: Table, features: Mapping[str, Any], row_ids: np.ndarray, labels: Sequence[Any] = ()
    ) -> datasets.Dataset:
        """These rows of the table, which has the columns of the inputs, row ids and `features`.

        What `select` does, which at two million rows takes half a second to look at each row in Python.
        """
        added: dict[str, Any] = {ROW_ID: datasets.Value("int64"), **features}
        info = self._inputs.info.copy()
        info.features = Features({**self._inputs.features, **added})
        positions = self._positions[row_ids]  # [N]
        if (np.diff(positions) == 1).all():
            table, indices = table.slice(positions[0] if len(positions) else 0, len(positions)), None
        else:
            indices = InMemoryTable.from_arrays([pa.array(positions, type=pa.uint64())], names=["indices"])
        # The fingerprint, which has no public name either, names the contents: `map` finds in its cache what it made.
        fingerprint = Hasher.hash([self._inputs._fingerprint, row_ids, labels])
        view = datasets.Dataset(
            table, info=info, split=self._inputs.split, indices_table=indices, fingerprint=fingerprint
        )
        form = self._inputs.format
        shown = None if form["columns"] == self._inputs.column_names else [*form["columns"], *added]
        return view.with_format(**{**form, "columns": shown})


def _positions(dataset: datasets.Dataset) -> np.ndarray:
    """Row of the dataset's table that each of its rows is, int64 [N]; `datasets` has no public name for it."""
    if dataset._indices is None:
        return np.arange(len(dataset))
    return dataset._indices.column(0).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _joined(table: Table, name: str, column: pa.Array) -> Table:
    """The table and one more column; nothing is copied."""
    return concat_tables([table, InMemoryTable.from_arrays([column], names=[name])], axis=1)


def _plain(label: Any) -> Any:
    """Numbers and lists for NumPy's and torch's."""
    return label.tolist() if hasattr(label, "tolist") else label


def _with_classes(label: Any, feature: Any) -> Any:
    """The label with indices for the names of classes, in lists too."""
    if isinstance(feature, ClassLabel):
        return _class_index(label, feature)
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(label, list | tuple):
        return [_with_classes(part, feature.feature) for part in label]
    return label


def _class_index(label: Any, feature: ClassLabel) -> int:
    if isinstance(label, str) and label in feature.names:
        return int(feature.str2int(label))
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < feature.num_classes:
        return label
    raise ValueError(f"Unknown label {label!r}. The classes are {dict(enumerate(feature.names))}.")


class TorchRows:
    """Rows of any map-style torch dataset: dictionaries, or sequences whose last element is the label.

    Args:
        dataset: Has `__len__` and `__getitem__`.
        label_column: Key of the label in rows that are dictionaries; None means "label" and "labels".
        make_unlabelled: Hides the label of a row; by default drops that key, or the last element of a sequence.
        specifics: Attributes set on the pool's shallow copy of the dataset, for example another transform.

    Raises:
        ValueError: `specifics` names an attribute that the dataset does not have.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        label_column: str | None = None,
        make_unlabelled: Callable[[Any], Any] | None = None,
        specifics: Mapping[str, Any] = {},
    ) -> None:
        names = ("label", "labels") if label_column is None else (label_column,)
        self._original = dataset
        self._unlabelled = make_unlabelled or partial(_without_label, names)
        self._with_label = partial(_with_label, names)
        self._pool_dataset = copy.copy(dataset) if specifics else dataset
        for name, value in specifics.items():
            if not hasattr(dataset, name):
                raise ValueError(f"pool_specifics names {name!r}, which {type(dataset).__name__} does not have.")
            setattr(self._pool_dataset, name, value)

    def __len__(self) -> int:
        return len(self._original)  # type: ignore[arg-type]

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def pool(self, row_ids: np.ndarray) -> RowView:
        return RowView(self._pool_dataset, row_ids, self._unlabelled)

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> RowView:
        return RowView(self._original, row_ids, self._with_label, [labels[row_id] for row_id in row_ids.tolist()])

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        if labels is None:
            return [None] * len(row_ids)
        # The ledger's own: a number, or a copy of an array that the caller may go on to change.
        return [_plain(label) if getattr(label, "ndim", None) == 0 else copy.deepcopy(label) for label in labels]


def _without_label(names: Sequence[str], row: Any) -> Any:
    if isinstance(row, Mapping):
        return {name: value for name, value in row.items() if name not in names}
    return tuple(row[:-1]) if isinstance(row, tuple | list) and len(row) > 1 else row


def _with_label(names: Sequence[str], row: Any, label: Any) -> Any:
    if label is None:
        return row
    if isinstance(row, Mapping):
        present = [name for name in names if name in row] or names[:1]
        return {**row, **{name: _like(row.get(name), label) for name in present}}
    return (*row[:-1], _like(row[-1], label)) if isinstance(row, tuple | list) and len(row) > 1 else (row, label)


def _like(own: Any, label: Any) -> Any:
    """The label as a tensor where the row's own is one, so that own and given labels make a batch."""
    if not isinstance(own, Tensor):
        return label
    given = torch.as_tensor(label)
    return given.to(own.dtype) if torch.can_cast(given.dtype, own.dtype) else given


class RowView(Dataset[Any]):
    """Some rows of a torch dataset, each shown through `show(row)`, or `show(row, label)` where there are labels.

    Attributes:
        row_ids: int64, position of each row in the original dataset.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        row_ids: np.ndarray,
        show: Callable[..., Any],
        labels: Sequence[Any] | None = None,
    ) -> None:
        self._dataset = dataset
        self._show = show
        self._labels = labels
        self.row_ids = row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, position: int) -> Any:
        return self._shown(position, self._dataset[int(self.row_ids[position])])

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        rows = rows_at(self._dataset, self.row_ids[list(positions)].tolist())
        return [self._shown(position, row) for position, row in zip(positions, rows, strict=True)]

    def _shown(self, position: int, row: Any) -> Any:
        return self._show(row) if self._labels is None else self._show(row, self._labels[position])


def rows_at(dataset: Any, positions: list[int]) -> list[Any]:
    """These rows of a map-style dataset, all at once where it can do so."""
    if callable(getattr(dataset, "__getitems__", None)):
        return list(dataset.__getitems__(positions))
    return [dataset[position] for position in positions]


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
        return np.asarray(view.data.column(ROW_ID).to_numpy()[_positions(view)], dtype=np.int64)
    if isinstance(view, Subset):
        return row_ids_of(view.dataset)[np.asarray(view.indices, dtype=np.int64)]
    if isinstance(view, RowView):
        return view.row_ids
    raise TypeError(
        f"A part of the pool that knows its row ids is needed, got {type(view).__name__}. Take it from `dataset.pool` "
        f"with select, filter, sort, shuffle (which keep the column {ROW_ID!r}) or torch.utils.data.Subset."
    )
