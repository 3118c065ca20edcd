"""Labels leave as a table of their own with where they came from, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from baal_hf import ActiveLearningDataset

ANIMALS = ClassLabel(names=["ant", "bee", "cat"])


def table(size: int = 8, prefix: str = "text") -> Dataset:
    """Texts and classes."""
    features = Features({"text": Value("string"), "label": ANIMALS})
    return Dataset.from_dict(
        {"text": [f"{prefix} {i}" for i in range(size)], "label": [i % 3 for i in range(size)]}, features=features
    )


def labelled() -> ActiveLearningDataset:
    """Some rows, labelled by nobody in particular, by anna, and by anna and ben."""
    dataset = ActiveLearningDataset(table(), consensus="majority")
    dataset.annotate([5, 1], ["cat", "ant"], heuristic="bald", scores=[0.5, 0.25], probabilities=[1, 0.1])
    dataset.annotate([2, 7], ["bee", "bee"], annotator="anna", model_version="m1")
    dataset.annotate([7], ["cat"], annotator="ben")
    dataset.skip([0])
    return dataset


def test_what_leaves() -> None:
    """The table has the labelled rows with inputs, current label, row id, and what each annotator says."""
    exported = labelled().to_dataset()
    assert exported.column_names == ["text", "row_id", "label", "votes"]
    assert exported["row_id"][:] == [1, 2, 5, 7]
    assert exported["text"][:] == ["text 1", "text 2", "text 5", "text 7"]
    assert exported.features["label"].int2str(exported["label"][:]) == ["ant", "bee", "cat", "cat"]
    votes = exported["votes"][:]
    assert [[vote["annotator"] for vote in row] for row in votes] == [[None], ["anna"], [None], ["anna", "ben"]]
    assert votes[2][0]["heuristic"] == "bald" and votes[2][0]["score"] == 0.5 and votes[2][0]["probability"] == 1
    assert votes[1][0]["model_version"] == "m1" and votes[3][1]["step"] == 3


@pytest.mark.parametrize("way", ["dataset", "parquet"])
def test_what_comes_back(way: str, tmp_path: Path) -> None:
    """Labels, steps, annotators and provenance come back, into memory or a ledger file; each annotator can undo."""
    dataset = labelled()
    arguments = {"consensus": "majority", "ledger": tmp_path / "labels.db"}
    if way == "dataset":
        back = ActiveLearningDataset.from_dataset(dataset.to_dataset(), table(), **arguments)
    else:
        dataset.to_parquet(tmp_path / "labels.parquet")
        back = ActiveLearningDataset.from_parquet(tmp_path / "labels.parquet", table(), **arguments)
    assert back.labelled[:] == dataset.labelled[:]
    assert back.labelled_map.tolist() == dataset.labelled_map.tolist()

    def said(of: ActiveLearningDataset) -> list:
        return [[(v.annotator, v.label, v.step, v.time, v.score) for v in of.votes(row_id)] for row_id in range(8)]

    assert said(back) == said(dataset)
    assert ActiveLearningDataset(table(), **arguments).labels == back.labels
    assert [sorted(back.undo()) for _ in range(3)] == [[7], [2, 7], [1, 5]]  # what one annotator said, each time
    assert back.n_labelled == 0


def test_lists_of_classes() -> None:
    """Labels that are lists of classes leave and come back."""
    source = table().remove_columns("label")
    feature = List(ANIMALS)
    dataset = ActiveLearningDataset(source, label_feature=feature)
    dataset.annotate([3, 0], [["ant", "cat"], []])
    exported = dataset.to_dataset()
    assert exported["label"][:] == [[], [0, 2]]
    back = ActiveLearningDataset.from_dataset(exported, source, label_feature=feature)
    assert back.labels == [[], [0, 2]]


def test_classes_go_by_their_names() -> None:
    """Labels come back to classes of the same name, whatever their order; those that were added are added again."""
    dataset = labelled()
    dataset.add_classes(["dog"])
    dataset.annotate([4], ["dog"])
    exported = dataset.to_dataset()
    for feature in (None, ClassLabel(names=["dog", "cat", "bee", "ant"])):
        source = table() if feature is None else table().remove_columns("label")
        back = ActiveLearningDataset.from_dataset(exported, source, label_feature=feature)
        named = back.labelled.features["label"].int2str(back.labels)
        assert named == dataset.labelled.features["label"].int2str(dataset.labels)
    assert "dog" in named


def test_inputs_that_are_not_compared() -> None:
    """Rows are known again by their text: NaN is as NaN, and a tokenizer's columns may be another's."""
    source = table().add_column("input_ids", [[i] for i in range(8)]).add_column("x", [float("nan")] * 8)
    dataset = ActiveLearningDataset(source)
    dataset.label([1, 2])
    other = source.remove_columns("input_ids").add_column("input_ids", [[i, i] for i in range(8)])
    assert ActiveLearningDataset.from_dataset(dataset.to_dataset(), other).labels == dataset.labels


def test_all_steps_leave() -> None:
    """Rows that `last_active_steps` hides leave too."""
    dataset = ActiveLearningDataset(table(), last_active_steps=1)
    dataset.annotate([1], [0])
    dataset.annotate([2], [0])
    assert dataset.to_dataset()["row_id"][:] == [1, 2]


def test_of_another_dataset(tmp_path: Path) -> None:
    """Labels of other rows, tables that are no export, and ledgers with events are refused, and nothing is written."""
    exported = labelled().to_dataset()
    with pytest.raises(ValueError, match="its row 1 is another"):
        ActiveLearningDataset.from_dataset(exported, table(prefix="document"))
    with pytest.raises(ValueError, match="rows 0 to 4, got 5"):
        ActiveLearningDataset.from_dataset(exported, table(5))
    with pytest.raises(ValueError, match=r"\['row_id', 'votes'\] are missing"):
        ActiveLearningDataset.from_dataset(table(), table())
    first = ActiveLearningDataset(table(), ledger=tmp_path / "labels.db")
    first.label(0, "cat")
    with pytest.raises(ValueError, match="come into a new ledger, this one has 1 events"):
        ActiveLearningDataset.from_dataset(exported, table(), ledger=tmp_path / "labels.db")
    assert len(first.ledger) == 1


def test_names_that_are_taken() -> None:
    """A column called row_id or votes is refused; so are rows that are no table."""
    dataset = ActiveLearningDataset(table().rename_column("text", "votes"))
    dataset.label(0)
    with pytest.raises(ValueError, match="'votes' for itself"):
        dataset.to_dataset()
    plain = ActiveLearningDataset([{"x": 1, "label": 0}])
    plain.label(0)
    with pytest.raises(TypeError, match=r"datasets\.Dataset"):
        plain.to_dataset()


def test_formats_and_selections() -> None:
    """Rows of a shuffled, formatted dataset leave with the ids that they have in it."""
    source = table().shuffle(seed=1).with_format("torch")
    dataset = ActiveLearningDataset(source)
    dataset.annotate([6, 0], ["cat", "ant"])
    exported = dataset.to_dataset()
    assert exported["text"][:] == [source[0]["text"], source[6]["text"]]
    assert isinstance(exported[0]["row_id"], int)
    back = ActiveLearningDataset.from_dataset(exported, source)
    assert back.labels == [0, 2]
    assert isinstance(exported, datasets.Dataset)
