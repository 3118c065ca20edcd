"""The record of label events, in memory and in a file: the same laws hold for both."""

import copy
import itertools
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baal_hf.ledger import LabelEvent, LabelLedger
from baal_hf.ledger.events import ACTIONS

texts = st.text(st.characters(codec="utf-8"), max_size=5)
labels = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(texts, parts, max_size=2),
    max_leaves=4,
)
# SQLite's whole numbers have 64 bits, as Arrow's have.
event = st.builds(
    LabelEvent,
    st.none() | st.integers(0, 2**63 - 1),
    st.sampled_from(ACTIONS),
    labels,
    st.integers(0, 2**63 - 1),
    st.none() | texts,
    heuristic=st.none() | texts,
    score=st.none() | st.floats(allow_nan=False),
    probability=st.none() | st.floats(0, 1),
    model_version=st.none() | texts,
    time=st.none() | st.floats(0, 1e12),
    undoes=st.none() | st.integers(0, 2**63 - 1),
)
events = st.lists(event, max_size=5)
# The fixture only makes ledgers; each example has new ones.
examples = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path) -> Callable[[], LabelLedger]:
    """Makes an empty ledger each time it is called."""
    numbers = itertools.count()
    return lambda: LabelLedger(None if request.param == "memory" else tmp_path / f"{next(numbers)}.db")


def one(row_id: int = 0, label: object = 1) -> LabelEvent:
    return LabelEvent(row_id, "label", label, step=1)


@examples
@given(given=st.lists(events, max_size=4))
def test_events_stay_as_and_where_they_are(make, given) -> None:
    """A ledger holds what was appended, in order; each append is the next operation and has the time of the call."""
    ledger, begin = make(), time.time()
    returned = [ledger.append(iter(several)) for several in given]
    end = time.time()
    assert list(ledger) == list(itertools.chain(*returned)) and len(ledger) == sum(map(len, given))
    number = 0
    for several, recorded in zip(given, returned, strict=True):
        number += bool(several)
        assert {event.operation for event in recorded} <= {number}
        for before, after in zip(several, recorded, strict=True):
            assert before.time == after.time or (before.time is None and begin <= after.time <= end)
            assert replace(after, time=before.time, operation=None) == before
    for count in range(len(ledger) + 2):
        assert ledger.since(count) == list(ledger)[count:]


@examples
@given(given=events, until=st.integers(0, 6))
def test_events_are_found(make, given, until) -> None:
    """The first so many events are found by their rows, by no row, and from the last to the first."""
    ledger = make()
    kept = ledger.append(given)[:until]
    rows = [event.row_id for event in kept if event.row_id is not None]
    assert ledger.row_ids(until) == sorted(set(rows))
    asked = [*rows, 2**62, None]
    assert ledger.histories(iter(asked), until) == {
        row_id: [event for event in kept if event.row_id == row_id] for row_id in asked
    }
    assert list(ledger.backwards(len(kept))) == kept[::-1]


def test_many_events_are_found(make) -> None:
    """However many events there are, all of them are read backwards, and all rows can be asked for at once."""
    ledger = make()
    kept = ledger.append([one(row_id % 2500) for row_id in range(5001)])
    assert list(ledger.backwards(4999)) == kept[:4999][::-1]
    assert ledger.histories(range(2500), 5001) == {row_id: kept[row_id::2500] for row_id in range(2500)}


def test_append_is_all_or_nothing(make) -> None:
    """If reading the events fails half way, none is recorded, and the next operation has the next number."""

    def broken():
        yield one(0)
        raise ArithmeticError("half way")

    ledger = make()
    ledger.append([one(7)])
    with pytest.raises(ArithmeticError, match="half way"):
        ledger.append(broken())
    assert [event.row_id for event in ledger] == [7]
    assert ledger.append([one(8)])[0].operation == 2


def test_nothing_is_no_operation(make) -> None:
    """Appending no events records nothing and counts as no operation."""
    ledger = make()
    assert ledger.append([]) == []
    assert len(ledger) == 0
    assert ledger.append([one()])[0].operation == 1


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_writing_is_all_or_nothing(make, error) -> None:
    """What was appended within `writing` is gone if the block ends with an error, also one that is no `Exception`."""
    ledger = make()
    ledger.append([one(1)])
    with pytest.raises(error), ledger.writing():
        ledger.append([one(2)])
        assert len(ledger) == 2
        assert ledger.row_ids(2) == [1, 2]
        ledger.append([one(3)])
        raise error
    assert [event.row_id for event in ledger] == [1]
    with ledger.writing():
        assert [event.operation for event in (*ledger.append([one(4), one(5)]), *ledger.append([one(6)]))] == [2, 2, 3]
    assert [event.row_id for event in ledger] == [1, 4, 5, 6] == ledger.row_ids(4)
    assert [len(events) for events in ledger.histories(range(1, 7), 4).values()] == [1, 0, 0, 1, 1, 1]


