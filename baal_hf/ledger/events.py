"""One thing that happened to a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACTIONS = ("label", "relabel", "unlabel", "skip", "undo", "add_class")


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """One thing that happened to the label of one row, or to the classes.

    Attributes:
        row_id: Position in the original dataset; None for "add_class".
        action: "label" gives an annotator's label, "relabel" another one in its place, "unlabel" takes it away, "skip"
            puts the row aside, "undo" takes back what an operation did to the row, "add_class" adds a class.
        label: The label given, or the name of the class; None stands for the label that the dataset itself holds.
        step: Step of the active learning loop, counted from 1.
        annotator: Who did it; None where nobody was named. "unlabel" by None takes the labels of all away.
        heuristic: Name of what chose the row, where that is known.
        score: Its score of the row.
        probability: With which the row was chosen, in [0, 1].
        model_version: Of the model that gave the score.
        time: Seconds since 1970, UTC; the ledger sets it.
        operation: Number of the call, from 1, whose events were written together; the ledger sets it.
        undoes: Number of the operation that an "undo" takes back.

    Raises:
        ValueError: An unknown action, a step below 0, a probability outside [0, 1], a score that is NaN.
        TypeError: An annotator, a heuristic or a version that is no text.
    """

    row_id: int | None
    action: str
    label: Any = None
    step: int = 0
    annotator: str | None = None
    heuristic: str | None = None
    score: float | None = None
    probability: float | None = None
    model_version: str | None = None
    time: float | None = None
    operation: int | None = None
    undoes: int | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS or self.step < 0:
            raise ValueError(f"A label event needs an action out of {', '.join(ACTIONS)} and a step >= 0, got {self}.")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"A label event needs a probability in [0, 1], got {self.probability}.")
        if self.score is not None and self.score != self.score:
            raise ValueError(f"A label event needs a score that is a number, got {self.score}.")
        for name in ("annotator", "heuristic", "model_version"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"A label event needs {name} that is text, got {value!r}.")
