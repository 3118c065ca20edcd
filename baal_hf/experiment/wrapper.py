"""`WrapperLearner`: a `ModelWrapper` in an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim import Optimizer

from baal_hf.arrays import NumpyArray
from baal_hf.ensemble import EnsembleModelWrapper
from baal_hf.experiment.learner import fresh_masks_seeded
from baal_hf.modelwrapper import ModelWrapper
from baal_hf.posterior import Deterministic
from baal_hf.sampling import described


class WrapperLearner:
    """A `ModelWrapper` that learns.

    Args:
        wrapper: Trains and predicts; metrics that were added to it are in the records.
        optimizer: Makes an optimizer of the model's parameters, anew in each round.
        batch_size: Rows of a batch.
        epoch: Epochs of each training.
        **options: `use_cuda`, `workers`, `collate_fn`, as the wrapper's methods take them.

    Raises:
        ValueError: The wrapper is an `EnsembleModelWrapper`, whose members a round would have to train one by one.
    """

    def __init__(
        self,
        wrapper: ModelWrapper,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        batch_size: int = 32,
        epoch: int = 1,
        **options: Any,
    ) -> None:
        if isinstance(wrapper, EnsembleModelWrapper):
            raise ValueError(
                "WrapperLearner trains one network a round, and EnsembleModelWrapper draws from several: train its "
                "members in a loop of your own around ActiveLearningLoop."
            )
        self.wrapper = wrapper
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.epoch = epoch
        self.options = options

    @property
    def is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "posterior": described(self.wrapper.posterior),
            "wrapper": self.wrapper.settings,
            "training": {"optimizer": described(self.optimizer), "batch_size": self.batch_size, "epoch": self.epoch},
        }

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        return fresh_masks_seeded(self.wrapper, seed)

    def train(self, labelled: Any, seed: int) -> None:
        set_seed(seed)
        optimizer = self.optimizer(self.wrapper.model.parameters())
        self.wrapper.train_on_dataset(labelled, optimizer, self.batch_size, self.epoch, **self.options)

    def evaluate(self, rows: Any) -> dict[str, float]:
        self.wrapper.test_on_dataset(rows, self.batch_size, **self.options)
        return {
            f"eval_{name.removeprefix('test_')}": value.tolist() if hasattr(value, "tolist") else value
            for name, value in self.wrapper.get_metrics("test_").items()
        }

    def classes(self, rows: Any) -> NumpyArray:
        posterior, self.wrapper.posterior = self.wrapper.posterior, Deterministic()
        try:
            probs = self.wrapper.predict_on_dataset(
                rows, self.batch_size, 1, **self.options, verbose=False
            )  # [N, C, 1]
        finally:
            self.wrapper.posterior = posterior
        if probs.shape[1] < 2:
            raise ValueError("A criterion that looks at classes needs a model of two or more.")
        classes: NumpyArray = probs[..., 0].argmax(1)  # [N, C, 1] to [N]
        return classes

    def predictions(self, rows: Any, iterations: int) -> Iterator[np.ndarray]:
        return self.wrapper.predict_on_dataset_generator(
            rows, self.batch_size, iterations, **self.options, verbose=False
        )

    def features(self, rows: Any) -> np.ndarray:
        raise ValueError("A ModelWrapper does not know where its model's features are: take another heuristic.")

    def save(self, path: Path) -> None:
        save_model(self.wrapper.model, str(path))

    def load(self, path: Path) -> None:
        load_model(self.wrapper.model, str(path))

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    @property
    def _accelerator(self) -> Any:
        return self.wrapper.accelerator(self.options.get("use_cuda"))
