"""Rows of a `datasets.Dataset`: every view is an index into the one Arrow table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property
from hashlib import blake2b
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable, Table, concat_tables

from baal_hf.rows.base import ROW_ID, identifying, plain

_PLACES, _TOGETHER = 64, 16  # a fingerprint looks at 1,024 rows: at few places, as each maps a part of the file


class ArrowRows:
    """Rows of a `datasets.Dataset`.

    Args:
        dataset: Any number of columns, in any format; also one that is itself a selection (`select`, `shuffle`, a split
            by `train_test_split`). Its table is shared. Only one that has a row more than once is written out anew.
        label_column: Where labels are found and put; need not exist yet.
        label_feature: Type of the labels, when the dataset does not say or says it wrongly.
        specifics: `{"transform": f}` shows the pool through `f`.

    Attributes:
        label_column: As above.

    Raises:
        ValueError: The dataset has a column called `__row_id__` or 2³¹ rows, or `specifics` names something else.
    """

    def __init__(
        self, dataset: datasets.Dataset, label_column: str, label_feature: Any = None, specifics: Mapping[str, Any] = {}
    ) -> None:
        if ROW_ID in dataset.column_names:
            raise ValueError(f"ActiveLearningDataset needs the column name {ROW_ID!r} for itself: rename that column.")
        if len(dataset.data) >= 2**31:  # positions are kept in 32 bits, half the memory
            raise ValueError(f"ActiveLearningDataset needs a table of less than 2**31 rows, got {len(dataset.data)}.")
        if set(specifics) - {"transform"}:
            raise ValueError(f"The pool of a datasets.Dataset can have its own transform only, got {list(specifics)}.")
        positions = table_positions(dataset)
        is_used = np.zeros(len(dataset.data), dtype=bool)
        is_used[positions] = True
        if is_used.sum() < len(positions):  # some row is there twice
            dataset = dataset.with_format(None).flatten_indices().with_format(**dataset.format)
            positions = table_positions(dataset)
        self._original = dataset
        self.label_column = label_column
        self._feature = label_feature or dataset.features.get(label_column)
        self._inputs = dataset.remove_columns(label_column) if label_column in dataset.column_names else dataset
        self._positions = positions  # [M], row of the table that each row id is
        self._row_ids = positions  # [rows of the table], the other way; -1 is not in the dataset
        if dataset._indices is not None:
            self._row_ids = np.full(len(dataset.data), -1, dtype=np.int32)
            self._row_ids[positions] = np.arange(len(dataset), dtype=np.int32)
        self._table = _joined(self._inputs.data, ROW_ID, pa.array(self._row_ids))
        self._pool_format = dict(specifics)
        is_whole = dataset.format["type"] is None and dataset.format["columns"] == dataset.column_names
        self._is_plain = is_whole and all(map(_is_plain, [*self._inputs.features.values(), self._feature]))

    def __len__(self) -> int:
        return len(self._original)

    @cached_property
    def fingerprint(self) -> str:
        """By the columns and by rows spread over the dataset: to read all of a large one takes long."""
        digest = blake2b(repr(_classes(self._feature)).encode(), digest_size=16)
        first = np.linspace(0, max(0, len(self) - _TOGETHER), _PLACES).astype(np.int64)
        row_ids = np.unique(first[:, None] + np.arange(_TOGETHER))
        positions = self._positions[row_ids[row_ids < len(self)]]
        rows = self._inputs.data.fast_gather(positions)  # `take` of a column of lists copies all of it
        for name in sorted(identifying(self._inputs.column_names)):
            digest.update(repr([name, rows.column(name).to_pylist()]).encode())
        return digest.hexdigest()

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def labelled_row(self, row_id: int, label: Any) -> dict[str, Any] | None:
        """In half the time that `datasets` takes, where there is nothing to decode, and so no choice of how."""
        if not self._is_plain:
            return None
        row = self._table.fast_slice(int(self._positions[row_id]), 1).to_pydict()
        return {name: values[0] for name, values in row.items()} | {self.label_column: deepcopy(label)}

    def pool(self, row_ids: np.ndarray) -> datasets.Dataset:
        view = self._view(self._table, {}, row_ids)
        return view.with_transform(self._pool_format["transform"]) if self._pool_format else view

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> datasets.Dataset:
        if self._feature is None:  # then nothing can be labelled
            return self._view(self._table, {}, row_ids)
        values = self.labels(row_ids, labels)
        place = np.full(len(self._table), -1, dtype=np.int32)  # [rows of the table], place in `values`
        place[self._positions[row_ids]] = np.arange(len(row_ids))
        column = pa.array(values, type=self._type).take(pa.array(place, mask=place < 0))
        return self._view(
            _joined(self._table, self.label_column, column), {self.label_column: self._feature}, row_ids, values
        )

    def labels(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> list[Any]:
        return [labels[row_id] for row_id in row_ids.tolist()]

    def with_classes(self, names: Sequence[str]) -> ArrowRows:
        rows = copy(self)
        rows._feature = _with_more(self._feature, names)
        return rows

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        if self._feature is None:
            raise ValueError(
                f"Labelling needs to know where labels are: the dataset has no column {self.label_column!r}, only "
                f"{self._original.column_names}. Pass label_column=... to ActiveLearningDataset, or for labels "
                "that are to come label_feature=..., for example datasets.ClassLabel(names=[...])."
            )
        labels = self._own_labels(row_ids) if labels is None else [plain(label) for label in labels]
        labels = [_with_classes(label, self._feature) for label in labels]
        if any(isinstance(label, float) and label != label for label in labels):
            raise ValueError(f"The labels are {self._feature}, NaN is none: leave that row in the pool.")
        try:
            array = pa.array(labels, type=self._type)  # takes no other type, but cuts 1.5 to 1
            if not isinstance(self._type, pa.ExtensionType):
                pa.array(labels).cast(self._type)  # takes other types, but cuts nothing
        except (ValueError, TypeError) as error:  # Arrow's own errors are of these
            raise ValueError(f"The labels are {self._feature}, which {labels[:5]} are not: {error}") from error
        return list(array.to_pylist())

    @property
    def _type(self) -> pa.DataType:
        return Features({self.label_column: self._feature}).arrow_schema.field(0).type

    def _own_labels(self, row_ids: Sequence[int]) -> list[Any]:
        if self.label_column not in self._original.column_names:
            raise ValueError(
                f"Labelling needs the labels: the dataset has no column {self.label_column!r} to take them from, only "
                f"{self._original.column_names}. Pass them, or label_column=... to ActiveLearningDataset."
            )
        column = self._original.data.select([self.label_column])
        own = column.fast_gather(self._positions[row_ids]).column(0).to_pylist()
        for row_id, label in zip(row_ids, own, strict=True):
            if label is None or label != label or (label == -1 and pa.types.is_integer(self._type)):
                raise ValueError(f"Row {row_id} needs a label: its own in the dataset is {label}. Pass one.")
        return list(own)

    def _view(
        self, table: Table, features: Mapping[str, Any], row_ids: np.ndarray, labels: Sequence[Any] = ()
    ) -> datasets.Dataset:
        """These rows of the table, which has the columns of the inputs, row ids and `features`.

        What `select` does, which at two million rows takes half a second to look at each row in Python.
        """
        added: dict[str, Any] = {ROW_ID: datasets.Value("int32"), **features}
        info = self._inputs.info.copy()
        info.features = Features({**self._inputs.features, **added})
        is_table = self._positions is self._row_ids  # then a row id is a position, and no array of them is made
        positions = row_ids if is_table else self._positions[row_ids]  # [N]
        if _are_consecutive(positions):
            table, indices = table.slice(positions[0], len(positions)), None
        else:
            shared = pa.array(np.ascontiguousarray(positions, dtype=np.int64).view(np.uint64))
            indices = InMemoryTable.from_arrays([shared], names=["indices"])
        # The fingerprint, which has no public name either, names the contents: `map` finds in its cache what it made.
        chosen = blake2b(np.ascontiguousarray(row_ids).data).digest()  # the hasher would write all of them out
        fingerprint = Hasher.hash([self._inputs._fingerprint, chosen, labels, repr(features)])
        view = datasets.Dataset(
            table, info=info, split=self._inputs.split, indices_table=indices, fingerprint=fingerprint
        )
        form = self._inputs.format
        shown = None if form["columns"] == self._inputs.column_names else [*form["columns"], *added]
        return view.with_format(**{**form, "columns": shown})


def _are_consecutive(positions: np.ndarray) -> bool:
    """Whether they are a slice, and not one without rows, which cannot be pickled. Most are told by their ends."""
    if not len(positions) or positions[-1] - positions[0] != len(positions) - 1:
        return False
    return bool((positions[:-1] < positions[1:]).all())


def _is_plain(feature: Any) -> bool:
    """Whether values of this kind are shown as Arrow has them."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _is_plain(feature.feature)
    return isinstance(feature, datasets.Value | ClassLabel)


