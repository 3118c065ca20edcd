"""The record of label events: kept in order, copied in and out, never changed."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.ledger import LabelEvent, LabelLedger

labels = st.none() | st.integers() | st.text() | st.lists(st.integers())
events = st.lists(
    st.builds(LabelEvent, st.integers(0, 9), st.sampled_from(["label", "unlabel"]), labels, st.integers(1))
)


@given(events, events)
def test_events_stay_in_order(first, second) -> None:
    """A ledger holds what it was made of and what was appended, in that order."""
    ledger = LabelLedger(first)
    ledger.append(iter(second))
    assert list(ledger) == first + second
    assert len(ledger) == len(first) + len(second)


@given(events)
def test_state_survives_json(given_events) -> None:
    """A ledger written as JSON and read back is the same."""
    state = json.loads(json.dumps(LabelLedger(given_events).state_dict()))
    assert list(LabelLedger.from_state_dict(state)) == given_events


def test_events_cannot_be_edited() -> None:
    """An event is never changed."""
    with pytest.raises(FrozenInstanceError):
        LabelEvent(0, "label", 1, step=1).label = 2  # type: ignore[misc]


def test_append_is_all_or_nothing() -> None:
    """If reading the events fails half way, none is recorded."""

    def broken():
        yield LabelEvent(0, "label", 1, step=1)
        raise OSError("disk full")

    ledger = LabelLedger()
    with pytest.raises(OSError, match="disk full"):
        ledger.append(broken())
    assert len(ledger) == 0


def test_the_ledger_does_not_follow_a_list() -> None:
    """Changing the list that a ledger was made of changes no event."""
    given_events = [LabelEvent(0, "label", 1, step=1)]
    ledger = LabelLedger(given_events)
    given_events.clear()
    assert len(ledger) == 1


def test_state_aliases_nothing() -> None:
    """Neither a snapshot nor a restored ledger shares a label with the ledger."""
    ledger = LabelLedger([LabelEvent(0, "label", [1, 2], step=1)])
    state = ledger.state_dict()
    restored = LabelLedger.from_state_dict(state)
    state[0]["label"].append(3)
    assert [event.label for event in ledger] == [[1, 2]]
    assert [event.label for event in restored] == [[1, 2]]