def test_writing_can_be_nested(make) -> None:
    """A block within a block is a part of it: an error of the outer one takes all back."""
    ledger = make()
    with pytest.raises(ArithmeticError), ledger.writing():
        with ledger.writing():
            ledger.append([one(1)])
        ledger.append([one(2)])
        raise ArithmeticError
    assert len(ledger) == 0
    with ledger.writing(), ledger.writing():
        ledger.append([one(3)])
    assert len(ledger) == 1


@examples
@given(first=events, second=events)
def test_state_survives_json(make, first, second) -> None:
    """A ledger written as JSON and read back is the same, whatever of it was there before."""
    ledger = make()
    ledger.append(first)
    beginning = json.loads(json.dumps(ledger.state_dict()))
    ledger.append(second)
    state = json.loads(json.dumps(ledger.state_dict()))
    assert list(LabelLedger.from_state_dict(state)) == list(ledger)
    other = make()
    for given_state in (beginning, state, state, beginning):  # behind what is here: nothing is taken back
        other.load_state_dict(given_state)
    assert list(other) == list(ledger)


def test_another_state_is_refused(make) -> None:
    """A state whose events are not those that are here is refused, and nothing is recorded."""
    ledger, other = make(), make()
    ledger.append([one(1), one(2)])
    other.append([one(1), one(3), one(4)])
    with pytest.raises(ValueError, match="other events than this state, and events are never taken back"):
        ledger.load_state_dict(other.state_dict())
    assert [event.row_id for event in ledger] == [1, 2]


def test_a_broken_state_is_refused(make) -> None:
    """A state with something that is no event is refused as a whole."""
    ledger = make()
    state = [{"row_id": 1, "action": "label", "label": 1}, {"row_id": 1, "action": "lable", "label": 1}]
    with pytest.raises(ValueError, match="needs an action"):
        ledger.load_state_dict(state)
    assert len(ledger) == 0


def test_numbers_go_on_after_loading(make) -> None:
    """The operation after those of a state has the next number."""
    ledger = make()
    ledger.append([one(1)])
    ledger.append([one(2)])
    other = make()
    other.load_state_dict(ledger.state_dict())
    assert other.append([one(3)])[0].operation == 3


def test_state_aliases_nothing(make) -> None:
    """Neither a snapshot nor a restored ledger shares a label with the ledger."""
    ledger = make()
    ledger.append([one(0, [1, 2])])
    state = ledger.state_dict()
    restored = LabelLedger.from_state_dict(state)
    state[0]["label"].append(3)
    assert [event.label for event in ledger] == [[1, 2]]
    assert [event.label for event in restored] == [[1, 2]]


def test_the_ledger_does_not_follow_a_list(make) -> None:
    """Changing the list that was appended, or one that was handed out, changes no event."""
    ledger, given_events = make(), [one()]
    returned = ledger.append(given_events)
    for handed in (given_events, returned, ledger.since(0)):
        handed.clear()
    assert len(ledger) == 1


def test_a_ledger_belongs_to_one_dataset(make) -> None:
    """The first dataset that is told stays; another number of rows or fingerprint is an error, and changes nothing."""
    ledger = make()
    ledger.bind(5, "abc")
    with pytest.raises(ValueError, match="belongs to a dataset of 5 rows, this one has 6"):
        ledger.bind(6, "abc")
    with pytest.raises(ValueError, match="another dataset of 5 rows: their contents, order or classes differ"):
        ledger.bind(5, "abd")
    ledger.bind(5, "abc")


def test_copies(make) -> None:
    """A ledger that was pickled or copied has the same events and can be written to."""
    ledger = make()
    ledger.append([one(1)])
    for copied in (pickle.loads(pickle.dumps(ledger)), copy.deepcopy(ledger)):
        assert list(copied) == list(ledger)
        number = len(copied)
        copied.append([one(2)])
        assert len(copied) == number + 1
        # In memory a copy goes its own way, in a file it is the same ledger.
        assert len(ledger) == (1 if ledger.path is None else len(copied))
