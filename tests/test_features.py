"""predict_features: the representation before the head, of each row once, in order, in one deterministic pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from baal_hf import BaalTransformersTrainer, MCDropout
from baal_hf.features import pooled, representation
from tests.posterior.families import TASKS, build, inputs
from tests.posterior.family_settings import UNBUILT

NAMES = ["pooled", "cls", "mean"]
BERT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 36,
    "num_labels": 3,
}
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}


def padded(features: list[dict[str, Any]], side: str = "right") -> dict[str, Tensor]:
    """A batch of token ids, padded with 0; images as they are."""
    if "pixel_values" in features[0]:
        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}
    longest = max(len(row["input_ids"]) for row in features)
    ids = torch.zeros(len(features), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(features):
        size = len(row["input_ids"])
        places = slice(0, size) if side == "right" else slice(longest - size, longest)
        ids[i, places] = torch.as_tensor(row["input_ids"])
        mask[i, places] = 1
    return {"input_ids": ids, "attention_mask": mask}


def padded_left(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of token ids, padded on the left."""
    return padded(features, side="left")


def make(model: nn.Module, tmp_path: Path, collate: Any = padded, **settings: Any) -> BaalTransformersTrainer:
    """A trainer on the CPU with batches of 4."""
    posterior = settings.pop("posterior", None)
    usual = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(tmp_path), **{**usual, "per_device_eval_batch_size": 4, **settings})
    return BaalTransformersTrainer(model, arguments, data_collator=collate, posterior=posterior)


def texts(size: int = 9) -> Dataset:
    """Rows of 2 to 8 tokens, of which the last is 2, as BART and T5 ask for."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 8, size)
    return Dataset.from_dict({"input_ids": [[*random.integers(5, 90, length).tolist(), 2] for length in lengths]})


def one_by_one(rows: Sequence[Any], answer: Callable[[dict[str, Tensor]], Tensor]) -> np.ndarray:
    """What `answer` makes of each row alone, without padding."""
    with torch.no_grad():
        return torch.cat([answer(padded([row])) for row in rows]).numpy()


def bert(**settings: Any) -> PreTrainedModel:
    """A tiny BERT with dropout."""
    set_seed(0)
    return BertForSequenceClassification(BertConfig(**{**BERT, **settings})).eval()


def near(features: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding, at the size of the values."""
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_eval_batch_size": 1},
        {"per_device_eval_batch_size": 100},
        {"per_device_eval_batch_size": 5, "dataloader_drop_last": True, "dataloader_num_workers": 2},
    ],
)
def test_each_row_once_in_order(
    model: PreTrainedModel, rows: Dataset, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    """Features of MiniLM are those written by hand for each row alone, in any order, whatever the batches."""
    trainer = make(model, tmp_path, **settings)

    def by_hand(batch: dict[str, Tensor]) -> Tensor:
        hidden = model.bert.encoder(model.bert.embeddings(batch["input_ids"])).last_hidden_state  # [1, S, d]
        dense = model.bert.pooler.dense
        return {"pooled": torch.tanh(dense(hidden[:, 0])), "cls": hidden[:, 0], "mean": hidden.mean(1)}[name]

    expected = one_by_one(rows, by_hand)
    assert expected.shape == (23, 384)
    near(trainer.predict_features(rows, name), expected)
    near(trainer.predict_features(rows.select([4, 2, 9]), name), expected[[4, 2, 9]])


def test_pooled_is_the_default(model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
    """Unless told otherwise, features are what the classifier receives."""
    trainer = make(model, tmp_path)
    np.testing.assert_array_equal(trainer.predict_features(rows), trainer.predict_features(rows, "pooled"))


@pytest.mark.parametrize("labels", [-1, None])
def test_labels_are_not_looked_at(model: PreTrainedModel, rows: Dataset, tmp_path: Path, labels: int | None) -> None:
    """Rows whose label is −1, None or absent have the features of any others."""
    trainer = make(model, tmp_path)
    bare = rows.remove_columns("label")
    expected = trainer.predict_features(rows)
    for unlabelled in (bare, bare.add_column("label", [labels] * len(rows))):
        np.testing.assert_array_equal(trainer.predict_features(unlabelled), expected)


# What the head's last linear layer is called, and what it receives, of the last hidden state [1, S, d] of a row alone.
HEADS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor] | None]] = {
    "distilbert": ("classifier", lambda model, hidden: model.pre_classifier(hidden[:, 0]).relu()),
    "roberta": ("classifier.out_proj", lambda model, hidden: model.classifier.dense(hidden[:, 0]).tanh()),
    "xlnet": ("logits_proj", lambda model, hidden: model.sequence_summary.summary(hidden[:, -1]).tanh()),
    "gpt2": ("score", lambda model, hidden: hidden[:, -1]),
    "llama": ("score", lambda model, hidden: hidden[:, -1]),
    "bart": ("classification_head.out_proj", None),
    "t5": ("classification_head.out_proj", None),
    "vit": ("classifier", lambda model, hidden: hidden[:, 0]),
    "swin": ("classifier", lambda model, hidden: hidden.mean(1)),
    "resnet": ("classifier.1", lambda model, hidden: hidden.mean((2, 3))),
    "convnext": ("classifier", lambda model, hidden: model.convnext.layernorm(hidden.mean((2, 3)))),
}


