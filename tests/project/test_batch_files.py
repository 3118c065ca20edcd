"""Batches as files: what is written is what is read, and what is wrong with a file is named with its line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from baal_hf.project.batch_files import BatchRow, content, rows

TEXTS = ["plain", 'two\nlines, and "quotes"', "ümläut \u2028 separator", "=SUM(A1)", "carriage\rreturn\r\n", ""]
COLUMNS = {
    "row_id": [4, 0, 2, 9, 7, 1],
    "text": TEXTS,
    "score": [0.1 + 0.2, 1e-9, 0.0, -1.5, 3.0, 12.25],
    "heuristic": ["bald"] * 6,
    "model": ["0001"] * 6,
    "label": ["sport", "", "politics", "", "sport", "sport"],
}


def file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    """A batch comes back as it was, whatever is in the texts, and an empty label as none."""
    path = file(tmp_path, f"batch{suffix}", content(Path(f"batch{suffix}"), COLUMNS))
    for row, *values in zip(rows(path, "text"), *COLUMNS.values(), strict=True):
        got = [row.row_id, row.text, row.score, row.heuristic, row.model, row.label or ""]
        assert got == values


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_same_columns_same_bytes(suffix: str) -> None:
    """The same columns are the same file."""
    assert content(Path(f"a{suffix}"), COLUMNS) == content(Path(f"b{suffix}"), COLUMNS)


def test_lists_are_json_in_csv() -> None:
    """A value that is a list is JSON in a CSV file, and itself in JSON Lines and Parquet."""
    columns = {"votes": [[{"annotator": "anna", "label": "ü"}]]}
    (cell,) = list(csv.DictReader(io.StringIO(content(Path("a.csv"), columns).decode())))
    assert json.loads(cell["votes"]) == json.loads(content(Path("a.jsonl"), columns))["votes"] == columns["votes"][0]
    table = pq.read_table(pa.BufferReader(content(Path("a.parquet"), columns)))
    assert table["votes"].to_pylist() == columns["votes"]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark(tmp_path: Path, bom: bytes) -> None:
    """A file with a byte order mark, as spreadsheets write it, is read as one without."""
    path = file(tmp_path, "a.csv", bom + "row_id,label\r\n1,spört\r\n".encode())
    assert rows(path, "text") == [BatchRow("line 2", 1, "spört")]
    path = file(tmp_path, "a.jsonl", bom + b'{"row_id": 1, "label": "a"}')
    assert rows(path, "text") == [BatchRow("line 1", 1, "a")]


def test_lines_of_quoted_fields(tmp_path: Path) -> None:
    """A row of a CSV file is named by its first line, also behind fields of several lines and empty lines."""
    path = file(tmp_path, "a.csv", 'row_id,text,label\n1,"a\nb\nc",x\n\n2,d,y\n3,"e\r\nf",z\n4,g,x\n')
    assert [row.place for row in rows(path, "text")] == ["line 2", "line 6", "line 7", "line 9"]


def test_labels_are_names(tmp_path: Path) -> None:
    """A label is the name of a class, white space around it is dropped, and a number stands for its digits."""
    path = file(tmp_path, "a.jsonl", '{"row_id": "7", "label": " sport "}\n\n{"row_id": 8, "label": 1}\n')
    assert [(row.row_id, row.label) for row in rows(path, "text")] == [(7, "sport"), (8, "1")]


def test_long_texts(tmp_path: Path) -> None:
    """A text may be longer than csv's limit, which stays what it was."""
    limit = csv.field_size_limit()
    path = file(tmp_path, "a.csv", f"row_id,text,label\n1,{'x' * (limit + 1)},sport\n")
    assert len(rows(path, "text")[0].text or "") == limit + 1
    assert csv.field_size_limit() == limit


GOOD = '{"row_id": 1, "label": "a"}\n'
BAD = {
    "no label column": ("a.csv", "row_id,text\n1,x\n", "line 1: the column label is missing, there are row_id, text"),
    "no row_id column": ("a.csv", "id;label\n1;x\n", "line 1: the column row_id and label is missing"),
    "a column twice": ("a.csv", "row_id,label,label\n1,x,y\n", "line 1: the column label is there twice"),
    "half a row": ("a.csv", "row_id,text,label\n1,x,a\n2,y\n", "line 3: there are 2 fields for 3 columns"),
    "too many fields": ("a.csv", "row_id,text,label\n1,x,y,a\n", "line 2: there are 4 fields for 3 columns"),
    "an open quote": ("a.csv", 'row_id,text,label\n1,"x\ny",a\n2,"y,a\n', "line 4: this is not a whole row of CSV"),
    "latin-1": ("a.csv", "row_id,label\n1,a\n2,ä\n".encode("latin-1"), "line 3: this is not UTF-8 (byte 0xe4)"),
    "utf-16": ("a.csv", "row_id,label\n1,a\n".encode("utf-16"), "line 1: this is not UTF-8"),
    "no number": ("a.csv", "row_id,label\nx,a\n", "line 2: row_id needs to be a whole number, got 'x'"),
    "a score": ("a.csv", "row_id,score,label\n1,nan,a\n", "line 2: score needs to be a number, got 'nan'"),
    "a row twice": ("a.csv", "row_id,label\n1,a\n2,a\n1,b\n", "line 4: row 1 is there already, on line 2"),
    "no rows": ("a.csv", "row_id,label\n", "a.csv has no rows"),
    "nothing": ("a.csv", "", "a.csv has no rows"),
    "half a line": ("a.jsonl", GOOD + '{"row_id": 2, "la', "line 2: this is not a whole line of JSON"),
    "no object": ("a.jsonl", GOOD + "\n[1, 2]\n", "line 3: each line needs to be an object"),
    "no label": ("a.jsonl", GOOD + '{"row_id": 2}', "line 2: the column label is missing, there are row_id"),
    "half a number": ("a.jsonl", '{"row_id": 1.5, "label": "a"}', "line 1: row_id needs to be a whole number, got 1.5"),
    "a bool": ("a.jsonl", '{"row_id": true, "label": "a"}', "line 1: row_id needs to be a whole number, got True"),
    "null": ("a.jsonl", '{"row_id": null, "label": "a"}', "line 1: row_id needs to be a whole number, got None"),
    "json in latin-1": (
        "a.jsonl",
        (GOOD + '{"row_id": 2, "label": "ä"}').encode("latin-1"),
        "line 2: this is not UTF-8",
    ),
    "half a parquet file": ("a.parquet", content(Path("a.parquet"), COLUMNS)[:-20], "is not a whole Parquet file"),
    "parquet without label": ("a.parquet", content(Path("a.parquet"), {"row_id": [1]}), "the column label is missing"),
    "parquet, a row twice": (
        "a.parquet",
        content(Path("a.parquet"), {"row_id": [1, 1], "label": ["a", "a"]}),
        "row 2: row 1 is there already, on row 1",
    ),
    "another kind of file": ("a.xlsx", b"", "a.xlsx needs to end in one of .jsonl, .csv, .parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    """What is wrong with a file is told with its line."""
    path = file(tmp_path, *BAD[name][:2])
    with pytest.raises(ValueError) as caught:
        rows(path, "text")
    assert BAD[name][2] in str(caught.value)
    assert str(path) in str(caught.value)
