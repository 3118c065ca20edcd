"""What events add up to: the same whether they come at once or one by one."""

import tracemalloc
from collections.abc import Iterable
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.ledger import LabelEvent, LabelLedger, LabelState, consensus_rule


def ledger_of(events: Iterable[LabelEvent]) -> LabelLedger:
    """A ledger in memory with these events, as they are."""
    return LabelLedger.from_state_dict(map(asdict, events))


def state(*events: LabelEvent, rule: str = "last", until: int | None = None) -> LabelState:
    """What these events say of four rows."""
    return LabelState(ledger_of(events), 4, consensus_rule(rule), until)


def shown(state: LabelState) -> tuple:
    rows = range(len(state.steps))
    return (
        state.seen,
        state.steps.tolist(),
        state.skipped.tolist(),
        state.labels,
        state.classes,
        state.rows(rows),
        [state.history(row_id) for row_id in rows],
    )


def happened() -> st.SearchStrategy[list[LabelEvent]]:
    """Any events, each an operation; undo may take back one that came before."""
    one = st.builds(
        LabelEvent,
        st.integers(0, 3),
        st.sampled_from(["label", "relabel", "unlabel", "skip", "undo"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([None, "anna", "ben"]),
        undoes=st.integers(1, 5),
    )
    numbered = st.lists(one, max_size=10)
    return numbered.map(
        lambda events: [
            LabelEvent(e.row_id, e.action, e.label, e.step, e.annotator, operation=n, undoes=min(e.undoes, n - 1))
            if e.action == "undo"
            else LabelEvent(e.row_id, e.action, e.label, e.step, e.annotator, operation=n)
            for n, e in enumerate(events, start=1)
            if e.action != "undo" or (n > 1 and events[min(e.undoes, n - 1) - 1].row_id == e.row_id)
        ]
    )


@given(happened(), st.integers(0, 10), st.integers(0, 10), st.sampled_from(["last", "majority"]))
def test_events_add_up(events, first, second, rule) -> None:
    """Events that come one part after the other give the state that they give at once; what was before stays."""
    whole = state(*events, rule=rule)
    first, second = sorted((min(first, len(events)), min(second, len(events))))
    parts = state(*events, rule=rule, until=first)
    before = shown(parts)
    later = parts.after(events[first:second])
    assert shown(later) == shown(state(*events, rule=rule, until=second))
    assert shown(parts) == before
    later.take(later.change(events[second:]))
    assert shown(later) == shown(whole)


def test_only_labels_are_in_memory(tmp_path) -> None:
    """The state of a ledger in a file holds less than 150 bytes a label: its events stay in the file."""
    ledger, count = LabelLedger(tmp_path / "labels.db"), 20_000
    ledger.append([LabelEvent(row_id, "label", 1, 1, "anna", "BALD", row_id / 7) for row_id in range(count)])
    tracemalloc.start()
    try:
        kept = LabelState(ledger, count, consensus_rule("last"))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept.labels) == count
    assert size < 150 * count


def test_the_last_operation_is_found_far_back() -> None:
    """The last operation of somebody that still stands is found behind thousands of others, with all its rows."""
    first = [LabelEvent(row_id, "label", 1, 1, "anna", operation=1) for row_id in range(1500)]
    second = [LabelEvent(row_id, "label", 1, 2, "anna", operation=2) for row_id in range(1500, 3000)]
    others = [LabelEvent(row_id, "skip", None, 2, "ben", operation=row_id) for row_id in range(3000, 5000)]
    undo = [LabelEvent(row_id, "undo", None, 2, "anna", operation=6000, undoes=2) for row_id in range(1500, 3000)]
    judged = LabelState(ledger_of([*first, *second, *others, *undo]), 5000, consensus_rule("last"))
    assert [judged.last_operation(who) for who in ("anna", "ben", None)] == [1, 4999, 4999]
    assert [event.row_id for event in judged.undo(1, "anna")] == list(range(1500))


def test_a_consensus_that_fails_changes_nothing() -> None:
    """Where the consensus rule raises, nothing has changed, and the events can be recorded once more."""

    def unanimous(votes) -> int:
        labels = {vote.label for vote in votes}
        if len(labels) > 1 and failing:
            raise ArithmeticError("they disagree")
        return max(labels)

    failing = True
    ledger = LabelLedger()
    ledger.append([LabelEvent(1, "label", 0, 1, "anna")])
    judged = LabelState(ledger, 3, unanimous)
    before = shown(judged)
    more = [
        LabelEvent(None, "add_class", "dog"),
        LabelEvent(0, "label", 1, 2, "ben"),
        LabelEvent(1, "label", 1, 2, "ben"),
    ]
    with pytest.raises(ArithmeticError), ledger.writing():
        judged.change(ledger.append(more))
    assert shown(judged) == before
    failing = False
    judged.take(judged.change(ledger.append(more)))
    assert judged.labels == {0: 1, 1: 1}
    assert len(judged.history(1)) == 2


def test_refusals_name_the_row_and_what_to_do() -> None:
    """What makes no sense is refused in words that name the row, the annotator and the way out."""
    judged = state(
        LabelEvent(0, "label", "cat", 1, "anna", operation=1), LabelEvent(1, "skip", None, 1, "anna", operation=2)
    )
    before = shown(judged)
    for refused, message in [
        (lambda: judged.check_new([2, 0], "anna"), "Row 0 is labelled already by 'anna', since step 1: 'cat'. relabel"),
        (lambda: judged.relabel([0], ["dog"], "ben"), "Row 0 has no label by 'ben' to put another in the place of"),
        (lambda: judged.relabel([2], ["dog"], None), "Row 2 has no label to put"),
        (lambda: judged.skip([0], None), "Row 0 is labelled, and cannot be skipped: unlabel it first"),
        (lambda: judged.skip([1], "anna"), "Row 1 was skipped already by 'anna'"),
        (lambda: judged.unlabel([0], "ben"), "Row 0 has no label by 'ben' to take away"),
        (lambda: judged.unlabel([3], None), "Row 3 has no label to take away"),
        (lambda: judged.undo(judged.last_operation("ben"), "ben"), "nothing to undo by 'ben'"),
        (lambda: state().undo(None, None), "nothing to undo"),
        (lambda: judged.undo(1, None), "Somebody else has written since: call refresh"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()
    assert shown(judged) == before
    judged.check_new([0], "ben")
    assert len(judged.skip([1], "ben")) == 1
