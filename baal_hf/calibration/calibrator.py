"""Baal's name for Dirichlet calibration of a wrapped model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from baal_hf.arrays import Array, NumpyArray, as_numpy
from baal_hf.calibration.dirichlet import DirichletScaling
from baal_hf.calibration.scaling import SMALLEST, checked_labels
from baal_hf.criteria import Link, Links
from baal_hf.outputs import found_logits
from baal_hf.rows import has_targets, inputs_and_target

SUSPECT = 3.1  # standard deviations, which rows of one kind reach once in a thousand times


class Predictor(Protocol):
    """What is asked of a wrapper, such as `ModelWrapper`."""

    model: nn.Module  # inputs to outputs [B, C], or to what has them, as `found_logits` says
    links: Links  # outputs to probabilities

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

    @property
    def name(self) -> str:
        """The calibrator's name in messages."""
        return type(self).__name__

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
            ValueError: As `Scaling.fit`; there are no rows, a row has no label or more than one, or one that is no
                class, in either set; the wrapper predicts another number of classes; `store` is asked for.
            TypeError: As `Scaling.fit`; or a row is no tuple, list or dictionary; or the model has several outputs.

        Warns:
            UserWarning: As `Scaling.fit`; or rows of `train_set` have higher probabilities of their true classes than
                those of `test_set`, by more than chance explains but once in a thousand times (ranks of both, Mann &
                Whitney, 1947). The model was trained on them, or `test_set` is of another kind. Where few rows or a
                small difference hide it, as in a model that hardly overfits, training rows are not noticed.
        """
        if "store" in kwargs:
            raise ValueError(f"{self.name} fits on predictions in memory: leave store out.")
        if getattr(getattr(self.wrapper, "posterior", None), "size", None) == 1:
            kwargs.setdefault("iterations", 1)

        def predicted(rows: Any) -> NumpyArray:
            probs = self.wrapper.predict_on_dataset(rows, batch_size=batch_size, use_cuda=use_cuda, **kwargs)
            if isinstance(probs, list):
                raise TypeError(f"{self.name} needs a model with one output, got {len(probs)}.")
            if probs.ndim == 3 and probs.shape[1] != self.num_classes:
                raise ValueError(f"{self.name} needs C = {self.num_classes} classes, got {list(probs.shape)}.")
            return as_numpy(probs)  # [N, C, T]

        train_labels, labels = (  # [N] each; before what takes long
            checked_labels(_labels(rows, self.name), f"{self.name}'s {which}", len(rows), self.num_classes).numpy()
            for rows, which in ((train_set, "train_set"), (test_set, "test_set"))
        )
        probs = predicted(train_set)
        self.scaling.fit(probs, train_labels)
        test = predicted(test_set).mean(-1)  # [N, C]
        train_nlls, nlls = _nlls(probs.mean(-1), train_labels), _nlls(test, labels)  # [N] each
        if _excess(nlls, train_nlls) > SUSPECT:
            warnings.warn(
                f"{self.name}: rows of train_set are predicted better than those of test_set, with an NLL of "
                f"{train_nlls.mean():.3g} and {nlls.mean():.3g}, which is hardly chance. Was the model trained on "
                "them? Fit on rows that it has not seen. Or is test_set of another kind?",
                stacklevel=2,
            )
        after = _nlls(self.calibrated(test), labels)  # [N]
        return {"before": float(nlls.mean()), "after": float(after.mean())}, self.calibrated_model.state_dict()

    def calibrated(self, probs: Array) -> Array:
        """Calibrated probabilities, as `Scaling.calibrated`."""
        return self.scaling.calibrated(probs)

    @property
    def calibrated_model(self) -> nn.Module:
        """The wrapper's model, sharing its weights, with the fitted map behind: inputs to calibrated logits [B, C].

        It is called as the model is. What it calibrates is the model's one answer, `calibrated` of its probabilities,
        also where the map was fitted on a mean of draws, which may need another; `calibrated` is for those.

        Raises:
            RuntimeError: `calibrate` was not called yet.
        """
        if not hasattr(self.scaling, "weights"):
            raise RuntimeError(f"{self.name} has no calibrated model yet: call calibrate first.")
        layer = nn.Linear(self.num_classes, self.num_classes)
        with torch.no_grad():
            layer.weight.copy_(self.scaling.weights)
            layer.bias.copy_(self.scaling.intercept)
        model = self.wrapper.model
        device = next(model.parameters(), layer.weight).device
        log_probs = _LogProbabilities(self.wrapper.links.to_probabilities)
        return _Calibrated(model, log_probs, layer.to(device)).train(model.training)


class _Calibrated(nn.Sequential):
    """A model, log-probabilities of its outputs, and a layer; called as the model is."""

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        model, log_probs, layer = self
        logits: Tensor = layer(log_probs(found_logits(model(*inputs, **named), ())))
        return logits


class _LogProbabilities(nn.Module):
    """Outputs [B, C] to float32 log-probabilities, those that `Scaling` reads."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def forward(self, outputs: Tensor) -> Tensor:
        return self._link(outputs).float().clamp(min=SMALLEST).log()


def _labels(rows: Any, who: str) -> NumpyArray:
    """The label of each row, [N], of whatever kind they are."""
    found = []
    for number in range(len(rows)):
        _, label = inputs_and_target(rows[number], has_targets(rows))
        if label is None:
            raise ValueError(f"{who} needs rows (..., label), got row {number} without a label.")
        value = np.asarray(label)
        if value.size != 1:
            raise ValueError(f"{who} needs one class a row, got a label of shape {list(value.shape)} in row {number}.")
        found.append(value.item())
    if not found:
        raise ValueError(f"{who} needs held-out rows to fit, and others to measure on, got none.")
    return np.array(found)


def _nlls(probs: NumpyArray, labels: NumpyArray) -> NumpyArray:
    """Negative log-likelihood in nats, [N], of probabilities [N, C]; those below 2^-52 count as that."""
    return np.asarray(-np.log(probs[np.arange(len(labels)), labels].clip(SMALLEST)))


def _excess(values: NumpyArray, others: NumpyArray) -> float:
    """By how many standard deviations the ranks of `values` [N] among both lie above those of `others` [M].

    z = (U - N M/2) / sqrt(N M/12 (n + 1 - Σ_t (t³ - t)/(n (n - 1)))), n = N + M, t of a value that comes t times,
    U how many pairs have the larger one in `values`, equal ones half    (Mann & Whitney, 1947). 0 if all are equal.

    >>> _excess(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    0.0
    """
    N, M = len(values), len(others)
    n = N + M
    ordered = np.sort(others)
    U = sum(np.searchsorted(ordered, values, side).sum() for side in ("left", "right")) / 2
    _, times = np.unique(np.concatenate([values, others]), return_counts=True)
    variance = N * M / 12 * (n + 1 - (times.astype(float) ** 3 - times).sum() / (n * (n - 1)))
    return float((U - N * M / 2) / np.sqrt(variance)) if variance > 0 else 0.0
