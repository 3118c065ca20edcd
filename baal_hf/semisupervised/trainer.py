"""`SemiSupervisedTrainer`: the training step of Trainer, and a loss on unlabelled rows added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from baal_hf.inputs import input_names, model_columns
from baal_hf.outputs import found_logits, known_problem_type, token_mask
from baal_hf.posterior.base import unwrapped
from baal_hf.semisupervised.base import SemiSupervisedMethod
from baal_hf.semisupervised.mean_teacher import MeanTeacher
from baal_hf.semisupervised.methods import semi_supervised_method
from baal_hf.semisupervised.ramp_up import ramp_up
from baal_hf.semisupervised.unlabelled import check_unlabelled_part, unlabelled_batches, unlabelled_rows
from baal_hf.trainer import BaalTransformersTrainer


class SemiSupervisedTrainer(BaalTransformersTrainer):
    """A `BaalTransformersTrainer` whose training step also learns from rows without labels.

    L = L_labelled + λ w(t) L_unlabelled, w the ramp of `ramp_up`.

    The labelled part is Trainer's own: its batches, its loss, its backward pass. Another backward pass before it gives
    the gradient of the unlabelled part. Epochs and steps are counted in labelled batches, and
    evaluation and prediction know nothing of all this. A class is learned for each row, or for each token that is no
    padding.

    Of a model whose `forward` takes any keywords, Trainer expects a loss that is divided by `num_items_in_batch`. Where
    it is a plain mean, as that of `BertForSequenceClassification`, Trainer in effect multiplies it by the number of
    processes and of accumulated batches, and λ counts for less: set `model.accepts_loss_kwargs = False` first.

    Labels of the unlabelled rows do not reach the data collator and, where rows are dictionaries or a
    `datasets.Dataset`, are not read. Their order is a function of the seed and of the step, so that a run that goes on
    from a checkpoint sees the rows that it would have seen, if the pool is the same; processes see different ones.

    A mean teacher is saved in checkpoints and by `save_model` as `teacher.safetensors`, beside the model. Evaluation
    in training is of the model, not of the teacher; after training, also after the best checkpoint was loaded, the
    teacher is evaluated by `with trainer.method.swapped_into(trainer.model): trainer.evaluate()`.

    Logs have `unlabelled_loss`, the mean of L_unlabelled on this process since the last log, beside `loss`, which is L.

    Args:
        *args: As for BaalTransformersTrainer.
        unlabelled_dataset: Rows to learn from without labels; an `ActiveLearningDataset` means its pool at the time
            that training starts.
        method: "pi_model", "mean_teacher" or "pseudo_labels", each with its defaults, or a `SemiSupervisedMethod`.
        unlabelled_weight: λ, at least 0; with 0 training is Trainer's.
        ratio: Share of a step's rows that are unlabelled, in (0, 1): with 0.5 as many as labelled ones, with 7/8
            seven times as many, as in FixMatch.
        ramp_up_steps: Optimizer steps until the weight is λ; 0 for λ from the start.
        **kwargs: As for BaalTransformersTrainer.

    Attributes:
        unlabelled_dataset: As above; another one is taken up when training starts.
        method: The method, with what it keeps between steps.

    Raises:
        ValueError: There are no unlabelled rows, an unknown method, `ratio` is not in (0, 1), a negative weight or
            number of steps.
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
        **kwargs: Any,
    ) -> None:
        check_unlabelled_part(type(self).__name__, unlabelled_dataset, unlabelled_weight, ratio, ramp_up_steps)
        self.method = semi_supervised_method(method)
        self.unlabelled_dataset = unlabelled_dataset
        self.unlabelled_weight = unlabelled_weight
        self.ratio = ratio
        self.ramp_up_steps = ramp_up_steps
        self._unlabelled_batches: Iterator[Any] | None = None
        self._unlabelled_losses: list[float] = []  # since the last log
        self._checkpoint: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_Following(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """BaalTransformersTrainer's own; a mean teacher goes on from the checkpoint, too."""
        checkpoint: Any = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir or ".")  # type: ignore[no-untyped-call]
        self._checkpoint = Path(checkpoint) if checkpoint else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's own, and the gradient of the unlabelled part.

        Returns:
            The loss of both parts, a scalar without gradient, scaled as Trainer's.

        Raises:
            ValueError: A loss is not finite; the message names the step.
        """
        weight = self.unlabelled_weight * ramp_up(self.state.global_step, self.ramp_up_steps)
        if weight == 0:
            labelled = super().training_step(model, inputs, num_items_in_batch)
            self._refuse_infinite(labelled)
            return labelled
        model.train()
        # First, and without exchange between processes: Trainer's backward pass then exchanges the sum of both.
        with self.accelerator.no_sync(model):
            with self.compute_loss_context_manager():
                unlabelled = self.method.loss(model, self._next_unlabelled(), self._class_logits)
            # The unlabelled part is a mean over its own rows, whatever Trainer divides the labelled one by.
            scaled = weight * unlabelled / self.current_gradient_accumulation_steps
            self.accelerator.backward(scaled)
        labelled = super().training_step(model, inputs, num_items_in_batch)
        self._refuse_infinite(labelled, unlabelled)
        self._unlabelled_losses.append(unlabelled.item())
        return labelled + scaled.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's own, with the loss of the unlabelled part."""
        if "loss" in logs and self._unlabelled_losses:
            logs = {**logs, "unlabelled_loss": sum(self._unlabelled_losses) / len(self._unlabelled_losses)}
            self._unlabelled_losses.clear()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Trainer's own; what the method keeps lies beside the model."""
        super().save_model(output_dir, *args, **kwargs)
        if self.args.should_save:
            self.method.save(Path(output_dir or self.args.output_dir or "."))

    def _begin(self, model: nn.Module, labelled_batches: DataLoader[Any]) -> None:
        """Training begins, or goes on at the state's step."""
        if self.is_deepspeed_enabled:
            raise ValueError(
                "SemiSupervisedTrainer makes two backward passes a step, and DeepSpeed an optimizer's step after each: "
                "train without DeepSpeed."
            )
        if self.is_fsdp_enabled and isinstance(self.method, MeanTeacher):
            raise ValueError("MeanTeacher averages whole weights, which FSDP cuts into pieces: train without FSDP.")
        self._unlabelled_losses.clear()
        self.method.start(unwrapped(model), self._checkpoint)
        self._unlabelled_batches = None
        if self.unlabelled_weight > 0:
            first = _batches_done(self.state.global_step, self.args.gradient_accumulation_steps, labelled_batches)
            self._unlabelled_batches = iter(self._unlabelled_loader(first))

    def _end(self) -> None:
        """Training is over: worker processes end, and the teacher is that of the model."""
        self._unlabelled_batches = None
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is not None:
            self.method.start(unwrapped(self.model), Path(best))
        self.method.end(self.accelerator)

    def _unlabelled_loader(self, first: int) -> DataLoader[Any]:
        """Batches of unlabelled rows without end, from number `first` on."""
        model = unwrapped(self.model)
        collator = self._collator(model)
        rows = model_columns(
            unlabelled_rows(type(self).__name__, self.unlabelled_dataset), collator, type(model).__name__
        )
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        labelled = self.state.train_batch_size or self.args.train_batch_size
        return unlabelled_batches(
            rows,
            labelled,
            self.ratio,
            seed,
            first,
            self.accelerator,
            collator,
            self.args.dataloader_num_workers,
            self.args.dataloader_pin_memory,
        )

    def _next_unlabelled(self) -> Any:
        if self._unlabelled_batches is None:
            raise RuntimeError("SemiSupervisedTrainer has unlabelled batches in train() only.")
        return send_to_device(next(self._unlabelled_batches), self.args.device)

    def _class_logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits [N, C] of a batch's rows, or of its tokens without padding."""
        bare = unwrapped(model)
        kind = known_problem_type(bare)
        if kind not in (None, "single_label_classification"):
            raise ValueError(f"Semi-supervised learning needs a model of classes that exclude each other, got {kind}.")
        if isinstance(batch, Mapping):
            no_cache = {"use_cache": False} if "use_cache" in input_names(bare) else {}  # of keys and values
            logits = found_logits(model(**{**no_cache, **self._collator(bare).taken(batch)}), ())
        else:
            logits = found_logits(model(*batch), ())
        if logits.ndim == 3:  # [B, S, C]
            mask = token_mask(batch)
            return logits.flatten(0, 1) if mask is None else logits[mask.bool()]  # [N, C]
        return logits.movedim(1, -1).flatten(0, -2)  # [B, C, *S] -> [N, C]

    def _refuse_infinite(self, labelled: Tensor, unlabelled: Tensor | None = None) -> None:
        total = labelled if unlabelled is None else labelled + unlabelled.detach()
        if not torch.isfinite(total).all():
            parts = f"{labelled.item():g} of labelled rows"
            parts += "" if unlabelled is None else f", {unlabelled.item():g} of unlabelled rows"
            raise ValueError(
                f"Training stopped at step {self.state.global_step + 1}: the loss is not finite ({parts}). Lower the "
                "learning rate or unlabelled_weight, or look for inputs that are not finite."
            )


class _Following(TrainerCallback):
    """Tells a trainer where its training is."""

    def __init__(self, trainer: SemiSupervisedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._begin(kwargs["model"], kwargs["train_dataloader"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.method.step(kwargs["model"], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._end()


def _batches_done(steps: int, accumulated: int, labelled_batches: Any) -> int:
    """Labelled batches that so many optimizer steps took; the last step of an epoch may have taken fewer."""
    try:
        in_epoch = len(labelled_batches)
    except TypeError:  # a stream
        return steps * accumulated
    epochs, further = divmod(steps, -(-in_epoch // accumulated))
    return epochs * in_epoch + further * accumulated