@pytest.mark.parametrize("family", HEADS)
def test_families(tmp_path: Path, family: str) -> None:
    """In every kind of model W h + b of pooled features h gives the logits; cls and mean are of the last state."""
    is_text = family in TASKS["sequence classification"]
    task = "sequence classification" if is_text else "image classification"
    model = build(task, family, {})
    path, by_hand = HEADS[family]
    head = model.get_submodule(path)
    rows = texts() if is_text else [{"pixel_values": image} for image in torch.randn(5, 3, 64, 64)]
    trainer = make(model, tmp_path, padded_left if family == "xlnet" else padded)

    features = trainer.predict_features(rows)
    logits = one_by_one(rows, lambda batch: model(**batch).logits)
    assert features.shape == (len(rows), head.in_features)
    near(F.linear(torch.from_numpy(features), head.weight, head.bias).detach().numpy(), logits)

    if by_hand is not None:
        near(features, one_by_one(rows, lambda batch: by_hand(model, state(model, batch))))
    near(trainer.predict_features(rows, "mean"), one_by_one(rows, lambda batch: places(state(model, batch)).mean(1)))
    if family in ("resnet", "convnext"):
        with pytest.raises(ValueError, match=r"'cls' features need hidden states \[B, S, d\].*'mean' or 'pooled'"):
            trainer.predict_features(rows, "cls")
    else:
        near(trainer.predict_features(rows, "cls"), one_by_one(rows, lambda batch: state(model, batch)[:, 0]))


def state(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The last hidden state of the model without its head; of an encoder-decoder's encoder."""
    base = model.base_model
    return (base.get_encoder() if model.config.is_encoder_decoder else base)(**batch).last_hidden_state


def places(hidden: Tensor) -> Tensor:
    """[B, d, H, W] -> [B, H·W, d]; [B, S, d] as it is."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


# Families of which no linear layer's output is the logits.
NO_HEAD = {
    "eurobert": "averages the logits of tokens",
    "shieldgemma2": "takes two words of a language model's",
    "swiftformer": "averages two heads",
}
# Families that have no states of tokens, patches or pixels.
NO_STATES = {
    ("sequence classification", "funnel"): "keeps fewer states than tokens",
    ("sequence classification", "perceiver"): "keeps states of latents",
    ("image classification", "pp_lcnet"): "calls its logits `last_hidden_state`",
}
# Families whose model without a head cannot be run by itself, or not as with a head.
NO_BASE = ("clip", "hgnet_v2", "longformer", "metaclip_2", "perceiver", "shieldgemma2", "siglip", "siglip2")
EXCEPTIONS = {*NO_HEAD, *(family for _, family in NO_STATES)}
EVERY = [
    pytest.param(task, family, marks=[] if family in EXCEPTIONS else pytest.mark.slow)
    for task in ("sequence classification", "image classification")
    for family in TASKS[task]
    if family not in UNBUILT
]


@pytest.mark.parametrize(("task", "family"), EVERY)
def test_every_family(task: str, family: str) -> None:
    """Whatever transformers can build, a layer of the head makes the logits of pooled features, and mean is of states.

    Or the error says that this model has no such layer or states.
    """
    model = build(task, family, {})
    given = inputs(task, model)

    def features(name: str) -> Tensor:
        return representation(name)(model, lambda: model(**given), logits, given.get("attention_mask"))

    def logits(outputs: Any) -> Tensor:
        return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))

    with torch.no_grad():
        if family in NO_HEAD:
            with pytest.raises(ValueError, match="'pooled' features need a linear layer"):
                features("pooled")
        else:
            hidden, expected = features("pooled"), logits(model(**given))
            heads = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == 3]
            made = [head(hidden) for head in heads if head.in_features == hidden.shape[1]]
            assert any(torch.allclose(one, expected, rtol=1e-4, atol=1e-4) for one in made)
        if (task, family) in NO_STATES:
            with pytest.raises(ValueError, match="'mean' features need hidden states"):
                features("mean")
        elif family not in NO_BASE:
            torch.testing.assert_close(features("mean"), places(state(model, given)).mean(1))


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_either_side(tmp_path: Path, name: str) -> None:
    """A decoder's features are those of its rows alone, padded on the right or on the left."""
    set_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA)).eval()

    def by_hand(batch: dict[str, Tensor]) -> Tensor:
        hidden = model.model(**batch).last_hidden_state
        return {"pooled": hidden[:, -1], "cls": hidden[:, 0], "mean": hidden.mean(1)}[name]

    expected = one_by_one(texts(), by_hand)
    for collate in (padded, padded_left):
        near(make(model, tmp_path, collate).predict_features(texts(), name), expected)


