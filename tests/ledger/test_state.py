"""What events add up to: the same whether they come at once or one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.ledger import LabelEvent, LabelState, consensus_rule


def state(rows: int = 4, rule: str = "last") -> LabelState:
    return LabelState(rows, consensus_rule(rule))


def shown(state: LabelState) -> tuple:
    rows = range(len(state.steps))
    return (
        state.seen,
        state.steps.tolist(),
        state.skipped.tolist(),
        state.labels,
        state.classes,
        [state.row(row_id) for row_id in rows],
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


@given(happened(), st.integers(0, 10), st.sampled_from(["last", "majority"]))
def test_events_add_up(events, cut, rule) -> None:
    """Events applied in two parts give the state that they give at once."""
    whole, parts = state(rule=rule), state(rule=rule)
    whole.apply(events)
    parts.apply(events[:cut])
    parts.apply(events[cut:])
    assert shown(parts) == shown(whole)


def test_a_consensus_that_fails_changes_nothing() -> None:
    """Where the consensus rule raises, nothing was applied, and the events can be applied once more."""

    def unanimous(votes) -> int:
        labels = {vote.label for vote in votes}
        if len(labels) > 1 and failing:
            raise ArithmeticError("they disagree")
        return max(labels)

    failing = True
    judged = LabelState(3, unanimous)
    judged.apply([LabelEvent(1, "label", 0, 1, "anna", operation=1)])
    before = shown(judged)
    more = [
        LabelEvent(None, "add_class", "dog", operation=2),
        LabelEvent(0, "label", 1, 2, "ben", operation=3),
        LabelEvent(1, "label", 1, 2, "ben", operation=3),
    ]
    with pytest.raises(ArithmeticError):
        judged.apply(more)
    assert shown(judged) == before
    failing = False
    judged.apply(more)
    assert judged.labels == {0: 1, 1: 1}
    assert len(judged.history(1)) == 2


def test_refusals_name_the_row_and_what_to_do() -> None:
    """What makes no sense is refused in words that name the row, the annotator and the way out."""
    judged = state()
    judged.apply(
        [
            LabelEvent(0, "label", "cat", 1, "anna", operation=1),
            LabelEvent(1, "skip", None, 1, "anna", operation=2),
        ]
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
