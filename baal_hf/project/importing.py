"""Labels of a batch that came back, into the ledger: all of them, or none and an error that names the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.project.batch_files import BatchRow


@dataclass
class Imported:
    """What an import did.

    Attributes:
        new: Rows that this annotator had not labelled.
        changed: Rows whose label by this annotator was another one.
        already: Rows whose label was there.
        empty: Rows without a label, which were left alone.
    """

    new: list[BatchRow] = field(default_factory=list)
    changed: list[BatchRow] = field(default_factory=list)
    already: list[BatchRow] = field(default_factory=list)
    empty: list[BatchRow] = field(default_factory=list)


def import_labels(
    dataset: ActiveLearningDataset,
    rows: Sequence[BatchRow],
    path: Path,
    annotator: str,
    text_column: str,
    *,
    skip_empty: bool = False,
    relabel: bool = False,
) -> Imported:
    """Record the labels of a batch, with what chose each row.

    Rows that one model chose by one heuristic are one step.

    Args:
        dataset: Of the project.
        rows: Of the batch.
        path: Where they come from, for errors.
        annotator: Who gave the labels.
        text_column: Of the dataset: a text in the batch has to be that of its row, but for white space.
        skip_empty: Leave rows without a label alone, instead of raising.
        relabel: Put these labels in the place of other ones by this annotator, instead of raising.

    Raises:
        ValueError: An unknown row or class, another text, no label, or another label by this annotator. Nothing is
            recorded then.
        OSError: The ledger cannot be written; nothing is recorded then. The dataset has to be opened anew.
    """
    with dataset.ledger.writing():  # nobody labels between the check and the writing
        dataset.refresh()
        done = _sorted(dataset, rows, path, annotator, text_column, skip_empty, relabel)
        groups: dict[tuple[str | None, str | None, bool], list[BatchRow]] = {}
        for row in done.new:
            groups.setdefault((row.heuristic, row.model, row.score is None), []).append(row)
        for (heuristic, model, no_score), group in groups.items():
            dataset.annotate(
                [row.row_id for row in group],
                [row.label for row in group],
                annotator=annotator,
                heuristic=heuristic,
                scores=None if no_score else [row.score for row in group if row.score is not None],
                model_version=model,
            )
        if done.changed:
            dataset.relabel(
                [row.row_id for row in done.changed], [row.label for row in done.changed], annotator=annotator
            )
    return done


def _sorted(
    dataset: ActiveLearningDataset,
    rows: Sequence[BatchRow],
    path: Path,
    annotator: str,
    text_column: str,
    skip_empty: bool,
    relabel: bool,
) -> Imported:
    """The rows by what is to be done with them."""
    classes = list(dataset.labelled.features["label"].names)
    count = len(dataset.labelled_map)
    done = Imported()
    for row in rows:
        where = f"{path}, {row.place}"
        if not 0 <= row.row_id < count:
            raise ValueError(f"{where}: there is no row {row.row_id}, the project has rows 0 to {count - 1}.")
        if row.text is not None and row.text.split() != dataset.get_raw(row.row_id)[text_column].split():
            raise ValueError(
                f"{where}: this is not the text of row {row.row_id}. Does the file belong to this project?"
            )
        if row.label is None:
            if not skip_empty:
                raise ValueError(f"{where}: row {row.row_id} has no label. --skip-empty leaves such rows in the pool.")
            done.empty.append(row)
            continue
        if row.label not in classes:
            raise ValueError(f"{where}: there is no class {row.label!r}. The classes are {', '.join(classes)}.")
        said = [classes[vote.label] for vote in dataset.votes(row.row_id) if vote.annotator == annotator]
        if said and said != [row.label]:
            if not relabel:
                raise ValueError(
                    f"{where}: {annotator} has labelled row {row.row_id} {said[0]!r} already, here it is "
                    f"{row.label!r}. --relabel puts it in the other's place."
                )
            done.changed.append(row)
        else:
            (done.already if said else done.new).append(row)
    return done
