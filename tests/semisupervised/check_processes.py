"""Training on two processes gives the weights of one with batches of twice the size. `accelerate launch` runs it."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from baal_hf import SemiSupervisedModelWrapper, SemiSupervisedTrainer
from baal_hf.semisupervised import MeanTeacher, PiModel, PseudoLabels, SemiSupervisedMethod
from baal_hf.semisupervised.base import Forward

METHODS = {
    "pi_model": (lambda: PiModel(augment=shortened), 100.0),
    "mean_teacher": (lambda: MeanTeacher(0.5), 20.0),
    "pseudo_labels": (lambda: PseudoLabels(0.5001), 1.0),
}
QUIET = {
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
_parity = [0]


def shortened(batch: dict) -> dict:
    """Every second time the rows backwards: a change that is not random, so that it is the same on all processes."""
    _parity[0] += 1
    return {**batch, "input_ids": batch["input_ids"].flip(1)} if _parity[0] % 2 else batch


def rows(size: int, seed: int) -> list[dict]:
    """Rows of six tokens, whose class is that of the first."""
    ids = torch.randint(5, 40, (size, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row.tolist(), "label": int(row[0]) % 2} for row in ids]


def bert() -> nn.Module:
    """A model without noise."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, **sizes, **rates)).double()
    model.accepts_loss_kwargs = False  # its loss is a mean over its batch, whatever its signature tells Trainer
    return model


def by_trainer(model: nn.Module, method: SemiSupervisedMethod, weight: float, processes: int) -> None:
    """Seven steps of two batches each."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=7,
            per_device_train_batch_size=4 // processes,
            gradient_accumulation_steps=2,
            optim="sgd",
            learning_rate=0.1,
            **QUIET,
        )
        trainer = SemiSupervisedTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(16 * rows(1, 0)),  # their order is Trainer's, another on two processes
            unlabelled_dataset=rows(30, 1),
            method=method,
            unlabelled_weight=weight,
        )
        assert trainer.accelerator.num_processes == processes
        trainer.train()


def by_modelwrapper(model: nn.Module, method: SemiSupervisedMethod, weight: float, processes: int) -> list[float]:
    """Two epochs of four steps; what was told of the last."""
    labelled, unlabelled = (Dataset.from_list(some).with_format("torch") for some in (16 * rows(1, 0), rows(30, 1)))
    wrapper = SemiSupervisedModelWrapper(
        model, nn.CrossEntropyLoss(), unlabelled_dataset=unlabelled, method=method, unlabelled_weight=weight
    )
    assert wrapper.accelerator(None).num_processes == processes
    wrapper.train_on_dataset(labelled, torch.optim.SGD(model.parameters(), 0.1), 4 // processes, 2, workers=0)
    return [*wrapper.get_metrics("train").values()]


def results(processes: int) -> dict[str, Tensor]:
    """Weights, and what was told, of each way to train."""
    found = {}
    for train in (by_trainer, by_modelwrapper):
        for name, (method, weight) in METHODS.items():
            set_seed(0)
            _parity[0] = 0
            model = bert()
            told = train(model, method(), weight, processes) or []
            weights = [parameter.detach().flatten() for parameter in model.parameters()]
            found[f"{train.__name__}, {name}"] = torch.cat([*weights, torch.tensor(told)])
    return found


def check_that_statistics_agree() -> None:
    """Where a model has batch norm, model and teacher end with the statistics of one process."""
    method = MeanTeacher(0.5)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    rows = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    wrapper = SemiSupervisedModelWrapper(
        model, nn.CrossEntropyLoss(), unlabelled_dataset=TensorDataset(inputs.flip(0)), method=method
    )
    wrapper.train_on_dataset(rows, torch.optim.SGD(model.parameters(), 0.1), 2, 2, workers=0)
    assert_agreed(model, method)

    method, labelled = MeanTeacher(0.5), rows_of_vectors(32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=4, per_device_train_batch_size=2, **QUIET)
        trainer = SemiSupervisedTrainer(
            Normed(), arguments, train_dataset=labelled, unlabelled_dataset=labelled, method=method
        )
        trainer.train()
    assert_agreed(trainer.model, method)


class Normed(nn.Module):
    """A classifier with batch norm, as Trainer takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.norm(x))
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def rows_of_vectors(size: int) -> list[dict]:
    """Rows of six numbers."""
    inputs = torch.randn(size, 6, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "label": int(row[0] > 0)} for row in inputs]


def assert_agreed(model: nn.Module, method: MeanTeacher) -> None:
    """The statistics are those of the other process, too, and not those of the start."""
    for part in (model, method.teacher):
        state = [buffer.double().sum().item() for buffer in part.buffers()]
        assert gather_object([state]) == [state, state] and state[0] != 0, (type(part).__name__, state)


class Failing(PiModel):
    """A loss that is NaN on one of two processes."""

    def loss(self, model: nn.Module, batch: dict, forward: Forward) -> Tensor:
        return super().loss(model, batch, forward) * (float("nan") if PartialState().process_index == 1 else 1)


def check_that_all_stop() -> None:
    """A loss that is not finite on one process stops all."""
    try:
        by_modelwrapper(bert(), Failing(), 1.0, 2)
    except ValueError as error:
        assert "unlabelled rows beside it is" in str(error)
    else:
        raise AssertionError("a loss of NaN passed")


def main() -> None:
    """Write results to the file, or compare with those in it."""
    processes, file = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    found = results(processes)
    if processes == 1:
        torch.save(found, file)
        return
    for name, expected in torch.load(file, weights_only=True).items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    check_that_all_stop()
    check_that_statistics_agree()
    if PartialState().is_main_process:
        print("the processes agree")


if __name__ == "__main__":
    main()
    gc.collect()  # the trainer goes first: what exchanges its gradients would wait for ever for gloo's threads to end
    PartialState().destroy_process_group()  # which, left running, abort one exit in five
