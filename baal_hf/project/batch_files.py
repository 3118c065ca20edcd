"""Batches of rows that people label: files that are written for them, and read when they come back.

Reading knows a file, not a project: what is wrong with the file itself is an error here that names the line.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".jsonl", ".csv", ".parquet")

Columns = Mapping[str, Sequence[Any]]
Record = tuple[str, dict[str, Any]]
"""Where something stands, such as "line 3", and its fields."""


@dataclass(frozen=True)
class BatchRow:
    """A row of a batch that came back.

    Attributes:
        place: Where it stands, such as "line 3"; a row of a CSV file that has several lines stands on the first.
        row_id: Of the project's row.
        label: Name of a class; None where the field is empty.
        text: None where the file has no such column.
        heuristic: What chose it, if that is known.
        score: The heuristic's score, if known.
        model: That gave the score, if known.
    """

    place: str
    row_id: int
    label: str | None
    text: str | None = None
    heuristic: str | None = None
    score: float | None = None
    model: str | None = None


def check_suffix(path: Path) -> None:
    """Refuse a file that does not say what it is.

    Raises:
        ValueError: Its name ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} needs to end in one of {', '.join(SUFFIXES)}, which say what is in it.")


def content(path: Path, columns: Columns) -> bytes:
    """What a file of this name has to hold for these columns, the same for the same columns.

    Args:
        path: Its suffix says which kind.
        columns: Of equal length; values that are lists are JSON in a CSV file.

    Raises:
        ValueError: Its name ends otherwise.
    """
    check_suffix(path)
    return {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()](columns)


def rows(path: Path, text_column: str) -> list[BatchRow]:
    """The rows of a batch.

    Args:
        path: JSON Lines, CSV or Parquet, in UTF-8, with the columns `row_id` and `label`.
        text_column: Which column has the texts, if any.

    Raises:
        ValueError: The file cannot be read, lacks a column, or has a row twice; the message names the line.
        OSError: The file cannot be opened.
    """
    check_suffix(path)
    records = {".jsonl": _json_records, ".csv": _csv_records, ".parquet": _parquet_records}[path.suffix.lower()]
    places: dict[int, str] = {}
    found = []
    for place, fields in records(path):
        row = _batch_row(path, place, fields, text_column)
        if row.row_id in places:
            raise ValueError(f"{path}, {place}: row {row.row_id} is there already, on {places[row.row_id]}.")
        places[row.row_id] = place
        found.append(row)
    if not found:
        raise ValueError(f"{path} has no rows.")
    return found


def _batch_row(path: Path, place: str, fields: dict[str, Any], text_column: str) -> BatchRow:
    def text_of(name: str) -> str | None:
        value = fields.get(name)
        return None if value is None else str(value).strip() or None

    where = f"{path}, {place}"
    _check_columns(where, fields)
    text = fields.get(text_column)
    return BatchRow(
        place,
        _number(where, "row_id", fields["row_id"], int),
        text_of("label"),
        None if text is None else str(text),
        text_of("heuristic"),
        None if text_of("score") is None else _number(where, "score", fields["score"], float),
        text_of("model"),
    )


def _number(where: str, name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    try:
        number = kind(value)
        if isinstance(value, bool) or not math.isfinite(number) or (isinstance(value, float) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        needed = "a whole number" if kind is int else "a number"
        raise ValueError(f"{where}: {name} needs to be {needed}, got {value!r}.") from None
    return number


def _check_columns(where: str, names: Iterator[str] | Mapping[str, Any] | Sequence[str]) -> None:
    names = list(names)
    missing = [name for name in ("row_id", "label") if name not in names]
    if missing:
        raise ValueError(f"{where}: the column {' and '.join(missing)} is missing, there are {', '.join(names)}.")
    for name in ("row_id", "label"):
        if names.count(name) > 1:
            raise ValueError(f"{where}: the column {name} is there twice.")


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: this is not UTF-8 (byte {raw[error.start]:#04x}). Save the file as UTF-8."
        ) from None


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):  # splitlines() would cut within texts
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: this is not a whole line of JSON: {error}.") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}, line {number}: each line needs to be an object {{...}}, got {line[:40]!r}.")
        yield f"line {number}", fields


def _csv_records(path: Path) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # a text may be as long as it is; the limit is the whole process's
    begin = 1
    try:
        header: list[str] | None = None
        for values in reader:
            here, begin = begin, reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = [name.strip() for name in values]
                _check_columns(f"{path}, line {here}", header)
            elif len(values) != len(header):
                raise ValueError(
                    f"{path}, line {here}: there are {len(values)} fields for {len(header)} columns. Is the row whole?"
                )
            else:
                yield f"line {here}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {begin}: this is not a whole row of CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from None
    _check_columns(str(path), table.column_names)
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", fields


def _records(columns: Columns) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _json_lines(columns: Columns) -> bytes:
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in _records(columns))
    return "".join(lines).encode()


def _csv(columns: Columns) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for record in _records(columns):
        writer.writerow(
            json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in record.values()
        )
    return file.getvalue().encode()


def _parquet(columns: Columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), sink)
    return bytes(sink.getvalue())
