"""`ModelWrapper`: any torch module trained, tested, and predicted under posterior draws, with Baal's interface.

The file is long by its docstrings and by the many arguments that Baal's methods have.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from baal_hf.criteria import LINKS, Link, link_of
from baal_hf.posterior import Ensemble, MCDropout, Posterior
from baal_hf.posterior.base import unwrapped
from baal_hf.posterior.patching import unpatched
from baal_hf.rows import has_targets, inputs_and_target
from baal_hf.sampling import Sampler, check_iterations, halved, progress_bar

Outputs = Tensor | list[Tensor]


class ModelWrapper:
    """Trains, tests and predicts with any torch module, on Accelerate and the engine that the Trainer uses.

    Rows of a dataset are tuples whose last element is the target, or dictionaries with a `label`, `labels`,
    `label_ids`, `target` or `targets`. The model is called with the other elements, or with the other entries as
    keywords. Rows of a pool have no target. The model returns a tensor [B, C, *S] or several of them.

    Args:
        model: A module; of one in `MCDropoutModule` or given to `patch_module` the posterior is taken over, so that
            tests are deterministic.
        criterion: (outputs, target) -> loss, a mean over the batch.
        replicate_in_memory: Baal's, without effect: draws of a batch share what they can.
        posterior: What predictions are drawn from; `MCDropout()` by default.
        probabilities: How outputs become probabilities: "softmax", "log_softmax", "sigmoid", "none" (regression), or a
            function of the outputs. None asks the criterion.
        mixed_precision: "no", "fp16" or "bf16"; None is Accelerate's default.

    Raises:
        ValueError: The criterion's probabilities cannot be told, or there is no link of that name.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Tensor] | None,
        replicate_in_memory: bool = True,
        *,
        posterior: Posterior | None = None,
        probabilities: str | Link | None = None,
        mixed_precision: str | None = None,
    ) -> None:
        self.model, taken_over = unpatched(model)
        self.posterior: Posterior = posterior or taken_over or MCDropout()
        self.criterion = criterion
        name = probabilities if probabilities is not None else link_of(criterion)
        if isinstance(name, str) and name not in LINKS:
            raise ValueError(
                f"ModelWrapper needs probabilities out of {', '.join(LINKS)}, or a function, got {name!r}."
            )
        self._to_probs: Link
        self._to_outputs: Link | None
        self._to_probs, self._to_outputs = LINKS[name] if isinstance(name, str) else (name, None)
        self._mixed_precision = mixed_precision
        self._accelerators: dict[bool, Accelerator] = {}
        self._metrics: dict[str, Callable[[], Any]] = {}
        self._values: dict[str, Any] = {}

    # Training and testing

    def train_on_dataset(
        self,
        dataset: Any,
        optimizer: Optimizer,
        batch_size: int = 32,
        epoch: int = 1,
        use_cuda: bool | None = None,
        workers: int = 4,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        regularizer: Callable[[], Tensor] | None = None,
    ) -> list[float]:
        """Train for some epochs.

        Args:
            dataset: Labelled rows, such as an `ActiveLearningDataset`.
            optimizer: Of the model's parameters.
            batch_size: Rows of a batch on each process.
            epoch: Number of epochs.
            use_cuda: Whether to use the accelerator; None uses it where there is one.
            workers: Processes that load rows, at most one for each core.
            collate_fn: Makes a batch of rows.
            regularizer: Its value is added to the loss of each batch.

        Returns:
            The mean loss of each epoch.

        Raises:
            ValueError: No rows, no targets, or a loss that is not finite, with its batch.
        """
        return [
            self._epoch(dataset, optimizer, batch_size, number, use_cuda, workers, collate_fn, regularizer)
            for number in range(1, epoch + 1)
        ]

    def test_on_dataset(
        self,
        dataset: Any,
        batch_size: int = 32,
        use_cuda: bool | None = None,
        workers: int = 4,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        average_predictions: int = 1,
    ) -> float:
        """The mean loss over the rows, deterministic, or of the predictive mean over that many draws.

        Metrics that were added are computed, too: `get_metrics("test")`.

        Raises:
            ValueError: No rows, no targets, or `average_predictions` < 1.
        """
        accelerator = self.accelerator(use_cuda)
        loader = accelerator.prepare_data_loader(self._loader(dataset, batch_size, workers, collate_fn, shuffle=False))
        metrics = {name: made() for name, made in self._metrics.items()}
        total, rows = 0.0, 0
        for batch in loader:
            inputs, target = inputs_and_target(batch, has_targets(dataset))
            mine = self._tested(inputs, average_predictions, accelerator), _targeted(target)
            outputs, target = accelerator.gather_for_metrics(mine)  # of all processes, no row twice
            size = len(outputs if isinstance(outputs, Tensor) else outputs[0])
            total, rows = total + size * float(self._loss(outputs, target)), rows + size
            for metric in metrics.values():
                _update(metric, outputs, target)
        self._values["test_loss"] = total / rows
        self._values |= {f"test_{name}": _value(metric, name) for name, metric in metrics.items()}
        return total / rows

    def train_and_test_on_datasets(
        self,
        train_dataset: Any,
        test_dataset: Any,
        optimizer: Optimizer,
        batch_size: int = 32,
        epoch: int = 1,
        use_cuda: bool | None = None,
        workers: int = 4,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        regularizer: Callable[[], Tensor] | None = None,
        return_best_weights: bool = False,
        patience: int | None = None,
        min_epoch_for_es: int = 0,
    ) -> Any:
        """Train for some epochs, and test after each.

        Args:
            train_dataset: Labelled rows to train on.
            test_dataset: Labelled rows to test on.
            optimizer: As for `train_on_dataset`.
            batch_size: As for `train_on_dataset`.
            epoch: As for `train_on_dataset`.
            use_cuda: As for `train_on_dataset`.
            workers: As for `train_on_dataset`.
            collate_fn: As for `train_on_dataset`.
            regularizer: As for `train_on_dataset`.
            return_best_weights: Return the weights of the epoch with the lowest test loss as well.
            patience: Stop after so many epochs without a lower test loss; None never does.
            min_epoch_for_es: Epochs after which stopping may begin.

        Returns:
            The metrics of each epoch, a dictionary for each; with `return_best_weights` these and a state dict.

        Raises:
            ValueError: As for `train_on_dataset`.
        """
        history: list[dict[str, Any]] = []
        best_loss, best_weights, since = math.inf, None, 0
        for number in range(1, epoch + 1):
            self._epoch(train_dataset, optimizer, batch_size, number, use_cuda, workers, collate_fn, regularizer)
            loss = self.test_on_dataset(test_dataset, batch_size, use_cuda, workers, collate_fn)
            history.append(self.get_metrics())
            since += 1
            if loss < best_loss:
                best_loss, since = loss, 0
                best_weights = copy.deepcopy(self.state_dict()) if return_best_weights else None
            if patience is not None and since >= patience and number > min_epoch_for_es:
                break
        return (history, best_weights) if return_best_weights else history

    def train_on_batch(
        self,
        data: Any,
        target: Any,
        optimizer: Optimizer,
        cuda: bool | None = None,
        regularizer: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """One step on a batch; returns its loss."""
        accelerator = self.accelerator(cuda)
        self.model.train()
        return self._step(self._model_on(accelerator), _as_inputs(data), target, optimizer, accelerator, regularizer)

    def test_on_batch(self, data: Any, target: Any, cuda: bool | None = None, average_predictions: int = 1) -> Tensor:
        """The loss of a batch; as `test_on_dataset`."""
        outputs = self._tested(_as_inputs(data), average_predictions, self.accelerator(cuda))
        return self._loss(outputs, target).detach()

    # Predicting

    def predict_on_dataset(
        self,
        dataset: Any,
        batch_size: int = 32,
        iterations: int = 20,
        use_cuda: bool | None = None,
        workers: int = 4,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        half: bool = False,
        verbose: bool = True,
    ) -> Any:
        """Probabilities of each row under T draws of the posterior; of a regression its values.

        Args:
            dataset: Rows, such as a pool; targets are not looked at.
            batch_size: Rows of a batch on each process.
            iterations: Number of draws, T.
            use_cuda: Whether to use the accelerator; None uses it where there is one.
            workers: Processes that load rows.
            collate_fn: Makes a batch of rows.
            half: Return float16.
            verbose: Show a progress bar.

        Returns:
            float32 or float16, [N, C, *S, T], in the order of the dataset, the same on every process; a list of such
            arrays for a model that returns several tensors.

        Raises:
            ValueError: No rows, T < 1, no dropout to draw from, outputs that are not finite.
        """
        parts = [
            *self.predict_on_dataset_generator(
                dataset, batch_size, iterations, use_cuda, workers, collate_fn, half, verbose
            )
        ]
        if isinstance(parts[0], list):
            return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
        return np.concatenate(parts)

    def predict_on_dataset_generator(
        self,
        dataset: Any,
        batch_size: int = 32,
        iterations: int = 20,
        use_cuda: bool | None = None,
        workers: int = 4,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        half: bool = False,
        verbose: bool = True,
    ) -> Iterator[Any]:
        """What `predict_on_dataset` returns, some consecutive rows at a time."""
        check_iterations(iterations, self.posterior)
        accelerator = self.accelerator(use_cuda)
        self._model_on(accelerator)
        packing = _Packing()

        def forward(model: nn.Module, batch: Any) -> Tensor:
            outputs = _called(model, inputs_and_target(batch, has_targets(dataset))[0])
            return packing.packed(_each(self._to_probs, outputs))

        sampler = Sampler(
            self.model,
            self.posterior,
            forward,
            accelerator,
            batch_size=batch_size,
            collate_fn=collate_fn,
            num_workers=_cores(workers),
            progress=partial(progress_bar, "draws", not verbose or not accelerator.is_main_process),
        )
        parts = sampler.predictions(dataset, iterations)
        return (packing.unpacked(halved(part) if half else part) for part in parts)

    def predict_on_batch(self, data: Any, iterations: int = 1, cuda: bool | None = None) -> Any:
        """Probabilities of a batch of inputs under T draws, on the device: [B, C, *S, T], or a list of such tensors.

        Raises:
            ValueError: T < 1, or no dropout to draw from.
        """
        check_iterations(iterations, self.posterior)
        return self._drawn(_as_inputs(data), iterations, self.accelerator(cuda))

    # State

    def add_metric(self, name: str, initializer: Callable[[], Any]) -> None:
        """Compute a metric whenever rows are tested.

        Args:
            name: In `get_metrics` it is `test_<name>`.
            initializer: Makes the metric: a module of `evaluate`, which is given the most probable classes, or a metric
                of torchmetrics, which is given the outputs.
        """
        self._metrics[name] = initializer

    def get_metrics(self, prefix: str = "") -> dict[str, Any]:
        """The last values whose names begin with `prefix`: `train_loss`, `test_loss`, and those that were added."""
        return {name: value for name, value in self._values.items() if name.startswith(prefix)}

    def state_dict(self) -> dict[str, Any]:
        """The model's weights."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model."""
        self.model.load_state_dict(state_dict, strict=strict)

    def train(self) -> None:
        """Put the model in training mode."""
        self.model.train()

    def eval(self) -> None:
        """Put the model in evaluation mode."""
        self.model.eval()

    def reset_fcs(self) -> None:
        """Draw the weights of all linear layers anew."""
        for part in self.model.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()

    def reset_all(self) -> None:
        """Draw the weights of all layers anew that know how to."""
        for part in self.model.modules():
            reset: Any = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()

    def _epoch(
        self,
        dataset: Any,
        optimizer: Optimizer,
        batch_size: int,
        number: int,
        use_cuda: bool | None,
        workers: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        regularizer: Callable[[], Tensor] | None,
    ) -> float:
        """One epoch; its mean loss."""
        accelerator = self.accelerator(use_cuda)
        model = self._model_on(accelerator)
        loader = accelerator.prepare_data_loader(self._loader(dataset, batch_size, workers, collate_fn, shuffle=True))
        self.model.train()
        total = torch.zeros(2)
        for place, batch in enumerate(loader):
            inputs, target = inputs_and_target(batch, has_targets(dataset))
            try:
                loss = self._step(model, inputs, _targeted(target), optimizer, accelerator, regularizer)
            except FloatingPointError as error:
                raise ValueError(f"Batch {place} of epoch {number}: {error}") from None
            size = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0])
            total += torch.tensor([float(loss) * size, size])
        self.model.eval()
        losses, rows = accelerator.gather(total.to(accelerator.device)[None]).sum(0).tolist()
        mean: float = losses / rows
        self._values["train_loss"] = mean
        return mean

    def _step(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any,
        optimizer: Optimizer,
        accelerator: Accelerator,
        regularizer: Callable[[], Tensor] | None,
    ) -> Tensor:
        optimizer.zero_grad()
        with accelerator.autocast():
            loss = self._loss(_called(model, _to(inputs, accelerator)), _to(target, accelerator))
            if regularizer is not None:
                loss = loss + regularizer()
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is {loss.item()}. Look at its rows, or at the learning rate.")
        accelerator.backward(loss)
        optimizer.step()
        return loss.detach().float()

    def _loss(self, outputs: Any, target: Any) -> Tensor:
        if self.criterion is None:
            raise ValueError("Training and testing need a criterion, and ModelWrapper was given None.")
        return self.criterion(outputs, target)

    @torch.no_grad()
    def _tested(self, inputs: Any, draws: int, accelerator: Accelerator) -> Any:
        """Outputs of the model as it is, or those whose probabilities are the mean over draws."""
        if draws < 1:
            raise ValueError(f"Testing needs average_predictions >= 1, got {draws}.")
        if draws == 1:
            model = self._model_on(accelerator).eval()
            with accelerator.autocast():
                return _each(lambda output: output.float(), _called(model, _to(inputs, accelerator)))
        if self._to_outputs is None:
            raise ValueError("Averaging needs outputs of probabilities: give probabilities by name, not as a function.")
        mean = _each(lambda probs: probs.mean(-1), self._drawn(inputs, draws, accelerator))
        return _each(self._to_outputs, mean)

    @torch.no_grad()
    def _drawn(self, inputs: Any, draws: int, accelerator: Accelerator) -> Any:
        """Probabilities of a batch under draws, [B, C, *S, T] each."""
        self._model_on(accelerator).eval()
        passes = []
        for t in range(draws):
            with self.posterior.draw(self.model, t), accelerator.autocast():
                passes.append(_each(self._to_probs, _called(self.model, _to(inputs, accelerator))))
        if isinstance(passes[0], list):
            return [torch.stack(outputs, -1) for outputs in zip(*passes, strict=True)]
        return torch.stack(passes, -1)

    def _loader(self, dataset: Any, batch_size: int, workers: int, collate_fn: Any, shuffle: bool) -> DataLoader[Any]:
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise ValueError("ModelWrapper needs rows, and the dataset has none. Is something labelled?")
        return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=_cores(workers), collate_fn=collate_fn)

    def accelerator(self, use_cuda: bool | None) -> Accelerator:
        """Device, precision and processes, as Accelerate has them; made when it is first asked for.

        Raises:
            ValueError: `use_cuda` without a GPU.
        """
        if use_cuda and not torch.cuda.is_available():
            raise ValueError("use_cuda=True needs a GPU that torch sees, and there is none.")
        on_cpu = use_cuda is False
        if on_cpu not in self._accelerators:
            self._accelerators[on_cpu] = Accelerator(cpu=on_cpu, mixed_precision=self._mixed_precision)
        return self._accelerators[on_cpu]

    def _model_on(self, accelerator: Accelerator) -> nn.Module:
        """The model on the device, which with several processes exchanges gradients."""
        self.model.to(accelerator.device)
        if accelerator.num_processes == 1:
            return self.model
        if not hasattr(self, "_parallel"):
            self._parallel: nn.Module = accelerator.prepare_model(self.model)
            self.model = unwrapped(self._parallel)
        return self._parallel


