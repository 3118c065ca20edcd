"""Labels and where they came from as a table that leaves the library, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import datasets
from datasets import Value

from baal_hf.ledger import LabelEvent
from baal_hf.rows import ROW_ID, identifying

_SAID = {
    "annotator": "string",
    "step": "int64",
    "time": "float64",
    "heuristic": "string",
    "score": "float64",
    "probability": "float64",
    "model_version": "string",
}


def exported(labelled: Any, label_column: str, votes: Sequence[Sequence[LabelEvent]]) -> datasets.Dataset:
    """The labelled rows with two more columns.

    Args:
        labelled: `ActiveLearningDataset.labelled`.
        label_column: Its column of labels.
        votes: Of each row, the event that gave each annotator's current label.

    Returns:
        The inputs, the current label, `row_id`, and `votes`: a list of what each annotator said, as `LabelEvent` has
        it.

    Raises:
        TypeError: The rows are no `datasets.Dataset`.
        ValueError: A column is called `row_id` or `votes` already.
    """
    if not isinstance(labelled, datasets.Dataset):
        raise TypeError(f"Labels can be exported from a datasets.Dataset, this is a {type(labelled).__name__}.")
    for name in ("row_id", "votes"):
        if name in labelled.column_names:
            raise ValueError(f"The export needs the column name {name!r} for itself: rename that column.")
    rows = labelled.with_format(None).rename_column(ROW_ID, "row_id")
    said = {"label": labelled.features[label_column], **{name: Value(kind) for name, kind in _SAID.items()}}
    column = [[{name: getattr(vote, name) for name in said} for vote in row] for row in votes]
    return rows.add_column("votes", column, feature=datasets.List(said))


def imported(rows: Any) -> list[LabelEvent]:
    """The events that give the rows of an export their labels.

    Raises:
        ValueError: It has no column `row_id` or `votes`.
    """
    missing = {"row_id", "votes"} - set(rows.column_names)
    if missing:
        raise ValueError(f"An export of labels has the columns row_id and votes, here {sorted(missing)} are missing.")
    table = rows.with_format(None).select_columns(["row_id", "votes"])
    return [LabelEvent(row["row_id"], "label", **vote) for row in table for vote in row["votes"]]


def differing_row(dataset: datasets.Dataset, label_column: str, rows: Any, row_ids: Iterable[int]) -> int | None:
    """The first of the row ids whose inputs are not those of `rows`, in columns that both have; None if all are."""
    shared = [name for name in rows.column_names if name in dataset.column_names and name != label_column]
    shared = identifying(shared)
    ours = dataset.with_format(None).select_columns(shared)
    theirs = rows.with_format(None).select_columns(shared)
    pairs = zip(row_ids, theirs, strict=True)
    return next((row_id for row_id, row in pairs if repr(ours[row_id]) != repr(row)), None)  # NaN is as NaN


def class_names(rows: Any, label_column: str) -> list[str] | None:
    """Names of the classes of labels, also where these are lists of classes; None if they are none."""
    feature = rows.features.get(label_column)
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def named(label: Any, names: Sequence[str] | None) -> Any:
    """A label with names for the numbers of classes."""
    if names is None:
        return label
    return [named(part, names) for part in label] if isinstance(label, list) else names[label]


def with_labels(events: Sequence[LabelEvent], labels: Sequence[Any]) -> list[LabelEvent]:
    """The events with these labels."""
    return [replace(event, label=label) for event, label in zip(events, labels, strict=True)]
