"""`LabelLedger`: the events of a dataset's labels, in memory or in one file."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from baal_hf.ledger.events import LabelEvent
from baal_hf.ledger.memory import MemoryLog
from baal_hf.ledger.sqlite import SqliteLog

_TOGETHER = 1000  # events read at a time


class EventLog(Protocol):
    """Where events are kept, oldest first. It can only be appended to."""

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""

    def __len__(self) -> int:
        """Number of events."""

    def since(self, count: int, until: int | None = None) -> list[LabelEvent]:
        """All events but the first `count`; of the first `until`, where that is given."""

    def row_ids(self, until: int) -> list[int]:
        """Rows that the first `until` events are about, in order."""

    def histories(self, row_ids: Iterable[int | None], until: int) -> dict[int | None, list[LabelEvent]]:
        """What the first `until` events say of each of these rows, oldest first; None asks for those of no row."""

    def append(self, events: Sequence[LabelEvent]) -> list[LabelEvent]:
        """Keep these, and return them as they will be read."""

    def last_operation(self) -> int:
        """Number of the last operation; 0 if there was none."""

    def bound(self, rows: int, fingerprint: str) -> tuple[int, str]:
        """Number of rows and fingerprint of the dataset; the first that was told stays."""

    def writing(self) -> AbstractContextManager[None]:
        """Nobody else writes, and what is appended stays only if the block ends without error."""


class LabelLedger:
    """Label events in the order in which they happened. They are appended and never edited.

    Args:
        path: A SQLite file, which is made if it is not there; None keeps the events in memory. Several processes may
            have the file open and write to it. What was appended is on the disk when the call returns.

    Raises:
        ValueError: The file is no ledger, or one of a newer version of this library.
        OSError: The file can be neither opened nor made.

    Example:
        >>> ledger = LabelLedger()
        >>> ledger.append([LabelEvent(7, "label", "sport", step=1)])[0].operation
        1
        >>> [event.row_id for event in ledger]
        [7]
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._log: EventLog = MemoryLog() if path is None else SqliteLog(path)

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""
        return self._log.path

    def bind(self, rows: int, fingerprint: str) -> None:
        """Belong to the dataset with so many rows and this fingerprint, now and always.

        Raises:
            ValueError: It belongs to another.
        """
        bound_rows, bound_fingerprint = self._log.bound(rows, fingerprint)
        where = f"The ledger {self.path}" if self.path is not None else "This ledger"
        if bound_rows != rows:
            raise ValueError(f"{where} belongs to a dataset of {bound_rows} rows, this one has {rows}.")
        if bound_fingerprint != fingerprint:
            raise ValueError(
                f"{where} belongs to another dataset of {rows} rows: their contents, order or classes differ."
            )

    def append(self, events: Iterable[LabelEvent]) -> list[LabelEvent]:
        """Record all of `events` as one operation, or none of them.

        Returns:
            The events as recorded: with the number of the operation, and the time where they had none.

        Raises:
            TypeError: A file cannot hold one of the labels.
            OSError: The file cannot be written; nothing is recorded then.
        """
        events = list(events)
        if not events:
            return []
        with self._log.writing():
            now, operation = time.time(), self._log.last_operation() + 1
            dated = [
                replace(event, operation=operation, time=now if event.time is None else event.time) for event in events
            ]
            return self._log.append(dated)

    def writing(self) -> AbstractContextManager[None]:
        """A context in which nobody else writes; what is appended in it stays only if it ends without error."""
        return self._log.writing()

    def since(self, count: int) -> list[LabelEvent]:
        """All events but the first `count`, oldest first."""
        return self._log.since(count)

    def backwards(self, count: int) -> Iterator[LabelEvent]:
        """The first `count` events, the newest of them first; few are in memory at a time."""
        for end in range(count, 0, -_TOGETHER):
            yield from reversed(self._log.since(max(0, end - _TOGETHER), end))

    def row_ids(self, count: int) -> list[int]:
        """Rows that the first `count` events are about, in order."""
        return self._log.row_ids(count)

    def histories(self, row_ids: Iterable[int | None], count: int) -> dict[int | None, list[LabelEvent]]:
        """Those of the first `count` events that are about each of these rows, oldest first.

        Args:
            row_ids: Rows, also such that no event is about; None has the events that are about no row.
            count: Number of events to look at.
        """
        return self._log.histories(row_ids, count)

    def __iter__(self) -> Iterator[LabelEvent]:
        return iter(self.since(0))

    def __len__(self) -> int:
        return len(self._log)

    def state_dict(self) -> list[dict[str, Any]]:
        """The events as plain dictionaries, which JSON can hold where it can hold the labels; a copy."""
        return [asdict(event) for event in self]

    def load_state_dict(self, state: Iterable[dict[str, Any]]) -> None:
        """Have the events that `state_dict` described, which begin with those that are here or are the beginning of it.

        Raises:
            ValueError: Other events are here.
        """
        theirs = [LabelEvent(**{**event, "label": copy.deepcopy(event["label"])}) for event in state]
        with self._log.writing():
            ours = self.since(0)
            shared = min(len(ours), len(theirs))
            if ours[:shared] != theirs[:shared]:
                raise ValueError("The ledger has other events than this state, and events are never taken back.")
            self._log.append(theirs[shared:])

    @classmethod
    def from_state_dict(cls, state: Iterable[dict[str, Any]]) -> LabelLedger:
        """The ledger in memory that `state_dict` described; it shares nothing with `state`."""
        ledger = cls()
        ledger.load_state_dict(state)
        return ledger
