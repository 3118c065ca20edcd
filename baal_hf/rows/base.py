"""What every kind of rows answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

ROW_ID = "__row_id__"
"""Column of every Arrow view that holds the row id; it stays with the row through select, filter, sort and shuffle."""

LABELS = ("label", "labels", "label_ids", "target", "targets")
"""Keys of the label in rows, or batches, that are dictionaries of a torch dataset."""


_OF_TOKENIZERS = {"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length"}


def identifying(columns: Sequence[str]) -> list[str]:
    """The columns by which rows are known again: not those that a tokenizer makes, where there are others."""
    return [name for name in columns if name not in _OF_TOKENIZERS] or list(columns)


class Rows(Protocol):
    """What `ActiveLearningDataset` asks of the data it stands on. `row_ids` are positions in the original dataset."""

    label_column: str
    """Where the labels are; of a torch dataset the key in rows that are dictionaries."""

    def __len__(self) -> int:
        """Number of rows, M."""

    @property
    def fingerprint(self) -> str:
        """Tells these rows from others, by their inputs and classes; the same in every process."""

    def raw(self, row_id: int) -> Any:
        """The row as it is in the original dataset."""

    def pool(self, row_ids: np.ndarray) -> Any:
        """View of these rows with their labels hidden."""

    def labelled(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> Any:
        """View of these rows with these labels."""

    def labelled_row(self, row_id: int, label: Any) -> Any:
        """A row as `labelled` shows it with this label; None where only the view can say."""

    def labels(self, row_ids: np.ndarray, labels: Mapping[int, Any]) -> list[Any]:
        """The labels that `labelled` shows for these rows."""

    def with_classes(self, names: Sequence[str]) -> Rows:
        """These rows with more classes behind those that labels have."""

    def encoded(self, row_ids: Sequence[int], labels: Sequence[Any] | None) -> list[Any]:
        """Labels as they are stored; None asks for the dataset's own."""


def plain(label: Any) -> Any:
    """Numbers and lists for NumPy's and torch's."""
    return label.tolist() if hasattr(label, "tolist") else label
