"""SemiSupervisedTrainer: Trainer's training, and the gradient of unlabelled rows added to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from baal_hf import ActiveLearningDataset, BaalTransformersTrainer
from baal_hf.semisupervised import MeanTeacher, PiModel, PseudoLabels, SemiSupervisedMethod, ramp_up
from baal_hf.semisupervised.trainer import SemiSupervisedTrainer

CLASSES = ClassLabel(names=["even", "odd"])
METHODS = ["pi_model", "mean_teacher", "pseudo_labels"]


def rows(size: int, seed: int = 0) -> Dataset:
    """Rows of six tokens, whose class is that of the first."""
    ids = torch.randint(5, 40, (size, 6), generator=torch.Generator().manual_seed(seed))
    features = Features({"input_ids": List(Value("int64")), "label": CLASSES})
    return Dataset.from_dict({"input_ids": ids.tolist(), "label": (ids[:, 0] % 2).tolist()}, features=features)


def bert(dropout: float = 0.1, kind: type = BertForSequenceClassification, **settings: Any) -> nn.Module:
    """A tiny model, the same each time."""
    set_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(BertConfig(vocab_size=40, num_labels=2, **sizes, **rates, **settings))


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """Four optimizer steps of four rows each, unless one says otherwise."""
    fixed = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    quiet = {"report_to": "none", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), use_cpu=True, **{**fixed, **quiet, **settings})


def weights(model: nn.Module) -> Tensor:
    """All of them in a row, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def trained(folder: Path, model: nn.Module | None = None, train: Any = None, **settings: Any) -> SemiSupervisedTrainer:
    """A trainer that has trained; settings that TrainingArguments knows go there."""
    own = {"unlabelled_dataset": rows(30, seed=1).remove_columns("label")}
    names = ("unlabelled_dataset", "method", "unlabelled_weight", "ratio", "ramp_up_steps", "data_collator")
    own |= {name: settings.pop(name) for name in [*names, "callbacks"] if name in settings}
    train = rows(18) if train is None else train
    trainer = SemiSupervisedTrainer(model or bert(), arguments(folder, **settings), train_dataset=train, **own)
    trainer.train()
    return trainer


class Seen(SemiSupervisedMethod):
    """Remembers the batches it is given, and has a loss that is the mean logit of the first class times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        self.batches: list[Mapping[str, Tensor]] = []
        self.logits: list[Tensor] = []
        self.factor = factor

    def loss(self, model, batch, forward):
        logits = forward(model, batch)
        self.batches.append(batch)
        self.logits.append(logits.detach())
        return self.factor * logits[:, 0].mean()


def seen_ids(method: Seen) -> list[list[int]]:
    """Tokens of the rows that came, in order."""
    return [row for batch in method.batches for row in batch["input_ids"].tolist()]


class Gradients(TrainerCallback):
    """Keeps the gradient of each optimizer step."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        self.all.append(torch.cat([gradient.flatten() for gradient in gradients]).clone())


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_plain_training(tmp_path, method):
    """With weight 0 all weights equal those of BaalTransformersTrainer, bit by bit."""
    plain = BaalTransformersTrainer(bert(), arguments(tmp_path), train_dataset=rows(18))
    plain.train()
    trainer = trained(tmp_path, method=method, unlabelled_weight=0)
    assert torch.equal(weights(trainer.model), weights(plain.model))


@pytest.mark.parametrize("method", ["pi_model", "mean_teacher", PseudoLabels(0.51)])
def test_unlabelled_rows_change_what_is_learned(tmp_path, method):
    """With a weight above 0 each method moves the weights elsewhere."""
    assert not torch.equal(
        weights(trained(tmp_path, method=method, unlabelled_weight=10).model),
        weights(trained(tmp_path, method="pi_model", unlabelled_weight=0).model),
    )


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_gradient_is_that_of_both_parts(tmp_path, accumulated):
    """The first step's gradient is Trainer's, plus weight times the mean gradient over accumulated batches."""
    settings = {"max_steps": 1, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0.0}
    gradients = {}
    for weight in (0.0, 0.5):
        callback, method = Gradients(), Seen()
        trained(tmp_path, bert(0), method=method, unlabelled_weight=weight, callbacks=[callback], **settings)
        gradients[weight] = callback.all[0]
    model = bert(0).train()
    assert len(method.batches) == accumulated
    for batch in method.batches:
        (0.5 * model(**batch).logits[:, 0].mean() / accumulated).backward()
    by_hand = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    assert gradients[0.0].abs().sum() > 0
    assert by_hand.abs().sum() > 0
    torch.testing.assert_close(gradients[0.5] - gradients[0.0], by_hand, atol=1e-6, rtol=1e-4)


