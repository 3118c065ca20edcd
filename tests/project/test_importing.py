"""Labels of batches go into the ledger with what chose the rows: all of them, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset

from baal_hf import ActiveLearningDataset
from baal_hf.project.batch_files import BatchRow
from baal_hf.project.importing import Imported, import_labels

FILE = Path("batch.csv")


@pytest.fixture
def dataset(tmp_path: Path) -> ActiveLearningDataset:
    return ActiveLearningDataset(
        Dataset.from_dict({"text": [f"text {row_id}" for row_id in range(6)]}),
        label_feature=ClassLabel(names=["sport", "politics"]),
        ledger=tmp_path / "labels.db",
    )


def batch(*labels: str | None, **fields: str | float) -> list[BatchRow]:
    return [BatchRow(f"line {number + 2}", number, label, **fields) for number, label in enumerate(labels)]


def take(dataset: ActiveLearningDataset, rows: list[BatchRow], annotator: str = "anna", **options: bool) -> Imported:
    return import_labels(dataset, rows, FILE, annotator, "text", **options)


def test_labels_and_provenance(dataset: ActiveLearningDataset) -> None:
    """An import is one step of labels by name, with annotator, heuristic, score and model."""
    take(dataset, batch("sport", "politics", heuristic="bald", score=0.5, model="0001"))
    assert dataset.labels == [0, 1] and dataset.current_al_step == 1
    for event in dataset.ledger:
        said = (event.annotator, event.heuristic, event.score, event.model_version, event.operation)
        assert said == ("anna", "bald", 0.5, "0001", 1)


def test_again_is_harmless(dataset: ActiveLearningDataset) -> None:
    """The same import again writes nothing and says how many labels were there."""
    take(dataset, batch("sport", "politics"))
    done = take(dataset, batch("sport", "politics", "sport"))
    assert (len(done.already), len(done.new), len(dataset.ledger)) == (2, 1, 3)
    done = take(dataset, batch("sport", "politics", "sport"))
    assert (len(done.already), len(done.new), len(dataset.ledger)) == (3, 0, 3)


def test_two_annotators(dataset: ActiveLearningDataset) -> None:
    """Another annotator may give other labels to the same rows."""
    take(dataset, batch("sport", "politics"))
    take(dataset, batch("politics", "politics"), annotator="ben")
    assert [vote.annotator for vote in dataset.votes(0)] == ["anna", "ben"] and dataset.labels == [1, 1]


def test_batches_in_one_file(dataset: ActiveLearningDataset) -> None:
    """Rows that different models or heuristics chose keep what chose them, with or without a score."""
    rows = [
        BatchRow("line 2", 0, "sport", heuristic="bald", score=0.25, model="0001"),
        BatchRow("line 3", 1, "sport", heuristic="random"),
        BatchRow("line 4", 2, "sport", heuristic="bald", score=0.5, model="0001"),
    ]
    take(dataset, rows)
    events = {event.row_id: (event.heuristic, event.score, event.model_version) for event in dataset.ledger}
    assert events == {0: ("bald", 0.25, "0001"), 1: ("random", None, None), 2: ("bald", 0.5, "0001")}


def test_empty_labels(dataset: ActiveLearningDataset) -> None:
    """Rows without a label stay in the pool if that is asked for."""
    done = take(dataset, batch("sport", None), skip_empty=True)
    assert len(done.empty) == 1 and dataset.labelled_ids.tolist() == [0] and 1 in dataset.pool_ids


def test_second_thoughts(dataset: ActiveLearningDataset) -> None:
    """Other labels by the same annotator take the place of the old ones if that is asked for, once."""
    take(dataset, batch("sport", "politics"))
    done = take(dataset, batch("politics", "politics"), relabel=True)
    assert (len(done.changed), len(done.already)) == (1, 1) and dataset.labels == [1, 1]
    assert len(take(dataset, batch("politics", "politics"), relabel=True).changed) == 0
    assert len(dataset.ledger) == 3


BAD = {
    "an unknown class": (BatchRow("line 3", 1, "art"), "there is no class 'art'. The classes are sport, politics"),
    "another case": (BatchRow("line 3", 1, "Sport"), "there is no class 'Sport'"),
    "an unknown row": (BatchRow("line 3", 6, "sport"), "there is no row 6, the project has rows 0 to 5"),
    "a negative row": (BatchRow("line 3", -1, "sport"), "there is no row -1"),
    "an empty label": (BatchRow("line 3", 1, None), "row 1 has no label"),
    "another text": (BatchRow("line 3", 1, "sport", text="text 2"), "this is not the text of row 1"),
    "another label": (BatchRow("line 3", 5, "sport"), "anna has labelled row 5 'politics' already, here it is 'sport'"),
}


@pytest.mark.parametrize("name", BAD)
def test_all_or_nothing(dataset: ActiveLearningDataset, name: str) -> None:
    """One row that cannot be taken in, and none is; the error names its line."""
    dataset.annotate([5], ["politics"], annotator="anna")
    row, message = BAD[name]
    with pytest.raises(ValueError, match=r"batch\.csv, line 3: ") as caught:
        take(dataset, [BatchRow("line 2", 0, "sport"), row, BatchRow("line 4", 2, "sport")])
    assert message in str(caught.value)
    assert len(dataset.ledger) == 1


def test_texts_but_for_white_space(dataset: ActiveLearningDataset) -> None:
    """A spreadsheet may change the white space of a text, not the text."""
    take(dataset, [BatchRow("line 2", 1, "sport", text=" text\r\n1")])
    assert dataset.labels == [0]


def test_sees_what_others_wrote(dataset: ActiveLearningDataset, tmp_path: Path) -> None:
    """What another process has imported since the ledger was opened is there already."""
    other = ActiveLearningDataset(
        Dataset.from_dict({"text": [f"text {row_id}" for row_id in range(6)]}),
        label_feature=ClassLabel(names=["sport", "politics"]),
        ledger=tmp_path / "labels.db",
    )
    take(other, batch("sport", "politics"))
    assert len(take(dataset, batch("sport", "politics")).already) == 2
    assert len(dataset.ledger) == 2
