"""The record of labels: events that are appended and never changed; everything else is derived from them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """One thing that happened to the label of one row.

    Attributes:
        row_id: Position in the original dataset.
        action: "label" gives the row a label, "unlabel" takes it away.
        label: The label given; None stands for the label that the dataset itself holds.
        step: Step of the active learning loop, counted from 1.
    """

    row_id: int
    action: Literal["label", "unlabel"]
    label: Any
    step: int

    def __post_init__(self) -> None:
        if self.action not in ("label", "unlabel") or self.step < 0:
            raise ValueError(f"A label event labels or unlabels, at a step from 0 on, got {self}.")


class LabelLedger:
    """Label events in the order in which they happened, in memory.

    Example:
        >>> ledger = LabelLedger()
        >>> ledger.append([LabelEvent(7, "label", "sport", step=1)])
        >>> [event.row_id for event in ledger]
        [7]
    """

    def __init__(self, events: Iterable[LabelEvent] = ()) -> None:
        self._events = list(events)

    def append(self, events: Iterable[LabelEvent]) -> None:
        """Record all of `events`, or none if reading them fails."""
        self._events.extend(list(events))

    def __iter__(self) -> Iterator[LabelEvent]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def state_dict(self) -> list[dict[str, Any]]:
        """The events as plain dictionaries, which JSON can hold where it can hold the labels; a copy."""
        return [asdict(event) for event in self._events]

    @classmethod
    def from_state_dict(cls, state: Iterable[dict[str, Any]]) -> LabelLedger:
        """The ledger that `state_dict` described; it shares nothing with `state`."""
        return cls(LabelEvent(**{**event, "label": copy.deepcopy(event["label"])}) for event in state)