def test_the_ramp_scales_the_unlabelled_part(tmp_path):
    """Between two weights, the gradient of step t differs by the ramp's share at t."""
    callbacks = {}
    for weight in (0.0, 1.0):
        callbacks[weight] = Gradients()
        settings = {"learning_rate": 0.0, "max_grad_norm": 0.0, "max_steps": 4}  # the same weights in each step
        own = {"method": Seen(), "unlabelled_weight": weight, "ramp_up_steps": 3}
        own["unlabelled_dataset"] = rows(1).remove_columns("label")  # the same row in each step
        trained(tmp_path, bert(0), callbacks=[callbacks[weight]], **own, **settings)
    norms = [(a - b).norm().item() for a, b in zip(callbacks[1.0].all, callbacks[0.0].all, strict=True)]
    for t, norm in enumerate(norms):
        assert norm / norms[-1] == pytest.approx(ramp_up(t, 3), rel=1e-3)


class Guarded(torch.utils.data.Dataset):
    """Rows whose label raises when it is read."""

    class Row(dict):
        def __getitem__(self, name):
            if name in ("label", "labels"):
                raise AssertionError("a label of an unlabelled row was read")
            return super().__getitem__(name)

    def __len__(self):
        return 30

    def __getitem__(self, position):
        return self.Row(input_ids=[5 + position] * 6, label=0, labels=0)


def test_unlabelled_labels_are_not_read(tmp_path):
    """Labels that raise when they are read, and labels that are nonsense, do no harm."""
    for removing in (True, False):
        trained(tmp_path, unlabelled_dataset=Guarded(), remove_unused_columns=removing)
    labelled = rows(30, seed=1)
    nonsense = labelled.remove_columns("label").add_column("label", ["nonsense"] * 30)
    methods = [Seen(), Seen()]
    for unlabelled, method in zip((labelled.remove_columns("label"), nonsense), methods, strict=True):
        trained(tmp_path, unlabelled_dataset=unlabelled, method=method)
        assert all("labels" not in batch and "label" not in batch for batch in method.batches)
    assert seen_ids(methods[0]) == seen_ids(methods[1])


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 4), (0.2, 1), (0.75, 12), (7 / 8, 28), (0.01, 1)])
def test_the_ratio_is_the_share_of_unlabelled_rows(tmp_path, ratio, size):
    """Beside four labelled rows come 4 r / (1 - r) unlabelled ones, at least one."""
    method = Seen()
    trained(tmp_path, method=method, ratio=ratio)
    assert [len(batch["input_ids"]) for batch in method.batches] == [size] * 4


def test_each_pass_has_every_unlabelled_row(tmp_path):
    """Unlabelled rows come once in a pass, in an order that differs from pass to pass."""
    method = Seen()
    trained(tmp_path, method=method, max_steps=15)
    came = seen_ids(method)
    assert len(came) == 60
    assert sorted(came[:30]) == sorted(came[30:]) == sorted(rows(30, seed=1)["input_ids"][:])
    assert came[:30] != came[30:]


def test_labelled_batches_are_trainers(tmp_path):
    """Unlabelled rows do not change which labelled rows come, nor in which order."""
    orders = {}

    class Order(DataCollatorOfLists):
        def __call__(self, features):
            if "label" in features[0]:
                self.seen.extend(row["input_ids"] for row in features)
            return super().__call__(features)

    for weight in (0, 1):
        collator = Order()
        settings = {"unlabelled_weight": weight, "method": PseudoLabels(0.4)}
        trained(tmp_path, bert(0), data_collator=collator, num_train_epochs=3, max_steps=-1, **settings)
        orders[weight] = collator.seen
    assert orders[0] == orders[1]
    assert len(orders[0]) == 54