def _classes(feature: Any) -> list[str] | None:
    """Names of the classes, also where labels are lists of classes."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _with_more(feature: Any, names: Sequence[str]) -> Any:
    """The feature with more classes, also where labels are lists of classes."""
    if isinstance(feature, datasets.List):
        return datasets.List(_with_more(feature.feature, names), length=feature.length)
    if not isinstance(feature, ClassLabel):
        raise TypeError(f"Classes can be added where labels are ClassLabel(names=[...]), here they are {feature}.")
    taken = [name for name in names if name in feature.names or list(names).count(name) > 1 or not name]
    if taken or not names:
        raise ValueError(f"New classes need new names, got {list(names)}. The classes are {feature.names}.")
    return ClassLabel(names=[*feature.names, *names])


def table_positions(dataset: datasets.Dataset) -> np.ndarray:
    """Row of the dataset's table that each of its rows is, int32 [N]; `datasets` has no public name for it."""
    if dataset._indices is None:
        return np.arange(len(dataset), dtype=np.int32)
    return dataset._indices.column(0).to_numpy().astype(np.int32)  # type: ignore[no-any-return]


def _joined(table: Table, name: str, column: pa.Array) -> Table:
    """The table and one more column; nothing is copied."""
    return concat_tables([table, InMemoryTable.from_arrays([column], names=[name])], axis=1)


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
