"""`ActiveLearningDataset`: rows and a ledger of labels, seen as labelled rows and pool.

The file is long by its docstrings: it has one short method for each thing that can be asked of labels or done to them.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from baal_hf.export import class_names, differing_row, exported, imported, named, with_labels
from baal_hf.ledger import Consensus, LabelEvent, LabelLedger, LabelState, consensus_rule
from baal_hf.rows import Rows, rows_at, rows_of

_VIEWS = ("labelled", "pool", "labelled_ids", "pool_ids", "skipped_ids", "current_al_step")


class ActiveLearningDataset(Dataset[Any]):
    """A dataset of which some rows are labelled, some are skipped; the others are the pool.

    As a torch dataset it has the labelled rows: `len(dataset)`, `dataset[i]`. `.labelled` and `.pool` are views, for a
    `datasets.Dataset` again `datasets.Dataset`s on the same Arrow table. Labels are hidden in the pool and are what the
    ledger says in `.labelled`.

    *Row ids* are positions in the original dataset and never change. *Pool positions* are places in today's `.pool`;
    they change whenever something is labelled.

    Several processes or people may write to one ledger file. This object shows what was there when it was made, when it
    last wrote, and when `refresh` was last called, so that positions in its pool stay what they are in between.

    Args:
        dataset: `datasets.Dataset`, or any dataset with `__len__` and `__getitem__`.
        labelled: Rows labelled from the start with the dataset's own labels: a mask [M], as Baal has it; anything but 0
            is labelled. With a ledger that has events already it must be left out.
        make_unlabelled: Hides the label of a row of a torch dataset. By default the label column of a dictionary, or
            the last element of a tuple, is dropped; what stays is what a model is given.
        random_state: Seed of `label_randomly`; None means 0, so that every process draws the same rows.
        pool_specifics: Attributes that the pool's torch dataset has instead of the original's, for example another
            `transform`; for a `datasets.Dataset`, `{"transform": f}` shows the pool through `f`, which is needed where
            the dataset's own transform looks at the label.
        last_active_steps: Show as labelled only rows of that many last steps; -1 means all.
        label_column: Column of the labels; None means "label" or "labels", whichever exists, and in dictionaries of a
            torch dataset also "label_ids", "target" or "targets".
        label_feature: `datasets` feature of the labels, such as `ClassLabel(names=[...])`, when no column has them, or
            when they are to be read as another feature than their column's.
        ledger: A ledger, or the path of a file for one; None keeps labels in memory. A ledger belongs to the first
            dataset that it is written for, which is known again by its number of rows, its columns, its classes, and
            the inputs of up to 1,024 rows spread over it (a torch dataset only by number of rows and type).
        consensus: What the label of a row is that several annotators labelled: "last", "majority" (of several such
            labels the last), or a function of the `LabelEvent`s that gave each annotator's current label, oldest first.

    Attributes:
        ledger: The label events.

    Raises:
        ValueError: The dataset is empty, `labelled` is not a mask of its length, the ledger belongs to another dataset,
            or another argument does not fit.
        TypeError: The dataset cannot be indexed, or is a dictionary of splits.
        OSError: The ledger's file can be neither opened nor made.
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
        ledger: LabelLedger | str | Path | None = None,
        consensus: str | Consensus = "last",
    ) -> None:
        self._original_rows = rows_of(dataset, label_column, label_feature, make_unlabelled, pool_specifics or {})
        self._rng = np.random.default_rng(0 if random_state is None else random_state)
        self._lock = threading.RLock()
        self._last_active_steps = -1
        self._consensus = consensus_rule(consensus)
        self.ledger = ledger if isinstance(ledger, LabelLedger) else LabelLedger(ledger)
        if len(self.ledger):
            self._bind()
        self._replay()
        self.last_active_steps = last_active_steps
        if labelled is not None:
            mask = np.asarray(labelled)
            if mask.shape != (len(self._rows),):
                raise ValueError(
                    f"labelled needs one entry for each of {len(self._rows)} rows, got {list(mask.shape)}."
                )
            if self._state.seen:
                raise ValueError(
                    f"The ledger says already what is labelled, by {self._state.seen} events: leave it to it."
                )
            if mask.any():
                self.annotate(np.flatnonzero(mask))

    # What is labelled

    @cached_property
    def labelled(self) -> Any:
        """The labelled rows with their current labels: what a Trainer trains on. In order of row id."""
        return self._rows.labelled(self.labelled_ids, self._state.labels)

    @cached_property
    def pool(self) -> Any:
        """The rows without a label, none of which shows one. In order of row id."""
        return self._rows.pool(self.pool_ids)

    @cached_property
    def labelled_ids(self) -> np.ndarray:
        """Row ids of `.labelled`, int64, read-only."""
        return _read_only(self._active_ids(self._state))

    @cached_property
    def pool_ids(self) -> np.ndarray:
        """Row ids of `.pool`, int64, read-only: `pool_ids[position]` is the row at that pool position."""
        return _read_only(np.flatnonzero((self._state.steps == 0) & ~self._state.skipped))

    @cached_property
    def skipped_ids(self) -> np.ndarray:
        """Row ids that somebody skipped and nobody labelled, int64, read-only; they are not in the pool."""
        return _read_only(np.flatnonzero(self._state.skipped))

    @cached_property
    def current_al_step(self) -> int:
        """The last step at which a row was labelled that still is, 0 without labels; each call that labels is one."""
        return self._state.step

    @property
    def labels(self) -> list[Any]:
        """The current label of each row of `.labelled`, in that order; None where a torch dataset has no label."""
        return copy.deepcopy(self._rows.labels(self.labelled_ids, self._state.labels))

    @property
    def labelled_map(self) -> np.ndarray:
        """Step at which each row was labelled, 0 where it is not: int32 [M], read-only; copy it to keep it."""
        return _read_only(self._state.steps.view())

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
        return len(self._state.labels)

    @property
    def n_unlabelled(self) -> int:
        """Number of rows in the pool."""
        return len(self._rows) - self.n_labelled - len(self.skipped_ids)

    def is_labelled(self, idx: int) -> bool:
        """Whether the row with this id has a label.

        Raises:
            ValueError: No row has this id.
        """
        return bool(self._state.steps[self._row_id(idx)])

    def get_raw(self, idx: int) -> Any:
        """The row with this id as it is in the original dataset.

        Raises:
            ValueError: No row has this id.
        """
        return self._rows.raw(self._row_id(idx))

    def __len__(self) -> int:
        return self.n_labelled if self.last_active_steps == -1 else len(self.labelled_ids)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, int) and -len(self) <= index < len(self):
            row_id = int(self.labelled_ids[index])
            row = self._rows.labelled_row(row_id, self._state.labels[row_id])
            if row is not None:
                return row
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

    def annotate(
        self,
        row_ids: Iterable[int],
        labels: Sequence[Any] | None = None,
        *,
        annotator: str | None = None,
        heuristic: str | None = None,
        scores: Sequence[float] | np.ndarray | None = None,
        probabilities: Sequence[float] | np.ndarray | None = None,
        model_version: str | None = None,
    ) -> None:
        """Label rows by their ids, all or none of them, as one step.

        Args:
            row_ids: Rows of the pool, skipped rows, or rows that only others have labelled.
            labels: Label of each, or None to take the labels that the dataset itself has (a simulation).
            annotator: Who gives the labels.
            heuristic: Name of what chose the rows.
            scores: Its score of each.
            probabilities: With which each was chosen, in [0, 1].
            model_version: Of the model that gave the scores.

        Raises:
            ValueError: A row that is out of range, labelled already by this annotator or given twice, another number of
                labels than rows, an unknown class, no label of its own to take.
            OSError: The ledger cannot be written; nothing is labelled then.
        """
        ids = self._row_ids(row_ids)
        _check_each(labels, len(ids), "label")
        _check_each(scores, len(ids), "score")
        _check_each(probabilities, len(ids), "probability")
        known: dict[str, Any] = {"annotator": annotator, "heuristic": heuristic, "model_version": model_version}

        def events(state: LabelState) -> list[LabelEvent]:
            state.check_new(ids, annotator)
            step, encoded = state.step + 1, self._rows_with(state.classes).encoded(ids, labels)
            return [
                LabelEvent(row_id, "label", label, step, score=score, probability=probability, **known)
                for row_id, label, score, probability in zip(
                    ids, encoded, _floats(scores, ids), _floats(probabilities, ids), strict=True
                )
            ]

        if ids:
            self._record(events)

    def relabel(self, row_ids: Iterable[int], labels: Sequence[Any], *, annotator: str | None = None) -> None:
        """Put other labels in the place of those that this annotator gave, all or none of them.

        The rows keep the step at which they were labelled.

        Raises:
            ValueError: As for `annotate`; a row that this annotator has not labelled.
            OSError: The ledger cannot be written; nothing changes then.
        """
        ids = self._row_ids(row_ids)
        _check_each(labels, len(ids), "label")
        self._record(lambda state: state.relabel(ids, self._rows_with(state.classes).encoded(ids, labels), annotator))

    def skip(self, row_ids: Iterable[int], *, annotator: str | None = None) -> None:
        """Put rows of the pool aside, all or none of them: they are neither labelled nor asked for again.

        Raises:
            ValueError: A row that is out of range, labelled, skipped by this annotator already, or given twice.
            OSError: The ledger cannot be written; nothing changes then.
        """
        ids = self._row_ids(row_ids)
        self._record(lambda state: state.skip(ids, annotator))

    def unlabel(self, row_ids: Iterable[int], *, annotator: str | None = None) -> None:
        """Put rows back into the pool, all or none of them, whether they were labelled or skipped.

        Args:
            row_ids: Labelled or skipped rows.
            annotator: Take away only what this annotator said; None takes away what all said.

        Raises:
            ValueError: A row that is out of range, given twice, or in the pool.
            OSError: The ledger cannot be written; nothing changes then.
        """
        ids = self._row_ids(row_ids)
        self._record(lambda state: state.unlabel(ids, annotator))

    def undo(self, *, annotator: str | None = None) -> list[int]:
        """Take back the last call that labelled, relabelled, unlabelled or skipped and was not taken back yet.

        Args:
            annotator: The last call of this annotator; None means the last of all.

        Returns:
            Row ids that it was about.

        Raises:
            ValueError: There is nothing to take back, or somebody else has written what this object does not show yet.
            OSError: The ledger cannot be written; nothing changes then.
        """
        shown = self._state.last_operation(annotator)
        recorded = self._record(lambda state: state.undo(shown, annotator))
        return [event.row_id for event in recorded if event.row_id is not None]

    def history(self, row_id: int) -> list[LabelEvent]:
        """All that happened to the label of a row, oldest first, also what was taken back.

        Raises:
            ValueError: No row has this id.
            OSError: The ledger's file cannot be read.
        """
        return self._state.history(self._row_id(row_id))

    def votes(self, row_id: int) -> list[LabelEvent]:
        """The event that gave each annotator's current label of a row, oldest first.

        Raises:
            ValueError: No row has this id.
            OSError: The ledger's file cannot be read.
        """
        (row,) = self._state.rows([self._row_id(row_id)])
        return list(row.votes)

    def add_classes(self, names: Sequence[str]) -> None:
        """Have more classes, behind those that labels have; a model needs as many more outputs.

        Raises:
            ValueError: A name is a class already, or comes twice.
            TypeError: Labels are no classes, or names no names.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"add_classes() needs a list of names, got {names!r}.")

        def events(state: LabelState) -> list[LabelEvent]:
            self._rows_with(state.classes).with_classes(names)  # refuses what cannot be added
            return [LabelEvent(None, "add_class", name, state.step) for name in names]

        self._record(events)

    def refresh(self) -> int:
        """Show what others have written to the ledger since; returns the number of their events."""
        with self._lock:
            new = self.ledger.since(self._state.seen)
            if new:
                self._show(self._state.after(new))
            return len(new)

    def label_randomly(self, n: int = 1) -> None:
        """Label `n` random rows of the pool with the dataset's own labels.

        Of processes that share a ledger file, let one do so before the others open it.

        Raises:
            ValueError: The pool has fewer than `n` rows, or some have no label of their own.
        """
        if not 0 <= n <= self.n_unlabelled:
            raise ValueError(f"label_randomly() needs 0 to {self.n_unlabelled} rows, what the pool has, got {n}.")
        self.label(self._rng.choice(self.n_unlabelled, size=n, replace=False))

    def reset_labelled(self) -> None:
        """Take all labels away and count steps from 1 again; skipped rows come back; the ledger keeps what was."""
        self._record(lambda state: state.unlabel(np.flatnonzero((state.steps > 0) | state.skipped).tolist(), None))

    def labelled_after(self, events: int) -> Any:
        """`.labelled` as it was after the first `events` events of the ledger."""
        state = self._replayed(self.ledger, events)
        return self._rows_with(state.classes).labelled(self._active_ids(state), state.labels)

    def _active_ids(self, state: LabelState) -> np.ndarray:
        all_steps = self.last_active_steps == -1
        return np.flatnonzero(state.steps >= (1 if all_steps else max(1, state.step - self.last_active_steps + 1)))

    # Labels that leave, and come back

    def to_dataset(self) -> datasets.Dataset:
        """The labelled rows of all steps as a table of their own: inputs, current label, `row_id`, and `votes`.

        `votes` has what each annotator says of the row now, with step, time (seconds since 1970, UTC), heuristic,
        score, probability and model version. Skipped rows and what was taken back are in the ledger only.

        Raises:
            TypeError: The rows are no `datasets.Dataset`.
            ValueError: A column is called `row_id` or `votes`.
        """
        row_ids = np.flatnonzero(self._state.steps)
        labelled = self._rows.labelled(row_ids, self._state.labels)
        votes = [list(row.votes) for row in self._state.rows(row_ids.tolist())]
        return exported(labelled, self._rows.label_column, votes)

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_dataset` to a Parquet file."""
        self.to_dataset().to_parquet(path)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> Any:
        """Push `to_dataset` to the hub; arguments and result are those of `datasets.Dataset.push_to_hub`."""
        return self.to_dataset().push_to_hub(repo_id, **arguments)

    @classmethod
    def from_dataset(
        cls, labels: datasets.Dataset, dataset: datasets.Dataset, **arguments: Any
    ) -> ActiveLearningDataset:
        """A dataset whose rows have the labels of an export.

        Args:
            labels: What `to_dataset` returned, also from a file or from the hub.
            dataset: The dataset that the labels are of.
            **arguments: For the constructor; a ledger must be new.

        Raises:
            ValueError: `labels` is no export, or one of another dataset; the ledger has events already.

        Classes go by their names; those that were added are added here.
        """
        active = cls(dataset, **arguments)
        if active._state.seen:
            raise ValueError(f"Labels come into a new ledger, this one has {active._state.seen} events.")
        votes = imported(labels)
        row_ids = active._row_ids(labels.with_format(None)["row_id"][:])
        column = active._rows.label_column
        other = differing_row(dataset, column, labels, row_ids)
        if other is not None:
            raise ValueError(f"These labels are of another dataset: its row {other} is another than ours.")
        names = class_names(labels, column)
        more = [name for name in names or () if name not in (class_names(active.labelled, column) or ())]
        with active.ledger.writing():
            if more:
                active.add_classes(more)
            for annotator in dict.fromkeys(vote.annotator for vote in votes):  # each can undo their own
                theirs = [vote for vote in votes if vote.annotator == annotator]
                given = active._rows.encoded(row_ids, [named(vote.label, names) for vote in theirs])
                active._record(partial(_already_made, with_labels(theirs, given)))
        return active

    @classmethod
    def from_parquet(cls, path: str | Path, dataset: datasets.Dataset, **arguments: Any) -> ActiveLearningDataset:
        """As `from_dataset`, from a file that `to_parquet` wrote."""
        return cls.from_dataset(datasets.Dataset.from_parquet(str(path)), dataset, **arguments)

    # State

    def state_dict(self) -> dict[str, Any]:
        """The ledger and the random state as numbers, strings, lists and dictionaries, labels as they are; a copy."""
        return {
            "rows": len(self._rows),
            "events": self.ledger.state_dict(),
            "random_state": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described. A ledger in a file keeps what was recorded after that.

        Raises:
            ValueError: The state is that of a dataset with another number of rows, or no state, or the ledger's file
                has other events; nothing changes then.
        """
        try:
            rows, ledger = state["rows"], LabelLedger.from_state_dict(state["events"])
            rng = np.random.default_rng()
            rng.bit_generator.state = state["random_state"]
            for event in ledger:
                if event.row_id is not None:
                    self._row_id(event.row_id)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is no state of an ActiveLearningDataset: {error!r}.") from error
        if rows != len(self._rows):
            raise ValueError(f"This state belongs to a dataset of {rows} rows, this one has {len(self._rows)}.")
        self._replayed(ledger)  # refuses what does not fit
        if self.ledger.path is None:
            self.ledger = ledger
        else:
            self.ledger.load_state_dict(state["events"])
        self._rng = rng
        self._replay()

    def _replay(self) -> None:
        """Derive everything from the ledger."""
        self._show(self._replayed(self.ledger))

    def _replayed(self, ledger: LabelLedger, events: int | None = None) -> LabelState:
        """The state that so many events of the ledger, or all, lead to.

        Raises:
            ValueError: They add classes that are there.
        """
        state = LabelState(ledger, len(self._original_rows), self._consensus, events)
        self._rows_with(state.classes)
        return state

    def _rows_with(self, classes: Sequence[str]) -> Rows:
        return self._original_rows.with_classes(classes) if classes else self._original_rows

    def _bind(self) -> None:
        self.ledger.bind(len(self._original_rows), self._original_rows.fingerprint)

    def _record(self, events: Callable[[LabelState], list[LabelEvent]]) -> list[LabelEvent]:
        """Record what `events` says of the state once all that others wrote is known, while nobody else writes."""
        with self._lock:
            with self.ledger.writing():
                self._bind()
                new = self.ledger.since(self._state.seen)
                state = self._state.after(new) if new else self._state  # what is shown stays if something is refused
                recorded = self.ledger.append(events(state))
                change = state.change(recorded)  # where the consensus rule raises, nothing is recorded
            if recorded:
                state.take(change)
            if new or recorded:
                self._show(state)
        return recorded

    def _show(self, state: LabelState) -> None:
        self._state, self._rows = state, self._rows_with(state.classes)
        self._forget_views()

    def _forget_views(self) -> None:
        for view in _VIEWS:
            self.__dict__.pop(view, None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in (*_VIEWS, "_lock")}  # made anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.RLock()}

    def _row_id(self, idx: int) -> int:
        row_id = operator.index(idx)
        if not 0 <= row_id < len(self._rows):
            raise ValueError(f"The dataset has rows 0 to {len(self._rows) - 1}, got {row_id}.")
        return row_id

    def _row_ids(self, row_ids: Iterable[int]) -> list[int]:
        """Ids of rows that are there, none of them twice."""
        row_ids = list(row_ids)
        if any(isinstance(row_id, bool | np.bool_) for row_id in row_ids):
            raise TypeError("Row ids are needed, got a mask: pass np.flatnonzero(mask).")
        ids = [self._row_id(row_id) for row_id in row_ids]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Row {next(row_id for row_id in ids if ids.count(row_id) > 1)} was given twice.")
        return ids


def _already_made(events: list[LabelEvent], state: LabelState) -> list[LabelEvent]:
    return events


def _check_each(values: Sequence[Any] | np.ndarray | None, rows: int, what: str) -> None:
    if values is None:
        return
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__getitem__"):
        raise TypeError(f"Labelling rows needs a sequence with a {what} for each, got {values!r}.")
    if len(values) != rows:
        raise ValueError(f"Labelling rows needs a {what} for each: {rows} rows, got {len(values)}.")
    if any(value is None for value in values):
        raise ValueError(f"Labelling rows needs a {what} for each, got None for some.")


def _floats(values: Sequence[float] | np.ndarray | None, row_ids: Sequence[int]) -> list[float | None]:
    return [None] * len(row_ids) if values is None else [float(value) for value in values]


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
