"""The labels of a project as a table that leaves it."""

from __future__ import annotations

from typing import Any

from baal_hf.dataset import ActiveLearningDataset


def exported(dataset: ActiveLearningDataset, text_column: str) -> dict[str, list[Any]]:
    """The labelled rows, in order of row id.

    Returns:
        Columns `row_id`, the text, `label` (name of the current one) and `votes`: what each annotator says of the row
        now, with the name of the label, the step, the time (seconds since 1970, UTC) and what chose the row.
    """
    rows = dataset.to_dataset()
    names = rows.features["label"].names
    return {
        "row_id": list(rows["row_id"]),
        text_column: list(rows[text_column]),
        "label": [names[label] for label in rows["label"]],
        "votes": [[{**vote, "label": names[vote["label"]]} for vote in votes] for votes in rows["votes"]],
    }
