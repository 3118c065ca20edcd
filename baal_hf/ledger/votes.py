"""The state of a row: a function of its events, and of how the labels of several annotators become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baal_hf.ledger.events import LabelEvent

Consensus = Callable[[Sequence[LabelEvent]], Any]
"""Votes on a row, oldest first, at least one -> its label."""


_NOBODY: frozenset[str | None] = frozenset()


@dataclass(frozen=True, slots=True)
class RowState:
    """What holds for a row.

    Attributes:
        votes: The event that gave each annotator's current label, oldest first.
        step: At which the first of these annotators labelled it; 0 without votes.
        skipped_by: Annotators who put it aside.
    """

    votes: tuple[LabelEvent, ...] = ()
    step: int = 0
    skipped_by: frozenset[str | None] = _NOBODY


def row_state(events: Sequence[LabelEvent]) -> RowState:
    """The state of a row after its events.

    Args:
        events: All of this row, oldest first.
    """
    undone = {event.undoes for event in events if event.action == "undo"}
    votes: dict[str | None, LabelEvent] = {}
    steps: dict[str | None, int] = {}
    skipped_by: set[str | None] = set()
    for event in events:
        who = event.annotator
        if event.operation in undone or event.action == "undo":
            continue
        if event.action in ("label", "relabel"):
            votes.pop(who, None)  # the latest vote comes last
            votes[who] = event
            steps.setdefault(who, event.step)
            skipped_by.discard(who)
        elif event.action == "skip":
            skipped_by.add(who)
        elif event.action == "unlabel":
            for annotator in [who] if who is not None else [*votes, *skipped_by]:
                votes.pop(annotator, None)
                steps.pop(annotator, None)
                skipped_by.discard(annotator)
    skips = frozenset(skipped_by) if skipped_by else _NOBODY
    return RowState(tuple(votes.values()), min(steps.values(), default=0), skips)


def last(votes: Sequence[LabelEvent]) -> Any:
    """The label given last."""
    return votes[-1].label


def majority(votes: Sequence[LabelEvent]) -> Any:
    """The label of most annotators; of several such labels the one given last."""
    counts = Counter(_key(vote.label) for vote in votes)
    return max(enumerate(votes), key=lambda place: (counts[_key(place[1].label)], place[0]))[1].label


_RULES: dict[str, Consensus] = {"last": last, "majority": majority}


def consensus_rule(rule: str | Consensus) -> Consensus:
    """The rule of that name, or the rule.

    Raises:
        ValueError: No rule has that name.
    """
    if callable(rule):
        return rule
    if rule not in _RULES:
        raise ValueError(f"Consensus needs a rule out of {', '.join(_RULES)}, or a function of votes, got {rule!r}.")
    return _RULES[rule]


def _key(label: Any) -> Any:
    """Something hashable, equal for equal labels."""
    label = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(label, Mapping):
        return frozenset((name, _key(part)) for name, part in label.items())
    return tuple(map(_key, label)) if isinstance(label, list | tuple) else label