def test_images_of_different_size(tmp_path: Path) -> None:
    """Patches that `pixel_attention_mask` hides are not in the mean."""
    model = build("image classification", "siglip2", {})
    sizes = [(8, 8), (4, 8), (2, 3)]
    rows = []
    for image, size in zip(torch.randn(3, 64, 192), sizes, strict=True):
        shown = (torch.arange(64) < size[0] * size[1]).long()
        rows.append({"pixel_values": image, "pixel_attention_mask": shown, "spatial_shapes": torch.tensor(size)})

    def collate(features: list[Any]) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in features]) for name in features[0]}

    with torch.no_grad():
        hidden = model.vision_model(**collate(rows)).last_hidden_state
    expected = [states[: height * width].mean(0).numpy() for states, (height, width) in zip(hidden, sizes, strict=True)]
    near(make(model, tmp_path, collate).predict_features(rows, "mean"), np.stack(expected))


@pytest.mark.parametrize("collate", [padded, padded_left])
def test_equal_logits_of_several_tokens(tmp_path: Path, collate: Any) -> None:
    """Where tokens have the same logits, as padding may, features are those of the row's last token."""
    set_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA | {"num_labels": 1})).eval()
    nn.init.zeros_(model.score.weight)
    expected = one_by_one(texts(), lambda batch: model.model(**batch).last_hidden_state[:, -1])
    near(make(model, tmp_path, collate).predict_features(texts()), expected)


def test_classes_as_many_as_hidden_units(tmp_path: Path) -> None:
    """That other layers are as wide as the head does not lead to their inputs."""
    model = bert(num_labels=16)
    expected = one_by_one(texts(), lambda batch: model.bert(**batch).pooler_output)
    near(make(model, tmp_path).predict_features(texts()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_stays_off(tmp_path: Path, name: str) -> None:
    """Whatever the posterior and the mode that the model is in, features are those of evaluation, again and again."""
    model = bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    trainer = make(model, tmp_path, posterior=MCDropout(p=0.5))
    expected = make(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tmp_path)
    for _ in range(2):
        features = trainer.predict_features(texts(), name)
        np.testing.assert_array_equal(features, expected.predict_features(texts(), name))
        model.train()


def test_the_model_is_as_before(tmp_path: Path) -> None:
    """No hook stays and each part's mode is what it was, after features and after an exception at any time."""
    model = bert().train()
    model.bert.encoder.eval()
    before = [part.training for part in model.modules()]

    def check() -> None:
        assert [part.training for part in model.modules()] == before
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

    trainer = make(model, tmp_path)
    for name in NAMES:
        trainer.predict_features(texts(), name)
        check()
        with pytest.raises(IndexError):
            trainer.predict_features([{"input_ids": [5, 1000]}], name)  # beyond the vocabulary: raised in the pass
        check()
    with pytest.raises(ValueError, match="a model with `logits`"):
        trainer.predict_features(texts(), ignore_keys=["logits"])
    check()


def test_only_what_may_be_wanted_is_kept(tmp_path: Path) -> None:
    """At the end of a pass no more layers' outputs are held than there are widths: memory is that of evaluation."""
    model = bert(num_hidden_layers=8)
    outputs: list[weakref.ref[Tensor]] = []
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))

    def logits(returned: Any) -> Tensor:
        assert sum(output() is not None for output in outputs) <= 3 < len(outputs)  # 16, 36 and 3 wide
        return returned.logits

    with torch.no_grad():
        pooled(model, lambda: model(**padded(texts())), logits, None)


