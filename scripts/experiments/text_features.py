"""Texts as what a frozen sentence encoder makes of them, with their classes: what a small network is trained on."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, TrainingArguments

from baal_hf import BaalTransformersTrainer

sys.path.append(str(Path(__file__).parents[1]))  # text_data lies beside the scripts that are no experiments
from text_data import packaged_minilm, train_and_test

TOKENS = 64  # of a text that are read


class TextFeatures(NamedTuple):
    """Features are all-MiniLM-L6-v2's last hidden states, averaged over tokens; mean 0, deviation 1 in train."""

    train: Tensor  # float32 [N, d]
    train_classes: Tensor  # int64 [N]
    test: Tensor  # float32 [M, d]
    test_classes: Tensor  # int64 [M]

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return int(self.train_classes.max()) + 1


def text_features(source: str, kept_in: Path, rows: int | None = None) -> TextFeatures:
    """The features of a source's texts.

    Args:
        source: `bbc-news`, which installs with the extra `demo`; a folder with `train.parquet` and `test.parquet`, of
            columns `text` and `label`; a file; or a data set on the hub.
        kept_in: Folder where features are kept for the next time: ten thousand texts take minutes.
        rows: Only so many random rows to train and to test on.

    Raises:
        SystemExit: There are no such texts, with what is missing.
    """
    files = [Path(source) / f"{split}.parquet" for split in ("train", "test")]
    train, test = (str(file) for file in files) if Path(source).is_dir() else (source, None)
    splits = [_of(part, rows) for part in train_and_test(train, test, "text", "label", seed=0)]
    told = json.dumps([TOKENS, *([split["text"][:], split["label"][:]] for split in splits)])
    path = kept_in / f"features-{hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}.npz"
    if not path.is_file():
        kept_in.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, *_features(splits))
        part.replace(path)
    with np.load(path) as kept:
        features = [torch.from_numpy(kept[name]) for name in kept.files]
    mean, std = features[0].mean(0), features[0].std(0)
    train_classes, test_classes = (torch.tensor(split["label"][:]) for split in splits)
    return TextFeatures((features[0] - mean) / std, train_classes, (features[1] - mean) / std, test_classes)


def _of(split: datasets.Dataset, rows: int | None) -> datasets.Dataset:
    return split if rows is None or rows >= len(split) else split.shuffle(seed=0).select(range(rows))


def _features(splits: list[datasets.Dataset]) -> list[np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(packaged_minilm())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to="none", per_device_eval_batch_size=64)
        model = AutoModel.from_pretrained(packaged_minilm())
        trainer = BaalTransformersTrainer(model, arguments, processing_class=tokenizer)
        return [
            trainer.predict_features(
                split.map(lambda row: tokenizer(row["text"], truncation=True, max_length=TOKENS)).select_columns(
                    ["input_ids", "attention_mask"]
                ),
                "mean",
            )
            for split in splits
        ]
