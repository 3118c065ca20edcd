"""`ActiveLearningDataset`: rows and a ledger of labels, seen as labelled rows and pool."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from baal_hf.ledger import LabelEvent, LabelLedger
from baal_hf.rows import rows_at, rows_of


class ActiveLearningDataset(Dataset[Any]):
    """A dataset of which some rows are labelled; the others are the pool.

    As a torch dataset it has the labelled rows: `len(dataset)`, `dataset[i]`. `.labelled` and `.pool` are views, for a
    `datasets.Dataset` again `datasets.Dataset`s on the same Arrow table. Labels are hidden in the pool and are what the
    ledger says in `.labelled`.

    *Row ids* are positions in the original dataset and never change. *Pool positions* are places in today's `.pool`;
    they change whenever something is labelled.

    Args:
        dataset: `datasets.Dataset`, or any dataset with `__len__` and `__getitem__`.
        labelled: Rows labelled from the start with the dataset's own labels: a mask [M], as Baal has it; anything but 0
            is labelled.
        make_unlabelled: Hides the label of a row of a torch dataset. By default the label column of a dictionary, or
            the last element of a tuple, is dropped.
        random_state: Seed of `label_randomly`; None means 0, so that every process draws the same rows.
        pool_specifics: Attributes that the pool's torch dataset has instead of the original's, for example another
            `transform`; for a `datasets.Dataset`, `{"transform": f}` shows the pool through `f`, which is needed where
            the dataset's own transform looks at the label.
        last_active_steps: Show as labelled only rows of that many last steps; -1 means all.
        label_column: Column of the labels; None means "label" or "labels", whichever exists.
        label_feature: `datasets` feature of the labels, such as `ClassLabel(names=[...])`, when no column has them, or
            when they are to be read as another feature than their column's.

    Attributes:
        ledger: The label events.
        current_al_step: The last step; each call that labels is one step.

    Raises:
        ValueError: The dataset is empty, `labelled` is not a mask of its length, or another argument does not fit it.
        TypeError: The dataset cannot be indexed, or is a dictionary of splits.
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
        self._rows = rows_of(dataset, label_column, label_feature, make_unlabelled, pool_specifics or {})
        self._rng = np.random.default_rng(0 if random_state is None else random_state)
        self._replay(LabelLedger())
        self.last_active_steps = last_active_steps
        if labelled is not None:
            mask = np.asarray(labelled)
            if mask.shape != (len(self._rows),):
                raise ValueError(
                    f"labelled needs one entry for each of {len(self._rows)} rows, got {list(mask.shape)}."
                )
            if mask.any():
                self.annotate(np.flatnonzero(mask))

    # What is labelled

    @cached_property
    def labelled(self) -> Any:
        """The labelled rows with their current labels: what a Trainer trains on. In order of row id."""
        return self._rows.labelled(self.labelled_ids, self._labels)

    @cached_property
    def pool(self) -> Any:
        """The rows without a label, none of which shows one. In order of row id."""
        return self._rows.pool(self.pool_ids)

    @cached_property
    def labelled_ids(self) -> np.ndarray:
        """Row ids of `.labelled`, int64, read-only."""
        all_steps = self.last_active_steps == -1
        first = 1 if all_steps else max(1, self.current_al_step - self.last_active_steps + 1)
        return _read_only(np.flatnonzero(self._steps >= first))

    @cached_property
    def pool_ids(self) -> np.ndarray:
        """Row ids of `.pool`, int64, read-only: `pool_ids[position]` is the row at that pool position."""
        return _read_only(np.flatnonzero(self._steps == 0))

    @property
    def labels(self) -> list[Any]:
        """The current label of each row of `.labelled`, in that order; None where a torch dataset has no label."""
        return self._rows.labels(self.labelled_ids, self._labels)

    @property
    def labelled_map(self) -> np.ndarray:
        """Step at which each row was labelled, 0 where it is not: int64 [M], read-only; copy it to keep it."""
        return _read_only(self._steps.view())

    @property
    def last_active_steps(self) -> int:
        """`.labelled` shows rows of that many last steps; -1 means all."""
        return self._last_active_steps

    @last_active_steps.setter
    def last_active_steps(self, steps: int) -> None:
        if steps == 0 or steps < -1:
            raise ValueError(f"last_active_steps needs a number of steps, or -1 for all, got {steps}.")
        self._last_active_steps = steps
        self._forget_views()

    @property
    def n_labelled(self) -> int:
        """Number of labelled rows, whatever `last_active_steps`."""
        return len(self._labels)

    @property
    def n_unlabelled(self) -> int:
        """Number of rows in the pool."""
        return len(self._rows) - len(self._labels)

    def is_labelled(self, idx: int) -> bool:
        """Whether the row with this id has a label.

        Raises:
            ValueError: No row has this id.
        """
        return bool(self._steps[self._row_id(idx)])

    def get_raw(self, idx: int) -> Any:
        """The row with this id as it is in the original dataset.

        Raises:
            ValueError: No row has this id.
        """
        return self._rows.raw(self._row_id(idx))

    def __len__(self) -> int:
        return self.n_labelled if self.last_active_steps == -1 else len(self.labelled_ids)

    def __getitem__(self, index: int) -> Any:
        return self.labelled[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return rows_at(self.labelled, indices)

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
        single = not isinstance(index, Iterable) or getattr(index, "ndim", None) == 0  # an array without axes
        several: list[Any] = [index] if single else list(index)  # type: ignore[arg-type]
        if any(isinstance(position, bool | np.bool_) for position in several):
            raise TypeError("label() needs positions in the pool, got a mask: pass np.flatnonzero(mask).")
        positions = [operator.index(position) for position in several]
        for position in positions:
            if not 0 <= position < self.n_unlabelled:
                rows = f"0 to {self.n_unlabelled - 1}" if self.n_unlabelled else "of which none are left"
                raise ValueError(f"label() needs positions in the pool, {rows}, got {position}.")
        row_ids = self.pool_ids[np.asarray(positions, dtype=np.int64)]
        self.annotate(row_ids, [value] if single and value is not None else value)

    def annotate(self, row_ids: Iterable[int], labels: Sequence[Any] | None = None) -> None:
        """Label rows by their ids, all or none of them, as one step.

        Args:
            row_ids: Rows of the pool.
            labels: Label of each, or None to take the labels that the dataset itself has (a simulation).

        Raises:
            ValueError: A row that is out of range, labelled already or given twice, another number of labels than rows,
                an unknown class, no label of its own to take.
        """
        ids = [self._row_id(row_id) for row_id in row_ids]
        self._check_new(ids)
        if labels is not None:
            if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__getitem__"):
                raise TypeError(f"Labelling rows needs a sequence with a label for each, got {labels!r}.")
            if len(labels) != len(ids):
                raise ValueError(f"Labelling rows needs a label for each: {len(ids)} rows, {len(labels)} labels.")
            if any(label is None for label in labels):
                raise ValueError("Labelling rows needs a label for each, got None for some.")
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
            ValueError: The pool has fewer than `n` rows, or some have no label of their own.
        """
        if not 0 <= n <= self.n_unlabelled:
            raise ValueError(f"label_randomly() needs 0 to {self.n_unlabelled} rows, what the pool has, got {n}.")
        self.label(self._rng.choice(self.n_unlabelled, size=n, replace=False))

    def reset_labelled(self) -> None:
        """Take all labels away and count steps from 1 again; the ledger keeps what was."""
        events = [LabelEvent(row_id, "unlabel", None, self.current_al_step) for row_id in sorted(self._labels)]
        self.ledger.append(events)
        self._apply(events)

    # State

    def state_dict(self) -> dict[str, Any]:
        """The ledger and the random state as numbers, strings, lists and dictionaries, labels as they are; a copy."""
        return {
            "rows": len(self._rows),
            "events": self.ledger.state_dict(),
            "random_state": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described.

        Raises:
            ValueError: The state is that of a dataset with another number of rows, or no state; nothing changes then.
        """
        try:
            rows, ledger = state["rows"], LabelLedger.from_state_dict(state["events"])
            rng = np.random.default_rng()
            rng.bit_generator.state = state["random_state"]
            for event in ledger:
                self._row_id(event.row_id)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is no state of an ActiveLearningDataset: {error!r}.") from error
        if rows != len(self._rows):
            raise ValueError(f"This state belongs to a dataset of {rows} rows, this one has {len(self._rows)}.")
        self._rng = rng
        self._replay(ledger)

    def _replay(self, ledger: LabelLedger) -> None:
        self.ledger = ledger
        self.current_al_step = 0
        self._steps = np.zeros(len(self._rows), dtype=np.int64)
        self._labels: dict[int, Any] = {}
        self._apply(ledger)

    def _apply(self, events: Iterable[LabelEvent]) -> None:
        for event in events:
            if event.action == "label":
                self._steps[event.row_id] = event.step
                self._labels[event.row_id] = event.label
            else:
                self._steps[event.row_id] = 0
                self._labels.pop(event.row_id, None)
            self.current_al_step = event.step if self._labels else 0
        self._forget_views()

    def _forget_views(self) -> None:
        for view in ("labelled", "pool", "labelled_ids", "pool_ids"):
            self.__dict__.pop(view, None)

    def _row_id(self, idx: int) -> int:
        row_id = operator.index(idx)
        if not 0 <= row_id < len(self._steps):
            raise ValueError(f"The dataset has rows 0 to {len(self._steps) - 1}, got {row_id}.")
        return row_id

    def _check_new(self, row_ids: list[int]) -> None:
        seen: set[int] = set()
        for row_id in row_ids:
            if row_id in seen:
                raise ValueError(f"Row {row_id} was given twice.")
            if row_id in self._labels:
                step = self._steps[row_id]
                raise ValueError(f"Row {row_id} is labelled already, since step {step}: {self._labels[row_id]!r}.")
            seen.add(row_id)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