def test_half_precision(tmp_path: Path) -> None:
    """bf16_full_eval gives features near those of float32, as float32, and leaves the weights."""
    model = bert()
    for name in NAMES:
        exact = make(model, tmp_path).predict_features(texts(), name)
        rough = make(model, tmp_path, bf16_full_eval=True).predict_features(texts(), name)
        assert rough.dtype == np.float32 and not np.array_equal(rough, exact)
        np.testing.assert_allclose(rough, exact, atol=0.05)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_half_precision_weights(tmp_path: Path) -> None:
    """The mean of states in bfloat16 is taken in float32."""
    model = bert().to(torch.bfloat16)
    expected = one_by_one(texts(), lambda batch: model.bert(**batch).last_hidden_state.float().mean(1))
    near(make(model, tmp_path, per_device_eval_batch_size=1).predict_features(texts(), "mean"), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("adapted", [["query", "value"], ["query", "dense", "classifier"]])
def test_adapters(tmp_path: Path, adapted: list[str]) -> None:
    """Under PEFT the head, saved whole or with an adapter of its own, receives the pooled features."""
    whole = [] if "classifier" in adapted else ["classifier"]
    settings = LoraConfig(target_modules=adapted, modules_to_save=whole, r=4, init_lora_weights=False)
    model = get_peft_model(bert(), settings).eval()
    expected = one_by_one(texts(), lambda batch: model.base_model.model.bert(**batch).pooler_output)
    trainer = make(model, tmp_path)
    near(trainer.predict_features(texts()), expected)
    last = one_by_one(texts(), lambda batch: model.base_model.model.bert(**batch).last_hidden_state.mean(1))
    near(trainer.predict_features(texts(), "mean"), last)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_models(tmp_path: Path, name: str) -> None:
    """A compiled model, wrapped or in place, has the features of the model as it was written."""
    model = bert()
    expected = make(model, tmp_path).predict_features(texts(), name)
    compiled = torch.compile(model, backend="eager")
    compiled(**padded(texts(2)))
    near(make(compiled, tmp_path, remove_unused_columns=False).predict_features(texts(), name), expected)
    model.compile(backend="eager")
    model(**padded(texts(2)))
    near(make(model, tmp_path).predict_features(texts(), name), expected)


class Plain(nn.Module):
    """A network of torch's own parts: a mean of embeddings, a layer, and a head that ends as asked for."""

    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden, self.end = nn.Embedding(99, 8), nn.Linear(8, 6), end
        self.head = {"Conv1D": Conv1D(3, 6), "convolution": nn.Conv1d(6, 3, 1)}.get(end, nn.Linear(6, 3))
        self.other = nn.Linear(6, 3)

    def represented(self, input_ids: Tensor) -> Tensor:
        return self.hidden(self.embedding(input_ids).sum(1)).relu()

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.represented(input_ids)
        if self.end == "convolution":
            return self.head(hidden[..., None])[..., 0]
        logits = self.head(input=hidden) if self.end == "by keyword" else self.head(hidden)
        ends = {
            "softmax": lambda: logits.softmax(-1),
            "tuple": lambda: (logits, hidden),
            "two heads": lambda: logits + self.other(hidden),
            "negated": lambda: -logits,
        }
        return ends.get(self.end, lambda: logits)()


@pytest.mark.parametrize("end", ["tensor", "tuple", "softmax", "by keyword", "Conv1D"])
def test_plain_modules(tmp_path: Path, end: str) -> None:
    """Any network that ends in a linear layer, or softmax of one, has pooled features, and no other."""
    model = Plain(end)
    rows = [{"input_ids": ids} for ids in torch.randint(99, (7, 5))]

    def collate(features: list[Any]) -> Any:
        return {"input_ids": torch.stack([row["input_ids"] for row in features])}

    trainer = make(model, tmp_path, collate)
    expected = model.represented(collate(rows)["input_ids"]).detach().numpy()
    near(trainer.predict_features(rows), expected)
    for name in ("cls", "mean"):
        with pytest.raises(ValueError, match=r"No part of Plain returns a `last_hidden_state`.*'pooled'"):
            trainer.predict_features(rows, name)


@pytest.mark.parametrize("end", ["convolution", "two heads", "negated"])
def test_heads_that_are_not_linear(tmp_path: Path, end: str) -> None:
    """Logits that are not the output of one linear layer have no pooled features, and the error names the others."""

    def collate(features: list[Any]) -> Any:
        return {"input_ids": torch.tensor([row["input_ids"][:2] for row in features])}

    with pytest.raises(ValueError, match=r"linear layer that gives the logits, Plain has none.*'cls' or 'mean'"):
        make(Plain(end), tmp_path, collate).predict_features(texts())


def test_heads_on_tokens(tmp_path: Path) -> None:
    """Token classification has cls and mean features; pooled ones it has not, and the error names the others."""
    set_seed(0)
    model = BertForTokenClassification(BertConfig(**BERT)).eval()
    trainer = make(model, tmp_path)
    with pytest.raises(ValueError, match=r"need logits \[B, C\], BertForTokenClassification gives.*'cls' or 'mean'"):
        trainer.predict_features(texts())
    expected = one_by_one(texts(), lambda batch: model.bert(**batch).last_hidden_state.mean(1))
    near(trainer.predict_features(texts(), "mean"), expected)


def test_models_without_logits(tmp_path: Path) -> None:
    """cls and mean features ask for no logits: a model that answers questions has them."""
    set_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT | {"num_labels": 2})).eval()
    expected = one_by_one(texts(), lambda batch: model.bert(**batch).last_hidden_state[:, 0])
    near(make(model, tmp_path).predict_features(texts(), "cls"), expected)


