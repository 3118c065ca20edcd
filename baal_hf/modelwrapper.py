"""`ModelWrapper`: any torch module trained, tested, and predicted under posterior draws, with Baal's interface.

The file is long by its docstrings and by the many arguments that Baal's methods have.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import find_batch_size, send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, default_collate

from baal_hf.criteria import Link, Links, aligned_target, ignored_target, targets_in
from baal_hf.devices import DeviceAccelerator, agree_on_buffers, gathered
from baal_hf.metrics.updating import alone_on, result, update
from baal_hf.outputs import found_logits
from baal_hf.posterior import MCDropout, Posterior
from baal_hf.posterior.patching import unpatched
from baal_hf.posterior.switches import evaluation_flags
from baal_hf.rows import has_targets, inputs_and_target
from baal_hf.sampling import (
    Folder,
    Packing,
    Passes,
    Sampler,
    check_iterations,
    described,
    halved,
    model_digest,
    progress_bar,
    refuse_fresh,
    rows_digest,
    sample_to_store,
)
from baal_hf.store import ArrayStore


class ModelWrapper:
    """Trains, tests and predicts with any torch module, on Accelerate and the engine that the Trainer uses.

    Rows of a dataset are tuples whose last element is the target, or dictionaries with a `label`, `labels`,
    `label_ids`, `target` or `targets`. The model is called with the other elements, or with the other entries as
    keywords. Rows of a pool have no target. The model returns a tensor [B, C, *S], several of them, or `logits`.

    Args:
        model: A module; one in `MCDropoutModule` or given to `patch_module` is unpatched, so that tests are
            deterministic, and the posterior that it was given is taken over.
        criterion: (outputs, target) -> loss, a mean over the batch.
        replicate_in_memory: Baal's, without effect: draws of a batch share what they can.
        posterior: What predictions are drawn from; `MCDropout()` by default. Training does not draw from it: the
            model's own dropout is on then, and weights are not dropped.
        probabilities: How outputs become probabilities: "softmax", "log_softmax", "sigmoid", "probability" (they are,
            of classes that do not exclude each other), "none" (regression), a function of the outputs, or a list with
            one of these for each output. None asks the criterion.
        mixed_precision: "no", "fp16" or "bf16". Accelerate keeps one precision for a process: the first that is asked
            for, which None takes over; another is an error there. Where none was, None is Accelerate's default.

    Raises:
        ValueError: The criterion's probabilities cannot be told, or there is no link of that name; the criterion sums
            over the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Tensor] | None,
        replicate_in_memory: bool = True,
        *,
        posterior: Posterior | None = None,
        probabilities: str | Link | Sequence[str | Link] | None = None,
        mixed_precision: str | None = None,
    ) -> None:
        if getattr(criterion, "reduction", None) == "sum":
            raise ValueError('ModelWrapper needs a mean over the batch: give the criterion reduction="mean".')
        self.criterion = criterion
        self.links = Links(probabilities, criterion)  # a model that is refused stays patched
        self.model, taken_over = unpatched(model)
        self.posterior: Posterior = posterior or taken_over or MCDropout()
        self._mixed_precision = mixed_precision
        self._accelerators: dict[bool | None, Accelerator] = {}  # by use_cuda
        self._metrics: dict[str, Callable[[], Any]] = {}
        self._values: dict[str, Any] = {}
        self._exchanging: nn.Module | None = None  # the model, with what exchanges gradients between processes
        self._exchanged: list[bool] = []  # of which parameters

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
            ValueError: No rows, no targets, `epoch` < 1, or a loss that is not finite, with its batch.
        """
        if epoch < 1:
            raise ValueError(f"Training needs epoch >= 1, got {epoch}.")
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
        """The mean loss over the rows, or positions, whose target counts; deterministic, or of the mean of some draws.

        The draws of a batch share what they can, as in `predict_on_dataset`.
        Metrics that were added are computed, too: `get_metrics("test")`.

        Raises:
            ValueError: No rows, no targets, `average_predictions` < 1, or a loss that is not finite, with its batch.
        """
        accelerator = self.accelerator(use_cuda)
        loader = self._loader(dataset, batch_size, workers, collate_fn, accelerator, shuffle=False)
        metrics = {name: alone_on(accelerator.device, made()) for name, made in self._metrics.items()}
        ignored = ignored_target(self.criterion)
        tested = self._testing(average_predictions, accelerator)
        total, targets = 0.0, 0
        for place, batch in enumerate(loader):
            inputs, target = inputs_and_target(batch, has_targets(dataset))
            outputs, target = gathered(tested(inputs), _targeted(target), ignored, accelerator)
            number = targets_in(target, ignored, len(_listed(outputs)[0]))
            if number == 0:
                continue
            target = aligned_target(target, outputs, self.criterion)
            loss = float(self._loss(outputs, target))
            if not math.isfinite(loss):
                raise ValueError(f"Batch {place} of the test: the loss is {loss}. Look at its rows, or at the weights.")
            total, targets = total + number * loss, targets + number
            if metrics:
                probabilities = self.links.to_probabilities(outputs)
                for metric in metrics.values():
                    update(metric, outputs, probabilities, target, self.links.names[0], ignored)
        if targets == 0:
            raise ValueError(f"Testing needs targets, and the criterion ignores all: they are {ignored}.")
        self._values["test_loss"] = total / targets
        self._values |= {f"test_{name}": result(metric, name) for name, metric in metrics.items()}
        return total / targets

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
        skip_epochs: int = 1,
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
            patience: Stop after so many tests without a lower loss; None never does.
            min_epoch_for_es: Epochs after which stopping may begin.
            skip_epochs: Test after each so many epochs only, and after the last.

        Returns:
            The metrics of each test, a dictionary for each; with `return_best_weights` these and a state dict.

        Raises:
            ValueError: As for `train_on_dataset` and `test_on_dataset`; a number below 1.
        """
        if min(epoch, skip_epochs, 1 if patience is None else patience) < 1:
            raise ValueError(f"Needs numbers >= 1: epoch {epoch}, patience {patience}, skip_epochs {skip_epochs}.")
        history: list[dict[str, Any]] = []
        best_loss, best_weights, since = math.inf, None, 0
        for number in range(1, epoch + 1):
            self._epoch(train_dataset, optimizer, batch_size, number, use_cuda, workers, collate_fn, regularizer)
            if number % skip_epochs and number < epoch:
                continue
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
        """One step on a batch; returns its loss.

        Raises:
            ValueError: It is not finite.
        """
        accelerator = self.accelerator(cuda)
        model = self._trained_on(accelerator)
        self.model.train()
        try:
            return self._step(model, _as_inputs(data), target, optimizer, accelerator, regularizer)
        except FloatingPointError as error:
            raise ValueError(f"The batch: {error}") from None

    def test_on_batch(self, data: Any, target: Any, cuda: bool | None = None, average_predictions: int = 1) -> Tensor:
        """The loss of a batch; as `test_on_dataset`."""
        accelerator = self.accelerator(cuda)
        outputs = self._testing(average_predictions, accelerator)(_as_inputs(data))
        loss = self._loss(outputs, _to(target, accelerator)).detach()
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"The batch: the loss is {loss.item()}. Look at its rows, or at the weights.")
        return loss

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
        *,
        store: Folder | None = None,
    ) -> Any:
        """Probabilities of each row under T draws of the posterior; of a regression its values.

        Args:
            dataset: Rows, such as a pool; targets are not looked at.
            batch_size: Rows of a batch on each process.
            iterations: Number of draws, T.
            use_cuda: Whether to use the accelerator; None uses it where there is one.
            workers: Processes that load rows.
            collate_fn: Makes a batch of rows, which in a pool have no target.
            half: Return float16.
            verbose: Show a progress bar.
            store: A folder to put them in instead of memory, for a model with one output. A run that was killed goes on
                where it was once it is started again with the same rows, weights, posterior and iterations.

        Returns:
            float32 or float16, [N, C, *S, T], in the order of the dataset, the same on every process; where batches
            have different *S, positions that a row does not have are NaN. A list of such arrays for a model that
            returns several tensors. With `store` the store.

        Raises:
            ValueError: No rows, T < 1, no dropout to draw from, outputs that are not finite, or several whose shapes
                change from batch to batch; a store that was made of something else, as the message says.
            OSError: The store cannot be written; what is done is kept.
        """
        arguments = (dataset, batch_size, iterations, use_cuda, workers, collate_fn, verbose)
        sampler, packing = self._predicting(*arguments, stored=store is not None)
        if store is not None:
            return self._stored(store, sampler, dataset, iterations, collate_fn, half, self.accelerator(use_cuda))
        parts = sampler.predictions(dataset, iterations)
        return packing.joined(halved(part) if half else part for part in parts)

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
        sampler, packing = self._predicting(dataset, batch_size, iterations, use_cuda, workers, collate_fn, verbose)
        parts = sampler.predictions(dataset, iterations)
        return (packing.arrays(halved(part) if half else part) for part in parts)

    def predict_on_batch(self, data: Any, iterations: int = 1, cuda: bool | None = None) -> Any:
        """Probabilities of a batch of inputs under T draws, on the device: [B, C, *S, T], or a list of such tensors.

        Raises:
            ValueError: T < 1, no dropout to draw from, or outputs that are not finite.
        """
        check_iterations(iterations, self.posterior)
        probs = self._drawing(self.accelerator(cuda))(_as_inputs(data), iterations)
        if not all(bool(torch.isfinite(part).all()) for part in (probs if isinstance(probs, list) else [probs])):
            raise ValueError("The model's outputs for the batch are not finite. Look at its rows, or at the weights.")
        return probs

    # State

    def add_metric(self, name: str, initializer: Callable[[], Any]) -> None:
        """Compute a metric whenever rows are tested.

        Args:
            name: In `get_metrics` it is `test_<name>`.
            initializer: Makes the metric: a module of `evaluate`, which is given classes or probabilities as its
                features ask, without the positions that the criterion ignores (`ignore_index`), or a metric of
                torchmetrics, which is given the outputs.
        """
        self._metrics[name] = initializer

    def get_metrics(self, prefix: str = "") -> dict[str, Any]:
        """The last values whose names begin with `prefix`: `train_loss`, `test_loss`, and those that were added."""
        return {name: value for name, value in self._values.items() if name.startswith(prefix)}

    @property
    def settings(self) -> dict[str, Any]:
        """What training and predictions depend on, besides model, posterior and rows, as JSON."""
        parts = {"criterion": described(self.criterion), "outputs": described(self.links)}
        return {"class": type(self).__name__, **parts, "precision": self._mixed_precision}

    def state_dict(self) -> dict[str, Any]:
        """The model's weights."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model, also those that were saved from `MCDropoutModule` or its kin around it."""
        inside = {name.removeprefix("parent_module."): value for name, value in state_dict.items()}
        known = inside.keys() <= self.model.state_dict().keys()
        self.model.load_state_dict(inside if known else state_dict, strict=strict)

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

        def begin_anew(part: nn.Module) -> None:
            reset: Any = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))  # attention's
            if callable(reset):
                reset()

        self.model.apply(begin_anew)  # parts first: attention has a say in the weights of its own

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
        model = self._trained_on(accelerator)
        loader = self._loader(dataset, batch_size, workers, collate_fn, accelerator, shuffle=True)
        ignored, total = ignored_target(self.criterion), torch.zeros(2)
        self.model.train()
        try:
            for place, batch in enumerate(loader):
                inputs, target = inputs_and_target(batch, has_targets(dataset))
                try:
                    loss = self._step(model, inputs, _targeted(target), optimizer, accelerator, regularizer)
                except FloatingPointError as error:
                    raise ValueError(f"Batch {place} of epoch {number}: {error}") from None
                targets = targets_in(target, ignored, _rows_in(inputs))
                total += torch.tensor([float(loss) * targets, targets])
        finally:
            self.model.eval()
        agree_on_buffers(self.model, accelerator)
        loss_sum, all_targets = accelerator.gather(total.to(accelerator.device)[None]).sum(0).tolist()
        if all_targets == 0:
            raise ValueError(f"Training needs targets, and the criterion ignores all: they are {ignored}.")
        mean: float = loss_sum / all_targets
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
        # All processes stop together: the others would wait for the one that did.
        if not bool(accelerator.gather(torch.isfinite(loss.detach())[None]).all()):
            raise FloatingPointError(
                f"the loss is {loss.item()}{'' if accelerator.num_processes == 1 else ' on this process'}. Look at its "
                "rows, or at the learning rate."
            )
        # Not the accelerator's backward, which divides by the batches that somebody else accumulates.
        scaler = accelerator.scaler
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        if scaler is None:
            optimizer.step()
        else:  # takes the scale that float16 needs off the gradients
            scaler.step(optimizer)
            scaler.update()
        return loss.detach().float()

    def _loss(self, outputs: Any, target: Any) -> Tensor:
        if self.criterion is None:
            raise ValueError("Training and testing need a criterion, and ModelWrapper was given None.")
        if targets_in(target, ignored_target(self.criterion), 1) == 0:
            # A mean over nothing would be NaN; the processes exchange gradients of this batch, too.
            return torch.stack([output.float().sum() for output in _listed(outputs)]).sum() * 0.0
        loss = self.criterion(outputs, aligned_target(target, outputs, self.criterion))
        if loss.numel() != 1:
            raise ValueError(
                f"The criterion needs to return one number, a mean over the batch, got {list(loss.shape)}: give it "
                'reduction="mean".'
            )
        return loss

    def _testing(self, draws: int, accelerator: Accelerator) -> Callable[[Any], Any]:
        """What gives the outputs of a batch: the model as it is, or those whose probabilities are the mean of draws."""
        if draws < 1:
            raise ValueError(f"Testing needs average_predictions >= 1, got {draws}.")
        if draws == 1:
            return partial(self._deterministic, accelerator)
        drawn = self._drawing(accelerator)
        return lambda inputs: self.links.to_outputs(_each(lambda probs: probs.mean(-1), drawn(inputs, draws)))

    @torch.no_grad()
    def _deterministic(self, accelerator: Accelerator, inputs: Any) -> Any:
        with evaluation_flags(self._model_on(accelerator)), accelerator.autocast():
            return _each(lambda output: output.float(), _called(self.model, _to(inputs, accelerator)))

    def _drawing(self, accelerator: Accelerator) -> _Drawing:
        def outputs(model: nn.Module, inputs: Any) -> Any:
            return self._probabilities(_called(model, inputs))

        return _Drawing(self._model_on(accelerator), self.posterior, outputs, accelerator)

    def _probabilities(self, outputs: Any) -> Any:
        if any(output.ndim < 2 for output in _listed(outputs)):
            raise ValueError("ModelWrapper needs outputs [B, C, ...], got [B]: let the model return [B, 1].")
        return self.links.to_probabilities(outputs)

    def _predicting(
        self,
        dataset: Any,
        batch_size: int,
        iterations: int,
        use_cuda: bool | None,
        workers: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        verbose: bool,
        stored: bool = False,
    ) -> tuple[Sampler, Packing]:
        posterior, accelerator, packing = self.posterior, self.accelerator(use_cuda), Packing()
        check_iterations(iterations, posterior)
        with_targets = has_targets(dataset) and collate_fn is not None

        def forward(model: nn.Module, batch: Any) -> Tensor:
            outputs = _called(model, inputs_and_target(batch, with_targets)[0])
            if stored and isinstance(outputs, list):
                raise ValueError(f"A store holds one output of a model, and this one has {len(outputs)}.")
            return packing.packed(self._probabilities(outputs))

        sampler = Sampler(
            self._model_on(accelerator),
            posterior,
            forward,
            accelerator,
            batch_size=batch_size,
            collate_fn=input_collator(collate_fn, dataset),
            num_workers=up_to_cores(workers),
            progress=partial(progress_bar, "draws", not verbose or not accelerator.is_main_process),
        )
        return sampler, packing

    def _stored(
        self,
        folder: Folder,
        sampler: Sampler,
        dataset: Any,
        iterations: int,
        collate_fn: Callable[[list[Any]], Any] | None,
        half: bool,
        accelerator: Accelerator,
    ) -> ArrayStore:
        """Predictions in a store whose manifest says what they depend on."""
        refuse_fresh(self.posterior, "A store")
        manifest = {
            "kind": "predictions",
            "outputs": described(self.links),
            "collator": described(collate_fn),
            "half": half,
            "iterations": int(iterations),
            "posterior": described(self.posterior),
            "precision": accelerator.mixed_precision,
            "weights": model_digest(self.model),
            "dataset": rows_digest(dataset),
        }
        return sample_to_store(sampler, dataset, range(iterations), folder, manifest, accelerator, half=half)

    def _loader(
        self, dataset: Any, batch_size: int, workers: int, collate_fn: Any, accelerator: Accelerator, shuffle: bool
    ) -> DataLoader[Any]:
        """Batches of this process, on its device."""
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise ValueError("ModelWrapper needs rows, and the dataset has none. Is something labelled?")
        # Only an order is drawn from the global randomness: a loader that needs none would take a number, too.
        generator = None if shuffle else torch.Generator()
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size, shuffle, num_workers=up_to_cores(workers), collate_fn=collate_fn, generator=generator
        )
        # Not the accelerator's own method, which keeps every loader, and with it every dataset, for good.
        mine: DataLoader[Any] = prepare_data_loader(
            loader,
            accelerator.device,
            accelerator.num_processes,
            accelerator.process_index,
            put_on_device=True,
            rng_types=accelerator.rng_types.copy(),
        )
        return mine

    def accelerator(self, use_cuda: bool | None) -> Accelerator:
        """Device, precision and processes; made when it is first asked for.

        Raises:
            ValueError: `use_cuda` without a GPU, or with several processes that are not on such a device.
        """
        if use_cuda not in self._accelerators:
            self._accelerators[use_cuda] = DeviceAccelerator(
                use_cuda,
                mixed_precision=self._mixed_precision,
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        return self._accelerators[use_cuda]

    def _model_on(self, accelerator: Accelerator) -> nn.Module:
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(accelerator.device)  # it may have weights of classes
        return self.model.to(accelerator.device)

    def _trained_on(self, accelerator: Accelerator) -> nn.Module:
        """The model on the device, which with several processes exchanges the gradients of what is trained."""
        model = self._model_on(accelerator)
        trained = [weight.requires_grad for weight in model.parameters()]
        if accelerator.num_processes == 1 or not any(trained):
            return model
        if self._exchanging is None or trained != self._exchanged:
            self._exchanging, self._exchanged = accelerator.prepare_model(model), trained
            # What Accelerate puts around the forward pass goes: it would stay, and go around it again next time.
            self.model = accelerator.unwrap_model(self._exchanging, keep_fp32_wrapper=False)
        return self._exchanging


class _Drawing:
    """Predicts one batch after another under T draws, [B, C, *S, T], or a list of one such tensor for each output.

    Args:
        model: The network.
        posterior: What makes the t-th network.
        outputs: (model, inputs) -> predictions [B, C, *S], or a list of them.
        accelerator: Device and mixed precision.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: Posterior,
        outputs: Callable[[nn.Module, Any], Any],
        accelerator: Accelerator,
    ) -> None:
        self._packing = Packing()
        self._passes = Passes(
            model, posterior, lambda model, inputs: self._packing.packed(outputs(model, inputs)), accelerator
        )

    def __call__(self, inputs: Any, draws: int) -> Any:
        self._packing = Packing()  # batches may differ in their shapes
        (part,) = self._passes([inputs], range(draws))
        unpacked = self._packing.unpacked(part)
        return unpacked[0] if self._packing.is_single else unpacked


def input_collator(collate_fn: Callable[[list[Any]], Any] | None, dataset: Any) -> Callable[[list[Any]], Any]:
    """What makes batches of rows whose targets are not looked at, and may be None or not there."""
    if collate_fn is None:
        return partial(_inputs_collated, has_targets(dataset))
    return partial(_collated_without_targets, collate_fn)


def _collated_without_targets(collate_fn: Callable[[list[Any]], Any], rows: list[Any]) -> Any:
    try:
        return collate_fn(rows)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"collate_fn cannot make a batch of these rows ({error!r}). If it asks for labels: labels are hidden in a "
            "pool, let it leave out what a row does not have."
        ) from error


def _inputs_collated(with_target: bool, rows: list[Any]) -> Any:
    """As torch does it, without targets."""
    return default_collate(
        [inputs_and_target(row, with_target)[0] if isinstance(row, Mapping | tuple | list) else row for row in rows]
    )


def up_to_cores(workers: int) -> int:
    """As many worker processes, but no more than there are cores."""
    return min(workers, os.cpu_count() or 1)


def _called(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: a tensor, or a list of several.

    Raises:
        ValueError: There are none, or the inputs are texts.
    """
    if not isinstance(inputs, Mapping) and any(isinstance(part, str) for part in inputs):
        raise ValueError("ModelWrapper got rows that are texts: give collate_fn=..., which makes tensors of them.")
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    if isinstance(outputs, Mapping):
        return found_logits(outputs, ())
    if isinstance(outputs, tuple | list):
        outputs = [output for output in outputs if output is not None]
        if len(outputs) == 1:
            return outputs[0]
    kinds = {type(output) for output in _listed(outputs)}
    if not kinds or not all(issubclass(kind, Tensor) for kind in kinds):
        raise ValueError(f"ModelWrapper needs a model that returns tensors or logits, got {type(outputs).__name__}.")
    return outputs


def _listed(outputs: Any) -> list[Any]:
    return outputs if isinstance(outputs, list) else [outputs]


def _each(change: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    return [change(output) for output in outputs] if isinstance(outputs, list) else change(outputs)


def _as_inputs(data: Any) -> Any:
    return data if isinstance(data, Mapping | tuple | list) else (data,)


def _rows_in(inputs: Any) -> int:
    """How many rows a batch has; what is no tensor has them as its items."""
    try:
        return int(find_batch_size(inputs))
    except TypeError:
        return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0])


def _to(values: Any, accelerator: Accelerator) -> Any:
    return send_to_device(values, accelerator.device)


def _targeted(target: Any) -> Any:
    if target is None:
        raise ValueError("Training and testing need targets: rows that are (input, target), or have a label.")
    return target
