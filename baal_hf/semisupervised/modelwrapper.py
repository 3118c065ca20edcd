"""`SemiSupervisedModelWrapper`: the training step of ModelWrapper, and a loss on unlabelled rows added to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from baal_hf.modelwrapper import ModelWrapper, input_collator, up_to_cores
from baal_hf.outputs import found_logits, token_mask
from baal_hf.rows import has_targets, inputs_and_target
from baal_hf.sampling import described
from baal_hf.semisupervised.base import SemiSupervisedMethod
from baal_hf.semisupervised.methods import semi_supervised_method
from baal_hf.semisupervised.ramp_up import ramp_up
from baal_hf.semisupervised.unlabelled import check_unlabelled_part, unlabelled_batches, unlabelled_rows


class SemiSupervisedModelWrapper(ModelWrapper):
    """A `ModelWrapper` whose training step also learns from rows without labels.

    L = L_labelled + λ w(t) L_unlabelled, w the ramp of `ramp_up`.

    The labelled part is ModelWrapper's own: its batches, each labelled row once an epoch in a new order. Unlabelled
    rows come once in a pass, each pass in another order, and an epoch goes on where the last one stopped; the order is
    a function of the seed and of the step, and processes see different ones. Testing and predicting know nothing of
    this. A class is learned for each row, or for each position of outputs [B, C, *S] that is no padding.

    Each call of `train_on_dataset` or `train_and_test_on_datasets` is a training of its own: its ramp starts at 0, a
    mean teacher as a copy of the model, and the unlabelled rows with those that came first: say `epoch=20` rather than
    call it twenty times. The teacher is tested, predicted with or saved in the model's place:

        with wrapper.method.swapped_into(wrapper.model):
            wrapper.test_on_dataset(test)

    `get_metrics("train")` has `train_unlabelled_loss`, the last epoch's mean of L_unlabelled, beside `train_loss`,
    which is L.

    Args:
        *args: As for ModelWrapper.
        unlabelled_dataset: Rows to learn from without labels, which are not looked at; an `ActiveLearningDataset` means
            its pool at the time that training starts.
        method: "pi_model", "mean_teacher" or "pseudo_labels", each with its defaults, or a `SemiSupervisedMethod`.
        unlabelled_weight: λ, at least 0; with 0 training is ModelWrapper's.
        ratio: Share of a step's rows that are unlabelled, in (0, 1): with 0.5 as many as labelled ones, with 7/8
            seven times as many, as in FixMatch.
        ramp_up_steps: Optimizer steps until the weight is λ; 0 for λ from the start.
        seed: Names the orders of the unlabelled rows.
        **kwargs: As for ModelWrapper.

    Attributes:
        unlabelled_dataset: As above; another one is taken up when training starts.
        method: The method, with what it keeps between steps.

    Raises:
        ValueError: There are no unlabelled rows, an unknown method, `ratio` is not in (0, 1), a negative weight or
            number of steps, or probabilities that softmax does not make.
        TypeError: The unlabelled rows are a stream, or `method` is no method.
    """

    def __init__(
        self,
        *args: Any,
        unlabelled_dataset: Any,
        method: str | SemiSupervisedMethod = "pi_model",
        unlabelled_weight: float = 1.0,
        ratio: float = 0.5,
        ramp_up_steps: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_unlabelled_part(type(self).__name__, unlabelled_dataset, unlabelled_weight, ratio, ramp_up_steps)
        self.method = semi_supervised_method(method)
        self.unlabelled_dataset = unlabelled_dataset
        self.unlabelled_weight = unlabelled_weight
        self.ratio = ratio
        self.ramp_up_steps = ramp_up_steps
        self.seed = seed
        self._steps = 0  # of this training
        self._unlabelled_batches: Iterator[Any] | None = None
        self._with_targets = False  # whether they are tuples that end with a target
        self._unlabelled_losses: list[Tensor] = []  # of this epoch
        super().__init__(*args, **kwargs)
        if not {"softmax", "log_softmax"}.issuperset(self.links.names):
            raise ValueError(
                f"{type(self).__name__} needs a model of classes that exclude each other: a criterion such as "
                'cross-entropy, or probabilities="softmax".'
            )

    @property
    def settings(self) -> dict[str, Any]:
        names = inspect.signature(type(self.method)).parameters  # and not what it keeps between steps
        method = {name: described(getattr(self.method, name, None)) for name in names}
        return super().settings | {
            "method": {"class": type(self.method).__name__, **method},
            "unlabelled": [self.unlabelled_weight, self.ratio, self.ramp_up_steps, self.seed],
        }

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
        """ModelWrapper's own; training begins with number 1."""
        accelerator = self.accelerator(use_cuda)
        if number == 1:
            self._model_on(accelerator)
            self.method.start(self.model)
            self._steps = 0
            self._rows = unlabelled_rows(type(self).__name__, self.unlabelled_dataset)
        if self.unlabelled_weight > 0:
            collate = input_collator(collate_fn, self._rows)
            self._with_targets = collate_fn is not None and has_targets(self._rows)
            batches = unlabelled_batches(
                self._rows, batch_size, self.ratio, self.seed, self._steps, accelerator, collate, up_to_cores(workers)
            )
            self._unlabelled_batches = iter(batches)
        try:
            mean = super()._epoch(dataset, optimizer, batch_size, number, use_cuda, workers, collate_fn, regularizer)
            self.method.end(accelerator)
            if self._unlabelled_losses:
                losses = accelerator.gather(torch.stack(self._unlabelled_losses))
                self._values["train_unlabelled_loss"] = losses.mean().item()
        finally:
            self._unlabelled_batches = None  # its worker processes end
            self._unlabelled_losses = []
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
        """ModelWrapper's own, to whose loss the unlabelled part is added as a regularizer is."""
        weight = self.unlabelled_weight * ramp_up(self._steps, self.ramp_up_steps)

        def both() -> Tensor:
            added = weight * self._unlabelled_loss(accelerator)
            return added if regularizer is None else added + regularizer()

        loss = super()._step(model, inputs, target, optimizer, accelerator, both if weight > 0 else regularizer)
        self._steps += 1
        self.method.step(self.model, self._steps)
        return loss

    def _unlabelled_loss(self, accelerator: Accelerator) -> Tensor:
        """The loss of the next unlabelled batch, a scalar with a gradient."""
        if self._unlabelled_batches is None:
            raise RuntimeError(
                f"{type(self).__name__} has unlabelled batches in train_on_dataset and train_and_test_on_datasets only."
            )
        inputs, _ = inputs_and_target(next(self._unlabelled_batches), self._with_targets)
        # Of the bare model: what exchanges gradients between processes takes one pass before a backward pass, and does
        # exchange the sum of both parts.
        loss = self.method.loss(self.model, send_to_device(inputs, accelerator.device), _class_logits)
        # All processes stop together: the others would wait for the one that did.
        if not bool(accelerator.gather(torch.isfinite(loss.detach())[None]).all()):
            raise FloatingPointError(
                f"the loss of the unlabelled rows beside it is {loss.item()}"
                f"{'' if accelerator.num_processes == 1 else ' on this process'}. Lower the learning rate or "
                "unlabelled_weight, or look for inputs that are not finite."
            )
        self._unlabelled_losses.append(loss.detach().float())
        return loss


def _class_logits(model: nn.Module, batch: Any) -> Tensor:
    """Logits [N, C] of a batch's rows, or of their positions without padding."""
    logits = found_logits(model(**batch) if isinstance(batch, Mapping) else model(*batch), ())  # [B, C, *S]
    flat = logits.movedim(1, -1).flatten(0, -2)  # [N, C]
    mask = token_mask(batch)
    return flat if mask is None or logits.ndim != 3 else flat[mask.flatten().bool()]
