"""A log of events in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from baal_hf.ledger.events import LabelEvent


class MemoryLog:
    """Events in the order in which they were appended."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._events: list[LabelEvent] = []
        self._places: dict[int | None, list[int]] = defaultdict(list)  # of a row's events in the list
        self._bound: tuple[int, str] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def since(self, count: int, until: int | None = None) -> list[LabelEvent]:
        return self._events[count:until]

    def row_ids(self, until: int) -> list[int]:
        return sorted(row_id for row_id, places in self._places.items() if row_id is not None and places[0] < until)

    def histories(self, row_ids: Iterable[int | None], until: int) -> dict[int | None, list[LabelEvent]]:
        return {
            row_id: [self._events[place] for place in self._places.get(row_id, ()) if place < until]
            for row_id in row_ids
        }

    def append(self, events: Sequence[LabelEvent]) -> list[LabelEvent]:
        self._events.extend(events)
        self._find(len(self._events) - len(events))
        return list(events)

    def _find(self, first: int) -> None:
        for place in range(first, len(self._events)):
            self._places[self._events[place].row_id].append(place)

    def last_operation(self) -> int:
        return max((event.operation or 0 for event in self._events[-1:]), default=0)

    def bound(self, rows: int, fingerprint: str) -> tuple[int, str]:
        self._bound = self._bound or (rows, fingerprint)
        return self._bound

    @contextmanager
    def writing(self) -> Iterator[None]:
        size = len(self._events)
        try:
            yield
        except BaseException:
            if len(self._events) > size:
                del self._events[size:]
                self._places.clear()  # made anew: it may be half made
                self._find(0)
            raise
