"""`ActiveLearningDataset`: rows and a ledger of labels, seen as labelled rows and pool."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from baal_hf.ledger import LabelEvent, LabelLedger
from baal_hf.rows import ArrowRows, Rows, TorchRows


class ActiveLearningDataset(Dataset[Any]):
    """A dataset of which some rows are labelled; the others are the pool.

    As a torch dataset it has the labelled rows: `len(dataset)`, `dataset[i]`. `.labelled` and `.pool` are views, for a
    `datasets.Dataset` again `datasets.Dataset`s on the same Arrow table. Labels are hidden in the pool and are what the
    ledger says in `.labelled`.

    *Row ids* are positions in the original dataset and never change. *Pool positions* are places in today's `.pool`;
    they change whenever something is labelled.

    Args:
        dataset: `datasets.Dataset`, or any dataset with `__len__` and `__getitem__`.
        labelled: Rows labelled from the start with the dataset's own labels: a mask [M], as Baal has it.
        make_unlabelled: Hides the label of a row of a torch dataset. By default the label column of a dictionary, or
            the last element of a tuple, is dropped.
        random_state: Seed of `label_randomly`; None means 0, so that every process draws the same rows.
        pool_specifics: Attributes that the pool's torch dataset has instead of the original's, for example another
            `transform`; for a `datasets.Dataset`, `{"transform": f}` shows the pool through `f`.
        last_active_steps: Show as labelled only rows of that many last steps; -1 means all.
        label_column: Column of the labels; None means "label" or "labels", whichever exists.
        label_feature: `datasets` feature of the labels, such as `ClassLabel(names=[...])`, when no column has them.

    Attributes:
        ledger: The label events.
        labelled_map: int64 [M], step at which each row was labelled, 0 where it is not.
        current_al_step: The last step; each call that labels is one step.

    Raises:
        ValueError: The dataset is empty, or `labelled` is not a mask of its length.
        TypeError: The dataset cannot be indexed.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Dataset[Any],
        labelled: Sequence[bool] | np.ndarray | None = None,
        make_unlabelled: Callable[[Any], Any] | None = None,
        random_state: int | None = None,
        pool_specifics: Mapping[str, Any] | None = None,
        last_active_steps: int = -1,
        *,
        label_column: str | None = None,
        label_feature: Any = None,
    ) -> None:
        self._rows = _rows(dataset, label_column, label_feature, make_unlabelled, pool_specifics or {})
        if last_active_steps == 0 or last_active_steps < -1:
            raise ValueError(f"last_active_steps needs a number of steps or -1 for all, got {last_active_steps}.")
        self.last_active_steps = last_active_steps
        self._rng = np.random.default_rng(0 if random_state is None else random_state)
        self._labels: dict[int, Any] = {}
        self._labelled: Any = None
        self._pool: Any = None
        self._replay(LabelLedger())
        if labelled is not None:
            mask = np.asarray(labelled)
            if mask.shape != (len(self._rows),):
                raise ValueError(
                    f"labelled needs one entry for each of {len(self._rows)} rows, got {list(mask.shape)}."
                )
            if mask.any():
                self.annotate(np.flatnonzero(mask))

    # What is labelled

    @property
    def labelled(self) -> Any:
        """The labelled rows with their current labels: what a Trainer trains on. In order of row id."""
        if self._labelled is None:
            self._labelled = self._rows.labelled(self.labelled_ids, self._labels)
        return self._labelled

    @property
    def pool(self) -> Any:
        """The rows without a label, none of which shows one. In order of row id."""
        if self._pool is None:
            self._pool = self._rows.pool(self.pool_ids)
        return self._pool

    @property
    def labelled_ids(self) -> np.ndarray:
        """Row ids of `.labelled`, int64."""
        first = self.current_al_step - self.last_active_steps + 1 if self.last_active_steps > 0 else 1
        return np.flatnonzero(self.labelled_map >= max(first, 1))

    @property
    def pool_ids(self) -> np.ndarray:
        """Row ids of `.pool`, int64: `pool_ids[position]` is the row at that pool position."""
        return np.flatnonzero(self.labelled_map == 0)

    @property
    def n_labelled(self) -> int:
        """Number of labelled rows, whatever `last_active_steps`."""
        return len(self._labels)

    @property
    def n_unlabelled(self) -> int:
        """Number of rows in the pool."""
        return len(self._rows) - len(self._labels)

    def is_labelled(self, idx: int) -> bool:
        """Whether the row with this id has a label."""
        return bool(self.labelled_map[idx])

    def get_raw(self, idx: int) -> Any:
        """The row with this id as it is in the original dataset."""
        return self._rows.raw(idx)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Any:
        return self.labelled[index]

    # Labelling

    def label(self, index: int | Iterable[int], value: Any = None) -> None:
        """Label rows of the pool, by their position in it.

        Args:
            index: One pool position, or several.
            value: Label of each, or None to take the labels that the dataset itself has (a simulation).

        Raises:
            ValueError: A position outside the pool or given twice, another number of labels than positions, an unknown
                class. Nothing is labelled then.
        """
        single = not isinstance(index, Iterable)
        positions = list(index) if isinstance(index, Iterable) else [index]
        pool_ids = self.pool_ids
        for position in positions:
            if not 0 <= operator.index(position) < len(pool_ids):
                raise ValueError(
                    f"label() needs positions in the pool, 0 to {len(pool_ids) - 1} ({len(pool_ids)} rows are left), "
                    f"got {position}."
                )
        self.annotate(
            pool_ids[np.asarray(positions, dtype=np.int64)], [value] if single and value is not None else value
        )

    def annotate(self, row_ids: Iterable[int], labels: Sequence[Any] | None = None) -> None:
        """Label rows by their ids, all or none of them, as one step.

        Args:
            row_ids: Rows of the pool.
            labels: Label of each, or None to take the labels that the dataset itself has (a simulation).

        Raises:
            ValueError: A row that is out of range, labelled already or given twice, another number of labels than rows,
                an unknown class, no label of its own to take.
        """
        ids = [operator.index(row_id) for row_id in row_ids]
        self._check_new(ids)
        if labels is not None and (isinstance(labels, str) or not hasattr(labels, "__len__")):
            raise TypeError(f"Labelling {len(ids)} rows needs a sequence of labels, got {labels!r}.")
        if labels is not None and len(labels) != len(ids):
            raise ValueError(f"Labelling {len(ids)} rows needs as many labels, got {len(labels)}.")
        if not ids:
            return
        encoded = self._rows.encoded(ids, labels)
        step = self.current_al_step + 1
        events = [LabelEvent(row_id, "label", label, step) for row_id, label in zip(ids, encoded, strict=True)]
        self.ledger.append(events)
        self._apply(events)

    def label_randomly(self, n: int = 1) -> None:
        """Label `n` random rows of the pool with the dataset's own labels.

        Raises:
            ValueError: The pool has fewer than `n` rows.
        """
        if not 0 <= n <= self.n_unlabelled:
            raise ValueError(f"label_randomly({n}) needs that many rows in the pool, which has {self.n_unlabelled}.")
        self.label(self._rng.choice(self.n_unlabelled, size=n, replace=False))

    def reset_labelled(self) -> None:
        """Take all labels away; the ledger keeps what was."""
        events = [LabelEvent(row_id, "unlabel", None, self.current_al_step) for row_id in sorted(self._labels)]
        self.ledger.append(events)
        self._apply(events)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows, as plain numbers, strings, lists and dictionaries; a copy."""
        return {
            "rows": len(self._rows),
            "events": self.ledger.state_dict(),
            "random_state": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described.

        Raises:
            ValueError: The state is that of a dataset with another number of rows.
        """
        if state["rows"] != len(self._rows):
            raise ValueError(
                f"This state belongs to a dataset of {state['rows']} rows, this one has {len(self._rows)}."
            )
        self._rng.bit_generator.state = state["random_state"]
        self._replay(LabelLedger.from_state_dict(state["events"]))

    def _replay(self, ledger: LabelLedger) -> None:
        self.ledger = ledger
        self.labelled_map = np.zeros(len(self._rows), dtype=np.int64)
        self.current_al_step = 0
        self._labels.clear()
        self._apply(ledger)

    def _apply(self, events: Iterable[LabelEvent]) -> None:
        for event in events:
            if event.action == "label":
                self.labelled_map[event.row_id] = event.step
                self._labels[event.row_id] = event.label
            else:
                self.labelled_map[event.row_id] = 0
                self._labels.pop(event.row_id, None)
            self.current_al_step = event.step if self._labels else 0
        self._labelled, self._pool = None, None

    def _check_new(self, row_ids: list[int]) -> None:
        seen: set[int] = set()
        for row_id in row_ids:
            if not 0 <= row_id < len(self._rows):
                raise ValueError(f"The dataset has rows 0 to {len(self._rows) - 1}, got {row_id}.")
            if row_id in seen:
                raise ValueError(f"Row {row_id} was given twice.")
            if row_id in self._labels:
                step = self.labelled_map[row_id]
                raise ValueError(f"Row {row_id} is labelled already, since step {step}: {self._labels[row_id]!r}.")
            seen.add(row_id)


def _rows(
    dataset: Any,
    label_column: str | None,
    label_feature: Any,
    make_unlabelled: Callable[[Any], Any] | None,
    specifics: Mapping[str, Any],
) -> Rows:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"ActiveLearningDataset needs rows it can index, got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError("ActiveLearningDataset needs at least one row, got an empty dataset.")
    if not isinstance(dataset, datasets.Dataset):
        return TorchRows(dataset, label_column or "label", make_unlabelled, specifics)
    if make_unlabelled is not None:
        raise ValueError("make_unlabelled is for torch datasets: the label column of a datasets.Dataset is left out.")
    if label_column is None:
        label_column = "labels" if "labels" in dataset.column_names else "label"
    elif label_column not in dataset.column_names and label_feature is None:
        raise ValueError(
            f"The dataset has no column {label_column!r}, only {dataset.column_names}. To label rows that have no "
            "label yet, pass label_feature, for example datasets.ClassLabel(names=[...])."
        )
    return ArrowRows(dataset, label_column, label_feature, specifics)
