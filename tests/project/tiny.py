"""A tiny BERT with random weights and a tokenizer of words, and texts that it can learn: nothing of it is loaded."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

CLASSES = ["sport", "politics"]
WORDS = {
    "sport": ["ball", "goal", "team", "match", "race", "coach"],
    "politics": ["vote", "law", "party", "state", "tax", "treaty"],
}
FILLERS = ["the", "a", "of", "in", "on", "day", "man", "news"]


def checkpoint(folder: Path) -> Path:
    """Save the model and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *WORDS["sport"], *WORDS["politics"]]
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of a few words, one or two of which tell the class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = [CLASSES[number] for number in rng.integers(0, 2, count)]
    return [
        " ".join(rng.permutation([*rng.choice(FILLERS, 3), *rng.choice(WORDS[label], rng.integers(1, 3))]))
        for label in labels
    ], labels


def write_csv(path: Path, columns: dict[str, Sequence[object]]) -> Path:
    """The columns as a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path
