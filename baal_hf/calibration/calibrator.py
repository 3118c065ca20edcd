"""Baal's name for Dirichlet calibration of a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from baal_hf.arrays import Array, NumpyArray, as_numpy
from baal_hf.calibration.dirichlet import DirichletScaling
from baal_hf.calibration.scaling import SMALLEST
from baal_hf.rows import inputs_and_target


class Predictor(Protocol):
    """What is asked of a wrapper, such as `ModelWrapper`."""

    model: nn.Module  # inputs to logits [B, C]

    @property
    def predict_on_dataset(self) -> Callable[..., Any]:
        """A method of (rows, batch_size=, use_cuda=, ...) to probabilities [N, C, T] in the order of the rows."""


class DirichletCalibrator:
    """`DirichletScaling` of what a wrapper predicts, with Baal's arguments.

    Args:
        wrapper: Predicts probabilities, as `ModelWrapper` does.
        num_classes: C.
        lr: Kept for Baal's callers and without effect: Baal descends by Adam, here L-BFGS goes to the optimum.
        reg_factor: λ of `DirichletScaling`.
        mu: μ of `DirichletScaling`; None means the same as `reg_factor`.

    Attributes:
        scaling: The fitted map of probabilities.

    Raises:
        ValueError: `reg_factor` or `mu` is negative or not finite.
    """

    def __init__(
        self, wrapper: Predictor, num_classes: int, lr: float, reg_factor: float, mu: float | None = None
    ) -> None:
        self.wrapper = wrapper
        self.num_classes = num_classes
        self.lr = lr
        self.scaling = DirichletScaling(l2=reg_factor, mu=mu)

    def calibrate(
        self,
        train_set: Any,
        test_set: Any,
        batch_size: int,
        epoch: int,
        use_cuda: bool,
        double_fit: bool = False,
        **kwargs: Any,
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Fit on the predictions of `train_set`, and measure on those of `test_set`; the model is left as it is.

        Args:
            train_set: Rows (..., label), or dictionaries with it, that the model was *not* trained on.
            test_set: Other such rows.
            batch_size: Rows of a batch.
            epoch: Without effect, as `lr`.
            use_cuda: Passed to the wrapper.
            double_fit: Without effect, as `lr`.
            **kwargs: Passed to the wrapper's `predict_on_dataset`, such as `iterations`; draws are averaged before
                fitting.

        Returns:
            NLL of `test_set` in nats, "before" and "after"; and the weights of `calibrated_model`.

        Raises:
            ValueError: As `Scaling.fit`; the wrapper predicts another number of classes, or a row has no label.
            TypeError: As `Scaling.fit`; or a row is no tuple, list or dictionary.
        """

        def predicted(rows: Any) -> NumpyArray:
            return as_numpy(self.wrapper.predict_on_dataset(rows, batch_size=batch_size, use_cuda=use_cuda, **kwargs))

        train_labels, labels = _labels(train_set), _labels(test_set)  # [N] each; before what takes long
        probs = predicted(train_set)  # [N, C, T]
        if probs.ndim == 3 and probs.shape[1] != self.num_classes:
            raise ValueError(f"DirichletCalibrator needs C = {self.num_classes} classes, got {list(probs.shape)}.")
        self.scaling.fit(probs, train_labels)
        test = predicted(test_set).mean(-1)  # [N, C]
        history = {"before": _nll(test, labels), "after": _nll(self.calibrated(test), labels)}
        return history, self.calibrated_model.state_dict()

    def calibrated(self, probs: Array) -> Array:
        """Calibrated probabilities, as `Scaling.calibrated`."""
        return self.scaling.calibrated(probs)

    @property
    def calibrated_model(self) -> nn.Module:
        """The wrapper's model, sharing its weights, with the fitted map behind: inputs to calibrated logits [B, C].

        Raises:
            RuntimeError: `calibrate` was not called yet.
        """
        if not hasattr(self.scaling, "weights"):
            raise RuntimeError("DirichletCalibrator has no calibrated model yet: call calibrate first.")
        layer = nn.Linear(self.num_classes, self.num_classes)
        with torch.no_grad():
            layer.weight.copy_(self.scaling.weights)
            layer.bias.copy_(self.scaling.intercept)
        model = self.wrapper.model
        some = next(model.parameters(), layer.weight)
        return nn.Sequential(model, nn.LogSoftmax(1), layer.to(some)).train(model.training)


def _labels(rows: Any) -> NumpyArray:
    found = []
    for number in range(len(rows)):
        _, label = inputs_and_target(rows[number])
        if label is None:
            raise ValueError(f"DirichletCalibrator needs rows (..., label), got row {number} without a label.")
        found.append(int(label))
    return np.array(found, dtype=np.int64)  # [N]


def _nll(probs: NumpyArray, labels: NumpyArray) -> float:
    """Negative log-likelihood in nats of probabilities [N, C], averaged over rows; below 2^-52 they count as that."""
    return float(-np.log(probs[np.arange(len(labels)), labels].clip(SMALLEST)).mean())
