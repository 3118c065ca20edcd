"""What an experiment asks of that which learns, and Trainer's answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import load_model, save_model
from transformers import set_seed

from baal_hf.arrays import NumpyArray
from baal_hf.posterior.base import unwrapped
from baal_hf.trainer import BaalTransformersTrainer


class Learner(Protocol):
    """Something that learns from labelled rows, is measured, and predicts under posterior draws."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""

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


class TrainerLearner:
    """A `BaalTransformersTrainer` that learns.

    Args:
        trainer: Trains and predicts; its `train_dataset` is replaced.
    """

    # Of an evaluation, but different every time.
    _TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")

    def __init__(self, trainer: BaalTransformersTrainer) -> None:
        self.trainer = trainer

    @property
    def is_main(self) -> bool:
        return bool(self.trainer.is_world_process_zero())

    def train(self, labelled: Any, seed: int) -> None:
        self.trainer.train_dataset = labelled
        set_seed(seed)
        self.trainer.train()

    def evaluate(self, rows: Any) -> dict[str, float]:
        metrics = self.trainer.evaluate(rows)
        return {name: value for name, value in metrics.items() if not name.endswith(self._TIMES) and name != "epoch"}

    def classes(self, rows: Any) -> NumpyArray:
        outputs: Any = self.trainer.predict(rows).predictions  # in one deterministic pass
        logits = outputs[0] if isinstance(outputs, tuple) else outputs  # [N, C]
        classes: NumpyArray = np.asarray(logits).argmax(-1)
        return classes

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