class EnsembleModelWrapper(ModelWrapper):
    """A `ModelWrapper` whose draws are the checkpoints that were added (deep ensembles, Lakshminarayanan et al., 2017).

    Args:
        model: As for `ModelWrapper`.
        criterion: As for `ModelWrapper`.
        **arguments: As for `ModelWrapper`, but no posterior.
    """

    def __init__(self, model: nn.Module, criterion: Callable[[Any, Any], Tensor] | None, **arguments: Any) -> None:
        super().__init__(model, criterion, **arguments)
        self._checkpoints: list[dict[str, Tensor]] = []

    def add_checkpoint(self) -> None:
        """Make a copy of the model's weights, kept in memory, a member."""
        weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self._checkpoints.append(weights)

    def clear_checkpoints(self) -> None:
        """Have no members."""
        self._checkpoints = []

    def predict_on_dataset_generator(
        self, dataset: Any, batch_size: int = 32, iterations: int | None = None, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for."""
        self.posterior = self._ensemble()
        iterations = len(self._checkpoints) if iterations is None else iterations
        return super().predict_on_dataset_generator(dataset, batch_size, iterations, *args, **kwargs)

    def predict_on_dataset(
        self, dataset: Any, batch_size: int = 32, iterations: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for.

        Raises:
            ValueError: There is no member.
        """
        return super().predict_on_dataset(dataset, batch_size, iterations, *args, **kwargs)  # type: ignore[arg-type]

    def predict_on_batch(self, data: Any, iterations: int | None = None, cuda: bool | None = None) -> Any:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for."""
        self.posterior = self._ensemble()
        return super().predict_on_batch(data, len(self._checkpoints) if iterations is None else iterations, cuda)

    def _ensemble(self) -> Ensemble:
        if not self._checkpoints:
            raise ValueError("An ensemble needs members: train the model and call add_checkpoint() for each.")
        return Ensemble(self._checkpoints)


class _Packing:
    """Several outputs as one tensor that the engine can carry, and back."""

    def __init__(self) -> None:
        self._shapes: list[torch.Size] | None = None

    def packed(self, outputs: Outputs) -> Tensor:
        """One tensor as it is; several side by side, [B, n]."""
        if isinstance(outputs, Tensor):
            return outputs
        self._shapes = [output.shape[1:] for output in outputs]
        return torch.cat([output.flatten(1) for output in outputs], 1)

    def unpacked(self, part: Tensor) -> Any:
        """The arrays [n, C, *S, T] of consecutive rows."""
        if self._shapes is None:
            return part.numpy()
        pieces = torch.split(part, [shape.numel() for shape in self._shapes], dim=1)
        return [
            piece.reshape(len(part), *shape, part.shape[-1]).numpy()
            for piece, shape in zip(pieces, self._shapes, strict=True)
        ]


def _cores(workers: int) -> int:
    return min(workers, os.cpu_count() or 1)


def _called(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: a tensor, or a list of several."""
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    if isinstance(outputs, Mapping):
        outputs = outputs["logits"]
    return list(outputs) if isinstance(outputs, tuple | list) else outputs


def _each(change: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    return [change(output) for output in outputs] if isinstance(outputs, list) else change(outputs)


def _as_inputs(data: Any) -> Any:
    return data if isinstance(data, Mapping | tuple | list) else (data,)


def _to(values: Any, accelerator: Accelerator) -> Any:
    return send_to_device(values, accelerator.device)


def _targeted(target: Any) -> Any:
    if target is None:
        raise ValueError("Training and testing need targets: rows that are (input, target), or have a label.")
    return target


def _update(metric: Any, outputs: Any, target: Any) -> None:
    """Tell a metric of a batch: a module of `evaluate` the classes, one of torchmetrics the outputs."""
    if hasattr(metric, "add_batch"):
        metric.add_batch(predictions=outputs.argmax(1).cpu().numpy(), references=target.cpu().numpy())
    else:
        metric.update(outputs, target)


def _value(metric: Any, name: str) -> Any:
    value = metric.compute()
    value = value.get(name, value) if isinstance(value, Mapping) else value
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