def test_masks_of_another_length(tmp_path: Path) -> None:
    """States that are not those of the mask's tokens, or of one row each, are refused by name and size."""
    set_seed(0)
    funnel = FunnelForSequenceClassification(
        FunnelConfig(vocab_size=99, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=36, num_labels=3)
    )

    def choices(features: list[Any]) -> Any:
        return {name: value[:, None].repeat(1, 2, 1) for name, value in padded(features).items()}  # [B, 2, S]

    for model, collate in ((funnel, padded), (BertForMultipleChoice(BertConfig(**BERT)), choices)):
        for name in ("cls", "mean"):
            message = rf"'{name}' features need hidden states that fit the attention mask.*'pooled'"
            with pytest.raises(ValueError, match=message):
                make(model, tmp_path, collate).predict_features(texts(), name)


def test_bad_requests(model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
    """Errors name the representations, the rows that are not finite, and what is no dataset of rows."""
    trainer = make(model, tmp_path)
    with pytest.raises(ValueError, match="out of 'pooled', 'cls', 'mean', got 'CLS'"):
        trainer.predict_features(rows, "CLS")
    with pytest.raises(ValueError, match="at least one row"):
        trainer.predict_features(rows.select([]))
    with pytest.raises(TypeError, match="a dataset of rows"):
        trainer.predict_features(1)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[rows[5]["input_ids"][1]] = torch.nan
    for name in NAMES:
        with pytest.raises(ValueError, match=r"NaN or infinite for rows \[5\]"):
            trainer.predict_features(rows, name)


def test_rows_that_are_not_finite_in_decoders(tmp_path: Path) -> None:
    """The token that a decoder picks is found where its logits are NaN, so that the error names the row."""
    set_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA)).eval()
    rows = [*texts(), {"input_ids": [98, 2]}]
    with torch.no_grad():
        model.model.embed_tokens.weight[98] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite for rows \[9\]"):
        make(model, tmp_path).predict_features(rows)


def test_progress_is_shown(
    model: PreTrainedModel, rows: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar says that features are made and counts rows."""
    make(model, tmp_path, disable_tqdm=False).predict_features(rows)
    error = capfd.readouterr().err
    assert "features" in error and "23/23" in error
