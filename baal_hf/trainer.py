"""`BaalTransformersTrainer`: Trainer, and Monte-Carlo predictions over a pool."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.utils import logging

from baal_hf.arrays import probabilities
from baal_hf.posterior import MCDropout, MCDropoutModule, Posterior, unpatch_module
from baal_hf.posterior.patching import patched_posterior
from baal_hf.rows import ROW_ID
from baal_hf.sampling import concatenated, sample_predictions


class BaalTransformersTrainer(Trainer):
    """A drop-in `transformers.Trainer` that also predicts under draws from a posterior.

    Everything Trainer does it does here, unchanged: `train()`, `evaluate()` and `predict()` know nothing of draws.

    Args:
        *args: As for Trainer.
        posterior: What to draw from, `MCDropout()` by default. A model that was given to `patch_module` or
            `MCDropoutModule` is unpatched and its posterior taken over, so that evaluation stays deterministic.
        **kwargs: As for Trainer.

    Attributes:
        posterior: What `predict_on_dataset` draws from.
    """

    def __init__(
        self, model: nn.Module | None = None, *args: Any, posterior: Posterior | None = None, **kwargs: Any
    ) -> None:
        if isinstance(model, MCDropoutModule):
            model = model.parent_module
        super().__init__(model, *args, **kwargs)
        self.model: nn.Module
        self.posterior = posterior or patched_posterior(self.model) or MCDropout()
        unpatch_module(self.model)

    def predict_on_dataset(
        self, dataset: Any, iterations: int = 1, half: bool = False, ignore_keys: Sequence[str] | None = None
    ) -> np.ndarray:
        """Class probabilities of each row under T draws of the posterior.

        Softmax for single-label models, sigmoid for multi-label ones, values as they are for regression, as the model's
        configuration says. Labels are not needed and not looked at; no loss is computed.

        Args:
            dataset: Rows to predict, usually a pool.
            iterations: Number of draws, T.
            half: Return float16.
            ignore_keys: Names of the model's outputs to pass over when looking for `logits`.

        Returns:
            float32 or float16, [N, C, T] or [N, C, *S, T], in the order of the dataset, the same on every process.
            Where rows have different lengths, positions that are padding are NaN.

        Raises:
            ValueError: `iterations` < 1 or beyond the posterior's size, an empty dataset, a model without dropout,
                outputs that are not finite or hold no logits.
        """
        return concatenated(self._predictions(dataset, iterations, half, ignore_keys), len(dataset))

    def predict_on_dataset_generator(
        self, dataset: Any, iterations: int = 1, half: bool = False, ignore_keys: Sequence[str] | None = None
    ) -> Iterator[np.ndarray]:
        """What `predict_on_dataset` returns, batch after batch: arrays [B, C, *S, T] in the order of the dataset."""
        for predictions in self._predictions(dataset, iterations, half, ignore_keys):
            yield predictions.numpy()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities [B, C, *S] of the model's logits; override it for a model with another output.

        Logits of three dimensions are taken as [B, S, C], a class vector for each token; of two as [B, C], of four or
        more as [B, C, *S].
        """
        if logits.ndim == 3:
            logits = logits.movedim(-1, 1)  # [B, C, S]
        return probabilities(logits, _problem_type(extract_model_from_parallel(self.model)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model and forget optimizer and schedule, so that `train()` starts anew."""
        self.model.load_state_dict(state_dict, strict=strict)
        self.optimizer, self.lr_scheduler = None, None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's own, once something is labelled.

        Raises:
            ValueError: The training set has no rows.
        """
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) == 0:
            raise ValueError("Training needs labelled rows, and there are none: call dataset.label_randomly(n) first.")
        return super().get_train_dataloader()

    def _predictions(
        self, dataset: Any, iterations: int, half: bool, ignore_keys: Sequence[str] | None
    ) -> Iterator[Tensor]:
        model = extract_model_from_parallel(self.model)
        if self.args.fp16_full_eval or self.args.bf16_full_eval:  # as Trainer's own evaluation does
            model.to(dtype=torch.float16 if self.args.fp16_full_eval else torch.bfloat16)
        inputs = self._input_names(model)

        def forward(model: nn.Module, batch: Any) -> Tensor:
            return self.probabilities(_logits(model(**batch), ignore_keys or ()))

        batches = sample_predictions(
            model,
            _columns(dataset, inputs, type(model).__name__),
            self.posterior,
            iterations,
            forward,
            self.accelerator,
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=_InputCollator(self.data_collator, inputs),
            num_workers=self.args.dataloader_num_workers,
        )
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        with logging.tqdm(total=len(dataset), unit="row", desc=f"{iterations} draws", disable=hidden) as progress:
            for predictions in batches:
                yield predictions.half() if half else predictions
                progress.update(len(predictions))

    def _input_names(self, model: nn.Module) -> Container[str]:
        """Names that reach the model: what its forward takes, or everything, without labels and row ids."""
        labels = {"label", "labels", "label_ids", *self.label_names}
        if not self.args.remove_unused_columns:
            return _AllBut({*labels, ROW_ID})
        base = getattr(model, "get_base_model", lambda: model)()  # the forward of a PEFT model takes anything
        return set(inspect.signature(base.forward).parameters) - labels


class _InputCollator:
    """The data collator on rows without what does not reach the model. A class, so that workers can be given it."""

    def __init__(self, collator: Callable[[list[Any]], Any], inputs: Container[str]) -> None:
        self.collator = collator
        self.inputs = inputs

    def __call__(self, rows: list[Any]) -> Any:
        return self.collator([{name: row[name] for name in row if name in self.inputs} for row in rows])


class _AllBut(frozenset[str]):
    def __contains__(self, name: object) -> bool:
        return not super().__contains__(name)


def _columns(dataset: Any, inputs: Container[str], model: str) -> Any:
    """The dataset without columns that the model does not take, which then need not be read."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return dataset
    columns = [name for name in dataset.column_names if name in inputs]
    if not columns:
        raise ValueError(
            f"{model} takes none of the dataset's columns {dataset.column_names}. Tokenize the dataset first, or set "
            "remove_unused_columns=False if the data collator does it."
        )
    return dataset.select_columns(columns)


def _logits(outputs: Any, ignore_keys: Container[str]) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        if "logits" in outputs and "logits" not in ignore_keys:
            logits = outputs["logits"]
        else:
            named = [name for name, value in outputs.items() if isinstance(value, Tensor) and name not in ignore_keys]
            if len(named) != 1:
                raise ValueError(f"Predicting needs a model with `logits`, this one returns {list(outputs)}.")
            logits = outputs[named[0]]
    else:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise ValueError(f"Predicting needs logits in one tensor, got {type(logits).__name__}.")
    return logits


def _problem_type(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(
            f"{type(model).__name__} has no config that says how its outputs become probabilities: override "
            "BaalTransformersTrainer.probabilities."
        )
    if config.problem_type is not None:
        return str(config.problem_type)
    return "regression" if config.num_labels == 1 else "single_label_classification"
