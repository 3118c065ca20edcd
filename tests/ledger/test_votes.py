"""What holds for a row is a function of its events; what its label is, of the votes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.ledger import LabelEvent, consensus_rule
from baal_hf.ledger.votes import RowState, row_state


def events(*said: tuple) -> list[LabelEvent]:
    """Events of one row from (action, annotator) or (action, annotator, label); the n-th is operation and step n."""
    return [
        LabelEvent(0, action, *label, step=number, annotator=annotator, operation=number)
        for number, (action, annotator, *label) in enumerate(said, start=1)
    ]


def told(state: RowState) -> tuple:
    """Annotator and label of each vote, the step, who skipped."""
    return [(vote.annotator, vote.label) for vote in state.votes], state.step, set(state.skipped_by)


@pytest.mark.parametrize(
    ("said", "votes", "step", "skipped_by"),
    [
        ([], [], 0, set()),
        ([("label", None, 1)], [(None, 1)], 1, set()),
        ([("label", "a", 1), ("label", "b", 2)], [("a", 1), ("b", 2)], 1, set()),
        ([("label", "a", 1), ("label", "b", 2), ("relabel", "a", 3)], [("b", 2), ("a", 3)], 1, set()),
        ([("label", "a", 1), ("label", "b", 2), ("unlabel", "a")], [("b", 2)], 2, set()),
        ([("label", "a", 1), ("label", "b", 2), ("unlabel", None)], [], 0, set()),
        ([("label", "a", 1), ("unlabel", "a"), ("label", "a", 2)], [("a", 2)], 3, set()),
        ([("skip", "a")], [], 0, {"a"}),
        ([("skip", "a"), ("skip", "b"), ("unlabel", "a")], [], 0, {"b"}),
        ([("skip", "a"), ("skip", None), ("unlabel", None)], [], 0, set()),
        ([("skip", "a"), ("label", "a", 1)], [("a", 1)], 2, set()),
        ([("skip", "a"), ("label", "b", 1)], [("b", 1)], 2, {"a"}),
        ([("label", None, 1), ("label", "a", 2), ("unlabel", "a")], [(None, 1)], 1, set()),
    ],
)
def test_row_state(said, votes, step, skipped_by) -> None:
    """Votes are the annotators' current labels, the latest last; the step is that of the first who still votes."""
    assert told(row_state(events(*said))) == (votes, step, skipped_by)


said = st.lists(
    st.tuples(st.sampled_from(["label", "relabel", "unlabel", "skip"]), st.sampled_from([None, "a", "b"])).map(
        lambda pair: (*pair, 7) if pair[0] in ("label", "relabel") else pair
    ),
    max_size=8,
)


@given(said, st.sets(st.integers(1, 8)))
def test_what_is_undone_never_was(said, undone) -> None:
    """The state without some operations is that of the other events alone; "undo" itself says nothing else."""
    whole = events(*said)
    left = [event for event in whole if event.operation not in undone]
    undo = [LabelEvent(0, "undo", None, 1, operation=90 + number, undoes=number) for number in undone]
    assert row_state([*whole, *undo]) == row_state(left)


def label_of(rule, *labels) -> object:
    return consensus_rule(rule)(events(*[("label", str(number), label) for number, label in enumerate(labels)]))


@pytest.mark.parametrize(
    ("rule", "labels", "wanted"),
    [
        ("last", [1], 1),
        ("last", [2, 2, 1], 1),
        ("majority", [1], 1),
        ("majority", [2, 2, 1], 2),
        ("majority", [1, 2, 2, 1], 1),
        ("majority", [1, 2, 3], 3),
        ("majority", [2, 2, 3, 3, 1], 3),
        ("majority", ["x", "y", "x"], "x"),
        ("majority", [[1, 0], [0], [1, 0]], [1, 0]),
        ("majority", [[[1], [0]], [[1], [0]], [[0]]], [[1], [0]]),
        ("majority", [None, 3, None], None),
        (lambda votes: sum(vote.label for vote in votes) / len(votes), [1, 2, 6], 3.0),
    ],
)
def test_consensus(rule, labels, wanted) -> None:
    """The last label, or that of most annotators and of several such the last, or what a function says."""
    assert label_of(rule, *labels) == wanted


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_majority_of_arrays(array) -> None:
    """Arrays and tensors that hold the same count as the same label."""
    assert label_of("majority", array([1, 0]), array([0, 0]), array([1, 0])).tolist() == [1, 0]


def test_majority_of_dictionaries() -> None:
    """Labels with named parts, such as spans, are counted too."""
    spans = [{"start": 1, "end": 2}, {"start": 0, "end": 1}, {"end": 2, "start": 1}]
    assert label_of("majority", *spans) == {"start": 1, "end": 2}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_majority_by_counting(labels) -> None:
    """No label has more votes than the majority's, and none that has as many was given later."""
    wanted = label_of("majority", *labels)
    assert labels.count(wanted) == max(map(labels.count, labels))
    later = itertools.takewhile(lambda label: label != wanted, reversed(labels))
    assert all(labels.count(label) < labels.count(wanted) for label in later)


@pytest.mark.parametrize("rule", ["first", "", None, 3])
def test_unknown_rule(rule) -> None:
    """A rule of no known name is refused with the names there are."""
    with pytest.raises(ValueError, match=r"out of last, majority, or a function of votes, got"):
        consensus_rule(rule)
