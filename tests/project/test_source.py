"""Rows of a project: every kind of file gives the same texts and classes, and errors say which row."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from baal_hf.project import source
from tests.project.tiny import write_csv

TEXTS = ["NA", "1", 'ü, "x"\nnull', "last"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "saved"])
def test_kinds(tmp_path: Path, kind: str) -> None:
    """CSV, JSON Lines, Parquet and saved datasets give the same rows: texts are texts, and "NA" and "1" are, too."""
    path = tmp_path / f"rows.{kind}"
    rows = Dataset.from_dict({"text": TEXTS, "stars": ["2", "10", None, "2"]})
    {
        "csv": lambda: write_csv(path, {"text": TEXTS, "stars": [2, 10, None, 2]}),
        "jsonl": lambda: rows.to_json(path, force_ascii=False),
        "parquet": lambda: rows.to_parquet(path),
        "saved": lambda: rows.save_to_disk(path),
    }[kind]()
    found = source.rows_of(path)
    assert list(source.texts(found, path, "text")["text"]) == TEXTS
    assert source.class_names(found, path, "stars") == ["10", "2"]
    known = source.with_classes(found, path, "text", "stars", ["2", "10"])
    assert known["label"][:] == [0, 1, -1, 0] and known.column_names == ["text", "label"]


def test_numbers_in_their_order(tmp_path: Path) -> None:
    """Classes that are numbers come in the order of numbers, a ClassLabel's in its own."""
    path = tmp_path / "rows.parquet"
    rows = Dataset.from_dict({"text": TEXTS, "stars": [2, 10, 2, 10], "kind": [1, 0, -1, 1]})
    rows = rows.cast_column("kind", ClassLabel(names=["z", "a"]))
    assert source.class_names(rows, path, "stars") == ["2", "10"]
    assert source.class_names(rows, path, "kind") == ["z", "a"]
    assert source.with_classes(rows, path, "text", "kind", ["a", "z"])["label"][:] == [0, 1, -1, 0]


def test_byte_order_mark(tmp_path: Path) -> None:
    """The first column of a CSV file with a byte order mark has its name."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbftext\nx\n")
    assert source.rows_of(path).column_names == ["text"]


def test_errors(tmp_path: Path) -> None:
    """What cannot be used is told in a sentence."""
    rows = Dataset.from_dict({"text": ["a", None], "stars": [1, 2], "label": ["x", None]})
    path = tmp_path / "rows.csv"
    with pytest.raises(FileNotFoundError, match=r"There is no file .*rows\.csv"):
        source.rows_of(path)
    with pytest.raises(ValueError, match="row 1 has no text in the column text"):
        source.texts(rows, path, "text")
    with pytest.raises(ValueError, match="needs to hold texts"):
        source.texts(rows, path, "stars")
    with pytest.raises(ValueError, match="has no column review, only text, stars, label"):
        source.texts(rows, path, "review")
    with pytest.raises(ValueError, match=r"row 1 has the class '2'\. The classes are 1, 3"):
        source.with_classes(rows, path, "text", "stars", ["1", "3"])
    with pytest.raises(ValueError, match="row 1 has no class"):
        source.with_classes(rows, path, "text", "label", ["x", "y"], complete=True)
    write_csv(path, {"text": []})
    with pytest.raises(ValueError, match=r"has no rows|cannot be read"):
        source.rows_of(path)
    path.write_text("text,text\na,b\n")
    with pytest.raises(ValueError, match="several columns text"):
        source.rows_of(path)
    path.write_bytes("text\nä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"cannot be read as csv: .*utf-8"):
        source.rows_of(path)
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(ValueError, match="needs to end in one of"):
        source.rows_of(tmp_path / "rows.txt")


def test_splits(tmp_path: Path) -> None:
    """Of a saved dataset with splits one is to be chosen."""
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"take one of its splits, such as .*train"):
        source.rows_of(tmp_path / "saved")
