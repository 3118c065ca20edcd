"""`BaalTransformersTrainer`: Trainer, and Monte-Carlo predictions and features over a pool."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.utils import logging

from baal_hf import features
from baal_hf.arrays import probabilities
from baal_hf.posterior import BayesianModule, Deterministic, MCDropout, Posterior, unpatch_module
from baal_hf.posterior.patching import patched_posterior
from baal_hf.rows import ROW_ID
from baal_hf.sampling import Forward, concatenated, sample_predictions


class BaalTransformersTrainer(Trainer):
    """A drop-in `transformers.Trainer` that also predicts under draws from a posterior.

    Everything Trainer does it does here, unchanged: `train()`, `evaluate()` and `predict()` know nothing of draws.

    Args:
        *args: As for Trainer.
        posterior: What to draw from, `MCDropout()` by default. A model that was given to `patch_module` or
            a `BayesianModule` (`MCDropoutModule`) is unpatched and its posterior taken over, so that evaluation stays
            deterministic.
        **kwargs: As for Trainer.

    Attributes:
        posterior: What `predict_on_dataset` draws from.
    """

    def __init__(
        self, model: nn.Module | None = None, *args: Any, posterior: Posterior | None = None, **kwargs: Any
    ) -> None:
        self._patched_with: Posterior | None = None
        super().__init__(self._taken_over(model), *args, **kwargs)
        self.model: nn.Module
        self.posterior = posterior if posterior is not None else self._patched_with or MCDropout()
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        self._given_states = {name: deepcopy(part.state_dict()) for name, part in parts.items() if part is not None}

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
        return (part.numpy() for part in self._predictions(dataset, iterations, half, ignore_keys))

    def predict_features(
        self, dataset: Any, representation: str = "pooled", ignore_keys: Sequence[str] | None = None
    ) -> np.ndarray:
        """What the model knows of each row before its head, in one deterministic pass, whatever the posterior.

        Labels are not needed and not looked at. The representations are

        - `pooled`: what the last linear layer of the head receives, so that logits = W h + b, which BADGE needs;
        - `cls`: the last hidden state of the first token (in a decoder, which sees no other, choose another);
        - `mean`: the last hidden state, averaged over tokens without padding, or over all places of an image.

        An encoder-decoder's last hidden state is its encoder's, to whose tokens the attention mask belongs.

        Args:
            dataset: Rows to represent.
            representation: `pooled`, `cls` or `mean`.
            ignore_keys: Names of the model's outputs to pass over when looking for `logits`.

        Returns:
            float32, [N, d], in the order of the dataset, the same on every process.

        Raises:
            ValueError: An unknown representation or one that this model does not have, an empty dataset, features that
                are not finite.
        """
        represent = features.representation(representation)

        def forward(model: nn.Module, batch: Any) -> Tensor:
            return represent(
                model,
                lambda: self._outputs(model, batch),
                lambda outputs: _logits(outputs, ignore_keys or ()),
                _mask(batch),
            )

        parts = self._sampled(dataset, Deterministic(), 1, forward, shown_as="features")
        return concatenated((part.squeeze(-1) for part in parts), len(dataset))  # [B, d, 1] -> [N, d]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities [B, C, *S] of the model's logits; override it for a model with another output.

        The configuration's `problem_type` decides. Where it is None, one label means regression and several mean single
        labels, as in transformers, which sets it when it first sees labels: set it yourself for multi-label models.

        Logits of three dimensions are taken as [B, S, C], a class vector for each token; of two as [B, C], of four or
        more as [B, C, *S].
        """
        if logits.ndim == 3:
            logits = logits.movedim(-1, 1)  # [B, C, S]
        return probabilities(logits, _problem_type(extract_model_from_parallel(self.model, keep_torch_compile=False)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model and start optimizer and schedule anew, those given to the trainer too."""
        self.model.load_state_dict(state_dict, strict=strict)
        for name in ("optimizer", "lr_scheduler"):
            if name in self._given_states:
                getattr(self, name).load_state_dict(deepcopy(self._given_states[name]))
            else:
                setattr(self, name, None)

    def call_model_init(self, trial: Any = None) -> Any:
        """Trainer's own; a model that comes patched is taken over."""
        return self._taken_over(super().call_model_init(trial))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's own, once something is labelled.

        Raises:
            ValueError: The training set has no rows.
        """
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) == 0:
            raise ValueError("Training needs labelled rows, and there are none: call dataset.label_randomly(n) first.")
        return super().get_train_dataloader()

    def _taken_over(self, model: nn.Module | None) -> nn.Module | None:
        """The model without the patches of it or its parts; what they draw from is kept."""
        if isinstance(model, BayesianModule):
            model = model.parent_module
        for part in model.modules() if model is not None else ():
            self._patched_with = patched_posterior(part) or self._patched_with
            unpatch_module(part)
        return model

    def _predictions(
        self, dataset: Any, iterations: int, half: bool, ignore_keys: Sequence[str] | None
    ) -> Iterator[Tensor]:
        def forward(model: nn.Module, batch: Any) -> Tensor:
            return self.probabilities(_logits(self._outputs(model, batch), ignore_keys or ()))

        parts = self._sampled(dataset, self.posterior, iterations, forward, shown_as=f"{iterations} draws")
        return (part.half() if half else part for part in parts)

    def _outputs(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns for a batch."""
        precision = {self.args.fp16_full_eval: torch.float16, self.args.bf16_full_eval: torch.bfloat16}.get(True)
        # Trainer's evaluation casts the weights for `*_full_eval`, for good; here they stay as they are.
        with torch.autocast(self.args.device.type, precision) if precision else nullcontext():
            return model(**batch) if isinstance(batch, Mapping) else model(*batch)

    def _sampled(
        self, dataset: Any, posterior: Posterior, iterations: int, forward: Forward, shown_as: str
    ) -> Iterator[Tensor]:
        """What the engine makes of the dataset without labels, batch after batch, with a progress bar."""
        model = extract_model_from_parallel(self.model, keep_torch_compile=False)
        collator = _InputCollator(self.data_collator, self._label_names, self._input_names(model))
        batches = sample_predictions(
            model,
            _columns(dataset, collator, type(model).__name__),
            posterior,
            iterations,
            forward,
            self.accelerator,
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
        )
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        return _shown(batches, total=len(dataset), unit="row", desc=shown_as, disable=hidden)

    @property
    def _label_names(self) -> set[str]:
        return {"label", "labels", "label_ids", *self.label_names}

    def _input_names(self, model: nn.Module) -> set[str] | None:
        """What the model's forward takes; None where columns that it does not take are to be left."""
        if not self.args.remove_unused_columns:
            return None
        base = getattr(model, "get_base_model", lambda: model)()  # the forward of a PEFT model takes anything
        return set(inspect.signature(base.forward).parameters)


def _shown(batches: Iterator[Tensor], **progress: Any) -> Iterator[Tensor]:
    with logging.tqdm(**progress) as bar:
        for part in batches:
            yield part
            bar.update(len(part))


class _InputCollator:
    """The data collator on rows, and of batches, without what does not reach the model: labels, row ids, other columns.

    A class, so that worker processes can be given it.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], labels: set[str], inputs: set[str] | None) -> None:
        self.collator = collator
        self.labels = labels
        self.inputs = inputs

    def wants(self, name: str) -> bool:
        return name not in self.labels and name != ROW_ID and (self.inputs is None or name in self.inputs)

    def __call__(self, rows: list[Any]) -> Any:
        try:
            batch = self.collator([self._wanted(row) for row in rows])
        except KeyError as error:
            raise ValueError(
                f"The data collator asks for {error}, which predicting does not give it: labels are hidden in a pool. "
                "Let it leave out what a row does not have."
            ) from error
        return self._wanted(batch)

    def _wanted(self, row: Any) -> Any:
        return {name: row[name] for name in row if self.wants(name)} if isinstance(row, Mapping) else row


def _columns(dataset: Any, collator: _InputCollator, model: str) -> Any:
    """The dataset without columns that the model does not take, which then need not be read."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return dataset
    columns = [name for name in dataset.column_names if collator.wants(name)]
    if not columns:
        raise ValueError(
            f"{model} takes none of the dataset's columns {dataset.column_names}. Tokenize the dataset first, or set "
            "remove_unused_columns=False if the data collator does it."
        )
    return dataset.select_columns(columns)


def _mask(batch: Any) -> Tensor | None:
    """Which tokens, or patches of images of different size, are no padding, [B, S]; None where nothing says it."""
    given = batch if isinstance(batch, Mapping) else {}
    mask: Tensor | None = given.get("attention_mask", given.get("pixel_attention_mask"))
    return mask


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
