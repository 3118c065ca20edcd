"""`LabelState`: what the events of a ledger add up to, and which events may come next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np

from baal_hf.ledger.events import LabelEvent
from baal_hf.ledger.votes import Consensus, RowState, row_state


class LabelState:
    """What holds for M rows after the events that were applied.

    The methods that are named after an action return the events with which it is recorded, and refuse what makes no
    sense in this state; they change nothing.

    Args:
        rows: Number of rows, M.
        consensus: Makes one label of several annotators'.

    Attributes:
        seen: Number of events applied.
        steps: Step at which each row was labelled, 0 where it is not, int64 [M].
        skipped: Rows that somebody skipped and nobody labelled, bool [M].
        labels: Label of each labelled row, by row id.
        classes: Names of the classes that were added.
    """

    def __init__(self, rows: int, consensus: Consensus) -> None:
        self.seen = 0
        self.steps = np.zeros(rows, dtype=np.int64)
        self.skipped = np.zeros(rows, dtype=bool)
        self.labels: dict[int, Any] = {}
        self.classes: list[str] = []
        self._consensus = consensus
        self._events: dict[int, tuple[LabelEvent, ...]] = {}
        self._operations: dict[int | None, list[LabelEvent]] = defaultdict(list)  # that can be taken back
        self._undone: set[int | None] = set()

    def apply(self, events: Sequence[LabelEvent]) -> None:
        """Go on with the events that came next. Where the consensus rule raises, nothing changes."""
        histories, steps, skipped, labels = self._after(events)
        for row_id, step in steps.items():
            self.steps[row_id] = step
            self.skipped[row_id] = row_id in skipped
            if row_id not in labels:
                self.labels.pop(row_id, None)
        self.labels |= labels
        self._events |= histories
        self._undone |= _undone(events)
        self.classes += [event.label for event in events if event.row_id is None]
        for event in events:
            if event.row_id is not None and event.action != "undo":
                self._operations[event.operation].append(event)
        self.seen += len(events)

    def after(self, events: Sequence[LabelEvent]) -> LabelState:
        """Another state, with the events that came next; this one stays."""
        state = copy(self)
        state.steps, state.skipped = self.steps.copy(), self.skipped.copy()
        state.labels, state.classes, state._events = dict(self.labels), list(self.classes), dict(self._events)
        state._operations = defaultdict(list, {number: list(done) for number, done in self._operations.items()})
        state._undone = set(self._undone)
        state.apply(events)
        return state

    def check_consensus(self, events: Sequence[LabelEvent]) -> None:
        """Let the consensus rule raise, where it does, before these events are recorded."""
        self._after(events)

    def _after(
        self, events: Sequence[LabelEvent]
    ) -> tuple[dict[int, tuple[LabelEvent, ...]], dict[int, int], set[int], dict[int, Any]]:
        """Histories and steps of the rows that the events are about, which are skipped, and labels of the others."""
        undone = self._undone | _undone(events)
        histories: dict[int, tuple[LabelEvent, ...]] = {}
        for event in events:
            if event.row_id is not None:
                before = histories.get(event.row_id) or self._events.get(event.row_id, ())
                histories[event.row_id] = (*before, event)
        steps: dict[int, int] = {}
        skipped: set[int] = set()
        labels: dict[int, Any] = {}
        for row_id, history in histories.items():
            row = row_state(history, undone)
            steps[row_id] = row.step
            if row.votes:
                labels[row_id] = self._consensus(row.votes)
            elif row.skipped_by:
                skipped.add(row_id)
        return histories, steps, skipped, labels

    def row(self, row_id: int) -> RowState:
        """What holds for a row."""
        # Made anew each time: few rows are asked for, many are there.
        return row_state(self._events.get(row_id, ()), self._undone)

    def history(self, row_id: int) -> list[LabelEvent]:
        """All events of a row, oldest first."""
        return list(self._events.get(row_id, ()))

    @property
    def step(self) -> int:
        """The last step at which a row was labelled that still is, 0 without labels."""
        return int(self.steps.max())

    def check_new(self, row_ids: Iterable[int], annotator: str | None) -> None:
        """Refuse rows that this annotator has labelled."""
        for row_id in row_ids:
            for vote in self.row(row_id).votes:
                if vote.annotator == annotator:
                    raise ValueError(
                        f"Row {row_id} is labelled already{_by(annotator)}, since step {self.steps[row_id]}: "
                        f"{vote.label!r}. relabel() gives another label, unlabel() takes it away."
                    )

    def relabel(self, row_ids: Sequence[int], labels: Sequence[Any], annotator: str | None) -> list[LabelEvent]:
        """Events that put labels in the place of this annotator's."""
        for row_id in row_ids:
            if annotator not in [vote.annotator for vote in self.row(row_id).votes]:
                raise ValueError(f"Row {row_id} has no label{_by(annotator)} to put another in the place of.")
        step = self.step
        return [
            LabelEvent(row_id, "relabel", label, step, annotator) for row_id, label in zip(row_ids, labels, strict=True)
        ]

    def skip(self, row_ids: Sequence[int], annotator: str | None) -> list[LabelEvent]:
        """Events that put rows aside."""
        for row_id in row_ids:
            if self.row(row_id).votes:
                raise ValueError(f"Row {row_id} is labelled, and cannot be skipped: unlabel it first.")
            if annotator in self.row(row_id).skipped_by:
                raise ValueError(f"Row {row_id} was skipped already{_by(annotator)}.")
        step = self.step
        return [LabelEvent(row_id, "skip", None, step, annotator) for row_id in row_ids]

    def unlabel(self, row_ids: Sequence[int], annotator: str | None) -> list[LabelEvent]:
        """Events that take away what this annotator said of rows; None means what all said."""
        for row_id in row_ids:
            row = self.row(row_id)
            said = {vote.annotator for vote in row.votes} | row.skipped_by
            if not said or (annotator is not None and annotator not in said):
                raise ValueError(f"Row {row_id} has no label{_by(annotator)} to take away.")
        step = self.step
        return [LabelEvent(row_id, "unlabel", None, step, annotator) for row_id in row_ids]

    def last_operation(self, annotator: str | None) -> int | None:
        """Number of the last operation of this annotator, or of all, that still stands; None if there is none."""
        for operation in reversed(self._operations):
            if operation not in self._undone and annotator in (None, self._operations[operation][0].annotator):
                return operation
        return None

    def undo(self, operation: int | None, annotator: str | None) -> list[LabelEvent]:
        """Events that take back this operation, the last that still stands."""
        if self.last_operation(annotator) != operation:
            raise ValueError("Somebody else has written since: call refresh(), and look what would be undone.")
        if operation is None:
            raise ValueError(f"There is nothing to undo{_by(annotator)}.")
        return [
            LabelEvent(event.row_id, "undo", None, event.step, annotator, undoes=operation)
            for event in self._operations[operation]
        ]


def _undone(events: Iterable[LabelEvent]) -> set[int | None]:
    """Operations that these take back."""
    return {event.undoes for event in events if event.action == "undo"}


def _by(annotator: str | None) -> str:
    return "" if annotator is None else f" by {annotator!r}"