class DataCollatorOfLists:
    """Tensors of rows that are lists of one length."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, features):
        batch = {"input_ids": torch.tensor([row["input_ids"] for row in features])}
        if "label" in features[0]:
            batch["labels"] = torch.tensor([row["label"] for row in features])
        return batch


@pytest.mark.parametrize(
    "settings", [{"max_steps": 12}, {"max_steps": 8, "gradient_accumulation_steps": 2}], ids=["plain", "accumulated"]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_ends_as_if_it_never_stopped(tmp_path, method, settings):
    """From a checkpoint in the second epoch, weights and teacher end as those of a run that was not stopped."""
    settings |= {"save_strategy": "steps", "save_steps": settings["max_steps"] - 2, "unlabelled_weight": 5.0}
    whole = trained(tmp_path, method=method, ramp_up_steps=10, **settings)
    checkpoint = str(tmp_path / f"checkpoint-{settings['save_steps']}")
    own = {"method": method, "ramp_up_steps": 10, "unlabelled_weight": settings.pop("unlabelled_weight")}
    unlabelled = rows(30, seed=1).remove_columns("label")
    resumed = SemiSupervisedTrainer(
        bert(), arguments(tmp_path, **settings), train_dataset=rows(18), unlabelled_dataset=unlabelled, **own
    )
    resumed.train(resume_from_checkpoint=checkpoint)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    if method == "mean_teacher":
        assert torch.equal(weights(resumed.method.teacher), weights(whole.method.teacher))
        assert not torch.equal(weights(whole.method.teacher), weights(whole.model))


def test_a_run_that_goes_on_sees_the_next_rows(tmp_path):
    """Batches of unlabelled rows after a checkpoint are those that came after it, whole epochs and part of one."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 7, "gradient_accumulation_steps": 2}
    whole = Seen()
    trained(tmp_path, method=whole, **settings)  # 5 batches in an epoch: steps of 2, 2 and 1
    for step, done in ((2, 4), (3, 5), (5, 9)):
        method = Seen()
        resumed = SemiSupervisedTrainer(
            bert(),
            arguments(tmp_path, **settings),
            train_dataset=rows(18),
            unlabelled_dataset=rows(30, seed=1).remove_columns("label"),
            method=method,
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert seen_ids(method) == seen_ids(whole)[4 * done :]


def test_checkpoints_without_a_teacher_are_refused(tmp_path):
    """Mean teacher does not go on from a checkpoint of another method."""
    trained(tmp_path, save_strategy="steps", save_steps=2)
    again = SemiSupervisedTrainer(
        bert(),
        arguments(tmp_path),
        train_dataset=rows(18),
        unlabelled_dataset=rows(3),
        method="mean_teacher",
    )
    with pytest.raises(ValueError, match=r"holds no teacher\.safetensors"):
        again.train(resume_from_checkpoint=True)


def test_the_teacher_is_evaluated_and_saved_in_the_models_place(tmp_path):
    """Inside the block evaluation, prediction and saving are of the teacher; afterwards of the model."""
    trainer = trained(tmp_path, method=MeanTeacher(0.9), unlabelled_weight=1.0)
    test = rows(12, seed=2)
    own = trainer.predict_on_dataset(test, iterations=2)
    loss = trainer.evaluate(test)["eval_loss"]
    with trainer.method.swapped_into(trainer.model):
        assert trainer.evaluate(test)["eval_loss"] != loss
        swapped = trainer.predict_on_dataset(test, iterations=2)
        trainer.save_model(tmp_path / "teacher")
    assert abs(own - swapped).max() > 0
    assert trainer.evaluate(test)["eval_loss"] == loss
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    assert torch.equal(weights(saved), weights(trainer.method.teacher))


def test_the_best_models_teacher_comes_back(tmp_path):
    """When the best checkpoint is loaded at the end, the teacher is that checkpoint's."""
    settings = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = SemiSupervisedTrainer(  # "best" is the largest loss here, at the start
        bert(),
        arguments(tmp_path, **settings),
        train_dataset=rows(18),
        eval_dataset=rows(18),
        unlabelled_dataset=rows(9, seed=1),
        method="mean_teacher",
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    expected = MeanTeacher()
    expected.start(trainer.model, best)
    assert torch.equal(weights(trainer.method.teacher), weights(expected.teacher))


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_and_draws_are_as_before(tmp_path, method):
    """Evaluation is deterministic and draws equal those of a plain trainer of the same weights."""
    trainer = trained(tmp_path, method=method)
    plain = BaalTransformersTrainer(trainer.model, arguments(tmp_path))
    test = rows(12, seed=2)
    assert trainer.evaluate(test)["eval_loss"] == trainer.evaluate(test)["eval_loss"]
    probs = trainer.predict_on_dataset(test, iterations=3)
    assert (probs == plain.predict_on_dataset(test, iterations=3)).all()
    assert abs(probs[..., 0] - probs[..., 1]).max() > 0


@pytest.mark.parametrize("method", ["pi_model", "mean_teacher", PseudoLabels(0.51)])
def test_padding_is_no_token(tmp_path, method):
    """Rows of different length are padded as the collator does, and padding counts in no loss, not even of tokens."""
    lengths = [3, 9, 5, 7] * 5
    table = {"input_ids": [[7] * n for n in lengths], "attention_mask": [[1] * n for n in lengths]}
    labelled = Dataset.from_dict({**table, "labels": [[0] * n for n in lengths]})
    seen = Seen()

    def collate(features):
        width = max(len(row["input_ids"]) for row in features)
        return {
            name: torch.tensor([row[name] + [-100 * (name == "labels")] * (width - len(row[name])) for row in features])
            for name in features[0]
        }

    unlabelled = Dataset.from_dict(table)
    settings = {"train": labelled, "data_collator": collate, "unlabelled_dataset": unlabelled}
    trained(tmp_path, bert(0, BertForTokenClassification), method=seen, **settings)
    for batch, logits in zip(seen.batches, seen.logits, strict=True):
        assert logits.shape == (batch["attention_mask"].sum(), 2)
    trained(tmp_path, bert(0.1, BertForTokenClassification), method=method, **settings)


def test_padding_collators_work(tmp_path):
    """transformers' own padding collator pads labelled and unlabelled rows."""
    from tokenizers import Tokenizer, models

    vocabulary = {"[PAD]": 0, **{f"t{i}": i for i in range(1, 40)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")), pad_token="[PAD]"
    )
    lengths = [3, 9, 5, 7] * 5
    table = {"input_ids": [[7] * n for n in lengths], "attention_mask": [[1] * n for n in lengths]}
    labelled = Dataset.from_dict({**table, "label": [0, 1] * 10})
    trained(tmp_path, train=labelled, unlabelled_dataset=labelled, data_collator=DataCollatorWithPadding(tokenizer))


def test_the_pool_of_the_moment_is_unlabelled(tmp_path):
    """An ActiveLearningDataset means its pool at the time that training starts; an empty one stops training."""
    dataset = ActiveLearningDataset(rows(12))
    dataset.label_randomly(4)
    method = Seen()
    trainer = trained(tmp_path, train=dataset.labelled, unlabelled_dataset=dataset, method=method)
    pool = dataset.pool["input_ids"][:]
    assert sorted(seen_ids(method)[:8]) == sorted(pool)
    dataset.label(range(7))
    method.batches.clear()
    trainer.train()
    assert seen_ids(method) == 16 * dataset.pool["input_ids"][:]
    dataset.label(0)
    with pytest.raises(ValueError, match="needs unlabelled rows, there are none"):
        trainer.train()


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    """A loss of NaN or infinity, of either part, stops training; the message names the step and the part."""

    class Failing(Seen):
        def loss(self, model, batch, forward):
            return super().loss(model, batch, forward) * (math.nan if len(self.batches) == 3 else 1)

    with pytest.raises(ValueError, match=r"stopped at step 3: the loss is not finite \(.* nan of unlabelled rows"):
        trained(tmp_path, method=Failing())

    for weight in (0, 1):
        broken = bert()
        broken.classifier.weight.data.fill_(math.inf)
        with pytest.raises(ValueError, match=r"stopped at step 1: .*(nan|inf) of labelled rows"):
            trained(tmp_path, broken, unlabelled_weight=weight)


def test_logs_have_the_unlabelled_loss(tmp_path):
    """`unlabelled_loss` is the mean since the last log, and `loss` that of both parts."""
    method = Seen(factor=0.0)
    trainer = trained(tmp_path, bert(0), method=method, logging_strategy="steps", logging_steps=2)
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["unlabelled_loss"] for log in logged] == [0, 0]

    constant = Seen()
    constant.loss = lambda model, batch, forward: 0 * forward(model, batch).sum() + 3
    other = trained(tmp_path, bert(0), method=constant, logging_strategy="steps", logging_steps=2, unlabelled_weight=2)
    again = [log for log in other.state.log_history if "loss" in log]
    assert [log["unlabelled_loss"] for log in again] == [3, 3]
    for one, two in zip(logged, again, strict=True):
        assert two["loss"] == pytest.approx(one["loss"] + 6, abs=1e-4)


def test_half_precision_trains(tmp_path):
    """In bfloat16 the teacher is another network than the model, and its passes use its own weights."""
    trainer = trained(tmp_path, bert(0), method=MeanTeacher(0.9), bf16=True)
    batch = {"input_ids": torch.tensor(rows(2)["input_ids"][:])}
    before = trainer.model.eval()(**batch).logits.detach()
    trainer.model.classifier.weight.data.zero_()
    teacher = trainer.method.teacher.eval()
    assert teacher(**batch).logits.abs().sum() > 0
    teacher.classifier.weight.data.zero_()
    teacher.classifier.bias.data.fill_(1)
    assert torch.equal(teacher(**batch).logits, torch.ones(2, 2))
    assert before.abs().sum() > 0


def test_workers_read_unlabelled_rows(tmp_path):
    """With worker processes the unlabelled batches are those without."""
    methods = [Seen(), Seen()]
    for workers, method in enumerate(methods):
        trained(tmp_path, method=method, dataloader_num_workers=workers)
    assert seen_ids(methods[0]) == seen_ids(methods[1])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"unlabelled_dataset": rows(3).select([])}, ValueError, "needs unlabelled rows, there are none"),
        ({"unlabelled_dataset": iter([])}, TypeError, "in any order"),
        ({"ratio": 0}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"ratio": 1}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"ratio": math.nan}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"unlabelled_weight": -1}, ValueError, "unlabelled_weight >= 0"),
        ({"unlabelled_weight": math.inf}, ValueError, "unlabelled_weight >= 0"),
        ({"ramp_up_steps": -1}, ValueError, "ramp_up_steps >= 0"),
        ({"method": "fixmatch"}, ValueError, "pi_model, mean_teacher, pseudo_labels, got 'fixmatch'"),
        ({"method": PiModel}, TypeError, "SemiSupervisedMethod"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, settings, error, message):
    """Each bad argument is refused before training, with what is needed."""
    with pytest.raises(error, match=message):
        SemiSupervisedTrainer(bert(), arguments(tmp_path), **{"unlabelled_dataset": rows(3), **settings})


