"""The rows of a project: texts, and known classes where there are some, from a file or a saved dataset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Value

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}

LABEL = "label"
"""Column of known classes, whatever the file calls it."""


def rows_of(path: Path) -> Dataset:
    """All rows and columns; those of a CSV file are texts, however they look.

    Raises:
        FileNotFoundError: There is nothing at this path.
        ValueError: It cannot be read, or has no rows.
    """
    rows = datasets.load_from_disk(str(path)) if (path / "state.json").is_file() else _rows_of_file(path)
    if not len(rows):
        raise ValueError(f"{path} has no rows.")
    return rows


def texts(rows: Dataset, path: Path, text_column: str) -> Dataset:
    """The rows with their texts only.

    Raises:
        ValueError: There is no such column, it holds something else, or some rows have no text.
    """
    _check_column(rows, path, text_column)
    feature = rows.features[text_column]
    if not (isinstance(feature, Value) and "string" in feature.dtype):
        raise ValueError(f"{path}: the column {text_column} needs to hold texts, it holds {feature}.")
    rows = rows.select_columns([text_column])
    values = rows.with_format("arrow")[text_column][:]
    if values.null_count:
        missing = values.is_null().to_pylist().index(True)
        raise ValueError(f"{path}: row {missing} has no text in the column {text_column}.")
    return rows


def class_names(rows: Dataset, path: Path, label_column: str) -> list[str]:
    """The classes of a column: its own names, or all values that occur, numbers in their order, names in theirs.

    Raises:
        ValueError: There is no such column, or none of its kind.
    """
    _check_column(rows, path, label_column)
    feature = rows.features[label_column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    names = _names(rows, path, label_column)
    found = {name: value for name, value in zip(names, rows[label_column][:], strict=True) if name}
    return sorted(found, key=lambda name: (isinstance(found[name], str), found[name]))


def with_classes(
    rows: Dataset, path: Path, text_column: str, label_column: str, classes: Sequence[str], *, complete: bool = False
) -> Dataset:
    """Texts, and the known class of each as a `ClassLabel` in the column `label`, -1 where there is none.

    Args:
        rows: Of the file.
        path: Of the file, for errors.
        text_column: Column of the texts.
        label_column: Column of the classes, numbers or names.
        classes: Names.
        complete: Every row needs a class.

    Raises:
        ValueError: As for `texts` and `class_names`; a class that is none of these, or is missing.
    """
    _check_column(rows, path, label_column)
    number = {name: place for place, name in enumerate(classes)}
    numbers = []
    for row_id, name in enumerate(_names(rows, path, label_column)):
        if name not in number and (name or complete):
            came = f"the class {name!r}" if name else "no class"
            raise ValueError(f"{path}: row {row_id} has {came}. The classes are {', '.join(classes)}.")
        numbers.append(number.get(name or "", -1))
    return texts(rows, path, text_column).add_column(LABEL, numbers, feature=ClassLabel(names=list(classes)))


def _names(rows: Dataset, path: Path, label_column: str) -> list[str | None]:
    """The class of each row as a name, None where there is none."""
    feature = rows.features[label_column]
    values: list[Any] = rows[label_column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    if not isinstance(feature, Value):
        raise ValueError(f"{path}: the column {label_column} needs a class in each row, it holds {feature}.")
    return [None if value is None else str(value).strip() or None for value in values]


def _check_column(rows: Dataset, path: Path, column: str) -> None:
    if column not in rows.column_names:
        raise ValueError(f"{path} has no column {column}, only {', '.join(rows.column_names)}.")


def _rows_of_file(path: Path) -> Dataset:
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        splits = [part.name for part in sorted(path.iterdir()) if (part / "state.json").is_file()]
        one = f": take one of its splits, such as {path / splits[0]}" if splits else ""
        raise ValueError(f"{path} is not a dataset that save_to_disk wrote{one}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if reader is None:
        raise ValueError(f"{path} needs to end in one of {', '.join(READERS)}, which say how to read it.")
    try:
        options = _csv_options(path) if reader == "csv" else {}
        return datasets.load_dataset(reader, data_files=str(path), split="train", **options)
    except Exception as error:  # each reader has errors of its own
        raise ValueError(f"{path} cannot be read as {reader}: {_reason(error)}") from error


def _csv_options(path: Path) -> dict[str, Any]:
    """All columns as texts: else the text "NA" would be none, and the class "1" a number."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"it has several columns {', '.join(twice)}.")
    features = datasets.Features({name: Value("string") for name in names})
    return {"features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def _reason(error: BaseException) -> str:
    """What the reader said; `datasets` wraps it in an error that only says that there was one."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)
