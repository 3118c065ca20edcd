"""`LabelState`: what the events of a ledger add up to, and which events may come next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from baal_hf.ledger.events import LabelEvent
from baal_hf.ledger.ledger import LabelLedger
from baal_hf.ledger.votes import Consensus, RowState, row_state

_TOGETHER = 1000  # rows whose events are in memory at a time


class Change(NamedTuple):
    """What further events make of a state: their number, the rows that they are about, and names of new classes."""

    events: int
    steps: dict[int, int]  # of each of the rows
    skipped: set[int]
    labels: dict[int, Any]  # of those that are labelled
    classes: list[str]


class LabelState:
    """What holds for M rows after the first events of a ledger.

    Only labels are kept here: the events are read from the ledger where they are needed, which a file has room for.

    The methods that are named after an action return the events with which it is recorded, and refuse what makes no
    sense in this state; they change nothing.

    Args:
        ledger: The events.
        rows: Number of rows, M.
        consensus: Makes one label of several annotators'.
        events: Number of events that count; None means those that are there now.

    Attributes:
        seen: Number of events that counted.
        steps: Step at which each row was labelled, 0 where it is not, int32 [M].
        skipped: Rows that somebody skipped and nobody labelled, bool [M].
        labels: Label of each labelled row, by row id.
        classes: Names of the classes that were added.
    """

    def __init__(self, ledger: LabelLedger, rows: int, consensus: Consensus, events: int | None = None) -> None:
        self.seen = len(ledger) if events is None else min(events, len(ledger))
        self.steps = np.zeros(rows, dtype=np.int32)
        self.skipped = np.zeros(rows, dtype=bool)
        self.labels: dict[int, Any] = {}
        self._ledger = ledger
        self._consensus = consensus
        self.classes: list[str] = [event.label for event in self._histories([None])[0]]
        row_ids = ledger.row_ids(self.seen)
        for begin in range(0, len(row_ids), _TOGETHER):
            self.take(self._change(row_ids[begin : begin + _TOGETHER], self.seen))

    def change(self, events: Sequence[LabelEvent]) -> Change:
        """What comes of the events that came next in the ledger; where the consensus rule raises, so does this."""
        row_ids = dict.fromkeys(event.row_id for event in events if event.row_id is not None)
        classes = [event.label for event in events if event.row_id is None]
        return self._change([*row_ids], self.seen + len(events))._replace(events=len(events), classes=classes)

    def _change(self, row_ids: Sequence[int], events: int) -> Change:
        """What so many events say of these rows."""
        change = Change(0, {}, set(), {}, [])
        histories = self._ledger.histories(row_ids, events)
        for row_id in row_ids:
            row = row_state(histories[row_id])
            change.steps[row_id] = row.step
            if row.votes:
                change.labels[row_id] = self._consensus(row.votes)
            elif row.skipped_by:
                change.skipped.add(row_id)
        return change

    def take(self, change: Change) -> None:
        """Go on with what came of further events."""
        for row_id, step in change.steps.items():
            self.steps[row_id] = step
            self.skipped[row_id] = row_id in change.skipped
            if row_id not in change.labels:
                self.labels.pop(row_id, None)
        self.labels |= change.labels
        self.classes += change.classes
        self.seen += change.events

    def after(self, events: Sequence[LabelEvent]) -> LabelState:
        """Another state, with the events that came next; this one stays."""
        state = copy(self)
        state.steps, state.skipped = self.steps.copy(), self.skipped.copy()
        state.labels, state.classes = dict(self.labels), list(self.classes)
        state.take(self.change(events))
        return state

    def _histories(self, row_ids: Sequence[int | None]) -> list[list[LabelEvent]]:
        histories = self._ledger.histories(row_ids, self.seen)
        return [histories[row_id] for row_id in row_ids]

    def rows(self, row_ids: Sequence[int]) -> list[RowState]:
        """What holds for each of these rows."""
        return [row_state(history) for history in self._histories(row_ids)]

    def history(self, row_id: int) -> list[LabelEvent]:
        """All events of a row, oldest first."""
        return self._histories([row_id])[0]

    @property
    def step(self) -> int:
        """The last step at which a row was labelled that still is, 0 without labels."""
        return int(self.steps.max())

    def check_new(self, row_ids: Iterable[int], annotator: str | None) -> None:
        """Refuse rows that this annotator has labelled."""
        labelled = [row_id for row_id in row_ids if row_id in self.labels]
        for row_id, row in zip(labelled, self.rows(labelled), strict=True):
            for vote in row.votes:
                if vote.annotator == annotator:
                    raise ValueError(
                        f"Row {row_id} is labelled already{_by(annotator)}, since step {self.steps[row_id]}: "
                        f"{vote.label!r}. relabel() gives another label, unlabel() takes it away."
                    )

    def relabel(self, row_ids: Sequence[int], labels: Sequence[Any], annotator: str | None) -> list[LabelEvent]:
        """Events that put labels in the place of this annotator's."""
        for row_id, row in zip(row_ids, self.rows(row_ids), strict=True):
            if annotator not in [vote.annotator for vote in row.votes]:
                raise ValueError(f"Row {row_id} has no label{_by(annotator)} to put another in the place of.")
        step = self.step
        return [
            LabelEvent(row_id, "relabel", label, step, annotator) for row_id, label in zip(row_ids, labels, strict=True)
        ]

    def skip(self, row_ids: Sequence[int], annotator: str | None) -> list[LabelEvent]:
        """Events that put rows aside."""
        for row_id, row in zip(row_ids, self.rows(row_ids), strict=True):
            if row.votes:
                raise ValueError(f"Row {row_id} is labelled, and cannot be skipped: unlabel it first.")
            if annotator in row.skipped_by:
                raise ValueError(f"Row {row_id} was skipped already{_by(annotator)}.")
        step = self.step
        return [LabelEvent(row_id, "skip", None, step, annotator) for row_id in row_ids]

    def unlabel(self, row_ids: Sequence[int], annotator: str | None) -> list[LabelEvent]:
        """Events that take away what this annotator said of rows; None means what all said."""
        for row_id, row in zip(row_ids, self.rows(row_ids), strict=True):
            said = {vote.annotator for vote in row.votes} | row.skipped_by
            if not said or (annotator is not None and annotator not in said):
                raise ValueError(f"Row {row_id} has no label{_by(annotator)} to take away.")
        step = self.step
        return [LabelEvent(row_id, "unlabel", None, step, annotator) for row_id in row_ids]

    def last_operation(self, annotator: str | None) -> int | None:
        """Number of the last operation of this annotator, or of all, that still stands; None if there is none."""
        return next((event.operation for event in self._last(annotator)), None)

    def _last(self, annotator: str | None) -> list[LabelEvent]:
        """Events of that operation; none if there is none."""
        undone: set[int | None] = set()  # an operation is undone by a later one
        for operation, events in groupby(self._ledger.backwards(self.seen), attrgetter("operation")):
            done = []
            for event in events:
                if event.action == "undo":
                    undone.add(event.undoes)
                elif event.row_id is not None:
                    done.append(event)
            if done and operation not in undone and annotator in (None, done[-1].annotator):
                return done[::-1]
        return []

    def undo(self, operation: int | None, annotator: str | None) -> list[LabelEvent]:
        """Events that take back this operation, the last that still stands."""
        last = self._last(annotator)
        if next((event.operation for event in last), None) != operation:
            raise ValueError("Somebody else has written since: call refresh(), and look what would be undone.")
        if operation is None:
            raise ValueError(f"There is nothing to undo{_by(annotator)}.")
        return [LabelEvent(event.row_id, "undo", None, event.step, annotator, undoes=operation) for event in last]


def _by(annotator: str | None) -> str:
    return "" if annotator is None else f" by {annotator!r}"
