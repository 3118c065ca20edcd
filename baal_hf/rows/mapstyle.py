"""Rows of any map-style torch dataset: dictionaries, or sequences whose last element is the label."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from baal_hf.rows.base import LABELS, plain


class TorchRows:
    """Rows of any map-style torch dataset: dictionaries, or sequences whose last element is the label.

    Args:
        dataset: Has `__len__` and `__getitem__`.
        label_column: Key of the label in rows that are dictionaries; None means each of `LABELS`.
        make_unlabelled: Hides the label of a row: by default drops that key, or the last element of a sequence.
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
        names = LABELS if label_column is None else (label_column,)
        self._original = dataset
        self.label_column = names[0]
        self._names = names
        self._unlabelled = make_unlabelled or partial(_without_label, names)
        self._with_label = partial(_with_label, names)
        self._pool_dataset = copy.copy(dataset) if specifics else dataset
        for name, value in specifics.items():
            if not hasattr(dataset, name):
                raise ValueError(f"pool_specifics names {name!r}, which {type(dataset).__name__} does not have.")
            setattr(self._pool_dataset, name, value)

    def __len__(self) -> int:
        return len(self._original)  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        return type(self._original).__name__  # of rows that may differ each time they are read, no more can be told

    def raw(self, row_id: int) -> Any:
        return self._original[row_id]

    def pool(self, row_ids: np.ndarray) -> RowView:
        return RowView(self._pool_dataset, row_ids, self._unlabelled)

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> RowView:
        return RowView(self._original, row_ids, self._with_label, [labels[row_id] for row_id in row_ids.tolist()])

    def labelled_row(self, row_id: int, label: Any) -> None:
        return None

    def labels(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> list[Any]:
        return [
            _own_label(self._names, self._original[row_id]) if labels[row_id] is None else labels[row_id]
            for row_id in row_ids.tolist()
        ]

    def with_classes(self, names: Sequence[str]) -> TorchRows:
        raise TypeError("Classes can be added to a datasets.Dataset: a torch dataset takes any label as it is.")

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        if labels is None:
            has_label: Any = getattr(self._original, "has_label", lambda _: True)  # of a FileDataset: no image is read
            for row_id in row_ids:
                if not has_label(row_id):
                    raise ValueError(f"Row {row_id} needs a label: its own in the dataset is None. Pass one.")
            return [None] * len(row_ids)
        # The ledger's own: a number, or a copy of an array that the caller may go on to change.
        return [plain(label) if getattr(label, "ndim", None) == 0 else copy.deepcopy(label) for label in labels]


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
    has_own = isinstance(row, tuple | list) and len(row) > 1
    return (*row[:-1], _like(row[-1], label)) if has_own else (row, copy.deepcopy(label))


def _own_label(names: Sequence[str], row: Any) -> Any:
    if isinstance(row, Mapping):
        return next((plain(row[name]) for name in names if name in row), None)
    return plain(row[-1]) if isinstance(row, tuple | list) and len(row) > 1 else None


def _like(own: Any, label: Any) -> Any:
    """The label as a tensor where the row's own is one, so that own and given labels make a batch."""
    if not isinstance(own, Tensor):
        return copy.deepcopy(label)  # the ledger has the label itself, and a collator may pad it in place
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

    @property
    def is_pool(self) -> bool:
        """Whether the rows are shown without labels."""
        return self._labels is None

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
