"""A log of events in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from baal_hf.ledger.events import LabelEvent


class MemoryLog:
    """Events in the order in which they were appended."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._events: list[LabelEvent] = []
        self._bound: tuple[int, str] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def since(self, count: int) -> list[LabelEvent]:
        return self._events[count:]

    def append(self, events: Sequence[LabelEvent]) -> list[LabelEvent]:
        self._events.extend(events)
        return list(events)

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
            del self._events[size:]
            raise
