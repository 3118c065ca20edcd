"""What an experiment asks of that which learns, and Trainer's answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import load_model, save_model
from transformers import set_seed

from baal_hf.arrays import NumpyArray
from baal_hf.outputs import problem_type
from baal_hf.posterior import Deterministic, MCDropout
from baal_hf.posterior.base import unwrapped
from baal_hf.sampling import described
from baal_hf.trainer import BaalTransformersTrainer


class Learner(Protocol):
    """Something that learns from labelled rows, is measured, and predicts under posterior draws."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on beside weights and rows, as far as it can be told, as JSON can hold it."""

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        """A `with` block in which draws that do not follow from their number begin anew, from this seed."""

    def train(self, labelled: Any, seed: int) -> None:
        """Learn from labelled rows, from the present weights on."""

    def evaluate(self, rows: Any) -> dict[str, float]:
        """Metrics by name, the same for the same weights and rows."""

    def classes(self, rows: Any) -> NumpyArray:
        """The most probable class of each row, int64 [N]."""

    def predictions(self, rows: Any, iterations: int) -> Iterator[np.ndarray]:
        """Predictions of consecutive rows, [n, C, *S, T]."""

    def features(self, rows: Any) -> np.ndarray:
        """Representations, [N, d]."""

    def save(self, path: Path) -> None:
        """Write the weights."""

    def load(self, path: Path) -> None:
        """Have the weights that `save` wrote."""

    def wait(self) -> None:
        """Until all processes are here."""


@contextmanager
def fresh_masks_seeded(drawing: Any, seed: int) -> Iterator[None]:
    """Fresh masks begin anew, from this seed, for the length of a `with` block.

    Args:
        drawing: Has a `posterior`.
        seed: Names them.
    """
    given = drawing.posterior
    if isinstance(given, MCDropout) and given.masks == "fresh":
        drawing.posterior = given.with_seed(seed)
    try:
        yield
    finally:
        drawing.posterior = given


class TrainerLearner:
    """A `BaalTransformersTrainer` that learns.

    Args:
        trainer: Trains and predicts; its `train_dataset` is replaced.

    Raises:
        ValueError: The trainer makes its models by `model_init`.
    """

    # Of an evaluation, but different every time.
    _TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")

    _TRAINING = (
        *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "weight_decay", "optim"),
        *("gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "bf16", "fp16"),
    )

    def __init__(self, trainer: BaalTransformersTrainer) -> None:
        if getattr(trainer, "model_init", None) is not None:
            raise ValueError(
                "An experiment begins each round with the same weights: give the trainer a model, no model_init."
            )
        self.trainer: BaalTransformersTrainer = trainer

    @property
    def is_main(self) -> bool:
        return bool(self.trainer.is_world_process_zero())

    @property
    def settings(self) -> dict[str, Any]:
        arguments: dict[str, Any] = self.trainer.args.to_dict()  # type: ignore[no-untyped-call]
        return {
            "posterior": described(self.trainer.posterior),
            "training": {name: described(arguments[name]) for name in self._TRAINING if name in arguments},
        }

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        return fresh_masks_seeded(self.trainer, seed)

    def train(self, labelled: Any, seed: int) -> None:
        self.trainer.train_dataset = labelled
        set_seed(seed)
        self.trainer.train()

    def evaluate(self, rows: Any) -> dict[str, float]:
        metrics = self.trainer.evaluate(rows)
        kept = {name: value for name, value in metrics.items() if not name.endswith(self._TIMES) and name != "epoch"}
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in kept.items()}

    def classes(self, rows: Any) -> NumpyArray:
        kind = problem_type(unwrapped(self.trainer.model))
        if kind != "single_label_classification":
            raise ValueError(f"A criterion that looks at classes needs a model of single labels, this is for {kind}.")
        posterior, self.trainer.posterior = self.trainer.posterior, Deterministic()
        try:
            parts = [*self.trainer.predict_on_dataset_generator(rows, iterations=1)]  # [n, C, 1] each
        finally:
            self.trainer.posterior = posterior
        return np.concatenate([part[..., 0].argmax(1) for part in parts])  # [N]

    def predictions(self, rows: Any, iterations: int) -> Iterator[np.ndarray]:
        return self.trainer.predict_on_dataset_generator(rows, iterations)

    def features(self, rows: Any) -> np.ndarray:
        return self.trainer.predict_features(rows)

    def save(self, path: Path) -> None:
        save_model(unwrapped(self.trainer.model), str(path))

    def load(self, path: Path) -> None:
        load_model(unwrapped(self.trainer.model), str(path))
        self.trainer.load_state_dict(unwrapped(self.trainer.model).state_dict())  # training starts anew, too

    def wait(self) -> None:
        self.trainer.accelerator.wait_for_everyone()