def test_models_of_other_outputs_are_refused(tmp_path):
    """Labels that do not exclude each other are refused, with what came."""
    labelled = rows(18).remove_columns("label").add_column("label", [[0.0, 1.0]] * 18)
    with pytest.raises(ValueError, match="classes that exclude each other, got multi_label_classification"):
        trained(tmp_path, bert(problem_type="multi_label_classification"), train=labelled)


def test_other_models_are_trained(tmp_path):
    """A module without configuration, whose outputs are an image of classes, is trained as well."""

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)
            self.drop = nn.Dropout(0.5)

        def forward(self, pixels, labels=None):
            logits = self.drop(self.layer(pixels))  # [B, C, H, W]
            if labels is None:
                return {"logits": logits}
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    images = [{"pixels": torch.randn(1, 4, 4), "labels": torch.zeros(4, 4, dtype=torch.long)} for _ in range(8)]
    method = Seen()
    trained(tmp_path, Segmenter(), train=images, unlabelled_dataset=images, method=method)
    assert method.logits[0].shape == (4 * 16, 3)
    trained(tmp_path, Segmenter(), train=images, unlabelled_dataset=images, method="pi_model")


def test_no_batch_is_kept(tmp_path):
    """Batches of unlabelled rows die once they are learned from."""
    import weakref

    alive, references = [], []

    class Watching(SemiSupervisedMethod):
        def loss(self, model, batch, forward):
            alive.append(sum(reference() is not None for reference in references))
            references.append(weakref.ref(batch["input_ids"]))
            return forward(model, batch).mean()

    trained(tmp_path, method=Watching(), max_steps=12)
    assert len(references) == 12
    assert max(alive) <= 1
